package gateway

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// noPreviews is YAML of a pool whose servers can't do previews.
const noPreviews = quiet + "    preview: \"off\"\n"

// TestEndedPreviews: the vectors on previews, in front of servers that see none.
func TestEndedPreviews(t *testing.T) {
	const (
		abcd     = "4¶abcd¶"
		rest     = "2¶ef¶0¶¶"
		told     = RL + "Allow: 204¶"
		allow    = "Allow: 204¶"
		both     = "Allow: 204, 206¶"
		null     = "Preview: 0¶" + reqNull
		partial  = "ICAP/1.0 206 Partial Content¶ISTag: \"s\"¶Encapsulated: res-hdr=0, res-body=19¶¶" + S + "5¶hello¶0; use-original-body=4¶¶"
		original = okLine + tag + echoList + P + abcd + rest
	)
	// asked is an exchange in which the gateway asks for the rest; fields are of the request, and go on.
	asked := func(fields string, n int, part, last, rest string, end ...step) []step {
		plain := RL + fields + reqBody
		return append([]step{sends(previewWith(fields, n) + part + last), arrives(forwarded(plain) + part), gets(goOn), sends(rest), arrives(rest)}, end...)
	}
	// all is one in which the preview is all: the server gets head and body.
	all := func(request, head, body, answer, want string) []step {
		return []step{sends(request), arrives(forwarded(head) + body), answers(answer), gets(want)}
	}
	pages := []step{answers(page), gets(page)}
	var vectors []exchange
	add := func(name string, steps []step) { vectors = append(vectors, exchange{name, steps}) }

	add("V10 preview-100", asked("", 4, abcd, "0¶¶", rest, pages...))
	add("V10 echo-after-100", asked("", 4, abcd, "0¶¶", rest, answers(original), gets(original)))
	add("V10 204-after-100-with-allow", asked(allow, 4, abcd, "0¶¶", rest, answers(noContent), gets(noContent)))
	add("R04 204-after-100-without-allow", asked("", 4, abcd, "0¶¶", rest, answers(noContent), gets(original)))
	add("V11 preview-ieof", all(preview(9)+abcd+"0; ieof¶¶", told+reqBody, abcd+"0¶¶", noContent, noContent))
	add("V11 200-to-ieof", all(preview(9)+abcd+"0; ieof¶¶", told+reqBody, abcd+"0¶¶", page, page))
	add("V11 preview-ieof-with-allow", all(previewWith(allow, 9)+abcd+"0; ieof¶¶", told+reqBody, abcd+"0¶¶", noContent, noContent))
	add("V11 preview-ieof-with-206", all(previewWith("Allow: 206¶", 9)+abcd+"0; ieof¶¶", RL+"Allow: 206¶"+reqBody, abcd+"0¶¶", noContent, noContent))
	add("V12 exact-ieof", all(preview(4)+abcd+"0; ieof¶¶", told+reqBody, abcd+"0¶¶", noContent, noContent))
	add("V13 preview-exact-plain", asked("", 4, abcd, "0¶¶", "0¶¶", pages...))
	add("V14 preview0-body", asked("", 0, "", "0¶¶", chunks, pages...))
	add("V15 preview0-ieof", all(preview(0)+"0; ieof¶¶", told+reqBody, "0¶¶", noContent, noContent))
	add("V16 preview0-null", all(RL+null, told+reqNull, "", page, page))
	add("V16 preview0-null-204", all(RL+null, told+reqNull, "", noContent, noContent))
	add("V16 preview0-null-with-allow", all(RL+allow+null, RL+allow+reqNull, "", noContent, noContent))
	for _, last := range []string{"0;ieof", "0 ; ieof", "0;  ieof", "00; IEOF", "0; ieof; x=\"y\""} {
		add("V17 "+last, all(preview(9)+abcd+last+"¶¶", told+reqBody, abcd+"0¶¶", noContent, noContent))
	}
	add("V20 trailer-of-a-preview", asked("", 4, abcd, "0¶X-T: 1¶¶", rest, pages...))
	add("V21 leading-zeros", asked("", 4, "4¶abcd¶", "000¶¶", rest, pages...))
	add("M33 preview-in-two-chunks", asked("", 4, "2¶ab¶2¶cd¶", "0¶¶", "0¶¶", pages...))
	add("M34 preview-short-plain", asked("", 9, abcd, "0¶¶", rest, pages...))
	add("M36 rest-before-100", []step{sends(preview(4) + abcd + "0¶¶" + rest), arrives(forwarded(RL+reqBody) + abcd), gets(goOn), arrives(rest), answers(page), gets(page)})
	add("M53 use-original-body-in-preview", asked("", 9, abcd, "0; use-original-body=4¶¶", rest, pages...))
	add("R06 early-100", []step{sends(preview(4) + abcd + "0¶¶"), arrives(forwarded(RL+reqBody) + abcd), answers(goOn), gets(goOn), sends(rest), arrives(rest), answers(goOn + page), gets(page)})
	add("R08 100-after-ieof", all(preview(4)+abcd+"0; ieof¶¶", told+reqBody, abcd+"0¶¶", goOn+noContent, noContent))
	add("R09 100-null-body", all(RL+null, told+reqNull, "", goOn+page, page))
	add("R16 206-after-100", asked(both, 4, abcd, "0¶¶", rest, answers(partial), gets(partial)))
	add("R16 206-to-ieof", all(previewWith(both, 9)+abcd+"0; ieof¶¶", RL+both+reqBody, abcd+"0¶¶", partial, partial))
	add("no preview at all", simple(v05, forwarded(v05)))

	f := startFake(t)
	g := startGateway(t, []string{f.address}, noPreviews, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		for _, v := range vectors {
			for _, cut := range []int{whole, 140, bytewise} {
				t.Run(fmt.Sprint(v.name, " ", cut), func(t *testing.T) {
					p := newPlayer(t, g, f, listener)
					p.clientCut = cut
					p.play(v.steps...)
					p.again(true)
				})
			}
		}
	})
}

