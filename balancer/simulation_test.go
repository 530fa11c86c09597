package balancer

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// A simulation: requests come at random (Poisson), each of two loops picks with a policy of its own, and servers with a few slots take
// random times. Everything is drawn from a seed and lives in virtual time, so that a run always shows the same.

// simServer is a server as it really is; what the policies see of it comes late.
type simServer struct {
	mean   float64                  // s that a request takes
	slower func(at float64) float64 // times the mean; nil: 1
	down   func(at float64) bool    // nil: never. Requests to it fail at once then
	slots  []float64                // until when each is taken
}

const (
	simSlots   = 8   // of a server
	simNoticed = 0.3 // s until a check tells whether a server is down
)

// simResult is what a run has shown.
type simResult struct {
	requests, failed int
	share            []float64
	p50, p99         float64     // s
	counts           [][]float64 // of requests, by server and second
	swing            []float64   // of these: standard deviation over mean
}

// simEvent is the end of an attempt.
type simEvent struct {
	at, began float64
	loop      int
	server    int
}

type simEvents []simEvent

func (e simEvents) Len() int           { return len(e) }
func (e simEvents) Less(i, j int) bool { return e[i].at < e[j].at }
func (e simEvents) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *simEvents) Push(x any)        { *e = append(*e, x.(simEvent)) }
func (e *simEvents) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// seeded makes a policy whose dice fall the same way in every run.
func seeded(t testing.TB, name string, servers int, seed uint64) Policy {
	t.Helper()
	p, err := New(name)
	if err != nil {
		t.Fatal(err)
	}
	switch p := p.(type) {
	case *roundRobin:
		return newRoundRobin(servers)
	case *leastInFlight:
		return newLeastInFlight(servers)
	case *randomTwo:
		p.dice = loaded(seed)
	case *peakEWMA:
		p.dice = loaded(seed)
	}
	return p
}

// simulate sends rate requests a second for so many seconds.
func simulate(t testing.TB, policy string, servers []simServer, rate, seconds float64, seed uint64) simResult {
	t.Helper()
	const loops = 2
	n := len(servers)
	rng := rand.New(rand.NewPCG(seed, 99))
	var policies [loops]Policy
	var latencies [loops][]Latency
	for i := range loops {
		policies[i], latencies[i] = seeded(t, policy, n, seed+uint64(i)), make([]Latency, n)
	}
	for i := range servers {
		servers[i].slots = make([]float64, simSlots)
	}
	running, tried := make([]int32, n), make([]bool, n)
	var events simEvents
	var took []float64
	res := simResult{share: make([]float64, n), swing: make([]float64, n), counts: make([][]float64, n)}
	for i := range res.counts {
		res.counts[i] = make([]float64, int(seconds))
	}
	targets := make([]Target, n)
	isDown := func(s *simServer, at float64) bool { return s.down != nil && s.down(at) }

	for now := 0.0; ; {
		now += rng.ExpFloat64() / rate
		for len(events) > 0 && (events[0].at <= now || now >= seconds) {
			e := heap.Pop(&events).(simEvent)
			running[e.server]--
			latencies[e.loop][e.server].Observe(int64(e.at*1e9), int64((e.at-e.began)*1e9), int(running[e.server]))
			took = append(took, e.at-e.began)
		}
		if now >= seconds {
			break
		}
		res.requests++
		loop := rng.IntN(loops)
		clear(tried)
		for attempt := 0; ; attempt++ {
			for i := range servers {
				targets[i] = Target{
					Weight: 1000, InFlight: running[i], Latency: latencies[loop][i].At(int64(now * 1e9)),
					Running: latencies[loop][i].Running(),
					Usable:  !tried[i] && !isDown(&servers[i], now-simNoticed),
				}
			}
			i := policies[loop].Pick(targets)
			if i < 0 {
				res.failed++
				break
			}
			latencies[loop][i].Begin(int64(now * 1e9))
			if isDown(&servers[i], now) {
				latencies[loop][i].Fail(int64(now * 1e9))
				tried[i] = true
				continue
			}
			res.share[i]++
			res.counts[i][int(now)]++
			running[i]++
			slot := 0
			for k, free := range servers[i].slots {
				if free < servers[i].slots[slot] {
					slot = k
				}
			}
			mean := servers[i].mean
			if servers[i].slower != nil {
				mean *= servers[i].slower(now)
			}
			end := max(now, servers[i].slots[slot]) + mean*rng.ExpFloat64()
			servers[i].slots[slot] = end
			heap.Push(&events, simEvent{end, now, loop, i})
			break
		}
	}
	slices.Sort(took)
	res.p50, res.p99 = took[len(took)/2], took[len(took)*99/100]
	for i := range res.share {
		res.swing[i] = swing(res.counts[i][5:]) // once it has settled
		res.share[i] /= float64(res.requests)
	}
	return res
}

// swing is the standard deviation over the mean.
func swing(list []float64) float64 {
	sum, squares := 0.0, 0.0
	for _, v := range list {
		sum, squares = sum+v, squares+v*v
	}
	mean := sum / float64(len(list))
	return math.Sqrt(max(squares/float64(len(list))-mean*mean, 0)) / mean
}

