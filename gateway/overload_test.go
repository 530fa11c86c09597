package gateway

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"icapgate/balancer"
	"icapgate/health"
	"icapgate/pool"
)

// overload is a pool whose requests are numbers: what they wait for and where they go is the gateway's own doing, servers take a fixed time, and nothing
// is sent. Time goes by in steps.
type overload struct {
	t       *testing.T
	l       *loop
	pool    *poolTable
	now     int64
	running []*arrival        // in the order in which they end
	service func(i int) int64 // ns that server i takes
	came    int
	got     []*arrival           // that were given a server, in this order
	left    []*arrival           // that got a 503
	most    map[*pool.Server]int // connections
	longest int                  // length of the line
}

// arrival is one request.
type arrival struct {
	session
	number         int
	before         *pool.Server // own server when it came
	came, had, end int64        // had: when it got its server or its 503
	server         int
}

const ms = int64(time.Millisecond)

// newOverload has servers of these caps; cfg is YAML of the pool.
func newOverload(t *testing.T, cfg string, caps ...int) *overload {
	t.Helper()
	var list []string
	for i, c := range caps {
		list = append(list, fmt.Sprintf("{address: \"192.0.2.%d:1344\", max_connections: %d}", i+1, c))
	}
	g := newGatewayIn(t, "["+strings.Join(list, ", ")+"]", "    reserve: 0\n"+cfg, "")
	o := &overload{t: t, l: g.loops[0], pool: g.table.Load().pools[0], now: loopTime(), most: make(map[*pool.Server]int)}
	o.l.clock = func() int64 { return o.now }
	o.l.now = o.now
	o.l.currentTable()
	for _, s := range o.pool.servers {
		s.Health.SetState(health.Up)
	}
	o.service = func(int) int64 { return 50 * ms }
	return o
}

// arrive is a request that comes now, with a key unless that is 0, of a session with that own server, nil: none.
func (o *overload) arrive(key int, own *pool.Server) *arrival {
	a := &arrival{number: o.came, before: own, came: o.now, server: -1}
	o.came++
	a.loop = o.l
	t := &a.tx
	t.init(&a.session)
	t.route, t.pool = o.l.table.routes[0], o.l.poolFor(o.pool)
	t.key, t.keyed = balancer.Key(fmt.Append(nil, key)), key != 0 && o.pool.hash != nil
	if own != nil {
		a.own.set(own)
	}
	t.waiter.Grant = func(s *pool.Server, _ pool.Conn) {
		t.endWait()
		t.granted()
		o.serve(a, o.pool.index(s))
	}
	t.timer.fire = func(int64) {
		if t.waiting && o.now >= t.until {
			t.leaveQueue()
			o.refuse(a)
			return
		}
		t.onQueueTimer()
	}
	for a.server < 0 {
		switch i, found := t.pool.pick(t, o.now); found {
		case pickedServer:
			if !o.pool.servers[i].Acquire() {
				o.t.Fatal("a server without a slot was picked")
			}
			o.serve(a, i)
		case ownBusy:
			if !t.enqueue(i, pool.CauseOwn) {
				continue
			}
		case allBusy:
			if !t.enqueue(i, pool.CauseCap) {
				o.refuse(a)
			}
		default:
			o.t.Fatalf("pick says %v", found)
		}
		o.longest = max(o.longest, o.pool.queue.Depth())
		return a
	}
	return a
}

func (o *overload) serve(a *arrival, i int) {
	s := o.pool.servers[i]
	s.Begin()
	o.most[s] = max(o.most[s], s.Connections())
	a.server, a.had, a.end = i, o.now, o.now+o.service(i)
	a.own.set(s)
	o.got = append(o.got, a)
	at, _ := slices.BinarySearchFunc(o.running, a.end+1, func(r *arrival, end int64) int { return int(r.end - end) })
	o.running = slices.Insert(o.running, at, a)
}

func (o *overload) refuse(a *arrival) {
	a.had = o.now
	o.left = append(o.left, a)
}

