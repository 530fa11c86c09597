package load

import (
	"math"
	"math/rand/v2"
	"time"

	"icapgate/bench/result"
)

// arrivals plans when requests begin: evenly (constant) or at random (Poisson), at a rate that goes from stage to stage.
//
// Both are made from a process of one arrival per unit: whole numbers, or sums of exponential gaps of mean 1. Arrival number x of that is
// planned for the time by which x arrivals are expected, so that a ramp, too, has exactly the rates that it promises.
type arrivals struct {
	segments []segment // that are left
	gap      func() float64
	next     float64 // place of the next arrival in the process of one per unit
}

// segment is a time in which the rate goes evenly from one value to another.
type segment struct {
	begin    float64 // seconds from the begin of the run
	seconds  float64 // +Inf: without end
	from, to float64 // requests per second
	before   float64 // arrivals that are expected before it
}

// expected returns how many arrivals the segment has.
func (s *segment) expected() float64 { return s.seconds * (s.from + s.to) / 2 }

// when returns the time by which n arrivals of the segment are expected, in seconds from its begin.
func (s *segment) when(n float64) float64 {
	if n <= 0 {
		return 0
	}
	slope := 0.0
	if s.from != s.to { // and so it has an end
		slope = (s.to - s.from) / s.seconds
	}
	// n = from*t + slope/2*t², solved so that it is exact for small slopes too.
	return 2 * n / (s.from + math.Sqrt(max(0, s.from*s.from+2*slope*n)))
}

// newArrivals plans a warm-up at the first rate and then the stages; the last rate goes on without end if endless is set.
func newArrivals(warmUp time.Duration, stages []result.Stage, endless, poisson bool, seed uint64) *arrivals {
	a := &arrivals{gap: func() float64 { return 1 }}
	if poisson {
		rng := rand.New(rand.NewPCG(seed, 0x6172726976616c73))
		a.gap = rng.ExpFloat64
		a.next = rng.ExpFloat64()
	}
	var at, before float64
	add := func(s segment) {
		s.begin, s.before = at, before
		a.segments = append(a.segments, s)
		at += s.seconds
		before += s.expected()
	}
	rate := firstRate(stages)
	if warmUp > 0 {
		add(segment{seconds: warmUp.Seconds(), from: rate, to: rate})
	}
	for _, s := range stages {
		if s.Seconds > 0 {
			add(segment{seconds: s.Seconds, from: rate, to: s.Rate})
		}
		rate = s.Rate
	}
	if endless && rate > 0 {
		a.segments = append(a.segments, segment{begin: at, before: before, seconds: math.Inf(1), from: rate, to: rate})
	}
	return a
}

// firstRate is the rate that a run begins with: that of a first stage without length, otherwise 0.
func firstRate(stages []result.Stage) float64 {
	if len(stages) > 0 && stages[0].Seconds == 0 {
		return stages[0].Rate
	}
	return 0
}

// length is how long the stages take.
func length(stages []result.Stage) time.Duration {
	seconds := 0.0
	for _, s := range stages {
		seconds += s.Seconds
	}
	return time.Duration(seconds * float64(time.Second))
}

// plan returns when the next request begins, from the begin of the run on; false: there is none.
func (a *arrivals) plan() (at time.Duration, ok bool) {
	for len(a.segments) > 0 {
		s := &a.segments[0]
		if n := a.next - s.before; n < s.expected() {
			a.next += a.gap()
			return time.Duration((s.begin + s.when(n)) * float64(time.Second)), true
		}
		a.segments = a.segments[1:]
	}
	return 0, false
}
