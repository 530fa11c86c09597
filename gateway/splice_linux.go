package gateway

import (
	"io"

	"golang.org/x/sys/unix"
)

// Body bytes go from one plain socket to another by splice(2) when enough of a chunk is still to come: the kernel moves references to
// their pages through a pipe, and they are never copied into this process.
const (
	spliceMin    = 32 << 10  // bytes of a chunk that are still to come; for less, reading is as cheap
	pipeSize     = 256 << 10 // bytes; as much as may wait for a socket
	sizeLineRead = 4 << 10   // bytes that are read at most for a size line between two chunks that are spliced
	maxPipes     = 64        // of a loop, two descriptors each; when so many are full, others read and write
)

// pipe holds bytes on their way. It belongs to the connection that they go to until it is empty, and then to its loop.
type pipe struct {
	r, w int
	n    int // bytes in it
}

// takePipe returns an empty pipe, nil if there can be none now.
func (l *loop) takePipe() *pipe {
	if last := len(l.pipes) - 1; last >= 0 {
		p := l.pipes[last]
		l.pipes = l.pipes[:last]
		return p
	}
	var fds [2]int
	if l.pipeCount == maxPipes || !l.gw.limits.take(2) {
		return nil
	}
	if unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC) != nil {
		l.gw.limits.give(2)
		return nil
	}
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, pipeSize) // a smaller one takes more rounds
	l.pipeCount++
	return &pipe{r: fds[0], w: fds[1]}
}

// leavePipe takes back the pipe of a connection that needs it no more.
func (l *loop) leavePipe(p *pipe) {
	if p.n > 0 { // what is left in it is for nobody else
		l.closePipe(p)
		return
	}
	l.pipes = append(l.pipes, p)
}

func (l *loop) closePipe(p *pipe) {
	unix.Close(p.r)
	unix.Close(p.w)
	l.pipeCount--
	l.gw.limits.give(2)
}

// canSplice says whether bytes can go from c's socket to another's, for which nothing else waits, without being looked at; rest is what
// is still to come of the chunk.
func (c *conn) canSplice(to *conn, rest uint64) bool {
	return rest >= spliceMin && c.in == nil && c.stream == nil && to.stream == nil && !to.closed && to.writeErr == nil && !c.loop.noSplice
}

// splice moves up to n bytes from c's socket to another's, and returns how many have left c's. What the other does not take waits
// in its pipe. The errors are those of read; without any, 0 says that splicing is not possible and that reading is.
func (c *conn) splice(to *conn, n int) (int, error) {
	switch {
	case c.dry:
		return 0, errDry
	case c.eof:
		return 0, io.EOF
	}
	p := c.loop.takePipe()
	if p == nil {
		return 0, nil
	}
	n, err := spliceNow(c.fd, p.w, min(n, pipeSize))
	if n <= 0 {
		c.loop.leavePipe(p)
		switch {
		case err == unix.EAGAIN:
			c.readable, c.dry = false, true
			return 0, errDry
		case err == unix.EINVAL || err == unix.ENOSYS: // a kind of socket, or a kernel, that can't
			c.loop.noSplice = true
			return 0, nil
		case err == nil:
			c.eof = true
			return 0, io.EOF
		}
		c.readable = false
		return 0, err
	}
	c.tookIn(n)
	p.n, to.pipe = n, p
	to.flush()
	return n, nil
}

// flushPipe writes what waits in the pipe, as far as the socket takes it.
func (c *conn) flushPipe() {
	p := c.pipe
	for p.n > 0 && c.writable {
		n, err := spliceNow(p.r, c.fd, p.n)
		if n == 0 {
			err = io.ErrUnexpectedEOF // of a pipe that is not empty: can't be
		}
		p.n -= c.wrote(n, n, err)
	}
	if p.n == 0 || c.writeErr != nil {
		c.loop.leavePipe(p)
		c.pipe = nil
	}
}
