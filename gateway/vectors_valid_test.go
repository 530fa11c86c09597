package gateway

import (
	"fmt"
	"strings"
	"testing"
)

// exchange is a vector: what happens on both sides, byte by byte.
type exchange struct {
	name  string
	steps []step
}

// playAll plays vectors over both listeners. After each one, another request has to work on the same client connection, and to use
// the same server connection.
func playAll(t *testing.T, vectors []exchange) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		for _, v := range vectors {
			t.Run(v.name, func(t *testing.T) {
				p := newPlayer(t, g, f, listener)
				p.play(v.steps...)
				p.again(true)
			})
		}
	})
}

func TestValidRequests(t *testing.T) {
	const (
		V01      = "OPTIONS icap://gw/r ICAP/1.0¶Host: gw¶¶"
		bodyOnly = RL + "Encapsulated: req-body=0¶¶"
	)
	options := "ICAP/1.0 200 OK¶ISTag: \"s\"¶Methods: REQMOD¶Encapsulated: null-body=0¶¶"
	inner := func(block string) string {
		return RL + fmt.Sprintf("Encapsulated: req-hdr=0, null-body=%d¶¶", len(text(block))) + block
	}
	line := func(uri string) string { return "REQMOD " + uri + " ICAP/1.0¶Host: gw¶" + reqNull }
	lineAt := func(uri string) string { return "REQMOD " + uri + " ICAP/1.0¶Host: SERVER¶" + reqNull }
	ambiguous := "POST / HTTP/1.1¶Content-Length: 5¶Content-Length: 6¶Transfer-Encoding: chunked¶¶"

	var vectors []exchange
	add := func(name, request, want string) {
		vectors = append(vectors, exchange{name, simple(request, forwarded(want))})
	}
	vectors = append(vectors,
		exchange{"V01 options-bare", []step{sends(V01), arrives(forwarded(V01)), answers(options), gets(options)}},
		exchange{"V02 options-null", []step{sends(OL + "Encapsulated: null-body=0¶¶"), arrives(forwarded(OL + "Encapsulated: null-body=0¶¶")),
			answers(options), gets(options)}},
		exchange{"V03 options-opt-body", []step{sends(OL + "Encapsulated: opt-body=0¶¶3¶abc¶0¶¶"), arrives(forwarded(OL + "Encapsulated: null-body=0¶¶")),
			answers(options), gets(options)}},
		exchange{"V03 options-opt-body-later", []step{sends(OL + "Encapsulated: opt-body=0¶¶"), arrives(forwarded(OL + "Encapsulated: null-body=0¶¶")),
			answers(options), gets(options), sends("3¶abc¶0¶¶")}},
	)
	add("V04 reqmod-null", v04, v04)
	add("V05 reqmod-body", v05, v05)
	add("V06 reqmod-body-only", bodyOnly+chunks, bodyOnly+chunks)
	add("V07 reqmod-null-only", RL+"Encapsulated: null-body=0¶¶", RL+"Encapsulated: null-body=0¶¶")
	add("V08 respmod-3", v08, v08)
	add("V09 respmod-no-reqhdr", PL+"Encapsulated: res-hdr=0, res-body=19¶¶"+S+"0¶¶", PL+"Encapsulated: res-hdr=0, res-body=19¶¶"+S+"0¶¶")
	add("V18 ieof-outside-preview", bodyOnly+"5¶hello¶0; ieof¶¶", bodyOnly+chunks)
	add("V19 chunk-ext", bodyOnly+"5;a=b;c=\"d\"¶hello¶0¶¶", bodyOnly+chunks)
	add("V20 chunk-http-trailer", bodyOnly+"5¶hello¶0¶X-T: 1¶¶", bodyOnly+chunks)
	add("V21 leading-zeros", bodyOnly+"0000000005¶hello¶000¶¶", bodyOnly+chunks)
	add("V22 hex-case", bodyOnly+"A¶0123456789¶a¶0123456789¶0¶¶", bodyOnly+"a¶0123456789¶a¶0123456789¶0¶¶")
	add("V23 scheme-icaps", line("icaps://gw:11344/r"), lineAt("icap://SERVER/r"))
	add("V23 scheme-case", line("ICAPS://GW:11344/r"), lineAt("icap://SERVER/r"))
	add("V23 userinfo", line("icap://user:secret@gw/r"), lineAt("icap://SERVER/r"))
	add("V24 query", line("icap://gw/r?allow204=on&x=%2F..%2F"), lineAt("icap://SERVER/r?allow204=on&x=%2F..%2F"))
	add("V24 query-without-path", line("icap://gw?a=/b?c"), lineAt("icap://SERVER/?a=/b?c"))
	add("V29 no-host", "REQMOD icap://gw/r ICAP/1.0¶"+reqNull, v04)
	add("V29 other-host", "REQMOD icap://gw/r ICAP/1.0¶host:\tanother:1¶"+reqNull, v04)
	add("V31 allow-trailers", RL+"Allow: 204, 206, trailers¶"+reqNull, RL+"Allow: 204, 206¶"+reqNull)
	add("V31 allow-only-trailers", RL+"Allow: trailers¶"+reqNull, v04)
	add("V32 proxy-auth", RL+"Proxy-Authorization: Basic x¶Proxy-Authenticate: y¶Proxy-Connection: a¶TE: b¶Trailer: c¶Keep-Alive: d¶"+
		"Connection: foo¶foo: e¶"+reqNull, RL+"Proxy-Authorization: Basic x¶Proxy-Authenticate: y¶"+reqNull)
	add("V33 x-headers", RL+"X-ICAP-E2G: 1¶x-client-ip: 192.0.2.1¶X-Authenticated-User:V2luTlQ6Ly9E¶X-Empty:¶"+reqNull,
		RL+"X-ICAP-E2G: 1¶x-client-ip: 192.0.2.1¶X-Authenticated-User: V2luTlQ6Ly9E¶X-Empty: ¶"+reqNull)
	add("V34 leading-empty-lines", "¶¶"+v04, v04)
	add("V34 leading-empty-lines-max", "¶¶¶¶"+v05, v05)
	add("M14 te-in-icap", RL+"Transfer-Encoding: chunked¶Content-Length: 5¶"+reqBody+chunks, v05)
	add("M15 upgrade", RL+"Upgrade: TLS/1.0¶"+reqNull, v04)
	add("M28 no-space-list", RL+"Encapsulated:req-hdr=0,null-body=27¶¶"+G, v04)
	add("M40 trailing-blanks", bodyOnly+"5 \t¶hello¶0  ¶¶", bodyOnly+chunks)
	add("M48 smuggle-short-line", inner("GET / HTTP/1.1¶A:¶¶"), inner("GET / HTTP/1.1¶A:¶¶"))
	add("M49 uri-escapes", line("icap://gw/r%0d%0aX:1"), lineAt("icap://SERVER/r%0d%0aX:1"))
	add("M49 fold", RL+"X-Client-IP: 1¶ Encapsulated: req-body=0¶"+reqNull, RL+"X-Client-IP: 1 Encapsulated: req-body=0¶"+reqNull)
	add("M51 inner-ambiguous", inner(ambiguous), inner(ambiguous))
	add("M52 inner-empty-line", inner("¶"), inner("¶"))
	add("M52 inner-binary", inner("\x00\x01\r\r\n\xff\n\x7f¶¶"), inner("\x00\x01\r\r\n\xff\n\x7f¶¶"))
	add("M52 inner-200-KB", inner(strings.Repeat("x", 200<<10)+"¶¶"), inner(strings.Repeat("x", 200<<10)+"¶¶"))
	add("M53 use-original-body-in-request", bodyOnly+"5¶hello¶0; use-original-body=5¶¶", bodyOnly+chunks)
	playAll(t, vectors)
}

