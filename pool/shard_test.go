package pool

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// testConn is an idle connection.
type testConn struct {
	state ConnState
	id    int
}

func (c *testConn) State() *ConnState { return &c.state }

func TestShardIsLastInFirstOut(t *testing.T) {
	s := newTestServer(Limits{})
	h := Shard[*testConn]{Server: s}
	if _, ok := h.Get(); ok {
		t.Fatal("an empty shard gave a connection")
	}
	for i := range 3 {
		h.Put(&testConn{id: i}, int64(100+i))
	}
	if h.Len() != 3 || s.Idle() != 3 {
		t.Fatalf("%d in the shard, %d idle at the server, want 3", h.Len(), s.Idle())
	}
	for want := 2; want >= 0; want-- {
		c, ok := h.Get()
		if !ok || c.id != want {
			t.Fatalf("got %v, %v, want connection %d", c, ok, want)
		}
		if c.state.LastUse != int64(100+want) {
			t.Errorf("connection %d became idle at %d, want %d", want, c.state.LastUse, 100+want)
		}
		if s.Idle() != want {
			t.Errorf("%d idle at the server, want %d", s.Idle(), want)
		}
	}
}

func TestShardRemove(t *testing.T) {
	for _, remove := range []int{0, 1, 2} {
		s := newTestServer(Limits{})
		h := Shard[*testConn]{Server: s}
		conns := make([]*testConn, 3)
		for i := range conns {
			conns[i] = &testConn{id: i}
			h.Put(conns[i], 0)
		}
		if !h.Remove(conns[remove]) {
			t.Fatalf("connection %d was not found", remove)
		}
		if h.Remove(conns[remove]) {
			t.Errorf("connection %d was removed twice", remove)
		}
		if h.Remove(&testConn{id: remove}) {
			t.Error("a connection that was never put in was removed")
		}
		if h.Len() != 2 || s.Idle() != 2 {
			t.Errorf("%d in the shard, %d idle at the server, want 2", h.Len(), s.Idle())
		}
		for want := 2; want >= 0; want-- {
			if want == remove {
				continue
			}
			if c, ok := h.Get(); !ok || c.id != want {
				t.Errorf("without %d: got %v, want connection %d", remove, c, want)
			}
		}
	}
}

// What leaves the shard is not kept alive by it.
func TestShardForgets(t *testing.T) {
	h := Shard[*testConn]{Server: newTestServer(Limits{})}
	a, b := new(testConn), new(testConn)
	h.Put(a, 0)
	h.Put(b, 0)
	h.Remove(a)
	h.Get()
	for i, c := range h.idle[:2] {
		if c != nil {
			t.Errorf("place %d still holds a connection", i)
		}
	}
}

// A shard is a stack of which any element may be taken out; the server's count of idle connections is the sum over its shards.
func TestShardModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newTestServer(Limits{})
		shards := []*Shard[*testConn]{{Server: s}, {Server: s}}
		var model [2][]*testConn
		for step := range rapid.IntRange(1, 60).Draw(t, "steps") {
			i := rapid.IntRange(0, 1).Draw(t, "shard")
			h, m := shards[i], &model[i]
			switch rapid.IntRange(0, 2).Draw(t, "operation") {
			case 0:
				c := &testConn{id: step}
				h.Put(c, 0)
				*m = append(*m, c)
			case 1:
				c, ok := h.Get()
				if ok != (len(*m) > 0) {
					t.Fatalf("Get says %v with %d in the model", ok, len(*m))
				}
				if ok {
					if want := (*m)[len(*m)-1]; c != want {
						t.Fatalf("Get gave %d, want %d", c.id, want.id)
					}
					*m = (*m)[:len(*m)-1]
				}
			case 2:
				if len(*m) == 0 {
					continue
				}
				k := rapid.IntRange(0, len(*m)-1).Draw(t, "place")
				c := (*m)[k]
				if shards[1-i].Remove(c) {
					t.Fatal("another shard's connection was removed")
				}
				if !h.Remove(c) {
					t.Fatalf("connection %d was not found", c.id)
				}
				*m = append((*m)[:k:k], (*m)[k+1:]...)
			}
			if h.Len() != len(*m) || s.Idle() != len(model[0])+len(model[1]) {
				t.Fatalf("%d in the shard, %d idle, the model has %d and %d", h.Len(), s.Idle(), len(*m), len(model[0])+len(model[1]))
			}
		}
	})
}

func TestReusable(t *testing.T) {
	const second = int64(time.Second)
	tests := []struct {
		name   string
		limits IdleLimits
		state  ConnState
		now    int64
		want   bool
	}{
		{"no limits", IdleLimits{}, ConnState{Requests: 1 << 30}, 1 << 60, true},
		{"young", IdleLimits{MaxAge: time.Minute}, ConnState{Born: 5 * second}, 64 * second, true},
		{"old", IdleLimits{MaxAge: time.Minute}, ConnState{Born: 5 * second}, 65 * second, false},
		{"old, but used a moment ago", IdleLimits{MaxAge: time.Minute}, ConnState{Born: 5 * second, LastUse: 65 * second}, 65 * second, false},
		{"few requests", IdleLimits{MaxRequests: 100}, ConnState{Requests: 99}, 0, true},
		{"enough requests", IdleLimits{MaxRequests: 100}, ConnState{Requests: 100}, 0, false},
		{"young with enough requests", IdleLimits{MaxAge: time.Minute, MaxRequests: 2}, ConnState{Requests: 2}, 1, false},
		{"old with few requests", IdleLimits{MaxAge: time.Minute, MaxRequests: 2}, ConnState{Requests: 1}, 60 * second, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.limits.Reusable(&tt.state, tt.now); got != tt.want {
				t.Errorf("Reusable = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestShardAllocatesNothing(t *testing.T) {
	h := Shard[*testConn]{Server: newTestServer(Limits{})}
	a, b := new(testConn), new(testConn)
	if n := testing.AllocsPerRun(100, func() {
		h.Put(a, 1)
		h.Put(b, 2)
		h.Remove(a)
		h.Get()
	}); n != 0 {
		t.Errorf("%v allocations per use, want 0", n)
	}
}

func TestShardOldest(t *testing.T) {
	h := Shard[*testConn]{Server: newTestServer(Limits{})}
	if _, ok := h.Oldest(); ok {
		t.Error("an empty shard has an oldest connection")
	}
	conns := []*testConn{{id: 1}, {id: 2}, {id: 3}}
	for i, c := range conns {
		h.Put(c, int64(i))
	}
	for i, want := range conns[:2] {
		if c, ok := h.Oldest(); !ok || c != want || h.Len() != 2-i || h.Server.Idle() != 2-i {
			t.Errorf("got %v, %v; %d and %d are left", c, ok, h.Len(), h.Server.Idle())
		}
	}
	if c, _ := h.Get(); c != conns[2] {
		t.Error("the youngest one is gone")
	}
}
