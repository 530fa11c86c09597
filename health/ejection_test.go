package health

import (
	"bytes"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

const second = int64(time.Second)

// ejections is an Ejector in front of servers whose requests a test makes up, and a clock that the test sets.
type ejections struct {
	*Ejector
	t       testing.TB
	now     int64
	servers []*ejectable
	log     bytes.Buffer
}

type ejectable struct {
	*Status
	weight int
	ended  uint64
	told   string // what OnChange has said last
}

// ejectionDefaults are those of the configuration.
var ejectionDefaults = EjectionConfig{
	Consecutive: 5, FailureShare: 0.5, Window: 10 * time.Second, MinRequests: 20, Time: 10 * time.Second, MaxTime: 5 * time.Minute, MaxShare: 0.5,
}

// newEjections makes n servers that are up. Ejections last as long as they can.
func newEjections(t testing.TB, n int, cfg EjectionConfig) *ejections {
	e := &ejections{t: t, now: 100 * second}
	e.Ejector = &Ejector{Logger: slog.New(slog.NewTextHandler(&e.log, nil)), Random: func() float64 { return 0 }}
	for range n {
		s := &ejectable{Status: new(Status), weight: 1}
		s.SetState(Up)
		s.OnChange(func(usable, cold bool) { s.told = fmt.Sprintf("usable %v, cold %v", usable, cold) })
		e.servers = append(e.servers, s)
	}
	e.SetConfig(cfg, e.now)
	e.SetMembers(e.list())
	return e
}

func (e *ejections) list() (list []Member) {
	for i, s := range e.servers {
		list = append(list, Member{string(rune('a' + i)), s.Status, func() int { return s.weight }, func() uint64 { return s.ended }})
	}
	return list
}

// play has things happen to server i, one letter each: g a good answer, x an error, c no connection, s silence, f 503.
func (e *ejections) play(i int, events string) {
	s := e.servers[i]
	for _, ev := range events {
		switch ev {
		case 'g':
			s.Answered(e.now)
		case 'x':
			e.Failed(s.Status, FailedRequest, e.now, e.now)
		case 'c':
			e.Failed(s.Status, FailedConnect, e.now, e.now)
		case 's':
			e.Failed(s.Status, FailedSilent, e.now, e.now)
		case 'f':
			s.Void()
		default:
			e.t.Fatalf("unknown event %c", ev)
		}
		s.ended++
	}
}

// pass lets time go by, with a Tick every 250 ms.
func (e *ejections) pass(d time.Duration) {
	for end := e.now + int64(d); e.now < end; {
		e.now = min(e.now+second/4, end)
		e.Tick(e.now)
	}
}

// out lists who is ejected, such as "ac".
func (e *ejections) out() string {
	var b strings.Builder
	for i, s := range e.servers {
		if s.Ejected() {
			b.WriteByte('a' + byte(i))
		}
	}
	if (b.Len() > 0) != e.Any() {
		e.t.Errorf("ejected are %q, but Any is %v", b.String(), e.Any())
	}
	return b.String()
}

func (e *ejections) want(want string) {
	e.t.Helper()
	if got := e.out(); got != want {
		e.t.Fatalf("at %v: ejected are %q, want %q", time.Duration(e.now), got, want)
	}
}

// check completes a check of server i that begins now.
func (e *ejections) check(i int, ok bool) {
	s := e.servers[i]
	number := s.beginCheck()
	e.endCheck(i, number, ok)
}

func (e *ejections) endCheck(i int, number uint64, ok bool) {
	s := e.servers[i]
	s.latest.Store(&verdict{unreachable: !ok})
	if ok {
		e.Checked(s.Status, number, e.now)
	}
}

func TestEjectConsecutive(t *testing.T) {
	for _, tt := range []struct {
		name, events string
		want         string
		reason       EjectionReason
	}{
		{"nothing", "", "", 0},
		{"four", "xxxx", "", 0},
		{"five", "xxxxx", "a", EjectedConsecutive},
		{"a good answer ends the run", "xxxxgxxxxgxxxx", "", 0},
		{"503 neither ends it nor adds to it", "xxffxffxx", "a", EjectedConsecutive},
		{"503 is never a failure", strings.Repeat("f", 100), "", 0},
		{"connects count", "xxccc", "a", EjectedConsecutive},
		{"and by themselves are another reason", "ccccc", "a", EjectedConnect},
		{"after a good answer it is their own run", "xxgccccc", "a", EjectedConnect},
		{"one connect without an answer is enough", "s", "a", EjectedConnect},
		{"whatever was before", "xxs", "a", EjectedConnect},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEjections(t, 2, ejectionDefaults)
			e.play(0, tt.events)
			e.want(tt.want)
			of := e.Of(e.servers[0].Status)
			if of.Out != (tt.want != "") || of.Reason != tt.reason {
				t.Errorf("ejections %+v, want reason %v", of, tt.reason)
			}
			if n := strings.Count(e.log.String(), "server is ejected"); n != len(tt.want) {
				t.Errorf("logged %d times: %s", n, &e.log)
			}
		})
	}
}

