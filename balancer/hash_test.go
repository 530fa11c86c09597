package balancer

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func names(n int) (list []string) {
	for i := range n {
		list = append(list, fmt.Sprintf("10.2.1.%d:1344", 101+i))
	}
	return list
}

func keyOf(i int) uint64 { return Key(fmt.Appendf(nil, "192.0.2.%d", i)) }

const manyKeys = 20000

// picks returns where each of many keys goes, and how many each target gets.
func picks(m *Maglev, targets []Target) (places []int, counts []int) {
	counts = make([]int, len(targets))
	for k := range manyKeys {
		i := m.Pick(keyOf(k), targets)
		places, counts[i] = append(places, i), counts[i]+1
	}
	return places, counts
}

// The hash is part of what gateways agree on.
func TestKey(t *testing.T) {
	for text, want := range map[string]uint64{"": 0xefd01f60ba992926, "192.0.2.1": 0x8fc433616f773343, "WinNT://DOM/jane": 0xeed70e34f237455b} {
		if got := Key([]byte(text)); got != want {
			t.Errorf("Key(%q) = %#x, want %#x", text, got, want)
		}
	}
}

func TestMaglevShares(t *testing.T) {
	f := func(weights ...int32) {
		t.Helper()
		m, targets := NewMaglev(names(len(weights)), weights), idle(weights...)
		slots := make([]int, len(weights))
		for _, i := range m.slots {
			slots[i]++
		}
		_, counts := picks(m, targets)
		for i, w := range weights {
			share := float64(w) / float64(sum(targets))
			if got := float64(slots[i]) / slotCount; !slices.Contains(weights, 0) && math.Abs(got/share-1) > 0.01 {
				t.Errorf("weights %v: place %d has %.4f of the slots, want %.4f", weights, i, got, share)
			}
			if got := float64(counts[i]) / manyKeys; math.Abs(got-share) > 0.02 {
				t.Errorf("weights %v: place %d gets %.3f of the keys, want %.3f", weights, i, got, share)
			}
		}
	}
	f(1)
	f(1, 1)
	f(1, 1, 1, 1, 1, 1, 1, 1)
	f(3, 1)
	f(100, 1, 50)
	f(1000, 1000, 2000)
	f(1, 0, 1)
}

// A server that can't be used moves its own keys and no other, and gets them back.
func TestMaglevOneLeaves(t *testing.T) {
	m, targets := NewMaglev(names(8), slices.Repeat([]int32{1}, 8)), idle(1, 1, 1, 1, 1, 1, 1, 1)
	before, _ := picks(m, targets)
	targets[3].Usable = false
	without, counts := picks(m, targets)
	for k := range before {
		if before[k] != 3 && without[k] != before[k] {
			t.Fatalf("key %d moved from %d to %d though 3 has left", k, before[k], without[k])
		}
	}
	for i, n := range counts {
		if i != 3 && math.Abs(float64(n)/manyKeys-1.0/7) > 0.015 {
			t.Errorf("with 3 away place %d gets %d of %d keys: its keys are not spread evenly", i, n, manyKeys)
		}
	}
	targets[3].Usable = true
	if after, _ := picks(m, targets); !slices.Equal(after, before) {
		t.Error("when it is back, keys go elsewhere than before")
	}
}

// A server that a reload takes out moves hardly more than its share, wherever it stood in the list.
func TestMaglevServerRemoved(t *testing.T) {
	all := names(8)
	before, _ := picks(NewMaglev(all, slices.Repeat([]int32{1}, 8)), idle(1, 1, 1, 1, 1, 1, 1, 1))
	fewer := slices.Delete(slices.Clone(all), 2, 3)
	slices.Reverse(fewer)
	after, _ := picks(NewMaglev(fewer, slices.Repeat([]int32{1}, 7)), idle(1, 1, 1, 1, 1, 1, 1))
	moved := 0
	for k := range before {
		if all[before[k]] != fewer[after[k]] {
			moved++
		}
	}
	if share := float64(moved) / manyKeys; share < 0.10 || share > 0.125+0.05 {
		t.Errorf("%.3f of the keys moved when one of 8 servers left, want little more than 0.125", share)
	}
}

