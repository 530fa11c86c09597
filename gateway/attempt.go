package gateway

import (
	"time"

	"icapgate/pool"
)

// attempt is one try of a transaction on one server, and what the tries before it leave behind. It is part of the
// transaction. Owned by the loop.
type attempt struct {
	srv             *serverConn // connection of the running attempt; nil: none
	sent            int         // held.B[:sent] has been given to srv
	lineSent        bool        // the request line has
	serverContinued bool        // this server has sent its 100

	attempts   int          // begun so far
	lastServer *pool.Server // of the latest attempt, nil: there was none
	tried      bitset       // places in the pool of the servers that have failed for this request
	silent     bitset       // those of them that have not answered to a connect: it does not go there again
	freshOnly  bool         // a reused connection has failed: open a new one
	crashed    bool         // a fresh connection ended without an answer once
	mayHaveAll bool         // the server of the latest attempt may have got the whole request
	again      bool         // the next attempt is another one, because of cause
	cause      failure
	failed     string // why the latest attempt that failed did, for the access log; "": none

	line // in the pool's queue; see waiting.go

	connectTime int64 // ns, of all attempts
	firstByte   int64 // loop time of the answer's head, 0: none yet
}

// bitset marks up to 256 servers of a pool; those beyond are never marked.
type bitset [4]uint64

func (b *bitset) set(i int) {
	if i < 256 {
		b[i>>6] |= 1 << (i & 63)
	}
}
func (b *bitset) has(i int) bool { return i < 256 && b[i>>6]&(1<<(i&63)) != 0 }

func (a *attempt) reset() {
	a.srv, a.lineSent, a.serverContinued = nil, false, false
	a.lastServer = nil
	a.attempts, a.tried, a.silent, a.freshOnly, a.crashed, a.mayHaveAll, a.again = 0, bitset{}, bitset{}, false, false, false, false
	a.failed = ""
	a.connectTime, a.firstByte = 0, 0
	a.line.reset()
}

// need is what the request needs of a server.
func (t *transaction) need() need { return need{t.route.checkPath, t.method} }

// next picks a server and begins an attempt on it; without a server it queues or answers.
func (t *transaction) next() {
	l := t.s.loop
	for {
		i, found := t.pool.pick(t, l.now)
		switch found {
		case pickedServer:
			if t.start(i) {
				return
			}
			continue // another loop took the slot meanwhile: look again
		case allTried:
			if t.tried != t.silent {
				t.tried = t.silent // better the same server again than none
				continue
			}
			t.refuse(503, rejectNoServer, 1)
		case ownBusy:
			if !t.enqueue(i, pool.CauseOwn) {
				continue // the line has become full: another server, then
			}
		case allBusy:
			t.queueUp(i, pool.CauseCap)
		case noneYet:
			t.queueUp(-1, pool.CauseHealth)
		case allFull:
			wait := t.pool.fullFor(t, false, l.now)
			switch {
			case wait < t.mayWait():
				t.queueUp(-1, pool.CauseFull)
			case t.tried != t.silent:
				t.tried = t.silent
				continue
			default:
				t.pool.table.queue.Refused(pool.RefusedFull)
				t.refuse(503, rejectFull, retrySeconds(wait))
			}
		case noneUsable:
			for _, s := range t.pool.table.servers {
				s.Expedite() // every second counts in which the first of them is back and nobody knows
			}
			t.refuse(503, rejectNoServer, retrySeconds(int64(t.pool.table.cfg.Health.Interval)))
		}
		return
	}
}

// start begins an attempt on server i with an idle connection or a new one; false: it has no slot left.
func (t *transaction) start(i int) bool {
	shard := t.pool.shards[i]
	now := t.s.loop.now
	for !t.freshOnly {
		c, ok := shard.Get()
		if !ok {
			break
		}
		if !c.usable(&t.pool.idle, now) {
			c.shut(reasonNotReusable)
			continue
		}
		if c.isStale(t.route.onlyOnce) {
			c.shut(reasonUnexpected)
			continue
		}
		t.join(c)
		return true
	}
	if !shard.Server.Acquire() {
		c, ok := shard.Get() // an idle connection of ours, which freshOnly does not want, may hold the slot
		if !ok {
			return false
		}
		c.shut(reasonNotReusable)
		if !shard.Server.Acquire() {
			return false // a waiter was first
		}
	}
	t.dial(i)
	return true
}

// lookAfter is how long a connection may have been idle, in ns, to be used without a look whether the server has said something or
// closed it in this very moment.
const lookAfter = int64(time.Second)

