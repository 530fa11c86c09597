package gateway

import (
	"bytes"
	"fmt"
	"strconv"

	"icapgate/icap"
	"icapgate/pool"
)

// transaction is one ICAP request and its final response. It is part of its session and reused from request to
// request. Owned by the loop.
//
// The request's bytes go through held: its heads, its preview and the first replay_buffer bytes of its body are appended to it
// and sent from there, so that another server can get them again. When the body outgrows it, held is dropped and the rest
// goes to the server from the buffer that it was read into.
type transaction struct {
	s      *session
	active bool // between begin and finish

	// The request, as received so far.
	method       icap.Method
	allow        icap.Allow
	preview      int    // declared preview of the body in bytes, -1: none
	previewed    bool   // a Preview field: until a 100 is sent, 204 is legal without Allow
	endsPreview  bool   // the gateway says the 100, and servers get a plain request; see endpreview.go
	asksProgress bool   // it wants to be told of its progress; see interim.go
	close        bool   // the session ends after the answer
	requestDone  bool   // all of it has been received; for a preview that got a final answer: all that will come
	continued    bool   // a 100 was sent to the client
	discard      bool   // further bytes of the request are dropped
	number       uint64 // on the loop; part of its id
	began        int64
	wholeAt      int64  // when all that a server may get so far had come: the whole request, or its preview
	payloadIn    uint64 // bytes of the request's body before its 100; s.body has those behind it
	dropped      uint64

	// What goes to the server; see above. held.B is target, authority and host of the request line, then the payload from which
	// attempts are sent: fields, Encapsulated, heads, body.
	route      *route
	service    *service  // nil: none, as route
	key        uint64    // of balance: hash
	keyed      bool      // it has one
	pool       *loopPool // nil: answered without one
	held       *buffer   // nil: dropped, the request can't be replayed
	idHeader   string    // that carries its id, "": none
	targetEnd  int
	authEnd    int
	payload    int               // start of the payload
	blocks     int               // start of the encapsulated heads in it
	list       icap.Encapsulated // of the request
	previewEnd int               // end of the preview with its terminator, 0: it is not in or there is none

	spilling // what of the request is in a file; see spilling.go

	// The running attempt; see attempt.go.
	attempt

	// The response.
	echoing      bool         // it is the request's own message, as it comes in
	answered     bool         // bytes of a final answer have been sent to the client
	responseDone bool         // all of it has been
	status       int          // of the final answer
	server       *pool.Server // that gave it; nil: the gateway itself
	dropBody     bool         // an opt-body: read, not passed on
	asked        bool         // the client's preview was not in yet when the server sent its 100
	payloadOut   uint64
	end          string // why it ended, for the access log
	passed       bool   // that is the word for a request that passes unjudged

	noted noted

	decision timer // decision_timeout
	bounds   bounds
}

func (t *transaction) init(s *session) {
	t.s = s
	t.line.init(t)
	t.decision.fire = func(int64) { s.loop.guard(&s.conn, t.onDecision) }
}

// begin takes a request's heads. Its slices are valid during the call only. What can't be routed is answered at once.
func (t *transaction) begin(req *icap.Request, head int, blocks []byte) {
	s := t.s
	l := s.loop
	l.transactions++
	t.active, t.began, t.wholeAt, t.number = true, l.now, l.now, l.transactions
	t.method, t.allow, t.preview, t.close = req.Method, req.Allow, req.Preview, req.Close
	t.requestDone, t.continued, t.discard, t.asked, s.splicing = false, false, false, false, false
	t.answered, t.echoing, t.responseDone, t.dropBody, t.status, t.server = false, false, false, false, 0, nil
	t.payloadIn, t.payloadOut, t.dropped, t.previewEnd = 0, 0, 0, 0
	t.end, t.passed = endDone, false
	t.previewed, t.endsPreview = req.Preview >= 0, false
	t.bounds.maxBody, t.bounds.until = 0, 0
	t.asksProgress = req.Get(progressInterval) != nil
	t.attempt.reset()

	body := icap.BodyConfig{Preview: -1}
	switch section := req.Encapsulated.Body(); {
	case section == icap.OptBody: // read and dropped; the server sees a request without one
		t.preview, t.discard = -1, true
		s.request = requestBody
	case req.Encapsulated.HasBody():
		body.Preview = req.Preview
		s.request = requestBody
	default:
		t.preview = -1 // nothing to preview: no chunk follows
		s.request = requestDone
	}
	if l.access != nil {
		t.noted.target(req)
	}
	t.routeRequest(req)
	if t.route != nil && l.access != nil {
		t.noted.claims(req)
	}
	if t.route != nil && !t.answered {
		t.endsPreview = t.previewed && t.pool.noPreviews
		t.hold(req, head, blocks)
		t.setLimits()
		body.MaxChunk, body.Plain = int64(t.pool.table.cfg.MaxChunk), t.endsPreview
	}
	s.body.Reset(body)
	if s.request == requestDone {
		t.setRequestDone()
	}
}

