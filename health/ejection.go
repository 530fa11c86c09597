package health

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"icapgate/icap"
)

// Ejection is passive health: what the requests themselves say of the servers. A server that fails too many of them is taken out for a time,
// whatever its checks say. Loops report failures; everything else is looked at by Tick, some times a second. All decisions are functions of what was
// counted and of the time that is passed in, a loop time in ns.

// EjectionConfig says when servers of a pool are ejected, and for how long. The zero value: never.
type EjectionConfig struct {
	Consecutive   int           // failures in a row that eject; 0: off, and with it ejections for connects
	FailureShare  float64       // failures of the requests of a window that eject; 0: off
	LatencyFactor float64       // times the pool's median that the p95 of a window has to be to eject; 0: off
	Window        time.Duration // that FailureShare and LatencyFactor look at
	MinRequests   int           // in a window; with fewer nothing is concluded from it
	Time          time.Duration // that a first ejection lasts; the next ones twice as long each
	MaxTime       time.Duration
	MaxShare      float64 // of the servers that may be ejected at a time
}

// lengthened is how often a server's ejections get longer at most; MaxTime bounds them before, as a rule.
const lengthened = 20

// length is how long an ejection lasts after so many others, at most.
func (c *EjectionConfig) length(level int) int64 {
	if c.Time > c.MaxTime>>level {
		return int64(c.MaxTime)
	}
	return int64(c.Time) << level
}

// has says whether servers are ejected for this reason.
func (c *EjectionConfig) has(r EjectionReason) bool {
	switch r {
	case EjectedConsecutive, EjectedConnect:
		return c.Consecutive > 0
	case EjectedShare:
		return c.FailureShare > 0
	}
	return c.LatencyFactor > 0
}

// EjectionReason says why a server was ejected. It is a metric label.
type EjectionReason uint8

const (
	EjectedConsecutive EjectionReason = iota // failures in a row
	EjectedShare                             // the share of requests that failed
	EjectedLatency                           // much slower than the others
	EjectedConnect                           // it can't be connected to, or its packets vanish: until a check succeeds
	EjectionReasons    = iota
)

func (r EjectionReason) String() string {
	return [...]string{"consecutive", "share", "latency", "connect"}[r]
}

// Failure says how an attempt failed.
type Failure uint8

const (
	FailedRequest Failure = iota // an error, a broken answer, or none
	FailedConnect                // no connection came about
	FailedSilent                 // nothing came back, not even to a connect, and nobody has heard of the server meanwhile
)

// Member is a server of a pool, as an Ejector sees it.
type Member struct {
	Name   string
	Status *Status
	Weight func() int    // 0: an operator gives it nothing
	Ended  func() uint64 // attempts that have ended
}

// fastEnough is a p95 that nobody minds, whatever the other servers take.
const fastEnough = 10 * time.Millisecond

// Ejector decides for the servers of one pool which of them are ejected. Make one per pool; it lives as long as the servers.
type Ejector struct {
	Logger *slog.Logger   // static; nil: none
	Random func() float64 // static; in [0, 1), for the jitter; nil: math/rand

	limit   atomic.Int32 // EjectionConfig.Consecutive
	ejected atomic.Int32 // members that are ejected

	mu        sync.Mutex
	cfg       EjectionConfig // guarded by mu
	members   []*member      // guarded by mu
	sampledAt int64          // guarded by mu
	changes   []change       // to be told when mu is free; guarded by mu
}

// member is what an Ejector knows of a server. Guarded by the Ejector's mu.
type member struct {
	Member
	window  window
	out     bool // ejected
	reason  EjectionReason
	since   int64  // of the present ejection
	until   int64  // likewise: when its time is over
	check   uint64 // number of the latest check that had begun before it
	level   int    // ejections that are not forgotten
	endedAt int64  // of the latest ejection
	count   [EjectionReasons]uint64
}

// change is an ejection that has begun or ended.
type change struct {
	status       *Status
	usable, cold bool
	level        slog.Level
	text         string
	facts        []any
}

// Any says whether a server is ejected. On any goroutine.
func (e *Ejector) Any() bool { return e.ejected.Load() > 0 }

