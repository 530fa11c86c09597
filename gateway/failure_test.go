package gateway

import (
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"icapgate/bench/dlpstub"
	"icapgate/health"
)

// pair is a gateway in front of two scripted servers.
type pair struct {
	*testGateway
	a, b *fakeServer
}

func startPair(t testing.TB, pool, rest string) *pair {
	a, b := startFake(t), startFake(t)
	return &pair{startGateway(t, []string{a.address, b.address}, quiet+pool, rest).ready(), a, b}
}

// next returns the connection on which the next request comes, on either server, and the other server.
func (p *pair) next(t testing.TB) (s *serverSide, other *fakeServer) {
	t.Helper()
	select {
	case s = <-p.a.begun:
		other = p.b
	case s = <-p.b.begun:
		other = p.a
	case <-time.After(patience):
		t.Fatal("no request reached a server")
	}
	s.t = t
	_ = s.SetDeadline(time.Now().Add(patience))
	return s, other
}

// gets reads a request in the form that this server gets it in.
func (s *serverSide) gets(request string) {
	s.t.Helper()
	s.expect(strings.ReplaceAll(text(forwarded(request)), "SERVER", s.LocalAddr().String()))
}

// warm makes one request, so that there is an idle connection, which it returns.
func (p *player) warm() *serverSide {
	p.t.Helper()
	p.play(simple(v04, forwarded(v04))...)
	p.g.settle()
	return p.s
}

// R12, R32: what an idle server connection brings, bytes or an end, is its end, and never an answer to the next request.
func TestIdleConnectionBroken(t *testing.T) {
	for _, v := range []struct {
		name string
		do   func(s *serverSide)
	}{
		{"R12 408", func(s *serverSide) { _, _ = s.Write([]byte("ICAP/1.0 408 Request timeout\r\n\r\n")) }},
		{"R12 late-204", func(s *serverSide) { _, _ = s.Write([]byte(text(noContent))) }},
		{"R12 junk", func(s *serverSide) { _, _ = s.Write([]byte("x")) }},
		{"R32 fin", func(s *serverSide) { s.Close() }},
		{"R32 half-close", func(s *serverSide) { _ = s.tcp().CloseWrite() }},
		{"R32 rst", func(s *serverSide) { s.reset() }},
	} {
		t.Run(v.name, func(t *testing.T) {
			f := startFake(t)
			g := startGateway(t, []string{f.address}, quiet, "").ready()
			overBoth(t, func(t *testing.T, listener int) {
				p := newPlayer(t, g, f, listener)
				s := p.warm()
				v.do(s)
				g.settle()
				p.again(false)
				if n := g.metric(`replays_total{reason="no_answer"}`); n != 0 {
					t.Errorf("%v replays: the connection should have been dropped while idle", n)
				}
				s.over(t)
			})
		})
	}
}

// R22: a reused connection that ends without a byte is the usual race; the request comes again on a fresh one, and the client sees nothing.
func TestReusedConnectionEnds(t *testing.T) {
	for _, v := range []struct {
		name string
		end  func(s *serverSide)
	}{
		{"fin", func(s *serverSide) { s.Close() }},
		{"rst", func(s *serverSide) { s.reset() }},
	} {
		t.Run(v.name, func(t *testing.T) {
			f := startFake(t)
			g := startGateway(t, []string{f.address}, quiet, "").ready()
			overBoth(t, func(t *testing.T, listener int) {
				p := newPlayer(t, g, f, listener)
				old := p.warm()
				for _, request := range []string{v05, preview(9) + "4¶abcd¶0; ieof¶¶", PL + resBody + text(chunked(20<<10, 1<<10))} {
					p.c.send(text(request))
					s := f.next(t)
					if s != old {
						t.Fatal("the idle connection was not used")
					}
					s.gets(request)
					v.end(s)
					fresh := f.next(t)
					if fresh == s || fresh.served != 0 {
						t.Fatal("the second attempt was made on an old connection")
					}
					fresh.gets(request)
					fresh.send(text(page))
					p.c.expect(text(page))
					fresh.release()
					g.settle()
					old = fresh
				}
			})
		})
	}
}

