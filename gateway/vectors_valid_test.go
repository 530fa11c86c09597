package gateway

import (
	"strings"
	"testing"

	"icapgate/gateway/vectors"
)

// exchange is a vector: what happens on both sides, byte by byte.
type exchange struct {
	name  string
	steps []step
}

// playAll plays vectors over both listeners. After each one, another request has to work on the same client connection, and to use
// the same server connection.
func playAll(t *testing.T, exchanges []exchange) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		for _, v := range exchanges {
			t.Run(v.name, func(t *testing.T) {
				p := newPlayer(t, g, f, listener)
				p.play(v.steps...)
				p.again(true)
			})
		}
	})
}

func TestValidRequests(t *testing.T) {
	const V01 = "OPTIONS icap://gw/r ICAP/1.0¶Host: gw¶¶"
	options := "ICAP/1.0 200 OK¶ISTag: \"s\"¶Methods: REQMOD¶Encapsulated: null-body=0¶¶"
	exchanges := []exchange{
		{"V01 options-bare", []step{sends(V01), arrives(forwarded(V01)), answers(options), gets(options)}},
		{"V02 options-null", []step{sends(OL + "Encapsulated: null-body=0¶¶"), arrives(forwarded(OL + "Encapsulated: null-body=0¶¶")),
			answers(options), gets(options)}},
		{"V03 options-opt-body", []step{sends(OL + "Encapsulated: opt-body=0¶¶3¶abc¶0¶¶"), arrives(forwarded(OL + "Encapsulated: null-body=0¶¶")),
			answers(options), gets(options)}},
		{"V03 options-opt-body-later", []step{sends(OL + "Encapsulated: opt-body=0¶¶"), arrives(forwarded(OL + "Encapsulated: null-body=0¶¶")),
			answers(options), gets(options), sends("3¶abc¶0¶¶")}},
	}
	for _, r := range vectors.Valid() {
		exchanges = append(exchanges, exchange{r.Name, simple(r.Stream, forwarded(r.Want))})
	}
	playAll(t, exchanges)
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
