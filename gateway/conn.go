package gateway

import (
	"io"

	"golang.org/x/sys/unix"

	"icapgate/configs"
)

// Water marks of the bytes that wait for a socket. Above high the other side is not read; below low it is again.
const (
	highWater = 256 << 10
	lowWater  = 64 << 10
	// Pieces smaller than this are gathered in the out-buffer and written together at the end of the round.
	directWrite = 8 << 10
)

// owner is what a connection belongs to: a session or a server connection.
type owner interface {
	onWritable()         // the socket takes bytes again; out has been flushed as far as it went
	run()                // there may be bytes to read, or runLater was called
	onError()            // EPOLLERR or EPOLLHUP; what has been received can still be read
	abort(r closeReason) // close, now
}

// waitKind is what a connection's deadline is about; none while it is the gateway that makes the peer wait.
type waitKind uint8

const (
	waitNone       waitKind = iota
	waitRequest             // client: between requests
	waitHead                // client: within a head
	waitBody                // client: within a body that has somewhere to go
	waitRest                // client: the rest of a request that has been answered, which is dropped
	waitTaken               // either: the peer does not take what is waiting for it
	waitLinger              // client: its FIN, after our last answer
	waitConnect             // server: the connect, with the TLS handshake
	waitDescriptor          // server: a descriptor to connect with
	waitAnswer              // server: the head of the answer to a request that it has whole
	waitMore                // server: more of the answer's body
	waitUse                 // server: idle in the pool
)

// stream is a connection's view of TLS; a connection without one is plain.
type stream interface {
	// read decrypts into p. errDry: the socket has no more now. It may return bytes together with an error.
	read(p []byte) (int, error)
	// write appends the records of p to the connection's out-buffer.
	write(p []byte)
	// closeWrite appends the close_notify.
	closeWrite()
	version() uint16
}

// errDry says that the socket has nothing to read now. It is a net.Error that is temporary, for crypto/tls: a tls.Conn can
// be read again after such an error.
var errDry error = dryError{}

type dryError struct{}

func (dryError) Error() string   { return "no bytes to read now" }
func (dryError) Timeout() bool   { return true }
func (dryError) Temporary() bool { return true }

// conn is what both ends share: one socket on one loop. Owned by the loop; only close closes the fd, once, with a reason.
type conn struct {
	loop   *loop
	fd     int
	owner  owner
	stream stream // nil: plain

	splicing bool // the body's bytes are spliced: what is read is a size line
	readable bool // the socket may have bytes (edge-triggered: true until a read says otherwise)
	dry      bool // the last read ended because nothing was left, in the socket and in the stream
	writable bool // the socket may take bytes
	rdhup    bool // the peer's FIN is here or behind the bytes not yet read
	eof      bool // reading has come to the peer's end
	closed   bool
	queued   bool // on the loop's ready list
	writeErr error

	in      *buffer // bytes read and not yet consumed; nil when there are none
	inPos   int     // in.B[:inPos] has been consumed
	starved bool    // what is in in does not suffice: read before looking again

	pipe   *pipe   // spliced bytes that the socket has not taken, nil when there are none; they come before out
	out    *buffer // bytes that the socket has not taken; nil when there are none
	outPos int     // out.B[:outPos] has been taken

	timer    timer
	waits    waitKind // what timer is about
	activeAt int64    // when the wait began, or the peer last took a byte (waitTaken) or sent one of a body (waitBody, waitMore)

	received, sent uint64 // bytes on the wire
	bodyRound      int    // body bytes sent since endRound last counted them
}

// adopt puts c's socket, which becomes the loop's, into the table and asks the poller for its events. After an error the socket
// is closed.
func (l *loop) adopt(c *conn) error {
	c.loop = l
	if err := l.poller.add(c.fd); err != nil {
		unix.Close(c.fd)
		c.fd = -1
		return err
	}
	if c.fd >= len(l.conns) {
		l.conns = append(l.conns, make([]*conn, c.fd+1-len(l.conns))...)
	}
	l.conns[c.fd] = c
	return nil
}

// onEvents handles one socket's events in this order: an error first, because nothing else matters then; room to write
// before bytes to read, so that reading finds the out-buffer as empty as it can be; the peer's FIN is only noted,
// because bytes may stand before it.
func (c *conn) onEvents(events uint32) {
	if events&eventRDHup != 0 {
		c.rdhup = true
	}
	if events&eventRead != 0 {
		c.readable, c.dry = true, false
	}
	if events&eventError != 0 {
		c.readable, c.writable, c.dry = true, true, false
		c.owner.onError()
		return
	}
	// Every event of an edge-triggered fd tells all that is true; that a socket is still writable is no news.
	if events&eventWrite != 0 && (!c.writable || c.pending() > 0) {
		c.writable = true
		c.flush()
		c.owner.onWritable()
	}
	if events&eventRead != 0 && !c.closed {
		c.owner.run()
	}
}

