package gateway

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Socket filters that make a server's kernel deaf. They see segments from the TCP header on, and return how much of them is taken.
var (
	hearsNothing = []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
	// hearsNoData takes segments without payload: connections come about.
	hearsNoData = []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 12}, // length of the header in words, in the upper half
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: 0xf0},
		{Code: unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K, K: 2},
		{Code: unix.BPF_MISC | unix.BPF_TAX},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_LEN},
		{Code: unix.BPF_ALU | unix.BPF_SUB | unix.BPF_X},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 1 << 16},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
)

// hears puts a filter on everything that comes to the server, now and later; nil: none.
func (f *fakeServer) hears(t testing.TB, filter []unix.SockFilter) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	apply := func(fd uintptr) {
		var err error
		if filter == nil {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		} else {
			err = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
		}
		if err != nil && err != unix.ENOENT {
			t.Errorf("cannot set the filter of a socket: %v", err)
		}
	}
	rc, err := f.ln.(*net.TCPListener).SyscallConn()
	if err == nil {
		err = rc.Control(apply)
	}
	if err != nil {
		t.Fatal(err)
	}
	for nc := range f.conns {
		if rc, err := nc.SyscallConn(); err == nil {
			_ = rc.Control(apply) // an error: it is closed
		}
	}
}

// startTCP runs a scripted server that can be made deaf: what net.Listen opens is MPTCP, which knows no filters.
func startTCP(t testing.TB, cfg *tls.Config) *fakeServer {
	t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveFake(t, ln, cfg)
}

// startDeafPair is startPair with servers that can be made deaf. They are checked at the start, and when something is wrong. No silence is
// too long before watch.
func startDeafPair(t testing.TB, pool string) *pair {
	return newDeafPair(t, startTCP(t, nil), startTCP(t, nil), pool)
}

func newDeafPair(t testing.TB, a, b *fakeServer, pool string) *pair {
	t.Helper()
	p := &pair{startGateway(t, []string{a.address, b.address}, "    health: {interval: 1h, timeout: 100ms}\n"+pool, "").ready(), a, b}
	p.watch(watchTimes{look: never, unreachable: never, silent: never})
	return p
}

// watch sets how long servers may be silent, also those that are being waited for.
func (g *testGateway) watch(w watchTimes) {
	g.onLoops(func(l *loop) {
		l.watch = w
		for _, c := range l.conns {
			if c == nil {
				continue
			}
			if s, ok := c.owner.(*serverConn); ok && s.state == serverBusy {
				s.setTimer()
			}
		}
	})
}

// keepsQuiet lets time go by, on the clock of the kernel, which says how long a server has been silent. Tests use it to show that nothing
// happens; nothing waits for it.
func (g *testGateway) keepsQuiet(d time.Duration) {
	time.Sleep(d)
	g.settle()
}

// Times of tests: what is to happen comes soon, what is not to happen never.
const (
	soon  = 300 * time.Millisecond
	never = time.Hour
)

// warm makes requests at the same time, so that each server has that many idle connections.
func (p *pair) warm(t testing.TB, listener, each int) {
	t.Helper()
	var clients []*client
	for range each {
		clients = append(clients, p.both(t, listener, v04)...)
	}
	var busy []*serverSide
	for range clients {
		s, _ := p.next(t)
		s.gets(v04)
		busy = append(busy, s)
	}
	for _, s := range busy {
		s.send(text(page))
		s.release()
	}
	for _, c := range clients {
		c.expect(text(page))
	}
	eventually(t, "idle connections", func() bool { return p.idle(p.a) == each && p.idle(p.b) == each })
}

// idle is the number of idle connections to a server.
func (p *pair) idle(f *fakeServer) int {
	return int(p.metric(`server_connections{pool="dlp",server="` + f.address + `",state="idle"}`))
}

// replays are by the reason of the failed attempt, and all.
func (p *pair) replays(reason string) (n, all int) {
	for _, name := range failureNames {
		k := int(p.metric(`replays_total{reason="` + name + `"}`))
		all += k
		if name == reason {
			n = k
		}
	}
	return n, all
}

// both sends the request on two connections: each server is to get one of them.
func (p *pair) both(t testing.TB, listener int, request string) (clients []*client) {
	t.Helper()
	before := p.inFlight()
	for i := range 2 {
		c := p.dialFor(t, listener)
		c.send(text(request))
		clients = append(clients, c)
		eventually(t, "an attempt", func() bool { return p.inFlight() == before+i+1 })
	}
	return clients
}

// A server that can't be heard any more: the request that it has nothing of is answered by the other one. It never comes to the first
// one, whatever that hears later, and the idle connections to it are dropped.
func TestVanished(t *testing.T) {
	for _, v := range []struct {
		name, pool string
		watch      watchTimes
	}{
		{"silence", "", watchTimes{look: soon / 5, unreachable: never, silent: soon}},
		{"and the check can't connect", "", watchTimes{look: soon / 5, unreachable: soon, silent: never}},
		{"until its timeout", "    timeouts: {response: 1s}\n", watchTimes{look: never, silent: never}},
		{"until the kernel gives up", "    timeouts: {send: 1s}\n", watchTimes{look: never, silent: never}},
	} {
		for kind, request := range map[string]string{"request": v05, "preview": preview(4) + "4¶abcd¶0¶¶"} {
			t.Run(v.name+"/"+kind, func(t *testing.T) {
				overBoth(t, func(t *testing.T, listener int) {
					p := startDeafPair(t, v.pool)
					p.warm(t, listener, 2)
					p.a.hears(t, hearsNothing)
					clients := p.both(t, listener, request)
					p.watch(v.watch)
					p.answeredByB(t, clients, request)
					eventually(t, "the idle connections dropped", func() bool { return p.idle(p.a) == 0 })
					p.a.hears(t, nil)
					p.a.nothingComes(t)
				})
			})
		}
	}
}