// The end of a used connection is noticed before its event comes, while the request can still be sent again.
func TestEndBeforeItsEvent(t *testing.T) {
	for _, v := range []struct {
		name string
		end  func(s *serverSide)
		want bool
	}{
		{"none", func(*serverSide) {}, false},
		{"fin", func(s *serverSide) { s.Close() }, true},
		{"rst", func(s *serverSide) { s.reset() }, true},
	} {
		t.Run(v.name, func(t *testing.T) {
			f := startFake(t)
			g := startGateway(t, []string{f.address}, quiet, "").ready()
			p := newPlayer(t, g, f, 1)
			p.warm()
			p.c.send(text(RL + reqBody))
			s := f.next(t)
			s.gets(RL + reqBody)
			g.onLoops(func(l *loop) {
				for _, c := range l.conns {
					if c == nil {
						continue
					}
					if c, ok := c.owner.(*serverConn); ok {
						const established = 1
						v.end(s)
						eventually(t, "the end at the gateway's socket", func() bool {
							return tcpInfo(c.fd, &l.tcpInfo) == nil && (l.tcpInfo.State != established) == v.want
						})
						if got := c.hasEnded(); got != v.want {
							t.Errorf("ended: %v, want %v", got, v.want)
						}
					}
				}
			})
		})
	}
}

// A preview that was answered by the end of a reused connection starts again from its beginning on the fresh one.
func TestReplayedPreviewGoesOn(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.warm()
		part := preview(4) + "4¶abcd¶0¶¶"
		p.c.send(text(part))
		s := f.next(t)
		s.gets(part)
		s.Close()
		fresh := f.next(t)
		fresh.gets(part)
		fresh.send(text(goOn))
		p.c.expect(text(goOn))
		p.c.send(text("2¶ef¶0¶¶"))
		fresh.expect(text("2¶ef¶0¶¶"))
		fresh.send(text(page))
		p.c.expect(text(page))
		p.s = fresh
		fresh.release()
		p.again(true)
	})
}

// R04: the replacement of a server that has said 100 gets the preview, and a 204 to that which the client can't take any more becomes its own message, the
// preview's end left out and the rest as it comes in.
func TestReplacementSays204(t *testing.T) {
	p := startPair(t, "", "")
	part, rest := preview(4)+"4¶abcd¶0¶¶", chunked(1<<20, 60<<10)
	overBoth(t, func(t *testing.T, listener int) {
		for _, first := range []string{"2¶ef¶", "2¶ef¶0¶¶"} { // what has come before the answer
			c := p.dialFor(t, listener)
			c.send(text(part))
			s, other := p.next(t)
			s.gets(part)
			s.send(text(goOn))
			c.expect(text(goOn))
			c.send(text(first))
			s.expect(text(first))
			s.reset()
			s = other.next(t)
			s.gets(part)
			s.send(text(noContent))
			c.expect(text(okLine + tag + echoList + P + "4¶abcd¶" + first))
			s.release()
			if !strings.Contains(first, "0¶") {
				go io.WriteString(c, rest)
				c.expect(rest)
			}
			c.send(text(v04)) // and both connections go on
			again, _ := p.next(t)
			again.gets(v04)
			again.send(text(page))
			c.expect(text(page))
			again.release()
		}
	})
	if n := p.metric("unchanged_echoed_total"); n != 4 {
		t.Errorf("%v were counted, want 4", n)
	}
	if n := p.metric(`closes_total{side="server",reason="bad_response"}`); n != 0 {
		t.Errorf("%v connections of the replacements were closed", n)
	}
}

// A 100 is no answer: a server that dies after it is replaced as long as all is held, and the other one's 100 is kept from the client.
func TestServerDiesAfterContinue(t *testing.T) {
	g := startPair(t, "", "")
	overBoth(t, func(t *testing.T, listener int) {
		for _, when := range []string{"before the rest", "in the rest", "in its answer"} {
			t.Run(when, func(t *testing.T) {
				c := g.dialFor(t, listener)
				part, rest := preview(4)+"4¶abcd¶0¶¶", text("2¶ef¶0¶¶")
				c.send(text(part))
				s, _ := g.next(t)
				s.gets(part)
				s.send(text(goOn))
				c.expect(text(goOn))
				switch when {
				case "before the rest":
					s.reset()
					c.send(rest)
				case "in the rest":
					c.send(rest)
					s.expect(rest)
					s.reset()
				case "in its answer":
					c.send(rest)
					s.expect(rest)
					s.send("ICAP/1.0 2")
					g.settle()
					s.reset()
					c.refusal(502, false)
					return
				}
				s, _ = g.next(t)
				s.gets(part)
				s.send(text(goOn))
				s.expect(rest)
				s.send(text(page))
				c.expect(text(page))
				s.release()
			})
		}
	})
}