// cluster is ten servers of 10 ms: the first takes ten times as long, the second flaps: 2 s up, 2 s down.
func cluster() []simServer {
	servers := make([]simServer, 10)
	for i := range servers {
		servers[i].mean = 0.010
	}
	servers[0].mean = 0.100
	servers[1].down = func(at float64) bool { return math.Mod(at, 4) >= 2 }
	return servers
}

func (r simResult) String() string {
	ms := func(s float64) time.Duration { return time.Duration(s * 1e9).Round(100 * time.Microsecond) }
	return fmt.Sprintf("slow %.2f%%, flapping %.1f%%, others %.1f to %.1f%%, p50 %v, p99 %v, swing %.2f to %.2f",
		100*r.share[0], 100*r.share[1], 100*slices.Min(r.share[2:]), 100*slices.Max(r.share[2:]), ms(r.p50), ms(r.p99),
		slices.Min(r.swing[2:]), slices.Max(r.swing[2:]))
}

// Ten servers, one of them slow and one flapping, at 45 % of what the good ones can do.
func TestSimulatedCluster(t *testing.T) {
	const rate, seconds = 3200, 60
	results := map[string]simResult{}
	for _, name := range Names() {
		r := simulate(t, name, cluster(), rate, seconds, 1)
		t.Logf("%-15s %v", name, r)
		if r.failed > 0 {
			t.Errorf("%s: %d requests failed: one server was always usable", name, r.failed)
		}
		results[name] = r
	}
	base := results["least_inflight"]
	slowest := results["round_robin"]
	if slowest.p99 < 3*base.p99 {
		t.Errorf("round_robin's p99 is %.3f s, least_inflight's %.3f s: want 3 times as long", slowest.p99, base.p99)
	}
	for name, most := range map[string]struct{ slow, p99, swing, spread float64 }{
		"random_two": {0.05, 2, 1.5, 1.2}, // slow: share of the slow server; p99 and swing: of least_inflight's; spread: most over least share of equal servers
		"peak_ewma":  {0.02, 1, 1.5, 1.2},
	} {
		r := results[name]
		equal := r.share[2:]
		switch {
		case r.share[0] > most.slow:
			t.Errorf("%s: the slow server gets %.1f %%, want at most %.1f %%", name, 100*r.share[0], 100*most.slow)
		case r.p99 > most.p99*base.p99:
			t.Errorf("%s: p99 is %.3f s, want at most %v times that of least_inflight, %.3f s", name, r.p99, most.p99, base.p99)
		case slices.Max(r.swing[2:]) > most.swing*slices.Max(base.swing[2:]):
			t.Errorf("%s: the load of a server swings by %.2f, want at most %v times that of least_inflight, %.2f", name, slices.Max(r.swing[2:]), most.swing, slices.Max(base.swing[2:]))
		case slices.Max(equal) > most.spread*slices.Min(equal):
			t.Errorf("%s: equal servers get %.1f to %.1f %%", name, 100*slices.Min(equal), 100*slices.Max(equal))
		}
	}
}

// A server that becomes slow loses its share within a second, and gets it back when it is fast again.
func TestSimulatedChange(t *testing.T) {
	servers := make([]simServer, 4)
	for i := range servers {
		servers[i].mean = 0.010
	}
	servers[0].slower = func(at float64) float64 {
		if at >= 20 && at < 60 {
			return 20
		}
		return 1
	}
	const rate = 800 // a quarter of what they can do
	r := simulate(t, "peak_ewma", servers, rate, 180, 1)
	share := func(from, to int) float64 {
		n := 0.0
		for _, c := range r.counts[0][from:to] {
			n += c
		}
		return n / float64(to-from) / rate
	}
	for _, part := range []struct {
		from, to    int
		least, most float64
	}{{5, 20, 0.15, 0.35}, {21, 60, 0, 0.02}, {120, 180, 0.15, 0.35}} {
		if got := share(part.from, part.to); got < part.least || got > part.most {
			t.Errorf("from %d to %d s the server that is slow from 20 to 60 s gets %.1f %%, want %v to %v", part.from, part.to, 100*got, part.least, part.most)
		}
	}
}

// Servers that are equally fast are used equally, however busy they are: what is known of them, which is chance, does not keep work from one while
// another one has too much.
func TestSimulatedEqual(t *testing.T) {
	for _, n := range []int{2, 4} {
		for _, busy := range []float64{0.2, 0.6, 0.9} {
			run := func(name string) simResult {
				servers := make([]simServer, n)
				for i := range servers {
					servers[i].mean = 0.010
				}
				return simulate(t, name, servers, busy*float64(n)*simSlots/0.010, 60, 1)
			}
			base, r := run("random_two"), run("peak_ewma")
			t.Logf("%d servers, %.0f %% busy: p99 %.1f ms, %.1f ms with random_two; shares %.3f; swing %.2f, %.2f", n, 100*busy,
				1e3*r.p99, 1e3*base.p99, r.share, slices.Max(r.swing), slices.Max(base.swing))
			if most, least := slices.Max(r.share), slices.Min(r.share); most > 1.25*least {
				t.Errorf("%d servers, %.0f %% busy: shares %.3f", n, 100*busy, r.share)
			}
			if r.p99 > 1.25*base.p99 {
				t.Errorf("%d servers, %.0f %% busy: p99 %.1f ms, want at most 1.25 times that of random_two, %.1f ms", n, 100*busy, 1e3*r.p99, 1e3*base.p99)
			}
		}
	}
}
