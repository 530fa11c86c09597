package gateway

import (
	"io"
	"testing"
	"time"
)

// An answer that came while the loop was busy, more than the high-water mark of it, goes out to its end: a round that stops at the mark
// and then flushes everything gets no further event, neither from a server that has sent all nor from a client that takes all.
func TestAnswerThatCameAtOnce(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		for _, size := range []int{64 << 10, 100} { // written straight from the read buffer, and gathered
			p := newPlayer(t, g, f, listener)
			body := chunked(1<<20, size)
			exchange := func(body string) {
				p.c.send(text(v05))
				s := f.next(t)
				s.head()
				s.expect(text(P + chunks))
				hold := make(chan struct{})
				for _, l := range g.loops {
					l.post(func() { <-hold })
				}
				go func() {
					_, _ = io.WriteString(s, text(okLine+echoList+P)+body)
					s.release()
				}()
				time.AfterFunc(20*time.Millisecond, func() { close(hold) }) // the more has come until then, the sharper the test
				p.c.status(200)
				p.c.expect(text(P))
				if err := p.c.matches(body); err != nil {
					t.Fatal(err)
				}
			}
			for range 8 { // the kernel makes its buffers larger and larger
				exchange(body)
			}
		}
	})
}