// No target gets more than 1.25 times its share of what runs, however hot a key is; it gets what it can.
func TestMaglevBoundedLoad(t *testing.T) {
	m, targets := NewMaglev(names(4), []int32{2, 1, 1, 1}), idle(2, 1, 1, 1)
	hot := m.Pick(keyOf(1), targets)
	for n := range 500 {
		targets[m.Pick(keyOf(1), targets)].InFlight++
		for i, g := range targets {
			if bound := max(freeLoad, int32(math.Ceil(loadFactor*float64(n+1)*float64(g.Weight)/5))); g.InFlight > bound {
				t.Fatalf("%d of %d attempts run at place %d, at most %d may", g.InFlight, n+1, i, bound)
			}
		}
	}
	if got, want := targets[hot].InFlight, int32(500*1.25*float64(targets[hot].Weight)/5); got < want {
		t.Errorf("the server of the key has %d of 500, want %d", got, want)
	}
	for i := range targets {
		targets[i].InFlight = 0
	}
	for range freeLoad {
		if got := m.Pick(keyOf(1), targets); got != hot {
			t.Fatalf("among few requests the key goes to %d, want %d", got, hot)
		}
		targets[hot].InFlight++
	}
}

// A server in slow start takes keys back little by little, and each key only once.
func TestMaglevSlowStart(t *testing.T) {
	weights := []int32{1000, 1000, 1000, 1000}
	m, targets := NewMaglev(names(4), weights), idle(weights...)
	atLast, _ := picks(m, targets)
	var was []int
	for part := int32(100); part <= 1000; part += 100 {
		targets[2].Weight = part
		now, counts := picks(m, targets)
		want := float64(part) / float64(3000+part)
		if got := float64(counts[2]) / manyKeys; math.Abs(got-want) > 0.02 {
			t.Errorf("with %d of 1000 it gets %.3f of the keys, want %.3f", part, got, want)
		}
		for k := range now {
			if was != nil && was[k] == 2 && atLast[k] == 2 && now[k] != 2 {
				t.Fatalf("with %d of 1000 key %d left it again", part, k)
			}
		}
		was = now
	}
	if !slices.Equal(was, atLast) {
		t.Error("in the end keys go elsewhere than before")
	}
	for i := range targets { // all of them at once: nobody has to take the others' keys
		targets[i].Weight = 100
	}
	if now, _ := picks(m, targets); !slices.Equal(now, atLast) {
		t.Error("when all start, keys go elsewhere than before")
	}
}

// Whatever comes and goes, Pick returns an open target, or -1 exactly if there is none, and the same one for the same key.
func TestMaglevOpen(t *testing.T) {
	tables := map[int]*Maglev{}
	for _, n := range []int{1, 2, 8, 300} {
		tables[n] = NewMaglev(names(n), slices.Repeat([]int32{3}, n))
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.SampledFrom([]int{1, 2, 8, 300}).Draw(t, "n")
		targets := make([]Target, n)
		anyOpen := false
		for i := range targets {
			targets[i] = Target{
				Weight: rapid.Int32Range(-1, 9).Draw(t, "weight"), InFlight: rapid.Int32Range(0, 1<<20).Draw(t, "in-flight"),
				Usable: rapid.IntRange(0, n).Draw(t, "usable") == 0,
			}
			anyOpen = anyOpen || targets[i].open()
		}
		key := rapid.Uint64().Draw(t, "key")
		got := tables[n].Pick(key, targets)
		if got == -1 && anyOpen || got != -1 && !targets[got].open() {
			t.Fatalf("picked %d", got)
		}
		if again := tables[n].Pick(key, targets); again != got {
			t.Fatalf("picked %d, then %d", got, again)
		}
	})
	if got := NewMaglev(nil, nil).Pick(1, nil); got != -1 {
		t.Errorf("picked %d of none", got)
	}
}

func TestMaglevAllocatesNothing(t *testing.T) {
	m, targets, address := NewMaglev(names(64), slices.Repeat([]int32{2}, 64)), busy(64), []byte("192.0.2.1")
	if n := testing.AllocsPerRun(100, func() { m.Pick(Key(address), targets) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func BenchmarkMaglevPick(b *testing.B) {
	for _, n := range []int{2, 8, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m, targets, address := NewMaglev(names(n), slices.Repeat([]int32{2}, n)), busy(n), []byte("192.0.2.1")
			b.ReportAllocs()
			for b.Loop() {
				m.Pick(Key(address), targets)
			}
		})
	}
}

func BenchmarkNewMaglev(b *testing.B) {
	for b.Loop() {
		NewMaglev(names(8), slices.Repeat([]int32{2}, 8))
	}
}
