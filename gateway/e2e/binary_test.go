package e2e

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"icapgate/bench/dlpstub"
)

// binary is an icapgate that runs as a process of its own.
type binary struct {
	*daemon
	t         testing.TB
	listeners map[string]string // URIs by name
	roots     *x509.CertPool
	admin     *http.Client
}

// installBinary builds icapgate and does what the administrator of a new gateway does: cert, a configuration, check. The folder has it all.
func installBinary(t *testing.T, servers, more string) (dir string) {
	t.Helper()
	dir = openDir(t)
	path := filepath.Join(dir, "icapgate")
	run(t, nil, "go", "build", "-o", path, "icapgate/cmd/icapgate")
	run(t, nil, path, "cert", "--name", "127.0.0.1", filepath.Join(dir, "gateway.pem"))
	config := writeFile(t, filepath.Join(dir, "icapgate.yaml"), fmt.Sprintf(`listeners:
  - {name: icaps, address: "127.0.0.1:0", tls: {certificates: [{cert_file: gateway.pem}]}}
  - {name: icap, address: "127.0.0.1:0"}
pools:
  - {name: dlp, servers: [%s]}
access_log: {output: off}
admin: {address: "unix:%s"}
state_dir: state
%s`, servers, filepath.Join(dir, "admin.sock"), more))
	if out := run(t, nil, path, "check", "--config", config); !strings.HasSuffix(out, "Configuration successful\n") {
		t.Fatalf("check says\n%s", out)
	}
	return dir
}

// runBinary starts what installBinary has made, and returns when it has said on stdout that it is ready.
func runBinary(t *testing.T, dir string) *binary {
	t.Helper()
	b := &binary{t: t, listeners: make(map[string]string), roots: certPool(t, filepath.Join(dir, "gateway.pem"))}
	b.daemon = launch(t, dir, filepath.Join(dir, "icapgate"), "run", "--config", filepath.Join(dir, "icapgate.yaml"))
	line := ""
	eventually(t, "a line on stdout", func() bool {
		text, _ := os.ReadFile(b.stdout)
		line = string(text)
		return strings.HasSuffix(line, "\n") || !b.running()
	})
	said, ok := strings.CutPrefix(line, "icapgate ready ")
	if !ok {
		t.Fatalf("it begins with\n%s", b.output())
	}
	for _, l := range strings.Fields(said) {
		name, uri, _ := strings.Cut(l, "=")
		b.listeners[name] = uri
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, "admin.sock"))
	}
	b.admin = &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	return b
}

func (b *binary) dial(listener string) *icapClient {
	b.t.Helper()
	return dialClient(b.t, b.listeners[listener]+"/reqmod", b.roots)
}

// ask returns the status and the text of a page of the admin endpoint.
func (b *binary) ask(page string) (int, string) {
	b.t.Helper()
	w, err := b.admin.Get("http://admin" + page)
	if err != nil {
		b.t.Fatal(err)
	}
	defer w.Body.Close()
	text, err := io.ReadAll(w.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return w.StatusCode, string(text)
}

// end waits for the process and returns how it has ended.
func (b *binary) end() error {
	b.t.Helper()
	select {
	case <-b.ended:
		return b.result
	case <-time.After(patience):
		b.t.Fatalf("still running\n%s", b.output())
		return nil
	}
}

// holding returns a hook that holds the answers to requests with X-Hold until release is called, and tells held of each.
func holding(t *testing.T) (hook func(*dlpstub.Request), held chan struct{}, release func()) {
	held = make(chan struct{}, 10)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	hook = func(r *dlpstub.Request) {
		if bytes.Contains(r.Head, []byte("X-Hold")) {
			held <- struct{}{}
			<-ctx.Done()
		}
	}
	return hook, held, cancel
}

func receive(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("waited in vain: %s", what)
	}
}

// lastAnswer wants a 204 that says close, and after it the end of the connection.
func (c *icapClient) lastAnswer(t *testing.T, what string) {
	t.Helper()
	a, err := c.read()
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if connection := a.fields.Get("Connection"); a.status != 204 || !strings.EqualFold(connection, "close") {
		t.Errorf("%s: status %d with Connection %q, want 204 with close", what, a.status, connection)
	}
	c.ended(t, what)
}

