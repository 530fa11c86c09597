package gateway

import (
	"fmt"
	"slices"

	"icapgate/configs"
	"icapgate/gateway/spill"
)

// This file keeps requests replayable that have outgrown replay_buffer (retry.spill). The bytes behind those in held go to the server as they come,
// and into a file as well. When the server fails, another one gets what is in held, then what is in the file, a block at a time, and then what
// the client still sends, which waits until then.

// spilling is the part of a transaction's request that is in a file. Owned by the loop.
type spilling struct {
	file    *spill.File // nil: none
	resent  int64       // bytes of file that the server of the running attempt has got
	reading bool        // a block of file is on its way
}

// spillResult says what came of a file: the label of spills_total.
type spillResult uint8

const (
	spillKept     spillResult = iota // it was there as long as it might be needed
	spillTooLarge                    // the request outgrew retry.spill
	spillFull                        // all of them together had limits.max_spill
	spillFailed                      // the disk did not take it or give it back, or there was no descriptor
	spillResults  = iota
)

var spillNames = [spillResults]string{"kept", "too_large", "full", "failed"}

// openSpills opens the folder for the files if a pool wants some and it is not open yet.
func (g *Gateway) openSpills(cfg *configs.Config) error {
	wanted := slices.ContainsFunc(cfg.Pools, func(p configs.Pool) bool { return p.Retry.Spill > 0 })
	if !wanted || g.spills.Load() != nil {
		return nil
	}
	s, err := spill.Open(cfg.StateDir)
	if err != nil {
		return fmt.Errorf("retry.spill: %w (state_dir says where)", err)
	}
	g.spills.Store(s)
	return nil
}

// limitSpills puts limits.max_spill in force.
func (g *Gateway) limitSpills(cfg *configs.Config) {
	if s := g.spills.Load(); s != nil {
		s.SetMax(int64(cfg.Limits.MaxSpill))
	}
}

// begin is called when an attempt begins: its server has nothing of the file.
func (p *spilling) begin() { p.resent, p.reading = 0, false }

// caughtUp says whether the server of the running attempt has got all that is in the file.
func (p *spilling) caughtUp() bool { return p.file == nil || p.resent == p.file.Size() }

// beginSpill is called when the request outgrows held, of which the server has all: from now on its bytes are kept in a file or, if that is not
// possible, not at all.
func (t *transaction) beginSpill() {
	l, most := t.s.loop, int64(t.pool.table.cfg.Retry.Spill)
	if most == 0 || t.answered {
		t.dropHeld()
		return
	}
	if l.gw.spills.Load().Stalled() || !l.gw.limits.take(1) {
		l.stats.spills[spillFailed].Add(1)
		t.dropHeld()
		return
	}
	t.spilling = spilling{file: l.gw.spills.Load().New(most, spill.Events{
		Post:   func(f func()) { l.post(func() { l.guard(&t.s.conn, f) }) },
		Room:   func() { l.runLater(&t.s.conn) },
		Read:   t.onSpillRead,
		Fail:   t.onSpillError,
		Closed: func() { l.gw.limits.give(1) },
	})}
}

// keep adds bytes of the request to the file, and says whether they go to the server now, too. Otherwise it gets them from the file.
func (t *transaction) keep(p []byte) (live bool) {
	live = t.streaming()
	err := t.file.Append(p)
	if err == nil {
		if live {
			t.resent += int64(len(p))
		}
		return live
	}
	result := spillTooLarge
	if err == spill.ErrFull {
		result = spillFull
	}
	t.loseFile(result, live)
	return live
}

// onSpillError is called when the disk does not take what is kept.
func (t *transaction) onSpillError(err error) {
	l := t.s.loop
	if n, ok := l.gw.spillLog.next(); ok {
		l.log.Warn("large requests can't be replayed: look at the disk of state_dir", "error", err, "times", n)
	}
	t.loseFile(spillFailed, t.streaming())
}

// loseFile gives the file up. If the server has had all that was in it, live, the request goes on, and can't be replayed any more.
func (t *transaction) loseFile(result spillResult, live bool) {
	t.closeFile(result)
	t.dropHeld()
	switch {
	case live:
		t.s.loop.runLater(&t.s.conn) // its reading may have stopped for the file
	case t.srv != nil:
		t.srv.fail(failSpill, reasonSpillLost)
	default:
		t.leaveQueue()
		t.refuse(503, rejectOverloaded, 1)
	}
}

// resend gives the server the next bytes that are in the file, if it has got all that comes before them and takes more.
func (t *transaction) resend() {
	c := t.srv
	if t.reading || t.caughtUp() || c.state != serverBusy || t.previewOnly() || t.sent < len(t.held.B) {
		return
	}
	if c.pending() >= highWater {
		c.flush() // it may just be what was held, encrypted: when all of that is taken at once, no event says so
		if c.pending() >= highWater {
			return
		}
	}
	if p := t.file.Tail(t.resent); p != nil {
		t.sendKept(p)
		return
	}
	t.reading = true
	t.file.Read(t.resent)
}

// onSpillRead takes bytes that were read from the file at a place, for the attempt that runs now. That may not be the one that wanted them.
func (t *transaction) onSpillRead(at int64, p []byte, err error) {
	if err != nil {
		t.onSpillError(err)
		return
	}
	if !t.reading || at != t.resent || t.srv == nil || t.srv.state != serverBusy {
		return
	}
	t.reading = false
	t.sendKept(p)
	t.pump()
}

func (t *transaction) sendKept(p []byte) {
	t.resent += int64(len(p))
	t.srv.sendBody(p)
	if !t.caughtUp() {
		return
	}
	t.srv.readyAt = t.s.loop.now // what it takes from now on is its own time
	if t.answered {
		t.endSpill()
	}
	t.s.loop.runLater(&t.s.conn) // the client's bytes may come again
}

// endSpill gives the file up when an answer has begun, after which the request is not replayed: at once or, if the server still has to get some of
// it, then.
func (t *transaction) endSpill() {
	if t.file != nil && t.caughtUp() {
		t.dropHeld()
		t.s.loop.runLater(&t.s.conn) // its reading may have stopped for the file
	}
}

// closeFile closes the file, if there is one.
func (t *transaction) closeFile(result spillResult) {
	if t.file != nil {
		t.s.loop.stats.spills[result].Add(1)
		t.file.Close()
		t.spilling = spilling{}
	}
}
