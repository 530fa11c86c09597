package gateway

import (
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"icapgate/gateway/accesslog"
	"icapgate/icap"
	"icapgate/pool"
)

// scratchSize is how much a loop reads from a socket at a time: enough to make a large body cheap. 64 KiB cost more CPU per GB over
// loopback, where that is more than one segment. roundBytes bounds the bytes of one connection per round (fairness).
const (
	scratchSize = 48 << 10
	roundBytes  = 4 * scratchSize
)

// epoch is the zero of loop time: ns on the monotonic clock.
var epoch = time.Now()

func loopTime() int64 { return int64(time.Since(epoch)) }

// loop is one poller and its goroutine. It owns its sessions, its server connections and everything they hold; other
// goroutines reach it by post only.
type loop struct {
	// Static after construction.
	gw     *Gateway
	index  int
	poller *poller
	clock  func() int64 // loopTime, but for tests on virtual time
	log    *slog.Logger

	// Owned by the loop.
	now       int64   // loop time at which the batch being handled came
	conns     []*conn // by fd; nil: none
	wheel     wheel
	ready     []*conn  // connections that run at the end of this event
	later     []*conn  // and those that run after the next batch of events
	ending    bool     // ready is being run
	closing   []int    // fds that left the table and are closed after the batch
	parked    []*shard // got an idle connection while somebody waits for one
	stopped   bool     // run returns
	scratch   []byte   // what was just read; valid until the next read
	probe     [1]byte  // for looking whether there is anything
	buffers   buffers
	pipes     []*pipe // empty ones, for splice
	noSplice  bool    // it has turned out to be impossible
	pipeCount int     // also of those that are in use
	req       icap.Request
	resp      icap.Response
	pools     map[*poolTable]*loopPool
	shards    map[*pool.Server]*shard
	table     *table         // the table that pools and shards were made for
	line      []byte         // scratch for heads
	mark      []byte         // scratch for a header line
	extra     []byte         // scratch for lines that answers get in addition
	values    []byte         // scratch for values of a request's fields
	iov       [2][]byte      // scratch for writev
	full      []*pool.Server // that said 503 on this loop and may still be skipped
	fullTimer timer          // until the first of them is not
	sessions  map[*session]struct{}
	orphans   map[*session]struct{} // whose clients are gone, and whose requests run on
	stats     *loopStats
	watch     watchTimes
	tcpInfo   unix.TCPInfo // scratch

	access       *accesslog.Buffer // nil: off
	accessTimer  timer
	record       accesslog.Record // scratch
	transactions uint64           // begun so far: their numbers

	sessionCount atomic.Int32 // read by accept goroutines
	done         chan struct{}
}

func newLoop(gw *Gateway, index int) (*loop, error) {
	p, err := openPoller()
	if err != nil {
		return nil, fmt.Errorf("cannot open a poller: %w", err)
	}
	l := &loop{
		gw: gw, index: index, poller: p, clock: loopTime, log: gw.log, sessions: make(map[*session]struct{}), orphans: make(map[*session]struct{}),
		pools: make(map[*poolTable]*loopPool), scratch: make([]byte, scratchSize),
		stats: newLoopStats(), watch: defaultWatchTimes, done: make(chan struct{}),
	}
	l.fullTimer.fire = func(now int64) { l.guard(nil, func() { l.onNotFull(now) }) }
	if gw.access != nil {
		l.access = gw.access.NewBuffer()
		l.accessTimer.fire = func(int64) { l.access.Flush() }
	}
	l.now = l.clock()
	l.wheel.done = l.now / tick
	return l, nil
}

// yieldAfter is how long a busy loop runs, in ns, before it lets the runtime have its processor for a moment: what the runtime has
// put in line there, such as the collector's work, waits until then.
const yieldAfter = int64(8 * time.Millisecond)

// run handles batches of events until stop.
func (l *loop) run() {
	defer close(l.done)
	for yielded := int64(0); !l.stopped; {
		if l.now-yielded > yieldAfter {
			yielded = l.now
			runtime.Gosched()
		}
		events, err := l.poller.wait(l.patience())
		if err != nil {
			l.log.Error("a loop ended", "loop", l.index, "error", err)
			return
		}
		l.onBatch(events)
	}
}

