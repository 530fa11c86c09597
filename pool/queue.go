package pool

import (
	"sync"
	"sync/atomic"
	"time"
)

// Waiter is a transaction that waits for a connection of its pool. It is embedded in the transaction, so queueing allocates
// nothing. Fields below Suits are guarded by the Queue's mu.
type Waiter struct {
	// Grant is called once, from the goroutine that freed the slot and with no lock held, when the waiter's turn has come. A slot of
	// the server is now the waiter's: with a connection if c is not nil (it belongs to no loop now), else to dial with. The
	// waiter uses it or gives it back. Grant must only post to the waiter's loop. Static while queued.
	Grant func(s *Server, c Conn)
	// Suits says how well a server would serve the waiter; nil: all serve it well. It is called on any goroutine, with the queue's mu held, while
	// the waiter is in line. What it has found out of the servers it may keep for the other waiters, as long as scan stays the same: all of
	// them are asked one after the other about one server. Static while queued; what it looks at changes in Update only.
	Suits func(s *Server, scan uint64) Fit

	wait       Wait
	next, prev *Waiter
	queued     bool
}

// Fit is how well a server would serve a waiter.
type Fit uint8

const (
	Unfit Fit = iota // not at all
	Spare            // better than none
	Good
)

// Wait is how a waiter stands in line.
type Wait struct {
	Since int64 // loop time in ns: its place, those who wait for longer are before it
	Cause Cause
	Own   *Server // that it waits for before all others, and to whose load it counts; nil: none
}

// Queue is a pool's line of waiters, first in first out, for all loops together. Only one for whom a server is Spare lets those before for whom it is
// Good, until it has waited for longer than they by the lead.
type Queue struct {
	depth atomic.Int32 // read without the lock: 0 on the fast path
	max   atomic.Int32
	lead  atomic.Int64 // ns

	mu          sync.Mutex
	first, last *Waiter
	byCause     [Causes]int
	scan        uint64 // number of the latest walk along the line

	counts waitCounts
}

// NewQueue returns a queue for at most max waiters.
func NewQueue(max int) *Queue {
	q := new(Queue)
	q.SetMax(max)
	return q
}

// SetMax changes the bound for later waiters.
func (q *Queue) SetMax(max int) { q.max.Store(int32(max)) }

// SetLead changes the lead.
func (q *Queue) SetLead(d time.Duration) { q.lead.Store(int64(d)) }

// Depth is the number of waiters.
func (q *Queue) Depth() int { return int(q.depth.Load()) }

// IsFull says whether Push would refuse a waiter now.
func (q *Queue) IsFull() bool { return q.depth.Load() >= q.max.Load() }

// Push puts w in line, at the end unless it has waited for longer than others; false: the queue is full.
func (q *Queue) Push(w *Waiter, wait Wait) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w.queued {
		panic("BUG: pool: waiter queued twice")
	}
	if q.IsFull() {
		return false
	}
	before := q.last
	for before != nil && before.wait.Since > wait.Since {
		before = before.prev
	}
	w.wait, w.queued, w.prev, w.next = wait, true, before, q.first
	if before != nil {
		w.next, before.next = before.next, w
	} else {
		q.first = w
	}
	if w.next != nil {
		w.next.prev = w
	} else {
		q.last = w
	}
	q.depth.Add(1)
	q.byCause[wait.Cause]++
	if wait.Own != nil {
		wait.Own.waiting.Add(1)
	}
	return true
}

// Remove takes w out of the line; false: it was not in it any more, its Grant has been or is being called.
func (q *Queue) Remove(w *Waiter) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !w.queued {
		return false
	}
	q.unlink(w)
	return true
}

// Update runs f, which changes what w's Suits looks at, while nobody asks; false: w is not in line any more, and f has not run.
func (q *Queue) Update(w *Waiter, f func()) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w.queued {
		f()
	}
	return w.queued
}

// Has says whether w is in line.
func (q *Queue) Has(w *Waiter) bool { return q.Update(w, func() {}) }

// Offer gives the free slots of s to the first waiters that can use them. It is called after Release, and whenever a cap has grown
// or a server has become usable. The slots are acquired here; nothing happens when nobody waits or no slot is free.
func (q *Queue) Offer(s *Server) {
	for q.depth.Load() > 0 && s.HasSlot() {
		w := q.next(s, true)
		if w == nil {
			return
		}
		w.Grant(s, nil)
	}
}

// Next takes the first waiter that can use s out of the line, for a connection whose slot is taken already; nil: none. The
// caller calls its Grant.
func (q *Queue) Next(s *Server) *Waiter {
	if q.depth.Load() == 0 {
		return nil
	}
	return q.next(s, false)
}

func (q *Queue) next(s *Server, acquire bool) *Waiter {
	q.mu.Lock()
	defer q.mu.Unlock()
	w := q.choose(s)
	if w == nil || acquire && !s.Acquire() {
		return nil
	}
	q.unlink(w)
	return w
}

// choose finds the waiter whose turn it is to have s, nil: none. It is called with mu held.
func (q *Queue) choose(s *Server) *Waiter {
	var spare *Waiter
	lead := q.lead.Load()
	q.scan++
	for w := q.first; w != nil; w = w.next {
		if spare != nil && w.wait.Since-spare.wait.Since >= lead {
			break
		}
		fit := Good
		if w.Suits != nil {
			fit = w.Suits(s, q.scan)
		}
		if fit == Good {
			return w
		}
		if fit == Spare && spare == nil {
			spare = w
		}
	}
	return spare
}

// unlink is called with mu held.
func (q *Queue) unlink(w *Waiter) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		q.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		q.last = w.prev
	}
	q.depth.Add(-1)
	q.byCause[w.wait.Cause]--
	if w.wait.Own != nil {
		w.wait.Own.waiting.Add(-1)
	}
	w.next, w.prev, w.queued, w.wait = nil, nil, false, Wait{}
}
