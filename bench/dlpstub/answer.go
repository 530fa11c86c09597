package dlpstub

import (
	"bytes"
	"math"
	"strconv"
	"time"

	"icapgate/icap"
)

var crlf = []byte("\r\n")

// answer reads the request's body and writes the answer; which of them is first depends.
func (c *conn) answer() error {
	c.heads = c.srv.heads()
	switch {
	case c.excess:
		c.refused(503)
	case c.how.Fault.Kind == ResetBody:
		return c.resetBody()
	case c.refusal != 0:
		c.refused(c.refusal)
	case c.req.Method == icap.MethodOptions:
		return c.answerOptions()
	case c.srv.cfg.Slots > 0:
		served, err := c.takeSlot()
		if err != nil {
			return err
		}
		if !served {
			c.refused(503)
		}
	}
	return c.answerModify()
}

// refused makes the answer one of an error, at once.
func (c *conn) refused(status int) {
	cfg := &c.srv.cfg
	c.how.Status, c.how.Latency, c.how.LatencyPerMiB = status, 0, 0
	c.how.Continue, c.how.Fields = false, cfg.retryAfter(status)
	if cfg.OpenErrors && status >= 400 && status < 500 && status != 418 {
		c.how.Status, c.unfinished = 400, true
		if c.req.Encapsulated.HasBody() {
			c.closing = 1
		}
	}
}

// retryAfter returns the Retry-After line of an error, if it has one.
func (cfg *Config) retryAfter(status int) string {
	if cfg.RetryAfter == 0 || status != 503 {
		return ""
	}
	return string(cfg.appendField(nil, "Retry-After", strconv.Itoa(int(cfg.RetryAfter/time.Second))))
}

func (c *conn) answerOptions() error {
	if err := c.drain(false); err != nil {
		return err
	}
	switch f := c.how.Fault; f.Kind {
	case NoFault, ResetAnswer, Trickle:
	case Late:
		if err := c.pause(f.pause()); err != nil {
			return err
		}
	default:
		return c.answerModify()
	}
	if c.closing == 1 && c.srv.cfg.SilentOptionsClose && !c.req.Close {
		c.out = append(c.out, c.heads.options[c.service][0]...)
	} else {
		c.out = append(c.out, c.heads.options[c.service][c.closing]...)
	}
	c.out = time.Now().UTC().AppendFormat(c.out, dateFormat)
	c.status = 200
	return c.end([]byte("\r\n\r\n"))
}

func (c *conn) answerModify() error {
	how, cfg := &c.how, &c.srv.cfg
	switch how.Fault.Kind {
	case Silent:
		return c.beSilent()
	case Garbage:
		return c.answerGarbage()
	case WrongEncapsulated:
		how.Mode, how.Status = Echo, 0
	case WrongStatus:
		how.Status = how.Fault.Status
		how.Fields += cfg.retryAfter(how.Status)
	}
	inPreview := c.req.Preview >= 0
	if cfg.Alternate && inPreview && how.Status == 0 && c.srv.previews.Add(1)%2 == 0 {
		how.Mode = NoContent
	}
	if cfg.Match != nil && how.Status == 0 && how.Mode != Block {
		return c.inspect(inPreview)
	}
	short := c.decide(inPreview)
	skips := c.status == 206 && cfg.Change.Skip > 0 // it has to know that the body has that many bytes
	if short && how.EarlyAnswer && !skips {
		return c.answerEarly()
	}
	if inPreview && !cfg.WholePreview {
		if err := c.drain(!short || how.Continue || skips); err != nil {
			return err
		}
		if c.body.End() == icap.EndPreview && (!short || how.Continue || skips && c.bodySize() < uint64(cfg.Change.Skip)) {
			if err := c.askForRest(); err != nil {
				return err
			}
			short = c.decide(false)
		}
	}
	return c.answerAs(short)
}

// answerAs answers in the form that was decided for.
func (c *conn) answerAs(short bool) error {
	switch {
	case short:
		return c.answerShort()
	case c.form == Modify:
		return c.modify(&c.srv.cfg.Change)
	}
	return c.echo()
}