// decide runs f with the lock held, and then tells what it has changed: those who are told may come back with questions.
func (e *Ejector) decide(f func()) {
	e.mu.Lock()
	f()
	changes := e.changes
	e.changes = nil
	e.mu.Unlock()
	for _, c := range changes {
		if e.Logger != nil {
			e.Logger.Log(context.Background(), c.level, c.text, c.facts...)
		}
		c.status.tell(c.usable, c.cold)
	}
}

// SetConfig puts settings in force. Ejections for a reason that is switched off end.
func (e *Ejector) SetConfig(cfg EjectionConfig, now int64) {
	e.decide(func() {
		if cfg.Window != e.cfg.Window {
			for _, m := range e.members {
				m.window = window{}
			}
		}
		e.cfg = cfg
		e.limit.Store(int32(cfg.Consecutive))
		for _, m := range e.members {
			m.time(cfg.LatencyFactor > 0)
			if m.out && !cfg.has(m.reason) {
				e.end(m, now, "such ejections are switched off")
			}
		}
	})
}

// SetMembers says which servers the pool has. What is known of those that stay is kept.
func (e *Ejector) SetMembers(list []Member) {
	e.decide(func() {
		var members []*member
		for _, had := range e.members {
			if had.out && !slices.ContainsFunc(list, func(m Member) bool { return m.Status == had.Status }) {
				e.ejected.Add(-1)
			}
		}
		for _, in := range list {
			m := e.member(in.Status)
			if m == nil {
				m = &member{Member: in}
			}
			m.time(e.cfg.LatencyFactor > 0)
			members = append(members, m)
		}
		e.members = members
	})
}

// time has the time that the server takes counted, or not. A count that begins anew is not to be compared with an earlier one.
func (m *member) time(on bool) {
	if t := &m.Status.timings; on && t.Load() == nil {
		t.Store(new(timings))
		m.window = window{}
	} else if !on {
		t.Store(nil)
	}
}

func (e *Ejector) member(s *Status) *member {
	for _, m := range e.members {
		if m.Status == s {
			return m
		}
	}
	return nil
}

// Failed notes that an attempt has failed which began at a loop time; it is called before the attempt counts as ended. What began before an
// ejection has been the reason for it, and is none for another. Loops call it; it takes the lock only when the server may be ejected.
func (e *Ejector) Failed(s *Status, f Failure, began, now int64) {
	if s.Ejected() || began < s.traffic.fresh.Load() {
		s.Void()
		return
	}
	run, connects := s.failed(f != FailedRequest)
	limit := int(e.limit.Load())
	if limit == 0 || run < limit && f != FailedSilent {
		return
	}
	e.decide(func() {
		m := e.member(s)
		if m == nil || m.out {
			return
		}
		reason := EjectedConsecutive
		if connects || f == FailedSilent {
			reason = EjectedConnect
		}
		if !e.eject(m, reason, now, "failures in a row", run) {
			s.forgetRun() // after so many more it is looked at again
		}
	})
}

// Checked notes that a check has succeeded: the server can be connected to. The check had to begin after the ejection.
func (e *Ejector) Checked(s *Status, check uint64, now int64) {
	if !s.Ejected() {
		return
	}
	e.decide(func() {
		if m := e.member(s); m != nil && m.out && m.reason == EjectedConnect && check > m.check {
			e.end(m, now, "a check succeeds")
		}
	})
}

// Release ends an ejection because an operator says so, and forgets those before.
func (e *Ejector) Release(s *Status, now int64) {
	e.decide(func() {
		m := e.member(s)
		if m == nil {
			return
		}
		if m.out {
			e.end(m, now, "an operator says that the server is ready")
		}
		m.level = 0
	})
}

// Tick ends ejections whose time is over, and looks at the latest window.
func (e *Ejector) Tick(now int64) {
	e.decide(func() {
		for _, m := range e.members {
			if m.out && now >= m.until && !(m.reason == EjectedConnect && m.Status.Unreachable()) {
				e.end(m, now, "its time is over")
			}
		}
		e.endSurplus(now)
		if now-e.sampledAt < int64(e.cfg.Window)/windowParts {
			return
		}
		e.sampledAt = now
		for _, m := range e.members {
			if !m.out {
				m.window.add(m.sample())
			}
		}
		e.judgeShares(now)
		e.judgeLatencies(now)
	})
}

