package gateway

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"icapgate/balancer"
	"icapgate/bench/dlpstub"
	"icapgate/health"
	"icapgate/icap"
	"icapgate/pool"
)

// withLoops makes the gateways of a test have n loops, whatever machine it runs on.
func withLoops(t testing.TB, n int) {
	before := runtime.GOMAXPROCS(n)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
}

// Beyond the cap requests wait, and are served in the order in which they came.
func TestCapAndOrder(t *testing.T) {
	const cap, clients = 2, 8
	withLoops(t, 4)
	f := startFake(t)
	g := startCapped(t, f, cap, "").ready()
	f.forgetPeak()
	overBoth(t, func(t *testing.T, listener int) {
		var all []*client
		for i := range clients {
			c := g.dialFor(t, listener)
			c.send(text(number(i)))
			all = append(all, c)
			g.holds(t, f, min(i+1, cap), max(0, i+1-cap))
		}
		var busy []*serverSide
		for range cap {
			busy = append(busy, f.next(t))
		}
		g.settle()
		f.idle(t)
		seen := make(map[int]bool)
		for i := range clients {
			// The first cap requests may come in either order, the others in theirs.
			s := busy[0]
			busy = busy[1:]
			n := s.readNumber()
			if seen[n] || n >= cap && n != i || n < cap && i >= cap {
				t.Fatalf("request %d is served as number %d", n, i)
			}
			seen[n] = true
			s.send(text(page))
			all[n].expect(text(page))
			s.release()
			if i+cap < clients {
				busy = append(busy, f.next(t))
			}
		}
		for _, c := range all {
			c.Close()
		}
	})
	if _, peak, _ := f.counts(); peak > cap {
		t.Errorf("%d connections at a time, the cap is %d", peak, cap)
	}
}

// holds waits until so many requests are with f, the only server, and so many wait in line.
func (g *testGateway) holds(t testing.TB, f *fakeServer, inFlight, waiting int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d requests at the server, %d in line", inFlight, waiting), func() bool {
		return g.metric(`server_in_flight{pool="dlp",server="`+f.address+`"}`) == float64(inFlight) && g.metric(`queue_depth{pool="dlp"}`) == float64(waiting)
	})
}

// readNumber reads a request of number and returns it.
func (s *serverSide) readNumber() (n int) {
	s.t.Helper()
	head := s.head()
	if _, err := fmt.Sscanf(head[strings.LastIndex(head[:strings.Index(head, " ICAP/1.0")], "/"):], "/%d ", &n); err != nil {
		s.t.Fatalf("%q: %v", head, err)
	}
	s.expect(text(G))
	return n
}

// startCapped runs a gateway whose only server, f, gets at most cap connections.
func startCapped(t testing.TB, f *fakeServer, cap int, pool string) *testGateway {
	t.Helper()
	f.says("", optionsAnswer+fmt.Sprintf("Max-Connections: %d¶", cap))
	return startGateway(t, []string{f.address}, quiet+"    reserve: 0\n"+pool, "")
}

// One connection, more loops than that, and more clients: the connection goes round, and nobody starves.
func TestOneConnectionManyLoops(t *testing.T) {
	withLoops(t, 4)
	for _, v := range []struct {
		name, pool string
		mode       dlpstub.Mode
		body       string
	}{
		{"204", "", dlpstub.NoContent, chunks},
		{"echo", "", dlpstub.Echo, chunked(200<<10, 20<<10)},
		{"without-reuse", "    reuse: false\n", dlpstub.NoContent, chunks},
		{"tls", "    tls: {ca_file: CA}\n", dlpstub.Echo, chunked(200<<10, 20<<10)},
		{"short-lived", "    idle: {max_requests: 3}\n", dlpstub.NoContent, chunks},
	} {
		t.Run(v.name, func(t *testing.T) {
			cfg := dlpstub.Config{Mode: v.mode, MaxConnections: 1}
			if v.name == "tls" {
				ca, file := serverCertificate(t)
				cfg.TLS, v.pool = ca, strings.Replace(v.pool, "CA", file, 1)
			}
			stub, address := startStub(t, cfg)
			g := startGateway(t, []string{address}, quiet+"    reserve: 0\n    queue: {timeout: 15s}\n"+v.pool, "").ready()
			before := stub.Stats().Accepted
			const clients, requests = 8, 40
			var group sync.WaitGroup
			faults := make(chan error, clients)
			for i := range clients {
				c := g.dialFor(t, i%2)
				group.Go(func() {
					for n := range requests {
						if err := c.exchange(text(RL+"Allow: 204¶"+reqBody) + text(v.body)); err != nil {
							faults <- fmt.Errorf("request %d: %w", n, err)
							return
						}
					}
				})
			}
			group.Wait()
			close(faults)
			for err := range faults {
				t.Error(err)
			}
			st := stub.Stats()
			if v.pool == "" && st.Accepted-before != 1 {
				t.Errorf("%d connections were opened, one would have done", st.Accepted-before)
			}
			if n := st.Requests; n[3]+n[2] != clients*requests {
				t.Errorf("the server got %v requests, want %d", n, clients*requests)
			}
		})
	}
}

