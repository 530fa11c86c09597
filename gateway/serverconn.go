package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"icapgate/balancer"
	"icapgate/health"
	"icapgate/icap"
	"icapgate/pool"
)

// serverState is what a server connection is doing.
type serverState uint8

const (
	serverConnecting serverState = iota // also the TLS handshake
	serverReady                         // connected and idle: in its shard, or just taken from it
	serverBusy                          // it carries an attempt
	serverFlushing                      // the answer came early: the end of the request is still on its way to the server
)

// serverConn is one connection to a server. On the loop it has one owner at a time: the shard while it is idle, the
// transaction while it carries an attempt. It holds one slot of its server until it is closed.
type serverConn struct {
	conn
	use    pool.ConnState
	server *pool.Server
	pool   *loopPool // of its latest attempt
	shard  *shard
	tx     *transaction // nil while idle
	state  serverState
	reused bool // it has carried an attempt before this one

	dialing   bool        // a goroutine connects, with TLS
	reached   atomic.Bool // it has a TCP connection
	dialedAt  int64       // when the connect began
	doubtedAt int64       // when it had waited for long, 0: it has not
	place     int         // in shard.connecting, from 1 on; 0: it is not connecting

	counted bool // it has a socket of those that limits allows

	said     remark // see ejection.go
	begun    bool   // a byte of the current answer has come, a 100 apart
	inBody   bool   // its heads are through
	finished bool   // it is complete
	closes   bool   // it said Connection: close
	interims int    // answers before it
	head     icap.HeadScanner
	blocks   icap.BlockScanner
	body     icap.BodyReader
	start    int // as in session
	end      int
	headAt   int64 // when the first byte of the current head came, 0: none yet

	began      int64  // when the attempt began
	readyAt    int64  // when it was connected or, later, said 100
	answerAt   int64  // when the first byte of the current head, or of the latest one, came
	waited     int64  // ns for which it kept its 100
	sentBefore uint64 // bytes on the wire before its first one
	lookedAt   int64  // when hasVanished last looked, 0: never
}

// State implements pool.Conn.
func (c *serverConn) State() *pool.ConnState { return &c.use }

func (l *loop) newServerConn(p *loopPool, shard *shard) *serverConn {
	c := &serverConn{server: shard.Server, pool: p, shard: shard}
	c.loop, c.fd, c.owner = l, -1, c
	c.timer.fire = func(int64) { c.loop.guard(&c.conn, c.onTimer) }
	c.head.LenientLF, c.head.Response = true, true
	c.use.Born = l.now
	return c
}

// begin makes the connection ready for an attempt of c.tx.
func (c *serverConn) begin() {
	c.begun, c.inBody, c.finished, c.closes, c.splicing = false, false, false, false, false
	c.starved, c.end, c.headAt, c.said, c.interims = false, 0, 0, saidNothing, 0
	c.head.Reset()
	c.pool = c.tx.pool
	c.began, c.sentBefore = c.loop.now, c.sent
	c.readyAt, c.waited = c.began, 0
	if c.pool.measures {
		c.latency().Begin(c.began)
	}
	c.reused = c.use.Requests > 0
	c.use.Requests++
	c.server.Begin()
}

// connect opens the connection: without blocking on the loop or, with TLS, in a goroutine, because crypto/tls can't
// resume a handshake.
func (c *serverConn) connect() {
	l := c.loop
	if !l.gw.limits.take(1) {
		c.awaitDescriptor(errReserved)
		return
	}
	c.counted = true
	c.beginConnect()
	if c.pool.table.tls != nil {
		c.connectTLS()
		return
	}
	fd, err := pool.Dial(c.server.Addr, time.Duration(c.pool.table.cfg.Timeouts.Send))
	if err == nil {
		c.fd = fd
		err = l.adopt(&c.conn)
	}
	if err != nil {
		c.connectFailed(err)
		return
	}
	c.setTimer()
}

