package gateway

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// patientExcept is YAML of two listeners with these timeouts.
func patientExcept(timeout string) string {
	return strings.ReplaceAll(`
listeners:
  - {name: icaps, address: "127.0.0.1:0", tls: {certificates: [{cert_file: "CERT"}]}, timeouts: {TIMEOUT}}
  - {name: icap, address: "127.0.0.1:0", timeouts: {TIMEOUT}}
`, "TIMEOUT", timeout)
}

// forAnHour is YAML of pool timeouts that are not what a test is about.
const forAnHour = "    timeouts: {connect: 1h, send: 1h, response: 1h}\n    queue: {timeout: 1h}\n"

// M17: a head has 10 s from its first byte to its end, however it trickles in.
func TestHeadTimeout(t *testing.T) {
	for _, part := range []string{"R", "REQMOD icap://gw/r ICAP/1.0¶", RL + "Encapsulated: req-hdr=0, req-body=28¶¶POST"} {
		overBoth(t, func(t *testing.T, listener int) {
			v := startVirtual(t, nil, "", "")
			c := v.connect(listener)
			v.quiet(4 * time.Minute) // idle until then
			v.say(c, part[:1])
			v.quiet(5 * time.Second)
			v.say(c, part[1:])
			v.due(5*time.Second, "reject timeout")
			c.refusal(408, true)
			c.closed()
			v.charged("client head_timeout")
			v.logged("408 timeout")
		})
	}
	overBoth(t, func(t *testing.T, listener int) { // behind an answer it is no different
		v := startVirtual(t, nil, "", "")
		p := v.play(listener, simple(v04+"R", forwarded(v04))...)
		v.due(10*time.Second, "reject timeout")
		p.c.refusal(408, true)
		p.c.closed()
		v.charged("client head_timeout")
		v.logged("200 done", "408 timeout")
	})
}

// An idle connection ends after 5 min with a plain FIN: a 408 could be taken for the answer to the next request. Empty lines between
// requests are no beginning of one.
func TestIdleTimeout(t *testing.T) {
	for _, before := range [][]step{nil, simple(v04, forwarded(v04)), {sends("¶")}, simple(v05+"¶", forwarded(v05))} {
		overBoth(t, func(t *testing.T, listener int) {
			v := startVirtual(t, nil, "    idle: {timeout: 1h}\n", "")
			c := v.connect(listener)
			v.quiet(4 * time.Minute)
			p := &player{v.t, v.testGateway, v.f, c, nil, whole, whole}
			p.play(before...)
			left := 5 * time.Minute
			if len(before) < 2 { // no request in between
				left = time.Minute
			}
			v.due(left)
			c.closed()
			v.charged("client idle")
		})
	}
}

// M18: a body that stalls for 60 s ends in a 408; the server's connection is closed, and what it got does not look complete.
func TestBodyTimeout(t *testing.T) {
	for _, part := range []string{RL + reqBody, RL + reqBody + "5¶hel", RL + reqBody + "5¶hello¶0¶", RL + reqBody + "5¶hello¶"} {
		overBoth(t, func(t *testing.T, listener int) {
			v := startVirtual(t, nil, "", "")
			p := v.play(listener)
			v.say(p.c, RL+reqBody)
			s := v.f.next(t)
			s.gets(RL + reqBody)
			for _, b := range strings.TrimPrefix(text(part), text(RL+reqBody)) { // each byte is a sign of life
				v.quiet(59 * time.Second)
				v.say(p.c, string(b))
			}
			v.due(60*time.Second, "reject timeout", "server client_aborted")
			p.c.refusal(408, true)
			p.c.closed()
			v.charged("client body_timeout")
			if got := s.rest(); strings.Contains(got, "0\r\n\r\n") {
				t.Errorf("the server got %q, which looks complete", got)
			}
			v.logged("408 timeout")
		})
	}
	overBoth(t, func(t *testing.T, listener int) { // with an answer under way there is no place for a 408
		v := startVirtual(t, nil, "", "")
		p := v.play(listener)
		v.say(p.c, RL+reqBody)
		s := v.f.next(t)
		s.gets(RL + reqBody)
		s.send(text(page))
		p.c.expect(text(page))
		v.due(60*time.Second, "server client_aborted")
		p.c.closed()
		v.charged("client body_timeout")
		s.rest()
		v.logged("200 timeout")
	})
}

