package load

import (
	"context"
	"fmt"
	"math"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"icapgate/bench"
	"icapgate/bench/dlpstub"
	"icapgate/bench/result"
	"icapgate/bench/scenario"
)

// virtually runs f in virtual time, with a fake server of the configuration.
func virtually(t *testing.T, stub dlpstub.Config, f func(*testing.T, *dlpstub.Server, func(context.Context) (net.Conn, error))) {
	t.Helper()
	mustMix(t, small, 1) // what is made once is not the bubble's
	synctest.Test(t, func(t *testing.T) {
		s, dial := inMemory(t, stub)
		f(t, s, dial)
	})
}

// TestCoordinatedOmission has a server that takes 10 ms for each request, one after the other, and asks it for half as much again as it can.
// The open loop says how long requests wait, which is the longer the longer it goes on. The closed loop never sends more than the
// server can take, and so sees nothing of that.
func TestCoordinatedOmission(t *testing.T) {
	const service = 10 * time.Millisecond // 100 requests per second
	stub := dlpstub.Config{Latency: service, Slots: 1, Queue: dlpstub.QueueAll}
	run := func(d time.Duration, rate float64) (r *result.Result) {
		virtually(t, stub, func(t *testing.T, _ *dlpstub.Server, dial func(context.Context) (net.Conn, error)) {
			cfg := Config{Mix: mustMix(t, small, 100), Dial: dial, Connections: 4, Duration: d, Timeout: time.Minute}
			if rate > 0 {
				cfg.Stages = Constant(rate, 0)
			}
			r = mustRun(t, cfg)
		})
		if r.Failed > 0 {
			t.Fatalf("%+v", r.Errors)
		}
		return r
	}
	for _, d := range []time.Duration{10 * time.Second, 20 * time.Second} {
		open, closed := run(d, 150), run(d, 0)
		// By the end, 50 requests per second too many have come: the last one waits for all of them.
		most := time.Duration(float64(d) * 0.5)
		if got, want := open.Latency.Quantile(99), most*99/100; math.Abs(float64(got-want)) > 0.02*float64(want) {
			t.Errorf("open loop of %v: p99 is %v, want %v", d, got, want)
		}
		if got := open.Service.Quantile(99); got > 5*service {
			t.Errorf("open loop of %v: the service time is %v", d, got)
		}
		if open.Late.Waited < open.Requests*9/10 || open.Late.Generator > 0 {
			t.Errorf("open loop of %v: %d of %d requests waited for a connection, %d for the generator", d, open.Late.Waited, open.Requests, open.Late.Generator)
		}
		if got := closed.Latency.Quantile(99); got > 5*service {
			t.Errorf("closed loop of %v: p99 is %v, though each of 4 connections waits for 4 services at most", d, got)
		}
		if math.Abs(closed.Rate()-100) > 1 || math.Abs(open.Rate()-100) > 1 {
			t.Errorf("rates %v and %v, the server can do 100", open.Rate(), closed.Rate())
		}
		t.Logf("%v at 1.5 times what the server can: p99 %v in the open loop, %v in the closed one", d, open.Latency.Quantile(99), closed.Latency.Quantile(99))
	}
}

// TestRates asks for rates that a fast server can take.
func TestRates(t *testing.T) {
	for _, rate := range []float64{100, 1000, 10000} {
		for _, poisson := range []bool{false, true} {
			virtually(t, dlpstub.Config{}, func(t *testing.T, s *dlpstub.Server, dial func(context.Context) (net.Conn, error)) {
				d := time.Duration(1e5/rate) * time.Second / 10 // 10,000 requests
				r := mustRun(t, Config{Mix: mustMix(t, small, 100), Dial: dial, Connections: 8, Stages: Constant(rate, d), Poisson: poisson, Seed: 1})
				off := 0.0001
				if poisson {
					off = 0.033 // 3.3 times the square root of 10,000
				}
				if got := r.Rate(); math.Abs(got/rate-1) > off {
					t.Errorf("%v requests per second, asked for %v, Poisson: %v", got, rate, poisson)
				}
				if r.Latency.Max() > 0 { // nothing takes time here
					t.Errorf("latency %v", r.Latency.Max())
				}
				checkPoints(t, r, rate, poisson)
			})
		}
	}
}

