package tap

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// maxHeld limits what is held of a client that has not waited for the 100 behind its preview, in bytes.
const maxHeld = 1 << 20

// Rules says what is expected of the bytes of a Wire.
type Rules struct {
	Gateway   Direction // what the gateway says
	Authority string    // of the server, which the gateway's requests have to name; "": any
	MaxChunk  uint64    // in the gateway's requests; 0: any
}

// Exchange is a request and its answer.
type Exchange struct {
	Connection int // of the tap, from 0
	Number     int // on its connection, from 0

	Method    string // "": the head of the request could not be read
	Authority string
	Path      string // with the query
	Preview   int    // -1: none
	Ieof      bool   // the preview was the whole body
	Continued bool   // by a 100
	Request   Content

	Status int // 0: no answer
	ISTag  string
	Dated  bool // the answer has a Date
	Close  bool // the answer says that the connection ends
	Answer Content

	allow204, allow206 bool
}

// Content is what a message carries.
type Content struct {
	Heads    Body // the encapsulated ones
	HasBody  bool
	Body     Body
	Complete bool // the message has come to its end
}

func (x *Exchange) over() bool { return x.Request.Complete && x.Answer.Complete }

// inPreview says whether a final answer now would answer the preview alone.
func (x *Exchange) inPreview() bool { return x.Preview >= 0 && !x.Continued }

// isMod says whether the request has a message in it.
func (x *Exchange) isMod() bool { return x.Method == "REQMOD" || x.Method == "RESPMOD" }

// Wire reads one connection: what both sides say, in the order in which it was said. It holds no more of it than the heads that are not complete. The
// zero value is not usable: see NewWire.
type Wire struct {
	rules    Rules
	readers  [2]reader // by direction
	open     []*Exchange
	begun    int
	found    func(Finding)
	finished func(Exchange)
}

// NewWire returns a Wire that calls found for each departure from a rule and finished for each exchange when it is over, or when the
// connection ends before that.
func NewWire(rules Rules, found func(Finding), finished func(Exchange)) *Wire {
	w := &Wire{rules: rules, found: found, finished: finished}
	for d := range w.readers {
		w.readers[d] = reader{w: w, direction: Direction(d)}
	}
	return w
}

// Feed reads what one side has said.
func (w *Wire) Feed(d Direction, p []byte) { w.readers[d].feed(p) }

// Lost says whether a direction could not be read on, because what was said may mean two things.
func (w *Wire) Lost(d Direction) bool { return w.readers[d].state == lost }

// End is called when the connection has ended.
func (w *Wire) End() {
	for _, x := range w.open {
		if x.Method != "" || x.Status != 0 {
			w.finished(*x)
		}
	}
	w.open = nil
}

// unanswered is the exchange whose answer comes next; nil: there is none.
func (w *Wire) unanswered() *Exchange {
	for _, x := range w.open {
		if !x.Answer.Complete {
			return x
		}
	}
	return nil
}

// settle lets go of x when it is over.
func (w *Wire) settle(x *Exchange) {
	if !x.over() {
		return
	}
	w.open = slices.DeleteFunc(w.open, func(o *Exchange) bool { return o == x })
	w.finished(*x)
}

// reader reads one direction of a Wire, one message after the other.
type reader struct {
	w         *Wire
	direction Direction
	state     readState
	at        int64     // bytes read
	start     int64     // of the part that is being read
	x         *Exchange // that the message belongs to; nil: between two of them
	head      []byte    // as far as it has come
	list      []section
	sums      hash.Hash // of the encapsulated heads
	block     block
	chunks    chunks
	rest      bool   // behind the preview
	held      []byte // what came behind a preview that has no answer yet
}

type readState uint8

const (
	inHead readState = iota
	inBlocks
	inBody
	behindPreview // the client has to wait for a 100 or a final answer
	lost          // what follows can't be read
)

func (r *reader) complain(rule Rule, format string, args ...any) {
	r.w.found(Finding{Direction: r.direction, Offset: r.start, Rule: rule, Detail: fmt.Sprintf(format, args...)})
}

// content is what the message brings.
func (r *reader) content() *Content {
	if r.direction == Requests {
		return &r.x.Request
	}
	return &r.x.Answer
}

func (r *reader) feed(p []byte) {
	for len(p) > 0 {
		n, ok := len(p), true
		switch r.state {
		case inHead:
			n, ok = r.feedHead(p)
		case inBlocks:
			n, ok = r.feedBlock(p)
		case inBody:
			n, ok = r.feedBody(p)
		case behindPreview:
			ok = r.hold(p)
		}
		if !ok {
			r.state, r.held = lost, nil
		}
		p = p[n:]
	}
}

