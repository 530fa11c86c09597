package gateway

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// answered is a server's answer to a request, and what the client gets for it.
type answered struct {
	name    string
	request string // "": v05 with Allow: 204, 206
	answer  string
	want    string
	kept    bool // the server's connection is used again
}

const (
	allowed   = RL + "Allow: 204, 206¶" + reqBody + chunks
	okLine    = "ICAP/1.0 200 OK¶"
	tag       = "ISTag: \"s\"¶"
	echoList  = "Encapsulated: req-hdr=0, req-body=28¶¶"
	echo      = okLine + tag + echoList + P + chunks
	blockPage = okLine + tag + "Encapsulated: res-hdr=0, res-body=19¶¶" + S + chunks
)

// TestAnswers: what a server may send, and what the client makes of it. The client's connection goes on after each.
func TestAnswers(t *testing.T) {
	list := func(l string) string { return okLine + "Encapsulated: " + l + "¶¶" }
	both := P + S + chunks
	big := strings.Repeat("x", 200<<10) + "¶¶"
	options := "OPTIONS icap://gw/r ICAP/1.0¶Host: gw¶¶"
	for _, v := range []answered{
		{"R01 200-echo", "", echo, echo, true},
		{"R02 block-page", "", blockPage, blockPage, true},
		{"R02 block-page-without-body", "", page, page, true},
		{"R03 204", "", noContent, noContent, true},
		{"R03 204-null-body", "", "ICAP/1.0 204 x¶Encapsulated: null-body=0¶¶", "ICAP/1.0 204 x¶Encapsulated: null-body=0¶¶", true},
		{"R04 204-not-allowed", v05, noContent, echo, true},
		{"R04 204-only-206-allowed", RL + "Allow: 206¶" + reqBody + chunks, noContent, echo, true},
		{"R04 204-of-a-RESPMOD", v08, noContent, okLine + tag + "Encapsulated: res-hdr=0, res-body=19¶¶" + S + chunks, true},
		{"R04 204-without-a-body", v04, noContent, okLine + tag + "Encapsulated: req-hdr=0, null-body=27¶¶" + G, true},
		{"R04 204-with-fields", v05, "ICAP/1.0 204 x¶X-Scanned: 1¶Connection: close¶Encapsulated: null-body=0¶¶", okLine + "X-Scanned: 1¶" + echoList + P + chunks, false},
		{"R05 204-with-body", "", "ICAP/1.0 204 x¶Encapsulated: null-body=0¶¶0¶¶", "ICAP/1.0 204 x¶Encapsulated: null-body=0¶¶", false},
		{"R13 extra-after-end", "", echo + "X", echo, false},
		{"R13 answer-twice", "", noContent + noContent, noContent, false},
		{"R14 icap-trailer", "", okLine + "Allow: 204, trailers¶Trailer: X-T¶" + echoList + P + chunks + "X-T: 1¶¶", okLine + "Allow: 204¶" + echoList + P + chunks, true},
		{"R14 empty-icap-trailer", "", okLine + "Allow: trailers¶Trailer: X-T¶" + echoList + P + chunks + "¶", okLine + echoList + P + chunks, true},
		{"R15 undeclared-trailer", "", echo + "X-T: 1¶¶", echo, false},
		{"R14 http-trailer", "", okLine + echoList + P + "5¶hello¶0¶X-T: 1¶¶", okLine + echoList + P + chunks, true},
		{"R16 206", "", "ICAP/1.0 206 Partial Content¶" + echoList + P + "5¶hello¶0; use-original-body=5¶¶",
			"ICAP/1.0 206 Partial Content¶" + echoList + P + "5¶hello¶0; use-original-body=5¶¶", true},
		{"R18 nullbody-zero-200", "", list("req-hdr=0, null-body=0"), "ICAP/1.0 204 No modifications needed¶Encapsulated: null-body=0¶¶", true},
		{"R18 nullbody-only-200", "", list("null-body=0"), "ICAP/1.0 204 No modifications needed¶Encapsulated: null-body=0¶¶", true},
		{"R18 nullbody-zero-200-not-allowed", v05, list("req-hdr=0, null-body=0"), okLine + echoList + P + chunks, true},
		{"R19 order", "", list("res-body=47, res-hdr=28") + both, list("req-hdr=0, res-hdr=28, res-body=47") + both, true},
		{"R19 only-res-body", "", list("res-body=19") + S + chunks, list("res-hdr=0, res-body=19") + S + chunks, true},
		{"R19 req-body-of-a-response", v08, list("res-hdr=0, req-body=19") + S + chunks, list("res-hdr=0, res-body=19") + S + chunks, true},
		{"R20 wrong-offset", "", list("res-hdr=0, res-body=21") + S + chunks, list("res-hdr=0, res-body=19") + S + chunks, true},
		{"R26 no-reason", "", "ICAP/1.0 204¶¶", "ICAP/1.0 204 No modifications needed¶¶", true},
		{"R28 fold", "", okLine + "X-Violations-Found: 1¶\tf¶\tT¶\t1¶\t2¶" + echoList + P + chunks, okLine + "X-Violations-Found: 1¶\tf¶\tT¶\t1¶\t2¶" + echoList + P + chunks, true},
		{"R31 close", "", okLine + "Connection: close¶" + echoList + P + chunks, okLine + echoList + P + chunks, false},
		{"R31 keep-alive", "", okLine + "Connection: keep-alive, X-Hop¶X-Hop: 1¶Keep-Alive: 5¶" + echoList + P + chunks, okLine + echoList + P + chunks, true},
		{"R33 bare-lf-head", "", strings.ReplaceAll(okLine+tag+echoList, "¶", "\n") + P + chunks, echo, true},
		{"R35 options-body", options, okLine + tag + "Opt-body-type: x¶Encapsulated: opt-body=0¶¶" + chunks, okLine + tag + "Opt-body-type: x¶Encapsulated: null-body=0¶¶", true},
		{"R36 options-text", options, okLine + "Max-Connections: many¶Options-TTL: -1¶Preview: x¶¶", okLine + "Max-Connections: many¶Options-TTL: -1¶Preview: x¶¶", true},
		{"R38 inner-head-200-KB", "", list(fmt.Sprintf("res-hdr=0, null-body=%d", len(text(big)))) + big, list(fmt.Sprintf("res-hdr=0, null-body=%d", len(text(big)))) + big, true},
		{"400 passes", "", "ICAP/1.0 400 Bad request¶" + tag + "¶", "ICAP/1.0 400 Bad request¶" + tag + "¶", true},
		{"404 passes", "", "ICAP/1.0 404 Not found¶¶", "ICAP/1.0 404 Not found¶¶", true},
		{"405 passes", "", "ICAP/1.0 405 No¶Allow: RESPMOD¶¶", "ICAP/1.0 405 No¶Allow: RESPMOD¶¶", true},
		{"418 passes", "", "ICAP/1.0 418 Bad composition¶¶", "ICAP/1.0 418 Bad composition¶¶", true},
		{"201 passes", "", "ICAP/1.0 201 Created¶" + echoList + P + chunks, "ICAP/1.0 201 Created¶" + echoList + P + chunks, true},
		{"503 of the only server passes", "", "ICAP/1.0 503 Overloaded¶Retry-After: 60¶¶", "ICAP/1.0 503 Overloaded¶Retry-After: 60¶¶", true},
		{"R31 unknown headers", "", okLine + "Service: x¶x-virus-id:a  b¶X-ICAP-E2G: 1¶" + echoList + P + chunks, okLine + "Service: x¶x-virus-id: a  b¶X-ICAP-E2G: 1¶" + echoList + P + chunks, true},
		{"R37 canonical-chunks", "", okLine + echoList + P + "05;a=b¶hello¶000;x¶¶", okLine + echoList + P + chunks, true},
	} {
		t.Run(v.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				f := startFake(t) // of its own: some answers make the gateway leave the server alone for a while
				p := newPlayer(t, startGateway(t, []string{f.address}, quiet, "").ready(), f, listener)
				if v.request == "" {
					v.request = allowed
				}
				p.play(sends(v.request), arrives(forwarded(v.request)), answers(v.answer), gets(v.want))
				if !v.kept {
					p.s.over(t)
				}
				if !strings.HasPrefix(v.name, "503") {
					p.again(v.kept)
				}
			})
		})
	}
}

