package balancer

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestNew(t *testing.T) {
	for _, name := range Names() {
		p, err := New(name)
		if err != nil || p == nil {
			t.Errorf("New(%q) = %v, %v", name, p, err)
		}
	}
	p, err := New("fastest")
	if p != nil || err == nil {
		t.Fatalf("New(fastest) = %v, %v, want an error", p, err)
	}
	for _, word := range append(Names(), `"fastest"`) {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not name %s", err, word)
		}
	}
}

// byChance are the policies that draw lots: their shares follow the weights as those of dice do.
var byChance = map[string]bool{"random_two": true, "peak_ewma": true}

// TestEveryPolicy holds every policy in the table to what the package promises.
func TestEveryPolicy(t *testing.T) {
	for _, p := range policies {
		t.Run(p.name, func(t *testing.T) {
			t.Run("nothing to pick", func(t *testing.T) { testNothing(t, p.make) })
			t.Run("only open targets", rapid.MakeCheck(func(t *rapid.T) { propertyOpen(t, p.make) }))
			if byChance[p.name] {
				t.Run("shares by chance", rapid.MakeCheck(func(t *rapid.T) { propertyChance(t, p.make) }))
			} else {
				t.Run("shares follow weights", rapid.MakeCheck(func(t *rapid.T) { propertyShares(t, p.make) }))
				t.Run("shares after a change", rapid.MakeCheck(func(t *rapid.T) { propertyChange(t, p.make) }))
			}
			t.Run("no allocation", func(t *testing.T) { testAllocs(t, p.make) })
		})
	}
}

func testNothing(t *testing.T, fresh func() Policy) {
	for name, targets := range map[string][]Target{
		"nil":             nil,
		"not usable":      {{Weight: 1}, {Weight: 2}},
		"weight 0":        {{Weight: 0, Usable: true}},
		"negative weight": {{Weight: -1, Usable: true}},
	} {
		p := fresh()
		for range 3 {
			if got := p.Pick(targets); got != -1 {
				t.Errorf("%s: picked %d, want -1", name, got)
			}
		}
	}
	// Nothing to pick for a while leaves no trace: the only one that is open is picked at once.
	p := fresh()
	targets := []Target{{Weight: 1, Usable: true}, {Weight: 1}}
	for range 5 {
		p.Pick(targets)
	}
	targets[0].Usable = false
	if got := p.Pick(targets); got != -1 {
		t.Errorf("picked %d of none, want -1", got)
	}
	targets[1].Usable = true
	if got := p.Pick(targets); got != 1 {
		t.Errorf("picked %d, want the only usable one, 1", got)
	}
}

// propertyOpen: whatever comes and goes, Pick returns an open target, or -1 exactly if there is none.
func propertyOpen(t *rapid.T, fresh func() Policy) {
	p := fresh()
	n := rapid.IntRange(1, 8).Draw(t, "n")
	target := rapid.Custom(func(t *rapid.T) Target {
		return Target{
			Weight:   rapid.Int32Range(-1, 1000).Draw(t, "weight"),
			InFlight: rapid.Int32Range(0, 1<<20).Draw(t, "in-flight"),
			Latency:  rapid.Int64Range(-1, 1e11).Draw(t, "latency"),
			Running:  rapid.Float64Range(0, 1e6).Draw(t, "running"),
			Usable:   rapid.Bool().Draw(t, "usable"),
		}
	})
	for range 50 {
		targets := rapid.SliceOfN(target, n, n).Draw(t, "targets")
		before := append([]Target(nil), targets...)
		anyOpen := false
		for i := range targets {
			anyOpen = anyOpen || targets[i].open()
		}
		got := p.Pick(targets)
		switch {
		case got == -1 && anyOpen:
			t.Fatalf("picked none of %+v", targets)
		case got != -1 && (got < 0 || got >= n || !targets[got].open()):
			t.Fatalf("picked %d of %+v", got, targets)
		}
		for i := range targets {
			if targets[i] != before[i] {
				t.Fatalf("target %d was changed from %+v to %+v", i, before[i], targets[i])
			}
		}
	}
}

// propertyShares: with nothing in flight, as many picks as the sum of weights give each target its weight, exactly.
func propertyShares(t *rapid.T, fresh func() Policy) {
	p := fresh()
	targets := drawTargets(t, 1, 8)
	for range 3 {
		requireShares(t, p, targets)
	}
}