// A request whose beginning is not held any more is not sent again: 502, and the client's connection goes on.
func TestNothingIsReplayedBeyondTheBuffer(t *testing.T) {
	g := startPair(t, "    retry: {replay_buffer: 16KiB}\n", "")
	overBoth(t, func(t *testing.T, listener int) {
		c := g.dialFor(t, listener)
		body := chunked(100<<10, 10<<10)
		c.send(text(RL+reqBody) + body)
		s, other := g.next(t)
		s.gets(RL + reqBody)
		s.expect(body)
		s.Close()
		c.refusal(502, false)
		other.idle(t)
		c.send(text(v04))
		s, _ = g.next(t)
		s.gets(v04)
		s.send(text(page))
		c.expect(text(page))
		s.release()
	})
}

// The same in the middle of the body: what is left of it is read and dropped.
func TestServerDiesMidBody(t *testing.T) {
	g := startPair(t, "    retry: {replay_buffer: 16KiB}\n", "")
	body := chunked(8<<20, 64<<10)
	overBoth(t, func(t *testing.T, listener int) {
		for _, how := range []string{"fin", "rst"} {
			c := g.dialFor(t, listener)
			c.send(text(RL + reqBody))
			s, _ := g.next(t)
			s.gets(RL + reqBody)
			wrote := make(chan error, 1)
			go func() { _, err := c.Write([]byte(body)); wrote <- err }()
			s.expect(body[:1<<20])
			if how == "fin" {
				s.Close() // with unread bytes: a RST, too
			} else {
				s.reset()
			}
			c.refusal(502, false)
			if err := <-wrote; err != nil {
				t.Fatal(err)
			}
			c.send(text(v04))
			s, _ = g.next(t)
			s.gets(v04)
			s.send(text(page))
			c.expect(text(page))
			s.release()
		}
	})
}

// A fresh connection that ends without an answer: once more on another server, then 502; it may be this request that kills servers.
func TestFreshConnectionEnds(t *testing.T) {
	for _, how := range []string{"fin", "rst"} {
		t.Run(how, func(t *testing.T) {
			g := startPair(t, "    retry: {attempts: 5}\n", "")
			overBoth(t, func(t *testing.T, listener int) {
				c := g.dialFor(t, listener)
				end := func(s *serverSide) {
					s.gets(v05)
					if how == "fin" {
						s.Close()
					} else {
						s.reset()
					}
				}
				c.send(text(v05))
				first, other := g.next(t)
				end(first)
				second := other.next(t)
				end(second)
				c.refusal(502, false)
				g.settle()
				g.a.idle(t)
				g.b.idle(t)
				// It costs nobody else anything.
				c.send(text(v04))
				s, _ := g.next(t)
				s.gets(v04)
				s.send(text(page))
				c.expect(text(page))
				s.Close()
				g.settle()
			})
		})
	}
}

// The access log says why the latest try failed, whether there was another one or not, and nothing of it for the next request.
func TestLoggedFailure(t *testing.T) {
	file := filepath.Join(t.TempDir(), "access.log")
	p := startPair(t, "", fmt.Sprintf("access_log: {output: %q}", file))
	c := p.dialFor(t, 1)
	for _, answers := range [][]string{{page[:20]}, {"", page}, {page}} { // of one server after the other, each of which ends then
		c.send(text(v05))
		for i, answer := range answers {
			s, _ := p.next(t)
			s.gets(v05)
			s.send(text(answer))
			switch {
			case answer == page:
				c.expect(text(page))
				s.Close()
			case i == len(answers)-1:
				s.Close()
				c.refusal(502, false)
			default:
				s.Close()
			}
		}
		p.settle()
	}
	p.Close()
	if got, want := logged(t, file), []string{"502 server_failed bad_answer", "200 done no_answer", "200 done"}; !slices.Equal(got, want) {
		t.Errorf("the access log says %q, want %q", got, want)
	}
}

// retry.attempts 0 is no retry.
func TestNoAttempts(t *testing.T) {
	g := startPair(t, "    retry: {attempts: 0}\n", "")
	c := g.dial(1)
	c.send(text(v05))
	s, other := g.next(t)
	s.gets(v05)
	s.Close()
	c.refusal(502, false)
	g.settle()
	other.idle(t)
}