// checkPoints checks the rate of each full second.
func checkPoints(t *testing.T, r *result.Result, rate float64, poisson bool) {
	t.Helper()
	total := int64(0)
	for i, p := range r.Timeline.Points {
		total += p.Requests
		if off := math.Abs(float64(p.Begun) - rate); i+1 < len(r.Timeline.Points) && (off > 5*math.Sqrt(rate) || !poisson && off > 1) {
			t.Errorf("%d requests began in second %d, asked for %v", p.Begun, i, rate)
		}
	}
	if total != r.Requests {
		t.Errorf("%d requests in the timeline, %d in all", total, r.Requests)
	}
}

func TestWarmUp(t *testing.T) {
	for _, stages := range [][]result.Stage{nil, Constant(50, 0)} {
		// The first second is slow.
		start := time.Time{}
		treat := func(_ *dlpstub.Request, how *dlpstub.Treatment) {
			if time.Since(start) < time.Second {
				how.Latency = 100 * time.Millisecond
			} else {
				how.Latency = 10 * time.Millisecond
			}
		}
		virtually(t, dlpstub.Config{Treat: treat}, func(t *testing.T, s *dlpstub.Server, dial func(context.Context) (net.Conn, error)) {
			start = time.Now()
			r := mustRun(t, Config{Mix: mustMix(t, small, 100), Dial: dial, Connections: 8, Stages: stages, WarmUp: 2 * time.Second, Duration: 3 * time.Second})
			if r.WarmUp.Requests == 0 || r.WarmUp.Failed > 0 || r.Latency.Max() > 11*time.Millisecond || len(r.Timeline.Points) < 3 {
				t.Errorf("%d requests of the warm-up, slowest of the rest %v", r.WarmUp.Requests, r.Latency.Max())
			}
			if !r.Started.Equal(start.Add(2*time.Second)) || math.Abs(r.Seconds-3) > 0.02 {
				t.Errorf("started %v late, took %v s", r.Started.Sub(start), r.Seconds)
			}
			if want := uint64(r.Requests + r.WarmUp.Requests); s.Stats().Requests[small.Method] != want {
				t.Errorf("%d requests sent, %d and %d counted", s.Stats().Requests[small.Method], r.WarmUp.Requests, r.Requests)
			}
			if stages != nil && (r.WarmUp.Requests != 100 || r.Requests != 150) {
				t.Errorf("%d and %d requests at 50 per second", r.WarmUp.Requests, r.Requests)
			}
		})
	}
}

func TestStartAt(t *testing.T) {
	virtually(t, dlpstub.Config{}, func(t *testing.T, _ *dlpstub.Server, dial func(context.Context) (net.Conn, error)) {
		at := time.Now().Add(time.Hour)
		early := func(ctx context.Context) (net.Conn, error) {
			if lead := time.Until(at); lead < time.Second || lead > 5*time.Second {
				t.Errorf("a connection is made %v before the start", lead)
			}
			return dial(ctx)
		}
		r := mustRun(t, Config{Mix: mustMix(t, small, 100), Dial: early, StartAt: at, Requests: 10})
		if !r.Started.Equal(at) || r.Requests != 10 {
			t.Errorf("%d requests from %v on, want %v", r.Requests, r.Started, at)
		}
		if len(r.Remarks) > 0 {
			t.Errorf("remarks %q", r.Remarks)
		}
		at = time.Now().Add(4 * time.Second)
		slow := func(ctx context.Context) (net.Conn, error) {
			time.Sleep(10 * time.Second)
			return dial(ctx)
		}
		r = mustRun(t, Config{Mix: mustMix(t, small, 100), Dial: slow, StartAt: at, Requests: 10})
		if late := r.Started.Sub(at); r.Requests != 10 || len(r.Remarks) != 1 || r.Remarks[0] != fmt.Sprintf("it began %v after the time that was agreed upon", late.Round(100*time.Millisecond)) {
			t.Errorf("%v late: remarks %q", late, r.Remarks)
		}
	})
}

// TestUnsent has a server that answers nothing: what was planned behind the requests that wait for it counts too, but nothing of the warm-up.
func TestUnsent(t *testing.T) {
	for _, warmUp := range []time.Duration{0, 10 * time.Second} {
		virtually(t, dlpstub.Config{Latency: time.Hour}, func(t *testing.T, _ *dlpstub.Server, dial func(context.Context) (net.Conn, error)) {
			r := mustRun(t, Config{
				Mix: mustMix(t, small, 100), Dial: dial, Connections: 2, Stages: Constant(10, 5*time.Second), WarmUp: warmUp, Timeout: 20 * time.Second,
			})
			unsent, timeouts := r.Errors[bench.Unsent], int64(0)
			if e := r.Errors[bench.Timeout]; e != nil {
				timeouts = e.Count
			}
			if r.Requests != 0 || r.Failed != 50 || unsent == nil || timeouts+unsent.Count != 50 {
				t.Errorf("warm-up %v: %d timeouts, %+v, %d failed, %d answered", warmUp, timeouts, unsent, r.Failed, r.Requests)
			}
			if tried := timeouts + r.WarmUp.Failed; tried != 2 && tried != 4 {
				t.Errorf("warm-up %v: %d requests have timed out", warmUp, tried)
			}
		})
	}
}

