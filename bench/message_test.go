package bench

import (
	"bytes"
	"encoding/base64"
	"io"
	"strings"
	"testing"

	"icapgate/icap"
)

// parse parses a request as a server does, and returns its body.
func parse(t *testing.T, r *Request) (req icap.Request, body []byte) {
	t.Helper()
	var scanner icap.HeadScanner
	start, end, err := scanner.Scan(r.Head)
	if err != nil || start != 0 || end != len(r.Head) {
		t.Fatalf("head of %d bytes: %d to %d, %v\n%s", len(r.Head), start, end, err, r.Head)
	}
	if err := req.Parse(r.Head); err != nil {
		t.Fatalf("%v in\n%s", err, r.Head)
	}
	var blocks icap.BlockScanner
	blocks.Reset(req.Encapsulated, false)
	if n, err := blocks.Scan(r.Blocks); err != nil || n != len(r.Blocks) {
		t.Fatalf("%d of %d bytes of blocks, %v", n, len(r.Blocks), err)
	}
	if r.Body != nil {
		if body, err = io.ReadAll(r.Body); err != nil || int64(len(body)) != r.Size {
			t.Fatalf("%d bytes of %d, %v", len(body), r.Size, err)
		}
	}
	return req, body
}

func TestBuild(t *testing.T) {
	target := mustTarget(t, "icaps://gate.example/reqmod")
	for _, profile := range []Profile{Plain, Squid, Zscaler, ProxySG} {
		for _, method := range []icap.Method{icap.MethodOptions, icap.MethodReqmod, icap.MethodRespmod} {
			for _, withBody := range []bool{false, true} {
				m := Message{Profile: profile, Method: method, Preview: profile.DefaultPreview(), FileName: "dir/a\"b.txt"}
				var source io.Reader
				if withBody {
					source = strings.NewReader("hello")
				}
				r, err := m.Build(target, source, 5)
				if err != nil {
					t.Fatal(err)
				}
				req, body := parse(t, r)
				if req.Method != method || string(req.Host) != "gate.example" || !bytes.HasPrefix(r.Head, []byte(method.String()+" icaps://gate.example/reqmod ICAP/1.0\r\n")) {
					t.Errorf("%s %v: %s", profile, method, r.Head)
				}
				if hasBody := withBody && method != icap.MethodOptions; req.Encapsulated.HasBody() != hasBody || (r.Body != nil) != hasBody {
					t.Errorf("%s %v: body %v, %s", profile, method, withBody, r.Head)
				}
				if method == icap.MethodOptions {
					continue
				}
				if !r.Allow204 || req.Allow&icap.Allow204 == 0 || r.AllowTrailers != (profile == Squid) {
					t.Errorf("%s %v: allow %v, trailers %v", profile, method, req.Allow, r.AllowTrailers)
				}
				if int64(req.Preview) != r.Preview || (r.Preview >= 0) != (profile == Squid) {
					t.Errorf("%s %v: preview %d and %d", profile, method, req.Preview, r.Preview)
				}
				if (req.Get("x-client-ip") != nil) != (profile != Plain) {
					t.Errorf("%s %v: %s", profile, method, r.Head)
				}
				if withBody && (profile != Zscaler || method == icap.MethodRespmod) && string(body) != "hello" {
					t.Errorf("%s %v: body %q", profile, method, body)
				}
			}
		}
	}
}

func TestBuildZscaler(t *testing.T) {
	m := Message{Profile: Zscaler, Method: icap.MethodReqmod, Preview: -1, FileName: "dir/a\"b.txt", User: "CORP/bob"}
	r, err := m.Build(mustTarget(t, "icaps://gate.example/reqmod"), strings.NewReader("hello"), 5)
	if err != nil {
		t.Fatal(err)
	}
	req, body := parse(t, r)
	if user, _ := base64.StdEncoding.DecodeString(string(req.Get("x-authenticated-user"))); string(user) != "WinNT://CORP/bob" {
		t.Errorf("user %q", user)
	}
	_, boundary, _ := bytes.Cut(r.Blocks, []byte("boundary="))
	boundary, _, _ = bytes.Cut(boundary, []byte("\r\n"))
	want := "--" + string(boundary) + "\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a%22b.txt\"\r\n" +
		"Content-Type: application/octet-stream\r\n\r\nhello\r\n--" + string(boundary) + "--\r\n"
	if len(boundary) == 0 || string(body) != want {
		t.Errorf("got  %q\nwant %q", body, want)
	}
}

