package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"icapgate/bench"
	"icapgate/bench/process"
	"icapgate/gateway/admin"
)

const (
	readyPatience = 20 * time.Second // until the gateway has checked its servers
	poolName      = "dlp"
)

// rig is what a trial works with: a gateway and servers, each a process of its own, and the report.
type rig struct {
	*report
	progress io.Writer // what goes on, for who waits
	dir      string    // of configuration and logs
	bin      string    // of programs
	keep     bool      // the folder
	self     string    // path of this program, which serves as fake server
	pem      string    // file with the key and the certificate of the gateway
	roots    *x509.CertPool

	gateway *process.Process // nil: not started
	servers []*server        // all that were made

	Secure, Plain string // addresses of the gateway: icaps and icap
	socket        string // of its admin endpoint
	admin         *admin.Client
	web           *http.Client // of metrics
}

// newRig builds the gateway and makes its certificate.
func newRig(ctx context.Context, rp *report, dir string, progress io.Writer) (r *rig, err error) {
	r = &rig{report: rp, progress: progress, dir: dir, keep: dir != "", roots: x509.NewCertPool()}
	if !r.keep {
		if r.dir, err = os.MkdirTemp("", "icapgate-trial-"); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if r.dir, err = filepath.Abs(r.dir); err != nil {
		return nil, err
	}
	r.bin, r.socket = filepath.Join(r.dir, "bin"), filepath.Join(r.dir, "admin.sock")
	if r.self, err = os.Executable(); err != nil {
		return nil, err
	}
	fmt.Fprintln(progress, "building icapgate")
	if err := process.Build(ctx, r.dir, "./cmd/icapgate"); err != nil {
		return nil, err
	}
	r.pem, err = r.makeCertificate(ctx, "gateway")
	return r, err
}

// program is the gateway.
func (r *rig) program() string { return filepath.Join(r.bin, "icapgate") }

// another returns a rig for a gateway more, which has a folder of its own and reports to the same report. It starts no servers, and its
// gateway is stopped by the trial, not by close.
func (r *rig) another(name string) (*rig, error) {
	more := *r
	more.dir = filepath.Join(r.dir, name)
	more.socket = filepath.Join(more.dir, "admin.sock")
	more.gateway, more.servers = nil, nil
	return &more, os.MkdirAll(more.dir, 0o700)
}

// makeCertificate makes a key and a certificate for 127.0.0.1 with the gateway's own command, and trusts it.
func (r *rig) makeCertificate(ctx context.Context, name string) (path string, err error) {
	path = filepath.Join(r.dir, name+".pem")
	if out, err := process.Run(exec.CommandContext(ctx, r.program(), "cert", "--force", "--name", "127.0.0.1", path)); err != nil {
		return "", fmt.Errorf("icapgate cert: %w\n%s", err, out)
	}
	text, err := os.ReadFile(path)
	if err == nil && !r.roots.AppendCertsFromPEM(text) {
		err = fmt.Errorf("no certificate in %q", path)
	}
	return path, err
}

// gatewayConfig is how a gateway is configured. The zero value balances over no server.
type gatewayConfig struct {
	Servers   []*server
	Addresses []string // of further servers
	Pool      string   // further YAML of the pool, indented by 4
	Listeners string   // further YAML of both listeners, in flow style: "timeouts: {body: 1s}"
	Further   string   // further YAML, not indented
	PEM       string   // "": the rig's
	Loops     int      // event loops, 0: one for each CPU
	AccessLog string   // file; "": off
	StateDir  string   // "": the rig's folder
}

// writeConfig writes the gateway's configuration, which a reload would read.
func (r *rig) writeConfig(c gatewayConfig) (path string, err error) {
	addresses := c.Addresses
	for _, s := range c.Servers {
		addresses = append(addresses, s.address)
	}
	pem, more, log := c.PEM, c.Listeners, c.AccessLog
	if pem == "" {
		pem = r.pem
	}
	if more != "" {
		more = ", " + more
	}
	if log == "" {
		log = "off"
	}
	text := fmt.Sprintf(`listeners:
  - {name: icaps, address: "127.0.0.1:0", tls: {certificates: [{cert_file: %q}]}%s}
  - {name: icap, address: "127.0.0.1:0"%s}
pools:
  - name: %s
    servers: [%s]
%slog: {level: info, format: text}
access_log: {output: %q}
admin: {address: %q}
state_dir: %q
%s`, pem, more, more, poolName, strings.Join(addresses, ", "), c.Pool, log, "unix:"+r.socket, cmp.Or(c.StateDir, r.dir), c.Further)
	path = filepath.Join(r.dir, "icapgate.yaml")
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return "", err
	}
	return path, os.Rename(path+".new", path) // a reload may be reading it
}

