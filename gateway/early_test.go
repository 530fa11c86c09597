package gateway

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"icapgate/bench/dlpstub"
)

// chunked is n bytes of a body in chunks of size bytes, with its last chunk.
func chunked(n, size int) string {
	var b strings.Builder
	for n > 0 {
		k := min(n, size)
		fmt.Fprintf(&b, "%x\r\n%s\r\n", k, strings.Repeat("0123456789abcdef", k/16+1)[:k])
		n -= k
	}
	return b.String() + "0\r\n\r\n"
}

// smallBuffers makes a listener whose connections have socket buffers of so many bytes.
func smallBuffers(t testing.TB, size int) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	rc, err := ln.(*net.TCPListener).SyscallConn()
	if err == nil {
		err = rc.Control(func(fd uintptr) { setBuffers(t, int(fd), size) })
	}
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func setBuffers(t testing.TB, fd, size int) {
	for _, o := range []int{unix.SO_SNDBUF, unix.SO_RCVBUF} {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, size); err != nil {
			t.Fatal(err)
		}
	}
}

// matches reads as many bytes as want has and says whether they are those.
func (c *client) matches(want string) error {
	sum := sha256.New()
	if n, err := io.CopyN(sum, c.r, int64(len(want))); err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", n, len(want), err)
	}
	if got := sum.Sum(nil); string(got) != string(sum256(want)) {
		return fmt.Errorf("%d bytes are not the same", len(want))
	}
	return nil
}

func sum256(s string) []byte {
	h := sha256.New()
	_, _ = io.WriteString(h, s)
	return h.Sum(nil)
}

// V35: an early 204 goes to the client at once; the body goes on to the server, which drains it, and both connections are used again.
func TestEarlyAnswerDrained(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	body := chunked(10<<20, 64<<10)
	head := RL + "Allow: 204¶" + reqBody
	for _, how := range []string{"while-it-comes", "after-all-was-sent"} {
		t.Run(how, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				p := newPlayer(t, g, f, listener)
				p.c.send(text(head))
				s := f.next(t)
				s.expect(strings.ReplaceAll(text(forwarded(head)), "SERVER", f.address))
				s.send(text(noContent))
				p.c.expect(text(noContent)) // before a byte of the body
				wrote := make(chan error, 1)
				if how == "while-it-comes" {
					go func() { _, err := io.WriteString(p.c, body); wrote <- err }()
				} else { // a short body, whose end the gateway has before the server has taken it
					body = chunked(200<<10, 64<<10)
					_, err := io.WriteString(p.c, body)
					wrote <- err
					g.settle()
				}
				if err := s.matches(body); err != nil {
					t.Fatal("the server got: ", err)
				}
				if err := <-wrote; err != nil {
					t.Fatal(err)
				}
				p.s = s
				s.release()
				p.again(true)
			})
		})
	}
}

// A server that takes the rest of an answered request slowly still gets all of it, although the client has gone on.
func TestEarlyAnswerSlowServer(t *testing.T) {
	f := serveFake(t, smallBuffers(t, 64<<10), nil)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		head := RL + "Allow: 204¶" + reqBody
		p.c.send(text(head))
		s := f.next(t)
		s.expect(strings.ReplaceAll(text(forwarded(head)), "SERVER", f.address))
		s.send(text(noContent))
		p.c.expect(text(noContent))
		// The body is more than the sockets to the server hold: its end waits in the gateway.
		g.shrinkBuffers(t)
		body := chunked(500<<10, 16<<10)
		p.c.send(body)
		g.settle()
		if err := s.matches(body); err != nil {
			t.Fatalf("the server got the request cut off: %v", err)
		}
		p.s = s
		s.release()
		g.settle()
		p.again(true)
	})
}

// shrinkBuffers makes the gateway's sockets hold little: the kernel would let them grow to megabytes.
func (g *testGateway) shrinkBuffers(t testing.TB) {
	eventually(t, "sessions on their loops", func() (there bool) {
		g.onLoops(func(l *loop) {
			for fd, c := range l.conns {
				if c != nil {
					setBuffers(t, fd, 64<<10)
				}
			}
			there = there || len(l.sessions) > 0
		})
		return there
	})
}

// onLoops runs f on every loop in turn.
func (g *testGateway) onLoops(f func(l *loop)) {
	for _, l := range g.loops {
		done := make(chan struct{})
		l.post(func() {
			defer close(done)
			f(l)
		})
		<-done
	}
}

// A server that answers early and closes: the client gets the answer, the rest of its body is dropped, its connection goes on.
func TestEarlyAnswerClosed(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	body := chunked(4<<20, 64<<10)
	for _, v := range []struct {
		name, fields string
		end          func(s *serverSide)
	}{
		{"says-close", "Connection: close¶", func(s *serverSide) { s.Close() }},
		{"says-close-and-stays", "Connection: close¶", func(*serverSide) {}},
		{"silent", "", func(s *serverSide) { s.Close() }},
		{"reset", "", func(s *serverSide) { s.reset() }},
	} {
		t.Run(v.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				p := newPlayer(t, g, f, listener)
				p.c.send(text(v05)[:len(text(RL+reqBody))])
				s := f.next(t)
				s.expect(strings.ReplaceAll(text(forwarded(RL+reqBody)), "SERVER", f.address))
				s.send(text(strings.Replace(page, "Encapsulated", v.fields+"Encapsulated", 1)))
				p.c.expect(text(page))
				v.end(s)
				p.c.send(body)
				p.again(false)
			})
		})
	}
}

