package capacity

import (
	"math"
	"slices"

	"icapgate/bench/result"
)

// What is assumed of trials. One that should hold fails now and then, because something else has happened on the way; one that should fail
// hardly ever holds. So a trial that fails far below the knee is doubted, and tried again. More so one in which the load
// generator was busy itself.
const (
	wrongFail    = 0.05
	wrongLimited = 0.15
	wrongHold    = 0.005
)

// widths are those that are thought possible for the range of rates around the knee in which verdicts are mixed (see belief), and how
// probable each is before any trial.
var widths = []struct{ width, chance float64 }{{0.002, 0.1}, {0.005, 0.2}, {0.01, 0.25}, {0.02, 0.25}, {0.04, 0.15}, {0.08, 0.05}}

// roughWidth is the least for short trials: a queue that grows slowly, or bad luck, shows less in them.
const roughWidth = 0.1

// far from the knee, in widths, the chances don't change any more.
const far = 12

const (
	gridSteps = 5      // of the grid, within the precision
	maxGrid   = 40_000 // points
)

// belief is how probable each knee is after some trials. The chance that a trial holds falls with its rate, from nearly 1 to nearly 0; it
// is 1/2 at the knee, and the fall follows the logistic function of ln(knee/rate)/width. What the width is, is not known either: it is
// estimated together with the knee. This is Bayes' rule on a grid, as psychologists use it to find the threshold of a sense. It does not
// matter to it that the rates were chosen by what the trials before have shown.
type belief struct {
	knees  []float64   // natural logarithms of rates, in equal steps
	weight [][]float64 // of each width and knee; their sum is 1
}

// newBelief weighs the trials. Without any, all knees from half the lowest rate to four times the highest one are alike.
func newBelief(s Settings, trials []result.Trial) *belief {
	top := max(s.From, s.To)
	for i := range trials {
		top = max(top, trials[i].Rate)
	}
	b := &belief{}
	low, high := math.Log(s.From/2), math.Log(4*top)
	step := max(math.Log1p(s.Precision)/gridSteps, (high-low)/maxGrid)
	for x := low; x <= high; x += step {
		b.knees = append(b.knees, x)
	}
	best := math.Inf(-1)
	for _, width := range widths {
		row := make([]float64, len(b.knees))
		for i := range row {
			row[i] = math.Log(width.chance)
		}
		for i := range trials {
			if counts(trials, i) {
				learn(row, b.knees, &trials[i], width.width)
			}
		}
		best = max(best, slices.Max(row))
		b.weight = append(b.weight, row)
	}
	sum := 0.0
	for _, row := range b.weight {
		for i := range row {
			row[i] = math.Exp(row[i] - best)
			sum += row[i]
		}
	}
	for _, row := range b.weight {
		for i := range row {
			row[i] /= sum
		}
	}
	return b
}

// counts says whether a trial is looked at. A limited one is when a lower rate has held right after it: what has disturbed the load generator
// was the rate then, and not something else.
func counts(trials []result.Trial, i int) bool {
	return trials[i].Verdict != result.Limited ||
		i+1 < len(trials) && trials[i+1].Verdict == result.Held && trials[i+1].Rate < trials[i].Rate
}

// control returns the rate that shows whether the limited trials at the end count: the highest below the first of them that has held; 0: none has.
func control(trials []result.Trial) (rate float64) {
	n := len(trials) - limitedInRow(trials)
	for i := range trials[:n] {
		if t := &trials[i]; t.Verdict == result.Held && t.Rate <= 0.95*trials[n].Rate {
			rate = max(rate, t.Rate)
		}
	}
	return rate
}

// limitedInRow returns how many trials at the end were limited.
func limitedInRow(trials []result.Trial) (n int) {
	for n < len(trials) && trials[len(trials)-1-n].Verdict == result.Limited {
		n++
	}
	return n
}

// learn adds the logarithms of the chances that t ends as it did.
func learn(row, knees []float64, t *result.Trial, width float64) {
	if t.Rough {
		width = max(width, roughWidth)
	}
	wrong := wrongFail
	if t.Verdict == result.Limited {
		wrong = wrongLimited
	}
	chance := func(holds float64) float64 { // of what has happened, as a logarithm
		holds = wrongHold + (1-wrongHold-wrong)*holds
		if t.Verdict != result.Held {
			holds = 1 - holds
		}
		return math.Log(holds)
	}
	rate, always, never := math.Log(t.Rate), chance(1), chance(0)
	for i, knee := range knees {
		switch x := (knee - rate) / width; {
		case x > far:
			row[i] += always
		case x < -far:
			row[i] += never
		default:
			row[i] += chance(1 / (1 + math.Exp(-x)))
		}
	}
}

// quantile returns the rate that the knee is below with the chance p.
func (b *belief) quantile(p float64) float64 {
	sum, step := 0.0, b.knees[1]-b.knees[0]
	for i, knee := range b.knees {
		w := b.at(i)
		if sum+w >= p {
			return math.Exp(knee + step*((p-sum)/w-0.5))
		}
		sum += w
	}
	return math.Exp(b.knees[len(b.knees)-1])
}

// below returns the chance that the knee is below a rate.
func (b *belief) below(rate float64) float64 {
	sum := 0.0
	for i, knee := range b.knees {
		if knee >= math.Log(rate) {
			break
		}
		sum += b.at(i)
	}
	return sum
}

// at returns the weight of a knee.
func (b *belief) at(i int) float64 {
	sum := 0.0
	for _, row := range b.weight {
		sum += row[i]
	}
	return sum
}

// width returns the expected width.
func (b *belief) width() float64 {
	mean := 0.0
	for i, row := range b.weight {
		for _, w := range row {
			mean += w * widths[i].width
		}
	}
	return mean
}
