package discovery

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// book is a Lookup whose answers a test changes.
type book struct {
	mu      sync.Mutex
	answers map[Question]Answer
	errs    map[Question]error
	times   map[Question][]time.Duration // of the lookups, since the beginning
	begin   time.Time
}

func newBook() *book {
	return &book{answers: make(map[Question]Answer), errs: make(map[Question]error), times: make(map[Question][]time.Duration), begin: time.Now()}
}

func (b *book) set(q Question, ttl time.Duration, addrs ...string) {
	a := Answer{TTL: ttl}
	for _, s := range addrs {
		a.Targets = append(a.Targets, Target{Addr: netip.MustParseAddr(s)})
	}
	b.mu.Lock()
	b.answers[q], b.errs[q] = a, nil
	b.mu.Unlock()
}

func (b *book) fail(q Question, r Result) {
	b.mu.Lock()
	b.errs[q] = &Error{r, q.Name, "reason"}
	b.mu.Unlock()
}

func (b *book) lookup(_ context.Context, q Question, _ Answer) (Answer, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.times[q] = append(b.times[q], time.Since(b.begin))
	return b.answers[q], b.errs[q]
}

// asked returns the times of the lookups since it was called last.
func (b *book) asked(q Question) []time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	times := b.times[q]
	b.times[q] = nil
	return times
}

// within checks that the pauses between some times are as they should be, up to a tenth.
func within(t *testing.T, times []time.Duration, from time.Duration, pauses ...time.Duration) {
	t.Helper()
	var got []time.Duration
	for _, at := range times {
		got = append(got, at-from)
		from = at
	}
	ok := len(got) == len(pauses)
	for i := range min(len(got), len(pauses)) {
		ok = ok && got[i] >= pauses[i]*9/10 && got[i] <= pauses[i]*11/10
	}
	if !ok {
		t.Errorf("pauses %v, want %v, up to a tenth", got, pauses)
	}
}

var (
	q1 = Host("dlp.test")
	q2 = Service("_icap._tcp.test")
)

func startNames(t *testing.T) (*Names, *book, *bytes.Buffer) {
	log := new(bytes.Buffer)
	n := NewNames(slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})))
	t.Cleanup(n.Close)
	return n, newBook(), log
}

// sleep lets d pass and everything settle.
func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func TestNamesByTTL(t *testing.T) {
	for ttl, want := range map[time.Duration][]time.Duration{
		NoTTL:                  {30 * time.Second, 30 * time.Second, 30 * time.Second},
		time.Hour:              {30 * time.Second, 30 * time.Second, 30 * time.Second},
		20 * time.Second:       {20 * time.Second, 20 * time.Second, 20 * time.Second, 20 * time.Second},
		0:                      slices.Repeat([]time.Duration{time.Second}, 100),
		500 * time.Millisecond: slices.Repeat([]time.Duration{time.Second}, 100),
	} {
		synctest.Test(t, func(t *testing.T) {
			n, b, _ := startNames(t)
			b.set(q1, ttl, "192.0.2.1")
			n.Use(b.lookup, 30*time.Second)
			n.Follow(t.Context(), []Question{q1})
			if len(b.asked(q1)) != 1 {
				t.Error("want one lookup by Follow")
			}
			if ttl < time.Second {
				sleep(100*time.Second + time.Millisecond)
			} else {
				sleep(99 * time.Second)
			}
			times := b.asked(q1)
			for i := range times {
				if pause := times[i] - append([]time.Duration{0}, times...)[i]; pause > 30*time.Second || pause < time.Second {
					t.Errorf("TTL %v: a pause of %v", ttl, pause)
				}
			}
			within(t, times[:min(len(times), len(want))], 0, want...)
			if s := n.State(q1); s.Answer.TTL != ttl || s.Err != nil || !s.Since.IsZero() || n.Lookups(OK) != uint64(1+len(times)) {
				t.Errorf("TTL %v: %+v after %d lookups", ttl, s, n.Lookups(OK))
			}
		})
	}
}

// A name that can't be looked up is asked for soon, and then at growing intervals; when it can, all is as if nothing had been.
func TestNamesFailing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, b, log := startNames(t)
		b.fail(q1, Timeout)
		n.Use(b.lookup, 10*time.Second)
		n.Follow(t.Context(), []Question{q1})
		if _, ok := n.Answer(q1); ok {
			t.Error("there is an answer")
		}
		sleep(45 * time.Second)
		times := b.asked(q1)
		s := time.Second
		within(t, times[1:min(len(times), 7)], times[0], s, 2*s, 4*s, 8*s, 10*s, 10*s)
		if st := n.State(q1); st.Err == nil || !st.Since.Equal(b.begin) || !st.Gone.IsZero() {
			t.Errorf("%+v", st)
		}
		b.set(q1, NoTTL, "192.0.2.1")
		sleep(10 * time.Second)
		if a, ok := n.Answer(q1); !ok || len(a.Targets) != 1 {
			t.Errorf("%v, %v", a, ok)
		}

		// What it had stays, whatever comes.
		for i, r := range []Result{Timeout, Failed, NotFound} {
			b.fail(q1, r)
			sleep(10 * time.Second)
			a, ok := n.Answer(q1)
			if st := n.State(q1); !ok || len(a.Targets) != 1 || st.Err == nil || st.Gone.IsZero() == (i == 2) {
				t.Errorf("%v: %v, %+v", r, a, st)
			}
			sleep(10 * time.Second)
		}
		b.set(q1, NoTTL, "192.0.2.2")
		sleep(10 * time.Second)
		if a, _ := n.Answer(q1); a.Targets[0].Addr.String() != "192.0.2.2" {
			t.Errorf("%v", a)
		}
		if n.Lookups(Timeout) == 0 || n.Lookups(Failed) == 0 || n.Lookups(NotFound) == 0 || n.Lookups(OK) == 0 {
			t.Error("lookups were not counted")
		}
		var lines []string
		for line := range strings.Lines(log.String()) {
			line, _, _ = strings.Cut(line, " after=")
			lines = append(lines, strings.TrimSpace(line))
		}
		want := []string{
			`level=WARN msg="cannot look up a name; what it had stays" name=dlp.test error="dlp.test: reason" addresses=0`,
			`level=INFO msg="a name can be looked up again" name=dlp.test addresses=1`,
			`level=WARN msg="cannot look up a name; what it had stays" name=dlp.test error="dlp.test: reason" addresses=1`,
			`level=INFO msg="a name can be looked up again" name=dlp.test addresses=1`,
		}
		if !slices.Equal(lines, want) {
			t.Errorf("log is\n%s", strings.Join(lines, "\n"))
		}
	})
}

