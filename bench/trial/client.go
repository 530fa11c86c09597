package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"time"

	"icapgate/bench"
	"icapgate/icap"
)

// clientPatience bounds a client's connects and its waits for bytes.
const clientPatience = 30 * time.Second

// client is an ICAP client that sends one request after the other and makes a new connection when it needs one.
type client struct {
	target bench.Target
	tls    *tls.Config // nil: icap://
	conn   *bench.Conn // nil: none
	used   bool        // a request was answered on conn
}

// call is one request and what came of it. It is a Receiver.
type call struct {
	Message bench.Message
	Size    int64 // of the body, -1: none
	Start   int   // of the body: see bench.PatternBody
	Read    func(n int) error
	Send    io.Reader // in place of the body; nil: the body as it is
	Trickle bool      // Send's bytes leave as they come

	status int    // of the final answer, 0: its head has not come
	server string // X-Server of the answer
	id     string // X-Trial-Id of the answer
	got    int64  // bytes of body
	echo   io.Reader
	buffer []byte
	wrong  error // how the answer differs from what it should be
}

// errStale says that the gateway had closed the connection before the request was sent.
var errStale = errors.New("the connection was closed between two requests")

// connect makes a connection if there is none.
func (c *client) connect(ctx context.Context) (err error) {
	if c.conn == nil {
		c.used = false
		c.conn, err = bench.Dial(ctx, c.target.Address, c.tls, clientPatience)
	}
	return err
}

// do sends a request and checks its answer. The error is errStale or one of bench.Conn; what is wrong with an answer that came whole
// is in q.
func (c *client) do(q *call) error {
	if c.used && c.conn.Stale() {
		c.close()
		return errStale
	}
	req, err := q.build(c.target)
	if err != nil {
		return err
	}
	err = c.conn.Do(req, q)
	if err == nil && q.echo != nil && q.got != q.Size {
		q.wrong = fmt.Errorf("%d of %d bytes came back", q.got, q.Size)
	}
	c.used = true
	if !c.conn.Reusable() {
		c.close()
	}
	return err
}

func (c *client) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

func (q *call) build(t bench.Target) (*bench.Request, error) {
	q.status, q.server, q.id, q.got, q.echo, q.wrong = 0, "", "", 0, nil, nil
	if q.Size < 0 || q.Message.Method == icap.MethodOptions {
		return q.Message.Build(t, nil, 0)
	}
	if q.Send == nil {
		return q.Message.Build(t, bench.PatternBody(q.Start, q.Size), q.Size)
	}
	req, err := q.Message.Build(t, q.Send, q.Size)
	if err == nil {
		req.Trickle = q.Trickle
	}
	return req, err
}

// Head implements bench.Receiver.
func (q *call) Head(r *icap.Response, _ []byte) error {
	if r.Status == 100 {
		return nil
	}
	q.status, q.server, q.id = r.Status, string(r.Get("x-server")), string(r.Get(idHeader))
	if r.Status == 200 && q.Size >= 0 && q.Message.Method != icap.MethodOptions {
		q.echo = bench.PatternBody(q.Start, q.Size)
	}
	return nil
}

// Blocks implements bench.Receiver.
func (q *call) Blocks(*icap.Encapsulated, []byte, bool) error { return nil }

// Data implements bench.Receiver.
func (q *call) Data(p []byte) error {
	if q.echo != nil && q.wrong == nil {
		q.buffer = append(q.buffer[:0], p...)
		if n, _ := io.ReadFull(q.echo, q.buffer); n < len(p) || !bytes.Equal(p, q.buffer) {
			q.wrong = fmt.Errorf("the body is another one within %d bytes after byte %d", len(p), q.got)
		}
	}
	q.got += int64(len(p))
	if q.Read != nil {
		return q.Read(len(p))
	}
	return nil
}
