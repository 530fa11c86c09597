package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"icapgate/configs"
	"icapgate/gateway"
	"icapgate/gateway/selfsign"
)

// The listeners of a testGateway.
const (
	icaps = iota
	icap
)

// testGateway is a gateway in this process on ports of its own.
type testGateway struct {
	*gateway.Gateway
	t     testing.TB
	pem   string // PEM file with its certificate and key
	certs string // the one that its clients trust
	roots *x509.CertPool
}

// checkLeaks makes the test fail if goroutines or file descriptors are left at its end. Called first, it looks last.
func checkLeaks(t testing.TB) {
	t.Helper()
	_ = freeAddress(t) // the runtime's own descriptors come with the first socket
	before, goroutines := openFDs(t), goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if t.Failed() {
			return // what has failed half way may well leave something
		}
		eventually(t, "goroutines ended", func() bool { return goleak.Find(goroutines) == nil })
		eventually(t, fmt.Sprintf("file descriptors closed but for %d", before), func() bool { return openFDs(t) <= before })
	})
}

func openFDs(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// startGateway runs a gateway with an icaps and an icap listener in front of the servers, and waits until all of them are up. servers and pool,
// which is more of the only pool, are YAML in flow style: "127.0.0.1:1344", "balance: round_robin". more are further lines of the configuration.
func startGateway(t testing.TB, servers []string, pool string, more ...string) *testGateway {
	t.Helper()
	g := startGatewayUnchecked(t, servers, pool, more...)
	eventually(t, "servers up", func() bool { return g.sum("server_up", "") == len(servers) })
	return g
}

func startGatewayUnchecked(t testing.TB, servers []string, pool string, more ...string) *testGateway {
	t.Helper()
	if pool != "" {
		pool = ", " + pool
	}
	pem, trust := makeCertificate(t)
	text := fmt.Sprintf(`listeners:
  - {name: icaps, address: "127.0.0.1:0", tls: {certificates: [{cert_file: %q}]}}
  - {name: icap, address: "127.0.0.1:0"}
pools:
  - {name: dlp, servers: [%s]%s}
access_log: {output: off}
admin: {address: "off"}
%s
`, pem, strings.Join(servers, ", "), pool, strings.Join(more, "\n"))
	cfg, err := configs.Parse("e2e.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if !strings.Contains(text, "state_dir:") {
		cfg.StateDir = "" // no test learns from another one
	}
	g, err := gateway.New(cfg, gateway.Options{Logger: slog.New(slog.NewTextHandler(testLog{t}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return &testGateway{Gateway: g, t: t, pem: pem, certs: trust, roots: certPool(t, trust)}
}

// testLog is a writer to the test's log.
type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	if _, fuzzes := l.t.(*testing.F); fuzzes {
		return len(p), nil // it may not log while its target runs
	}
	l.t.Log(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

// makeCertificate makes a self-signed certificate for 127.0.0.1 and gateway.example. It returns a file with the key and one without.
func makeCertificate(t testing.TB) (pem, trust string) {
	t.Helper()
	text, err := selfsign.Generate([]string{"127.0.0.1", "gateway.example"})
	if err != nil {
		t.Fatal(err)
	}
	dir := openDir(t)
	at := bytes.Index(text, []byte("-----BEGIN CERTIFICATE"))
	return writeFile(t, filepath.Join(dir, "combined.pem"), string(text)), writeFile(t, filepath.Join(dir, "trust.pem"), string(text[at:]))
}

func certPool(t testing.TB, file string) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		t.Fatalf("no certificate in %s", file)
	}
	return roots
}

// address returns host:port of a listener.
func (g *testGateway) address(listener int) string {
	_, address, _ := strings.Cut(g.Addresses()[listener], "://")
	return address
}

// dial connects to a listener, for requests to a path.
func (g *testGateway) dial(listener int, path string) *icapClient {
	g.t.Helper()
	return dialClient(g.t, g.Addresses()[listener]+path, g.roots)
}

// dialClient connects to the gateway that a URI names.
func dialClient(t testing.TB, uri string, roots *x509.CertPool) *icapClient {
	t.Helper()
	scheme, rest, _ := strings.Cut(uri, "://")
	address, _, _ := strings.Cut(rest, "/")
	nc, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.Fatal(err)
	}
	if scheme == "icaps" {
		tc := tls.Client(nc, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"})
		_ = tc.SetDeadline(time.Now().Add(patience))
		if err := tc.Handshake(); err != nil {
			nc.Close()
			t.Fatal(err)
		}
		nc = tc
	}
	return newClient(t, nc, uri)
}

var metricLine = regexp.MustCompile(`(?m)^icapgate_([a-z_]+)(\{[^\n]*\})? (\S+)$`)

// sum adds up the series of a metric whose labels contain every one of labels, a list such as `server="a" code="200"`.
func (g *testGateway) sum(metric, labels string) int {
	g.t.Helper()
	var text bytes.Buffer
	g.WriteMetrics(&text)
	total := 0.0
	for _, m := range metricLine.FindAllStringSubmatch(text.String(), -1) {
		if m[1] != metric || !containsAll(m[2], strings.Fields(labels)) {
			continue
		}
		value, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			g.t.Fatalf("strange metric: %q", m[0])
		}
		total += value
	}
	return int(total)
}

func containsAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// opened is the number of connections to servers that requests have opened so far. One that closes meanwhile may be counted twice.
func (g *testGateway) opened() int {
	open := g.sum("server_connections", "")
	return open + g.sum("closes_total", `side="server"`)
}

// noRejects fails the test if the gateway has answered any request by itself.
func (g *testGateway) noRejects() {
	g.t.Helper()
	if n := g.sum("rejects_total", ""); n > 0 {
		g.t.Errorf("the gateway has refused %d requests itself", n)
	}
	if n := g.sum("panics_total", ""); n > 0 {
		g.t.Errorf("%d panics", n)
	}
}

// randomBytes returns n bytes that are the same in every run.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)}).Read(b)
	return b
}
