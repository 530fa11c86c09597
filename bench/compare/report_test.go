package main

import (
	"math"
	"testing"
)

// A figure is the median of the rounds' ratios, not the ratio of the medians; failed rounds and the one to warm up don't count.
func TestRatio(t *testing.T) {
	row := func(own, haproxy, nginx []sample) *rowReport {
		return &rowReport{Target: 1, Samples: map[string][]sample{ours: own, "haproxy": haproxy, "nginx": nginx}}
	}
	ok := func(values ...float64) []sample {
		var s []sample
		for _, v := range values {
			s = append(s, sample{Value: v})
		}
		return s
	}
	failing := func(s []sample, round int) []sample {
		s[round] = sample{Error: "broken"}
		return s
	}
	none := ok()

	f := func(r *rowReport, peer string, mid, low, high float64, verdict string) {
		t.Helper()
		gotPeer, gotMid, gotLow, gotHigh := r.ratio()
		if gotPeer != peer || gotMid != mid || gotLow != low || gotHigh != high {
			t.Errorf("ratio to %s %v (%v..%v), want %s %v (%v..%v)", gotPeer, gotMid, gotLow, gotHigh, peer, mid, low, high)
		}
		if got := r.verdict(); got != verdict {
			t.Errorf("verdict %q, want %q", got, verdict)
		}
	}
	f(row(ok(99, 1, 2, 6), ok(1, 2, 2, 4), ok(1, 8, 8, 8)), "haproxy", 1, 0.5, 1.5, "<= 1: met")
	f(row(ok(99, 10, 18, 60), ok(1, 10, 15, 40), none), "haproxy", 1.2, 1, 1.5, "<= 1: met by the interval")
	f(row(ok(99, 12, 18, 60), ok(1, 10, 15, 40), none), "haproxy", 1.2, 1.2, 1.5, "<= 1: missed")
	f(row(failing(ok(99, 0, 2, 6), 1), failing(ok(1, 1, 2, 0), 3), ok(1, 9, 9, 9)), "haproxy", 1, 1, 1, "<= 1: met")
	f(row(ok(99, 4, 4), ok(1, 4), ok(1, 2)), "nginx", 2, 2, 2, "<= 1: missed") // cut short

	for _, r := range []*rowReport{row(ok(99, 1), none, none), row(none, ok(1, 1), none), row(ok(1), ok(1), none)} {
		if peer, mid, _, _ := r.ratio(); !math.IsNaN(mid) || r.verdict() != "-" {
			t.Errorf("ratio to %q %v, verdict %q, where there is nothing to compare", peer, mid, r.verdict())
		}
	}
}

// Of memory the target is a figure of its own.
func TestVerdictOnMemory(t *testing.T) {
	r := &rowReport{Target: 64, unit: perConnection, Samples: map[string][]sample{ours: {{}, {Value: 70}, {Value: 60}, {Value: 66}}, "nginx": {{}, {Value: 5}}}}
	if got, want := r.verdict(), "<= 64 KiB: met by the interval"; got != want {
		t.Errorf("verdict %q, want %q", got, want)
	}
}