// endSurplus ends ejections when there are more than are allowed of the servers that are left.
func (e *Ejector) endSurplus(now int64) {
	for {
		ready, out := e.shares()
		if len(out) <= e.most(ready) {
			return
		}
		e.end(slices.MinFunc(out, func(a, b *member) int { return cmp.Compare(a.until, b.until) }), now, "too few other servers are left")
	}
}

// shares counts the servers that no operator has taken out, and lists those of them that are ejected.
func (e *Ejector) shares() (ready int, out []*member) {
	for _, m := range e.members {
		if !m.ready() {
			continue
		}
		ready++
		if m.out {
			out = append(out, m)
		}
	}
	return ready, out
}

// most is how many of so many servers may be ejected at a time.
func (e *Ejector) most(ready int) int { return int(e.cfg.MaxShare*float64(ready) + 1e-9) }

func (m *member) ready() bool { return m.Status.Admin() == Ready && m.Weight() > 0 }

// suspect is a server that may have to be ejected.
type suspect struct {
	*member
	how   float64 // bad
	facts []any
}

// ejectWorst ejects suspects, the worst first: there may be more than are allowed.
func (e *Ejector) ejectWorst(list []suspect, r EjectionReason, now int64) {
	slices.SortStableFunc(list, func(a, b suspect) int { return cmp.Compare(b.how, a.how) })
	for _, s := range list {
		e.eject(s.member, r, now, s.facts...)
	}
}

func (e *Ejector) judgeShares(now int64) {
	if e.cfg.FailureShare == 0 {
		return
	}
	var list []suspect
	for _, m := range e.members {
		requests, failures := m.window.outcome()
		if share := float64(failures) / float64(requests); requests > 0 && requests >= e.cfg.MinRequests && share >= e.cfg.FailureShare {
			list = append(list, suspect{m, share, []any{"failures", failures, "requests", requests, "window", e.cfg.Window.String()}})
		}
	}
	e.ejectWorst(list, EjectedShare, now)
}

// judgeLatencies compares each server with the median of all, which in pools of an even number is the lower one: in a pool of two it is the faster server.
func (e *Ejector) judgeLatencies(now int64) {
	if e.cfg.LatencyFactor == 0 {
		return
	}
	var known []suspect
	for _, m := range e.members {
		if took, n := m.window.p95(); n >= e.cfg.MinRequests {
			known = append(known, suspect{m, float64(took), []any{"p95", took.String(), "requests", n}})
		}
	}
	if len(known) < 2 {
		return
	}
	sorted := slices.SortedFunc(slices.Values(known), func(a, b suspect) int { return cmp.Compare(a.how, b.how) })
	median := sorted[(len(sorted)-1)/2].how
	var list []suspect
	for _, s := range known {
		if s.how > e.cfg.LatencyFactor*median && s.how > float64(fastEnough) {
			s.facts = append(s.facts, "median", time.Duration(median).String(), "window", e.cfg.Window.String())
			list = append(list, s)
		}
	}
	e.ejectWorst(list, EjectedLatency, now)
}

// eject takes a server out, if that is allowed. facts are for the log.
func (e *Ejector) eject(m *member, r EjectionReason, now int64, facts ...any) bool {
	if !e.mayEject(m) {
		return false
	}
	m.forget(&e.cfg, now)
	d := e.cfg.length(m.level)
	d -= int64(jitter * float64(d) * e.random())
	m.level, m.window = min(m.level+1, lengthened), window{}
	m.out, m.reason, m.since, m.until, m.check = true, r, now, now+d, m.Status.traffic.checks.Load()
	m.count[r]++
	e.ejected.Add(1)
	facts = append([]any{"server", m.Name, "reason", r.String(), "for", time.Duration(d).Round(time.Millisecond).String(), "ejections", m.level}, facts...)
	e.change(m, slog.LevelWarn, "server is ejected", facts, func(word uint32) uint32 { return word | ejectedBit })
	return true
}

