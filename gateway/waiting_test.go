package gateway

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"icapgate/balancer"
	"icapgate/health"
	"icapgate/pool"
)

// lined puts n requests into the line of a pool, none of which may be given a server, and returns the control plane that offers to them. prepare makes
// something of each, if it is not nil.
func lined(tb testing.TB, p *poolTable, n int, prepare func(t *transaction)) *servers {
	tb.Helper()
	g := &Gateway{}
	g.servers.init(g)
	p.queue.SetMax(n)
	l := &loop{gw: g, clock: func() int64 { return 1 }, now: 1}
	lp := newLoopPool(p, 1)
	for i := range n {
		s := new(session)
		s.loop = l
		t := &s.tx
		t.s, t.route, t.pool, t.own, t.reach = s, &route{checkPath: -1, pool: p}, lp, -1, 1
		t.line.init(t)
		t.waiter.Grant = func(*pool.Server, pool.Conn) { tb.Error("a request was given a server that takes none") }
		if prepare != nil {
			prepare(t)
		}
		if !p.queue.Push(&t.waiter, pool.Wait{Since: int64(i)}) {
			tb.Fatal("the line is full")
		}
	}
	return &g.servers
}

// BenchmarkOnSelection is what a change of the health of a server costs while many requests wait: all servers are at their cap, down, or backups
// that have nothing to do.
func BenchmarkOnSelection(b *testing.B) {
	for _, state := range []string{"down", "backup", "at-cap"} {
		b.Run(fmt.Sprintf("50-servers-1000-waiters/%s", state), func(b *testing.B) {
			tiers := make([]int, 50)
			for i := range tiers {
				if i > 0 && state == "backup" {
					tiers[i] = 1
				}
			}
			p := gradedPool(0, 0.01, tiers...)
			for i, s := range p.servers {
				if i > 0 && state == "down" {
					s.Health.SetState(health.Down)
				}
				if i == 0 || state == "at-cap" {
					s.Learn(1)
					s.Acquire()
				}
			}
			m := lined(b, p, 1000, nil)
			for b.Loop() {
				m.onSelection(p)
			}
		})
	}
}

// What is asked of those who wait for servers of their own allocates nothing, and does not go on for long: here the server that is offered is the second
// choice of each at best, so all are asked.
func BenchmarkOfferToOwn(b *testing.B) {
	for _, servers := range []int{4, 8, 50} {
		b.Run(fmt.Sprintf("%d-servers-1000-waiters", servers), func(b *testing.B) {
			p, offer := offeredToOwn(b, servers)
			b.ReportAllocs()
			for b.Loop() {
				offer()
			}
			if p.queue.Depth() != 1000 {
				b.Error("some have been served")
			}
		})
	}
}

