package pool

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// testStream is a long stream that notes when it is to yield.
func testStream(yields func()) *LongStream { return &LongStream{Yield: yields} }

func TestMaxLong(t *testing.T) {
	for _, tt := range []struct {
		cap   int
		share float64
		want  int
	}{
		{0, 0.5, 0}, {4, 0.5, 2}, {5, 0.5, 2}, {1, 0.5, 1}, {2, 0.1, 1}, {10, 0, 1}, {10, 1, 10}, {100, 0.29, 29}, {4, NoLongShare, 0},
	} {
		s := newTestServer(Limits{MaxConnections: tt.cap, ConnectionShare: 1, LongShare: tt.share})
		if got := s.MaxLong(); got != tt.want {
			t.Errorf("%v of %d connections: %d, want %d", tt.share, tt.cap, got, tt.want)
		}
	}
}

// The stream that has been long for the longest yields to a newcomer.
func TestOldestLongStreamYields(t *testing.T) {
	s := newTestServer(Limits{MaxConnections: 4, ConnectionShare: 1, LongShare: 0.5})
	var yielded []int
	var list []*LongStream
	for i := range 5 {
		list = append(list, testStream(func() { yielded = append(yielded, i) }))
	}
	check := func(long int, want ...int) {
		t.Helper()
		if !slices.Equal(yielded, want) || s.LongStreams() != long {
			t.Fatalf("%v yielded and %d are long, want %v and %d", yielded, s.LongStreams(), want, long)
		}
	}
	s.AddLong(list[0])
	s.AddLong(list[1])
	check(2)
	s.AddLong(list[2])
	check(2, 0)
	if !s.Yields(list[0]) || s.Yields(list[1]) {
		t.Error("others yield than were told")
	}
	s.RemoveLong(list[0])
	if s.Yields(list[0]) {
		t.Error("one that has ended yields")
	}
	s.AddLong(list[0]) // with its next request
	check(2, 0, 1)
	s.RemoveLong(list[2])
	check(1, 0, 1)
	s.AddLong(list[3])
	check(2, 0, 1)
	s.SetLimits(Limits{MaxConnections: 2, ConnectionShare: 1, LongShare: 0.5})
	s.TrimLong()
	check(1, 0, 1, 0)
	s.SetLimits(Limits{}) // without a cap there is no limit
	s.AddLong(list[4])
	s.TrimLong()
	check(2, 0, 1, 0)
}

// A server under another name shares its connections, and so the long streams, with the one before.
func TestLongStreamsAreInherited(t *testing.T) {
	before := newTestServer(Limits{MaxConnections: 4, ConnectionShare: 1, LongShare: 1})
	after := newTestServer(Limits{MaxConnections: 4, ConnectionShare: 1, LongShare: 0.25})
	after.Inherit(before)
	yielded := 0
	first, second := testStream(func() { yielded = 1 }), testStream(func() { yielded = 2 })
	before.AddLong(first)
	before.AddLong(second)
	if yielded != 1 || after.LongStreams() != 1 {
		t.Errorf("%d yielded, %d are long", yielded, after.LongStreams())
	}
	before.RemoveLong(first)
	before.RemoveLong(second)
	if n := after.LongStreams(); n != 0 {
		t.Errorf("%d are long", n)
	}
}

// Streams come and go on all loops at the same time.
func TestLongStreamsTogether(t *testing.T) {
	s := newTestServer(Limits{MaxConnections: 6, ConnectionShare: 1, LongShare: 0.5})
	var told, found atomic.Int32
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			w := testStream(func() { told.Add(1) })
			for range 1000 {
				s.AddLong(w)
				if s.Yields(w) {
					found.Add(1)
				}
				s.RemoveLong(w)
				if n := s.LongStreams(); n > 8 {
					t.Errorf("%d are long", n)
				}
			}
		})
	}
	group.Wait()
	if n := s.LongStreams(); n != 0 {
		t.Errorf("%d are long when all have ended", n)
	}
	if found.Load() > told.Load() {
		t.Errorf("%d yield, and %d were told", found.Load(), told.Load())
	}
}
