package gateway

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"icapgate/configs"
)

// limited is YAML of a service with limits.
func limited(format string, args ...any) string {
	return "services: [{" + fmt.Sprintf(format, args...) + "}]\n"
}

// allowedBy checks how often requests beyond a limit have passed, by way.
func (g *testGateway) allowedBy(t testing.TB, reason string, want map[string]int) {
	t.Helper()
	for _, way := range allowedWayNames {
		if n := g.metric(fmt.Sprintf(`allowed_total{reason=%q,by=%q}`, reason, way)); int(n) != want[way] {
			t.Errorf("%v passed by %s, want %d", n, way, want[way])
		}
	}
}

// cutOff reads what is left of a connection, which ends without an end of the answer's body.
func (c *client) cutOff(t testing.TB, want string) {
	t.Helper()
	if got := c.rest(); got != text(want) {
		t.Errorf("%q came before the end, want %q", got, text(want))
	}
	c.Close()
}

// noEnd reads what a server still gets of a body, which is neither more than most bytes nor ever complete.
func (s *serverSide) noEnd(t testing.TB, most int) {
	t.Helper()
	rest := s.rest()
	if strings.HasSuffix(rest, text("0¶¶")) {
		t.Errorf("the body is complete: %q", shorten(rest))
	}
	if n := strings.Count(rest, "x"); n > most {
		t.Errorf("%d bytes came, at most %d were to", n, most)
	}
	s.Close()
}

// xs is a body of n bytes in chunks, without its last one.
func xs(n, chunk int) string {
	var b strings.Builder
	for ; n > 0; n -= chunk {
		k := min(n, chunk)
		fmt.Fprintf(&b, "%x¶%s¶", k, strings.Repeat("x", k))
	}
	return b.String()
}

// A body of max_body bytes passes, one byte more does not; whatever the request is like and however it is cut.
func TestMaxBody(t *testing.T) {
	const (
		allow204 = RL + "Allow: 204¶" + reqBody
		list     = "req-hdr=0, req-body=28"
	)
	for _, v := range []struct {
		name, head, body string
		allowed          int // status with on_limit: allow
	}{
		{"one chunk", RL + reqBody, "b¶hello world¶0¶¶", 200},
		{"several", RL + reqBody, "5¶hello¶5¶ worl¶1¶d¶0¶¶", 200},
		{"many", RL + reqBody, strings.Repeat("1¶x¶", 300) + "0¶¶", 200},
		{"204 allowed", allow204, "5¶hello¶6¶ world¶0¶¶", 204},
		{"in the preview", preview(20), "5¶hello¶6¶ world¶0¶¶", 204},
		{"in a preview that is all", preview(20), "5¶hello¶6¶ world¶0; ieof¶¶", 204},
		{"RESPMOD", PL + resBody, "5¶hello¶6¶ world¶0¶¶", 200},
	} {
		t.Run(v.name, func(t *testing.T) {
			for _, policy := range []string{"reject", "allow"} {
				f := startFake(t)
				g := startGateway(t, []string{f.address}, quiet, limited("max_body: 10, on_limit: %s", policy)).ready()
				overBoth(t, func(t *testing.T, listener int) {
					for _, cut := range []int{whole, bytewise} {
						p := newPlayer(t, g, f, listener)
						p.clientCut = cut
						at := cut
						p.write(p.c, text(v.head+v.body), &at)
						switch {
						case policy == "reject":
							p.c.refusal(413, false)
						case v.allowed == 204:
							p.c.passed(t, 204, "max_body", "null-body=0")
						case strings.HasPrefix(v.head, "RESPMOD"):
							p.c.passed(t, 200, "max_body", "res-hdr=0, res-body=19")
							p.c.expect(text(S + v.body))
						default:
							p.c.passed(t, 200, "max_body", list)
							p.c.expect(text(P + v.body))
						}
						if cut == bytewise {
							f.next(t).noEnd(t, 10)
						}
						p.play(simple(RL+reqBody+"a¶hello worl¶0¶¶", forwarded(RL+reqBody+"a¶hello worl¶0¶¶"))...)
					}
				})
				f.idle(t)
				rejected := 0.0
				if policy == "reject" {
					rejected = 4
				}
				if n := g.metric(`rejects_total{reason="max_body"}`); n != rejected {
					t.Errorf("%s: %v rejects", policy, n)
				}
				if n := g.metric(`closes_total{side="server",reason="limit"}`); n != 2 {
					t.Errorf("%s: %v connections to servers were closed, want 2", policy, n)
				}
			}
		})
	}
}

