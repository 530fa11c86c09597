package result

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"
)

// CapacityFormat is the version of the JSON form of a Capacity. Files of another one are refused.
const CapacityFormat = 1

// maxTrials bounds the trials that are read from a file.
const maxTrials = 1000

// Capacity is what a search for the highest rate that holds an SLO has shown: all its trials and what follows from them.
type Capacity struct {
	Format  int           `json:"capacity_format"`
	Version string        `json:"version"` // of icapbench
	Setup   CapacitySetup `json:"setup"`

	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"` // that the search took, pauses between its sessions left out
	Trials  []Trial   `json:"trials"`  // in the order in which they were made
	Finding Finding   `json:"finding"`
}

// CapacitySetup says what was asked for. A search goes on with the same one only.
type CapacitySetup struct {
	Target      string      `json:"target"`
	Scenario    string      `json:"scenario"`           // in words, or the name of the file
	Requests    string      `json:"requests,omitempty"` // a digest of what is sent, and how; empty: not known
	TLS         bool        `json:"tls"`
	Connections int         `json:"connections"`
	Arrivals    string      `json:"arrivals"` // constant or poisson
	SLO         []Condition `json:"slo"`
	From        float64     `json:"from"`      // lowest rate that is tried
	To          float64     `json:"to"`        // highest; 0: no limit
	Precision   float64     `json:"precision"` // share by which the knee may be wrong, up or down
	Trial       float64     `json:"trial_seconds"`
	Settle      float64     `json:"settle_seconds"` // of a trial, that are left out
}

// Trial is one run at one rate.
type Trial struct {
	Rate    float64  `json:"rate"`             // requests per second that were planned
	Rough   bool     `json:"rough"`            // a short one, to find where to look
	Verdict Verdict  `json:"verdict"`          // of the SLO
	Broken  []Broken `json:"broken,omitempty"` // conditions that did not hold
	Cut     bool     `json:"cut_early"`        // ended as soon as it could not hold any more
	Notes   []string `json:"notes,omitempty"`  // what limits its worth
	Result  *Result  `json:"result"`
}

// Verdict says what a trial has shown.
type Verdict string

// All verdicts.
const (
	Held    Verdict = "held"
	Failed  Verdict = "failed"
	Limited Verdict = "limited" // failed, while the load generator may have been the limit itself
)

// Broken is a condition that did not hold, and the figure that it did not hold for.
type Broken struct {
	Condition string `json:"condition"`
	Value     string `json:"value"`
}

// Finding is what follows from the trials. Rates are requests per second.
type Finding struct {
	Outcome    Outcome `json:"outcome"`
	Knee       float64 `json:"knee"`       // the rate at which a trial holds as often as it fails; 0: not known
	Low        float64 `json:"low"`        // the knee is not below (0: not known),
	High       float64 `json:"high"`       // and not above these (0: not known) with
	Confidence float64 `json:"confidence"` // such a probability, if each trial stands for itself
	Width      float64 `json:"width"`      // share of the knee around it, in which verdicts are mixed
	Held       float64 `json:"held"`       // highest rate of a trial that held; 0: none
	Failed     float64 `json:"failed"`     // lowest rate of a trial that did not; 0: none
}

// Outcome is how a search has ended.
type Outcome string

// All outcomes.
const (
	Found          Outcome = "found"      // the knee, as precisely as was asked for
	Imprecise      Outcome = "imprecise"  // the knee, not as precisely: time was up
	AtLeast        Outcome = "at_least"   // the highest rate that was to be tried holds
	Below          Outcome = "below"      // the lowest rate that was to be tried fails
	GeneratorLimit Outcome = "generator"  // a limit of the load generator, not of the target
	Unfinished     Outcome = "unfinished" // time was up before anything was known
)

// Write writes the search as JSON.
func (c *Capacity) Write(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(c)
}

// Save writes the search to a file, which is at no time half written.
func (c *Capacity) Save(path string) error { return WriteFile(path, c.Write) }

// ReadCapacity reads what Save has written.
func ReadCapacity(path string) (*Capacity, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	c, err := ParseCapacity(content)
	if err != nil {
		return nil, fmt.Errorf("cannot read %q: %w", path, err)
	}
	return c, nil
}

// ParseCapacity reads what Write has written.
func ParseCapacity(content []byte) (*Capacity, error) {
	c := &Capacity{}
	if err := json.Unmarshal(content, c); err != nil {
		return nil, err
	}
	if c.Format != CapacityFormat {
		return nil, fmt.Errorf("it is no capacity search of this icapbench: format %d, want %d", c.Format, CapacityFormat)
	}
	for _, s := range []float64{c.Seconds, c.Setup.Trial, c.Setup.Settle} {
		if s < 0 || s > maxSeconds {
			return nil, fmt.Errorf("it has a time of %g s", s)
		}
	}
	if len(c.Trials) > maxTrials {
		return nil, fmt.Errorf("it has %d trials, at most %d are allowed", len(c.Trials), maxTrials)
	}
	for i := range c.Trials {
		if err := c.Trials[i].check(); err != nil {
			return nil, fmt.Errorf("trial %d: %w", i+1, err)
		}
	}
	return c, nil
}

func (t *Trial) check() error {
	switch {
	case t.Rate <= 0 || t.Rate > maxRate:
		return fmt.Errorf("its rate is %g", t.Rate)
	case t.Verdict != Held && t.Verdict != Failed && t.Verdict != Limited:
		return fmt.Errorf("its verdict is %q, allowed: %s, %s, %s", t.Verdict, Held, Failed, Limited)
	case t.Result == nil:
		return errors.New("its result is missing")
	case t.Result.Format != Format:
		return fmt.Errorf("its result has format %d, want %d", t.Result.Format, Format)
	}
	return t.Result.check()
}

