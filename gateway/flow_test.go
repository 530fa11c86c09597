package gateway

import (
	"crypto/tls"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"icapgate/bench/dlpstub"
)

// number is v04 with a number in its URI.
func number(i int) string { return strings.Replace(v04, "/r ", fmt.Sprintf("/%d ", i), 1) }

// M55: requests whose answers nobody reads wait in the client's socket: one at a time is looked at. When the answers are read, all are
// there, in order.
func TestPipelinedFlood(t *testing.T) {
	const flood = 1000
	stub, address := startStub(t, dlpstub.Config{Mode: dlpstub.Echo})
	g := startGateway(t, []string{address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		c := g.dialFor(t, listener)
		c.control(t, func(fd int) error { setBuffers(t, fd, 64<<10); return nil })
		g.shrinkBuffers(t)
		goroutines := runtime.NumGoroutine()
		served := stub.Stats().PayloadBytes
		sent := make(chan error, 1)
		body := strings.Repeat("x", 2000)
		go func() {
			var b strings.Builder
			for i := range flood {
				fmt.Fprintf(&b, "RESPMOD icap://gw/%d ICAP/1.0\r\nHost: gw\r\nEncapsulated: res-hdr=0, res-body=%d\r\n\r\nHTTP/1.1 200 N%d\r\n\r\n7d0\r\n%s\r\n0\r\n\r\n",
					i, len(fmt.Sprintf("HTTP/1.1 200 N%d\r\n\r\n", i)), i, body)
			}
			_, err := io.WriteString(c, b.String())
			sent <- err
		}()
		g.stuck(t)
		// 2000 bytes in each answer: what was served is bounded by the sockets and the high-water mark, not by the flood.
		if n := (stub.Stats().PayloadBytes - served) / 2000; n == 0 || n > 500 {
			t.Errorf("%d requests were served while no answer was read", n)
		}
		g.onLoops(func(l *loop) {
			for s := range l.sessions {
				if s.in != nil && cap(s.in.B) > 256<<10 {
					t.Errorf("%d bytes of requests are read ahead", cap(s.in.B))
				}
			}
		})
		if n := runtime.NumGoroutine(); n > goroutines+5 {
			t.Errorf("%d goroutines, %d before", n, goroutines)
		}
		for i := range flood {
			c.status(200)
			c.expect(text(fmt.Sprintf("HTTP/1.1 200 N%d¶¶", i)))
			c.expect("7d0\r\n" + body + "\r\n0\r\n\r\n")
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
	})
}

// stuck waits until nothing moves any more: no loop reads or writes.
func (g *testGateway) stuck(t testing.TB) {
	t.Helper()
	type state struct{ received, sent uint64 }
	var last state
	calm := 0
	eventually(t, "everything to come to rest", func() bool {
		g.settle()
		var now state
		g.onLoops(func(l *loop) {
			for _, c := range l.conns {
				if c != nil {
					now.received += c.received
					now.sent += c.sent
				}
			}
		})
		if now == last {
			calm++
		} else {
			calm = 0
		}
		last = now
		return calm > 50 // 1 ms and more each
	})
	g.atRest(t)
}

// atRest checks that no loop spins: nothing runs in every batch of events.
func (g *testGateway) atRest(t testing.TB) {
	t.Helper()
	for _, l := range g.loops {
		busy := 0
		for range 100 {
			done := make(chan struct{})
			l.post(func() {
				if len(l.later) > 0 {
					busy++
				}
				close(done)
			})
			<-done
		}
		if busy > 50 {
			t.Errorf("loop %d spins", l.index)
		}
	}
}

// A server that does not read makes the gateway stop reading from the client, after a bounded number of bytes; when it goes on, all arrives.
func TestServerThatStopsReading(t *testing.T) {
	f := serveFake(t, smallBuffers(t, 64<<10), nil)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.c.control(t, func(fd int) error { setBuffers(t, fd, 64<<10); return nil })
		p.c.send(text(RL + reqBody))
		s := f.next(t)
		s.expect(strings.ReplaceAll(text(forwarded(RL+reqBody)), "SERVER", f.address))
		g.shrinkBuffers(t)
		body := chunked(16<<20, 100<<10)
		w := &countingWriter{w: p.c}
		sent := make(chan error, 1)
		go func() { _, err := io.Copy(w, strings.NewReader(body)); sent <- err }()
		g.stuck(t)
		if n := w.count(); n < 64<<10 || n > 2<<20 {
			t.Errorf("%d bytes were taken from the client while the server read nothing", n)
		}
		var held, waiting int
		g.onLoops(func(l *loop) {
			for s := range l.sessions {
				if s.tx.held != nil {
					held += cap(s.tx.held.B)
				}
				if s.tx.srv != nil {
					waiting += s.tx.srv.pending()
				}
			}
		})
		if held+waiting > 1<<20 {
			t.Errorf("%d bytes are held for replay, %d wait for the server", held, waiting)
		}
		if err := s.matches(body); err != nil {
			t.Fatal("the server got: ", err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		s.send(text(page))
		p.c.expect(text(page))
		p.s = s
		s.release()
		p.again(true)
	})
}

// A client that does not read the echo of its body makes the gateway stop reading from the server, and that stops all the rest.
func TestClientThatStopsReading(t *testing.T) {
	ln := smallBuffers(t, 64<<10)
	stub := dlpstub.New(dlpstub.Config{Mode: dlpstub.Echo, EarlyAnswer: true})
	go stub.Serve(ln)
	t.Cleanup(stub.Close)
	g := startGateway(t, []string{ln.Addr().String()}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		c := g.dialFor(t, listener)
		c.control(t, func(fd int) error { setBuffers(t, fd, 64<<10); return nil })
		w := &countingWriter{w: c}
		sent := make(chan error, 1)
		head := text(PL + "Encapsulated: res-hdr=0, res-body=19¶¶" + S)
		c.send(head)
		c.status(200) // the gateway has both connections now
		c.expect(text(S))
		g.shrinkBuffers(t)
		body := chunked(16<<20, 100<<10)
		go func() { _, err := io.Copy(w, strings.NewReader(body)); sent <- err }()
		g.stuck(t)
		if n := w.count(); n < 64<<10 || n > 2<<20 {
			t.Errorf("%d bytes were taken from a client that reads nothing", n)
		}
		var r bodyReader
		if n, sum, err := r.read(c); err != nil || sum != payloadSum(16<<20, 100<<10) {
			t.Fatalf("got %d bytes (%v), not the same", n, err)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
		c.send(text(v04))
		c.status(200)
	})
}

// A client that sends without a pause does not keep the others of its loop waiting.
func TestBusySessionLeavesRoom(t *testing.T) {
	withLoops(t, 1)
	_, address := startStub(t, dlpstub.Config{})
	g := startGateway(t, []string{address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		busy, quick := g.dialFor(t, listener), g.dialFor(t, listener)
		stop, ended := make(chan struct{}), make(chan struct{})
		busy.send(text(RL + "Allow: 204¶" + reqBody))
		go func() {
			defer close(ended)
			piece := "100000\r\n" + strings.Repeat("x", 1<<20) + "\r\n"
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := io.WriteString(busy, piece); err != nil {
					t.Error(err)
					return
				}
			}
		}()
		for range 100 {
			if err := quick.exchange(text(RL + "Allow: 204¶" + reqBody + chunks)); err != nil {
				t.Fatal(err)
			}
		}
		close(stop)
		<-ended
		busy.send("0\r\n\r\n")
		busy.status(204)
	})
}

