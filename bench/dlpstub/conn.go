package dlpstub

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"time"

	"icapgate/icap"
)

const (
	startBuffer = 16 << 10  // of a connection's reads; doubled when a read fills it, up to:
	readBuffer  = 256 << 10 // beyond that it grows for heads only, which the parsers bound
	writeBuffer = 64 << 10  // an answer is collected up to that size before it is written

	lingerTime  = time.Second // how long a refused connection is still read, so that the answer is not lost to an RST
	lingerBytes = 1 << 20
)

// errIdle says that a connection ended between two requests.
var errIdle = errors.New("dlpstub: idle connection ended")

// errCut says that the answer was cut on purpose.
var errCut = errors.New("dlpstub: answer cut")

// conn is one connection of a client. All of it belongs to the goroutine that runs serve, except that others may
// close raw.
type conn struct {
	srv    *Server
	raw    net.Conn // as accepted
	net    net.Conn // what is read and written: raw, or TLS over it
	number int

	in   []byte // in[r:w] has been read and not used
	r, w int
	full bool   // the last read filled in
	out  []byte // what flush writes

	scanner  icap.HeadScanner
	sections icap.BlockScanner
	body     icap.BodyReader
	preview  []byte // body bytes, of a preview or that are looked at, that may have to be echoed
	head     []byte // answer that is not one of heads
	changed  []byte // HTTP head of the answer that is not the one of the request
	timer    *time.Timer
	rand     *rand.Rand // nil: nothing was drawn

	excess   bool          // beyond the limit of connections
	inside   chan struct{} // closed when a connection in line at the door may enter
	ended    chan struct{} // closed when the server ends the connection; needs Server.mu
	requests atomic.Uint64 // whose heads were read

	// Of the request that is being served.
	req        icap.Request // slices in it are stale once more bytes have been read: use the values only
	blocks     []byte       // copy of the encapsulated heads
	previewed  uint64       // body bytes before the 100 Continue
	how        Treatment
	slot       slot
	due        time.Time // when the service in the slot ends
	service    int       // of heads.options
	refusal    int       // status if the request is not served, 0: it is
	heads      *heads
	form       Mode   // of an answer with the message: Echo or Modify
	status     int    // of the final answer
	incident   []byte // its id
	unfinished bool   // the answer has no empty line
	closing    int    // 1: the answer says "Connection: close"
	answered   bool   // the final answer has begun
	whole      bool   // it was read to its end and its answer is due: what happens from now on loses nothing of it
	finished   bool

	// Used with a Hook only.
	info Request
	tap  icap.BodyReader // reads what an echo passes on, for the hash
	hash hash.Hash
}

func newConn(s *Server, nc net.Conn, number int) *conn {
	c := &conn{srv: s, raw: nc, net: nc, number: number, in: make([]byte, startBuffer), ended: make(chan struct{})}
	if s.cfg.TLS != nil {
		c.net = tls.Server(nc, s.cfg.TLS)
	}
	if s.cfg.Hook != nil {
		c.hash = sha256.New()
	}
	return c
}

// interrupt ends what the connection waits for. It needs Server.mu.
func (c *conn) interrupt() {
	select {
	case <-c.ended:
	default:
		close(c.ended)
	}
}

// serve runs the connection to its end and closes it.
func (c *conn) serve() {
	defer c.raw.Close()
	if c.failed() || c.enter() != nil {
		return
	}
	defer c.leave()
	if !c.handshake() {
		return
	}
	for n := 1; ; n++ {
		err := c.readHeads(n)
		if err == errIdle {
			break
		}
		last := n == c.srv.cfg.CloseAfter
		if err == nil {
			c.closing = 0
			if c.req.Close || c.how.Close || c.excess || last && !c.srv.cfg.SilentClose {
				c.closing = 1
			}
			err = c.answer()
			c.finish(err)
			c.leaveSlot()
			c.srv.active.Add(-1)
		}
		if err != nil {
			c.refuse(err)
			return
		}
		if last || c.closing == 1 {
			break
		}
	}
	c.net.Close() // with TLS: sends close_notify
}