// wait sets the deadline: the peer may take timeout from the beginning of the wait or, where signs of life count, from the latest
// one. A timeout of 0 is none.
func (c *conn) wait(kind waitKind, timeout configs.Duration) {
	c.beginWait(kind)
	at := int64(0)
	if timeout > 0 {
		at = c.activeAt + int64(timeout)
	}
	c.loop.wheel.set(&c.timer, at)
}

// waitUntil is wait with a deadline that nothing moves.
func (c *conn) waitUntil(kind waitKind, at int64) {
	c.beginWait(kind)
	c.loop.wheel.set(&c.timer, at)
}

func (c *conn) beginWait(kind waitKind) {
	if c.waits != kind {
		c.waits, c.activeAt = kind, c.loop.now
	}
}

// takesMore tries to write when the peer seems to take nothing: the event of a writable socket comes only when a good part of its
// buffer is free, which a slow reader may not have brought about yet. It also returns true when the connection proves to be broken.
func (c *conn) takesMore() bool {
	before := c.sent
	c.writable = true
	c.flush()
	return c.sent != before || c.writeErr != nil
}

// read reads decrypted bytes into p. errDry: no more now; io.EOF: the peer's end (FIN or close_notify); any other error: broken.
func (c *conn) read(p []byte) (n int, err error) {
	switch {
	case c.dry:
		return 0, errDry
	case c.eof:
		return 0, io.EOF
	}
	if c.stream != nil {
		n, err = c.stream.read(p)
	} else {
		n, err = c.rawRead(p)
	}
	switch err {
	case io.EOF:
		c.eof = true
	case errDry:
		c.dry = true
	}
	return n, err
}

// rawRead reads from the socket. A short read empties an edge-triggered socket, so no call is spent on hearing EAGAIN.
func (c *conn) rawRead(p []byte) (int, error) {
	if !c.readable {
		return 0, errDry
	}
	for {
		n, err := readNow(c.fd, p)
		switch {
		case n > 0:
			if n < len(p) && !c.rdhup {
				c.readable = false
			}
			c.tookIn(n)
			return n, nil
		case err == nil:
			return 0, io.EOF
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			c.readable = false
			return 0, errDry
		default:
			c.readable = false
			return 0, err
		}
	}
}

// tookIn counts n bytes that have come.
func (c *conn) tookIn(n int) {
	c.received += uint64(n)
	if c.waits == waitBody || c.waits == waitMore {
		c.activeAt = c.loop.now
	}
}

// fill returns bytes to look at: those left over or, when there are none or not enough, with new ones behind them, of which it reads
// about most. They are valid until the next read on the loop. The errors are those of read.
func (c *conn) fill(most int) ([]byte, error) {
	if c.in == nil {
		n, err := c.read(c.loop.scratch[:most])
		if n > 0 {
			err = nil // it comes again
		}
		return c.loop.scratch[:n], err
	}
	if !c.starved {
		return c.in.B[c.inPos:], nil
	}
	b := c.in
	if c.inPos > 0 {
		b.B = b.B[:copy(b.B, b.B[c.inPos:])]
		c.inPos = 0
	}
	b = c.loop.buffers.room(b, 2048)
	c.in = b
	n, err := c.read(b.B[len(b.B):cap(b.B)])
	if n == 0 {
		return nil, err
	}
	b.B = b.B[:len(b.B)+n]
	return b.B, nil
}

// hasMore says whether a further fill may bring something without a new event.
func (c *conn) hasMore() bool { return !c.dry || c.in != nil && !c.starved }

// keep holds on to p[k:], the part of what fill gave that was not consumed.
func (c *conn) keep(p []byte, k int) {
	switch {
	case c.closed:
	case k == len(p):
		c.dropIn()
	case c.in == nil:
		c.in, c.inPos = c.loop.buffers.append(nil, p[k:]), 0
	default:
		c.inPos += k
	}
}

func (c *conn) dropIn() {
	c.loop.buffers.put(c.in)
	c.in, c.inPos = nil, 0
	c.starved = false
}

// send takes p for the peer. Large pieces go to the socket from where they are; what it does not take, and small
// pieces, wait in the out-buffer for flush.
func (c *conn) send(p []byte) {
	switch {
	case len(p) == 0 || c.closed || c.writeErr != nil:
	case c.stream != nil:
		c.stream.write(p)
	default:
		c.rawSend(p)
	}
}