// M33: no server hears of a preview that is larger than its client has said.
func TestEndedPreviewOverrun(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, noPreviews, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		for _, part := range []string{preview(4) + "2¶ab¶", "6¶cdefgh¶0¶¶"} {
			p.c.send(text(part))
			g.settle()
		}
		p.c.refusal(400, true)
		newPlayer(t, g, f, listener).play(simple(v04, forwarded(v04))...)
	})
}

// A server hears of a request when its preview is in, which may be larger than replay_buffer, and gets the 100 of nobody. The client gets it alone in its segment.
func TestEndedPreviewArrivesSlowly(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, noPreviews+"    retry: {replay_buffer: 1KiB}\n", "").ready()
	body := chunked(64<<10, 8<<10)
	body = body[:len(body)-len(lastChunk)]
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		head := RL + reqBody
		p.c.send(text(previewWith("", 64<<10)))
		for rest := body; rest != ""; {
			n := min(len(rest), 10000)
			p.c.send(rest[:n])
			rest = rest[n:]
			g.settle()
			f.idle(t)
		}
		before := segments(t, p.c)
		p.c.send(lastChunk)
		s := f.next(t)
		s.gets(head)
		s.expect(body)
		p.c.expect(text(goOn))
		if n := segments(t, p.c) - before; n != 1 {
			t.Errorf("the 100 came in %d segments", n)
		}
		p.c.send(body + lastChunk)
		s.expect(body + lastChunk)
		s.send(text(page))
		p.c.expect(text(page))
		p.s = s
		s.release()
		p.again(true)
	})
}

// The 100 is said when a server takes the request, and not before: as long as none does, the rest stays with the client, which can get a 204.
func TestEndedPreviewWaitsForServer(t *testing.T) {
	f := startFake(t)
	f.says("", optionsAnswer+"Max-Connections: 1¶")
	g := startGateway(t, []string{f.address}, noPreviews+"    reserve: 0\n    queue: {timeout: 1h}\n", "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		c, d := g.dialFor(t, listener), g.dialFor(t, listener)
		c.send(text(v05))
		s := f.next(t)
		s.gets(v05)
		part, rest := "4¶abcd¶0¶¶", chunked(1<<20, 10<<10)
		wrote := make(chan error, 1)
		go func() { _, err := io.WriteString(d, text(preview(4)+part)+rest); wrote <- err }() // M36, while it waits
		queue := g.table.Load().pools[0].queue
		eventually(t, "the second request in line", func() bool { return queue.Depth() == 1 })
		g.settle()
		if n := unread(t, &serverSide{client: d}); n != 0 {
			t.Fatal("a 100 came while there was no server")
		}
		g.onLoops(func(l *loop) {
			for s := range l.sessions {
				if s.tx.waiting && len(s.tx.held.B) > 1<<10 {
					t.Errorf("%d bytes of a request that waits are held", len(s.tx.held.B))
				}
			}
		})
		s.send(text(page))
		c.expect(text(page))
		s.release()
		s = f.next(t)
		s.gets(RL + reqBody)
		s.expect(text("4¶abcd¶"))
		d.expect(text(goOn))
		s.expect(rest)
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		s.send(text(page))
		d.expect(text(page))
		s.release()
	})
}

