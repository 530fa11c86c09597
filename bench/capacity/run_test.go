package capacity

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/bench/load"
	"icapgate/bench/result"
)

const service = 20 * time.Millisecond

// TestFindsLimit searches a server of 8 slots, each of which serves a request in 20 ms: 400 requests per second. The SLO of ten service
// times is met until near that limit, as a queue that does not grow for ever is seldom so long.
func TestFindsLimit(t *testing.T) {
	stub := dlpstub.Config{Slots: 8, Queue: dlpstub.QueueAll, Latency: service}
	for seed := range uint64(10) {
		virtually(t, stub, func(t *testing.T, cfg Config) {
			cfg.Load.Seed = 1000 * seed
			mustFind(t, cfg, 400, 0.05)
		})
		if race {
			return // one will do to see what runs at the same time
		}
	}
	virtually(t, stub, func(t *testing.T, cfg Config) {
		cfg.Load.Poisson = false
		mustFind(t, cfg, 400, 0.03)
	})
}

// computedKnee returns the rate at which half of the trials of a length hold p99<limit, with Poisson arrivals at so many slots.
func computedKnee(slots int, limit, length time.Duration) float64 {
	capacity := float64(slots) / service.Seconds()
	low, high := 0.0, 1.5*capacity
	for high-low > 0.001*capacity {
		rate := (low + high) / 2
		held := 0
		const trials = 60
		for seed := range uint64(trials) {
			if heldQueue(rate, slots, limit.Seconds(), length.Seconds(), rand.New(rand.NewPCG(seed, 3))) {
				held++
			}
		}
		if held > trials/2 {
			low = rate
		} else {
			high = rate
		}
	}
	return low
}

// heldQueue says whether at most 1 % of the requests take longer than limit. They are served first come, first served, so
// that each begins when it comes, or when the one has ended that began as many before it as there are slots.
func heldQueue(rate float64, slots int, limit, length float64, rng *rand.Rand) bool {
	begin := -length / 4 // to settle
	at, n, slow := begin, 0, 0
	ends := slices.Repeat([]float64{begin}, slots)
	for i := 0; ; i++ {
		if at += rng.ExpFloat64() / rate; at > length {
			return 100*slow <= n
		}
		end := max(at, ends[i%slots]) + service.Seconds()
		ends[i%slots] = end
		if at < 0 {
			continue
		}
		if n++; end-at > limit {
			slow++
		}
	}
}

// TestWaitsForRecovery has a server that is slow for a while after more than 100 requests in a second. A trial that begins too early would fail at
// any rate.
func TestWaitsForRecovery(t *testing.T) {
	var second, slow time.Time
	count := 0
	turn := make(chan struct{}, 1)
	stub := dlpstub.Config{Treat: func(_ *dlpstub.Request, how *dlpstub.Treatment) {
		turn <- struct{}{}
		defer func() { <-turn }()
		now := time.Now()
		if now.Sub(second) >= time.Second {
			second, count = now, 0
		}
		if count++; count > 100 {
			slow = now.Add(10 * time.Second)
		}
		if how.Latency = 5 * time.Millisecond; now.Before(slow) {
			how.Latency = time.Second
		}
	}}
	virtually(t, stub, func(t *testing.T, cfg Config) {
		cfg.Load.Poisson = false
		mustFind(t, cfg, 100, 0.03)
	})
	virtually(t, dlpstub.Config{Treat: func(_ *dlpstub.Request, how *dlpstub.Treatment) { // never again
		turn <- struct{}{}
		defer func() { <-turn }()
		if count++; count > 5000 {
			how.Latency = time.Second
		}
	}}, func(t *testing.T, cfg Config) {
		count = 0
		c, err := Run(t.Context(), cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		doubts := slices.ContainsFunc(c.Trials, func(t result.Trial) bool {
			return slices.ContainsFunc(t.Notes, func(note string) bool {
				return strings.Contains(note, "30s after the trial before, a request still took 1s, idle 0s")
			})
		})
		if !doubts {
			t.Errorf("no doubts in %d trials", len(c.Trials))
		}
	})
}

// TestGoesOn ends a search by its budget and by its context, and goes on with what was saved.
func TestGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "capacity.json")
	stub := dlpstub.Config{Slots: 8, Queue: dlpstub.QueueAll, Latency: service}
	virtually(t, stub, func(t *testing.T, cfg Config) {
		cfg.Budget = 45 * time.Second
		cfg.Save = func(c *result.Capacity) error { return c.Save(path) }
		start := time.Now()
		c, err := Run(t.Context(), cfg, nil)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > cfg.Budget+cfg.Load.Timeout || took < cfg.Budget/2 || c.Finding.Outcome != result.Imprecise && c.Finding.Outcome != result.Unfinished {
			t.Errorf("%+v after %v", c.Finding, took)
		}

		before, err := result.ReadCapacity(path)
		if err != nil || len(before.Trials) != len(c.Trials) {
			t.Fatalf("%v, %d trials", err, len(c.Trials))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cfg.Budget = 20 * time.Minute
		cfg.Save = func(c *result.Capacity) error {
			if len(c.Trials) == len(before.Trials)+3 {
				time.AfterFunc(2*time.Second, cancel) // within the next trial
			}
			return nil
		}
		again, err := Run(ctx, cfg, before)
		if err != nil || len(again.Trials) != len(before.Trials)+3 || again.Seconds <= before.Seconds {
			t.Fatalf("%v, %d trials after %d", err, len(again.Trials), len(before.Trials))
		}
		if len(before.Trials) != len(c.Trials) {
			t.Error("the search before has got more trials")
		}

		cfg.Save, cfg.Trial, cfg.Settle = nil, time.Minute, 0 // the length is that of before
		last, err := Run(t.Context(), cfg, again)
		if err != nil || last.Finding.Outcome != result.Found || last.Setup.Trial != 10 || last.Seconds <= again.Seconds {
			t.Errorf("%v, %+v", err, last.Finding)
		}
		again, err = Run(t.Context(), cfg, last)
		if err != nil || len(again.Trials) != len(last.Trials) {
			t.Errorf("%v, %d trials after %d, though the knee was known", err, len(again.Trials), len(last.Trials))
		}

		cfg.SLO, cfg.Load.Connections = mustConditions(t, "p99<1s"), 3
		if _, err := Run(t.Context(), cfg, last); err == nil || !strings.Contains(err.Error(), "connections: 64, now 3; SLO: [p99<200ms errors<1%], now [p99<1s]") {
			t.Errorf("another search went on: %v", err)
		}
	})
}

