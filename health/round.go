package health

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"icapgate/icap"
)

// anyPath is asked for when no path is known; every well-formed answer will do then.
const anyPath = "/"

// report is what one round of questions found out about a server.
type report struct {
	outcome outcome
	fault   string // "": none. Not only with bad: a missing path is named too
	missing []bool // by path: answered with 404; nil if that was not found out

	unreachable bool // no connection came about, TLS aside
}

// round asks the server one OPTIONS per path, over one connection if the server lets it.
type round struct {
	cfg  *CheckConfig
	conn net.Conn // nil: the next question needs a new one
	buf  []byte   // the answer
	resp icap.Response
	more bool // bytes follow the head of the answer

	unreachable bool // the latest connect failed
}

// run asks all questions and judges the answers. The connection is closed at the end: on some servers an open one holds a thread.
func (r *round) run(ctx context.Context) report {
	defer r.close()
	if len(r.cfg.Paths) == 0 {
		return r.runAny(ctx)
	}
	rep := report{outcome: bad, missing: make([]bool, len(r.cfg.Paths))}
	absent, busy := 0, false
	for i, path := range r.cfg.Paths {
		status, err := r.ask(ctx, path, i == len(r.cfg.Paths)-1)
		switch {
		case err != nil:
			return r.failed(err)
		case status == 200:
			rep.outcome = good
			r.learn()
			continue
		case status == 404:
			rep.missing[i] = true
			absent++
		case status == 503:
			busy = true
		default:
			return report{outcome: bad, fault: describe(path, status)}
		}
		if rep.fault == "" {
			rep.fault = describe(path, status)
		}
	}
	switch {
	case rep.outcome == good:
	case busy:
		rep.outcome = full
	case absent > 0 && r.cfg.OtherPaths:
		rep.outcome = good
	}
	return rep
}

// runAny asks without knowing a path: an answer, whatever its status, means that an ICAP server is there.
func (r *round) runAny(ctx context.Context) report {
	status, err := r.ask(ctx, anyPath, true)
	if err != nil {
		return r.failed(err)
	}
	if status == 200 {
		r.learn()
	}
	return report{outcome: good}
}

// failed judges a question that got no answer.
func (r *round) failed(err error) report {
	if OwnFault(err) {
		return report{outcome: none, fault: "cannot check: " + err.Error()}
	}
	return report{outcome: bad, fault: err.Error(), unreachable: r.unreachable}
}

// OwnFault says whether a connection failed because this machine lacks a descriptor or memory, which says nothing about the server.
func OwnFault(err error) bool {
	for _, lack := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, lack) {
			return true
		}
	}
	return false
}

func describe(path string, status int) string {
	return fmt.Sprintf("OPTIONS %s: %d %s", path, status, icap.StatusText(status))
}

// learn hands on what the latest answer, which is a 200, says of the server.
func (r *round) learn() {
	if r.cfg.OnOptions != nil {
		r.cfg.OnOptions(icap.ParseOptions(&r.resp))
	}
}

// ask sends one OPTIONS and returns the status of the answer, which is in r.resp. Connect, handshake and answer together take no
// longer than the timeout. A server may close a connection after any answer without a word (c-icap does after its
// limit of requests), so on a connection that has been used an end without a byte is met by one new connection.
func (r *round) ask(ctx context.Context, path string, last bool) (status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	used := r.conn != nil
	status, err = r.askOnce(ctx, path, last)
	if used && errors.Is(err, errSilentEnd) {
		r.close()
		status, err = r.askOnce(ctx, path, last)
	}
	if err != nil {
		return 0, r.explain(path, err)
	}
	if last || r.resp.Close || r.more {
		r.close()
	}
	return status, nil
}

func (r *round) askOnce(ctx context.Context, path string, last bool) (status int, err error) {
	if r.conn == nil {
		if r.conn, err = r.dial(ctx); err != nil {
			return 0, err
		}
	}
	// The end of ctx, be it the timeout or the end of the Checker, ends reads and writes.
	conn := r.conn
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	_, err = conn.Write(r.request(path, last))
	switch {
	case err == nil:
		err = r.readHead(conn)
	case !errors.Is(err, os.ErrDeadlineExceeded):
		err = errSilentEnd
	}
	if !stop() && err == nil {
		r.close() // answered in the last moment: the connection has lost its deadline
	}
	return r.resp.Status, err
}

// dial connects, TLS included. The caller owns the connection.
func (r *round) dial(ctx context.Context) (net.Conn, error) {
	conn, err := r.cfg.Dial(ctx, "tcp", r.cfg.Address)
	r.unreachable = err != nil
	if err != nil || r.cfg.TLS == nil {
		return conn, err
	}
	tlsConn := tls.Client(conn, r.cfg.TLS)
	if err := tlsConn.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return tlsConn, nil
}

// request returns one OPTIONS request. No Encapsulated: there is no body, and its presence breaks some servers. The last request of a
// round tells the server that it can let go of the connection.
func (r *round) request(path string, last bool) []byte {
	end := "\r\n"
	if last {
		end = "Connection: close\r\n\r\n"
	}
	return fmt.Appendf(nil, "OPTIONS icap://%[1]s%[2]s ICAP/1.0\r\nHost: %[1]s\r\nUser-Agent: icapgate-check\r\n%[3]s",
		r.cfg.Authority, path, end)
}

// readHead reads and parses the head of the answer. The scanner bounds its size.
func (r *round) readHead(conn net.Conn) error {
	const step = 4 << 10
	scanner := icap.HeadScanner{LenientLF: true, Response: true}
	r.buf = r.buf[:0]
	for {
		if cap(r.buf)-len(r.buf) < step {
			r.buf = append(make([]byte, 0, 2*cap(r.buf)+step), r.buf...)
		}
		n, err := conn.Read(r.buf[len(r.buf):cap(r.buf)])
		r.buf = r.buf[:len(r.buf)+n]
		start, end, scanErr := scanner.Scan(r.buf)
		switch {
		case scanErr == nil:
			if err := r.resp.Parse(r.buf[start:end]); err != nil {
				return err
			}
			e := &r.resp.Encapsulated
			r.more = e.HeadLen() > 0 || e.HasBody() || end < len(r.buf)
			return nil
		case scanErr != icap.ErrIncomplete:
			return scanErr
		case len(r.buf) == 0 && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)):
			return errSilentEnd
		case err != nil:
			return err
		}
	}
}

func (r *round) close() {
	if r.conn != nil {
		r.conn.Close()
		r.conn = nil
	}
}

// errSilentEnd: the server has ended the connection before the first byte of an answer.
var errSilentEnd = errors.New("the server closed the connection without an answer")

// explain says in words for an operator what went wrong.
func (r *round) explain(path string, err error) error {
	var timeout net.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		switch {
		case r.conn == nil && r.cfg.TLS != nil:
			return fmt.Errorf("no TLS connection within %v", r.cfg.Timeout)
		case r.conn == nil:
			return fmt.Errorf("no connection within %v", r.cfg.Timeout)
		}
		return fmt.Errorf("OPTIONS %s: no answer within %v", path, r.cfg.Timeout)
	case r.conn == nil:
		return err // of the connect, which names the address
	case errors.Is(err, io.EOF):
		return fmt.Errorf("OPTIONS %s: the server closed the connection in the middle of its answer", path)
	}
	return fmt.Errorf("OPTIONS %s: %w", path, err)
}