// With no server usable a client that has sent a preview gets its answer instead of the 100: a 204 even if it has not allowed one, or a 503.
func TestEndedPreviewWithoutServer(t *testing.T) {
	f := startFake(t)
	for policy, rest := range map[string]string{"allow": allowing, "reject": ""} {
		g := startGateway(t, []string{f.address}, noPreviews+"    panic_threshold: 0\n", rest).ready()
		g.downForGood()
		for _, request := range []string{preview(4) + "4¶abcd¶0¶¶", preview(4) + "4¶abcd¶0; ieof¶¶", preview(0) + "0¶¶", RL + "Preview: 0¶" + reqNull} {
			overBoth(t, func(t *testing.T, listener int) {
				c := g.dialFor(t, listener)
				for range 2 {
					c.send(text(request))
					if policy == "allow" {
						c.passed(t, 204, "no_server", "null-body=0")
					} else {
						c.refusal(503, false)
					}
				}
			})
		}
	}
}

// The server dies after the 100: another one gets the whole, and the client hears nothing of it, be the request in memory or in a file. What can't be sent again
// is a 502, or passes if the client gets its own message back.
func TestEndedPreviewIsReplayed(t *testing.T) {
	part := "4¶abcd¶0¶¶"
	for _, v := range []struct {
		name, pool, rest string
		size             int
		want             string // "": another server; else the start of the answer
	}{
		{"held", "", "", 10 << 10, ""},
		{"in a file", "    retry: {replay_buffer: 16KiB, spill: 64MiB, budget: 10}\n", "state_dir: DIR\n", 2 << 20, ""},
		{"gone", "    retry: {replay_buffer: 16KiB}\n", "", 2 << 20, "ICAP/1.0 502 "},
		{"not to be sent again", "    retry: {attempts: 0}\n", allowing, 10 << 10, "ICAP/1.0 200 "},
	} {
		t.Run(v.name, func(t *testing.T) {
			p := startPair(t, "    preview: \"off\"\n"+v.pool, strings.ReplaceAll(v.rest, "DIR", fmt.Sprintf("%q", t.TempDir())))
			rest := chunked(v.size, 10<<10)
			overBoth(t, func(t *testing.T, listener int) {
				c := p.dialFor(t, listener)
				c.send(text(preview(4) + part))
				s, other := p.next(t)
				s.gets(RL + reqBody)
				s.expect(text("4¶abcd¶"))
				c.expect(text(goOn))
				go io.WriteString(c, rest)
				s.expect(rest)
				s.reset()
				switch {
				case v.want == "":
					s = other.next(t)
					s.gets(RL + reqBody)
					s.expect(text("4¶abcd¶") + rest)
					s.send(text(page))
					c.expect(text(page))
					s.release()
				case strings.HasPrefix(v.want, "ICAP/1.0 200"):
					c.passed(t, 200, "server_failed", "req-hdr=0, req-body=28")
					c.expect(text(P+"4¶abcd¶") + rest)
				default:
					c.refusal(502, false)
				}
			})
		})
	}
}

// R04: a 204 after the 100 that the client has not allowed, to a request that is not held any more, can't be turned into anything.
func TestEndedPreview204OfALargeBody(t *testing.T) {
	rest := chunked(1<<20, 10<<10)
	for _, pool := range []string{"    retry: {replay_buffer: 16KiB}\n", spilled} { // what is in a file is for servers
		f := startFake(t)
		g := startGateway(t, []string{f.address}, noPreviews+pool, fmt.Sprintf("state_dir: %q", t.TempDir())).ready()
		overBoth(t, func(t *testing.T, listener int) {
			for _, allow := range []string{"", "Allow: 204¶"} {
				p := newPlayer(t, g, f, listener)
				p.c.send(text(previewWith(allow, 4) + "4¶abcd¶0¶¶"))
				s := f.next(t)
				s.gets(RL + allow + reqBody)
				s.expect(text("4¶abcd¶"))
				p.c.expect(text(goOn))
				go io.WriteString(p.c, rest)
				s.expect(rest)
				s.send(text(noContent))
				if allow == "" {
					p.c.refusal(502, false)
					s.dropped(t)
				} else {
					p.c.expect(text(noContent))
					s.release()
				}
			}
		})
		if n := g.metric("unchanged_echoed_total"); n != 0 {
			t.Errorf("%v were turned into a 200", n)
		}
	}
}

