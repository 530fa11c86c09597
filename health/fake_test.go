package health

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Ends of a fakeServer's answer, or all of it.
const (
	drop = "<drop>" // closes the connection
	hang = "<hang>" // says nothing more and waits for the client to leave
)

const (
	ok200       = "ICAP/1.0 200 OK\r\nISTag: \"t\"\r\nMax-Connections: 16\r\nEncapsulated: null-body=0\r\n\r\n"
	gone404     = "ICAP/1.0 404 ICAP Service not found\r\n\r\n"
	continue100 = "ICAP/1.0 100 Continue\r\n\r\n"
	busy503     = "ICAP/1.0 503 Service overloaded\r\n\r\n"
)

// fakeServer is a scripted server behind CheckConfig.Dial.
type fakeServer struct {
	answer func(request string) string // by path of the request or by whatever the test counts; called under mu
	accept func(net.Conn) net.Conn     // wraps a connection on the server's side; nil: as it is

	held atomic.Int32 // connections that the Checker has not closed
	peak atomic.Int32 // most of them at a time

	mu       sync.Mutex
	refuse   error
	requests []string    // as received; one with a preview is there twice if the server has asked for the rest
	dials    []time.Time // one per connection
	open     int         // connections now
}

func (f *fakeServer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dials = append(f.dials, time.Now())
	if f.refuse != nil {
		return nil, f.refuse
	}
	client, server := net.Pipe()
	f.open++
	if n := f.held.Add(1); n > f.peak.Load() {
		f.peak.Store(n)
	}
	go f.serve(server)
	return &heldConn{Conn: client, f: f}, nil
}

// heldConn is a connection until its owner closes it.
type heldConn struct {
	net.Conn
	f    *fakeServer
	once sync.Once
}

func (c *heldConn) Close() error {
	c.once.Do(func() { c.f.held.Add(-1) })
	return c.Conn.Close()
}

// listen has the server behind a real socket, which takes what is written before it is read, and knows RST. It returns how to connect.
func (f *fakeServer) listen(t *testing.T) func(ctx context.Context, network, address string) (net.Conn, error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			f.open++
			f.mu.Unlock()
			go f.serve(conn)
		}
	}()
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, ln.Addr().String())
	}
}

func (f *fakeServer) serve(conn net.Conn) {
	defer func() {
		conn.Close()
		f.mu.Lock()
		f.open--
		f.mu.Unlock()
	}()
	if f.accept != nil {
		conn = f.accept(conn)
	}
	r := bufio.NewReader(conn)
	for {
		request, err := readRequest(r)
		if err != nil {
			return
		}
		answer := f.ask(request)
		if answer == continue100 {
			rest := ""
			if _, err = io.WriteString(conn, answer); err == nil {
				rest, err = readBody(r)
			}
			if err != nil {
				return
			}
			answer = f.ask(request + rest)
		}
		say, stay := answer, true
		for _, end := range []string{drop, hang} {
			if before, found := strings.CutSuffix(answer, end); found {
				say, stay = before, false
			}
		}
		if _, err := io.WriteString(conn, say); say != "" && err != nil {
			return
		}
		if strings.HasSuffix(answer, hang) {
			io.Copy(io.Discard, r)
		}
		if !stay {
			return
		}
	}
}

func (f *fakeServer) ask(request string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.requests = append(f.requests, request)
	return f.answer(request)
}

// readRequest reads a request whole, or as far as its preview goes.
func readRequest(r *bufio.Reader) (string, error) {
	request, err := readHead(r)
	for _, part := range []func(*bufio.Reader) (string, error){readHead, readBody} {
		if err != nil || strings.HasPrefix(request, "OPTIONS") {
			break
		}
		var more string
		more, err = part(r)
		request += more
	}
	return request, err
}

func readHead(r *bufio.Reader) (string, error) {
	var head strings.Builder
	for {
		line, err := r.ReadString('\n')
		head.WriteString(line)
		if err != nil || line == "\r\n" {
			return head.String(), err
		}
	}
}

// readBody reads chunks up to the last one.
func readBody(r *bufio.Reader) (string, error) {
	var body strings.Builder
	for {
		line, err := r.ReadString('\n')
		body.WriteString(line)
		if err != nil {
			return body.String(), err
		}
		size, err := strconv.ParseInt(strings.TrimRight(strings.TrimSuffix(line, "; ieof\r\n"), "\r\n"), 16, 32)
		if err != nil {
			return body.String(), err
		}
		if _, err := io.CopyN(&body, r, size+2); err != nil || size == 0 {
			return body.String(), err
		}
	}
}

// always answers every request alike.
func always(answer string) func(string) string { return func(string) string { return answer } }

// script gives one answer after the other and repeats the last one.
func script(answers ...string) func(string) string {
	return func(string) string {
		a := answers[0]
		if len(answers) > 1 {
			answers = answers[1:]
		}
		return a
	}
}

// byPath answers by the path of the request; others are unknown.
func byPath(answers map[string]string) func(string) string {
	return func(request string) string {
		for path, answer := range answers {
			if strings.HasPrefix(request, "OPTIONS icap://dlp.example:1344"+path+" ICAP/1.0\r\n") {
				return answer
			}
		}
		return gone404
	}
}

// set changes the script.
func (f *fakeServer) set(answer func(string) string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer, f.refuse = answer, nil
}

func (f *fakeServer) setRefuse(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.refuse = err
}

// since returns when connections were made, as times after start.
func (f *fakeServer) since(start time.Time) []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	times := make([]time.Duration, len(f.dials))
	for i, d := range f.dials {
		times[i] = d.Sub(start)
	}
	return times
}

// checkNoneOpen fails the test if the Checker has kept a connection.
func (f *fakeServer) checkNoneOpen(t *testing.T) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open != 0 {
		t.Errorf("%d connections left open after a check", f.open)
	}
}

var errRefused = errors.New("dial tcp 192.0.2.1:1344: connect: connection refused")

// config returns what all tests have in common: no jitter.
func (f *fakeServer) config(paths ...string) CheckConfig {
	return CheckConfig{
		Address:   "192.0.2.1:1344",
		Authority: "dlp.example:1344",
		Paths:     paths,
		Interval:  5 * time.Second,
		Timeout:   2 * time.Second,
		Rise:      2,
		Fall:      3,
		Dial:      f.dial,
		Random:    func() float64 { return 0.5 },
	}
}

// trickle writes one byte per second.
type trickle struct{ net.Conn }

func newTrickle(c net.Conn) net.Conn { return trickle{c} }

func (c trickle) Write(p []byte) (int, error) {
	for i := range p {
		if _, err := c.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
		time.Sleep(time.Second)
	}
	return len(p), nil
}

// newCertificate makes a self-signed certificate. It is valid in the year 2000, where the clock of synctest starts.
func newCertificate(t *testing.T, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}
