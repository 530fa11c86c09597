package report

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"icapgate/bench/result"
)

// Capacity writes the page of a search for the highest rate that holds an SLO.
func Capacity(w io.Writer, c *result.Capacity) error {
	f := &c.Finding
	p := &view{
		Title:    "Capacity of " + c.Setup.Target,
		Subtitle: capacitySubtitle(c),
		Badge:    outcomes[f.Outcome],
		Good:     f.Outcome == result.Found || f.Outcome == result.AtLeast,
		Foot:     foot(c.Version),
	}
	if f.Knee > 0 {
		p.Cards = append(p.Cards, card{"knee", numberLabel(f.Knee) + " /s", "a trial holds as often as it fails"})
	}
	if f.High > f.Low {
		p.Cards = append(p.Cards, card{"between", numberLabel(f.Low) + " – " + numberLabel(f.High), fmt.Sprintf("per second, with %s %% confidence", shortest(100*f.Confidence, 3))})
	}
	if f.Held > 0 {
		p.Cards = append(p.Cards, card{"highest that held", numberLabel(f.Held) + " /s", ""})
	}
	if f.Failed > 0 {
		p.Cards = append(p.Cards, card{"lowest that failed", numberLabel(f.Failed) + " /s", ""})
	}
	p.Cards = append(p.Cards, card{"trials", fmt.Sprint(len(c.Trials)), duration(c.Seconds)})
	for _, t := range c.Trials {
		if t.Verdict == result.Limited {
			p.Cautions = []string{"the load generator may have been the limit of some trials, which are marked so"}
		}
	}
	p.Tables = nonEmpty(capacitySetup(&c.Setup))
	p.Figures = notEmpty(capacityFigures(c))
	p.Details = nonEmpty(trialsTable(c))
	return page.Execute(w, p)
}

// outcomes say how a search has ended.
var outcomes = map[result.Outcome]string{
	result.Found:          "found",
	result.Imprecise:      "found, not as precisely as asked for",
	result.AtLeast:        "the highest rate that was tried holds",
	result.Below:          "the lowest rate that was tried fails",
	result.GeneratorLimit: "the load generator was the limit",
	result.Unfinished:     "not finished",
}

func capacitySubtitle(c *result.Capacity) string {
	text := fmt.Sprintf("%s within %s", c.Setup.Scenario, slo(&c.Setup))
	if !c.Started.IsZero() {
		text += ", from " + c.Started.Format("2006-01-02 15:04:05 MST")
	}
	return text
}

func slo(s *result.CapacitySetup) string {
	var parts []string
	for _, c := range s.SLO {
		parts = append(parts, c.String())
	}
	return strings.Join(parts, ", ")
}

func capacitySetup(s *result.CapacitySetup) table {
	t := table{Title: "Setup", Words: true}
	add := func(name, value string) { t.Rows = append(t.Rows, row{Cells: cells(name, value)}) }
	add("Target", s.Target)
	add("Scenario", s.Scenario)
	add("SLO", slo(s))
	connections := number(int64(s.Connections))
	if s.TLS {
		connections += ", TLS"
	}
	add("Connections", connections)
	add("Arrivals", s.Arrivals)
	rates := numberLabel(s.From) + " /s and more"
	if s.To > 0 {
		rates = fmt.Sprintf("%s to %s /s", numberLabel(s.From), numberLabel(s.To))
	}
	add("Rates", fmt.Sprintf("%s, to be known to %s %%", rates, shortest(100*s.Precision, 3)))
	add("Trials", fmt.Sprintf("of %s, after %s to settle", duration(s.Trial), duration(s.Settle)))
	return t
}

// trialMarks are how trials of a verdict are drawn.
var trialMarks = []struct {
	verdict result.Verdict
	name    string
	class   string
	cross   bool
}{
	{result.Held, "held", "good", false},
	{result.Failed, "failed", "bad", true},
	{result.Limited, "limited by the load generator", "faint", true},
}