// TestInterrupt ends runs early. What is under way may end, but not for long.
func TestInterrupt(t *testing.T) {
	for _, stages := range [][]result.Stage{nil, Constant(100, 0)} {
		for latency, answered := range map[time.Duration]bool{time.Second: true, time.Hour: false} {
			virtually(t, dlpstub.Config{Latency: latency}, func(t *testing.T, _ *dlpstub.Server, dial func(context.Context) (net.Conn, error)) {
				ctx, cancel := context.WithCancel(t.Context())
				defer time.AfterFunc(500*time.Millisecond, cancel).Stop()
				start := time.Now()
				cfg := Config{
					Mix: mustMix(t, small, 100), Dial: dial, Connections: 4, Stages: stages, Duration: time.Hour, Timeout: 10 * time.Minute,
					IncidentHeader: "X-Incident-ID", IncidentRun: "ab",
				}
				r, err := Run(ctx, cfg)
				if err != nil {
					t.Fatal(err)
				}
				if took := time.Since(start); took > 3*time.Second || !r.Interrupted || r.Failed > 0 || answered != (r.Requests == 4) {
					t.Errorf("latency %v: %d answered, %d failed after %v", latency, r.Requests, r.Failed, took)
				}
				if got := fmt.Sprint(r.Incidents.Sent, r.Incidents.Failed); answered && got != "[ab-0 to ab-3] []" || !answered && got != "[ab-0 to ab-3] [ab-0 to ab-3]" {
					t.Errorf("latency %v: incidents %s", latency, got)
				}
			})
		}
	}
}

