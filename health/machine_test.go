package health

import (
	"testing"
	"time"
)

// Each letter of outcomes is a check: g good, b bad, f full, n none. Each letter of want is the state after it: c checking, u up, d down;
// a capital letter says that the state is about to change.
func TestMachine(t *testing.T) {
	f := func(rise, fall int, outcomes, want string) {
		t.Helper()
		m := machine{rise: rise, fall: fall}
		got := make([]byte, len(outcomes))
		for i, letter := range outcomes {
			got[i] = "cud"[m.step(map[rune]outcome{'g': good, 'b': bad, 'f': full, 'n': none}[letter], time.Time{})]
			if m.changing() {
				got[i] ^= 'a' ^ 'A'
			}
		}
		if string(got) != want {
			t.Errorf("rise %d, fall %d: outcomes %s give states %s, want %s", rise, fall, outcomes, got, want)
		}
	}
	// From checking, one success is enough and fall failures are needed.
	f(2, 3, "g", "u")
	f(2, 3, "bg", "Cu")
	f(2, 3, "bbb", "CCd")
	// Up: only failures in a row count.
	f(2, 3, "gbbbb", "uUUdd")
	f(2, 3, "gbbgbbb", "uUUuUUd")
	// Down: only successes in a row count.
	f(2, 3, "bbbgg", "CCdDu")
	f(2, 3, "bbbgbgg", "CCdDdDu")
	f(1, 1, "gbgb", "udud")
	// Full takes nobody down, brings nobody up, and breaks a row.
	f(2, 3, "gfff", "uuuu")
	f(2, 3, "gbbfbbb", "uUUuUUd")
	f(2, 3, "fff", "CCC")
	f(2, 3, "bbbfff", "CCdddd")
	f(2, 3, "bbbgfgg", "CCdDdDu")
	// What was not asked changes nothing.
	f(2, 3, "nnnng", "CCCCu")
	f(2, 3, "gnnbnbnb", "uuuUUUUd")
	f(2, 3, "bbbngng", "CCddDDu")
}

func TestMachineReset(t *testing.T) {
	m := machine{rise: 2, fall: 2, state: Down}
	m.step(good, time.Time{})
	m.reset()
	if m.step(bad, time.Time{}) != Checking || m.step(bad, time.Time{}) != Down {
		t.Error("a machine that was reset does not begin as checking")
	}
}