// connectFailed ends the attempt, unless the fault is on this side.
func (c *serverConn) connectFailed(err error) {
	if health.OwnFault(err) {
		c.awaitDescriptor(err)
		return
	}
	l := c.loop
	if c.pool.table.tls == nil {
		l.log.Debug("cannot connect", "server", c.server.Name, "error", err)
	} else if n, ok := l.gw.secureLog.next(); ok { // a certificate that does not fit, say, which no check of health may tell
		l.log.Warn("cannot connect", "server", c.server.Name, "error", err, "times", n)
	}
	c.fail(failConnect, connectReason(err))
}

// connectReason tells a connect that got no answer from one that was refused.
func connectReason(err error) closeReason {
	if late := net.Error(nil); errors.As(err, &late) && late.Timeout() { // also of the kernel: ETIMEDOUT
		return reasonConnectTimeout
	}
	return reasonConnectFailed
}

// descriptorPause is the time between two tries to open a socket for which there is no descriptor.
const descriptorPause = 50 * time.Millisecond

var errReserved = errors.New("the descriptors that are left are for checks and the like")

// awaitDescriptor connects again in a moment, until timeouts.connect is over: for want of a descriptor or memory on this side the
// request waits, and the server's health does not suffer. What is idle is given up for it.
func (c *serverConn) awaitDescriptor(err error) {
	l := c.loop
	c.giveSocket()
	c.endConnect()
	m := &l.gw.limits
	if n, ok := m.dialLog.next(); ok {
		l.log.Warn("cannot open connections to servers: "+m.advice(refusedDescriptor), "error", err, "times", n)
	}
	if l.now-c.began >= int64(c.pool.table.cfg.Timeouts.Connect) {
		c.fail(failOverloaded, reasonNoDescriptor)
		return
	}
	if last := m.freedAt.Load(); l.now-last >= int64(descriptorPause) && m.freedAt.CompareAndSwap(last, l.now) {
		l.gw.closeIdle()
	}
	c.waitUntil(waitDescriptor, l.now+int64(descriptorPause))
}

// closeIdle closes the idle connections to all servers, and the pipes that are not in use.
func (g *Gateway) closeIdle() {
	for _, l := range g.loops {
		l.post(func() {
			for _, h := range l.shards {
				dropIdle(h, reasonNoDescriptor)
			}
			for _, p := range l.pipes {
				l.closePipe(p)
			}
			l.pipes = nil
		})
	}
}

// release gives the slot of the closed connection back.
func (c *serverConn) release() {
	c.giveSocket()
	c.server.Release()
}

func (c *serverConn) giveSocket() {
	if c.counted {
		c.counted = false
		c.loop.gw.limits.give(1)
	}
}

// onConnected starts the waiting attempt.
func (c *serverConn) onConnected() {
	c.endConnect()
	c.state = serverBusy
	c.readyAt = c.loop.now
	c.tx.connectTime += c.readyAt - c.began
	c.tx.onConnected()
}

func (c *serverConn) onWritable() {
	switch c.state {
	case serverConnecting:
		if err := pool.ConnectError(c.fd); err != nil {
			c.loop.log.Debug("cannot connect", "server", c.server.Name, "error", err)
			c.fail(failConnect, connectReason(err))
			return
		}
		c.onConnected()
	case serverBusy:
		if c.pending() < lowWater {
			c.loop.runLater(&c.tx.s.conn)
			c.tx.resend()
		}
		c.endRound()
	case serverFlushing:
		switch {
		case c.writeErr != nil:
			c.shut(reasonReset)
		case c.pending() == 0:
			c.reuse()
		default:
			c.setTimer()
		}
	}
}

// onError finds out how a connect has ended, and otherwise reads what came before the error: the answer may be there.
func (c *serverConn) onError() {
	c.flush()
	c.onWritable()
	if !c.closed {
		c.run()
	}
}

// run takes what the server has sent, as far as the client takes it.
func (c *serverConn) run() {
	switch c.state {
	case serverConnecting:
		return
	case serverReady, serverFlushing:
		c.onIdleBytes()
		return
	}
	s := c.tx.s
	for left := roundBytes; left > 0 && c.wantsBytes(); {
		n, ok := c.take()
		if !ok {
			break
		}
		left -= n
	}
	s.endRound()
	c.endRound()
	if c.hasMore() && c.wantsBytes() { // also when the client has just taken what stopped the reading
		c.loop.runLater(&c.conn)
	}
}

