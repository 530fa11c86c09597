package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/configs"
	"icapgate/gateway/selfsign"
)

// patience is how long a test waits for what must come; it is never what a test measures.
const patience = 20 * time.Second

// testGateway is a gateway in this process on ports of its own.
type testGateway struct {
	*Gateway
	t     testing.TB
	roots *x509.CertPool
}

// startGateway runs a gateway with an icaps and an icap listener in front of the servers. pool is YAML for the pool "dlp", indented by
// four blanks, rest is YAML for further top-level keys. Unless that has options or istag, these are the servers'.
func startGateway(t testing.TB, servers []string, pool, rest string) *testGateway {
	t.Helper()
	g := newGateway(t, servers, pool, rest)
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	return g
}

// newGateway is startGateway without the start.
func newGateway(t testing.TB, servers []string, pool, rest string) *testGateway {
	t.Helper()
	return newGatewayIn(t, fmt.Sprintf("[\"%s\"]", strings.Join(servers, `","`)), pool, rest)
}

// newGatewayIn is newGateway with the list of servers in YAML.
func newGatewayIn(t testing.TB, servers, pool, rest string) *testGateway {
	t.Helper()
	level := slog.LevelWarn
	if testing.Verbose() {
		level = slog.LevelDebug
	}
	return newLoggedGateway(t, servers, pool, rest, slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: level})))
}

// newLoggedGateway is newGatewayIn with a log of the test's own.
func newLoggedGateway(t testing.TB, servers, pool, rest string, log *slog.Logger) *testGateway {
	t.Helper()
	pem, err := selfsign.Generate([]string{"127.0.0.1", "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "gateway.pem")
	if err := os.WriteFile(file, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(rest, "listeners:") {
		rest += fmt.Sprintf(`
listeners:
  - {name: icaps, address: "127.0.0.1:0", tls: {certificates: [{cert_file: %q}]}}
  - {name: icap, address: "127.0.0.1:0"}
`, file)
	} else {
		rest = strings.ReplaceAll(rest, "CERT", file)
	}
	if !strings.Contains(rest, "access_log:") {
		rest += "\naccess_log: {output: \"off\"}"
	}
	text := fmt.Sprintf("%s\nadmin: {address: \"off\"}\npools:\n  - name: dlp\n    servers: %s\n%s\n", rest, servers, pool)
	cfg, err := configs.Parse("test.yaml", []byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if !strings.Contains(rest, "options:") && !strings.Contains(rest, "istag:") {
		bare(cfg)
	}
	g, err := New(cfg, Options{Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &testGateway{g, t, roots}
}

// parseBare reads a configuration for a reload, as startGateway would.
func parseBare(text string) (*configs.Config, error) {
	cfg, err := configs.Parse("test.yaml", []byte(text))
	if err == nil {
		bare(cfg)
	}
	return cfg, err
}

// bare leaves OPTIONS and ISTag to the servers, for tests that look at every byte that passes.
func bare(cfg *configs.Config) {
	if len(cfg.Services) == 0 {
		all := configs.DefaultService()
		all.Pool = cfg.Pools[0].Name
		cfg.Services = []configs.Service{all}
	}
	for i := range cfg.Services {
		cfg.Services[i].Options, cfg.Services[i].ISTag = "forward", "pass"
	}
}

// testWriter logs to the test as long as it runs.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// startStub runs a fake server and returns its address.
func startStub(t testing.TB, cfg dlpstub.Config) (*dlpstub.Server, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := dlpstub.New(cfg)
	go s.Serve(ln)
	t.Cleanup(s.Close)
	return s, ln.Addr().String()
}

func (g *testGateway) address(listener int) string { return g.listeners[listener].ln.Addr().String() }

// dial connects to the icaps (0) or icap (1) listener.
func (g *testGateway) dial(listener int) *client {
	g.t.Helper()
	nc, err := net.Dial("tcp", g.address(listener))
	if err != nil {
		g.t.Fatal(err)
	}
	if g.listeners[listener].secure() {
		tc := tls.Client(nc, &tls.Config{RootCAs: g.roots, ServerName: "127.0.0.1", DynamicRecordSizingDisabled: true})
		if err := tc.Handshake(); err != nil {
			g.t.Fatal(err)
		}
		nc = tc
	}
	return newClient(g.t, nc)
}

// client is a raw connection: tests see every byte.
type client struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func newClient(t testing.TB, nc net.Conn) *client {
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(patience))
	return &client{nc, t, bufio.NewReader(nc)}
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		c.t.Fatalf("cannot send: %v", err)
	}
}

// head reads one head, its empty line included.
func (c *client) head() string {
	c.t.Helper()
	var b bytes.Buffer
	for {
		line, err := c.r.ReadString('\n')
		b.WriteString(line)
		if err != nil {
			c.t.Fatalf("no whole head: %v, got %q", err, b.String())
		}
		if line == "\r\n" {
			return b.String()
		}
	}
}

// expect reads exactly want.
func (c *client) expect(want string) {
	c.t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(c.r, got)
	if err != nil || string(got) != want {
		c.t.Fatalf("got %q (%v), want %q", shorten(string(got[:n])), err, shorten(want))
	}
}

// status reads a head and checks its status.
func (c *client) status(want int) string {
	c.t.Helper()
	h := c.head()
	if !strings.HasPrefix(h, fmt.Sprintf("ICAP/1.0 %d ", want)) {
		c.t.Fatalf("got %q, want status %d", h, want)
	}
	return h
}

// closed checks that nothing comes any more, and that the end is in order. It ends our side, too.
func (c *client) closed() {
	c.t.Helper()
	rest, err := io.ReadAll(c.r)
	if err != nil || len(rest) > 0 {
		c.t.Fatalf("got %q (%v), want the end of the connection", shorten(string(rest)), err)
	}
	c.Close()
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// ready waits until every server has been found up.
func (g *testGateway) ready() *testGateway {
	g.t.Helper()
	eventually(g.t, "servers up", func() bool {
		for _, p := range g.table.Load().pools {
			for _, s := range p.servers {
				if !s.Health.Usable(-1) {
					return false
				}
			}
		}
		return true
	})
	return g
}

// drainAndClose ends the gateway as SIGTERM does.
func (g *testGateway) drainAndClose() {
	g.Drain(context.Background())
	g.Close()
}

// metric is the value of a series, 0 if it is not there.
func (g *testGateway) metric(series string) float64 {
	g.t.Helper()
	var b bytes.Buffer
	g.writeMetrics(&b)
	for line := range strings.Lines(b.String()) {
		if v, ok := strings.CutPrefix(line, "icapgate_"+series+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
			if err != nil {
				g.t.Fatal(err)
			}
			return n
		}
	}
	return 0
}