// Print writes the search for people.
func (c *Capacity) Print(w io.Writer) {
	s := &c.Setup
	var slo []string
	for _, condition := range s.SLO {
		slo = append(slo, condition.String())
	}
	fmt.Fprintf(w, "%s to %s, %d connections, %s arrivals\n", s.Scenario, s.Target, s.Connections, s.Arrivals)
	fmt.Fprintf(w, "SLO         %s\n", strings.Join(slo, ", "))
	fmt.Fprintf(w, "capacity    %s\n", c.Finding.Sentence())
	if f := &c.Finding; f.Knee > 0 {
		fmt.Fprintf(w, "            %s/s for each of %d connections; %s\n", Figure(f.Knee/float64(max(s.Connections, 1))), s.Connections, f.extremes())
	}
	if t := c.FirstBroken(); t != nil {
		fmt.Fprintf(w, "broke first at %s/s: %s\n", Figure(t.Rate), t.broken())
	}
	fmt.Fprintf(w, "trials      %d in %s, of %gs each, %gs of which to settle, and shorter ones to find where to look\n", len(c.Trials),
		time.Duration(c.Seconds*float64(time.Second)).Round(time.Second), s.Trial, s.Settle)
	c.printTrials(w)
}

// Sentence says what was found.
func (f *Finding) Sentence() string {
	switch f.Outcome {
	case Found:
		return fmt.Sprintf("%s/s, %s", Figure(f.Knee), f.interval())
	case Imprecise:
		return fmt.Sprintf("%s/s, %s; time was up before it was known as precisely as asked for", Figure(f.Knee), f.interval())
	case AtLeast:
		return fmt.Sprintf("at least %s/s, the highest rate that was to be tried", Figure(f.Held))
	case Below:
		return fmt.Sprintf("below %s/s, the lowest rate that was to be tried", Figure(f.Failed))
	case GeneratorLimit:
		if f.Low == 0 {
			return "not known: the load generator was the limit, not the target"
		}
		return fmt.Sprintf("at least %s/s; the load generator was the limit, not the target", Figure(f.Low))
	}
	if f.Held > 0 {
		return fmt.Sprintf("at least %s/s, not known further: time was up", Figure(f.Held))
	}
	return "not known: time was up"
}

// interval says how sure the knee is.
func (f *Finding) interval() string {
	return fmt.Sprintf("between %s/s and %s/s with %.0f %% confidence", Figure(f.Low), Figure(f.High), 100*f.Confidence)
}

// extremes says what the trials have shown by themselves.
func (f *Finding) extremes() string {
	var parts []string
	if f.Held > 0 {
		parts = append(parts, fmt.Sprintf("the highest rate that held is %s/s", Figure(f.Held)))
	}
	if f.Failed > 0 {
		parts = append(parts, fmt.Sprintf("the lowest that failed is %s/s", Figure(f.Failed)))
	}
	return strings.Join(parts, ", ")
}

// FirstBroken returns the trial that shows what gives way first: of those that failed, the nearest to the knee. nil: none failed.
func (c *Capacity) FirstBroken() *Trial {
	for _, verdict := range []Verdict{Failed, Limited} {
		var first *Trial
		away := func(t *Trial) float64 { return math.Abs(math.Log(t.Rate / max(c.Finding.Knee, 1e-9))) }
		for i := range c.Trials {
			if t := &c.Trials[i]; t.Verdict == verdict && (first == nil || away(t) < away(first)) {
				first = t
			}
		}
		if first != nil {
			return first
		}
	}
	return nil
}

// broken says what did not hold.
func (t *Trial) broken() string {
	var parts []string
	for _, b := range t.Broken {
		parts = append(parts, fmt.Sprintf("%s: %s", b.Condition, b.Value))
	}
	text := strings.Join(parts, ", ")
	if t.Cut {
		text += fmt.Sprintf(", ended early after %.1f s", t.Result.Seconds)
	}
	return text
}

func (c *Capacity) printTrials(w io.Writer) {
	fmt.Fprintf(w, "  %10s %-8s %8s %9s %10s %8s %9s %9s %9s  %s\n", "rate", "verdict", "seconds", "requests", "answered/s", "failed", "p50", "p99", "max", "remarks")
	for i := range c.Trials {
		t := &c.Trials[i]
		r := t.Result
		remarks := t.Notes
		if len(t.Broken) > 0 {
			remarks = append([]string{t.broken()}, remarks...)
		}
		if t.Rough {
			remarks = append([]string{"short"}, remarks...)
		}
		line := fmt.Sprintf("  %10s %-8s %8.1f %9d %10s %8d %9s %9s %9s  %s", Figure(t.Rate), t.Verdict, r.Seconds, r.Requests+r.Failed, Figure(r.Rate()), r.Failed,
			Time(r.Latency.Quantile(50)), Time(r.Latency.Quantile(99)), Time(r.Latency.Max()), strings.Join(remarks, "; "))
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
}

// Line returns the trial in one line.
func (t *Trial) Line() string {
	r := t.Result
	text := fmt.Sprintf("%s/s %s: %d requests in %.1f s, %d failed, p50 %s, p99 %s", Figure(t.Rate), t.Verdict, r.Requests+r.Failed, r.Seconds, r.Failed,
		Time(r.Latency.Quantile(50)), Time(r.Latency.Quantile(99)))
	if len(t.Broken) > 0 {
		text += "; " + t.broken()
	}
	for _, note := range t.Notes {
		text += "; " + note
	}
	return text
}

// Figure formats a rate with four digits, or all that are before the point.
func Figure(x float64) string {
	if x >= 1000 {
		return fmt.Sprintf("%.0f", x)
	}
	return fmt.Sprintf("%.4g", x)
}
