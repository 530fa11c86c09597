package gateway

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/configs"
	"icapgate/health"
)

// startEjecting runs a gateway on virtual time in front of scripted servers, which takes part in ejections when time passes.
func startEjecting(t *testing.T, n int, pool string) (*virtual, []*fakeServer) {
	t.Helper()
	var fakes []*fakeServer
	var list []string
	for range n {
		f := startFake(t)
		fakes, list = append(fakes, f), append(list, f.address)
	}
	v := startVirtualFor(t, list, pool, "")
	v.sweeps = true
	return v, fakes
}

// ejected lists the servers that are ejected, by their places, as the status says.
func (g *testGateway) ejected() (list []int) {
	g.t.Helper()
	for i, s := range g.Status().Pools[0].Servers {
		if s.Ejected {
			list = append(list, i)
		}
		metric := g.metric(fmt.Sprintf("server_ejected{pool=%q,server=%q}", "dlp", s.Address))
		if s.Ejected != (metric == 1) || s.Ejected != (s.EjectionReason != "") || s.Ejected == s.EjectedUntil.IsZero() || s.Ejected && s.Ejections == 0 {
			g.t.Errorf("%+v: the metric is %v", s, metric)
		}
	}
	return list
}

// R30: of two servers one answers 500 to everything. A client that suspends a service after ten failures, as Squid does, sees five of them, and five
// more at each return of the server, which are fewer and fewer.
func TestErrorStorm(t *testing.T) {
	var list []string
	for _, cfg := range []dlpstub.Config{{Status: 500}, {}} {
		_, address := startStub(t, cfg)
		list = append(list, address)
	}
	v := startVirtualFor(t, list, "    balance: round_robin\n    slow_start: 0s\n", "")
	v.sweeps = true
	c := v.connect(1)
	const minutes, failureLimit = 10, 10
	failures := make([]int, minutes)
	for second := range minutes * 60 {
		for range 4 {
			c.send(text(RL + "Allow: 204¶" + reqNull))
			if strings.HasPrefix(c.head(), "ICAP/1.0 500") {
				failures[second/60]++
			}
		}
		v.pass(time.Second)
		if second == 5 && !slices.Equal(v.ejected(), []int{0}) {
			t.Fatal("the server that fails is not ejected")
		}
	}
	t.Logf("failures that the client saw by minute: %v", failures)
	if failures[0] > 20 || slices.Max(failures[1:]) > failureLimit || slices.Max(failures[5:]) > failureLimit/2 {
		t.Errorf("failures by minute: %v, want at most 5 at each return, after 10, 20, 40, 80 s and so on", failures)
	}
	reason := fmt.Sprintf("ejections_total{pool=%q,server=%q,reason=%q}", "dlp", list[0], "consecutive")
	if n := v.metric(reason); n < 6 || n > 8 { // at 0 s, 10, 30, 70, 150, 310 and 610
		t.Errorf("%v ejections", n)
	}
}