// capacityFigures draws each trial at its rate: the latency that the SLO is about, what was answered, and what failed.
func capacityFigures(c *result.Capacity) []figure {
	percent, limits := 99.0, []Line(nil)
	for _, condition := range c.Setup.SLO {
		if q, limit, ok := condition.LatencyLimit(); ok {
			percent, limits = q, []Line{{Name: "SLO: " + condition.String(), At: limit.Seconds(), Class: "s2"}}
			break
		}
	}
	name := fmt.Sprintf("p%g", percent)
	if percent == 100 {
		name = "max"
	}
	latency := trials(c, name+" by rate", "Each trial at the rate that was asked for.", func(r *result.Result) float64 {
		if r.Latency.Count() == 0 {
			return math.NaN()
		}
		return r.Latency.Quantile(percent).Seconds()
	})
	latency.Lines = append(latency.Lines, limits...)
	latency.scaleFor()
	latency.Y.Title = name + strings.TrimPrefix(latency.Y.Title, "latency")

	answered := trials(c, "Answered by rate", "On the dashed line, all that was asked for was answered.", (*result.Result).Rate)
	answered.Y = Axis{Title: "answered requests/s", Unit: Number}
	top := 0.0
	for _, t := range c.Trials {
		top = max(top, t.Rate)
	}
	if top > 0 {
		answered.Series = append(answered.Series, Series{Name: "all", Class: "plan", Dashed: true, Points: []Point{{}, {X: top, Y: top}}})
	}

	failed := trials(c, "Errors by rate", "Share of the requests that failed.", func(r *result.Result) float64 {
		return float64(r.Failed) / float64(max(r.Requests+r.Failed, 1))
	})
	failed.Y = Axis{Title: "failed requests", Unit: Share}
	if !slices.ContainsFunc(c.Trials, func(t result.Trial) bool { return t.Result != nil && t.Result.Failed > 0 }) {
		return []figure{latency, answered}
	}
	return []figure{latency, answered, failed}
}

// trials draws a point for each trial, and the band in which the knee is.
func trials(c *result.Capacity, title, about string, of func(*result.Result) float64) figure {
	f := figure{Chart{Title: title, About: about, X: Axis{Title: "requests/s asked for", Unit: Number}}}
	for _, mark := range trialMarks {
		s := Series{Name: mark.name, Class: mark.class, Cross: mark.cross, Kind: Marks}
		for i, t := range c.Trials {
			if t.Verdict != mark.verdict || t.Result == nil {
				continue
			}
			s.Points = append(s.Points, Point{X: t.Rate, Y: of(t.Result), Name: fmt.Sprintf("trial %d: %s /s, p99 %s, %s", i+1, numberLabel(t.Rate),
				result.Time(t.Result.Latency.Quantile(99)), mark.name)})
		}
		if len(s.Points) > 0 {
			f.Series = append(f.Series, s)
		}
	}
	if k := &c.Finding; k.High > k.Low {
		f.Bands = []Band{{Name: fmt.Sprintf("the knee is between %s and %s /s", numberLabel(k.Low), numberLabel(k.High)), From: k.Low, To: k.High}}
	}
	if k := c.Finding.Knee; k > 0 {
		f.Lines = append(f.Lines, Line{Name: "knee " + numberLabel(k) + " /s", At: k, Vertical: true})
	}
	return f
}

func trialsTable(c *result.Capacity) table {
	t := table{Title: "Trials", About: "In the order in which they were made.",
		Columns: []string{"trial", "asked for", "answered", "failed", "p50", "p99", "p99.9", "max", "verdict", "why"}}
	for i, trial := range c.Trials {
		r := trial.Result
		if r == nil {
			continue
		}
		var why []string
		for _, b := range trial.Broken {
			why = append(why, fmt.Sprintf("%s is %s", b.Condition, b.Value))
		}
		why = append(why, trial.Notes...)
		if trial.Cut {
			why = append(why, "ended early")
		}
		name := fmt.Sprint(i + 1)
		if trial.Rough {
			name += " (short)"
		}
		verdict := cell{Text: string(trial.Verdict), Class: "good"}
		if trial.Verdict != result.Held {
			verdict.Class = "bad"
		}
		list := cells(name, numberLabel(trial.Rate)+" /s", numberLabel(r.Rate())+" /s", share(r.Failed, r.Requests+r.Failed),
			latency(r.Latency, 50), latency(r.Latency, 99), latency(r.Latency, 99.9), latency(r.Latency, 100))
		t.Rows = append(t.Rows, row{Cells: append(list, verdict, cell{Text: strings.Join(why, "; "), Class: "text"})})
	}
	return t
}
