package gateway

import (
	"math/bits"
	"time"
)

// A wheel holds the timers of one loop. Times are loop times in ns; the wheel reads no clock.
//
// Deadlines move with nearly every message, mostly to later, so moving one is a field write: a timer stays in
// the slot where it is, and only when that slot comes up is its deadline looked at and the timer fired or moved.
const (
	tick       = int64(20 * time.Millisecond) // resolution: a timer fires at most one tick late
	wheelSlots = 1024                         // a turn is 20.48 s; later deadlines go round again
)

type timer struct {
	deadline   int64 // 0: not set
	slotTick   int64 // tick of the slot that it is linked in, when linked
	fire       func(now int64)
	next, prev *timer
	linked     bool
}

type wheel struct {
	slots [wheelSlots]*timer // heads of doubly linked lists
	used  [wheelSlots / 64]uint64
	done  int64 // last tick that advance has handled
}

// set makes t fire at the deadline; 0 unsets it.
func (w *wheel) set(t *timer, deadline int64) {
	t.deadline = deadline
	if deadline == 0 {
		return // unlinked when its slot comes up
	}
	at := max(ceilTick(deadline), w.done+1)
	if t.linked {
		if t.slotTick <= at {
			return
		}
		w.unlink(t)
	}
	w.link(t, at)
}

// stop unsets t and lets go of it at once; its owner is about to end.
func (w *wheel) stop(t *timer) {
	t.deadline = 0
	if t.linked {
		w.unlink(t)
	}
}

// next is the time at which advance has to be called; 0: no timer is set.
func (w *wheel) next() int64 {
	start := w.done + 1
	for i := int64(0); i < wheelSlots; {
		slot := (start + i) & (wheelSlots - 1)
		if word := w.used[slot>>6] >> (slot & 63); word != 0 {
			n := int64(bits.TrailingZeros64(word))
			if i+n >= wheelSlots {
				break
			}
			return (start + i + n) * tick
		}
		i += 64 - slot&63
	}
	return 0
}

// advance fires all timers whose deadline has passed. A timer may be set again from its own fire.
func (w *wheel) advance(now int64) {
	last := now / tick
	if last-w.done > wheelSlots { // the loop was away for longer than a turn: each slot once is enough
		w.done = last - wheelSlots
	}
	for w.done < last {
		w.done++
		slot := w.done & (wheelSlots - 1)
		for t := w.slots[slot]; t != nil; {
			// Firing may unlink any timer, so the walk starts again after each.
			next := t.next
			if t.slotTick <= w.done {
				w.unlink(t)
				switch {
				case t.deadline == 0:
				case t.deadline <= now:
					t.deadline = 0
					t.fire(now)
					next = w.slots[slot]
				default:
					w.link(t, max(ceilTick(t.deadline), w.done+1))
				}
			}
			t = next
		}
	}
}

func ceilTick(at int64) int64 { return (at + tick - 1) / tick }

// link puts t into the slot of the tick. A deadline beyond one turn is looked at when the slot comes up before.
func (w *wheel) link(t *timer, at int64) {
	if at > w.done+wheelSlots-1 {
		at = w.done + wheelSlots - 1
	}
	slot := at & (wheelSlots - 1)
	t.slotTick, t.linked, t.prev, t.next = at, true, nil, w.slots[slot]
	if t.next != nil {
		t.next.prev = t
	}
	w.slots[slot] = t
	w.used[slot>>6] |= 1 << (slot & 63)
}

func (w *wheel) unlink(t *timer) {
	slot := t.slotTick & (wheelSlots - 1)
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		w.slots[slot] = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	}
	t.next, t.prev, t.linked = nil, nil, false
	if w.slots[slot] == nil {
		w.used[slot>>6] &^= 1 << (slot & 63)
	}
}