// What is a failure of the server, and what is not.
func TestWhatEjects(t *testing.T) {
	const broken = "ICAP/1.0 500 Broken¶ISTag: \"s\"¶Encapsulated: null-body=0¶¶"
	for _, tt := range []struct {
		name    string
		request string
		reused  bool // the server's connection has served before
		do      func(v *virtual, c *client, s *serverSide)
		want    bool
	}{
		{"a good answer", v05, false, func(v *virtual, c *client, s *serverSide) { s.send(text(page)); c.expect(text(page)) }, false},
		{"500", v05, false, func(v *virtual, c *client, s *serverSide) { s.send(text(broken)); c.status(500) }, true},
		{"404", v05, false, func(v *virtual, c *client, s *serverSide) {
			s.send(strings.Replace(text(broken), "500", "404", 1))
			c.status(404)
		}, false},
		{"503", v05, false, func(v *virtual, c *client, s *serverSide) { s.send("ICAP/1.0 503 Full\r\n\r\n"); c.status(503) }, false},
		{"506", v05, false, func(v *virtual, c *client, s *serverSide) { s.send("ICAP/1.0 506 Full\r\n\r\n"); c.status(506) }, false},
		{"no answer", v05, false, func(v *virtual, c *client, s *serverSide) { s.Close(); c.refusal(502, false) }, true},
		{"reset", v05, false, func(v *virtual, c *client, s *serverSide) { s.reset(); c.refusal(502, false) }, true},
		{"a kept connection that is closed", v05, true, func(v *virtual, c *client, s *serverSide) { s.Close(); c.refusal(502, false) }, false},
		{"likewise, when it has worked for a while", v05, true, func(v *virtual, c *client, s *serverSide) {
			v.pass(2 * time.Second)
			s.Close()
			c.refusal(502, false)
		}, true},
		{"not ICAP", v05, false, func(v *virtual, c *client, s *serverSide) { s.send("HTTP/1.1 200 OK\r\n\r\n"); c.refusal(502, false) }, true},
		{"an answer that stops in its head", v05, false, func(v *virtual, c *client, s *serverSide) {
			s.send("ICAP/1.0 2")
			s.Close()
			c.refusal(502, false)
		}, true},
		{"an answer that stops in its body", v05, false, func(v *virtual, c *client, s *serverSide) {
			s.send(text("ICAP/1.0 200 OK¶ISTag: \"s\"¶" + echoList + P + "5¶he"))
			c.status(200)
			s.Close()
			c.rest()
		}, true},
		{"bad chunks", v05, false, func(v *virtual, c *client, s *serverSide) {
			s.send(text("ICAP/1.0 200 OK¶ISTag: \"s\"¶" + echoList + P + "xyz¶"))
			c.status(200)
			c.rest()
		}, true},
		{"a timeout", v05, false, func(v *virtual, c *client, s *serverSide) { v.pass(61 * time.Second); c.refusal(502, false) }, true},
		{"a client that goes away", RL + reqBody, false, func(v *virtual, c *client, s *serverSide) { c.Close() }, false},
		{"a client that goes away, and gets no answer", v05, false, func(v *virtual, c *client, s *serverSide) {
			c.reset()
			eventually(v.t, "the session's end", func() bool { return v.Sessions() == 0 })
			s.Close()
		}, true},
		{"a client that stops", RL + reqBody, false, func(v *virtual, c *client, s *serverSide) { v.pass(61 * time.Second); c.refusal(408, true) }, false},
		{"a server that does not wait for it", RL + reqBody, false, func(v *virtual, c *client, s *serverSide) {
			v.pass(2 * time.Second)
			s.Close()
			c.refusal(502, false)
		}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v, fakes := startEjecting(t, 2, "    balance: round_robin\n    retry: {attempts: 0}\n    queue: {max: 0}\n    ejection: {consecutive: 1}\n")
			other := v.table.Load().pools[0].servers[1]
			other.SetWeight(0)
			c := v.connect(1)
			if tt.reused {
				v.say(c, v04)
				s := fakes[0].next(t)
				s.gets(v04)
				s.send(text(page))
				c.expect(text(page))
				s.release()
				v.settle()
			}
			v.say(c, tt.request)
			s := fakes[0].next(t)
			if tt.reused != (s.served > 0) {
				t.Fatalf("a connection that has served %d requests", s.served)
			}
			s.gets(tt.request)
			other.SetWeight(1) // so that this one can be spared
			tt.do(v, c, s)
			eventually(t, "the end of the attempt", func() bool { return v.inFlight() == 0 })
			v.settle()
			if got := v.ejected(); len(got) > 0 != tt.want {
				t.Errorf("ejected %v, want %v", got, tt.want)
			}
		})
	}
}

// A server that leaves no time for other timeouts, because verdicts are wanted before, is ejected for it, unless most of that time was not its own.
func TestLateVerdictEjects(t *testing.T) {
	for _, tt := range []struct {
		waits, late time.Duration
		want        []int
	}{
		{0, 4 * time.Second, []int{0}},
		{1900 * time.Millisecond, 2100 * time.Millisecond, []int{0}},
		{2100 * time.Millisecond, 1900 * time.Millisecond, nil},
	} {
		t.Run(tt.waits.String(), func(t *testing.T) {
			a, b := startFake(t), startFake(t)
			v := startVirtualFor(t, []string{a.address, b.address}, "    queue: {timeout: 1h}\n    ejection: {consecutive: 1}\n", "services: [{decision_timeout: 4s}]")
			servers := v.servers0()
			for _, s := range servers {
				s.Learn(2)
				s.Acquire()
			}
			servers[1].SetWeight(0)
			c := v.connect(1)
			v.say(c, v05)
			v.pass(tt.waits)
			servers[0].Release()
			s := a.next(t)
			s.gets(v05)
			servers[1].SetWeight(1) // so that the first one can be spared
			v.pass(tt.late + time.Duration(tick))
			c.refusal(502, false)
			if got := v.ejected(); !slices.Equal(got, tt.want) {
				t.Errorf("ejected %v, want %v", got, tt.want)
			}
			servers[1].Release()
		})
	}
}

