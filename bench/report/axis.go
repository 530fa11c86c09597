package report

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Scale is how the values of an axis become positions.
type Scale int

const (
	Linear Scale = iota // from 0, unless Axis.From says otherwise
	Log                 // values above 0 only
	Nines               // shares of 1 by their number of nines: 0, 0.9, 0.99, 0.999, … at equal distances
)

// Unit is what the values of an axis are; it decides where ticks are and how they are written.
type Unit string

const (
	Number Unit = "number"
	Time   Unit = "time"  // seconds, written with the unit that fits: 50 ms
	Clock  Unit = "clock" // seconds since a start: 1m30s
	Share  Unit = "share" // of 1, in percent
)

// Axis is one of the two of a chart. Without To it goes as far as the values do.
type Axis struct {
	Title    string // what the values are, with what they are per
	Scale    Scale
	Unit     Unit
	From, To float64
}

// at returns the position of a value: from 0 at the begin of the axis to 1 at its end, and not a number if the axis has none for it.
func (a *Axis) at(v float64) float64 {
	from, to := a.flat(a.From), a.flat(a.To)
	return (a.flat(v) - from) / (to - from)
}

// flat turns a value into one of which equal distances are equally long.
func (a *Axis) flat(v float64) float64 {
	switch a.Scale {
	case Log:
		return math.Log10(v)
	case Nines:
		return -math.Log10(1 - v)
	}
	return v
}

// fit chooses the ends of the axis so that it has room for values from low to high.
func (a *Axis) fit(low, high float64) {
	if a.To > a.From {
		return
	}
	switch a.Scale {
	case Log:
		if !(low > 0) || !(high >= low) { // there is no value
			low, high = 1e-3, 1
		}
		a.From, a.To = floor125(low), ceil125(high)
		if a.To < 3.9*a.From { // otherwise there is no room for ticks
			a.From, a.To = floor125(a.From/2), ceil125(a.To*2)
		}
	case Nines:
		a.From, a.To = 0, 1-math.Pow(10, -math.Ceil(min(max(a.flat(min(high, 1-1e-7)), 2), 7)))
	default:
		if !(high > a.From) {
			high = a.From + 1
		}
		ticks := a.steps(high, 5)
		a.To = ticks[len(ticks)-1]
	}
}

func floor125(v float64) float64 {
	decade := math.Pow(10, math.Floor(math.Log10(v)+1e-9))
	for _, n := range []float64{5, 2} {
		if v >= n*decade*(1-1e-9) {
			return n * decade
		}
	}
	return decade
}

func ceil125(v float64) float64 {
	decade := math.Pow(10, math.Floor(math.Log10(v)+1e-9))
	for _, n := range []float64{1, 2, 5} {
		if v <= n*decade*(1+1e-9) {
			return n * decade
		}
	}
	return 10 * decade
}

// clockSteps are distances between ticks of a clock, in seconds.
var clockSteps = []float64{1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 4 * 3600, 6 * 3600, 12 * 3600, 24 * 3600, 48 * 3600, 96 * 3600}

// steps returns about n ticks of a linear axis, of which the last is not below high.
func (a *Axis) steps(high float64, n int) []float64 {
	step := ceil125((high - a.From) / float64(n))
	if a.Unit == Clock {
		for _, s := range clockSteps {
			if s >= (high-a.From)/float64(n) && s >= 1 {
				step = s
				break
			}
		}
	}
	ticks := []float64{a.From}
	for i := 1; ticks[i-1] < high-step*1e-6; i++ {
		ticks = append(ticks, a.From+float64(i)*step)
	}
	return ticks
}

// ticks returns the values that are marked, about n of them.
func (a *Axis) ticks(n int) []float64 {
	var ticks []float64
	switch a.Scale {
	case Log:
		decades := math.Log10(a.To / a.From)
		digits, skip := []float64{1, 2, 5}, 1.0
		if 3*decades > float64(n+2) {
			digits, skip = []float64{1}, math.Ceil(decades/float64(n+2))
		}
		for decade := math.Pow(10, math.Floor(math.Log10(a.From)+1e-9)); decade <= a.To*1.01; decade *= math.Pow(10, skip) {
			for _, d := range digits {
				ticks = append(ticks, d*decade)
			}
		}
	case Nines:
		ticks = []float64{0}
		if a.flat(a.To) < 3.5 { // otherwise it is too near to 0
			ticks = append(ticks, 0.5)
		}
		for nines := 1.0; nines <= a.flat(a.To)+1e-6; nines++ {
			ticks = append(ticks, 1-math.Pow(10, -nines))
		}
	default:
		ticks = a.steps(a.To, n)
	}
	inside := ticks[:0]
	for _, t := range ticks {
		if p := a.at(t); p > -1e-6 && p < 1+1e-6 {
			inside = append(inside, t)
		}
	}
	return inside
}

// label writes a value for people.
func (a *Axis) label(v float64) string {
	switch a.Unit {
	case Time:
		return timeLabel(v)
	case Clock:
		return clockLabel(v)
	case Share:
		return shortest(100*v, 7) + " %"
	}
	return numberLabel(v)
}

// shortest writes a number with at most so many digits and no zeros at the end.
func shortest(v float64, digits int) string {
	if v == 0 {
		return "0"
	}
	text := strconv.FormatFloat(v, 'f', max(digits-1-int(math.Floor(math.Log10(math.Abs(v)))), 0), 64)
	if strings.Contains(text, ".") {
		text = strings.TrimRight(strings.TrimRight(text, "0"), ".")
	}
	return text
}

func timeLabel(seconds float64) string {
	switch {
	case seconds == 0:
		return "0"
	case seconds < 0.9999e-3:
		return shortest(seconds*1e6, 3) + " µs"
	case seconds < 0.9999:
		return shortest(seconds*1e3, 3) + " ms"
	}
	return shortest(seconds, 3) + " s"
}

func clockLabel(seconds float64) string {
	s := int64(math.Round(seconds))
	var out strings.Builder
	for _, unit := range []struct {
		seconds int64
		name    string
	}{{3600, "h"}, {60, "m"}, {1, "s"}} {
		if n := s / unit.seconds; n > 0 {
			fmt.Fprintf(&out, "%d%s", n, unit.name)
		}
		s %= unit.seconds
	}
	if out.Len() == 0 {
		return "0"
	}
	return out.String()
}

func numberLabel(v float64) string {
	switch {
	case math.Abs(v) >= 1e6:
		return shortest(v/1e6, 4) + " M"
	case math.Abs(v) >= 1e4:
		return shortest(v/1e3, 4) + " k"
	}
	return shortest(v, 4)
}