// A client that is kept waiting is never late. When the gateway wants its bytes again, it has its time again.
func TestPatientWithWaitingClients(t *testing.T) {
	for _, w := range []struct {
		name string
		wait func(v *virtual, p *player) (s *serverSide)
	}{
		{"server-thinks", func(v *virtual, p *player) *serverSide {
			v.say(p.c, v05)
			s := v.f.next(v.t)
			s.gets(v05)
			v.quiet(10 * time.Minute)
			return s
		}},
		{"no-100-yet", func(v *virtual, p *player) *serverSide {
			part := preview(4) + "4¶abcd¶0¶¶"
			v.say(p.c, part)
			s := v.f.next(v.t)
			s.gets(part)
			v.quiet(10 * time.Minute)
			s.send(text(goOn))
			p.c.expect(text(goOn))
			v.quiet(59 * time.Second)
			v.say(p.c, "2¶ef¶0¶¶")
			s.expect(text("2¶ef¶0¶¶"))
			return s
		}},
		{"queued", func(v *virtual, p *player) *serverSide {
			other := v.connect(1)
			v.say(other, v05)
			s := v.f.next(v.t)
			s.gets(v05)
			v.say(p.c, RL+reqBody+"5¶hel")
			v.quiet(10 * time.Minute)
			s.send(text(page))
			s.release()
			other.expect(text(page))
			s = v.f.next(v.t)
			s.expect(strings.ReplaceAll(text(forwarded(RL+reqBody+"5¶hel")), "SERVER", v.f.address))
			v.quiet(59 * time.Second)
			v.say(p.c, "lo¶0¶¶")
			s.expect(text("lo¶0¶¶"))
			return s
		}},
		{"server-does-not-read", func(v *virtual, p *player) *serverSide {
			v.say(p.c, RL+reqBody)
			s := v.f.next(v.t)
			s.gets(RL + reqBody)
			body := chunked(8<<20, 64<<10)
			go func() { _, _ = io.WriteString(p.c, body[:len(body)-5]) }()
			v.full(theServer)
			v.quiet(10 * time.Minute)
			if err := s.matches(body[:len(body)-5]); err != nil {
				v.t.Fatal(err)
			}
			v.quiet(59 * time.Second)
			v.say(p.c, "0¶¶")
			s.expect(text("0¶¶"))
			return s
		}},
	} {
		t.Run(w.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				f := serveFake(t, smallBuffers(t, 64<<10), nil)
				f.says("", optionsAnswer+"Max-Connections: 1¶")
				v := startVirtual(t, f, "    reserve: 0\n"+forAnHour, "")
				p := v.play(listener)
				s := w.wait(v, p)
				s.send(text(page))
				p.c.expect(text(page))
				p.s = s
				s.release()
				v.charged()
				p.again(true)
			})
		})
	}
}

// In the middle of a body, a client that was kept waiting has its whole time from the moment when its bytes are wanted again.
func TestBodyTimeoutAfterWait(t *testing.T) {
	overBoth(t, func(t *testing.T, listener int) {
		v := startVirtual(t, nil, forAnHour, "")
		p := v.play(listener)
		part := preview(4) + "4¶abcd¶0¶¶"
		v.say(p.c, part)
		s := v.f.next(t)
		s.gets(part)
		v.quiet(10 * time.Minute)
		s.send(text(goOn))
		p.c.expect(text(goOn))
		v.due(60*time.Second, "reject timeout", "server client_aborted")
		p.c.refusal(408, true)
		p.c.closed()
		v.charged("client body_timeout")
	})
}

// A server that does not begin to answer within 60 s of having the whole request, or the whole preview: 502, and the request is not sent
// again, because it may have been worked on.
func TestResponseTimeout(t *testing.T) {
	for _, w := range []struct {
		name, request, answer string
		slow                  bool // the client sends byte by byte, one in 59 s
	}{
		{"nothing", v05, "", false},
		{"nothing-on-preview", preview(4) + "4¶abcd¶0¶¶", "", false},
		{"slow-body", v05, "", true},
		{"slow-preview", preview(4) + "4¶abcd¶0¶¶", "", true},
		{"only-100", preview(4) + "4¶abcd¶0; ieof¶¶", goOn, false},
	} {
		t.Run(w.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				v := startVirtual(t, nil, "", "")
				p := v.play(listener)
				request := text(w.request)
				if w.slow {
					head := strings.Index(request, text(P)) + len(text(P))
					v.say(p.c, request[:head])
					for _, b := range request[head:] {
						v.quiet(59 * time.Second)
						v.say(p.c, string(b))
					}
				} else {
					v.say(p.c, request)
				}
				s := v.f.next(t)
				s.gets(w.request)
				v.quiet(59 * time.Second)
				v.say(s.client, w.answer) // nothing that was asked for
				v.due(1*time.Second, "server response_timeout", "reject late", "check")
				p.c.refusal(502, false)
				if got := s.rest(); got != "" {
					t.Errorf("the server got %q", got)
				}
				p.again(false) // the connection goes on
				v.logged("502 late timeout", "200 done")
			})
		})
	}
}

