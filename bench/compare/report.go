package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"

	"icapgate/bench/rounds"
)

// ours is the program that the others are compared with.
const ours = "icapgate"

// report is everything that a run has shown. Its JSON form has all samples.
type report struct {
	Machine   string            `json:"machine"`
	Go        string            `json:"go"`
	Versions  map[string]string `json:"versions"`   // by program
	AccessLog bool              `json:"access_log"` // icapgate writes one; the others write none
	Rounds    int               `json:"rounds"`
	Scale     float64           `json:"scale"`
	Rows      []*rowReport      `json:"rows"`

	order []string // of the programs
}

// rowReport is what was measured of one row.
type rowReport struct {
	Name        string              `json:"name"`
	What        string              `json:"what"`
	Connections int                 `json:"connections"`
	Unit        string              `json:"unit"`
	Target      float64             `json:"target"`
	Samples     map[string][]sample `json:"samples"` // by program and round; the first, to warm up, counts for its errors only

	unit unit
}

func newRowReport(r *row) *rowReport {
	return &rowReport{Name: r.name, What: r.what, Connections: r.connections, Unit: r.unit.String(), Target: r.target,
		Samples: map[string][]sample{}, unit: r.unit}
}

// series returns one figure of each round of a program, NaN for rounds that failed.
func (r *rowReport) series(name string, figure func(*sample) float64) []float64 {
	var values []float64
	for i := range r.Samples[name] {
		s := &r.Samples[name][i]
		if i == 0 {
			continue
		}
		if s.Error == "" {
			values = append(values, figure(s))
		} else {
			values = append(values, math.NaN())
		}
	}
	return values
}

func (r *rowReport) values(name string) []float64 {
	return r.series(name, func(s *sample) float64 { return s.Value })
}

// bestPeer returns the peer with the lowest median, "" if there is none.
func (r *rowReport) bestPeer() string {
	best, lowest := "", math.Inf(1)
	for name := range r.Samples {
		if m := rounds.Median(rounds.Valid(r.values(name))); name != ours && m < lowest {
			best, lowest = name, m
		}
	}
	return best
}

// ratio returns the ratio of icapgate to the best peer: the median of the rounds' ratios and its interval. NaN: no such ratio.
func (r *rowReport) ratio() (peer string, mid, low, high float64) {
	peer = r.bestPeer()
	list := rounds.Ratios(r.values(ours), r.values(peer))
	low, high = rounds.Interval(list)
	return peer, rounds.Median(list), low, high
}

// verdict compares with the target.
func (r *rowReport) verdict() string {
	_, mid, low, _ := r.ratio()
	unit := ""
	if r.unit == perConnection {
		own := rounds.Valid(r.values(ours))
		mid = rounds.Median(own)
		low, _ = rounds.Interval(own)
		unit = " KiB"
	}
	switch {
	case math.IsNaN(mid):
		return "-"
	case mid <= r.Target:
		return fmt.Sprintf("<= %g%s: met", r.Target, unit)
	case low <= r.Target:
		return fmt.Sprintf("<= %g%s: met by the interval", r.Target, unit)
	}
	return fmt.Sprintf("<= %g%s: missed", r.Target, unit)
}

// figure formats a value with three digits.
func figure(v float64) string {
	switch {
	case math.IsNaN(v):
		return "-"
	case math.Abs(v) >= 100:
		return fmt.Sprintf("%.0f", v)
	case math.Abs(v) >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// print writes what was measured of a row.
func (r *rowReport) print(w io.Writer, order []string) {
	fmt.Fprintf(w, "\n%s: %s; %d connections; %s\n", r.Name, r.What, r.Connections, r.unit)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, name := range order {
		values := rounds.Valid(r.values(name))
		if len(values) == 0 {
			continue
		}
		rates := rounds.Valid(r.series(name, func(s *sample) float64 { return s.Rate }))
		p99 := rounds.Valid(r.series(name, func(s *sample) float64 { return float64(s.P99) / 1000 }))
		fmt.Fprintf(t, "  %s\t%s\t%s..%s", name, figure(rounds.Median(values)), figure(slices.Min(values)), figure(slices.Max(values)))
		if r.unit != perConnection {
			fmt.Fprintf(t, "\t%.0f requests/s\tp99 %s ms", rounds.Median(rates), figure(rounds.Median(p99)))
		}
		fmt.Fprintln(t)
	}
	t.Flush()
	if peer, mid, low, high := r.ratio(); !math.IsNaN(mid) {
		fmt.Fprintf(w, "  %s / %s  %.2f (%.2f..%.2f)  target %s\n", ours, peer, mid, low, high, r.verdict())
	}
	for _, name := range order {
		for round, s := range r.Samples[name] {
			if s.Error != "" {
				fmt.Fprintf(w, "  ERROR %s, round %d: %s\n", name, round, s.Error)
			}
		}
	}
}

// failed says whether anything could not be measured.
func (p *report) failed() bool {
	for _, r := range p.Rows {
		for _, samples := range r.Samples {
			for _, s := range samples {
				if s.Error != "" {
					return true
				}
			}
		}
	}
	return false
}

// printHead names what is compared and where.
func (p *report) printHead(w io.Writer) {
	fmt.Fprintf(w, "%s\n", p.Machine)
	for _, name := range p.order {
		fmt.Fprintf(w, "%s %s\n", name, p.Versions[name])
	}
	if p.AccessLog {
		fmt.Fprintf(w, "%s writes its access log to a file and counts its metrics; the others write no log\n", ours)
	}
	fmt.Fprintf(w, "%d rounds in rotating order after one to warm up; medians with smallest..largest; "+
		"of ratios the %.0f %% interval of the median\n", p.Rounds, 100*rounds.Confidence)
}

// printTable writes all rows as one Markdown table.
func (p *report) printTable(w io.Writer) {
	fmt.Fprintf(w, "\n| row | unit | %s | ratio to the best peer | target |\n", strings.Join(p.order, " | "))
	fmt.Fprintf(w, "|%s\n", strings.Repeat("---|", len(p.order)+4))
	for _, r := range p.Rows {
		fmt.Fprintf(w, "| %s | %s |", r.Name, r.unit)
		for _, name := range p.order {
			fmt.Fprintf(w, " %s |", figure(rounds.Median(rounds.Valid(r.values(name)))))
		}
		if peer, mid, low, high := r.ratio(); math.IsNaN(mid) {
			fmt.Fprint(w, " - |")
		} else {
			fmt.Fprintf(w, " %.2f (%.2f..%.2f) %s |", mid, low, high, peer)
		}
		fmt.Fprintf(w, " %s |\n", r.verdict())
	}
}

func (p *report) writeJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(p)
}