// exchange sends a request and reads a whole answer, which has to be a 200 or 204. It may be called from any goroutine.
func (c *client) exchange(request string) error {
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write([]byte(request))
		sent <- err
	}()
	status, err := c.answer()
	if err == nil {
		err = <-sent
	}
	if err == nil && status != 200 && status != 204 {
		err = fmt.Errorf("status %d", status)
	}
	return err
}

// serveAll answers requests like v04 with a page, until the test ends.
func (f *fakeServer) serveAll() {
	f.running.Go(func() {
		for {
			select {
			case s := <-f.begun:
				f.running.Go(func() {
					for range 2 { // the head, and the encapsulated one
						if _, err := s.readHead(); err != nil {
							break
						}
					}
					_, _ = io.WriteString(s, text(page))
					select {
					case s.released <- struct{}{}:
					case <-f.done:
					}
				})
			case <-f.done:
				return
			}
		}
	})
}

// Without reuse every request has its connection, and the old one is gone before a new one is opened.
func TestCapWithoutReuse(t *testing.T) {
	withLoops(t, 2)
	f := startFake(t)
	g := startCapped(t, f, 2, "    reuse: false\n").ready()
	f.forgetPeak()
	f.serveAll()
	var group sync.WaitGroup
	for i := range 6 {
		c := g.dialFor(t, i%2)
		group.Go(func() {
			for range 50 {
				if err := c.exchange(text(v04)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	if _, peak, _ := f.counts(); peak > 2 {
		t.Errorf("%d connections at a time, the cap is 2", peak)
	}
}

// queue.timeout: who has waited that long is told to come back; queue.max: who finds so many waiting is told at once.
func TestQueueLimits(t *testing.T) {
	f := startFake(t)
	g := startCapped(t, f, 1, "    queue: {max: 2, timeout: 200ms}\n").ready()
	overBoth(t, func(t *testing.T, listener int) {
		first := g.dialFor(t, listener)
		first.send(text(v05))
		s := f.next(t)
		s.gets(v05)
		var waiting []*client
		for i := range 2 {
			c := g.dialFor(t, listener)
			c.send(text(v05))
			waiting = append(waiting, c)
			g.holds(t, f, 1, i+1)
		}
		late := g.dialFor(t, listener)
		late.send(text(v05))
		if h := late.refusal(503, false); !strings.Contains(h, "\r\nRetry-After: ") {
			t.Errorf("no Retry-After in %q", h)
		}
		for _, c := range waiting {
			if h := c.refusal(503, false); !strings.Contains(h, "\r\nRetry-After: ") {
				t.Errorf("no Retry-After in %q", h)
			}
		}
		f.idle(t)
		s.send(text(page))
		first.expect(text(page))
		s.release()
		for _, c := range append(waiting, late) { // all of them can go on
			c.send(text(v04))
			s := f.next(t)
			s.gets(v04)
			s.send(text(page))
			c.expect(text(page))
			s.release()
			g.settle()
		}
	})
}

// A body that is larger than what is held for replay waits in the client's socket while its request waits in line, and is read on
// whatever becomes of the request.
func TestLargeBodyInQueue(t *testing.T) {
	f := startFake(t)
	g := startCapped(t, f, 1, "    queue: {timeout: 200ms}\n").ready()
	body := chunked(8<<20, 64<<10)
	overBoth(t, func(t *testing.T, listener int) {
		first := g.dialFor(t, listener)
		first.send(text(v05))
		s := f.next(t)
		s.gets(v05)

		c := g.dialFor(t, listener)
		wrote := make(chan error, 1)
		go func() { _, err := c.Write([]byte(text(RL+reqBody) + body)); wrote <- err }()
		c.refusal(503, false)
		if err := <-wrote; err != nil {
			t.Fatal("the body behind a 503: ", err)
		}

		other := g.dialFor(t, listener)
		go func() { _, err := other.Write([]byte(text(RL+reqBody) + body)); wrote <- err }()
		g.holds(t, f, 1, 1)
		s.send(text(page))
		first.expect(text(page))
		s.release()
		s = f.next(t)
		s.gets(RL + reqBody)
		if err := s.matches(body); err != nil {
			t.Fatal("the server got: ", err)
		}
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		s.send(text(page))
		other.expect(text(page))
		s.release()

		c.send(text(v04))
		s = f.next(t)
		s.gets(v04)
		s.send(text(page))
		c.expect(text(page))
		s.release()
	})
}

// A client that goes away while it waits leaves the line.
func TestClientLeavesQueue(t *testing.T) {
	f := startFake(t)
	g := startCapped(t, f, 1, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		first := g.dialFor(t, listener)
		first.send(text(v05))
		s := f.next(t)
		s.gets(v05)
		gone, stays := g.dialFor(t, listener), g.dialFor(t, listener)
		gone.send(text(v04))
		g.holds(t, f, 1, 1)
		stays.send(text(v05))
		g.holds(t, f, 1, 2)
		gone.reset()
		g.holds(t, f, 1, 1)
		s.send(text(page))
		first.expect(text(page))
		s.release()
		s = f.next(t)
		s.gets(v05)
		s.send(text(page))
		stays.expect(text(page))
		s.release()
	})
}

// A client that has closed its direction still waits for its answer, in line, too; and a drain serves those who wait.
func TestQueueServesHalfClosedAndDraining(t *testing.T) {
	for _, how := range []string{"half-closed", "draining"} {
		t.Run(how, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				f := startFake(t)
				g := startCapped(t, f, 1, "").ready()
				first, second := g.dialFor(t, listener), g.dialFor(t, listener)
				first.send(text(v05))
				s := f.next(t)
				s.gets(v05)
				second.send(text(v04))
				g.holds(t, f, 1, 1)
				answer := text(page)
				if how == "half-closed" {
					second.closeWrite()
					g.settle()
				} else {
					answer = strings.Replace(answer, "Encapsulated", "Connection: close\r\nEncapsulated", 1)
					go g.Drain(context.Background())
					eventually(t, "draining", g.draining.Load)
				}
				s.send(text(page))
				first.expect(answer)
				s.release()
				s = f.next(t)
				s.gets(v04)
				s.send(text(page))
				second.expect(answer)
				second.closed()
			})
		})
	}
}

// A server that closes its connections makes room for those who wait, too.
func TestWaitersAfterServerClose(t *testing.T) {
	withLoops(t, 2)
	f := startFake(t)
	g := startCapped(t, f, 1, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		var all []*client
		for i := range 4 {
			c := g.dialFor(t, listener)
			c.send(text(v04))
			all = append(all, c)
			g.holds(t, f, 1, i)
		}
		for _, c := range all {
			s := f.next(t)
			s.gets(v04)
			s.send(text(strings.Replace(page, "Encapsulated", "Connection: close¶Encapsulated", 1)))
			s.Close()
			c.expect(text(page))
			c.Close()
		}
	})
}