// It is 1 of 2, 1 of 3, 2 of 4, and never the last usable one.
func TestEjectMaxShare(t *testing.T) {
	for _, tt := range []struct {
		name   string
		states string // of each server: u up, d down, c checking, m in maintenance, 0 of weight 0; capital: it fails
		share  float64
		want   string
	}{
		{"one of one", "U", 0.5, ""},
		{"one of one, whatever the share", "U", 1, ""},
		{"one of two", "UU", 0.5, "a"},
		{"one of three", "UUU", 0.5, "a"},
		{"two of four", "UUUU", 0.5, "ab"},
		{"four of nine", "UUUUUUUUU", 0.5, "abcd"},
		{"share 0", "UUUU", 0, ""},
		{"share 1 leaves the last one", "UUUU", 1, "abc"},
		{"a tenth of ten", "UUUUUUUUUU", 0.1, "a"},
		{"the last usable one: the other is down", "Ud", 0.5, ""},
		{"is not known", "Uc", 0.5, ""},
		{"is in maintenance", "Umm", 1, ""},
		{"has no weight", "U0", 1, ""},
		{"servers that an operator has taken out do not count", "UUmm", 0.5, "a"},
		{"servers that are down do", "UUuddd", 0.5, "ab"},
		{"who is down is not ejected", "Duu", 0.5, ""},
		{"nor who is in maintenance", "Muu", 0.5, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := ejectionDefaults
			cfg.MaxShare = tt.share
			e := newEjections(t, len(tt.states), cfg)
			for i, c := range strings.ToLower(tt.states) {
				switch c {
				case 'd':
					e.servers[i].SetState(Down)
				case 'c':
					e.servers[i].SetState(Checking)
				case 'm':
					e.servers[i].SetAdmin(Maintenance)
				case '0':
					e.servers[i].weight = 0
				}
			}
			for i, c := range tt.states {
				if c < 'a' && c != '0' {
					e.play(i, "xxxxx")
				}
			}
			e.want(tt.want)
		})
	}
}

// A server that is the only one for a path is not ejected.
func TestEjectOnlyOneForPath(t *testing.T) {
	for want, missing := range map[string][][]bool{
		"":  {nil, {false, true}},
		"a": {{false, true}, {false, true}},
		"b": {{true, false}, nil}, // the second server stands in for the first, not the other way round
	} {
		e := newEjections(t, 2, ejectionDefaults)
		for i, m := range missing {
			e.servers[i].setMissing(m)
		}
		if want == "b" {
			e.play(1, "xxxxx")
			e.want("")
			e.play(0, "xxxxx")
			e.want("a")
			continue
		}
		e.play(0, "xxxxx")
		e.want(want)
	}
}

// A server that could not be spared is looked at again after as many failures more.
func TestEjectLater(t *testing.T) {
	e := newEjections(t, 2, ejectionDefaults)
	e.servers[1].SetState(Down)
	e.play(0, "xxxxxxx")
	e.servers[1].SetState(Up)
	e.play(0, "xx")
	e.want("")
	e.play(0, "x")
	e.want("a")
}

