package gateway

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// wheelTest runs a wheel on virtual time and notes what fires when.
type wheelTest struct {
	t     testing.TB
	w     wheel
	now   int64
	fired []string
}

// newWheelTest starts at a time that is not a multiple of anything.
func newWheelTest(t testing.TB) *wheelTest {
	h := &wheelTest{t: t, now: int64(time.Hour) + 7_654_321}
	h.w.done = h.now / tick
	return h
}

// timer returns a timer that notes its name when it fires.
func (h *wheelTest) timer(name string) *timer {
	tm := new(timer)
	tm.fire = func(now int64) {
		if now != h.now {
			h.t.Errorf("%s was told the time %d, it is %d", name, now, h.now)
		}
		h.fired = append(h.fired, name)
	}
	return tm
}

// after sets a timer relative to now.
func (h *wheelTest) after(tm *timer, d time.Duration) { h.w.set(tm, h.now+int64(d)) }

// to lets time pass in one step.
func (h *wheelTest) to(d time.Duration) {
	h.now += int64(d)
	h.w.advance(h.now)
}

// sleep lets time pass as a loop does that wakes up only when the wheel asks for it.
func (h *wheelTest) sleep(d time.Duration) (wakeups int) {
	end := h.now + int64(d)
	for {
		at := h.w.next()
		if at == 0 || at > end {
			break
		}
		if at <= h.now && h.now/tick <= h.w.done {
			h.t.Fatalf("the wheel asks for time %d again, which it has handled", at)
		}
		h.now = max(h.now, at)
		h.w.advance(h.now)
		wakeups++
	}
	h.now = end
	return wakeups
}

func (h *wheelTest) expect(want ...string) {
	h.t.Helper()
	if !slices.Equal(h.fired, want) {
		h.t.Errorf("fired %q, want %q", h.fired, want)
	}
	h.fired = nil
}

func TestWheelOrder(t *testing.T) {
	h := newWheelTest(t)
	for _, ms := range []int{300, 20, 5000, 100, 40, 25_000, 1000} {
		h.after(h.timer(fmt.Sprint(ms)), time.Duration(ms)*time.Millisecond)
	}
	h.sleep(time.Minute)
	h.expect("20", "40", "100", "300", "1000", "5000", "25000")
	if at := h.w.next(); at != 0 {
		t.Errorf("next is %d with no timer set, want 0", at)
	}
}

// Never early, and at most a tick late, whatever the distance: within a tick, a turn, many turns.
func TestWheelResolution(t *testing.T) {
	for _, d := range []time.Duration{
		1, time.Microsecond, 12 * time.Millisecond, time.Duration(tick) - 1, time.Duration(tick), time.Duration(tick) + 1,
		time.Second, 20_479 * time.Millisecond, 20_480 * time.Millisecond, 20_481 * time.Millisecond, 41 * time.Second,
		time.Minute, 5 * time.Minute, 24 * time.Hour,
	} {
		h := newWheelTest(t)
		deadline := h.now + int64(d)
		at := int64(0)
		tm := &timer{fire: func(now int64) { at = now }}
		h.w.set(tm, deadline)
		h.sleep(d + time.Second)
		switch {
		case at == 0:
			t.Errorf("%v: did not fire", d)
		case at < deadline || at >= deadline+tick:
			t.Errorf("%v: fired %v after the deadline, want 0 to %v", d, time.Duration(at-deadline), time.Duration(tick))
		}
	}
}

// A deadline that has passed already fires with the next tick.
func TestWheelPast(t *testing.T) {
	h := newWheelTest(t)
	h.after(h.timer("past"), -time.Hour)
	h.after(h.timer("now"), 0)
	h.to(0)
	h.expect()
	h.to(time.Duration(tick))
	slices.Sort(h.fired)
	h.expect("now", "past")
}