// wantsBytes says whether the client takes more of the answer now. Bytes behind its end are wanted by nobody.
func (c *serverConn) wantsBytes() bool {
	if c.closed || c.tx == nil || c.state != serverBusy {
		return false
	}
	if c.splices() {
		return c.tx.s.pending() == 0
	}
	return c.tx.s.pending() < highWater
}

// splices says whether the next bytes of the answer's body go from socket to socket.
func (c *serverConn) splices() bool {
	return c.inBody && !c.finished && !c.tx.dropBody && c.canSplice(&c.tx.s.conn, c.body.Rest())
}

// take gives the next bytes to consume. ok is false when there are none.
func (c *serverConn) take() (n int, ok bool) {
	if c.splices() {
		if n, ok = c.splice(); n > 0 || !ok {
			return n, ok
		}
	}
	most := scratchSize
	if c.splicing && c.body.Rest() == 0 {
		most = sizeLineRead
	}
	p, err := c.fill(most)
	if len(p) == 0 {
		c.onReadEnd(err)
		return 0, false
	}
	c.starved = false
	k := c.consume(p)
	c.keep(p, k)
	return max(k, 1), true
}

// splice moves bytes of the answer's body to the client without a look at them; n is 0 and ok true if that is not possible.
func (c *serverConn) splice() (n int, ok bool) {
	t := c.tx
	n, err := c.conn.splice(&t.s.conn, int(min(c.body.Rest(), roundBytes)))
	if err != nil {
		c.onReadEnd(err)
		return 0, false
	}
	c.splicing = n > 0
	c.loop.stats.body[towardsClient][viaSplice].Add(uint64(n))
	c.body.Skip(uint64(n))
	t.payloadOut = c.body.Payload()
	return n, true
}

// onReadEnd handles a read that brought nothing.
func (c *serverConn) onReadEnd(err error) {
	switch {
	case err == errDry:
		if c.writeErr != nil {
			c.onReadEnd(c.writeErr) // no answer was waiting behind the failed write
		}
	case c.finished: // only the rest of the request was still on its way
		c.fail(failNoAnswer, reasonServerClosed)
	case !c.begun && err == io.EOF:
		c.fail(failNoAnswer, reasonNoAnswer)
	case !c.begun && unanswered(err):
		c.vanish()
	case !c.begun:
		c.fail(failNoAnswer, reasonReset)
	default:
		c.fail(failAnswer, reasonBadResponse)
	}
}

// peek looks whether something has come that no event has told yet: bytes or, with ended, the server's FIN or RST.
func (c *serverConn) peek() (bytes, ended bool) {
	n, err := peekNow(c.fd, c.loop.probe[:])
	return n > 0, n == 0 || err != nil && err != unix.EAGAIN && err != unix.EINTR
}

// hasEnded says whether a used connection has been closed by the server before its first byte of an answer. Servers do that after
// a number of requests without a word.
func (c *serverConn) hasEnded() bool {
	if !c.reused || c.begun {
		return false
	}
	_, ended := c.peek()
	return ended
}

// onIdleBytes handles bytes or the end on a connection without an attempt. Bytes can't be an answer to anything: some servers say
// 408 before they close.
func (c *serverConn) onIdleBytes() {
	n, err := c.read(c.loop.probe[:])
	switch {
	case n > 0:
		c.leaveShard(reasonUnexpected)
	case err != errDry:
		c.leaveShard(reasonServerClosed)
	}
}

func (c *serverConn) leaveShard(r closeReason) {
	if c.state == serverFlushing || c.shard.Remove(c) {
		c.shut(r)
	}
}

