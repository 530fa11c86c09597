package gateway

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"icapgate/configs"
	"icapgate/health"
)

// allowing is YAML of a service that lets everything pass.
const allowing = "services: [{on_unavailable: allow, on_error: allow, on_timeout: allow}]"

// downForGood makes all servers count as down, whatever a check would say.
func (g *testGateway) downForGood() {
	for _, s := range g.table.Load().pools[0].servers {
		s.SetExpedite(func() {})
		s.Health.SetState(health.Down)
	}
}

// passed reads the head of an answer to what nobody has judged.
func (c *client) passed(t testing.TB, status int, reason, list string) {
	t.Helper()
	h := c.status(status)
	for _, want := range []string{"X-Icapgate-Allowed: " + reason + "\r\n", "ISTag: ", "\r\nEncapsulated: " + list + "\r\n"} {
		if !strings.Contains(h, want) {
			t.Errorf("%q is not in %q", want, h)
		}
	}
}

// What a client gets for a request that no server can judge: its own message, or the word that nothing is to be changed.
func TestUnjudgedPasses(t *testing.T) {
	const (
		req    = "req-hdr=0, req-body=28"
		bothPL = PL + resBody + "5¶hello¶0¶¶"
	)
	for _, v := range []struct {
		name, request string
		status        int
		list, body    string // of the answer
	}{
		{"204 allowed", RL + "Allow: 204¶" + reqBody + chunks, 204, "null-body=0", ""},
		{"204 and 206 allowed", RL + "Allow: 204, 206¶" + reqBody + chunks, 204, "null-body=0", ""},
		{"preview", preview(4) + "4¶abcd¶0¶¶", 204, "null-body=0", ""},
		{"preview that is all", preview(9) + "4¶abcd¶0; ieof¶¶", 204, "null-body=0", ""},
		{"preview of nothing", preview(0) + "0¶¶", 204, "null-body=0", ""},
		{"REQMOD", v05, 200, req, P + chunks},
		{"REQMOD without a body", v04, 200, "req-hdr=0, null-body=27", G},
		{"RESPMOD", bothPL, 200, "res-hdr=0, res-body=19", S + chunks},
		{"RESPMOD without the request", PL + "Encapsulated: res-hdr=0, res-body=19¶¶" + S + chunks, 200, "res-hdr=0, res-body=19", S + chunks},
		{"RESPMOD without heads", PL + "Encapsulated: res-body=0¶¶" + chunks, 200, "res-body=0", chunks},
		{"RESPMOD with the request's head only", PL + "Encapsulated: req-hdr=0, res-body=27¶¶" + G + chunks, 200, "res-body=0", chunks},
		{"RESPMOD of nothing", PL + "Encapsulated: req-hdr=0, null-body=27¶¶" + G, 200, "null-body=0", ""},
		{"RESPMOD without a body", PL + "Encapsulated: req-hdr=0, res-hdr=27, null-body=46¶¶" + G + S, 200, "res-hdr=0, null-body=19", S},
	} {
		t.Run(v.name, func(t *testing.T) {
			f := startFake(t)
			g := startGateway(t, []string{f.address}, quiet+"    panic_threshold: 0\n", allowing).ready()
			g.downForGood()
			overBoth(t, func(t *testing.T, listener int) {
				for _, cut := range []int{whole, bytewise} {
					c := g.dialFor(t, listener)
					request := text(v.request)
					if cut == whole {
						c.send(request)
					} else {
						for i := range request {
							c.send(request[i : i+1])
						}
					}
					c.passed(t, v.status, "no_server", v.list)
					c.expect(text(v.body))
					c.send(text(OL + "¶")) // an OPTIONS is not let pass, and the connection is fine
					c.refusal(503, false)
				}
			})
			f.idle(t)
			by := map[int]string{200: "echo", 204: "204"}[v.status]
			if n := g.metric(fmt.Sprintf(`allowed_total{reason="no_server",by=%q}`, by)); n != 4 {
				t.Errorf("%v were counted, want 4", n)
			}
			if n := g.metric(`rejects_total{reason="no_server"}`); n != 4 {
				t.Errorf("%v rejects, want the 4 OPTIONS", n)
			}
		})
	}
}

