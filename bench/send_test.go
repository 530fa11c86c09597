package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"icapgate/bench/dlpstub"
	"icapgate/icap"
)

func TestSend(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file.txt")
	content := bytes.Repeat([]byte("content\n"), 500)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		stub    dlpstub.Config
		message Message
		file    string
		status  int
		printed []string // in that order
	}{
		{"204", dlpstub.Config{}, Message{Method: icap.MethodReqmod, Preview: -1}, file, 204,
			[]string{"* connected", "> REQMOD icap://", "> | POST http://", "> body: 4000 bytes", "< ICAP/1.0 204", "timing: connect", "verdict: no modification (204)"}},
		{"no body", dlpstub.Config{}, Message{Method: icap.MethodReqmod, Preview: -1}, "", 204,
			[]string{"null-body=", "> | GET http://", "verdict: no modification (204)"}},
		{"echo", dlpstub.Config{Mode: dlpstub.Echo}, Message{Method: icap.MethodReqmod, Preview: -1}, file, 200,
			[]string{"< ICAP/1.0 200", "< | POST http://", "< body: 4000 bytes", "verdict: identical echo (200)"}},
		{"echo of a download", dlpstub.Config{Mode: dlpstub.Echo}, Message{Method: icap.MethodRespmod, Preview: -1}, file, 200,
			[]string{"> | GET", "> | HTTP/1.1 200 OK", "< | HTTP/1.1 200 OK", "verdict: identical echo (200)"}},
		{"echo of no body", dlpstub.Config{Mode: dlpstub.Echo}, Message{Method: icap.MethodReqmod, Preview: -1}, "", 200,
			[]string{"verdict: identical echo (200)"}},
		{"preview", dlpstub.Config{Mode: dlpstub.Echo}, Message{Profile: Squid, Method: icap.MethodReqmod, Preview: 1024}, file, 200,
			[]string{"> preview: 1024 of 4000 bytes", "< ICAP/1.0 100 Continue", "> the other 2976 bytes", "< ICAP/1.0 200", "100 Continue ", "verdict: identical echo (200)"}},
		{"ieof", dlpstub.Config{Mode: dlpstub.Echo}, Message{Profile: Zscaler, Method: icap.MethodReqmod, Preview: 65536}, file, 200,
			[]string{"> preview: all ", "verdict: identical echo (200)"}},
		{"options", dlpstub.Config{Preview: 100, MaxConnections: 7}, Message{Method: icap.MethodOptions, Preview: -1}, file, 200,
			[]string{"> OPTIONS", "< Methods: REQMOD, RESPMOD", "verdict: service (200): methods REQMOD and RESPMOD, preview 100, 204 allowed, at most 7 connections"}},
		{"status", dlpstub.Config{Status: 503}, Message{Method: icap.MethodReqmod, Preview: -1}, file, 503,
			[]string{"< ICAP/1.0 503", "verdict: no service (503 Service overloaded)"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			uri, _ := serveStub(t, tt.stub)
			output := filepath.Join(t.TempDir(), "out")
			var printed bytes.Buffer
			status, err := Send(context.Background(), &printed, SendConfig{Target: mustTarget(t, uri), Message: tt.message, File: tt.file, Output: output, Timeout: patience})
			if err != nil || status != tt.status {
				t.Fatalf("status %d, %v", status, err)
			}
			rest := printed.String()
			for _, want := range tt.printed {
				_, after, ok := strings.Cut(rest, want)
				if !ok {
					t.Fatalf("no %q in\n%s", want, printed.String())
				}
				rest = after
			}
			got, err := os.ReadFile(output)
			echoed := tt.status == 200 && tt.file != "" && tt.message.Method != icap.MethodOptions
			switch {
			case !echoed && !errors.Is(err, os.ErrNotExist):
				t.Errorf("output of %d bytes, %v", len(got), err)
			case echoed && tt.message.Profile != Zscaler && !bytes.Equal(got, content):
				t.Errorf("output of %d bytes, %v", len(got), err)
			case echoed && tt.message.Profile == Zscaler && !bytes.Contains(got, content):
				t.Errorf("output of %d bytes, %v", len(got), err)
			}
		})
	}
}

