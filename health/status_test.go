package health

import (
	"strings"
	"sync"
	"testing"
)

// TestUsable is the truth table of the package comment, every combination.
func TestUsable(t *testing.T) {
	yes := map[[3]any]bool{
		{Checking, Ready, true}: true,
		{Up, Ready, false}:      true,
		{Up, Ready, true}:       true,
	}
	for _, state := range []State{Checking, Up, Down} {
		for _, admin := range []AdminState{Ready, Drain, Maintenance} {
			for _, grace := range []bool{false, true} {
				for _, ejected := range []bool{false, true} {
					var s Status
					s.SetState(state)
					s.SetAdmin(admin)
					if grace {
						s.word.Or(graceBit)
					}
					if ejected {
						s.word.Or(ejectedBit)
					}
					but := yes[[3]any{state, admin, grace}]
					if got := s.Usable(-1); got != (but && !ejected) {
						t.Errorf("%v, %v, grace %v, ejected %v: usable %v", state, admin, grace, ejected, got)
					}
					if got := s.UsableButEjected(-1); got != (but && ejected) {
						t.Errorf("%v, %v, grace %v, ejected %v: usable but ejected %v", state, admin, grace, ejected, got)
					}
					if s.State() != state || s.Admin() != admin || s.Ejected() != ejected {
						t.Errorf("set %v, %v, ejected %v, read %v, %v, %v", state, admin, ejected, s.State(), s.Admin(), s.Ejected())
					}
				}
			}
		}
	}
}

func TestStatusZero(t *testing.T) {
	var s Status
	if s.State() != Checking || s.Admin() != Ready || s.Usable(0) || s.Checked() ||
		!s.Since().IsZero() || s.LastError() != "" || s.LastDuration() != 0 || s.Missing() != nil {
		t.Errorf("the zero Status is not one of which nothing is known")
	}
}

func TestUsablePath(t *testing.T) {
	var s Status
	s.SetState(Up)
	s.setMissing([]bool{false, true, false})
	for path, want := range map[int]bool{-1: true, 0: true, 1: false, 2: true, 3: true} {
		if got := s.Usable(path); got != want {
			t.Errorf("path 1 is missing: Usable(%d) = %v, want %v", path, got, want)
		}
	}
	s.setMissing([]bool{false, false, false})
	if !s.Usable(1) || s.Missing() != nil {
		t.Errorf("path 1 is back, but Usable is %v, Missing %v", s.Usable(1), s.Missing())
	}
}

// The grace is for servers without a verdict only, and ends with one.
func TestGraceEnds(t *testing.T) {
	var s Status
	s.setGrace(true)
	if !s.Usable(0) {
		t.Error("not usable in the grace")
	}
	s.SetState(Down)
	s.setGrace(true)
	s.SetState(Checking)
	if s.Usable(0) {
		t.Error("usable: the grace has outlived a verdict")
	}
}

func TestAdminStateWords(t *testing.T) {
	for _, a := range []AdminState{Ready, Drain, Maintenance} {
		if got, err := ParseAdminState(a.String()); got != a || err != nil {
			t.Errorf("ParseAdminState(%q) = %v, %v", a.String(), got, err)
		}
	}
	for _, word := range []string{"", "Ready", "maint"} {
		if _, err := ParseAdminState(word); err == nil || !strings.Contains(err.Error(), "maintenance") {
			t.Errorf("ParseAdminState(%q): error %v, want one that lists the words", word, err)
		}
	}
}

// Checker and admin write at the same time; neither loses what the other has set.
func TestStatusWriters(t *testing.T) {
	var s Status
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 1000 {
			s.SetState(State(i % 3))
		}
		s.SetState(Up)
	})
	wg.Go(func() {
		for i := range 1000 {
			s.SetAdmin(AdminState(i % 3))
		}
		s.SetAdmin(Drain)
	})
	wg.Go(func() {
		for range 1000 {
			s.Usable(0)
		}
	})
	wg.Wait()
	if s.State() != Up || s.Admin() != Drain {
		t.Errorf("state %v, admin %v, want up, drain", s.State(), s.Admin())
	}
}

func TestUsableDoesNotAllocate(t *testing.T) {
	var s Status
	s.SetState(Up)
	s.setMissing([]bool{true, false})
	if n := testing.AllocsPerRun(100, func() { s.Usable(1) }); n != 0 {
		t.Errorf("%v allocations per Usable, want 0", n)
	}
}

// Whoever waits is told whenever something has changed, whether the server is usable now, and whether it may be cold.
func TestOnChange(t *testing.T) {
	const nothing = "nothing"
	var s Status
	told := nothing
	s.OnChange(func(usable, cold bool) {
		switch {
		case !usable:
			told = "gone"
		case cold:
			told = "cold"
		default:
			told = "warm"
		}
	})
	for i, step := range []struct {
		do   func()
		want string
	}{
		{func() { s.SetState(Down) }, "gone"}, // nothing was known of it
		{func() { s.SetState(Checking) }, "gone"},
		{func() { s.SetState(Up) }, "cold"},
		{func() { s.SetState(Up) }, nothing},
		{func() { s.SetState(Down) }, "gone"},
		{func() { s.SetState(Down) }, nothing},
		{func() { s.SetAdmin(Drain) }, "gone"},
		{func() { s.SetAdmin(Ready) }, "gone"},
		{func() { s.SetState(Up) }, "cold"},
		{func() { s.SetAdmin(Drain) }, "gone"},
		{func() { s.SetAdmin(Ready) }, "warm"},
		{func() { s.SetAdmin(Maintenance) }, "gone"},
		{func() { s.SetAdmin(Ready) }, "cold"},
		{func() { s.SetAdmin(Drain) }, "gone"},
		{func() { s.SetState(Down) }, "gone"},
		{func() { s.SetState(Up) }, "gone"}, // started anew while it was drained
		{func() { s.SetAdmin(Ready) }, "cold"},
		{func() { s.SetAdmin(Drain) }, "gone"},
		{func() { s.SetAdmin(Ready) }, "warm"},
		{func() { s.update(func(w uint32) uint32 { return w | ejectedBit }) }, "gone"},
		{func() { s.SetState(Checking) }, "gone"},
		{func() { s.update(func(w uint32) uint32 { return w &^ ejectedBit }) }, "gone"},
		{func() { s.SetState(Up) }, "cold"},
		{func() { s.setMissing([]bool{true}) }, "gone"},
		{func() { s.setMissing(nil) }, "warm"},
		{func() { s.setMissing(nil) }, nothing},
	} {
		told = nothing
		step.do()
		if told != step.want {
			t.Errorf("step %d: told %s, want %s", i+1, told, step.want)
		}
	}
}

func TestAdmitted(t *testing.T) {
	var s Status
	s.setMissing([]bool{false, true})
	for _, state := range []State{Checking, Up, Down} {
		s.SetState(state)
		for _, admin := range []AdminState{Ready, Drain, Maintenance} {
			s.SetAdmin(admin)
			for path, known := range []bool{true, false} {
				if got := s.Admitted(path); got != (admin == Ready && known) {
					t.Errorf("%v, %v, path %d: admitted %v", state, admin, path, got)
				}
			}
		}
	}
}
