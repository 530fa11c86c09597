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
}

// transport is the net.Conn under a tls.Conn. During the handshake it is the Go connection; afterwards the loop's conn.
// crypto/tls can't resume a handshake that would block, but it can resume a Read whose error was temporary.
type transport struct {
	net.Conn       // during the handshake, nil on the loop
	conn     *conn // on the loop

	onRead func(begins bool) // during the handshake: told of the begin and the end of each wait for bytes; nil: nobody wants to know
}

func (t *transport) Read(p []byte) (int, error) {
	if t.conn != nil {
		return t.conn.rawRead(p)
	}
	if f := t.onRead; f != nil {
		f(true)
		defer f(false)
	}
	return t.Conn.Read(p)
}

func (t *transport) Write(p []byte) (int, error) {
	if t.conn != nil {
		t.conn.buffer(p)
		return len(p), nil
	}
	return t.Conn.Write(p)
}

// Close and the deadlines are crypto/tls's wish on closing; the loop closes sockets and keeps time itself.
func (t *transport) Close() error                     { return nil }
func (t *transport) SetDeadline(time.Time) error      { return nil }
func (t *transport) SetReadDeadline(time.Time) error  { return nil }
func (t *transport) SetWriteDeadline(time.Time) error { return nil }

// attach hands the stream over from the handshake to the loop that owns c.
func (s *tlsStream) attach(c *conn) {
	s.transport.Conn, s.transport.conn = nil, c
	c.stream = s
}

func (s *tlsStream) read(p []byte) (n int, err error) {
	for n < len(p) {
		var k int
		k, err = s.tls.Read(p[n:])
		n += k
		if err != nil {
			break
		}
	}
	if err == io.ErrUnexpectedEOF { // a FIN without close_notify: ICAP's own framing tells whether something is missing
		err = io.EOF
	}
	return n, err
}

func (s *tlsStream) write(p []byte)  { _, _ = s.tls.Write(p) }
func (s *tlsStream) closeWrite()     { _ = s.tls.CloseWrite() }
func (s *tlsStream) version() uint16 { return s.tls.ConnectionState().Version }
