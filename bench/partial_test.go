package bench

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"icapgate/icap"
)

// scripted returns a connection to a server that writes each answer of the script when it has read the part of the request before it, and
// ends the connection behind the last one.
func scripted(t *testing.T, script ...string) *Conn {
	t.Helper()
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer server.Close()
		buf := make([]byte, 1<<20)
		for _, answer := range script {
			var got []byte
			for !bytes.HasSuffix(got, []byte("0\r\n\r\n")) && !bytes.HasSuffix(got, []byte("ieof\r\n\r\n")) && !bytes.HasSuffix(got, []byte("null-body=0\r\n\r\n")) {
				n, err := server.Read(buf)
				if err != nil {
					return
				}
				got = append(got, buf[:n]...)
			}
			if _, err := server.Write([]byte(answer)); err != nil {
				return
			}
		}
	}()
	conn := newConn(client, patience)
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return conn
}

const original = "the original body of the request"

// partial returns a 206 to a REQMOD with a body that ends with the last chunk.
func partial(body, last string) string {
	const head = "POST /changed HTTP/1.1\r\n\r\n"
	chunk := ""
	if body != "" {
		chunk = fmt.Sprintf("%x\r\n%s\r\n", len(body), body)
	}
	return fmt.Sprintf("ICAP/1.0 206 Partial Content\r\nEncapsulated: req-hdr=0, req-body=%d\r\n\r\n%s%s%s\r\n\r\n", len(head), head, chunk, last)
}

func TestPartialContent(t *testing.T) {
	const (
		more   = "ICAP/1.0 100 Continue\r\n\r\n"
		inside = 10 // bytes of a preview that is not all
	)
	allow := func(preview int64, statuses ...int) Message {
		m := Message{Method: icap.MethodReqmod, Preview: preview, No204: true}
		for _, s := range statuses {
			m.No204 = m.No204 && s != 204
			m.Allow206 = m.Allow206 || s == 206
		}
		return m
	}
	end := func(n int) string { return fmt.Sprintf("0; use-original-body=%d", n) }
	tests := []struct {
		name    string
		message Message
		script  []string
		offset  int64  // that of the original; -1: an error
		want    string // body that came back, or part of the error
	}{
		{"outside a preview", allow(-1, 204, 206), []string{partial("new ", end(4))}, 4, "new "},
		{"outside, 206 alone", allow(-1, 206), []string{partial("new ", end(4))}, -1, "206 that the request did not allow"},
		{"outside, 204 alone", allow(-1, 204), []string{partial("new ", end(4))}, -1, "206 that the request did not allow"},
		{"outside, nothing", allow(-1), []string{partial("new ", end(4))}, -1, "206 that the request did not allow"},
		{"inside", allow(inside, 206), []string{partial("new ", end(4))}, 4, "new "},
		{"inside, both", allow(inside, 204, 206), []string{partial("new ", end(4))}, 4, "new "},
		{"inside, 204 alone", allow(inside, 204), []string{partial("new ", end(4))}, -1, "206 that the request did not allow"},
		{"inside, beyond the preview", allow(inside, 206), []string{partial("", end(inside+1))}, inside + 1, ""},
		{"inside, all in the preview", allow(1000, 206), []string{partial("new ", end(4))}, 4, "new "},
		{"after a preview", allow(inside, 204, 206), []string{more, partial("new ", end(4))}, 4, "new "},
		{"after a preview, 206 alone", allow(inside, 206), []string{more, partial("new ", end(4))}, -1, "206 that the request did not allow"},
		{"all of the original", allow(inside, 206), []string{partial("", end(0))}, 0, ""},
		{"none of the original", allow(inside, 206), []string{partial("new", end(len(original)))}, int64(len(original)), "new"},
		{"beyond the original", allow(inside, 206), []string{partial("new", end(len(original)+1))}, -1, "use-original-body=33 of a body of 32 bytes"},
		{"huge", allow(inside, 206), []string{partial("new", "0; use-original-body=999999999999999999")}, -1, "of a body of 32 bytes"},
		{"too huge", allow(inside, 206), []string{partial("new", "0; use-original-body=9999999999999999999999")}, -1, "bad use-original-body"},
		{"negative", allow(inside, 206), []string{partial("new", "0; use-original-body=-1")}, -1, "bad use-original-body"},
		{"no token", allow(inside, 206), []string{partial("new", "0")}, -1, "206 without use-original-body"},
		{"no body", allow(inside, 206), []string{"ICAP/1.0 206 x\r\nEncapsulated: req-hdr=0, null-body=19\r\n\r\nPOST / HTTP/1.1\r\n\r\n"}, -1, "206 without a body"},
		{"nothing encapsulated", allow(inside, 206), []string{"ICAP/1.0 206 x\r\n\r\n"}, -1, "206 without a body"},
		{"the token in a 200", allow(inside, 204, 206), []string{strings.Replace(partial("new", end(4)), "206", "200", 1)}, -1, "use-original-body in the last chunk of a 200"},
		{"bytes behind it", allow(inside, 206), []string{partial("new", end(4)) + "X"}, -1, "1 bytes after the end"},
	}
	target := mustTarget(t, "icap://gate.example/reqmod")
	run := func(t *testing.T, m Message, script []string) (*Conn, recorder, error) {
		t.Helper()
		conn := scripted(t, script...)
		req, err := m.Build(target, strings.NewReader(original), int64(len(original)))
		if err != nil {
			t.Fatal(err)
		}
		var got recorder
		err = conn.Do(req, &got)
		return conn, got, err
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn, got, err := run(t, tt.message, tt.script)
			if tt.offset < 0 {
				if e, ok := err.(*Error); !ok || e.Kind != Framing || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("error %v, want %q", err, tt.want)
				}
				if _, ok := conn.Original(); ok || conn.Reusable() {
					t.Error("the original is to be used, or the connection")
				}
				return
			}
			offset, ok := conn.Original()
			if err != nil || !ok || offset != tt.offset || string(got.body) != tt.want {
				t.Fatalf("original from %d on (%v) behind %q, %v", offset, ok, got.body, err)
			}
			if !conn.Reusable() {
				t.Error("the connection cannot be used again")
			}

			// Cut anywhere, it must not look complete.
			whole := tt.script[len(tt.script)-1]
			for n := range len(whole) {
				script := append(append([]string(nil), tt.script[:len(tt.script)-1]...), whole[:n])
				conn, _, err := run(t, tt.message, script)
				e, ok := err.(*Error)
				if want := map[bool]Kind{true: Closed, false: Truncated}[n == 0]; !ok || e.Kind != want {
					t.Errorf("cut behind byte %d: %v", n, err)
				}
				if _, ok := conn.Original(); ok {
					t.Errorf("cut behind byte %d: the original is to be used", n)
				}
			}
		})
	}
}

