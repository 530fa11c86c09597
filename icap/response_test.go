package icap

import (
	"fmt"
	"strings"
	"testing"
)

func TestResponses(t *testing.T) {
	checkVectors(t, stream{responses: true, lenientLF: true}, responses())
}

func responses() []vector {
	const (
		OK     = "ICAP/1.0 200 OK¶"
		chunks = "5¶hello¶0¶¶"
	)
	large := "X: " + strings.Repeat("x", 10<<10) + "¶¶"
	list := func(l string) string { return OK + "Encapsulated: " + l + "¶¶" }
	return []vector{
		{"R01 200-echo", list("req-hdr=0, req-body=28") + P + chunks, list("req-hdr=0, req-body=28") + P + chunks + "[body]"},
		{"R02 block-page", list("res-hdr=0, res-body=19") + S + chunks, list("res-hdr=0, res-body=19") + S + chunks + "[body]"},
		{"R03 204", "ICAP/1.0 204 No Content¶¶", "ICAP/1.0 204 No Content¶¶"},
		{"R03 204-null-body", "ICAP/1.0 204 No Content¶Encapsulated: null-body=0¶¶", "ICAP/1.0 204 No Content¶Encapsulated: null-body=0¶¶"},
		{"R05 204-with-body", "ICAP/1.0 204 No Content¶Encapsulated: null-body=0¶¶0¶¶",
			"ICAP/1.0 204 No Content¶Encapsulated: null-body=0¶¶[502 status line is not ICAP/1.x NNN]"},
		{"R10 100-with-headers", "ICAP/1.0 100 Continue¶ISTag: \"x\"¶¶", "ICAP/1.0 100 Continue¶ISTag: \"x\"¶¶"},
		{"R11 100-glued", "ICAP/1.0 100 Continue¶¶" + list("res-hdr=0, null-body=19") + S,
			"ICAP/1.0 100 Continue¶¶" + list("res-hdr=0, null-body=19") + S},
		{"R13 extra-after-end", list("res-body=0") + "0¶¶X", list("res-body=0") + "0¶¶[body][more]"},
		{"R14 icap-trailer", OK + "Allow: 204, trailers¶Trailer: X-T¶Encapsulated: res-body=0¶¶5¶hello¶0¶Y: 2¶¶X-T: 1¶¶" + OK + "¶",
			OK + "Allow: 204¶Encapsulated: res-body=0¶¶" + chunks + "[body]" + OK + "¶"},
		{"R14 only-trailers-allowed", OK + "Allow: trailers¶Encapsulated: res-body=0¶¶" + chunks + OK + "¶", OK + "Encapsulated: res-body=0¶¶" + chunks + "[body]" + OK + "¶"},
		{"R14 empty-icap-trailer", OK + "Allow: Trailers¶Trailer: X-T¶Encapsulated: res-body=0¶¶" + chunks + "¶" + OK + "¶",
			OK + "Encapsulated: res-body=0¶¶" + chunks + "[body]" + OK + "¶"},
		{"R14 two-large-trailers", OK + "Allow: trailers¶Trailer: X-T¶Encapsulated: res-body=0¶¶0¶" + large + large + OK + "¶",
			OK + "Encapsulated: res-body=0¶¶0¶¶[body]" + OK + "¶"},
		{"R14 bad-icap-trailer", OK + "Allow: trailers¶Trailer: X-T¶Encapsulated: res-body=0¶¶" + chunks + OK + "¶",
			OK + "Encapsulated: res-body=0¶¶" + chunks + "[502 trailer line without colon]"},
		{"R15 undeclared-trailer", list("res-body=0") + chunks + "X-T: 1¶¶", list("res-body=0") + chunks + "[body][502 status line is not ICAP/1.x NNN]"},
		{"R16 206", "ICAP/1.0 206 Partial Content¶Encapsulated: res-hdr=0, res-body=19¶¶" + S + "5¶hello¶0; use-original-body=5¶¶" + OK + "¶",
			"ICAP/1.0 206 Partial Content¶Encapsulated: res-hdr=0, res-body=19¶¶" + S + "5¶hello¶0; use-original-body=5¶¶[original 5]" + OK + "¶"},
		{"R16 206-spelling", list("res-body=0") + "0 ;Use-Original-Body = 007 ; x¶¶", list("res-body=0") + "0; use-original-body=7¶¶[original 7]"},
		{"R16 206-no-number", list("res-body=0") + "0; use-original-body¶¶", list("res-body=0") + "[502 bad use-original-body]"},
		{"R16 206-text", list("res-body=0") + "0; use-original-body=5x¶¶", list("res-body=0") + "[502 bad use-original-body]"},
		{"R16 206-quoted", list("res-body=0") + "0; use-original-body=\"5\"¶¶", list("res-body=0") + "[502 bad use-original-body]"},
		{"R16 206-overflow", list("res-body=0") + "0; use-original-body=1234567890123456789¶¶", list("res-body=0") + "[502 bad use-original-body]"},
		{"R16 206-twice", list("res-body=0") + "0; use-original-body=5; use-original-body=6¶¶", list("res-body=0") + "[502 bad use-original-body]"},
		{"R16 206-on-data", list("res-body=0") + "5; use-original-body=5¶hello¶0¶¶", list("res-body=0") + chunks + "[body]"},
		{"R16 ieof-in-response", list("res-body=0") + "0; ieof¶¶", list("res-body=0") + "0¶¶[body]"},
		{"R17 no-encapsulated-200", OK + "¶", OK + "¶"},
		{"R18 nullbody-zero-200", list("req-hdr=0, null-body=0"), list("null-body=0")},
		{"R19 order", list("res-body=47, res-hdr=28") + P + S + chunks, list("req-hdr=0, res-hdr=28, res-body=47") + "[corrected]" + P + S + chunks + "[body]"},
		{"R19 order-complete", list("res-body=19, res-hdr=0") + S + chunks, list("res-hdr=0, res-body=19") + S + chunks + "[body]"},
		{"R19 only-res-body", list("res-body=19") + S + chunks, list("res-hdr=0, res-body=19") + "[corrected]" + S + chunks + "[body]"},
		{"R19 only-req-body", list("req-body=28") + P + chunks, list("req-hdr=0, req-body=28") + "[corrected]" + P + chunks + "[body]"},
		{"R19 req-body-of-a-response", list("res-hdr=0, req-body=19") + S + chunks, list("res-hdr=0, res-body=19") + S + chunks + "[body]"},
		{"R19 req-body-of-a-response-behind-both", list("req-hdr=0, res-hdr=28, req-body=47") + P + S + chunks, list("req-hdr=0, res-hdr=28, res-body=47") + P + S + chunks + "[body]"},
		{"R19 inconsistent", list("res-body=20") + S + chunks, "[502 incomplete Encapsulated does not fit the blocks]"},
		{"R19 inconsistent-second", list("res-hdr=28, res-body=48") + P + S + chunks, "[502 incomplete Encapsulated does not fit the blocks]"},
		{"R19 only-null-body", list("null-body=19") + S, "[502 first offset in Encapsulated is not 0]"},
		{"R19 nothing-listed", list("req-hdr=0, opt-body=0"), "[502 offsets in Encapsulated do not increase]"},
		{"R20 too-short", list("res-hdr=0, res-body=17") + S + chunks, list("res-hdr=0, res-body=19") + "[corrected]" + S + chunks + "[body]"},
		{"R20 too-long", list("res-hdr=0, res-body=21") + S + chunks, list("res-hdr=0, res-body=19") + "[corrected]" + S + chunks + "[body]"},
		{"R20 first-not-0", list("req-hdr=2, req-body=30") + P + chunks, list("req-hdr=0, req-body=28") + "[corrected]" + P + chunks + "[body]"},
		{"R20 second-block", list("req-hdr=0, res-hdr=30, res-body=49") + P + S + chunks,
			list("req-hdr=0, res-hdr=28, res-body=47") + "[corrected]" + P + S + chunks + "[body]"},
		{"R20 bare-lf-head", list("res-hdr=0, res-body=19") + "HTTP/1.1 200 OK\n\n" + chunks,
			list("res-hdr=0, res-body=17") + "[corrected]HTTP/1.1 200 OK\n\n" + chunks + "[body]"},
		{"R21 truncated-head", "ICAP/1.0 200 OK¶ISTag", "[more]"},
		{"R21 truncated-blocks", list("res-hdr=0, res-body=19") + S[:9], "[more]"},
		{"R21 truncated-body", list("res-body=0") + "5¶hel", list("res-body=0") + "5¶hel[more]"},
		{"R24 head-unterminated", "ICAP/1.0 400 Bad request¶Service: x¶", "[more]"},
		{"R25 status-99", "ICAP/1.0 99 x¶¶", "[502 status is not a number from 100 to 599]"},
		{"R25 status-099", "ICAP/1.0 099 x¶¶", "[502 status is not a number from 100 to 599]"},
		{"R25 status-600", "ICAP/1.0 600 x¶¶", "[502 status is not a number from 100 to 599]"},
		{"R25 status-2000", "ICAP/1.0 2000¶¶", "[502 status is not a number from 100 to 599]"},
		{"R25 status-text", "ICAP/1.0 OK¶¶", "[502 status is not a number from 100 to 599]"},
		{"R25 no-status", "ICAP/1.0¶¶", "[502 status is not a number from 100 to 599]"},
		{"R25 http", "HTTP/1.1 200 OK¶¶", "[502 status line is not ICAP/1.x NNN]"},
		{"R25 icap-2", "ICAP/2.0 200 OK¶¶", "[502 status line is not ICAP/1.x NNN]"},
		{"R25 icap-1.1", "ICAP/1.1 200 OK¶¶", OK + "¶"},
		{"R26 no-reason", "ICAP/1.0 204¶¶", "ICAP/1.0 204 ¶¶"},
		{"R26 blanks", "ICAP/1.0  200  All right ¶¶", "ICAP/1.0 200 All right¶¶"},
		{"R27 istag-no-blank", OK + "ISTag:abc¶¶", OK + "ISTag: abc¶¶"},
		{"R28 fold", OK + "X-Violations-Found: 1¶\tf¶ \t¶\tT¶\t1¶\t2¶Service: x¶¶", OK + "X-Violations-Found: 1¶\tf¶\tT¶\t1¶\t2¶Service: x¶¶"},
		{"R28 fold-bare-lf", "ICAP/1.0 200 OK\nX-V: 1\n\tf \n\tT\n\n", OK + "X-V: 1¶\tf ¶\tT¶¶"},
		{"R28 fold-encapsulated", OK + "Encapsulated: res-hdr=0,¶ res-body=19¶¶", "[502 fold in Encapsulated]"},
		{"R28 fold-allow", OK + "Allow: 204,¶\ttrailers,¶ 206¶¶", OK + "Allow: 204, 206¶¶"},
		{"R28 fold-inside-allow-member", OK + "Allow: 204, a¶ b¶¶", OK + "Allow: 204¶¶"},
		{"R31 close", OK + "Connection: close, X-Hop¶X-Hop: 1¶Keep-Alive: 1¶¶", OK + "[close]¶"},
		{"R31 no-meaning", OK + "Transfer-Encoding: chunked¶Content-Length: 5¶Upgrade: x¶TE: y¶Proxy-Connection: z¶Trailer: T¶Host: h¶Preview: 5¶¶", OK + "Host: h¶Preview: 5¶¶"},
		{"R33 bare-lf-head", strings.ReplaceAll(list("res-hdr=0, res-body=19"), "¶", "\n") + S + chunks, list("res-hdr=0, res-body=19") + S + chunks + "[body]"},
		{"R34 huge-head", OK + strings.Repeat("X: "+strings.Repeat("x", 1000)+"¶", 100), "[502 head larger than 64 KiB]"},
		{"R35 options-body", list("opt-body=0") + chunks + OK + "¶", list("opt-body=0") + chunks + "[body]" + OK + "¶"},
		{"R38 inner-head-2-MB", list("res-hdr=0, res-body=19") + strings.Repeat("x", 2<<20), "[502 encapsulated heads larger than 1 MiB]"},
		{"R38 inner-head-200-KB", list("res-hdr=0, null-body=204804") + strings.Repeat("x", 200<<10) + "¶¶", list("res-hdr=0, null-body=204804") + strings.Repeat("x", 200<<10) + "¶¶"},
		{"R37 0x-chunk", list("res-body=0") + "0x5¶hello¶0¶¶", list("res-body=0") + "[502 junk behind the chunk size]"},
		{"R37 no-crlf", list("res-body=0") + "5¶helloX0¶¶", list("res-body=0") + "5¶hello[502 chunk data without CRLF behind it]"},
		{"R37 overflow", list("res-body=0") + "FFFFFFFFFFFFFFFF¶", list("res-body=0") + "[502 chunk size has more than 15 digits]"},
		{"M28 spaced-list", OK + "Encapsulated : null-body=0¶¶", "[502 bad field name]"},
		{"M28 list-spellings", OK + "encapsulated:RES-HDR = 0 ,,res-body= 19,¶¶" + S + chunks, list("res-hdr=0, res-body=19") + S + chunks + "[body]"},
		{"M21 dup-encapsulated", OK + "Encapsulated: null-body=0¶Encapsulated: null-body=0¶¶", "[502 two Encapsulated fields]"},
		{"M26 offset", list("res-hdr=0, res-body=-1"), "[502 bad offset in Encapsulated (digits, at most 1 MiB)]"},
		{"M29 disorder", list("res-hdr=0, req-hdr=19, res-body=46"), "[502 members of Encapsulated in wrong order or twice]"},
		{"M29 no-body", list("res-hdr=0"), "[502 Encapsulated without a body at its end]"},
		{"M29 empty", list(""), "[502 empty Encapsulated]"},
		{"M10 nul", OK + "X: \x00¶¶", "[502 control character in head]"},
		{"M13 no-colon", OK + "garbage¶¶", "[502 field without colon]"},
		{"M12 fold-without-field", OK + " X: 1¶¶", "[502 folded line without a field]"},
		{"405-allow", "ICAP/1.0 405 Method not allowed for service¶Allow: RESPMOD, trailers, OPTIONS¶¶", "ICAP/1.0 405 Method not allowed for service¶Allow: RESPMOD, OPTIONS¶¶"},
	}
}

