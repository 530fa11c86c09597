package gateway

import (
	"errors"
	"os"
	"strings"
	"testing"
)

// patientExcept is YAML of two listeners with one short timeout.
func patientExcept(timeout string) string {
	return strings.ReplaceAll(`
listeners:
  - {name: icaps, address: "127.0.0.1:0", tls: {certificates: [{cert_file: "CERT"}]}, timeouts: {TIMEOUT}}
  - {name: icap, address: "127.0.0.1:0", timeouts: {TIMEOUT}}
`, "TIMEOUT", timeout)
}

// M17: a head has to be complete in its time, however it trickles in.
func TestHeadTimeout(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, patientExcept("head: 150ms")).ready()
	for _, part := range []string{"R", "REQMOD icap://gw/r ICAP/1.0¶", RL + "Encapsulated: req-hdr=0, req-body=28¶¶POST"} {
		overBoth(t, func(t *testing.T, listener int) {
			c := g.dialFor(t, listener)
			c.send(text(part))
			c.refusal(408, true)
			c.closed()

			p := newPlayer(t, g, f, listener) // behind an answer it is no different
			p.play(simple(v04+part, forwarded(v04))...)
			p.c.refusal(408, true)
			p.c.closed()
		})
	}
	eventually(t, "12 head timeouts counted", func() bool { return g.metric(`closes_total{side="client",reason="head_timeout"}`) == 12 })
}

// An idle connection ends with a plain FIN: a 408 could be taken for the answer to the next request. Empty lines between requests are no
// beginning of one.
func TestIdleTimeout(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, patientExcept("idle: 150ms, head: 100ms")).ready()
	overBoth(t, func(t *testing.T, listener int) {
		g.dialFor(t, listener).closed()
		p := newPlayer(t, g, f, listener)
		p.play(simple(v04, forwarded(v04))...)
		p.c.closed()

		p = newPlayer(t, g, f, listener)
		p.play(simple(v05+"¶", forwarded(v05))...)
		p.c.closed()
	})
	eventually(t, "6 idle timeouts counted", func() bool { return g.metric(`closes_total{side="client",reason="idle"}`) == 6 })
}

// M18: a body that stalls ends in a 408; the server's connection is closed, and what it got does not look complete.
func TestBodyTimeout(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, patientExcept("body: 150ms")).ready()
	for _, part := range []string{RL + reqBody, RL + reqBody + "5¶hel", RL + reqBody + "5¶hello¶0¶", RL + reqBody + "5¶hello¶"} {
		overBoth(t, func(t *testing.T, listener int) {
			p := newPlayer(t, g, f, listener)
			p.c.send(text(part))
			s := f.next(t)
			s.gets(RL + reqBody)
			p.c.refusal(408, true)
			p.c.closed()
			if got := s.rest(); strings.Contains(got, "0\r\n") {
				t.Errorf("the server got %q, which looks complete", got)
			}
		})
	}
	overBoth(t, func(t *testing.T, listener int) { // with an answer under way there is no place for a 408
		p := newPlayer(t, g, f, listener)
		p.c.send(text(RL + reqBody))
		s := f.next(t)
		s.gets(RL + reqBody)
		s.send(text(page))
		p.c.expect(text(page))
		if got := p.c.rest(); got != "" {
			t.Errorf("got %q behind the answer", got)
		}
		s.rest()
	})
}

// A client that is kept waiting is never late: not while the server thinks, and not while it has not asked for the rest of a preview.
func TestPatientWithWaitingClients(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, patientExcept("body: 50ms, head: 50ms, idle: 50ms")).ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		part := preview(4) + "4¶abcd¶0¶¶"
		p.c.send(text(part))
		s := f.next(t)
		s.gets(part)
		g.elapse(3 * 50)
		s.send(text(goOn))
		p.c.expect(text(goOn))
		p.c.send(text("2¶ef¶0¶¶"))
		s.expect(text("2¶ef¶0¶¶"))
		g.elapse(3 * 50)
		s.send(text(page))
		p.c.expect(text(page))
		s.release()
	})
}