// inspect looks for what is to be blocked before it answers. It holds the preview, and the body up to MatchLimit; if the answer has nothing of
// the body, it looks at all of it, piece by piece.
func (c *conn) inspect(inPreview bool) error {
	cfg := &c.srv.cfg
	for {
		limit := cfg.MatchLimit
		if inPreview { // all of it: the rest comes only if it is asked for
			limit = math.MaxInt
		}
		if err := c.drainTo(limit); err != nil {
			return err
		}
		if cfg.Match.Match(c.preview) {
			return c.block()
		}
		if c.body.End() != icap.EndPreview || cfg.WholePreview {
			break
		}
		if err := c.askForRest(); err != nil {
			return err
		}
		inPreview = false
	}
	short := c.decide(inPreview)
	for short && !c.bodyEnded() {
		c.preview = append(c.preview[:0], c.preview[max(0, len(c.preview)-MatchOverlap):]...)
		if err := c.drainTo(max(cfg.MatchLimit, 2*MatchOverlap)); err != nil {
			return err
		}
		if cfg.Match.Match(c.preview) {
			return c.block()
		}
	}
	if c.form == Echo && !c.bodyEnded() { // what is held may end within a chunk, so that its chunks cannot go on as they are
		return c.modify(&Change{})
	}
	return c.answerAs(short)
}

// block answers with the block page.
func (c *conn) block() error {
	c.how.Mode = Block
	c.decide(false)
	if c.how.EarlyAnswer {
		return c.answerEarly()
	}
	return c.answerShort()
}

// decide chooses the form of the answer by what is configured and what the client allows. Short: it has nothing of the body.
func (c *conn) decide(inPreview bool) (short bool) {
	how := &c.how
	may204 := inPreview || c.req.Allow&icap.Allow204 != 0
	c.form, c.status = how.Mode, 200
	switch {
	case how.Status != 0:
		c.status = how.Status
		return true
	case how.Mode == Block:
		return true
	case how.Mode == NoContent && may204:
		c.status = 204
		return true
	case how.Mode == Partial && may204 && c.req.Allow&icap.Allow206 != 0 && c.req.Encapsulated.HasBody():
		c.status = 206
		return true
	case how.Mode == NoContent:
		c.form = Echo
	case how.Mode == Partial:
		c.form = Modify
	}
	return false
}

// short returns the whole answer that was decided for.
func (c *conn) short() []byte {
	how, cfg, h := &c.how, &c.srv.cfg, c.heads
	usual := how.Fields == cfg.Fields
	switch {
	case c.unfinished:
		c.head = cfg.appendOpenError(c.head[:0])
	case how.Status != 0 && (how.Status != cfg.Status || !usual), how.Status == 0 && how.Mode == NoContent && !usual:
		c.head = appendBrief(c.head[:0], cfg, h.tag, c.status, c.closing == 1, how.Fields)
	case how.Status != 0:
		return h.status[c.closing]
	case how.Mode == NoContent:
		return h.noContent[c.closing]
	case how.Mode == Partial:
		c.appendPartial()
	case usual:
		c.srv.blocked.Add(1)
		return h.block[c.closing]
	default:
		c.srv.blocked.Add(1)
		c.head = appendBlock(c.head[:0], cfg, h.tag, c.closing == 1, how.Fields)
	}
	return c.head
}

// appendPartial makes a 206: the changed head, bytes of ours, and where the original body goes on.
func (c *conn) appendPartial() {
	change := &c.srv.cfg.Change
	c.head = append(appendHead(c.head[:0], &c.srv.cfg, c.heads.tag, 206, c.closing == 1), c.how.Fields...)
	c.changed = change.appendHead(c.changed[:0], c.message(), true)
	c.head = appendEncapsulated(c.head, c.req.Method, len(c.changed), true, 0)
	c.head = append(c.head, c.changed...)
	c.head = appendChunk(c.head, change.Body)
	if change.Skip == SkipAll {
		c.head = append(c.head, "0\r\n\r\n"...)
		return
	}
	c.head = append(c.head, "0; use-original-body="...)
	c.head = strconv.AppendUint(c.head, min(uint64(change.Skip), c.bodySize()), 10)
	c.head = append(c.head, "\r\n\r\n"...)
}

// answerShort answers after the body.
func (c *conn) answerShort() error {
	if err := c.drain(false); err != nil {
		return err
	}
	if err := c.wait(); err != nil {
		return err
	}
	return c.end(c.short())
}

