package balancer

import (
	"math/rand/v2"
	"testing"
)

// loaded is dice that fall the same way in every run.
func loaded(seed uint64) dice { return dice{rand.NewPCG(seed, seed)} }

func TestRandomTwoTrace(t *testing.T) {
	tests := []struct {
		name    string
		weights []int32
		steps   []step
	}{
		{"the better one of two", []int32{1, 1}, []step{
			{inFlight(2, 1), "bbbb"},
			{inFlight(0, 1), "aaaa"},
		}},
		{"by weight", []int32{3, 1}, []step{
			{inFlight(2, 1), "aaaa"},
			{inFlight(4, 1), "bbbb"},
		}},
		{"the worst of three never", []int32{1, 1, 1}, []step{
			{inFlight(1, 0, 9), "abaabbba"},
			{inFlight(9, 0, 1), "bbccbcbc"},
		}},
		{"the only one left", []int32{1, 1, 1}, []step{
			{func(t []Target) { t[0].Usable, t[2].Usable = false, false }, "bbb"},
			{func(t []Target) { t[1].Weight = 0 }, "---"},
			{usable(2, true), "ccc"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			runSteps(t, &randomTwo{loaded(1)}, idle(tt.weights...), tt.steps)
		})
	}
}

// Every pair is drawn, whatever the weights, and no target with itself.
func TestDiceDrawPairs(t *testing.T) {
	d, targets := loaded(1), idle(5, 1, 0, 2)
	targets[3].Usable = true
	seen := map[[2]int]bool{}
	for range 2000 {
		a, b := d.two(targets)
		if a == b || a == 2 || b == 2 {
			t.Fatalf("drew %d and %d of %+v", a, b, targets)
		}
		seen[[2]int{a, b}] = true
	}
	if len(seen) != 6 {
		t.Errorf("drew %v, want all pairs of three", seen)
	}
}

// A closed loop: of many servers none gets much more than its share, though only two are looked at each time.
func TestRandomTwoUnderLoad(t *testing.T) {
	p, targets := &randomTwo{loaded(1)}, idle(2, 2, 2, 1, 1, 1, 1, 1, 1, 1)
	for range 1300 {
		targets[p.Pick(targets)].InFlight++
	}
	for i, g := range targets {
		if want := 100 * g.Weight; g.InFlight < want-3 || g.InFlight > want+3 {
			t.Errorf("target %d of weight %d has %d in flight, want nearly %d", i, g.Weight, g.InFlight, want)
		}
	}
}
