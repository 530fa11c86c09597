package gateway

import (
	"io"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"icapgate/balancer"
	"icapgate/bench/dlpstub"
)

// Nothing held for replay: requests go out as they come.
func TestNoReplayBuffer(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet+"    retry: {replay_buffer: 0}\n", "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		for _, v := range cutVectors {
			p.clientCut, p.serverCut = whole, whole
			p.play(v.steps...)
			p.clientCut, p.serverCut = bytewise, whole
			p.play(v.steps...)
		}
		p.again(true)
	})
}

// M39, V30: a chunk of 4 GB streams, split at max_chunk, and nothing of it piles up.
func TestHugeChunk(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	piece := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.c.send(text(RL + reqBody + "100000005¶"))
		s := f.next(t)
		s.gets(RL + reqBody)
		go func() {
			for range 64 {
				if _, err := io.WriteString(p.c, piece); err != nil {
					return
				}
			}
		}()
		before := heap()
		for i := range 64 {
			s.expect(text("100000¶"))
			if err := s.matches(piece); err != nil {
				t.Fatal(err)
			}
			if i < 63 {
				s.expect("\r\n")
			}
		}
		if after := heap(); after > before+16<<20 {
			t.Errorf("the heap has grown from %d to %d bytes", before, after)
		}
		p.c.closeWrite()
		if rest := s.rest(); strings.Contains(rest, "\r\n0\r\n") {
			t.Errorf("the server got %q, which looks complete", rest)
		}
		p.c.rest()
	})
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// V30 in small: a body of 64 MiB in chunks of 1 MiB, echoed.
func TestBigBody(t *testing.T) {
	if testing.Short() {
		t.Skip("large")
	}
	const chunk, count = 1 << 20, 64
	_, address := startStub(t, dlpstub.Config{Mode: dlpstub.Echo})
	g := startGateway(t, []string{address}, quiet, "").ready()
	c := g.dial(1)
	piece := "100000\r\n" + strings.Repeat("0123456789abcdef", chunk/16) + "\r\n"
	go func() {
		_, _ = io.WriteString(c, text(PL+"Encapsulated: res-hdr=0, res-body=19¶¶"+S))
		for range count {
			if _, err := io.WriteString(c, piece); err != nil {
				return
			}
		}
		_, _ = io.WriteString(c, "0\r\n\r\n")
	}()
	before := heap()
	c.status(200)
	c.expect(text(S))
	n, sum, err := new(bodyReader).read(c)
	if err != nil || n != chunk*count || sum != payloadSum(chunk*count, chunk) {
		t.Fatalf("got %d bytes (%v), not the same", n, err)
	}
	if after := heap(); after > before+16<<20 {
		t.Errorf("the heap has grown from %d to %d bytes", before, after)
	}
	for _, direction := range directionNames {
		if n := g.bodyBytes(direction, "splice") + g.bodyBytes(direction, "direct") + g.bodyBytes(direction, "buffered"); n < chunk*count {
			t.Errorf("%s: %d bytes of the body were counted", direction, n)
		}
	}
}

// M08 with lenient_lf: bare LFs of a client are taken, and no server sees them.
func TestLenientLF(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, `
listeners:
  - {name: icaps, address: "127.0.0.1:0", lenient_lf: true, tls: {certificates: [{cert_file: "CERT"}]}}
  - {name: icap, address: "127.0.0.1:0", lenient_lf: true}
`).ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.play(simple(strings.ReplaceAll(RL+"X-A: b¶Encapsulated: req-hdr=0, req-body=28¶¶", "¶", "\n")+P+chunks, forwarded(RL+"X-A: b¶"+reqBody)+chunks)...)
		p.again(true)
	})
}

