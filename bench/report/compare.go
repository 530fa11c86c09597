package report

import (
	"cmp"
	"fmt"
	"io"

	"icapgate/bench/result"
)

// Compare writes a page that puts two results side by side.
func Compare(w io.Writer, a, b *result.Result) error {
	p := &view{
		Title:    fmt.Sprintf("%s and %s", cmp.Or(a.Label, "A"), cmp.Or(b.Label, "B")),
		Subtitle: fmt.Sprintf("A: %s. B: %s.", subtitle(a), subtitle(b)),
		Foot:     foot(b.Version),
	}
	for _, side := range []struct {
		name string
		r    *result.Result
	}{{"A", a}, {"B", b}} {
		for _, c := range side.r.Cautions() {
			p.Cautions = append(p.Cautions, side.name+": "+c)
		}
	}
	p.Cautions = append(p.Cautions, result.Incomparable(a, b)...)
	setup, figures := differences(result.Compare(a, b))
	p.Tables = nonEmpty(setup)
	p.Figures = compareFigures(a, b)
	p.Details = nonEmpty(figures)
	return page.Execute(w, p)
}

// differences makes tables of what differs in the setup, and of all figures.
func differences(list []result.Difference) (setup, figures table) {
	setup = table{Title: "Different setup", Columns: []string{"", "A", "B"}, Words: true}
	figures = table{Title: "Figures", About: "B/A above 1: B had more.", Columns: []string{"", "A", "B", "B/A", ""}}
	group := ""
	for _, d := range list {
		if d.Group == "setup" {
			setup.Rows = append(setup.Rows, row{Cells: cells(d.Name, d.A, d.B)})
			continue
		}
		if d.Group != group {
			group = d.Group
			figures.Rows = append(figures.Rows, row{Group: true, Cells: cells(group, "", "", "", "")})
		}
		verdict := cell{}
		switch better := d.Better(); {
		case better > 0:
			verdict = cell{Text: "better", Class: "good"}
		case better < 0:
			verdict = cell{Text: "worse", Class: "bad"}
		}
		figures.Rows = append(figures.Rows, row{Cells: append(cells(d.Name, d.A, d.B, d.Ratio()), verdict)})
	}
	return setup, figures
}

// compareFigures draws both results in the same charts.
func compareFigures(a, b *result.Result) []figure {
	x, y := spans(a), spans(b)
	both := []result.Histogram{a.Latency, b.Latency}
	curves := percentileCurve([]string{"A", "B"}, []string{"s1", "s2"}, both)
	p50 := overlay("Median latency over time", x, y, func(s span) float64 { return s.quantile(50) })
	p99 := overlay("p99 over time", x, y, func(s span) float64 { return s.quantile(99) })
	p50.scaleFor()
	p99.scaleFor()
	rate := overlay("Throughput", x, y, func(s span) float64 { return s.per(s.Requests) })
	rate.About, rate.Y = "Answered requests per second.", Axis{Title: "requests/s", Unit: Number}
	failed := overlay("Errors over time", x, y, func(s span) float64 { return s.per(s.Failed) })
	failed.About, failed.Y = "Failed requests per second.", Axis{Title: "failed requests/s", Unit: Number}
	flight := overlay("Requests in flight", x, y, func(s span) float64 { return float64(s.InFlight) })
	flight.Y = Axis{Title: "requests", Unit: Number}
	list := []figure{curves, p99, p50, rate, flight}
	if a.Failed+b.Failed > 0 {
		list = append(list, failed)
	}
	return notEmpty(list)
}

// overlay draws a figure of two runs over the time since their starts.
func overlay(title string, a, b []span, of func(span) float64) figure {
	longer := a
	if len(b) > 0 && (len(a) == 0 || b[len(b)-1].to > a[len(a)-1].to) {
		longer = b
	}
	f := overTime(title, "", Axis{}, 0, longer)
	f.curve("A", "s1", a, of)
	f.curve("B", "s2", b, of)
	if len(a) > 0 && len(b) > 0 && a[0].to != b[0].to { // values under the pointer are of one grid
		f.Step = 0
	}
	return f
}