// A preview's answer is waited for until the 100, and the final one from the end of the request on.
func TestResponseTimeoutAfterContinue(t *testing.T) {
	overBoth(t, func(t *testing.T, listener int) {
		v := startVirtual(t, nil, "", "")
		p := v.play(listener)
		part := preview(4) + "4¶abcd¶0¶¶"
		v.say(p.c, part)
		s := v.f.next(t)
		s.gets(part)
		v.quiet(59 * time.Second)
		v.say(s.client, goOn)
		p.c.expect(text(goOn))
		for _, b := range text("2¶ef¶0¶¶") {
			v.quiet(59 * time.Second)
			v.say(p.c, string(b))
		}
		v.due(60*time.Second, "server response_timeout", "reject late", "check")
		p.c.refusal(502, false)
		s.rest()
		v.logged("502 late timeout")
	})
}

// A server that stops for 60 s in the middle of its answer's body: the client's connection is cut. Each byte before is a sign of life.
func TestResponseStalls(t *testing.T) {
	overBoth(t, func(t *testing.T, listener int) {
		v := startVirtual(t, nil, "", "")
		p := v.play(listener)
		v.say(p.c, v05)
		s := v.f.next(t)
		s.gets(v05)
		part := text(okLine + echoList + P)
		v.say(s.client, part)
		for _, b := range text("5¶hel") {
			v.quiet(59 * time.Second)
			v.say(s.client, string(b))
		}
		v.due(60*time.Second, "client truncated", "server response_timeout", "check")
		if got := p.c.rest(); got != part+text("5¶hel") {
			t.Errorf("the client got %q", got)
		}
		v.logged("200 truncated timeout")
	})
}

// A server is not late with an answer that the client does not take; the client is, after 60 s in which it takes nothing. The server may
// send its answer to the end.
func TestWriteTimeout(t *testing.T) {
	v := startVirtual(t, nil, "", "")
	p := v.play(1)
	v.say(p.c, v05)
	s := v.f.next(t)
	s.gets(v05)
	c := v.pairUp(theClient)
	wrote := make(chan error, 1)
	head := text(okLine + echoList + P)
	body := chunked(16<<20, 64<<10)
	go func() { _, err := io.WriteString(s, head+body); wrote <- err }()
	c.expect(head)
	v.full(theClient)
	for i := range 3 { // it takes some in 59 s
		v.quiet(59 * time.Second)
		if err := c.matches(body[i<<20 : (i+1)<<20]); err != nil {
			t.Fatal(err)
		}
		v.full(theClient)
	}
	v.due(60*time.Second, "client write_timeout")
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	s.release()
	eventually(t, "the end of the attempt", func() bool { return v.metric(`server_in_flight{pool="dlp",server="`+v.f.address+`"}`) == 0 })
	v.charged()
	v.logged("200 write_timeout")
}

// If the server then stops in the middle of the answer, both are charged, and the access log has the request all the same.
func TestWriteTimeoutThenStall(t *testing.T) {
	v := startVirtual(t, nil, "", "")
	p := v.play(1)
	v.say(p.c, v05)
	s := v.f.next(t)
	s.gets(v05)
	v.pairUp(theClient)
	wrote := make(chan error, 1)
	body := chunked(4<<20, 64<<10)
	go func() { _, err := io.WriteString(s, text(okLine+echoList+P)+body[:len(body)-5]); wrote <- err }()
	v.full(theClient)
	v.due(60*time.Second, "client write_timeout")
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	v.say(s.client, "0") // the last byte that comes
	v.due(60*time.Second, "server response_timeout", "check")
	s.rest()
	v.logged("200 truncated timeout")
}

// A client that leaves is no fault of the server: neither in the middle of its request nor behind it.
func TestClientGoneIsNoFaultOfTheServer(t *testing.T) {
	for _, w := range []struct {
		name, request, log string
		leave              func(c *client)
		charges            []string
	}{
		{"fin-within-body", RL + reqBody + "5¶hel", "0 client_gone", func(c *client) { c.Close() }, []string{"client client_gone", "server client_aborted"}},
		{"reset-within-body", RL + reqBody + "5¶hel", "0 reset", (*client).reset, []string{"client reset", "server client_aborted"}},
		{"reset-behind-request", v05, "200 reset", (*client).reset, []string{"client reset"}},
	} {
		t.Run(w.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				v := startVirtual(t, nil, "", "")
				p := v.play(listener)
				v.say(p.c, w.request)
				s := v.f.next(t)
				s.expect(strings.ReplaceAll(text(forwarded(w.request)), "SERVER", v.f.address))
				w.leave(p.c)
				v.charged(w.charges...)
				if w.request == v05 { // it is answered all the same
					s.send(text(page))
					s.release()
					eventually(t, "the end of the attempt", func() bool { return v.metric(`server_in_flight{pool="dlp",server="`+v.f.address+`"}`) == 0 })
				} else {
					s.rest()
				}
				v.charged()
				v.logged(w.log)
			})
		})
	}
}