// What was in the preview counts, and is given back without the seam.
func TestMaxBodyBehindThePreview(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, limited("max_body: 10, on_limit: allow")).ready()
	part := preview(4) + "4¶abcd¶0¶¶"
	overBoth(t, func(t *testing.T, listener int) {
		for _, rest := range []string{"6¶efghij¶0¶¶", "6¶efghij¶1¶k¶0¶¶"} {
			p := newPlayer(t, g, f, listener)
			if len(rest) == len("6¶efghij¶0¶¶") {
				p.play(sends(part), arrives(forwarded(part)), answers(goOn), gets(goOn), sends(rest), arrives(rest), answers(page), gets(page))
				p.again(true)
				continue
			}
			p.c.send(text(part))
			s := f.next(t)
			s.gets(part)
			s.send(text(goOn))
			p.c.expect(text(goOn))
			p.c.send(text(rest))
			p.c.passed(t, 200, "max_body", "req-hdr=0, req-body=28")
			p.c.expect(text(P + "4¶abcd¶" + rest))
			s.noEnd(t, 0)
			p.play(simple(v04, forwarded(v04))...)
		}
	})
	g.allowedBy(t, "max_body", map[string]int{"echo": 2})
}

// A 206 to a preview tells the client to use its own body, of which no server sees more.
func TestMaxBodyAndPartialContent(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, limited("max_body: 10")).ready()
	part := previewWith("Allow: 204, 206¶", 10) + "a¶hello worl¶0¶¶"
	answer := "ICAP/1.0 206 Partial Content¶ISTag: \"s\"¶Encapsulated: req-hdr=0, req-body=28¶¶" + P + "0; use-original-body=0¶¶"
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.play(sends(part), arrives(forwarded(part)), answers(answer), gets(answer))
		p.again(true)
	})
}

// A body that has outgrown the replay buffer can't be given back: a 204 is the only way, and without that it is rejected.
func TestMaxBodyBeyondTheBuffer(t *testing.T) {
	const most, size = 1 << 20, 4 << 20
	for _, v := range []struct {
		name, policy, allow string
		status              int
	}{
		{"reject", "reject", "Allow: 204¶", 413},
		{"allow", "allow", "Allow: 204¶", 204},
		{"cannot allow", "allow", "", 413},
	} {
		t.Run(v.name, func(t *testing.T) {
			for _, chunk := range []int{60 << 10, 512 << 10, size} { // the larger ones are spliced
				f := startFake(t)
				g := startGateway(t, []string{f.address}, quiet, limited("max_body: %d, on_limit: %s", most, v.policy)).ready()
				overBoth(t, func(t *testing.T, listener int) {
					c := g.dialFor(t, listener)
					wrote := make(chan error, 1)
					go func() {
						_, err := c.Write([]byte(text(RL + v.allow + reqBody + xs(size, chunk) + "0¶¶")))
						wrote <- err
					}()
					if chunk != size || listener == 0 {
						s := f.next(t)
						s.gets(RL + v.allow + reqBody)
						s.noEnd(t, most)
					} else {
						f.next(t).noEnd(t, most)
					}
					if v.status == 204 {
						c.passed(t, 204, "max_body", "null-body=0")
					} else {
						c.refusal(413, false)
					}
					if err := <-wrote; err != nil { // the rest is read and dropped
						t.Fatal(err)
					}
					c.send(text(v04))
					s := f.next(t)
					s.gets(v04)
					s.send(text(page))
					c.expect(text(page))
					s.release()
				})
				want := map[string]int{}
				if v.policy == "allow" {
					want[map[int]string{204: "204", 413: "cannot_allow"}[v.status]] = 2
				}
				g.allowedBy(t, "max_body", want)
			}
		})
	}
}

