package result

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"icapgate/bench"
)

// other returns the result of a second machine, which began so much later.
func other(later time.Duration) *Result {
	r := sample()
	r.Label, r.Started, r.Generator.CPUSeconds = "right", r.Started.Add(later), 1.25
	r.Incidents = &Incidents{Header: "X-Incident-ID", Runs: []string{"cd"}, Sent: []Range{{"cd", 0, 107}}}
	return r
}

func mustMerge(t *testing.T, list ...*Result) *Result {
	t.Helper()
	m, err := Merge(list)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMergeAdds(t *testing.T) {
	a, b := sample(), other(400*time.Millisecond)
	b.Entries = append(b.Entries, Entry{"small", "OPTIONS", Count{1, 0}, NewHistogram()})
	b.Errors[bench.Timeout] = &Errors{1, "no answer"}
	b.Errors[bench.Status].Example = "500"
	b.Latency.Record(5 * time.Second)
	m := mustMerge(t, a, b)

	if !m.Started.Equal(a.Started) || m.Seconds != 10.4 || m.Begun != 206 || m.Requests != 200 || m.Failed != 7 {
		t.Errorf("%v, %v s, %d begun, %d answered, %d failed", m.Started, m.Seconds, m.Begun, m.Requests, m.Failed)
	}
	if m.Latency.Count() != 201 || m.Latency.Max() != b.Latency.Max() || m.Phases.Connect.Count() != 2 || m.Late.Delay.Count() != 200 {
		t.Error("times are missing")
	}
	if m.Setup.Connections != 16 || m.Setup.Machines != 2 || m.Setup.Target != a.Setup.Target || m.Label != "left + right" {
		t.Errorf("%+v %q", m.Setup, m.Label)
	}
	if want := []Stage{{0, 200}, {30, 200}, {120, 2000}}; !slices.Equal(m.Setup.Stages, want) {
		t.Errorf("stages %v", m.Setup.Stages)
	}
	if len(m.Entries) != 3 || m.Entries[0].Requests != 180 || m.Entries[2].Method != "OPTIONS" {
		t.Errorf("entries %+v", m.Entries)
	}
	if e := m.Errors[bench.Status]; e.Count != 4 || e.Example != a.Errors[bench.Status].Example || m.Errors[bench.Timeout].Count != 1 {
		t.Errorf("errors %+v", e)
	}
	if m.Servers["one"] != 140 || m.Statuses[204] != 120 || m.Faults["slow_body"].Outcomes["closed"] != 2 || m.WarmUp != (Count{10, 2}) {
		t.Errorf("%v %v %v %v", m.Servers, m.Statuses, m.Faults["slow_body"], m.WarmUp)
	}
	if g := m.Generator; g.CPUs != 4 || g.CPUSeconds != 2.75 || len(g.Limited) != 2 || !strings.HasPrefix(g.Limited[1], "right: ") {
		t.Errorf("%+v", g)
	}
	if in := m.Incidents; !slices.Equal(in.Runs, []string{"ab", "cd"}) || len(in.Sent) != 2 || len(in.Failed) != 1 {
		t.Errorf("%+v", in)
	}
	if len(m.Machines) != 2 || m.Machines[1].Label != "right" || m.Machines[1].Latency.Count() != 101 || len(m.Remarks) != 0 {
		t.Errorf("%+v %v", m.Machines, m.Remarks)
	}
	if a.Begun != 103 || a.Latency.Count() != 100 || a.Servers["one"] != 70 {
		t.Error("what was merged has changed")
	}
	if err := m.check(); err != nil {
		t.Error(err)
	}

	third := other(time.Second)
	third.Label, third.Incidents.Runs, third.Generator.CPUSeconds = "third", []string{"ef"}, 7
	again := mustMerge(t, m, third) // a merged result can be merged
	if again.Setup.Machines != 3 || len(again.Machines) != 3 || again.Requests != 300 || again.Label != "left + right + third" {
		t.Errorf("%d machines, %d requests, %q", again.Setup.Machines, again.Requests, again.Label)
	}
	if alone := mustMerge(t, a); alone != a {
		t.Error("a single result was changed")
	}
}

// TestMergedQuantiles compares the figures of merged histograms with those of one histogram of all times.
func TestMergedQuantiles(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	all := NewHistogram()
	var list []*Result
	for i := range 5 {
		r := sample()
		r.Label, r.Incidents, r.Seconds = fmt.Sprint(i), nil, 10+float64(i)/100
		r.Latency.Reset()
		for range 1000 * (i + 1) {
			d := time.Duration(rng.ExpFloat64() * float64(i+1) * float64(time.Millisecond))
			r.Latency.Record(d)
			all.Record(d)
		}
		list = append(list, r)
	}
	m := mustMerge(t, list...)
	for _, q := range []float64{1, 50, 90, 99, 99.9, 99.99, 100} {
		if m.Latency.Quantile(q) != all.Quantile(q) {
			t.Errorf("p%v is %v, of all times %v", q, m.Latency.Quantile(q), all.Quantile(q))
		}
	}
}

func TestMergeTimelines(t *testing.T) {
	line := func(interval, points int) Timeline {
		t := Timeline{Interval: interval}
		for i := range points {
			p := NewPoint()
			p.Requests, p.InFlight = int64(interval), int64(i+1)
			t.Points = append(t.Points, p)
		}
		return t
	}
	tests := []struct {
		name     string
		a, b     Timeline
		behind   time.Duration
		interval int
		requests []int64
		inFlight []int64
	}{
		{"same time", line(1, 3), line(1, 3), 0, 1, []int64{2, 2, 2}, []int64{2, 4, 6}},
		{"nearly the same time", line(1, 3), line(1, 3), 499 * time.Millisecond, 1, []int64{2, 2, 2}, []int64{2, 4, 6}},
		{"a second later", line(1, 3), line(1, 3), 700 * time.Millisecond, 1, []int64{1, 2, 2, 1}, []int64{1, 3, 5, 3}},
		{"longer", line(1, 3), line(1, 5), 0, 1, []int64{2, 2, 2, 1, 1}, []int64{2, 4, 6, 4, 5}},
		{"other interval", line(1, 5), line(2, 2), 0, 2, []int64{4, 4, 1}, []int64{3, 6, 5}},
		{"none", line(1, 2), Timeline{}, 0, 1, []int64{1, 1}, []int64{1, 2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a, b := sample(), other(tt.behind)
			a.Timeline, b.Timeline = tt.a, tt.b
			m := mustMerge(t, a, b)
			var requests, inFlight []int64
			for _, p := range m.Timeline.Points {
				requests = append(requests, p.Requests)
				inFlight = append(inFlight, p.InFlight)
			}
			if m.Timeline.Interval != tt.interval || !slices.Equal(requests, tt.requests) || !slices.Equal(inFlight, tt.inFlight) {
				t.Errorf("interval %d, requests %v, in flight %v", m.Timeline.Interval, requests, inFlight)
			}
		})
	}

	long, late := sample(), other(maxPoints*time.Second/2)
	long.Timeline, late.Timeline = line(1, maxPoints), line(1, maxPoints)
	long.Seconds, late.Seconds = maxPoints, maxPoints
	m := mustMerge(t, long, late)
	if len(m.Timeline.Points) > maxPoints || m.Timeline.Interval != 2 {
		t.Errorf("%d points of %d s", len(m.Timeline.Points), m.Timeline.Interval)
	}
	if err := m.check(); err != nil {
		t.Error(err)
	}
}

func TestSumStages(t *testing.T) {
	f := func(a, b []Stage, behind time.Duration, want ...Stage) {
		t.Helper()
		x, y := sample(), other(behind)
		x.Setup.Stages, y.Setup.Stages = a, b
		if diff := cmp.Diff(want, mustMerge(t, x, y).Setup.Stages); diff != "" {
			t.Errorf("%v and %v: %s", a, b, diff)
		}
	}
	steady := []Stage{{0, 10}, {60, 10}}
	f(steady, steady, 0, Stage{0, 20}, Stage{60, 20})
	f(steady, nil, 0, Stage{0, 10}, Stage{60, 10})
	f([]Stage{{0, 10}}, []Stage{{0, 5}}, 0, Stage{0, 15})
	f(steady, []Stage{{0, 5}}, 0, Stage{0, 15}, Stage{10, 15}, Stage{0, 10}, Stage{50, 10})
	f(steady, []Stage{{60, 60}}, 0, Stage{0, 10}, Stage{60, 70})
	f([]Stage{{10, 10}, {10, 0}}, []Stage{{10, 10}, {10, 0}}, 0, Stage{10, 20}, Stage{10, 0})
	f(steady, steady, 5*time.Second, Stage{0, 10}, Stage{5, 10}, Stage{0, 20}, Stage{55, 20}, Stage{0, 10}, Stage{5, 10})
	f(steady, []Stage{{0, 5}, {30, 5}, {0, 10}, {30, 10}}, 0, Stage{0, 15}, Stage{30, 15}, Stage{0, 20}, Stage{30, 20})
	f(steady, []Stage{{30, 30}, {30, 0}}, 0, Stage{0, 10}, Stage{30, 40}, Stage{30, 10})
}

func TestMergeRefuses(t *testing.T) {
	f := func(want string, list ...*Result) {
		t.Helper()
		if _, err := Merge(list); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	f("no result")
	f("same run", sample(), sample())
	again := sample()
	again.Label = "a copy with another name"
	f("same run", sample(), other(0), again)
	f("same run", mustMerge(t, sample(), other(0)), sample())
	ids := other(0)
	ids.Incidents.Runs = []string{"x", "ab"}
	f("ab-", sample(), ids)
	closed := other(0)
	closed.Setup.Open = false
	f("closed loop", sample(), closed)
	f("had ended", sample(), other(12*time.Second))
	f("had ended", other(12*time.Second), sample())
}

func TestMergeRemarks(t *testing.T) {
	f := func(want string, change func(*Result)) {
		t.Helper()
		b := other(0)
		change(b)
		if m := mustMerge(t, sample(), b); len(m.Remarks) != 1 || !strings.Contains(m.Remarks[0], want) {
			t.Errorf("got %q, want %q", m.Remarks, want)
		}
	}
	f("different targets: icaps://gate.example:11344/reqmod, icap://b/", func(r *Result) { r.Setup.Target = "icap://b/" })
	f("different scenarios", func(r *Result) { r.Setup.Scenario = "downloads.yaml" })
	f("different arrivals", func(r *Result) { r.Setup.Arrivals = "constant" })
	f("different versions", func(r *Result) { r.Version = "1.2.4" })
	f("requests per connection: 100, 1", func(r *Result) { r.Setup.PerConn = 1 })
	f("together for 3.0 s of 17.0 s", func(r *Result) { r.Started = r.Started.Add(7 * time.Second) })
	f("different headers", func(r *Result) { r.Incidents.Header = "X-ID" })
	f("1 of 2 load generators had no incident ids", func(r *Result) { r.Incidents = nil })
	f("right: clocks", func(r *Result) { r.Remarks = []string{"clocks"} })

	idle := New() // could not connect: has no time
	idle.Setup = sample().Setup
	idle.Incidents = &Incidents{Header: "X-Incident-ID", Runs: []string{"zz"}}
	if m := mustMerge(t, idle, sample()); m.Seconds != 10 || len(m.Remarks) != 0 || !m.Started.Equal(sample().Started) {
		t.Errorf("%v, %v s, %q", m.Started, m.Seconds, m.Remarks)
	}
}

func TestFairness(t *testing.T) {
	f := func(jain, most float64, requests ...int64) {
		t.Helper()
		r := New()
		for i, n := range requests {
			r.AddServer(fmt.Sprint(i), n)
		}
		if j, m := r.Fairness(); j != jain || m != most {
			t.Errorf("%v: %v, %v, want %v, %v", requests, j, m, jain, most)
		}
	}
	f(1, 1)
	f(1, 1, 0, 0)
	f(1, 1, 5)
	f(1, 1, 5, 5, 5, 5)
	f(0.25, 4, 5, 0, 0, 0)
	f(0.8, 1.5, 1, 3)
}

// FuzzMerge merges any two results that can be read.
func FuzzMerge(f *testing.F) {
	write := func(r *Result) []byte {
		var text strings.Builder
		if err := r.Write(&text); err != nil {
			f.Fatal(err)
		}
		return []byte(text.String())
	}
	f.Add(write(sample()), write(other(time.Second)))
	f.Add([]byte(`{"format":2}`), []byte(`{"format":2,"begun":1,"started":"0001-01-01T00:00:00Z","timeline":{"interval_seconds":1,"points":[{}]}}`))
	f.Add([]byte(`{"format":2,"setup":{"stages":[{"seconds":3,"rate":1}]}}`), []byte(`{"format":2,"seconds":9,"setup":{"stages":[{"seconds":1e9,"rate":1}]}}`))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		x, err := Parse(a)
		if err != nil {
			return
		}
		y, err := Parse(b)
		if err != nil {
			return
		}
		m, err := Merge([]*Result{x, y})
		if err != nil {
			return
		}
		m.Print(&strings.Builder{})
		if _, err := Parse(write(m)); err != nil {
			t.Error(err)
		}
	})
}