// routeRequest finds the pool, or answers the request itself.
func (t *transaction) routeRequest(req *icap.Request) {
	l := t.s.loop
	t.route, t.service, t.pool, t.keyed = nil, nil, nil, false
	if req.Method == icap.MethodOther {
		t.close = t.close || req.Encapsulated.Body() == icap.NoSection // its framing is not known
		t.reply(501, rejectMethod, 0)
		return
	}
	table := l.currentTable()
	r, status := table.match(t.s.entrance, req.Path, req.Method)
	switch v := table.via; {
	case v != nil && v.hasPassed(req):
		t.refuseLoop()
	case status == 404:
		if n, ok := l.gw.strayLog.next(); ok {
			l.log.Warn("a client asks for a path that no service has: look at services", "client", t.s.client, "listener", t.s.listener.name, "server_name", t.s.entrance.serverName,
				"path", string(req.Path[:min(len(req.Path), 256)]), "services", table.paths(), "times", n)
		}
		t.reply(404, rejectNoService, 0)
	case status == 405:
		t.reply(405, rejectMethodNotAllowed, 0)
	default:
		t.route, t.service, t.pool = r, table.serviceOf(t.s.entrance, req.Path, r), l.poolFor(r.pool)
		if r.headers != nil {
			r.headers.onRequest(t, req)
		}
		if req.Method == icap.MethodOptions && t.answerOptions(req.Path) {
			return
		}
		if v != nil {
			req.Add(viaName, v.value)
		}
		t.setKey(req)
	}
}

// ownTag is the ISTag line of an answer of the gateway's own.
func (t *transaction) ownTag() []byte {
	if t.service == nil {
		return strayTag
	}
	return t.service.ownTag()
}

// setKey takes the key of the request that balance: hash goes by.
func (t *transaction) setKey(req *icap.Request) {
	t.keyed = false
	if h := t.route.pool.hash; h != nil && req != nil {
		t.key, t.keyed = h.key.of(req, t.s.client)
	}
}

// reparse returns the heads of a request that is held, until the loop parses another one; nil: they can't be read.
func (t *transaction) reparse() *icap.Request {
	l := t.s.loop
	b := t.held.B
	head, _, _ := bytes.Cut(b[t.payload:], []byte("\r\n\r\n"))
	l.line = fmt.Appendf(l.line[:0], "%s icap://%s%s ICAP/1.0\r\nHost: %s\r\n%s\r\n\r\n",
		methodNames[t.method], b[t.targetEnd:t.authEnd], b[:t.targetEnd], b[t.authEnd:t.payload], head)
	if err := l.req.Parse(l.line); err != nil {
		return nil
	}
	return &l.req
}

// hold writes the request into held in canonical form, without the request line and Host, which depend on the server. head is the
// length of its ICAP head as received.
func (t *transaction) hold(req *icap.Request, head int, blocks []byte) {
	t.held = t.s.loop.buffers.get(2*head + len(blocks) + 512) // canonical form is hardly longer than what was received
	b := append(t.held.B, req.Target...)
	t.targetEnd = len(b)
	b = append(b, req.Authority...)
	t.authEnd = len(b)
	if b = append(b, req.Host...); len(req.Host) == 0 {
		b = append(b, req.Authority...)
	}
	t.payload = len(b)
	t.sent = t.payload
	if t.idHeader = t.s.loop.table.idHeader; t.idHeader != "" {
		req.Drop(t.idHeader) // ours takes its place
	}
	b = req.AppendFields(b)
	if req.Preview >= 0 && !t.endsPreview {
		b = append(b, "Preview: "...)
		b = strconv.AppendInt(b, int64(req.Preview), 10)
		b = append(b, "\r\n"...)
	}
	if req.Encapsulated.Body() == icap.OptBody {
		b = append(b, "Encapsulated: null-body=0\r\n"...)
	} else {
		b = req.Encapsulated.AppendTo(b)
	}
	b = append(b, "\r\n"...)
	t.blocks, t.list = len(b), req.Encapsulated
	t.held.B = append(b, blocks...)
}

