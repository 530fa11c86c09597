package gateway

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"icapgate/configs"
	"icapgate/health"
)

// inTime fails the test if f takes too long.
func inTime(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { f(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("it never ends")
	}
}

// newIdleGateway makes a gateway whose only server does not answer.
func newIdleGateway(t *testing.T) *Gateway {
	t.Helper()
	cfg, err := configs.Parse("test.yaml", []byte("listeners: [{address: \"127.0.0.1:0\"}]\npools: [{servers: [\"127.0.0.1:1\"]}]\nadmin: {address: \"off\"}\n"))
	if err != nil {
		t.Fatal(err)
	}
	g, err := New(cfg, Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// A gateway may be closed again, as by a deferred Close.
func TestCloseTwice(t *testing.T) {
	g := newIdleGateway(t)
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	inTime(t, g.Close)
	inTime(t, g.Close)
}

// What New has made is let go of when there is no Start.
func TestCloseWithoutStart(t *testing.T) {
	before := descriptors(t)
	g := newIdleGateway(t)
	inTime(t, g.Close)
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors are left", after-before)
	}
}

// A gateway in the middle of its work ends without leaving a goroutine or a descriptor.
func TestCloseLeavesNothing(t *testing.T) {
	f := startFake(t)
	before, goroutines := descriptors(t), goleak.IgnoreCurrent()
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	var clients []*client
	var running []*serverSide
	for i := range 4 {
		c := g.dial(i % 2)
		c.send(text(v04))
		s := f.next(t)
		s.head()
		s.expect(text(G))
		if i < 2 {
			running = append(running, s)
		} else { // leaves an idle connection to the server
			s.send(text(page))
			c.expect(text(page))
			s.release()
		}
		clients = append(clients, c)
	}
	silent, err := net.Dial("tcp", g.address(0)) // in its handshake
	if err != nil {
		t.Fatal(err)
	}
	inTime(t, g.Close)
	for _, c := range clients {
		_ = c.rest()
		c.Close()
	}
	for _, s := range running {
		if rest := s.rest(); rest != "" {
			t.Errorf("the server got %q", rest)
		}
		s.release()
	}
	silent.Close()
	eventually(t, "no descriptor is left", func() bool { return descriptors(t) <= before })
	goleak.VerifyNone(t, goroutines)
}

// A request of a client that is gone, which has not come further than to a TLS handshake, ends with the gateway, and is in the access log.
func TestCloseEndsDials(t *testing.T) {
	_, ca := serverCertificate(t)
	f := startFake(t) // does no TLS, and says nothing
	log := filepath.Join(t.TempDir(), "access.log")
	g := startGateway(t, []string{f.address}, "    tls: {ca_file: "+ca+"}\n    timeouts: {connect: 1h}\n    queue: {timeout: 1h}\n"+quiet, fmt.Sprintf("access_log: {output: %q}", log))
	server := g.table.Load().pools[0].servers[0]
	server.Health.SetState(health.Up)
	for i := range 4 {
		c := g.dial(i % 2)
		c.send(text(v04))
		eventually(t, "a handshake with the server", func() bool { return server.InFlight() == i+1 })
		c.reset()
		eventually(t, "the end of the client", func() bool { return g.Sessions() == 0 })
	}
	inTime(t, g.Close)
	b, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(b, []byte("\n")); n != 4 || bytes.Count(b, []byte(`"end":"shutdown"`)) != n {
		t.Errorf("%s", b)
	}
	if server.InFlight() != 0 || server.Connections() != 0 {
		t.Errorf("%d attempts and %d connections are left", server.InFlight(), server.Connections())
	}
}

// descriptors is the number of open files of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	return len(list)
}
