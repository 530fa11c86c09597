package health

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// start runs a Checker until the test ends. The log, without times, is in the buffer; read it after synctest.Wait.
func start(t *testing.T, cfg CheckConfig) (*Checker, *bytes.Buffer) {
	log := new(bytes.Buffer)
	cfg.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
	c := NewChecker(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		c.Run(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return c, log
}

// at sleeps until the time after start and lets everything settle there.
func at(start time.Time, after time.Duration) {
	time.Sleep(time.Until(start.Add(after)))
	synctest.Wait()
}

func requireTimes(t *testing.T, got []time.Duration, want ...time.Duration) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("checks at %v, want at %v", got, want)
	}
}

const ms = time.Millisecond

func TestCheckerTimes(t *testing.T) {
	tests := []struct {
		name   string
		refuse bool
		answer func(string) string
		want   []time.Duration // of the checks in the first 12 s
		state  State           // at the end
	}{
		{"up: once per interval", false, always(ok200),
			[]time.Duration{0, 5 * time.Second, 10 * time.Second}, Up},
		{"from checking to down: each second", true, nil,
			[]time.Duration{0, 1 * time.Second, 2 * time.Second, 3 * time.Second, 4 * time.Second, 5 * time.Second, 6 * time.Second, 7 * time.Second,
				8 * time.Second, 9 * time.Second, 10 * time.Second, 11 * time.Second, 12 * time.Second}, Down},
		{"one failure: one check soon after", false, script(ok200, drop, ok200),
			[]time.Duration{0, 5 * time.Second, 6 * time.Second, 11 * time.Second}, Up},
		{"from up to down: each second", false, script(ok200, drop),
			[]time.Duration{0, 5 * time.Second, 6 * time.Second, 7 * time.Second, 8 * time.Second, 9 * time.Second, 10 * time.Second, 11 * time.Second, 12 * time.Second}, Down},
		{"from down to up: each second", false, script(drop, drop, drop, ok200),
			[]time.Duration{0, 1 * time.Second, 2 * time.Second, 3 * time.Second, 4 * time.Second, 9 * time.Second}, Up},
		{"timeouts count from their end", false, script(hang, ok200),
			[]time.Duration{0, 3 * time.Second, 8 * time.Second}, Up},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeServer{answer: tt.answer}
				if tt.refuse {
					f.refuse = errRefused
				}
				begin := time.Now()
				c, _ := start(t, f.config("/a"))
				at(begin, 12*time.Second)
				requireTimes(t, f.since(begin), tt.want...)
				if got := c.Status().State(); got != tt.state {
					t.Errorf("state %v, want %v", got, tt.state)
				}
			})
		})
	}
}

// A server that stays down is asked each second for as long as a restart takes, and then once per interval.
func TestCheckerStaysDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{refuse: errRefused}
		begin := time.Now()
		start(t, f.config("/a"))
		at(begin, 32*time.Second) // down after 2 s
		if n := len(f.since(begin)); n != 33 {
			t.Errorf("%d checks in the first 32 s, want 33", n)
		}
		at(begin, 62*time.Second)
		if n := len(f.since(begin)); n != 33+6 {
			t.Errorf("%d checks in the next 30 s, want 6", n-33)
		}
	})
}

// Every check has a number and is told of, and while it runs it is known whether anybody has heard of the server.
func TestCheckerTellsOfChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type told struct {
			number      uint64
			ok, unheard bool
		}
		var got []told
		f := &fakeServer{answer: script(ok200, hang, hang, busy503, "ICAP/1.0 500 Broken\r\n\r\n")}
		cfg := f.config("/a")
		cfg.Status = new(Status)
		cfg.OnCheck = func(number uint64, ok bool) {
			got = append(got, told{number, ok, cfg.Status.Unheard()})
			cfg.Status.Heard(1)
		}
		began := time.Now()
		start(t, cfg)
		at(began, 5500*ms)
		if !cfg.Status.Unheard() {
			t.Error("heard of a server that does not answer a check")
		}
		at(began, 9*time.Second) // in the middle of the next one
		cfg.Status.Answered(1)
		at(began, 16500*ms)
		want := []told{{1, true, false}, {2, false, true}, {3, false, false}, {4, true, false}, {5, false, false}}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("told %v, want %v", got, want)
		}
		f.setRefuse(syscall.EMFILE)
		at(began, 30*time.Second)
		if len(got) != len(want) {
			t.Errorf("told of checks that were not made: %v", got)
		}
	})
}