// pass lets d pass; each ms f is called, if it is not nil.
func (o *overload) pass(d time.Duration, f func()) {
	for end := o.now + int64(d); o.now < end; {
		o.now += ms
		o.l.now = o.now
		for len(o.running) > 0 && o.running[0].end <= o.now {
			a := o.running[0]
			o.running = o.running[1:]
			s := o.pool.servers[a.server]
			s.End()
			s.Release()
		}
		o.l.wheel.advance(o.now)
		if f != nil {
			f()
		}
	}
}

// offer has rate requests per s come for d, with keys from 1 to keys.
func (o *overload) offer(d time.Duration, rate float64, keys int) {
	random := rand.New(rand.NewPCG(1, 2))
	due := 0.0
	o.pass(d, func() {
		for due += rate / 1000; due >= 1; due-- {
			key := 0
			if keys > 0 {
				key = 1 + random.IntN(keys)
			}
			o.arrive(key, nil)
		}
	})
}

// finish lets everything come to its end, and checks that nothing is lost, and what limits promise.
func (o *overload) finish() {
	o.t.Helper()
	queue := o.pool.cfg.Queue
	o.pass(time.Duration(queue.Timeout)+time.Second, nil)
	if n := len(o.got) + len(o.left); n != o.came {
		o.t.Errorf("%d answers to %d requests", n, o.came)
	}
	if o.longest > queue.Max || o.pool.queue.Depth() != 0 {
		o.t.Errorf("the line had up to %d waiters, and has %d at the end", o.longest, o.pool.queue.Depth())
	}
	for i, s := range o.pool.servers {
		if o.most[s] > s.Cap() || s.Load() != 0 || s.Connections() != 0 {
			o.t.Errorf("server %d with a cap of %d had up to %d connections; at the end %d, and a load of %d", i, s.Cap(), o.most[s], s.Connections(), s.Load())
		}
	}
	for _, a := range slices.Concat(o.got, o.left) {
		if wait := a.had - a.came; wait > int64(queue.Timeout)+tick {
			o.t.Fatalf("a request has waited for %v", time.Duration(wait))
		}
	}
	for _, a := range o.left { // at once, or when it has waited in vain
		if wait := a.had - a.came; wait != 0 && wait < int64(queue.Timeout) {
			o.t.Fatalf("a request was refused after %v", time.Duration(wait))
		}
	}
}

// With twice the load that the servers can take they do as much as they can, under every policy; the rest is refused at once or after queue.timeout. Who
// waits for any server is served in turn.
func TestOverload(t *testing.T) {
	for _, name := range balancer.Names() {
		for _, tiers := range []string{"", "    tier_threshold: 1\n"} {
			t.Run(name+strings.TrimSpace(tiers), func(t *testing.T) {
				o := newOverload(t, "    balance: "+name+"\n"+tiers, 2, 4, 6, 8)
				const capacity, length = 400, 10 // 20 slots, 50 ms
				o.offer(length*time.Second, 2*capacity, 0)
				if n := len(o.got) - len(o.running); n < length*capacity*99/100 {
					t.Errorf("%d requests were served in %d s, %d would be possible", n, length, length*capacity)
				}
				o.finish()
				for i, a := range o.got {
					if i > 0 && a.number < o.got[i-1].number {
						t.Fatalf("request %d was served after request %d", a.number, o.got[i-1].number)
					}
				}
				if w := o.pool.queue.Waits(); w.Ended[pool.CauseCap] == 0 || w.Ended[pool.CauseOwn] != 0 {
					t.Errorf("waits by cause: %v", w.Ended)
				}
			})
		}
	}
}

