package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"icapgate/bench/process"
)

// gateway is a program that is set up to run.
type gateway struct {
	*program
	path    string
	version string
	setup   setup
	config  string // file
	process *process.Process
}

// newGateway configures an installed program. It adds what is the gateway's own to s, whose Dir is the folder for all.
func newGateway(p *program, path string, s setup) (*gateway, error) {
	version, err := p.printVersion(path)
	if err != nil {
		return nil, err
	}
	if p.name == "nginx" {
		if s.Module, err = streamModule(path); err != nil {
			return nil, err
		}
	}
	addresses, err := process.FreeAddresses(4)
	if err != nil {
		return nil, err
	}
	s.Secure, s.Echo, s.Plain, s.Admin = addresses[0], addresses[1], addresses[2], addresses[3]
	s.CPUs = runtime.NumCPU()
	s.Dir = filepath.Join(s.Dir, p.name)
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		return nil, err
	}
	config, err := p.write(s)
	return &gateway{program: p, path: path, version: version, setup: s, config: config}, err
}

// start starts the gateway and waits until it serves.
func (g *gateway) start(ctx context.Context) (err error) {
	if g.process, err = process.Start(g.setup.Dir, g.name, g.path, fill(g.args, g.config)...); err != nil {
		return err
	}
	var addresses []string
	for _, d := range g.doors {
		addresses = append(addresses, g.address(d))
	}
	return g.process.Await(ctx, addresses...)
}

// stop ends the gateway if it runs.
func (g *gateway) stop() {
	if g.process != nil {
		g.process.Stop()
		g.process = nil
	}
}

// address returns where a door is.
func (g *gateway) address(d door) string {
	return [...]string{secure: g.setup.Secure, echo: g.setup.Echo, plain: g.setup.Plain}[d]
}

// checkTLS makes sure that the gateway negotiates what all of them are to use. Go's servers would prefer a post-quantum group,
// which OpenSSL 3.0 does not have, so the clients offer none; see also loadEnvironment.
func (g *gateway) checkTLS(ctx context.Context, roots *x509.CertPool) error {
	dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots, CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256}}}
	for _, d := range []door{secure, echo} {
		nc, err := dialer.DialContext(ctx, "tcp", g.address(d))
		if err != nil {
			return fmt.Errorf("%s: %w", g.name, err)
		}
		nc.Close()
		s := nc.(*tls.Conn).ConnectionState()
		if s.Version != tls.VersionTLS13 || s.CipherSuite != tls.TLS_AES_128_GCM_SHA256 || s.CurveID != tls.X25519 {
			return fmt.Errorf("%s negotiates %s, %s, %v: want TLS 1.3, TLS_AES_128_GCM_SHA256, X25519", g.name,
				tls.VersionName(s.Version), tls.CipherSuiteName(s.CipherSuite), s.CurveID)
		}
	}
	return nil
}

// loadEnvironment keeps icapbench from offering post-quantum groups.
const loadEnvironment = "GODEBUG=tlsmlkem=0,tlssecpmlkem=0"