// Moving a timer to later is a field write: it stays where it is until its slot comes up, and nobody has to be woken for it.
func TestWheelLaterIsLazy(t *testing.T) {
	h := newWheelTest(t)
	tm := h.timer("idle")
	h.after(tm, time.Second)
	slot, next := tm.slotTick, h.w.next()
	for range 100 {
		h.to(time.Millisecond)
		h.after(tm, time.Second)
	}
	if tm.slotTick != slot || h.w.next() != next {
		t.Errorf("moving later relinked the timer: tick %d, was %d", tm.slotTick, slot)
	}
	h.sleep(999 * time.Millisecond)
	h.expect()
	h.sleep(30 * time.Millisecond)
	h.expect("idle")

	// 5 min of messages, each of which moves an idle timeout: the loop wakes once a turn for it, not once a message.
	wakeups := 0
	h.after(tm, 5*time.Minute)
	for range 5 * 60 * 100 {
		wakeups += h.sleep(10 * time.Millisecond)
		h.after(tm, 5*time.Minute)
	}
	if most := 5*60*1000/20480 + 2; wakeups > most {
		t.Errorf("%d wakeups in 5 min, want at most %d", wakeups, most)
	}
	h.expect()
}

func TestWheelEarlier(t *testing.T) {
	h := newWheelTest(t)
	tm := h.timer("moved")
	h.after(tm, 10*time.Second)
	next := h.w.next()
	h.after(tm, 100*time.Millisecond)
	if h.w.next() >= next {
		t.Error("the loop is not told that it has to wake up earlier")
	}
	h.sleep(120 * time.Millisecond)
	h.expect("moved")
	h.sleep(time.Minute)
	h.expect()
}

func TestWheelUnset(t *testing.T) {
	for _, unset := range []struct {
		name string
		do   func(w *wheel, tm *timer)
	}{
		{"set to 0", func(w *wheel, tm *timer) { w.set(tm, 0) }},
		{"stop", func(w *wheel, tm *timer) { w.stop(tm) }},
		{"stop twice", func(w *wheel, tm *timer) { w.stop(tm); w.stop(tm) }},
	} {
		t.Run(unset.name, func(t *testing.T) {
			h := newWheelTest(t)
			never, other := h.timer("never"), h.timer("other")
			unset.do(&h.w, never) // never set
			h.after(never, 100*time.Millisecond)
			h.after(other, 100*time.Millisecond) // in the same slot
			unset.do(&h.w, never)
			h.sleep(time.Second)
			h.expect("other")
			h.after(never, 100*time.Millisecond) // and it can be used again
			h.sleep(time.Second)
			h.expect("never")
		})
	}
}

// stop lets go of the timer at once, so that its owner's memory is not held until the slot comes up.
func TestWheelStopUnlinks(t *testing.T) {
	h := newWheelTest(t)
	tm := h.timer("")
	h.after(tm, time.Second)
	h.w.stop(tm)
	if tm.linked || h.w.next() != 0 {
		t.Errorf("after stop: linked %v, next %d", tm.linked, h.w.next())
	}
}

// A timer may be set from its own fire, and fires once per time that it is set.
func TestWheelFromFire(t *testing.T) {
	h := newWheelTest(t)
	begin := h.now
	var at []int64
	tm := new(timer)
	tm.fire = func(now int64) {
		at = append(at, now-begin)
		if len(at) < 5 {
			h.w.set(tm, now+int64(50*time.Millisecond))
		}
	}
	h.after(tm, 50*time.Millisecond)
	h.sleep(time.Second)
	if len(at) != 5 {
		t.Fatalf("fired %d times, want 5", len(at))
	}
	for i, a := range at {
		least := int64(50*time.Millisecond) * int64(i+1)
		if a < least || a > least+int64(i+1)*tick {
			t.Errorf("firing %d came after %v, want %v and at most a tick each", i+1, time.Duration(a), time.Duration(least))
		}
	}
}