func TestRunFails(t *testing.T) {
	virtually(t, dlpstub.Config{Status: 503}, func(t *testing.T, cfg Config) {
		if _, err := Run(t.Context(), cfg, nil); err == nil || !strings.Contains(err.Error(), "10 of 10 requests, one after the other, failed: status: 503") {
			t.Error(err)
		}
		disk := errors.New("disk full")
		cfg.Load.Dial = func(context.Context) (net.Conn, error) { return nil, disk }
		if _, err := Run(t.Context(), cfg, nil); !errors.Is(err, ErrNoConnection) {
			t.Error(err)
		}
	})
	virtually(t, dlpstub.Config{}, func(t *testing.T, cfg Config) {
		disk := errors.New("disk full")
		cfg.Save = func(*result.Capacity) error { return disk }
		if c, err := Run(t.Context(), cfg, nil); err != disk || len(c.Trials) != 1 {
			t.Error(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if c, err := Run(ctx, cfg, nil); err != nil || len(c.Trials) != 0 || c.Finding.Outcome != result.Unfinished {
			t.Errorf("%+v, %v", c, err)
		}
	})
	virtually(t, dlpstub.Config{Latency: service}, func(t *testing.T, cfg Config) { // it vanishes after a trial that failed
		dial := cfg.Load.Dial
		gone := false
		cfg.Load.Dial = func(ctx context.Context) (net.Conn, error) {
			if gone {
				return nil, errors.New("refused")
			}
			return dial(ctx)
		}
		cfg.Save = func(c *result.Capacity) error {
			gone = c.Finding.Failed > 0
			return nil
		}
		cfg.SLO = mustConditions(t, "p99<1ms")
		c, err := Run(t.Context(), cfg, nil)
		if !errors.Is(err, ErrNoConnection) || len(c.Trials) != 1 {
			t.Errorf("%v, %+v", err, c.Finding)
		}
	})
}

// A target that takes long when it is idle is not asked for longer than a trial, nor waited for beyond the budget, but for requests that are
// under way then.
func TestSlowTarget(t *testing.T) {
	virtually(t, dlpstub.Config{Slots: 1, Queue: dlpstub.QueueAll, Latency: 4 * time.Second}, func(t *testing.T, cfg Config) {
		cfg.SLO, cfg.From, cfg.Trial, cfg.Budget = mustConditions(t, "p99<5s"), 1, 0, 30*time.Second
		start := time.Now()
		c, err := Run(t.Context(), cfg, nil)
		if took := time.Since(start); err != nil || took > cfg.Budget+3*cfg.Load.Timeout || len(c.Trials) == 0 {
			t.Errorf("%d trials in %v, %v", len(c.Trials), took, err)
		}
	})
}

func TestConnectionsTooFew(t *testing.T) {
	virtually(t, dlpstub.Config{Latency: service}, func(t *testing.T, cfg Config) { // 100 per second, by the connections alone
		cfg.Load.Connections = 2
		c := mustFind(t, cfg, 100, 0.05)
		if notes := fmt.Sprint(c.FirstBroken().Notes); !strings.Contains(notes, "all 2 connections were busy, though the target was as fast as when it is idle") {
			t.Error(notes)
		}
	})
}

func TestCheck(t *testing.T) {
	f := func(change func(*Config), want string) {
		t.Helper()
		cfg := Config{SLO: mustConditions(t, "p99<50ms,errors<0.01%"), Settings: Settings{10, 0, 0.02}, Budget: time.Minute}
		change(&cfg)
		cfg.SetDefaults()
		err := cfg.Check()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	f(func(*Config) {}, "")
	f(func(c *Config) { c.From = 0 }, "lowest rate")
	f(func(c *Config) { c.SLO = nil }, "such as p99<1s")
	f(func(c *Config) { c.SLO = mustConditions(t, "errors<1%") }, "falls behind")
	f(func(c *Config) { c.SLO = mustConditions(t, "service.p99<1s") }, "falls behind")
	f(func(c *Config) { c.SLO = mustConditions(t, "p99>1s") }, `"p99>1s" is what is not to be`)
	f(func(c *Config) { c.SLO = mustConditions(t, "mean<1s,rate>5") }, "")
	f(func(c *Config) { c.Budget = 0 }, "budget")
	f(func(c *Config) { c.Budget = time.Second }, "one trial is 2s long")
	f(func(c *Config) { c.Trial, c.Settle = time.Second, time.Second }, "to settle")
	f(func(c *Config) { c.Settle = -1 }, "to settle")
	f(func(c *Config) { c.From = 0.1 }, "a trial of 10 requests at the lowest rate, 0.1/s, is 2m5s long, the budget is 1m0s")
}

func TestLength(t *testing.T) {
	f := func(slo string, step Step, want time.Duration) {
		t.Helper()
		cfg := Config{SLO: mustConditions(t, slo), Settings: Settings{10, 0, 0.02}, Budget: 10 * time.Minute}
		cfg.SetDefaults() // trials of 20 s, 4 s to settle
		s := search{cfg: &cfg}
		if got := s.length(step); got != want {
			t.Errorf("%s, %+v: %v, want %v", slo, step, got, want)
		}
	}
	f("p99<50ms", Step{1000, false}, 20*time.Second)
	f("p99<50ms", Step{40, false}, 31250*time.Millisecond) // 1000 requests after the settling
	f("p99<50ms", Step{0.5, false}, time.Minute)
	f("p99<50ms", Step{0.1, false}, 125*time.Second) // 10 requests after the settling
	f("p99<50ms", Step{0.1, true}, 125*time.Second)
	f("p99.99<50ms", Step{1000, false}, time.Minute)
	f("p99<500ms", Step{1000, false}, 31250*time.Millisecond) // 2 % of overload are 500 ms after 25 s
	f("p99<50ms", Step{1000, true}, 5*time.Second)
	f("p99<50ms", Step{20, true}, 12500*time.Millisecond) // 200 requests after the settling
	f("p99<50ms", Step{1, true}, 15*time.Second)
}

func TestJudge(t *testing.T) {
	slo := "p99<50ms,errors<0.1%"
	f := func(t0 result.Trial, change func(*result.Result), want result.Verdict, note string) {
		t.Helper()
		cfg := Config{SLO: mustConditions(t, slo), Settings: Settings{10, 0, 0.02}, Load: load.Config{Connections: 8}}
		s := search{cfg: &cfg, idle: 5 * time.Millisecond}
		t0.Rate, t0.Verdict, t0.Result = 100, result.Held, result.New()
		change(t0.Result)
		s.judge(&t0, 2000)
		if notes := strings.Join(t0.Notes, "; "); t0.Verdict != want || note == "" && notes != "" || !strings.Contains(notes, note) {
			t.Errorf("%s: %s, want %s: %s", t0.Verdict, notes, want, note)
		}
	}
	nothing := func(*result.Result) {}
	broken := []result.Broken{{Condition: "p99<50ms", Value: "60ms"}}
	busy := func(r *result.Result) { r.Generator.Limited = []string{"it used 95 % of its CPUs"} }
	f(result.Trial{}, nothing, result.Held, "")
	f(result.Trial{}, busy, result.Held, "") // in spite of it
	f(result.Trial{Broken: broken}, nothing, result.Failed, "")
	f(result.Trial{Broken: broken}, busy, result.Limited, "load generator: it used 95 %")
	f(result.Trial{Broken: broken}, func(r *result.Result) {
		r.Service.Record(4 * time.Millisecond)
		r.Late.Waited = 10
	}, result.Failed, "all 8 connections were busy")
	f(result.Trial{Broken: broken}, func(r *result.Result) {
		r.Service.Record(40 * time.Millisecond)
		r.Late.Waited = 10
	}, result.Failed, "")
	late := func(slow int) func(*result.Result) { // 20 of 1000 requests are late by the generator's doing, and some too slow
		return func(r *result.Result) {
			r.Begun, r.Late.Generator, r.Generator.Limited = 1000, 20, []string{"20 of 1000 requests began late"}
			for range slow {
				r.Latency.Record(time.Second)
			}
		}
	}
	f(result.Trial{Broken: broken}, late(30), result.Limited, "20 of 1000")
	f(result.Trial{Broken: broken}, late(300), result.Failed, "")
	slo = "p99<5s,errors<0.01%"
	f(result.Trial{}, nothing, result.Held, "an overload below 25 % would not have shown in 20 s, as it takes longer to break p99<5s; "+
		"2000 requests are few for errors<0.01%: one alone breaks it")
	f(result.Trial{Rough: true}, nothing, result.Held, "")
	slo = "p99.9<50ms"
	f(result.Trial{}, nothing, result.Held, "2000 requests are few for p99.9<50ms: 10000 should be made")
}