// forward takes decoded bytes of the body, in canonical framing, for the server.
func (t *transaction) forward(p []byte) {
	if t.bounds.maxBody > 0 && t.outgrows() {
		if t.limit(rejectBody); !t.active {
			return
		}
	}
	if t.discard {
		if t.dropped += uint64(len(p)); t.dropped > maxRest {
			t.abandonRest()
		}
		return
	}
	if len(p) == 0 {
		return
	}
	if t.echoing {
		t.s.sendBody(p)
		return
	}
	if t.held != nil && t.file == nil {
		previewing := t.preview >= 0 && !t.continued
		if previewing || !t.streaming() || len(t.held.B)-t.payload+len(p) <= t.pool.replayBuffer {
			t.held = t.s.loop.buffers.append(t.held, p)
			t.s.loop.stats.body[towardsServer][viaBuffered].Add(uint64(len(p)))
			return
		}
		if t.srv.hasEnded() { // the last moment at which it can be replayed
			t.held = t.s.loop.buffers.append(t.held, p)
			t.srv.fail(failNoAnswer, reasonServerClosed)
			return
		}
		t.pump()
		t.beginSpill()
	}
	if t.file != nil && !t.keep(p) {
		return
	}
	if t.srv != nil {
		t.srv.sendBody(p)
	}
}

// abandonRest ends the session, because the rest of an answered request has no end.
func (t *transaction) abandonRest() {
	t.cancel(reasonNotReusable, reasonNotRead.String())
	t.s.endSession(reasonNotRead)
}

func (t *transaction) dropHeld() {
	t.s.loop.buffers.put(t.held)
	t.held = nil
	t.closeFile(spillKept)
}

// splices says whether the next bytes of the body go from socket to socket.
func (t *transaction) splices() bool {
	return t.held == nil && !t.discard && t.streaming() && t.s.request == requestBody && t.s.canSplice(&t.srv.conn, t.s.body.Rest())
}

// takesBody says whether further bytes of the body have somewhere to go.
func (t *transaction) takesBody() bool {
	switch {
	case t.discard:
		return true
	case t.echoing:
		return t.s.pending() < highWater
	case t.splices():
		return t.srv.pending() == 0
	case t.streaming():
		return t.srv.pending() < highWater && (t.file == nil || !t.file.Busy())
	case t.held == nil || t.file != nil:
		return false
	default: // queued, connecting, or still in the preview
		return len(t.held.B)-t.payload <= t.pool.replayBuffer || (t.preview >= 0 && !t.continued)
	}
}

// onRequestEnd is called when the last chunk of the body, or of the preview, has been forwarded.
func (t *transaction) onRequestEnd(end icap.BodyEnd) {
	t.wholeAt = t.s.loop.now
	if t.endsPreview {
		t.preview = -1
	}
	if end != icap.EndPreview {
		t.setRequestDone()
		return
	}
	if t.answered { // the client takes the final answer that it has got instead of a 100
		t.setRequestDone()
		return
	}
	t.s.request = requestHeld
	if t.held != nil && !t.endsPreview {
		t.previewEnd = len(t.held.B)
	}
	if t.asked && t.srv != nil { // otherwise the server that asked has gone since, and the next one will ask itself
		t.pump()
		t.sendContinue()
	}
}

// onContinue is called when the server has sent a 100; false: nobody waits for one.
func (t *transaction) onContinue() bool {
	if t.preview < 0 || t.serverContinued {
		return false
	}
	switch {
	case t.continued: // this server is a replacement for the one whose 100 the client got
		t.serverContinued = true
		t.srv.waits = waitNone // what it has to answer is another request now
		t.pump()
		t.s.loop.runLater(&t.s.conn)
	case t.s.request == requestHeld:
		t.sendContinue()
	case !t.requestDone:
		t.asked = true // held back until the preview is in
	default: // behind ieof
		return false
	}
	return true
}

// sendContinue asks the client for the rest, in a segment of its own: some clients compare the exact bytes.
func (t *transaction) sendContinue() {
	s := t.s
	t.continued, t.serverContinued, t.asked = true, !t.endsPreview, false
	s.flush()
	s.send(continueAnswer)
	s.flush()
	t.payloadIn += s.body.Payload()
	s.body.Reset(icap.BodyConfig{Preview: -1, MaxChunk: int64(t.pool.table.cfg.MaxChunk)})
	s.request = requestBody
	s.loop.runLater(&s.conn)
}