// A used connection that ends after the gateway's 100 has most likely been closed while it was idle, as without a preview: that says nothing of the server.
func TestEndedPreviewOnAnEndedConnection(t *testing.T) {
	for _, used := range []bool{true, false} {
		v, fakes := startEjecting(t, 2, "    preview: \"off\"\n    retry: {attempts: 0}\n    queue: {max: 0}\n    ejection: {consecutive: 1}\n")
		other := v.servers0()[1]
		other.SetWeight(0)
		c := v.connect(1)
		if used {
			v.say(c, v04)
			s := fakes[0].next(t)
			s.gets(v04)
			s.send(text(page))
			c.expect(text(page))
			s.release()
			v.settle()
		}
		v.say(c, preview(4)+"4¶abcd¶0¶¶")
		s := fakes[0].next(t)
		s.gets(RL + reqBody)
		s.expect(text("4¶abcd¶"))
		c.expect(text(goOn))
		other.SetWeight(1) // so that this one can be spared
		s.Close()
		c.refusal(502, false)
		if got := v.ejected(); used != (len(got) == 0) || used != (s.served > 0) {
			t.Errorf("used %v: ejected %v", used, got)
		}
	}
}

// An answer that comes early, while the rest of the body does: the client reads it while it writes, and both connections go on.
func TestEndedPreviewEarlyAnswer(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, noPreviews, "").ready()
	rest := chunked(4<<20, 60<<10)
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		p.c.send(text(preview(4) + "4¶abcd¶0¶¶"))
		s := f.next(t)
		s.gets(RL + reqBody)
		s.expect(text("4¶abcd¶"))
		p.c.expect(text(goOn))
		s.send(text(echo))
		p.c.expect(text(echo))
		go io.WriteString(p.c, rest)
		s.expect(rest)
		p.s = s
		s.release()
		p.again(true)
	})
}

// The time for the verdict does not run while the client sends the rest that the gateway has asked for; while there is no server, it does.
func TestEndedPreviewDecision(t *testing.T) {
	overBoth(t, func(t *testing.T, listener int) {
		g := startVirtual(t, nil, "    preview: \"off\"\n    queue: {timeout: 1h}\n", "services: [{on_timeout: allow, decision_timeout: 4s}]")
		c := g.connect(listener)
		g.say(c, preview(4)+"4¶ab")
		g.pass(30 * time.Second) // the client's own time
		g.f.idle(t)
		g.say(c, "cd¶0¶¶")
		s := g.f.next(t)
		s.gets(RL + reqBody)
		s.expect(text("4¶abcd¶"))
		c.expect(text(goOn))
		g.pass(30 * time.Second) // and again
		g.say(c, "0¶¶")
		s.expect(text("0¶¶"))
		g.pass(4*time.Second - 1)
		g.settle()
		if unread(t, &serverSide{client: c}) != 0 {
			t.Fatal("an answer came too early")
		}
		g.pass(time.Duration(1 + tick))
		c.passed(t, 200, "late", "req-hdr=0, req-body=28")
		c.expect(text(P + "4¶abcd¶0¶¶"))
		s.dropped(t)

		g.table.Load().pools[0].servers[0].MarkFull(g.time.Load() + int64(time.Minute))
		g.say(c, preview(4)+"4¶abcd¶0¶¶")
		g.pass(4*time.Second + time.Duration(tick))
		c.passed(t, 204, "late", "null-body=0") // before the 100 everybody takes one
	})
}

