package dlpstub

import (
	"strconv"
	"time"

	"icapgate/icap"
)

// answer reads the request's body and writes the answer; which of them is first depends.
func (c *conn) answer() error {
	s := c.srv
	switch m := c.req.Method; {
	case m == icap.MethodOptions:
		if err := c.drain(false); err != nil {
			return err
		}
		c.out = append(c.out, s.answers.options[c.closing]...)
		c.out = time.Now().UTC().AppendFormat(c.out, dateFormat)
		c.status = 200
		return c.end([]byte("\r\n\r\n"))
	case m == icap.MethodOther:
		c.status = 501
		return c.answerBrief(s.answers.unknown[c.closing])
	case !s.methods[m]:
		c.status = 405
		return c.answerBrief(s.answers.notServed[c.closing])
	}
	if s.cfg.Slots > 0 {
		served, err := c.takeSlot()
		if err != nil {
			return err
		}
		if !served {
			c.overloaded()
		}
	}
	return c.answerModify()
}

func (c *conn) answerModify() error {
	how := &c.how
	inPreview := c.req.Preview >= 0
	brief := c.brief(inPreview)
	if brief != nil && how.EarlyAnswer {
		return c.answerEarly(brief)
	}
	if inPreview {
		if err := c.drain(brief == nil || how.Continue); err != nil {
			return err
		}
		if c.body.End() == icap.EndPreview && (brief == nil || how.Continue) {
			if err := c.askForRest(); err != nil {
				return err
			}
			brief = c.brief(false)
		}
	}
	if brief == nil {
		return c.echo()
	}
	return c.answerBrief(brief)
}

// overloaded makes the answer a 503.
func (c *conn) overloaded() {
	c.how.Status, c.how.Latency, c.how.LatencyPerMiB = 503, 0, 0
	if s := c.srv.cfg.RetryAfter; s > 0 {
		c.how.Fields += "Retry-After: " + strconv.Itoa(int(s/time.Second)) + "\r\n"
	}
}

// brief returns the answer without a body that the configuration and the client allow; nil: the message has to be
// echoed.
func (c *conn) brief(inPreview bool) []byte {
	how, a := &c.how, &c.srv.answers
	status, answer := how.Status, a.status[c.closing]
	switch {
	case how.Status != 0:
	case how.Mode == NoContent && (inPreview || c.req.Allow&icap.Allow204 != 0):
		status, answer = 204, a.noContent[c.closing]
	default:
		return nil
	}
	c.status = status
	if how.Fields == "" && (status == 204 || status == c.srv.cfg.Status) {
		return answer
	}
	c.head = appendHead(c.head[:0], &c.srv.cfg, status, c.closing == 1)
	c.head = append(append(c.head, how.Fields...), "\r\n"...)
	return c.head
}

// answerBrief answers after the body.
func (c *conn) answerBrief(answer []byte) error {
	if err := c.drain(false); err != nil {
		return err
	}
	if err := c.wait(); err != nil {
		return err
	}
	return c.end(answer)
}

// answerEarly answers before the body.
func (c *conn) answerEarly(answer []byte) error {
	if err := c.wait(); err != nil {
		return err
	}
	if c.bodyEnded() {
		return c.end(answer)
	}
	c.start(c.status)
	c.out = append(c.out, answer...)
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

// echo answers with the message of the request. It writes while it reads, with the chunks that it reads.
func (c *conn) echo() error {
	if err := c.wait(); err != nil {
		return err
	}
	c.status = 200
	c.start(c.status)
	c.out = append(c.out, c.srv.answers.ok[c.closing]...)
	c.out = append(c.out, c.how.Fields...)
	c.out = appendEcho(c.out, c.req.Method, &c.req.Encapsulated, c.blocks)
	if !c.req.Encapsulated.HasBody() {
		return c.end(nil)
	}
	if c.how.EarlyAnswer {
		if err := c.flush(); err != nil {
			return err
		}
	}
	if len(c.preview) > 0 {
		c.out = strconv.AppendUint(c.out, uint64(len(c.preview)), 16)
		c.out = append(c.out, "\r\n"...)
		c.out = append(c.out, c.preview...)
		c.out = append(c.out, "\r\n"...)
	}
	if c.body.End() == icap.EndIeof { // the latency of the body has passed before the head
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

// hashFramed adds the body bytes in p, which body has accepted, to the hash.
func (c *conn) hashFramed(p []byte) {
	for len(p) > 0 {
		data, n, _ := c.tap.NextData(p)
		c.hash.Write(data)
		p = p[n:]
	}
}

// drain reads the body to its end, or that of its preview. It keeps the bytes in c.preview if keep is set.
func (c *conn) drain(keep bool) error {
	for !c.bodyEnded() {
		if c.r == c.w {
			if err := c.fill(); err != nil {
				return err
			}
		}
		data, n, err := c.body.NextData(c.in[c.r:c.w])
		if err != nil {
			return err
		}
		c.r += n
		if keep {
			c.preview = append(c.preview, data...)
		}
		if c.hash != nil {
			c.hash.Write(data)
		}
	}
	return nil
}

// end writes what is collected and the last bytes of an answer, after the body has been read.
func (c *conn) end(last []byte) error {
	c.start(c.status)
	c.finish(nil)
	c.out = append(c.out, last...)
	return c.flush()
}

// start counts a final answer that begins, once.
func (c *conn) start(status int) {
	if !c.answered {
		c.answered = true
		if status < len(c.srv.statuses) {
			c.srv.statuses[status].Add(1)
		}
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
