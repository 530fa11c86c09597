package pool

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// grants notes who got what, in order.
type grants []string

// waiter returns a waiter that notes its grants under a name.
func (g *grants) waiter(name string) *Waiter {
	return &Waiter{Grant: func(s *Server, c Conn) {
		what := "a slot"
		if c != nil {
			what = fmt.Sprintf("connection %d", c.(*testConn).id)
		}
		*g = append(*g, name+": "+what)
	}}
}

func (g *grants) expect(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(*g, want) {
		t.Errorf("granted %q, want %q", []string(*g), want)
	}
	*g = nil
}

// suits is Waiter.Suits of one that can only use some servers, nil: all.
func suits(usable func(s *Server) bool) func(*Server, uint64) Fit {
	if usable == nil {
		return nil
	}
	return func(s *Server, _ uint64) Fit {
		if usable(s) {
			return Good
		}
		return Unfit
	}
}

func push(t *testing.T, q *Queue, usable func(s *Server) bool, ws ...*Waiter) {
	t.Helper()
	for _, w := range ws {
		w.Suits = suits(usable)
		if !q.Push(w, Wait{}) {
			t.Fatal("the queue is full")
		}
	}
}

func TestQueueIsFirstInFirstOut(t *testing.T) {
	s := newTestServer(Limits{MaxConnections: 1, ConnectionShare: 1})
	q := s.Queue
	var g grants
	if !s.Acquire() {
		t.Fatal("no slot")
	}
	push(t, q, nil, g.waiter("a"), g.waiter("b"), g.waiter("c"))
	q.Offer(s) // nothing is free
	g.expect(t)
	if q.Depth() != 3 {
		t.Errorf("depth %d, want 3", q.Depth())
	}
	for _, name := range []string{"a", "b", "c"} {
		s.Release()
		g.expect(t, name+": a slot")
		if s.Connections() != 1 {
			t.Errorf("%d slots taken after the grant, want 1: the waiter's", s.Connections())
		}
	}
	s.Release()
	g.expect(t)
	if q.Depth() != 0 || s.Connections() != 0 {
		t.Errorf("depth %d, %d connections at the end, want 0", q.Depth(), s.Connections())
	}
}

func TestQueueBound(t *testing.T) {
	var g grants
	q := NewQueue(2)
	a, b, c := g.waiter("a"), g.waiter("b"), g.waiter("c")
	push(t, q, nil, a, b)
	if q.Push(c, Wait{}) {
		t.Error("a third waiter got into a queue for two")
	}
	if !q.Remove(a) || !q.Push(c, Wait{}) {
		t.Error("no place after one has left")
	}
	q.SetMax(1)
	if q.Depth() != 2 {
		t.Errorf("a smaller bound threw waiters out: depth %d, want 2", q.Depth())
	}
	if q.Remove(b); q.Push(a, Wait{}) {
		t.Error("a waiter got in above the smaller bound")
	}
	q.SetMax(2)
	if !q.Push(a, Wait{}) {
		t.Error("no place below the larger bound")
	}
	if NewQueue(0).Push(b, Wait{}) {
		t.Error("a waiter got into a queue for nobody")
	}
}

func TestQueueRemove(t *testing.T) {
	s := newTestServer(Limits{ConnectionShare: 1})
	q := s.Queue
	names := []string{"a", "b", "c"}
	for out := range names {
		var g grants
		var ws []*Waiter
		for _, name := range names {
			ws = append(ws, g.waiter(name))
		}
		push(t, q, nil, ws...)
		if !q.Remove(ws[out]) || q.Remove(ws[out]) {
			t.Fatal("a waiter can leave once")
		}
		q.Offer(s)
		var want []string
		for i, name := range names {
			if i != out {
				want = append(want, name+": a slot")
			}
		}
		g.expect(t, want...)
		for _, w := range ws {
			if q.Remove(w) {
				t.Error("a waiter that got its grant was still in line")
			}
		}
	}
	if q.Remove(new(Waiter)) {
		t.Error("a waiter that never waited was in line")
	}
}