// A server that does not answer in time: 502, and nobody else gets the request, because it may have been worked on.
func TestResponseTimeout(t *testing.T) {
	for _, v := range []struct{ name, request, answer string }{
		{"nothing", v05, ""},
		{"nothing-on-preview", preview(4) + "4¶abcd¶0¶¶", ""},
		{"R24 head-unterminated", v05, "ICAP/1.0 400 Bad request¶Service: x¶"},
		{"only-100", preview(4) + "4¶abcd¶0; ieof¶¶", goOn},
	} {
		t.Run(v.name, func(t *testing.T) {
			g := startPair(t, "    timeouts: {response: 150ms}\n", "")
			overBoth(t, func(t *testing.T, listener int) {
				c := g.dialFor(t, listener)
				c.send(text(v.request))
				s, other := g.next(t)
				s.gets(v.request)
				s.send(text(v.answer))
				c.refusal(502, false)
				if got := s.rest(); got != "" {
					t.Errorf("the server got %q", got)
				}
				other.idle(t)
				c.send(text(v04)) // the connection goes on
				s, _ = g.next(t)
				s.gets(v04)
				s.send(text(page))
				c.expect(text(page))
				s.release()
			})
		})
	}
}

// A server that stops in the middle of its answer: the client's connection is cut.
func TestResponseStalls(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet+"    timeouts: {response: 150ms}\n", "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.c.send(text(v05))
		s := f.next(t)
		s.gets(v05)
		s.send(text(okLine + echoList + P + "5¶hel"))
		p.c.expect(text(okLine + echoList + P + "5¶hel"))
		if got := p.c.rest(); got != "" {
			t.Errorf("got %q at the end", got)
		}
		s.rest()
	})
}

// A server that takes no bytes in time: 502 for a client that still sends, whose rest is read and dropped.
func TestSendTimeout(t *testing.T) {
	f := serveFake(t, smallBuffers(t, 64<<10), nil)
	g := startGateway(t, []string{f.address}, quiet+"    timeouts: {send: 300ms}\n", "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.c.send(text(RL + reqBody))
		s := f.next(t)
		s.gets(RL + reqBody)
		g.shrinkBuffers(t)
		wrote := make(chan error, 1)
		body := chunked(8<<20, 64<<10)
		go func() { _, err := p.c.Write([]byte(body)); wrote <- err }()
		p.c.refusal(502, false)
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		s.Close()
		p.again(false)
	})
}

// A client that does not take its answer in time is cut off, and the server is not left hanging.
func TestWriteTimeout(t *testing.T) {
	testClientGoneWhileAnswerPaused(t, patientExcept("body: 300ms"), func(*client) {}, "write_timeout")
}

// The same for a client that is reset meanwhile.
func TestClientGoneWhileAnswerPaused(t *testing.T) {
	testClientGoneWhileAnswerPaused(t, "", (*client).reset, "client_gone")
}

func testClientGoneWhileAnswerPaused(t *testing.T, listeners string, leave func(*client), reason string) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, listeners).ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.c.control(t, func(fd int) error { setBuffers(t, fd, 64<<10); return nil })
		p.c.send(text(v05))
		s := f.next(t)
		s.gets(v05)
		g.shrinkBuffers(t)
		wrote := make(chan error, 1)
		go func() { _, err := s.Write([]byte(text(okLine+echoList+P) + chunked(16<<20, 64<<10))); wrote <- err }()
		p.c.status(200)
		if reason == "client_gone" {
			g.stuck(t)
		}
		leave(p.c)
		eventually(t, "the end counted", func() bool {
			return g.metric(`closes_total{side="client",reason="`+reason+`"}`) == float64(listener+1)
		})
		if err := <-wrote; errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the server was left with its answer")
		}
		s.release()
		eventually(t, "the end of the attempt", func() bool { return g.metric(`server_in_flight{pool="dlp",server="`+f.address+`"}`) == 0 })
	})
}

// The TLS handshake has its time, too.
func TestHandshakeTimeout(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, patientExcept("handshake: 150ms")).ready()
	nc := dialPlain(t, g.address(0))
	if got := nc.rest(); got != "" {
		t.Errorf("got %q", got)
	}
	eventually(t, "the count", func() bool {
		return g.metric(`handshakes_total{listener="icaps",result="timeout",version="none"}`) == 1
	})
}
