package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"testing"
	"time"
)

// icapClient is a client of our own on one connection. It shares no code with the gateway, so that a misreading of the
// protocol is not made at both ends.
type icapClient struct {
	net.Conn
	r   *bufio.Reader
	uri string
}

func newClient(t testing.TB, nc net.Conn, uri string) *icapClient {
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(2 * patience))
	return &icapClient{nc, bufio.NewReader(nc), uri}
}

// request is one ICAP request. A REQMOD carries a POST, or without a body a GET; a RESPMOD carries a GET and its response.
type request struct {
	method string
	fields string // more of the ICAP head, each line with its CRLF
	body   []byte // nil: null-body
	chunk  int    // size of chunks; 0: all in one
}

// answer is a final response.
type answer struct {
	status int
	fields textproto.MIMEHeader
	blocks string // the encapsulated heads
	body   []byte
}

func (r request) appendTo(b []byte, uri string) []byte {
	var blocks, list string
	switch r.method {
	case "REQMOD":
		blocks, list = "GET http://origin.example/ HTTP/1.1\r\nHost: origin.example\r\n\r\n", "req-hdr=0"
		if r.body != nil {
			blocks = fmt.Sprintf("POST http://origin.example/ HTTP/1.1\r\nHost: origin.example\r\nContent-Length: %d\r\n\r\n", len(r.body))
		}
	case "RESPMOD":
		blocks = "GET http://origin.example/ HTTP/1.1\r\nHost: origin.example\r\n\r\n"
		list = fmt.Sprintf("req-hdr=0, res-hdr=%d", len(blocks))
		blocks += fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(r.body))
	}
	b = fmt.Appendf(b, "%s %s ICAP/1.0\r\nHost: gateway.example\r\n%s", r.method, uri, r.fields)
	if list == "" {
		return append(b, "\r\n"...)
	}
	name := "null"
	if r.body != nil {
		name = strings.ToLower(r.method[:3])
	}
	b = fmt.Appendf(b, "Encapsulated: %s, %s-body=%d\r\n\r\n%s", list, name, len(blocks), blocks)
	if r.body == nil {
		return b
	}
	for rest := r.body; len(rest) > 0; {
		n := len(rest)
		if r.chunk > 0 {
			n = min(n, r.chunk)
		}
		b = fmt.Appendf(b, "%x\r\n%s\r\n", n, rest[:n])
		rest = rest[n:]
	}
	return append(b, "0\r\n\r\n"...)
}

// do sends a request and reads its answer at the same time, since an answer may begin before the request has ended.
func (c *icapClient) do(r request) (*answer, error) {
	sent := make(chan error, 1)
	message := r.appendTo(nil, c.uri)
	go func() {
		_, err := c.Write(message)
		sent <- err
	}()
	a, err := c.read()
	if err != nil {
		c.Close()
		return nil, errors.Join(err, <-sent)
	}
	if err := <-sent; err != nil {
		return nil, err
	}
	if n := c.r.Buffered(); n > 0 {
		return nil, fmt.Errorf("%d bytes behind the end of the answer", n)
	}
	return a, nil
}

// read reads one answer. It does not know interim ones: no request of its offers a preview.
func (c *icapClient) read() (*answer, error) {
	tr := textproto.NewReader(c.r)
	line, err := tr.ReadLine()
	if err != nil {
		return nil, fmt.Errorf("no answer: %w", err)
	}
	code, ok := strings.CutPrefix(line, "ICAP/1.0 ")
	if !ok || len(code) < 3 {
		return nil, fmt.Errorf("not a status line: %q", line)
	}
	a := &answer{}
	if a.status, err = strconv.Atoi(code[:3]); err != nil {
		return nil, fmt.Errorf("not a status line: %q", line)
	}
	if a.fields, err = tr.ReadMIMEHeader(); err != nil {
		return nil, fmt.Errorf("head of a %d: %w", a.status, err)
	}
	list := a.fields.Get("Encapsulated")
	if list == "" {
		return a, nil
	}
	last := list[strings.LastIndexByte(list, ' ')+1:]
	name, offset, _ := strings.Cut(last, "=")
	size, err := strconv.Atoi(offset)
	if err != nil || size < 0 || size > 1<<20 {
		return nil, fmt.Errorf("strange Encapsulated: %q", list)
	}
	blocks := make([]byte, size)
	if _, err := io.ReadFull(c.r, blocks); err != nil {
		return nil, fmt.Errorf("encapsulated heads: %w", err)
	}
	a.blocks = string(blocks)
	if name == "null-body" {
		return a, nil
	}
	if a.body, err = c.readChunks(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return a, nil
}

func (c *icapClient) readChunks() ([]byte, error) {
	var body bytes.Buffer
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return nil, err
		}
		hex, ok := strings.CutSuffix(line, "\r\n")
		n, err := strconv.ParseUint(hex, 16, 31)
		if !ok || err != nil {
			return nil, fmt.Errorf("strange size line: %q", line)
		}
		if n > 0 {
			if _, err := io.CopyN(&body, c.r, int64(n)); err != nil {
				return nil, err
			}
		}
		if end, err := c.r.ReadString('\n'); err != nil || end != "\r\n" {
			return nil, fmt.Errorf("no CRLF behind a chunk of %d bytes: %q, %v", n, end, err)
		}
		if n == 0 {
			return body.Bytes(), nil
		}
	}
}