// Setting a timer to now from its own fire must not keep the loop from going on.
func TestWheelFromFireAtOnce(t *testing.T) {
	h := newWheelTest(t)
	n := 0
	tm := new(timer)
	tm.fire = func(now int64) { n++; h.w.set(tm, now) }
	h.after(tm, 0)
	for range 10 {
		h.to(time.Duration(tick))
	}
	if n != 10 {
		t.Errorf("fired %d times in 10 ticks, want 10", n)
	}
}

// What fires may stop, move and set any other timer, neighbours in its slot included.
func TestWheelFireChangesOthers(t *testing.T) {
	h := newWheelTest(t)
	a, b, c, d := h.timer("a"), h.timer("b"), h.timer("c"), h.timer("d")
	trigger := new(timer)
	trigger.fire = func(now int64) {
		h.fired = append(h.fired, "trigger")
		h.w.stop(a)
		h.w.set(b, now+int64(time.Second))
		h.w.set(c, now)
		h.w.set(d, 0)
	}
	for _, tm := range []*timer{a, b, c, d} {
		h.after(tm, 200*time.Millisecond)
	}
	h.after(trigger, 100*time.Millisecond)
	h.sleep(150 * time.Millisecond)
	h.expect("trigger", "c")
	h.sleep(2 * time.Second)
	h.expect("b")

	// In one slot the order is not fixed: of each two neighbours whoever comes first stops the other one, and the rest still fires.
	var timers [10]*timer
	for i := range timers {
		timers[i] = &timer{fire: func(int64) {
			h.fired = append(h.fired, "one of two")
			h.w.stop(timers[i^1])
		}}
	}
	for _, tm := range timers {
		h.after(tm, 100*time.Millisecond)
	}
	h.sleep(200 * time.Millisecond)
	h.expect("one of two", "one of two", "one of two", "one of two", "one of two")
}

// A loop that was away for minutes (a suspended machine) finds everything that is due, once, and nothing else.
func TestWheelAway(t *testing.T) {
	for _, away := range []time.Duration{time.Second, 20_480 * time.Millisecond, 25 * time.Second, 10 * time.Minute, 100 * time.Hour} {
		h := newWheelTest(t)
		var want []string
		for i := range 200 {
			d := time.Duration(i) * time.Second / 3
			name := d.String()
			h.after(h.timer(name), d)
			if d <= away-time.Duration(tick) {
				want = append(want, name)
			}
		}
		later := h.timer("later")
		h.after(later, away+time.Hour)
		h.to(away)
		slices.Sort(h.fired)
		slices.Sort(want)
		for _, name := range want {
			if _, ok := slices.BinarySearch(h.fired, name); !ok {
				t.Errorf("away for %v: the timer of %s did not fire", away, name)
			}
		}
		if len(h.fired) > len(want)+1 { // one may be due within the last tick
			t.Errorf("away for %v: %d timers fired, want %d", away, len(h.fired), len(want))
		}
		h.fired = nil
		h.sleep(time.Hour + time.Second)
		if n := len(h.fired); n == 0 || h.fired[n-1] != "later" {
			t.Errorf("away for %v: the later timer has not fired", away)
		}
	}
}

// A wheel without timers is not advanced, so it is far behind when one is set.
func TestWheelAfterLongIdle(t *testing.T) {
	h := newWheelTest(t)
	h.now += int64(10 * time.Minute)
	tm := h.timer("late")
	h.after(tm, time.Second)
	h.sleep(990 * time.Millisecond)
	h.expect()
	h.sleep(40 * time.Millisecond)
	h.expect("late")
}

// bruteNext looks at every slot.
func bruteNext(w *wheel) int64 {
	var least int64
	for _, first := range w.slots {
		for tm := first; tm != nil; tm = tm.next {
			if at := tm.slotTick * tick; least == 0 || at < least {
				least = at
			}
		}
	}
	return least
}