// feedHead takes p up to the end of the head.
func (r *reader) feedHead(p []byte) (n int, ok bool) {
	if r.x == nil {
		r.start = r.at
		if !r.begin() {
			return len(p), false
		}
	}
	before := len(r.head)
	r.head = append(r.head, p...)
	for len(r.head) > 0 && (r.head[0] == '\n' || bytes.HasPrefix(r.head, []byte("\r\n"))) {
		r.complain(EmptyLine, "before a message")
		k := bytes.IndexByte(r.head, '\n') + 1
		r.head, before = r.head[k:], before-k
	}
	end := endOfHead(r.head)
	if end == 0 {
		end = len(r.head)
		r.at += int64(len(p))
		if end > maxHead {
			r.complain(HeadSize, "more than %d bytes", maxHead)
			return len(p), false
		}
		return len(p), true
	}
	n = end - before
	r.at += int64(n)
	text := r.head[:end]
	r.head = nil
	h, ok := parseHead(text, r.complain)
	if ok {
		ok = r.onHead(&h, string(text))
	}
	return n, ok
}

// begin finds the exchange of a message that begins.
func (r *reader) begin() (ok bool) {
	if r.direction == Answers {
		if r.x = r.w.unanswered(); r.x == nil {
			r.complain(Surplus, "nobody has asked for an answer")
		}
		return r.x != nil
	}
	if len(r.w.open) > 0 {
		r.complain(Pipelined, "a request before the answer to the one before is complete")
	}
	r.x = &Exchange{Number: r.w.begun, Preview: -1}
	r.w.begun++
	r.w.open = append(r.w.open, r.x)
	return true
}

func (r *reader) onHead(h *head, text string) (ok bool) {
	h.checkHopByHop(r.complain)
	value, has, ok := h.one("Encapsulated", r.complain)
	r.list = nil
	if ok && has {
		r.list, ok = parseEncapsulated(value, r.complain)
	}
	if !ok {
		return false
	}
	if r.direction == Requests {
		ok = r.onRequestHead(h)
	} else {
		if status, good := parseStatusLine(h.line, r.complain); !good || status < 200 {
			return good && r.onInterim(text)
		}
		ok = r.onAnswerHead(h)
	}
	if !ok {
		return false
	}
	if r.list != nil {
		checkSections(r.direction, r.x.Method, r.list, r.complain)
	}
	r.sums = sha256.New()
	if body := len(r.list) - 1; body >= 0 && r.list[body].name != "null-body" {
		r.content().HasBody = true
	}
	r.state = inBlocks
	r.nextBlock()
	return true
}

// onRequestHead reads what is in requests only.
func (r *reader) onRequestHead(h *head) (ok bool) {
	t, ok := parseRequestLine(h.line, r.complain)
	if !ok {
		return false
	}
	x := r.x
	x.Method, x.Authority, x.Path = t.method, t.authority, t.path
	if a := r.w.rules.Authority; a != "" && r.w.rules.Gateway == Requests && t.authority != a {
		r.complain(Host, "the request line names %q, the server is %q", t.authority, a)
	}
	if host, has, _ := h.one("Host", r.complain); !has || host != t.authority && r.w.rules.Authority != "" {
		r.complain(Host, "%q, the request line names %q", host, t.authority)
	}
	h.checkAllow(r.complain)
	x.allow204, x.allow206 = h.contains("Allow", "204"), h.contains("Allow", "206")
	preview, has, ok := h.one("Preview", r.complain)
	if ok && has {
		var err error
		if x.Preview, err = strconv.Atoi(preview); err != nil || strconv.Itoa(x.Preview) != preview || x.Preview < 0 {
			r.complain(PreviewForm, "%q", preview)
			ok = err == nil && x.Preview >= 0
		}
		if !x.isMod() {
			r.complain(PreviewForm, "a preview of %s", x.Method)
		}
	}
	if r.list == nil && x.Method != "OPTIONS" {
		r.complain(Encapsulated, "%s without it", x.Method)
		ok = false
	}
	return ok
}

var quotedTag = regexp.MustCompile(`^"[ !#-~]{1,32}"$`)

