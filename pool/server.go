package pool

import (
	"math"
	"net/netip"
	"sync/atomic"

	"icapgate/health"
)

// Server is one server of a pool: an ip:port. It lives as long as some table names it, so its counters and
// health survive a reload. All methods may be called from any goroutine.
type Server struct {
	// Static after construction.
	Addr      netip.AddrPort
	Name      string // "ip:port": metric label and log value
	Authority string // "host:port" as configured: goes into the request line and Host
	Health    *health.Status
	Queue     *Queue // of its pool: gets what Release frees

	slots    *slots // of the address; static after Inherit
	expedite atomic.Pointer[func()]
	limits   atomic.Pointer[Limits]

	weight    atomic.Int32 // twice the weight, and 1 if an operator has set it
	learnt    atomic.Int32 // Max-Connections as the server last said, 0: nothing said
	idle      atomic.Int32 // idle ones among them
	inFlight  atomic.Int32 // attempts running
	waiting   atomic.Int32 // requests in line for it before all others: Wait.Own
	requests  atomic.Uint64
	fullUntil atomic.Int64 // loop time in ns until which the server said 503: skip it
	startedAt atomic.Int64 // loop time in ns of the beginning of its slow start, 0: there was none
}

// slots are the connections to an address: of its Server, and of those before it that were there under another name or left for a while, as
// long as requests run on them.
type slots struct {
	taken  atomic.Int32           // connecting, busy and idle connections
	latest atomic.Pointer[Server] // of those that share them
	long   longStreams
}

// Limits is what the configuration says about a server's connections.
type Limits struct {
	MaxConnections  int     // 0: as learnt from the server, none learnt: unlimited
	ConnectionShare int     // gateways that share the server's cap, >= 1, or ShareUnknown
	Reserve         int     // connections left free for checks
	LongShare       float64 // of the cap, for long streams; NoLongShare: they have no bound
}

// NoLongShare is the LongShare of servers on which long streams have no bound.
const NoLongShare = -1

// ShareUnknown is a ConnectionShare that leaves one connection: any number of gateways could be there.
const ShareUnknown = math.MaxInt32

// NewServer returns a server without connections.
func NewServer(addr netip.AddrPort, authority string, weight int, l Limits, q *Queue) *Server {
	s := &Server{Addr: addr, Name: addr.String(), Authority: authority, Health: new(health.Status), Queue: q, slots: new(slots)}
	s.slots.latest.Store(s)
	s.ResetWeight(weight)
	s.limits.Store(&l)
	return s
}

// Inherit has the connections of before count, which was at the same address: what is there counts them together. It is called before anything else.
func (s *Server) Inherit(before *Server) {
	s.slots = before.slots
	s.slots.latest.Store(s)
}

// SetExpedite says how the next check is brought forward; f must not block.
func (s *Server) SetExpedite(f func()) { s.expedite.Store(&f) }

// Expedite brings the next check forward: real traffic has met an error.
func (s *Server) Expedite() {
	if f := s.expedite.Load(); f != nil {
		(*f)()
	}
}

// SetLimits replaces the configured limits; connections beyond a smaller cap are not cut.
func (s *Server) SetLimits(l Limits) { s.limits.Store(&l) }

// Weight is the server's share of new requests; 0: none.
func (s *Server) Weight() int { return int(s.weight.Load() >> 1) }

// SetWeight is an operator's word, which lasts until ResetWeight.
func (s *Server) SetWeight(w int) { s.weight.Store(int32(w)<<1 | 1) }

// ResetWeight puts the weight of a configuration in force.
func (s *Server) ResetWeight(w int) { s.weight.Store(int32(w) << 1) }

// FollowWeight puts a weight in force that DNS has changed, unless an operator has set one.
func (s *Server) FollowWeight(w int) {
	for {
		was := s.weight.Load()
		if was&1 != 0 || s.weight.CompareAndSwap(was, int32(w)<<1) {
			return
		}
	}
}