// TestIncidents has every request counted by the server under its id, also those of faulty clients and those that fail.
func TestIncidents(t *testing.T) {
	incidents := dlpstub.NewIncidents()
	var n atomic.Int64
	stub := dlpstub.Config{Incidents: incidents, Treat: func(_ *dlpstub.Request, how *dlpstub.Treatment) {
		if n.Add(1)%10 == 0 {
			how.Status = 500
		}
	}}
	virtually(t, stub, func(t *testing.T, _ *dlpstub.Server, dial func(context.Context) (net.Conn, error)) {
		s, err := scenario.Parse("incidents.yaml", []byte("requests: [{weight: 9, body: 1000}, {method: OPTIONS}]"))
		if err != nil {
			t.Fatal(err)
		}
		s.IncidentHeader = "X-Incident-ID"
		s.Faults = []scenario.FaultType{{Kind: scenario.HalfClose, Share: 0.1, Hold: 1, Rate: 1}}
		mix := mustCompile(t, s)
		if err := mix.SetRun("ab"); err != nil {
			t.Fatal(err)
		}
		cfg := Config{Mix: mix, Dial: dial, Connections: 1, Requests: 200, IncidentHeader: s.IncidentHeader, IncidentRun: "ab", Timeout: time.Minute}
		r, err := Run(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		options := r.Entries[1].Requests + r.Entries[1].Failed
		sent, unsure := spanned(r.Incidents.Sent), spanned(r.Incidents.Failed)
		ledger := incidents.Ledger()
		if len(ledger.Runs) != 1 || ledger.Runs[0].Distinct+ledger.Runs[0].Refused != sent || ledger.Runs[0].Refused == 0 {
			t.Fatalf("%d sent, the server has seen %+v", sent, ledger)
		}
		if faulty := r.Faults[string(scenario.HalfClose)].Count; int64(sent)+options > 200 || int64(sent)+options < 200-faulty || int64(unsure) > faulty+r.Failed || r.Failed == 0 || options == 0 {
			t.Errorf("%d sent, %d answered, %d failed, %d of faulty clients, %d OPTIONS, %d ids in doubt", sent, r.Requests, r.Failed, faulty, options, unsure)
		}
		// What was answered is at the server, once.
		seen := map[uint64]uint64{}
		for _, span := range ledger.Runs[0].IDs {
			for n := span.From; n <= span.To; n++ {
				seen[n] = uint64(span.Count)
			}
		}
		failed := map[uint64]bool{}
		each(r.Incidents.Failed, func(n uint64) { failed[n] = true })
		each(r.Incidents.Sent, func(n uint64) {
			if !failed[n] && seen[n] != 1 {
				t.Errorf("incident %d was answered, and is %d times at the server", n, seen[n])
			}
		})
	})
}

func each(list []result.Range, f func(n uint64)) {
	for _, r := range list {
		for n := r.From; n <= r.To; n++ {
			f(n)
		}
	}
}

func spanned(list []result.Range) (n uint64) {
	each(list, func(uint64) { n++ })
	return n
}

// TestIdleConnections has connections that clients close when they have not needed them for a while.
func TestIdleConnections(t *testing.T) {
	virtually(t, dlpstub.Config{}, func(t *testing.T, s *dlpstub.Server, dial func(context.Context) (net.Conn, error)) {
		stages := []result.Stage{{Rate: 1}, {Seconds: 5, Rate: 1}, {Rate: 0.01}, {Seconds: 200, Rate: 0.01}}
		r := mustRun(t, Config{Mix: mustMix(t, small, 100), Dial: dial, Connections: 2, Stages: stages, Idle: 10 * time.Second})
		if r.Requests != 7 || r.Failed != 0 || r.Dials != 3 { // both at first, one again after 100 s
			t.Errorf("%d requests over %d connections, %+v", r.Requests, r.Dials, r.Errors)
		}
	})
}

// TestProgress has the figures so far without those of the entries, which are in the result.
func TestProgress(t *testing.T) {
	virtually(t, dlpstub.Config{Name: "one"}, func(t *testing.T, _ *dlpstub.Server, dial func(context.Context) (net.Conn, error)) {
		var seen []*result.Result
		show := func(r *result.Result) { seen = append(seen, r) }
		r := mustRun(t, Config{Mix: mustMix(t, small, 100), Dial: dial, Stages: Constant(10, 0), Duration: 2500 * time.Millisecond, Progress: show})
		if len(seen) != 2 || seen[0].Requests < 10 || seen[1].Requests < 20 || seen[1].Servers["one"] != seen[1].Requests || len(seen[1].Entries) != 0 {
			t.Errorf("%d reports: %+v", len(seen), seen)
		}
		if r.Requests != 25 || len(r.Entries) != 1 || r.Entries[0].Requests != 25 || r.Servers["one"] != 25 {
			t.Errorf("%d requests, entries %+v, servers %v", r.Requests, r.Entries, r.Servers)
		}
	})
}

// TestFaultyClientsOfTheWarmUp has every second client be faulty, from the begin of the warm-up on: only those after it count.
func TestFaultyClientsOfTheWarmUp(t *testing.T) {
	virtually(t, dlpstub.Config{}, func(t *testing.T, _ *dlpstub.Server, dial func(context.Context) (net.Conn, error)) {
		s := scenario.Single(small, 100)
		s.Faults = []scenario.FaultType{{Kind: scenario.HalfClose, Share: 0.5, Rate: 1}}
		r := mustRun(t, Config{Mix: mustCompile(t, s), Dial: dial, Stages: Constant(100, time.Second), WarmUp: 3 * time.Second, Seed: 1})
		if f := r.Faults[string(scenario.HalfClose)]; f == nil || r.Requests+f.Count != 100 || r.WarmUp.Requests < 100 || r.WarmUp.Requests > 200 {
			t.Errorf("%d requests and %+v after %d of the warm-up", r.Requests, f, r.WarmUp.Requests)
		}
	})
}

// TestFaultyClientsAtTheEnd has faulty clients that have no answer when the run is over: that is not the target's doing.
func TestFaultyClientsAtTheEnd(t *testing.T) {
	virtually(t, dlpstub.Config{Latency: time.Hour}, func(t *testing.T, _ *dlpstub.Server, dial func(context.Context) (net.Conn, error)) {
		s := scenario.Single(small, 100)
		s.Faults = []scenario.FaultType{{Kind: scenario.HalfClose, Share: 1, Rate: 1}}
		r := mustRun(t, Config{Mix: mustCompile(t, s), Dial: dial, Requests: 5, Timeout: time.Hour})
		if f := r.Faults[string(scenario.HalfClose)]; f == nil || f.Count != 5 || f.Outcomes["under way when the run ended"] != 5 {
			t.Errorf("%+v", f)
		}
	})
}
