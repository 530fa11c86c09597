package pool

import (
	"sync"
	"sync/atomic"
)

// Waiter is a transaction that waits for a connection of its pool. It is embedded in the transaction, so queueing allocates
// nothing. All fields are guarded by the Queue's mu, except Grant, which is static while queued.
type Waiter struct {
	// Grant is called once, from the goroutine that freed the slot and with no lock held, when the waiter's turn has come. A slot of
	// the server is now the waiter's: with a connection if c is not nil (it belongs to no loop now), else to dial with. The
	// waiter uses it or gives it back. Grant must only post to the waiter's loop.
	Grant func(s *Server, c Conn)

	usable     func(s *Server) bool // may this server serve the waiter? nil: any
	next, prev *Waiter
	queued     bool
}

// Queue is a pool's line of waiters, first in first out, for all loops together.
type Queue struct {
	depth atomic.Int32 // read without the lock: 0 on the fast path

	mu          sync.Mutex
	first, last *Waiter
	max         int
}

// NewQueue returns a queue for at most max waiters.
func NewQueue(max int) *Queue { return &Queue{max: max} }

// SetMax changes the bound for later waiters.
func (q *Queue) SetMax(max int) {
	q.mu.Lock()
	q.max = max
	q.mu.Unlock()
}

// Depth is the number of waiters.
func (q *Queue) Depth() int { return int(q.depth.Load()) }

// Push appends w; false: the queue is full. usable says which servers' slots w can take.
func (q *Queue) Push(w *Waiter, usable func(s *Server) bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w.queued {
		panic("BUG: pool: waiter queued twice")
	}
	if int(q.depth.Load()) >= q.max {
		return false
	}
	w.usable, w.queued, w.next, w.prev = usable, true, nil, q.last
	if q.last != nil {
		q.last.next = w
	} else {
		q.first = w
	}
	q.last = w
	q.depth.Add(1)
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

// Offer gives the free slots of s to the first waiters that can use them. It is called after Release, and whenever a cap has grown
// or a server has become usable. The slots are acquired here; nothing happens when nobody waits or no slot is free.
func (q *Queue) Offer(s *Server) {
	for q.depth.Load() > 0 {
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
	for w := q.first; w != nil; w = w.next {
		if w.usable != nil && !w.usable(s) {
			continue
		}
		if acquire && !s.Acquire() {
			return nil
		}
		q.unlink(w)
		return w
	}
	return nil
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
	w.next, w.prev, w.queued, w.usable = nil, nil, false, nil
	q.depth.Add(-1)
}