// isStale says whether an idle connection has something to say, or has come to its end. It looks when that has not been used for a while, or always
// if there will be no second attempt should it prove to be ended.
func (c *serverConn) isStale(always bool) bool {
	if !always && c.loop.now-c.use.LastUse <= lookAfter {
		return false
	}
	bytes, ended := c.peek()
	return bytes || ended
}

// dial begins an attempt on a new connection to server i, whose slot has been acquired.
func (t *transaction) dial(i int) {
	l := t.s.loop
	c := l.newServerConn(t.pool, t.pool.shards[i])
	t.join(c)
	c.connect()
}

// join makes c the attempt's connection. When it is connected already, the request goes out at once.
func (t *transaction) join(c *serverConn) {
	t.srv, c.tx, t.lastServer, t.since = c, t, c.server, 0
	if t.pool.sticks {
		t.s.own.set(c.server)
	}
	t.sent, t.lineSent, t.serverContinued, t.asked = t.payload, false, false, false
	t.spilling.begin()
	t.beginBounds()
	t.attempts++
	t.mayHaveAll = false // of the one before
	if t.again {
		t.again = false
		t.s.loop.stats.replays[t.cause].Add(1)
	}
	c.begin()
	if c.state == serverReady {
		c.state = serverBusy
		t.onConnected()
	}
}

// onConnected is called when the attempt's connection takes bytes.
func (t *transaction) onConnected() {
	t.pump()
	t.endPreview()
	if !t.requestDone && t.s.request == requestBody {
		t.s.loop.runLater(&t.s.conn)
	}
}

// streaming says whether bytes of the body can go straight to the server.
func (t *transaction) streaming() bool {
	return t.srv != nil && t.srv.state == serverBusy && (t.preview < 0 || t.serverContinued) && t.caughtUp()
}

// pump gives the server what is held and has not been sent to it.
func (t *transaction) pump() {
	c := t.srv
	if c == nil || c.state != serverBusy {
		return
	}
	if t.held != nil {
		end := t.sendEnd()
		if !t.lineSent {
			t.lineSent = true
			t.sendLine(c, end)
		}
		if t.sent < end {
			c.send(t.held.B[t.sent:end])
			t.sent = end
		}
		t.resend()
	}
	c.endRound()
}

// sendLine sends the request line and Host and, when it is small, all that follows with them.
func (t *transaction) sendLine(c *serverConn, end int) {
	l := t.s.loop
	b := t.held.B
	b = b[:len(b):len(b)]
	authority, host := c.server.Authority, c.server.Authority
	line := append(l.line[:0], methodNames[t.method]...)
	line = append(line, " icap://"...)
	if t.route.preserveHost {
		line = append(line, b[t.targetEnd:t.authEnd]...)
	} else {
		line = append(line, authority...)
	}
	line = t.route.appendTarget(line, b[:t.targetEnd])
	line = append(line, " ICAP/1.0\r\nHost: "...)
	if t.route.preserveHost {
		line = append(line, b[t.authEnd:t.payload]...)
	} else {
		line = append(line, host...)
	}
	line = append(line, "\r\n"...)
	if !c.pool.table.cfg.Reuse {
		line = append(line, "Connection: close\r\n"...)
	}
	if t.wasAllPreview() {
		line = append(line, "Allow: 204\r\n"...)
	}
	if t.idHeader != "" {
		line = append(line, t.idHeader...)
		line = append(line, ": "...)
		line = l.transactionID(t).Append(line)
		line = append(line, "\r\n"...)
	}
	if end-t.payload < directWrite {
		line = append(line, b[t.payload:end]...)
		t.sent = end
	}
	l.line = line
	c.send(line)
}

// failure says how an attempt ended without an answer that could be relayed.
type failure uint8

const (
	failConnect    failure = iota // no connection came about: nothing was sent
	failNoAnswer                  // the connection ended before the first byte of an answer
	failVanished                  // the server vanished before it had a byte of the request
	failFull                      // ICAP 503: the server is full, not dead
	failAnswer                    // a broken or illegal answer, or one that ended in its head
	failTimeout                   // a timeout while sending or waiting: the server may be at work on it
	failOverloaded                // this side had no descriptor to connect with: no fault of any server
	failStatus                    // a status of retry.on other than 503: the server can't do it now
	failSpill                     // the request can't be read back from its file: no fault of any server either
)