func TestResponseFields(t *testing.T) {
	var r Response
	head := "ICAP/1.0 200 OK¶ISTag: \"Vontu12.0\"¶Allow: 204, trailers¶Trailer: X¶Connection: close¶Encapsulated: req-hdr=0, null-body=0¶¶"
	if err := r.Parse([]byte(toWire.Replace(head))); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%d %s|%v|%v|%v %d|%v|%s|%s|%d", r.Status, r.Reason, r.Close, r.HasEncapsulated, r.Encapsulated.Body(),
		r.Encapsulated.HeadLen(), r.Trailers, r.ISTag, r.Get("istag"), len(r.Fields))
	if want := `200 OK|true|true|null-body 0|true|"Vontu12.0"|"Vontu12.0"|5`; got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	if err := r.Parse([]byte("ICAP/1.0 204 x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if r.Close || r.HasEncapsulated || r.Encapsulated.HasBody() || r.Trailers || r.ISTag != nil || r.Get("ISTag") != nil || len(r.Fields) != 0 {
		t.Errorf("second head: %+v", r)
	}
	for _, head := range []string{"", "ICAP/1.0 200 OK", "ICAP/1.0 200 OK\r\nX: 1\r\n"} {
		if err := r.Parse([]byte(head)); err == nil || !strings.HasPrefix(describe(err), "502 ") {
			t.Errorf("%q: %v", head, err)
		}
	}
}
