package health

import "time"

// outcome is what one check says of the server as a whole.
type outcome uint8

const (
	good outcome = iota
	bad
	full // 503 or 506: alive and at its limit, so no reason to take it down, and none to bring it up
	none // no verdict: the question was never asked, for want of a descriptor or memory on this side
)

// machine counts outcomes in a row, of checks or of probes. It is plain memory: no clock, no goroutine.
type machine struct {
	rise, fall int // outcomes in a row that bring a server up and down; 1 or more
	state      State
	run        int // outcomes in a row that speak against state

	decided int       // outcomes in a row that brought state about
	since   time.Time // of the first of the run, or of decided
}

// step takes the outcome of a check that has ended now, and returns the state after it.
func (m *machine) step(o outcome, now time.Time) State {
	switch {
	case o == none:
	case m.state != Down && o == bad:
		m.count(m.fall, Down, now)
	case m.state == Checking && o == good:
		m.run = 0 // of failures
		m.count(1, Up, now)
	case m.state == Down && o == good:
		m.count(m.rise, Up, now)
	default:
		m.run = 0
	}
	return m.state
}

// count counts an outcome against the state; after enough in a row the state becomes to.
func (m *machine) count(enough int, to State, now time.Time) {
	if m.run == 0 {
		m.since = now
	}
	if m.run++; m.run >= enough {
		m.state, m.run, m.decided = to, 0, m.run
	}
}

// changing says whether a verdict is near: the next check should come soon.
func (m *machine) changing() bool { return m.state == Checking || m.run > 0 }

// reset forgets all that the checks have said.
func (m *machine) reset() { m.state, m.run, m.decided = Checking, 0, 0 }