// A reload that takes previews away from servers holds for the next request of a live connection.
func TestEndedPreviewsReloaded(t *testing.T) {
	f := startFake(t)
	r := startReloader(t, f.address)
	r.set([]string{f.address}, quiet)
	r.reload()
	r.ready()
	c := r.dial(1)
	part := "4¶abcd¶0¶¶"
	c.send(text(preview(4) + part))
	s := f.next(t)
	s.gets(preview(4) + part)
	r.set([]string{f.address}, noPreviews)
	r.reload()
	s.send(text(goOn))
	c.expect(text(goOn))
	c.send(text("0¶¶"))
	s.expect(text("0¶¶"))
	s.send(text(page))
	c.expect(text(page))
	s.release()
	c.send(text(preview(4) + part))
	s = f.next(t)
	s.gets(RL + reqBody)
	s.expect(text("4¶abcd¶"))
	c.expect(text(goOn))
	c.send(text("0¶¶"))
	s.expect(text("0¶¶"))
	s.send(text(page))
	c.expect(text(page))
	s.release()
}

// What is held with its preview when a reload says that the servers can't do any becomes a plain request: it would be taken for the whole.
func TestPreviewIsNotMisread(t *testing.T) {
	const (
		fields = "X-A: 1¶"
		abcd   = "4¶abcd¶"
	)
	plain := RL + fields + reqBody
	for _, v := range []struct {
		name, request string
		dies          bool   // it has been with a server, which said 100 and dies; otherwise it waits in line
		want          string // what a server gets after the reload
		end           func(c *client, s *serverSide)
	}{
		{"waiting", previewWith(fields, 4) + abcd + "0¶¶", false, plain + abcd, func(c *client, s *serverSide) {
			c.expect(text(goOn))
			c.send(text("2¶ef¶0¶¶"))
			s.expect(text("2¶ef¶0¶¶"))
		}},
		{"waiting with a preview that was all", previewWith(fields, 400) + abcd + "0; ieof¶¶", false,
			strings.Replace(plain, fields, "Allow: 204¶"+fields, 1) + abcd + "0¶¶", func(*client, *serverSide) {}},
		{"waiting without a body", RL + fields + "Preview: 0¶" + reqNull, false, RL + fields + "Preview: 0¶" + reqNull, func(*client, *serverSide) {}},
		{"after the 100 of a server that dies", previewWith(fields, 65536) + abcd + "0¶¶", true, plain + abcd + "2¶ef¶0¶¶", func(*client, *serverSide) {}},
	} {
		t.Run(v.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				f := startFake(t)
				r := startReloader(t, f.address)
				const waiting = "    queue: {timeout: 1h}\n    reserve: 0\n"
				r.set([]string{f.address}, quiet+waiting)
				r.reload()
				r.ready()
				server := r.table.Load().pools[0].servers[0]
				c := r.dialFor(t, listener)
				var s *serverSide
				if !v.dies {
					server.MarkFull(loopTime() + int64(time.Minute))
					c.send(text(v.request))
					queue := r.table.Load().pools[0].queue
					eventually(t, "the request in line", func() bool { return queue.Depth() == 1 })
				} else {
					c.send(text(v.request))
					s = f.next(t)
					s.gets(v.request)
					s.send(text(goOn))
					c.expect(text(goOn))
					c.send(text("2¶ef¶0¶¶"))
					s.expect(text("2¶ef¶0¶¶"))
				}
				r.set([]string{f.address}, noPreviews+waiting)
				r.reload()
				if s != nil {
					s.reset()
				} else {
					server.MarkFull(0)
					r.testGateway.onLoops(func(l *loop) { l.gw.offer(server) })
				}
				s = f.next(t)
				s.gets(v.want)
				v.end(c, s)
				s.send(text(page))
				c.expect(text(page))
				s.release()
			})
		})
	}
}

// A request goes by the table that is in force when its preview is in, not by that of its beginning: servers may be gone since.
func TestEndedPreviewFollowsReload(t *testing.T) {
	for _, after := range []string{noPreviews, quiet} {
		overBoth(t, func(t *testing.T, listener int) {
			before, now := startFake(t), startFake(t)
			r := startReloader(t, before.address)
			r.set([]string{before.address}, noPreviews)
			r.reload()
			r.ready()
			c := r.dialFor(t, listener)
			c.send(text(preview(4) + "2¶ab¶"))
			r.settle()
			r.set([]string{now.address}, after)
			r.reload()
			r.ready()
			c.send(text("2¶cd¶0¶¶"))
			s := now.next(t)
			s.gets(RL + reqBody)
			s.expect(text("2¶ab¶2¶cd¶"))
			c.expect(text(goOn))
			c.send(text("0¶¶"))
			s.expect(text("0¶¶"))
			s.send(text(page))
			c.expect(text(page))
			s.release()
			before.idle(t)
		})
	}
}
