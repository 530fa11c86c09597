package gateway

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"icapgate/configs"
	"icapgate/icap"
)

// requestState is how far the current request of a session has been received.
type requestState uint8

const (
	requestHead requestState = iota // none yet, or part of its ICAP head and encapsulated heads
	requestBody                     // its body or preview is coming in
	requestHeld                     // its preview is in; the rest comes after a 100
	requestDone                     // it is in; the next one is not looked at before its answer is through
)

// After an answer that ends the session, the client's bytes are read and dropped for a while: closing a socket with unread
// bytes sends a RST, which can destroy the answer on its way.
const (
	lingerTime  = 2 * time.Second
	lingerBytes = 1 << 20
)

// drainIdle is how long a client may be without a request while the gateway drains. It gets a moment after its last answer, because a
// client that is busy would have its next request on the way when our FIN comes, and lose it.
const drainIdle = time.Second

// maxRest and maxRestTime bound the rest of a request that is read and dropped after its answer. The time begins when the client has
// taken the answer.
const (
	maxRest     = 64 << 20 // bytes of the body
	maxRestTime = configs.Duration(30 * time.Second)
)

// session is the life of one client connection: one transaction after another. Owned by its loop.
type session struct {
	conn
	listener   *listener
	client     netip.AddrPort
	entrance   entrance
	tlsVersion string // "": plain

	request requestState
	head    icap.HeadScanner
	blocks  icap.BlockScanner
	body    icap.BodyReader
	start   int // while the head is complete and the blocks are not: the head is at start:end of the bytes not consumed
	end     int // 0: the end of the head has not been found

	tx       transaction
	own      ownServers
	ending   bool        // no further request: close when all is flushed
	endCause closeReason // of ending
	linger   int         // > 0: our direction is closed; so many bytes more are dropped
	headAt   int64       // when the first byte of the current head came, 0: none yet
	drainAt  int64       // not before, an idle session is closed because the gateway drains
}

// newSession makes fd a session of l and starts it. The fd belongs to the loop from here on.
func (l *loop) newSession(ls *listener, fd int, client netip.AddrPort, tls *tlsStream) {
	s := &session{listener: ls, client: client, entrance: entrance{listener: ls.name}}
	s.fd, s.owner, s.writable, s.readable = fd, s, true, true
	s.timer.fire = func(int64) { l.guard(&s.conn, s.onTimer) }
	s.tx.init(s)
	s.head.LenientLF = ls.settings.Load().cfg.LenientLF
	if tls != nil {
		tls.attach(&s.conn)
		s.tlsVersion = tlsVersionNames[tlsVersionIndex(tls.version())]
		s.entrance.serverName = hostName(tls.serverName())
	}
	if err := l.adopt(&s.conn); err != nil {
		l.log.Error("cannot watch a client connection", "error", err)
		l.sessionCount.Add(-1)
		ls.sessions.Add(-1)
		ls.leave()
		return
	}
	l.sessions[s] = struct{}{}
	l.guard(&s.conn, s.run) // records that came with the handshake raise no event
}

func (s *session) onWritable() {
	if s.checkWrite() {
		return
	}
	if c := s.tx.srv; c != nil && s.pending() < lowWater {
		s.loop.runLater(&c.conn)
	}
	if s.ending && s.pending() == 0 {
		if s.linger == 0 {
			s.beginLinger()
		} else {
			s.shutdownWrite()
		}
	}
	s.run()
}

// run takes what the client has sent, as far as it is wanted now.
func (s *session) run() {
	if s.linger > 0 {
		s.drain()
		return
	}
	for left := roundBytes; left > 0 && s.wantsBytes(); {
		n, ok := s.take()
		if !ok {
			break
		}
		left -= n
	}
	s.endRound()
	if s.hasMore() && s.wantsBytes() {
		s.loop.runLater(&s.conn)
	}
}

// wantsBytes says whether the gateway has a use for the client's next bytes, which it has not while the server does not take
// them, while the client does not take its answers, and between the end of a request and the end of its answer.
func (s *session) wantsBytes() bool {
	if s.closed || s.ending {
		return false
	}
	switch s.request {
	case requestHead:
		return s.pending() < highWater
	case requestBody: // while it sends without reading, only so much may pile up for it
		return s.pending() < 2*highWater && s.tx.takesBody()
	}
	return false
}

// take gives the next bytes to consume. ok is false when there are none.
func (s *session) take() (n int, ok bool) {
	if s.tx.splices() {
		if n, ok = s.splice(); n > 0 || !ok {
			return n, ok
		}
	}
	most := scratchSize
	if s.splicing && s.request == requestBody && s.body.Rest() == 0 {
		most = sizeLineRead
	}
	p, err := s.fill(most)
	if len(p) == 0 {
		s.onReadEnd(err)
		return 0, false
	}
	s.starved = false
	k := s.consume(p)
	if s.ending { // what is left of p is nobody's; p itself was still in use until here
		s.dropIn()
		return 0, false
	}
	s.keep(p, k)
	return max(k, 1), true
}

