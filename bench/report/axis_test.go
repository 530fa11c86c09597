package report

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"icapgate/bench/result"
)

func TestTicks(t *testing.T) {
	f := func(a Axis, low, high float64, want string) {
		t.Helper()
		a.fit(low, high)
		var labels []string
		for _, v := range a.ticks(5) {
			labels = append(labels, a.label(v))
			if p := a.at(v); p < -1e-6 || p > 1+1e-6 {
				t.Errorf("%v is at %v", v, p)
			}
		}
		if got := strings.Join(labels, ", "); got != want {
			t.Errorf("%+v from %v to %v: %s, want %s", a, low, high, got, want)
		}
		if a.at(high) > 1+1e-6 && a.Scale != Nines {
			t.Errorf("%v is beyond the end %v", high, a.To)
		}
	}
	f(Axis{Unit: Number}, 0, 0, "0, 0.2, 0.4, 0.6, 0.8, 1")
	f(Axis{Unit: Number}, 0, 7, "0, 2, 4, 6, 8")
	f(Axis{Unit: Number}, 0, 1000, "0, 200, 400, 600, 800, 1000")
	f(Axis{Unit: Number}, 0, 123456, "0, 50 k, 100 k, 150 k")
	f(Axis{Unit: Number}, 0, 4e6, "0, 1 M, 2 M, 3 M, 4 M")
	f(Axis{Unit: Time}, 0, 0.0042, "0, 1 ms, 2 ms, 3 ms, 4 ms, 5 ms")
	f(Axis{Unit: Time}, 0, 0.00042, "0, 100 µs, 200 µs, 300 µs, 400 µs, 500 µs")
	f(Axis{Unit: Share}, 0, 0.0004, "0 %, 0.01 %, 0.02 %, 0.03 %, 0.04 %")
	f(Axis{Unit: Clock, To: 5.2}, 0, 0, "0, 2s, 4s")
	f(Axis{Unit: Clock, To: 120}, 0, 0, "0, 30s, 1m, 1m30s, 2m")
	f(Axis{Unit: Clock, To: 3600}, 0, 0, "0, 15m, 30m, 45m, 1h")
	f(Axis{Unit: Clock, To: 1e6}, 0, 0, "0, 96h, 192h")
	f(Axis{Scale: Log, Unit: Time}, 0.0013, 0.018, "1 ms, 2 ms, 5 ms, 10 ms, 20 ms")
	f(Axis{Scale: Log, Unit: Time}, 0.001, 0.001, "500 µs, 1 ms, 2 ms")
	f(Axis{Scale: Log, Unit: Time}, 0.0001, 0.9, "100 µs, 1 ms, 10 ms, 100 ms, 1 s")
	f(Axis{Scale: Log, Unit: Time}, 1e-6, 600, "1 µs, 100 µs, 10 ms, 1 s, 100 s")
	f(Axis{Scale: Log, Unit: Time}, 0, 0, "1 ms, 10 ms, 100 ms, 1 s")
	f(Axis{Scale: Nines, Unit: Share, To: 0.99}, 0, 0, "0 %, 50 %, 90 %, 99 %")
	f(Axis{Scale: Nines, Unit: Share, To: 0.99999}, 0, 0, "0 %, 90 %, 99 %, 99.9 %, 99.99 %, 99.999 %")
}

func TestCurveHasGaps(t *testing.T) {
	c := Chart{X: Axis{To: 5}, Y: Axis{To: 10}, Series: []Series{{Points: []Point{{X: 0, Y: 1}, {X: 1, Y: 2}, {X: 2, Y: math.NaN()}, {X: 3, Y: 4}}}}}
	if svg := string(c.SVG()); strings.Count(svg, `<path class="line`) != 1 || !strings.Contains(svg, "h0L") || strings.Count(svg, "h0") != 2 {
		t.Error(svg)
	}
}