func (c *conn) handshake() bool {
	tc, ok := c.net.(*tls.Conn)
	if !ok {
		return true
	}
	err := tc.HandshakeContext(context.Background())
	if err != nil {
		c.srv.lastError.Store(&err)
	}
	return err == nil
}

// readHeads reads the ICAP head and the encapsulated heads of request n and makes ready for its body.
func (c *conn) readHeads(n int) error {
	c.answered, c.finished = false, false
	if c.r == c.w {
		if err := c.awaitRequest(); err != nil {
			return err
		}
	}
	c.scanner.Reset()
	start, end, err := c.scanner.Scan(c.in[c.r:c.w])
	for err == icap.ErrIncomplete {
		if err = c.fill(); err == nil {
			start, end, err = c.scanner.Scan(c.in[c.r:c.w])
		}
	}
	if err != nil {
		c.srv.noteError(err)
		return err
	}
	head := c.in[c.r+start : c.r+end]
	if err = c.req.Parse(head); err != nil {
		c.srv.noteError(err)
		return err
	}
	if c.hash != nil || c.srv.cfg.Treat != nil {
		c.info.Head = append(c.info.Head[:0], head...)
	}
	c.service, c.refusal = c.srv.look(&c.req)
	if c.srv.cfg.Incidents != nil {
		c.incident = append(c.incident[:0], c.req.Get(c.srv.cfg.IncidentField)...)
	}
	c.r += end

	c.sections.Reset(c.req.Encapsulated, false)
	size, err := c.sections.Scan(c.in[c.r:c.w])
	for err == icap.ErrIncomplete {
		if err = c.fill(); err == nil {
			size, err = c.sections.Scan(c.in[c.r:c.w])
		}
	}
	if err != nil {
		c.srv.noteError(err)
		return err
	}
	c.blocks = append(c.blocks[:0], c.in[c.r:c.r+size]...)
	c.r += size

	c.begin(n)
	return nil
}

// begin resets what belongs to one request.
func (c *conn) begin(n int) {
	c.srv.enter(c.req.Method)
	c.requests.Store(uint64(n))
	c.status, c.unfinished, c.whole = 0, false, false
	if c.preview = c.preview[:0]; cap(c.preview) > readBuffer {
		c.preview = nil
	}
	c.previewed = 0
	c.startBody(c.req.Preview)
	if c.hash != nil {
		c.hash.Reset()
	}
	if c.hash != nil || c.srv.cfg.Treat != nil {
		c.info = Request{
			Connection: c.number,
			Number:     n,
			Method:     c.req.Method,
			Head:       c.info.Head,
			Blocks:     c.blocks,
			Preview:    c.req.Preview,
		}
	}
	cfg := &c.srv.cfg
	c.how = Treatment{
		Mode: cfg.Mode, Status: cfg.Status, Latency: cfg.Latency, Continue: cfg.Continue, EarlyAnswer: cfg.EarlyAnswer, ReadRate: cfg.ReadRate,
		LatencyPerMiB: cfg.LatencyPerMiB, Fields: cfg.Fields,
	}
	if cfg.Delay != nil && c.req.Method != icap.MethodOptions {
		c.how.Latency += cfg.Delay(c.random())
	}
	if len(cfg.Faults) > 0 || c.srv.injected.Load() != nil {
		c.how.Fault = c.drawFault(false)
	}
	if cfg.Treat != nil && c.req.Method != icap.MethodOptions {
		cfg.Treat(&c.info, &c.how)
	}
	if c.how.Fault.Kind == Late {
		c.how.Latency += c.how.Fault.pause()
	}
}

// startBody makes ready for a body of which the first bytes are a preview unless preview is -1.
func (c *conn) startBody(preview int) {
	c.body.Reset(icap.BodyConfig{Preview: preview})
	if c.hash != nil {
		c.tap.Reset(icap.BodyConfig{Preview: preview})
	}
}