// Ejections last 10, 20, 40 s and so on up to 5 minutes; after as long a time of good service as one took it is forgotten.
func TestEjectionTimes(t *testing.T) {
	e := newEjections(t, 2, ejectionDefaults)
	lasts := func(want time.Duration) {
		t.Helper()
		e.play(0, "xxxxx")
		e.want("a")
		e.pass(want - time.Second/4)
		e.want("a")
		e.pass(time.Second / 4)
		e.want("")
	}
	for _, s := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
		lasts(s * time.Second)
		e.pass(time.Second)
	}
	e.pass(298 * time.Second)
	lasts(300 * time.Second) // not yet
	e.pass(300 * time.Second)
	lasts(300 * time.Second)
	e.pass((300 + 300 + 300 + 160) * time.Second)
	lasts(160 * time.Second) // level 4: 10 s times 2^4
	e.pass(time.Hour)
	lasts(10 * time.Second)
	if n := e.Of(e.servers[0].Status).Count; n != [EjectionReasons]uint64{EjectedConsecutive: 11} {
		t.Errorf("ejections %v, want 11 for failures in a row", n)
	}
}

// The jitter takes up to a tenth off, so that no ejection is longer than max_time.
func TestEjectionJitter(t *testing.T) {
	for random, want := range map[float64]time.Duration{0: 10 * time.Second, 0.5: 9500 * time.Millisecond, 0.999999: 9 * time.Second} {
		e := newEjections(t, 2, ejectionDefaults)
		e.Random = func() float64 { return random }
		e.play(0, "xxxxx")
		of := e.Of(e.servers[0].Status)
		if got := time.Duration(of.Until - of.Since).Round(time.Millisecond); got != want {
			t.Errorf("random %v: ejected for %v, want %v", random, got, want)
		}
	}
}

func TestEjectionLength(t *testing.T) {
	c := EjectionConfig{Time: time.Hour, MaxTime: 24 * time.Hour}
	for level := range lengthened + 1 {
		want := time.Duration(math.Min(24, math.Pow(2, float64(level)))) * time.Hour
		if got := time.Duration(c.length(level)); got != want {
			t.Errorf("level %d: %v, want %v", level, got, want)
		}
	}
}

// An ejected server gets requests again slowly, and those who wait for it are told.
func TestEjectionTold(t *testing.T) {
	e := newEjections(t, 2, ejectionDefaults)
	a := e.servers[0]
	e.play(0, "xxxxx")
	if a.told != "usable false, cold false" || a.Usable(-1) || !a.UsableButEjected(-1) {
		t.Errorf("told %q when it was ejected", a.told)
	}
	e.pass(10 * time.Second)
	if a.told != "usable true, cold true" || !a.Usable(-1) {
		t.Errorf("told %q at the end", a.told)
	}
}

// An ejection for connects ends with a check that began after it and succeeded, and not by time while checks can't connect. Others end by time only.
func TestEjectionEndsWithCheck(t *testing.T) {
	t.Run("at once", func(t *testing.T) {
		e := newEjections(t, 2, ejectionDefaults)
		before := e.servers[0].beginCheck()
		e.play(0, "s")
		e.endCheck(0, before, true)
		e.want("a") // that check says nothing of the time after
		e.check(0, true)
		e.want("")
	})
	t.Run("not by time", func(t *testing.T) {
		e := newEjections(t, 2, ejectionDefaults)
		e.play(0, "ccccc")
		e.check(0, false)
		e.pass(time.Hour)
		e.want("a")
		if of := e.Of(e.servers[0].Status); !of.Checks {
			t.Error("it is not said that it takes a check")
		}
		e.check(0, true)
		e.want("")
	})
	t.Run("by time if it can be connected to", func(t *testing.T) {
		e := newEjections(t, 2, ejectionDefaults)
		e.play(0, "ccccc")
		e.pass(10 * time.Second)
		e.want("")
	})
	t.Run("others by time only", func(t *testing.T) {
		e := newEjections(t, 2, ejectionDefaults)
		e.play(0, "xxxxx")
		e.check(0, true)
		e.pass(9 * time.Second)
		e.want("a")
		e.check(0, false)
		e.pass(time.Second)
		e.want("")
	})
}