// consume takes as much of p as belongs to the answer.
func (c *serverConn) consume(p []byte) (n int) {
	t := c.tx
	for n < len(p) && !c.closed && c.tx == t {
		switch {
		case c.finished: // bytes behind the end of the answer: nothing on this connection can be trusted any more
			c.closes = true
			return len(p)
		case !c.inBody:
			k := c.consumeHead(p[n:])
			if k == 0 {
				return n
			}
			n += k
		default:
			out, k, err := c.body.Next(p[n:])
			n += k
			if err != nil {
				c.broken(err)
				return n
			}
			t.relay(out)
			t.payloadOut = c.body.Payload()
			if c.body.End() != icap.EndNone {
				c.onAnswerEnd(len(p) - n)
			}
		}
	}
	return n
}

// consumeHead takes the head of an interim or of the final answer, with its encapsulated heads; 0: not complete yet.
func (c *serverConn) consumeHead(p []byte) int {
	c.begun = true
	if c.headAt == 0 {
		c.headAt, c.answerAt = c.loop.now, c.loop.now
	}
	r := &c.loop.resp
	parsed := false
	if c.end == 0 {
		start, end, err := c.head.Scan(p)
		if err == nil {
			err = r.Parse(p[start:end])
		}
		if errors.Is(err, icap.ErrIncomplete) {
			c.starved = true
			return 0
		}
		if err != nil {
			c.broken(err)
			return 0
		}
		if r.Status < 200 {
			c.head.Reset()
			c.headAt, c.begun = 0, false // the answer is still to come
			c.waited += c.keptWaiting()
			c.readyAt = c.answerAt
			c.onInterim(r)
			return end
		}
		c.start, c.end, parsed = start, end, true
		c.blocks.Reset(r.Encapsulated, true)
	}
	n, err := c.blocks.Scan(p[c.end:])
	if errors.Is(err, icap.ErrIncomplete) {
		c.starved = true
		return 0
	}
	if err == nil && !parsed {
		err = r.Parse(p[c.start:c.end])
	}
	if err != nil {
		c.broken(err)
		return 0
	}
	end := c.end
	c.end, c.headAt = 0, 0
	c.onFinal(r, p[end:end+n], len(p)-end-n)
	return end + n
}

// onFinal handles the heads of the final answer, behind which more bytes have come already.
func (c *serverConn) onFinal(r *icap.Response, blocks []byte, more int) {
	t := c.tx
	e := &c.blocks.Encapsulated
	if c.blocks.Corrected {
		c.loop.stats.corrected.Add(1)
	}
	c.closes = c.closes || r.Close
	c.answerHead(r.Status)
	c.measure(r.Status)
	if isFull(r.Status) {
		c.loop.markFull(c.pool.table, c.server, c.loop.now+int64(retryAfter(r)))
	}
	if r.Status >= 500 && t.onServerFault(r.Status) {
		return
	}
	if !t.onFinal(r, e, blocks) {
		c.broken(errIllegalAnswer)
		return
	}
	if t.dropBody {
		c.closes = c.closes || r.Status == 204 // no server should say that
	}
	if !e.HasBody() {
		c.onAnswerEnd(more)
		return
	}
	c.inBody = true
	c.body.Reset(icap.BodyConfig{Preview: -1, Response: true, Trailers: r.Trailers})
}

// isFull says whether a server says by its status that it is full, not dead. 506: busy, of Trend Micro.
func isFull(status int) bool { return status == 503 || status == 506 }

// latency is what the loop knows of how long the server takes for the method of the attempt.
func (c *serverConn) latency() *balancer.Latency { return &c.shard.latencies[c.tx.method] }

// keptWaiting is the time in ns that the server took for the head that has come, once it had all that it could get: the preview, or the
// whole request. How long a client takes for its body is not the server's business, and one that answers before its end takes no time at all.
func (c *serverConn) keptWaiting() int64 {
	t := c.tx
	if !t.requestDone && !t.previewOnly() {
		return 0
	}
	return max(0, c.answerAt-max(c.readyAt, t.wholeAt))
}