// What this machine lacks for a check is counted apart and says nothing about the server, however long it lasts.
func TestCheckerOwnFault(t *testing.T) {
	for _, lack := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeServer{answer: always(ok200)}
			cfg := f.config("/a")
			cfg.Stats = new(Stats)
			cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				if len(f.since(time.Now())) > 0 {
					return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("socket", lack)}
				}
				return f.dial(ctx, network, address)
			}
			begin := time.Now()
			c, _ := start(t, cfg)
			at(begin, time.Minute)
			s := c.Status()
			if s.State() != Up || !s.Usable(0) || !strings.Contains(s.LastError(), "cannot check: dial tcp: socket: ") {
				t.Errorf("%v: state %v, last error %q", lack, s.State(), s.LastError())
			}
			if ok, failed, skipped := cfg.Stats.OK.Load(), cfg.Stats.Failed.Load(), cfg.Stats.Skipped.Load(); ok != 1 || failed != 0 || skipped != 12 {
				t.Errorf("%v: %d good, %d failed, %d skipped, want 1, 0, 12", lack, ok, failed, skipped)
			}
		})
	}
}

func TestCheckerJitter(t *testing.T) {
	for random, want := range map[float64]time.Duration{0: 4500 * ms, 0.5: 5000 * ms, 1: 5500 * ms} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeServer{answer: always(ok200)}
			cfg := f.config("/a")
			cfg.Random = func() float64 { return random }
			begin := time.Now()
			start(t, cfg)
			at(begin, 6*time.Second)
			requireTimes(t, f.since(begin), 0, want)
		})
	}
}

func TestCheckerStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: script(ok200)}
		begin := time.Now()
		cfg := f.config("/a", "/b")
		cfg.Stats = new(Stats)
		c, log := start(t, cfg)
		s := c.Status()

		at(begin, 0)
		if s.State() != Up || !s.Usable(0) || !s.Checked() || s.LastError() != "" || !s.Since().Equal(begin) {
			t.Errorf("after a success: %v, usable %v, error %q, since %v", s.State(), s.Usable(0), s.LastError(), s.Since())
		}

		// A 404 takes the server out for that path at once, and only for that.
		f.set(byPath(map[string]string{"/a": ok200}))
		at(begin, 5*time.Second)
		if !s.Usable(0) || s.Usable(1) || s.State() != Up || s.LastError() != "OPTIONS /b: 404 ICAP Service not found" {
			t.Errorf("/b unknown: usable %v %v, %v, error %q", s.Usable(0), s.Usable(1), s.State(), s.LastError())
		}
		f.set(always(ok200))
		at(begin, 10*time.Second)
		if !s.Usable(1) || s.LastError() != "" {
			t.Errorf("/b is back: usable %v, error %q", s.Usable(1), s.LastError())
		}

		// Down after 3 failures, with the last error and its duration.
		f.set(always(hang))
		at(begin, 15*time.Second+3*2*time.Second+2*time.Second) // three timeouts, 1 s between them
		if s.State() != Down || s.Usable(0) || s.LastError() != "OPTIONS /a: no answer within 2s" || s.LastDuration() != 2*time.Second {
			t.Errorf("after timeouts: %v, error %q, %v", s.State(), s.LastError(), s.LastDuration())
		}
		if want := begin.Add(23 * time.Second); !s.Since().Equal(want) {
			t.Errorf("down since %v, want %v", s.Since(), want)
		}
		if ok, failed := cfg.Stats.OK.Load(), cfg.Stats.Failed.Load(); ok != 3 || failed != 3 {
			t.Errorf("%d checks ok, %d failed, want 3 and 3", ok, failed)
		}

		want := `level=INFO msg="server is up" server=192.0.2.1:1344 from=checking to=up reason="checks succeed" successes=1 since=2000-01-01T00:00:00.000Z
level=WARN msg="server does not know path: not used for it" server=192.0.2.1:1344 path=/b status=404
level=INFO msg="server knows path: used for it again" server=192.0.2.1:1344 path=/b
level=WARN msg="server is down" server=192.0.2.1:1344 from=up to=down reason="OPTIONS /a: no answer within 2s" failures=3 since=2000-01-01T00:00:17.000Z
`
		if got := log.String(); got != want {
			t.Errorf("log is\n%swant\n%s", got, want)
		}
	})
}