// A client that is reset while its answer waits for it.
func TestClientGoneWhileAnswerPaused(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
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
		g.stuck(t)
		p.c.reset()
		eventually(t, "the end counted", func() bool {
			return g.metric(`closes_total{side="client",reason="client_gone"}`) == float64(listener+1)
		})
		if err := <-wrote; errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("the server was left with its answer")
		}
		s.release()
		eventually(t, "the end of the attempt", func() bool { return g.metric(`server_in_flight{pool="dlp",server="`+f.address+`"}`) == 0 })
	})
}

// A server that takes no byte for 60 s, while there are some for it: 502 for a client that still sends, whose rest is read and dropped.
// One that takes some in 59 s is not late, even if that is too little for its socket to say that it is writable.
func TestSendTimeout(t *testing.T) {
	for _, some := range []int{1 << 20, 72 << 10} {
		overBoth(t, func(t *testing.T, listener int) {
			v := startVirtual(t, nil, "", "")
			p := v.play(listener)
			v.say(p.c, RL+reqBody)
			s := v.f.next(t)
			s.gets(RL + reqBody)
			server := v.pairUp(theServer)
			wrote := make(chan error, 1)
			body := chunked(16<<20, 64<<10)
			go func() { _, err := io.WriteString(p.c, body); wrote <- err }()
			v.full(theServer)
			for i := range 4 {
				v.quiet(59 * time.Second)
				if err := server.matches(body[i*some : (i+1)*some]); err != nil {
					t.Fatal(err)
				}
			}
			v.full(theServer)
			v.due(60*time.Second, "server send_timeout", "reject late", "check")
			p.c.refusal(502, false)
			if err := <-wrote; err != nil {
				t.Fatal(err)
			}
			s.Close()
			p.again(false)
			v.logged("502 late timeout", "200 done")
		})
	}
}

// A server that has answered early and takes nothing more does not keep the client: after 60 s the rest is dropped, and the next request
// goes to a new connection.
func TestEarlyAnswerNotDrained(t *testing.T) {
	overBoth(t, func(t *testing.T, listener int) {
		v := startVirtual(t, nil, "", "")
		p := v.play(listener)
		v.say(p.c, RL+reqBody)
		s := v.f.next(t)
		s.gets(RL + reqBody)
		server := v.pairUp(theServer)
		server.send(text(page))
		p.c.expect(text(page))
		body := chunked(8<<20, 64<<10)
		go func() { _, _ = io.WriteString(p.c, body+text(v04)) }()
		v.full(theServer)
		v.due(60*time.Second, "server send_timeout", "check")
		p.play(arrives(forwarded(v04)), answers(page), gets(page))
		if got := server.rest(); strings.HasSuffix(got, "\r\n0\r\n\r\n") {
			t.Error("the server got a request that looks complete, but is not")
		}
		v.logged("200 done", "200 done")
	})
}

// A server that takes nothing more of the request while it is still at its answer may go on with that: after 60 s the rest is dropped.
func TestEarlyAnswerGoesOn(t *testing.T) {
	overBoth(t, func(t *testing.T, listener int) {
		v := startVirtual(t, nil, "", "")
		p := v.play(listener)
		v.say(p.c, RL+reqBody)
		s := v.f.next(t)
		s.gets(RL + reqBody)
		server := v.pairUp(theServer)
		part := text(okLine + echoList + P + "6¶hel")
		server.send(part)
		p.c.expect(part)
		body := chunked(8<<20, 64<<10)
		go func() { _, _ = io.WriteString(p.c, body+text(v04)) }()
		v.full(theServer)
		v.quiet(59 * time.Second)
		server.send("l")
		p.c.expect("l")
		v.quiet(30 * time.Second)
		server.send(text("o!¶0¶¶"))
		p.c.expect(text("o!¶0¶¶"))
		p.play(arrives(forwarded(v04)), answers(page), gets(page))
		if got := server.rest(); strings.HasSuffix(got, "\r\n0\r\n\r\n") {
			t.Error("the server got a request that looks complete, but is not")
		}
		v.logged("200 done", "200 done")
	})
}

