package discovery

import (
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Lookup finds what a name stands for now, as Resolver.Lookup does.
type Lookup func(ctx context.Context, q Question, last Answer) (Answer, error)

// Stats counts lookups by how they have ended.
type Stats [Results]atomic.Uint64

// Names keeps the answers to some questions up to date. It never forgets a good one: a lookup that fails, and a name that has gone, change
// nothing, because a pool without servers would lose every request, while servers that are really gone are found out by their checks.
type Names struct {
	log     *slog.Logger
	stats   Stats
	changed chan struct{} // holds a token when something has been heard
	ctx     context.Context
	cancel  context.CancelFunc
	asking  sync.WaitGroup

	mu       sync.Mutex
	lookup   Lookup             // guarded by mu
	interval time.Duration      // guarded by mu
	names    map[Question]*name // guarded by mu
}

// name is one question, and what is known about it.
type name struct {
	Question
	ctx    context.Context // ends when it is followed no more
	cancel context.CancelFunc
	wake   chan struct{} // holds a token when state.Next has changed
	asking chan struct{} // holds a token during a lookup

	mu    sync.Mutex
	state State // guarded by mu
	fails int   // lookups in a row that have failed; guarded by mu
}

// State is what is known about a name.
type State struct {
	Question
	Answer Answer    // the last good one, without targets: there has been none
	Asked  time.Time // when the latest lookup ended
	Next   time.Time // when the next one begins
	Err    error     // of the latest lookup, nil: it has found everything
	Since  time.Time // when lookups began to fail, zero: the latest has not
	Gone   time.Time // since when nothing but NotFound has been heard, zero: something else was the latest
}

const (
	leastPause = time.Second      // between two lookups of a name, whatever its TTL
	mostLookup = 30 * time.Second // for one lookup with all that it needs
	jitter     = 0.1
)

// NewNames returns a Names that follows nothing yet.
func NewNames(log *slog.Logger) *Names {
	n := &Names{log: log, changed: make(chan struct{}, 1), names: make(map[Question]*name)}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n
}

// Use says how to look names up and how often: every interval, or when the TTL is over, if that is sooner. It comes before Follow.
func (n *Names) Use(lookup Lookup, interval time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lookup, n.interval = lookup, interval
}

// Follow asks the questions, also those that are followed already, and goes on to ask them from then on. It returns when each has an answer or has
// failed once, at the latest at the end of ctx.
func (n *Names) Follow(ctx context.Context, questions []Question) {
	n.mu.Lock()
	var all []*name
	for _, q := range questions {
		o := n.names[q]
		if o == nil && n.ctx.Err() != nil {
			break
		}
		if o == nil {
			o = &name{Question: q, wake: make(chan struct{}, 1), asking: make(chan struct{}, 1)}
			o.state = State{Question: q, Next: time.Now().Add(leastPause)} // unless it is asked here
			o.ctx, o.cancel = context.WithCancel(n.ctx)
			n.names[q] = o
			n.asking.Go(func() { n.follow(o) })
		}
		all = append(all, o)
	}
	n.mu.Unlock()
	var first sync.WaitGroup
	for _, o := range all {
		first.Go(func() { n.ask(ctx, o, true) })
	}
	first.Wait()
}

// Keep stops to follow all other questions.
func (n *Names) Keep(questions []Question) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for q, o := range n.names {
		if !slices.Contains(questions, q) {
			o.cancel()
			delete(n.names, q)
		}
	}
}

// Changed gets a token when lookups have been made since the one before.
func (n *Names) Changed() <-chan struct{} { return n.changed }

// Close ends everything and waits.
func (n *Names) Close() {
	n.mu.Lock() // nothing begins any more
	n.cancel()
	n.mu.Unlock()
	n.asking.Wait()
}

