package result

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// Print writes the result for people.
func (r *Result) Print(w io.Writer) {
	r.printSetup(w)
	fmt.Fprintf(w, "requests    %d in %.2f s, %d failed, over %d connections made", r.Requests, r.Seconds, r.Failed, r.Dials)
	if r.Resumed > 0 {
		fmt.Fprintf(w, ", %d with a resumed TLS session", r.Resumed)
	}
	fmt.Fprintln(w)
	if n := r.WarmUp; n.Requests+n.Failed > 0 {
		fmt.Fprintf(w, "warm-up     %d requests before that, %d failed: not in these figures\n", n.Requests, n.Failed)
	}
	if r.Requests > 0 {
		r.printAnswered(w)
	}
	for _, kind := range slices.Sorted(maps.Keys(r.Errors)) {
		e := r.Errors[kind]
		fmt.Fprintf(w, "error       %s: %d, such as: %s\n", kind, e.Count, e.Example)
	}
	for _, kind := range slices.Sorted(maps.Keys(r.Faults)) {
		f := r.Faults[kind]
		fmt.Fprintf(w, "faulty      %s: %d clients; %s\n", kind, f.Count, counts(f.Outcomes))
	}
	for i := range r.Machines {
		m := &r.Machines[i]
		if i == 0 {
			fmt.Fprintf(w, "%-23s %9s %9s %9s %9s %9s %9s %9s\n", "load generator", "requests", "failed", "per s", "p50", "p99", "max", "own CPU")
		}
		fmt.Fprintf(w, "  %-21s %9d %9d %9.0f %9s %9s %9s %8.0f%%\n", cmp.Or(m.Label, m.Target), m.Requests, m.Failed, m.Rate(),
			Time(m.Latency.Quantile(50)), Time(m.Latency.Quantile(99)), Time(m.Latency.Max()), 100*m.Generator.share(m.Seconds))
	}
	for _, caution := range r.Cautions() {
		fmt.Fprintf(w, "CAUTION     %s\n", caution)
	}
}

// Cautions returns what makes the figures less than they seem, in words.
func (r *Result) Cautions() []string {
	list := slices.Clone(r.Remarks)
	for _, reason := range r.Generator.Limited {
		list = append(list, "the load generator may have been the limit: "+reason)
	}
	if r.Interrupted {
		list = append(list, "the run was ended early")
	}
	return list
}

func (r *Result) printSetup(w io.Writer) {
	s := &r.Setup
	fmt.Fprintf(w, "%s to %s, %d connections", s.Scenario, s.Target, s.Connections)
	if s.PerConn > 0 {
		fmt.Fprintf(w, " of %d requests each", s.PerConn)
	}
	fmt.Fprintf(w, ", %s", s.Load())
	if s.Machines > 1 {
		fmt.Fprintf(w, ", from %d load generators", s.Machines)
	}
	fmt.Fprintln(w)
}

// Load describes the load in words.
func (s *Setup) Load() string {
	if !s.Open {
		return "as fast as answers come"
	}
	return fmt.Sprintf("%s arrivals at %s", s.Arrivals, stages(s.Stages))
}

// stages describes the rates of a run: "100/s for 30s, then to 1000/s in 2m0s".
func stages(list []Stage) string {
	var parts []string
	rate := -1.0
	for _, s := range list {
		length := time.Duration(s.Seconds * float64(time.Second)).Round(time.Millisecond)
		switch {
		case s.Seconds == 0 && rate < 0: // where the first stage begins
		case s.Seconds == 0:
			parts = append(parts, fmt.Sprintf("at once to %.6g/s", s.Rate))
		case s.Rate == rate:
			parts = append(parts, fmt.Sprintf("%.6g/s for %v", s.Rate, length))
		default:
			parts = append(parts, fmt.Sprintf("%.6g/s to %.6g/s in %v", max(rate, 0), s.Rate, length))
		}
		rate = s.Rate
	}
	if len(parts) == 0 {
		return fmt.Sprintf("%.6g/s", max(rate, 0))
	}
	return strings.Join(abridge(parts, maxShown), ", ")
}