// measure takes the final answer for a sample of the server's latency. That it is full is known elsewhere.
func (c *serverConn) measure(status int) {
	timed := c.server.Health.Timed()
	switch {
	case !c.pool.measures && !timed || isFull(status):
		return
	case status >= 500:
		if c.pool.measures {
			c.latency().Fail(c.loop.now)
		}
		return
	}
	took := c.waited + c.keptWaiting()
	if c.pool.measures {
		c.latency().Observe(c.loop.now, took, c.server.InFlight()-1)
	}
	if timed {
		c.server.Health.Took(took)
	}
}

var errIllegalAnswer = errors.New("an answer that the client did not allow, or without what it needs")

// retryAfter is for how long a server that said 503 is skipped: what it asks for, within 1 to 30 s.
func retryAfter(r *icap.Response) time.Duration {
	s, err := strconv.Atoi(string(r.Get("Retry-After")))
	if err != nil {
		s = 1
	}
	return time.Duration(min(max(s, 1), 30)) * time.Second
}

// onAnswerEnd is called when the answer is complete; behind it more bytes have come already.
func (c *serverConn) onAnswerEnd(more int) {
	c.finished = true
	c.answerEnd()
	if more > 0 {
		c.closes = true // nobody asked for them: nothing on this connection can be trusted any more
	}
	t := c.tx
	t.onResponseEnd()
	if c.tx == t && t.echoing { // it is the client that has still something to say
		t.leaveServer()
		return
	}
	if c.tx == t && t.active && c.closes { // the request is not through, but the server will not read the rest
		t.discard = true
		t.dropHeld()
		c.shut(reasonNotReusable)
		c.loop.runLater(&t.s.conn)
	}
}

// broken ends the attempt because the server's bytes break the protocol.
func (c *serverConn) broken(err error) {
	if n, ok := c.loop.gw.answerLog.next(); ok {
		c.loop.log.Warn("bad answer from a server", "server", c.server.Name, "error", err, "times", n)
	}
	c.fail(failAnswer, reasonBadResponse)
}

// fail closes the connection and lets the transaction decide what becomes of its request.
func (c *serverConn) fail(f failure, r closeReason) {
	t, begun := c.tx, c.begun
	reused := c.reused && c.interims == 0 // one that has said something was not closed while it was idle
	if t != nil && c.pool.measures && !c.finished && f != failOverloaded && !(f == failNoAnswer && reused) {
		c.latency().Fail(c.loop.now)
	}
	if t != nil {
		t.mayHaveAll = c.mayHaveAll()
		c.blame(f, r, reused)
	}
	c.shut(r)
	if t != nil { // a panic would have to end the session: this connection is gone
		c.loop.guard(&t.s.conn, func() { t.onFailure(f, c.server, reused, begun) })
	}
}

// finish ends the attempt after a complete answer. The connection is used again only if the request went out whole, too, and
// both sides want to go on.
func (c *serverConn) finish(requestSent bool) {
	c.endAttempt()
	c.dropIn()
	switch {
	case c.closed:
	case !requestSent || !c.finished || c.writeErr != nil:
		c.shut(reasonNotReusable)
	case c.pending() > 0:
		c.state = serverFlushing
		c.setTimer()
	default:
		c.reuse()
	}
}

// reuse makes a connection idle that has nothing more to do, if it can be used again.
func (c *serverConn) reuse() {
	switch {
	case c.closes || !c.pool.table.cfg.Reuse:
		c.shut(reasonDone)
	case !c.usable(&c.pool.idle, c.loop.now):
		c.shut(reasonNotReusable)
	case c.loop.shards[c.server] != c.shard:
		c.shut(reasonRetired)
	case c.server.OverCap():
		c.shut(reasonOverCap)
	default:
		c.park()
	}
}

// usable says whether an idle connection can carry another attempt.
func (c *serverConn) usable(l *pool.IdleLimits, now int64) bool {
	return !c.closed && !c.eof && !c.rdhup && l.Reusable(&c.use, now)
}

// park makes the connection idle: the first waiter gets it, otherwise its shard.
func (c *serverConn) park() {
	l := c.loop
	c.state = serverReady
	// Bytes that are here already raise no further event. The scratch buffer may hold a client's bytes just now.
	if n, err := c.read(l.probe[:]); n > 0 || err != errDry {
		c.shut(reasonUnexpected)
		return
	}
	c.shard.Put(c, l.now)
	c.setTimer()
	if c.server.Queue.Depth() > 0 {
		l.parked = append(l.parked, c.shard)
	}
}