// States is what is known about all names, in the order of their names.
func (n *Names) States() (list []State) {
	n.mu.Lock()
	questions := slices.SortedFunc(maps.Keys(n.names), func(a, b Question) int { return strings.Compare(a.String(), b.String()) })
	n.mu.Unlock()
	for _, q := range questions {
		list = append(list, n.State(q))
	}
	return list
}

// Answer is the last good answer; false: there is none yet.
func (n *Names) Answer(q Question) (Answer, bool) {
	s := n.State(q)
	return s.Answer, len(s.Answer.Targets) > 0
}

// State is what is known about a name.
func (n *Names) State(q Question) State {
	n.mu.Lock()
	o := n.names[q]
	n.mu.Unlock()
	if o == nil {
		return State{Question: q}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.state
}

// Lookups is the number of lookups that have ended so.
func (n *Names) Lookups(r Result) uint64 { return n.stats[r].Load() }

// follow asks for one name whenever it is time to.
func (n *Names) follow(o *name) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-o.ctx.Done():
			return
		case <-o.wake:
		case <-timer.C:
		}
		o.mu.Lock()
		next := o.state.Next
		o.mu.Unlock()
		if wait := time.Until(next); wait > 0 {
			timer.Reset(wait)
		} else {
			n.ask(o.ctx, o, false)
		}
	}
}

// ask makes one lookup: at once, or if it is still time to when no other one runs any more.
func (n *Names) ask(ctx context.Context, o *name, atOnce bool) {
	select {
	case o.asking <- struct{}{}:
		defer func() { <-o.asking }()
	case <-ctx.Done():
		return
	}
	ctx, cancel := context.WithTimeout(ctx, mostLookup)
	defer cancel()
	defer context.AfterFunc(o.ctx, cancel)()
	n.mu.Lock()
	lookup, interval := n.lookup, n.interval
	n.mu.Unlock()
	o.mu.Lock()
	last, next := o.state.Answer, o.state.Next
	o.mu.Unlock()
	if !atOnce && time.Until(next) > 0 {
		return
	}

	answer, err := lookup(ctx, o.Question, last)
	if o.ctx.Err() != nil {
		return
	}
	n.note(o, answer, err, interval)
	for _, c := range []chan struct{}{o.wake, n.changed} {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// note keeps what a lookup has found. The log has a line when lookups begin to fail, and one when they do no longer.
func (n *Names) note(o *name, answer Answer, err error, interval time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := &o.state
	s.Asked = time.Now()
	gone := ResultOf(err) == NotFound
	if err == nil {
		s.Answer, err = answer, answer.Fault
	}
	n.stats[ResultOf(err)].Add(1)
	if !gone {
		s.Gone = time.Time{}
	} else if s.Gone.IsZero() {
		s.Gone = s.Asked
	}
	switch {
	case err != nil && s.Since.IsZero():
		s.Since = s.Asked
		n.log.Warn("cannot look up a name; what it had stays", "name", o.String(), "error", err, "addresses", len(s.Answer.Targets))
	case err == nil && !s.Since.IsZero():
		n.log.Info("a name can be looked up again", "name", o.String(), "addresses", len(s.Answer.Targets),
			"after", s.Asked.Sub(s.Since).Round(time.Millisecond).String())
		s.Since = time.Time{}
	}
	s.Err = err

	// A failure is followed by another try soon, and then by fewer and fewer.
	pause := min(interval, s.Answer.TTL)
	if err == nil {
		o.fails = 0
	} else {
		pause = min(interval, leastPause<<min(o.fails, 16))
		o.fails++
	}
	s.Next = s.Asked.Add(max(leastPause, spread(pause, interval)))
}

// spread moves a pause by up to a tenth, so that gateways which were started together do not ask together. Until the TTL is over a resolver
// would only repeat itself, so it is later if it can be.
func spread(pause, interval time.Duration) time.Duration {
	part := time.Duration(jitter * rand.Float64() * float64(pause))
	if pause+part <= interval {
		return pause + part
	}
	return pause - part
}