// M56: the end of what the client sends, right behind its request, is not the end of its interest in the answer.
func TestHalfClose(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	big := okLine + "Encapsulated: res-hdr=0, res-body=19¶¶" + S
	body := chunked(4<<20, 64<<10)
	overBoth(t, func(t *testing.T, listener int) {
		for _, how := range []string{"small", "big", "two"} {
			t.Run(how, func(t *testing.T) {
				p := newPlayer(t, g, f, listener)
				p.c.control(t, func(fd int) error { setBuffers(t, fd, 64<<10); return nil })
				p.c.send(text(v05))
				if how == "two" {
					p.c.send(text(v04))
				}
				p.c.closeWrite()
				s := f.next(t)
				s.expect(strings.ReplaceAll(text(forwarded(v05)), "SERVER", f.address))
				g.settle() // the end has been seen, or could have been
				switch how {
				case "small":
					s.send(text(page))
					p.c.expect(text(page))
				case "two":
					s.send(text(page))
					s.release()
					p.play(gets(page), arrives(forwarded(v04)), answers(page), gets(page))
				case "big": // the answer has left the server long before the client has taken it
					wrote := make(chan error, 1)
					go func() { _, err := io.WriteString(s, text(big)+body); wrote <- err }()
					p.c.expect(text(big))
					time.Sleep(20 * time.Millisecond) // a slow reader; nothing depends on how slow
					if err := p.c.matches(body); err != nil {
						t.Fatal(err)
					}
					if err := <-wrote; err != nil {
						t.Fatal(err)
					}
				}
				p.c.closed()
				if how != "two" {
					s.release()
				}
			})
		}
	})
}

