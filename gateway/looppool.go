package gateway

import (
	"bytes"
	"cmp"
	"math"
	"slices"
	"time"

	"icapgate/balancer"
	"icapgate/health"
	"icapgate/icap"
	"icapgate/pool"
)

// loopPool is one loop's side of a pool: its idle connections and its places in the balancing. Owned by the loop; made
// anew for each table, except for the shards, which stay with their server.
type loopPool struct {
	table        *poolTable
	shards       []*shard          // parallel to table.servers
	targets      []balancer.Target // scratch of pick
	policies     []balancer.Policy // by route and method, made when first used
	measures     bool              // the policy wants to know latencies
	sticks       bool              // affinity: session
	idle         pool.IdleLimits
	slowStart    int64 // ns
	longAfter    int64 // ns, 0: no stream is long
	replayBuffer int   // bytes
	noPreviews   bool  // preview: off
}

// shard is one loop's side of a server, as long as any table names it.
type shard struct {
	pool.Shard[*serverConn]
	latencies  [icap.NumMethods]balancer.Latency // a REQMOD and a RESPMOD are different work
	connecting []*serverConn
}

// currentTable loads the table for one transaction, and lets go of what the loop had made for an earlier one.
func (l *loop) currentTable() *table {
	t := l.gw.table.Load()
	if t == l.table {
		return t
	}
	l.table = t
	l.stats.forget(t, l.now)
	old := l.pools
	l.pools = make(map[*poolTable]*loopPool, len(t.pools))
	shards := l.shards
	l.shards = make(map[*pool.Server]*shard)
	for _, p := range t.pools {
		lp := old[p]
		if lp == nil {
			lp = newLoopPool(p, len(t.routes))
			for _, s := range p.servers {
				h := shards[s]
				if h == nil {
					h = new(shard)
					h.Server = s
				}
				lp.shards = append(lp.shards, h)
			}
		}
		l.pools[p] = lp
		for _, h := range lp.shards {
			l.shards[h.Server] = h
		}
	}
	for s, h := range shards {
		if l.shards[s] == nil { // no table names it any more
			dropIdle(h, reasonRetired)
		}
	}
	return t
}

// dropIdle closes the idle connections to a server.
func (l *loop) dropIdle(s *pool.Server, r closeReason) {
	if h := l.shards[s]; h != nil {
		dropIdle(h, r)
	}
}

// trim closes idle connections to a server that are more than its cap allows, those first that have been idle for the longest.
func (l *loop) trim(s *pool.Server) {
	h := l.shards[s]
	for h != nil && s.OverCap() {
		c, ok := h.Oldest()
		if !ok {
			return
		}
		c.shut(reasonOverCap)
	}
}

func dropIdle(h *shard, r closeReason) {
	for c, ok := h.Get(); ok; c, ok = h.Get() {
		c.shut(r)
	}
}

// rerouteWaiting has the requests that wait for a connection follow the table in force: it may have servers that can take them. Those whose service is
// gone wait on.
func (l *loop) rerouteWaiting() {
	var waiting []*transaction
	for s := range l.sessions {
		if t := &s.tx; t.waiting && l.pools[t.pool.table] == nil {
			waiting = append(waiting, t)
		}
	}
	slices.SortFunc(waiting, func(a, b *transaction) int { return cmp.Compare(a.queuedAt, b.queuedAt) })
	for _, t := range waiting {
		if r := t.routeInForce(); r != nil {
			t.leaveQueue()
			t.reroute(r)
			l.guard(&t.s.conn, t.next)
		}
	}
}

// follow has a request whose attempt has failed go on by the table in force, if its service is still there: the servers of its beginning may be gone.
func (t *transaction) follow() {
	if t.held == nil {
		return
	}
	l := t.s.loop
	l.currentTable() // the loop may not have been told of it yet
	if l.pools[t.pool.table] != nil {
		return
	}
	if r := t.routeInForce(); r != nil {
		t.reroute(r)
	}
}

// routeInForce is the route that a held request would have if it came now, nil: none, or its preview is just coming in and servers there can't do previews.
func (t *transaction) routeInForce() *route {
	path, _, _ := bytes.Cut(t.held.B[:t.targetEnd], []byte("?"))
	r, _ := t.s.loop.table.match(t.s.entrance, path, t.method)
	coming := t.s.request == requestBody && !t.continued
	if r != nil && t.preview >= 0 && coming && t.s.loop.poolFor(r.pool).noPreviews {
		return nil
	}
	return r
}