// A connect that gets no answer for 2 s is as good as a refused one: the request goes to another server, or there is none.
func TestConnectTimeout(t *testing.T) {
	overBoth(t, func(t *testing.T, listener int) {
		v := startVirtualFor(t, []string{blackHole(t)}, "    retry: {attempts: 0}\n", "")
		c := v.connect(listener)
		v.say(c, v05)
		v.due(connectPatience, "check")
		v.due(2*time.Second-connectPatience-time.Duration(tick), "server connect_timeout", "reject no_server", "check")
		c.refusal(503, false)
		v.logged("503 no_server connect")
	})
	overBoth(t, func(t *testing.T, listener int) {
		f := startFake(t)
		v := startVirtualFor(t, []string{blackHole(t), f.address}, "", "")
		good := v.table.Load().pools[0].servers[1]
		good.SetWeight(0) // so that the hole is first
		c := v.connect(listener)
		v.say(c, v05)
		good.SetWeight(1)
		v.due(connectPatience, "check")
		v.due(2*time.Second-connectPatience-time.Duration(tick), "server connect_timeout", "replay connect", "check")
		s := f.next(t)
		s.gets(v05)
		s.send(text(page))
		c.expect(text(page))
		s.release()
		v.logged("200 done connect")
	})
}

// A request waits 5 s in the queue. That is nobody's fault but the pool's.
func TestQueueTimeout(t *testing.T) {
	overBoth(t, func(t *testing.T, listener int) {
		f := startFake(t)
		f.says("", optionsAnswer+"Max-Connections: 1¶")
		v := startVirtual(t, f, "    reserve: 0\n", "")
		p := v.play(listener)
		v.say(p.c, v05)
		s := f.next(t)
		s.gets(v05)
		late, lucky := v.connect(listener), v.connect(listener)
		v.say(late, v05)
		v.quiet(3 * time.Second)
		v.say(lucky, v05)
		v.due(2*time.Second, "reject full")
		late.refusal(503, false)
		v.quiet(3*time.Second - 2*time.Duration(tick)) // due went one tick further, and the timer may be one late
		s.send(text(page))
		s.release()
		p.c.expect(text(page))
		f.next(t)
		s.gets(v05) // on the same connection
		s.send(text(page))
		s.release()
		lucky.expect(text(page))
		v.charged()
		v.say(late, v05) // its connection goes on
		f.next(t)
		s.gets(v05)
		s.send(text(page))
		s.release()
		late.expect(text(page))
		v.logged("503 full", "200 done", "200 done", "200 done")
	})
}

// A connection to a server is closed after 30 s without use; and when a request is through, if it is older than max_age or has served
// max_requests.
func TestIdleLimits(t *testing.T) {
	overBoth(t, func(t *testing.T, listener int) {
		t.Run("idle", func(t *testing.T) {
			v := startVirtual(t, nil, "", "")
			p := v.play(listener, simple(v04, forwarded(v04))...)
			for range 3 {
				v.quiet(29 * time.Second)
				p.again(true)
			}
			v.due(30*time.Second, "server idle")
			p.again(false)
		})
		t.Run("max_age", func(t *testing.T) {
			v := startVirtual(t, nil, "    idle: {max_age: 1m}\n", "")
			p := v.play(listener, simple(v04, forwarded(v04))...)
			for range 2 {
				v.quiet(29 * time.Second)
				p.again(true)
			}
			v.quiet(2*time.Second - 1)
			p.again(true)
			v.pass(1)
			p.again(false)
			v.charged("server not_reusable")

			v.quiet(25 * time.Second)
			p.again(true)
			p.c.send(text(v04)) // its age ends while it works
			s := v.f.next(t)
			s.gets(v04)
			v.quiet(35 * time.Second)
			s.send(text(page))
			p.c.expect(text(page))
			s.release()
			v.charged("server not_reusable")
		})
		t.Run("max_requests", func(t *testing.T) {
			v := startVirtual(t, nil, "    idle: {max_requests: 2}\n", "")
			p := v.play(listener, simple(v04, forwarded(v04))...)
			v.charged()
			p.again(true)
			v.charged("server not_reusable")
			p.again(false)
			v.charged()
		})
	})
}

// After its last answer a client has 2 s, or 1 MiB, to end its connection, too.
func TestLinger(t *testing.T) {
	overBoth(t, func(t *testing.T, listener int) {
		v := startVirtual(t, nil, "", "")
		c := v.connect(listener)
		v.say(c, "FOO¶¶")
		c.refusal(400, true)
		v.charged("reject bad_request")
		v.quiet(time.Second)
		v.say(c, "more") // moves nothing
		v.due(time.Second, "client bad_request")
		v.logged("400 bad_request")
	})
	overBoth(t, func(t *testing.T, listener int) {
		v := startVirtual(t, nil, "", "")
		c := v.connect(listener)
		v.say(c, "FOO¶¶")
		c.refusal(400, true)
		_, _ = io.WriteString(c, strings.Repeat("x", 2<<20))
		v.charged("reject bad_request", "client bad_request")
	})
}

