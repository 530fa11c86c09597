package vectors

import (
	"fmt"
	"strings"
)

// Valid are requests that go on to a server, and what it gets.
func Valid() (requests []Request) {
	const bodyOnly = RL + "Encapsulated: req-body=0¶¶"
	inner := func(block string) string {
		return RL + fmt.Sprintf("Encapsulated: req-hdr=0, null-body=%d¶¶", len(Text(block))) + block
	}
	line := func(uri string) string { return "REQMOD " + uri + " ICAP/1.0¶Host: gw¶" + ReqNull }
	lineAt := func(uri string) string { return "REQMOD " + uri + " ICAP/1.0¶Host: SERVER¶" + ReqNull }
	ambiguous := "POST / HTTP/1.1¶Content-Length: 5¶Content-Length: 6¶Transfer-Encoding: chunked¶¶"

	add := func(name, stream, want string) {
		requests = append(requests, Request{Name: name, Stream: stream, Want: want})
	}
	add("V04 reqmod-null", V04, V04)
	add("V05 reqmod-body", V05, V05)
	add("V06 reqmod-body-only", bodyOnly+Chunks, bodyOnly+Chunks)
	add("V07 reqmod-null-only", RL+"Encapsulated: null-body=0¶¶", RL+"Encapsulated: null-body=0¶¶")
	add("V08 respmod-3", V08, V08)
	add("V09 respmod-no-reqhdr", PL+"Encapsulated: res-hdr=0, res-body=19¶¶"+S+"0¶¶", PL+"Encapsulated: res-hdr=0, res-body=19¶¶"+S+"0¶¶")
	add("V18 ieof-outside-preview", bodyOnly+"5¶hello¶0; ieof¶¶", bodyOnly+Chunks)
	add("V19 chunk-ext", bodyOnly+"5;a=b;c=\"d\"¶hello¶0¶¶", bodyOnly+Chunks)
	add("V20 chunk-http-trailer", bodyOnly+"5¶hello¶0¶X-T: 1¶¶", bodyOnly+Chunks)
	add("V21 leading-zeros", bodyOnly+"0000000005¶hello¶000¶¶", bodyOnly+Chunks)
	add("V22 hex-case", bodyOnly+"A¶0123456789¶a¶0123456789¶0¶¶", bodyOnly+"a¶0123456789¶a¶0123456789¶0¶¶")
	add("V23 scheme-icaps", line("icaps://gw:11344/r"), lineAt("icap://SERVER/r"))
	add("V23 scheme-case", line("ICAPS://GW:11344/r"), lineAt("icap://SERVER/r"))
	add("V23 userinfo", line("icap://user:secret@gw/r"), lineAt("icap://SERVER/r"))
	add("V24 query", line("icap://gw/r?allow204=on&x=%2F..%2F"), lineAt("icap://SERVER/r?allow204=on&x=%2F..%2F"))
	add("V24 query-without-path", line("icap://gw?a=/b?c"), lineAt("icap://SERVER/?a=/b?c"))
	add("V29 no-host", "REQMOD icap://gw/r ICAP/1.0¶"+ReqNull, V04)
	add("V29 other-host", "REQMOD icap://gw/r ICAP/1.0¶host:\tanother:1¶"+ReqNull, V04)
	add("V31 allow-trailers", RL+"Allow: 204, 206, trailers¶"+ReqNull, RL+"Allow: 204, 206¶"+ReqNull)
	add("V31 allow-only-trailers", RL+"Allow: trailers¶"+ReqNull, V04)
	add("V32 proxy-auth", RL+"Proxy-Authorization: Basic x¶Proxy-Authenticate: y¶Proxy-Connection: a¶TE: b¶Trailer: c¶Keep-Alive: d¶"+
		"Connection: foo¶foo: e¶"+ReqNull, RL+"Proxy-Authorization: Basic x¶Proxy-Authenticate: y¶"+ReqNull)
	add("V33 x-headers", RL+"X-ICAP-E2G: 1¶x-client-ip: 192.0.2.1¶X-Authenticated-User:V2luTlQ6Ly9E¶X-Empty:¶"+ReqNull,
		RL+"X-ICAP-E2G: 1¶x-client-ip: 192.0.2.1¶X-Authenticated-User: V2luTlQ6Ly9E¶X-Empty: ¶"+ReqNull)
	add("V34 leading-empty-lines", "¶¶"+V04, V04)
	add("V34 leading-empty-lines-max", "¶¶¶¶"+V05, V05)
	add("M14 te-in-icap", RL+"Transfer-Encoding: chunked¶Content-Length: 5¶"+ReqBody+Chunks, V05)
	add("M15 upgrade", RL+"Upgrade: TLS/1.0¶"+ReqNull, V04)
	add("M28 no-space-list", RL+"Encapsulated:req-hdr=0,null-body=27¶¶"+G, V04)
	add("M40 trailing-blanks", bodyOnly+"5 \t¶hello¶0  ¶¶", bodyOnly+Chunks)
	add("M48 smuggle-short-line", inner("GET / HTTP/1.1¶A:¶¶"), inner("GET / HTTP/1.1¶A:¶¶"))
	add("M49 uri-escapes", line("icap://gw/r%0d%0aX:1"), lineAt("icap://SERVER/r%0d%0aX:1"))
	add("M49 fold", RL+"X-Client-IP: 1¶ Encapsulated: req-body=0¶"+ReqNull, RL+"X-Client-IP: 1 Encapsulated: req-body=0¶"+ReqNull)
	add("M51 inner-ambiguous", inner(ambiguous), inner(ambiguous))
	add("M52 inner-empty-line", inner("¶"), inner("¶"))
	add("M52 inner-binary", inner("\x00\x01\r\r\n\xff\n\x7f¶¶"), inner("\x00\x01\r\r\n\xff\n\x7f¶¶"))
	add("M52 inner-200-KB", inner(strings.Repeat("x", 200<<10)+"¶¶"), inner(strings.Repeat("x", 200<<10)+"¶¶"))
	add("M53 use-original-body-in-request", bodyOnly+"5¶hello¶0; use-original-body=5¶¶", bodyOnly+Chunks)
	return requests
}
