package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"icapgate/bench"
	"icapgate/bench/scenario"
	"icapgate/icap"
)

// maxFaulty bounds the faulty clients at a time.
const maxFaulty = 1000

// faulty runs the faulty clients: each on a connection and a goroutine of its own, so that a slow one does not hold up good ones. Nothing that a
// target does with them is an error; what it does is counted.
type faulty struct {
	load    *load
	ctx     context.Context // ends with the run
	cancel  context.CancelFunc
	slots   chan struct{}
	running sync.WaitGroup
}

func newFaulty(l *load) *faulty {
	f := &faulty{load: l, slots: make(chan struct{}, maxFaulty)}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f
}

// begin sends a request as the faulty client that it is meant for. s is where it counts, unless it belongs to the warm-up.
func (f *faulty) begin(req *scenario.Request, warm bool, s *shard) {
	select {
	case f.slots <- struct{}{}:
	default:
		s.recordFault(req, warm, fmt.Sprintf("skipped: %d were there already", maxFaulty))
		return
	}
	n := req.N
	f.running.Go(func() {
		defer func() { <-f.slots }()
		// The request is made again, as the worker's is its own.
		c := &faultyClient{req: f.load.cfg.Mix.NewSource(f.load.cfg.Seed).Next(n), ctx: f.ctx}
		s.recordFault(c.req, warm, c.run(f.load))
	})
}

// stop waits a little for the faulty clients that are left, and ends them.
func (f *faulty) stop() {
	defer time.AfterFunc(cutAfter, f.cancel).Stop()
	f.running.Wait()
	f.cancel()
}

// faultyClient is one of them. It is the Receiver of its request, and the body of it.
type faultyClient struct {
	ctx  context.Context
	conn *bench.Conn
	req  *scenario.Request
	body io.Reader // of the request
	left int64     // bytes until an abort

	status int
}

// errLeft ends a request that the client gives up.
var errLeft = errors.New("left")

// run does one request and says what the target did.
func (c *faultyClient) run(l *load) string {
	conn, err := l.dial(c.ctx, l.cfg.TLS)
	if err != nil {
		return c.outcome(err)
	}
	defer conn.Close()
	defer context.AfterFunc(c.ctx, conn.Abort)()
	c.conn = conn
	req := c.req.Request
	c.body = req.Body
	switch fault := c.req.Fault; fault.Kind {
	case scenario.ConnectAndLeave:
		pause(c.ctx, fault.Hold)
		if c.ctx.Err() == nil && conn.Stale() {
			return "closed by the target"
		}
		return "left"
	case scenario.HalfClose:
		req.HalfClose = true
	case scenario.AbortBody:
		c.left = fault.After
		if req.Body == nil || c.left >= req.Size {
			return "left: no body to abort" // as of OPTIONS
		}
		req.Body, req.Trickle = (*abortedBody)(c), true // what is before the abort has to go out
	case scenario.SlowBody:
		if req.Body != nil {
			req.Body, req.Trickle = (*slowBody)(c), true
		}
	}
	err = conn.Do(&req, c)
	switch {
	case errors.Is(err, errLeft):
		return "left"
	case err != nil:
		return c.outcome(err)
	}
	return fmt.Sprint(c.status)
}

// outcome describes an error in a few words.
func (c *faultyClient) outcome(err error) string {
	if c.ctx.Err() != nil { // it was aborted
		return "under way when the run ended"
	}
	var e *bench.Error
	if errors.As(err, &e) {
		return string(e.Kind)
	}
	return "error"
}

// Head implements bench.Receiver.
func (c *faultyClient) Head(r *icap.Response, _ []byte) error {
	c.status = r.Status
	if c.req.Fault.Kind == scenario.StopReading {
		pause(c.ctx, c.req.Fault.Hold)
		return errLeft
	}
	return nil
}

// Blocks implements bench.Receiver.
func (*faultyClient) Blocks(*icap.Encapsulated, []byte, bool) error { return nil }

// Data implements bench.Receiver.
func (*faultyClient) Data([]byte) error { return nil }

// abortedBody ends with an error.
type abortedBody faultyClient

func (b *abortedBody) Read(p []byte) (int, error) {
	if b.left == 0 {
		b.conn.Abort()
		return 0, errLeft
	}
	n, err := b.body.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

// slowBody gives its bytes at a rate.
type slowBody faultyClient

func (b *slowBody) Read(p []byte) (int, error) {
	const perSecond = 10 // reads
	rate := max(1, b.req.Fault.Rate)
	n, err := b.body.Read(p[:min(int64(len(p)), max(1, rate/perSecond))])
	pause(b.ctx, time.Duration(n)*time.Second/time.Duration(rate))
	if b.ctx.Err() != nil {
		return 0, errLeft
	}
	return n, err
}
