package report

import (
	"cmp"
	"fmt"
	"html/template"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"icapgate/bench"
	"icapgate/bench/result"
)

const (
	maxPoints = 400 // of a chart over time; longer timelines get points of more seconds
	maxStacks = 8   // servers that can be told apart by colour
	maxRows   = 40  // servers in a chart or table
)

// span is a part of a timeline: a point and the time it stands for, in seconds.
type span struct {
	*result.Point
	from, to float64
}

func (s span) middle() float64     { return (s.from + s.to) / 2 }
func (s span) per(n int64) float64 { return float64(n) / (s.to - s.from) }
func (s span) quantile(q float64) float64 {
	if s.Latency.Count() == 0 {
		return math.NaN()
	}
	return s.Latency.Quantile(q).Seconds()
}

// spans returns the timeline in at most maxPoints parts, whose rates are not those of an idle time at the end.
func spans(r *result.Result) []span {
	t := &r.Timeline
	group := groupSize(len(t.Points), t.Interval)
	var out []span
	for i := 0; i < len(t.Points); i += group {
		p := result.NewPoint()
		end := min(i+group, len(t.Points))
		for j := i; j < end; j++ {
			p.Add(&t.Points[j])
			p.InFlight = t.Points[j].InFlight
		}
		out = append(out, span{&p, float64(i * t.Interval), float64(end * t.Interval)})
	}
	return endWith(out, r.Seconds)
}

// endWith ends the last part with the run. One of less than half its time becomes a piece of the part before it.
func endWith(list []span, seconds float64) []span {
	last := len(list) - 1
	if last < 0 || list[last].to <= seconds {
		return list
	}
	s := &list[last]
	switch {
	case seconds-s.from >= (s.to-s.from)/2:
		s.to = seconds
	case last > 0:
		before := &list[last-1]
		before.Add(s.Point)
		before.InFlight, before.to = s.InFlight, max(seconds, s.from)
		return list[:last]
	}
	return list
}

// groupSize returns how many points of a timeline become one, so that it stands for a time that people like.
func groupSize(points, interval int) int {
	if points <= maxPoints {
		return 1
	}
	for _, s := range clockSteps {
		if n := int(s) / interval; n*maxPoints >= points && int(s)%interval == 0 {
			return n
		}
	}
	return (points + maxPoints - 1) / maxPoints
}

// figure is a chart with its legend, for the page.
type figure struct{ Chart }

// Legend lists the series. The only one of a chart has no name, and is listed for the value under the pointer.
func (f *figure) Legend() []Series {
	return slices.DeleteFunc(slices.Clone(f.Series), func(s Series) bool { return s.Name == "" && f.Step == 0 })
}

// Key returns the classes of the series in the legend.
func (s Series) Key() string {
	switch {
	case s.Kind == Marks && s.Cross:
		return s.Class + " key-cross"
	case s.Kind == Marks:
		return s.Class + " key-disc"
	case s.Dashed:
		return s.Class + " dashed"
	case s.Name == "":
		return s.Class + " alone"
	}
	return s.Class
}

// Draw returns the SVG.
func (f *figure) Draw() template.HTML { return f.SVG() }

// empty says whether there is nothing to show.
func (f *figure) empty() bool {
	return !slices.ContainsFunc(f.Series, func(s Series) bool {
		return slices.ContainsFunc(s.Points, func(p Point) bool { return finite(p.Y) })
	})
}

// notEmpty returns figures that show something.
func notEmpty(list []figure) []figure {
	return slices.DeleteFunc(list, func(f figure) bool { return f.empty() })
}

// Hover returns where values under the pointer are.
func (f *figure) Hover() string {
	if f.Step == 0 {
		return ""
	}
	x := &f.X
	return fmt.Sprintf("%g %g %g %g %d %d %d", x.flat(x.From), x.flat(x.To), f.From, f.Step, plotLeft, plotRight, chartWidth)
}

// List returns the values under the pointer, without those that are not numbers.
func (s Series) List() string {
	var out strings.Builder
	for i, v := range s.Values {
		if i > 0 {
			out.WriteByte(' ')
		}
		if finite(v) {
			out.WriteString(shortest(v, 4))
		} else {
			out.WriteByte('-')
		}
	}
	return out.String()
}

// overTime returns a chart whose X axis is the time of a run.
func overTime(title, about string, y Axis, seconds float64, spans []span) figure {
	f := figure{Chart{Title: title, About: about, X: Axis{Title: "time since the start", Unit: Clock, To: max(seconds, 1)}, Y: y}}
	if len(spans) > 0 {
		f.X.To = max(f.X.To, spans[len(spans)-1].to)
		f.From, f.Step = spans[0].middle(), spans[0].to-spans[0].from
	}
	return f
}

