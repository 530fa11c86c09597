package balancer

import (
	"testing"
	"time"
)

func latency(ms ...int64) func([]Target) {
	return func(t []Target) {
		for i, d := range ms {
			if t[i].Latency = d; d > 0 {
				t[i].Latency = d * 1e6
			}
		}
	}
}

func TestPeakEWMATrace(t *testing.T) {
	tests := []struct {
		name    string
		weights []int32
		steps   []step
	}{
		{"the faster one, idle", []int32{1, 1}, []step{
			{latency(10, 20), "aaaa"},
			{latency(20, 10), "bbbb"},
		}},
		{"a slow one when the fast one has more to do", []int32{1, 1}, []step{
			{func(t []Target) { latency(10, 100)(t); inFlight(6, 0)(t) }, "aaaa"},
			{inFlight(13, 0), "bbbb"},
			{inFlight(13, 1), "aaaa"},
		}},
		{"by weight", []int32{4, 1}, []step{
			{func(t []Target) { latency(10, 10)(t); inFlight(4, 2)(t); t[0].Running, t[1].Running = 4, 1 }, "aaaa"},
			{inFlight(9, 1), "bbbb"},
			{inFlight(3, 1), "aaaa"},
		}},
		{"a slow one only when the fast one has far more to do than when it was fast", []int32{1, 1}, []step{
			{func(t []Target) { latency(10, 100)(t); inFlight(20, 0)(t); t[0].Running = 9 }, "aaaa"},
			{inFlight(130, 0), "bbbb"},
		}},
		{"little difference is none: the first one drawn", []int32{1, 1}, []step{
			{latency(10, 12), "bbabbaaa"},
		}},
		{"nothing known: by what runs", []int32{1, 1}, []step{
			{inFlight(0, 1), "aaaa"},
			{inFlight(2, 1), "bbbb"},
		}},
		{"nothing known of one: it is tried", []int32{1, 1}, []step{{latency(10, 0), "bbbb"}}},
		{"and then left alone until it has answered", []int32{1, 1}, []step{
			{latency(10, -1), "aaaa"},
			{latency(10, 30), "aaaa"},
		}},
		{"rather one not tried than one that is", []int32{1, 1}, []step{
			{func(t []Target) { latency(-1, 0)(t); inFlight(0, 5)(t) }, "bbbb"},
			{latency(-1, -1), "aaaa"},
		}},
		{"the only one, whatever is known", []int32{1, 1}, []step{
			{func(t []Target) { latency(10, -1)(t); t[0].Usable = false }, "bb"},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			runSteps(t, &peakEWMA{loaded(1)}, idle(tt.weights...), tt.steps)
		})
	}
}

func TestLatencyOverTime(t *testing.T) {
	const ms = int64(time.Millisecond)
	const s = int64(time.Second)
	var l Latency
	now := int64(100 * s)
	after := func(d, want, tolerance int64) {
		t.Helper()
		now += d
		if got := l.At(now); got < want-tolerance || got > want+tolerance {
			t.Fatalf("at %v: %v, want %v", time.Duration(now), time.Duration(got), time.Duration(want))
		}
	}
	after(0, 0, 0)
	l.Begin(now)
	after(9*s, -1, 0) // tried, and nothing heard
	after(1*s, 0, 0)  // for so long that it is tried again
	l.Observe(now, 10*ms, 0)
	after(0, 10*ms, 0)

	l.Observe(now, 50*ms, 0) // a rise counts at once
	after(0, 50*ms, 0)
	l.Observe(now, 10*ms, 0) // a fall with the time that goes by
	after(0, 50*ms, 0)
	for range 10 {
		now += s
		l.Observe(now, 10*ms, 0)
	}
	after(0, 10*ms+40*ms*368/1000, ms/10) // 1/e is left after 10 s

	for range 100 {
		now += s
		l.Observe(now, 10*ms, 0)
	}
	l.Observe(now, 60*s, 0) // but one outlier is not the end
	after(0, 80*ms, ms/10)
	l.Observe(now, 60*s, 0)
	l.Observe(now, 60*s, 0)
	l.Observe(now, 60*s, 0)
	l.Observe(now, 3600*s, 0)
	after(0, 60*s, 0)

	after(10*s, 60*s*368/1000, 60*ms) // not asked for 10 s
	l.Begin(now)
	after(0, 60*s, 0) // asked again: what was known holds until it has answered
	l.Observe(now+ms, 10*ms, 0)
	now += ms
	after(0, 60*s*368/1000, 60*ms)
}

func TestLatencyOfFailures(t *testing.T) {
	var l Latency
	l.Fail(1)
	if got := l.At(1); got != int64(time.Second) {
		t.Errorf("after a failure before anything else: %v, want 1s", time.Duration(got))
	}
	l = Latency{}
	l.Observe(1, int64(10*time.Millisecond), 0)
	for range 2 {
		l.Fail(1)
	}
	if got := l.At(1); got != int64(640*time.Millisecond) {
		t.Errorf("10ms and two failures: %v, want 640ms", time.Duration(got))
	}
	for range 20 {
		l.Fail(1)
	}
	if got := l.At(1); got != int64(time.Minute) {
		t.Errorf("after many failures: %v, want 1m", time.Duration(got))
	}
}

func TestLatencyAllocatesNothing(t *testing.T) {
	l, now := new(Latency), int64(0)
	if n := testing.AllocsPerRun(100, func() {
		now += 1e7
		l.Begin(now)
		l.Observe(now, now%1e8, 0)
		l.Fail(now)
		l.At(now + 1e9)
	}); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func BenchmarkLatency(b *testing.B) {
	l, now := new(Latency), int64(1)
	b.ReportAllocs()
	for b.Loop() {
		now += 1e8
		l.Begin(now)
		l.Observe(now, 1e7, 0)
		l.At(now + 1e8)
	}
}
