package dlpstub

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"icapgate/icap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	get    = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"  // 27 bytes
	post   = "POST / HTTP/1.1\r\nHost: a\r\n\r\n" // 28 bytes
	ok     = "HTTP/1.1 200 OK\r\n\r\n"            // 19 bytes
	reqmod = "REQMOD icap://s/r ICAP/1.0\r\nHost: s\r\n"
	resp   = "RESPMOD icap://s/r ICAP/1.0\r\nHost: s\r\n"
)

// Heads of answers as the stub writes them without a name.
func head(status int, fields string) string {
	return fmt.Sprintf("ICAP/1.0 %d %s\r\nISTag: \"dlpstub-1\"\r\n%s\r\n", status, icap.StatusText(status), fields)
}

const (
	continueHead = "ICAP/1.0 100 Continue\r\n\r\n"
	connClose    = "Connection: close\r\n"
)

// TestExchange runs one exchange per case over a pipe: steps are sent and expected in turn, byte for byte.
func TestExchange(t *testing.T) {
	const (
		encPost = "Encapsulated: req-hdr=0, req-body=28\r\n"
		encGet  = "Encapsulated: req-hdr=0, null-body=27\r\n"
		allow   = "Allow: 204\r\n"
	)
	bodyless := reqmod + allow + encGet + "\r\n" + get
	withBody := reqmod + encPost + "\r\n" + post + "5\r\nhello\r\n0\r\n\r\n"
	withBodyAllow := reqmod + allow + encPost + "\r\n" + post + "5\r\nhello\r\n0\r\n\r\n"
	preview4 := reqmod + "Preview: 4\r\n" + encPost + "\r\n" + post + "4\r\nabcd\r\n0\r\n\r\n"
	preview4Allow := reqmod + "Preview: 4\r\nAllow: 204\r\n" + encPost + "\r\n" + post + "4\r\nabcd\r\n0\r\n\r\n"
	preview9Ieof := reqmod + "Preview: 9\r\n" + encPost + "\r\n" + post + "4\r\nabcd\r\n0; ieof\r\n\r\n"
	preview0Null := reqmod + "Preview: 0\r\n" + encGet + "\r\n" + get
	rest := "2\r\nef\r\n0\r\n\r\n"
	echoPost := head(200, encPost) + post
	change := Change{Field: "X-M: y\r\n", Body: []byte("<>"), Skip: 1}
	page := Page{Body: "no"}
	match := func(pattern string) Config { return Config{Match: regexp.MustCompile(pattern), Page: page} }
	blocked := func(status string) string {
		h := "HTTP/1.1 " + status + "\r\nContent-Type: text/html; charset=utf-8\r\nCache-Control: no-store\r\nContent-Length: 2\r\n\r\n"
		return head(200, fmt.Sprintf("Encapsulated: res-hdr=0, res-body=%d\r\n", len(h))) + h + "2\r\nno\r\n0\r\n\r\n"
	}

	tests := []struct {
		name   string
		cfg    Config
		steps  []string // sent, expected, sent, expected …
		closed bool     // by the server, after the last step
	}{
		{"204", Config{}, []string{withBodyAllow, head(204, "")}, false},
		{"204 without a body", Config{}, []string{bodyless, head(204, "")}, false},
		{"204 twice in one segment", Config{}, []string{bodyless + withBodyAllow, head(204, "") + head(204, "")}, false},
		{"204 with a name", Config{Name: "one"}, []string{bodyless, strings.Replace(head(204, ""), "\r\n\r\n", "\r\nX-Server: one\r\n\r\n", 1)}, false},
		{"204 not allowed", Config{}, []string{withBody, echoPost + "5\r\nhello\r\n0\r\n\r\n"}, false},
		{"204 in the preview", Config{}, []string{preview4, head(204, "")}, false},
		{"204 in the preview, ieof", Config{}, []string{preview9Ieof, head(204, "")}, false},
		{"204 in the preview, null-body", Config{}, []string{preview0Null, head(204, "")}, false},
		{"204 after the rest", Config{Continue: true}, []string{preview4Allow, continueHead, rest, head(204, "")}, false},
		{"204 after the rest, ieof", Config{Continue: true}, []string{preview9Ieof, head(204, "")}, false},
		{"204 not allowed after the rest", Config{Continue: true},
			[]string{preview4, continueHead, rest, echoPost + "4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n"}, false},
		{"client closes", Config{}, []string{strings.Replace(bodyless, allow, allow+connClose, 1), head(204, connClose)}, true},

		{"echo", Config{Mode: Echo}, []string{withBodyAllow, echoPost + "5\r\nhello\r\n0\r\n\r\n"}, false},
		{"echo of no body", Config{Mode: Echo}, []string{bodyless, head(200, encGet) + get}, false},
		{"echo of a body only", Config{Mode: Echo}, []string{
			reqmod + "Encapsulated: req-body=0\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
			head(200, "Encapsulated: req-body=0\r\n") + "5\r\nhello\r\n0\r\n\r\n"}, false},
		{"echo of chunks", Config{Mode: Echo}, []string{
			reqmod + encPost + "\r\n" + post + "005;x=y\r\nhello\r\n1\r\n!\r\n000\r\nX-T: 1\r\n\r\n",
			echoPost + "5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"}, false},
		{"echo of a response", Config{Mode: Echo}, []string{
			resp + "Encapsulated: req-hdr=0, res-hdr=27, res-body=46\r\n\r\n" + get + ok + "5\r\nhello\r\n0\r\n\r\n",
			head(200, "Encapsulated: res-hdr=0, res-body=19\r\n") + ok + "5\r\nhello\r\n0\r\n\r\n"}, false},
		{"echo of a response without req-hdr", Config{Mode: Echo}, []string{
			resp + "Encapsulated: res-hdr=0, res-body=19\r\n\r\n" + ok + "0\r\n\r\n",
			head(200, "Encapsulated: res-hdr=0, res-body=19\r\n") + ok + "0\r\n\r\n"}, false},
		{"echo of a response without res-hdr", Config{Mode: Echo}, []string{
			resp + "Encapsulated: req-hdr=0, res-body=27\r\n\r\n" + get + "0\r\n\r\n",
			head(200, "Encapsulated: res-body=0\r\n") + "0\r\n\r\n"}, false},
		{"echo of a response without a body", Config{Mode: Echo}, []string{
			resp + "Encapsulated: req-hdr=0, res-hdr=27, null-body=46\r\n\r\n" + get + ok,
			head(200, "Encapsulated: res-hdr=0, null-body=19\r\n") + ok}, false},
		{"echo after the preview", Config{Mode: Echo}, []string{preview4Allow, continueHead, rest, echoPost + "4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n"}, false},
		{"echo of the preview", Config{Mode: Echo}, []string{preview9Ieof, echoPost + "4\r\nabcd\r\n0\r\n\r\n"}, false},
		{"echo of an empty preview", Config{Mode: Echo}, []string{
			reqmod + "Preview: 0\r\n" + encPost + "\r\n" + post + "0\r\n\r\n", continueHead, rest, echoPost + "2\r\nef\r\n0\r\n\r\n"}, false},
		{"echo in a preview, null-body", Config{Mode: Echo}, []string{preview0Null, head(200, encGet) + get}, false},

		{"early 204", Config{EarlyAnswer: true},
			[]string{reqmod + allow + encPost + "\r\n" + post, head(204, ""), "5\r\nhello\r\n0\r\n\r\n", ""}, false},
		{"early 204 in a preview", Config{EarlyAnswer: true},
			[]string{reqmod + "Preview: 4\r\n" + encPost + "\r\n" + post, head(204, ""), "4\r\nabcd\r\n0\r\n\r\n", ""}, false},
		{"early echo", Config{Mode: Echo, EarlyAnswer: true}, []string{
			reqmod + allow + encPost + "\r\n" + post, echoPost, "5\r\nhello\r\n", "5\r\nhello\r\n", "0\r\n\r\n", "0\r\n\r\n"}, false},
		{"echo of what is there", Config{Mode: Echo}, []string{
			reqmod + encPost + "\r\n" + post + "5\r\nhel", echoPost + "5\r\nhel", "lo\r\n0\r\n\r\n", "lo\r\n0\r\n\r\n"}, false},

		{"status", Config{Status: 503}, []string{withBody, head(503, "")}, false},
		{"unknown status", Config{Status: 299}, []string{withBody, strings.Replace(head(299, ""), "299 ", "299 Status", 1)}, false},
		{"early status", Config{Status: 503, EarlyAnswer: true},
			[]string{reqmod + encPost + "\r\n" + post, head(503, ""), "0\r\n\r\n", ""}, false},
		{"method not served", Config{Methods: []icap.Method{icap.MethodRespmod}}, []string{withBody, head(405, "")}, false},
		{"unknown method", Config{}, []string{strings.Replace(withBody, "REQMOD", "LOG", 1), head(501, "")}, false},

		{"close after 1", Config{CloseAfter: 1}, []string{bodyless, head(204, connClose)}, true},
		{"close after 2", Config{CloseAfter: 2}, []string{bodyless, head(204, ""), bodyless, head(204, connClose)}, true},
		{"silent close", Config{CloseAfter: 2, SilentClose: true}, []string{bodyless, head(204, ""), bodyless, head(204, "")}, true},
		{"close after an early 204", Config{CloseAfter: 1, EarlyAnswer: true},
			[]string{reqmod + allow + encPost + "\r\n" + post, head(204, connClose), "0\r\n\r\n", ""}, true},

		{"other status", Config{Treat: func(r *Request, t *Treatment) {
			if bytes.Contains(r.Head, []byte("Allow")) && r.Method == icap.MethodReqmod {
				t.Status, t.Fields = 503, "Retry-After: 1\r\n"
			}
		}}, []string{withBody, echoPost + "5\r\nhello\r\n0\r\n\r\n", bodyless, head(503, "Retry-After: 1\r\n"), withBody, echoPost + "5\r\nhello\r\n0\r\n\r\n"}, false},
		{"fields of an echo", treat(Treatment{Mode: Echo, Fields: "X-A: b\r\n"}), []string{bodyless, head(200, "X-A: b\r\n"+encGet) + get}, false},
		{"fields of a 204, then closed", treat(Treatment{Fields: "X-A: b\r\n", Close: true}), []string{bodyless, head(204, connClose+"X-A: b\r\n")}, true},
		{"early, asked once", treat(Treatment{EarlyAnswer: true}),
			[]string{reqmod + allow + encPost + "\r\n" + post, head(204, ""), "5\r\nhello\r\n0\r\n\r\n", ""}, false},
		{"no answer", treat(Treatment{Cut: NoAnswer}), []string{withBodyAllow, ""}, true},
		{"answer cut in its head", treat(Treatment{Cut: 7}), []string{withBodyAllow, "ICAP/1."}, true},
		{"echo cut in its body", treat(Treatment{Mode: Echo, Cut: len(echoPost) + 4}), []string{
			reqmod + encPost + "\r\n" + post + "1\r\nh\r\n", echoPost + "1\r\nh"}, true},

		{"modified", Config{Mode: Modify, Change: change}, []string{withBody,
			head(200, "Encapsulated: req-hdr=0, req-body=36\r\n") + post[:26] + "X-M: y\r\n\r\n" + "2\r\n<>\r\n4\r\nello\r\n0\r\n\r\n"}, false},
		{"modified, skipped over chunks", Config{Mode: Modify, Change: Change{Skip: 3}}, []string{
			reqmod + encPost + "\r\n" + post + "2\r\nhe\r\n1\r\nl\r\n2\r\nlo\r\n0\r\n\r\n", echoPost + "2\r\nlo\r\n0\r\n\r\n"}, false},
		{"modified, all skipped", Config{Mode: Modify, Change: Change{Skip: 9}}, []string{withBody, echoPost + "0\r\n\r\n"}, false},
		{"modified, body replaced", Config{Mode: Modify, Change: Change{Body: []byte("new"), Skip: SkipAll}}, []string{
			reqmod + "Encapsulated: req-hdr=0, req-body=47\r\n\r\n" + post[:26] + "content-length: 5\r\n\r\n" + "5\r\nhello\r\n0\r\n\r\n",
			head(200, "Encapsulated: req-hdr=0, req-body=47\r\n") + post[:26] + "content-length: 3\r\n\r\n" + "3\r\nnew\r\n0\r\n\r\n"}, false},
		{"modified, no body", Config{Mode: Modify, Change: change}, []string{bodyless,
			head(200, "Encapsulated: req-hdr=0, null-body=35\r\n") + get[:25] + "X-M: y\r\n\r\n"}, false},
		{"modified, after the preview", Config{Mode: Modify, Change: change}, []string{preview4Allow, continueHead, rest,
			head(200, "Encapsulated: req-hdr=0, req-body=36\r\n") + post[:26] + "X-M: y\r\n\r\n" + "2\r\n<>\r\n3\r\nbcd\r\n2\r\nef\r\n0\r\n\r\n"}, false},
		{"modified response", Config{Mode: Modify, Change: change}, []string{
			resp + "Encapsulated: req-hdr=0, res-hdr=27, res-body=46\r\n\r\n" + get + ok + "5\r\nhello\r\n0\r\n\r\n",
			head(200, "Encapsulated: res-hdr=0, res-body=27\r\n") + ok[:17] + "X-M: y\r\n\r\n" + "2\r\n<>\r\n4\r\nello\r\n0\r\n\r\n"}, false},

		{"206", Config{Mode: Partial, Change: change}, []string{strings.Replace(withBody, "\r\n\r\n", "\r\nAllow: 204, 206\r\n\r\n", 1),
			head(206, "Encapsulated: req-hdr=0, req-body=36\r\n") + post[:26] + "X-M: y\r\n\r\n" + "2\r\n<>\r\n0; use-original-body=1\r\n\r\n"}, false},
		{"206, changed head only", Config{Mode: Partial, Change: Change{Field: "X-M: y\r\n"}}, []string{
			strings.Replace(withBody, "\r\n\r\n", "\r\nAllow: 204, 206\r\n\r\n", 1),
			head(206, "Encapsulated: req-hdr=0, req-body=36\r\n") + post[:26] + "X-M: y\r\n\r\n" + "0; use-original-body=0\r\n\r\n"}, false},
		{"206 in a preview", Config{Mode: Partial, Change: Change{Skip: 100}}, []string{
			strings.Replace(preview9Ieof, "Preview", "Allow: 206\r\nPreview", 1),
			head(206, encPost) + post + "0; use-original-body=4\r\n\r\n"}, false},
		{"206, all skipped", Config{Mode: Partial, Change: Change{Body: []byte("new"), Skip: SkipAll}}, []string{
			strings.Replace(preview4, "Preview", "Allow: 206\r\nPreview", 1), head(206, encPost) + post + "3\r\nnew\r\n0\r\n\r\n"}, false},
		{"206, more skipped than a preview has", Config{Mode: Partial, Change: Change{Skip: 5}}, []string{
			strings.Replace(preview4, "Preview", "Allow: 204, 206\r\nPreview", 1), continueHead, rest, head(206, encPost) + post + "0; use-original-body=5\r\n\r\n",
			strings.Replace(preview4, "Preview", "Allow: 206\r\nPreview", 1), continueHead, rest, echoPost + "1\r\nf\r\n0\r\n\r\n"}, false},
		{"206 early", Config{Mode: Partial, EarlyAnswer: true}, []string{reqmod + "Allow: 204, 206\r\n" + encPost + "\r\n" + post,
			head(206, encPost) + post + "0; use-original-body=0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n", ""}, false},
		{"206 that skips is not early", Config{Mode: Partial, EarlyAnswer: true, Change: Change{Skip: 3}}, []string{
			strings.Replace(withBody, "Enc", "Allow: 204, 206\r\nEnc", 1), head(206, encPost) + post + "0; use-original-body=3\r\n\r\n"}, false},
		{"206 not allowed", Config{Mode: Partial, Change: change}, []string{withBodyAllow,
			head(200, "Encapsulated: req-hdr=0, req-body=36\r\n") + post[:26] + "X-M: y\r\n\r\n" + "2\r\n<>\r\n4\r\nello\r\n0\r\n\r\n"}, false},
		{"206 of no body", Config{Mode: Partial}, []string{strings.Replace(bodyless, "204", "204, 206", 1), head(200, encGet) + get}, false},

		{"block", Config{Mode: Block, Page: page}, []string{withBody, blocked("403 Forbidden")}, false},
		{"block a response", Config{Mode: Block, Page: Page{Status: 200, Body: "no"}}, []string{
			resp + "Encapsulated: req-hdr=0, res-hdr=27, res-body=46\r\n\r\n" + get + ok + "5\r\nhello\r\n0\r\n\r\n", blocked("200 OK")}, false},
		{"block in a preview", Config{Mode: Block, Page: page}, []string{preview4, blocked("403 Forbidden")}, false},
		{"block early", Config{Mode: Block, Page: page, EarlyAnswer: true}, []string{
			reqmod + encPost + "\r\n" + post, blocked("403 Forbidden"), "5\r\nhello\r\n0\r\n\r\n", ""}, false},
		{"match", match("l+o"), []string{withBody, blocked("403 Forbidden"), withBodyAllow, blocked("403 Forbidden")}, false},
		{"match over chunks", match("hello"), []string{reqmod + encPost + "\r\n" + post + "2\r\nhe\r\n1\r\nl\r\n2\r\nlo\r\n0\r\n\r\n",
			blocked("403 Forbidden")}, false},
		{"match in a preview", match("bc"), []string{preview4, blocked("403 Forbidden")}, false},
		{"match after the preview", match("def"), []string{preview4, continueHead, rest, blocked("403 Forbidden")}, false},
		{"no match", match("x"), []string{withBodyAllow, head(204, ""), withBody, echoPost + "5\r\nhello\r\n0\r\n\r\n", bodyless, head(204, ""),
			preview9Ieof, head(204, ""), preview4Allow, continueHead, rest, head(204, "")}, false},
		{"no match, modified", func() Config { c := match("x"); c.Mode, c.Change = Modify, change; return c }(), []string{preview4, continueHead, rest,
			head(200, "Encapsulated: req-hdr=0, req-body=36\r\n") + post[:26] + "X-M: y\r\n\r\n" + "2\r\n<>\r\n5\r\nbcdef\r\n0\r\n\r\n"}, false},
		{"match before the end of the body", func() Config { c := match("ll"); c.EarlyAnswer, c.MatchLimit = true, 4; return c }(), []string{
			reqmod + encPost + "\r\n" + post + "5\r\nhello\r\n", blocked("403 Forbidden"), "1\r\nx\r\n0\r\n\r\n", ""}, false},
		{"match behind the limit of an echo", func() Config { c := match("lo"); c.Mode, c.MatchLimit = Echo, 2; return c }(), []string{
			reqmod + encPost + "\r\n" + post + "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", echoPost + "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"}, false},

		{"match after a preview beyond the limit", func() Config { c := match("ef"); c.MatchLimit = 2; return c }(), []string{
			preview4Allow, continueHead, rest, blocked("403 Forbidden")}, false},
		{"no match in a preview beyond the limit", func() Config { c := match("x"); c.Mode, c.MatchLimit = Echo, 2; return c }(), []string{
			preview4, continueHead, rest, echoPost + "4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n"}, false},

		{"alternate", Config{Mode: Echo, Alternate: true}, []string{preview9Ieof, echoPost + "4\r\nabcd\r\n0\r\n\r\n", preview4, head(204, ""),
			preview4, continueHead, rest, echoPost + "4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n", preview4, head(204, "")}, false},
		{"whole preview", Config{Mode: Echo, WholePreview: true}, []string{preview4, echoPost + "4\r\nabcd\r\n0\r\n\r\n", withBody, echoPost + "5\r\nhello\r\n0\r\n\r\n"}, false},
		{"overloaded", Config{Status: 503, RetryAfter: 4 * time.Second}, []string{bodyless, head(503, "Retry-After: 4\r\n")}, false},
		{"length of no body", Config{Mode: Modify, Change: Change{Body: []byte("new")}}, []string{
			reqmod + "Encapsulated: req-hdr=0, null-body=38\r\n\r\nPOST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
			head(200, "Encapsulated: req-hdr=0, null-body=38\r\n") + "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n"}, false},
		{"fields", Config{Fields: "X-A: b\r\n"}, []string{bodyless, head(204, "X-A: b\r\n"), withBody, head(200, "X-A: b\r\n"+encPost) + post + "5\r\nhello\r\n0\r\n\r\n"}, false},
		{"null-body", Config{NullBody: true}, []string{bodyless, head(204, "Encapsulated: null-body=0\r\n")}, false},
		{"loose spelling", Config{TightFields: true, BareISTag: true, Name: "n"}, []string{bodyless, "ICAP/1.0 204 No modifications needed\r\nISTag:dlpstub-1\r\nX-Server:n\r\n\r\n"}, false},
		{"paths", Config{Services: map[string][]icap.Method{"/r": {icap.MethodReqmod}, "/s": nil}}, []string{withBodyAllow, head(204, ""),
			strings.Replace(withBody, "icap://s/r", "icap://s/s", 1), head(405, ""), strings.Replace(withBody, "icap://s/r", "icap://s/", 1), head(404, "")}, false},
		{"field of a response", Config{RespmodField: "X-ICAP-E2G"}, []string{resp + "Encapsulated: null-body=0\r\n\r\n", head(418, ""),
			resp + "X-icap-e2g: 1\r\nEncapsulated: null-body=0\r\n\r\n", head(200, "Encapsulated: null-body=0\r\n")}, false},
		{"open errors", Config{OpenErrors: true, Methods: []icap.Method{icap.MethodRespmod}}, []string{
			bodyless, "ICAP/1.0 400 Bad request\r\nService: dlpstub\r\n", bodyless, "ICAP/1.0 400 Bad request\r\nService: dlpstub\r\n"}, false},
		{"open error of a body", Config{OpenErrors: true, Methods: []icap.Method{icap.MethodRespmod}}, []string{
			withBody, "ICAP/1.0 400 Bad request\r\nService: dlpstub\r\n"}, true},

		{"bad head", Config{}, []string{"GET / HTTP/1.1\r\n\r\n", head(400, connClose)}, true},
		{"bad version", Config{}, []string{"OPTIONS icap://s/ ICAP/2.0\r\n\r\n", head(505, connClose)}, true},
		{"bad chunk", Config{}, []string{reqmod + allow + encPost + "\r\n" + post + "0x5\r\nhello\r\n0\r\n\r\n", head(400, connClose)}, true},
		{"bad chunk after the echo began", Config{Mode: Echo, EarlyAnswer: true},
			[]string{reqmod + allow + encPost + "\r\n" + post, echoPost, "0x5\r\n", ""}, true},
		{"preview too large", Config{}, []string{strings.Replace(preview4, "Preview: 4", "Preview: 65537", 1), head(400, connClose)}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := New(tt.cfg)
			defer s.Close()
			nc := dialPipe(s)
			defer nc.Close()
			for i := 0; i < len(tt.steps); i += 2 {
				mustWrite(t, nc, tt.steps[i])
				mustExpect(t, nc, tt.steps[i+1])
			}
			if tt.closed {
				if rest, err := io.ReadAll(nc); err != nil || len(rest) > 0 {
					t.Fatalf("after the last answer: %q, %v; want the end", rest, err)
				}
				return
			}
			mustWrite(t, nc, "OPTIONS icap://s/r ICAP/1.0\r\n\r\n")
			mustExpect(t, nc, "ICAP/1.0 200 OK\r\n")
		})
	}
}