// ended wants the orderly end of the connection.
func (c *icapClient) ended(t *testing.T, what string) {
	t.Helper()
	if b, err := c.r.ReadByte(); err != io.EOF {
		t.Errorf("%s: %q, %v instead of the end of the connection", what, b, err)
	}
}

// TestBinary installs icapgate, runs it and ends it with SIGTERM in the middle of its work.
func TestBinary(t *testing.T) {
	checkLeaks(t)
	hook, held, release := holding(t)
	stub := startStub(t, dlpstub.Config{Hook: hook}) // answers 204 after the whole request; without Allow: 204 it echoes
	b := runBinary(t, installBinary(t, fmt.Sprintf("%q", stub.address), "drain_timeout: 5m"))

	idle := b.dial("icaps")
	body := randomBytes(100_000)
	for _, c := range []*icapClient{idle, b.dial("icap")} {
		a, err := c.do(request{method: "REQMOD", body: body})
		if err != nil {
			t.Fatalf("%s: %v", c.uri, err)
		}
		if a.status != 200 || !bytes.Equal(a.body, body) {
			t.Fatalf("%s: status %d with %d bytes, want 200 with %d", c.uri, a.status, len(a.body), len(body))
		}
	}
	eventually(t, "ready", func() bool { code, _ := b.ask("/readyz?pool=dlp"); return code == 200 })

	waiting := b.dial("icaps") // for its answer
	if _, err := waiting.Write(request{method: "REQMOD", body: []byte("one"), fields: "Allow: 204\r\nX-Hold: 1\r\n"}.appendTo(nil, waiting.uri)); err != nil {
		t.Fatal(err)
	}
	receive(t, "a held request", held)
	sending := b.dial("icaps") // the second half of its request comes later
	message := request{method: "REQMOD", body: body, chunk: 10_000, fields: "Allow: 204\r\n"}.appendTo(nil, sending.uri)
	if _, err := sending.Write(message[:50_000]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "two requests at work", func() bool {
		_, text := b.ask("/metrics")
		return strings.Contains(text, fmt.Sprintf("icapgate_server_in_flight{pool=\"dlp\",server=%q} 2\n", stub.address))
	})

	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	idle.ended(t, "idle")
	for name, uri := range b.listeners {
		_, address, _ := strings.Cut(uri, "://")
		eventually(t, name+" accepts nobody", func() bool { return accepts(address) != nil })
	}
	if code, text := b.ask("/readyz"); code != 503 {
		t.Errorf("/readyz: %d %s, want 503", code, text)
	}
	if _, err := sending.Write(message[50_000:]); err != nil {
		t.Error(err)
	}
	sending.lastAnswer(t, "sending")
	if !b.running() {
		t.Error("ended with a request at work")
	}
	release()
	waiting.lastAnswer(t, "waiting")
	if err := b.end(); err != nil {
		t.Errorf("%v\n%s", err, b.output())
	}
	if text, _ := os.ReadFile(b.stdout); bytes.Count(text, []byte("\n")) != 1 {
		t.Errorf("more on stdout than that it is ready:\n%s", text)
	}
}

// TestBinaryDrainTimeout lets a request run longer than drain_timeout.
func TestBinaryDrainTimeout(t *testing.T) {
	checkLeaks(t)
	hook, held, release := holding(t)
	stub := startStub(t, dlpstub.Config{Hook: hook})
	b := runBinary(t, installBinary(t, fmt.Sprintf("%q", stub.address), "drain_timeout: 300ms"))
	c := b.dial("icap")
	if _, err := c.Write(request{method: "REQMOD", body: []byte("one"), fields: "Allow: 204\r\nX-Hold: 1\r\n"}.appendTo(nil, c.uri)); err != nil {
		t.Fatal(err)
	}
	receive(t, "a held request", held)
	_ = b.cmd.Process.Signal(syscall.SIGINT)
	if err := b.end(); err != nil {
		t.Errorf("%v\n%s", err, b.output())
	}
	if _, err := c.read(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %v, want the end of the connection", err)
	}
	release()
}
