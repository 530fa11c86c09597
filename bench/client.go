package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"icapgate/icap"
)

const (
	startBuffer = 8 << 10   // of a connection's reads; doubled when a read fills it, up to:
	readBuffer  = 256 << 10 // beyond that it grows for heads only, which the parsers bound
	writeBuffer = 256 << 10 // what is collected for one write

	// A body up to that size is written before the answer is read; the sockets hold its echo. For a larger one the connection
	// gets a second goroutine that writes.
	duplexSize = 64 << 10
)

// Request is one ICAP request, ready to be sent. Message builds it.
type Request struct {
	Method    icap.Method
	Head      []byte    // ICAP head
	Blocks    []byte    // encapsulated heads
	EchoFrom  int       // offset in Blocks of what an echo has of them
	Body      io.Reader // nil: null-body, or nothing encapsulated
	Size      int64     // bytes that Body gives
	Before    []byte    // of a form: what Body gives before the content of the file
	After     []byte    // and behind it
	Chunk     int64     // bytes in one chunk at most, > 0
	Chunks    []int64   // sizes of the chunks in turn, over and over, each > 0; nil: Chunk
	Preview   int64     // bytes, -1: none
	Trickle   bool      // what a read of Body gives is written at once and not collected: slow clients
	HalfClose bool      // this side of the connection is closed behind the request: an odd client

	Allow204      bool // what the head says
	Allow206      bool
	AllowTrailers bool
	Close         bool
}

// more says whether the preview leaves a part of the body, which a 100 Continue asks for.
func (r *Request) more() bool { return r.Body != nil && r.Preview >= 0 && r.Size > r.Preview }

// IsEcho says whether blocks are the encapsulated heads that an echo of the request has: all of a REQMOD, the last one of a RESPMOD.
func (r *Request) IsEcho(blocks []byte) bool {
	return len(blocks) > 0 && bytes.Equal(r.Blocks[r.EchoFrom:], blocks)
}

// Receiver gets what Do reads, in order. Everything passed is valid during the call only. An error ends Do and the
// connection.
type Receiver interface {
	// Head gets the head of a 100 Continue and of the final answer.
	Head(r *icap.Response, head []byte) error
	// Blocks gets the encapsulated heads of the final answer and where they really are; corrected: its Encapsulated field was wrong.
	Blocks(e *icap.Encapsulated, blocks []byte, corrected bool) error
	// Data gets the next bytes of the body, without framing.
	Data(p []byte) error
}

// Conn is one connection of an ICAP client. It takes one request after the other and is not for concurrent use.
type Conn struct {
	ConnectTime   time.Duration // what Dial took to connect
	HandshakeTime time.Duration // and for TLS

	raw      net.Conn // TCP
	nc       net.Conn // what is read and written: raw, or TLS over it
	resumed  bool     // the TLS session is an earlier one's
	used     bool     // it has had a request
	timeout  time.Duration
	born     time.Time    // from which deadline counts
	deadline atomic.Int64 // in nanoseconds
	reusable bool

	in   []byte // in[r:w] has been read and not used
	r, w int
	full bool // the last read filled in

	scanner  icap.HeadScanner
	resp     icap.Response // of the answer that is being read; slices in it are stale after the next fill
	sections icap.BlockScanner
	body     icap.BodyReader
	original int64 // where a 206 takes up the original body, -1: the answer is none

	rest    bool     // the part of the body after the preview was asked for
	out     []byte   // what flush writes; belongs to the writer goroutine while writing is set
	writing bool     // the writer goroutine has a job
	jobs    chan job // to the writer goroutine; nil until there is one
	written chan error
}

// job is a part of a body to be written, and the last chunk.
type job struct {
	req *Request
	n   int64
	end string
}

const (
	lastChunk = "0\r\n\r\n"
	ieofChunk = "0; ieof\r\n\r\n"
)

// Dial connects to address, with TLS if cfg is not nil. timeout bounds the connect, the handshake and, in Do, every wait
// for bytes to move; such a wait may last twice as long, as deadlines are renewed only now and then.
func Dial(ctx context.Context, address string, cfg *tls.Config, timeout time.Duration) (*Conn, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, ioError(err, Connect)
	}
	connectTime := time.Since(start)
	c, err := NewConn(ctx, nc, cfg, timeout)
	if err == nil {
		c.ConnectTime = connectTime
	}
	return c, err
}

