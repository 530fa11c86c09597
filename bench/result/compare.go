package result

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// Difference is a figure of two results, side by side.
type Difference struct {
	Group string // what the figure belongs to: setup, requests, the name of a time, …
	Name  string
	A, B  string // for people
	Sense int    // 1: more is better, -1: less is better, 0: neither

	a, b float64 // both 0: the figure is no number
}

// quantiles are those that reports show.
var quantiles = []struct {
	name    string
	percent float64
}{{"p50", 50}, {"p90", 90}, {"p99", 99}, {"p99.9", 99.9}, {"p99.99", 99.99}, {"max", 100}}

// comparison collects differences.
type comparison struct {
	a, b  *Result
	group string
	list  []Difference
}

// Compare puts two results side by side: of their setup what differs, of what they have shown everything that at least one of them has.
func Compare(a, b *Result) []Difference {
	c := &comparison{a: a, b: b}
	c.setup()
	c.requests()
	c.times()
	c.servers()
	c.entries()
	return c.list
}

// add adds a figure that at least one result has. It is not a number for a result that has none, which is neither good nor bad.
func (c *comparison) add(name string, sense int, format func(float64) string, of func(*Result) float64) {
	has := func(x float64) bool { return x != 0 && !math.IsNaN(x) }
	show := func(x float64) string {
		if math.IsNaN(x) {
			return "-"
		}
		return format(x)
	}
	a, b := of(c.a), of(c.b)
	if !has(a) && !has(b) {
		return
	}
	c.list = append(c.list, Difference{Group: c.group, Name: name, A: show(a), B: show(b), Sense: sense, a: a, b: b})
}

// quantileOf returns a quantile of times, not a number if there are none: a target that answers nothing is not fast.
func quantileOf(h Histogram, percent float64) float64 {
	if h.Count() == 0 {
		return math.NaN()
	}
	return float64(h.Quantile(percent))
}

// differs adds a part of the setup if the results have different ones.
func (c *comparison) differs(name string, of func(*Result) string) {
	if a, b := of(c.a), of(c.b); a != b {
		c.list = append(c.list, Difference{Group: c.group, Name: name, A: a, B: b})
	}
}

func (c *comparison) setup() {
	c.group = "setup"
	c.differs("target", func(r *Result) string { return r.Setup.Target })
	c.differs("scenario", func(r *Result) string { return r.Setup.Scenario })
	c.differs("load", func(r *Result) string { return r.Setup.Load() })
	c.differs("connections", func(r *Result) string { return fmt.Sprint(r.Setup.Connections) })
	c.differs("requests per connection", func(r *Result) string { return fmt.Sprint(r.Setup.PerConn) })
	c.differs("load generators", func(r *Result) string { return fmt.Sprint(max(r.Setup.Machines, 1)) })
	c.differs("icapbench", func(r *Result) string { return r.Version })
}

func count(n float64) string   { return fmt.Sprintf("%.0f", n) }
func percent(n float64) string { return fmt.Sprintf("%.3g %%", 100*n) }
func times(n float64) string   { return Time(time.Duration(n)) }
func per(unit string) func(float64) string {
	return func(n float64) string { return strings.TrimSpace(fmt.Sprintf("%.4g %s", n, unit)) }
}

func (c *comparison) requests() {
	c.group = "requests"
	ended := func(r *Result) float64 { return float64(max(r.Requests+r.Failed, 1)) }
	c.add("answered", 1, per("/s"), (*Result).Rate)
	c.add("body bytes sent", 1, per("MB/s"), func(r *Result) float64 { return r.perSecond(float64(r.BytesSent) / 1e6) })
	c.add("body bytes received", 1, per("MB/s"), func(r *Result) float64 { return r.perSecond(float64(r.BytesReceived) / 1e6) })
	c.add("answered in all", 0, count, func(r *Result) float64 { return float64(r.Requests) })
	c.add("failed", -1, percent, func(r *Result) float64 { return float64(r.Failed) / ended(r) })
	for _, kind := range union(c.a.Errors, c.b.Errors) {
		c.add("errors: "+string(kind), -1, count, func(r *Result) float64 {
			if e := r.Errors[kind]; e != nil {
				return float64(e.Count)
			}
			return 0
		})
	}
	for _, code := range union(c.a.Statuses, c.b.Statuses) {
		c.add(fmt.Sprintf("answers: %d", code), 0, percent, func(r *Result) float64 {
			return float64(r.Statuses[code]) / float64(max(r.Requests, 1))
		})
	}
	begun := func(r *Result) float64 { return float64(max(r.Begun, 1)) }
	c.add("late, no connection free", -1, percent, func(r *Result) float64 { return float64(r.Late.Waited) / begun(r) })
	c.add("late, load generator", -1, percent, func(r *Result) float64 { return float64(r.Late.Generator) / begun(r) })
	c.add("connections made", 0, count, func(r *Result) float64 { return float64(r.Dials) })
	c.add("TLS sessions resumed", 0, count, func(r *Result) float64 { return float64(r.Resumed) })
	c.add("own CPU per request", 0, per("µs"), func(r *Result) float64 { return r.Generator.CPUSeconds * 1e6 / ended(r) })
	c.add("own CPU", 0, percent, func(r *Result) float64 { return r.Generator.share(r.Seconds) })
}