func TestQueueTwice(t *testing.T) {
	var g grants
	q := NewQueue(10)
	w := g.waiter("a")
	push(t, q, nil, w)
	defer func() {
		if recover() == nil {
			t.Error("a waiter could queue twice")
		}
	}()
	q.Push(w, Wait{})
}

// Waiters that can't use the server are passed over, and keep their places.
func TestOfferWithFilters(t *testing.T) {
	a, b := newTestServer(Limits{MaxConnections: 2, ConnectionShare: 1}), newTestServer(Limits{MaxConnections: 2, ConnectionShare: 1})
	q := a.Queue
	b.Queue = q
	only := func(s *Server) func(*Server) bool { return func(o *Server) bool { return o == s } }
	var g grants
	push(t, q, only(b), g.waiter("b1"))
	push(t, q, only(a), g.waiter("a1"))
	push(t, q, only(b), g.waiter("b2"))
	push(t, q, nil, g.waiter("any1"), g.waiter("any2"))

	q.Offer(a)
	g.expect(t, "a1: a slot", "any1: a slot")
	if a.Connections() != 2 || b.Connections() != 0 {
		t.Errorf("%d and %d slots taken, want 2 and 0", a.Connections(), b.Connections())
	}
	q.Offer(a) // at its cap
	g.expect(t)
	q.Offer(b)
	g.expect(t, "b1: a slot", "b2: a slot")
	a.Release()
	g.expect(t, "any2: a slot")
}

// With no cap everybody who waits is served at once.
func TestOfferUnlimited(t *testing.T) {
	s := newTestServer(Limits{ConnectionShare: 1})
	var g grants
	push(t, s.Queue, nil, g.waiter("a"), g.waiter("b"))
	s.Queue.Offer(s)
	g.expect(t, "a: a slot", "b: a slot")
	if s.Connections() != 2 {
		t.Errorf("%d slots taken, want 2", s.Connections())
	}
}

// A cap that grows is offered as far as it has grown.
func TestOfferAfterCapGrew(t *testing.T) {
	s := newTestServer(Limits{ConnectionShare: 1})
	s.Learn(1)
	var g grants
	push(t, s.Queue, nil, g.waiter("a"), g.waiter("b"), g.waiter("c"))
	s.Queue.Offer(s)
	g.expect(t, "a: a slot")
	s.Learn(2)
	s.Queue.Offer(s)
	g.expect(t, "b: a slot")
}

// Next takes no slot: that of the connection passes on.
func TestNext(t *testing.T) {
	s := newTestServer(Limits{MaxConnections: 1, ConnectionShare: 1})
	q := s.Queue
	if q.Next(s) != nil {
		t.Error("an empty queue gave a waiter")
	}
	if !s.Acquire() {
		t.Fatal("no slot")
	}
	var g grants
	push(t, q, func(*Server) bool { return false }, g.waiter("picky"))
	if q.Next(s) != nil {
		t.Error("a waiter that can't use the server was given")
	}
	push(t, q, nil, g.waiter("a"))
	w := q.Next(s)
	if w == nil {
		t.Fatal("no waiter for a connection")
	}
	w.Grant(s, &testConn{id: 7})
	g.expect(t, "a: connection 7")
	if s.Connections() != 1 || q.Depth() != 1 {
		t.Errorf("%d slots taken, depth %d, want 1 and 1", s.Connections(), q.Depth())
	}
}

// A waiter may queue again from its own Grant, at the end of the line.
func TestQueueAgainFromGrant(t *testing.T) {
	s := newTestServer(Limits{MaxConnections: 1, ConnectionShare: 1})
	var g grants
	a, b := g.waiter("a"), g.waiter("b")
	note := a.Grant
	again := true
	a.Grant = func(s *Server, c Conn) {
		note(s, c)
		if again {
			again = false
			push(t, s.Queue, nil, a)
		}
	}
	push(t, s.Queue, nil, a, b)
	s.Queue.Offer(s)
	s.Release()
	s.Release()
	g.expect(t, "a: a slot", "b: a slot", "a: a slot")
}