// patience is how long the poller may wait.
func (l *loop) patience() time.Duration {
	if len(l.later) > 0 {
		return 0
	}
	at := l.wheel.next()
	if at == 0 {
		return -1
	}
	return time.Duration(max(at-l.now, 0))
}

// onBatch handles events, then what other goroutines have posted, the timers, and what was left for later: connections that
// were busy have not kept the others waiting.
func (l *loop) onBatch(events []unix.EpollEvent) {
	l.now = l.clock()
	posted := false
	for i := range events {
		fd := int(events[i].Fd)
		if fd == l.poller.wakeFD {
			posted = true
			continue
		}
		// A connection that is not in the table was closed earlier in this batch.
		if c := l.conns[fd]; c != nil {
			l.handle(c, events[i].Events)
			l.endEvent()
		}
	}
	if posted {
		for _, f := range l.poller.takePosted() {
			l.guard(nil, f)
			l.endEvent()
		}
	}
	l.wheel.advance(l.now)
	l.ready, l.later = append(l.ready, l.later...), l.later[:0]
	l.endEvent()
	l.closeQueued()
}

// post runs f on the loop, after the batch of events being handled.
func (l *loop) post(f func()) { l.poller.post(f) }

// abortAll closes everything that the loop owns.
func (l *loop) abortAll() {
	for _, c := range l.conns {
		if c != nil {
			l.guard(c, func() { c.owner.abort(reasonShutdown) })
		}
	}
	for s := range l.orphans { // whose attempts have no socket yet
		l.guard(&s.conn, func() { s.abort(reasonShutdown) })
	}
	if l.access != nil {
		l.access.Flush()
	}
}

// stop ends run and waits for it. abortAll has been run on every loop before: loops may still have had something for each other.
func (l *loop) stop() {
	l.post(func() { l.stopped = true })
	<-l.done
	l.closeFDs()
}

func (l *loop) closeFDs() {
	l.closeQueued()
	for _, p := range l.pipes {
		l.closePipe(p)
	}
	l.poller.close()
}

// handle runs one connection's events. A panic costs that connection only.
func (l *loop) handle(c *conn, events uint32) {
	defer l.recover(c)
	c.onEvents(events)
}

// guard runs f with the same protection as an event.
func (l *loop) guard(c *conn, f func()) {
	defer l.recover(c)
	f()
}

func (l *loop) recover(c *conn) {
	p := recover()
	if p == nil {
		return
	}
	l.gw.metrics.panics.Add(1)
	l.log.Error("panic in the data path; the connection is closed", "loop", l.index, "panic", p, "stack", string(debug.Stack()))
	if c != nil {
		defer func() {
			if recover() != nil { // its state is beyond repair: close the socket only
				c.close()
			}
		}()
		c.owner.abort(reasonPanic)
	}
}

// runLater has c's owner run at the end of this event or, if that is when it is called, after the next batch of events: one
// busy connection can't keep the others waiting.
func (l *loop) runLater(c *conn) {
	if c.queued || c.closed {
		return
	}
	c.queued = true
	if l.ending {
		l.later = append(l.later, c)
	} else {
		l.ready = append(l.ready, c)
	}
}

// endEvent runs what the event has made ready, once.
func (l *loop) endEvent() {
	l.ending = true
	for i, c := range l.ready {
		l.ready[i] = nil
		c.queued = false
		if !c.closed {
			l.runReady(c)
		}
	}
	l.ready = l.ready[:0]
	l.ending = false
	if len(l.parked) > 0 {
		l.guard(nil, l.handOverParked)
	}
}

func (l *loop) handOverParked() {
	parked := l.parked
	l.parked = nil
	for _, h := range parked {
		if l.handOver(h) {
			l.parked = append(l.parked, h) // the connection in the way is in later
		}
	}
}

func (l *loop) runReady(c *conn) {
	defer l.recover(c)
	c.owner.run()
}

func (l *loop) closeQueued() {
	for _, fd := range l.closing {
		unix.Close(fd)
	}
	l.closing = l.closing[:0]
}