// setRequestDone is called once when no more bytes of the request will come.
func (t *transaction) setRequestDone() {
	t.requestDone = true
	t.s.request = requestDone
	t.responseDone = t.responseDone || t.echoing
	t.finishIfDone()
}

// proceed starts the transaction when it has not begun its first attempt, and otherwise sends on what has come.
func (t *transaction) proceed() {
	switch {
	case !t.active || t.responseDone && t.srv == nil:
	case t.awaitsPreview():
	case t.route != nil && t.attempts == 0 && !t.waiting && !t.answered:
		if t.endsPreview {
			t.follow() // while its preview was awaited, its pool may have changed
		}
		t.pool.table.budget.First()
		t.setDecision()
		t.next()
	default:
		t.pump()
	}
}

// onFinal relays the head of the server's final answer. r and blocks are valid during the call only. false: the answer is not
// legal here and was not relayed.
func (t *transaction) onFinal(r *icap.Response, e *icap.Encapsulated, blocks []byte) bool {
	if r.Status == 200 && t.method != icap.MethodOptions && e.Body() == icap.NullBody && e.HeadLen() == 0 {
		r.Status, r.Reason = 204, nil // "no modifications", as c-icap's Allow204As200okZeroEncaps says it
	}
	unchanged := r.Status == 204 && !e.HasBody() && t.echoes204()
	if unchanged {
		r.Status, r.Reason = 200, nil
	} else if !t.legal(r, e) {
		return false
	}
	s := t.s
	l := s.loop
	t.status, t.server = r.Status, t.srv.server
	t.answered = true
	t.firstByte = l.now
	t.endSpill()
	own := false // it is the gateway's own OPTIONS
	if t.method == icap.MethodOptions {
		if r.Status == 200 {
			t.onOptions(r)
			own = !t.service.lead.forwards
		}
		if e.Body() == icap.OptBody || own && e.HasBody() {
			t.dropBody = true
			e = nil
		}
	}
	if s.request == requestHeld { // the client will not send the rest
		if s.in != nil && !startsRequest(s.in.B[s.inPos:]) {
			t.close = true // what it has sent without waiting can't be told from a next request
		}
		t.requestDone = true
		s.request = requestDone
	}
	if r.Status == 204 && e != nil && e.HasBody() { // for a client it has none, whatever its head says
		t.dropBody = true
		e = nil
	}
	if t.continued && t.previewOnly() && !unchanged { // this server replaced the one that said 100, and needs no more than the preview
		t.discard = true
		t.dropHeld()
		l.runLater(&s.conn)
	}
	if l.gw.draining.Load() {
		t.close = true
	}
	if h := t.route.headers; h != nil {
		h.onAnswer(r)
	}
	switch {
	case unchanged:
		t.sendUnchanged(r)
		return true
	case own:
		l.line = appendAnswer(l.line[:0], t.ownTag(), 200, 0, t.close, t.extraFields(), t.normalise(r))
		s.send(l.line)
		return true
	}
	l.line = appendResponseHead(l.line[:0], t.service.relayedTag(), r, e, t.close, t.extraFields())
	if len(blocks) < directWrite && !t.dropBody {
		l.line = append(l.line, blocks...)
		s.send(l.line)
	} else {
		s.send(l.line)
		if !t.dropBody {
			s.send(blocks)
		}
	}
	return true
}

// onOptions notes what a server has answered to a client's OPTIONS: of a checked path the checks know, and of all others that share the connections.
func (t *transaction) onOptions(r *icap.Response) {
	l := t.s.loop
	if t.route.checkPath < 0 {
		t.srv.server.Learn(r.MaxConnections())
		l.gw.onCap(t.srv.server)
	}
	if path, _, _ := bytes.Cut(t.held.B[:t.targetEnd], []byte("?")); t.service.asks(path) {
		l.gw.servers.onAsked(t.service, string(path))
	}
}

// legal says whether the client can take this answer: it has to have allowed 204 and 206 unless its preview still waits for a verdict
// (RFC 3507 4.5, 4.6), and a 200 to a modification has to say what it encapsulates.
func (t *transaction) legal(r *icap.Response, e *icap.Encapsulated) bool {
	switch {
	case t.method == icap.MethodOptions:
		return true
	case r.Status == 204:
		return t.takes204()
	case r.Status == 206:
		return t.allow&icap.Allow206 != 0 && t.takes204()
	case r.Status == 200:
		return e.Body() != icap.NoSection && e.Body() != icap.OptBody
	case r.Status == 201:
		return true
	}
	return r.Status >= 400
}