// on_unavailable: servers that do not answer to a connect, when each of them has been tried.
func TestUnjudgedAfterBlackHoles(t *testing.T) {
	for holes := 1; holes <= 2; holes++ {
		var list []string
		for range holes {
			list = append(list, blackHole(t))
		}
		v := startVirtualFor(t, list, "    panic_threshold: 0\n", allowing)
		c := v.connect(1)
		v.say(c, v05)
		v.pass(time.Duration(holes) * (2*time.Second + time.Duration(tick)))
		c.passed(t, 200, "no_server", "req-hdr=0, req-body=28")
		c.expect(text(P + chunks))
	}
}

// The panic that comes with on_unavailable: allow is for checks that fail, not for servers that are not there: nobody waits for those.
func TestUnjudgedWithoutServers(t *testing.T) {
	down := func(t *testing.T, addresses ...string) *virtual {
		v := startVirtualFor(t, addresses, "", allowing)
		for _, s := range v.table.Load().pools[0].servers {
			s.Health.SetState(health.Down)
			s.Health.Doubt()
		}
		return v
	}
	t.Run("black holes", func(t *testing.T) {
		v := down(t, blackHole(t), blackHole(t))
		overBoth(t, func(t *testing.T, listener int) {
			c := v.connect(listener)
			v.say(c, v05)
			c.passed(t, 200, "no_server", "req-hdr=0, req-body=28")
			c.expect(text(P + chunks))
		})
		if n := v.checks.Load(); n == 0 {
			t.Error("no check is made at once: who knows when they are back?")
		}
		// Something was heard of one: it gets a chance.
		v.table.Load().pools[0].servers[0].Health.Heard(v.time.Load())
		c := v.connect(1)
		v.say(c, v05)
		v.pass(2*time.Second + time.Duration(tick))
		c.passed(t, 200, "no_server", "req-hdr=0, req-body=28")
		c.expect(text(P + chunks))
		v.logged("200 allowed_no_server", "200 allowed_no_server", "200 allowed_no_server connect")
	})
	t.Run("checks that fail", func(t *testing.T) {
		f := startFake(t)
		v := down(t, f.address)
		c := v.connect(1)
		v.say(c, v05)
		s := f.next(t)
		s.gets(v05)
		s.send(text(page))
		c.expect(text(page))
	})
}

// A client that has gone gets nothing, so nothing passes: the verdict is missing, and the log says so.
func TestUnjudgedClientGone(t *testing.T) {
	v := startVirtual(t, nil, "    retry: {attempts: 0}\n", allowing)
	overBoth(t, func(t *testing.T, listener int) {
		c := v.connect(listener)
		v.say(c, v05)
		s := v.f.next(t)
		s.gets(v05)
		c.reset()
		eventually(t, "the client gone", func() bool { return v.Sessions() == 0 })
		s.reset()
		eventually(t, "the end of the request", func() bool { return v.inFlight() == 0 })
		v.settle()
	})
	for _, name := range allowedWayNames {
		if n := v.metric(fmt.Sprintf(`allowed_total{reason="server_failed",by=%q}`, name)); n != 0 {
			t.Errorf("%v were counted: %s", n, name)
		}
	}
	v.logged("502 server_failed no_answer", "502 server_failed no_answer")
}

// That a request has passed is what the access log says of it, however the connection ends.
func TestUnjudgedAndCut(t *testing.T) {
	overBoth(t, func(t *testing.T, listener int) {
		v := startVirtual(t, nil, "    panic_threshold: 0\n", allowing)
		v.downForGood()
		c := v.connect(listener)
		v.say(c, RL+"Allow: 204¶"+reqBody+"5¶hello¶")
		c.passed(t, 204, "no_server", "null-body=0")
		v.pass(30*time.Second + time.Duration(tick)) // so long is the rest of it read and dropped
		c.closed()
		c = v.connect(listener)
		v.say(c, RL+reqBody+"5¶hello¶")
		c.passed(t, 200, "no_server", "req-hdr=0, req-body=28")
		c.expect(text(P + "5¶hello¶"))
		c.reset()
		eventually(t, "the client gone", func() bool { return v.Sessions() == 0 })
		v.charged("client rest_too_long", "client reset")
		v.logged("204 allowed_no_server", "200 allowed_no_server")
	})
}

