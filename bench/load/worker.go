package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"icapgate/bench"
	"icapgate/bench/scenario"
	"icapgate/icap"
)

// errInterrupted ends a request that the end of the context has cut short. It is nobody's fault.
var errInterrupted = errors.New("interrupted")

// staleAfter is how long a connection may be idle until it is looked at before the next request, which costs about 1 µs of CPU: servers close
// what is idle, or after some answers, and no client would send a request there. Within that time the end may still be on its way.
const staleAfter = time.Millisecond

// worker is one connection of the load, replaced when it ends. It is the Receiver of its requests.
type worker struct {
	load     *load
	shard    *shard
	source   *scenario.Source
	tls      *tls.Config
	sessions sessions // of tls

	conn     *bench.Conn
	open     atomic.Pointer[bench.Conn] // conn, for others to cut
	requests int                        // on conn
	lastUsed time.Time                  // end of the last one

	req *scenario.Request

	// Of the answer that is being read.
	times    times
	status   int
	server   []byte // as it names itself; empty: it does not
	received int64  // bytes of the body
	modified bool   // a block page, not an echo
	newHeads bool   // an echo with other encapsulated heads
	differs  bool   // the body is another one
	refused  error  // the status is none that is expected
}

func newWorker(l *load, index int) *worker {
	w := &worker{load: l, shard: l.shards[index%len(l.shards)], source: l.cfg.Mix.NewSource(l.cfg.Seed)}
	if l.cfg.TLS != nil {
		w.tls = l.cfg.TLS.Clone()
		w.sessions = newSessions(l.cfg.Resume, l.cfg.Seed, uint64(index))
		w.tls.ClientSessionCache = &w.sessions
	}
	return w
}

// run sends requests until there are enough.
func (w *worker) run(ctx context.Context) {
	if !w.load.cfg.open() {
		for {
			j, ok := w.load.next(ctx)
			if !ok {
				return
			}
			w.do(ctx, j)
		}
	}
	var idle *time.Timer
	var idleTime <-chan time.Time
	if d := w.load.cfg.Idle; d > 0 {
		idle = time.NewTimer(d)
		defer idle.Stop()
		idleTime = idle.C
	}
	for {
		select {
		case j, ok := <-w.load.jobs:
			if !ok {
				return
			}
			w.do(ctx, j)
			if idle != nil {
				idle.Reset(w.load.cfg.Idle)
			}
		case <-idleTime:
			w.disconnect()
		}
	}
}

// do sends one request, or has a faulty client do it, and counts what came of it.
func (w *worker) do(ctx context.Context, j job) {
	w.req = w.source.Next(j.n)
	if w.req.Fault.Kind != "" {
		w.load.faulty.begin(w.req, j.warm, w.shard)
		return
	}
	w.shard.begun.Add(1)
	if !j.warm {
		w.shard.measured.Add(1)
	}
	w.times = times{begun: j.planned} // of a closed loop, just now: reading the clock is 1 % of the CPU that a request costs
	if w.load.cfg.open() {
		w.times.begun = time.Now()
	}
	err := w.connect(ctx)
	failed := w.conn == nil
	if err == nil {
		err = w.exchange()
	}
	w.times.done = time.Now()
	if err != nil && w.load.cut.Load() {
		err = errInterrupted
	}
	w.shard.record(j, w, &w.times, err)
	if failed {
		pause(ctx, dialPause)
		return
	}
	w.lastUsed = w.times.done
	wrong := err != nil && err != w.refused // an answer that only says no leaves the connection as it was
	if wrong || !w.conn.Reusable() || w.requests == w.load.cfg.PerConn {
		w.disconnect()
	}
}

// connect makes sure that there is a connection.
func (w *worker) connect(ctx context.Context) error {
	if w.conn != nil && w.times.begun.Sub(w.lastUsed) > staleAfter && w.conn.Stale() {
		w.disconnect()
	}
	if w.conn != nil {
		w.times.sent = w.times.begun
		return nil
	}
	w.sessions.draw()
	conn, err := w.load.dial(ctx, w.tls)
	if err != nil {
		if ctx.Err() != nil {
			return errInterrupted
		}
		return err
	}
	w.conn, w.requests, w.lastUsed = conn, 0, time.Now()
	w.times.sent = w.lastUsed
	w.open.Store(conn)
	w.load.connected.Add(1)
	w.shard.recordConnection(conn)
	return nil
}