// What began before the end of an ejection is no reason for another one.
func TestEjectionOldFailures(t *testing.T) {
	e := newEjections(t, 2, ejectionDefaults)
	began := e.now
	e.play(0, "xxxxx")
	for range 5 { // those that ran when it was ejected
		e.Failed(e.servers[0].Status, FailedRequest, began, e.now)
		e.servers[0].ended++
	}
	e.pass(10 * time.Second)
	e.want("")
	for range 50 { // a timeout of a minute later
		e.Failed(e.servers[0].Status, FailedRequest, began, e.now)
		e.servers[0].ended++
	}
	e.pass(10 * time.Second)
	e.want("")
	e.play(0, "xxxxx")
	e.want("a")
}

func TestEjectShare(t *testing.T) {
	cfg := ejectionDefaults
	cfg.Consecutive = 0
	for _, tt := range []struct {
		name   string
		second string // events of each second
		want   string
	}{
		{"half of them", "gxgx", "a"},
		{"less", "gxgxg", ""},
		{"too few requests", "x", ""},
		{"as many as it takes", "xg", "a"},
		{"503 does not count", "xffffffffx", "a"},
		{"at all", "ffffffff", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEjections(t, 2, cfg)
			e.pass(time.Second)
			for range 12 {
				if e.out() == "" {
					e.play(0, tt.second)
				}
				e.play(1, "gggg")
				e.pass(time.Second)
			}
			e.want(tt.want)
			if tt.want != "" && e.Of(e.servers[0].Status).Reason != EjectedShare {
				t.Errorf("the reason is %v", e.Of(e.servers[0].Status).Reason)
			}
		})
	}
}

// Failures are forgotten when the window has passed over them, and at the end of an ejection.
func TestEjectShareWindow(t *testing.T) {
	cfg := ejectionDefaults
	cfg.Consecutive = 0
	e := newEjections(t, 2, cfg)
	e.pass(time.Second)
	e.play(0, strings.Repeat("x", 19))
	e.pass(11 * time.Second)
	e.play(0, "x")
	e.pass(time.Second)
	e.want("")
	e.play(0, strings.Repeat("x", 19))
	e.pass(time.Second)
	e.want("a")
	e.pass(10 * time.Second)
	e.want("")
	e.play(0, strings.Repeat("x", 19))
	e.pass(5 * time.Second)
	e.want("")
	e.play(0, "x")
	e.pass(time.Second)
	e.want("a")
}

// When more servers fail than may be ejected, the worst ones are.
func TestEjectTheWorst(t *testing.T) {
	cfg := ejectionDefaults
	cfg.Consecutive = 0
	e := newEjections(t, 4, cfg)
	e.pass(time.Second)
	for i, events := range []string{"gx", "xxgx", "x", "gxgxx"} {
		e.play(i, strings.Repeat(events, 40))
	}
	e.pass(time.Second)
	e.want("bc")
}

