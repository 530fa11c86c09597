package balancer

import "math/rand/v2"

// roundRobin gives each target its turn, as often as its weight says and spread out evenly: weights 3, 1, 1 give
// a b a c a, not a a a b c. It does not look at in-flight counts.
type roundRobin struct {
	turns turns
}

func (p *roundRobin) Pick(targets []Target) int {
	p.turns.begin(targets)
	for i := range targets {
		if targets[i].open() {
			p.turns.offer(i, targets[i].Weight)
		}
	}
	return p.turns.take()
}

// turns is smooth weighted round robin (the algorithm of nginx): whoever is offered a turn earns its weight as credit, and
// the one with the most credit takes the turn and pays for all. The sum of credits never changes, so within any stretch of
// turns offered to the same targets, each takes its share.
//
// One turn is begin, then offer for each candidate, then take.
type turns struct {
	credit []int64 // by place; kept while a target is away
	weight int64   // of all open targets at the last turn
	pot    int64   // what this turn's candidates have earned
	winner int     // candidate with the most credit so far, -1: none
}

// begin prepares a turn. While the same targets are open credits are left alone. When one has come, gone or changed its weight,
// credits from the time before are cut to what one lap among the present ones can be worth. Otherwise a credit saved up
// among 64 targets, or with a weight of 1000, would be spent in one burst among two of weight 1.
func (t *turns) begin(targets []Target) {
	if len(t.credit) != len(targets) {
		t.start(targets)
	}
	t.pot, t.winner = 0, -1
	weight := sum(targets)
	if weight == t.weight {
		return
	}
	t.weight = weight
	for i := range targets {
		if targets[i].open() {
			t.credit[i] = max(-weight, min(t.credit[i], weight))
		}
	}
}

// offer makes the target at place i a candidate for this turn.
func (t *turns) offer(i int, weight int32) {
	t.pot += int64(weight)
	t.credit[i] += int64(weight)
	if t.winner < 0 || t.credit[i] > t.credit[t.winner] {
		t.winner = i
	}
}

// take ends the turn and returns the place of the winner, -1 if nobody was a candidate.
func (t *turns) take() int {
	if t.winner >= 0 {
		t.credit[t.winner] -= t.pot
	}
	return t.winner
}

// start lets a random number of turns pass unused. There is one policy per loop, service and method: all starting at the
// first target would go round in step, and clients that connect for one request only would hit one server in bursts.
func (t *turns) start(targets []Target) {
	t.credit = make([]int64, len(targets))
	t.weight = sum(targets)
	if len(targets) == 0 {
		return
	}
	for range rand.IntN(len(targets)) {
		t.pot, t.winner = 0, -1
		for i := range targets {
			if targets[i].open() {
				t.offer(i, targets[i].Weight)
			}
		}
		t.take()
	}
}

// sum returns the weight of all open targets.
func sum(targets []Target) int64 {
	var weight int64
	for i := range targets {
		if targets[i].open() {
			weight += int64(targets[i].Weight)
		}
	}
	return weight
}
