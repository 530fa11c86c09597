package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/icap"
)

// recorder is a Receiver that keeps everything.
type recorder struct {
	statuses []int
	blocks   []byte
	body     []byte
}

func (r *recorder) Head(resp *icap.Response, _ []byte) error {
	r.statuses = append(r.statuses, resp.Status)
	return nil
}

func (r *recorder) Blocks(_ *icap.Encapsulated, blocks []byte, _ bool) error {
	r.blocks = append(r.blocks, blocks...)
	return nil
}

func (r *recorder) Data(p []byte) error {
	r.body = append(r.body, p...)
	return nil
}

// TestDo sends bodies of many sizes, with and without previews, to servers of every kind.
func TestDo(t *testing.T) {
	type outcome struct {
		statuses string // "100 200"
		echo     bool
	}
	tests := []struct {
		name    string
		cfg     dlpstub.Config
		message Message
		size    int64 // -1: no body
		want    outcome
	}{
		{"204", dlpstub.Config{}, Message{Preview: -1}, 1000, outcome{"204", false}},
		{"204, no body", dlpstub.Config{}, Message{Preview: -1}, -1, outcome{"204", false}},
		{"204, empty body", dlpstub.Config{}, Message{Preview: -1}, 0, outcome{"204", false}},
		{"204, large", dlpstub.Config{}, Message{Preview: -1}, 1 << 20, outcome{"204", false}},
		{"204 not offered", dlpstub.Config{}, Message{Preview: -1, No204: true}, 1000, outcome{"200", true}},
		{"204 not offered, no body", dlpstub.Config{}, Message{Preview: -1, No204: true}, -1, outcome{"200", true}},
		{"204 in a preview", dlpstub.Config{}, Message{Preview: 100, No204: true}, 1000, outcome{"204", false}},
		{"204 after a preview", dlpstub.Config{Continue: true}, Message{Preview: 100}, 1000, outcome{"100 204", false}},
		{"204 not offered after a preview", dlpstub.Config{Continue: true}, Message{Preview: 100, No204: true}, 1000, outcome{"100 200", true}},
		{"204 early", dlpstub.Config{EarlyAnswer: true}, Message{Preview: -1}, 1000, outcome{"204", false}},
		{"204 early, large", dlpstub.Config{EarlyAnswer: true}, Message{Preview: -1}, 10 << 20, outcome{"204", false}},
		{"echo", dlpstub.Config{Mode: dlpstub.Echo}, Message{Preview: -1}, 1000, outcome{"200", true}},
		{"echo, one byte", dlpstub.Config{Mode: dlpstub.Echo}, Message{Preview: -1}, 1, outcome{"200", true}},
		{"echo, tiny chunks", dlpstub.Config{Mode: dlpstub.Echo}, Message{Preview: -1, Chunk: 7}, 1000, outcome{"200", true}},
		{"echo, duplex", dlpstub.Config{Mode: dlpstub.Echo}, Message{Preview: -1}, duplexSize + 1, outcome{"200", true}},
		{"echo, 10 MB", dlpstub.Config{Mode: dlpstub.Echo}, Message{Preview: -1}, 10 << 20, outcome{"200", true}},
		{"echo, 10 MB in one chunk, early", dlpstub.Config{Mode: dlpstub.Echo, EarlyAnswer: true}, Message{Preview: -1, Chunk: 10 << 20}, 10 << 20, outcome{"200", true}},
		{"echo, empty preview", dlpstub.Config{Mode: dlpstub.Echo}, Message{Preview: 0}, 1000, outcome{"100 200", true}},
		{"echo, empty preview of an empty body", dlpstub.Config{Mode: dlpstub.Echo}, Message{Preview: 0}, 0, outcome{"200", true}},
		{"echo, empty preview, no body", dlpstub.Config{Mode: dlpstub.Echo}, Message{Preview: 0}, -1, outcome{"200", true}},
		{"echo, all in the preview", dlpstub.Config{Mode: dlpstub.Echo}, Message{Preview: 1000}, 1000, outcome{"200", true}},
		{"echo, preview, duplex", dlpstub.Config{Mode: dlpstub.Echo}, Message{Preview: 1000}, 1 << 20, outcome{"100 200", true}},
		{"status", dlpstub.Config{Status: 503}, Message{Preview: -1}, 1000, outcome{"503", false}},
		{"close", dlpstub.Config{Mode: dlpstub.Echo, CloseAfter: 1}, Message{Preview: -1}, 1000, outcome{"200", true}},
	}
	certificate, roots := testCertificate(t)
	for _, tt := range tests {
		for _, method := range []icap.Method{icap.MethodReqmod, icap.MethodRespmod} {
			for _, secure := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%v/tls=%v", tt.name, method, secure), func(t *testing.T) {
					cfg, tlsConfig := tt.cfg, (*tls.Config)(nil)
					if secure {
						cfg.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
						tlsConfig = &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}
					}
					uri, _ := serveStub(t, cfg)
					target := mustTarget(t, uri)
					conn, err := Dial(context.Background(), target.Address, tlsConfig, patience)
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					message := tt.message
					message.Method = method
					for n := 1; n <= 2 && conn.Reusable(); n++ {
						var body []byte
						req, err := message.Build(target, nil, 0)
						if tt.size >= 0 {
							body = bytes.Repeat([]byte{byte('0' + n)}, int(tt.size))
							req, err = message.Build(target, bytes.NewReader(body), tt.size)
						}
						if err != nil {
							t.Fatal(err)
						}
						var got recorder
						if err := conn.Do(req, &got); err != nil {
							t.Fatalf("request %d: %v", n, err)
						}
						if s := strings.Trim(fmt.Sprint(got.statuses), "[]"); s != tt.want.statuses {
							t.Errorf("request %d: statuses %s, want %s", n, s, tt.want.statuses)
						}
						if tt.want.echo && (!bytes.Equal(got.body, body) || !req.IsEcho(got.blocks)) {
							t.Errorf("request %d: %d bytes and %q came back", n, len(got.body), got.blocks)
						}
						if !tt.want.echo && len(got.blocks)+len(got.body) > 0 {
							t.Errorf("request %d: %d bytes and %q came back", n, len(got.body), got.blocks)
						}
					}
					if conn.Reusable() != (tt.cfg.CloseAfter == 0) {
						t.Errorf("reusable: %v", conn.Reusable())
					}
				})
			}
		}
	}
}