// Nothing beyond max_body is spliced, and up to it the bytes are.
func TestMaxBodyIsSpliced(t *testing.T) {
	f := startFake(t)
	const size = 8 << 20
	g := startGateway(t, []string{f.address}, quiet, limited("max_body: %d", size)).ready()
	for _, more := range []int{0, 1} {
		c := g.dialFor(t, 1)
		body := xs(size+more, 8<<20)
		go func() { _, _ = c.Write([]byte(text(RL + reqBody + body + "0¶¶"))) }()
		s := f.next(t)
		s.gets(RL + reqBody)
		if more == 0 {
			s.expect(text(xs(size, 1<<20) + "0¶¶"))
			s.send(text(page))
			c.expect(text(page))
			s.release()
			if n := g.bodyBytes("request", "splice"); n < size/2 {
				t.Errorf("%d bytes were spliced", n)
			}
			continue
		}
		s.noEnd(t, size)
		c.refusal(413, false)
	}
}

// While its body is on its way to its server, a request is answered from there already. Beyond max_body nothing but cutting that answer keeps the limit; where
// requests pass, it goes on.
func TestMaxBodyAfterTheAnswerBegan(t *testing.T) {
	answer := "ICAP/1.0 200 OK¶ISTag: \"s\"¶Encapsulated: res-hdr=0, res-body=19¶¶" + S
	begin := PL + "Encapsulated: res-hdr=0, res-body=19¶¶" + S + "a¶xxxxxxxxxx¶"
	for _, policy := range []string{"reject", "allow"} {
		t.Run(policy, func(t *testing.T) {
			v := startVirtual(t, nil, "", limited("max_body: 10, on_limit: %s", policy))
			var ends []string
			overBoth(t, func(t *testing.T, listener int) {
				c := v.connect(listener)
				v.say(c, begin)
				s := v.f.next(t)
				s.gets(begin)
				s.send(text(answer + "a¶xxxxxxxxxx¶"))
				c.expect(text(answer + "a¶xxxxxxxxxx¶"))
				v.say(c, "1¶x¶")
				if policy == "reject" {
					c.cutOff(t, "")
					s.noEnd(t, 0)
					ends = append(ends, "200 max_body")
					return
				}
				v.say(c, "5¶yyyyy¶0¶¶")
				s.expect(text("1¶x¶5¶yyyyy¶0¶¶"))
				s.send(text("1¶x¶5¶yyyyy¶0¶¶"))
				c.expect(text("1¶x¶5¶yyyyy¶0¶¶"))
				s.release()
				v.settle()
				ends = append(ends, "200 allowed_max_body")
			})
			if policy == "reject" {
				v.charged("reject max_body", "reject max_body", "client limit", "client limit", "server limit", "server limit")
			} else {
				v.allowedBy(t, "max_body", map[string]int{"begun": 2})
			}
			v.logged(ends...)
		})
	}
}

// A request that has its whole answer has been judged: the rest of its body is dropped, and its server left.
func TestMaxBodyAfterTheAnswer(t *testing.T) {
	v := startVirtual(t, nil, "", limited("max_body: 10"))
	begin := RL + "Allow: 204¶" + reqBody + "a¶xxxxxxxxxx¶"
	overBoth(t, func(t *testing.T, listener int) {
		c := v.connect(listener)
		v.say(c, begin)
		s := v.f.next(t)
		s.gets(begin)
		s.send(text(noContent))
		c.expect(text(noContent))
		v.say(c, "1¶x¶")
		s.noEnd(t, 0)
		v.say(c, "0¶¶")
		v.say(c, v04)
		s = v.f.next(t)
		s.gets(v04)
		s.send(text(page))
		c.expect(text(page))
		s.release()
	})
	v.charged("server limit", "server limit")
	v.logged("204 done", "200 done", "204 done", "200 done")
}

// endless is the begin of a request whose body has no end.
const endless = RL + reqBody + "5¶hello¶"

