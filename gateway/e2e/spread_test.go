package e2e

import (
	"bytes"
	"fmt"
	"net"
	"runtime"
	"sync"
	"testing"

	"icapgate/bench/dlpstub"
	wire "icapgate/icap"
)

// stub is a fake server that knows which of its connections have carried requests of clients.
type stub struct {
	*dlpstub.Server
	address string

	mu          sync.Mutex
	requests    int
	connections map[int]bool
}

func startStub(t *testing.T, cfg dlpstub.Config) *stub {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &stub{address: ln.Addr().String(), connections: make(map[int]bool)}
	more := cfg.Hook
	cfg.Hook = func(r *dlpstub.Request) {
		s.count(r)
		if more != nil {
			more(r)
		}
	}
	s.Server = dlpstub.New(cfg)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *stub) count(r *dlpstub.Request) {
	if r.Method == wire.MethodOptions || r.Err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	s.connections[r.Connection] = true
}

// TestOneConnectionReachesAll sends 900 requests on one client connection. Each of three servers gets a third of them, over the few
// connections that the gateway keeps.
func TestOneConnectionReachesAll(t *testing.T) {
	const number, servers = 900, 3
	body := func(i int) []byte { return fmt.Appendf(nil, "request %d %s", i, bytes.Repeat([]byte("."), i*37%3000)) }
	message := func(i int) request {
		return request{method: []string{"REQMOD", "RESPMOD"}[i/3%2], body: body(i), chunk: 1000}
	}
	check := func(t *testing.T, i int, a *answer, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		if a.status != 200 || !bytes.Equal(a.body, body(i)) {
			t.Fatalf("request %d: status %d with %.40q", i, a.status, a.body)
		}
	}
	oneByOne := func(t *testing.T, c *icapClient) {
		for i := range number {
			a, err := c.do(message(i))
			check(t, i, a, err)
		}
	}
	pipelined := func(t *testing.T, c *icapClient) {
		sent := make(chan error, 1)
		go func() {
			var all []byte
			for i := range number {
				all = message(i).appendTo(all, c.uri)
			}
			_, err := c.Write(all)
			sent <- err
		}()
		for i := range number {
			a, err := c.read()
			check(t, i, a, err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name     string
		listener int
		pool     string
		send     func(*testing.T, *icapClient)
	}{
		{"plain", icap, "", oneByOne},
		{"TLS", icaps, "", oneByOne},
		{"pipelined", icap, "", pipelined},
		{"pipelined over TLS", icaps, "", pipelined},
		{"round robin", icaps, "balance: round_robin", oneByOne},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			checkLeaks(t)
			var stubs []*stub
			var addresses []string
			for range servers {
				s := startStub(t, dlpstub.Config{Mode: dlpstub.Echo})
				stubs, addresses = append(stubs, s), append(addresses, s.address)
			}
			g := startGateway(t, addresses, test.pool)
			test.send(t, g.dial(test.listener, "/reqmod"))
			for i, s := range stubs {
				if s.requests != number/servers {
					t.Errorf("server %d has got %d requests, want %d", i, s.requests, number/servers)
				}
				if n := len(s.connections); n > runtime.GOMAXPROCS(0) {
					t.Errorf("server %d has got them over %d connections, want one a loop at most", i, n)
				}
			}
			g.noRejects()
		})
	}
}