// Max-Connections of a server is shared by connection_share gateways, less the reserve.
func TestLearntCap(t *testing.T) {
	for _, v := range []struct {
		says       string
		share, res int
		want       float64
	}{
		{"Max-Connections: 25¶", 1, 1, 24},
		{"Max-Connections: 25¶", 2, 1, 11},
		{"Max-Connections: 25¶", 3, 0, 8},
		{"Max-Connections: 2¶", 4, 1, 1},
		{"Max-Connections: 0¶", 1, 1, 0},
		{"Max-Connections: many¶", 1, 1, 0},
		{"", 1, 1, 0},
	} {
		t.Run(fmt.Sprintf("%s share %d reserve %d", strings.TrimSuffix(v.says, "¶"), v.share, v.res), func(t *testing.T) {
			f := startFake(t)
			f.says("", optionsAnswer+v.says)
			g := startGateway(t, []string{f.address}, quiet+fmt.Sprintf("    connection_share: %d\n    reserve: %d\n", v.share, v.res), "").ready()
			eventually(t, "the cap", func() bool { return g.metric(`server_cap{pool="dlp",server="`+f.address+`"}`) == v.want })
		})
	}
	t.Run("from a client's OPTIONS", func(t *testing.T) {
		f := startFake(t)
		g := startGateway(t, []string{f.address}, quiet, "").ready()
		p := newPlayer(t, g, f, 1)
		answer := okLine + tag + "Max-Connections: 9¶Encapsulated: null-body=0¶¶"
		p.play(sends("OPTIONS icap://gw/r ICAP/1.0¶Host: gw¶¶"), arrives(forwarded("OPTIONS icap://gw/r ICAP/1.0¶Host: gw¶¶")), answers(answer), gets(answer))
		if n := g.metric(`server_cap{pool="dlp",server="` + f.address + `"}`); n != 8 {
			t.Errorf("the cap is %v, want 8", n)
		}
	})
}