// takes204 says whether the client can take a 204 now.
func (t *transaction) takes204() bool {
	return t.previewed && !t.continued || t.allow&icap.Allow204 != 0
}

// echoes204 says whether the client can't take a 204 which its server has sent all the same, and can be given what that means: its own message. That need not be
// in yet where the server needs no more than the preview: it has replaced one whose 100 the client has got, and can't know that a 204 comes too late.
func (t *transaction) echoes204() bool {
	return t.method != icap.MethodOptions && !t.takes204() && (t.requestDone || t.previewOnly()) && t.held != nil && t.file == nil
}

// sendUnchanged answers with the client's own message and the fields of r.
func (t *transaction) sendUnchanged(r *icap.Response) {
	s := t.s
	l := s.loop
	l.stats.unchangedEchoed.Add(1)
	list, skip := t.list.Unchanged(t.method)
	l.line = appendResponseHead(l.line[:0], t.service.relayedTag(), r, &list, t.close, t.extraFields())
	s.send(l.line)
	t.sendHeld(skip)
	t.payloadOut = t.payloadIn + s.body.Payload()
	if !t.requestDone {
		t.echoing = true
		t.dropHeld()
		l.runLater(&s.conn) // its reading may have stopped for the server
	}
}

// startsRequest says whether p can be the start of another request, and not of a chunk: chunk sizes start with a hex digit.
func startsRequest(p []byte) bool {
	return len(p) == 0 || p[0] == 'O' || p[0] == 'R' || p[0] == '\r' || p[0] == '\n'
}

// relay takes decoded bytes of the response's body, in canonical framing, for the client.
func (t *transaction) relay(p []byte) {
	if !t.dropBody {
		t.s.sendBody(p)
	}
}

// onResponseEnd is called when the last byte of the answer has been relayed, but for what is still to come of an echo.
func (t *transaction) onResponseEnd() {
	t.responseDone = !t.echoing || t.requestDone
	t.finishIfDone()
}

// reply answers the request with an error of the gateway's own. What still comes of it is read and dropped.
func (t *transaction) reply(status int, why rejectReason, retryAfter int) {
	t.s.loop.stats.rejects[why].Add(1)
	t.end = why.String()
	t.answer(status, retryAfter, nil)
}

// answer answers the request without a server, and without a body. mark are further header lines.
func (t *transaction) answer(status, retryAfter int, mark []byte) {
	s := t.s
	l := s.loop
	t.status, t.answered, t.discard = status, true, true
	if s.request == requestHeld {
		t.requestDone = true
		s.request = requestDone
		t.close = t.close || s.in != nil && !startsRequest(s.in.B[s.inPos:])
	}
	if l.gw.draining.Load() {
		t.close = true
	}
	l.line = appendAnswer(l.line[:0], t.ownTag(), status, retryAfter, t.close, t.extraFields(), mark)
	s.send(l.line)
	t.dropHeld()
	t.onResponseEnd()
	s.endRound()
	l.runLater(&s.conn) // its reading may have stopped for the server
}

// finishIfDone ends the transaction when both its request and its response are through.
func (t *transaction) finishIfDone() {
	if !t.active || !t.requestDone || !t.responseDone {
		return
	}
	if t.srv != nil {
		t.pump()
		t.leaveServer()
	}
	s := t.s
	t.deactivate()
	t.dropHeld()
	s.loop.stats.count(t)
	s.loop.logAccess(t)
	s.flush()
	s.checkWrite()
	s.next(t.close)
	if !s.closed {
		s.setTimer()
	}
}

func (t *transaction) deactivate() {
	t.active = false
	t.s.loop.wheel.stop(&t.decision)
	t.s.loop.wheel.stop(&t.bounds.timer)
	if t.s.closed {
		delete(t.s.loop.orphans, t.s)
	}
}

// cancel ends the transaction without (further) answer: r closes its server's connection, end is why.
func (t *transaction) cancel(r closeReason, end string) {
	if !t.active {
		return
	}
	t.deactivate()
	t.leaveQueue()
	if t.srv != nil {
		t.srv.shut(r)
	}
	t.dropHeld()
	t.setEnd(end)
	t.s.loop.logAccess(t)
}
