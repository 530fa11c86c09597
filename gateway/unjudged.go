package gateway

import (
	"icapgate/gateway/options"
	"icapgate/icap"
)

// This file is what becomes of a request that no server has judged: it is rejected or, where on_unavailable, on_error, on_timeout or on_limit of its service
// say so, it passes (fail open). A client that takes a 204 gets one; any other gets its own message back, as it comes in, whatever its size.

// allowedMark is the header line that tells an answer which nobody has given a thought from a server's; the reason follows.
const allowedMark = "X-Icapgate-Allowed: "

// unjudged are the reasons for which no server has judged a request.
var unjudged = [...]rejectReason{rejectNoServer, rejectFull, rejectOverloaded, rejectServerFailed, rejectLate, rejectBody, rejectDuration, rejectLong}

// The ways in which requests pass, for allowed_total.
const (
	allowedBy204 = iota
	allowedByEcho
	allowedBegun // its answer goes on
	allowedNever // nothing of the kind was possible: rejected
	allowedWays
)

var allowedWayNames = [allowedWays]string{"204", "echo", "begun", "cannot_allow"}

// refuse is called when no server has judged the request.
func (t *transaction) refuse(status int, why rejectReason, retryAfter int) {
	if t.mayAllow(why) {
		t.pass(why)
		return
	}
	if t.method == icap.MethodOptions && t.route.allows[why] && !t.service.lead.forwards {
		// Or clients would not send what passes.
		t.answer(200, 0, t.announceFor(options.Group{}))
		return
	}
	t.countRefused(why)
	t.reply(status, why, retryAfter)
}

// countRefused counts a request that is rejected though it was to pass.
func (t *transaction) countRefused(why rejectReason) {
	if t.method != icap.MethodOptions && t.route.allows[why] && !t.s.closed {
		t.s.loop.stats.allowed[why][allowedNever].Add(1)
	}
}

// mayAllow says whether the request passes rather than being rejected for this reason, and can. To a client that has gone, nothing does.
func (t *transaction) mayAllow(why rejectReason) bool {
	return t.route.allows[why] && t.method != icap.MethodOptions && !t.s.closed && (t.takes204() || t.held != nil && t.file == nil)
}

// pass lets the request pass unjudged. It is a security event: counted, logged, and marked in the answer.
func (t *transaction) pass(why rejectReason) {
	l := t.s.loop
	t.end, t.passed = allowedNames[why], true
	l.mark = append(append(append(l.mark[:0], allowedMark...), why.String()...), "\r\n"...)
	t.warnAllowed(why)
	if t.takes204() {
		l.stats.allowed[why][allowedBy204].Add(1)
		t.answer(204, 0, l.mark)
		return
	}
	l.stats.allowed[why][allowedByEcho].Add(1)
	t.echo()
}

// setEnd says how the request has ended, if it has not passed: that it has is what the access log says of it, whatever becomes of its rest.
func (t *transaction) setEnd(end string) {
	if !t.passed {
		t.end = end
	}
}

func (t *transaction) warnAllowed(why rejectReason) {
	l := t.s.loop
	if n, ok := l.gw.allowedLog.next(); ok {
		l.log.Warn("requests pass unjudged", "service", t.route.name, "pool", t.pool.table.name, "reason", why.String(), "times", n)
	}
}

// echo gives the client its own message back: what is held of it, and the rest as it comes.
func (t *transaction) echo() {
	s := t.s
	l := s.loop
	t.status, t.answered, t.echoing = 200, true, true
	if l.gw.draining.Load() {
		t.close = true
	}
	list, skip := t.list.Unchanged(t.method)
	l.line = appendOwnHead(l.line[:0], t.ownTag(), 200, 0, t.close, t.extraFields(), l.mark)
	l.line = append(list.AppendTo(l.line), "\r\n"...)
	s.send(l.line)
	t.sendHeld(skip)
	t.dropHeld()
	if t.requestDone {
		t.onResponseEnd()
	}
	s.endRound()
	l.runLater(&s.conn) // its reading may have stopped for the server
}

// sendHeld gives the client what is held of its message, without skip bytes of its heads.
func (t *transaction) sendHeld(skip int) {
	s, b, body := t.s, t.held.B, t.blocks+t.list.HeadLen()
	s.send(b[t.blocks+skip : body])
	if t.previewEnd > 0 { // the chunk that ends the preview is not the end of the body
		s.sendBody(b[body : t.previewEnd-len(lastChunk)])
		body = t.previewEnd
	}
	s.sendBody(b[body:])
}

// The canonical ends of bodies.
const (
	lastChunk     = "0\r\n\r\n"       // of one, and of a preview that is not all of it
	lastOfPreview = "0; ieof\r\n\r\n" // of a preview that is
)

// setDecision sets the time in which the verdict has to be there, as far as it can be told now.
func (t *transaction) setDecision() {
	due := int64(0) // none
	if t.route.decision > 0 {
		due = t.decisionDue()
	}
	t.s.loop.wheel.set(&t.decision, due)
}

// decisionDue is when the time for the verdict is over. It begins when a server could begin: the request is in, or its preview.
func (t *transaction) decisionDue() int64 {
	began := t.s.loop.now
	switch {
	case t.requestDone || t.s.request == requestHeld:
		began = t.wholeAt
	case t.waiting: // the rest of it is not read meanwhile
		began = t.queuedAt
	}
	return began + t.route.decision
}

// onDecision is called when the time for the verdict may be over.
func (t *transaction) onDecision() {
	l := t.s.loop
	if !t.active || t.answered || t.route.decision == 0 { // it may have got another route since
		return
	}
	if due := t.decisionDue(); l.now < due {
		l.wheel.set(&t.decision, due)
		return
	}
	t.leaveQueue()
	if c := t.srv; c != nil {
		if c.pool.measures {
			c.latency().Fail(l.now)
		}
		c.late(t.route.decision)
		c.shut(reasonResponseTimeout)
	}
	t.refuse(502, rejectLate, 0)
}