// idle.max_requests and reuse: false end connections to servers. The limits in time are tested by TestIdleLimits.
func TestServerConnectionLimits(t *testing.T) {
	t.Run("max_requests", func(t *testing.T) {
		f := startFake(t)
		g := startGateway(t, []string{f.address}, quiet+"    idle: {max_requests: 2}\n", "").ready()
		p := newPlayer(t, g, f, 1)
		var on []int
		for range 4 {
			p.play(simple(v04, forwarded(v04))...)
			on = append(on, p.s.number)
			if len(on)%2 == 0 {
				p.s.over(t)
			}
		}
		if on[0] != on[1] || on[1] == on[2] || on[2] != on[3] {
			t.Errorf("the requests were made on connections %v, want two on each", on)
		}
	})
	t.Run("reuse", func(t *testing.T) {
		f := startFake(t)
		g := startGateway(t, []string{f.address}, quiet+"    reuse: false\n", "").ready()
		p := newPlayer(t, g, f, 1)
		want := strings.Replace(forwarded(v04), "Host: SERVER¶", "Host: SERVER¶Connection: close¶", 1)
		for range 2 {
			p.play(simple(v04, want)...)
			p.s.over(t)
		}
	})
}

// A server that becomes usable while requests wait serves them, also when idle connections hold all its slots.
func TestIdleConnectionsOfUsableServer(t *testing.T) {
	for _, v := range []struct {
		name    string
		out, in func(g *testGateway, s *pool.Server) error
	}{
		{"admin", func(g *testGateway, s *pool.Server) error { return g.SetAdmin("dlp", s.Name, "drain") },
			func(g *testGateway, s *pool.Server) error { return g.SetAdmin("dlp", s.Name, "ready") }},
		{"weight", func(g *testGateway, s *pool.Server) error { return g.SetWeight("dlp", s.Name, 0) },
			func(g *testGateway, s *pool.Server) error { return g.SetWeight("dlp", s.Name, 1) }},
		{"check", func(_ *testGateway, s *pool.Server) error { s.Health.SetState(health.Down); return nil },
			func(_ *testGateway, s *pool.Server) error { s.Health.SetState(health.Up); return nil }},
	} {
		for _, loops := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s-loops-%d", v.name, loops), func(t *testing.T) {
				withLoops(t, loops)
				g := startPair(t, "    reserve: 0\n", "")
				for _, s := range g.table.Load().pools[0].servers {
					s.Learn(1)
				}
				first, second, third := g.dial(1), g.dial(1), g.dial(1)
				first.send(text(v04))
				idle, other := g.next(t)
				idle.gets(v04)
				second.send(text(v04))
				busy := other.next(t)
				busy.gets(v04)
				idle.send(text(page))
				first.expect(text(page))
				idle.release()
				server, err := g.server("dlp", idle.f.address)
				if err != nil {
					t.Fatal(err)
				}
				eventually(t, "an idle connection", func() bool { return server.Idle() == 1 })
				if err := v.out(g.testGateway, server); err != nil {
					t.Fatal(err)
				}
				third.send(text(v04))
				eventually(t, "a request in line", func() bool { return server.Queue.Depth() == 1 })
				if err := v.in(g.testGateway, server); err != nil {
					t.Fatal(err)
				}
				if s := idle.f.next(t); s != idle {
					t.Error("the idle connection was not used")
				}
				idle.gets(v04)
				idle.send(text(page))
				third.expect(text(page))
				idle.release()
				busy.send(text(page))
				second.expect(text(page))
				busy.release()
			})
		}
	}
}

