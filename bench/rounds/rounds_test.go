package rounds

import (
	"math"
	"slices"
	"testing"
)

func TestMedian(t *testing.T) {
	f := func(values []float64, want float64) {
		t.Helper()
		before := slices.Clone(values)
		if got := Median(values); got != want {
			t.Errorf("Median(%v) = %v, want %v", values, got, want)
		}
		if !slices.Equal(values, before) {
			t.Errorf("Median has changed %v to %v", before, values)
		}
	}
	f([]float64{3}, 3)
	f([]float64{4, 1}, 2.5)
	f([]float64{9, 1, 2}, 2)
	f([]float64{1, 8, 4, 2}, 3)
	if got := Median(nil); !math.IsNaN(got) {
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
		if l, h := Interval(values); l != low || h != high {
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
	if l, h := Interval(nil); !math.IsNaN(l) || !math.IsNaN(h) {
		t.Errorf("interval of nothing is %v..%v", l, h)
	}
}

// Rounds in which either failed, and those that only one has seen, have no ratio.
func TestRatios(t *testing.T) {
	nan := math.NaN()
	if got, want := Ratios([]float64{4, nan, 6, 9}, []float64{2, 1, nan, 3, 7}), []float64{2, 3}; !slices.Equal(got, want) {
		t.Errorf("ratios %v, want %v", got, want)
	}
	if got := Ratios(nil, []float64{1}); len(got) > 0 {
		t.Errorf("ratios of nothing are %v", got)
	}
}