// Beyond max_duration, which runs from the request's heads on, whoever has taken the time.
func TestMaxDuration(t *testing.T) {
	const limit = 10 * time.Second
	answer := "ICAP/1.0 200 OK¶ISTag: \"s\"¶Encapsulated: res-hdr=0, res-body=19¶¶" + S + "5¶hello¶"
	for _, v := range []struct {
		name     string
		policy   string
		play     func(v *virtual, c *client) // up to the limit
		after    func(v *virtual, c *client)
		charges  []string
		logged   string
		allowed  string // way
		unlogged bool   // the request goes on
	}{
		{"the body has no end", "reject", func(v *virtual, c *client) {
			v.say(c, endless)
			v.pass(4 * time.Second)
			v.say(c, "1¶x¶")
			v.pass(6*time.Second - 1)
		}, func(v *virtual, c *client) {
			s := v.f.next(v.t)
			s.gets(endless + "1¶x¶")
			s.noEnd(v.t, 0)
			c.refusal(413, false)
			v.say(c, "1¶x¶0¶¶") // the rest is dropped
		}, []string{"reject max_duration", "server limit"}, "413 max_duration", "", false},
		{"the server is late", "reject", func(v *virtual, c *client) {
			v.say(c, v05)
			v.pass(limit - 1)
		}, func(v *virtual, c *client) {
			s := v.f.next(v.t)
			s.gets(v05)
			s.dropped(v.t)
			c.refusal(502, false)
		}, []string{"reject max_duration", "server limit"}, "502 max_duration", "", false},
		{"the verdict on the preview is late", "reject", func(v *virtual, c *client) {
			v.say(c, preview(4)+"4¶abcd¶0¶¶")
			v.pass(limit - 1)
		}, func(v *virtual, c *client) {
			s := v.f.next(v.t)
			s.gets(preview(4) + "4¶abcd¶0¶¶")
			s.dropped(v.t)
			c.refusal(502, false)
		}, []string{"reject max_duration", "server limit"}, "502 max_duration", "", false},
		{"in the queue", "reject", func(v *virtual, c *client) {
			v.servers0()[0].MarkFull(v.time.Load() + int64(time.Minute))
			v.say(c, v05)
			v.pass(limit - 1)
		}, func(v *virtual, c *client) {
			c.refusal(502, false)
			v.servers0()[0].MarkFull(0)
			if n := v.table.Load().pools[0].queue.Depth(); n != 0 {
				v.t.Errorf("%d wait", n)
			}
		}, []string{"reject max_duration"}, "502 max_duration", "", false},
		{"the answer has begun", "reject", func(v *virtual, c *client) {
			v.say(c, v08)
			s := v.f.next(v.t)
			s.gets(v08)
			s.send(text(answer))
			c.expect(text(answer))
			v.pass(limit - 1)
		}, func(v *virtual, c *client) { c.cutOff(v.t, "") },
			[]string{"client limit", "reject max_duration", "server limit"}, "200 max_duration", "", false},
		{"the answer has begun, allow", "allow", func(v *virtual, c *client) {
			v.say(c, PL+resBody+"5¶hello¶")
			s := v.f.next(v.t)
			s.gets(PL + resBody + "5¶hello¶")
			s.send(text(answer))
			c.expect(text(answer))
			v.pass(limit - 1)
			go func() {
				for range 2 {
					s.expect(text("1¶x¶"))
					s.send(text("1¶x¶"))
				}
				s.expect(text("0¶¶"))
				s.send(text("0¶¶"))
				s.release()
			}()
		}, func(v *virtual, c *client) {
			for range 2 {
				v.say(c, "1¶x¶")
				c.expect(text("1¶x¶"))
				v.pass(limit)
			}
			v.say(c, "0¶¶")
			c.expect(text("0¶¶"))
		}, nil, "200 allowed_max_duration", "begun", false},
		{"given back", "allow", func(v *virtual, c *client) {
			v.say(c, endless)
			v.pass(limit - 1)
		}, func(v *virtual, c *client) {
			c.passed(v.t, 200, "max_duration", "req-hdr=0, req-body=28")
			c.expect(text(P + "5¶hello¶"))
			s := v.f.next(v.t)
			s.gets(endless)
			s.noEnd(v.t, 0)
			for range 3 { // for as long as it takes: no server has anything of it
				v.pass(limit)
				v.say(c, "1¶x¶")
				c.expect(text("1¶x¶"))
			}
			v.say(c, "0¶¶")
			c.expect(text("0¶¶"))
		}, []string{"server limit"}, "200 allowed_max_duration", "echo", false},
		{"204", "allow", func(v *virtual, c *client) {
			v.say(c, preview(4)+"4¶abcd¶0¶¶")
			v.pass(limit - 1)
		}, func(v *virtual, c *client) {
			c.passed(v.t, 204, "max_duration", "null-body=0")
			s := v.f.next(v.t)
			s.gets(preview(4) + "4¶abcd¶0¶¶")
			s.dropped(v.t)
		}, []string{"server limit"}, "204 allowed_max_duration", "204", false},
		{"beyond the buffer", "allow", func(v *virtual, c *client) {
			v.say(c, RL+reqBody+xs(20<<10, 1<<10))
			v.say(c, xs(10, 10))
			v.pass(limit - 1)
		}, func(v *virtual, c *client) {
			c.refusal(413, false)
			s := v.f.next(v.t)
			s.gets(RL + reqBody)
			s.noEnd(v.t, 30<<10)
			v.say(c, "0¶¶")
		}, []string{"reject max_duration", "server limit"}, "413 max_duration", "cannot_allow", false},
	} {
		t.Run(v.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				g := startVirtual(t, nil, "    queue: {timeout: 1h}\n    ejection: {consecutive: 1}\n    balance: peak_ewma\n    retry: {replay_buffer: 16KiB}\n",
					limited("max_duration: %v, on_limit: %s", limit, v.policy))
				c := g.connect(listener)
				v.play(g, c)
				g.charged()
				g.pass(time.Duration(1 + tick))
				v.after(g, c)
				if v.charges != nil {
					g.charged(v.charges...)
				} else {
					g.charged()
				}
				want := map[string]int{}
				if v.allowed != "" {
					want[v.allowed] = 1
				}
				g.allowedBy(t, "max_duration", want)
				if g.servers0()[0].Health.Ejected() {
					t.Error("the server was blamed")
				}
				if v.allowed != "begun" && !strings.Contains(v.name, "begun") && g.latency() > 0 {
					t.Errorf("the server has a latency of %v", g.latency())
				}
				g.logged(v.logged)
			})
		})
	}
}