// splice moves bytes of the body to the server without a look at them; n is 0 and ok true if that is not possible.
func (s *session) splice() (n int, ok bool) {
	t := &s.tx
	n, err := s.conn.splice(&t.srv.conn, int(min(s.body.Rest(), roundBytes)))
	if err != nil {
		s.onReadEnd(err)
		return 0, false
	}
	s.splicing = n > 0
	s.loop.stats.body[towardsServer][viaSplice].Add(uint64(n))
	s.body.Skip(uint64(n))
	if s.body.Rest() == 0 { // the size line of the next piece, if the chunk is larger than the server is to get
		out, _, _ := s.body.Next(nil)
		t.forward(out)
	}
	if t.srv != nil { // a limit may have ended the attempt
		t.srv.endRound()
	}
	return n, true
}

// onReadEnd handles a read that brought nothing.
func (s *session) onReadEnd(err error) {
	switch {
	case err == errDry:
	case err != io.EOF:
		s.gone(reasonReset)
	case s.request == requestHead && s.headAt == 0 && s.pending() > 0:
		s.endSession(reasonClientClosed) // it has closed its direction and still reads its answer
	case s.request == requestHead && s.headAt == 0:
		s.finishClose(reasonClientClosed)
	default: // in the middle of a request
		s.gone(reasonClientGone)
	}
}

// consume takes as much of p as the request needs, and starts its transaction once all of p that belongs to it has been decoded: a
// fault in what came together with the head is answered before any server hears of the request, and a small
// request leaves in one write.
func (s *session) consume(p []byte) (n int) {
	for n < len(p) && !s.closed && !s.ending {
		if s.request == requestHead {
			k := s.consumeHead(p[n:])
			if n += k; k == 0 {
				break
			}
		} else if s.request == requestBody {
			out, k, err := s.body.Next(p[n:])
			n += k
			if err != nil {
				s.reject(err)
				return n
			}
			s.tx.forward(out)
			if end := s.body.End(); end != icap.EndNone {
				s.tx.onRequestEnd(end)
			}
		} else {
			break
		}
	}
	s.tx.proceed()
	return n
}

// consumeHead takes an ICAP head together with its encapsulated heads and begins the transaction; 0: they are not complete yet.
func (s *session) consumeHead(p []byte) int {
	if s.headAt == 0 && !onlyLineEnds(p) {
		s.headAt = s.loop.now
		if p[0] == 0x16 && s.stream == nil {
			s.gone(reasonTLSOnPlain) // a TLS ClientHello: no answer of ours would be understood
			return 0
		}
	}
	req := &s.loop.req
	parsed := false
	if s.end == 0 {
		start, end, err := s.head.Scan(p)
		if err == nil {
			err = req.Parse(p[start:end])
		}
		if errors.Is(err, icap.ErrIncomplete) {
			s.starved = true
			return 0
		}
		if err != nil {
			s.reject(err)
			return 0
		}
		s.start, s.end, parsed = start, end, true
		s.blocks.Reset(req.Encapsulated, false)
	}
	n, err := s.blocks.Scan(p[s.end:])
	if errors.Is(err, icap.ErrIncomplete) {
		s.starved = true
		return 0
	}
	if err == nil && !parsed { // the head was parsed in an earlier round, whose bytes have moved
		err = req.Parse(p[s.start:s.end])
	}
	if err != nil {
		s.reject(err)
		return 0
	}
	start, end := s.start, s.end
	s.head.Reset()
	s.start, s.end, s.headAt = 0, 0, 0
	s.tx.begin(req, end-start, p[end:end+n])
	return end + n
}

// onlyLineEnds says whether p is no more than the empty lines that may stand between requests.
func onlyLineEnds(p []byte) bool {
	for _, c := range p {
		if c != '\r' && c != '\n' {
			return false
		}
	}
	return true
}

// reject answers bytes that break the protocol and ends the session, because its framing is lost. Nothing of
// the request may look complete to a server.
func (s *session) reject(err error) {
	status := 400
	if pe := (*icap.ProtocolError)(nil); errors.As(err, &pe) {
		status = pe.Status
	}
	s.loop.log.Debug("bad request", "client", s.client, "error", err)
	why := rejectBadRequest
	switch status {
	case 501:
		why = rejectMethod
	case 505:
		why = rejectVersion
	}
	s.fail(status, why, reasonBadRequest)
}

// fail ends the session with an error answer, or without one when an answer to the current request has begun.
func (s *session) fail(status int, why rejectReason, r closeReason) {
	begun, complete := s.tx.active && s.tx.answered, s.tx.responseDone
	istag, extra := strayTag, s.loop.gw.extraFields
	if s.tx.active {
		extra = s.tx.extraFields()
		if !begun {
			s.tx.status = status
		}
		istag = s.tx.ownTag()
		s.tx.cancel(reasonClientAborted, why.String())
	} else {
		s.loop.logBadRequest(s, status, why)
	}
	switch {
	case begun && complete:
		s.endSession(r)
		return
	case begun:
		s.gone(r)
		return
	}
	l := s.loop
	l.stats.rejects[why].Add(1)
	l.line = appendAnswer(l.line[:0], istag, status, 0, true, extra, nil)
	s.send(l.line)
	s.endSession(r)
}