// The access log has the bytes of a message that was given back.
func TestEchoIsLogged(t *testing.T) {
	v := startVirtual(t, nil, "    panic_threshold: 0\n", allowing)
	v.play(1, sends(v05), arrives(forwarded(v05)), answers(noContent), gets(echo)) // of a server that has judged it
	v.downForGood()
	c := v.connect(1)
	c.send(text(v05))
	c.passed(t, 200, "no_server", "req-hdr=0, req-body=28")
	c.expect(text(P + chunks))
	v.Close()
	if b, err := os.ReadFile(v.log); err != nil || strings.Count(string(b), `"bytes_in":5,"bytes_out":5,`) != 2 {
		t.Errorf("%s (%v): not 5 bytes in and out", b, err)
	}
}

// By default nothing passes.
func TestUnjudgedIsRejected(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	g.downForGood()
	c := g.dial(1)
	for _, request := range []string{v05, RL + "Allow: 204¶" + reqBody + chunks, preview(9) + "4¶abcd¶0; ieof¶¶"} {
		c.send(text(request))
		c.refusal(503, false)
	}
}

// on_error: servers that end without an answer, answer nonsense or say that they have failed.
func TestUnjudgedAfterErrors(t *testing.T) {
	part, rest := preview(4)+"4¶abcd¶0¶¶", "2¶ef¶0¶¶"
	for _, v := range []struct {
		name   string
		do     func(s *serverSide)
		reason string
	}{
		{"rst", func(s *serverSide) { s.reset() }, "server_failed"},
		{"fin", func(s *serverSide) { s.Close() }, "server_failed"},
		{"nonsense", func(s *serverSide) { s.send("HTTP/1.1 200 OK\r\n\r\n"); s.rest() }, "server_failed"},
		{"part of a head", func(s *serverSide) { s.send("ICAP/1.0 20"); s.Close() }, "server_failed"},
		{"500", func(s *serverSide) { s.send(text("ICAP/1.0 500 x¶¶")); s.rest() }, "server_failed"},
		{"503", func(s *serverSide) { s.send(text("ICAP/1.0 503 x¶Retry-After: 30¶¶")); s.rest() }, "full"},
	} {
		t.Run(v.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				f := startFake(t)
				g := startGateway(t, []string{f.address}, quiet+"    retry: {attempts: 0}\n", allowing).ready()
				again := func() { g.table.Load().pools[0].servers[0].MarkFull(0) }
				c := g.dialFor(t, listener)
				c.send(text(v05))
				s := f.next(t)
				s.gets(v05)
				v.do(s)
				c.passed(t, 200, v.reason, "req-hdr=0, req-body=28")
				c.expect(text(P + chunks))

				again()
				c.send(text(part)) // in the preview: 204
				s = f.next(t)
				s.gets(part)
				v.do(s)
				c.passed(t, 204, v.reason, "null-body=0")

				again()
				c.send(text(part)) // after it: the message, without the seam
				s = f.next(t)
				s.gets(part)
				s.send(text(goOn))
				c.expect(text(goOn))
				c.send(text(rest))
				s.expect(text(rest))
				v.do(s)
				c.passed(t, 200, v.reason, "req-hdr=0, req-body=28")
				c.expect(text(P + "4¶abcd¶" + rest))
				if n := g.metric(fmt.Sprintf(`rejects_total{reason=%q}`, v.reason)); n != 0 {
					t.Errorf("%v rejects", n)
				}
			})
		})
	}
}