func TestEjectLatency(t *testing.T) {
	cfg := ejectionDefaults
	cfg.LatencyFactor = 3
	const ms = time.Millisecond
	for _, tt := range []struct {
		name  string
		times []time.Duration // of each server
		want  string
	}{
		{"all alike", []time.Duration{50 * ms, 50 * ms, 60 * ms}, ""},
		{"one is slower", []time.Duration{50 * ms, 500 * ms, 60 * ms}, "b"},
		{"not by so much", []time.Duration{50 * ms, 120 * ms, 60 * ms}, ""},
		{"of two it is compared with the faster one", []time.Duration{50 * ms, 500 * ms}, "b"},
		{"of four with the lower median", []time.Duration{50 * ms, 500 * ms, 60 * ms, 400 * ms}, "bd"},
		{"nobody minds 8 ms", []time.Duration{ms / 2, 8 * ms, ms / 2}, ""},
		{"nothing to compare with", []time.Duration{500 * ms}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEjections(t, len(tt.times), cfg)
			e.pass(time.Second)
			for i, took := range tt.times {
				for k := range 20 {
					if k < 2 { // more than one in twenty
						took = tt.times[i]
					} else {
						took = tt.times[0]
					}
					e.servers[i].Took(int64(took))
					e.play(i, "g")
				}
			}
			e.pass(time.Second)
			e.want(tt.want)
		})
	}
	t.Run("one in twenty is not the p95", func(t *testing.T) {
		e := newEjections(t, 2, cfg)
		e.pass(time.Second)
		for i := range 2 {
			for k := range 40 {
				took := 20 * ms
				if i == 1 && k < 2 {
					took = 10 * time.Second
				}
				e.servers[i].Took(int64(took))
			}
		}
		e.pass(time.Second)
		e.want("")
	})
	t.Run("too few", func(t *testing.T) {
		e := newEjections(t, 2, cfg)
		e.pass(time.Second)
		for range 19 {
			e.servers[0].Took(int64(time.Second))
			e.servers[1].Took(int64(ms))
		}
		e.pass(time.Second)
		e.want("")
	})
	t.Run("off", func(t *testing.T) {
		e := newEjections(t, 2, ejectionDefaults)
		if e.servers[0].Timed() {
			t.Error("times are counted for nothing")
		}
	})
}

// A reload keeps ejections; what it switches off ends. Servers that stay keep what is known of them.
func TestEjectionReload(t *testing.T) {
	e := newEjections(t, 3, ejectionDefaults)
	e.play(0, "xxxxx")
	cfg := ejectionDefaults
	cfg.FailureShare, cfg.Window, cfg.LatencyFactor = 0, time.Minute, 3
	e.SetConfig(cfg, e.now)
	e.SetMembers(e.list())
	e.want("a")
	if !e.servers[0].Timed() {
		t.Error("no times are counted for latency_factor")
	}
	cfg.Consecutive = 0
	e.SetConfig(cfg, e.now)
	e.want("")
	e.play(0, "xxxxxxxxxxs")
	e.want("")

	cfg.Consecutive = 5
	e.SetConfig(cfg, e.now)
	e.play(0, "xxxxx")
	e.want("a")
	if got := e.Of(e.servers[0].Status); time.Duration(got.Until-got.Since) != 20*time.Second {
		t.Errorf("its second ejection takes %v", time.Duration(got.Until-got.Since))
	}
	gone := e.servers[0]
	e.servers = e.servers[1:]
	e.SetMembers(e.list())
	e.want("")
	if e.Of(gone.Status).Out {
		t.Error("a server that is not in the pool any more is ejected")
	}
}

// Times that are counted anew are not compared with those of before.
func TestEjectionReloadTwice(t *testing.T) {
	cfg := ejectionDefaults
	cfg.LatencyFactor = 3
	e := newEjections(t, 2, cfg)
	for range 15 {
		for i, s := range e.servers {
			for k := range 50 {
				took := 20 * time.Millisecond
				if i == 1 && k == 0 { // not the p95
					took = 10 * time.Second
				}
				s.Took(int64(took))
				e.play(i, "g")
			}
		}
		e.pass(time.Second)
	}
	e.want("")
	e.SetConfig(ejectionDefaults, e.now)
	e.pass(2 * time.Second)
	e.SetConfig(cfg, e.now)
	e.pass(2 * time.Second)
	e.want("")
}

// An operator ends an ejection, and the next one is as short as the first.
func TestEjectionReleased(t *testing.T) {
	e := newEjections(t, 2, ejectionDefaults)
	for range 4 {
		e.play(0, "xxxxx")
		e.want("a")
		e.Release(e.servers[0].Status, e.now)
		e.want("")
	}
	e.play(0, "xxxxx")
	e.pass(10 * time.Second)
	e.want("")
	if !strings.Contains(e.log.String(), "operator") {
		t.Errorf("nothing in the log: %s", &e.log)
	}
}