func TestHeaderFields(t *testing.T) {
	target := mustTarget(t, "icap://gate.example/reqmod")
	build := func(fields ...string) (*Request, error) {
		m := Message{Method: icap.MethodReqmod, Preview: -1, Fields: fields}
		return m.Build(target, nil, 0)
	}
	f := func(fields []string, has, hasNot string) *Request {
		t.Helper()
		r, err := build(fields...)
		if err != nil {
			t.Fatal(err)
		}
		parse(t, r)
		if !bytes.Contains(r.Head, []byte(has)) || hasNot != "" && bytes.Contains(r.Head, []byte(hasNot)) {
			t.Errorf("%q: %s", fields, r.Head)
		}
		return r
	}
	f([]string{"X-A: 1", "X-B:2"}, "X-A: 1\r\nX-B: 2\r\n", "")
	f([]string{"user-agent: me"}, "user-agent: me\r\n", "icapbench")
	f([]string{"User-Agent: me"}, "User-Agent: me\r\nEncapsulated: ", "icapbench") // in its place
	f([]string{"User-Agent:"}, "Host: gate.example\r\n", "User-Agent")
	if r := f([]string{"Allow: 206"}, "Allow: 206\r\n", "204"); r.Allow204 {
		t.Error("204 counts as allowed")
	}
	if r := f([]string{"Allow: 204, 206"}, "Allow: 204, 206\r\n", ""); !r.Allow204 || !r.Allow206 {
		t.Error("206 does not count as allowed")
	}
	if r := f([]string{"Connection: close"}, "Connection: close\r\n", ""); !r.Close {
		t.Error("close is not noticed")
	}
	for _, bad := range []string{"", "X", ": 1", "X Y: 1", "X: 1\r\nY: 2", "Encapsulated: null-body=0", "preview: 0"} {
		if _, err := build(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestHTTPHead(t *testing.T) {
	target := mustTarget(t, "icap://gate.example/reqmod")
	f := func(m Message, want ...string) {
		t.Helper()
		r, err := m.Build(target, strings.NewReader("hello"), 5)
		if err != nil {
			t.Fatal(err)
		}
		parse(t, r)
		rest := string(r.Blocks)
		for _, w := range want {
			_, after, ok := strings.Cut(rest, w)
			if !ok {
				t.Fatalf("no %q in\n%s", w, r.Blocks)
			}
			rest = after
		}
	}
	reqmod := Message{Method: icap.MethodReqmod, Preview: -1, URL: "https://files.example/a?b=c",
		HTTPFields: []string{"Cookie: a=b", "content-type: text/plain"}, HTTPResponseFields: []string{"X-Not: here"}}
	f(reqmod, "POST https://files.example/a?b=c HTTP/1.1\r\nHost: files.example\r\n", "content-type: text/plain\r\nContent-Length: 5\r\nCookie: a=b\r\n\r\n")
	respmod := reqmod
	respmod.Method = icap.MethodRespmod
	f(respmod, "GET https://files.example/a?b=c HTTP/1.1\r\n", "Cookie: a=b\r\n", "\r\n\r\nHTTP/1.1 200 OK\r\n", "X-Not: here\r\n\r\n")
	for _, bad := range []Message{{URL: "files"}, {URL: "http://a/ b"}, {HTTPFields: []string{"x"}}} {
		bad.Method = icap.MethodReqmod
		if _, err := bad.Build(target, nil, 0); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}

func TestBuildForm(t *testing.T) {
	m := Message{Method: icap.MethodReqmod, Preview: -1, FileName: "a.txt", Form: &Form{Boundary: "xyz", Field: "doc", Fields: []FormField{{"to \"b\"", "c\r\nd"}}}}
	r, err := m.Build(mustTarget(t, "icap://gate.example/reqmod"), strings.NewReader("hello"), 5)
	if err != nil {
		t.Fatal(err)
	}
	_, body := parse(t, r)
	before := "--xyz\r\nContent-Disposition: form-data; name=\"to %22b%22\"\r\n\r\nc\r\nd\r\n" +
		"--xyz\r\nContent-Disposition: form-data; name=\"doc\"; filename=\"a.txt\"\r\nContent-Type: application/octet-stream\r\n\r\n"
	if want := before + "hello\r\n--xyz--\r\n"; string(body) != want || string(r.Before) != before {
		t.Errorf("got  %q\nwant %q", body, want)
	}
}

func TestWithPath(t *testing.T) {
	f := func(uri, path, want string) {
		t.Helper()
		if got, err := mustTarget(t, uri).WithPath(path); err != nil || got.URI != want || got.Address != mustTarget(t, uri).Address {
			t.Errorf("%s with %s: %+v, %v", uri, path, got, err)
		}
	}
	f("icap://a/r", "/s", "icap://a/s")
	f("icaps://[::1]:99/r/t?x=/", "/s?y=1", "icaps://[::1]:99/s?y=1")
	for _, bad := range []string{"", "s", "/ s", "/#s"} {
		if got, err := mustTarget(t, "icap://a/r").WithPath(bad); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

func TestParseTarget(t *testing.T) {
	f := func(uri string, want Target) {
		t.Helper()
		got, err := ParseTarget(uri)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", uri, got, err)
		}
	}
	f("icap://a/r", Target{"icap://a/r", "a:1344", "a", false})
	f("icaps://a/r?x=%2F", Target{"icaps://a/r?x=%2F", "a:11344", "a", true})
	f("ICAPS://[::1]:99", Target{"ICAPS://[::1]:99/", "[::1]:99", "[::1]:99", true})
	for _, bad := range []string{"", "a", "http://a/", "icap:///r", "icap://a:x/", "icap://a/ b", "icap://a/#b", "icap://a?x"} {
		if got, err := ParseTarget(bad); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}