// bodyEnded says whether nothing is to be read before an answer or a 100 Continue.
func (c *conn) bodyEnded() bool {
	return !c.req.Encapsulated.HasBody() || c.body.End() != icap.EndNone
}

// refuse answers a protocol error, unless an answer has begun, and gives the client time to read it.
func (c *conn) refuse(err error) {
	var fault *icap.ProtocolError
	if c.answered || !errors.As(err, &fault) {
		return
	}
	cfg := &c.srv.cfg
	c.status = fault.Status
	c.start()
	if cfg.OpenErrors {
		c.out = cfg.appendOpenError(c.out[:0])
		if c.flush() == nil {
			io.Copy(io.Discard, c.net)
		}
		return
	}
	c.out = append(appendHead(c.out[:0], cfg, c.srv.ISTag(), fault.Status, true), "\r\n"...)
	half, ok := c.net.(interface{ CloseWrite() error })
	if c.flush() != nil || !ok {
		return
	}
	half.CloseWrite()
	c.net.SetReadDeadline(time.Now().Add(lingerTime))
	io.CopyN(io.Discard, c.net, lingerBytes)
}

// awaitRequest reads the first bytes of a request. Any end of the connection here is errIdle.
func (c *conn) awaitRequest() error {
	cfg := &c.srv.cfg
	if cfg.IdleTimeout > 0 {
		defer c.net.SetReadDeadline(time.Time{})
	}
	for {
		if cfg.IdleTimeout > 0 {
			c.net.SetReadDeadline(time.Now().Add(cfg.IdleTimeout))
		}
		err := c.fill()
		if err == nil {
			return nil
		}
		if cfg.IdleStatus == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return errIdle
		}
		c.out = appendBrief(c.out, cfg, c.srv.ISTag(), cfg.IdleStatus, false, "")
		if c.flush() != nil {
			return errIdle
		}
	}
}

// fill reads more bytes into in, for which it makes room. The end of the connection is an error.
func (c *conn) fill() error {
	switch {
	case c.r == c.w:
		c.r, c.w = 0, 0
		if c.full && len(c.in) < readBuffer {
			c.in = make([]byte, 2*len(c.in))
		}
	case c.w == len(c.in) && c.r > 0:
		c.w = copy(c.in, c.in[c.r:c.w])
		c.r = 0
	case c.w == len(c.in):
		c.in = append(c.in, make([]byte, len(c.in))...)
	}
	n, err := c.read(c.in[c.w:])
	c.w += n
	c.full = c.w == len(c.in)
	if n > 0 {
		return nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// read reads what has come, at the rate of the request that is being read.
func (c *conn) read(p []byte) (int, error) {
	const perSecond = 50 // reads, when there is a rate
	rate := c.how.ReadRate
	if rate <= 0 {
		return c.net.Read(p)
	}
	n, err := c.net.Read(p[:min(int64(len(p)), max(1, rate/perSecond))])
	if err == nil {
		err = c.pause(time.Duration(n) * time.Second / time.Duration(rate))
	}
	return n, err
}

// write adds p to the answer. Runs that don't fit the write buffer are written from where they are.
func (c *conn) write(p []byte) error {
	if len(c.out)+len(p) <= writeBuffer {
		c.out = append(c.out, p...)
		return nil
	}
	if err := c.flush(); err != nil {
		return err
	}
	return c.send(p)
}

func (c *conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	err := c.send(c.out)
	c.out = c.out[:0]
	return err
}

// send writes p. It ends the connection where the final answer is to be cut.
func (c *conn) send(p []byte) error {
	if c.how.Fault.Kind == Trickle && c.answered {
		return c.trickle(p)
	}
	if c.how.Cut == 0 || !c.answered {
		_, err := c.net.Write(p)
		return err
	}
	left := max(0, c.how.Cut)
	n, err := c.net.Write(p[:min(len(p), left)])
	if c.how.Cut = left - n; err != nil || c.how.Cut > 0 {
		return err
	}
	c.reset()
	return errCut
}
