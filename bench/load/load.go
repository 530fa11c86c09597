package load

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"icapgate/bench"
	"icapgate/bench/result"
	"icapgate/bench/scenario"
)

const (
	// dialPause is how long a worker waits after a failed connect, so that a target that is gone is not hammered.
	dialPause = 50 * time.Millisecond
	// dialsAtATime bounds the connects at the start, so that they don't overflow the target's backlog.
	dialsAtATime = 128
	// Before a start that was agreed upon connections are made that much earlier, and not when they would be idle for long.
	connectLead, connectLeadEach = 2 * time.Second, 5 * time.Millisecond
	// startLate is how much after the time that was agreed upon a run may begin without a word.
	startLate = time.Second
	// lateLimit is how much after its planned time a request has to begin to be late. It is above what the timers of an idle machine need.
	lateLimit = time.Millisecond
	// cutAfter is how long requests may go on after the end of the context, and faulty clients after that of the run.
	cutAfter = 2 * time.Second
)

// load is a running Run.
type load struct {
	cfg    *Config
	setup  result.Setup
	shards []*shard
	faulty *faulty

	origin time.Time // begin of the warm-up
	start  time.Time // end of the warm-up
	end    time.Time // after which no request begins; zero: never

	jobs     chan job     // of an open loop, from the pacer
	numbers  atomic.Int64 // of a closed loop: requests that were begun
	measured atomic.Int64 // of these, after the warm-up

	connected atomic.Int64 // connections made
	cut       atomic.Bool  // what still runs is cut short
	unsent    atomic.Int64 // requests of the plan that found no connection until the end
}

// job is one request that is due.
type job struct {
	n       uint64    // its number in the run
	planned time.Time // from which its latency counts
	warm    bool      // it belongs to the warm-up
	blocked bool      // it had to wait for a connection, or for one that had to
}

// Run makes the load and returns what came of it. All connections are made before the clock runs; without any there is no load. When ctx
// ends no further request begins, and the result says that it was interrupted. The error says that the configuration makes no sense; what
// fails later is counted in the result.
func Run(ctx context.Context, cfg Config) (*result.Result, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.ServerHeader = strings.ToLower(cmp.Or(cfg.ServerHeader, "X-Server"))
	l := &load{cfg: &cfg, setup: cfg.describe(), shards: newShards(cfg.Mix.Entries(), cfg.IncidentHeader != ""), jobs: make(chan job)}
	l.faulty = newFaulty(l)
	defer l.faulty.stop()
	workers := make([]*worker, cfg.Connections)
	for i := range workers {
		workers[i] = newWorker(l, i)
	}
	defer func() {
		for _, w := range workers {
			w.disconnect()
		}
	}()
	if lead := connectLead + time.Duration(cfg.Connections)*connectLeadEach; !cfg.StartAt.IsZero() {
		pause(ctx, time.Until(cfg.StartAt.Add(-lead)))
	}
	if !l.connectAll(ctx, workers) {
		l.start = time.Now()
		return l.finish(ctx, nil), nil
	}
	if !cfg.StartAt.IsZero() {
		pause(ctx, time.Until(cfg.StartAt))
	}

	l.origin = time.Now()
	l.start = l.origin.Add(cfg.WarmUp)
	if d := cfg.Length(); d > 0 {
		l.end = l.start.Add(d)
	}
	collector := l.startCollector()
	pacing, err := l.startPacer(ctx)
	if err != nil {
		collector.stop()
		return nil, err
	}
	defer l.cutWhenEnded(ctx, workers)()
	var working sync.WaitGroup
	for _, w := range workers {
		working.Go(func() { w.run(ctx) })
	}
	working.Wait()
	pacing.Wait()
	collector.stop()
	l.faulty.stop()
	return l.finish(ctx, collector), nil
}

// describe writes down what was asked for.
func (cfg *Config) describe() result.Setup {
	s := result.Setup{
		Target: cfg.Target.URI, Scenario: cfg.Name, TLS: cfg.TLS != nil, Connections: cfg.Connections, PerConn: cfg.PerConn,
		Open: cfg.open(), Stages: cfg.Stages, Length: cfg.Length().Seconds(), Seed: cfg.Seed, Machines: 1,
	}
	if cfg.open() {
		s.Arrivals = scenario.Constant
		if cfg.Poisson {
			s.Arrivals = scenario.Poisson
		}
	}
	return s
}

// connectAll lets every worker connect and says whether one could. The others are counted as errors, and will try again.
func (l *load) connectAll(ctx context.Context, workers []*worker) bool {
	var dialing sync.WaitGroup
	slots := make(chan struct{}, dialsAtATime)
	for _, w := range workers {
		slots <- struct{}{}
		dialing.Go(func() {
			if err := w.connect(ctx); err != nil && err != errInterrupted {
				w.shard.recordDialError(err)
			}
			<-slots
		})
	}
	dialing.Wait()
	return l.connected.Load() > 0
}

// startPacer starts what hands out the requests of an open loop.
func (l *load) startPacer(ctx context.Context) (*sync.WaitGroup, error) {
	var pacing sync.WaitGroup
	switch {
	case !l.cfg.open():
	case l.cfg.Dial != nil:
		pacing.Go(func() { l.pace(ctx, func(d time.Duration) { pause(ctx, d) }) })
	default:
		t, err := newTimer()
		if err != nil {
			return nil, err
		}
		pacing.Go(func() {
			defer context.AfterFunc(ctx, t.close)()
			defer t.close()
			l.pace(ctx, t.wait)
		})
	}
	return &pacing, nil
}