// Parts is into how many parts a unit of weight is divided, so that a server can have less than one in slow start. leastParts is what it begins with.
const (
	Parts      = 1000
	leastParts = Parts / 10
)

// StartSlowly begins a slow start: the server is cold.
func (s *Server) StartSlowly(now int64) { s.startedAt.Store(now) }

// Share is the weight of now in Parts: a tenth of it at the beginning of a slow start, which takes span ns, and all of it at its end.
func (s *Server) Share(now, span int64) int32 {
	weight := s.weight.Load() >> 1
	if at := s.startedAt.Load(); at != 0 && span > 0 && now-at < span {
		return weight * (leastParts + int32((Parts-leastParts)*max(now-at, 0)/span))
	}
	return weight * Parts
}

func (s *Server) Connections() int { return int(s.slots.taken.Load()) }
func (s *Server) Idle() int        { return int(s.idle.Load()) }
func (s *Server) InFlight() int    { return int(s.inFlight.Load()) }

// Load is what the server has to do: attempts that run, and requests that wait for it before all others.
func (s *Server) Load() int { return int(s.inFlight.Load() + s.waiting.Load()) }

// Requests is the number of attempts ever begun.
func (s *Server) Requests() uint64 { return s.requests.Load() }

// Learn notes the Max-Connections of an OPTIONS answer; 0 (not said) changes nothing.
func (s *Server) Learn(maxConnections int) {
	if maxConnections > 0 {
		s.learnt.Store(int32(min(maxConnections, 1<<30)))
	}
}

// Cap is the largest number of connections that this gateway opens to the server, checks not counted; 0: unlimited.
func (s *Server) Cap() int {
	l := s.limits.Load()
	c := l.MaxConnections
	if c == 0 {
		c = int(s.learnt.Load())
	}
	if c == 0 {
		return 0
	}
	return max(1, c/max(1, l.ConnectionShare)-l.Reserve)
}

// Acquire takes a connection slot; false: the server has as many connections as its cap allows.
func (s *Server) Acquire() bool {
	limit := int32(s.Cap())
	for {
		n := s.slots.taken.Load()
		if limit > 0 && n >= limit {
			return false
		}
		if s.slots.taken.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Release gives a slot back; the first waiter that can use it gets it.
func (s *Server) Release() {
	if s.slots.taken.Add(-1) < 0 {
		panic("BUG: pool: more slots released than acquired")
	}
	s.Queue.Offer(s)
	if latest := s.slots.latest.Load(); latest != s {
		latest.Queue.Offer(latest)
	}
}

// Begin and End bracket one attempt.
func (s *Server) Begin() { s.inFlight.Add(1); s.requests.Add(1) }
func (s *Server) End()   { s.inFlight.Add(-1) }

// Ended is the number of attempts that have come to their end. While others begin it may be too low by these for a moment.
func (s *Server) Ended() uint64 {
	begun := s.requests.Load() // first: what begins now is not taken for ended
	return begun - min(uint64(s.inFlight.Load()), begun)
}

// MarkFull notes that the server answered 503: it is skipped until then (loop time, ns).
func (s *Server) MarkFull(until int64) { s.fullUntil.Store(until) }

// FullUntil is when the server is no longer skipped because it answered 503 (loop time, ns).
func (s *Server) FullUntil() int64 { return s.fullUntil.Load() }

// HasSlot says whether Acquire would succeed now.
func (s *Server) HasSlot() bool {
	limit := s.Cap()
	return limit == 0 || int(s.slots.taken.Load()) < limit
}

// OverCap says whether there are more connections than the cap allows, because it has become smaller.
func (s *Server) OverCap() bool {
	limit := s.Cap()
	return limit > 0 && int(s.slots.taken.Load()) > limit
}

// Full says whether the server is to be skipped now because it said that it is full.
func (s *Server) Full(now int64) bool { return now < s.fullUntil.Load() }
