package main

import (
	"math"
	"slices"
	"testing"
)

func TestMedian(t *testing.T) {
	f := func(values []float64, want float64) {
		t.Helper()
		before := slices.Clone(values)
		if got := median(values); got != want {
			t.Errorf("median(%v) = %v, want %v", values, got, want)
		}
		if !slices.Equal(values, before) {
			t.Errorf("median has changed %v to %v", before, values)
		}
	}
	f([]float64{3}, 3)
	f([]float64{4, 1}, 2.5)
	f([]float64{9, 1, 2}, 2)
	f([]float64{1, 8, 4, 2}, 3)
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing is %v", got)
	}
}

// The ranks are those of printed tables of the sign test.
func TestInterval(t *testing.T) {
	f := func(n int, low, high float64) {
		t.Helper()
		var values []float64 // 1 to n, not in order
		for i := range n {
			values = append(values, float64((i+n/2)%n+1))
		}
		if l, h := interval(values); l != low || h != high {
			t.Errorf("interval of 1..%d is %v..%v, want %v..%v", n, l, h, low, high)
		}
	}
	f(1, 1, 1)
	f(5, 1, 5)
	f(6, 1, 6)
	f(7, 1, 7)
	f(8, 1, 8)
	f(9, 2, 8)
	f(11, 2, 10)
	f(12, 3, 10)
	f(15, 4, 12)
	f(20, 6, 15)
	f(50, 18, 33)
	if l, h := interval(nil); !math.IsNaN(l) || !math.IsNaN(h) {
		t.Errorf("interval of nothing is %v..%v", l, h)
	}
}

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