// treat treats every request in one way.
func treat(how Treatment) Config {
	return Config{Treat: func(_ *Request, t *Treatment) { *t = how }}
}

// A server reads as slowly as it is told.
func TestReadRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{ReadRate: 1000})
		defer s.Close()
		nc := dialPipe(s)
		defer nc.Close()
		start := time.Now()
		mustWrite(t, nc, reqmod+"Allow: 204\r\nEncapsulated: req-body=0\r\n\r\n") // heads are read at once
		if d := time.Since(start); d != 0 {
			t.Errorf("the head took %v", d)
		}
		mustWrite(t, nc, "2710\r\n"+strings.Repeat("x", 10_000)+"\r\n0\r\n\r\n")
		mustExpect(t, nc, head(204, ""))
		if d := time.Since(start).Round(100 * time.Millisecond); d != 10*time.Second {
			t.Errorf("10000 bytes took %v, want 10s", d)
		}
	})
}

func TestOptions(t *testing.T) {
	f := func(cfg Config, want ...string) {
		t.Helper()
		s := New(cfg)
		defer s.Close()
		nc := dialPipe(s)
		defer nc.Close()
		mustWrite(t, nc, "OPTIONS icap://s/r ICAP/1.0\r\nEncapsulated: opt-body=0\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
		buf := make([]byte, 4096)
		n, err := nc.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		var r icap.Response
		if err := r.Parse(buf[:n]); err != nil {
			t.Fatalf("%v in\n%s", err, buf[:n])
		}
		if _, err := time.Parse(dateFormat, string(r.Get("Date"))); err != nil {
			t.Error(err)
		}
		got := buf[:bytes.Index(buf, []byte("Date: "))]
		if string(got) != strings.Join(want, "\r\n")+"\r\n" {
			t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\r\n"))
		}
	}
	f(Config{}, "ICAP/1.0 200 OK", `ISTag: "dlpstub-1"`, "Methods: REQMOD, RESPMOD", "Service: dlpstub", "Options-TTL: 3600",
		"Allow: 204", "Encapsulated: null-body=0")
	f(Config{Name: "one", ISTag: "x", Methods: []icap.Method{icap.MethodReqmod}, MaxConnections: 16, OptionsTTL: time.Minute, Preview: 4096},
		"ICAP/1.0 200 OK", `ISTag: "x"`, "X-Server: one", "Methods: REQMOD", "Service: one", "Max-Connections: 16", "Options-TTL: 60",
		"Preview: 4096", "Transfer-Preview: *", "Allow: 204", "Encapsulated: null-body=0")
	f(Config{OptionsTTL: -1, TightFields: true, Services: map[string][]icap.Method{"/r": {icap.MethodRespmod}, "/b": {icap.MethodReqmod}}},
		"ICAP/1.0 200 OK", `ISTag:"dlpstub-1"`, "Methods: RESPMOD", "Service: dlpstub", "Allow: 204", "Encapsulated: null-body=0")
	f(Config{Preview: PreviewZero, CloseAfter: 1}, "ICAP/1.0 200 OK", `ISTag: "dlpstub-1"`, "Connection: close", "Methods: REQMOD, RESPMOD",
		"Service: dlpstub", "Options-TTL: 3600", "Preview: 0", "Transfer-Preview: *", "Allow: 204", "Encapsulated: null-body=0")
}

// TestByteByByte feeds an exchange one byte at a time.
func TestByteByByte(t *testing.T) {
	s := New(Config{Mode: Echo})
	defer s.Close()
	nc := dialPipe(s)
	defer nc.Close()
	request := resp + "Preview: 4\r\nEncapsulated: req-hdr=0, res-hdr=27, res-body=46\r\n\r\n" + get + ok + "4\r\nabcd\r\n0\r\n\r\n"
	for i := range request {
		mustWrite(t, nc, request[i:i+1])
	}
	mustExpect(t, nc, continueHead)
	answered := make(chan string)
	go func() {
		want := head(200, "Encapsulated: res-hdr=0, res-body=19\r\n") + ok + "4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n"
		buf := make([]byte, len(want))
		io.ReadFull(nc, buf)
		if string(buf) != want {
			answered <- fmt.Sprintf("got %q, want %q", buf, want)
		}
		close(answered)
	}()
	for _, b := range []byte("2\r\nef\r\n0\r\n\r\n") {
		mustWrite(t, nc, string(b))
	}
	if fault := <-answered; fault != "" {
		t.Error(fault)
	}
}

// TestEchoFullDuplex echoes 10 MB with a client that reads while it writes, over a pipe that holds nothing.
func TestEchoFullDuplex(t *testing.T) {
	const chunk, chunks = 10 << 10, 1 << 10
	for _, early := range []bool{false, true} {
		var seen Request
		s := New(Config{Mode: Echo, EarlyAnswer: early, Hook: func(r *Request) { seen = *r }})
		nc := dialPipe(s)
		data := bytes.Repeat([]byte("0123456789abcdef"), chunk/16)
		sent := make(chan error)
		go func() {
			_, err := nc.Write([]byte(reqmod + "Encapsulated: req-hdr=0, req-body=28\r\n\r\n" + post))
			for i := 0; i < chunks && err == nil; i++ {
				_, err = fmt.Fprintf(nc, "%x\r\n%s\r\n", chunk, data)
			}
			if err == nil {
				_, err = nc.Write([]byte("0\r\n\r\n"))
			}
			sent <- err
		}()
		mustExpect(t, nc, head(200, "Encapsulated: req-hdr=0, req-body=28\r\n")+post)
		got, want := sha256.New(), sha256.New()
		var body icap.BodyReader
		body.Reset(icap.BodyConfig{Preview: -1})
		buf := make([]byte, 1000)
		for body.End() == icap.EndNone {
			n, err := nc.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			for p := buf[:n]; len(p) > 0; {
				run, n, err := body.NextData(p)
				if err != nil {
					t.Fatal(err)
				}
				got.Write(run)
				p = p[n:]
			}
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		for range chunks {
			want.Write(data)
		}
		nc.Close()
		s.Close()
		if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			t.Error("echo differs")
		}
		if seen.BodyLen != chunk*chunks || seen.Err != nil || !bytes.Equal(seen.BodySHA256[:], want.Sum(nil)) {
			t.Errorf("hook saw %d bytes, error %v, hash %x", seen.BodyLen, seen.Err, seen.BodySHA256)
		}
		if st := s.Stats(); st.PayloadBytes != chunk*chunks {
			t.Errorf("payload %d", st.PayloadBytes)
		}
	}
}

func TestHook(t *testing.T) {
	calls := make(chan string, 4)
	s := New(Config{Hook: func(r *Request) {
		calls <- fmt.Sprintf("%d/%d %v %s|%s preview %d continued %v ieof %v body %d %x %v", r.Connection, r.Number, r.Method,
			r.Head[:6], r.Blocks, r.Preview, r.Continued, r.Ieof, r.BodyLen, r.BodySHA256[:2], r.Err)
	}, Continue: true})
	nc := dialPipe(s)
	mustWrite(t, nc, reqmod+"Allow: 204\r\nEncapsulated: req-hdr=0, null-body=27\r\n\r\n"+get)
	mustExpect(t, nc, head(204, ""))
	mustWrite(t, nc, reqmod+"Preview: 4\r\nEncapsulated: req-hdr=0, req-body=28\r\n\r\n"+post+"4\r\nabcd\r\n0\r\n\r\n")
	mustExpect(t, nc, continueHead)
	mustWrite(t, nc, "2\r\nef\r\n0\r\n\r\n")
	mustExpect(t, nc, head(200, "Encapsulated: req-hdr=0, req-body=28\r\n")+post+"4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n")
	mustWrite(t, nc, reqmod+"Preview: 4\r\nEncapsulated: req-body=0\r\n\r\n4\r\nabcd\r\n0; ieof\r\n\r\n")
	mustExpect(t, nc, head(204, ""))
	mustWrite(t, nc, reqmod+"Allow: 204\r\nEncapsulated: req-body=0\r\n\r\n6\r\nabc")
	nc.Close()
	for _, want := range []string{
		"1/1 REQMOD REQMOD|" + get + " preview -1 continued false ieof false body 0 e3b0 <nil>",
		"1/2 REQMOD REQMOD|" + post + " preview 4 continued true ieof false body 6 bef5 <nil>",
		"1/3 REQMOD REQMOD| preview 4 continued false ieof true body 4 88d4 <nil>",
		"1/4 REQMOD REQMOD| preview -1 continued false ieof false body 3 ba78 unexpected EOF",
	} {
		if got := <-calls; got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
	s.Close()
	if st := s.Stats(); st.Truncated != 1 || st.Refused != 0 || !errors.Is(st.LastError, io.ErrUnexpectedEOF) || st.Requests[icap.MethodReqmod] != 4 {
		t.Errorf("stats %+v", st)
	}
}

func TestLatencyAndIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Latency: 3 * time.Second, IdleTimeout: 5 * time.Second})
		defer s.Close()
		nc := dialPipe(s)
		defer nc.Close()
		start := time.Now()
		for range 2 {
			mustWrite(t, nc, reqmod+"Allow: 204\r\nEncapsulated: req-hdr=0, null-body=27\r\n\r\n"+get)
			mustExpect(t, nc, head(204, ""))
		}
		if d := time.Since(start); d != 6*time.Second {
			t.Errorf("2 answers after %v", d)
		}
		if _, err := nc.Read(make([]byte, 1)); err != io.EOF || time.Since(start) != 11*time.Second {
			t.Errorf("idle connection: %v after %v", err, time.Since(start))
		}
	})
}