// The time is that of all attempts together.
func TestMaxDurationOfReplay(t *testing.T) {
	v := startVirtualPair(t, "    timeouts: {response: 1h}\n", limited("max_duration: 10s"))
	overBoth(t, func(t *testing.T, listener int) {
		c := v.connect(listener)
		v.say(c, v05)
		s, other := v.next(t)
		s.gets(v05)
		v.pass(6 * time.Second)
		s.reset()
		s = other.next(t)
		s.gets(v05)
		v.pass(4*time.Second - 1)
		v.settle()
		if unread(t, &serverSide{client: c}) != 0 {
			t.Fatal("an answer came too early")
		}
		v.pass(time.Duration(1 + tick))
		c.refusal(502, false)
		s.dropped(t)
	})
}

// OPTIONS have no such limits, and neither has a client between its requests.
func TestMaxDurationIsForRequests(t *testing.T) {
	v := startVirtual(t, nil, "    timeouts: {response: 1h}\n    long_streams: {after: 1s}\n", limited("max_duration: 10s, max_body: 1"))
	c := v.connect(1)
	options := "OPTIONS icap://gw/r ICAP/1.0¶Host: gw¶¶"
	v.say(c, options)
	s := v.f.next(t)
	s.gets(options)
	v.pass(time.Minute)
	if n := v.metric(`server_long_streams{pool="dlp",server="` + v.f.address + `"}`); n != 0 {
		t.Errorf("%v long streams", n)
	}
	s.send(text("ICAP/1.0 200 OK¶ISTag: \"s\"¶Methods: REQMOD¶Encapsulated: null-body=0¶¶"))
	c.status(200)
	s.release()
	v.pass(time.Minute)
	v.say(c, v04)
	s = v.f.next(t)
	s.gets(v04)
	s.send(text(page))
	c.expect(text(page))
	s.release()
	v.charged("server idle") // the connection of the OPTIONS
}

// A client that has gone gets nothing, and neither does its request go on for longer.
func TestMaxDurationClientGone(t *testing.T) {
	for _, policy := range []string{"reject", "allow"} {
		v := startVirtual(t, nil, "", limited("max_duration: 10s, on_limit: %s", policy))
		c := v.connect(1)
		v.say(c, v05)
		s := v.f.next(t)
		s.gets(v05)
		c.reset()
		eventually(t, "the client gone", func() bool { return v.Sessions() == 0 })
		v.pass(10*time.Second + time.Duration(tick))
		s.dropped(t)
		if n := v.inFlight(); n != 0 {
			t.Errorf("%d are in flight", n)
		}
		v.allowedBy(t, "max_duration", map[string]int{})
		v.logged("502 max_duration")
	}
}

