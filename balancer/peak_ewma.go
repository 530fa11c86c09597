package balancer

import "math"

// peakEWMA draws two targets by weight, as randomTwo does, and picks the one at which a request is likely to be answered first: with
// the smaller latency × (1 + attempts in flight per weight). The first one drawn has to be clearly worse, so that noise does not move
// everything to one server and idle servers that are equally fast share by weight.
//
// A target of which nothing is known is tried with one request; the next ones wait, at other targets, for what that one tells.
type peakEWMA struct {
	dice dice
}

// clearly is how much of the first one's cost the second one may have at most to be preferred.
const clearly = 0.8

func (p *peakEWMA) Pick(targets []Target) int {
	first, second := p.dice.two(targets)
	if second < 0 {
		return first
	}
	a, b := &targets[first], &targets[second]
	preferred := false
	switch {
	case a.Latency <= 0 && b.Latency <= 0:
		preferred = b.Latency > a.Latency || b.Latency == a.Latency && load(targets, second, first) < load(targets, first, second)
	case b.Latency <= 0:
		preferred = b.Latency == 0
	case a.Latency <= 0:
		preferred = a.Latency < 0
	default:
		mean := meanWeight(targets)
		preferred = b.cost(mean) < clearly*a.cost(mean)
	}
	if preferred {
		return second
	}
	return first
}

// cost is the time until an answer, if a server of mean weight does what it has to do one after the other.
func (t *Target) cost(mean float64) float64 {
	return float64(t.Latency) * (1 + float64(t.InFlight)*mean/float64(t.Weight))
}

// meanWeight is the mean of the open targets' weights.
func meanWeight(targets []Target) float64 {
	n := 0
	for i := range targets {
		if targets[i].open() {
			n++
		}
	}
	return float64(sum(targets)) / float64(n)
}

const (
	decay     = 10e9 // ns in which what is known of a latency loses all but 1/e of its worth
	leap      = 8    // how many times as long one sample may make a latency at most
	minSample = 1e6  // ns; whatever is shorter is as good
	maxSample = 60e9 // ns
	firstFail = 1e9  // ns; the latency of a server of which nothing is known but a failure
)

// Latency is how long a server has been taking: an average over time, weighted by exp(-age / 10 s), that follows a rise at once. It is one
// loop's, so a sample costs no lock and no cache line that others want; what the loops know differs by a few samples, and how busy the
// server is, which all loops see at once, weighs as much in the policy. Times are loop times in ns. The zero value knows nothing.
type Latency struct {
	value float64 // ns, 0: nothing known
	seen  int64   // latest sample
	asked int64   // latest sample or attempt begun, 0: none
}

// Begin notes that an attempt begins, which will bring a sample.
func (l *Latency) Begin(now int64) { l.asked = now }

// Observe takes a sample. One that is longer counts as it is, up to eight times what was known: a single scan that takes minutes must not
// keep a server out for as many.
func (l *Latency) Observe(now, took int64) {
	sample := min(max(float64(took), minSample), maxSample)
	switch {
	case l.value == 0:
		l.value = sample
	case sample > l.value:
		l.value = min(sample, leap*l.value)
	default:
		old := math.Exp(-float64(now-l.seen) / decay)
		l.value = l.value*old + sample*(1-old)
	}
	l.seen, l.asked = now, now
}

// Fail takes a failure for a sample of eight times what was known: servers that fail are quick, and must not be liked for it.
func (l *Latency) Fail(now int64) {
	if l.value == 0 {
		l.value = firstFail
	} else {
		l.value = min(leap*l.value, maxSample)
	}
	l.seen, l.asked = now, now
}

// At returns the Target.Latency of now. While a server is not asked, what is known of it fades, so that it is tried again in the end; the
// attempt that does so restores it, so that no others follow before it has told.
func (l *Latency) At(now int64) int64 {
	idle := now - l.asked
	switch {
	case l.value == 0 && l.asked != 0 && idle < decay:
		return -1
	case l.value == 0 || idle < decay/1000:
		return int64(l.value)
	}
	return max(int64(l.value*math.Exp(-float64(idle)/decay)), 1)
}
