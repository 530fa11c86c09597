package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"sync/atomic"
	"time"
)

// ProbeHeader marks probes, in the ICAP head and in the encapsulated HTTP head, so that whoever sees one in a log or as an incident knows it.
const ProbeHeader = "X-Icapgate-Probe"

const (
	maxPreview = 64 << 10 // bytes; more is not sent whatever a server offers
	probeChunk = 16 << 10 // bytes; some servers take no large ones
)

// Probe is a REQMOD of our own that shows that a server scans: content that has to be judged in a known way. A server whose verdict is another
// one is not usable, however well it answers OPTIONS.
type Probe struct {
	Path   string
	Fields string // further lines of the ICAP head, each with its CRLF
	HTTP   []byte // encapsulated head
	Body   []byte

	Interval time.Duration // while the verdicts are right; 0: 60 s
	Timeout  time.Duration // of the whole exchange, connect and handshake included; 0: 10 s
	Rise     int           // right verdicts in a row that bring a server up; 0: 1
	Fall     int           // wrong ones that take it down; 0: 2

	// What is expected; all that is given has to hold.
	Status  int            // of ICAP; 0: any
	Header  *regexp.Regexp // matches a line "Name: value" of the ICAP head or of an encapsulated one, whose first line counts, too; nil: any
	Content *regexp.Regexp // matches in the first MiB of the answer's body; nil: any
}

// ProbeStats counts probes by result.
type ProbeStats struct {
	OK      atomic.Uint64 // the verdict was as expected
	Failed  atomic.Uint64
	Full    atomic.Uint64 // the server said that it is: no verdict
	Skipped atomic.Uint64 // not made: this machine lacked a descriptor or memory
}

// count counts an outcome and returns its name.
func (s *ProbeStats) count(o outcome) string {
	switch o {
	case good:
		s.OK.Add(1)
		return "ok"
	case bad:
		s.Failed.Add(1)
		return "failed"
	case full:
		s.Full.Add(1)
		return "full"
	}
	s.Skipped.Add(1)
	return "skipped"
}

// ProbeVerdict is what the latest probe of a server came to.
type ProbeVerdict struct {
	Result string        // ok, failed, full or skipped
	Fault  string        // "": none
	At     time.Time     // when it ended
	Took   time.Duration // connect included

	of *Probe // as given to NewChecker
}

// Probe returns the latest verdict, nil: there was no probe.
func (s *Status) Probe() *ProbeVerdict { return s.probe.Load() }

// proof is the part of a Checker that probes. Nothing of it happens without a Probe. A server has proved that it scans when its machine is
// up; it has to do so again after it was down or in maintenance.
type proof struct {
	c       *Checker
	of      *Probe // as given to NewChecker
	machine machine
	due     time.Time // of the next probe
	wrong   int       // probes in a row that were not as expected, or came to no verdict
	vague   bool      // the latest one came to no verdict
}

func (p *proof) init(c *Checker) {
	p.c = c
	p.of = c.cfg.Probe
	if p.of == nil {
		return
	}
	with := *p.of
	with.Interval = orDefault(with.Interval, 60*time.Second)
	with.Timeout = orDefault(with.Timeout, 10*time.Second)
	c.cfg.Probe = &with
	p.machine = machine{rise: orDefault(with.Rise, 1), fall: orDefault(with.Fall, 2)}
}

// begin goes on with what an earlier Checker has found out, unless that had another probe.
func (p *proof) begin() {
	s := p.c.status
	s.setProving(false)
	if s.State() == Up { // it is in use, and goes on to be unless it fails
		p.machine.state = Up
	}
	switch v := s.Probe(); {
	case v == nil:
	case v.of != p.of || p.of == nil:
		s.probe.Store(nil)
	case v.Result == "ok" && p.machine.state == Up:
		p.due = v.At.Add(p.c.cfg.Probe.Interval)
	}
}

// onCheck follows the verdict of the checks.
func (p *proof) onCheck() {
	if p.c.cfg.Probe == nil {
		return
	}
	if p.c.machine.state == Down {
		p.forget()
	}
	p.setProving()
}