// M36: the rest of a preview that comes after the final answer is no request either, and no byte of it reaches a server.
func TestRestBehindFinal(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	for _, rest := range []string{"2¶ef¶0¶¶", "27¶" + v04 + "¶0¶¶", "0¶¶", "R"} {
		overBoth(t, func(t *testing.T, listener int) {
			p := newPlayer(t, g, f, listener)
			p.play(sends(preview(4)+"4¶abcd¶0¶¶"), arrives(forwarded(preview(4))+"4¶abcd¶0¶¶"), answers(noContent), gets(noContent))
			p.c.send(text(rest))
			if rest == "R" { // may become a request
				p.c.send(text(v04[1:]))
				p.play(arrives(forwarded(v04)), answers(page), gets(page))
				return
			}
			p.c.refusal(400, true)
			p.c.closed()
			newPlayer(t, g, f, listener).again(false)
		})
	}
}

// What a server sends behind its answer never gets into what the client sends, even if both come at the same time.
func TestStrayBytesAndNextRequest(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.c.send(text(RL + reqBody))
		s := f.next(t)
		s.gets(RL + reqBody)
		s.send(text(page)) // early
		p.c.expect(text(page))
		g.settle()
		held, hold := make(chan struct{}), make(chan struct{})
		for _, l := range g.loops {
			l.post(func() {
				held <- struct{}{}
				<-hold
				for _, c := range l.conns { // as after a read that filled its buffer
					if c == nil {
						continue
					}
					if _, ok := c.owner.(*serverConn); ok {
						c.readable, c.dry = true, false
					}
				}
			})
		}
		for range g.loops {
			<-held
		}
		p.c.send(text(chunks + v04)) // the end of the first request, and the next one
		s.send(strings.Repeat(text("OPTIONS icap://evil/ ICAP/1.0¶¶"), 20))
		close(hold)
		s.expect(text(chunks))
		s.rest() // a connection with stray bytes is closed
		p.play(arrives(forwarded(v04)), answers(page), gets(page))
		p.again(true)
	})
}

// A retry of a request that is still coming in: what is held goes to the next server, and then the rest as it comes.
func TestRetryWhileRequestComes(t *testing.T) {
	for _, v := range []struct {
		name, answer string
		rest         string
	}{
		{"no-answer", "", chunks},
		{"no-answer-large-rest", "", chunked(1<<20, 10<<10)},
		{"503", "ICAP/1.0 503 full¶¶", chunks},
		{"503-large-rest", "ICAP/1.0 503 full¶¶", chunked(1<<20, 10<<10)},
	} {
		t.Run(v.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				g := startPair(t, "", "")
				c := g.dialFor(t, listener)
				c.send(text(RL + reqBody + "3¶abc¶"))
				first, other := g.next(t)
				first.gets(RL + reqBody + "3¶abc¶")
				if v.answer != "" {
					first.send(text(v.answer))
				} else {
					first.Close()
				}
				second := other.next(t)
				second.gets(RL + reqBody + "3¶abc¶")
				go io.WriteString(c, text(v.rest))
				if err := second.matches(text(v.rest)); err != nil {
					t.Fatal(err)
				}
				second.send(text(page))
				c.expect(text(page))
				second.release()
				c.send(text(v04))
				second = other.next(t)
				second.gets(v04)
				second.send(text(page))
				c.expect(text(page))
			})
		})
	}
}

// A 503 for a request that can't be sent again is the client's, and the rest of the body is dropped.
func TestFullServerBeyondReplay(t *testing.T) {
	body := chunked(2<<20, 10<<10)
	overBoth(t, func(t *testing.T, listener int) {
		g := startPair(t, "    retry: {replay_buffer: 4KiB}\n", "")
		c := g.dialFor(t, listener)
		c.send(text(RL + reqBody))
		s, other := g.next(t)
		s.gets(RL + reqBody)
		go io.WriteString(c, body)
		s.expect(body[:100<<10])
		s.send(text("ICAP/1.0 503 full¶Retry-After: 0¶Connection: close¶¶"))
		c.expect(text("ICAP/1.0 503 full¶Retry-After: 0¶¶"))
		s.Close()
		other.idle(t)
		c.send(text(v04))
		s = other.next(t)
		s.gets(v04)
		s.send(text(page))
		c.expect(text(page))
		s.release()
	})
}