// mayEject says whether a server can be spared: not too many are out already, and another one knows all its paths.
func (e *Ejector) mayEject(m *member) bool {
	if m.out || !m.ready() || m.Status.State() == Down {
		return false
	}
	ready, out := e.shares()
	if len(out)+1 > e.most(ready) {
		return false
	}
	return slices.ContainsFunc(e.members, func(o *member) bool { return o != m && o.ready() && o.Status.replaces(m.Status) })
}

// replaces says whether the server is usable for all paths and methods for which another one is.
func (s *Status) replaces(other *Status) bool {
	for path := range s.Missing() {
		if s.lacks(path) && !other.lacks(path) {
			return false
		}
	}
	if lacking := s.lacking.Load(); lacking != nil {
		for path, methods := range *lacking {
			for m := range icap.Method(icap.NumMethods) {
				if methods.has(m) && !other.Lacks(path, m) {
					return false
				}
			}
		}
	}
	return s.Usable(-1)
}

// forget takes back a step of the length for each ejection after which the server has served for as long as that lasted.
func (m *member) forget(cfg *EjectionConfig, now int64) {
	for served := now - m.endedAt; m.level > 0; m.level-- {
		if served -= cfg.length(m.level - 1); served < 0 {
			return
		}
	}
}

// end has a server get requests again, few at first.
func (e *Ejector) end(m *member, now int64, why string) {
	m.out, m.endedAt = false, now
	m.Status.traffic.fresh.Store(now)
	m.Status.forgetRun()
	e.ejected.Add(-1)
	facts := []any{"server", m.Name, "reason", why, "after", time.Duration(now - m.since).Round(time.Millisecond).String()}
	e.change(m, slog.LevelInfo, "server is not ejected any more", facts, func(word uint32) uint32 { return word &^ ejectedBit })
}

func (e *Ejector) change(m *member, level slog.Level, text string, facts []any, f func(word uint32) uint32) {
	_, is, cold := m.Status.change(f)
	e.changes = append(e.changes, change{m.Status, is, cold, level, text, facts})
}

func (e *Ejector) random() float64 {
	if e.Random != nil {
		return e.Random()
	}
	return rand.Float64()
}

// Ejection is what there is to say about a server's ejections.
type Ejection struct {
	Out    bool // it is ejected now
	Reason EjectionReason
	Since  int64                   // loop time in ns
	Until  int64                   // likewise
	Checks bool                    // it ends with a check that succeeds, and not before
	Count  [EjectionReasons]uint64 // ejections ever, by reason
}

// Of returns the ejections of a server.
func (e *Ejector) Of(s *Status) Ejection {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := e.member(s)
	if m == nil {
		return Ejection{}
	}
	out := Ejection{Out: m.out, Count: m.count}
	if m.out {
		out.Reason, out.Since, out.Until = m.reason, m.since, m.until
		out.Checks = m.reason == EjectedConnect && s.Unreachable()
	}
	return out
}

// windowParts is how often in the time of a window its counters are read.
const windowParts = 10

// window is the counters of a server as they were lately: a ring.
type window struct {
	samples [windowParts + 1]sample
	n       int // samples taken
}

// sample is the counters of a server at one moment.
type sample struct {
	ended, void, failures uint64
	timings               *timingCounts // nil: not counted
}

func (m *member) sample() sample {
	t := &m.Status.traffic
	s := sample{ended: m.Ended(), void: t.void.Load(), failures: t.failures.Load()}
	if known := m.Status.timings.Load(); known != nil {
		s.timings = known.counts()
	}
	return s
}

func (w *window) add(s sample) {
	w.samples[w.n%len(w.samples)] = s
	w.n++
}

// span returns the oldest and the latest sample; without any, both are zero.
func (w *window) span() (from, to *sample) {
	size := len(w.samples)
	return &w.samples[max(w.n-size, 0)%size], &w.samples[max(w.n-1, 0)%size]
}

// outcome returns how many requests have ended that say something of the server, and how many of these have failed.
func (w *window) outcome() (requests, failures int) {
	from, to := w.span()
	failures = int(to.failures - from.failures)
	return max(int(to.ended-from.ended)-int(to.void-from.void), failures), failures
}

func (w *window) p95() (took time.Duration, n int) {
	from, to := w.span()
	if from.timings == nil || to.timings == nil {
		return 0, 0
	}
	return p95(from.timings, to.timings)
}
