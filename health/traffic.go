package health

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// traffic is what the requests to a server say of it when not all is well. Loops write it without a lock. While all is well an answer costs a read of
// Status.trouble and of Status.timings, which nobody writes then.
type traffic struct {
	heardAt  atomic.Int64  // loop time in ns of the sign of life that ended the latest doubt
	fresh    atomic.Int64  // loop time in ns: attempts that began before say nothing new, since the server has been ejected after them
	failures atomic.Uint64 // attempts that failed
	void     atomic.Uint64 // attempts that have ended and say nothing of the server
	checks   atomic.Uint64 // checks begun: their numbers
}

// Layout of Status.trouble.
const (
	runMask    = 0xffff  // failures in a row
	requestBit = 1 << 16 // not all of these were failures to connect
	checkBit   = 1 << 17 // a check has begun, and the server has answered nobody since, not even the check
	doubtBit   = 1 << 18 // see Doubted
)

// Answered notes an answer that was good to its end, which ends a run of failures; true: it ended a doubt, too.
func (s *Status) Answered(now int64) (relieved bool) {
	return s.trouble.Load() != 0 && s.clear(runMask|requestBit|checkBit|doubtBit, now)
}

// Heard notes an answer of any kind, by which the server lives; true: it ended a doubt.
func (s *Status) Heard(now int64) (relieved bool) {
	return s.trouble.Load()&(checkBit|doubtBit) != 0 && s.clear(checkBit|doubtBit, now)
}

func (s *Status) clear(mask uint32, now int64) (relieved bool) {
	if s.trouble.Load()&mask&doubtBit != 0 {
		s.traffic.heardAt.Store(now)
	}
	return s.trouble.And(^mask)&mask&doubtBit != 0
}

// Doubted says whether the server has been asked and nothing at all is heard of it: a connect waits for its answer, or a check has failed while
// nobody else got an answer either. That is no verdict; but as long as there are others, they are the better choice. Any answer ends it.
func (s *Status) Doubted() bool { return s.trouble.Load()&doubtBit != 0 }

// Doubt begins a doubt; false: there was one already.
func (s *Status) Doubt() (begun bool) { return s.trouble.Or(doubtBit)&doubtBit == 0 }

// HeardSince says whether a doubt has been ended at or after a loop time.
func (s *Status) HeardSince(at int64) bool { return s.traffic.heardAt.Load() >= at }

// beginCheck returns the number of a check that begins.
func (s *Status) beginCheck() uint64 {
	s.trouble.Or(checkBit)
	return s.traffic.checks.Add(1)
}

// answersCheck notes that the check has got an answer, be it a bad one.
func (s *Status) answersCheck() { s.trouble.And(^uint32(checkBit)) }

// Unheard says whether nobody has got an answer since the latest check began.
func (s *Status) Unheard() bool { return s.trouble.Load()&checkBit != 0 }

// Void notes that an attempt has ended that says nothing of the server: it said that it is full, or the fault was the client's or ours. It is
// called before the attempt counts as ended.
func (s *Status) Void() { s.traffic.void.Add(1) }

// failed counts a failure. It returns how many there have been in a row, and whether all of them were failures to connect.
func (s *Status) failed(connect bool) (run int, connects bool) {
	s.traffic.failures.Add(1)
	for {
		old := s.trouble.Load()
		word := old
		if word&runMask < runMask {
			word++
		}
		if !connect {
			word |= requestBit
		}
		if s.trouble.CompareAndSwap(old, word) {
			return int(word & runMask), word&requestBit == 0
		}
	}
}

// forgetRun begins to count failures in a row anew.
func (s *Status) forgetRun() { s.trouble.And(^uint32(runMask | requestBit)) }

// Timed says whether somebody wants to know how long the server takes: Took is to be called.
func (s *Status) Timed() bool { return s.timings.Load() != nil }

// Took notes how long in ns the server took for the first byte of an answer, once it had all that it could get.
func (s *Status) Took(ns int64) {
	if t := s.timings.Load(); t != nil {
		t[timingBucket(ns)].Add(1)
	}
}

// timings counts times in buckets of a quarter of their power of two: a quantile is right to within 25 %. All loops write it.
type timings [timingBuckets]atomic.Uint32

// timingCounts are the timings as of one moment.
type timingCounts [timingBuckets]uint32

const (
	timingBuckets = 96 // up to 137 s
	timingUnit    = 13 // 2^13 ns are the width of the smallest buckets
)

func timingBucket(ns int64) int {
	v := uint64(max(ns, 0)) >> timingUnit
	if v < 4 {
		return int(v)
	}
	e := bits.Len64(v) - 3
	return min(4*e+int(v>>e), timingBuckets-1)
}

// timingBound is where a bucket ends.
func timingBound(bucket int) time.Duration {
	if bucket < 4 {
		return time.Duration(bucket+1) << timingUnit
	}
	e := bucket/4 - 1
	return time.Duration(bucket%4+5) << (e + timingUnit)
}

func (t *timings) counts() *timingCounts {
	c := new(timingCounts)
	for i := range t {
		c[i] = t[i].Load()
	}
	return c
}

// p95 is the time within which 95 % of n were answered that have been counted between two moments.
func p95(from, to *timingCounts) (took time.Duration, n int) {
	for i := range to {
		n += int(to[i] - from[i])
	}
	left := n / 20 // as many took longer
	for i := timingBuckets - 1; i >= 0 && n > 0; i-- {
		if left -= int(to[i] - from[i]); left < 0 {
			return timingBound(i), n
		}
	}
	return 0, n
}