// The next answer on a connection must not be taken for a 206 too.
func TestOriginalIsOfTheLastAnswer(t *testing.T) {
	conn := scripted(t, partial("new ", "0; use-original-body=4"), "ICAP/1.0 204 x\r\n\r\n")
	target := mustTarget(t, "icap://gate.example/reqmod")
	m := Message{Method: icap.MethodReqmod, Preview: -1, Allow206: true}
	for _, want := range []bool{true, false} {
		req, err := m.Build(target, strings.NewReader(original), int64(len(original)))
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Do(req, new(recorder)); err != nil {
			t.Fatal(err)
		}
		if _, got := conn.Original(); got != want {
			t.Errorf("original: %v, want %v", got, want)
		}
	}
}

func TestChunks(t *testing.T) {
	f := func(preview int64, want string, chunks ...int64) {
		t.Helper()
		client, server := net.Pipe()
		sent := make(chan string)
		go func() {
			var got []byte
			buf := make([]byte, 1000)
			for !bytes.HasSuffix(got, []byte("0\r\n\r\n")) {
				n, err := server.Read(buf)
				if err != nil {
					break
				}
				got = append(got, buf[:n]...)
			}
			_, body, _ := bytes.Cut(got, []byte("\r\n\r\n"))
			_, body, _ = bytes.Cut(body, []byte("\r\n\r\n"))
			_, _ = server.Write([]byte("ICAP/1.0 204 x\r\n\r\n"))
			sent <- string(body)
		}()
		conn := newConn(client, patience)
		defer conn.Close()
		req, err := (&Message{Method: icap.MethodReqmod, Preview: preview}).Build(mustTarget(t, "icap://a/"), strings.NewReader("0123456789"), 10)
		if err != nil {
			t.Fatal(err)
		}
		req.Chunks = chunks
		if err := conn.Do(req, new(recorder)); err != nil {
			t.Error(err)
		}
		if got := strings.ReplaceAll(<-sent, "\r\n", " "); got != want {
			t.Errorf("%v: %q, want %q", chunks, got, want)
		}
	}
	f(-1, "a 0123456789 0  ")
	f(-1, "3 012 3 345 3 678 1 9 0  ", 3)
	f(-1, "1 0 4 1234 1 5 4 6789 0  ", 1, 4)
	f(-1, "a 0123456789 0  ", 1000)
	f(5, "2 01 1 2 2 34 0  ", 2, 1)
}

func TestSendPartial(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file.txt")
	if err := os.WriteFile(file, []byte(original), 0o600); err != nil {
		t.Fatal(err)
	}
	f := func(m Message, answer, body, want string) {
		t.Helper()
		uri := serveBytes(t, func([]byte) []byte { return []byte(answer) })
		output := filepath.Join(dir, "out")
		m.Method, m.Allow206 = icap.MethodReqmod, true
		var printed bytes.Buffer
		status, err := Send(context.Background(), &printed, SendConfig{Target: mustTarget(t, uri), Message: m, File: file, Output: output, Timeout: patience})
		if err != nil || status != 206 || !strings.Contains(printed.String(), want+"\n") {
			t.Errorf("status %d, %v, no %q in\n%s", status, err, want, printed.String())
		}
		if got, err := os.ReadFile(output); err != nil || string(got) != body {
			t.Errorf("output %q, %v, want %q", got, err, body)
		}
	}
	whole, preview := Message{Preview: -1}, Message{Preview: 3}
	f(whole, partial("a new", "0; use-original-body=3"), "a new"+original[3:], "verdict: modified (206, the original from byte 3 on)")
	f(preview, partial("a new", "0; use-original-body=3"), "a new"+original[3:], "verdict: modified (206, the original from byte 3 on)")
	f(preview, partial("", "0; use-original-body=0"), original, "verdict: same body, other heads (206, the original from byte 0 on)")
	f(preview, partial("", "0; use-original-body=0"), original, "< body: 0 bytes, then 32 of the original from byte 0 on")
	f(whole, partial(original[:9], "0; use-original-body=9"), original, "verdict: same body, other heads (206, the original from byte 9 on)")
}