// reroute puts a route of the table in force in the place of the request's own. What is held could go to any server.
func (t *transaction) reroute(r *route) {
	was := t.pool.table
	path, _, _ := bytes.Cut(t.held.B[:t.targetEnd], []byte("?"))
	t.route, t.service, t.pool = r, t.s.loop.table.serviceOf(t.s.entrance, path, r), t.s.loop.poolFor(r.pool)
	if t.preview >= 0 && t.pool.noPreviews {
		t.unpreview()
	}
	t.tried, t.silent = r.pool.places(was, t.tried), r.pool.places(was, t.silent)
	t.setKey(t.reparse())
	t.setDecision()
	t.setLimits()
}

// places are those servers in p that have some places in was.
func (p *poolTable) places(was *poolTable, of bitset) (set bitset) {
	for k, s := range was.servers {
		if of.has(k) && p.has(s) {
			set.set(p.index(s))
		}
	}
	return set
}

func (l *loop) poolFor(p *poolTable) *loopPool { return l.pools[p] }

func newLoopPool(p *poolTable, routes int) *loopPool {
	return &loopPool{
		table:    p,
		targets:  make([]balancer.Target, len(p.servers)),
		policies: make([]balancer.Policy, routes*icap.NumMethods),
		measures: balancer.Measures(p.cfg.Balance),
		sticks:   p.sticks,
		idle: pool.IdleLimits{
			Timeout: time.Duration(p.cfg.Idle.Timeout), MaxAge: time.Duration(p.cfg.Idle.MaxAge), MaxRequests: p.cfg.Idle.MaxRequests,
		},
		slowStart:    int64(p.cfg.SlowStart),
		longAfter:    int64(p.cfg.LongStreams.After),
		replayBuffer: int(p.cfg.Retry.ReplayBuffer),
		noPreviews:   p.endsPreviews(),
	}
}

// pickResult is what pick has found.
type pickResult uint8

const (
	pickedServer pickResult = iota
	allTried                // every usable server has failed for this request already
	ownBusy                 // the server that the request would rather wait for has as many connections as it allows, others have not
	allBusy                 // every usable server has
	allFull                 // every usable server has said 503 a moment ago
	noneYet                 // no server is usable, but some have not been checked yet
	noneUsable
)

// pick chooses a server for the next attempt among those that are usable, not full, and have a connection to give. Doubted ones are only for want of
// others, or where the request can't wait for these. With ownBusy and allBusy it is the one to wait for before all others, -1: none.
func (p *loopPool) pick(t *transaction, now int64) (int, pickResult) {
	for tries := 1; ; tries++ {
		sel := p.table.selection(t.need(), t.tried)
		place, found := p.pickFrom(t, sel, true, now)
		if found != noneUsable || sel.tier == math.MaxUint8 || tries == 10 {
			return place, found
		}
		// The selection has found something in its tiers, which has gone down since then: look again.
	}
}

// pickFrom picks among the selected servers, doubted ones only if it is not picky.
func (p *loopPool) pickFrom(t *transaction, sel selection, picky bool, now int64) (int, pickResult) {
	waits := p.table.hasOwn() && t.mayQueue()
	var usable, unknown, tried, full, busy, doubted int
	for i, s := range p.table.servers {
		g := &p.targets[i]
		g.Weight, g.InFlight, g.Usable, g.Busy = s.Share(now, p.slowStart), int32(s.Load()), false, false
		if g.Weight == 0 || p.table.tiers[i] > sel.tier {
			continue
		}
		if !sel.allows(s, t.need()) {
			if s.Health.State() == health.Checking && s.Health.Admin() == health.Ready {
				unknown++
			}
			continue
		}
		usable++
		switch {
		case t.tried.has(i):
			tried++
		case s.Full(now):
			full++
		case p.shards[i].Len() == 0 && !s.HasSlot():
			busy++
			g.Busy = waits && !s.Health.Doubted()
		case picky && s.Health.Doubted():
			doubted++
		default:
			g.Usable = true
			if p.measures {
				known := &p.shards[i].latencies[t.method]
				g.Latency, g.Running = known.At(now), known.Running()
			}
		}
	}
	free := usable > tried+full+busy+doubted
	own := -1
	if free || busy > 0 {
		own = p.ownServer(t)
	}
	switch {
	case usable == 0 && unknown > 0:
		return -1, noneYet
	case usable == 0:
		return -1, noneUsable
	case own >= 0 && p.targets[own].Usable:
		return own, pickedServer
	case own >= 0 && free:
		return own, ownBusy
	case free:
		return p.policy(t).Pick(p.targets), pickedServer
	case busy > 0 && (doubted == 0 || t.mayQueue()):
		return own, allBusy
	case full > 0 && (doubted == 0 || t.mayQueue() && p.fullFor(t, true, now) < t.mayWait()):
		return -1, allFull
	case doubted > 0:
		return p.pickFrom(t, sel, false, now)
	}
	return -1, allTried
}