func (w *worker) disconnect() {
	if w.conn != nil {
		w.open.Store(nil)
		w.conn.Close()
		w.conn = nil
	}
}

// dial makes a connection to the target.
func (l *load) dial(ctx context.Context, cfg *tls.Config) (*bench.Conn, error) {
	if l.cfg.Dial == nil {
		return bench.Dial(ctx, l.cfg.Target.Address, cfg, l.cfg.Timeout)
	}
	nc, err := l.cfg.Dial(ctx)
	if err != nil {
		return nil, &bench.Error{Kind: bench.Connect, Err: err}
	}
	return bench.NewConn(ctx, nc, cfg, l.cfg.Timeout)
}

// exchange does one request and says what was wrong with its answer.
func (w *worker) exchange() error {
	w.requests++
	w.received, w.modified, w.newHeads, w.differs, w.refused = 0, false, false, false, nil
	if err := w.conn.Do(&w.req.Request, w); err != nil {
		return err
	}
	if w.refused != nil {
		return w.refused
	}
	return w.checkEnd()
}

// compared says whether the body of the answer has to be compared with that of the request.
func (w *worker) compared() bool {
	return (w.status == 200 || w.status == 206) && w.req.Method != icap.MethodOptions && !w.modified && w.req.ExpectBody != scenario.AnyBody
}

// checkEnd compares the end of the body that came back, and judges the whole.
func (w *worker) checkEnd() error {
	if w.modified && w.req.ExpectBody == scenario.Echo {
		return wrongEcho("an HTTP response came back in place of the request")
	}
	if !w.compared() {
		return nil
	}
	var err error
	if offset, ok := w.conn.Original(); ok && !w.differs && !w.req.Content.CheckRest(offset) {
		err = wrongEcho("the answer takes the original from byte %d on, after %d bytes of its own", offset, w.received)
	} else if size := w.req.Content.Size(); !ok && w.received != size {
		err = wrongEcho("%d of %d bytes came back", w.received, size)
	}
	if w.req.ExpectBody != scenario.Modified {
		return err
	}
	if err == nil && !w.differs && !w.newHeads {
		return wrongEcho("the message came back as it was")
	}
	w.modified = true
	return nil
}

func wrongEcho(format string, args ...any) error {
	return &bench.Error{Kind: bench.Echo, Err: fmt.Errorf(format, args...)}
}

// Head takes the time and looks at the status.
func (w *worker) Head(r *icap.Response, _ []byte) error {
	if r.Status == 100 {
		w.times.continued = time.Now()
		return nil
	}
	w.times.head = time.Now()
	w.status = r.Status
	if !w.req.Expected(r.Status) {
		w.refused = &bench.Error{Kind: bench.Status, Err: fmt.Errorf("%d %s", r.Status, bench.Printable(r.Reason))}
	}
	w.server = append(w.server[:0], r.Get(w.load.cfg.ServerHeader)...)
	return nil
}

// Blocks tells an echo from another message.
func (w *worker) Blocks(_ *icap.Encapsulated, blocks []byte, corrected bool) error {
	if corrected {
		return &bench.Error{Kind: bench.Framing, Err: errors.New("the Encapsulated field does not fit the encapsulated heads")}
	}
	if w.req.Method == icap.MethodReqmod && bytes.HasPrefix(blocks, []byte("HTTP/")) {
		w.modified = true
	} else if w.req.Method != icap.MethodOptions {
		w.newHeads = !w.req.IsEcho(blocks)
	}
	return nil
}

// Data compares what came back.
func (w *worker) Data(p []byte) error {
	w.received += int64(len(p))
	if !w.compared() || w.differs || w.refused != nil {
		return nil
	}
	offset, ok := w.req.Content.Check(p)
	switch {
	case ok:
		return nil
	case w.req.ExpectBody == scenario.Modified:
		w.differs = true
		return nil
	case offset == w.req.Content.Size():
		return wrongEcho("more than the %d bytes of the body came back", offset)
	}
	return wrongEcho("byte %d of the body differs", offset)
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