// Once bytes are not held any more, a 204 is the only way; a client that does not take one is rejected.
func TestUnjudgedBeyondTheBuffer(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet+"    retry: {attempts: 0, replay_buffer: 16KiB}\n", allowing).ready()
	body := chunked(1<<20, 100<<10)
	overBoth(t, func(t *testing.T, listener int) {
		for _, allow := range []string{"", "Allow: 204¶"} {
			c := g.dialFor(t, listener)
			go c.Write([]byte(text(RL+allow+reqBody) + body))
			s := f.next(t)
			s.gets(RL + allow + reqBody)
			s.expect(body)
			s.reset()
			if allow == "" {
				c.refusal(502, false)
			} else {
				c.passed(t, 204, "server_failed", "null-body=0")
			}
		}
	})
	for by, want := range map[string]float64{"204": 2, "cannot_allow": 2, "echo": 0} {
		if n := g.metric(fmt.Sprintf(`allowed_total{reason="server_failed",by=%q}`, by)); n != want {
			t.Errorf("%v by %s, want %v", n, by, want)
		}
	}
}

// A large message is given back as it comes in, and not collected; so is one whose rest waits for the client to read.
func TestEchoOfALargeBody(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet+"    panic_threshold: 0\n", allowing).ready()
	g.downForGood()
	const size, chunk = 24 << 20, 100 << 10
	body := chunked(size, chunk)
	overBoth(t, func(t *testing.T, listener int) {
		c := g.dialFor(t, listener)
		wrote := make(chan error, 1)
		go func() { _, err := c.Write([]byte(text(RL+reqBody) + body)); wrote <- err }()
		c.passed(t, 200, "no_server", "req-hdr=0, req-body=28")
		c.expect(text(P))
		n, sum, err := new(bodyReader).read(c)
		if err != nil || n != size || sum != payloadSum(size, chunk) {
			t.Fatalf("%d bytes came back (%v), or others than were sent", n, err)
		}
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		c.send(text(v04)) // and once more
		c.passed(t, 200, "no_server", "req-hdr=0, null-body=27")
		c.expect(text(G))
	})
}

// A fault of the client in a message that is being given back ends the connection: its end is not invented.
func TestEchoOfABrokenBody(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet+"    panic_threshold: 0\n", allowing).ready()
	g.downForGood()
	overBoth(t, func(t *testing.T, listener int) {
		c := g.dialFor(t, listener)
		c.send(text(RL + reqBody + "5¶hello¶"))
		c.passed(t, 200, "no_server", "req-hdr=0, req-body=28")
		c.expect(text(P + "5¶hello¶"))
		c.send(text("x¶"))
		if rest := c.rest(); rest != "" {
			t.Errorf("%q came behind the fault", rest)
		}
	})
}

// The verdict has to be there in time, counted from when a server could begin: waiting for the client does not count, and waiting in the queue does.
func TestDecisionTimeout(t *testing.T) {
	for _, v := range []struct {
		policy string
		status int
	}{{"allow", 200}, {"reject", 502}} {
		t.Run(v.policy, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				g := startVirtual(t, nil, "    queue: {timeout: 1h}\n", fmt.Sprintf("services: [{on_timeout: %s, decision_timeout: 4s}]", v.policy))
				late := func(c *client, list, body string) {
					t.Helper()
					if v.policy == "reject" {
						c.refusal(v.status, false)
						return
					}
					c.passed(t, v.status, "late", list)
					c.expect(text(body))
				}
				c := g.connect(listener)
				g.say(c, RL+reqBody+"5¶hello¶")
				s := g.f.next(t)
				s.gets(RL + reqBody + "5¶hello¶")
				g.pass(30 * time.Second) // the client's own time
				g.say(c, "0¶¶")
				s.expect(text("0¶¶"))
				g.pass(4*time.Second - 1)
				g.settle()
				if unread(t, &serverSide{client: c}) != 0 {
					t.Fatal("an answer came too early")
				}
				g.pass(time.Duration(1 + tick))
				late(c, "req-hdr=0, req-body=28", P+chunks)
				s.dropped(t)

				// In time: nothing happens later.
				g.say(c, v05)
				s = g.f.next(t)
				s.gets(v05)
				g.pass(3 * time.Second)
				s.send(text(page))
				c.expect(text(page))
				g.pass(30 * time.Second)
				s.release()

				// In the queue.
				g.table.Load().pools[0].servers[0].MarkFull(g.time.Load() + int64(time.Minute))
				g.say(c, v05)
				g.pass(4*time.Second + time.Duration(tick))
				late(c, "req-hdr=0, req-body=28", P+chunks)
				if n := g.table.Load().pools[0].queue.Depth(); n != 0 {
					t.Errorf("%d wait", n)
				}
			})
		})
	}
}