// answerEarly answers before the body.
func (c *conn) answerEarly() error {
	if err := c.wait(); err != nil {
		return err
	}
	if c.bodyEnded() {
		return c.end(c.short())
	}
	c.start()
	c.out = append(c.out, c.short()...)
	c.cutAt(len(c.out) / 2)
	if err := c.flush(); err != nil {
		return err
	}
	return c.drain(false)
}

// askForRest sends a 100 Continue for the body after the preview.
func (c *conn) askForRest() error {
	c.out = append(c.out, continueAnswer...)
	if err := c.flush(); err != nil {
		return err
	}
	c.info.Continued = true
	c.previewed = c.body.Payload()
	c.startBody(-1)
	return nil
}

// message returns the encapsulated head that an answer with the message has: one of a RESPMOD has no req-hdr (RFC 3507 section 4.9.2).
func (c *conn) message() []byte {
	if c.req.Method == icap.MethodRespmod {
		return c.blocks[reqHdrLen(&c.req.Encapsulated):]
	}
	return c.blocks
}

// startMessage begins a 200 with the message, of which the head is given.
func (c *conn) startMessage(head []byte) {
	c.start()
	off := 0
	if c.how.Fault.Kind == WrongEncapsulated {
		off = 2
	}
	c.out = append(c.out, c.heads.ok[c.closing]...)
	c.out = append(c.out, c.how.Fields...)
	c.out = appendEncapsulated(c.out, c.req.Method, len(head), c.req.Encapsulated.HasBody(), off)
	c.out = append(c.out, head...)
	if c.req.Encapsulated.HasBody() {
		c.cutAt(len(c.out) + 4) // in what comes after the head; the shortest body has 5 bytes
	}
}

// echo answers with the message of the request. It writes while it reads, with the chunks that it reads.
func (c *conn) echo() error {
	if c.srv.cfg.WholePreview {
		if err := c.drainPreview(); err != nil {
			return err
		}
	}
	if err := c.wait(); err != nil {
		return err
	}
	c.startMessage(c.message())
	if !c.req.Encapsulated.HasBody() {
		return c.end(nil)
	}
	if c.how.EarlyAnswer {
		if err := c.flush(); err != nil {
			return err
		}
	}
	if err := c.writeChunk(c.preview); err != nil {
		return err
	}
	if c.body.End() != icap.EndNone { // the latency of the body has passed before the head
		return c.end([]byte("0\r\n\r\n"))
	}
	// The head waits for the first bytes after it, so that a short answer is written with one call.
	for waiting := true; c.body.End() == icap.EndNone; waiting = false {
		if c.r == c.w {
			if !waiting {
				if err := c.flush(); err != nil {
					return err
				}
			}
			if err := c.fill(); err != nil {
				return err
			}
		}
		p := c.in[c.r:c.w]
		out, n, err := c.body.Next(p)
		if err != nil {
			return err
		}
		c.r += n
		if c.hash != nil {
			c.hashFramed(p[:n])
		}
		if c.body.End() != icap.EndNone {
			if err := c.waitForBody(); err != nil {
				return err
			}
			c.finish(nil)
		}
		if err := c.write(out); err != nil {
			return err
		}
	}
	return c.flush()
}

// modify answers with the message, changed, in chunks of its own. It writes while it reads.
func (c *conn) modify(change *Change) error {
	if c.srv.cfg.WholePreview {
		if err := c.drainPreview(); err != nil {
			return err
		}
	}
	if err := c.wait(); err != nil {
		return err
	}
	c.changed = change.appendHead(c.changed[:0], c.message(), c.req.Encapsulated.HasBody())
	c.startMessage(c.changed)
	if !c.req.Encapsulated.HasBody() {
		return c.end(nil)
	}
	if err := c.writeChunk(change.Body); err != nil {
		return err
	}
	skip := change.Skip
	pass := func(p []byte) error {
		if skip == SkipAll {
			return nil
		}
		n := min(skip, len(p))
		skip -= n
		return c.writeChunk(p[n:])
	}
	if err := pass(c.preview); err != nil {
		return err
	}
	early := c.body.End() == icap.EndNone
	for waiting := true; c.body.End() == icap.EndNone; waiting = false { // as in echo
		if c.r == c.w && !waiting {
			if err := c.flush(); err != nil {
				return err
			}
		}
		data, err := c.nextData()
		if err == nil {
			err = pass(data)
		}
		if err != nil {
			return err
		}
	}
	if early {
		if err := c.waitForBody(); err != nil {
			return err
		}
	}
	return c.end([]byte("0\r\n\r\n"))
}