// TestPercentileCurve compares the values under the pointer and the ends of the line with the histogram.
func TestPercentileCurve(t *testing.T) {
	h := result.NewHistogram()
	for i := range 1000 {
		h.Record(time.Duration(i+1) * time.Millisecond)
	}
	f := percentileCurve([]string{"none", "all"}, []string{"s1", "s2"}, []result.Histogram{{}, h})
	if len(f.Series) != 1 || f.Series[0].Name != "all" || math.Abs(f.X.To-0.999) > 1e-9 {
		t.Fatalf("%d series to %v", len(f.Series), f.X.To)
	}
	values, points := f.Series[0].Values, f.Series[0].Points
	for _, nines := range []int{0, 1, 2} {
		want := h.Quantile(100 * (1 - math.Pow(10, -float64(nines)))).Seconds()
		if got := values[nines*40]; math.Abs(got-want) > 1e-9 {
			t.Errorf("%d nines: %v, want %v", nines, got, want)
		}
	}
	if last := points[len(points)-1]; last.Y != h.Max().Seconds() || last.X != f.X.To {
		t.Errorf("the line ends at %+v", last)
	}
	if !slices.IsSortedFunc(points, func(a, b Point) int { return int(math.Copysign(1, a.Y-b.Y)) }) {
		t.Error("the line falls")
	}
}

func TestSpans(t *testing.T) {
	r := result.New()
	for i := range 3600 {
		p := result.NewPoint()
		p.Requests, p.InFlight = 1, int64(i)
		r.Timeline.Append(p)
	}
	r.Seconds = 3596.8
	list := spans(r)
	last := list[len(list)-1]
	if len(list) != 360 || list[0].Requests != 10 || list[0].InFlight != 9 || list[1].from != 10 || last.to != 3596.8 {
		t.Errorf("%d spans, the first %+v, the last ends at %v", len(list), list[0], last.to)
	}
	if got := list[3].per(list[3].Requests); got != 1 {
		t.Errorf("%v per second", got)
	}
	r.Seconds = 3590.1
	list = spans(r)
	if last := list[len(list)-1]; len(list) != 359 || last.from != 3580 || last.to != 3590.1 || last.Requests != 20 || last.InFlight != 3599 {
		t.Errorf("%d spans, the last is %+v", len(list), last)
	}
}

func TestPlanned(t *testing.T) {
	f := func(stages []result.Stage, seconds, at, want float64) {
		t.Helper()
		line := planned(&result.Setup{Stages: stages}, seconds)
		if got := rateAt(line, at); got != want && !(math.IsNaN(got) && math.IsNaN(want)) {
			t.Errorf("%v: %v/s at %v s, want %v; %v", stages, got, at, want, line)
		}
	}
	ramp := []result.Stage{{Rate: 10}, {Seconds: 10, Rate: 110}, {Rate: 50}, {Seconds: 10, Rate: 50}}
	f(ramp, 20, 0, 10)
	f(ramp, 20, 5, 60)
	f(ramp, 20, 15, 50)
	f(ramp, 7, 6, 70) // ended early
	f(ramp, 7, 8, math.NaN())
	f([]result.Stage{{Rate: 10}}, 30, 29, 10)
	if line := planned(&result.Setup{Stages: []result.Stage{{Rate: 10}}, Length: 8}, 10.3); line[1].X != 8 {
		t.Errorf("%v goes on when no request was planned any more", line)
	}
	f([]result.Stage{{Seconds: 10, Rate: 100}}, 10, 5, 50)
	f(nil, 10, 5, math.NaN())
}

func TestLabels(t *testing.T) {
	f := func(got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	f(number(0), "0")
	f(number(1234567), "1\u202f234\u202f567")
	f(number(-123), "-123")
	f(share(1, 3), "33.3 %")
	f(share(0, 0), "-")
	f(shorten("10.2.1.101:1344", 20), "10.2.1.101:1344")
	f(shorten("dlp-server-1.example.com", 11), "dlp-s…e.com")
	f(timeLabel(0.0009999), "1 ms")
	f(timeLabel(0.9999), "1 s")
	f(timeLabel(123), "123 s")
}
