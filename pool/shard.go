package pool

import "time"

// Conn is what a Shard knows of an idle connection. Times are loop times in ns.
type Conn interface {
	// State returns the connection's own book-keeping; the Shard reads it, its owner writes it.
	State() *ConnState
}

// ConnState is one connection's age and use. Owned by whoever owns the connection: the transaction while it is
// busy, the Shard while it is idle.
type ConnState struct {
	Born     int64
	LastUse  int64 // when it became idle
	Requests int   // requests sent on it
}

// IdleLimits say when an idle connection is not used again.
type IdleLimits struct {
	Timeout     time.Duration // since its last use; 0: no limit
	MaxAge      time.Duration // since it was opened; 0: no limit
	MaxRequests int           // 0: no limit
}

// Reusable says whether a connection may serve another request.
func (l *IdleLimits) Reusable(s *ConnState, now int64) bool {
	return (l.MaxAge <= 0 || now-s.Born < int64(l.MaxAge)) &&
		(l.MaxRequests <= 0 || s.Requests < l.MaxRequests)
}

// Shard holds one loop's idle connections to one server, last in first out: the warmest is used first and the
// others age out. Owned by the loop. The slots of idle connections stay taken.
type Shard[C Conn] struct {
	Server *Server
	idle   []C
}

// Len is the number of idle connections of this loop.
func (h *Shard[C]) Len() int { return len(h.idle) }

// Put parks a connection.
func (h *Shard[C]) Put(c C, now int64) {
	c.State().LastUse = now
	h.idle = append(h.idle, c)
	h.Server.idle.Add(1)
}

// Get takes the connection that was used last; ok is false when there is none.
func (h *Shard[C]) Get() (c C, ok bool) {
	n := len(h.idle)
	if n == 0 {
		return c, false
	}
	c = h.idle[n-1]
	h.cut(n - 1)
	return c, true
}

// Oldest takes the connection that has been idle for the longest; ok is false when there is none.
func (h *Shard[C]) Oldest() (c C, ok bool) {
	n := len(h.idle)
	if n == 0 {
		return c, false
	}
	c = h.idle[0]
	copy(h.idle, h.idle[1:])
	h.cut(n - 1)
	return c, true
}

// Remove takes a connection out that came to its end while idle; false: it was not here.
func (h *Shard[C]) Remove(c C) bool {
	for i := len(h.idle) - 1; i >= 0; i-- {
		if Conn(h.idle[i]) == Conn(c) {
			copy(h.idle[i:], h.idle[i+1:])
			h.cut(len(h.idle) - 1)
			return true
		}
	}
	return false
}

func (h *Shard[C]) cut(n int) {
	var none C
	h.idle[n] = none
	h.idle = h.idle[:n]
	h.Server.idle.Add(-1)
}
