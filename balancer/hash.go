package balancer

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
)

// hash is the policy for requests without a key; those with one go by the pool's Maglev.
type hash struct {
	leastInFlight
}

const (
	// slotCount is prime, so that every step from slot to slot leads to all of them.
	slotCount = 65537
	// A target takes no more keys while it has this many times its share of the attempts in flight, by weight.
	loadFactor = 1.25
	// freeLoad attempts a target may always have: so few are no load, and among few attempts the share is too small to be a bound.
	freeLoad = 4
	// probes is how many slots are looked at for a key, before the least loaded target takes it.
	probes = 64
)

// Maglev is a table from keys to targets (Eisenbud et al., 2016). It is made once for a set of servers and never changed; all loops share it.
// What happens to servers moves only the keys that have to: those of a server that can't be used go elsewhere, each to a place of
// its own, and come back with it; a change of the set moves hardly more keys than those of the server that left or came.
type Maglev struct {
	slots   [slotCount]uint16 // places
	weights []int32
}

// NewMaglev makes the table for up to 65535 targets, with the weights that they have when nothing is special; one that may get a weight later needs
// one here, too. They are known by their names, so that all gateways agree, in whatever order they list them.
func NewMaglev(names []string, weights []int32) *Maglev {
	m := &Maglev{weights: make([]int32, len(names))}
	if len(names) == 0 {
		return m
	}
	order := make([]int, len(names))
	heaviest := int32(1)
	for i := range names {
		order[i] = i
		m.weights[i] = max(weights[i], 1)
		heaviest = max(heaviest, m.weights[i])
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(names[a], names[b]) })

	// In turn, as often as its weight says, each target takes the next free slot of a permutation of its own.
	type walk struct {
		slot, step uint64
		credit     int64
	}
	walks := make([]walk, len(names))
	for i, name := range names {
		key := Key([]byte(name))
		walks[i] = walk{slot: key % slotCount, step: stepOf(key)}
	}
	var taken [slotCount]bool
	for left := slotCount; left > 0; {
		for _, i := range order {
			w := &walks[i]
			if w.credit += int64(m.weights[i]); w.credit < int64(heaviest) || left == 0 {
				continue
			}
			w.credit -= int64(heaviest)
			for taken[w.slot] {
				w.slot = (w.slot + w.step) % slotCount
			}
			taken[w.slot], m.slots[w.slot] = true, uint16(i)
			left--
		}
	}
	return m
}

// Pick returns the place of the target for a key, -1 if there is none that is open or Busy. Targets are those that the table was made for, in the
// same order.
//
// A target whose weight is less than when the table was made, compared with the others, takes only that part of its keys: in slow start, or
// because an operator has changed it. The others go on as if it was not open.
func (m *Maglev) Pick(key uint64, targets []Target) int {
	weight, running := total(targets)
	full, least := 0.0, -1
	for i := range targets {
		if !targets[i].awaited() {
			continue
		}
		full = max(full, m.part(targets, i))
		if least < 0 || load(targets, i, least) < load(targets, least, i) {
			least = i
		}
	}
	if least < 0 {
		return -1
	}
	slot, step := key%slotCount, stepOf(key)
	for probe := range uint64(probes) {
		i := int(m.slots[slot])
		slot = (slot + step) % slotCount
		g := &targets[i]
		if !g.awaited() || !g.hasRoom(weight, running) {
			continue
		}
		if part := m.part(targets, i); part < full && chance(key+probe) >= part/full {
			continue
		}
		return i
	}
	return least
}

// HasRoom says whether target i has less than the bound on the load: loadFactor times its share by weight of what runs on all that are open or
// Busy, with one more, and freeLoad in any case.
func HasRoom(targets []Target, i int) bool {
	return targets[i].hasRoom(total(targets))
}

// total is the weight of the targets that are open or Busy, and what runs on them with one attempt more.
func total(targets []Target) (weight, running int64) {
	running = 1
	for i := range targets {
		if g := &targets[i]; g.awaited() {
			weight += int64(g.Weight)
			running += int64(g.InFlight)
		}
	}
	return weight, running
}

func (t *Target) hasRoom(weight, running int64) bool {
	bound := loadFactor * float64(running) * float64(t.Weight) / float64(weight)
	return t.InFlight < freeLoad || float64(t.InFlight) < math.Ceil(bound)
}

// part is the part that a target has of the weight that it had when the table was made.
func (m *Maglev) part(targets []Target, i int) float64 {
	return float64(targets[i].Weight) / float64(m.weights[i])
}

// stepOf derives the way from slot to slot from a key.
func stepOf(key uint64) uint64 {
	step, _ := bits.Mul64(key, slotCount-1) // of the upper bits: the slot is made of all of them
	return 1 + step
}

// chance turns a key into a number from 0 to 1.
func chance(key uint64) float64 { return float64(mix(key)>>11) / (1 << 53) }

// Key hashes what requests are told apart by. It is the same everywhere and forever: gateways agree, and a restart moves nothing.
func Key(b []byte) uint64 {
	const offset, prime = 14695981039346656037, 1099511628211 // FNV-1a
	h := uint64(offset)
	for _, c := range b {
		h = (h ^ uint64(c)) * prime
	}
	return mix(h)
}

// mix spreads the bits of x over all others (the finalizer of MurmurHash3).
func mix(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
