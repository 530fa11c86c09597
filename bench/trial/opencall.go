package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"icapgate/bench"
	"icapgate/icap"
)

// openCall is a request that a server may not judge, and what came of it. It is a Receiver.
type openCall struct {
	call
	path   string
	secure bool
	stopAt int64           // bytes of body after which the client waits for goOn
	goOn   <-chan struct{} // nil: it does not
	rate   int64           // bytes per second that the client reads; 0: all that come

	id         string
	began      time.Time
	answered   time.Duration // until the head of the answer had come
	early      int64         // bytes of body that were sent by then
	allowed    string        // X-Icapgate-Allowed of the answer
	retryAfter string        // and Retry-After
	err        error
	sent       atomic.Int64 // bytes of body
	most       int64        // by which that was ahead of what came back
	request    *bench.Request
	out, in    hash.Hash // of the body
	changed    bool      // other heads came back
	continued  chan struct{}
}

// newCall prepares a request. One that does not take a 204 gets its message back.
func newCall(method icap.Method, secure bool, path string, size int64, takes204 bool) *openCall {
	q := &openCall{path: path, secure: secure, out: sha256.New(), in: sha256.New(), continued: make(chan struct{})}
	q.Message, q.Size = bench.Message{Method: method, Preview: -1, Chunk: smallChunk, No204: !takes204}, size
	if !secure {
		q.Message.Chunk = largeChunk // spliced where a server gets it
	}
	return q
}

// wishing has servers treat the request so.
func (q *openCall) wishing(w wish) *openCall {
	q.Message.Fields = append(q.Message.Fields, wishHeader+": "+w.String())
	return q
}

// stopping lets the client wait after so many bytes.
func (q *openCall) stopping(at int64, goOn <-chan struct{}) *openCall {
	q.stopAt, q.goOn, q.Trickle = at, goOn, true
	return q
}

// Head implements bench.Receiver.
func (q *openCall) Head(h *icap.Response, head []byte) error {
	if h.Status == 100 {
		close(q.continued)
		return nil
	}
	q.answered, q.early = time.Since(q.began), q.sent.Load()
	q.allowed, q.retryAfter = string(h.Get("x-icapgate-allowed")), string(h.Get("retry-after"))
	return q.call.Head(h, head)
}

// Blocks implements bench.Receiver.
func (q *openCall) Blocks(_ *icap.Encapsulated, blocks []byte, _ bool) error {
	q.changed = len(blocks) > 0 && !q.request.IsEcho(blocks)
	return nil
}

// Data implements bench.Receiver.
func (q *openCall) Data(p []byte) error {
	q.in.Write(p)
	q.most = max(q.most, q.sent.Load()-q.got)
	return q.call.Data(p)
}

// same says whether what came back is what was sent.
func (q *openCall) same() bool {
	return !q.changed && q.wrong == nil && q.got == q.Size && q.sent.Load() == q.Size && bytes.Equal(q.in.Sum(nil), q.out.Sum(nil))
}

// wrongly says how the answer is not what it should be, "": it is. A status of 200 is for the message itself; the reasons are those for which it may have
// passed, none: it must not have.
func (q *openCall) wrongly(status int, reasons []string) string {
	switch {
	case q.err != nil:
		return q.err.Error()
	case q.status != status:
		return fmt.Sprintf("status %d, want %d", q.status, status)
	case q.allowed != "" && len(reasons) == 0, len(reasons) > 0 && !slices.Contains(reasons, q.allowed):
		return fmt.Sprintf("allowed because of %q, want %q", q.allowed, reasons)
	case status == 200 && !q.same():
		return fmt.Sprintf("another message came back: %d of %d bytes, %v", q.got, q.Size, q.wrong)
	case status == 503 && q.retryAfter == "":
		return "no Retry-After"
	}
	return ""
}

// source gives the body, which nobody holds as a whole.
func (q *openCall) source(ctx context.Context) reader {
	body := bench.PatternBody(q.Start, q.Size)
	return func(p []byte) (int, error) {
		if q.goOn != nil && q.sent.Load() < q.stopAt {
			p = p[:min(int64(len(p)), q.stopAt-q.sent.Load())]
		} else if q.goOn != nil {
			select {
			case <-q.goOn:
			case <-ctx.Done():
				return 0, context.Cause(ctx)
			}
		}
		n, err := body.Read(p)
		q.out.Write(p[:n])
		q.sent.Add(int64(n))
		return n, err
	}
}

// ask sends a request, over the connection that c has, and notes what came of it.
func (s *outage) ask(ctx context.Context, c *client, q *openCall) {
	s.mu.Lock()
	s.seen = append(s.seen, q)
	q.id = fmt.Sprint(len(s.seen))
	q.Start = len(s.seen) * 1001
	s.mu.Unlock()
	c.target, c.tls = s.target(q.secure, q.path+"?id="+q.id)
	q.Send = q.source(ctx)
	if q.rate > 0 {
		q.Read = func(int) error {
			return pause(ctx, time.Until(q.began.Add(time.Duration(float64(q.got)/float64(q.rate)*float64(time.Second)))))
		}
	}
	if q.err = c.connect(ctx); q.err != nil {
		return
	}
	if q.request, q.err = q.build(c.target); q.err != nil {
		return
	}
	q.began = time.Now()
	q.err = c.conn.Do(q.request, q)
	c.used = true
	if !c.conn.Reusable() {
		c.close()
	}
}

var (
	openMethods = []icap.Method{icap.MethodReqmod, icap.MethodRespmod}
	openDoors   = []bool{true, false} // icaps, icap
)

func doorName(secure bool) string {
	if secure {
		return "icaps"
	}
	return "icap"
}

// everyWay calls f with each method at each door.
func everyWay(f func(method icap.Method, secure bool)) {
	for _, secure := range openDoors {
		for _, method := range openMethods {
			f(method, secure)
		}
	}
}

// all sends requests at the same time, each over a connection of its own.
func (s *outage) all(ctx context.Context, list []*openCall) (wait func()) {
	var running sync.WaitGroup
	for _, q := range list {
		running.Go(func() {
			c := &client{}
			defer c.close()
			s.ask(ctx, c, q)
		})
	}
	return running.Wait
}

// verdicts counts answers and those that are not what has to come.
type verdicts struct {
	all, wrong int
	example    string
}

// add looks at an answer: see wrongly.
func (v *verdicts) add(q *openCall, status int, reasons ...string) {
	v.all++
	if text := q.wrongly(status, reasons); text != "" {
		v.wrong++
		v.example = fmt.Sprintf("; one of them, %s for a %v over %s: %s", q.path, q.Message.Method, doorName(q.secure), text)
	}
}

func (s *outage) claimVerdicts(name string, v verdicts) {
	s.claim(v.all > 0 && v.wrong == 0, "%s: %d of %d had another%s", name, v.wrong, v.all, v.example)
}

// claimAll claims that these requests were answered so.
func (s *outage) claimAll(name string, list []*openCall, status int, reasons ...string) {
	var v verdicts
	for _, q := range list {
		v.add(q, status, reasons...)
	}
	s.claimVerdicts(name, v)
}