func (c *comparison) times() {
	less := -1 // is better
	f := func(group string, of func(*Result) Histogram) {
		c.group = group
		c.add("mean", less, times, func(r *Result) float64 {
			if of(r).Count() == 0 {
				return math.NaN()
			}
			return float64(of(r).Mean())
		})
		for _, q := range quantiles {
			c.add(q.name, less, times, func(r *Result) float64 { return quantileOf(of(r), q.percent) })
		}
	}
	if c.a.Setup.Open != c.b.Setup.Open {
		less = 0
	}
	f("latency", func(r *Result) Histogram { return r.Latency })
	if c.a.Setup.Open && c.b.Setup.Open {
		f("send behind plan", func(r *Result) Histogram { return r.Late.Delay })
	}
	less = -1
	if c.a.Setup.Open || c.b.Setup.Open {
		f("time from the real send", func(r *Result) Histogram { return r.Service })
	}
	f("first byte", func(r *Result) Histogram { return r.Phases.FirstByte })
	f("100 Continue", func(r *Result) Histogram { return r.Phases.Continue })
	f("connect", func(r *Result) Histogram { return r.Phases.Connect })
	f("TLS handshake", func(r *Result) Histogram { return r.Phases.Handshake })
}

func (c *comparison) servers() {
	c.group = "servers"
	for _, name := range union(c.a.Servers, c.b.Servers) {
		c.add(name, 0, percent, func(r *Result) float64 { return float64(r.Servers[name]) / float64(max(r.Requests, 1)) })
	}
	if len(c.a.Servers) > 1 || len(c.b.Servers) > 1 {
		c.add("fairness (Jain's index)", 1, per(""), func(r *Result) float64 { jain, _ := r.Fairness(); return jain })
		c.add("most in means", -1, per(""), func(r *Result) float64 { _, most := r.Fairness(); return most })
	}
}

// entries compares those that both results have, if there are several.
func (c *comparison) entries() {
	if len(c.a.Entries) < 2 {
		return
	}
	for i := range c.a.Entries {
		name, method := c.a.Entries[i].Name, c.a.Entries[i].Method
		if c.b.entry(name, method) == nil {
			continue
		}
		c.group = fmt.Sprintf("%s (%s)", name, method)
		c.add("answered", 1, per("/s"), func(r *Result) float64 { return r.perSecond(float64(r.entry(name, method).Requests)) })
		c.add("failed", -1, count, func(r *Result) float64 { return float64(r.entry(name, method).Failed) })
		c.add("p50", -1, times, func(r *Result) float64 { return quantileOf(r.entry(name, method).Latency, 50) })
		c.add("p99", -1, times, func(r *Result) float64 { return quantileOf(r.entry(name, method).Latency, 99) })
	}
}

// union returns the keys of both maps in order.
func union[K cmp.Ordered, V any](a, b map[K]V) []K {
	keys := slices.AppendSeq(slices.Collect(maps.Keys(a)), maps.Keys(b))
	slices.Sort(keys)
	return slices.Compact(keys)
}

// Incomparable says which figures of two results do not mean the same.
func Incomparable(a, b *Result) []string {
	if a.Setup.Open == b.Setup.Open {
		return nil
	}
	return []string{"one is an open loop and the other a closed one: latency counts from the planned time in the first, and from the send in the second; " +
		"only times from the real send can be compared"}
}

// PrintComparison writes two results side by side for people.
func PrintComparison(w io.Writer, a, b *Result) {
	fmt.Fprintf(w, "A: %s\nB: %s\n", a.title(), b.title())
	for _, r := range []*Result{a, b} {
		for _, c := range r.Cautions() {
			fmt.Fprintf(w, "CAUTION     %s: %s\n", map[*Result]string{a: "A", b: "B"}[r], c)
		}
	}
	for _, c := range Incomparable(a, b) {
		fmt.Fprintf(w, "CAUTION     %s\n", c)
	}
	group := ""
	for _, d := range Compare(a, b) {
		switch {
		case d.Group == "setup":
			fmt.Fprintf(w, "  %-26s A: %s\n  %-26s B: %s\n", d.Name, d.A, "", d.B)
			continue
		case d.Group != group:
			fmt.Fprintf(w, "%-28s %14s %14s %9s\n", d.Group, "A", "B", "B/A")
			group = d.Group
		}
		fmt.Fprintf(w, "  %-26s %14s %14s %9s\n", d.Name, d.A, d.B, d.Ratio())
	}
}

// Better says whether B is better (1) or worse (-1) than A; 0: neither, or they differ by less than a twentieth.
func (d Difference) Better() int {
	switch {
	case d.b > 1.05*d.a:
		return d.Sense
	case d.b < 0.95*d.a:
		return -d.Sense
	}
	return 0
}

// Ratio returns B/A for people.
func (d Difference) Ratio() string {
	switch {
	case d.a == 0 || math.IsNaN(d.a) || math.IsNaN(d.b):
		return "-"
	case d.b >= 100*d.a:
		return fmt.Sprintf("%.0f", d.b/d.a)
	}
	return fmt.Sprintf("%.3f", d.b/d.a)
}

func (r *Result) title() string {
	title := fmt.Sprintf("%s, %d requests, %d failed", r.Started.Format(time.DateTime), r.Requests, r.Failed)
	if r.Label != "" {
		title = r.Label + ", " + title
	}
	return title
}