// A reload that changes decision_timeout, while a request waits: it has the time of the service that it is routed to now.
func TestDecisionTimeoutReloaded(t *testing.T) {
	for _, v := range []struct{ before, after time.Duration }{{4 * time.Second, 0}, {0, 4 * time.Second}, {4 * time.Second, 20 * time.Second}} {
		t.Run(fmt.Sprint(v.before, " to ", v.after), func(t *testing.T) {
			conf := func(d time.Duration) string { return fmt.Sprintf("services: [{decision_timeout: %v}]\n", d) }
			g := startVirtual(t, nil, "    queue: {timeout: 1h}\n    slow_start: 0s\n", conf(v.before))
			next := *g.config.Load()
			next.Services = append(next.Services[:0:0], next.Services...)
			next.Services[0].DecisionTimeout = configs.Duration(v.after)
			g.load = func() (*configs.Config, error) { return &next, nil }
			server := g.servers0()[0]
			server.MarkFull(g.time.Load() + int64(time.Second))
			c := g.connect(1)
			g.say(c, RL+reqBody+"5¶hello¶")
			if err := g.Reload(); err != nil {
				t.Fatal(err)
			}
			g.settle()
			server.MarkFull(0)
			g.testGateway.onLoops(func(l *loop) { l.gw.offer(server) })
			s := g.f.next(t)
			s.gets(RL + reqBody + "5¶hello¶")
			g.pass(30 * time.Second) // the client's own time
			g.say(c, "0¶¶")
			s.expect(text("0¶¶"))
			if v.after == 0 {
				g.pass(50 * time.Second)
				s.send(text(page))
				c.expect(text(page))
				s.release()
				return
			}
			g.pass(v.after - 1)
			g.settle()
			if unread(t, &serverSide{client: c}) != 0 {
				t.Fatal("an answer came too early")
			}
			g.pass(time.Duration(1 + tick))
			c.refusal(502, false)
			s.dropped(t)
		})
	}
}

// The time for a decision is not longer for a request that is sent again from a file.
func TestDecisionTimeoutOfReplay(t *testing.T) {
	v := startVirtualPair(t, spilled, fmt.Sprintf("state_dir: %q\nservices: [{decision_timeout: 4s}]", t.TempDir()))
	body := chunked(2<<20, 60<<10)
	overBoth(t, func(t *testing.T, listener int) {
		c := v.connect(listener)
		wrote := make(chan error, 1)
		go func() { _, err := c.Write([]byte(text(RL+reqBody) + body)); wrote <- err }()
		s, other := v.next(t)
		s.gets(RL + reqBody)
		s.expect(body)
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		v.pass(3 * time.Second)
		s.reset()
		s = other.next(t)
		s.gets(RL + reqBody)
		s.expect(body)
		v.pass(time.Second - 1)
		v.settle()
		if unread(t, &serverSide{client: c}) != 0 {
			t.Fatal("an answer came too early")
		}
		v.pass(time.Duration(1 + 2*tick))
		c.refusal(502, false)
		s.dropped(t)
		c.Close()
		v.settle()
	})
}

// dropped waits until the gateway has ended a connection that is the test's.
func (s *serverSide) dropped(t testing.TB) {
	t.Helper()
	if rest := s.rest(); rest != "" {
		t.Errorf("%q came before the end", rest)
	}
	s.Close()
}