// pace hands the requests of an open loop to workers, each at its time or as soon after it as one is free. When the run is over, those
// that still wait have the timeout to begin; what is left then counts as unsent.
func (l *load) pace(ctx context.Context, sleep func(time.Duration)) {
	defer close(l.jobs)
	plan := newArrivals(l.cfg.WarmUp, l.cfg.Stages, true, l.cfg.Poisson, l.cfg.Seed)
	var over <-chan time.Time
	measured := int64(0)
	behind := false // a request had to wait, and the next ones with it
	for n := uint64(0); ; n++ {
		planned, warm, ok := l.due(plan, &measured)
		if !ok {
			return
		}
		if d := time.Until(planned); d > 0 {
			sleep(d)
			behind = false
		}
		if ctx.Err() != nil {
			return
		}
		select {
		case l.jobs <- job{n, planned, warm, behind}:
			continue
		default:
			behind = true
		}
		if over == nil && !l.end.IsZero() {
			over = time.After(time.Until(l.end) + l.cfg.Timeout)
		}
		select {
		case l.jobs <- job{n, planned, warm, behind}:
		case <-ctx.Done():
			return
		case <-over:
			l.countUnsent(plan, warm, measured)
			return
		}
	}
}

// enough says whether the run has no request more for that time, after so many.
func (l *load) enough(t time.Time, measured int64) bool {
	return !l.end.IsZero() && !t.Before(l.end) || l.cfg.Requests > 0 && measured >= l.cfg.Requests
}

// due returns when the next request of the plan begins and whether it belongs to the warm-up, and counts it in measured if not; false: there is
// none.
func (l *load) due(plan *arrivals, measured *int64) (planned time.Time, warm, ok bool) {
	at, ok := plan.plan()
	planned = l.origin.Add(at)
	warm = planned.Before(l.start)
	if !ok || !warm && l.enough(planned, *measured) {
		return planned, warm, false
	}
	if !warm {
		*measured++
	}
	return planned, warm, true
}

// countUnsent counts the request that has just waited in vain and all that were still to come, but for those of the warm-up.
func (l *load) countUnsent(plan *arrivals, warm bool, measured int64) {
	unsent := int64(0)
	for ok := true; ok; {
		if !warm {
			unsent++
		}
		_, warm, ok = l.due(plan, &measured)
	}
	l.unsent.Store(unsent)
}

// next returns the next request of a closed loop; false: there is none.
func (l *load) next(ctx context.Context) (job, bool) {
	now := time.Now()
	warm := now.Before(l.start)
	if ctx.Err() != nil || !warm && l.enough(now, l.measured.Add(1)-1) {
		return job{}, false
	}
	return job{n: uint64(l.numbers.Add(1) - 1), planned: now, warm: warm}, true
}

// cutWhenEnded cuts the requests short that still run a while after the end of ctx.
func (l *load) cutWhenEnded(ctx context.Context, workers []*worker) (stop func()) {
	var watching sync.WaitGroup
	done := make(chan struct{})
	watching.Go(func() {
		select {
		case <-ctx.Done():
		case <-done:
			return
		}
		select {
		case <-time.After(cutAfter):
		case <-done:
			return
		}
		l.cut.Store(true)
		for _, w := range workers {
			if c := w.open.Load(); c != nil {
				c.Abort()
			}
		}
	})
	return func() {
		close(done)
		watching.Wait()
	}
}

// figures returns the figures so far, but for those of the entries.
func (l *load) figures() *result.Result {
	r := result.New()
	r.Label, r.Setup, r.Started = l.cfg.Label, l.setup, l.start
	r.Late.Limit = lateLimit.Seconds()
	for _, s := range l.shards {
		s.addTo(r)
	}
	if n := l.unsent.Load(); n > 0 {
		r.AddError(bench.Unsent, result.Errors{Count: n, Example: fmt.Sprintf("no connection was free until %v after the end", l.cfg.Timeout)})
	}
	return r
}

// finish returns what came of it all. c is nil if nothing was sent.
func (l *load) finish(ctx context.Context, c *collector) *result.Result {
	r := l.figures()
	for _, s := range l.shards {
		s.addEntriesTo(r)
	}
	r.Interrupted = ctx.Err() != nil
	if !r.Interrupted && l.cfg.Requests == 0 && c != nil { // until the time was over: the rate is over all of it
		r.Seconds = max(r.Seconds, l.cfg.Length().Seconds())
	}
	if c != nil {
		r.Timeline = c.timeline
		if l.cfg.Dial == nil { // otherwise times may not be those in which the machine works
			r.Generator = c.used.generator(r)
		}
	}
	if late := l.origin.Sub(l.cfg.StartAt); c != nil && !l.cfg.StartAt.IsZero() && late > startLate {
		r.Remarks = append(r.Remarks, fmt.Sprintf("it began %v after the time that was agreed upon", late.Round(100*time.Millisecond)))
	}
	r.Incidents = l.incidents()
	return r
}

// incidents returns which incident ids were sent.
func (l *load) incidents() *result.Incidents {
	header, run := l.cfg.IncidentHeader, l.cfg.IncidentRun
	if header == "" {
		return nil
	}
	var sent, failed numbers
	for _, s := range l.shards {
		sent.union(s.sent)
		failed.union(s.failed)
	}
	return &result.Incidents{Header: header, Runs: []string{run}, Sent: sent.ranges(run), Failed: failed.ranges(run)}
}
