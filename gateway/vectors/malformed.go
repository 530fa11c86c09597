package vectors

import (
	"strconv"
	"strings"
)

type fault struct {
	name, stream string
	status       int
}

func refused(faults []fault) (requests []Request) {
	for _, f := range faults {
		requests = append(requests, Request{Name: f.name, Stream: f.stream, Status: f.status})
	}
	return requests
}

// MalformedHeads are requests with a fault in the ICAP head.
func MalformedHeads() []Request {
	line := func(l string) string { return l + "¶" + ReqNull }
	fields := func(f string) string { return RL + f + ReqNull }
	lf := strings.NewReplacer("¶", "\n").Replace
	return refused([]fault{
		{"M01 http-on-port", "GET / HTTP/1.1¶Host: a¶¶", 400},
		{"M03 lower-method", "reqmod icap://gw/r ICAP/1.0¶Host: gw¶¶" + P + Chunks, 501},
		{"M04 unknown-method", "FOO icap://gw/r ICAP/1.0¶¶", 501},
		{"M05 1.1", line("REQMOD icap://gw/r ICAP/1.1"), 505},
		{"M05 2.0", line("REQMOD icap://gw/r ICAP/2.0"), 505},
		{"M05 1", line("REQMOD icap://gw/r ICAP/1"), 505},
		{"M05 01.0", line("REQMOD icap://gw/r ICAP/01.0"), 505},
		{"M05 HTTP", line("REQMOD icap://gw/r HTTP/1.0"), 400},
		{"M06 origin-form", line("REQMOD /r ICAP/1.0"), 400},
		{"M06 asterisk", line("OPTIONS * ICAP/1.0"), 400},
		{"M06 no-host", line("REQMOD icap:///r ICAP/1.0"), 400},
		{"M06 http", line("REQMOD http://gw/r ICAP/1.0"), 400},
		{"M06 port-too-big", line("REQMOD icap://gw:99999/r ICAP/1.0"), 400},
		{"M06 blank-in-path", line("REQMOD icap://gw/a b ICAP/1.0"), 400},
		{"M06 control-in-path", line("REQMOD icap://gw/a\x01b ICAP/1.0"), 400},
		{"M06 long", line("REQMOD icap://gw/" + strings.Repeat("a", 8<<10) + " ICAP/1.0"), 400},
		{"M07 two-blanks", line("REQMOD  icap://gw/r ICAP/1.0"), 400},
		{"M07 tab", line("REQMOD\ticap://gw/r ICAP/1.0"), 400},
		{"M07 trailing-blank", line("REQMOD icap://gw/r ICAP/1.0 "), 400},
		{"M07 four-words", line("REQMOD icap://gw/r x ICAP/1.0"), 400},
		{"M08 bare-lf", lf(V05), 400},
		{"M09 bare-cr", fields("X: a\rb¶"), 400},
		{"M09 bare-cr-in-line", line("REQMOD icap://gw/r\rX ICAP/1.0"), 400},
		{"M09 bare-cr-in-framing", RL + "Encapsulated: req-hdr=0,\r null-body=27¶¶" + G, 400},
		{"M10 nul", fields("X: a\x00b¶"), 400},
		{"M10 nul-in-line", line("REQMOD icap://gw/r\x00 ICAP/1.0"), 400},
		{"M10 nul-in-name", fields("X\x00: a¶"), 400},
		{"M10 nul-first", "\x00" + V04, 400},
		{"M11 space-colon", RL + "Encapsulated : null-body=0¶¶", 400},
		{"M12 fold-framing", RL + "Encapsulated: req-hdr=0,¶ null-body=27¶¶" + G, 400},
		{"M12 fold-preview", fields("Preview:¶ 4¶"), 400},
		{"M13 no-colon", fields("garbage¶"), 400},
		{"M13 empty-name", fields(": x¶"), 400},
		{"M16 head-65-KB", fields(strings.Repeat("X: "+strings.Repeat("x", 10<<10)+"¶", 7)), 400},
		{"M16 line-17-KB", fields("X: " + strings.Repeat("x", 17<<10) + "¶"), 400},
		{"M16 300-fields", fields(strings.Repeat("X: 1¶", 300)), 400},
		{"M20 no-encapsulated", RL + "¶", 400},
		{"M20 respmod-no-encapsulated", PL + "¶", 400},
		{"M21 dup-encapsulated", fields("Encapsulated: null-body=0¶"), 400},
		{"M21 dup-encapsulated-equal", fields("Encapsulated: req-hdr=0, null-body=27¶"), 400},
		{"M31 negative", fields("Preview: -1¶"), 400},
		{"M31 exponent", fields("Preview: 1e3¶"), 400},
		{"M31 empty", fields("Preview:  ¶"), 400},
		{"M31 11-digits", fields("Preview: 99999999999¶"), 400},
		{"M31 list", fields("Preview: 4,4¶"), 400},
		{"M31 two-lines", fields("Preview: 4¶Preview: 4¶"), 400},
		{"M32 preview-too-big", fields("Preview: 1073741824¶"), 400},
		{"M49 head-inject", RL + "X-Client-IP: 1\r\rEncapsulated: req-body=0¶" + ReqNull, 400},
		{"M50 dup-host", fields("Host: other¶"), 400},
		{"V34 five-empty-lines", "¶¶¶¶¶" + V04, 400},
	})
}