func TestOfferAllocatesNothing(t *testing.T) {
	_, offer := offeredToOwn(t, 4)
	offer()
	if n := testing.AllocsPerRun(10, offer); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// offeredToOwn returns a pool whose servers are at their cap, but for one, to which none of 1000 requests goes that wait for the others, and what offers it.
func offeredToOwn(tb testing.TB, servers int) (*poolTable, func()) {
	tb.Helper()
	p := gradedPool(0, 0, make([]int, servers)...)
	p.cfg.Balance = "hash"
	p.setServers(p.members)
	for i, s := range p.servers {
		for range 300 {
			s.Begin()
		}
		if i > 0 {
			s.Learn(1)
			s.Acquire()
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	targets := p.survey.load(p, anything, bitset{}, p.selection(anything, bitset{}))
	lined(tb, p, 1000, func(t *transaction) {
		for t.keyed, t.byKey, t.own = true, true, 0; t.own == 0; {
			t.key = random.Uint64()
			t.own = p.hash.maglev.Pick(t.key, targets)
		}
	})
	return p, func() { p.queue.Offer(p.servers[0]) }
}

// startBusy runs a gateway on virtual time in front of a server with one connection, on which a request runs.
func startBusy(t *testing.T, cfg string) (v *virtual, running *serverSide, client *client) {
	t.Helper()
	v = startVirtual(t, nil, "    reserve: 0\n    timeouts: {response: 24h}\n    idle: {timeout: 24h}\n"+cfg, "")
	v.table.Load().pools[0].servers[0].Learn(1)
	client = v.connect(1)
	v.say(client, v04)
	running = v.f.next(t)
	running.gets(v04)
	return v, running, client
}

// answer ends the request that s has, and returns the connection with the next one.
func (v *virtual) answer(s *serverSide, c *client) *serverSide {
	v.t.Helper()
	s.send(text(page))
	c.expect(text(page))
	s.release()
	s = v.f.next(v.t)
	s.gets(v04)
	v.settle()
	return s
}

// Retry-After of a 503 is the time after which it may go better: as far as that is known, 1 to 30 s.
func TestRetryAfter(t *testing.T) {
	wants := func(t *testing.T, c *client, seconds int) {
		t.Helper()
		if h := c.refusal(503, false); !strings.Contains(h, fmt.Sprintf("\r\nRetry-After: %d\r\n", seconds)) {
			t.Errorf("%q, want Retry-After: %d", h, seconds)
		}
	}
	t.Run("the line is full", func(t *testing.T) {
		v, s, first := startBusy(t, "    queue: {max: 1, timeout: 1h}\n")
		second, third := v.connect(1), v.connect(1)
		v.say(second, v04)
		v.say(third, v04)
		wants(t, third, 1) // nobody has come to its end yet
		for _, tt := range []struct {
			waits time.Duration
			want  int
		}{{3200 * time.Millisecond, 4}, {300 * time.Millisecond, 1}, {10 * time.Second, 10}, {5 * time.Minute, 30}} {
			v.pass(tt.waits)
			s = v.answer(s, first) // the second one has waited for so long
			v.say(first, v04)
			v.say(third, v04)
			wants(t, third, tt.want)
			first, second = second, first
		}
		if n := v.metric(`queue_refused_total{pool="dlp",reason="max"}`); n != 5 {
			t.Errorf("%v refused because of queue.max", n)
		}
	})
	for _, tt := range []struct {
		timeout string
		want    int
	}{{"7s", 7}, {"200ms", 1}, {"5m", 30}} {
		t.Run("waited for "+tt.timeout, func(t *testing.T) {
			v, _, _ := startBusy(t, "    queue: {timeout: "+tt.timeout+"}\n")
			c := v.connect(1)
			v.say(c, v04)
			timeout, _ := time.ParseDuration(tt.timeout)
			v.pass(timeout + time.Duration(tick))
			wants(t, c, tt.want)
			if st := v.Status().Pools[0].Waits; st.Refused["timeout"] != 1 || st.Ended["cap"] != 1 || st.Seconds["cap"] < timeout.Seconds() {
				t.Errorf("the status says %+v", st)
			}
		})
	}
	t.Run("nothing waits", func(t *testing.T) {
		v, _, _ := startBusy(t, "    queue: {max: 0}\n")
		c := v.connect(1)
		v.say(c, v04)
		wants(t, c, 1)
	})
	for said, want := range map[int]int{20: 20, 90: 30} {
		t.Run(fmt.Sprintf("the server says %d", said), func(t *testing.T) {
			v := startVirtual(t, nil, "    queue: {timeout: 1s}\n", "")
			answer := fmt.Sprintf("ICAP/1.0 503 full¶Retry-After: %d¶¶", said)
			p := v.play(1, sends(v05), arrives(forwarded(v05)), answers(answer), gets(answer))
			v.pass(500 * time.Millisecond)
			v.say(p.c, v04)
			wants(t, p.c, want)
			if n := v.metric(`queue_refused_total{pool="dlp",reason="full"}`); n != 1 {
				t.Errorf("%v refused because the server is full", n)
			}
		})
	}
	t.Run("no server", func(t *testing.T) {
		v := startVirtual(t, nil, "", "") // checked once an hour
		v.table.Load().pools[0].servers[0].Health.SetState(health.Down)
		c := v.connect(1)
		v.say(c, v04)
		wants(t, c, 30)
	})
}

// A slot or a connection that was granted to a request which has been answered meanwhile is not used for the next one of its session that waits: this goes
// in its turn. If that has been granted something as well, it takes one of the two.
func TestGrantForEarlierRequest(t *testing.T) {
	v, s, first := startBusy(t, "    queue: {timeout: 10s}\n")
	server := v.table.Load().pools[0].servers[0]
	second, third := v.connect(1), v.connect(1)
	var late *transaction
	v.say(second, v04)
	v.say(third, v04)
	v.testGateway.onLoops(func(l *loop) {
		for s := range l.sessions {
			if t := &s.tx; t.waiting && t.s.client.Port() == portOf(third) {
				late = t
			}
		}
	})
	for range 2 { // as if these had been on their way to the loop since the request before
		if !server.Queue.Has(&late.waiter) {
			t.Fatal("the request is not in line")
		}
		server.SetLimits(pool.Limits{MaxConnections: 2, ConnectionShare: 1})
		if !server.Acquire() {
			t.Fatal("no slot")
		}
		server.SetLimits(pool.Limits{MaxConnections: 1, ConnectionShare: 1})
		late.waiter.Grant(server, nil)
		v.settle()
	}
	if server.Queue.Depth() != 2 || server.Connections() != 1 {
		t.Errorf("%d in line with %d connections, want 2 with 1", server.Queue.Depth(), server.Connections())
	}
	s = v.answer(s, first) // the second client's turn
	s = v.answer(s, second)
	s.send(text(page))
	third.expect(text(page))
}

// A request whose key changes with a reload goes by the new one while it waits.
func TestReloadChangesKeyOfWaiting(t *testing.T) {
	fakes := []*fakeServer{startFake(t), startFake(t), startFake(t)}
	var addresses []string
	for _, f := range fakes {
		f.says("", optionsAnswer+"Max-Connections: 1¶")
		addresses = append(addresses, f.address)
	}
	r := startReloader(t, addresses...)
	r.set(addresses, "    balance: hash\n    hash_on: \"header:X-Old\"\n    reserve: 0\n    queue: {timeout: 20s}\n    health: {interval: 1h}\n")
	r.reload()
	r.ready()
	place := func(key string) int {
		targets := make([]balancer.Target, 3)
		for i := range targets {
			targets[i] = balancer.Target{Weight: pool.Parts, Usable: true}
		}
		return r.table.Load().pools[0].hash.maglev.Pick(balancer.Key([]byte(key)), targets)
	}
	keys := make([]string, 3) // one for each server
	for i := 0; slices.Contains(keys, ""); i++ {
		key := fmt.Sprint("key", i)
		keys[place(key)] = key
	}
	var running []*serverSide
	for i := range fakes {
		c := r.dial(1)
		c.send(text(RL + "X-Old: " + keys[i] + "¶" + reqNull))
		running = append(running, fakes[i].next(t))
		running[i].head()
		running[i].expect(text(G))
	}
	c := r.dial(1)
	c.send(text(RL + "X-Old: " + keys[0] + "¶X-New: " + keys[2] + "¶" + reqNull))
	queue := r.table.Load().pools[0].queue
	eventually(t, "a request in line", func() bool { return queue.Depth() == 1 })
	load := func() (list []int) {
		for _, s := range r.table.Load().pools[0].servers {
			list = append(list, s.Load())
		}
		return list
	}
	if got := load(); !slices.Equal(got, []int{2, 1, 1}) {
		t.Errorf("the servers have loads of %v", got)
	}
	r.set(addresses, "    balance: hash\n    hash_on: \"header:X-New\"\n    reserve: 0\n    queue: {timeout: 20s}\n    health: {interval: 1h}\n")
	r.reload()
	eventually(t, "the request at its new server", func() bool { return slices.Equal(load(), []int{1, 1, 2}) })
	running[2].send(text(page))
	running[2].release()
	s := fakes[2].next(t)
	s.head()
	s.expect(text(G))
	s.send(text(page))
	c.expect(text(page))
}

// REQMODs and RESPMODs that have pools of their own do not wait for each other: their caps and queues are apart.
func TestQueuesByMethod(t *testing.T) {
	requests, responses := startFake(t), startFake(t)
	respmod := PL + "Encapsulated: res-hdr=0, null-body=19¶¶HTTP/1.1 200 OK¶¶"
	v := startVirtualFor(t, []string{requests.address}, "    reserve: 0\n    queue: {max: 1, timeout: 10s}\n    timeouts: {response: 24h}\n"+
		"  - name: responses\n    reserve: 0\n    queue: {max: 2, timeout: 20s}\n    timeouts: {response: 24h}\n    health: {interval: 1h}\n    servers: [\""+responses.address+"\"]\n",
		"services: [{path: \"*\", methods: [REQMOD], pool: dlp}, {path: \"*\", methods: [RESPMOD], pool: responses}]\n")
	v.ready()
	for _, p := range v.table.Load().pools {
		p.servers[0].Learn(1)
	}
	begin := func(request string) *client {
		t.Helper()
		c := v.connect(1)
		v.say(c, request)
		return c
	}
	depths := func(dlp, responses float64) {
		t.Helper()
		if a, b := v.metric(`queue_depth{pool="dlp"}`), v.metric(`queue_depth{pool="responses"}`); a != dlp || b != responses {
			t.Errorf("%v and %v in line, want %v and %v", a, b, dlp, responses)
		}
	}
	first := begin(v04)
	running := requests.next(t)
	running.gets(v04)
	waiting := begin(v04)
	begin(v04).refusal(503, false) // queue.max
	depths(1, 0)
	other := begin(respmod) // at once
	answered := responses.next(t)
	answered.head()
	begin(respmod)
	last := begin(respmod)
	depths(1, 2)
	begin(respmod).refusal(503, false)
	v.pass(10*time.Second + time.Duration(tick))
	waiting.refusal(503, false)
	depths(0, 2)
	v.pass(10 * time.Second)
	last.refusal(503, false)
	depths(0, 0)
	running.send(text(page))
	first.expect(text(page))
	answered.send(text(page))
	other.expect(text(page))
	for name, want := range map[string]float64{"dlp": 10, "responses": 40} {
		if got := v.metric(fmt.Sprintf(`queue_wait_seconds_total{pool=%q,cause="cap"}`, name)); got < want || got > want+0.2 {
			t.Errorf("pool %s: %v s in line, want %v", name, got, want)
		}
	}
}

func portOf(c *client) uint16 { return c.LocalAddr().(*net.TCPAddr).AddrPort().Port() }