// R29: a 503 sends the request to another server, and the full one is left alone; a 503 of all is the client's.
func TestFullServer(t *testing.T) {
	full := "ICAP/1.0 503 Service Overloaded¶Retry-After: 1¶¶"
	for _, v := range []struct{ name, request, answer string }{
		{"R29 503-head", v05, full},
		{"R29 503-of-a-preview", preview(4) + "4¶abcd¶0¶¶", full},
		{"R29 503-without-retry-after", v05, "ICAP/1.0 503 x¶¶"},
		{"506 of Trend Micro", v05, "ICAP/1.0 506 busy¶¶"},
		{"R29 503-with-a-body", v05, "ICAP/1.0 503 x¶" + echoList + P + chunks},
	} {
		t.Run(v.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				g := startPair(t, "", "")
				c := g.dialFor(t, listener)
				c.send(text(v.request))
				first, other := g.next(t)
				first.gets(v.request)
				first.send(text(v.answer))
				second := other.next(t)
				second.gets(v.request)
				second.send(text(page))
				c.expect(text(page))
				second.release()
				for range 3 { // it stays out for its second
					c.send(text(v04))
					s := other.next(t)
					s.gets(v04)
					s.send(text(page))
					c.expect(text(page))
					s.release()
				}
			})
		})
	}
	t.Run("both full for longer than anybody waits", func(t *testing.T) {
		full := strings.Replace(full, "Retry-After: 1", "Retry-After: 20", 1)
		g := startPair(t, "", "")
		c := g.dial(1)
		c.send(text(v05))
		first, other := g.next(t)
		first.gets(v05)
		first.send(text(full))
		second := other.next(t)
		second.gets(v05)
		second.send(text(full))
		c.expect(text(full))
		c.send(text(v05)) // both are known to be full now
		if h := c.refusal(503, false); !strings.Contains(h, "Retry-After: 20\r\n") {
			t.Errorf("another Retry-After in %q", h)
		}
	})
}

// While all servers are full, requests wait for the first that is no longer skipped, in the order in which they came; the one that got the 503
// is sent again, too, but not for ever.
func TestFullServersAreWaitedFor(t *testing.T) {
	overBoth(t, func(t *testing.T, listener int) {
		v := startVirtual(t, nil, "", "")
		v.table.Load().pools[0].servers[0].Learn(2) // one of them for checks
		p := v.play(listener, sends(v05), arrives(forwarded(v05)), answers("ICAP/1.0 503 full¶¶"))
		waits := func(n int) {
			t.Helper()
			eventually(t, "requests in the queue", func() bool { return v.table.Load().pools[0].queue.Depth() == n })
		}
		waits(1)
		late := v.connect(listener)
		v.say(late, v04)
		waits(2)
		v.pass(time.Second - 1)
		v.f.idle(t)
		v.pass(time.Duration(tick) + 1)
		p.play(arrives(forwarded(v05)), answers("ICAP/1.0 503 full¶¶"))
		waits(2)
		v.pass(time.Second + time.Duration(tick))
		s := v.f.next(t) // the one that came later is first now
		s.gets(v04)
		s.send(text(page))
		late.expect(text(page))
		s.release()
		p.play(arrives(forwarded(v05)), answers("ICAP/1.0 503 full¶¶"), gets("ICAP/1.0 503 full¶¶"))
		if n := v.metric(`replays_total{reason="full"}`); n != 2 {
			t.Errorf("%v replays, want 2", n)
		}
	})
	t.Run("without a queue", func(t *testing.T) {
		v := startVirtual(t, nil, "    queue: {max: 0}\n", "")
		p := v.play(1, sends(v05), arrives(forwarded(v05)), answers("ICAP/1.0 503 full¶¶"), gets("ICAP/1.0 503 full¶¶"))
		v.say(p.c, v04)
		if h := p.c.refusal(503, false); !strings.Contains(h, "Retry-After: 1\r\n") {
			t.Errorf("another Retry-After in %q", h)
		}
	})
}

