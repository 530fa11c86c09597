package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/configs"
	"icapgate/gateway"
	"icapgate/gateway/selfsign"
)

// demoFields mark every answer, so that nobody takes the demo for a DLP system.
const demoFields = "X-Icapgate-Demo: nothing is inspected\r\n"

// addresses are where the demo listens: on loopback only, so that it never swallows a real incident.
type addresses struct{ icaps, icap, admin string }

var demoAddresses = addresses{"127.0.0.1:11344", "127.0.0.1:1344", "127.0.0.1:9344"}

const demoConfig = `
listeners:
  - {name: icaps, address: "%s", tls: {certificates: [{cert_file: demo.pem}]}}
  - {name: icap, address: "%s"}
pools:
  - name: dlp
    servers: ["%s", "%s"]
    health: {interval: 1s}
    slow_start: 0s # the split is to be seen at once
log: {level: error, format: text}
access_log: {output: off}
admin: {address: "%s"}
state_dir: .
`

// demo is a gateway that needs no configuration and two fake DLP servers behind it, all in this process.
type demo struct {
	dir     string // holds the certificate
	cfg     *configs.Config
	trust   *x509.CertPool
	servers [2]*demoServer
}

// demoServer is a fake DLP server that can be killed and revived.
type demoServer struct {
	name    string
	address string
	stub    *dlpstub.Server
}

func newDemo(a addresses) (*demo, error) {
	d := &demo{trust: x509.NewCertPool()}
	for i := range d.servers {
		d.servers[i] = &demoServer{name: fmt.Sprintf("dlp%d", i+1), address: "127.0.0.1:0"}
		if err := d.servers[i].start(); err != nil {
			d.close()
			return nil, err
		}
	}
	if err := d.configure(a); err != nil {
		d.close()
		return nil, fmt.Errorf("setting the demo up: %w", err)
	}
	return d, nil
}

// configure makes a certificate and the configuration that uses it.
func (d *demo) configure(a addresses) error {
	pem, err := selfsign.Generate(nil)
	if err != nil {
		return err
	}
	d.trust.AppendCertsFromPEM(pem)
	if d.dir, err = os.MkdirTemp("", "icapgate-demo-*"); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.dir, "demo.pem"), pem, 0o600); err != nil {
		return err
	}
	text := fmt.Sprintf(demoConfig, a.icaps, a.icap, d.servers[0].address, d.servers[1].address, a.admin)
	d.cfg, err = configs.Parse(filepath.Join(d.dir, "demo.yaml"), []byte(text))
	return err
}

func (d *demo) close() {
	for _, s := range d.servers {
		if s != nil && s.stub != nil {
			s.stub.Close()
		}
	}
	if d.dir != "" {
		os.RemoveAll(d.dir)
	}
}

// start listens again where the server was before, if it was.
func (s *demoServer) start() error {
	ln, err := net.Listen("tcp", s.address)
	if err != nil {
		return fmt.Errorf("fake DLP server %s: %w", s.name, err)
	}
	s.address = ln.Addr().String()
	s.stub = dlpstub.New(dlpstub.Config{Name: s.name})
	go s.stub.Serve(ln)
	return nil
}

// run is icapgate run --demo.
func (d *demo) run(s streams) error {
	log := newLogger(d.cfg.Log, s.err)
	g, err := d.newGateway(log)
	if err != nil {
		return err
	}
	return serve(g, log, s.out, func(ctx context.Context) error {
		if err := d.show(ctx, s.out, g, 2*time.Second); err != nil {
			return err
		}
		fmt.Fprint(s.out, d.hints())
		return nil
	})
}

func (d *demo) newGateway(log *slog.Logger) (*gateway.Gateway, error) {
	return gateway.New(d.cfg, gateway.Options{Logger: log, Version: version(), Fields: demoFields})
}

// show drives load through the gateway while a server is killed and revived, and tells what happened. Each step takes as long
// as is given.
func (d *demo) show(ctx context.Context, out io.Writer, g *gateway.Gateway, step time.Duration) error {
	address := strings.TrimPrefix(g.Addresses()[0], "icaps://")
	driver := newDriver(4, address, &tls.Config{RootCAs: d.trust, ServerName: "localhost"})
	defer driver.close()
	fmt.Fprintf(out, `
A demo: on loopback only, with a certificate made now (%s) and two fake DLP
servers inside. 4 clients send REQMODs with 1 KiB to %s, each over one TLS connection that it keeps.

`, filepath.Join(d.dir, "demo.pem"), address)

	if err := d.report(ctx, out, "Both servers are up.", driver.drive(ctx, step, nil)); err != nil {
		return err
	}
	d.servers[0].stub.Kill()
	if err := d.report(ctx, out, "dlp1 was killed. The clients go on over the same connections.", driver.drive(ctx, step, nil)); err != nil {
		return err
	}
	if err := d.servers[0].start(); err != nil {
		return err
	}
	const most = 15 * time.Second // checks find it within 3 s
	back := driver.drive(ctx, most, func(server string) bool { return server == "dlp1" })
	if ctx.Err() == nil && back.byServer["dlp1"] == 0 {
		return fmt.Errorf("dlp1 got no request within %v of its return", most)
	}
	after := driver.drive(ctx, step, nil)
	text := fmt.Sprintf("dlp1 was started again and got its first request after %.1f s.", back.took.Seconds())
	return d.report(ctx, out, text, after)
}

// report prints one step of the show.
func (d *demo) report(ctx context.Context, out io.Writer, text string, t tally) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	fmt.Fprintf(out, "%s\n   ", text)
	for _, s := range d.servers {
		fmt.Fprintf(out, " %s: %d", s.name, t.byServer[s.name])
	}
	fmt.Fprintf(out, "  failed: %d  half of them within %.2f ms, 99%% within %.2f ms\n\n", t.failed, t.quantile(0.5), t.quantile(0.99))
	if t.failed > 0 {
		fmt.Fprintf(out, "    the first that failed: %v\n\n", t.firstFailure)
	}
	return nil
}

// hints says what to try next.
func (d *demo) hints() string {
	icaps, icap, admin := d.cfg.Listeners[0].Address, d.cfg.Listeners[1].Address, d.cfg.Admin.Address
	return fmt.Sprintf(`The gateway stays up. Try, in another terminal:

    bin/icapbench send README.md icap://%[2]s/reqmod
    bin/icapbench send --ca %[4]s README.md icaps://%[1]s/reqmod
    bin/icapbench load --ca %[4]s icaps://%[1]s/reqmod
    bin/icapgate status
    bin/icapgate drain %[5]s
    curl http://%[3]s/metrics

and http://%[3]s/ in a browser. Ctrl-C ends the demo.
`, icaps, icap, admin, d.cfg.Listeners[0].TLS.Certificates[0].CertFile, d.servers[0].address)
}
