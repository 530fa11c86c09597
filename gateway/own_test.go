package gateway

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"icapgate/balancer"
	"icapgate/bench/dlpstub"
	"icapgate/health"
	"icapgate/pool"
)

// Under every policy a session with affinity stays with the server that the policy has given it, and sessions are spread.
func TestAffinity(t *testing.T) {
	for _, name := range balancer.Names() {
		t.Run(name, func(t *testing.T) {
			g := startSpread(t, 3, "    balance: "+name+"\n    hash_on: \"header:X-Key\"\n    affinity: session\n")
			var used [3]int
			for i := range 30 {
				c := g.dial(i % 2)
				first := g.ask(c, fmt.Sprintf("X-Key: %d¶", i))
				used[first]++
				for n := range 5 { // whatever their key
					if at := g.ask(c, fmt.Sprintf("X-Key: %d¶", 100+n)); at != first {
						t.Fatalf("a session that began on server %d went to %d", first, at)
					}
				}
				c.Close()
			}
			if name != "peak_ewma" && slices.Contains(used[:], 0) { // which may avoid one that was slow once
				t.Errorf("sessions began on servers %v times, want some on each", used)
			}
		})
	}
}

// A REQMOD and a RESPMOD of one session go to the same server of the same pool, and each to one of its own in pools of their own.
func TestAffinityByMethod(t *testing.T) {
	respmod := PL + "Allow: 204¶Encapsulated: res-hdr=0, null-body=19¶¶HTTP/1.1 200 OK¶¶"
	var addresses []string
	for range 6 {
		_, a := startStub(t, dlpstub.Config{})
		addresses = append(addresses, a)
	}
	list := func(from int) string { return `["` + strings.Join(addresses[from:from+3], `","`) + `"]` }
	for _, pools := range []int{1, 2} {
		t.Run(fmt.Sprint(pools), func(t *testing.T) {
			cfg := quiet + "    balance: round_robin\n    affinity: session\n"
			rest := "services: [{path: \"*\", methods: [REQMOD], pool: dlp}, {path: \"*\", pool: dlp}]"
			if pools == 2 {
				cfg += "  - {name: other, balance: round_robin, affinity: session, health: {interval: 1h}, servers: " + list(3) + "}\n"
				rest = "services: [{path: \"*\", methods: [REQMOD], pool: dlp}, {path: \"*\", pool: other}]"
			}
			g := newGatewayIn(t, list(0), cfg, rest)
			if err := g.Start(); err != nil {
				t.Fatal(err)
			}
			g.ready()
			for range 4 {
				c := g.dial(1)
				before := g.requests()
				for range 5 {
					c.send(text(RL + "Allow: 204¶" + reqNull))
					c.status(204)
					c.send(text(respmod))
					c.status(204)
				}
				var used []uint64
				for i, n := range g.requests() {
					if n != before[i] {
						used = append(used, n-before[i])
					}
				}
				if want := map[int][]uint64{1: {10}, 2: {5, 5}}[pools]; !slices.Equal(used, want) {
					t.Errorf("the servers got %v requests of a session, want %v", used, want)
				}
				c.Close()
			}
		})
	}
}

// requests is how many attempts all servers have had, by address.
func (g *testGateway) requests() map[string]uint64 {
	all := make(map[string]uint64)
	for _, p := range g.table.Load().pools {
		for _, s := range p.servers {
			all[s.Name] = s.Requests()
		}
	}
	return all
}

// A session leaves a server that it can't use, and then stays with the new one. A server that is full for a moment only is left, too.
func TestAffinityMoves(t *testing.T) {
	for _, tt := range []struct {
		name      string
		out, back func(v *virtual, s *pool.Server)
	}{
		{"down", func(_ *virtual, s *pool.Server) { s.Health.SetState(health.Down) }, func(_ *virtual, s *pool.Server) { s.Health.SetState(health.Up) }},
		{"drained", func(v *virtual, s *pool.Server) { _ = v.SetAdmin("dlp", s.Name, "drain") }, func(v *virtual, s *pool.Server) { _ = v.SetAdmin("dlp", s.Name, "ready") }},
		{"weight 0", func(v *virtual, s *pool.Server) { _ = v.SetWeight("dlp", s.Name, 0) }, func(v *virtual, s *pool.Server) { _ = v.SetWeight("dlp", s.Name, 1) }},
		{"full", func(v *virtual, s *pool.Server) { s.MarkFull(v.time.Load() + int64(time.Second)) }, func(v *virtual, _ *pool.Server) { v.pass(2 * time.Second) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var addresses []string
			for range 3 {
				_, a := startStub(t, dlpstub.Config{})
				addresses = append(addresses, a)
			}
			v := startVirtualFor(t, addresses, "    balance: round_robin\n    affinity: session\n    slow_start: 0s\n", "")
			c := v.connect(1)
			first := v.ask(c, "")
			server := v.table.Load().pools[0].servers[first]
			tt.out(v, server)
			second := v.ask(c, "")
			if second == first {
				t.Errorf("still on server %d", first)
			}
			tt.back(v, server)
			for range 5 {
				if at := v.ask(c, ""); at != second {
					t.Errorf("on server %d, want %d, where the session has moved", at, second)
				}
			}
		})
	}
}

