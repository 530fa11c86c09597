package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
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
	cfg    *CheckConfig
	paths  []string // to ask for: cfg.asked()
	conn   net.Conn // nil: the next question needs a new one
	answer answer

	options     []*icap.Options // what the answers say, by path asked for; nil: there was no 200
	unreachable bool            // the latest connect failed
	heard       bool            // bytes of an answer have come
}

// run asks all questions and judges the answers. The connection is closed at the end: on some servers an open one holds a thread.
func (r *round) run(ctx context.Context) report {
	defer r.close()
	r.options = make([]*icap.Options, len(r.paths))
	judge := r.judge
	if len(r.cfg.Paths) == 0 {
		judge = r.judgeAny
	}
	rep := judge(ctx)
	if rep.outcome == good {
		r.askOthers(ctx)
	}
	return rep
}

// judge asks for the paths by whose answers the server is judged.
func (r *round) judge(ctx context.Context) report {
	rep := report{outcome: bad, missing: make([]bool, len(r.cfg.Paths))}
	absent, busy := 0, false
	for i, path := range r.cfg.Paths {
		status, err := r.ask(ctx, path, i == len(r.paths)-1)
		switch {
		case err != nil:
			return r.failed(err)
		case status == 200:
			rep.outcome = good
			r.learn(i)
			continue
		case status == 404:
			rep.missing[i] = true
			absent++
		case isFull(status):
			busy = true
		default:
			return report{outcome: bad, fault: describe("OPTIONS "+path, status)}
		}
		if rep.fault == "" {
			rep.fault = describe("OPTIONS "+path, status)
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

// judgeAny asks without knowing a path: an answer, whatever its status, means that an ICAP server is there. But who says that the question goes in
// circles does not have one.
func (r *round) judgeAny(ctx context.Context) report {
	status, err := r.ask(ctx, anyPath, len(r.paths) == 1)
	if err != nil {
		return r.failed(err)
	}
	switch status {
	case 200:
		r.learn(0)
	case 508:
		return report{outcome: bad, fault: describe("OPTIONS "+anyPath, status)}
	}
	return report{outcome: good}
}

// askOthers asks for the paths by which nothing is judged, until a question gets no answer.
func (r *round) askOthers(ctx context.Context) {
	for i := len(r.cfg.judged()); i < len(r.paths); i++ {
		status, err := r.ask(ctx, r.paths[i], i == len(r.paths)-1)
		if err != nil {
			return
		}
		if status == 200 {
			r.learn(i)
		}
	}
}

// failed judges a question that got no answer.
func (r *round) failed(err error) report {
	if OwnFault(err) {
		return report{outcome: none, fault: "cannot check: " + err.Error()}
	}
	return report{outcome: bad, fault: err.Error(), unreachable: r.unreachable}
}

// learn takes down what the latest answer, which is a 200, says of the server.
func (r *round) learn(i int) {
	o := icap.ParseOptions(&r.answer.Response)
	r.options[i] = &o
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
		return 0, explain("OPTIONS "+path, r.cfg, r.conn != nil, r.cfg.Timeout, err)
	}
	if a := &r.answer; last || a.Close || status != 200 && (a.Encapsulated.HeadLen() > 0 || a.Encapsulated.HasBody()) || len(a.rest) > 0 {
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
		err = r.read(conn)
	case !errors.Is(err, os.ErrDeadlineExceeded): // it may have said something before it ended the connection
		if err = r.read(conn); err != nil && !isAlert(err) {
			err = errSilentEnd
		}
	}
	if !stop() && err == nil {
		r.close() // answered in the last moment: the connection has lost its deadline
	}
	return r.answer.Status, err
}

// read reads the answer. A 200 is one for OPTIONS only if nothing but an opt-body comes with it, which is read for its framing. Of other answers
// the status says all.
func (r *round) read(conn net.Conn) error {
	r.answer = answer{}
	defer func() { r.heard = r.heard || r.answer.read > 0 }()
	if err := r.answer.readHead(conn); err != nil || r.answer.Status != 200 {
		return err
	}
	switch body := r.answer.Encapsulated.Body(); {
	case r.answer.Encapsulated.HeadLen() > 0:
		return errors.New("the answer has HTTP heads, which is none to OPTIONS")
	case body != icap.NoSection && body != icap.NullBody && body != icap.OptBody:
		return fmt.Errorf("the answer has a %v, which is none to OPTIONS", body)
	}
	return r.answer.readMessage(conn)
}

// dial connects, TLS included. The caller owns the connection.
func (r *round) dial(ctx context.Context) (net.Conn, error) {
	conn, err := r.cfg.Dial(ctx, "tcp", r.cfg.Address)
	r.unreachable = err != nil
	if err != nil {
		return nil, err
	}
	return r.cfg.secure(ctx, conn)
}

// request returns one OPTIONS request. No Encapsulated: there is no body, and its presence breaks some servers. The last request of a
// round tells the server that it can let go of the connection.
func (r *round) request(path string, last bool) []byte {
	end := "\r\n"
	if last {
		end = "Connection: close\r\n\r\n"
	}
	return fmt.Appendf(nil, "OPTIONS icap://%[1]s%[2]s ICAP/1.0\r\nHost: %[1]s\r\nUser-Agent: icapgate-check\r\n%[3]s%[4]s",
		r.cfg.Authority, path, r.cfg.Fields, end)
}

func (r *round) close() {
	if r.conn != nil {
		r.conn.Close()
		r.conn = nil
	}
}