// MalformedLists are requests with a fault in Encapsulated.
func MalformedLists() []Request {
	var faults []fault
	for _, v := range []struct{ name, list string }{
		{"M22 first-not-0", "req-hdr=5, null-body=32"},
		{"M23 decreasing", "req-hdr=0, res-hdr=50, res-body=27"},
		{"M23 equal", "req-hdr=0, req-body=0"},
		{"M26 negative", "req-hdr=0, null-body=-1"},
		{"M26 plus", "req-hdr=0, null-body=+27"},
		{"M26 hex", "req-hdr=0, null-body=0x1b"},
		{"M26 junk", "req-hdr=0, null-body=27abc"},
		{"M26 blank-inside", "req-hdr=0, null-body=2 7"},
		{"M26 33-bit", "req-hdr=0, null-body=4294967323"},
		{"M26 30-digits", "req-hdr=0, null-body=" + strings.Repeat("9", 30)},
		{"M26 empty", "req-hdr=0, null-body="},
		{"M27 colon", "req-hdr:0, null-body=27"},
		{"M27 semicolon", "req-hdr=0; null-body=27"},
		{"M27 empty-member", "req-hdr=0,, null-body=27"},
		{"M27 blanks-around-equals", "req-hdr = 0, null-body=27"},
		{"M29 two-bodies", "req-body=0, null-body=0"},
		{"M29 header-after-body", "req-body=0, req-hdr=9"},
		{"M29 dup-entry", "req-hdr=0, req-hdr=9, req-body=20"},
		{"M30 res-body", "req-hdr=0, res-body=27"},
		{"M30 opt-body", "opt-body=0"},
		{"M30 unknown", "foo-hdr=0, req-body=27"},
	} {
		faults = append(faults, fault{v.name, RL + "Encapsulated: " + v.list + "¶¶" + G, 400})
	}
	return refused(append(faults,
		fault{"M24 offset-short", RL + "Encapsulated: req-hdr=0, req-body=20¶¶" + P + Chunks, 400},
		fault{"M25 offset-long", RL + "Encapsulated: req-hdr=0, req-body=40¶¶" + P + Chunks, 400},
		fault{"M30 respmod-opt-body", PL + "Encapsulated: opt-body=0¶¶" + Chunks, 400},
		fault{"M30 respmod-req-body", PL + ReqBody + Chunks, 400},
	))
}

// MalformedChunks are requests with a fault in the body.
func MalformedChunks() []Request {
	body := func(part string) string { return RL + ReqBody + part }
	faults := []fault{
		{"M33 preview-overrun", RL + "Preview: 4¶" + ReqBody + "8¶abcdefgh¶0¶¶", 400},
		{"M38 0x-chunk", body("0x5¶hello¶0¶¶"), 400},
		{"M39 16-digits", body("FFFFFFFFFFFFFFFF¶hello¶0¶¶"), 400},
		{"M39 17-digits", body("10000000000000005¶hello¶0¶¶"), 400},
		{"M39 40-digits", body(strings.Repeat("1", 40) + "¶hello¶0¶¶"), 400},
		{"M41 empty-size", body("¶5¶hello¶0¶¶"), 400},
		{"M42 no-crlf-after-data", body("5¶helloX0¶¶"), 400},
		{"M43 lf-after-data", body("5¶hello\n0\n\n"), 400},
		{"M43 lf-after-size", body("5\nhello¶0¶¶"), 400},
		{"M44 ext-crlf-inject", body("5;a=\"¶0¶¶RESPMOD icap://gw/r ICAP/1.0¶¶"), 400},
		{"M45 ext-5-KB", body("5;" + strings.Repeat("a", 5<<10) + "¶hello¶0¶¶"), 400},
	}
	for _, size := range []string{"-5", "+5", " 5", "5 5", "\t5", "5\x0b", "5zz", "5;", "5;=a"} {
		faults = append(faults, fault{"M37 M40 " + strconv.Quote(size), body(size + "¶hello¶0¶¶"), 400})
	}
	return refused(append(faults,
		fault{"M46 trailer-without-colon", body("5¶hello¶0¶X¶¶"), 400},
	))
}

// FaultsBehind are good requests behind which faults stand: what of it goes on to a server, and what answers the rest.
func FaultsBehind() (requests []Request) {
	for _, v := range []struct{ name, request, behind string }{
		{"M35 preview-null-with-chunk", RL + "Preview: 0¶" + ReqNull, "0¶¶"},
		{"M46 garbage", V05, "GARBAGE¶¶"},
		{"M47 smuggled-fault", V05, "REQMOD /admin ICAP/1.0¶¶"},
		{"c-icap-70 extra-chunk", V05, Chunks},
	} {
		requests = append(requests, Request{Name: v.name, Stream: v.request + v.behind, Want: v.request, Status: 400})
	}
	return requests
}

// UnknownMethods are requests that no server gets, and whose end is known all the same.
func UnknownMethods() (requests []Request) {
	for _, stream := range []string{
		"FILEMOD icap://gw/r ICAP/1.0¶" + ReqBody + Chunks,
		"LOG icap://gw/r ICAP/1.0¶Encapsulated: null-body=0¶¶",
		"reqmod icap://gw/r ICAP/1.0¶" + ReqBody + Chunks,
		"FOO icap://gw/r ICAP/1.0¶Preview: 4¶" + ReqBody + "4¶hell¶0; ieof¶¶",
	} {
		requests = append(requests, Request{Name: "M03 M04 " + stream[:strings.IndexByte(stream, ' ')], Stream: stream, Status: 501})
	}
	return requests
}