// writeChunk adds p to the answer as a chunk, nothing if p is empty.
func (c *conn) writeChunk(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	c.out = strconv.AppendUint(c.out, uint64(len(p)), 16)
	c.out = append(c.out, "\r\n"...)
	if err := c.write(p); err != nil {
		return err
	}
	return c.write(crlf)
}

// hashFramed adds the body bytes in p, which body has accepted, to the hash.
func (c *conn) hashFramed(p []byte) {
	for len(p) > 0 {
		data, n, _ := c.tap.NextData(p)
		c.hash.Write(data)
		p = p[n:]
	}
}

// nextData returns the next run of the body, which may be empty. It is valid until more is read.
func (c *conn) nextData() ([]byte, error) {
	if c.r == c.w {
		if err := c.fill(); err != nil {
			return nil, err
		}
	}
	data, n, err := c.body.NextData(c.in[c.r:c.w])
	c.r += n
	if c.hash != nil {
		c.hash.Write(data)
	}
	return data, err
}

// drain reads the body to its end, or that of its preview. It keeps the bytes in c.preview if keep is set.
func (c *conn) drain(keep bool) error {
	for !c.bodyEnded() {
		data, err := c.nextData()
		if err != nil {
			return err
		}
		if keep {
			c.preview = append(c.preview, data...)
		}
	}
	return nil
}

// drainPreview reads a preview to its end and keeps it.
func (c *conn) drainPreview() error {
	if c.req.Preview < 0 {
		return nil
	}
	return c.drain(true)
}

// drainTo reads the body to its end, or that of its preview, or until c.preview has at least limit bytes.
func (c *conn) drainTo(limit int) error {
	for !c.bodyEnded() && len(c.preview) < limit {
		data, err := c.nextData()
		if err != nil {
			return err
		}
		c.preview = append(c.preview, data...)
	}
	return nil
}

// end writes what is collected and the last bytes of an answer, after the body has been read.
func (c *conn) end(last []byte) error {
	c.start()
	c.finish(nil)
	c.out = append(c.out, last...)
	c.cutAt(len(c.out) / 2)
	return c.flush()
}

// start counts the final answer, which begins; once.
func (c *conn) start() {
	if c.answered {
		return
	}
	c.answered = true
	if c.status < len(c.srv.statuses) {
		c.srv.statuses[c.status].Add(1)
	}
}

// bodySize returns how many bytes of the body have been read.
func (c *conn) bodySize() uint64 {
	if !c.req.Encapsulated.HasBody() {
		return c.previewed
	}
	return c.previewed + c.body.Payload()
}

// finish counts the body and calls the hook, once for each request.
func (c *conn) finish(err error) {
	if c.finished {
		return
	}
	c.finished = true
	if c.whole {
		err = nil
	}
	if err != nil {
		c.srv.noteError(err)
	}
	size := c.bodySize()
	if c.srv.cfg.Incidents != nil && len(c.incident) > 0 {
		c.srv.cfg.Incidents.note(c.incident, c.outcome(err))
	}
	c.srv.payload.Add(size)
	if c.hash != nil {
		c.info.Ieof = c.body.End() == icap.EndIeof
		c.info.BodyLen = size
		c.hash.Sum(c.info.BodySHA256[:0])
		c.info.Err = err
		c.srv.cfg.Hook(&c.info)
	}
}

// outcome says how a request counts in Incidents.
func (c *conn) outcome(err error) outcome {
	switch {
	case err != nil:
		return cut
	case c.status >= 400:
		return refused
	}
	return whole
}

// reqHdrLen returns the length of the req-hdr block, which is the offset of the section after it; 0 if there is none.
func reqHdrLen(e *icap.Encapsulated) (n int) {
	var line [128]byte
	next, ok := bytes.CutPrefix(e.AppendTo(line[:0]), []byte("Encapsulated: req-hdr=0, "))
	if !ok {
		return 0
	}
	for _, c := range next[bytes.IndexByte(next, '=')+1:] {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int(c-'0')
	}
	return n
}