// printAnswered writes what is known of requests that were answered as they should be.
func (r *Result) printAnswered(w io.Writer) {
	fmt.Fprintf(w, "throughput  %.0f requests/s, %.1f MB/s sent, %.1f MB/s received\n", r.Rate(),
		r.perSecond(float64(r.BytesSent)/1e6), r.perSecond(float64(r.BytesReceived)/1e6))
	fmt.Fprintf(w, "%-23s %9s %9s %9s %9s %9s %9s %9s\n", "time", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "max")
	row := func(name string, h Histogram) {
		if h.Count() == 0 {
			return
		}
		fmt.Fprintf(w, "  %-21s %9s", name, Time(h.Mean()))
		for _, q := range []float64{50, 90, 99, 99.9, 99.99, 100} {
			fmt.Fprintf(w, " %9s", Time(h.Quantile(q)))
		}
		fmt.Fprintln(w)
	}
	if r.Setup.Open {
		row("from the planned time", r.Latency)
		row("from the real send", r.Service)
		row("send behind plan", r.Late.Delay)
	} else {
		row("whole", r.Latency)
	}
	row("first byte", r.Phases.FirstByte)
	row("100 Continue", r.Phases.Continue)
	row("connect", r.Phases.Connect)
	row("TLS handshake", r.Phases.Handshake)
	if len(r.Entries) > 1 {
		for _, e := range r.Entries {
			row(e.Name, e.Latency)
		}
	}
	if r.Setup.Open {
		fmt.Fprintf(w, "late        %d requests began over %s late because every connection was busy, %d because of the load generator\n",
			r.Late.Waited, Time(time.Duration(r.Late.Limit*float64(time.Second))), r.Late.Generator)
	}
	g := &r.Generator
	fmt.Fprintf(w, "own CPU     %.2f s, %.1f us per request, %.0f %% of %d CPUs; waited %.2f s for a CPU\n", g.CPUSeconds,
		g.CPUSeconds*1e6/float64(r.Requests+r.Failed), 100*g.share(r.Seconds), g.CPUs, g.QueuedSeconds)
	for _, e := range r.Entries {
		if len(r.Entries) > 1 {
			fmt.Fprintf(w, "entry       %s (%s): %d, %d failed\n", e.Name, e.Method, e.Requests, e.Failed)
		}
	}
	var statuses []string
	for _, code := range slices.Sorted(maps.Keys(r.Statuses)) {
		statuses = append(statuses, fmt.Sprintf("%d: %d", code, r.Statuses[code]))
	}
	if r.Modified > 0 {
		statuses = append(statuses, fmt.Sprintf("block pages or modified: %d", r.Modified))
	}
	if r.NewHeads > 0 {
		statuses = append(statuses, fmt.Sprintf("echoes with other heads: %d", r.NewHeads))
	}
	fmt.Fprintf(w, "answers     %s\n", strings.Join(statuses, ", "))
	for _, name := range slices.Sorted(maps.Keys(r.Servers)) {
		fmt.Fprintf(w, "server      %s: %d (%.1f %%)\n", name, r.Servers[name], 100*float64(r.Servers[name])/float64(r.Requests))
	}
	if jain, most := r.Fairness(); len(r.Servers) > 1 {
		fmt.Fprintf(w, "fairness    %.4f (Jain's index, 1: all %d servers got the same), the most was %.2f times the mean\n", jain, len(r.Servers), most)
	}
}

func counts(of map[string]int64) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(of)) {
		parts = append(parts, fmt.Sprintf("%s: %d", name, of[name]))
	}
	return strings.Join(parts, ", ")
}

// Line returns the figures so far in one line.
func (r *Result) Line() string {
	return fmt.Sprintf("%.0f s: %d requests, %.0f/s, %d failed, p50 %s, p99 %s", r.Seconds, r.Requests, r.Rate(), r.Failed,
		Time(r.Latency.Quantile(50)), Time(r.Latency.Quantile(99)))
}

// Now returns how the run goes, in a few words: the figures of the last point of the timeline.
func (r *Result) Now() string {
	if len(r.Timeline.Points) == 0 {
		return r.Line()
	}
	p := &r.Timeline.Points[len(r.Timeline.Points)-1]
	return fmt.Sprintf("%d/s, p99 %s, %d failed", p.Requests/int64(max(r.Timeline.Interval, 1)), Time(p.Latency.Quantile(99)), r.Failed)
}

// Time formats a time with three digits: 312µs, 4.27ms, 1.05s.
func Time(d time.Duration) string {
	unit := time.Duration(1)
	for d/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit).String()
}