// sendBody is send for bytes of a body, which are counted.
func (c *conn) sendBody(p []byte) {
	c.bodyRound += len(p)
	c.send(p)
}

// countBody counts the body bytes of the round by whether the socket has taken them. It is called after flush.
func (c *conn) countBody(direction int) {
	if c.bodyRound == 0 {
		return
	}
	waiting := 0
	if c.out != nil {
		waiting = min(c.bodyRound, len(c.out.B)-c.outPos)
	}
	count := &c.loop.stats.body[direction]
	count[viaBuffered].Add(uint64(waiting))
	count[viaDirect].Add(uint64(c.bodyRound - waiting))
	c.bodyRound = 0
}

func (c *conn) rawSend(p []byte) {
	if len(p) >= directWrite && c.writable && c.pipe == nil {
		n := 0
		if c.pending() == 0 {
			n = c.rawWrite(p)
		} else if c.pending() < directWrite {
			n = c.rawWritev(p)
		} else {
			c.flush()
			if c.pending() == 0 {
				n = c.rawWrite(p)
			}
		}
		p = p[n:]
	}
	c.buffer(p)
}

// buffer appends p to the out-buffer.
func (c *conn) buffer(p []byte) {
	if len(p) == 0 || c.writeErr != nil {
		return
	}
	if c.outPos > 0 && len(c.out.B)+len(p) > cap(c.out.B) {
		c.out.B = c.out.B[:copy(c.out.B, c.out.B[c.outPos:])]
		c.outPos = 0
	}
	c.out = c.loop.buffers.append(c.out, p)
}

// pending is the number of bytes that wait for the socket.
func (c *conn) pending() (n int) {
	if c.pipe != nil {
		n = c.pipe.n
	}
	if c.out != nil {
		n += len(c.out.B) - c.outPos
	}
	return n
}

// flush writes what waits, as far as the socket takes it.
func (c *conn) flush() {
	if c.pipe != nil && !c.closed {
		c.flushPipe()
	}
	for c.out != nil && c.writable && !c.closed {
		if n := c.rawWrite(c.out.B[c.outPos:]); n > 0 {
			c.outPos += n
		}
		if c.writeErr != nil || c.outPos == len(c.out.B) {
			c.dropOut()
			return
		}
	}
}

func (c *conn) dropOut() {
	if c.pipe != nil {
		c.loop.leavePipe(c.pipe)
		c.pipe = nil
	}
	c.loop.buffers.put(c.out)
	c.out, c.outPos = nil, 0
}

// rawWrite writes p and returns how much of it the socket took.
func (c *conn) rawWrite(p []byte) int {
	for {
		n, err := writeNow(c.fd, p)
		if err == unix.EINTR {
			continue
		}
		return c.wrote(n, len(p), err)
	}
}

// rawWritev writes the out-buffer and then p with one call, and returns how much of p the socket took.
func (c *conn) rawWritev(p []byte) int {
	waiting := c.pending()
	c.loop.iov[0], c.loop.iov[1] = c.out.B[c.outPos:], p
	n, err := unix.Writev(c.fd, c.loop.iov[:])
	c.loop.iov[0], c.loop.iov[1] = nil, nil
	if err == unix.EINTR {
		n, err = 0, nil
	}
	n = c.wrote(n, waiting+len(p), err)
	if n < waiting {
		c.outPos += n
		return 0
	}
	c.dropOut()
	return n - waiting
}

func (c *conn) wrote(n, of int, err error) int {
	switch {
	case err == unix.EAGAIN:
		c.writable = false
		return 0
	case err != nil:
		c.writeErr = err
		c.writable = false
		return 0
	}
	if n < of {
		c.writable = false
	}
	c.sent += uint64(n)
	if c.waits == waitTaken {
		c.activeAt = c.loop.now
	}
	return n
}

// closeWrite ends our direction after what has been sent: close_notify and, once all is flushed, a FIN.
func (c *conn) closeWrite() {
	if c.stream != nil {
		c.stream.closeWrite()
	}
	c.flush()
	if c.pending() == 0 {
		c.shutdownWrite()
	}
}

func (c *conn) shutdownWrite() { _ = unix.Shutdown(c.fd, unix.SHUT_WR) }

// close ends the connection. The fd leaves the table and the poller at once; close(2) follows after the batch, so that its
// number can't be used again while events of the old socket may still come.
func (c *conn) close() {
	if c.closed {
		return
	}
	c.closed = true
	l := c.loop
	l.wheel.stop(&c.timer)
	c.dropIn()
	c.dropOut()
	if c.fd >= 0 {
		l.conns[c.fd] = nil
		l.poller.remove(c.fd)
		l.closing = append(l.closing, c.fd)
	}
}