// propertyChange: targets come, go and change their weight; afterwards shares are soon those of the new weights, however
// different the weights and the number of open targets were before.
func propertyChange(t *rapid.T, fresh func() Policy) {
	p := fresh()
	targets := drawTargets(t, 2, 8)
	for range rapid.IntRange(0, 300).Draw(t, "picks before") {
		p.Pick(targets)
	}
	for i := range targets {
		targets[i].Usable = rapid.Bool().Draw(t, "usable")
		if rapid.Bool().Draw(t, "reweigh") {
			targets[i].Weight = rapid.Int32Range(0, 5).Draw(t, "weight")
		}
	}
	// A lap is as many picks as the sum of the weights. What is left from before is at most one lap's worth of credit in
	// either direction, which is one pick; two targets may be off in opposite ways, and a policy is not even within a lap.
	lap := int(sum(targets))
	got := make([]int, len(targets))
	for n := 1; n <= 4*lap; n++ {
		got[p.Pick(targets)]++
		for i := range targets {
			if !targets[i].open() {
				continue
			}
			share := float64(n) * float64(targets[i].Weight) / float64(lap)
			if off := float64(got[i]) - share; off > 4 || off < -4 {
				t.Fatalf("target %d of %+v: %d picks of the first %d, share %.1f", i, targets, got[i], n, share)
			}
		}
	}
}

// propertyChance: shares follow the weights, and after targets have come, gone and changed their weight, the new weights at once.
func propertyChance(t *rapid.T, fresh func() Policy) {
	p := fresh()
	targets := drawTargets(t, 1, 8)
	requireChance(t, p, targets)
	for i := range targets {
		targets[i].Usable = i == 0 || rapid.Bool().Draw(t, "usable")
		targets[i].Weight = rapid.Int32Range(1, 100).Draw(t, "weight")
	}
	requireChance(t, p, targets)
}

// requireChance makes many picks and wants each target as often as its weight, within 7 standard deviations and 5 picks.
func requireChance(t *rapid.T, p Policy, targets []Target) {
	const picks = 1000
	got := make([]int, len(targets))
	for range picks {
		got[p.Pick(targets)]++
	}
	for i := range targets {
		share := 0.0
		if targets[i].open() {
			share = float64(targets[i].Weight) / float64(sum(targets))
		}
		if off := float64(got[i]) - picks*share; math.Abs(off) > 7*math.Sqrt(picks*share*(1-share))+5 {
			t.Fatalf("picks %v, want the weights of %+v", got, targets)
		}
	}
}

func drawTargets(t *rapid.T, low, high int) []Target {
	targets := make([]Target, rapid.IntRange(low, high).Draw(t, "n"))
	for i := range targets {
		targets[i] = Target{Weight: rapid.Int32Range(1, 100).Draw(t, "weight"), Usable: true}
	}
	return targets
}

// requireShares makes as many picks as the sum of the weights and wants each target as often as its weight.
func requireShares(t *rapid.T, p Policy, targets []Target) {
	got := make([]int32, len(targets))
	for range sum(targets) {
		got[p.Pick(targets)]++
	}
	for i := range targets {
		if got[i] != targets[i].Weight {
			t.Fatalf("picks %v, want the weights of %+v", got, targets)
		}
	}
}

func testAllocs(t *testing.T, fresh func() Policy) {
	for _, n := range []int{2, 8, 64} {
		p, targets := fresh(), busy(n)
		if got := testing.AllocsPerRun(100, func() { p.Pick(targets) }); got != 0 {
			t.Errorf("%d targets: %v allocations per pick, want 0", n, got)
		}
	}
}

// busy returns n targets as a loop sees them: mixed weights, something in flight, one of them down.
func busy(n int) []Target {
	targets := make([]Target, n)
	for i := range targets {
		targets[i] = Target{Weight: int32(1 + i%3), InFlight: int32(i * 7 % 5), Latency: int64(1+i%5) * 1e6, Usable: i != 1 || n == 2}
	}
	return targets
}

func BenchmarkPick(b *testing.B) {
	for _, p := range policies {
		for _, n := range []int{2, 8, 64} {
			b.Run(fmt.Sprintf("%s/%d", p.name, n), func(b *testing.B) {
				policy, targets := p.make(), busy(n)
				b.ReportAllocs()
				for b.Loop() {
					policy.Pick(targets)
				}
			})
		}
	}
}

// trace picks once per step and writes the places as letters, "-" for none.
func trace(p Policy, targets []Target, picks int) string {
	var s strings.Builder
	for range picks {
		if i := p.Pick(targets); i >= 0 {
			s.WriteByte('a' + byte(i))
		} else {
			s.WriteByte('-')
		}
	}
	return s.String()
}

// idle returns usable targets of these weights with nothing in flight.
func idle(weights ...int32) []Target {
	targets := make([]Target, len(weights))
	for i, w := range weights {
		targets[i] = Target{Weight: w, Usable: true}
	}
	return targets
}
