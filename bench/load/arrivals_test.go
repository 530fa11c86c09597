package load

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"icapgate/bench/result"
)

// planned returns all planned times, in seconds, at most so many.
func planned(a *arrivals, most int) []float64 {
	var list []float64
	for len(list) < most {
		at, ok := a.plan()
		if !ok {
			break
		}
		list = append(list, at.Seconds())
	}
	return list
}

func TestConstantArrivals(t *testing.T) {
	tests := []struct {
		name   string
		warmUp time.Duration
		stages []result.Stage
		count  int
		some   map[int]float64 // when arrivals come, in seconds
	}{
		{"constant", 0, []result.Stage{{Rate: 100}, {Seconds: 2, Rate: 100}}, 200, map[int]float64{0: 0, 1: 0.01, 199: 1.99}},
		{"ramp from 0", 0, []result.Stage{{Seconds: 10, Rate: 100}}, 500, map[int]float64{0: 0, 125: 5, 499: 10 * math.Sqrt(499.0/500)}},
		{"ramp down", 0, []result.Stage{{Rate: 100}, {Seconds: 10, Rate: 0}}, 500, map[int]float64{0: 0, 375: 5}},
		{"step", 0, []result.Stage{{Rate: 10}, {Seconds: 1, Rate: 10}, {Rate: 100}, {Seconds: 1, Rate: 100}}, 110, map[int]float64{9: 0.9, 10: 1, 11: 1.01, 109: 1.99}},
		{"pause", 0, []result.Stage{{Rate: 10}, {Seconds: 1, Rate: 10}, {Rate: 0}, {Seconds: 5, Rate: 0}, {Rate: 10}, {Seconds: 1, Rate: 10}}, 20, map[int]float64{9: 0.9, 10: 6, 19: 6.9}},
		{"warm-up", time.Second, []result.Stage{{Rate: 10}, {Seconds: 2, Rate: 30}}, 50, map[int]float64{9: 0.9, 10: 1}},
		{"nothing", 0, []result.Stage{{Seconds: 10, Rate: 0}}, 0, nil},
		{"slow ramp", 0, []result.Stage{{Rate: 1000}, {Seconds: 100, Rate: 1000.000001}}, 100000, map[int]float64{50000: 50}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := planned(newArrivals(tt.warmUp, tt.stages, false, false, 1), 1e6)
			if diff := len(got) - tt.count; diff < 0 || diff > 1 { // one at the very end, by rounding
				t.Fatalf("%d arrivals, want %d", len(got), tt.count)
			}
			for i, want := range tt.some {
				if math.Abs(got[i]-want) > 1e-5 {
					t.Errorf("arrival %d after %v s, want %v", i, got[i], want)
				}
			}
			if !slices.IsSorted(got) {
				t.Error("arrivals are out of order")
			}
		})
	}
}

func TestEndlessArrivals(t *testing.T) {
	a := newArrivals(0, []result.Stage{{Seconds: 1, Rate: 10}}, true, false, 1)
	got := planned(a, 105)
	if len(got) != 105 || math.Abs(got[104]-10.9) > 1e-6 { // 5 within the ramp, then 10 each second
		t.Errorf("%d arrivals, the last after %v s", len(got), got[len(got)-1])
	}
}