// handOver gives idle connections to those who wait for one, whatever their loop. It runs at the end of a round, when no
// handler of such a connection is on the stack: from Grant on it may belong to another loop.
//
// It returns true when it has to be called again: a connection can't leave the loop while it is on the ready list.
func (l *loop) handOver(h *shard) (again bool) {
	for h.Server.Queue.Depth() > 0 {
		c, ok := h.Get()
		if !ok {
			return false
		}
		if c.queued {
			h.Put(c, c.use.LastUse)
			return true
		}
		if !c.usable(&c.pool.idle, l.now) {
			c.shut(reasonNotReusable) // its slot goes to the first waiter
			continue
		}
		w := h.Server.Queue.Next(h.Server)
		if w == nil {
			h.Put(c, c.use.LastUse)
			return false
		}
		l.wheel.stop(&c.timer)
		l.conns[c.fd] = nil
		l.poller.remove(c.fd)
		w.Grant(h.Server, c)
	}
	return false
}

// adoptServerConn makes a detached connection the loop's; false: it was closed.
func (l *loop) adoptServerConn(c *serverConn, p *loopPool, shard *shard) bool {
	c.pool, c.shard = p, shard
	if err := l.adopt(&c.conn); err != nil {
		l.log.Error("cannot watch a server connection", "error", err)
		c.release()
		return false
	}
	return true
}

// discard closes a detached connection.
func (c *serverConn) discard() {
	c.closed = true
	unix.Close(c.fd)
	c.release()
}

// shut closes the connection and gives its slot back.
func (c *serverConn) shut(r closeReason) {
	if c.closed {
		return
	}
	if t := c.tx; t != nil {
		t.srv = nil
		c.endAttempt()
	}
	c.endConnect()
	if c.stream != nil && c.writeErr == nil {
		c.stream.closeWrite()
		c.flush()
	}
	c.loop.stats.serverCloses[r].Add(1)
	if c.dialing { // the goroutine has the socket: onTLS gives the slot back
		c.close()
		return
	}
	if c.fd >= 0 { // the FIN leaves before the slot is given away: a server never sees more connections than its cap
		_ = unix.Shutdown(c.fd, unix.SHUT_RDWR)
	}
	c.close()
	c.release()
}

// abort is called when the loop ends or a handler has panicked.
func (c *serverConn) abort(r closeReason) {
	if c.state == serverReady || c.state == serverFlushing {
		c.leaveShard(r)
		return
	}
	t := c.tx
	c.shut(r)
	if t != nil {
		t.s.gone(r)
	}
}

// endRound flushes what the round has produced and sets the next deadline.
func (c *serverConn) endRound() {
	if c.closed || c.state != serverBusy {
		return
	}
	if c.pending() > 0 {
		c.flush()
	}
	c.countBody(towardsServer)
	if c.writeErr != nil && c.wantsBytes() { // the answer may have come before: look for it first
		c.readable, c.dry = true, false
		c.loop.runLater(&c.conn)
	}
	c.setTimer()
}

// setTimer sets the deadline of what the connection is waiting for now. A server that the gateway does not read from, or has
// not sent the whole request to, is not late with its answer. Nothing but its first byte and interim answers that show progress are signs of life
// until its heads are through: neither a 100 that nobody has asked for, nor a head that trickles in.
func (c *serverConn) setTimer() {
	cfg := &c.pool.table.cfg
	switch {
	case c.state == serverConnecting:
		c.waitUntil(waitConnect, c.connectDue())
	case c.state == serverReady:
		c.wait(waitUse, cfg.Idle.Timeout)
	case c.headAt > 0:
		c.waitUntil(waitAnswer, c.headAt+int64(cfg.Timeouts.Response))
	case c.pending() > 0:
		c.watch(waitTaken, cfg.Timeouts.Send)
	case c.finished || !c.tx.previewOnly() && !(c.tx.requestDone && c.tx.caughtUp()) || !c.wantsBytes():
		c.wait(waitNone, 0)
	case c.inBody:
		c.wait(waitMore, cfg.Timeouts.Response)
	default:
		c.watch(waitAnswer, cfg.Timeouts.Response)
	}
}