// startGateway starts the gateway and waits until it has checked its servers.
func (r *rig) startGateway(ctx context.Context, c gatewayConfig) error {
	path, err := r.writeConfig(c)
	if err != nil {
		return err
	}
	args := []string{r.program(), "run", "--config", path}
	if c.Loops > 0 {
		args = append([]string{fmt.Sprintf("GOMAXPROCS=%d", c.Loops)}, args...)
	}
	if r.gateway, err = process.Start(r.dir, "icapgate", "/usr/bin/env", args...); err != nil {
		return err
	}
	line, err := r.gateway.AwaitLine(ctx, "icapgate ready ")
	if err != nil {
		return err
	}
	for listener := range strings.FieldsSeq(line) {
		if name, address, ok := strings.Cut(listener, "://"); ok && name == "icaps=icaps" {
			r.Secure = address
		} else if ok {
			r.Plain = address
		}
	}
	if r.admin, err = admin.NewClient("unix:" + r.socket); err != nil {
		return err
	}
	r.web = socketClient(r.socket)
	return r.awaitStatus(ctx, readyPatience, "that has checked every server", func(s *admin.Status) bool {
		for _, p := range s.Pools {
			for _, server := range p.Servers {
				if server.Health == "checking" {
					return false
				}
			}
		}
		return true
	})
}

// stopGateway ends the gateway, for a trial that starts another one.
func (r *rig) stopGateway() {
	if r.gateway != nil {
		r.gateway.Stop()
		_ = os.Rename(filepath.Join(r.dir, "icapgate.log"), filepath.Join(r.dir, "icapgate-last.log")) // AwaitLine looks for its first line
		r.gateway = nil
	}
}

// close ends what runs and removes the folder.
func (r *rig) close() {
	r.stopGateway()
	for _, s := range r.servers {
		s.stop()
	}
	if !r.keep {
		_ = os.RemoveAll(r.dir)
	}
}

// target returns where clients send a request with that path, and the TLS configuration for it: nil for icap://.
func (r *rig) target(secure bool, path string) (bench.Target, *tls.Config) {
	if secure {
		return r.secureTarget(r.Secure, path)
	}
	return mustTarget("icap://" + r.Plain + path), nil
}

// secureTarget is target for anything that has the rig's certificate.
func (r *rig) secureTarget(address, path string) (bench.Target, *tls.Config) {
	return mustTarget("icaps://" + address + path), &tls.Config{RootCAs: r.roots, ServerName: "127.0.0.1", DynamicRecordSizingDisabled: true}
}

func mustTarget(uri string) bench.Target {
	t, err := bench.ParseTarget(uri)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	return t
}

// awaitStatus waits until the gateway's status is as it should be, which is what.
func (r *rig) awaitStatus(ctx context.Context, patience time.Duration, what string, right func(*admin.Status) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		s, err := r.admin.Status(ctx)
		if err == nil && right(&s) {
			return nil
		}
		select {
		case <-r.gateway.Ended():
			return fmt.Errorf("the gateway has ended:\n%s", r.gateway.Output())
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("there is no gateway %s: %w", what, context.Cause(ctx)), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// awaitInFlight waits until n requests run on servers.
func (r *rig) awaitInFlight(ctx context.Context, n int) error {
	return r.awaitStatus(ctx, readyPatience, fmt.Sprintf("with %d requests in flight", n), func(s *admin.Status) bool {
		sum := 0
		for _, p := range s.Pools {
			for _, server := range p.Servers {
				sum += server.InFlight
			}
		}
		return sum == n
	})
}

// pause waits for d, or until ctx ends, which is an error.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
