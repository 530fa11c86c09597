package health

import (
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// State is the result of the active checks.
type State uint8

const (
	Checking State = iota // no verdict yet
	Up
	Down
)

func (s State) String() string { return [...]string{"checking", "up", "down"}[s] }

// AdminState is what an operator wants of a server, whatever the checks say.
type AdminState uint8

const (
	Ready       AdminState = iota // the checks decide
	Drain                         // no new requests
	Maintenance                   // no new requests and no checks
)

func (a AdminState) String() string { return [...]string{"ready", "drain", "maintenance"}[a] }

// ParseAdminState is the reverse of AdminState.String.
func ParseAdminState(word string) (AdminState, error) {
	for _, a := range []AdminState{Ready, Drain, Maintenance} {
		if word == a.String() {
			return a, nil
		}
	}
	return Ready, fmt.Errorf("unknown admin state %q: use one of ready, drain, maintenance", word)
}

// Status is what is known of one server. Its Checker and the admin write it; every loop reads it without a lock. It outlives its
// Checker: a reload that changes how a server is checked keeps what is known of it. The zero value is a server of which nothing
// is known, in admin state ready.
type Status struct {
	word    atomic.Uint32               // State, AdminState, grace and ejection together, so that they are read as of one moment
	trouble atomic.Uint32               // what requests say, as far as every request has to know; 0: nothing. See traffic.go
	missing atomic.Pointer[[]bool]      // by path: answered with 404; nil: none. The slice is never changed
	timings atomic.Pointer[timings]     // how long the server takes; nil: nobody wants to know
	options atomic.Pointer[[]*Options]  // by path: what it has last said; nil: nothing. The slice is never changed
	lacking atomic.Pointer[[]methodSet] // by path: methods that are routed there and that it does not do; nil: none. The slice is never changed
	istags  atomic.Uint64               // changes of the ISTag
	since   atomic.Int64                // when State was entered, Unix nanoseconds; 0: never
	latest  atomic.Pointer[verdict]
	probe   atomic.Pointer[ProbeVerdict]
	proving atomic.Bool // it answers checks, and whether it scans is being found out: it gets no grace for that
	notify  atomic.Pointer[func(usable, cold bool)]
	traffic traffic // what requests say besides
}

// verdict is the outcome of one check.
type verdict struct {
	fault       string // "": none
	unreachable bool   // it was that no connection came about
	took        time.Duration
}

// Layout of Status.word.
const (
	stateMask  = 0b00011
	adminShift = 2
	adminMask  = 0b01100
	graceBit   = 0b10000
	ejectedBit = 1 << 5
	coldBit    = 1 << 6 // it was down, in maintenance or ejected, and has not been usable since
)

// State returns the result of the active checks.
func (s *Status) State() State { return State(s.word.Load() & stateMask) }

// Admin returns what an operator has set.
func (s *Status) Admin() AdminState { return AdminState(s.word.Load() & adminMask >> adminShift) }

// Usable says whether the server may get a new request for a path: the index of the path in CheckConfig.Paths, -1 for one that is
// not among them. The table in the package comment has all cases.
func (s *Status) Usable(path int) bool {
	return usable(s.word.Load()) && !s.lacks(path)
}

// Ejected says whether the server is taken out because of the requests that it has failed.
func (s *Status) Ejected() bool { return s.word.Load()&ejectedBit != 0 }

// UsableButEjected says whether the server may get a request for a path when nobody else can: only its ejection speaks against it.
func (s *Status) UsableButEjected(path int) bool {
	word := s.word.Load()
	return word&ejectedBit != 0 && usable(word&^ejectedBit) && !s.lacks(path)
}

// Admitted says whether the server may get a request for a path whatever the checks say: no operator has taken it out, and it knows the path.
func (s *Status) Admitted(path int) bool {
	return s.Admin() == Ready && !s.lacks(path)
}

// lacks says whether a path is missing.
func (s *Status) lacks(path int) bool {
	missing := s.missing.Load()
	return missing != nil && path >= 0 && path < len(*missing) && (*missing)[path]
}

// usable is the truth table of the package comment.
func usable(word uint32) bool {
	state, admin, grace := State(word&stateMask), AdminState(word&adminMask>>adminShift), word&graceBit != 0
	return admin == Ready && word&ejectedBit == 0 && (state == Up || state == Checking && grace)
}

// Since returns when the current State was entered, the zero time if no Checker has taken the server up yet.
func (s *Status) Since() time.Time {
	ns := s.since.Load()
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// Checked says whether a check has been completed, whatever its result, and the probe that follows a good one: the first round is over
// for this server.
func (s *Status) Checked() bool {
	return s.latest.Load() != nil && (!s.proving.Load() || s.probe.Load() != nil)
}

// LastError says what was wrong in the latest check, "" if nothing was.
func (s *Status) LastError() string {
	if v := s.latest.Load(); v != nil {
		return v.fault
	}
	return ""
}

// Unreachable says whether the latest check could not even connect.
func (s *Status) Unreachable() bool {
	v := s.latest.Load()
	return v != nil && v.unreachable
}

// Gone says whether it can't be the checks that fail: the latest one could not even connect, and nobody else has heard anything of the server since.
func (s *Status) Gone() bool { return s.State() == Down && s.Doubted() && s.Unreachable() }

// LastDuration returns how long the latest check took.
func (s *Status) LastDuration() time.Duration {
	if v := s.latest.Load(); v != nil {
		return v.took
	}
	return 0
}

// Missing returns which of CheckConfig.Paths the server has answered with 404, by index; nil if none. It must not be changed.
func (s *Status) Missing() []bool {
	if m := s.missing.Load(); m != nil {
		return *m
	}
	return nil
}

// SetAdmin sets the admin state. Requests that run are not touched. A server that leaves maintenance is checked at its next
// interval: call Checker.Expedite to have it at once.
func (s *Status) SetAdmin(a AdminState) {
	s.update(func(word uint32) uint32 { return word&^adminMask | uint32(a)<<adminShift })
}

// SetState is for the server's Checker, and for tests that have none. The grace ends with any verdict.
func (s *Status) SetState(to State) {
	s.since.Store(time.Now().UnixNano())
	s.update(func(word uint32) uint32 { return word&^(stateMask|graceBit) | uint32(to) })
}

// setProving says whether the server answers checks and its first probe is still to come to a verdict.
func (s *Status) setProving(on bool) {
	s.proving.Store(on)
	if on {
		s.setGrace(false)
	}
}

// setGrace gives or takes the grace, which only a server without a verdict can have, and none whose verdict is on its way.
func (s *Status) setGrace(on bool) {
	s.update(func(word uint32) uint32 {
		if on && State(word&stateMask) == Checking && !s.proving.Load() {
			return word | graceBit
		}
		return word &^ graceBit
	})
}

// setMissing says which paths are missing; nil or all false: none. Ownership of the slice passes to the Status.
func (s *Status) setMissing(missing []bool) {
	var now *[]bool
	if slices.Contains(missing, true) {
		now = &missing
	}
	if s.missing.Swap(now) != nil || now != nil {
		s.tell(now == nil, false)
	}
}

func (s *Status) update(f func(word uint32) uint32) {
	if changed, usable, cold := s.change(f); changed {
		s.tell(usable, cold)
	}
}

// change changes the word and tells nobody yet. usable and cold are as of OnChange.
func (s *Status) change(f func(word uint32) uint32) (changed, is, cold bool) {
	for {
		old := s.word.Load()
		word := f(old)
		if State(word&stateMask) == Down || AdminState(word&adminMask>>adminShift) == Maintenance || word&ejectedBit != 0 {
			word |= coldBit
		}
		if is, cold = usable(word), false; is {
			cold = word&coldBit != 0
			word &^= coldBit
		}
		if s.word.CompareAndSwap(old, word) {
			return word != old, is, cold
		}
	}
}

// OnChange sets what is called whenever the Status has changed, and says whether the server is usable now, for all paths or for some: somebody may
// be waiting for it, or have to be sent elsewhere. One that was not usable before counts, too: its verdict may be the one after which health is
// not looked at any more. cold says that it may have been started just now: since it was usable last it has been down, in maintenance or ejected. f is
// called by whoever changed the Status, and must not block.
func (s *Status) OnChange(f func(usable, cold bool)) { s.notify.Store(&f) }

func (s *Status) tell(usable, cold bool) {
	if f := s.notify.Load(); f != nil {
		(*f)(usable, cold)
	}
}