// A request that has failed on one server waits for another that is at its cap, or has said 503: it is not given to the first one
// again and again, until it has no attempt left.
func TestReplayWaitsForTheOther(t *testing.T) {
	for _, why := range []string{"busy", "full"} {
		t.Run(why, func(t *testing.T) {
			dead, f := startFake(t), startFake(t)
			v := startVirtualFor(t, []string{dead.address, f.address}, "    reserve: 0\n", "")
			dead.ln.Close()
			for _, s := range v.table.Load().pools[0].servers {
				s.Learn(1)
			}
			first, second := v.connect(1), v.connect(1)
			first.send(text(v04))
			s := f.next(t) // be it at once or after a try with the dead one
			s.gets(v04)
			if why == "busy" {
				second.send(text(v04))
				eventually(t, "a request in line", func() bool { return v.metric(`queue_depth{pool="dlp"}`) == 1 })
				v.settle()
				s.send(text(page))
			} else {
				s.send(text("ICAP/1.0 503 full¶¶"))
				eventually(t, "a request in line", func() bool { return v.metric(`queue_depth{pool="dlp"}`) == 1 })
				v.pass(time.Second + time.Duration(tick))
				s = f.next(t)
				s.gets(v04)
				s.send(text(page))
			}
			s.release()
			first.expect(text(page))
			if why == "full" {
				return
			}
			s = f.next(t)
			s.gets(v04)
			s.send(text(page))
			s.release()
			second.expect(text(page))
		})
	}
}

// A request that waits gets no connection that is too old: that is closed, and a new one takes its slot.
func TestOldConnectionIsNotGranted(t *testing.T) {
	a, b := startFake(t), startFake(t)
	p := &pair{a: a, b: b}
	v := startVirtualFor(t, []string{a.address, b.address}, "    reserve: 0\n    idle: {max_age: 2s}\n", "")
	for _, s := range v.table.Load().pools[0].servers {
		s.Learn(1)
	}
	first, second, third := v.connect(1), v.connect(1), v.connect(1)
	first.send(text(v04))
	old, other := p.next(t)
	old.gets(v04)
	second.send(text(v04))
	busy := other.next(t)
	busy.gets(v04)
	old.send(text(page))
	first.expect(text(page))
	old.release()
	server, err := v.server("dlp", old.f.address)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "an idle connection", func() bool { return server.Idle() == 1 })
	server.Health.SetState(health.Down)
	third.send(text(v04))
	eventually(t, "a request in line", func() bool { return server.Queue.Depth() == 1 })
	v.pass(2 * time.Second)
	server.Health.SetState(health.Up)
	s := old.f.next(t)
	if s == old {
		t.Error("the old connection was used")
	}
	s.gets(v04)
	s.send(text(page))
	third.expect(text(page))
	s.release()
	busy.send(text(page))
	second.expect(text(page))
	busy.release()
}

// No policy opens more connections than the caps allow, with tiers, with affinity, from several loops; and none needs to refuse a request for it. The
// servers count connections as they see them: those of the gateway, and the one of a check.
func TestCapsUnderEveryPolicy(t *testing.T) {
	withLoops(t, 4)
	for _, name := range balancer.Names() {
		for _, affinity := range []string{"none", "session"} {
			t.Run(name+"-"+affinity, func(t *testing.T) {
				caps := []int{1, 2, 3, 2} // less the connection of checks
				var stubs []*dlpstub.Server
				var list []string
				for i, c := range caps {
					s, address := startStub(t, dlpstub.Config{Mode: dlpstub.Echo, MaxConnections: c + 1})
					stubs = append(stubs, s)
					list = append(list, fmt.Sprintf("{address: %q, tier: %d}", address, i/3))
				}
				g := newGatewayIn(t, "["+strings.Join(list, ", ")+"]", fmt.Sprintf("    balance: %s\n    affinity: %s\n    queue: {timeout: 20s}\n    tier_threshold: 0.9\n", name, affinity)+quiet, "")
				if err := g.Start(); err != nil {
					t.Fatal(err)
				}
				servers := g.ready().table.Load().pools[0].servers
				servers[0].Health.SetAdmin(health.Drain) // so that the backup takes part
				var clients []*client
				for i := range 24 {
					clients = append(clients, g.dial(i%2))
				}
				ask := func(requests int) {
					var group sync.WaitGroup
					for i, c := range clients {
						group.Go(func() {
							for n := range requests {
								if err := c.exchange(text(RL + fmt.Sprintf("X-Client-IP: 192.0.2.%d¶", n) + reqBody + chunks)); err != nil {
									t.Errorf("client %d, request %d: %v", i, n, err)
									return
								}
							}
						})
					}
					group.Wait()
				}
				ask(10)
				servers[0].Health.SetAdmin(health.Ready)
				ask(20)
				for i, s := range stubs {
					if st := s.Stats(); st.PeakOpen > caps[i]+1 || st.Requests[icap.MethodReqmod] == 0 {
						t.Errorf("server %d with a cap of %d had up to %d connections, and %d requests", i, caps[i], st.PeakOpen, st.Requests[icap.MethodReqmod])
					}
				}
			})
		}
	}
}
