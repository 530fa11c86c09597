package icap

import (
	"fmt"
	"strings"
	"testing"
)

func TestValidRequests(t *testing.T) { checkVectors(t, stream{}, validRequests()) }

func validRequests() []vector {
	chunks := "5¶hello¶0¶¶"
	v04 := RL + "Encapsulated: req-hdr=0, null-body=27¶¶" + G
	v05 := RL + "Encapsulated: req-hdr=0, req-body=28¶¶" + P + chunks
	preview := func(n int) string {
		return RL + fmt.Sprintf("Preview: %d¶", n) + "Encapsulated: req-hdr=0, req-body=28¶¶" + P
	}
	inner := func(block string) string {
		return RL + fmt.Sprintf("Encapsulated: req-hdr=0, null-body=%d¶¶", len(toWire.Replace(block))) + block
	}
	ambiguous := "POST / HTTP/1.1¶Content-Length: 5¶Content-Length: 6¶Transfer-Encoding: chunked¶¶"
	return []vector{
		{"V01 options-bare", "OPTIONS icap://gw/r ICAP/1.0¶Host: gw¶¶", "OPTIONS icap://gw/r ICAP/1.0¶Host: gw¶¶"},
		{"V02 options-null", "OPTIONS icap://gw/r ICAP/1.0¶Host: gw¶Encapsulated: null-body=0¶¶",
			"OPTIONS icap://gw/r ICAP/1.0¶Host: gw¶Encapsulated: null-body=0¶¶"},
		{"V03 options-opt-body", "OPTIONS icap://gw/r ICAP/1.0¶Host: gw¶Encapsulated: opt-body=0¶¶3¶abc¶0¶¶" + v04,
			"OPTIONS icap://gw/r ICAP/1.0¶Host: gw¶Encapsulated: opt-body=0¶¶3¶abc¶0¶¶[body]" + v04},
		{"V04 reqmod-null", v04, v04},
		{"V05 reqmod-body", v05, v05 + "[body]"},
		{"V06 reqmod-body-only", RL + "Encapsulated: req-body=0¶¶" + chunks, RL + "Encapsulated: req-body=0¶¶" + chunks + "[body]"},
		{"V07 reqmod-null-only", RL + "Encapsulated: null-body=0¶¶", RL + "Encapsulated: null-body=0¶¶"},
		{"V08 respmod-3", PL + "Encapsulated: req-hdr=0, res-hdr=27, res-body=46¶¶" + G + S + chunks,
			PL + "Encapsulated: req-hdr=0, res-hdr=27, res-body=46¶¶" + G + S + chunks + "[body]"},
		{"V09 respmod-no-reqhdr", PL + "Encapsulated: res-hdr=0, res-body=19¶¶" + S + "0¶¶",
			PL + "Encapsulated: res-hdr=0, res-body=19¶¶" + S + "0¶¶[body]"},
		{"V10 preview-100", preview(4) + "4¶abcd¶0¶¶2¶ef¶0¶¶", preview(4) + "4¶abcd¶0¶¶[preview]2¶ef¶0¶¶[body]"},
		{"V11 preview-ieof", preview(9) + "4¶abcd¶0; ieof¶¶", preview(9) + "4¶abcd¶0; ieof¶¶[ieof]"},
		{"V12 exact-ieof", preview(4) + "4¶abcd¶0; ieof¶¶", preview(4) + "4¶abcd¶0; ieof¶¶[ieof]"},
		{"V13 preview-exact-plain", preview(4) + "4¶abcd¶0¶¶0¶¶", preview(4) + "4¶abcd¶0¶¶[preview]0¶¶[body]"},
		{"V14 preview0-body", preview(0) + "0¶¶" + chunks, preview(0) + "0¶¶[preview]" + chunks + "[body]"},
		{"V15 preview0-ieof", preview(0) + "0; ieof¶¶", preview(0) + "0; ieof¶¶[ieof]"},
		{"V16 preview0-null", RL + "Preview: 0¶Encapsulated: req-hdr=0, null-body=27¶¶" + G,
			RL + "Preview: 0¶Encapsulated: req-hdr=0, null-body=27¶¶" + G},
		{"V17 ieof-no-blank", preview(9) + "4¶abcd¶0;ieof¶¶", preview(9) + "4¶abcd¶0; ieof¶¶[ieof]"},
		{"V17 ieof-blank-before", preview(9) + "4¶abcd¶0 ; ieof¶¶", preview(9) + "4¶abcd¶0; ieof¶¶[ieof]"},
		{"V17 ieof-two-blanks", preview(9) + "4¶abcd¶0;  ieof¶¶", preview(9) + "4¶abcd¶0; ieof¶¶[ieof]"},
		{"V17 ieof-among-others", preview(9) + "4¶abcd¶00;a=\"ieof\"; IEOF ;b=1¶X-T: 1¶¶", preview(9) + "4¶abcd¶0; ieof¶¶[ieof]"},
		{"V17 ieof-on-data", preview(9) + "4; ieof¶abcd¶0¶¶0¶¶", preview(9) + "4¶abcd¶0¶¶[preview]0¶¶[body]"},
		{"V18 ieof-outside-preview", RL + "Encapsulated: req-body=0¶¶5¶hello¶0; ieof¶¶" + v04,
			RL + "Encapsulated: req-body=0¶¶" + chunks + "[body]" + v04},
		{"V19 chunk-ext", RL + "Encapsulated: req-body=0¶¶5;a=b;c=\"d\"¶hello¶0¶¶", RL + "Encapsulated: req-body=0¶¶" + chunks + "[body]"},
		{"V20 chunk-http-trailer", RL + "Encapsulated: req-body=0¶¶5¶hello¶0¶X-T: 1¶¶" + v04,
			RL + "Encapsulated: req-body=0¶¶" + chunks + "[body]" + v04},
		{"V21 leading-zeros", RL + "Encapsulated: req-body=0¶¶0000000005¶hello¶000¶¶", RL + "Encapsulated: req-body=0¶¶" + chunks + "[body]"},
		{"V22 hex-case", RL + "Encapsulated: req-body=0¶¶A¶0123456789¶a¶0123456789¶0¶¶",
			RL + "Encapsulated: req-body=0¶¶a¶0123456789¶a¶0123456789¶0¶¶[body]"},
		{"V23 scheme-icaps", "REQMOD icaps://gw:11344/r ICAP/1.0¶Encapsulated: null-body=0¶¶",
			"REQMOD icap://gw:11344/r ICAP/1.0¶Encapsulated: null-body=0¶¶"},
		{"V24 query", "REQMOD icap://gw/r?allow204=on&x=%2F..%2F ICAP/1.0¶Encapsulated: null-body=0¶¶",
			"REQMOD icap://gw/r?allow204=on&x=%2F..%2F ICAP/1.0¶Encapsulated: null-body=0¶¶"},
		{"V25 two-in-one-segment", v04 + v05, v04 + v05 + "[body]"},
		{"V29 no-host", "REQMOD icap://gw/r ICAP/1.0¶Encapsulated: null-body=0¶¶", "REQMOD icap://gw/r ICAP/1.0¶Encapsulated: null-body=0¶¶"},
		{"V34 leading-empty-lines", "¶¶" + v04 + "¶¶¶¶" + v04, v04 + v04},
		{"V28 conn-close", RL + "Connection: close¶Encapsulated: null-body=0¶¶", RL + "Encapsulated: null-body=0¶[close]¶"},
		{"V31 allow-trailers", RL + "Allow: 204, 206, trailers¶Encapsulated: null-body=0¶¶", RL + "Allow: 204, 206¶Encapsulated: null-body=0¶¶"},
		{"V31 allow-lists", RL + "allow: x,206¶X: 1¶Allow:Trailers,204¶Encapsulated: null-body=0¶¶",
			RL + "allow: 204, 206¶X: 1¶Encapsulated: null-body=0¶¶"},
		{"V31 allow-206", RL + "Allow: 206¶Encapsulated: null-body=0¶¶", RL + "Allow: 206¶Encapsulated: null-body=0¶¶"},
		{"V31 allow-none", RL + "Allow: trailers¶Encapsulated: null-body=0¶¶", RL + "Encapsulated: null-body=0¶¶"},
		{"V32 proxy-auth", RL + "Proxy-Authorization: Basic x¶Proxy-Authenticate: y¶Proxy-Connection: a¶TE: b¶Trailer: c¶Keep-Alive: d¶" +
			"Connection: foo, Keep-Alive¶foo: e¶Foo: f¶Encapsulated: null-body=0¶¶",
			RL + "Proxy-Authorization: Basic x¶Proxy-Authenticate: y¶Encapsulated: null-body=0¶¶"},
		{"V32 connection-names-framing", RL + "Connection: host, preview, encapsulated, allow¶Preview: 0¶Allow: 204¶Encapsulated: null-body=0¶¶",
			RL + "Preview: 0¶Allow: 204¶Encapsulated: null-body=0¶¶"},
		{"V33 x-headers", RL + "X-ICAP-E2G: 1¶x-client-ip: 192.0.2.1¶X-Authenticated-User:V2luTlQ6Ly9E¶X-Empty:¶Encapsulated: null-body=0¶¶",
			RL + "X-ICAP-E2G: 1¶x-client-ip: 192.0.2.1¶X-Authenticated-User: V2luTlQ6Ly9E¶X-Empty: ¶Encapsulated: null-body=0¶¶"},

		{"M14 te-in-icap", RL + "Transfer-Encoding: chunked¶Content-Length: 5¶Encapsulated: null-body=0¶¶", RL + "Encapsulated: null-body=0¶¶"},
		{"M15 upgrade", RL + "Upgrade: TLS/1.0¶Encapsulated: null-body=0¶¶", RL + "Encapsulated: null-body=0¶¶"},
		{"M28 no-space-list", RL + "Encapsulated:req-hdr=0,null-body=27¶¶" + G, v04},
		{"M28 blanks-in-list", RL + "Encapsulated:\t Req-Hdr=0\t, \tnull-body=0027 \t¶¶" + G, v04},
		{"M33 preview-in-two-chunks", preview(4) + "2¶ab¶2¶cd¶0¶¶0¶¶", preview(4) + "2¶ab¶2¶cd¶0¶¶[preview]0¶¶[body]"},
		{"M34 preview-short-plain", preview(9) + "4¶abcd¶0¶¶0¶¶", preview(9) + "4¶abcd¶0¶¶[preview]0¶¶[body]"},
		{"M36 rest-before-100", preview(4) + "4¶abcd¶0¶¶2¶ef¶0¶¶" + v04, preview(4) + "4¶abcd¶0¶¶[preview]2¶ef¶0¶¶[body]" + v04},
		{"M39 4-GB-chunk", RL + "Encapsulated: req-body=0¶¶100000005¶hello", RL + "Encapsulated: req-body=0¶¶100000005¶hello[more]"},
		{"M40 trailing-blanks", RL + "Encapsulated: req-body=0¶¶5 \t¶hello¶0        ¶¶", RL + "Encapsulated: req-body=0¶¶" + chunks + "[body]"},
		{"M47 smuggle-after-zero", v05 + "REQMOD icap://gw/admin ICAP/1.0¶Encapsulated: null-body=0¶¶",
			v05 + "[body]REQMOD icap://gw/admin ICAP/1.0¶Encapsulated: null-body=0¶¶"},
		{"M48 smuggle-short-line", inner("GET / HTTP/1.1¶A:¶¶"), inner("GET / HTTP/1.1¶A:¶¶")},
		{"M49 uri-escapes", "REQMOD icap://gw/r%0d%0aX:1 ICAP/1.0¶Encapsulated: null-body=0¶¶",
			"REQMOD icap://gw/r%0d%0aX:1 ICAP/1.0¶Encapsulated: null-body=0¶¶"},
		{"M49 fold", RL + "X-Client-IP: 1¶ Encapsulated: req-body=0¶ \t¶\t2¶Encapsulated: null-body=0¶¶",
			RL + "X-Client-IP: 1 Encapsulated: req-body=0 2¶Encapsulated: null-body=0¶¶"},
		{"M51 inner-ambiguous", inner(ambiguous), inner(ambiguous)},
		{"M52 inner-only-empty-line", inner("¶"), inner("¶")},
		{"M52 inner-binary", inner("\x00\x01\r\r\n\xff\n\x7f¶¶"), inner("\x00\x01\r\r\n\xff\n\x7f¶¶")},
		{"M52 inner-200-KB", inner(strings.Repeat("x", 200<<10) + "¶¶"), inner(strings.Repeat("x", 200<<10) + "¶¶")},
		{"M53 use-original-body-in-request", RL + "Encapsulated: req-body=0¶¶5¶hello¶0; use-original-body=5¶¶",
			RL + "Encapsulated: req-body=0¶¶" + chunks + "[body]"},
		{"M53 use-original-body-in-preview", preview(9) + "5¶hello¶0; use-original-body=5¶¶0¶¶", preview(9) + "5¶hello¶0¶¶[preview]0¶¶[body]"},
		{"M04 unknown-method", "FOO icap://gw/r ICAP/1.0¶¶", "FOO icap://gw/r ICAP/1.0¶¶"},
		{"M04 unknown-method-with-body", "LOG icap://gw/r ICAP/1.0¶Encapsulated: req-hdr=0, res-hdr=27, opt-body=46¶¶" + G + S + chunks,
			"LOG icap://gw/r ICAP/1.0¶Encapsulated: req-hdr=0, res-hdr=27, opt-body=46¶¶" + G + S + chunks + "[body]"},
		{"M03 lower-method", "reqmod icap://gw/r ICAP/1.0¶¶", "reqmod icap://gw/r ICAP/1.0¶¶"},
		{"uri-userinfo", "OPTIONS ICAP://a:b@x@gw:1/ ICAP/1.0¶¶", "OPTIONS icap://gw:1/ ICAP/1.0¶¶"},
		{"uri-ipv6", "OPTIONS icap://[2001:db8::1%25eth0]:65535/r ICAP/1.0¶¶", "OPTIONS icap://[2001:db8::1%25eth0]:65535/r ICAP/1.0¶¶"},
		{"uri-no-path", "OPTIONS icap://gw:1344 ICAP/1.0¶¶", "OPTIONS icap://gw:1344/ ICAP/1.0¶¶"},
		{"uri-no-path-but-query", "OPTIONS icap://gw?a=/b?c ICAP/1.0¶¶", "OPTIONS icap://gw/?a=/b?c ICAP/1.0¶¶"},
	}
}