// Over the loops' real clock the wheel is driven, too, and TLS handshakes end. What becomes of each end in all its cases, and when, is
// tested on virtual time.
func TestTimeoutsInRealTime(t *testing.T) {
	body := chunked(8<<20, 64<<10)
	for _, w := range []struct {
		series, pool, listeners string
		play                    func(t *testing.T, g *testGateway, f *fakeServer)
	}{
		{`handshakes_total{listener="icaps",result="timeout",version="none"}`, "", "handshake: 100ms", func(t *testing.T, g *testGateway, f *fakeServer) {
			if got := dialPlain(t, g.address(0)).rest(); got != "" {
				t.Errorf("got %q instead of a handshake", got)
			}
		}},
		{`closes_total{side="client",reason="head_timeout"}`, "", "head: 100ms", func(t *testing.T, g *testGateway, f *fakeServer) {
			c := g.dialFor(t, 0)
			c.send("R")
			c.refusal(408, true)
			c.closed()
		}},
		{`closes_total{side="client",reason="idle"}`, "", "idle: 100ms", func(t *testing.T, g *testGateway, f *fakeServer) { g.dialFor(t, 0).closed() }},
		{`closes_total{side="client",reason="body_timeout"}`, "", "body: 100ms", func(t *testing.T, g *testGateway, f *fakeServer) {
			c := g.dialFor(t, 0)
			c.send(text(RL + reqBody))
			c.refusal(408, true)
			c.closed()
			f.next(t).rest()
		}},
		{`closes_total{side="server",reason="response_timeout"}`, "    timeouts: {response: 100ms}\n", "", func(t *testing.T, g *testGateway, f *fakeServer) {
			c := g.dialFor(t, 0)
			c.send(text(v04))
			f.next(t)
			c.refusal(502, false)
		}},
		{`closes_total{side="server",reason="send_timeout"}`, "    timeouts: {send: 100ms}\n", "", func(t *testing.T, g *testGateway, f *fakeServer) {
			c := g.dialFor(t, 0)
			go func() { _, _ = io.WriteString(c, text(RL+reqBody)+body) }()
			f.next(t)
			c.refusal(502, false)
		}},
		{`closes_total{side="server",reason="idle"}`, "    idle: {timeout: 100ms}\n", "", func(t *testing.T, g *testGateway, f *fakeServer) {
			p := newPlayer(t, g, f, 0)
			p.play(simple(v04, forwarded(v04))...)
			p.s.over(t)
		}},
	} {
		t.Run(w.series, func(t *testing.T) {
			f := serveFake(t, smallBuffers(t, 64<<10), nil)
			g := startGateway(t, []string{f.address}, quiet+w.pool, patientExcept(w.listeners)).ready()
			w.play(t, g, f)
			eventually(t, "the count", func() bool { return g.metric(w.series) == 1 })
		})
	}
}

// R33: the head of an answer, with its encapsulated heads, has 60 s from its first byte to its end, however it trickles in.
func TestAnswerHeadTimeout(t *testing.T) {
	for _, w := range []struct{ name, begin, rest, request string }{
		{"head", "", okLine + echoList, v05},
		{"encapsulated-heads", okLine + echoList, P, v05},
		{"R24 head-unterminated", "", "ICAP/1.0 400 Bad request¶Service: x¶", v05},
		{"while-the-request-comes", "", okLine + echoList, RL + reqBody},
		{"behind-a-100", goOn, okLine + echoList, v05},
	} {
		t.Run(w.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				v := startVirtual(t, nil, "", "")
				p := v.play(listener)
				v.say(p.c, w.request)
				s := v.f.next(t)
				s.gets(w.request)
				if w.request == v05 {
					v.quiet(59 * time.Second)
				}
				rest := text(w.rest)
				v.say(s.client, text(w.begin)+rest[:1])
				for i := range 5 {
					v.quiet(10 * time.Second)
					v.say(s.client, rest[1+i:2+i])
					if w.request != v05 && i == 2 {
						v.say(p.c, "5¶hel") // it sends on meanwhile
					}
				}
				v.due(10*time.Second, "server response_timeout", "reject late", "check")
				p.c.refusal(502, false)
				s.rest()
				if w.request != v05 {
					v.say(p.c, "lo¶0¶¶")
				}
				p.again(false)
				v.logged("502 late timeout", "200 done")
			})
		})
	}
}

