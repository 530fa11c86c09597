package result

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestHistogramAgainstSort compares the figures with an exact sort of the same times.
func TestHistogramAgainstSort(t *testing.T) {
	kinds := []struct {
		name string
		next func(*rand.Rand) float64 // microseconds
	}{
		{"uniform", func(r *rand.Rand) float64 { return 1 + r.Float64()*1e6 }},
		{"lognormal", func(r *rand.Rand) float64 { return math.Exp(math.Log(500) + 1.5*r.NormFloat64()) }},
		{"two humps", func(r *rand.Rand) float64 { return []float64{100, 2e6}[r.IntN(2)] + r.Float64()*50 }},
		{"constant", func(*rand.Rand) float64 { return 1234 }},
	}
	precisions := []struct {
		name  string
		make  func() Histogram
		wrong float64 // share of a figure by which it may be wrong
	}{{"fine", NewHistogram, 0.001}, {"coarse", NewCoarse, 0.01}}
	for _, kind := range kinds {
		for _, p := range precisions {
			t.Run(kind.name+"/"+p.name, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(1, 2))
				h := p.make()
				times := make([]time.Duration, 100_000)
				sum := 0.0
				for i := range times {
					times[i] = time.Duration(max(kind.next(rng), 1) * float64(time.Microsecond))
					h.Record(times[i])
					sum += float64(times[i])
				}
				slices.Sort(times)
				for _, q := range []float64{0.1, 10, 50, 90, 99, 99.9, 99.99, 100} {
					want := times[max(0, int(q/100*float64(len(times))+0.5)-1)]
					got := h.Quantile(q)
					if off := math.Abs(float64(got - want)); off > p.wrong*float64(want)+1000 { // and times are cut to microseconds
						t.Errorf("p%v is %v, sorted %v", q, got, want)
					}
				}
				if mean := sum / float64(len(times)); math.Abs(float64(h.Mean())-mean) > p.wrong*mean+1000 {
					t.Errorf("mean is %v, exactly %v", h.Mean(), time.Duration(mean))
				}
				if h.Count() != int64(len(times)) {
					t.Errorf("%d times", h.Count())
				}
			})
		}
	}
}

// TestQuantilesOfFew has so few times that each counts: no more may be above a quantile than it says, and no time below it would do.
func TestQuantilesOfFew(t *testing.T) {
	for n := 1; n <= 1000; n++ {
		h := NewHistogram()
		for i := range n {
			h.Record(time.Duration(i+1) * time.Microsecond)
		}
		for _, percent := range []int{0, 500, 900, 950, 990, 999, 1000} { // in tenths
			want := max(1, (percent*n+999)/1000)
			if got := h.Quantile(float64(percent) / 10); got != time.Duration(want)*time.Microsecond {
				t.Errorf("of the times 1 to %d µs, p%v is %v, want %d µs", n, float64(percent)/10, got, want)
			}
		}
	}
}

func TestHistogramLimits(t *testing.T) {
	var none Histogram
	if none.Count() != 0 || none.Quantile(99) != 0 || none.Mean() != 0 || none.Max() != 0 || none.Bars() != nil {
		t.Error("an empty histogram has times")
	}
	h := NewHistogram()
	h.Record(-time.Second)
	h.Record(time.Hour)
	h.Add(none)
	if h.Count() != 2 || h.Quantile(50) != 0 || math.Abs(h.Max().Seconds()-600) > 0.6 {
		t.Errorf("%d times, p50 %v, max %v", h.Count(), h.Quantile(50), h.Max())
	}
	if n := h.Above(time.Minute); n != 1 {
		t.Errorf("%d are above a minute", n)
	}
	total := int64(0)
	for _, b := range h.Bars() {
		total += b.Count
	}
	if total != 2 {
		t.Errorf("bars of %d times", total)
	}
	h.Reset()
	if h.Count() != 0 {
		t.Error("not reset")
	}
}

func TestHistogramJSON(t *testing.T) {
	h := NewHistogram()
	for i := range 1000 {
		h.Record(time.Duration(i*i) * time.Microsecond)
	}
	for _, want := range []Histogram{h, {}, NewCoarse()} {
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got Histogram
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if got.Count() != want.Count() || got.Quantile(99) != want.Quantile(99) || got.Mean() != want.Mean() {
			t.Errorf("got %v %v, want %v %v", got.Count(), got.Quantile(99), want.Count(), want.Quantile(99))
		}
	}
	var got Histogram
	for _, bad := range []string{`{"count":1}`, `{"count":1,"histogram":"AAAA"}`, `{"count":1,"histogram":"%"}`, `[]`, `{"count":1,"histogram":"HISTFAAAAAB4nA=="}`} {
		if err := json.Unmarshal([]byte(bad), &got); err == nil {
			t.Errorf("%s is a histogram of %d times", bad, got.Count())
		}
	}
}

// TestPointsStaySmall reads a point, adds to it and writes it again.
func TestPointsStaySmall(t *testing.T) {
	p := NewPoint()
	for i := range 1000 {
		p.Latency.Record(time.Duration(i+1) * time.Millisecond)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var read Point
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	if read.Latency.h != nil || read.Latency.Count() != 1000 || read.Latency.Quantile(99) != p.Latency.Quantile(99) || len(read.Latency.Bars()) != len(p.Latency.Bars()) {
		t.Errorf("%d times, p99 %v", read.Latency.Count(), read.Latency.Quantile(99))
	}
	if again, err := json.Marshal(read); err != nil || string(again) != string(text) {
		t.Errorf("%v: %s, was %s", err, again, text)
	}
	read.Add(&p)
	if read.Latency.Count() != 2000 {
		t.Errorf("%d times in all", read.Latency.Count())
	}
}

func TestRecordDoesNotAllocate(t *testing.T) {
	h := NewHistogram()
	if n := testing.AllocsPerRun(100, func() { h.Record(time.Millisecond) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