// TestBadAnswers: the client gets a 502 and can go on; the server's connection is closed.
func TestBadAnswers(t *testing.T) {
	plain := v05
	part := preview(4) + "4¶abcd¶0; ieof¶¶"
	for _, v := range []struct{ name, request, answer string }{
		{"R04 204-with-body-not-allowed", plain, "ICAP/1.0 204 x¶" + echoList + P + chunks},
		{"R16 206-not-allowed", plain, "ICAP/1.0 206 Partial Content¶" + echoList + P + "0; use-original-body=5¶¶"},
		{"R16 206-only-206-allowed", RL + "Allow: 206¶" + reqBody + chunks, "ICAP/1.0 206 Partial Content¶" + echoList + P + "0; use-original-body=5¶¶"},
		{"R16 206-in-preview-not-allowed", part, "ICAP/1.0 206 Partial Content¶" + echoList + P + "0; use-original-body=4¶¶"},
		{"R17 no-encapsulated-200", plain, okLine + "¶"},
		{"R19 inconsistent", plain, okLine + "Encapsulated: res-body=20¶¶" + S + chunks},
		{"R20 opt-body", plain, okLine + "Encapsulated: opt-body=0¶¶" + chunks},
		{"R21 truncated-head", plain, "ICAP/1.0 200 OK¶ISTag:"},
		{"R21 truncated-blocks", plain, okLine + echoList + P[:9]},
		{"R25 bad-status", plain, "ICAP/1.0 99 x¶¶"},
		{"R25 http", plain, "HTTP/1.1 200 OK¶¶"},
		{"R25 status-2000", plain, "ICAP/1.0 2000¶¶"},
		{"R25 202", plain, "ICAP/1.0 202 Accepted¶¶"},
		{"R25 302", plain, "ICAP/1.0 302 Found¶¶"},
		{"R28 fold-encapsulated", plain, okLine + "Encapsulated: res-hdr=0,¶ res-body=19¶¶" + S + chunks},
		{"R34 huge-head", plain, okLine + strings.Repeat("X: "+strings.Repeat("x", 1000)+"¶", 1000) + "¶"},
		{"R34 endless-line", plain, okLine + "X: " + strings.Repeat("x", 1<<20)},
		{"R38 inner-head-2-MB", plain, okLine + "Encapsulated: res-hdr=0, res-body=19¶¶" + strings.Repeat("x", 2<<20)},
		{"no ICAP at all", plain, "220 smtp.example ESMTP¶¶"},
		{"dup-encapsulated", plain, okLine + "Encapsulated: null-body=0¶Encapsulated: null-body=0¶¶"},
		{"nul", plain, okLine + "X: \x00¶¶"},
	} {
		t.Run(v.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				f := startFake(t)
				p := newPlayer(t, startGateway(t, []string{f.address}, quiet, "").ready(), f, listener)
				p.play(sends(v.request), arrives(forwarded(v.request)))
				s := p.s
				_, _ = io.WriteString(s, text(v.answer)) // the gateway may end the connection before it has all of it
				if strings.HasPrefix(v.name, "R21") {
					s.Close()
				}
				p.c.refusal(502, false)
				s.over(t)
				p.again(false)
			})
		})
	}
}