// A part that could not be asked for is a failure, but what was found is taken.
func TestNamesPartly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, b, _ := startNames(t)
		b.set(q1, NoTTL, "192.0.2.1")
		a := b.answers[q1]
		a.Fault = &Error{NotFound, "a.test", "reason"}
		b.answers[q1] = a
		n.Use(b.lookup, 10*time.Second)
		n.Follow(t.Context(), []Question{q1})
		if a, ok := n.Answer(q1); !ok || len(a.Targets) != 1 {
			t.Errorf("%v, %v", a, ok)
		}
		if s := n.State(q1); s.Err == nil || !s.Gone.IsZero() || n.Lookups(NotFound) != 1 {
			t.Errorf("%+v", s)
		}
		sleep(2 * time.Second)
		if len(b.asked(q1)) < 2 {
			t.Error("it is not asked again soon")
		}
	})
}

// Follow asks at once, what is not kept is asked no more, and Changed tells of every lookup.
func TestNamesFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, b, _ := startNames(t)
		b.set(q1, NoTTL, "192.0.2.1")
		b.set(q2, NoTTL, "192.0.2.2")
		n.Use(b.lookup, time.Minute)
		n.Follow(t.Context(), []Question{q1, q2})
		<-n.Changed()
		sleep(10 * time.Second)
		n.Use(b.lookup, 10*time.Second)
		n.Follow(t.Context(), []Question{q2}) // with a shorter interval
		if len(b.asked(q1)) != 1 || len(b.asked(q2)) != 2 {
			t.Error("want a second lookup of one of them")
		}
		<-n.Changed()
		n.Keep([]Question{q2})
		sleep(95 * time.Second)
		if times := b.asked(q1); len(times) > 0 {
			t.Errorf("asked at %v although it is not kept", times)
		}
		if times := b.asked(q2); len(times) < 9 {
			t.Errorf("asked at %v only", times)
		}
		<-n.Changed()
		if _, ok := n.Answer(q1); ok || n.State(q1).Question != q1 {
			t.Error("what is not kept has an answer")
		}
	})
}

// Follow waits no longer than it may, also for a lookup that runs already; Close ends them.
func TestNamesFollowEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, b, log := startNames(t)
		hang := func(ctx context.Context, q Question, _ Answer) (Answer, error) {
			<-ctx.Done()
			return Answer{}, &Error{Timeout, q.Name, "reason"}
		}
		begin := time.Now()
		soon := func() context.Context {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			t.Cleanup(cancel)
			return ctx
		}
		n.Use(hang, time.Minute)
		n.Follow(soon(), []Question{q1})
		if took := time.Since(begin); took != 5*time.Second || n.Lookups(Timeout) != 1 {
			t.Errorf("took %v, %d timeouts", took, n.Lookups(Timeout))
		}
		sleep(2 * time.Second) // the next lookup hangs
		n.Use(b.lookup, time.Minute)
		n.Follow(soon(), []Question{q1})
		if took := time.Since(begin); took != 12*time.Second {
			t.Errorf("took %v in all", took)
		}
		log.Reset()
		n.Keep(nil) // ends the lookup that hangs, which is nobody's failure any more
		synctest.Wait()
		if log.Len() > 0 || n.Lookups(Timeout) != 1 {
			t.Errorf("%d timeouts, log %q", n.Lookups(Timeout), log)
		}
	})
}

// A name that Follow had no time for is asked soon.
func TestNamesFollowTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, b, _ := startNames(t)
		b.set(q1, NoTTL, "192.0.2.1")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		n.Use(b.lookup, time.Minute)
		for range 20 {
			n.Follow(ctx, []Question{q1})
			n.Keep(nil)
		}
		b.asked(q1)
		n.Follow(ctx, []Question{q1})
		sleep(2 * time.Second)
		if _, ok := n.Answer(q1); !ok || len(b.asked(q1)) != 1 {
			t.Error("it was not asked, or not once")
		}
	})
}

func TestResultOf(t *testing.T) {
	for err, want := range map[error]Result{nil: OK, errors.New("x"): Failed, &Error{Timeout, "a", "b"}: Timeout} {
		if got := ResultOf(err); got != want {
			t.Errorf("%v: got %v", err, got)
		}
	}
}

// A machine with two kinds of addresses is one.
func TestHosts(t *testing.T) {
	for addrs, want := range map[string]int{"192.0.2.1": 1, "192.0.2.1 2001:db8::1": 1, "192.0.2.1 192.0.2.2 2001:db8::1": 2, "2001:db8::1 2001:db8::2": 2} {
		var a Answer
		for _, s := range strings.Fields(addrs) {
			a.Targets = append(a.Targets, Target{Addr: netip.MustParseAddr(s)})
		}
		if got := a.Hosts(); got != want {
			t.Errorf("%s: %d, want %d", addrs, got, want)
		}
	}
}