// A reload changes the limits of requests that begin after it, and of those that wait.
func TestLimitsReloaded(t *testing.T) {
	v := startVirtual(t, nil, "    queue: {timeout: 1h}\n    slow_start: 0s\n    timeouts: {response: 1h}\n", limited("max_duration: 10s, max_body: 10"))
	next := *v.config.Load()
	next.Services = append(next.Services[:0:0], next.Services...)
	next.Services[0].MaxDuration, next.Services[0].MaxBody = configs.Duration(20*time.Second), 20
	v.load = func() (*configs.Config, error) { return &next, nil }

	running, waiting := v.connect(1), v.connect(1)
	v.say(running, endless)
	s := v.f.next(t)
	s.gets(endless)
	v.servers0()[0].MarkFull(v.time.Load() + int64(time.Hour/2))
	v.say(waiting, endless)
	if err := v.Reload(); err != nil {
		t.Fatal(err)
	}
	v.settle()
	v.pass(10*time.Second + time.Duration(tick))
	running.refusal(413, false)
	s.noEnd(t, 0)
	v.pass(10*time.Second - 2*time.Duration(tick))
	if unread(t, &serverSide{client: waiting}) != 0 {
		t.Fatal("an answer came too early")
	}
	v.pass(3 * time.Duration(tick))
	waiting.refusal(502, false)

	v.servers0()[0].MarkFull(0)
	c := v.connect(1)
	v.say(c, RL+reqBody+"14¶xxxxxxxxxxxxxxxxxxxx¶")
	s = v.f.next(t)
	s.gets(RL + reqBody + "14¶xxxxxxxxxxxxxxxxxxxx¶")
	v.say(c, "1¶x¶")
	c.refusal(413, false)
	s.noEnd(t, 0)
}

// streams are requests without an end on a gateway in front of one server, one second after the other.
type streams struct {
	*virtual
	clients []*client
	servers []*serverSide
}

// startStreams opens n streams over icap, where streams are long after 10 s. Two of them may be on a server's four connections.
func startStreams(t *testing.T, n int, on string, begin string) *streams {
	t.Helper()
	v := &streams{virtual: startVirtual(t, nil, "    reserve: 0\n    slow_start: 0s\n    queue: {timeout: 1h}\n    timeouts: {response: 1h}\n"+
		"    long_streams: {after: 10s, share: 0.5}\n", limited("on_limit: %s", on))}
	v.servers0()[0].Learn(4)
	for range n {
		v.open(begin)
	}
	return v
}

func (v *streams) open(begin string) {
	v.t.Helper()
	c := v.connect(1)
	v.say(c, begin)
	s := v.f.next(v.t)
	s.gets(begin)
	v.clients, v.servers = append(v.clients, c), append(v.servers, s)
	v.pass(time.Second)
}

func (v *streams) long(want int) {
	v.t.Helper()
	if n := v.metric(`server_long_streams{pool="dlp",server="` + v.f.address + `"}`); int(n) != want {
		v.t.Errorf("%v long streams, want %d", n, want)
	}
	if n := v.Status().Pools[0].Servers[0].LongStreams; n != want {
		v.t.Errorf("the status says %d long streams, want %d", n, want)
	}
}

// A server's connections are not all for long streams: the one that has been there for the longest goes, and who waits gets its connection.
func TestLongStreams(t *testing.T) {
	v := startStreams(t, 4, "reject", endless)
	short := v.connect(0)
	v.say(short, v04) // waits: all four connections are taken
	v.long(0)
	v.pass(6*time.Second - 1)
	v.long(0)
	v.pass(1 + time.Duration(tick))
	v.long(1)
	v.pass(time.Second)
	v.long(2)
	v.charged()
	v.f.idle(t)
	v.pass(time.Second)
	v.long(2)
	v.charged("reject long_streams", "server limit")
	v.clients[0].refusal(413, false)
	v.servers[0].noEnd(t, 0)
	s := v.f.next(t)
	s.gets(v04)
	s.send(text(page))
	short.expect(text(page))
	s.release()
	v.pass(time.Second)
	v.charged("reject long_streams", "server limit")
	v.clients[1].refusal(413, false)
	v.servers[1].noEnd(t, 0)
	v.quiet(5 * time.Second) // the two that are left stay: nobody comes to be long as well
	v.long(2)

	v.say(v.clients[2], "0¶¶") // one ends
	v.servers[2].expect(text("0¶¶"))
	v.servers[2].send(text(page))
	v.clients[2].expect(text(page))
	v.servers[2].release()
	v.settle()
	v.long(1)
	v.open(endless)
	v.quiet(12 * time.Second)
	v.long(2)
}

