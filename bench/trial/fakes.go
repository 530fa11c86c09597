package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"icapgate/bench/process"
	"icapgate/bench/serve"
)

// fakes are servers of `icapbench serve`, one process, which fail on command and tell what they have got.
type fakes struct {
	addresses []string // host:port
	control   string   // the same
	process   *process.Process
	web       *http.Client
}

// startFakes starts servers at these addresses, host:port, with the flags of `icapbench serve`. It needs buildBench; name is that of no others.
func (r *rig) startFakes(ctx context.Context, name string, addresses []string, args ...string) (*fakes, error) {
	args = append([]string{"serve", "--control", "127.0.0.1:0"}, args...)
	for _, address := range addresses {
		args = append(args, "--listen", address)
	}
	p, err := process.Start(r.dir, name, filepath.Join(r.bin, "icapbench"), args...)
	if err != nil {
		return nil, err
	}
	line, err := p.AwaitLine(ctx, "icapbench ready ")
	if err != nil {
		p.Stop()
		return nil, err
	}
	f := &fakes{process: p, web: &http.Client{Timeout: 5 * time.Second}}
	for address := range strings.FieldsSeq(line) {
		if control, ok := strings.CutPrefix(address, "control="); ok {
			f.control = control
		} else {
			f.addresses = append(f.addresses, address)
		}
	}
	return f, nil
}

// stop ends the servers.
func (f *fakes) stop() { f.process.Stop() }

// stats are what they have got since they were started.
func (f *fakes) stats(ctx context.Context) (*serve.Stats, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+f.control+"/stats", nil)
	if err != nil {
		return nil, err
	}
	resp, err := f.web.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return serve.ReadStats(resp.Body)
}

// order has all of them do something: see GET / of their control address.
func (f *fakes) order(ctx context.Context, command string, pairs ...string) error {
	values := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		values.Set(pairs[i], pairs[i+1])
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+f.control+"/"+command+"?"+values.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := f.web.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		return fmt.Errorf("icapbench serve: POST /%s: %s", command, strings.TrimSpace(string(text)))
	}
	return nil
}
