package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"icapgate/bench/dlpstub"
	"icapgate/bench/process"
	wire "icapgate/icap"
)

// newNamespace makes a network with one host, whose cable can be pulled out. The test is skipped where that can't be done.
func newNamespace(t *testing.T) *process.Namespace {
	t.Helper()
	need(t, "ip", "iproute2")
	n, err := process.NewNamespace(t.Context())
	if err != nil {
		text := "no network namespace can be made: " + err.Error()
		if os.Getenv("ICAPGATE_REQUIRE_PEERS") == "1" {
			t.Fatal(text)
		}
		t.Skip(text)
	}
	t.Cleanup(n.Close)
	return n
}

// diary is a server that notes which requests came to it, by their X-Name.
type diary struct {
	address string
	hold    context.Context // requests whose name begins with "held" are answered when it ends
	held    chan string     // their names

	mu    sync.Mutex
	names []string
}

func startDiary(t *testing.T, ln net.Listener, hold context.Context) *diary {
	d := &diary{address: ln.Addr().String(), hold: hold, held: make(chan string, 10)}
	s := dlpstub.New(dlpstub.Config{Hook: d.note})
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return d
}

func (d *diary) note(r *dlpstub.Request) {
	if r.Method == wire.MethodOptions {
		return
	}
	_, name, _ := bytes.Cut(r.Head, []byte("X-Name: "))
	name, _, _ = bytes.Cut(name, []byte("\r\n"))
	d.mu.Lock()
	d.names = append(d.names, string(name))
	d.mu.Unlock()
	if bytes.HasPrefix(name, []byte("held")) {
		d.held <- string(name)
		<-d.hold.Done()
	}
}

func (d *diary) has(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Contains(d.names, name)
}

// TestUnplugged pulls the cable of one of two servers out, which then sends neither FIN nor RST. What it has acknowledged fails with the
// response timeout and goes to nobody else; what it has not got is answered by the other server and never comes to the first one, even when its
// cable is in again.
func TestUnplugged(t *testing.T) {
	n := newNamespace(t) // which leaves a goroutine for all that come later
	checkLeaks(t)
	inside, err := n.Listen()
	if err != nil {
		t.Fatal(err)
	}
	outside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hold, release := context.WithCancel(context.Background())
	far, near := startDiary(t, inside, hold), startDiary(t, outside, hold)
	t.Cleanup(release)
	g := startGateway(t, []string{fmt.Sprintf("%q", far.address), fmt.Sprintf("%q", near.address)},
		"balance: round_robin, timeouts: {response: 5s}")
	ask := func(name string) request {
		return request{method: "REQMOD", body: []byte("body of " + name), fields: "Allow: 204\r\nX-Name: " + name + "\r\n"}
	}

	// One request waits for its answer at the server that is about to vanish.
	holds := func() (*icapClient, string) {
		for i := range 10 {
			name := fmt.Sprintf("held%d", i)
			c := g.dial(icaps, "/reqmod")
			if _, err := c.Write(ask(name).appendTo(nil, c.uri)); err != nil {
				t.Fatal(err)
			}
			select {
			case <-far.held:
				return c, name
			case <-near.held:
			}
		}
		t.Fatal("the balancing leaves one server out")
		return nil, ""
	}
	waiting, name := holds()

	// Idle connections of this client's loop to both servers.
	c := g.dial(icaps, "/reqmod")
	for i := range 4 {
		if a, err := c.do(ask(fmt.Sprintf("first%d", i))); err != nil || a.status != 204 {
			t.Fatalf("%+v, %v", a, err)
		}
	}

	if err := n.Unplug(t.Context()); err != nil {
		t.Fatal(err)
	}
	var later []string
	for i := range 4 {
		later = append(later, fmt.Sprintf("later%d", i))
		if a, err := c.do(ask(later[i])); err != nil || a.status != 204 {
			t.Fatalf("%s: %+v, %v", later[i], a, err)
		}
	}
	if n := g.sum("replays_total", `reason="vanished"`); n == 0 {
		t.Error("no request was sent again because its server had vanished")
	}
	if a, err := waiting.read(); err != nil || a.status != 502 {
		t.Errorf("the request that had been acknowledged: %+v, %v, want status 502", a, err)
	}
	if near.has(name) {
		t.Error("a request that had been acknowledged was sent to another server")
	}

	if err := n.Plug(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server is up and gets requests", func() bool {
		if a, err := c.do(ask("again")); err != nil || a.status != 204 {
			t.Fatalf("%+v, %v", a, err)
		}
		return far.has("again")
	})
	for _, name := range later {
		if !near.has(name) || far.has(name) {
			t.Errorf("%s: came to the other server: %v, to the one that vanished: %v", name, near.has(name), far.has(name))
		}
	}
	if text := strings.Join(far.names, " "); !strings.Contains(text, "first") {
		t.Errorf("the server that vanishes had got %q: the test shows nothing", text)
	}
	release()
}