func TestSendVerdicts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file.txt")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := func(answer, want string) {
		t.Helper()
		uri := serveBytes(t, func([]byte) []byte { return []byte(strings.ReplaceAll(answer, "\n", "\r\n")) })
		var printed bytes.Buffer
		_, err := Send(context.Background(), &printed, SendConfig{Target: mustTarget(t, uri), Message: Message{Method: icap.MethodReqmod, Preview: -1}, File: file, Timeout: patience})
		if err != nil || !strings.Contains(printed.String(), want+"\n") {
			t.Errorf("%v, no %q in\n%s", err, want, printed.String())
		}
	}
	f("ICAP/1.0 200 OK\nEncapsulated: res-hdr=0, res-body=26\n\nHTTP/1.1 403 Forbidden\n\n5\nblock\n0\n\n", "verdict: modified/blocked (200, HTTP 403)")
	f("ICAP/1.0 200 OK\nEncapsulated: req-hdr=0, req-body=19\n\nPOST / HTTP/1.1\n\n7\nCONTENT\n0\n\n", "verdict: modified (200)")
	f("ICAP/1.0 200 OK\nEncapsulated: req-hdr=0, req-body=19\n\nPOST / HTTP/1.1\n\n7\ncontent\n0\n\n", "verdict: same body, other heads (200)")
	f("ICAP/1.0 200 OK\nEncapsulated: req-hdr=0, req-body=9\n\nPOST / HTTP/1.1\n\n7\ncontent\n0\n\n", "! the Encapsulated field is wrong; the heads are where their empty lines are")
	f("ICAP/1.0 404 Gone\n\n", "verdict: no service (404 Gone)")
	f("ICAP/1.0 200 OK\nEncapsulated: res-hdr=0, null-body=22\n\nHTTP/1.1 403 \x1b[31m\xff\n\n", "< | HTTP/1.1 403 ?[31m?")
}

func TestSendErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file.txt")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	closing := serveBytes(t, func([]byte) []byte { return []byte{} })
	echoing, _ := serveStub(t, dlpstub.Config{Mode: dlpstub.Echo})
	f := func(uri, file, output, want string) {
		t.Helper()
		cfg := SendConfig{Target: mustTarget(t, uri), Message: Message{Method: icap.MethodReqmod, Preview: -1}, File: file, Output: output, Timeout: patience}
		if _, err := Send(context.Background(), &bytes.Buffer{}, cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	f(echoing, filepath.Join(dir, "missing"), "", "missing")
	f(echoing, dir, "", "not a regular file")
	f(echoing, file, filepath.Join(dir, "missing", "out"), "missing")
	f(closing, file, "", "closed: the peer closed the connection (is it a port for icaps://?)")
}

func TestTLSOptions(t *testing.T) {
	dir := t.TempDir()
	certificate, _ := testCertificate(t)
	uri, _ := serveStub(t, dlpstub.Config{TLS: &tls.Config{Certificates: []tls.Certificate{certificate}}})
	target := mustTarget(t, uri)
	send := func(o TLSOptions) (string, error) {
		cfg, err := o.Config(target)
		if err != nil {
			return "", err
		}
		var printed bytes.Buffer
		_, err = Send(context.Background(), &printed, SendConfig{Target: target, TLS: cfg, Message: Message{Method: icap.MethodOptions}, Timeout: patience})
		return printed.String(), err
	}
	if out, err := send(TLSOptions{Insecure: true}); err != nil || !strings.Contains(out, ", not verified") || !strings.Contains(out, ", handshake ") {
		t.Errorf("insecure: %v\n%s", err, out)
	}
	ca := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(ca, pemOf(certificate), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := send(TLSOptions{CAFile: ca}); err != nil || !strings.Contains(out, ", verified") {
		t.Errorf("with its CA: %v\n%s", err, out)
	}
	if _, err := send(TLSOptions{CAFile: ca, ServerName: "example.com"}); err != nil {
		t.Errorf("another name that it has: %v", err)
	}
	if _, err := send(TLSOptions{CAFile: ca, ServerName: "wrong.test"}); err == nil || !strings.Contains(err.Error(), "--server-name") {
		t.Errorf("a name that it has not: %v", err)
	}
	if _, err := send(TLSOptions{}); err == nil || !strings.Contains(err.Error(), "--ca") {
		t.Errorf("no CA: %v", err)
	}
	for _, bad := range []TLSOptions{{CAFile: filepath.Join(dir, "missing")}, {CAFile: os.DevNull}, {CertFile: ca}} {
		if _, err := bad.Config(target); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain text\twith \u00e4, \u4e2d and \U0001f600": "plain text\twith \u00e4, \u4e2d and \U0001f600",
		"\x1b[31m\x07\x00\x7f\r\n":                       "?[31m?????",
		"\u009b31m":                                      "?31m",     // CSI in one character
		"a\u202eb\u200bc\u00a0d\ufeff":                   "a?b?c?d?", // right to left, no width, no break
		"\xff\xc3(":                                      "??(",
	} {
		if got := Printable([]byte(in)); got != want {
			t.Errorf("%q is printed as %q, want %q", in, got, want)
		}
	}
}