// onAnswerHead reads what is in final answers only.
func (r *reader) onAnswerHead(h *head) (ok bool) {
	x := r.x
	x.Status, _ = parseStatusLine(h.line, func(Rule, string, ...any) {})
	tag, has, _ := h.one("ISTag", r.complain)
	if x.ISTag = tag; !has || !quotedTag.MatchString(tag) {
		r.complain(ISTag, "%q in a %d to %s", tag, x.Status, x.Method)
	}
	x.Dated = h.checkDate(r.complain)
	x.Close = h.contains("Connection", "close")
	if h.contains("Allow", "trailers") {
		r.complain(Allow, "trailers in an answer")
	}
	if x.isMod() {
		switch {
		case x.Status == 204 && !x.allow204 && !x.inPreview():
			r.complain(NotAllowed, "a 204 that the request does not allow")
		case x.Status == 206 && (!x.allow206 || !x.allow204 && !x.inPreview()):
			r.complain(NotAllowed, "a 206 that the request does not allow")
		case r.list == nil && (x.Status == 200 || x.Status == 206):
			r.complain(Encapsulated, "a %d without it", x.Status)
		}
	}
	r.w.readers[Requests].onFinal(x)
	return true
}

// onInterim handles an answer behind which the final one is still to come.
func (r *reader) onInterim(text string) (ok bool) {
	x, requests := r.x, &r.w.readers[Requests]
	waits := requests.state == behindPreview && requests.x == x
	if text != "ICAP/1.0 100 Continue\r\n\r\n" || !waits {
		r.complain(Continue, "%q, a preview waits for it: %t", text, waits)
	}
	r.x = nil
	if strings.HasPrefix(text, "ICAP/1.0 100 ") && x.Preview >= 0 && !x.Continued && !x.Ieof {
		x.Continued = true
		if waits {
			requests.goOn()
		}
	}
	return true
}

// nextBlock goes on to the next encapsulated head, or to what is behind them.
func (r *reader) nextBlock() {
	c := r.content()
	r.start = r.at
	if i := c.Heads.Parts; i < len(r.list)-1 {
		r.block.reset(r.list[i+1].offset - r.list[i].offset)
		return
	}
	r.sums.Sum(c.Heads.Sum[:0])
	if !c.HasBody {
		r.end()
		return
	}
	r.state, r.rest = inBody, false
	preview := -1
	if r.direction == Requests {
		preview = r.x.Preview
	}
	r.chunks.reset(preview)
}

func (r *reader) feedBlock(p []byte) (n int, ok bool) {
	n, ok = r.block.feed(p, r.complain)
	r.at += int64(n)
	r.sums.Write(p[:n])
	c := r.content()
	c.Heads.Size += int64(n)
	if ok && r.block.left == 0 {
		c.Heads.Parts++
		r.nextBlock()
	}
	return n, ok
}

func (r *reader) feedBody(p []byte) (n int, ok bool) {
	r.start = r.at
	limit := uint64(0)
	if r.direction == Requests && r.w.rules.Gateway == Requests {
		limit = r.w.rules.MaxChunk
	}
	n, done, ok := r.chunks.feed(p, limit, r.complain)
	r.at += int64(n)
	x, c := r.x, r.content()
	c.Body = r.chunks.body
	preview := r.direction == Requests && x.Preview >= 0 && !r.rest
	if !done || !ok {
		return n, ok
	}
	switch last := r.chunks.last; {
	case last == "":
	case last == "ieof" && preview:
		x.Ieof = true
	case strings.HasPrefix(last, "use-original-body=") && r.direction == Answers && x.Status == 206:
	default:
		r.complain(LastChunk, "0; %s", last)
	}
	switch {
	case !preview || x.Ieof || x.Status != 0:
		r.end()
	case x.Continued: // the server has not waited for its end
		r.goOn()
	default:
		r.state = behindPreview
	}
	return n, true
}

// end is called at the end of a message.
func (r *reader) end() {
	x := r.x
	r.content().Complete = true
	r.state, r.x = inHead, nil
	r.w.settle(x)
}

// hold keeps what comes behind a preview until the answer tells what it is.
func (r *reader) hold(p []byte) (ok bool) {
	r.start = r.at
	if len(r.held) == 0 {
		r.complain(BehindPreview, "%.40q before a 100", p)
	}
	r.held = append(r.held, p...)
	r.at += int64(len(p))
	return len(r.held) <= maxHeld
}

// goOn is called when a 100 asks for the rest behind the preview.
func (r *reader) goOn() {
	r.state, r.rest = inBody, true
	r.chunks.resume()
	r.release()
}

// onFinal is called for the head of the final answer to x. If its preview waits for that, nothing more of the request comes.
func (r *reader) onFinal(x *Exchange) {
	if r.state == behindPreview && r.x == x {
		r.end()
		r.release()
	}
}

// release reads what was held.
func (r *reader) release() {
	held := r.held
	r.held = nil
	r.at -= int64(len(held))
	r.feed(held)
}