func TestQueueAllocatesNothing(t *testing.T) {
	s := newTestServer(Limits{ConnectionShare: 1})
	w := &Waiter{Grant: func(s *Server, _ Conn) { s.Release() }, Suits: func(*Server, uint64) Fit { return Good }}
	wait := Wait{Own: s, Cause: CauseOwn}
	if n := testing.AllocsPerRun(100, func() {
		s.Queue.Push(w, wait)
		s.Queue.Remove(w)
		s.Queue.Push(w, wait)
		s.Queue.Offer(s)
	}); n != 0 {
		t.Errorf("%v allocations per wait, want 0", n)
	}
}

// The queue and the slots of two servers against a plain list.
func TestQueueModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := NewQueue(rapid.IntRange(0, 6).Draw(t, "max"))
		var servers [2]*Server
		var taken [2]int
		for i := range servers {
			servers[i] = newTestServer(Limits{MaxConnections: rapid.IntRange(0, 3).Draw(t, "cap"), ConnectionShare: 1})
			servers[i].Queue = q
		}
		type entry struct {
			w    *Waiter
			wait Wait
			uses [2]bool
		}
		var line []entry
		var granted []*Waiter
		free := func(i int) bool { c := servers[i].Cap(); return c == 0 || taken[i] < c }
		// expect runs what has to give waiters of the line slots of server i: as many as are free, or the first one.
		expect := func(i int, all bool, run func()) {
			granted = nil
			run()
			var want []*Waiter
			line = slices.DeleteFunc(line, func(e entry) bool {
				if !e.uses[i] || all && !free(i) || !all && len(want) == 1 {
					return false
				}
				want = append(want, e.w)
				if all {
					taken[i]++
				}
				return true
			})
			if !slices.Equal(granted, want) {
				t.Fatalf("%d grants, want %d", len(granted), len(want))
			}
		}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			i := rapid.IntRange(0, 1).Draw(t, "server")
			s := servers[i]
			switch rapid.SampledFrom([]string{"push", "push", "remove", "acquire", "release", "offer", "next"}).Draw(t, "operation") {
			case "push":
				e := entry{w: new(Waiter), uses: [2]bool{rapid.Bool().Draw(t, "uses 0"), rapid.Bool().Draw(t, "uses 1")}}
				e.w.Grant = func(*Server, Conn) { granted = append(granted, e.w) }
				e.w.Suits = suits(func(s *Server) bool { return s == servers[0] && e.uses[0] || s == servers[1] && e.uses[1] })
				e.wait = Wait{Since: rapid.Int64Range(0, 5).Draw(t, "since"), Cause: Cause(rapid.IntRange(0, Causes-1).Draw(t, "cause"))}
				if own := rapid.IntRange(-1, 1).Draw(t, "own"); own >= 0 {
					e.wait.Own = servers[own]
				}
				ok := q.Push(e.w, e.wait)
				if want := len(line) < int(q.max.Load()); ok != want {
					t.Fatalf("Push says %v with %d of %d in line", ok, len(line), q.max.Load())
				}
				if ok {
					line = append(line, e)
					slices.SortStableFunc(line, func(a, b entry) int { return cmp.Compare(a.wait.Since, b.wait.Since) })
				}
			case "remove":
				if len(line) > 0 {
					k := rapid.IntRange(0, len(line)-1).Draw(t, "place")
					if !q.Remove(line[k].w) {
						t.Fatal("a waiter in line could not leave")
					}
					line = slices.Delete(line, k, k+1)
				}
			case "acquire":
				ok := s.Acquire()
				if ok != free(i) {
					t.Fatalf("Acquire says %v with %d taken and a cap of %d", ok, taken[i], s.Cap())
				}
				if ok {
					taken[i]++
				}
			case "release":
				if taken[i] > 0 {
					taken[i]--
					expect(i, true, s.Release)
				}
			case "offer":
				expect(i, true, func() { q.Offer(s) })
			case "next":
				if taken[i] > 0 {
					expect(i, false, func() {
						if w := q.Next(s); w != nil {
							w.Grant(s, nil)
						}
					})
				}
			}
			var waits Waits
			var waiting [2]int
			for _, e := range line {
				waits.Depth[e.wait.Cause]++
				for i, s := range servers {
					if e.wait.Own == s {
						waiting[i]++
					}
				}
			}
			if len(line) > 0 {
				waits.Since = line[0].wait.Since
			}
			if got := q.Waits(); got != waits || servers[0].Load() != waiting[0] || servers[1].Load() != waiting[1] {
				t.Fatalf("it says %+v, loads %d and %d; the model has %+v, %v", got, servers[0].Load(), servers[1].Load(), waits, waiting)
			}
			if q.Depth() != len(line) || servers[0].Connections() != taken[0] || servers[1].Connections() != taken[1] {
				t.Fatalf("depth %d, slots %d and %d; the model has %d, %v", q.Depth(), servers[0].Connections(), servers[1].Connections(), len(line), taken)
			}
		}
	})
}

