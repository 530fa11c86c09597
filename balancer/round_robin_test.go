package balancer

import (
	"strings"
	"testing"
)

// newRoundRobin starts at the first target, so that traces are the same in every run.
func newRoundRobin(n int) *roundRobin { return &roundRobin{turns{credit: make([]int64, n)}} }

func TestRoundRobinTrace(t *testing.T) {
	f := func(weights []int32, want string) {
		t.Helper()
		if got := trace(newRoundRobin(len(weights)), idle(weights...), len(want)); got != want {
			t.Errorf("weights %v: picks %s, want %s", weights, got, want)
		}
	}
	f([]int32{1}, "aaaa")
	f([]int32{1, 1}, "abababab")
	f([]int32{1, 1, 1}, "abcabcabc")
	f([]int32{2, 1}, "abaaba")
	f([]int32{5, 1, 1}, "aabacaaaabacaa") // the example of nginx
	f([]int32{3, 0, 2}, "acacaacaca")
	f([]int32{100, 100}, "abababab")
}

// step is a stretch of a trace: what changes, then the picks that follow.
type step struct {
	do    func([]Target)
	picks string
}

func usable(i int, yes bool) func([]Target) {
	return func(t []Target) { t[i].Usable = yes }
}

func weight(i int, w int32) func([]Target) {
	return func(t []Target) { t[i].Weight = w }
}

func inFlight(counts ...int32) func([]Target) {
	return func(t []Target) {
		for i, c := range counts {
			t[i].InFlight = c
		}
	}
}

func runSteps(t *testing.T, p Policy, targets []Target, steps []step) {
	t.Helper()
	for n, s := range steps {
		if s.do != nil {
			s.do(targets)
		}
		if got := trace(p, targets, len(s.picks)); got != s.picks {
			t.Fatalf("step %d: picks %s, want %s (targets %+v)", n+1, got, s.picks, targets)
		}
	}
}

func TestRoundRobinComeAndGo(t *testing.T) {
	tests := []struct {
		name    string
		weights []int32
		steps   []step
	}{
		{"one leaves and returns without a burst", []int32{1, 1, 1}, []step{
			{nil, "abca"},
			{usable(1, false), "ccacac"},
			{usable(1, true), "bacbacb"},
		}},
		{"tried by this transaction", []int32{1, 1, 1}, []step{
			{nil, "a"},
			{usable(0, false), "b"},
			{usable(0, true), "cbcabc"},
		}},
		{"all leave", []int32{1, 1}, []step{
			{nil, "a"},
			{func(t []Target) { t[0].Usable, t[1].Usable = false, false }, "--"},
			{func(t []Target) { t[0].Usable, t[1].Usable = true, true }, "baba"},
		}},
		{"weight to 0 and back", []int32{1, 1}, []step{
			{nil, "ab"},
			{weight(0, 0), "bbb"},
			{weight(0, 1), "abab"},
		}},
		{"a weight of 1000 becomes 1", []int32{1000, 1}, []step{
			{nil, strings.Repeat("a", 400)},
			{weight(0, 1), "bbababab"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			runSteps(t, newRoundRobin(len(tt.weights)), idle(tt.weights...), tt.steps)
		})
	}
}

// Of 64 targets all but two leave, one just picked and one about to be: the long wait of the second is not paid out in a burst.
func TestRoundRobinShrink(t *testing.T) {
	targets := make([]Target, 64)
	for i := range targets {
		targets[i] = Target{Weight: 1, Usable: true}
	}
	p := newRoundRobin(len(targets))
	for range 2 {
		p.Pick(targets)
	}
	for i := range targets {
		targets[i].Usable = i == 1 || i == 63
	}
	burst := 0
	for p.Pick(targets) == 63 {
		if burst++; burst > 2 {
			t.Fatalf("target 63 was picked %d times in a row", burst)
		}
	}
}

// Policies of different loops must not go round in step.
func TestRoundRobinStartsAnywhere(t *testing.T) {
	targets := idle(1, 1, 1, 1)
	seen := map[int]bool{}
	for range 200 {
		seen[new(roundRobin).Pick(targets)] = true
	}
	if len(seen) != len(targets) { // by chance once in 10^24 runs
		t.Errorf("200 new policies started at %d of %d targets", len(seen), len(targets))
	}
}

func TestRoundRobinOtherLength(t *testing.T) {
	p := newRoundRobin(2)
	p.Pick(idle(1, 1))
	got := trace(p, idle(1, 1, 1), 6)
	for _, place := range "abc" {
		if strings.Count(got, string(place)) != 2 {
			t.Errorf("after a change of length the picks are %s, want each twice", got)
		}
	}
}