// Under overload, too, requests with one key go to few servers, most of them to one, whether they wait for less than half of queue.timeout or for more.
// No capacity is lost for that.
func TestHashUnderOverload(t *testing.T) {
	for _, queue := range []string{"{max: 1024, timeout: 5s}", "{max: 1024, timeout: 2s}", "{max: 100000, timeout: 2s}", "{max: 100000, timeout: 1s}"} {
		t.Run(queue, func(t *testing.T) {
			o := newOverload(t, "    balance: hash\n    queue: "+queue+"\n", 4, 4, 4, 4, 4, 4, 4, 4)
			const capacity, length, keys = 640, 6, 200
			o.offer(length*time.Second, 2*capacity, keys)
			if n := len(o.got) - len(o.running); n < length*capacity*99/100 {
				t.Errorf("%d requests were served in %d s, %d would be possible", n, length, length*capacity)
			}
			o.finish()
			byKey := make(map[uint64]map[int]int)
			for _, a := range o.got {
				if byKey[a.tx.key] == nil {
					byKey[a.tx.key] = make(map[int]int)
				}
				byKey[a.tx.key][a.server]++
			}
			var met [9]int // keys by the number of servers
			atHome := 0
			for _, servers := range byKey {
				met[len(servers)]++
				atHome += slices.Max(slices.Collect(maps.Values(servers)))
			}
			few, share := float64(met[1]+met[2]+met[3])/keys, float64(atHome)/float64(len(o.got))
			if few < 0.9 || share < 0.9 {
				t.Errorf("keys by the number of servers that they met: %v; %.1f %% of the requests went to the most frequent one", met, 100*share)
			}
			t.Logf("keys by the number of servers that they met: %v; %.1f %% of the requests went to the most frequent one", met, 100*share)
		})
	}
}

// One key alone is not bound to one server: beyond the bound it uses all of them, in the order that is its own.
func TestPopularKey(t *testing.T) {
	o := newOverload(t, "    balance: hash\n", 4, 4, 4, 4)
	o.offer(5*time.Second, 600, 1) // 320 are possible
	if n := len(o.got) - len(o.running); n < 5*320*97/100 {
		t.Errorf("%d requests were served in 5 s", n)
	}
	o.finish()
}

// Requests for a server that gets nothing done any more go to others after half of queue.timeout, when these have anything left to give.
func TestOwnServerStandsStill(t *testing.T) {
	for _, cfg := range []string{"    balance: hash\n", "    affinity: session\n"} {
		t.Run(strings.TrimSpace(cfg), func(t *testing.T) {
			o := newOverload(t, cfg, 4, 4, 4, 4)
			o.service = func(i int) int64 {
				if i == 0 {
					return int64(time.Hour)
				}
				return 50 * ms
			}
			random := rand.New(rand.NewPCG(3, 4))
			o.pass(20*time.Second, func() {
				if random.IntN(1000) < 100 { // 240 per s are possible
					o.arrive(1+random.IntN(50), o.pool.servers[random.IntN(4)])
				}
			})
			o.pass(6*time.Second, nil)
			if len(o.left) > 0 || len(o.got) != o.came {
				t.Errorf("%d of %d requests were served, %d refused", len(o.got), o.came, len(o.left))
			}
			late := 0
			for _, a := range o.got {
				if wait := a.had - a.came; wait > int64(2500*time.Millisecond)+tick {
					t.Errorf("a request has waited for %v", time.Duration(wait))
				} else if wait > 0 {
					late++
				}
			}
			if late == 0 {
				t.Error("nobody has waited")
			}
		})
	}
}

// Sessions that wait for their servers under overload stay with them.
func TestAffinityUnderOverload(t *testing.T) {
	o := newOverload(t, "    affinity: session\n", 4, 4, 4, 4)
	var latest [64]*arrival
	moved := 0
	ask := func() {
		for i, a := range latest {
			switch {
			case a == nil && len(o.got) < 4*i: // they begin one after the other
			case a == nil:
				latest[i] = o.arrive(0, nil)
			case a.server >= 0 && a.end <= o.now: // and ask again as soon as they have their answer
				latest[i] = o.arrive(0, a.own.of(o.pool.queue))
			}
		}
	}
	o.pass(20*time.Second, ask)
	last := make(map[*pool.Server]int)
	for _, a := range latest {
		last[a.own.of(o.pool.queue)]++
	}
	o.finish()
	for _, a := range o.got {
		if a.before != nil && a.before != o.pool.servers[a.server] {
			moved++
		}
	}
	if n := len(o.got); n < 20*320*95/100 || moved > n/100 {
		t.Errorf("%d requests were served, 6400 would be possible; %d of them not by the server of their session", n, moved)
	}
	t.Logf("%d requests, %d moves, sessions by server %v", len(o.got), moved, slices.Collect(maps.Values(last)))
}