// policy returns the balancing state for the transaction's route and method. It is kept per method because a client such as Squid
// alternates REQMOD and RESPMOD: over two servers one common round robin would send each method to one of them only.
func (p *loopPool) policy(t *transaction) balancer.Policy {
	at := &p.policies[t.route.index*icap.NumMethods+int(t.method)]
	if *at == nil {
		policy, err := balancer.New(p.table.cfg.Balance)
		if err != nil {
			panic("BUG: gateway: " + err.Error()) // the configuration has been validated
		}
		*at = policy
	}
	return *at
}

// othersUsable says whether a server other than not could take the request now, and most likely answer it.
func (p *loopPool) othersUsable(t *transaction, not *pool.Server) bool {
	sel := p.table.selection(t.need(), t.tried)
	for i, s := range p.table.servers {
		if s != not && !t.tried.has(i) && p.table.takes(i, t.need(), sel) && !s.Full(t.s.loop.now) && !s.Health.Doubted() {
			return true
		}
	}
	return false
}

// waitsFor says whether a request that is or was in the queue can go to s now.
func (t *transaction) waitsFor(s *pool.Server, now int64) bool {
	p := t.pool.table
	return t.goesTo(p.index(s), p.selection(t.need(), t.tried), now)
}

// goesTo is waitsFor for the server at place i, -1: it is not in the pool. To one of the tried servers, or a doubted one, it goes only if no other takes
// it any more: it is the others that it waits for, be they doubted, rather than one that has not answered to its connect. On any goroutine.
func (t *transaction) goesTo(i int, sel selection, now int64) bool {
	p, n := t.pool.table, t.need()
	if i < 0 || !p.takes(i, n, sel) || p.servers[i].Full(now) {
		return false
	}
	if t.tried.has(i) || p.servers[i].Health.Doubted() {
		for k, other := range p.servers {
			if !t.tried.has(k) && (t.silent.has(i) || !other.Health.Doubted()) && p.takes(k, n, sel) {
				return false
			}
		}
	}
	return true
}

// fullFor is the time in ns until the first of the usable servers, but for those that the request has failed on, is no longer skipped
// because it said 503. Doubted ones count only if it is not picky.
func (p *loopPool) fullFor(t *transaction, picky bool, now int64) int64 {
	first, sel := int64(math.MaxInt64), p.table.selection(t.need(), t.tried)
	for i, s := range p.table.servers {
		if !t.tried.has(i) && !(picky && s.Health.Doubted()) && p.table.takes(i, t.need(), sel) {
			first = min(first, max(s.FullUntil()-now, 0))
		}
	}
	return first
}

// markFull has a server that said 503 skipped until then. Who waits for it gets its connections afterwards, but for those that would rather
// have gone to it than to others: these are offered the others now.
func (l *loop) markFull(p *poolTable, s *pool.Server, until int64) {
	s.MarkFull(until)
	if p.hasOwn() {
		l.gw.offerAll(p)
	}
	if !slices.Contains(l.full, s) {
		l.full = append(l.full, s)
	}
	if at := l.fullTimer.deadline; at == 0 || until < at {
		l.wheel.set(&l.fullTimer, until)
	}
}

// onNotFull offers the servers that are not skipped any more to those who wait.
func (l *loop) onNotFull(now int64) {
	full, next := l.full, int64(0)
	l.full = nil
	for _, s := range full {
		if until := s.FullUntil(); now < until {
			l.full = append(l.full, s)
			if next == 0 || until < next {
				next = until
			}
			continue
		}
		l.gw.offer(s)
	}
	l.wheel.set(&l.fullTimer, next)
}

// index is the server's place in the pool, -1: it is not in it.
func (p *poolTable) index(s *pool.Server) int { return slices.Index(p.servers, s) }

func (p *poolTable) has(s *pool.Server) bool { return p.index(s) >= 0 }

// reclaim gives idle connections of this loop to waiters of whatever loop.
func (l *loop) reclaim(s *pool.Server) {
	if h := l.shards[s]; h != nil && l.handOver(h) {
		l.parked = append(l.parked, h)
	}
}