// A server that has none of the paths is down, unless other paths are routed to it as well.
func TestCheckerAllPathsMissing(t *testing.T) {
	for _, other := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeServer{answer: always(gone404)}
			cfg := f.config("/a")
			cfg.OtherPaths = other
			begin := time.Now()
			c, _ := start(t, cfg)
			at(begin, 5*time.Second)
			if s := c.Status(); s.Usable(0) || s.Usable(-1) != other || (s.State() == Up) != other {
				t.Errorf("other paths %v: %v, usable for /a %v, for others %v", other, s.State(), s.Usable(0), s.Usable(-1))
			}
		})
	}
}

func TestExpedite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: always(ok200)}
		begin := time.Now()
		c, _ := start(t, f.config("/a"))

		at(begin, 2*time.Second)
		c.Expedite()
		at(begin, 2*time.Second)
		requireTimes(t, f.since(begin), 0, 2*time.Second)

		// A storm of failed connections is one check per 200 ms.
		for i := range 100 {
			at(begin, 3*time.Second+time.Duration(i)*10*ms)
			c.Expedite()
			c.Expedite()
		}
		at(begin, 4500*ms)
		requireTimes(t, f.since(begin), 0, 2000*ms, 3000*ms, 3200*ms, 3400*ms, 3600*ms, 3800*ms, 4000*ms)

		// The regular checks go on from the latest one.
		at(begin, 10*time.Second)
		if got := f.since(begin)[8:]; len(got) != 1 || got[0] != 9*time.Second {
			t.Errorf("regular checks at %v, want at 9s", got)
		}
	})
}

// Expedite does not block, whether or not anybody listens.
func TestExpediteWithoutRun(t *testing.T) {
	c := NewChecker(CheckConfig{})
	for range 10 {
		c.Expedite()
	}
	if len(c.wake) != 1 {
		t.Errorf("%d checks are asked for, want 1", len(c.wake))
	}
}

// A server that dies is found out by loops first: with Expedite it is down long before the next regular check.
func TestExpediteFindsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: always(ok200)}
		begin := time.Now()
		c, _ := start(t, f.config("/a"))
		at(begin, 1*time.Second)
		if c.Status().Unreachable() {
			t.Error("unreachable after a good check")
		}
		f.setRefuse(errRefused)
		for c.Status().State() == Up && time.Since(begin) < 5*time.Second {
			c.Expedite()
			time.Sleep(10 * ms)
		}
		if took := time.Since(begin) - time.Second; took > 500*ms || c.Status().State() != Down {
			t.Errorf("%v after %v, want down within 500ms", c.Status().State(), took)
		}
		if !c.Status().Unreachable() {
			t.Error("not unreachable, though nobody listens")
		}
	})
}

func TestMaintenance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: always(ok200)}
		begin := time.Now()
		c, _ := start(t, f.config("/a"))
		s := c.Status()
		at(begin, 1*time.Second)
		s.SetAdmin(Maintenance)
		c.Expedite()
		f.setRefuse(errRefused)
		at(begin, 30*time.Second)
		requireTimes(t, f.since(begin), 0)
		if s.State() != Checking || s.Usable(0) || s.LastError() != "" {
			t.Errorf("in maintenance: %v, usable %v, error %q", s.State(), s.Usable(0), s.LastError())
		}

		s.SetAdmin(Ready)
		if s.Usable(0) {
			t.Error("usable again before the first check")
		}
		f.set(always(ok200))
		c.Expedite()
		at(begin, 30*time.Second)
		if s.State() != Up || !s.Usable(0) {
			t.Errorf("after maintenance and a success: %v, usable %v", s.State(), s.Usable(0))
		}
	})
}

func TestDrainIsChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: script(ok200, drop)}
		begin := time.Now()
		c, _ := start(t, f.config("/a"))
		c.Status().SetAdmin(Drain)
		at(begin, 8*time.Second)
		if s := c.Status(); s.State() != Down || s.Admin() != Drain {
			t.Errorf("%v, %v, want down, drain", s.State(), s.Admin())
		}
	})
}

// A reload makes a new Checker for the same Status: what is known stays.
func TestCheckerCarriesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: script(drop, ok200)}
		begin := time.Now()
		cfg := f.config("/a")
		cfg.Status = new(Status)
		cfg.Status.SetState(Up)
		since := cfg.Status.Since()
		at(begin, time.Second)
		_, log := start(t, cfg)
		at(begin, 3*time.Second)
		if s := cfg.Status; s.State() != Up || !s.Since().Equal(since) || log.Len() > 0 {
			t.Errorf("%v since %v, want up since %v; log %q", s.State(), s.Since(), since, log)
		}
	})
}

// What is known is that of the moment in which the new Checker begins to run: the old one may have come to a verdict after it was made.
func TestCheckerCarriesOnLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: always(ok200)}
		cfg := f.config("/a")
		cfg.Status = new(Status)
		cfg.Status.SetState(Up)
		c := NewChecker(cfg)
		cfg.Status.SetState(Down)
		begin := time.Now()
		go c.Run(t.Context())
		at(begin, 500*ms)
		if s := cfg.Status.State(); s != Down {
			t.Errorf("%v after one good check, want down", s)
		}
		if at(begin, 2*time.Second); cfg.Status.State() != Up {
			t.Errorf("%v after two, want up", cfg.Status.State())
		}
	})
}

// The end of the Checker cuts a running check short, and is no failure of the server.
func TestCheckerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: always(hang)}
		c := NewChecker(f.config("/a"))
		ctx, cancel := context.WithCancel(t.Context())
		begin := time.Now()
		go func() {
			time.Sleep(time.Second)
			cancel()
		}()
		c.Run(ctx)
		if took := time.Since(begin); took != time.Second {
			t.Errorf("Run returned after %v, want at once, 1s", took)
		}
		if s := c.Status(); s.Checked() || s.LastError() != "" || c.cfg.Stats.Failed.Load() != 0 {
			t.Errorf("the end was taken for a fault of the server: %q", s.LastError())
		}
		synctest.Wait()
		f.checkNoneOpen(t)
	})
}

func TestDefaults(t *testing.T) {
	cfg := NewChecker(CheckConfig{Address: "192.0.2.1:1344"}).cfg
	if cfg.Interval != 5*time.Second || cfg.Timeout != 2*time.Second || cfg.Rise != 2 || cfg.Fall != 3 {
		t.Errorf("interval %v, timeout %v, rise %d, fall %d", cfg.Interval, cfg.Timeout, cfg.Rise, cfg.Fall)
	}
	for authority, want := range map[string]string{
		"dlp.example:1344": "dlp.example", "dlp.example": "dlp.example", "192.0.2.1:1344": "192.0.2.1",
		"[2001:db8::1]:1344": "2001:db8::1", "[2001:db8::1]": "2001:db8::1",
	} {
		if got := host(authority); got != want {
			t.Errorf("host(%q) = %q, want %q", authority, got, want)
		}
	}
}

// Nothing a server sends gets into the log or the status but what the gateway says of it.
func TestServerTextStaysOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: always("ICAP/1.0 500 <script>\x1b[31m\r\n\r\n")}
		begin := time.Now()
		c, log := start(t, f.config("/a"))
		at(begin, 3*time.Second)
		if text := log.String() + c.Status().LastError(); strings.Contains(text, "script") || strings.Contains(text, "\x1b") {
			t.Errorf("text of the server in %q", text)
		}
	})
}
