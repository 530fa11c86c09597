package balancer

import (
	"math/rand/v2"
	"testing"
)

func newLeastInFlight(n int) *leastInFlight { return &leastInFlight{turns{credit: make([]int64, n)}} }

func TestLeastInFlightTrace(t *testing.T) {
	tests := []struct {
		name    string
		weights []int32
		steps   []step
	}{
		{"idle: equal shares", []int32{1, 1, 1}, []step{{nil, "abcabc"}}},
		{"idle: shares by weight", []int32{2, 1}, []step{{nil, "abaaba"}}},
		{"the least wins, always", []int32{1, 1, 1}, []step{
			{inFlight(2, 1, 2), "bbb"},
			{inFlight(2, 1, 0), "ccc"},
		}},
		{"ties among some take turns", []int32{1, 1, 1}, []step{{inFlight(1, 3, 1), "acacac"}}},
		{"a tie by weight", []int32{2, 1}, []step{
			{inFlight(4, 2), "abaaba"},
			{inFlight(3, 2), "aaa"},
			{inFlight(5, 2), "bbb"},
		}},
		{"idle before busy, whatever the weight", []int32{100, 1}, []step{{inFlight(1, 0), "bbb"}}},
		{"not usable, however idle", []int32{1, 1}, []step{
			{func(t []Target) { inFlight(5, 0)(t); usable(1, false)(t) }, "aaa"},
			{usable(1, true), "b"},
		}},
		{"forced picks earn no credit", []int32{1, 1}, []step{
			{inFlight(1, 0), "bbbbbbbb"},
			{inFlight(0, 0), "abab"},
		}},
		{"counts near the limit do not overflow", []int32{1<<31 - 1, 1<<31 - 2}, []step{
			{inFlight(1<<31-1, 1<<31-1), "aaa"},
			{inFlight(1<<31-1, 1<<31-3), "bbb"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			runSteps(t, newLeastInFlight(len(tt.weights)), idle(tt.weights...), tt.steps)
		})
	}
}

// A closed loop: requests start and end, and the in-flight counts settle at the ratio of the weights.
func TestLeastInFlightUnderLoad(t *testing.T) {
	f := func(concurrent int, weights []int32, want []int32) {
		t.Helper()
		p, targets := newLeastInFlight(len(weights)), idle(weights...)
		for range concurrent {
			targets[p.Pick(targets)].InFlight++
		}
		for i := range targets {
			if targets[i].InFlight != want[i] {
				t.Fatalf("%d requests over weights %v: in flight %+v, want %v", concurrent, weights, targets, want)
			}
		}
	}
	f(2, []int32{1, 1}, []int32{1, 1})
	f(30, []int32{1, 1, 1}, []int32{10, 10, 10})
	f(30, []int32{2, 1}, []int32{20, 10})
	f(60, []int32{3, 2, 1}, []int32{30, 20, 10})
	f(11, []int32{10, 1}, []int32{10, 1})
	f(60, []int32{1, 0, 1}, []int32{30, 0, 30})
}

// A server ten times slower keeps its requests longer and so gets fewer of them, without any notion of time.
func TestLeastInFlightAvoidsSlow(t *testing.T) {
	p, targets := newLeastInFlight(3), idle(1, 1, 1)
	rng := rand.New(rand.NewPCG(1, 1))
	picks := make([]int, 3)
	for range 3000 {
		i := p.Pick(targets)
		picks[i]++
		targets[i].InFlight++
		for i := range targets {
			ends := 0.4 // share of the requests in flight that end per step
			if i == 0 {
				ends = 0.04
			}
			for range targets[i].InFlight {
				if rng.Float64() < ends {
					targets[i].InFlight--
				}
			}
		}
	}
	if picks[0] > 500 || picks[1] < 1000 || picks[2] < 1000 {
		t.Errorf("picks %v, want few for the first, which is slow", picks)
	}
}
