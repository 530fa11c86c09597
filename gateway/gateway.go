package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"icapgate/configs"
	"icapgate/gateway/accesslog"
	"icapgate/gateway/admin"
	"icapgate/gateway/spill"
	"icapgate/pool"
)

// Options is what a Gateway needs beside its configuration.
type Options struct {
	Logger  *slog.Logger                    // nil: slog.Default()
	Version string                          // for build_info and /status
	Load    func() (*configs.Config, error) // reads and validates the configuration again, for Reload; nil: there is none to read
	Loops   int                             // event loops; 0: as many as the Go runtime has processors
	Fields  string                          // header lines added to every answer, each with its CRLF; the demo marks its answers so
}

// Gateway is the whole of the program below the command line: New, Start, Drain, Close, in this order.
type Gateway struct {
	// Static after New.
	log         *slog.Logger
	version     string
	extraFields []byte
	listeners   []*listener
	loops       []*loop
	started     time.Time

	load      func() (*configs.Config, error)
	config    atomic.Pointer[configs.Config] // in force
	table     atomic.Pointer[table]
	draining  atomic.Bool
	beenReady atomic.Bool   // the first round of checks is over
	stopping  chan struct{} // closed by Drain or Close: no further accepts
	stopOnce  sync.Once
	running   bool // Start has been called
	closeOnce sync.Once

	dialing     context.Context // of the goroutines that connect with TLS
	stopDialing context.CancelFunc
	dials       sync.WaitGroup

	access *accesslog.Log // nil: off
	id     uint64         // of this process, in the ids of transactions

	limits   limits
	spills   atomic.Pointer[spill.Store] // nil: no pool has had retry.spill
	spillLog rateLimit
	strayLog rateLimit // of requests for paths that nobody has
	loopLog  rateLimit // of requests that have come back
	askedLog rateLimit // of OPTIONS for more paths than the gateway keeps an answer for
	keptLog  rateLimit

	answerLog  rateLimit // of answers that break the protocol
	secureLog  rateLimit // of TLS connections that did not come about
	allowedLog rateLimit
	limitLog   rateLimit
	metrics    gatewayMetrics
	servers    servers // control plane of the pools
	retired    struct {
		mu      sync.Mutex
		servers []*pool.Server // that are in no table any more and may have requests; guarded by mu
	}
	admins []*admin.Server // the admin and the metrics address
}

// New builds a gateway from a valid configuration and binds its listeners; nothing is accepted before Start.
func New(cfg *configs.Config, o Options) (_ *Gateway, err error) {
	g := &Gateway{
		log: o.Logger, load: o.Load, version: o.Version, extraFields: []byte(o.Fields),
		stopping: make(chan struct{}), started: time.Now(), id: uint64(time.Now().Unix())<<32 | uint64(rand.Uint32()),
	}
	g.config.Store(cfg)
	if g.log == nil {
		g.log = slog.Default()
	}
	g.dialing, g.stopDialing = context.WithCancel(context.Background())
	g.registerMetrics()
	defer func() {
		if err != nil {
			g.release()
		}
	}()
	g.servers.init(g)
	g.servers.readKept(cfg.StateDir)
	if cfg.AccessLog.Output != "off" {
		if g.access, err = accesslog.Open(cfg.AccessLog.Output, g.log); err != nil {
			return nil, err
		}
	}
	if err := g.openSpills(cfg); err != nil {
		return nil, err
	}
	g.limitSpills(cfg)
	t, err := g.servers.build(cfg, new(table))
	if err != nil {
		return nil, err
	}
	g.table.Store(t)
	for i := range cmp.Or(o.Loops, runtime.GOMAXPROCS(0)) {
		l, err := newLoop(g, i)
		if err != nil {
			return nil, fmt.Errorf("cannot make loop %d: %w", i, err)
		}
		g.loops = append(g.loops, l)
	}
	var faults []error // all of them at once: the operator mends them at once
	for _, c := range cfg.Listeners {
		ls, err := g.newListener(c)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		g.listeners = append(g.listeners, ls)
	}
	return g, errors.Join(faults...)
}

// Start opens the admin endpoints, begins to check servers and to accept clients. After an error, Close.
func (g *Gateway) Start() error {
	g.running = true
	for _, l := range g.loops {
		go l.run()
	}
	if err := g.openAdmin(); err != nil {
		return err
	}
	if err := g.limits.start(g); err != nil {
		return err
	}
	g.servers.start(g.table.Load())
	for _, ls := range g.listeners {
		ls.accepting.Add(1)
		go ls.serve()
	}
	return nil
}