// An ejection ends with a slow start. In panic and for want of others ejected servers are used; an operator ends it at once.
func TestEjectedServer(t *testing.T) {
	eject := func(v *virtual, place int) {
		p := v.table.Load().pools[0]
		p.ejector.Random = func() float64 { return 0 }
		for range 5 {
			p.ejector.Failed(p.servers[place].Health, health.FailedRequest, v.time.Load(), v.time.Load())
		}
	}
	ask := func(v *virtual, c *client, n int) (went []int) {
		went = make([]int, len(v.servers0()))
		for range n {
			went[v.ask(c, "")]++
		}
		return went
	}
	start := func(t *testing.T, pool string, tiers ...int) (*virtual, []*dlpstub.Server, *client) {
		v, stubs := startTiered(t, "    balance: round_robin\n"+pool, tiers...)
		v.sweeps = true
		return v, stubs, v.connect(1)
	}
	t.Run("slow start", func(t *testing.T) {
		v, _, c := start(t, "    slow_start: 20s\n", 0, 0)
		eject(v, 0)
		if got := ask(v, c, 10); got[0] != 0 {
			t.Errorf("requests %v while the first is ejected", got)
		}
		v.pass(10*time.Second + sweepInterval)
		if got := ask(v, c, 110); got[0] < 8 || got[0] > 12 {
			t.Errorf("requests %v at its return, want a tenth of a share", got)
		}
	})
	t.Run("a backup takes over", func(t *testing.T) {
		v, _, c := start(t, "", 0, 1)
		eject(v, 0)
		if got := ask(v, c, 10); got[1] != 10 || v.Status().Pools[0].Tier != 1 {
			t.Errorf("requests %v", got)
		}
	})
	t.Run("the others go down", func(t *testing.T) {
		v, _, c := start(t, "", 0, 0)
		eject(v, 0)
		v.servers0()[1].Health.SetState(health.Down)
		if got := ask(v, c, 10); got[0] != 10 || !slices.Equal(v.ejected(), []int{0}) || v.Ready("dlp") != nil {
			t.Errorf("requests %v: an ejected server is better than none", got)
		}
		v.servers0()[0].Health.SetState(health.Down)
		v.say(c, v04)
		c.refusal(503, false)
		if v.Ready("dlp") == nil {
			t.Error("ready without a server")
		}
	})
	t.Run("the others fail", func(t *testing.T) {
		v, stubs, c := start(t, "", 0, 0)
		eject(v, 1)
		stubs[0].Close()
		for range 4 {
			if got := v.ask(c, ""); got != 1 {
				t.Errorf("server %d answered, want the ejected one", got)
			}
		}
	})
	t.Run("who waits for the others gets it when they go down", func(t *testing.T) {
		a, b := startFake(t), startFake(t)
		v := startVirtualIn(t, fmt.Sprintf("[%q, {address: %q, max_connections: 2}]", a.address, b.address), "    queue: {timeout: 1h}\n    timeouts: {response: 1h}\n", "")
		eject(v, 0)
		first, second := v.connect(1), v.connect(1)
		v.say(first, v04)
		s := b.next(t)
		s.gets(v04)
		v.say(second, v04)
		v.quiet(time.Second)
		a.idle(t)
		v.servers0()[1].Health.SetState(health.Down)
		other := a.next(t)
		other.gets(v04)
		other.send(text(page))
		second.expect(text(page))
		other.release()
		s.send(text(page))
		first.expect(text(page))
		s.release()
	})
	t.Run("panic", func(t *testing.T) {
		v, _, c := start(t, "    panic_threshold: 0.6\n", 0, 0)
		eject(v, 0)
		if got := ask(v, c, 10); got[0] != 5 || !v.Status().Pools[0].Panic {
			t.Errorf("requests %v, want half for the ejected server: half of the pool is less than 0.6", got)
		}
	})
	t.Run("an operator", func(t *testing.T) {
		v, _, c := start(t, "    slow_start: 0s\n", 0, 0)
		eject(v, 0)
		if err := v.SetAdmin("dlp", v.servers0()[0].Name, "ready"); err != nil {
			t.Fatal(err)
		}
		if got := ask(v, c, 10); got[0] != 5 {
			t.Errorf("requests %v after ready", got)
		}
	})
}