// forget makes the server prove itself anew, as soon as it answers checks.
func (p *proof) forget() {
	p.machine.reset()
	p.due, p.wrong, p.vague = time.Time{}, 0, false
	p.c.status.setProving(false)
}

// isDue says whether it is time for a probe. There is none for a server that does not even answer checks.
func (p *proof) isDue(now time.Time) bool {
	return p.canProbe() && !now.Before(p.due)
}

func (p *proof) canProbe() bool {
	return p.c.cfg.Probe != nil && p.c.machine.state == Up && p.c.answers && p.c.status.Admin() != Maintenance
}

// orDue returns when the next probe is due, or check if that comes first.
func (p *proof) orDue(check time.Time) time.Time {
	if p.canProbe() && p.due.Before(check) {
		return p.due
	}
	return check
}

// probe makes one probe and acts on its outcome.
func (p *proof) probe(ctx context.Context) {
	c := p.c
	began := time.Now()
	run := probing{cfg: &c.cfg, preview: c.previewFor(c.cfg.Probe.Path)}
	o, err := run.run(ctx)
	if ctx.Err() != nil {
		return // the end of the Checker, not a fault of the server
	}
	now, fault := time.Now(), ""
	if err != nil {
		fault = err.Error()
	}
	c.status.probe.Store(&ProbeVerdict{c.cfg.Stats.Probes.count(o), fault, now, now.Sub(began), p.of})
	p.machine.step(o, now)
	p.vague = o == full || o == none
	p.wrong++
	if o == good {
		p.wrong = 0
	}
	p.due = now.Add(c.vary(p.pause()))
	p.setProving()
	c.publish(fault)
}

// pause is the time until the next probe. A wrong one is looked at again after a second, and then less and less often: where what is expected is
// what is wrong, each probe may write an incident.
func (p *proof) pause() time.Duration {
	if p.wrong == 0 || p.vague && p.machine.state == Up {
		return p.c.cfg.Probe.Interval
	}
	return min(p.c.cfg.Probe.Interval, changingInterval<<min(p.wrong-1, 12))
}

// setProving holds the grace back while a verdict is on its way.
func (p *proof) setProving() {
	s := p.c.status
	before, now := s.proving.Load(), p.c.machine.state == Up && p.machine.state == Checking && !p.vague
	if before == now {
		return
	}
	s.setProving(now)
	if g := p.c.cfg.Group; g != nil && p.vague {
		g.giveLate(s)
	}
}

// previewFor is the size of the preview that the server asks for, -1: it does not, or can't do with one.
func (c *Checker) previewFor(path string) int {
	if c.cfg.NoPreviews {
		return -1
	}
	for _, o := range c.said.options {
		if o != nil && o.Path == path {
			return o.Preview
		}
	}
	return -1
}

// probing is one probe of one server.
type probing struct {
	cfg     *CheckConfig
	preview int // bytes that the server asks to see first, -1: it does not say
	answer  answer
}

// run makes the exchange and judges it.
func (p *probing) run(ctx context.Context) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Probe.Timeout)
	defer cancel()
	request := "REQMOD " + p.cfg.Probe.Path
	connected, err := p.exchange(ctx)
	switch {
	case OwnFault(err):
		return none, fmt.Errorf("cannot probe: %w", err)
	case err != nil:
		return bad, explain(request, p.cfg, connected, p.cfg.Probe.Timeout, err)
	case isFull(p.answer.Status):
		return full, errors.New(describe(request, p.answer.Status))
	}
	if fault := p.cfg.Probe.judge(&p.answer); fault != "" {
		return bad, fmt.Errorf("%s, %s", describe(request, p.answer.Status), fault)
	}
	return good, nil
}

