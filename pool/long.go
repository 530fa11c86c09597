package pool

import (
	"sync"
	"sync/atomic"
)

// LongStream is a request that has been with its server for longer than a pool's long_streams.after. It is embedded in the transaction, so
// nothing is allocated. Fields below Yield are guarded by mu of the server's longStreams.
type LongStream struct {
	// Yield is called, on any goroutine and with no lock held, when the stream is to give its connection back. Until its loop knows of that, the stream may
	// have ended: Yields tells. It must only post to the loop. Static.
	Yield func()

	next, prev *LongStream
	state      longState
}

type longState uint8

const (
	notLong  longState = iota
	isLong             // in the list of its server
	isChosen           // it is to give its connection back, and is in the list no more
)

// longStreams are those of a server, on all loops. The lock is taken when a request becomes long and when such a one ends, not for others.
type longStreams struct {
	n atomic.Int32

	mu          sync.Mutex
	first, last *LongStream // by the time at which they became long, oldest first
}

// LongStreams is the number of requests that are long, without those that have been told to give their connection back.
func (s *Server) LongStreams() int { return int(s.slots.long.n.Load()) }

// MaxLong is how many connections long streams may hold: a share of the cap, one at least. 0: no limit, as there is no cap or no share.
func (s *Server) MaxLong() int {
	limit, share := s.Cap(), s.limits.Load().LongShare
	if limit == 0 || share == NoLongShare {
		return 0
	}
	return max(1, int(share*float64(limit)+1e-9))
}

// AddLong notes that w has become long. If that makes too many, the oldest yields.
func (s *Server) AddLong(w *LongStream) {
	l := &s.slots.long
	l.mu.Lock()
	if w.state != notLong {
		panic("BUG: pool: a stream becomes long twice")
	}
	w.state, w.prev = isLong, l.last
	if l.last != nil {
		l.last.next = w
	} else {
		l.first = w
	}
	l.last = w
	l.n.Add(1)
	l.mu.Unlock()
	s.slots.latest.Load().TrimLong()
}

// RemoveLong notes that w has ended, or is with the server no more.
func (s *Server) RemoveLong(w *LongStream) {
	l := &s.slots.long
	l.mu.Lock()
	defer l.mu.Unlock()
	if w.state == isLong {
		l.unlink(w)
	}
	w.state = notLong
}

// Yields says whether w is to give its connection back.
func (s *Server) Yields(w *LongStream) bool {
	l := &s.slots.long
	l.mu.Lock()
	defer l.mu.Unlock()
	return w.state == isChosen
}

// TrimLong has the oldest streams yield while there are too many. It is called whenever MaxLong may have become smaller.
func (s *Server) TrimLong() {
	l := &s.slots.long
	for most := s.MaxLong(); most > 0 && int(l.n.Load()) > most; {
		w := l.choose(most)
		if w == nil {
			return
		}
		w.Yield()
	}
}

// choose takes the oldest stream out of the list if there are more than most, nil: there are not.
func (l *longStreams) choose(most int) *LongStream {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.first
	if w == nil || int(l.n.Load()) <= most {
		return nil
	}
	l.unlink(w)
	w.state = isChosen
	return w
}

// unlink is called with mu held.
func (l *longStreams) unlink(w *LongStream) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		l.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		l.last = w.prev
	}
	w.next, w.prev = nil, nil
	l.n.Add(-1)
}