// The wheel against a list of deadlines: each timer fires once per setting, never early, and when time has come to the tick
// after its deadline; next is exact for what is linked and never too late for what is set.
func TestWheelModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var w wheel
		now := rapid.Int64Range(1, int64(time.Hour)).Draw(t, "start")
		w.done = now / tick
		type model struct {
			timer
			set     int64  // deadline, 0: not set
			latest  int64  // tick by which it has to have fired
			refires int64  // > 0: it sets itself again from its fire, that much later
			meddles func() // done from its fire to another timer; nil: nothing
		}
		timers := make([]*model, rapid.IntRange(1, 12).Draw(t, "timers"))
		set := func(m *model, deadline int64) {
			m.set, m.latest = deadline, max(ceilTick(deadline), w.done+1)
			w.set(&m.timer, deadline)
		}
		for i := range timers {
			m := new(model)
			m.fire = func(at int64) {
				switch {
				case m.set == 0:
					t.Fatalf("timer %d fired although it is not set", i)
				case at != now:
					t.Fatalf("timer %d was told the time %d, it is %d", i, at, now)
				case m.set > now:
					t.Fatalf("timer %d fired %v early", i, time.Duration(m.set-now))
				}
				m.set = 0
				if m.refires > 0 {
					set(m, now+m.refires)
				}
				if m.meddles != nil {
					m.meddles()
				}
			}
			timers[i] = m
		}
		distance := rapid.OneOf(rapid.Int64Range(0, 3*tick), rapid.Int64Range(0, 2*wheelSlots*tick), rapid.Int64Range(0, int64(time.Hour)))
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			m := timers[rapid.IntRange(0, len(timers)-1).Draw(t, "timer")]
			switch rapid.SampledFrom([]string{"set", "set", "unset", "stop", "refire", "meddle", "pass", "wake"}).Draw(t, "operation") {
			case "set":
				set(m, now+distance.Draw(t, "in"))
			case "unset":
				m.set = 0
				w.set(&m.timer, 0)
			case "stop":
				m.set = 0
				w.stop(&m.timer)
			case "refire":
				m.refires = rapid.OneOf(rapid.Just(int64(0)), distance).Draw(t, "again in")
			case "meddle":
				other := timers[rapid.IntRange(0, len(timers)-1).Draw(t, "other")]
				if in := distance.Draw(t, "other in"); rapid.Bool().Draw(t, "stop other") {
					m.meddles = func() { other.set = 0; w.stop(&other.timer) }
				} else {
					m.meddles = func() { set(other, now+in) }
				}
			case "pass":
				now += distance.Draw(t, "pass")
				w.advance(now)
			case "wake":
				if at := w.next(); at > 0 {
					now = max(now, at)
					w.advance(now)
				}
			}
			if got, want := w.next(), bruteNext(&w); got != want {
				t.Fatalf("next is %d, the earliest timer that is linked is at %d", got, want)
			}
			for i, m := range timers {
				if m.set == 0 {
					continue
				}
				if m.latest <= w.done {
					t.Fatalf("timer %d has not fired by tick %d", i, w.done)
				}
				if at := w.next(); at == 0 || at > m.latest*tick {
					t.Fatalf("next is %d, too late for timer %d at %d", at, i, m.set)
				}
			}
		}
	})
}

func TestWheelAllocatesNothing(t *testing.T) {
	h := newWheelTest(t)
	fired := 0
	tm := &timer{fire: func(int64) { fired++ }}
	if n := testing.AllocsPerRun(100, func() {
		h.after(tm, time.Second)
		h.after(tm, time.Minute)
		h.after(tm, time.Millisecond)
		h.to(time.Second)
		h.after(tm, time.Second)
		h.w.stop(tm)
	}); n != 0 {
		t.Errorf("%v allocations per use, want 0", n)
	}
	if fired == 0 {
		t.Error("nothing fired")
	}
}

func BenchmarkWheelSetLater(b *testing.B) {
	h := newWheelTest(b)
	tm := h.timer("")
	for b.Loop() {
		h.now++
		h.after(tm, time.Minute)
	}
}