// What a client can make a server answer over and over does not fill the log: one line stands for many.
func TestBadAnswersInTheLog(t *testing.T) {
	f, log := startFake(t), new(lockedBuffer)
	g := newLoggedGateway(t, fmt.Sprintf("[%q]", f.address), quiet+"    ejection: {consecutive: 0}\n", "", slog.New(slog.NewTextHandler(log, nil)))
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	p := newPlayer(t, g.ready(), f, 1)
	latest := func(at time.Time) { // of the lines
		g.answerLog.mu.Lock()
		g.answerLog.last = at
		g.answerLog.mu.Unlock()
	}
	latest(time.Now().Add(time.Hour))
	for i := range 4 {
		if i == 3 {
			latest(time.Time{})
		}
		p.play(sends(v05), arrives(forwarded(v05)), answers("HTTP/1.1 200 OK¶¶"))
		p.c.refusal(502, false)
	}
	if lines := log.lines("bad answer from a server"); len(lines) != 1 || !strings.Contains(lines[0], "times=4") {
		t.Errorf("the log says %q, want one line for 4 answers", lines)
	}
}

// TestCutAnswers: once the client has begun to get an answer, nothing but the end of its connection tells that the server failed.
// R21, R37: a last chunk is never invented.
func TestCutAnswers(t *testing.T) {
	for _, v := range []struct{ name, body, want string }{
		{"R21 nothing", "", ""},
		{"R21 in-size-line", "5", ""},
		{"R21 in-chunk", "5¶hel", "5¶hel"},
		{"R21 behind-chunk", "5¶hello¶", "5¶hello¶"},
		{"R21 in-last-chunk", "5¶hello¶0¶", "5¶hello¶"},
		{"R37 0x-chunk", "0x5¶hello¶0¶¶", ""},
		{"R37 signed", "5¶hello¶-5¶hello¶0¶¶", "5¶hello¶"},
		{"R37 signed-first", "-5¶hello¶0¶¶", ""},
		{"R37 plus", "+5¶hello¶0¶¶", ""},
		{"R37 leading-blank", " 5¶hello¶0¶¶", ""},
		{"R37 leading-tab", "\t5¶hello¶0¶¶", ""},
		{"R37 two-numbers", "5 5¶hello¶0¶¶", ""},
		{"R37 vertical-tab", "5\x0b¶hello¶0¶¶", ""},
		{"R37 junk", "5zz¶hello¶0¶¶", ""},
		{"R37 40-digits", strings.Repeat("1", 40) + "¶hello¶0¶¶", ""},
		{"R37 overflow", "FFFFFFFFFFFFFFFFF¶hello¶0¶¶", ""},
		{"R37 no-crlf", "5¶helloX0¶¶", "5¶hello"},
		{"R37 empty-size", "¶5¶hello¶0¶¶", ""},
		{"R37 lf-only", "5\nhello\n0\n\n", ""},
		{"R37 bad-trailer", "5¶hello¶0¶X¶¶", "5¶hello¶"},
	} {
		t.Run(v.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				f := startFake(t)
				p := newPlayer(t, startGateway(t, []string{f.address}, quiet, "").ready(), f, listener)
				head := okLine + tag + echoList + P
				p.play(sends(v05), arrives(forwarded(v05)))
				s := p.s
				s.send(text(head + v.body))
				if strings.HasPrefix(v.name, "R21") {
					p.c.expect(text(head + v.want))
					s.Close()
				}
				got := p.c.rest()
				if !strings.HasPrefix(v.name, "R21") {
					got = strings.TrimPrefix(got, text(head+v.want))
				}
				if got != "" {
					t.Errorf("the client got %q at the end", got)
				}
				s.over(t)
				newPlayer(t, p.g, f, listener).again(false)
			})
		})
	}
}