// When an operator takes others out, too many may be ejected of those that are left.
func TestEjectionSurplus(t *testing.T) {
	e := newEjections(t, 4, ejectionDefaults)
	e.play(0, "xxxxx")
	e.pass(time.Second)
	e.play(1, "xxxxx")
	e.want("ab")
	e.servers[2].SetAdmin(Drain)
	e.pass(time.Second)
	e.want("b") // the one whose end was nearer is back
	e.servers[3].SetAdmin(Drain)
	e.pass(time.Second)
	e.want("b")
	e.servers[0].SetAdmin(Drain)
	e.pass(time.Second)
	e.want("")
}

func TestDoubt(t *testing.T) {
	var s Status
	if s.Doubted() || s.Unheard() || !s.Doubt() || s.Doubt() || !s.Doubted() {
		t.Error("a doubt begins once")
	}
	if s.HeardSince(1) || s.Answered(7) != true || s.Answered(8) || s.Doubted() {
		t.Error("a good answer ends it once")
	}
	if !s.HeardSince(7) || s.HeardSince(8) {
		t.Error("it is not known when something was heard")
	}
	s.failed(false)
	s.Doubt()
	if !s.Heard(9) || s.Heard(10) {
		t.Error("an error ends it, too")
	}
	if run, _ := s.failed(false); run != 2 {
		t.Errorf("but no run of failures: %d", run)
	}
	s.beginCheck()
	if !s.Unheard() {
		t.Error("unheard when the check began")
	}
	if s.Heard(11); s.Unheard() {
		t.Error("unheard after an answer")
	}
}

// In the steady state an answer costs a read of an atomic.
func TestTrafficDoesNotAllocate(t *testing.T) {
	e := newEjections(t, 2, ejectionDefaults)
	s := e.servers[0].Status
	if n := testing.AllocsPerRun(1000, func() {
		s.Answered(1)
		s.Doubted()
		if s.Timed() {
			s.Took(1)
		}
	}); n != 0 {
		t.Errorf("%v allocations per answer", n)
	}
	cfg := ejectionDefaults
	cfg.LatencyFactor = 3
	e.SetConfig(cfg, 1)
	if n := testing.AllocsPerRun(1000, func() {
		e.Failed(s, FailedRequest, 1, 1)
		s.Answered(1)
		s.Took(1)
	}); n != 0 {
		t.Errorf("%v allocations per failure", n)
	}
}

func BenchmarkAnswered(b *testing.B) {
	e := newEjections(b, 2, ejectionDefaults)
	s := e.servers[0].Status
	b.ReportAllocs()
	for b.Loop() {
		s.Answered(1)
		if s.Timed() {
			s.Took(1)
		}
	}
}

func BenchmarkAnsweredTimed(b *testing.B) {
	cfg := ejectionDefaults
	cfg.LatencyFactor = 3
	e := newEjections(b, 2, cfg)
	s := e.servers[0].Status
	b.ReportAllocs()
	for b.Loop() {
		s.Answered(1)
		if s.Timed() {
			s.Took(12345678)
		}
	}
}

func TestTimings(t *testing.T) {
	for ns := int64(1); ns < int64(2*time.Minute); ns += ns/7 + 1 {
		i := timingBucket(ns)
		if bound := int64(timingBound(i)); ns >= bound || i > 4 && bound > ns+ns/4+1 {
			t.Fatalf("%v is in a bucket up to %v", time.Duration(ns), time.Duration(bound))
		}
		if i > 0 && ns < int64(timingBound(i-1)) {
			t.Fatalf("%v is in bucket %d, and belongs to the one before", time.Duration(ns), i)
		}
	}
	for ns, want := range map[int64]int{-1: 0, 0: 0, math.MaxInt64: timingBuckets - 1} {
		if got := timingBucket(ns); got != want {
			t.Errorf("%d is in bucket %d, want %d", ns, got, want)
		}
	}
}

