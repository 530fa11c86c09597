package gateway

import (
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// bodyBytes is how many bytes of bodies have gone in a direction by a way.
func (g *testGateway) bodyBytes(direction, way string) int {
	return int(g.metric(fmt.Sprintf("body_bytes_total{direction=%q,via=%q}", direction, way)))
}

// carry has one side send what the other one reads, a piece after the other, so that the reader is never behind. It ends
// the test unless the same bytes come out.
func carry(t *testing.T, from, to *client, body string) {
	t.Helper()
	const piece = 128 << 10
	for len(body) > 0 {
		k := min(piece, len(body))
		from.send(body[:k])
		if err := to.matches(body[:k]); err != nil {
			t.Fatal(err)
		}
		body = body[k:]
	}
}

// Bodies go to the other side from the buffer they were read into, or without any where both ends are plain and the chunks large.
func TestBodyWays(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	const size = 16 << 20
	for _, v := range []struct {
		name     string
		listener int
		chunk    int
		way      string
		share    float64 // of the body that goes this way, at least
	}{
		{"icaps", 0, 1 << 20, "direct", 0.95},
		{"icaps-small-chunks", 0, 16 << 10, "direct", 0.95},
		{"icap-small-chunks", 1, 16 << 10, "direct", 0.95},
		{"icap", 1, 1 << 20, "splice", 0.9},
		{"icap-chunks-to-be-split", 1, 8 << 20, "splice", 0.9},
	} {
		t.Run(v.name, func(t *testing.T) {
			before := map[string]int{}
			for _, direction := range directionNames {
				for _, way := range wayNames {
					before[direction+way] = g.bodyBytes(direction, way)
				}
			}
			body := chunked(size, v.chunk)
			p := newPlayer(t, g, f, v.listener)
			p.c.send(text(PL + "Encapsulated: res-hdr=0, res-body=19¶¶" + S))
			s := f.next(t)
			s.gets(PL + "Encapsulated: res-hdr=0, res-body=19¶¶" + S)
			if v.chunk <= 1<<20 {
				carry(t, p.c, s.client, body)
			} else {
				go func() { _, _ = io.WriteString(p.c, body) }()
				if err := s.matches(chunked(size, 1<<20)); err != nil { // max_chunk
					t.Fatal(err)
				}
			}
			head := text("ICAP/1.0 200 OK¶ISTag: \"s\"¶Encapsulated: res-hdr=0, res-body=19¶¶" + S)
			s.send(head)
			p.c.expect(head)
			carry(t, s.client, p.c, body)
			s.release()
			p.again(true)
			for _, direction := range directionNames {
				all := 0
				for _, way := range wayNames {
					all += g.bodyBytes(direction, way) - before[direction+way]
				}
				if all < size || all > size+size/100 {
					t.Errorf("%s: %d bytes counted", direction, all)
				}
				if n := g.bodyBytes(direction, v.way) - before[direction+v.way]; float64(n) < v.share*float64(all) {
					t.Errorf("%s: %d of %d bytes went by %s, want %v of them", direction, n, all, v.way, v.share)
				}
			}
		})
	}
}

// Chunks of all sizes, to and fro at the same time, through sockets that hold little and past readers that pause: spliced, read, and from one to
// the other within a body, with and without pipes to be had.
func TestSpliceRandomChunks(t *testing.T) {
	f := serveFake(t, smallBuffers(t, 64<<10), nil)
	g := startGateway(t, []string{f.address}, quiet+"    max_chunk: 200KiB\n", "").ready()
	sizes := []int{1, 100, 4 << 10, spliceMin - 1, spliceMin, spliceMin + 1, 100 << 10, 200 << 10, 200<<10 + 1, 300 << 10, 1 << 20}
	for seed := range uint64(8) {
		for _, pipes := range []bool{true, false} {
			t.Run(fmt.Sprintf("seed-%d-pipes-%v", seed, pipes), func(t *testing.T) {
				g.onLoops(func(l *loop) { l.noSplice = !pipes })
				r := rand.New(rand.NewPCG(seed, 1))
				randomBody := func(most int) (sent, want string) {
					var b, w strings.Builder
					for b.Len() < 3<<20 {
						n := sizes[r.IntN(len(sizes))]
						data := strings.Repeat(fmt.Sprintf("%016x", r.Uint64()), n/16+1)[:n]
						fmt.Fprintf(&b, "%x\r\n%s\r\n", n, data)
						for len(data) > 0 {
							k := min(n, most, len(data))
							fmt.Fprintf(&w, "%x\r\n%s\r\n", k, data[:k])
							data = data[k:]
						}
					}
					return b.String() + "0\r\n\r\n", w.String() + "0\r\n\r\n"
				}
				up, upWant := randomBody(200 << 10)
				down, downWant := randomBody(1 << 30)
				p := newPlayer(t, g, f, 1)
				p.c.control(t, func(fd int) error { setBuffers(t, fd, 64<<10); return nil })
				p.c.send(text(PL + "Encapsulated: res-hdr=0, res-body=19¶¶" + S))
				s := f.next(t)
				s.gets(PL + "Encapsulated: res-hdr=0, res-body=19¶¶" + S)
				g.shrinkBuffers(t)
				head := text("ICAP/1.0 200 OK¶ISTag: \"s\"¶Encapsulated: res-hdr=0, res-body=19¶¶" + S)
				s.send(head)
				p.c.expect(head)
				sent := make(chan error, 2)
				inPieces := func(c *client, body string, r *rand.Rand) {
					for len(body) > 0 {
						k := min(1+r.IntN(300<<10), len(body))
						if _, err := io.WriteString(c, body[:k]); err != nil {
							sent <- err
							return
						}
						body = body[k:]
					}
					sent <- nil
				}
				go inPieces(p.c, up, rand.New(rand.NewPCG(seed, 2)))
				go inPieces(s.client, down, rand.New(rand.NewPCG(seed, 3)))
				got := make(chan error, 2)
				read := func(c *client, want string, r *rand.Rand) {
					for len(want) > 0 {
						k := min(1+r.IntN(200<<10), len(want))
						if err := c.matches(want[:k]); err != nil {
							got <- err
							return
						}
						want = want[k:]
						g.settle() // a pause
					}
					got <- nil
				}
				go read(s.client, upWant, rand.New(rand.NewPCG(seed, 4)))
				go read(p.c, downWant, rand.New(rand.NewPCG(seed, 5)))
				for range 2 {
					if err := <-got; err != nil {
						t.Fatal(err)
					}
					if err := <-sent; err != nil {
						t.Fatal(err)
					}
				}
				s.release()
				p.again(true)
			})
		}
	}
	if n := g.bodyBytes("request", "splice"); n == 0 {
		t.Error("nothing was spliced")
	}
}

// Whoever dies while bytes are in a pipe, the other one hears of it, nothing is invented, and no pipe is left with them.
func TestSpliceEnds(t *testing.T) {
	f := serveFake(t, smallBuffers(t, 64<<10), nil)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	body := chunked(8<<20, 1<<20)
	answer := text("ICAP/1.0 200 OK¶ISTag: \"s\"¶Encapsulated: res-hdr=0, res-body=19¶¶" + S)
	for _, v := range []struct {
		name   string
		answer bool // it is the answer that is being spliced
		end    func(c *client, s *serverSide)
		after  func(t *testing.T, c *client, s *serverSide)
	}{
		{"client-closes-in-request", false, func(c *client, _ *serverSide) { c.closeWrite() }, serverSeesTruncation},
		{"client-resets-in-request", false, func(c *client, _ *serverSide) { c.reset() }, serverSeesTruncation},
		{"server-resets-in-request", false, func(_ *client, s *serverSide) { s.reset() }, func(t *testing.T, c *client, _ *serverSide) {
			c.status(502)
		}},
		{"server-closes-in-answer", true, func(_ *client, s *serverSide) { s.closeWrite() }, clientSeesTruncation},
		{"server-resets-in-answer", true, func(_ *client, s *serverSide) { s.reset() }, clientSeesTruncation},
		{"client-resets-in-answer", true, func(c *client, _ *serverSide) { c.reset() }, func(*testing.T, *client, *serverSide) {}},
	} {
		t.Run(v.name, func(t *testing.T) {
			p := newPlayer(t, g, f, 1)
			p.c.control(t, func(fd int) error { setBuffers(t, fd, 64<<10); return nil })
			request := RL + reqBody
			if v.answer {
				request = v04
			}
			p.c.send(text(request))
			s := f.next(t)
			s.gets(request)
			sender := p.c
			if v.answer {
				s.send(answer)
				p.c.expect(answer)
				sender = s.client
			}
			g.shrinkBuffers(t)
			go func() { _, _ = io.WriteString(sender, body) }()
			g.stuck(t) // the reader has read nothing: a pipe is full
			waiting := 0
			g.onLoops(func(l *loop) {
				for _, c := range l.conns {
					if c != nil && c.pipe != nil {
						waiting += c.pipe.n
					}
				}
			})
			if waiting == 0 {
				t.Error("no bytes are in a pipe")
			}
			v.end(p.c, s)
			v.after(t, p.c, s)
			p.c.Close()
			s.Close()
			eventually(t, "sessions gone", func() bool { return g.Sessions()+g.inFlight() == 0 })
			g.onLoops(func(l *loop) {
				if l.pipeCount != len(l.pipes) {
					t.Errorf("loop %d: %d pipes, %d of them free", l.index, l.pipeCount, len(l.pipes))
				}
				for _, pp := range l.pipes {
					if n, err := unix.IoctlGetInt(pp.r, unix.TIOCINQ); n != 0 || err != nil {
						t.Errorf("loop %d: a free pipe holds %d bytes (%v)", l.index, n, err)
					}
				}
			})
		})
	}
}

func serverSeesTruncation(t *testing.T, _ *client, s *serverSide) {
	if rest := s.rest(); strings.Contains(rest, "\r\n0\r\n") {
		t.Errorf("the server got what looks complete: %q", shorten(rest))
	}
}

func clientSeesTruncation(t *testing.T, c *client, _ *serverSide) {
	if rest := c.rest(); strings.Contains(rest, "\r\n0\r\n") {
		t.Errorf("the client got what looks complete: %q", shorten(rest))
	}
}
