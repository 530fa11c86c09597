package gateway

import (
	"crypto/tls"
	"io"
	"net"
	"time"
)

// tlsStream runs a tls.Conn, whose handshake is over, on a loop: reads are resumed when the socket has more, writes
// append to the connection's out-buffer.
type tlsStream struct {
	tls       *tls.Conn
	transport *transport

	// How many whole records tls.Conn has got and not yet given out, at most. It is known after a read that came back dry, until one that may
	// have left a part of a record.
	pending int
	known   bool
}

// transport is the net.Conn under a tls.Conn. During the handshake it is the Go connection; afterwards the loop's conn.
// crypto/tls can't resume a handshake that would block, but it can resume a Read whose error was temporary.
type transport struct {
	net.Conn            // during the handshake, nil on the loop
	conn     *conn      // on the loop
	stream   *tlsStream // then, too
	records  recordCounter
	sent     uint64 // bytes of the handshake

	onRead func(begins bool) // during the handshake: told of the begin and the end of each wait for bytes; nil: nobody wants to know
}

func (t *transport) Read(p []byte) (n int, err error) {
	if t.conn != nil {
		n, err = t.conn.rawRead(p)
		t.stream.pending += t.records.count(p[:max(n, 0)])
		return n, err
	}
	if f := t.onRead; f != nil {
		f(true)
		defer f(false)
	}
	n, err = t.Conn.Read(p)
	t.records.count(p[:max(n, 0)])
	return n, err
}

func (t *transport) Write(p []byte) (int, error) {
	if t.conn != nil {
		t.conn.buffer(p)
		return len(p), nil
	}
	n, err := t.Conn.Write(p)
	t.sent += uint64(n)
	return n, err
}

// recordCounter finds the ends of records in what comes from the socket (RFC 8446 5.1: the length is in the last two of five bytes).
type recordCounter struct {
	header int // bytes of the current record's header that have come, up to 5
	left   int // bytes of its fragment still to come
}

// count returns how many records p completes.
func (r *recordCounter) count(p []byte) (n int) {
	for len(p) > 0 {
		if r.header < 5 {
			switch r.header {
			case 3:
				r.left = int(p[0]) << 8
			case 4:
				r.left |= int(p[0])
			}
			r.header++
			p = p[1:]
		} else {
			k := min(r.left, len(p))
			r.left -= k
			p = p[k:]
		}
		if r.header == 5 && r.left == 0 {
			r.header = 0
			n++
		}
	}
	return n
}

// Close and the deadlines are crypto/tls's wish on closing; the loop closes sockets and keeps time itself.
func (t *transport) Close() error                     { return nil }
func (t *transport) SetDeadline(time.Time) error      { return nil }
func (t *transport) SetReadDeadline(time.Time) error  { return nil }
func (t *transport) SetWriteDeadline(time.Time) error { return nil }

// attach hands the stream over from the handshake to the loop that owns c.
func (s *tlsStream) attach(c *conn) {
	s.transport.Conn, s.transport.conn, s.transport.stream = nil, c, s
	c.stream = s
}

// read decrypts into p, as many records as there are and fit. Where nothing whole can be left, tls.Conn is not asked again only to hear
// that the socket is dry.
func (s *tlsStream) read(p []byte) (n int, err error) {
	for n < len(p) {
		k, err := s.tls.Read(p[n:])
		n += k
		switch err {
		case nil:
		case errDry:
			s.pending, s.known = 0, true
			return n, err
		case io.ErrUnexpectedEOF: // a FIN without close_notify: ICAP's own framing tells whether something is missing
			return n, io.EOF
		default:
			return n, err
		}
		s.pending--
		if n == len(p) {
			s.known = false
		} else if s.known && s.pending <= 0 && !s.transport.conn.readable {
			s.pending = 0
			return n, errDry
		}
	}
	return n, nil
}

func (s *tlsStream) write(p []byte)     { _, _ = s.tls.Write(p) }
func (s *tlsStream) closeWrite()        { _ = s.tls.CloseWrite() }
func (s *tlsStream) serverName() string { return s.tls.ConnectionState().ServerName }
func (s *tlsStream) version() uint16    { return s.tls.ConnectionState().Version }