// fault is a vector that ends in a fault behind what could be sent on.
func fault(name, in, sent, message string) vector {
	return vector{name, in, sent + "[" + message + "]"}
}

func TestMalformedHeads(t *testing.T) { checkVectors(t, stream{}, malformedHeads()) }

func malformedHeads() []vector {
	line := func(l string) string { return l + "¶Encapsulated: null-body=0¶¶" }
	fields := func(f string) string { return RL + f + "Encapsulated: null-body=0¶¶" }
	const (
		badLine    = "400 request line is not METHOD URI ICAP/1.0"
		noVersion  = "400 request line without ICAP version"
		otherIcap  = "505 ICAP version other than 1.0"
		control    = "400 control character in head"
		badName    = "400 bad field name"
		badPort    = "400 bad port in the request URI"
		badHost    = "400 bad host in the request URI"
		noHost     = "400 request URI without host"
		badScheme  = "400 request URI is neither icap:// nor icaps://"
		badFold    = "400 fold in a field of the framing"
		badPreview = "400 bad Preview (digits, at most 65536)"
	)
	return []vector{
		fault("M01 http-on-port", "GET / HTTP/1.1¶Host: a¶¶", "", noVersion),
		fault("M02 tls-on-plain", "\x16\x03\x01", "", control),
		fault("M05 1.1", line("REQMOD icap://gw/r ICAP/1.1"), "", otherIcap),
		fault("M05 2.0", line("REQMOD icap://gw/r ICAP/2.0"), "", otherIcap),
		fault("M05 1", line("REQMOD icap://gw/r ICAP/1"), "", otherIcap),
		fault("M05 01.0", line("REQMOD icap://gw/r ICAP/01.0"), "", otherIcap),
		fault("M05 HTTP", line("REQMOD icap://gw/r HTTP/1.0"), "", noVersion),
		fault("M06 origin-form", line("REQMOD /r ICAP/1.0"), "", badScheme),
		fault("M06 asterisk", line("REQMOD * ICAP/1.0"), "", badScheme),
		fault("M06 no-host", line("REQMOD icap:///r ICAP/1.0"), "", noHost),
		fault("M06 only-userinfo", line("REQMOD icap://u@/r ICAP/1.0"), "", noHost),
		fault("M06 no-authority", line("REQMOD icap:/r ICAP/1.0"), "", "400 request URI without authority"),
		fault("M06 http", line("REQMOD http://gw/r ICAP/1.0"), "", badScheme),
		fault("M06 port-too-big", line("REQMOD icap://gw:99999/r ICAP/1.0"), "", badPort),
		fault("M06 port-0", line("REQMOD icap://gw:0/r ICAP/1.0"), "", badPort),
		fault("M06 port-empty", line("REQMOD icap://gw:/r ICAP/1.0"), "", badPort),
		fault("M06 port-text", line("REQMOD icap://gw:icap/r ICAP/1.0"), "", badPort),
		fault("M06 port-signed", line("REQMOD icap://gw:+1/r ICAP/1.0"), "", badPort),
		fault("M06 host-chars", line("REQMOD icap://g\"w/r ICAP/1.0"), "", badHost),
		fault("M06 fragment", line("REQMOD icap://gw#r ICAP/1.0"), "", badHost),
		fault("M06 ipv6-open", line("REQMOD icap://[::1/r ICAP/1.0"), "", "400 bad IPv6 address in the request URI"),
		fault("M06 ipv6-junk", line("REQMOD icap://[::1]1344/r ICAP/1.0"), "", badPort),
		fault("M06 blank-in-path", line("REQMOD icap://gw/a b ICAP/1.0"), "", "400 blank or control character in the request URI"),
		fault("M06 long", line("REQMOD icap://gw/"+strings.Repeat("a", 8<<10)+" ICAP/1.0"), "", "400 request URI longer than 8 KiB"),
		fault("M07 two-blanks-first", line("REQMOD  icap://gw/r ICAP/1.0"), "", "400 blank or control character in the request URI"),
		fault("M07 two-blanks-second", line("REQMOD icap://gw/r  ICAP/1.0"), "", "400 blank or control character in the request URI"),
		fault("M07 tab", line("REQMOD\ticap://gw/r ICAP/1.0"), "", badLine),
		fault("M07 tab-second", line("REQMOD icap://gw/r\tICAP/1.0"), "", badLine),
		fault("M07 trailing-blank", line("REQMOD icap://gw/r ICAP/1.0 "), "", "400 blank or control character in the request URI"),
		fault("M07 leading-blank", line(" REQMOD icap://gw/r ICAP/1.0"), "", "400 bad method name"),
		fault("M07 four-words", line("REQMOD icap://gw/r x ICAP/1.0"), "", "400 blank or control character in the request URI"),
		fault("M07 method-chars", line("REQ(MOD icap://gw/r ICAP/1.0"), "", "400 bad method name"),
		fault("M08 bare-lf", strings.ReplaceAll(RL, "¶", "\n"), "", "400 bare LF in head"),
		fault("M08 bare-lf-before", "\n"+RL, "", "400 bare LF in head"),
		fault("M09 bare-cr", fields("X: a\rb¶"), "", "400 bare CR in head"),
		fault("M09 two-cr", fields("X: a\r¶"), "", "400 bare CR in head"),
		fault("M10 nul-in-value", fields("X: a\x00b¶"), "", control),
		fault("M10 nul-in-name", fields("X\x00: b¶"), "", control),
		fault("M10 nul-in-line", line("REQMOD icap://gw/\x00 ICAP/1.0"), "", control),
		fault("M10 delete", fields("X: \x7f¶"), "", control),
		fault("M11 space-colon", RL+"Encapsulated : null-body=0¶¶", "", badName),
		fault("M11 tab-colon", fields("X\t: 1¶"), "", badName),
		fault("M12 fold-encapsulated", RL+"Encapsulated: req-hdr=0,¶ null-body=27¶¶"+G, "", badFold),
		fault("M12 fold-preview", fields("Preview:¶ 4¶"), "", badFold),
		fault("M12 fold-host", "REQMOD icap://gw/r ICAP/1.0¶Host: a¶ b¶Encapsulated: null-body=0¶¶", "", badFold),
		fault("M12 fold-connection", fields("Connection: a,¶ close¶"), "", badFold),
		fault("M12 fold-allow", fields("Allow: 204,¶\t206¶"), "", badFold),
		fault("M12 fold-blanks-only", fields("Preview: 4¶ ¶"), "", badFold),
		fault("M12 fold-without-field", "REQMOD icap://gw/r ICAP/1.0¶ X: 1¶¶", "", "400 folded line without a field"),
		fault("M13 no-colon", fields("garbage¶"), "", "400 field without colon"),
		fault("M13 empty-name", fields(": x¶"), "", badName),
		fault("M13 name-chars", fields("X(Y): x¶"), "", badName),
		fault("M16 head-65-KB", fields(strings.Repeat("X: "+strings.Repeat("x", 10<<10)+"¶", 7)), "", "400 head larger than 64 KiB"),
		fault("M16 line-17-KB", fields("X: "+strings.Repeat("x", 17<<10)), "", "400 head line longer than 16 KiB"),
		fault("M16 300-fields", fields(strings.Repeat("X: 1¶", 300)), "", "400 more than 200 fields"),
		fault("M16 connection-names", fields("Connection: "+strings.Repeat("x,", 65)+"¶"), "", "400 more than 64 names in Connection"),
		fault("M21 dup-encapsulated", fields("Encapsulated: null-body=0¶"), "", "400 two Encapsulated fields"),
		fault("M50 dup-host", fields("Host: other¶"), "", "400 two different Host fields"),
		fault("M31 negative", fields("Preview: -1¶"), "", badPreview),
		fault("M31 exponent", fields("Preview: 1e3¶"), "", badPreview),
		fault("M31 empty", fields("Preview:  ¶"), "", badPreview),
		fault("M31 11-digits", fields("Preview: 99999999999¶"), "", badPreview),
		fault("M31 list", fields("Preview: 4,4¶"), "", badPreview),
		fault("M31 two-lines", fields("Preview: 4¶Preview: 4¶"), "", "400 two Preview fields"),
		fault("M32 preview-too-big", fields("Preview: 1073741824¶"), "", badPreview),
		fault("M32 preview-just-too-big", fields("Preview: 65537¶"), "", badPreview),
		fault("M35 preview-null-with-chunk", RL+"Preview: 0¶Encapsulated: req-hdr=0, null-body=27¶¶"+G+"0¶¶",
			RL+"Preview: 0¶Encapsulated: req-hdr=0, null-body=27¶¶"+G, badLine),
		fault("V34 five-empty-lines", "¶¶¶¶¶"+RL, "", "400 too many empty lines before the head"),
	}
}