// TestPoissonArrivals has fixed seeds, and is made to fail for one process in a thousand that is none of Poisson's.
func TestPoissonArrivals(t *testing.T) {
	const rate, seconds = 1000, 100
	for seed := range uint64(20) {
		got := planned(newArrivals(0, []result.Stage{{Rate: rate}, {Seconds: seconds, Rate: rate}}, false, true, seed), 1e6)
		if n := float64(len(got)); math.Abs(n-rate*seconds) > 3.3*math.Sqrt(rate*seconds) {
			t.Errorf("seed %d: %v arrivals, want %v", seed, n, rate*seconds)
		}
		gaps := make([]float64, len(got))
		for i := range got {
			gaps[i] = got[i]
			if i > 0 {
				gaps[i] -= got[i-1]
			}
		}
		// Kolmogorov and Smirnov: the largest distance from the exponential distribution.
		slices.Sort(gaps)
		distance := 0.0
		for i, g := range gaps {
			want := 1 - math.Exp(-g*rate)
			distance = max(distance, math.Abs(want-float64(i)/float64(len(gaps))), math.Abs(want-float64(i+1)/float64(len(gaps))))
		}
		if limit := 1.95 / math.Sqrt(float64(len(gaps))); distance > limit { // 1.95: one in a thousand
			t.Errorf("seed %d: the gaps are %v from exponential, at most %v is allowed", seed, distance, limit)
		}
		if d := dispersion(got, seconds); math.Abs(d-1) > 3.3*math.Sqrt(2.0/(10*seconds)) {
			t.Errorf("seed %d: the variance of the counts is %v times their mean, want 1", seed, d)
		}
	}
	// The same test refuses what is none.
	even := planned(newArrivals(0, []result.Stage{{Rate: rate}, {Seconds: seconds, Rate: rate}}, false, false, 1), 1e6)
	if d := dispersion(even, seconds); d > 0.1 {
		t.Errorf("even arrivals have a dispersion of %v", d)
	}
}

// dispersion is the variance of the number of arrivals in a tenth of a second over its mean.
func dispersion(at []float64, seconds int) float64 {
	counts := make([]float64, 10*seconds)
	for _, a := range at {
		counts[min(int(a*10), len(counts)-1)]++
	}
	mean := float64(len(at)) / float64(len(counts))
	sum := 0.0
	for _, c := range counts {
		sum += (c - mean) * (c - mean)
	}
	return sum / float64(len(counts)-1) / mean
}

// TestPoissonRamp counts the arrivals of a ramp in ten parts.
func TestPoissonRamp(t *testing.T) {
	got := planned(newArrivals(0, []result.Stage{{Seconds: 100, Rate: 2000}}, false, true, 5), 1e6)
	for part := range 10 {
		from, to := float64(part)*10, float64(part+1)*10
		n := 0.0
		for _, at := range got {
			if at >= from && at < to {
				n++
			}
		}
		want := 10 * (to*to - from*from) // rate is 20 t
		if math.Abs(n-want) > 3.3*math.Sqrt(want) {
			t.Errorf("%v arrivals from %v to %v s, want %v", n, from, to, want)
		}
	}
}

func TestSeedsRepeat(t *testing.T) {
	stages := []result.Stage{{Rate: 100}, {Seconds: 10, Rate: 100}}
	a, b, c := planned(newArrivals(0, stages, false, true, 1), 1e6), planned(newArrivals(0, stages, false, true, 1), 1e6), planned(newArrivals(0, stages, false, true, 2), 1e6)
	if !slices.Equal(a, b) || slices.Equal(a, c) {
		t.Error("arrivals do not follow the seed")
	}
}

func TestNumbers(t *testing.T) {
	var a, b numbers
	for _, n := range []uint64{3, 1, 2, 63, 64, 5, 6, 5, 0, maxNumber} {
		a.add(n)
	}
	if got := fmt.Sprint(a.ranges("ab")); got != "[ab-0 to ab-3 ab-5 to ab-6 ab-63 to ab-64]" {
		t.Error(got)
	}
	b.add(4)
	b.add(1000)
	b.union(a)
	a.union(b)
	for _, s := range []numbers{a, b} {
		if got := fmt.Sprint(s.ranges("ab")); got != "[ab-0 to ab-6 ab-63 to ab-64 ab-1000]" {
			t.Error(got)
		}
	}
}

func BenchmarkArrivals(b *testing.B) {
	b.ReportAllocs()
	a := newArrivals(0, []result.Stage{{Rate: 1000}, {Seconds: 3600, Rate: 1000}}, true, true, 1)
	for b.Loop() {
		a.plan()
	}
}