// NewConn makes a Conn of a connection that is there already, with a TLS handshake if cfg is not nil. It closes nc if that fails. timeout is as
// in Dial, except that ctx alone bounds the handshake.
func NewConn(ctx context.Context, nc net.Conn, cfg *tls.Config, timeout time.Duration) (*Conn, error) {
	c := newConn(nc, timeout)
	if cfg == nil {
		return c, nil
	}
	start := time.Now()
	tc := tls.Client(nc, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, handshakeError(err)
	}
	c.nc = tc
	c.HandshakeTime = time.Since(start)
	c.resumed = tc.ConnectionState().DidResume
	return c, nil
}

func newConn(nc net.Conn, timeout time.Duration) *Conn {
	return &Conn{raw: nc, nc: nc, timeout: timeout, born: time.Now(), reusable: true, in: make([]byte, startBuffer), scanner: icap.HeadScanner{Response: true}}
}

// Reusable says whether the connection takes another request: there was no error and nobody said that it closes.
func (c *Conn) Reusable() bool { return c.reusable }

// Original says, after the answer to a request that allowed 206, whether it was one: then what has come is followed by the request's own body
// from offset on.
func (c *Conn) Original() (offset int64, ok bool) { return max(0, c.original), c.original >= 0 }

// Resumed says whether the TLS handshake resumed an earlier session.
func (c *Conn) Resumed() bool { return c.resumed }

// Stale says whether the peer has closed the connection, or has sent what belongs to nothing. A client that asks before each request loses
// only requests that cross the peer's FIN on their way.
func (c *Conn) Stale() bool {
	if c.r < c.w {
		return true
	}
	sc, ok := c.raw.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	stale := false
	err = raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		stale = err != nil || info.State != tcpEstablished
		if !stale && c.used { // before that, TLS 1.3 has tickets for later sessions to read
			waiting, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
			stale = err != nil || waiting > 0
		}
	})
	return err != nil || stale
}

// tcpEstablished is TCP_ESTABLISHED of Linux, which no package exports: neither side has closed.
const tcpEstablished = 1

// Abort ends the connection at once, with RST where that is possible. It may be called while Do runs, which fails then.
func (c *Conn) Abort() {
	if tcp, ok := c.raw.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.raw.Close()
}

// Close closes the connection and ends its writer goroutine.
func (c *Conn) Close() error {
	if c.jobs != nil {
		close(c.jobs)
		c.jobs = nil
	}
	return c.nc.Close()
}

// Do sends req and gives the answer to rcv. It returns when the answer has been read and the request written, both to
// their last byte. Its errors are of type *Error, or rcv's own; after one the connection can only be closed.
func (c *Conn) Do(req *Request, rcv Receiver) error {
	err := c.do(req, rcv)
	if err != nil {
		c.reusable, c.original = false, -1
		c.nc.Close() // lets go a writer that waits for the peer
	}
	if c.writing {
		c.writing = false
		if werr := c.writeFailed(<-c.written); werr != nil {
			err = werr
		}
	}
	return err
}

func (c *Conn) do(req *Request, rcv Receiver) error {
	c.used, c.rest = true, false
	c.original = -1
	if err := c.sendHead(req); err != nil {
		return err
	}
	head, err := c.readHead()
	if err != nil {
		return err
	}
	allow204 := req.Allow204 || req.Preview >= 0
	if c.resp.Status == 100 {
		if !req.more() {
			return fault(Framing, "100 Continue that nothing asked for")
		}
		if err := rcv.Head(&c.resp, head); err != nil {
			return err
		}
		c.rest = true
		if err := c.sendBody(req, req.Size-req.Preview, lastChunk); err != nil {
			return err
		}
		allow204 = req.Allow204
		if head, err = c.readHead(); err != nil {
			return err
		}
	}
	if err := c.checkAnswer(req, allow204); err != nil {
		return err
	}
	if c.resp.Close || req.Close {
		c.reusable = false
	}
	if err := rcv.Head(&c.resp, head); err != nil {
		return err
	}
	if err := c.readBlocks(rcv); err != nil {
		return err
	}
	return c.readBody(req, rcv)
}