// Where requests pass, a stream whose client takes no 204 any more, or that has an answer, is cut all the same: its connection is needed.
func TestLongStreamsPass(t *testing.T) {
	const allow204 = RL + "Allow: 204¶" + reqBody + "5¶hello¶"
	answer := "ICAP/1.0 200 OK¶ISTag: \"s\"¶Encapsulated: res-hdr=0, res-body=19¶¶" + S + "5¶hello¶"
	for _, tt := range []struct {
		name, begin string
		after       func(v *streams, c *client, s *serverSide) // it has begun
		then        func(v *streams, c *client)
		way, logged string
		charges     []string
	}{
		{"204", allow204, func(*streams, *client, *serverSide) {}, func(v *streams, c *client) {
			c.passed(v.t, 204, "long_streams", "null-body=0")
			v.say(c, "1¶x¶0¶¶")
		}, "204", "204 allowed_long_streams", []string{"server limit"}},
		{"echo", endless, func(*streams, *client, *serverSide) {}, func(v *streams, c *client) {
			c.passed(v.t, 200, "long_streams", "req-hdr=0, req-body=28")
			v.say(c, "1¶x¶0¶¶")
			c.expect(text(P + "5¶hello¶1¶x¶0¶¶"))
		}, "echo", "200 allowed_long_streams", []string{"server limit"}},
		{"beyond the buffer", endless, func(v *streams, c *client, s *serverSide) {
			more := text(xs(100<<10, 10<<10))
			go c.Write([]byte(more))
			s.expect(more)
			v.settle()
		}, func(v *streams, c *client) {
			c.refusal(413, false)
			v.say(c, "0¶¶")
		}, "cannot_allow", "413 long_streams", []string{"reject long_streams", "server limit"}},
		{"answer begun", PL + resBody + "5¶hello¶", func(v *streams, c *client, s *serverSide) {
			s.send(text(answer))
			c.expect(text(answer))
		}, func(v *streams, c *client) { c.cutOff(v.t, "") }, "cannot_allow", "200 long_streams", []string{"client limit", "reject long_streams", "server limit"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := startStreams(t, 1, "allow", tt.begin)
			c, s := v.clients[0], v.servers[0]
			tt.after(v, c, s)
			v.open(endless)
			v.open(endless)
			v.pass(10 * time.Second)
			v.charged(tt.charges...)
			s.noEnd(t, 0)
			tt.then(v, c)
			v.long(2)
			v.allowedBy(t, "long_streams", map[string]int{tt.way: 1})
			v.settle()
			v.Close()
			if got := logged(t, v.log); !slices.Contains(got, tt.logged) {
				t.Errorf("the access log says %q, want %q among it", got, tt.logged)
			}
		})
	}
}

// A stream that has its answer already is left without a word, and its client goes on.
func TestLongStreamThatIsAnswered(t *testing.T) {
	v := startStreams(t, 1, "reject", RL+"Allow: 204¶"+reqBody+"5¶hello¶")
	c, s := v.clients[0], v.servers[0]
	s.send(text(noContent))
	c.expect(text(noContent))
	v.open(endless)
	v.open(endless)
	v.pass(10 * time.Second)
	v.charged("server limit")
	s.noEnd(t, 0)
	v.say(c, "1¶x¶0¶¶")
	v.say(c, v04)
	s = v.f.next(t)
	s.gets(v04)
	v.long(2)
}

// The bound follows the server's cap and a reload, at once: otherwise those that are there could hold all connections for good.
func TestLongStreamsOfSmallerCap(t *testing.T) {
	for _, v := range []struct {
		name   string
		change func(v *streams)
	}{
		{"Max-Connections", func(v *streams) {
			v.servers0()[0].Learn(2)
			v.onCap(v.servers0()[0])
		}},
		{"reload", func(v *streams) {
			next := *v.config.Load()
			next.Pools = append(next.Pools[:0:0], next.Pools...)
			next.Pools[0].LongStreams.Share = 0.25
			v.load = func() (*configs.Config, error) { return &next, nil }
			if err := v.Reload(); err != nil {
				t.Fatal(err)
			}
			v.servers0()[0].SetExpedite(func() {})
		}},
	} {
		t.Run(v.name, func(t *testing.T) {
			s := startStreams(t, 2, "reject", endless)
			s.pass(11 * time.Second)
			s.long(2)
			v.change(s)
			s.settle()
			s.long(1)
			s.clients[0].refusal(413, false)
			s.servers[0].noEnd(t, 0)
			s.charged("reject long_streams", "server limit")
		})
	}
}