// nothingComes waits for the end of all connections, and checks that no request came on any of them. A RST may have been lost while the
// server heard nothing: it gets another one when it says something.
func (f *fakeServer) nothingComes(t testing.TB) {
	t.Helper()
	eventually(t, "the end of the connections", func() bool {
		f.idle(t)
		f.mu.Lock()
		defer f.mu.Unlock()
		for nc := range f.conns {
			_, _ = nc.Write([]byte("x"))
		}
		return len(f.conns) == 0
	})
	f.idle(t)
}

// The handshakes of a new connection are no byte of the request.
func TestVanishedNewConnection(t *testing.T) {
	times := watchTimes{look: soon / 5, unreachable: never, silent: soon}
	t.Run("plain", func(t *testing.T) {
		overBoth(t, func(t *testing.T, listener int) {
			p := startDeafPair(t, "")
			p.a.hears(t, hearsNoData)
			clients := p.both(t, listener, v05)
			p.watch(times)
			p.answeredByB(t, clients, v05)
		})
	})
	t.Run("TLS", func(t *testing.T) {
		overBoth(t, func(t *testing.T, listener int) {
			cfg, file := serverCertificate(t)
			shaking, goOn := make(chan struct{}), make(chan struct{})
			slow := cfg.Clone()
			var armed atomic.Bool
			slow.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
				if armed.Load() {
					shaking <- struct{}{}
					<-goOn
				}
				return nil, nil
			}
			p := newDeafPair(t, startTCP(t, slow), startTCP(t, cfg), fmt.Sprintf("    tls: {ca_file: %q}\n", file))
			armed.Store(true)
			clients := p.both(t, listener, v05)
			<-shaking
			hold := make(chan struct{})
			for _, l := range p.loops {
				l.post(func() { <-hold })
			}
			close(goOn)
			p.dials.Wait() // the handshake is through, and the loop has not sent the request
			p.a.hears(t, hearsNothing)
			close(hold)
			p.watch(times)
			p.answeredByB(t, clients, v05)
		})
	})
}

// answeredByB answers the clients' request on server b; one of them has tried a before.
func (p *pair) answeredByB(t testing.TB, clients []*client, request string) {
	t.Helper()
	for range clients {
		s := p.b.next(t)
		s.gets(request)
		s.send(text(page))
		s.release()
	}
	for _, c := range clients {
		c.expect(text(page))
	}
	if n, all := p.replays("vanished"); n != 1 || all != 1 {
		t.Errorf("%d replays of %d for a vanished server, want 1 of 1", n, all)
	}
}

// A server that has acknowledged a part of the request before it vanished may be at work on it: nobody else gets it.
func TestVanishedWithAPart(t *testing.T) {
	for _, v := range []struct {
		name, pool string
		watch      watchTimes
	}{
		{"silence", "", watchTimes{look: soon / 5, unreachable: 0, silent: soon}},
		{"until the kernel gives up", "    timeouts: {send: 1s}\n", watchTimes{look: never, silent: never}},
	} {
		t.Run(v.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				p := startDeafPair(t, v.pool)
				c := p.dialFor(t, listener)
				c.send(text(RL + reqBody + "5¶hello¶"))
				s, other := p.next(t)
				s.gets(RL + reqBody + "5¶hello¶")
				s.f.hears(t, hearsNothing)
				p.watch(v.watch)
				c.send(text("0¶¶"))
				c.refusal(502, false)
				if n := p.metric(`closes_total{side="server",reason="vanished"}`); n == 0 {
					t.Error("no connection closed for a vanished server")
				}
				if _, all := p.replays(""); all != 0 {
					t.Errorf("%d replays, want none", all)
				}
				other.idle(t)
				c.send(text(v04)) // the connection goes on
				s = other.next(t)
				s.gets(v04)
				s.send(text(page))
				c.expect(text(page))
				s.release()
			})
		})
	}
}

// A server that has the request and thinks has not vanished, however long it takes, nor has one that is stopped: its kernel acknowledges.
func TestThinkingIsNotVanished(t *testing.T) {
	p := startDeafPair(t, "")
	p.watch(watchTimes{look: soon / 5, unreachable: 0, silent: soon})
	for _, request := range []string{v05, preview(4) + "4¶abcd¶0¶¶", RL + reqBody + text(chunked(100<<10, 10<<10))} {
		c := p.dial(0)
		c.send(text(request))
		s, _ := p.next(t)
		p.keepsQuiet(2 * soon)
		s.gets(request)
		p.keepsQuiet(2 * soon)
		s.send(text(page))
		c.expect(text(page))
		s.release()
	}
	if _, all := p.replays(""); all != 0 {
		t.Errorf("%d replays, want none", all)
	}
}

// Nor has one that keeps its window closed.
func TestClosedWindowIsNotVanished(t *testing.T) {
	f := serveFake(t, smallBuffers(t, 64<<10), nil)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	g.watch(watchTimes{look: soon / 5, unreachable: 0, silent: soon})
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.c.send(text(RL + reqBody))
		s := f.next(t)
		s.gets(RL + reqBody)
		g.shrinkBuffers(t)
		body := chunked(4<<20, 64<<10)
		wrote := make(chan error, 1)
		go func() { _, err := p.c.Write([]byte(body)); wrote <- err }()
		g.stuck(t)
		g.keepsQuiet(2 * soon)
		if err := s.matches(body); err != nil {
			t.Fatal(err)
		}
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		s.send(text(page))
		p.c.expect(text(page))
		s.release()
	})
}