// curve adds a line with a point in the middle of each part of the time.
func (f *figure) curve(name, class string, spans []span, of func(span) float64) *Series {
	s := Series{Name: name, Class: class}
	for _, part := range spans {
		v := of(part)
		s.Points = append(s.Points, Point{X: part.middle(), Y: v})
		s.Values = append(s.Values, v)
	}
	f.Series = append(f.Series, s)
	return &f.Series[len(f.Series)-1]
}

// stack adds an area.
func (f *figure) stack(name, class string, spans []span, of func(span) float64) {
	s := Series{Name: name, Class: class, Kind: Stack}
	for _, part := range spans {
		v := of(part)
		s.Points = append(s.Points, Point{X: part.from, To: part.to, Y: v})
		s.Values = append(s.Values, v)
	}
	f.Series = append(f.Series, s)
}

// scaleFor chooses logarithmic times if the values differ much. Such an axis begins where the series do that are not faint: how late sends
// were goes down to next to nothing.
func (f *figure) scaleFor() {
	var e, faint extent
	for _, s := range f.Series {
		to := &e
		if s.Class == "faint" {
			to = &faint
		}
		for _, p := range s.Points {
			if finite(p.Y) {
				to.add(p.Y)
			}
		}
	}
	for _, l := range f.Lines {
		if !l.Vertical {
			e.add(l.At)
		}
	}
	if e.low == 0 {
		e.low = faint.low
	}
	f.Y = Axis{Title: "latency", Unit: Time}
	if e.high = max(e.high, faint.high); e.low > 0 && e.high/e.low > 20 {
		f.Y = Axis{Title: "latency (logarithmic)", Unit: Time, Scale: Log}
		f.Y.fit(e.low, e.high)
	}
}

func latencyOverTime(r *result.Result, list []span) figure {
	f := overTime("Latency over time", "Of the requests that ended in each "+length(list)+".", Axis{}, r.Seconds, list)
	f.curve("max", "faint", list, func(s span) float64 { return s.quantile(100) })
	f.curve("p99", "s3", list, func(s span) float64 { return s.quantile(99) })
	f.curve("p90", "s2", list, func(s span) float64 { return s.quantile(90) })
	f.curve("p50", "s1", list, func(s span) float64 { return s.quantile(50) })
	f.scaleFor()
	return f
}

// length names what a point of a chart stands for.
func length(list []span) string {
	if len(list) == 0 || list[0].to-list[0].from <= 1 {
		return "second"
	}
	return clockLabel(list[0].to - list[0].from)
}

func throughput(r *result.Result, list []span) figure {
	f := overTime("Throughput", "Requests that ended in each "+length(list)+", per second.", Axis{Title: "requests/s", Unit: Number}, r.Seconds, list)
	f.stack("answered", "s1 soft", list, func(s span) float64 { return s.per(s.Requests) })
	if r.Failed > 0 {
		f.stack("failed", "bad", list, func(s span) float64 { return s.per(s.Failed) })
	}
	if plan := planned(&r.Setup, r.Seconds); len(plan) > 0 {
		values := make([]float64, len(list))
		for i, s := range list {
			values[i] = rateAt(plan, s.middle())
		}
		f.Series = append(f.Series, Series{Name: "planned", Class: "plan", Dashed: true, Points: plan, Values: values})
	}
	return f
}

// planned returns the planned rate as a line to the end of the run, which may have ended before its plan.
func planned(s *result.Setup, seconds float64) []Point {
	var line []Point
	at, rate := 0.0, 0.0
	for i, stage := range s.Stages {
		if i == 0 && stage.Seconds > 0 {
			line = append(line, Point{})
		}
		if end := at + stage.Seconds; end > seconds && stage.Seconds > 0 {
			return append(line, Point{X: seconds, Y: rate + (stage.Rate-rate)*(seconds-at)/stage.Seconds})
		}
		at, rate = at+stage.Seconds, stage.Rate
		line = append(line, Point{X: at, Y: rate})
	}
	if at == 0 && len(line) > 0 { // one rate to the end
		line = append(line, Point{X: min(cmp.Or(s.Length, seconds), seconds), Y: rate})
	}
	return line
}

// rateAt returns the rate of a planned line, which is not a number beyond its ends.
func rateAt(line []Point, at float64) float64 {
	for i := 1; i < len(line); i++ {
		a, b := line[i-1], line[i]
		if a.X <= at && at <= b.X && b.X > a.X {
			return a.Y + (b.Y-a.Y)*(at-a.X)/(b.X-a.X)
		}
	}
	return math.NaN()
}

func errorsOverTime(r *result.Result, list []span) figure {
	f := overTime("Errors over time", "Requests that failed, by the kind of the error.", Axis{Title: "failed requests/s", Unit: Number}, r.Seconds, list)
	classes := []string{"bad", "s2", "s3", "s4", "s5", "s6", "s7", "s8"}
	for i, kind := range byCount(r.Errors, func(e *result.Errors) int64 { return e.Count }) {
		f.stack(string(kind), classes[i%len(classes)], list, func(s span) float64 { return s.per(s.Errors[kind]) })
	}
	return f
}