func (c *serverConn) onTimer() {
	switch c.waits {
	case waitConnect:
		c.onConnectDue()
	case waitDescriptor:
		c.connect()
	case waitUse:
		c.leaveShard(reasonIdle)
	case waitTaken:
		send := c.pool.table.cfg.Timeouts.Send
		switch over := c.isOver(send); {
		case over && c.takesMore():
			c.onWritable()
		case over && c.inBody && !c.finished:
			c.stopSending()
		default:
			c.onWatch(send, reasonSendTimeout)
		}
	case waitAnswer:
		if c.headAt > 0 {
			c.fail(failTimeout, reasonResponseTimeout)
			return
		}
		c.onWatch(c.pool.table.cfg.Timeouts.Response, reasonResponseTimeout)
	case waitMore:
		c.fail(failTimeout, reasonResponseTimeout)
	}
}

// stopSending drops what the server does not take of the request, and what is still to come of it; its answer, which has begun, goes on.
func (c *serverConn) stopSending() {
	t := c.tx
	c.closes = true
	c.dropOut()
	t.discard = true
	t.dropHeld()
	c.setTimer()
	c.loop.runLater(&t.s.conn) // its reading had stopped for the server
}

// connectTLS connects and does the handshake in a goroutine, which gives the socket to the loop.
func (c *serverConn) connectTLS() {
	c.dialing = true
	l, cfg := c.loop, c.pool.table
	timeout := time.Duration(cfg.cfg.Timeouts.Connect)
	l.gw.dials.Go(func() {
		nc, stream, err := dialTLS(l.gw.dialing, c.server, cfg.tls, timeout, func() { c.reached.Store(true) })
		fd := -1
		if err == nil {
			if err = setServerOptions(nc, time.Duration(cfg.cfg.Timeouts.Send)); err == nil {
				fd, err = dupFD(nc)
			}
			nc.Close()
		}
		l.post(func() { c.onTLS(fd, stream, err) })
	})
	c.setTimer()
}

// onTLS takes the socket over when the handshake is done.
func (c *serverConn) onTLS(fd int, stream *tlsStream, err error) {
	c.dialing = false
	if c.closed { // timed out or dropped meanwhile
		if fd >= 0 {
			unix.Close(fd)
		}
		c.release()
		return
	}
	if err == nil {
		c.fd, c.sent, c.sentBefore = fd, stream.transport.sent, stream.transport.sent
		c.readable, c.writable = true, true
		stream.attach(&c.conn)
		err = c.loop.adopt(&c.conn)
	}
	if err != nil {
		c.connectFailed(err)
		return
	}
	c.onConnected()
}

// dialTLS connects and calls reached when there is a TCP connection.
func dialTLS(ctx context.Context, s *pool.Server, cfg *tls.Config, timeout time.Duration, reached func()) (*net.TCPConn, *tlsStream, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", s.Addr.String())
	if err != nil {
		return nil, nil, err
	}
	reached()
	if cfg.ServerName == "" {
		cfg = cfg.Clone()
		cfg.ServerName, _, _ = net.SplitHostPort(s.Authority)
	}
	t := &transport{Conn: nc}
	tc := tls.Client(t, cfg)
	defer context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })() // the transport's own Close does nothing
	if err := tc.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, nil, err
	}
	_ = nc.SetDeadline(time.Time{})
	return nc.(*net.TCPConn), &tlsStream{tls: tc, transport: t}, nil
}

func setServerOptions(nc *net.TCPConn, userTimeout time.Duration) error {
	rc, err := nc.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := rc.Control(func(fd uintptr) { err = pool.SetServerOptions(int(fd), userTimeout) }); cerr != nil {
		return cerr
	}
	return err
}