// A server that refuses connections costs no client anything while another one is there.
func TestConnectRefused(t *testing.T) {
	f, dead := startFake(t), startFake(t)
	g := startGateway(t, []string{dead.address, f.address}, quiet, "").ready()
	dead.ln.Close() // it was up, so its state stays so until a failure brings a check forward
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		for range 4 {
			p.play(simple(v05, forwarded(v05))...)
		}
	})
	if g.metric(`replays_total{reason="connect"}`) == 0 {
		t.Error("the dead server was not even tried")
	}
}

// All servers refuse, whether they still count as up or are known to be down: 503, nothing was sent to any.
func TestAllRefused(t *testing.T) {
	for _, v := range []struct{ name, pool string }{
		{"up", "    health: {interval: 1h, fall: 100}\n"},
		{"down", "    health: {interval: 1h, fall: 1}\n"},
	} {
		t.Run(v.name, func(t *testing.T) {
			a, b := startFake(t), startFake(t)
			g := startGateway(t, []string{a.address, b.address}, v.pool, "").ready()
			a.ln.Close()
			b.ln.Close()
			if v.name == "down" {
				c := g.dialFor(t, 1)
				c.send(text(v04)) // its failures bring the checks forward
				c.refusal(503, false)
				eventually(t, "servers down", func() bool { return !g.up(a) && !g.up(b) })
			}
			overBoth(t, func(t *testing.T, listener int) {
				c := g.dialFor(t, listener)
				c.send(text(RL + reqBody))
				c.refusal(503, false)
				c.send(text(chunks)) // its framing is intact
				c.send(text(v04))
				c.refusal(503, false)
			})
		})
	}
}

func (g *testGateway) up(f *fakeServer) bool {
	return g.metric(`server_up{pool="dlp",server="`+f.address+`"}`) == 1
}

// A large body waits at the client while its request looks for a server that answers to the connect.
func TestConnectTimeoutLargeBody(t *testing.T) {
	f := startFake(t)
	hole := blackHole(t)
	g := startGateway(t, []string{hole, f.address}, "    timeouts: {connect: 100ms}\n    health: {interval: 1h, timeout: 100ms, fall: 100}\n", "")
	eventually(t, "the good server up", func() bool { return g.up(f) })
	g.table.Load().pools[0].servers[0].Health.SetState(health.Up)
	body := chunked(4<<20, 64<<10)
	overBoth(t, func(t *testing.T, listener int) {
		c := g.dialFor(t, listener)
		for range 3 {
			go io.WriteString(c, text(RL+reqBody)+body)
			s := f.next(t)
			s.gets(RL + reqBody)
			if err := s.matches(body); err != nil {
				t.Fatal(err)
			}
			s.send(text(page))
			c.expect(text(page))
			s.release()
		}
	})
}

// blackHole returns an address where connects get no answer: that of a listener whose backlog is full.
func blackHole(t testing.TB) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port)
	for range 8 {
		nc, err := net.DialTimeout("tcp", address, 100*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { nc.Close() })
	}
	t.Skip("cannot fill the backlog of a listener here")
	return ""
}

// One server of three that fails every second request is not seen by clients.
func TestFlakyServerUnderLoad(t *testing.T) {
	_, good := startStub(t, dlpstub.Config{})
	_, closing := startStub(t, dlpstub.Config{CloseAfter: 3, SilentClose: true})
	_, full := startStub(t, dlpstub.Config{Status: 503})
	g := startGateway(t, []string{good, closing, full}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		c := g.dialFor(t, listener)
		for range 200 {
			c.send(text(RL + "Allow: 204¶" + reqBody + chunks))
			c.status(204)
		}
	})
}

// While no server is usable, each request that is refused for it brings the checks forward: nobody waits for the interval when one is back.
func TestBackBeforeItsCheck(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, "    health: {interval: 1h, fall: 1, rise: 1}\n", "").ready()
	f.ln.Close()
	c := g.dial(1)
	c.send(text(v04))
	c.refusal(503, false) // it can't be connected to, which brings a check forward
	eventually(t, "the server down", func() bool { return !g.up(f) })
	ln, err := net.Listen("tcp", f.address)
	if err != nil {
		t.Skip("its port is somebody else's now: ", err)
	}
	back := dlpstub.New(dlpstub.Config{})
	go back.Serve(ln)
	t.Cleanup(back.Close)
	eventually(t, "the server to be used", func() bool {
		c.send(text(RL + "Allow: 204¶" + reqNull))
		status, err := c.answer()
		if err != nil {
			t.Fatal(err)
		}
		return status == 204
	})
}