// M56 with an answer that fits into the gateway: the client's end is read while its answer still waits for the socket.
func TestHalfCloseSlowReader(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.c.control(t, func(fd int) error { setBuffers(t, fd, 64<<10); return nil })
		p.c.send(text(v05))
		p.c.closeWrite()
		s := f.next(t)
		s.head()
		s.expect(text(P + chunks))
		g.shrinkBuffers(t)
		body := chunked(500<<10, 10<<10)
		s.send(text(okLine+echoList+P) + body)
		s.release()
		g.stuck(t)
		p.c.status(200)
		p.c.expect(text(P))
		if err := p.c.matches(body); err != nil {
			t.Fatal("the answer was cut off: ", err)
		}
		p.c.closed()
	})
}

// M19: a client that goes away in the middle of its body takes the server's connection with it: half a body never looks complete.
func TestClientGoneMidBody(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	for _, v := range []struct {
		name, body string
		end        func(c *client)
	}{
		{"fin-in-chunk", "5¶hel", func(c *client) { c.closeWrite() }},
		{"fin-between-chunks", "5¶hello¶", func(c *client) { c.closeWrite() }},
		{"fin-in-last-chunk", "5¶hello¶0¶", func(c *client) { c.closeWrite() }},
		{"close-in-chunk", "5¶hel", func(c *client) { c.Close() }},
		{"reset-in-chunk", "5¶hel", func(c *client) { c.reset() }},
	} {
		t.Run(v.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				for _, answered := range []bool{false, true} {
					p := newPlayer(t, g, f, listener)
					p.c.send(text(RL + reqBody))
					s := f.next(t)
					s.expect(strings.ReplaceAll(text(forwarded(RL+reqBody)), "SERVER", f.address))
					if answered {
						s.send(text(page))
						p.c.expect(text(page))
					}
					p.c.send(text(v.body))
					v.end(p.c)
					if got := s.rest(); strings.Contains(got, "\r\n0\r\n") || strings.HasPrefix(got, "0\r\n") {
						t.Errorf("the server got %q, which looks complete", got)
					}
					if v.name != "reset-in-chunk" {
						p.c.rest()
					}
					s.release()
					s.over(t)
				}
			})
		})
	}
	newPlayer(t, g, f, 1).again(false)
}

// A client that is reset while its whole request is with the server: the server is left to finish its work, and is used again.
func TestClientGoneBehindRequest(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.c.send(text(v05))
		s := f.next(t)
		s.expect(strings.ReplaceAll(text(forwarded(v05)), "SERVER", f.address))
		p.c.reset()
		eventually(t, "the end of the session", func() bool { return g.Sessions() == 0 })
		s.send(text(page))
		s.release()
		eventually(t, "an idle server connection", func() bool {
			return g.metric(`server_connections{pool="dlp",server="`+f.address+`",state="idle"}`) >= 1
		})
		select {
		case <-s.ended:
			t.Error("the server's connection was closed")
		default:
		}
	})
}

// A server that dies while the client does not read: the loop waits, it does not spin.
func TestServerResetWhileClientStops(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.c.control(t, func(fd int) error { setBuffers(t, fd, 64<<10); return nil })
		p.c.send(text(RL + reqBody))
		s := f.next(t)
		s.head()
		go io.WriteString(s, text(okLine+echoList+P)+chunked(32<<20, 64<<10))
		p.c.status(200)
		g.stuck(t)
		s.reset()
		go io.WriteString(p.c, chunked(1<<20, 64<<10))
		g.stuck(t)
		if got := p.c.rest(); strings.HasSuffix(got, "\r\n0\r\n\r\n") {
			t.Error("an answer that was cut off looks complete")
		}
	})
}

// countingWriter counts what was taken.
type countingWriter struct {
	w io.Writer
	n atomic.Int64
}

func (w *countingWriter) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var k int
		k, err = w.w.Write(p[n:min(n+1024, len(p))])
		n += k
		w.n.Add(int64(k))
	}
	return n, err
}

func (w *countingWriter) count() int { return int(w.n.Load()) }

// closeWrite ends what the client sends: close_notify, if it has TLS, and FIN.
func (c *client) closeWrite() {
	c.t.Helper()
	if tc, ok := c.Conn.(*tls.Conn); ok {
		if err := tc.CloseWrite(); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := c.tcp().CloseWrite(); err != nil {
		c.t.Fatal(err)
	}
}