// R07-R09: a 100 that nobody has asked for is no sign of life, and starts no clock either.
func TestUnaskedContinues(t *testing.T) {
	overBoth(t, func(t *testing.T, listener int) {
		v := startVirtual(t, nil, "", "")
		p := v.play(listener)
		v.say(p.c, RL+reqBody)
		s := v.f.next(t)
		s.gets(RL + reqBody)
		for _, b := range text(chunks) {
			v.say(s.client, goOn)
			v.quiet(59 * time.Second)
			v.say(p.c, string(b))
		}
		for range 5 {
			v.quiet(10 * time.Second)
			v.say(s.client, goOn)
		}
		v.due(10*time.Second, "server response_timeout", "reject late", "check")
		p.c.refusal(502, false)
	})
}

// Interim answers that show progress are signs of life, each for timeouts.response, and for timeouts.progress in all.
func TestProgress(t *testing.T) {
	const asking = RL + progressInterval + ": 10¶"
	for _, w := range []struct {
		name, request, interim string
		relayed                string // "": not
	}{
		{"100 with its progress", v05, "ICAP/1.0 100 Continue¶X-Scan-Progress: 20¶¶", ""},
		{"other status", v05, "ICAP/1.0 102 Processing¶¶", ""},
		{"other status, after a preview that was all", preview(9) + "4¶abcd¶0; ieof¶¶", "ICAP/1.0 102 Processing¶¶", ""},
		{"asked for", asking + reqBody + chunks, goOn, goOn},
		{"asked for, with its progress", asking + reqBody + chunks, "ICAP/1.0 100 Continue¶ISTag: \"s\"¶x-scan-progress: 20 %¶¶", "ICAP/1.0 100 Continue¶X-Scan-Progress: 20 %¶¶"},
		{"asked for, without a reason", asking + reqBody + chunks, "ICAP/1.0 102¶¶", "ICAP/1.0 102 Processing¶¶"},
		{"asked for, other status", asking + reqBody + chunks, "ICAP/1.0 103 Working¶Encapsulated: null-body=0¶¶", "ICAP/1.0 103 Working¶¶"},
		{"asked for, after a preview that was all", asking + "Preview: 9¶" + reqBody + "4¶abcd¶0; ieof¶¶", goOn, goOn},
		{"asked for, in the preview", asking + "Preview: 4¶" + reqBody + "4¶abcd¶0¶¶", "ICAP/1.0 102 Processing¶¶", ""},
	} {
		t.Run(w.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				v := startVirtual(t, nil, "", "")
				p := v.play(listener)
				show := func(s *serverSide) {
					t.Helper()
					for range 10 {
						v.quiet(59 * time.Second)
						v.say(s.client, w.interim)
						p.c.expect(text(w.relayed))
					}
				}
				v.say(p.c, w.request)
				s := v.f.next(t)
				s.gets(w.request)
				show(s)
				s.send(text(page))
				p.c.expect(text(page))
				s.release()
				v.charged()

				v.say(p.c, w.request)
				s = v.f.next(t)
				s.gets(w.request)
				show(s)
				v.due(10*time.Second, "server response_timeout", "reject late", "check")
				p.c.refusal(502, false)
				v.logged("200 done", "502 late timeout")
			})
		})
	}
}

// However they are cut, interim answers go on one by one, and none of them gets lost with a 100 or the final answer between or behind them.
func TestInterimAnswersCut(t *testing.T) {
	const (
		asking   = RL + progressInterval + ": 10¶"
		working  = "ICAP/1.0 102 Working¶¶"
		progress = "ICAP/1.0 100 Continue¶X-Scan-Progress: 3¶¶"
		part     = asking + "Preview: 4¶" + reqBody + "4¶abcd¶0¶¶"
	)
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		for _, cut := range []int{whole, bytewise, 5, 40, 61} {
			p := newPlayer(t, g, f, listener)
			p.serverCut = cut
			p.play(sends(asking+reqBody+chunks), arrives(forwarded(asking+reqBody+chunks)),
				answers(working+"ICAP/1.0 101 x¶¶"+progress+goOn+blockPage), gets(working+progress+goOn+blockPage))
			p.play(sends(part), arrives(forwarded(part)), answers(working+goOn+working), gets(goOn+working),
				sends("0¶¶"), arrives("0¶¶"), answers(working+page), gets(working+page))
			p.again(true)
		}
	})
}

