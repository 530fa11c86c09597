package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"icapgate/icap"
)

// patience is how long the demo's clients wait for an answer.
const patience = 10 * time.Second

// driver is the demo's load: some clients that send one request after another. It is no measuring instrument; icapbench is.
type driver struct{ clients []*client }

func newDriver(n int, address string, config *tls.Config) *driver {
	d := &driver{}
	for range n {
		d.clients = append(d.clients, &client{address: address, config: config, request: newRequest(address)})
	}
	return d
}

// tally is what came of the requests of one step.
type tally struct {
	byServer     map[string]int // good answers by X-Server
	failed       int
	firstFailure error
	took         time.Duration
	times        []time.Duration // of the good answers
}

// drive sends requests for some time, or until an answer comes from a server that the step waits for.
func (d *driver) drive(ctx context.Context, most time.Duration, wanted func(server string) bool) tally {
	ctx, end := context.WithTimeout(ctx, most)
	defer end()
	start := time.Now()
	sum := tally{byServer: make(map[string]int)}
	var mu sync.Mutex // guards sum
	var running sync.WaitGroup
	for _, c := range d.clients {
		running.Go(func() {
			for ctx.Err() == nil {
				sent := time.Now()
				server, err := c.exchange()
				took := time.Since(sent)
				mu.Lock()
				if err != nil {
					if sum.failed++; sum.firstFailure == nil {
						sum.firstFailure = err
					}
				} else {
					sum.byServer[server]++
					sum.times = append(sum.times, took)
				}
				mu.Unlock()
				if err == nil && wanted != nil && wanted(server) {
					end()
				}
			}
		})
	}
	running.Wait()
	sum.took = time.Since(start)
	slices.Sort(sum.times)
	return sum
}

// quantile is in milliseconds.
func (t *tally) quantile(q float64) float64 {
	if len(t.times) == 0 {
		return 0
	}
	return t.times[int(q*float64(len(t.times)-1))].Seconds() * 1e3
}

func (d *driver) close() {
	for _, c := range d.clients {
		c.close()
	}
}

// client is one connection, opened again after a failure.
type client struct {
	address string
	config  *tls.Config
	request []byte
	conn    net.Conn
	in      []byte
	resp    icap.Response
}

// exchange sends the request and returns the server that has answered 204.
func (c *client) exchange() (server string, err error) {
	defer func() {
		if err != nil {
			c.close()
			time.Sleep(10 * time.Millisecond) // a gateway that refuses everything need not be hammered
		}
	}()
	if c.conn == nil {
		dialer := &net.Dialer{Timeout: patience}
		if c.conn, err = tls.DialWithDialer(dialer, "tcp", c.address, c.config); err != nil {
			c.conn = nil // and not a nil *tls.Conn
			return "", err
		}
	}
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := c.conn.Write(c.request); err != nil {
		return "", fmt.Errorf("sending: %w", err)
	}
	if err := c.readHead(); err != nil {
		return "", err
	}
	if c.resp.Status != 204 {
		return "", fmt.Errorf("answered %d %s", c.resp.Status, c.resp.Reason)
	}
	if c.resp.Get("X-Icapgate-Demo") == nil {
		return "", fmt.Errorf("%s is not this demo", c.address)
	}
	server = string(c.resp.Get("X-Server"))
	if c.resp.Close {
		c.close()
	}
	return server, nil
}

// readHead reads an answer without a body.
func (c *client) readHead() error {
	scanner := icap.HeadScanner{Response: true}
	c.in = c.in[:0]
	for {
		c.in = slices.Grow(c.in, 4<<10)
		n, err := c.conn.Read(c.in[len(c.in):cap(c.in)])
		c.in = c.in[:len(c.in)+n]
		if n == 0 && err != nil {
			return fmt.Errorf("waiting for the answer: %w", err)
		}
		start, end, err := scanner.Scan(c.in)
		if err == icap.ErrIncomplete {
			continue
		}
		if err != nil {
			return err
		}
		return c.resp.Parse(c.in[start:end])
	}
}

func (c *client) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// newRequest is what a cloud service sends for an upload that its policy has caught, with a body of 1 KiB.
func newRequest(address string) []byte {
	body := strings.Repeat("4111 1111 1111 1111 ", 1024/20) + "demo"
	head := "POST /upload HTTP/1.1\r\nHost: files.example.com\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n"
	var b bytes.Buffer
	fmt.Fprintf(&b, "REQMOD icaps://%s/reqmod ICAP/1.0\r\nHost: %[1]s\r\nAllow: 204\r\n", address)
	fmt.Fprintf(&b, "X-Client-IP: 192.0.2.7\r\nX-Authenticated-User: demo@example.com\r\nEncapsulated: req-hdr=0, req-body=%d\r\n\r\n", len(head))
	fmt.Fprintf(&b, "%s%x\r\n%s\r\n0\r\n\r\n", head, len(body), body)
	return b.Bytes()
}