func TestMalformedLists(t *testing.T) { checkVectors(t, stream{}, malformedLists()) }

func malformedLists() []vector {
	const (
		badOffset = "400 bad offset in Encapsulated (digits, at most 1 MiB)"
		noOffset  = "400 member of Encapsulated without offset"
		unknown   = "400 unknown member of Encapsulated"
		misfit    = "400 Encapsulated does not fit the method"
		falling   = "400 offsets in Encapsulated do not increase"
		disorder  = "400 members of Encapsulated in wrong order or twice"
		noBody    = "400 Encapsulated without a body at its end"
		tooMany   = "400 too many members in Encapsulated"
	)
	var vectors []vector
	for _, v := range []struct{ name, list, message string }{
		{"M22 first-not-0", "req-hdr=5, null-body=32", "400 first offset in Encapsulated is not 0"},
		{"M23 decreasing", "req-hdr=0, res-hdr=50, res-body=27", falling},
		{"M23 equal", "req-hdr=0, req-body=0", falling},
		{"M26 negative", "req-hdr=0, null-body=-1", badOffset},
		{"M26 plus", "req-hdr=0, null-body=+27", badOffset},
		{"M26 hex", "req-hdr=0, null-body=0x1b", badOffset},
		{"M26 junk", "req-hdr=0, null-body=27abc", badOffset},
		{"M26 blank-inside", "req-hdr=0, null-body=2 7", badOffset},
		{"M26 33-bit", "req-hdr=0, null-body=4294967323", badOffset},
		{"M26 30-digits", "req-hdr=0, null-body=" + strings.Repeat("9", 30), badOffset},
		{"M26 30-zeros", "null-body=" + strings.Repeat("0", 30), badOffset},
		{"M26 empty", "req-hdr=0, null-body=", badOffset},
		{"M26 above-1-MiB", "req-hdr=0, null-body=1048577", badOffset},
		{"M27 colon", "req-hdr:0, null-body=27", noOffset},
		{"M27 semicolon", "req-hdr=0; null-body=27", badOffset},
		{"M27 empty-member", "req-hdr=0,, null-body=27", noOffset},
		{"M27 empty-last", "req-hdr=0, null-body=27,", noOffset},
		{"M27 blanks-around-equals", "req-hdr = 0, null-body=27", unknown},
		{"M27 empty-list", "", noOffset},
		{"M29 two-bodies", "req-body=0, null-body=0", falling},
		{"M29 two-bodies-apart", "req-body=0, null-body=9", disorder},
		{"M29 header-after-body", "req-body=0, req-hdr=9", noBody},
		{"M29 header-after-body-before-body", "req-body=0, req-hdr=9, null-body=20", disorder},
		{"M29 dup-entry", "req-hdr=0, req-hdr=9, req-body=20", disorder},
		{"M29 no-body", "req-hdr=0", noBody},
		{"M29 four", "req-hdr=0, res-hdr=9, res-body=20, null-body=30", tooMany},
		{"M30 res-body", "req-hdr=0, res-body=27", misfit},
		{"M30 res-hdr", "req-hdr=0, res-hdr=27, req-body=46", misfit},
		{"M30 opt-body", "opt-body=0", misfit},
		{"M30 unknown", "foo-hdr=0, req-body=27", unknown},
	} {
		vectors = append(vectors, fault(v.name, RL+"Encapsulated: "+v.list+"¶¶"+G, "", v.message))
	}
	return append(vectors,
		fault("M20 no-encapsulated", RL+"¶", "", "400 request without Encapsulated"),
		fault("M20 respmod", PL+"¶", "", "400 request without Encapsulated"),
		fault("M23 res-hdr-first", PL+"Encapsulated: res-hdr=0, req-hdr=19, res-body=46¶¶", "", disorder),
		fault("M30 respmod-req-body", PL+"Encapsulated: req-hdr=0, req-body=28¶¶", "", misfit),
		fault("M30 options-req-body", "OPTIONS icap://gw/r ICAP/1.0¶Encapsulated: req-body=0¶¶", "", misfit),
	)
}