// A reload that keeps a session's server keeps the session there; when the server leaves, the session moves.
func TestAffinityFollowsReload(t *testing.T) {
	var addresses []string
	for range 3 {
		_, a := startStub(t, dlpstub.Config{})
		addresses = append(addresses, a)
	}
	pool := "    balance: round_robin\n    affinity: session\n    slow_start: 0s\n"
	r := startReloader(t, addresses...)
	r.set(addresses, pool)
	r.reload()
	r.ready()
	c := r.dial(1)
	name := r.table.Load().pools[0].servers[r.ask(c, "")].Name
	now := func() string { return r.table.Load().pools[0].servers[r.ask(c, "")].Name }
	for i, list := range [][]string{{addresses[2], addresses[0], addresses[1]}, slices.DeleteFunc(slices.Clone(addresses), func(a string) bool { return a == name })} {
		r.set(list, pool)
		r.reload()
		r.ready()
		at := now()
		if (at == name) != (i == 0) {
			t.Errorf("after reload %d the session is on %s, it was on %s", i, at, name)
		}
		if again := now(); again != at {
			t.Errorf("and then on %s", again)
		}
	}
}

// A request of a session waits for its server, though another one is free, and gets it first; after half of queue.timeout it takes the other, and the
// session moves.
func TestAffinityWaits(t *testing.T) {
	for _, moves := range []bool{false, true} {
		t.Run(fmt.Sprintf("moves-%v", moves), func(t *testing.T) {
			a, b := startFake(t), startFake(t)
			v := startVirtualFor(t, []string{a.address, b.address},
				"    affinity: session\n    reserve: 0\n    queue: {timeout: 10s}\n    idle: {timeout: 1h}\n    timeouts: {response: 1h}\n", "")
			for _, s := range v.table.Load().pools[0].servers {
				s.Learn(1)
			}
			serve := func(f *fakeServer, c *client) {
				t.Helper()
				s := f.next(t)
				s.gets(v04)
				s.send(text(page))
				c.expect(text(page))
				s.release()
				v.settle()
			}
			first, second := v.connect(1), v.connect(1)
			if err := v.SetAdmin("dlp", b.address, "drain"); err != nil {
				t.Fatal(err)
			}
			for _, c := range []*client{first, second} { // both have a for their own
				v.say(c, v04)
				serve(a, c)
			}
			if err := v.SetAdmin("dlp", b.address, "ready"); err != nil {
				t.Fatal(err)
			}
			v.say(first, v04)
			s := a.next(t)
			s.gets(v04)
			v.say(second, v04)
			v.pass(5*time.Second - time.Duration(2*tick))
			b.idle(t)
			if st := v.Status().Pools[0].Waits; st.Now["own"] != 1 || st.OldestSeconds < 4 {
				t.Errorf("the status says %+v", st)
			}
			if moves {
				v.pass(time.Duration(4 * tick))
				serve(b, second)
			}
			s.send(text(page))
			first.expect(text(page))
			s.release()
			if !moves {
				serve(a, second)
			}
			if st := v.Status().Pools[0].Waits; st.Ended["own"] == 0 || st.Seconds["own"] < 4.9 || st.Seconds["own"] > 5.1 {
				t.Errorf("the status says %+v", st)
			}
			if n := v.metric(`queue_wait_seconds_total{pool="dlp",cause="own"}`); n < 4.9 || n > 5.1 {
				t.Errorf("%v s in the metrics", n)
			}
			v.say(second, v04)
			if moves {
				serve(b, second)
			} else {
				serve(a, second)
			}
		})
	}
}
