package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"icapgate/bench"
	"icapgate/bench/load"
	"icapgate/bench/process"
	"icapgate/bench/scenario"
	"icapgate/icap"
)

var calls = &trial{
	name:  "calls",
	about: "the system calls that a request costs",
	help: `Counts with strace what the gateway asks of the kernel for requests over live connections: that of opening them is taken off. Claimed: a
request with a small body costs two reads and two writes.

    go run ./bench/trial calls
    go run ./bench/trial calls --requests 50000 --clients 64
`,
	limit: 5 * time.Minute,
	flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		o := &callsOptions{}
		f.IntVar(&o.requests, "requests", 10000, "requests of each kind")
		f.IntVar(&o.clients, "clients", 16, "connections")
		return o.run
	},
}

type callsOptions struct{ requests, clients int }

// The calls that move bytes.
var (
	reads  = []string{"read", "readv", "recvfrom", "recvmsg", "splice"}
	writes = []string{"write", "writev", "sendto", "sendmsg"}
)

func (o *callsOptions) run(ctx context.Context, r *rig) error {
	if o.requests < 1 || o.clients < 1 {
		return errors.New("--requests and --clients have to be above 0")
	}
	if _, err := exec.LookPath("strace"); err != nil {
		return errors.New("strace is not installed: apt-get install strace")
	}
	servers, err := r.startServers(ctx, 2, serverConfig{})
	if err != nil {
		return err
	}
	if err := r.startGateway(ctx, gatewayConfig{Servers: servers, AccessLog: filepath.Join(r.dir, "access.log")}); err != nil {
		return err
	}
	defer r.stopGateway()
	for _, kind := range []struct {
		name   string
		method icap.Method
		size   int64
		secure bool
		small  bool // it fits one read
	}{
		{"OPTIONS, icaps", icap.MethodOptions, 0, true, true},
		{"REQMOD 1 KiB, icaps", icap.MethodReqmod, 1 << 10, true, true},
		{"REQMOD 1 KiB, icap", icap.MethodReqmod, 1 << 10, false, true},
		{"REQMOD 64 KiB, icaps", icap.MethodReqmod, 64 << 10, true, false},
		{"REQMOD 10 MB in chunks of 1 MiB, icap", icap.MethodReqmod, 10e6, false, false},
	} {
		requests := o.requests
		if kind.size > 1<<20 {
			requests = max(1, requests/500)
		}
		cfg := load.Config{Connections: o.clients, Timeout: 30 * time.Second}
		cfg.Target, cfg.TLS = r.target(kind.secure, "/reqmod")
		message := bench.Message{Method: kind.method, Preview: -1, Chunk: 1 << 20}
		if cfg.Mix, err = scenario.Single(message, kind.size).Compile(cfg.Target); err != nil {
			return err
		}
		opening, err := o.count(ctx, r, cfg, o.clients)
		if err != nil {
			return err
		}
		counts, err := o.count(ctx, r, cfg, o.clients+requests)
		if err != nil {
			return err
		}
		per := map[string]float64{}
		for call, n := range counts {
			if each := float64(n-opening[call]) / float64(requests); each >= 0.005 {
				per[call] = each
			}
		}
		r.section("%s, calls per request", kind.name)
		for _, call := range slices.SortedFunc(maps.Keys(per), func(a, b string) int { return cmp.Compare(per[b], per[a]) }) {
			r.figure(call, per[call], "")
		}
		if kind.small {
			in, out := sumOf(per, reads), sumOf(per, writes)
			r.claim(in < 2.1 && out < 2.1, "2 reads and 2 writes: %.2f and %.2f", in, out)
		}
	}
	return nil
}

func sumOf(per map[string]float64, names []string) (all float64) {
	for _, n := range names {
		all += per[n]
	}
	return all
}

// count makes a load of so many requests and returns how often the gateway has made each call.
func (o *callsOptions) count(ctx context.Context, r *rig, cfg load.Config, requests int) (map[string]int, error) {
	file := filepath.Join(r.dir, "strace.txt")
	tracer, err := process.Start(r.dir, "strace", "strace", "-c", "-f", "-o", file, "-p", strconv.Itoa(r.gateway.PID()))
	if err != nil {
		return nil, err
	}
	defer tracer.Stop()
	if err := r.awaitTracer(ctx); err != nil {
		return nil, err
	}
	cfg.Requests = int64(requests)
	result, err := load.Run(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if result.Failed > 0 || result.Requests != cfg.Requests {
		return nil, fmt.Errorf("%d of %d requests were answered", result.Requests, cfg.Requests)
	}
	tracer.Signal(syscall.SIGINT)
	select {
	case <-tracer.Ended():
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return parseCalls(string(text))
}

// awaitTracer waits until all threads of the gateway are traced.
func (r *rig) awaitTracer(ctx context.Context) error {
	for {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", r.gateway.PID()))
		if err != nil {
			return err
		}
		traced := len(files) > 0
		for _, f := range files {
			text, err := os.ReadFile(f)
			traced = traced && (err != nil || !strings.Contains(string(text), "TracerPid:\t0\n")) // an error: it has ended
		}
		if traced {
			return nil
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

// parseCalls reads the table that strace -c prints: % time, seconds, usecs/call, calls, errors if there were any, name.
func parseCalls(text string) (map[string]int, error) {
	counts := map[string]int{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 5 || f[len(f)-1] == "total" || f[0] == "%" || strings.HasPrefix(f[0], "-") {
			continue
		}
		n, err := strconv.Atoi(f[3])
		if err != nil {
			return nil, fmt.Errorf("strange line of strace: %q", line)
		}
		counts[f[len(f)-1]] = n
	}
	if len(counts) == 0 {
		return nil, fmt.Errorf("strace has counted nothing:\n%s", text)
	}
	return counts, nil
}