func TestMalformedBlocks(t *testing.T) { checkVectors(t, stream{}, malformedBlocks()) }

func malformedBlocks() []vector {
	const (
		notAtOffset = "400 encapsulated head does not end at its offset"
		early       = "400 encapsulated head ends before its offset"
		bareLF      = "400 encapsulated head ends with a bare LF"
	)
	list := func(l string) string { return RL + "Encapsulated: " + l + "¶¶" }
	return []vector{
		fault("M24 offset-short", list("req-hdr=0, req-body=20")+P+"0¶¶", "", notAtOffset),
		fault("M24 offset-one-short", list("req-hdr=0, req-body=27")+P+"0¶¶", "", notAtOffset),
		fault("M24 as-early-as-possible", list("req-hdr=0, req-body=20")+P[:20], "", notAtOffset),
		fault("M24 at-a-line-end", list("req-hdr=0, req-body=17")+"POST / HTTP/1.1¶", "", notAtOffset),
		fault("M24 second-block", PL+"Encapsulated: req-hdr=0, res-hdr=27, res-body=45¶¶"+G+S+"0¶¶", "", notAtOffset),
		fault("M25 offset-long", list("req-hdr=0, req-body=40")+P+"5¶hello¶0¶¶", "", early),
		fault("M25 as-early-as-possible", list("req-hdr=0, req-body=40")+P, "", early),
		fault("M25 bare-lf-empty-line", list("req-hdr=0, req-body=40")+"GET / HTTP/1.1\n\n", "", early),
		fault("M25 mixed-empty-line", list("req-hdr=0, req-body=40")+"GET / HTTP/1.1\n¶", "", early),
		fault("M25 first-line-empty", list("req-hdr=0, req-body=40")+"¶", "", early),
		fault("M25 bare-lf-end", list("req-hdr=0, req-body=16")+"GET / HTTP/1.1\n\n0¶¶", "", bareLF),
		fault("M25 mixed-end", list("req-hdr=0, req-body=17")+"GET / HTTP/1.1\n¶0¶¶", "", bareLF),
		fault("M25 bare-lf-only", list("req-hdr=0, req-body=1")+"\n0¶¶", "", bareLF),
	}
}

