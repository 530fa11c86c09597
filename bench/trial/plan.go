package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"icapgate/bench"
	"icapgate/icap"
)

// Everything that a soak does follows from its seed: what each client sends, one request after the other, and the script of faults. Only
// what happens at the same time does not.

// errAborted is why a client goes away in the middle of its body.
var errAborted = errors.New("aborted, as planned")

// plan is one request of a soak.
type plan struct {
	id      string
	message bench.Message
	size    int64 // -1: no body
	start   int
	wish    wish
	abort   int64         // bytes of body after which the client goes away; -1: it does not
	write   int64         // bytes per second that the client sends, 0: all it can
	read    int64         // the same of the answer
	think   time.Duration // before it
	fresh   bool          // on a new connection
}

// newPlan draws a request.
func newPlan(r *rand.Rand, client, number int, servers []string) *plan {
	p := &plan{
		id: fmt.Sprintf("%d-%d", client, number), abort: -1, size: -1, start: r.IntN(1 << 20), think: time.Duration(r.IntN(40)) * time.Millisecond,
		fresh: r.IntN(20) == 0, wish: wish{what: asUsual},
	}
	p.message = bench.Message{Method: icap.MethodReqmod, Preview: -1, Chunk: []int64{100, 4 << 10, 64 << 10, 2 << 20}[r.IntN(4)], No204: r.IntN(3) == 0}
	switch r.IntN(10) {
	case 0:
		p.message.Method = icap.MethodOptions
		return p
	case 1, 2, 3, 4:
		p.message.Method = icap.MethodRespmod
	}
	switch n := r.IntN(100); {
	case n < 5: // none
	case n < 10:
		p.size = 0
	case n < 70:
		p.size = r.Int64N(4 << 10)
	case n < 92:
		p.size = r.Int64N(100 << 10) // about as much as is held for a replay
	case n < 99:
		p.size = r.Int64N(600 << 10)
	default:
		p.size = r.Int64N(6 << 20)
	}
	if p.size < 4<<10 {
		p.message.Chunk = max(p.message.Chunk, 1000)
	}
	if r.IntN(3) == 0 && p.size >= 0 {
		p.message.Preview = []int64{0, 1 << 10, 4 << 10, 64 << 10}[r.IntN(4)]
	}
	p.drawWish(r, servers)
	switch n := r.IntN(100); {
	case p.size < 1000:
	case n < 3:
		p.abort = r.Int64N(p.size)
	case n < 6: // takes half a second
		p.write = max(1000, 2*p.size)
	case n < 9:
		p.read = max(1000, 2*p.size)
	}
	return p
}

func (p *plan) drawWish(r *rand.Rand, servers []string) {
	w := &p.wish
	switch n := r.IntN(100); {
	case n < 60:
		return
	case n < 80:
		w.what = echoed
	case n < 83:
		if r.IntN(20) == 0 { // a server that says so gets no request for a second
			w.what, w.server = busy, servers[0]
		}
		return
	case n < 88:
		w.what, w.number = late, r.IntN(200)
	case n < 91:
		w.what = early
	case n < 93:
		w.what = asked
	case n < 95:
		w.what = closing
	case n < 96:
		w.what, w.number = cut, 1+r.IntN(2000)
	case n < 98:
		w.what = noAnswer
	default:
		w.what, w.number = slowly, max(1000, int(2*p.size))
	}
	if (w.what == noAnswer || w.what == cut) && r.IntN(3) > 0 {
		w.server = servers[r.IntN(len(servers))]
	}
}

// path is what the request asks for.
func (p *plan) path() string {
	if p.message.Method == icap.MethodRespmod {
		return "/respmod?id=" + p.id
	}
	return "/reqmod?id=" + p.id
}

// call makes the request ready to be sent.
func (p *plan) call(ctx context.Context) *call {
	q := &call{Message: p.message, Size: p.size, Start: p.start}
	q.Message.Fields = []string{wishHeader + ": " + p.wish.String()}
	if p.write > 0 || p.abort >= 0 {
		q.Trickle = true
		body, sent, began := bench.PatternBody(p.start, p.size), int64(0), time.Now()
		q.Send = reader(func(b []byte) (int, error) {
			if p.abort >= 0 && sent >= p.abort {
				return 0, errAborted
			}
			most := int64(len(b))
			if p.abort >= 0 {
				most = min(most, p.abort-sent)
			}
			if p.write > 0 {
				most = min(most, max(1, p.write/20))
				pace(ctx, began, sent, p.write)
			}
			n, err := body.Read(b[:most])
			sent += int64(n)
			return n, err
		})
	}
	if p.read > 0 {
		read, began := int64(0), time.Now()
		q.Read = func(n int) error {
			read += int64(n)
			pace(ctx, began, read, p.read)
			return nil
		}
	}
	return q
}

// pace waits until as many bytes per second have moved since began.
func pace(ctx context.Context, began time.Time, moved, rate int64) {
	_ = pause(ctx, time.Until(began.Add(time.Duration(float64(moved)/float64(rate)*float64(time.Second)))))
}

// fault is one line of a script.
type fault struct {
	at     time.Duration // since the start
	what   faultKind
	server int // of kill, start, freeze and thaw
	config int // of reload: which configuration
}

type faultKind string

const (
	faultKill   faultKind = "kill -9"
	faultStart  faultKind = "start"
	faultFreeze faultKind = "freeze"
	faultThaw   faultKind = "thaw"
	faultReload faultKind = "reload"
)

// newScript draws faults for a duration. At most one server is away at a time, with enough time in between for the checks to see it back.
func newScript(r *rand.Rand, duration time.Duration, servers int) (script []fault) {
	const last = 3 * time.Second // without a fault at the end
	between := func(least, most time.Duration) time.Duration {
		return least + time.Duration(r.Int64N(int64(most-least)))
	}
	for at := between(time.Second, 2*time.Second); at < duration-last; {
		server := r.IntN(servers)
		switch n := r.IntN(10); {
		case n < 4:
			away := between(100*time.Millisecond, 3*time.Second)
			script = append(script, fault{at: at, what: faultKill, server: server}, fault{at: at + away, what: faultStart, server: server})
			at += away + between(recovery, recovery+2*time.Second)
		case n < 6:
			away := between(50*time.Millisecond, 1500*time.Millisecond)
			script = append(script, fault{at: at, what: faultFreeze, server: server}, fault{at: at + away, what: faultThaw, server: server})
			at += away + between(recovery, recovery+time.Second)
		default:
			script = append(script, fault{at: at, what: faultReload, config: r.IntN(8)})
			at += between(100*time.Millisecond, 2*time.Second)
		}
	}
	return script
}

// recovery is how long the checks of a soak's gateway take to see a server that is back.
const recovery = 1500 * time.Millisecond
