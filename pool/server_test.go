package pool

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// newTestServer returns a server with its own queue.
func newTestServer(l Limits) *Server {
	return NewServer(netip.MustParseAddrPort("127.0.0.1:1344"), "dlp1:1344", 1, l, NewQueue(1000))
}

func TestCap(t *testing.T) {
	tests := []struct {
		name                               string
		configured, learnt, share, reserve int
		want                               int
	}{
		{"nothing said", 0, 0, 1, 1, 0},
		{"nothing said, shared", 0, 0, 4, 1, 0},
		{"configured", 10, 0, 1, 0, 10},
		{"configured, reserve", 10, 0, 1, 1, 9},
		{"learnt", 0, 100, 1, 1, 99},
		{"configured wins over learnt", 10, 100, 1, 1, 9},
		{"configured above learnt wins, too", 200, 100, 1, 1, 199},
		{"shared, rounded down", 0, 100, 3, 1, 32},
		{"shared before the reserve", 10, 0, 2, 1, 4},
		{"nothing left by the reserve", 2, 0, 1, 2, 1},
		{"reserve larger than the cap", 2, 0, 1, 100, 1},
		{"share larger than the cap", 0, 3, 10, 1, 1},
		{"one", 1, 0, 1, 1, 1},
		{"share not set", 10, 0, 0, 1, 9},
		{"share not known", 1000, 0, ShareUnknown, 0, 1},
		{"learnt beyond all bounds", 0, 1 << 40, 1, 0, 1 << 30},
		{"learnt nonsense", 0, -5, 1, 1, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newTestServer(Limits{MaxConnections: tt.configured, ConnectionShare: tt.share, Reserve: tt.reserve})
			s.Learn(tt.learnt)
			if got := s.Cap(); got != tt.want {
				t.Errorf("Cap() = %d, want %d", got, tt.want)
			}
		})
	}
}

func TestLearnKeepsWhatWasSaid(t *testing.T) {
	s := newTestServer(Limits{ConnectionShare: 1, Reserve: 1})
	s.Learn(20)
	s.Learn(0) // an answer without Max-Connections
	if got := s.Cap(); got != 19 {
		t.Errorf("Cap() = %d after an answer that says nothing, want 19", got)
	}
	s.Learn(5)
	if got := s.Cap(); got != 4 {
		t.Errorf("Cap() = %d, want 4 as last said", got)
	}
}

// A smaller cap cuts nothing, but lets nobody in before the connections are below it.
func TestCapShrinks(t *testing.T) {
	s := newTestServer(Limits{MaxConnections: 3, ConnectionShare: 1})
	for range 3 {
		if !s.Acquire() {
			t.Fatal("no slot below the cap")
		}
	}
	s.SetLimits(Limits{MaxConnections: 1, ConnectionShare: 1})
	if n := s.Connections(); n != 3 {
		t.Errorf("%d connections after the cap was lowered, want all 3", n)
	}
	for left := 2; left >= 1; left-- {
		s.Release()
		if s.Acquire() || s.HasSlot() {
			t.Errorf("a slot was given with %d connections and a cap of 1", left)
		}
	}
	s.Release()
	if !s.HasSlot() || !s.Acquire() {
		t.Error("no slot although there is no connection")
	}
}

func TestReleaseWithoutAcquire(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("Release without Acquire went unnoticed")
		}
	}()
	newTestServer(Limits{}).Release()
}

// Many goroutines take and give back slots: never are there more than the cap, and none is lost.
func TestAcquireNeverBeyondCap(t *testing.T) {
	const limit, goroutines, rounds = 7, 16, 2000
	s := newTestServer(Limits{MaxConnections: limit, ConnectionShare: 1})
	var held, got, refused atomic.Int32
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for range rounds {
				if !s.Acquire() {
					refused.Add(1)
					continue
				}
				got.Add(1)
				if n := held.Add(1); n > limit {
					t.Errorf("%d slots are taken, the cap is %d", n, limit)
				}
				held.Add(-1)
				s.Release()
			}
		})
	}
	wg.Wait()
	if s.Connections() != 0 || s.Idle() != 0 {
		t.Errorf("%d connections, %d idle at the end, want none", s.Connections(), s.Idle())
	}
	if got.Load()+refused.Load() != goroutines*rounds || got.Load() == 0 {
		t.Errorf("%d slots given and %d refused, want %d in all", got.Load(), refused.Load(), goroutines*rounds)
	}
	for range limit {
		if !s.Acquire() {
			t.Fatal("a slot was lost")
		}
	}
	if s.Acquire() {
		t.Error("a slot was doubled")
	}
}

func TestBeginAndEnd(t *testing.T) {
	s := newTestServer(Limits{})
	s.Begin()
	s.Begin()
	s.End()
	if s.InFlight() != 1 || s.Requests() != 2 {
		t.Errorf("in flight %d, requests %d, want 1 and 2", s.InFlight(), s.Requests())
	}
}

func TestMarkFull(t *testing.T) {
	s := newTestServer(Limits{})
	if s.Full(0) {
		t.Error("a new server is full")
	}
	s.MarkFull(1000)
	if !s.Full(999) || s.Full(1000) {
		t.Errorf("full before the time: %v, at the time: %v; want true, false", s.Full(999), s.Full(1000))
	}
}

func TestExpedite(t *testing.T) {
	s := newTestServer(Limits{})
	s.Expedite() // nobody checks it yet
	calls := 0
	s.SetExpedite(func() { calls++ })
	s.Expedite()
	if calls != 1 {
		t.Errorf("%d calls, want 1", calls)
	}
}

func TestSlowStart(t *testing.T) {
	const span = int64(30 * time.Second)
	s := NewServer(netip.MustParseAddrPort("192.0.2.1:1344"), "dlp:1344", 4, Limits{ConnectionShare: 1}, NewQueue(0))
	share := func(now, span int64, want int32) {
		t.Helper()
		if got := s.Share(now, span); got != want {
			t.Errorf("share at %v: %d, want %d", time.Duration(now), got, want)
		}
	}
	share(1, span, 4*Parts) // it has been there from the start
	const at = int64(time.Hour)
	s.StartSlowly(at)
	share(at-1, span, 400) // a loop's clock may be a little behind
	share(at, span, 400)
	share(at+span/3, span, 4*400)
	share(at+span-1, span, 4*999)
	share(at+span, span, 4*Parts)
	share(at, 0, 4*Parts)
	share(at-1, 0, 4*Parts)
	s.SetWeight(0)
	share(at, span, 0)
}

// What an operator has set stays until a configuration comes, whatever DNS says meanwhile.
func TestWeights(t *testing.T) {
	s := newTestServer(Limits{ConnectionShare: 1})
	for i, step := range []struct {
		do   func(int)
		w    int
		want int
	}{
		{s.FollowWeight, 5, 5}, {s.FollowWeight, 0, 0}, {s.SetWeight, 256, 256}, {s.FollowWeight, 7, 256}, {s.SetWeight, 0, 0}, {s.FollowWeight, 7, 0},
		{s.ResetWeight, 3, 3}, {s.FollowWeight, 4, 4},
	} {
		step.do(step.w)
		if got := s.Weight(); got != step.want || s.Share(0, 0) != int32(step.want)*Parts {
			t.Errorf("step %d: weight %d, share %d, want %d", i+1, got, s.Share(0, 0), step.want)
		}
	}
}