// An early answer with a body, of a server that goes away in the middle of the request, still comes whole.
func TestEarlyAnswerThenReset(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) { // R23
		p := newPlayer(t, g, f, listener)
		p.c.send(text(v05)[:len(text(RL+reqBody))])
		s := f.next(t)
		s.expect(strings.ReplaceAll(text(forwarded(RL+reqBody)), "SERVER", f.address))
		s.send(text("ICAP/1.0 403 Forbidden¶" + tag + "¶"))
		s.reset()
		p.c.expect(text("ICAP/1.0 403 Forbidden¶" + tag + "¶"))
		p.c.send(chunked(4<<20, 64<<10))
		p.again(false)
	})
}

// R12: an answer that is there before the first byte of the request is an early answer, of a server that is too busy, say.
func TestAnswerBeforeRequest(t *testing.T) {
	for _, status := range []int{403, 503} {
		for _, closes := range []bool{false, true} {
			t.Run(fmt.Sprint(status, " closes ", closes), func(t *testing.T) {
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				go func() {
					for nc, err := ln.Accept(); err == nil; nc, err = ln.Accept() {
						_, _ = io.WriteString(nc, text(fmt.Sprintf("ICAP/1.0 %d x¶ISTag: \"s\"¶¶", status)))
						if closes {
							_ = nc.(*net.TCPConn).CloseWrite()
						}
						go io.Copy(io.Discard, nc)
					}
				}()
				t.Cleanup(func() { ln.Close() })
				v := startVirtualFor(t, []string{ln.Addr().String()}, "    reuse: false\n    retry: {attempts: 0}\n", "")
				overBoth(t, func(t *testing.T, listener int) {
					c := v.dialFor(t, listener)
					for range 2 {
						v.servers0()[0].MarkFull(0)
						c.send(text(RL + reqBody + "5¶hello¶"))
						c.status(status)
						c.send(text("0¶¶"))
					}
				})
			})
		}
	}
}

// V36: a server that echoes while it reads, with 64 KiB socket buffers everywhere: client and server read while they write, and nothing
// may wait for anything else.
func TestFullDuplexEcho(t *testing.T) {
	ln := smallBuffers(t, 64<<10)
	stub := dlpstub.New(dlpstub.Config{Mode: dlpstub.Echo})
	go stub.Serve(ln)
	t.Cleanup(stub.Close)
	g := startGateway(t, []string{ln.Addr().String()}, quiet, "").ready()
	for _, size := range []int{1 << 10, 16 << 10, 1 << 20} {
		t.Run(fmt.Sprint("chunks-of-", size), func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				c := g.dialFor(t, listener)
				c.control(t, func(fd int) error { setBuffers(t, fd, 64<<10); return nil })
				body := chunked(20<<20, size)
				go io.WriteString(c, text(PL+"Encapsulated: res-hdr=0, res-body=19¶¶"+S)+body)
				head := c.status(200)
				if !strings.Contains(head, "Encapsulated: res-hdr=0, res-body=19\r\n\r\n") {
					t.Fatalf("got %q", head)
				}
				c.expect(text(S))
				var r bodyReader
				if n, sum, err := r.read(c); err != nil || n != 20<<20 || sum != payloadSum(20<<20, size) {
					t.Fatalf("got %d bytes (%v), not the same", n, err)
				}
				c.send(text(v04)) // and once more
				c.status(200)
			})
		})
	}
}

// V36: the same in front of a server without previews: it begins to echo while the client is still sending what the gateway has asked for.
func TestFullDuplexEchoOfEndedPreview(t *testing.T) {
	ln := smallBuffers(t, 64<<10)
	stub := dlpstub.New(dlpstub.Config{Mode: dlpstub.Echo})
	go stub.Serve(ln)
	t.Cleanup(stub.Close)
	g := startGateway(t, []string{ln.Addr().String()}, noPreviews, "").ready()
	const size, chunk = 20 << 20, 16 << 10
	body := chunked(size, chunk)
	head := len(fmt.Sprintf("%x\r\n", chunk)) + chunk + 2 // the first chunk is the preview
	overBoth(t, func(t *testing.T, listener int) {
		c := g.dialFor(t, listener)
		c.control(t, func(fd int) error { setBuffers(t, fd, 64<<10); return nil })
		c.send(text(PL+fmt.Sprintf("Preview: %d¶", chunk)+resBody) + body[:head] + lastChunk)
		c.expect(text(goOn))
		go io.WriteString(c, body[head:])
		c.status(200)
		c.expect(text(S))
		if n, sum, err := new(bodyReader).read(c); err != nil || n != size || sum != payloadSum(size, chunk) {
			t.Fatalf("got %d bytes (%v), not the same", n, err)
		}
		c.send(text(v04)) // and once more
		c.status(200)
	})
}
