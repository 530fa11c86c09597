package gateway

import (
	"icapgate/icap"
	"icapgate/pool"
)

// This file bounds what one request may have of a server: bytes of its body (max_body), time (max_duration) and, once it has been there for long
// (long_streams), a connection that others need. What becomes of a request beyond a limit is said by on_limit of its service. OPTIONS have no such limits.

// bounds are what a transaction's limits are now. Owned by the loop.
type bounds struct {
	maxBody uint64          // bytes of the body that may go to a server, 0: no limit
	until   int64           // loop time at which max_duration is over, 0: no limit
	longAt  int64           // loop time at which the running attempt will be long, 0: it will not, or is
	long    bool            // it is
	place   pool.LongStream // among those of its server
	timer   timer           // of until and longAt
}

// setLimits puts the limits of the request's service in force.
func (t *transaction) setLimits() {
	if t.method == icap.MethodOptions {
		return
	}
	t.bounds.maxBody, t.bounds.until = t.route.maxBody, 0
	if t.route.maxDuration > 0 {
		t.bounds.until = t.began + t.route.maxDuration
		t.setBoundsTimer()
	}
}

// beginBounds is called when an attempt begins.
func (t *transaction) beginBounds() {
	if after := t.pool.longAfter; after > 0 && t.method != icap.MethodOptions {
		t.bounds.longAt = t.s.loop.now + after
		t.setBoundsTimer()
	}
}

// endBounds is called when an attempt on the server has ended.
func (t *transaction) endBounds(s *pool.Server) {
	b := &t.bounds
	b.longAt = 0
	if b.long {
		b.long = false
		s.RemoveLong(&b.place)
	}
}

func (t *transaction) setBoundsTimer() {
	b := &t.bounds
	due := b.until
	if due == 0 || b.longAt > 0 && b.longAt < due {
		due = b.longAt
	}
	if due == 0 {
		return
	}
	if b.timer.fire == nil {
		b.timer.fire = func(int64) { t.s.loop.guard(&t.s.conn, t.onBoundsTimer) }
	}
	t.s.loop.wheel.set(&b.timer, due)
}

// onBoundsTimer is called when a limit of time may have been reached.
func (t *transaction) onBoundsTimer() {
	b, now := &t.bounds, t.s.loop.now
	if t.active && b.until > 0 && now >= b.until {
		b.until = 0
		t.limit(rejectDuration)
	}
	if t.active && b.longAt > 0 && now >= b.longAt {
		b.longAt = 0
		t.becomeLong()
	}
	if t.active {
		t.setBoundsTimer()
	}
}

// becomeLong takes a place among the long streams of the server. The one that has been there for the longest may have to go for it.
func (t *transaction) becomeLong() {
	b, l := &t.bounds, t.s.loop
	if b.place.Yield == nil {
		b.place.Yield = func() { l.post(func() { l.guard(&t.s.conn, t.onYield) }) }
	}
	b.long = true
	t.srv.server.AddLong(&b.place)
}

// onYield is called when the request, or an earlier one of the session, is to give its connection back.
func (t *transaction) onYield() {
	if t.bounds.long && t.srv.server.Yields(&t.bounds.place) {
		t.limit(rejectLong)
	}
}

// outgrows says, once, that the body is larger than max_body: with the bytes that have come, or with those that the chunk has still to bring. So nothing beyond
// the limit is spliced either.
func (t *transaction) outgrows() bool {
	if t.payloadIn+t.s.body.Payload()+t.s.body.Rest() <= t.bounds.maxBody {
		return false
	}
	t.bounds.maxBody = 0
	return true
}

// limit decides about a request that is beyond a limit. Its server is left, in the middle of the body maybe, so that connection is closed; it is nothing that the
// server has done.
func (t *transaction) limit(why rejectReason) {
	l, c := t.s.loop, t.srv
	switch {
	case t.responseDone: // it has been judged: no more than the rest of the request is lost
		if c != nil {
			t.discard = true
			t.dropHeld()
			c.shut(reasonLimit)
			l.runLater(&t.s.conn) // its reading may have stopped for the server
		}
	case t.echoing: // no server gets any more of it
	case t.answered && t.route.allows[why] && why != rejectLong && !t.s.closed: // the server has decided, and goes on: it need not see all for that
		t.end, t.passed = allowedNames[why], true
		l.stats.allowed[why][allowedBegun].Add(1)
		t.warnAllowed(why)
	case t.answered:
		t.countRefused(why)
		t.warnLimit(why)
		l.stats.rejects[why].Add(1)
		t.s.flush()
		t.cancel(reasonLimit, why.String())
		t.s.finishClose(reasonLimit) // so the client can tell that this was not all: an end is never invented
	default:
		status := 502 // its server, or the queue, takes too long
		if why == rejectBody || !t.waiting && t.s.request == requestBody {
			status = 413
		}
		t.leaveQueue()
		if c != nil {
			c.shut(reasonLimit)
		}
		if !t.mayAllow(why) {
			t.warnLimit(why)
		}
		t.refuse(status, why, 0)
	}
}

// warnLimit tells the log of a request that ends because of a limit.
func (t *transaction) warnLimit(why rejectReason) {
	l := t.s.loop
	if n, ok := l.gw.limitLog.next(); ok {
		l.log.Warn("requests are beyond a limit, and rejected", "service", t.route.name, "pool", t.pool.table.name, "reason", why.String(), "client", t.s.client, "times", n)
	}
}