// A reload that takes long_streams out throws nobody out, whatever the share was: neither who is long already, nor who comes to be.
func TestLongStreamsAreTakenOut(t *testing.T) {
	v := startStreams(t, 4, "reject", endless)
	v.pass(7*time.Second + time.Duration(tick))
	v.long(2)
	next := *v.config.Load()
	next.Pools = append(next.Pools[:0:0], next.Pools...)
	next.Pools[0].LongStreams = configs.LongStreams{Share: 0.25}
	v.load = func() (*configs.Config, error) { return &next, nil }
	if err := v.Reload(); err != nil {
		t.Fatal(err)
	}
	v.servers0()[0].SetExpedite(func() {})
	v.quiet(30 * time.Second)
	v.long(4)
	for i, c := range v.clients {
		v.say(c, "0¶¶")
		s := v.servers[i]
		s.expect(text("0¶¶"))
		s.send(text(page))
		c.expect(text(page))
		s.release()
	}
	v.settle()
	v.long(0)
}

// Without a cap there is nothing to have a share of, and without long_streams nothing is counted.
func TestLongStreamsWithoutBound(t *testing.T) {
	for _, after := range []time.Duration{0, 10 * time.Second} {
		v := &streams{virtual: startVirtual(t, nil, fmt.Sprintf("    timeouts: {response: 1h}\n    long_streams: {after: %v, share: 0}\n", after), "")}
		for range 3 {
			v.open(endless)
		}
		v.quiet(30 * time.Second)
		if after == 0 {
			v.long(0)
		} else {
			v.long(3)
		}
	}
}

// The log names what is beyond a limit, at a limited rate.
func TestLimitsAreLogged(t *testing.T) {
	f := startFake(t)
	g := newGateway(t, []string{f.address}, quiet, "services: [{path: /r, max_body: 4}, {path: /s, max_body: 4, on_limit: allow}]")
	book := g.keepLog()
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	g.ready()
	c := g.dial(1)
	for range 5 {
		c.send(text(v05))
		c.refusal(413, false)
		c.send(text(strings.Replace(v05, "/r", "/s", 1)))
		c.passed(t, 200, "max_body", "req-hdr=0, req-body=28")
		c.expect(text(P + chunks))
	}
	for text, service := range map[string]string{"requests are beyond a limit, and rejected": "service=/r", "requests pass unjudged": "service=/s"} {
		if lines := book.lines(text); len(lines) != 1 || !containsAll(lines[0], []string{"level=WARN", "reason=max_body", "pool=dlp", service}) {
			t.Errorf("%s: %q", text, lines)
		}
	}
}

// Where the gateway ends previews itself, what was in one counts as well, and its time.
func TestLimitsOfEndedPreviews(t *testing.T) {
	v := startVirtual(t, nil, "    preview: \"off\"\n", limited("max_body: 10, max_duration: 10s, on_limit: allow"))
	overBoth(t, func(t *testing.T, listener int) {
		for _, tt := range []struct {
			name, rest string
			status     int
		}{
			{"as much", "6¶efghij¶0¶¶", 0},
			{"more", "6¶efghij¶1¶k¶0¶¶", 200},
		} {
			c := v.connect(listener)
			v.say(c, preview(4)+"4¶abcd¶0¶¶")
			s := v.f.next(t)
			s.gets(RL + reqBody + "4¶abcd¶")
			c.expect(text(goOn))
			v.say(c, tt.rest)
			if tt.status == 0 {
				s.expect(text(tt.rest))
				s.send(text(page))
				c.expect(text(page))
				s.release()
				continue
			}
			c.passed(t, 200, "max_body", "req-hdr=0, req-body=28")
			c.expect(text(P + "4¶abcd¶" + tt.rest))
			s.noEnd(t, 0)
		}
		c := v.connect(listener)
		v.say(c, preview(4)+"4¶ab") // no server has heard of it
		v.pass(10*time.Second + time.Duration(tick))
		c.passed(t, 204, "max_duration", "null-body=0")
		v.f.idle(t)
	})
}
