package pool

import "sync/atomic"

// Cause is why a request waits. It is a label of metrics.
type Cause uint8

const (
	CauseCap    Cause = iota // every usable server has as many connections as it allows
	CauseFull                // every usable server has said 503 a moment ago
	CauseHealth              // no server is usable, and some have not been checked yet
	CauseOwn                 // other servers have connections to give, but it waits for its own
	Causes      = iota
)

func (c Cause) String() string { return [Causes]string{"cap", "full", "health", "own"}[c] }

// Refusal is why a request is not to wait, or no longer. It is a label of metrics.
type Refusal uint8

const (
	RefusedMax     Refusal = iota // as many wait already as may
	RefusedFull                   // all servers have said 503, for longer than it may wait
	RefusedTimeout                // it has waited for as long as it may
	Refusals       = iota
)

func (r Refusal) String() string { return [Refusals]string{"max", "full", "timeout"}[r] }

// waitCounts is what a queue has seen. Anybody may write it.
type waitCounts struct {
	waits   [Causes]atomic.Uint64 // that have ended
	time    [Causes]atomic.Int64  // ns that they took
	refused [Refusals]atomic.Uint64
	latest  atomic.Int64 // ns that the latest one took which a grant or the timeout has ended
}

// Waited notes the end of a wait that took ns.
func (q *Queue) Waited(c Cause, ns int64) {
	q.counts.waits[c].Add(1)
	q.counts.time[c].Add(ns)
}

// Refused notes a request that must not wait, or no longer.
func (q *Queue) Refused(r Refusal) { q.counts.refused[r].Add(1) }

// SetLatest notes how long one has waited that got a server or waited in vain.
func (q *Queue) SetLatest(ns int64) { q.counts.latest.Store(ns) }

// Latest is how long it lately took to come to the end of the line, in ns, which is how long it would take somebody who finds it full:
// what is before him divided by what servers get done.
func (q *Queue) Latest() int64 { return q.counts.latest.Load() }

// Waits is a Queue as it is seen at one moment.
type Waits struct {
	Depth   [Causes]int    // waiters
	Since   int64          // loop time in ns from which the first of them has waited; nobody waits if all Depth are 0
	Ended   [Causes]uint64 // waits so far
	Time    [Causes]int64  // ns that they took
	Refused [Refusals]uint64
}

// Waits returns the numbers of now.
func (q *Queue) Waits() (w Waits) {
	q.mu.Lock()
	w.Depth = q.byCause
	if q.first != nil {
		w.Since = q.first.wait.Since
	}
	q.mu.Unlock()
	for c := range w.Ended {
		w.Ended[c], w.Time[c] = q.counts.waits[c].Load(), q.counts.time[c].Load()
	}
	for r := range w.Refused {
		w.Refused[r] = q.counts.refused[r].Load()
	}
	return w
}