// onFailure decides what becomes of the request after a failed attempt. Its connection is already gone; reused and begun say
// whether that had served before and whether bytes of an answer came.
func (t *transaction) onFailure(f failure, server *pool.Server, reused, begun bool) {
	if !t.responseDone {
		t.failed = failureNames[f]
	}
	if f != failOverloaded && f != failSpill {
		server.Expedite()
	}
	if !t.answered {
		t.follow()
	}
	switch {
	case t.responseDone: // only the rest of the request has nowhere to go
		t.discard = true
		t.dropHeld()
		t.finishIfDone()
		t.s.loop.runLater(&t.s.conn)
	case t.answered: // the client has begun to get an answer: its end is never invented
		t.s.flush()
		t.s.gone(reasonTruncated)
	case t.retryable(f, reused, begun):
		t.retry(f, server)
	case f == failOverloaded || f == failSpill:
		t.refuse(503, rejectOverloaded, 1)
	case f == failConnect:
		t.refuse(503, rejectNoServer, 1) // its check has been brought forward
	case f == failTimeout:
		t.refuse(502, rejectLate, 0)
	default:
		t.refuse(502, rejectServerFailed, 0)
	}
}

// onServerFault handles an answer by which a server says that the fault is its own, of which the head only has been read; false: there is nothing
// better than to relay it.
func (t *transaction) onServerFault(status int) bool {
	c, f := t.srv, failStatus
	if isFull(status) {
		f = failFull
	}
	t.follow()
	t.mayHaveAll = t.route.onlyOnce && c.mayHaveAll()
	if t.pool.table.retryOn.status(status) && t.retryable(f, c.reused, true) {
		c.shut(reasonNotReusable)
		t.retry(f, c.server)
		return true
	}
	why := rejectServerFailed
	if f == failFull {
		why = rejectFull
	}
	if !t.mayAllow(why) {
		return false
	}
	c.shut(reasonNotReusable)
	t.pass(why)
	return true
}

func (t *transaction) retry(f failure, server *pool.Server) {
	if i := t.pool.table.index(server); i >= 0 && f != failFull { // full, not dead: it is skipped for its time only
		t.tried.set(i)
	}
	t.again, t.cause, t.failed = true, f, failureNames[f]
	t.next()
	t.s.loop.runLater(&t.s.conn) // its reading may have stopped for the server that is gone
}

// retryable is the table of what is sent again, and to how many servers. Where nothing is to be done twice, a server that has vanished without
// having acknowledged a byte has not got it, and one that says 503 has not done it.
func (t *transaction) retryable(f failure, reused, begun bool) bool {
	p := t.pool.table
	attempts, now := p.cfg.Retry.Attempts, t.s.loop.now
	if t.held == nil || t.route.onlyOnce && t.mayHaveAll && f != failFull && f != failVanished {
		return false
	}
	switch f {
	case failConnect, failVanished: // the server has nothing of it: each server once
		return p.retryOn.connect && t.attempts <= max(attempts, len(p.servers)-1)
	case failFull, failStatus:
		others := t.pool.othersUsable(t, t.srv.server) || f == failFull && t.pool.fullFor(t, false, now) < t.mayWait()
		return t.attempts <= attempts && others && p.budget.Take(now)
	}
	switch {
	case begun || t.attempts > attempts:
		return false
	case f == failNoAnswer && p.retryOn.reset:
		t.freshOnly = t.freshOnly || reused
		if reused && !t.mayHaveAll { // the usual race with a server that closes idle connections
			return true
		}
		// It may have died of this very request: a second server, not a third.
		if t.crashed {
			return false
		}
		t.crashed = true
		return reused || p.budget.Take(now)
	case f == failTimeout && p.retryOn.timeout:
		return p.budget.Take(now)
	}
	return false
}

// sentAll says whether the running attempt's connection has been given the whole request.
func (t *transaction) sentAll() bool {
	return t.lineSent && t.requestDone && (t.held == nil || t.sent == len(t.held.B) && t.caughtUp())
}

// leaveServer ends the attempt after a complete answer and gives the connection back.
func (t *transaction) leaveServer() {
	c := t.srv
	t.srv = nil
	c.finish(t.lineSent && (t.held == nil || t.sent == t.sendEnd() && t.caughtUp()))
}

// previewOnly says whether the server gets no more than the preview, which is in, until it says 100.
func (t *transaction) previewOnly() bool { return t.previewEnd > 0 && !t.serverContinued }

// sendEnd is the end of what the server may have of held now.
func (t *transaction) sendEnd() int {
	if t.previewOnly() {
		return t.previewEnd
	}
	return len(t.held.B)
}