func TestLenientLF(t *testing.T) {
	lf := func(s string) string { return strings.ReplaceAll(s, "¶", "\n") }
	checkVectors(t, stream{lenientLF: true}, []vector{
		{"M08 bare-lf-allowed", lf(RL+"X-A:b¶ c¶Encapsulated: req-hdr=0, req-body=28¶¶") + P + "5¶hello¶0¶¶",
			RL + "X-A: b c¶Encapsulated: req-hdr=0, req-body=28¶¶" + P + "5¶hello¶0¶¶[body]"},
		{"M08 mixed", "\n¶" + lf(RL) + "Encapsulated: null-body=0¶\n", RL + "Encapsulated: null-body=0¶¶"},
		{"M09 bare-cr", "REQMOD icap://gw/r ICAP/1.0\rX", "[400 bare CR in head]"},
	})
}

func TestRequestFields(t *testing.T) {
	head := toWire.Replace("RESPMOD icaps://user:secret@GW:11344/a%20b?q=1 ICAP/1.0¶HOST:  gw:1 ¶Preview: 10¶Allow: 204¶" +
		"X-A: 1¶ ¶x-a: 2¶Connection: Close¶Encapsulated: res-hdr=0, res-body=19¶¶")
	var r Request
	if err := r.Parse([]byte(head)); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%v %s|%s|%s|%s|%s|%d|%d|%v|%d|%v|%v|%d|%s|%q", r.Method, r.MethodName, r.Authority, r.Target, r.Path, r.Host,
		r.Preview, r.Allow, r.Close, r.Encapsulated.HeadLen(), r.Encapsulated.Body(), r.Encapsulated.HasBody(), len(r.Fields),
		r.Get("X-a"), r.Get("absent"))
	want := `RESPMOD RESPMOD|GW:11344|/a%20b?q=1|/a%20b|gw:1|10|1|true|19|res-body|true|7|1|""`
	if got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	if err := r.Parse([]byte("OPTIONS icap://gw ICAP/1.0\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if r.Method != MethodOptions || string(r.Path) != "/" || r.Preview != -1 || r.Close || r.Allow != 0 || r.Host != nil ||
		len(r.Fields) != 0 || r.Encapsulated.HasBody() || r.Encapsulated.Body() != NoSection || r.Encapsulated.HeadLen() != 0 {
		t.Errorf("second head: %+v", r)
	}
}

// A head that no scanner has seen may be anything, but Parse must not be fooled into accepting half of it.
func TestParseUnscannedHead(t *testing.T) {
	for _, head := range []string{"", "OPTIONS icap://gw ICAP/1.0", "OPTIONS icap://gw ICAP/1.0\r\n", "OPTIONS icap://gw ICAP/1.0\r\nX: 1\r\n", "OPTIONS icap://gw ICAP/1.0\r\nX: 1\r\n fold"} {
		var r Request
		if err := r.Parse([]byte(head)); err == nil || err.Error() != "icap: head without an empty line" {
			t.Errorf("%q: %v", head, err)
		}
	}
}