// worker is one transaction after another as the gateway runs them: take a slot or wait for one, give up at times, hand
// connections on. The invariant under test: no slot is lost or doubled, and nobody waits for ever.
type worker struct {
	t       *testing.T
	servers []*Server
	held    []*atomic.Int32 // by server: slots in use now
	most    []int32         // by server: its cap
	got     chan grant
	w       Waiter
	waited  int
}

type grant struct {
	s *Server
	c Conn
}

func (k *worker) run(rounds int, random *rand.Rand) {
	k.w.Grant = func(s *Server, c Conn) { k.got <- grant{s, c} }
	for range rounds {
		if g, ok := k.take(random); ok {
			k.use(g, random)
		}
	}
}

// take is a transaction's way to a slot; false: it gave up waiting.
func (k *worker) take(random *rand.Rand) (grant, bool) {
	only := k.servers[random.IntN(len(k.servers))]
	usable := func(s *Server) bool { return s == only }
	if random.IntN(2) == 0 {
		usable = nil
	}
	for _, s := range k.servers {
		if (usable == nil || usable(s)) && s.Acquire() {
			return grant{s, nil}, true
		}
	}
	q := k.servers[0].Queue
	k.w.Suits = suits(usable)
	if !q.Push(&k.w, Wait{}) {
		return grant{}, false
	}
	k.waited++
	for _, s := range k.servers { // a slot may have come free before the push
		q.Offer(s)
	}
	if random.IntN(8) == 0 && q.Remove(&k.w) {
		return grant{}, false
	}
	select {
	case g := <-k.got:
		if usable != nil && !usable(g.s) {
			k.t.Error("granted a server that is of no use")
		}
		return g, true
	case <-time.After(20 * time.Second):
		k.t.Error("a waiter starved")
		return grant{}, false
	}
}

func (k *worker) use(g grant, random *rand.Rand) {
	i := slices.Index(k.servers, g.s)
	if n := k.held[i].Add(1); n > k.most[i] {
		k.t.Errorf("%d slots of server %d in use, its cap is %d", n, i, k.most[i])
	}
	if random.IntN(4) == 0 {
		runtime.Gosched()
	}
	k.held[i].Add(-1)
	if random.IntN(2) == 0 { // the connection passes to the next waiter with its slot
		if w := g.s.Queue.Next(g.s); w != nil {
			w.Grant(g.s, g.c)
			return
		}
	}
	g.s.Release()
}

func TestSlotsUnderStress(t *testing.T) {
	rounds := 1500
	if testing.Short() {
		rounds = 200
	}
	q := NewQueue(1000)
	caps := []int32{1, 2, 3}
	var servers []*Server
	var held []*atomic.Int32
	for _, c := range caps {
		s := newTestServer(Limits{MaxConnections: int(c), ConnectionShare: 1})
		s.Queue = q
		servers, held = append(servers, s), append(held, new(atomic.Int32))
	}
	workers := make([]*worker, 24)
	var wg sync.WaitGroup
	for i := range workers {
		k := &worker{t: t, servers: servers, held: held, most: caps, got: make(chan grant, 1)}
		workers[i] = k
		wg.Go(func() { k.run(rounds, rand.New(rand.NewPCG(1, uint64(i)))) })
	}
	wg.Wait()
	waited := 0
	for _, k := range workers {
		waited += k.waited
		if len(k.got) > 0 {
			t.Error("a slot was granted to a waiter that had left")
		}
	}
	if waited == 0 {
		t.Error("nobody ever waited: the test shows nothing")
	}
	if q.Depth() != 0 || q.first != nil || q.last != nil {
		t.Errorf("depth %d at the end, want an empty line", q.Depth())
	}
	for i, s := range servers {
		if s.Connections() != 0 {
			t.Errorf("server %d has %d slots taken at the end", i, s.Connections())
		}
	}
}