// A request whose client has gone does not go on for ever, either, because its server tells of progress.
func TestProgressWithoutClient(t *testing.T) {
	v := startVirtual(t, nil, "", "")
	overBoth(t, func(t *testing.T, listener int) {
		c := v.connect(listener)
		v.say(c, v05)
		s := v.f.next(t)
		s.gets(v05)
		c.reset()
		eventually(t, "the client gone", func() bool { return v.Sessions() == 0 })
		for range 10 {
			v.pass(59 * time.Second)
			v.say(s.client, "ICAP/1.0 102 Processing¶¶")
		}
		if n := v.inFlight(); n != 1 {
			t.Fatalf("%d requests are in flight, want 1", n)
		}
		v.pass(11 * time.Second)
		if n := v.inFlight(); n != 0 {
			t.Fatalf("%d requests are in flight beyond timeouts.progress", n)
		}
		s.dropped(t)
	})
}

// What a client may take for something else is kept from it, and no server goes on like that for ever.
func TestInterimAnswersKept(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet+"    retry: {attempts: 0}\n    ejection: {consecutive: 0}\n", "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		for _, interim := range []string{"ICAP/1.0 101 Switching Protocols¶Upgrade: x¶¶", "ICAP/1.0 102 Processing¶¶", "ICAP/1.0 100 Continue¶X-Scan-Progress: 1¶¶"} {
			p := newPlayer(t, g, f, listener)
			p.play(sends(v05), arrives(forwarded(v05)), answers(strings.Repeat(interim, 100)+page), gets(page))
			p.again(true)
			asking := RL + progressInterval + ": 10¶" + reqNull
			relayed := strings.Replace(interim, "ICAP/1.0 101 Switching Protocols¶Upgrade: x¶¶", "", 1)
			p.play(sends(asking), arrives(forwarded(asking)), answers(interim+page), gets(relayed+page))
			p.play(sends(v05), arrives(forwarded(v05)))
			s := p.s
			go io.WriteString(s, text(strings.Repeat(interim, maxInterims+1)))
			p.c.refusal(502, false)
			s.over(t)
		}
	})
}

// The rest of an answered request that no server reads has 30 s, however it trickles in; after that the session ends.
func TestRestTimeout(t *testing.T) {
	missing := strings.Replace(RL, "/r ", "/x ", 1) + reqBody
	closing := strings.Replace(page, "Encapsulated", "Connection: close¶Encapsulated", 1)
	for _, w := range []struct {
		name, end string
		lead      func(v *virtual, p *player) (charges []string)
	}{
		{"refused", "404 no_service", func(v *virtual, p *player) []string {
			v.say(p.c, missing)
			p.c.refusal(404, false)
			return []string{"reject no_service"}
		}},
		{"early-answer-and-close", "200 done", func(v *virtual, p *player) []string {
			v.say(p.c, RL+reqBody)
			s := v.f.next(v.t)
			s.gets(RL + reqBody)
			v.say(s.client, closing)
			p.c.expect(text(page))
			return []string{"server not_reusable"}
		}},
		{"early-answer-and-end", "200 done", func(v *virtual, p *player) []string {
			v.say(p.c, RL+reqBody)
			s := v.f.next(v.t)
			s.gets(RL + reqBody)
			v.say(s.client, page)
			p.c.expect(text(page))
			s.Close()
			return []string{"server server_closed", "check"}
		}},
	} {
		t.Run(w.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				v := startVirtual(t, nil, "    idle: {timeout: 1h}\n", "services: [{path: /r, pool: dlp}]")
				p := v.play(listener)
				v.charged(w.lead(v, p)...)
				v.quiet(29 * time.Second)
				v.say(p.c, chunks)
				p.again(false) // it was in time
				v.charged()

				charges := w.lead(v, p)
				slices.Sort(charges)
				for range 2 {
					v.pass(10 * time.Second)
					v.say(p.c, "1¶x¶")
				}
				v.charged(charges...)
				v.due(10 * time.Second)
				p.c.closed()
				v.charged("client rest_too_long")
				v.logged(w.end, "200 done", w.end[:3]+" rest_too_long")
			})
		})
	}
}

// As long as a server reads the rest of an answered request, it may take its time.
func TestRestThatIsRead(t *testing.T) {
	overBoth(t, func(t *testing.T, listener int) {
		v := startVirtual(t, nil, "", "")
		p := v.play(listener)
		v.say(p.c, RL+reqBody)
		s := v.f.next(t)
		s.gets(RL + reqBody)
		v.say(s.client, page)
		p.c.expect(text(page))
		for _, b := range text(chunks) {
			v.quiet(59 * time.Second)
			v.say(p.c, string(b))
		}
		s.expect(text(chunks))
		p.s = s
		s.release()
		p.again(true)
		v.charged()
		v.logged("200 done", "200 done")
	})
}