// The rest of a refused request is read and dropped, but not without an end.
func TestEndlessRest(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "services: [{path: /r, pool: dlp}]").ready()
	piece := "100000\r\n" + strings.Repeat("0123456789abcdef", 1<<16) + "\r\n"
	overBoth(t, func(t *testing.T, listener int) {
		c := g.dialFor(t, listener)
		c.send(text(strings.Replace(RL, "/r ", "/x ", 1) + reqBody))
		c.refusal(404, false)
		var err error
		n := 0
		for ; err == nil && n < 200; n++ {
			_, err = io.WriteString(c, piece)
		}
		if err == nil || n < 60 {
			t.Errorf("%d MiB were taken (%v)", n, err)
		}
		c.Close()
		eventually(t, "the end counted", func() bool {
			return g.metric(`closes_total{side="client",reason="rest_too_long"}`) == float64(listener+1)
		})
	})
}

// A client that ends its direction behind a preview: a final answer is delivered; a 100 comes too late.
func TestHalfCloseBehindPreview(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	part := preview(4) + "4¶abcd¶0¶¶"
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.c.send(text(part))
		p.c.closeWrite()
		s := f.next(t)
		s.gets(part)
		g.settle()
		s.send(text(noContent))
		p.c.expect(text(noContent))
		p.c.closed()
		s.release()

		p = newPlayer(t, g, f, listener)
		p.c.send(text(part))
		p.c.closeWrite()
		s = f.next(t)
		s.gets(part)
		s.send(text(goOn))
		p.c.rest()
		if got := s.rest(); got != "" {
			t.Errorf("the server got %q", got)
		}
	})
}

// brittle is a policy that panics when it is told to, once.
type brittle struct {
	balancer.Policy
	armed *atomic.Bool
}

func (p brittle) Pick(targets []balancer.Target) int {
	if p.armed.CompareAndSwap(true, false) {
		panic("a test's policy")
	}
	return p.Policy.Pick(targets)
}

// A panic ends the session in whose service it came about, and nothing else; it is counted.
func TestPanicCostsOneSession(t *testing.T) {
	for _, where := range []string{"in-the-client's-event", "in-the-server's-event"} {
		t.Run(where, func(t *testing.T) {
			f := startFake(t)
			g := startGateway(t, []string{f.address}, quiet, "").ready()
			overBoth(t, func(t *testing.T, listener int) {
				p, q := newPlayer(t, g, f, listener), newPlayer(t, g, f, listener)
				p.warm()
				q.warm() // so that its loop has its side of the pool
				hurt := q.c
				armed := new(atomic.Bool)
				g.onLoops(func(l *loop) {
					for _, lp := range l.pools {
						for i := range lp.policies {
							policy, err := balancer.New(lp.table.cfg.Balance)
							if err != nil {
								t.Error(err)
							}
							lp.policies[i] = brittle{policy, armed}
						}
					}
				})
				if where == "in-the-client's-event" {
					armed.Store(true)
					hurt.send(text(v05))
				} else {
					hurt.send(text(v05))
					s := f.next(t)
					s.gets(v05)
					armed.Store(true)
					s.Close() // and the retry fails
				}
				if got := hurt.rest(); got != "" {
					t.Errorf("the client got %q", got)
				}
				if n := g.metric("panics_total"); n != float64(listener+1) {
					t.Errorf("%v panics were counted, want %d", n, listener+1)
				}
				g.settle()
				if n := g.metric(`server_in_flight{pool="dlp",server="` + f.address + `"}`); n != 0 {
					t.Errorf("%v attempts are left", n)
				}
				p.s = nil
				p.again(false)
			})
			eventually(t, "no session", func() bool { return g.Sessions() == 0 })
		})
	}
}

// Clients that come and go while nothing else happens leave nothing behind.
func TestConnectAndLeave(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	for range 50 {
		for listener := range 2 {
			nc, err := net.Dial("tcp", g.address(listener))
			if err != nil {
				t.Fatal(err)
			}
			nc.Close()
		}
	}
	eventually(t, "no session", func() bool { return g.Sessions() == 0 })
	newPlayer(t, g, f, 0).again(false)
	newPlayer(t, g, f, 1).again(false)
}