// byCount returns the keys, the one with the highest count first.
func byCount[K cmp.Ordered, V any](m map[K]V, count func(V) int64) []K {
	return slices.SortedFunc(maps.Keys(m), func(a, b K) int {
		return cmp.Or(cmp.Compare(count(m[b]), count(m[a])), cmp.Compare(a, b))
	})
}

func inFlight(r *result.Result, list []span) figure {
	f := overTime("Requests in flight", "At the end of each "+length(list)+".", Axis{Title: "requests", Unit: Number}, r.Seconds, list)
	f.curve("", "s1", list, func(s span) float64 { return float64(s.InFlight) })
	return f
}

func lateOverTime(r *result.Result, list []span) figure {
	f := overTime("Late requests", "Requests that began over "+timeLabel(r.Late.Limit)+" behind their plan and ended in each "+length(list)+".",
		Axis{Title: "requests/s", Unit: Number}, r.Seconds, list)
	f.stack("", "s2", list, func(s span) float64 { return s.per(s.Late) })
	return f
}

func ownCPU(r *result.Result, list []span) figure {
	cpus := max(r.Generator.CPUs, 1)
	f := overTime("CPU of the load generator", fmt.Sprintf("Share of the %d CPUs that it may use. Near 100 %% it is what limits the load.", cpus),
		Axis{Title: "CPU", Unit: Share, To: 1}, r.Seconds, list)
	share := func(s span) float64 { return s.CPU / (s.to - s.from) / float64(cpus) }
	for _, s := range list {
		if share(s) > 1 { // the operating system counts in ticks
			f.Y.To = 1.2
		}
	}
	f.curve("", "s1", list, share)
	return f
}

// percentileCurve draws histograms over the share of the requests that took no longer. Empty ones are left out.
func percentileCurve(names, classes []string, times []result.Histogram) figure {
	f := figure{Chart{
		Title: "Percentiles", About: "How long so many per cent of the requests took at most.",
		X: Axis{Title: "percentile", Scale: Nines, Unit: Share}, Y: Axis{Title: "latency", Unit: Time},
	}}
	var most int64
	for _, h := range times {
		most = max(most, h.Count())
	}
	if most == 0 {
		return f
	}
	nines := min(max(math.Ceil(math.Log10(float64(most))-1e-9), 2), 7)
	f.X.To = 1 - math.Pow(10, -nines)
	const samples = 120
	f.From, f.Step = 0, nines/samples
	for i, h := range times {
		if h.Count() == 0 {
			continue
		}
		s := Series{Name: names[i], Class: classes[i], Points: percentilePoints(h, f.X.To)}
		for j := range samples + 1 {
			s.Values = append(s.Values, h.Quantile(100*(1-math.Pow(10, -nines*float64(j)/samples))).Seconds())
		}
		f.Series = append(f.Series, s)
	}
	f.scaleFor()
	return f
}

// percentilePoints returns the times of a histogram over the share of all that are not longer. The slowest of all is at the end of the axis.
func percentilePoints(h result.Histogram, end float64) []Point {
	var line []Point
	var below int64
	total := float64(h.Count())
	for _, b := range h.Bars() {
		line = append(line, Point{X: min(float64(below)/total, end), Y: b.To.Seconds()})
		below += b.Count
		line = append(line, Point{X: min(float64(below)/total, end), Y: b.To.Seconds()})
	}
	return line
}

// histogram draws how often each latency was, in columns of the same width on a logarithmic axis.
func histogram(h result.Histogram) figure {
	f := figure{Chart{
		Title: "Distribution of latency", About: "Requests by their latency; columns are equally wide on the logarithmic axis.",
		X: Axis{Title: "latency (logarithmic)", Scale: Log, Unit: Time}, Y: Axis{Title: "requests", Unit: Number},
	}}
	if h.Count() == 0 {
		return f
	}
	bars := h.Bars()
	low, high := max(bars[0].To.Seconds(), 1e-6), max(h.Max().Seconds(), 1e-6)
	f.X.fit(low, high)
	const most = 60
	width := max(math.Log10(f.X.To/f.X.From)/most, math.Log10(1.02))
	columns := make([]int64, int(math.Log10(f.X.To/f.X.From)/width)+1)
	for _, b := range bars {
		at := int(math.Log10(max(b.To.Seconds(), 1e-6)/f.X.From) / width)
		columns[min(max(at, 0), len(columns)-1)] += b.Count
	}
	s := Series{Class: "s1", Kind: Columns}
	for i, n := range columns {
		from, to := f.X.From*math.Pow(10, float64(i)*width), f.X.From*math.Pow(10, float64(i+1)*width)
		s.Points = append(s.Points, Point{X: from, To: min(to, f.X.To), Y: float64(n), Name: fmt.Sprintf("%s to %s: %d requests", timeLabel(from), timeLabel(to), n)})
	}
	f.Series = []Series{s}
	for _, q := range []float64{50, 99} {
		f.Lines = append(f.Lines, Line{Name: fmt.Sprintf("p%g %s", q, result.Time(h.Quantile(q))), At: max(h.Quantile(q).Seconds(), f.X.From), Vertical: true})
	}
	return f
}