// TestCloseWhileWaiting closes a server in the middle of every phase of a request.
func TestCloseWhileWaiting(t *testing.T) {
	request := reqmod + "Preview: 2\r\nEncapsulated: req-hdr=0, req-body=28\r\n\r\n" + post + "2\r\nab\r\n0\r\n\r\n"
	for _, cut := range []int{0, 10, len(request) - 20, len(request) - 3, len(request)} {
		s := New(Config{Latency: time.Hour})
		nc := dialPipe(s)
		mustWrite(t, nc, request[:cut])
		s.Close()
		if rest, err := io.ReadAll(nc); err != nil || len(rest) > 0 {
			t.Errorf("cut at %d: %q, %v", cut, rest, err)
		}
		nc.Close()
	}
}

func TestServe(t *testing.T) {
	for _, kill := range []bool{false, true} {
		s := New(Config{})
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error)
		go func() { served <- s.Serve(ln) }()
		nc, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, nc, reqmod+"Allow: 204\r\nEncapsulated: req-hdr=0, null-body=27\r\n\r\n"+get)
		mustExpect(t, nc, head(204, ""))
		if st := s.Stats(); st.Accepted != 1 || st.Open != 1 || st.PeakOpen != 1 || st.Requests[icap.MethodReqmod] != 1 {
			t.Errorf("stats %+v", st)
		}
		if kill {
			s.Kill()
		} else {
			s.Close()
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		_, err = nc.Read(make([]byte, 1))
		if reset := err != io.EOF; reset != kill {
			t.Errorf("kill %v: client saw %v", kill, err)
		}
		nc.Close()
		if st := s.Stats(); st.Open != 0 || st.Truncated != 0 {
			t.Errorf("stats after the end %+v", st)
		}
		s.Close() // again: no effect
		if err := s.Serve(ln); err != nil {
			t.Errorf("Serve of a closed server: %v", err)
		}
	}
}

func TestResetConnections(t *testing.T) {
	s := New(Config{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- s.Serve(ln) }()
	for range 2 {
		nc, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, nc, "OPTIONS icap://s/r ICAP/1.0\r\n\r\n")
		mustExpect(t, nc, "ICAP/1.0 200 OK\r\n")
		s.ResetConnections()
		for err == nil {
			_, err = nc.Read(make([]byte, 1000))
		}
		if err == io.EOF {
			t.Error("connection ended without a reset")
		}
		nc.Close()
	}
	s.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func dialPipe(s *Server) net.Conn {
	client, server := net.Pipe()
	client.SetDeadline(time.Now().Add(time.Minute)) // a hang becomes an error
	s.ServeConn(server)
	return client
}

func mustWrite(t *testing.T, nc net.Conn, p string) {
	t.Helper()
	if _, err := io.WriteString(nc, p); err != nil {
		t.Fatal(err)
	}
}

func mustExpect(t *testing.T, nc net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(nc, got)
	if string(got[:n]) != want {
		t.Fatalf("got %q (%v)\nwant %q", got[:n], err, want)
	}
}
