package gateway

import (
	"time"

	"icapgate/balancer"
	"icapgate/pool"
)

// line is a transaction's place in the queue of its pool, and what it has waited before. It is part of the transaction. Owned by the loop,
// but for what suits looks at.
type line struct {
	waiting  bool
	waiter   pool.Waiter
	timer    timer // until it may go to more servers, or may wait no longer
	why      pool.Cause
	queuedAt int64 // loop time
	until    int64 // loop time at which it may wait no longer
	since    int64 // loop time that its place in line goes by, 0: it has none since its latest attempt

	// Changed in line by Queue.Update only.
	own   int  // place of the server that it waits for before all others, -1: none
	byKey bool // that is the one of its key, and not that of its session
	reach int  // how many servers it may go to, if that is not its own but that of its key, or 1 if only its own will do

	queueTime int64 // ns, of all waits
}

func (q *line) init(t *transaction) {
	q.timer.fire = func(int64) { t.s.loop.guard(&t.s.conn, t.onQueueTimer) }
	q.waiter.Suits = t.suits
	q.waiter.Grant = func(s *pool.Server, c pool.Conn) {
		l := t.s.loop
		l.post(func() { l.guard(&t.s.conn, func() { t.onGrant(s, c) }) })
	}
}

func (q *line) reset() {
	q.since, q.queueTime = 0, 0
}

// mayWait is how much longer the request may be in the queue, in ns: queue.timeout bounds all of its waits together.
func (t *transaction) mayWait() int64 {
	q := &t.pool.table.cfg.Queue
	if q.Max == 0 {
		return 0
	}
	return int64(q.Timeout) - t.queueTime
}

// mayQueue says whether the request would find room in the queue now.
func (t *transaction) mayQueue() bool { return t.mayWait() > 0 && !t.pool.table.queue.IsFull() }

// queueUp waits for a connection, or answers if that is not possible. own is as for enqueue.
func (t *transaction) queueUp(own int, cause pool.Cause) {
	q := t.pool.table.queue
	switch {
	case t.enqueue(own, cause):
		return
	case t.mayWait() > 0 || t.pool.table.cfg.Queue.Max == 0:
		q.Refused(pool.RefusedMax)
	default:
		q.Refused(pool.RefusedTimeout)
	}
	t.refuse(503, rejectFull, retrySeconds(q.Latest()))
}

// enqueue waits for a connection, before all others to the server at the place own, -1: to any of them. false: it may not wait, or the line is full.
func (t *transaction) enqueue(own int, cause pool.Cause) bool {
	l := t.s.loop
	p := t.pool.table
	wait := t.mayWait()
	if wait <= 0 {
		return false
	}
	if t.since == 0 {
		t.since = l.now
	}
	t.own, t.reach = own, 1
	place := pool.Wait{Since: t.since, Cause: cause}
	if own >= 0 {
		place.Own = p.servers[own]
	}
	if !p.queue.Push(&t.waiter, place) {
		return false
	}
	t.waiting, t.why, t.queuedAt, t.until = true, cause, l.now, l.now+wait
	t.setQueueTimer()
	if own >= 0 {
		l.gw.offer(place.Own) // a slot may have come free before the push
		return true
	}
	l.gw.offerAll(p)
	return true
}

// setQueueTimer sets the time at which the request may wait no longer or, if it waits for a server of its own, at which it may go to one more. That
// is after half of the time that is left, again and again: so it waits for its own for half of queue.timeout, and comes to try many in the end.
func (t *transaction) setQueueTimer() {
	l := t.s.loop
	at := t.until
	if half := (t.until - l.now) / 2; t.own >= 0 && (t.byKey || t.reach == 1) && half >= tick {
		at = l.now + half
	}
	l.wheel.set(&t.timer, at)
}