// Addresses returns what the listeners are bound to, as URIs without a path, in the order of the configuration.
func (g *Gateway) Addresses() []string {
	var out []string
	for _, ls := range g.listeners {
		out = append(out, ls.scheme()+"://"+ls.ln.Addr().String())
	}
	return out
}

// Listening says in words what is listened on.
func (g *Gateway) Listening() string {
	var out []string
	for i, a := range g.Addresses() {
		out = append(out, g.listeners[i].name+"="+a)
	}
	return strings.Join(out, " ")
}

// Drain stops accepting, lets every session finish its running transaction, and returns when no session is left, at the latest after
// drain_timeout or when ctx ends.
func (g *Gateway) Drain(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(g.config.Load().DrainTimeout))
	defer cancel()
	g.beginDrain()
	g.finishHandshakes(ctx)
	for g.Sessions()+g.inFlight() > 0 {
		select {
		case <-ctx.Done():
			g.log.Warn("drain ended with work left", "sessions", g.Sessions(), "in_flight", g.inFlight())
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (g *Gateway) beginDrain() {
	g.draining.Store(true)
	g.stopAccepting()
	for _, l := range g.loops {
		l.post(l.drain)
	}
}

// finishHandshakes waits for the handshakes that run, as long as it would for their requests: a client can send one with the last bytes
// of its handshake.
func (g *Gateway) finishHandshakes(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, drainIdle)
	defer cancel()
	defer context.AfterFunc(ctx, g.closeHandshakes)()
	for _, ls := range g.listeners {
		ls.handshakes.running.Wait()
	}
}

func (g *Gateway) closeHandshakes() {
	for _, ls := range g.listeners {
		ls.handshakes.closeAll(ls)
	}
}

// Idle clients are not closed all at once when the gateway drains: they will come back, with a TLS handshake each, to those who take its
// place. drainPace is the time between two of a loop, as long as drainSpan suffices.
const (
	drainPace    = 5 * time.Millisecond
	maxDrainSpan = 5 * time.Second
)

// drainSpan is the time in which idle clients are closed at most: the rest of drain_timeout is for the requests that they make until then.
func (g *Gateway) drainSpan() time.Duration {
	return min(time.Duration(g.config.Load().DrainTimeout)/2, maxDrainSpan)
}

// drain looks at the sessions that have no request: some have sent one that has not been read yet, the others are closed when they have
// been idle for drainIdle and it is their turn.
func (l *loop) drain() {
	n := int64(len(l.sessions))
	span := min(int64(l.gw.drainSpan()), n*int64(drainPace))
	turn := int64(0)
	for s := range l.sessions {
		if s.request != requestHead || s.headAt > 0 {
			continue
		}
		s.drainAt = l.now + span*turn/n
		turn++
		l.guard(&s.conn, s.run)
	}
}

// Sessions is the number of client connections.
func (g *Gateway) Sessions() int {
	n := 0
	for _, ls := range g.listeners {
		n += int(ls.sessions.Load())
	}
	return n
}

func (g *Gateway) stopAccepting() {
	g.stopOnce.Do(func() {
		close(g.stopping)
		for _, ls := range g.listeners {
			ls.close()
		}
	})
}

// Close ends everything at once and waits for the goroutines. A second call does nothing.
func (g *Gateway) Close() { g.closeOnce.Do(g.close) }

func (g *Gateway) close() {
	if !g.running {
		g.release()
		return
	}
	g.stopAccepting()
	g.closeHandshakes()
	for _, a := range g.admins {
		_ = a.Close()
	}
	g.limits.stop()
	g.servers.stop()
	g.stopDialing()
	g.onLoops((*loop).abortAll) // nothing is dialled after that
	g.dials.Wait()
	g.onLoops(func(*loop) {}) // what the dialling goroutines have posted is through
	for _, l := range g.loops {
		l.stop()
	}
	if s := g.spills.Load(); s != nil {
		s.Close()
	}
	if g.access != nil {
		g.access.Close()
	}
	g.metrics.set.UnregisterAllMetrics()
}

// onLoops runs f on every loop and waits.
func (g *Gateway) onLoops(f func(l *loop)) {
	var done sync.WaitGroup
	for _, l := range g.loops {
		done.Add(1)
		l.post(func() { f(l); done.Done() })
	}
	done.Wait()
}

// ReopenLogs opens the file of the access log again, after a rotation.
func (g *Gateway) ReopenLogs() error {
	if g.access == nil {
		return nil
	}
	return g.access.Reopen()
}

// release lets go of what New has made, when Start was never called.
func (g *Gateway) release() {
	for _, ls := range g.listeners {
		ls.ln.Close()
	}
	for _, l := range g.loops {
		l.closeFDs()
	}
	g.stopDialing()
	g.servers.stop()
	if g.access != nil {
		g.access.Close()
	}
}
