package admin

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func listenForTest(t *testing.T, address string, g Gateway, readOnly bool) *Server {
	t.Helper()
	s, err := Listen(address, g, readOnly, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func clientForTest(t *testing.T, address string) *Client {
	t.Helper()
	c, err := NewClient(address)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Every command of the client reaches the gateway, over TCP and over a UNIX socket.
func TestClientAndServer(t *testing.T) {
	defer goleak.VerifyNone(t)
	ctx := t.Context()
	for _, address := range []string{"127.0.0.1:0", "localhost:0", "unix:" + filepath.Join(t.TempDir(), "admin.sock")} {
		g := newFakeGateway()
		s := listenForTest(t, address, g, false)
		c := clientForTest(t, s.Address())
		status, err := c.Status(ctx)
		if diff := cmp.Diff(g.status, status); err != nil || diff != "" {
			t.Errorf("%s: %v, status differs:\n%s", address, err, diff)
		}
		for _, err := range []error{
			c.Reload(ctx),
			c.Drain(ctx, "dlp", "192.0.2.1:1344"),
			c.Ready(ctx, "", "192.0.2.1:1344"),
			c.Maintenance(ctx, "av", "192.0.2.2:1344"),
			c.Weight(ctx, "dlp", "192.0.2.1:1344", 0),
		} {
			if err != nil {
				t.Errorf("%s: %v", address, err)
			}
		}
		want := []string{"reload", "drain dlp 192.0.2.1:1344", "ready dlp 192.0.2.1:1344", "maintenance av 192.0.2.2:1344",
			"weight dlp 192.0.2.1:1344 0"}
		if diff := cmp.Diff(want, g.commands); diff != "" {
			t.Errorf("%s: commands differ:\n%s", address, diff)
		}
		g.err = errors.New("pools[0].servers: missing")
		if err := c.Reload(ctx); err == nil || err.Error() != g.err.Error() {
			t.Errorf("%s: reload gives %v, want the gateway's own words", address, err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
}

// A loopback address refuses foreign host names, whichever way it was written; a metrics address is read-only.
func TestServerOptions(t *testing.T) {
	g := newFakeGateway()
	ask := func(s *Server, method, path, host string) int {
		t.Helper()
		r, err := http.NewRequest(method, "http://"+s.Address()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	loopback := listenForTest(t, "localhost:0", g, false)
	if code := ask(loopback, "GET", "/status", "evil.example"); code != 403 {
		t.Errorf("foreign host on loopback: %d, want 403", code)
	}
	if code := ask(loopback, "GET", "/status", "localhost"); code != 200 {
		t.Errorf("localhost on loopback: %d, want 200", code)
	}
	metrics := listenForTest(t, "127.0.0.1:0", g, true)
	for path, want := range map[string]int{"/metrics": 200, "/readyz": 200, "/status": 404, "/": 404} {
		if code := ask(metrics, "GET", path, ""); code != want {
			t.Errorf("metrics address, %s: %d, want %d", path, code, want)
		}
	}
	if code := ask(metrics, "POST", "/api/reload", ""); code != 404 || len(g.commands) > 0 {
		t.Errorf("metrics address: a command gets %d, want 404", code)
	}
	if isLoopback(&net.TCPAddr{IP: net.IPv6zero}) || isLoopback(&net.UnixAddr{}) || !isLoopback(&net.TCPAddr{IP: net.IPv6loopback}) {
		t.Error("isLoopback is wrong")
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	logger := slog.New(slog.DiscardHandler)

	// A socket that a dead process has left behind is replaced.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	s := listenForTest(t, "unix:"+path, newFakeGateway(), false)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Fatalf("%v, mode %v, want 0660", err, info.Mode())
	}

	// One that is in use is not.
	if _, err := Listen("unix:"+path, newFakeGateway(), false, logger); err == nil || !strings.Contains(err.Error(), "running process") {
		t.Errorf("socket in use: %v", err)
	}
	if _, err := clientForTest(t, "unix:"+path).Status(t.Context()); err != nil {
		t.Errorf("the first server has suffered: %v", err)
	}

	// Close removes it; a file that is no socket stays.
	s.Close()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Close: %v, want no socket", err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix:"+path, newFakeGateway(), false, logger); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("file in the way: %v", err)
	}
	if text, _ := os.ReadFile(path); string(text) != "precious" {
		t.Error("the file in the way was removed")
	}
}

func TestListenErrors(t *testing.T) {
	for _, address := range []string{"nonsense", "127.0.0.1:999999", "unix:", "unix:/nonexistent/dir/admin.sock"} {
		s, err := Listen(address, newFakeGateway(), false, slog.New(slog.DiscardHandler))
		if err == nil {
			s.Close()
			t.Errorf("%q: no error", address)
		} else if !strings.Contains(err.Error(), "admin address \""+address+"\"") {
			t.Errorf("%q: %v, want an error that names the address", address, err)
		}
	}
}

func TestNewClient(t *testing.T) {
	for address, want := range map[string]string{
		"http://127.0.0.1:9344":  "http://127.0.0.1:9344",
		"http://127.0.0.1:9344/": "http://127.0.0.1:9344",
		"https://gate.example":   "https://gate.example",
		"127.0.0.1:9344":         "http://127.0.0.1:9344",
		":9344":                  "http://127.0.0.1:9344",
		"0.0.0.0:9344":           "http://127.0.0.1:9344",
		"[::]:9344":              "http://[::1]:9344",
		"unix:/run/icapgate":     "http://localhost",
	} {
		c, err := NewClient(address)
		if err != nil || c.base != want {
			t.Errorf("NewClient(%q): %+v, %v, want base %s", address, c, err, want)
		}
	}
	for _, address := range []string{"", "unix:", "ftp://x", "http://", "http://h/path", "http://h?q=1", "http://h:p:q", "h/path"} {
		if c, err := NewClient(address); err == nil {
			t.Errorf("NewClient(%q) = %q, want an error", address, c.base)
		} else if !strings.Contains(err.Error(), "unix:PATH") {
			t.Errorf("NewClient(%q): %v, want the forms that are allowed", address, err)
		}
	}
}

// What the client says when it gets no answer, or one of somebody else.
func TestClientErrors(t *testing.T) {
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	html := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("<html>")) }))
	defer html.Close()
	rude := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }))
	defer rude.Close()

	for _, tt := range []struct {
		name, address string
		want          []string
	}{
		{"nobody listens", closed.URL, []string{closed.URL, "connection refused", "is icapgate running", "--admin"}},
		{"no socket", "unix:/nonexistent/admin.sock", []string{"unix:/nonexistent/admin.sock", "is icapgate running", "--admin"}},
		{"another program", other.URL, []string{"404", "not as the admin endpoint", "--admin"}},
		{"another program, 200", html.URL, []string{"not JSON", "not as the admin endpoint"}},
		{"hangs up", rude.URL, []string{"cannot reach icapgate", "EOF"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := clientForTest(t, tt.address).Status(t.Context())
			if err == nil {
				t.Fatal("no error")
			}
			for _, word := range tt.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("error %q does not say %q", err, word)
				}
			}
		})
	}
}

func TestClientExplains(t *testing.T) {
	c := clientForTest(t, "unix:/run/icapgate/admin.sock")
	for _, tt := range []struct {
		err  error
		want string
	}{
		{&net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", syscall.EACCES)}, "member of its group"},
		{context.DeadlineExceeded, "does not answer"},
		{errors.New("strange"), "strange: give the address"},
		{context.Canceled, "context canceled"},
	} {
		if got := c.explain(tt.err); !strings.Contains(got.Error(), tt.want) {
			t.Errorf("explain(%v) = %q, want %q in it", tt.err, got, tt.want)
		}
	}
}
