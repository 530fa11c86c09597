package balancer

import (
	"math/bits"
	"math/rand/v2"
)

// randomTwo draws two targets, each with a chance as large as its weight, and picks the one with fewer attempts in flight per weight;
// of two that are equal the one drawn first. Over two targets it compares both each time, so it is leastInFlight with ties by chance.
//
// It is for many gateways in front of the same servers: none sees the attempts of the others, and what leastInFlight finds idle all of
// them find idle. Chance keeps them apart.
type randomTwo struct {
	dice dice
}

func (p *randomTwo) Pick(targets []Target) int {
	first, second := p.dice.two(targets)
	if second >= 0 && load(targets, second, first) < load(targets, first, second) {
		return second
	}
	return first
}

// dice draws open targets at random, each as often as its weight says.
type dice struct {
	rng *rand.PCG
}

func newDice() dice { return dice{rand.NewPCG(rand.Uint64(), rand.Uint64())} }

// two returns the places of two different open targets; second is -1 if there is only one, first too if there is none.
func (d *dice) two(targets []Target) (first, second int) {
	weight := sum(targets)
	if weight == 0 {
		return -1, -1
	}
	first = d.one(targets, weight, -1)
	if weight -= int64(targets[first].Weight); weight == 0 {
		return first, -1
	}
	return first, d.one(targets, weight, first)
}

// one draws among the open targets, but for the one at place not. weight is the sum of theirs.
func (d *dice) one(targets []Target, weight int64, not int) int {
	draw, _ := bits.Mul64(d.rng.Uint64(), uint64(weight))
	left, last := int64(draw), -1
	for i := range targets {
		if i == not || !targets[i].open() {
			continue
		}
		last = i
		if left -= int64(targets[i].Weight); left < 0 {
			break
		}
	}
	return last
}