// exchange sends the request over a connection of its own and reads the whole answer. It reads while it writes, because a server may answer
// without having read all, and then read no more.
func (p *probing) exchange(ctx context.Context) (connected bool, err error) {
	conn, err := p.cfg.Dial(ctx, "tcp", p.cfg.Address)
	if err != nil {
		return false, err
	}
	if conn, err = p.cfg.secure(ctx, conn); err != nil {
		return false, err
	}
	first, rest := p.cfg.request(p.preview, time.Now())
	asked, written := make(chan bool, 1), make(chan struct{})
	go func() {
		defer close(written)
		// What fails here shows in the answer, or in that there is none.
		if _, err := conn.Write(first); err == nil && rest != nil && <-asked {
			_, _ = conn.Write(rest)
		}
	}()
	defer func() {
		conn.Close()
		close(asked)
		<-written
	}()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	for continued := false; ; {
		if err := p.answer.readHead(conn); err != nil {
			return true, err
		}
		if p.answer.Status >= 200 {
			break
		}
		if p.answer.Status == 100 && !continued { // one that nobody has asked for means nothing, nor do other interim answers
			asked <- true
			continued = true
		}
	}
	if err := p.answer.readMessage(conn); err != errTooLarge {
		return true, err
	}
	return true, nil // the beginning of the body will do
}

// request returns the probe as it is sent to a server, and what follows if the server asks for more than its preview; nil: nothing does. A preview is
// sent to those that ask for one in their answer to OPTIONS, as clients do: some servers insist on it. A 204 may be the answer either way.
func (cfg *CheckConfig) request(preview int, now time.Time) (first, rest []byte) {
	p := cfg.Probe
	first = fmt.Appendf(nil, "REQMOD icap://%[1]s%[2]s ICAP/1.0\r\nHost: %[1]s\r\nDate: %[3]s\r\nUser-Agent: icapgate-probe\r\nAllow: 204\r\nConnection: close\r\n",
		cfg.Authority, p.Path, now.UTC().Format(http.TimeFormat))
	if preview >= 0 {
		preview = min(preview, maxPreview)
		first = fmt.Appendf(first, "Preview: %d\r\n", preview)
	}
	first = fmt.Appendf(first, "%s%sEncapsulated: req-hdr=0, req-body=%d\r\n\r\n%s", cfg.Fields, p.Fields, len(p.HTTP), p.HTTP)
	switch {
	case preview < 0:
		return append(appendChunks(first, p.Body), "0\r\n\r\n"...), nil
	case len(p.Body) <= preview:
		return append(appendChunks(first, p.Body), "0; ieof\r\n\r\n"...), nil
	}
	return append(appendChunks(first, p.Body[:preview]), "0\r\n\r\n"...), append(appendChunks(nil, p.Body[preview:]), "0\r\n\r\n"...)
}

func appendChunks(dst, body []byte) []byte {
	for len(body) > 0 {
		n := min(len(body), probeChunk)
		dst = append(strconv.AppendInt(dst, int64(n), 16), "\r\n"...)
		dst = append(append(dst, body[:n]...), "\r\n"...)
		body = body[n:]
	}
	return dst
}

// judge says what is not as expected, "" if all is.
func (p *Probe) judge(a *answer) string {
	switch {
	case p.Status != 0 && a.Status != p.Status:
		return fmt.Sprintf("expected status %d", p.Status)
	case p.Header != nil && !a.anyLine(p.Header.Match):
		return fmt.Sprintf("expected a header that matches %s", p.Header)
	case p.Content != nil && !p.Content.Match(a.body):
		return fmt.Sprintf("expected a body that matches %s, got %d bytes that do not", p.Content, len(a.body))
	}
	return ""
}

// anyLine says whether f is true for a field of the ICAP head, as "Name: value", or for a line of the encapsulated heads. Folded lines are one.
func (a *answer) anyLine(f func(line []byte) bool) bool {
	for i := range a.Fields {
		value := bytes.Join(bytes.Fields(a.Fields[i].Value), []byte(" "))
		if f(fmt.Appendf(nil, "%s: %s", a.Fields[i].Name, value)) {
			return true
		}
	}
	var line []byte
	for rest := a.blocks; len(rest) > 0; {
		var next []byte
		next, rest, _ = bytes.Cut(rest, []byte("\n"))
		next = bytes.TrimSuffix(next, []byte("\r"))
		if len(line) > 0 && len(next) > 0 && (next[0] == ' ' || next[0] == '\t') {
			line = append(append(line, ' '), bytes.TrimLeft(next, " \t")...)
			continue
		}
		if len(line) > 0 && f(line) {
			return true
		}
		line = append(line[:0], next...)
	}
	return len(line) > 0 && f(line)
}
