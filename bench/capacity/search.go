package capacity

import (
	"cmp"
	"fmt"
	"strconv"

	"icapgate/bench/result"
)

// Confidence of the interval that the knee is said to be in.
const Confidence = 0.95

// certain is the chance from which on an end of the rates is believed to be passed.
const certain = (1 + Confidence) / 2

// roughly is the ratio of the ends of the interval down to which short trials narrow it.
const roughly = 1.8

// MaxTrials bounds a search that never gets precise.
const MaxTrials = 500

// maxLimited is how many limited trials in a row end a search: the disturbance of the load generator does not pass.
const maxLimited = 15

// Settings say where to search, and how precisely.
type Settings struct {
	From      float64 // lowest rate that is tried, per second
	To        float64 // highest; 0: no limit
	Precision float64 // share by which the knee may be wrong, up or down
}

// Check says what makes no sense.
func (s Settings) Check() error {
	switch {
	case !(s.From >= 0.01) || s.From > maxRate:
		return fmt.Errorf("the lowest rate is %g/s, allowed: 0.01 to %g", s.From, float64(maxRate))
	case !(s.To >= 0) || s.To > maxRate:
		return fmt.Errorf("the highest rate is %g/s, allowed: up to %g", s.To, float64(maxRate))
	case s.To > 0 && s.To < s.From:
		return fmt.Errorf("the highest rate, %g/s, is below the lowest, %g/s", s.To, s.From)
	case !(s.Precision >= 0.002) || s.Precision > 0.5:
		return fmt.Errorf("the precision is %g %%, allowed: 0.2 %% to 50 %%", 100*s.Precision)
	}
	return nil
}

// maxRate is the highest that is tried, per second.
const maxRate = 1e6

// Step is the trial to make next.
type Step struct {
	Rate  float64
	Rough bool // a short one will do
}

// Search makes trials after those that were made before, until the knee is known or run or keep fails, whose error it returns. keep gets
// all trials after each. A trial in which the load generator was the limit counts as one that failed: what the two can do together has a
// knee too.
func Search(s Settings, trials []result.Trial, run func(Step) (result.Trial, error), keep func([]result.Trial) error) error {
	for {
		step, done := next(s, trials)
		if done {
			return nil
		}
		t, err := run(step)
		if err != nil {
			return err
		}
		trials = append(trials, t)
		if err := keep(trials); err != nil {
			return err
		}
	}
}

// next returns the trial to make after others: the rate is doubled until a trial fails; then it is where the knee is as probably above
// as below. After a limited trial a lower rate is tried that has held before. done: there is none.
func next(s Settings, trials []result.Trial) (step Step, done bool) {
	if len(trials) == 0 {
		return Step{s.From, true}, false
	}
	if len(trials) >= MaxTrials || limitedInRow(trials) >= maxLimited {
		return Step{}, true
	}
	last := &trials[len(trials)-1]
	if last.Verdict == result.Limited {
		return Step{cmp.Or(control(trials), s.From), last.Rough}, false
	}
	held, failed := extremes(trials)
	if failed == 0 {
		if limit := s.limit(); held >= limit {
			return Step{limit, false}, !last.Rough
		}
		return Step{min(2*held, s.limit()), true}, false
	}
	b := newBelief(s, trials)
	low, high := b.interval()
	if b.below(s.From) > certain || b.below(s.limit()) < 1-certain || high/low <= (1+s.Precision)*(1+s.Precision) {
		return Step{}, true
	}
	return Step{round(min(max(b.quantile(0.5), s.From), s.limit())), high/low > roughly}, false
}

// limit is the highest rate that is tried.
func (s Settings) limit() float64 {
	if s.To > 0 {
		return s.To
	}
	return maxRate
}

func (b *belief) interval() (low, high float64) {
	return b.quantile(1 - certain), b.quantile(certain)
}

// extremes returns the highest rate that held and the lowest that did not; 0: none.
func extremes(trials []result.Trial) (held, failed float64) {
	for i := range trials {
		switch t := &trials[i]; {
		case t.Verdict == result.Held:
			held = max(held, t.Rate)
		case failed == 0 || t.Rate < failed:
			failed = t.Rate
		}
	}
	return held, failed
}

// round cuts a rate to four digits, so that people can read it.
func round(rate float64) float64 {
	short, _ := strconv.ParseFloat(strconv.FormatFloat(rate, 'g', 4, 64), 64) // it is a number
	return short
}

// Find says what follows from the trials.
func Find(s Settings, trials []result.Trial) result.Finding {
	f := result.Finding{Outcome: result.Unfinished, Confidence: Confidence}
	f.Held, f.Failed = extremes(trials)
	failed := f.Failed > 0
	var long []result.Trial // they say more
	for i := range trials {
		if !trials[i].Rough && counts(trials, i) {
			long = append(long, trials[i])
		}
	}
	if len(long) > 0 {
		f.Held, f.Failed = extremes(long)
	}
	if !failed {
		if n := len(trials); f.Held >= s.limit() && !trials[n-1].Rough {
			f.Outcome = result.AtLeast
		}
		return f
	}
	b := newBelief(s, trials)
	switch {
	case b.below(s.From) > certain:
		f.Outcome = result.Below
		return f
	case b.below(s.limit()) < 1-certain:
		f.Outcome = result.AtLeast
		f.Held = s.limit()
		return f
	}
	if held, _ := extremes(trials); held == 0 { // and it is not certain that nothing does
		if limitedInRow(trials) == len(trials) {
			f.Outcome = result.GeneratorLimit
		}
		return f
	}
	f.Knee, f.Width = b.quantile(0.5), b.width()
	f.Low, f.High = b.interval()
	if !bounded(trials) { // by no trial that counts: only the load generator has shown that there is an end
		f.Outcome, f.Knee, f.Width, f.High = result.GeneratorLimit, 0, 0, 0
		return f
	}
	_, done := next(s, trials)
	switch {
	case limited(trials, f.High):
		f.Outcome = result.GeneratorLimit
	case done && len(trials) < MaxTrials:
		f.Outcome = result.Found
	default:
		f.Outcome = result.Imprecise
	}
	return f
}

// bounded says whether a trial that counts has shown a rate that is too high.
func bounded(trials []result.Trial) bool {
	for i := range trials {
		if trials[i].Verdict != result.Held && counts(trials, i) {
			return true
		}
	}
	return false
}

// limited says whether the load generator was the limit: at the end, or in at least half of the trials that bound the knee from above.
func limited(trials []result.Trial, high float64) bool {
	if limitedInRow(trials) >= maxLimited {
		return true
	}
	all, own := 0, 0
	for i := range trials {
		t := &trials[i]
		if t.Verdict == result.Held || t.Rate > 1.5*high || !counts(trials, i) {
			continue
		}
		all++
		if t.Verdict == result.Limited {
			own++
		}
	}
	return all > 0 && 2*own >= all
}
