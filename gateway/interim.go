package gateway

import (
	"bytes"
	"errors"

	"icapgate/icap"
)

// This file is what becomes of answers of a server that are not its last (1xx). One is the 100 that a preview waits for. Scanners that take minutes for an
// archive or a sandbox send others meanwhile, at the interval in seconds that the client has asked for: with X-Scan-Progress-Interval, which FortiGate and
// ProxySG send, and X-Scan-Progress in the answer. No specification says more, so what shows progress is taken widely, and what is made of it is little.
// All else is swallowed: clients take a second 100, or one to a preview that was all, for a broken server.

const (
	progressInterval = "X-Scan-Progress-Interval" // of a request
	scanProgress     = "X-Scan-Progress"          // of an interim answer
)

// maxInterims bounds what a server says instead of an answer; one a second for all of an hour is well below.
const maxInterims = 10000

var errInterims = errors.New("more than 10000 interim answers")

// onInterim takes the head of an interim answer, which is valid during the call only.
func (c *serverConn) onInterim(r *icap.Response) {
	t := c.tx
	c.interims++
	switch {
	case c.interims > maxInterims:
		c.broken(errInterims)
	case r.Status == 100 && t.onContinue():
	case r.Status == 101: // there is no protocol that it could switch to
	case r.Status == 100 && !t.asksProgress && r.Get(scanProgress) == nil: // nobody asked for it
	default:
		c.onProgress()
		t.relayInterim(r)
	}
}

// onProgress takes a sign of life for one: the server has timeouts.response again from now on, but no more than timeouts.progress in all.
func (c *serverConn) onProgress() {
	if c.waits != waitAnswer {
		return // it is not the server that is waited for
	}
	cfg := &c.pool.table.cfg.Timeouts
	left := int64(cfg.Progress) - c.waited
	c.activeAt = max(c.activeAt, c.loop.now-max(0, int64(cfg.Response)-left))
}

// relayInterim tells the client of the progress if it has asked for it, and can't take that for the 100 that its preview waits for.
func (t *transaction) relayInterim(r *icap.Response) {
	if !t.asksProgress || t.previewed && !t.continued && !t.requestDone {
		return
	}
	l := t.s.loop
	l.line = appendStatusLine(l.line[:0], r.Status, r.Reason)
	if v := r.Get(scanProgress); v != nil && bytes.IndexByte(v, '\n') < 0 {
		l.line = append(append(append(l.line, scanProgress+": "...), v...), "\r\n"...)
	}
	l.line = append(l.line, "\r\n"...)
	t.s.send(l.line)
}