// TestBodyEnds has a body that is shorter than announced.
func TestBodyEnds(t *testing.T) {
	for _, size := range []int{10, 10 * duplexSize} {
		uri, _ := serveStub(t, dlpstub.Config{Mode: dlpstub.Echo})
		target := mustTarget(t, uri)
		conn, err := Dial(context.Background(), target.Address, nil, patience)
		if err != nil {
			t.Fatal(err)
		}
		req, err := (&Message{Method: icap.MethodReqmod, Preview: -1}).Build(target, bytes.NewReader(make([]byte, size-1)), int64(size))
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Do(req, &recorder{}); err == nil || err.(*Error).Kind != Input {
			t.Errorf("size %d: %v", size, err)
		}
		if conn.Reusable() {
			t.Error("the connection counts as reusable")
		}
		conn.Close()
	}
}

// TestLostWriter has a server that answers early and then ends, while most of the body is unwritten.
func TestLostWriter(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		nc.Read(make([]byte, 100))
		nc.Write([]byte("ICAP/1.0 204 x\r\nConnection: close\r\n\r\n"))
		nc.Close()
	}()
	conn, err := Dial(context.Background(), ln.Addr().String(), nil, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const size = 50 << 20
	m := Message{Method: icap.MethodReqmod, Preview: -1}
	req, err := m.Build(Target{URI: "icap://a/", Host: "a"}, bytes.NewReader(make([]byte, size)), size)
	if err != nil {
		t.Fatal(err)
	}
	var got recorder
	err = conn.Do(req, &got)
	// Whether the answer or the RST of the close wins is up to the network. There must be no hang and no reuse.
	if err != nil && err.(*Error).Kind != Closed || err == nil && fmt.Sprint(got.statuses) != "[204]" {
		t.Errorf("%v, statuses %v", err, got.statuses)
	}
	if conn.Reusable() {
		t.Error("the connection counts as reusable")
	}
}

func TestDialErrors(t *testing.T) {
	certificate, _ := testCertificate(t)
	secure, _ := serveStub(t, dlpstub.Config{TLS: &tls.Config{Certificates: []tls.Certificate{certificate}}})
	plain, _ := serveStub(t, dlpstub.Config{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := "icap://" + ln.Addr().String()
	ln.Close()
	f := func(uri string, cfg *tls.Config, want Kind, hint string) {
		t.Helper()
		_, err := Dial(context.Background(), mustTarget(t, uri).Address, cfg, patience)
		if e, ok := err.(*Error); !ok || e.Kind != want || !strings.Contains(err.Error(), hint) {
			t.Errorf("got %v, want %s with %q", err, want, hint)
		}
	}
	f(gone, nil, Connect, "refused")
	f(secure, &tls.Config{ServerName: "127.0.0.1"}, Handshake, "--ca")
	f(plain, &tls.Config{ServerName: "127.0.0.1"}, Handshake, "icap://")
}

// A body that trickles leaves as it comes, also the part before an error.
func TestTrickle(t *testing.T) {
	got := make(chan string, 1)
	s := dlpstub.New(dlpstub.Config{Hook: func(r *dlpstub.Request) { got <- fmt.Sprint(r.BodyLen, r.Err != nil) }})
	target := mustTarget(t, serve(t, "icap", s.Serve, s.Close))
	body := io.MultiReader(strings.NewReader("hello"), iotest.ErrReader(errors.New("gone")))
	req, err := (&Message{Method: icap.MethodReqmod, Preview: -1}).Build(target, body, 10)
	if err != nil {
		t.Fatal(err)
	}
	req.Trickle = true
	c, err := Dial(t.Context(), target.Address, nil, patience)
	if err != nil {
		t.Fatal(err)
	}
	err = c.Do(req, &recorder{})
	if e := (*Error)(nil); !errors.As(err, &e) || e.Kind != Input {
		t.Errorf("error %v", err)
	}
	c.Close()
	if got := <-got; got != "5 true" {
		t.Errorf("the server has got %s", got)
	}
}

func TestStale(t *testing.T) {
	certificate, roots := testCertificate(t)
	for _, secure := range []bool{false, true} {
		cfg := dlpstub.Config{}
		var options *tls.Config
		if secure {
			cfg.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
			options = &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}
		}
		uri, server := serveStub(t, cfg)
		target := mustTarget(t, uri)
		req, err := (&Message{Method: icap.MethodOptions}).Build(target, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		c, err := Dial(t.Context(), target.Address, options, patience)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Do(req, &recorder{}); err != nil || c.Stale() {
			t.Errorf("stale: %v, error %v, after an answer", c.Stale(), err)
		}
		server.Close() // returns when the FIN has been sent
		for deadline := time.Now().Add(patience); !c.Stale(); {
			if time.Now().After(deadline) {
				t.Fatal("a closed connection is not stale")
			}
			runtime.Gosched()
		}
	}
}
