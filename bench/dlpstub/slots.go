package dlpstub

import (
	"net"
	"slices"
	"sync"
	"time"
)

// slotLateness is how much of a slot's time the server takes on itself: a timer that fires late, a write that takes a moment, a machine that
// is busy with something else. The service of the next request in line begins when that of the one before was to end, so that N slots
// serve N requests per latency whatever the machine. What goes beyond is the client's, which is slow to send its body or to take its answer:
// the slot was busy.
const slotLateness = 250 * time.Millisecond

// slots are what requests are served in, and the line of those that wait for one: first come, first served.
type slots struct {
	mu       sync.Mutex
	busy     int
	line     []*conn
	peakLine int
	turned   uint64 // away, because the line was full
}

// slot is the place of one connection's request in the slots.
type slot struct {
	held  bool
	since time.Time      // when its service began
	asked time.Time      // when it joined the line
	turn  chan time.Time // tells a waiter that its service begins, and when that was to be
}

// takeSlot waits for a slot. False: the line is full.
func (c *conn) takeSlot() (bool, error) {
	s, cfg := &c.srv.slots, &c.srv.cfg
	if c.slot.turn == nil {
		c.slot.turn = make(chan time.Time, 1)
	}
	c.slot.asked, c.due = time.Now(), time.Time{}
	s.mu.Lock()
	switch {
	case s.busy < cfg.Slots:
		s.busy++
		s.mu.Unlock()
		c.slot.held, c.slot.since = true, c.slot.asked
		return true, nil
	case cfg.Queue >= 0 && len(s.line) >= cfg.Queue:
		s.turned++
		s.mu.Unlock()
		return false, nil
	}
	s.line = append(s.line, c)
	s.peakLine = max(s.peakLine, len(s.line))
	s.mu.Unlock()

	select {
	case c.slot.since = <-c.slot.turn:
		c.slot.held = true
		return true, nil
	case <-c.ended:
	}
	s.mu.Lock()
	i := slices.Index(s.line, c)
	if i >= 0 {
		s.line = slices.Delete(s.line, i, i+1)
	}
	s.mu.Unlock()
	if i < 0 { // it was this one's turn in the meantime
		c.slot.since = <-c.slot.turn
		c.slot.held = true
		c.leaveSlot()
	}
	return false, net.ErrClosed
}

// leaveSlot gives the slot, if there is one, to the next in line.
func (c *conn) leaveSlot() {
	if !c.slot.held {
		return
	}
	c.slot.held = false
	now := time.Now()
	start := c.due
	if late := now.Sub(start); late < 0 || late > slotLateness {
		start = now
	}
	s := &c.srv.slots
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.line) == 0 {
		s.busy--
		return
	}
	next := s.line[0]
	s.line = slices.Delete(s.line, 0, 1)
	if start.Before(next.slot.asked) {
		start = next.slot.asked
	}
	next.slot.turn <- start
}