// Ten servers, 200 requests a second in turn to those that are usable. One answers 500 to everything, one fails for 5 s of every 30. What clients see
// of the first gets less and less, the other eight are never out, and never more than half of all.
func TestEjectionSimulation(t *testing.T) {
	const servers, rate, storm, flapping = 10, 200, 3, 7
	random := rand.New(rand.NewPCG(1, 2))
	e := newEjections(t, servers, ejectionDefaults)
	e.Random = random.Float64
	failed := make([]int, 12) // by window of 30 s
	requests, next := make([]int, servers), 0
	outside := make([]int64, servers) // time in which a server was ejected
	start := e.now
	for step := range 360 * rate {
		if step%(rate/4) == 0 {
			e.now = start + int64(step)*second/rate
			e.Tick(e.now)
			for i, s := range e.servers {
				if s.Ejected() {
					outside[i] += second / 4
				}
			}
			if n := len(e.out()); n > servers/2 {
				t.Fatalf("%d of %d servers are ejected", n, servers)
			}
		}
		e.now = start + int64(step)*second/rate
		for next = (next + 1) % servers; e.servers[next].Ejected(); next = (next + 1) % servers {
		}
		at := time.Duration(e.now - start)
		bad := next == storm || next == flapping && at%(30*time.Second) < 5*time.Second
		requests[next]++
		switch {
		case bad:
			failed[at/(30*time.Second)]++
			e.play(next, "x")
		case random.Float64() < 0.01: // a server that works well fails some, too
			e.play(next, "x")
		default:
			e.play(next, "g")
		}
	}
	t.Logf("failures by 30 s: %v, requests %v, of the one that fails %v", failed, requests, e.Of(e.servers[storm].Status).Count)
	for i := range servers {
		if i != storm && i != flapping && outside[i] > 0 {
			t.Errorf("server %d was out for %v", i, time.Duration(outside[i]))
		}
	}
	if n := requests[storm]; n > 40 {
		t.Errorf("the server that fails got %d requests in 6 minutes, want 5 at each return", n)
	}
	if requests[flapping] < requests[0]/4 {
		t.Errorf("the server that flaps got %d requests, the others %d", requests[flapping], requests[0])
	}
	if last := failed[len(failed)-1]; last > 10 {
		t.Errorf("%d failures in the last half minute, want 5 of each of the two at most", last)
	}
}

// Whatever happens in whatever order, not too many are ejected, never the last usable one, and everything ends.
func TestEjectionInvariants(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 0))
		n := 1 + random.IntN(6)
		cfg := ejectionDefaults
		cfg.LatencyFactor = 3
		e := newEjections(t, n, cfg)
		for range 500 {
			i := random.IntN(n)
			s := e.servers[i]
			before := e.out()
			switch random.IntN(8) {
			case 0:
				s.SetState(State(random.IntN(3)))
			case 1:
				s.SetAdmin(AdminState(random.IntN(3)))
			case 2:
				e.check(i, random.IntN(2) == 0)
			case 3:
				e.pass(time.Duration(random.IntN(10_000)) * time.Millisecond)
			case 4:
				e.Release(s.Status, e.now)
			default:
				e.play(i, strings.Repeat(string("gxcsf"[random.IntN(5)]), random.IntN(30)))
				for range random.IntN(30) {
					s.Took(random.Int64N(second))
				}
			}
			after := e.out()
			if len(after) <= len(before) {
				continue
			}
			usable, ready, out := 0, 0, 0
			for _, s := range e.servers {
				if s.Usable(-1) {
					usable++
				}
				if s.Admin() == Ready {
					ready++
					if s.Ejected() {
						out++
					}
				}
			}
			if usable == 0 || out > ready/2 {
				t.Fatalf("seed %d: %q ejected of %d that are ready, %d are usable", seed, after, ready, usable)
			}
		}
		for i, s := range e.servers {
			s.SetAdmin(Ready)
			e.check(i, true)
		}
		e.pass(10 * time.Minute)
		e.want("")
	}
}
