package gateway

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
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
	gw      *Gateway
	index   int
	poller  poller
	wakeFD  int // eventfd: unfinished connections and sockets to close wait
	timerFD int
	log     *slog.Logger

	// Owned by the loop.
	now      int64 // loop time at which the event being handled came
	conns    map[int]*conn
	wheel    wheel
	timerSet int64                      // what timerFD is armed for, 0: not
	ready    []*conn                    // connections that run at the end of this event
	later    []*conn                    // and those that run after the poller has been asked again
	ending   bool                       // ready is being run
	closing  []int                      // fds that left the table and are closed after the batch
	parked   []*pool.Shard[*serverConn] // got an idle connection while somebody waits for one
	woken    bool                       // wakeFD has been written and not yet read
	scratch  []byte                     // what was just read; valid until the next read
	probe    [1]byte                    // for looking whether there is anything
	buffers  buffers
	req      icap.Request
	resp     icap.Response
	pools    map[*poolTable]*loopPool
	shards   map[*pool.Server]*pool.Shard[*serverConn]
	table    *table    // the table that pools and shards were made for
	line     []byte    // scratch for heads
	iov      [2][]byte // scratch for writev
	sessions map[*session]struct{}
	stats    *loopStats

	access       *accesslog.Buffer // nil: off
	accessTimer  timer
	record       accesslog.Record // scratch
	transactions uint64           // begun so far: their numbers

	sessionCount atomic.Int32 // read by accept goroutines
	done         chan struct{}
}

func newLoop(gw *Gateway, index int) (l *loop, err error) {
	l = &loop{
		gw: gw, index: index, wakeFD: -1, timerFD: -1, log: gw.log,
		conns: make(map[int]*conn), sessions: make(map[*session]struct{}),
		pools: make(map[*poolTable]*loopPool), scratch: make([]byte, scratchSize),
		stats: newLoopStats(), done: make(chan struct{}),
	}
	if gw.access != nil {
		l.access = gw.access.NewBuffer()
		l.accessTimer.fire = func(int64) { l.access.Flush() }
	}
	if l.poller, err = openPoller(); err != nil {
		return nil, fmt.Errorf("cannot open a poller: %w", err)
	}
	defer func() {
		if err != nil {
			l.closeFDs()
		}
	}()
	if l.wakeFD, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	if l.timerFD, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	for _, fd := range []int{l.wakeFD, l.timerFD} {
		if err = l.poller.add(fd); err != nil {
			return nil, err
		}
	}
	l.now = loopTime()
	l.wheel.done = l.now / tick
	return l, nil
}

// run handles events until stop.
func (l *loop) run() {
	defer close(l.done)
	if err := l.poller.run(l.onEvents); err != nil {
		l.log.Error("a loop ended", "loop", l.index, "error", err)
	}
}

// post runs f on the loop, after the batch of events being handled. What is posted from the loop itself must not post again: the
// poller would never be asked.
func (l *loop) post(f func()) {
	l.poller.post(func(any) error {
		l.now = loopTime()
		l.guard(nil, f)
		l.endEvent()
		return nil
	}, nil)
}

// abortAll closes everything that the loop owns.
func (l *loop) abortAll() {
	for _, c := range l.conns {
		l.guard(c, func() { c.owner.abort(reasonShutdown) })
	}
	if l.access != nil {
		l.access.Flush()
	}
}

// stop ends run and waits for it. abortAll has been run on every loop before: loops may still have had something for each other.
func (l *loop) stop() {
	l.poller.post(func(any) error { return errStop }, nil)
	<-l.done
	l.closeFDs()
}

func (l *loop) closeFDs() {
	l.closeQueued()
	for _, fd := range []int{l.wakeFD, l.timerFD} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	l.poller.close()
}

// onEvents is called by the poller for each fd that has events.
func (l *loop) onEvents(fd int, events uint32) {
	l.now = loopTime()
	switch fd {
	case l.wakeFD:
		l.onWake()
	case l.timerFD:
		l.onTimer()
	default:
		// An fd that is not in the table was closed earlier in this batch.
		if c := l.conns[fd]; c != nil {
			l.handle(c, events)
		}
	}
	l.endEvent()
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

// runLater has c's owner run at the end of this event or, if that is when it is called, after the poller has been asked again: one
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
	if (len(l.later) > 0 || len(l.closing) > 0) && !l.woken {
		l.woken = true
		var one [8]byte
		binary.NativeEndian.PutUint64(one[:], 1)
		_, _ = unix.Write(l.wakeFD, one[:])
	}
	l.armTimer()
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

// onWake comes in a batch after the one in which wakeFD was written: no event of a closed fd can come any more, and the other
// connections have had their turn.
func (l *loop) onWake() {
	var n [8]byte
	_, _ = unix.Read(l.wakeFD, n[:])
	l.woken = false
	l.closeQueued()
	l.ready, l.later = append(l.ready, l.later...), l.later[:0]
}

func (l *loop) closeQueued() {
	for _, fd := range l.closing {
		unix.Close(fd)
	}
	l.closing = l.closing[:0]
}

func (l *loop) onTimer() {
	var n [8]byte
	_, _ = unix.Read(l.timerFD, n[:])
	l.timerSet = 0
	l.wheel.advance(l.now)
}

// armTimer sets the timerfd when an earlier deadline has come up; a timer that fires too early does no harm.
func (l *loop) armTimer() {
	if l.timerSet != 0 && l.timerSet > l.now && !l.wheel.changed {
		return
	}
	l.wheel.changed = false
	at := l.wheel.next()
	if at == 0 || at == l.timerSet {
		return
	}
	// Loop time and CLOCK_MONOTONIC differ by a constant, so the timer is relative.
	d := max(at-l.now, 1)
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(d)}
	if err := unix.TimerfdSettime(l.timerFD, 0, &spec, nil); err == nil {
		l.timerSet = at
	}
}