// sendHead writes the heads and the body, or its preview.
func (c *Conn) sendHead(req *Request) error {
	c.out = append(append(c.out[:0], req.Head...), req.Blocks...)
	switch {
	case req.Body == nil:
		return c.writeFailed(c.finishWrite(req))
	case req.more():
		return c.sendBody(req, req.Preview, lastChunk)
	case req.Preview >= 0:
		return c.sendBody(req, req.Size, ieofChunk)
	}
	return c.sendBody(req, req.Size, lastChunk)
}

// sendBody writes the next n bytes of the body and the last chunk. A large part is left to the writer goroutine.
func (c *Conn) sendBody(req *Request, n int64, end string) error {
	if n <= duplexSize {
		return c.writeFailed(c.writeBody(req, n, end))
	}
	if c.jobs == nil {
		c.jobs, c.written = make(chan job), make(chan error, 1)
		go c.runWriter(c.jobs)
	}
	c.writing = true
	c.jobs <- job{req, n, end}
	return nil
}

func (c *Conn) runWriter(jobs <-chan job) {
	for j := range jobs {
		err := c.writeBody(j.req, j.n, j.end)
		if isInput(err) {
			c.nc.Close() // there will be no answer to wait for
		}
		c.written <- err
	}
}

// writeFailed makes the connection unusable after a failed write. That alone is no error, as the answer may have come all the
// same; if not, reading will tell. It returns the errors of the kind Input.
func (c *Conn) writeFailed(err error) error {
	if err != nil {
		c.reusable = false
	}
	if isInput(err) {
		return err
	}
	return nil
}

func isInput(err error) bool {
	e, ok := err.(*Error)
	return ok && e.Kind == Input
}

func (c *Conn) writeBody(req *Request, n int64, end string) error {
	for i := 0; n > 0; i++ {
		size := min(n, req.Chunk)
		if len(req.Chunks) > 0 {
			size = min(n, req.Chunks[i%len(req.Chunks)])
		}
		n -= size
		c.out = append(strconv.AppendInt(c.out, size, 16), "\r\n"...)
		for size > 0 {
			if len(c.out) >= writeBuffer || req.Trickle {
				if err := c.flush(); err != nil {
					return err
				}
			}
			k := int(min(size, int64(writeBuffer-len(c.out))))
			c.out = slices.Grow(c.out, k)
			got, err := req.Body.Read(c.out[len(c.out) : len(c.out)+k])
			c.out = c.out[:len(c.out)+got]
			size -= int64(got)
			if got == 0 && err != nil {
				return fault(Input, "cannot read the body to its end: %w", err)
			}
		}
		c.out = append(c.out, "\r\n"...)
	}
	c.out = append(c.out, end...)
	return c.finishWrite(req)
}