// A chunk above max_chunk is split; nothing else changes its size.
func TestMaxChunk(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet+"    max_chunk: 1KiB\n", "").ready()
	k := strings.Repeat("x", 1<<10)
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		head := RL + "Encapsulated: req-body=0¶¶"
		p.play(sends(head+"400¶"+k+"¶c03¶"+k+k+k+"abc¶0¶¶"),
			arrives(forwarded(head)+"400¶"+k+"¶400¶"+k+"¶400¶"+k+"¶400¶"+k+"¶3¶abc¶0¶¶"), answers(page), gets(page))
		p.again(true)
	})
}

// preserve_host sends what the client has asked for.
func TestPreserveHost(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "services: [{path: \"*\", pool: dlp, preserve_host: true}]").ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.play(simple("REQMOD icaps://u@gw:11344/r ICAP/1.0¶Host: front¶"+reqNull, "REQMOD icap://gw:11344/r ICAP/1.0¶Host: front¶"+reqNull)...)
		p.play(simple("REQMOD icaps://gw:11344/r ICAP/1.0¶"+reqNull, "REQMOD icap://gw:11344/r ICAP/1.0¶Host: gw:11344¶"+reqNull)...)
	})
}

// V28: the client's Connection: close is for the client's connection only.
func TestConnectionClose(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	closing := strings.Replace(page, "Encapsulated", "Connection: close¶Encapsulated", 1)
	overBoth(t, func(t *testing.T, listener int) {
		first := newPlayer(t, g, f, listener)
		first.play(sends(strings.Replace(v05, "Host: gw¶", "Host: gw¶Connection: Close¶", 1)), arrives(forwarded(v05)), answers(page), gets(closing))
		first.c.closed()
		first.c.Close()
		eventually(t, "end of the session", func() bool { return g.Sessions() == 0 })
		for range g.loops { // one client on each loop
			second := newPlayer(t, g, f, listener)
			second.again(false)
			if second.s == first.s {
				return
			}
		}
		t.Fatal("the server's connection was not kept")
	})
}

// V25: pipelined requests are answered in order, and a server gets the second one only after the answer to the first.
func TestTwoInOneSegment(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.c.send(text(v04 + v05))
		first := f.next(t)
		first.expectStep(0, "server", strings.ReplaceAll(text(forwarded(v04)), "SERVER", f.address))
		g.settle()
		f.idle(t)
		if n := first.r.Buffered(); n > 0 {
			t.Fatalf("%d bytes behind a request that has not been answered", n)
		}
		first.send(text(page))
		first.release()
		p.play(gets(page), arrives(forwarded(v05)), answers(page), gets(page))
		if p.s != first {
			t.Error("the second request went out on another connection")
		}
		p.again(true)
	})
}

// M47: what follows the last chunk is the next request, with the same routing as the first.
func TestSmuggleAfterZero(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "services: [{path: /r, pool: dlp}]").ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.play(sends(v05+strings.Replace(v04, "/r ", "/admin ", 1)+v04), arrives(forwarded(v05)), answers(page), gets(page))
		p.c.status(404)
		p.play(arrives(forwarded(v04)), answers(page), gets(page))
	})
}