// A reload keeps an ejection, unless it switches that off.
func TestReloadKeepsEjections(t *testing.T) {
	_, a := startStub(t, dlpstub.Config{})
	_, b := startStub(t, dlpstub.Config{})
	_, c := startStub(t, dlpstub.Config{})
	r := startReloader(t, a, b)
	r.ready()
	for range 5 {
		p := r.table.Load().pools[0]
		p.ejector.Failed(p.servers[0].Health, health.FailedRequest, loopTime(), loopTime())
	}
	for _, step := range []struct {
		servers []string
		pool    string
		want    []int
	}{
		{[]string{a, b}, "", []int{0}},
		{[]string{c, a, b}, "", []int{1}},
		{[]string{c, a, b}, "    ejection: {failure_share: 0, time: 1m}\n", []int{1}},
		{[]string{c, a, b}, "    ejection: {consecutive: 0}\n", nil},
	} {
		r.set(step.servers, step.pool)
		r.reload()
		r.ready1(len(step.servers))
		if got := r.ejected(); !slices.Equal(got, step.want) {
			t.Errorf("%v %q: ejected %v, want %v", step.servers, step.pool, got, step.want)
		}
	}
}

// ready1 waits until so many servers have been checked.
func (g *testGateway) ready1(n int) {
	g.t.Helper()
	eventually(g.t, "checks", func() bool {
		checked := 0
		for _, s := range g.table.Load().pools[0].servers {
			if s.Health.State() == health.Up {
				checked++
			}
		}
		return checked == n
	})
}

// A pick finds the backup, whenever the last server before it goes down.
func TestPickWhileServersGoDown(t *testing.T) {
	p := gradedPool(0, 0, 0, 1)
	lp := newLoopPool(p, 1)
	for _, s := range p.servers {
		h := new(shard)
		h.Server = s
		lp.shards = append(lp.shards, h)
	}
	tx := &transaction{route: &route{checkPath: -1}}
	stop := make(chan struct{})
	var flips sync.WaitGroup
	flips.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				p.servers[0].Health.SetState(health.Down)
				for range 100 {
					runtime.Gosched()
				}
				p.servers[0].Health.SetState(health.Up)
			}
		}
	})
	for i := range 200_000 {
		if place, found := lp.pick(tx, int64(i)); found != pickedServer {
			t.Errorf("pick %d: %d, %v with a backup that is up", i, place, found)
			break
		}
	}
	close(stop)
	flips.Wait()
}

// What a pick costs in a pool of four: while all is well, with one of them ejected, and with one of which nothing is heard.
func BenchmarkPick(b *testing.B) {
	for _, state := range []string{"well", "ejected", "doubted"} {
		b.Run(state, func(b *testing.B) {
			p := gradedPool(0, 0, 0, 0, 0, 0)
			p.cfg.Ejection = configs.DefaultPool().Ejection
			p.setEjection(1)
			p.tellEjector()
			lp := newLoopPool(p, 1)
			for _, s := range p.servers {
				h := new(shard)
				h.Server = s
				lp.shards = append(lp.shards, h)
			}
			switch first := p.servers[0].Health; state {
			case "ejected":
				p.ejector.Failed(first, health.FailedSilent, 1, 1)
			case "doubted":
				first.Doubt()
			}
			tx := &transaction{route: &route{checkPath: -1}}
			b.ReportAllocs()
			for i := int64(1); b.Loop(); i++ {
				if place, found := lp.pick(tx, i); found != pickedServer || place == 0 && state != "well" {
					b.Fatalf("picked %d, %v", place, found)
				}
			}
		})
	}
}

// A used connection that ends behind an interim answer was not closed while it was idle: that is a fault of the server.
func TestEndBehindAnInterimAnswer(t *testing.T) {
	for interim, want := range map[string]int{"": 0, "ICAP/1.0 102 Processing¶¶": 1, goOn: 1} {
		v, fakes := startEjecting(t, 2, "    retry: {attempts: 0}\n    queue: {max: 0}\n    ejection: {consecutive: 1}\n")
		other := v.servers0()[1]
		other.SetWeight(0)
		c := v.connect(1)
		v.say(c, v04)
		s := fakes[0].next(t)
		s.gets(v04)
		s.send(text(page))
		c.expect(text(page))
		s.release()
		v.settle()
		v.say(c, v05)
		s = fakes[0].next(t)
		s.gets(v05)
		other.SetWeight(1) // so that this one can be spared
		v.say(s.client, interim)
		s.Close()
		c.refusal(502, false)
		if got := v.ejected(); len(got) != want || s.served == 0 {
			t.Errorf("%q: ejected %v, want %d", interim, got, want)
		}
	}
}