// One for whom a server is spare lets those before for whom it is good, until it has waited for longer than they by the lead.
func TestSpareServers(t *testing.T) {
	for _, tt := range []struct {
		name string
		line string // kind and since of each: g good, s spare, u unfit
		want string
	}{
		{"first in first out", "g0 g5", "g0"},
		{"the good one is younger", "s0 g5", "g5"},
		{"the good one is as old as the lead allows", "s0 g9", "g9"},
		{"and younger than that", "s0 g10", "s0"},
		{"nobody else", "s3 u4 s5", "s3"},
		{"some are unfit", "u0 s1 u2 g3 g4", "g3"},
		{"behind them it is over", "u0 s1 u11 g11", "s1"},
		{"only unfit ones", "u0 u1", ""},
		{"an old unfit one is no reason", "u0 s5 g14", "g14"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newTestServer(Limits{MaxConnections: 1, ConnectionShare: 1})
			s.Queue.SetLead(10)
			var g grants
			for name := range strings.FieldsSeq(tt.line) {
				w := g.waiter(name)
				fit := map[byte]Fit{'g': Good, 's': Spare, 'u': Unfit}[name[0]]
				w.Suits = func(*Server, uint64) Fit { return fit }
				since, err := strconv.Atoi(name[1:])
				if err != nil || !s.Queue.Push(w, Wait{Since: int64(since)}) {
					t.Fatal("cannot push", name, err)
				}
			}
			s.Queue.Offer(s)
			if tt.want == "" {
				g.expect(t)
			} else {
				g.expect(t, tt.want+": a slot")
			}
		})
	}
}

// Who comes back into the line has the place that its time gives it, and what is asked about it changes while nobody asks.
func TestQueuePlaces(t *testing.T) {
	s := newTestServer(Limits{MaxConnections: 1, ConnectionShare: 1})
	q := s.Queue
	var g grants
	a, b, c := g.waiter("a"), g.waiter("b"), g.waiter("c")
	for _, w := range []struct {
		*Waiter
		since int64
	}{{b, 20}, {c, 30}, {a, 10}} {
		q.Push(w.Waiter, Wait{Since: w.since, Cause: CauseFull, Own: s})
	}
	if w := q.Waits(); w.Since != 10 || w.Depth != [Causes]int{CauseFull: 3} || s.Load() != 3 {
		t.Errorf("%+v with a load of %d", w, s.Load())
	}
	if !q.Update(a, func() { a.Suits = func(*Server, uint64) Fit { return Unfit } }) || !q.Has(a) {
		t.Error("a waiter in line is not known")
	}
	q.Offer(s)
	g.expect(t, "b: a slot")
	if q.Update(b, func() { t.Error("changed after its grant") }) || q.Has(b) {
		t.Error("a waiter is in line after its grant")
	}
	q.Remove(c)
	q.Remove(a)
	if w := q.Waits(); w.Since != 0 || w.Depth != [Causes]int{} || s.Load() != 0 {
		t.Errorf("%+v with a load of %d at the end", w, s.Load())
	}
}

func TestWaitCounts(t *testing.T) {
	q := NewQueue(1)
	q.Waited(CauseOwn, 3)
	q.Waited(CauseOwn, 4)
	q.Refused(RefusedTimeout)
	q.SetLatest(9)
	want := Waits{Ended: [Causes]uint64{CauseOwn: 2}, Time: [Causes]int64{CauseOwn: 7}, Refused: [Refusals]uint64{RefusedTimeout: 1}}
	if got := q.Waits(); got != want || q.Latest() != 9 {
		t.Errorf("%+v, latest %d", got, q.Latest())
	}
}