// finishWrite writes what is collected, and closes this side if that is the end of a request after which it is to be closed.
func (c *Conn) finishWrite(req *Request) error {
	if err := c.flush(); err != nil || !req.HalfClose || req.more() && !c.rest {
		return err
	}
	if half, ok := c.nc.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

func (c *Conn) flush() error {
	c.renewDeadline()
	_, err := c.nc.Write(c.out)
	c.out = c.out[:0]
	return err
}

// readHead reads the next ICAP head and parses it into resp. The head is valid until more bytes are read.
func (c *Conn) readHead() ([]byte, error) {
	c.scanner.Reset()
	for {
		start, end, err := c.scanner.Scan(c.in[c.r:c.w])
		if err == nil {
			head := c.in[c.r+start : c.r+end]
			c.r += end
			if err := c.resp.Parse(head); err != nil {
				return nil, &Error{Framing, err}
			}
			return head, nil
		}
		if err != icap.ErrIncomplete {
			return nil, &Error{Framing, err}
		}
		ended := Truncated
		if c.r == c.w {
			ended = Closed
		}
		if err := c.fill(ended); err != nil {
			return nil, err
		}
	}
}

// checkAnswer checks what the request permits of the head of its final answer. A 206 has to be allowed where a 204 may be given.
func (c *Conn) checkAnswer(req *Request, allow204 bool) error {
	m, status, list := req.Method, c.resp.Status, &c.resp.Encapsulated
	body := icap.NoSection
	if c.resp.HasEncapsulated {
		body = list.Body()
	}
	switch {
	case status < 200:
		return fault(Framing, "interim answer %d out of place", status)
	case status == 204 && !allow204:
		return fault(Framing, "204 that the request did not allow")
	case status == 204 && list.HasBody():
		return fault(Framing, "204 with a body")
	case status == 206 && (!req.Allow206 || !allow204):
		return fault(Framing, "206 that the request did not allow")
	case status == 206 && !list.HasBody():
		return fault(Framing, "206 without a body, in which it says what to take of the original")
	case status >= 300 || status == 204:
		return nil
	case m == icap.MethodOptions && (body == icap.ReqBody || body == icap.ResBody),
		m == icap.MethodReqmod && (body == icap.NoSection || body == icap.OptBody),
		m == icap.MethodRespmod && body != icap.ResBody && body != icap.NullBody:
		return fault(Framing, "answer %d to %v with %q in Encapsulated", status, m, body)
	}
	return nil
}

func (c *Conn) readBlocks(rcv Receiver) error {
	if !c.resp.HasEncapsulated {
		return nil
	}
	c.sections.Reset(c.resp.Encapsulated, true)
	for {
		n, err := c.sections.Scan(c.in[c.r:c.w])
		if err == nil {
			blocks := c.in[c.r : c.r+n]
			c.r += n
			return rcv.Blocks(&c.sections.Encapsulated, blocks, c.sections.Corrected)
		}
		if err != icap.ErrIncomplete {
			return &Error{Framing, err}
		}
		if err := c.fill(Truncated); err != nil {
			return err
		}
	}
}

// readBody reads the rest of the answer and wants nothing to follow it.
func (c *Conn) readBody(req *Request, rcv Receiver) error {
	if c.resp.Encapsulated.HasBody() {
		c.body.Reset(icap.BodyConfig{Preview: -1, Response: true, Trailers: c.resp.Trailers && req.AllowTrailers})
		for c.body.End() == icap.EndNone {
			if c.r == c.w {
				if err := c.fill(Truncated); err != nil {
					return err
				}
			}
			data, n, err := c.body.NextData(c.in[c.r:c.w])
			if err != nil {
				return &Error{Framing, err}
			}
			c.r += n
			if len(data) == 0 {
				continue
			}
			if err := rcv.Data(data); err != nil {
				return err
			}
		}
		if err := c.checkEnd(req); err != nil {
			return err
		}
	}
	if c.r < c.w {
		return fault(Framing, "%d bytes after the end of the answer", c.w-c.r)
	}
	return nil
}

// checkEnd checks the last chunk: that of a 206 has to say where the original body goes on, no other may.
func (c *Conn) checkEnd(req *Request) error {
	switch partial := c.body.End() == icap.EndUseOriginal; {
	case c.resp.Status == 206 && !partial:
		return fault(Framing, "206 without use-original-body in its last chunk")
	case c.resp.Status != 206 && partial:
		return fault(Framing, "use-original-body in the last chunk of a %d", c.resp.Status)
	case !partial:
		return nil
	}
	size := int64(0)
	if req.Body != nil {
		size = req.Size
	}
	if n := c.body.UseOriginal(); n > uint64(size) {
		return fault(Framing, "use-original-body=%d of a body of %d bytes", n, size)
	}
	c.original = int64(c.body.UseOriginal())
	return nil
}

// fill reads more bytes into in, for which it makes room. ended is the kind of error if the connection is gone.
func (c *Conn) fill(ended Kind) error {
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
	c.renewDeadline()
	n, err := c.nc.Read(c.in[c.w:])
	c.w += n
	c.full = c.w == len(c.in)
	if n > 0 || err == nil {
		return nil
	}
	return ioError(err, ended)
}

// renewDeadline lets the connection wait for at least the timeout, from now on. Setting a deadline costs as much as a small
// read, so it is done only when the last one is near.
func (c *Conn) renewDeadline() {
	age := time.Since(c.born) // half the price of time.Now
	if time.Duration(c.deadline.Load())-age < c.timeout {
		next := age + 2*c.timeout
		c.deadline.Store(int64(next))
		c.nc.SetDeadline(c.born.Add(next))
	}
}
