package balancer

import "math"

// peakEWMA draws two targets by weight, as randomTwo does, and picks the one at which a request is likely to be answered first. What is
// expected is the latency as it was lately, and in proportion more if more attempts are in flight now than were then. If neither is clearly
// better, randomTwo's rule decides, so that noise does not move everything to one server, and servers that are equally fast share by weight.
//
// A target of which nothing is known is tried with one request; the next ones wait, at other targets, for what that one tells.
type peakEWMA struct {
	dice dice
}

// clearly is how much of the other one's cost the better one may have at most.
const clearly = 0.8

func (p *peakEWMA) Pick(targets []Target) int {
	first, second := p.dice.two(targets)
	if second < 0 {
		return first
	}
	a, b := &targets[first], &targets[second]
	fewer, preferred := load(targets, second, first) < load(targets, first, second), false
	switch {
	case a.Latency <= 0 && b.Latency <= 0:
		preferred = b.Latency > a.Latency || b.Latency == a.Latency && fewer
	case b.Latency <= 0:
		preferred = b.Latency == 0
	case a.Latency <= 0:
		preferred = a.Latency < 0
	default:
		first, second := a.expected(), b.expected()
		preferred = second < clearly*first || first >= clearly*second && fewer
	}
	if preferred {
		return second
	}
	return first
}

// expected is the time until an answer in ns. At worst a server does one thing after the other; then it grows with what is in flight.
func (t *Target) expected() float64 {
	return float64(t.Latency) * max(1, (1+float64(t.InFlight))/(1+t.Running))
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
	value   float64 // ns, 0: nothing known
	running float64 // attempts in flight when it was so, on average
	seen    int64   // latest sample
	asked   int64   // latest sample or attempt begun, 0: none
}

// Running is the Target.Running.
func (l *Latency) Running() float64 { return l.running }

// Begin notes that an attempt begins, which will bring a sample.
func (l *Latency) Begin(now int64) { l.asked = now }

// Observe takes a sample. One that is longer counts as it is, up to eight times what was known: a single scan that takes minutes must not
// keep a server out for as many. running is how many other attempts were in flight at its end.
func (l *Latency) Observe(now, took int64, running int) {
	sample := min(max(float64(took), minSample), maxSample)
	old := math.Exp(-float64(now-l.seen) / decay)
	switch {
	case l.value == 0:
		l.value, l.running = sample, float64(running)
		old = 1
	case sample > l.value:
		l.value = min(sample, leap*l.value)
	default:
		l.value = l.value*old + sample*(1-old)
	}
	l.running = l.running*old + float64(running)*(1-old)
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