// serversOverTime draws at most maxStacks servers.
func serversOverTime(r *result.Result, list []span) figure {
	f := overTime("Servers over time", "Answered requests in each "+length(list)+", by the server that answered them.", Axis{Title: "requests/s", Unit: Number}, r.Seconds, list)
	for i, name := range slices.Sorted(maps.Keys(r.Servers)) {
		f.stack(name, fmt.Sprintf("s%d", i+1), list, func(s span) float64 { return s.per(s.Servers[name]) })
	}
	return f
}

// serverRows draws many servers over time: a row for each, the stronger its colour the more requests it had.
func serverRows(r *result.Result, list []span) template.HTML {
	const row, columns, rowsLeft = 14, 80, 140
	names := byCount(r.Servers, func(n int64) int64 { return n })
	names = names[:min(len(names), maxRows)]
	slices.Sort(names)
	group := (len(list) + columns - 1) / columns
	most := 0.0
	cells := make([][]float64, len(names))
	for i, name := range names {
		for at := 0; at < len(list); at += group {
			part := list[at:min(at+group, len(list))]
			n := int64(0)
			for _, s := range part {
				n += s.Servers[name]
			}
			rate := float64(n) / (part[len(part)-1].to - part[0].from)
			cells[i] = append(cells[i], rate)
			most = max(most, rate)
		}
	}
	c := &Chart{Title: "Servers over time", About: "A row for each server; the stronger its colour, the more requests it answered.", Height: plotTop + row*len(names) + underPlot}
	c.X = Axis{Title: "time since the start", Unit: Clock, To: max(r.Seconds, 1)}
	d := &drawing{chart: c, left: rowsLeft, bottom: float64(c.Height - underPlot)}
	fmt.Fprintf(d, `<svg class="chart" viewBox="0 0 %d %d" role="img" aria-label="%s">`, chartWidth, c.Height, esc(c.Title+". "+c.About))
	for i, name := range names {
		y := plotTop + row*i
		fmt.Fprintf(d, `<text class="tick small" x="%d" y="%d" text-anchor="end">%s</text>`, rowsLeft-6, y+10, esc(shorten(name, 18)))
		for j, rate := range cells[i] {
			from, to := list[j*group].from, list[min((j+1)*group, len(list))-1].to
			if x := d.x(from); rate > 0 {
				fmt.Fprintf(d, `<rect class="cell" x="%s" y="%d" width="%s" height="%d" fill-opacity="%s"><title>%s, %s: %s requests/s</title></rect>`,
					num(x), y, num(max(d.x(to)-x-0.4, 0.4)), row-2, num(0.1+0.9*rate/most), esc(name), clockLabel(from), numberLabel(rate))
			}
		}
	}
	var grid strings.Builder
	for _, v := range c.X.ticks(5) {
		x := num(d.x(v))
		fmt.Fprintf(&grid, "M%s %sv5", x, num(d.bottom))
		fmt.Fprintf(d, `<text class="tick" x="%s" y="%s" text-anchor="middle">%s</text>`, x, num(d.bottom+20), esc(c.X.label(v)))
	}
	fmt.Fprintf(d, `<path class="grid" d="%s"/><path class="axis" d="M%d %sH%d"/>`, grid.String(), rowsLeft, num(d.bottom), plotRight)
	fmt.Fprintf(d, `<text class="unit" x="8" y="16">server</text><text class="unit" x="%d" y="%d" text-anchor="end">%s</text></svg>`,
		plotRight, c.Height-8, esc(c.X.Title))
	return template.HTML(d.String())
}

// shorten cuts a name in its middle, as servers often differ at both ends.
func shorten(name string, most int) string {
	runes := []rune(name)
	if len(runes) <= most {
		return name
	}
	return string(runes[:(most-1)/2]) + "…" + string(runes[len(runes)-most/2:])
}

// errorKinds returns the errors of a result, the most frequent first.
func errorKinds(r *result.Result) []bench.Kind {
	return byCount(r.Errors, func(e *result.Errors) int64 { return e.Count })
}

func duration(seconds float64) string {
	return time.Duration(seconds * float64(time.Second)).Round(10 * time.Millisecond).String()
}