func (t *transaction) onQueueTimer() {
	switch l := t.s.loop; {
	case !t.waiting:
	case l.now >= t.until:
		q := t.pool.table.queue
		t.leaveQueue()
		t.s.own.forget(q) // the next request of the session need not wait for the same one again
		q.SetLatest(int64(t.pool.table.cfg.Queue.Timeout))
		q.Refused(pool.RefusedTimeout)
		t.refuse(503, rejectFull, retrySeconds(q.Latest()))
	default:
		if t.pool.table.queue.Update(&t.waiter, func() { t.reach++ }) {
			t.setQueueTimer()
			l.gw.offerAll(t.pool.table)
		}
	}
}

// onGrant is called on the loop when the queue has given the waiter a slot of the server, with a connection or to dial with. While it was on
// its way the request may have gone, and another one of the session may be in line.
func (t *transaction) onGrant(s *pool.Server, conn pool.Conn) {
	l := t.s.loop
	c, _ := conn.(*serverConn)
	mine := t.waiting && !t.pool.table.queue.Has(&t.waiter) // otherwise it was for an earlier request, and this one's turn is still to come
	i := t.pool.table.index(s)
	fits := mine && t.waitsFor(s, l.now) && !t.silent.has(i)
	if !fits {
		if c != nil {
			c.discard()
		} else {
			s.Release()
		}
		if !mine {
			return
		}
	}
	t.endWait()
	switch {
	case !fits:
		t.next()
	case c == nil:
		t.granted()
		t.dial(i)
	case !l.adoptServerConn(c, t.pool, t.pool.shards[i]):
		t.next()
	case t.freshOnly || c.isStale(t.route.onlyOnce):
		c.shut(reasonNotReusable)
		t.next()
	default:
		t.granted()
		t.join(c)
	}
}

// granted notes that the wait has come to a good end.
func (t *transaction) granted() { t.pool.table.queue.SetLatest(t.queueTime) }

func (t *transaction) endWait() {
	l := t.s.loop
	t.waiting = false
	t.queueTime += l.now - t.queuedAt
	t.pool.table.queue.Waited(t.why, l.now-t.queuedAt)
	l.wheel.stop(&t.timer)
}

// leaveQueue takes the transaction out of the queue. When its grant is already on its way, onGrant gives the slot back.
func (t *transaction) leaveQueue() {
	if t.waiting {
		t.pool.table.queue.Remove(&t.waiter)
		t.endWait()
	}
}

// retrySeconds is a time in ns as Retry-After says it: in whole seconds, from 1 to 30.
func retrySeconds(ns int64) int {
	return int(min(max((ns+int64(time.Second)-1)/int64(time.Second), 1), 30))
}

// suits is pool.Waiter.Suits: how well s would serve the request in line now. A request with a server of its own goes to that, as long as it
// is of use at all and has less than the bound on the load (balancer.HasRoom), itself not counted.
//
// With balance: hash that is the server that the Maglev gives its key, be it at its cap: one beyond its bound leads to the next. After half of
// queue.timeout the next one is Spare as well, and then more; see setQueueTimer. With affinity: session, any server will do in these cases.
func (t *transaction) suits(s *pool.Server, scan uint64) pool.Fit {
	p := t.pool.table
	v := p.survey
	v.begin(p, s, scan, t.s.loop.clock)
	sel := v.selection(p, t.need(), t.tried)
	switch {
	case !t.goesTo(v.place, sel, v.now):
		return pool.Unfit
	case t.own < 0 || t.own == v.place:
		return pool.Good
	}
	targets := v.load(p, t.need(), t.tried, sel)
	targets[t.own].InFlight-- // its own wait
	defer func() { targets[t.own].InFlight++ }()
	if !t.byKey {
		switch {
		case !targets[t.own].Usable || !balancer.HasRoom(targets, t.own):
			return pool.Good
		case t.reach > 1:
			return pool.Spare
		}
		return pool.Unfit
	}
	fit := pool.Good
	for range t.reach {
		i := p.hash.maglev.Pick(t.key, targets)
		if i == v.place || i < 0 {
			return fit
		}
		if t.reach > 1 {
			targets[i].Usable, fit = false, pool.Spare
			v.reload()
		}
	}
	return pool.Unfit
}