// endSession closes the session once all that was sent has left, and drops what the client still sends.
func (s *session) endSession(r closeReason) {
	if s.closed || s.ending {
		return
	}
	s.ending, s.endCause = true, r
	s.flush()
	switch {
	case s.checkWrite():
	case s.pending() == 0:
		s.beginLinger()
	default:
		s.setTimer()
	}
}

func (s *session) beginLinger() {
	s.linger = lingerBytes
	s.closeWrite()
	s.waitUntil(waitLinger, s.loop.now+int64(lingerTime))
	if s.pending() == 0 {
		s.loop.runLater(&s.conn)
	}
}

// drain drops what the client sends after our last answer, until its FIN.
func (s *session) drain() {
	for s.linger > 0 {
		n, err := s.rawRead(s.loop.scratch)
		if n == 0 {
			if err != errDry {
				s.finishClose(s.endCause)
			}
			return
		}
		s.linger -= n
	}
	s.finishClose(s.endCause)
}

// endRound flushes what the round has produced and sets the next deadline.
func (s *session) endRound() {
	if s.closed {
		return
	}
	if s.pending() > 0 {
		s.flush()
	}
	s.countBody(towardsClient)
	if !s.checkWrite() {
		s.setTimer()
	}
}

// checkWrite notices a failed write: the client is gone.
func (s *session) checkWrite() bool {
	if s.writeErr == nil || s.closed {
		return s.closed
	}
	s.gone(reasonClientGone)
	return true
}

// setTimer sets the deadline of what the session is waiting for now. A client that the gateway keeps waiting is never late.
func (s *session) setTimer() {
	t := &s.listener.settings.Load().cfg.Timeouts
	switch {
	case s.linger > 0: // set when it began
	case s.pending() > 0:
		s.wait(waitTaken, t.Body)
	case s.ending:
		s.wait(waitNone, 0)
	case s.request == requestHead && s.headAt > 0:
		s.waitUntil(waitHead, s.headAt+int64(t.Head))
	case s.request == requestHead && s.loop.gw.draining.Load():
		s.beginWait(waitRequest)
		s.waitUntil(waitRequest, max(s.activeAt+int64(drainIdle), s.drainAt))
	case s.request == requestHead:
		s.wait(waitRequest, t.Idle)
	case s.request == requestBody && s.tx.discard && s.tx.responseDone:
		s.wait(waitRest, maxRestTime)
	case s.request == requestBody && s.tx.takesBody() && !s.tx.waiting:
		s.wait(waitBody, t.Body)
	default:
		s.wait(waitNone, 0)
	}
}

// onTimer is called when the deadline has passed.
func (s *session) onTimer() {
	switch s.waits {
	case waitLinger:
		s.finishClose(s.endCause)
	case waitTaken:
		if s.takesMore() {
			s.onWritable()
			return
		}
		s.gone(reasonWriteTimeout)
	case waitHead:
		s.fail(408, rejectTimeout, reasonHeadTimeout)
	case waitBody:
		s.fail(408, rejectTimeout, reasonBodyTimeout)
	case waitRest:
		s.tx.abandonRest()
	case waitRequest:
		if s.loop.gw.draining.Load() {
			s.endSession(reasonShutdown)
			return
		}
		s.endSession(reasonIdle) // a plain FIN: a 408 on an idle connection could be taken for the answer to the next request
	}
}

// next makes the session ready for another request, after a transaction.
func (s *session) next(close bool) {
	if s.closed {
		return
	}
	if close {
		s.endSession(reasonDone)
		return
	}
	s.request = requestHead
	s.waits = waitNone // its idle time begins now
	if s.hasMore() {
		s.loop.runLater(&s.conn)
	}
}

// onError reads what came before the error, and then lets go of the client.
func (s *session) onError() {
	s.run()
	if !s.closed {
		s.gone(reasonReset)
	}
}

// abort closes the session, whatever it is doing.
func (s *session) abort(r closeReason) {
	s.tx.cancel(r, r.String())
	s.finishClose(r)
}

// gone closes the socket. A request that has been received whole and is with a server is brought to its end all the same: some
// clients ignore answers, and a dropped request would be a lost incident.
func (s *session) gone(r closeReason) {
	t := &s.tx
	if s.closed { // and its request, which went on, has come to no good end
		t.cancel(r, r.String())
		return
	}
	if t.active && !(t.requestDone && t.srv != nil) {
		t.cancel(reasonClientAborted, r.String())
	}
	s.finishClose(r)
	if t.active {
		s.loop.orphans[s] = struct{}{}
		t.setEnd(r.String())
		s.loop.runLater(&t.srv.conn) // it may have waited for the client to take its answer
	}
}

func (s *session) finishClose(r closeReason) {
	if s.closed {
		return
	}
	s.close()
	l := s.loop
	delete(l.sessions, s)
	l.sessionCount.Add(-1)
	s.listener.sessions.Add(-1)
	s.listener.leave()
	l.stats.clientCloses[r].Add(1)
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("session ended", "client", s.client, "reason", r.String())
	}
}
