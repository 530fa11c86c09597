package report

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"icapgate/bench"
	"icapgate/bench/result"
)

// plan is what a sample run is made of.
type plan struct {
	seconds int
	rate    float64
	stages  []result.Stage // of an open loop
	servers int
	service time.Duration
	killed  [2]int // seconds between which a server is away
	seed    uint64
}

// sample makes a plausible result, always the same.
func sample(p plan) *result.Result {
	rng := rand.New(rand.NewPCG(p.seed, 1))
	r := result.New()
	r.Version, r.Label = "1.2.3", ""
	r.Setup = result.Setup{
		Target: "icaps://gate.example:11344/reqmod", Scenario: "uploads.yaml", TLS: true, Connections: 64, PerConn: 100,
		Open: p.stages != nil, Arrivals: "poisson", Stages: p.stages, Seed: p.seed, Machines: 1,
	}
	r.Started, r.Seconds = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC), float64(p.seconds)+0.2
	r.WarmUp = result.Count{Requests: 100, Failed: 0}
	r.Entries = []result.Entry{
		{Name: "small uploads", Method: "REQMOD", Latency: result.NewHistogram()},
		{Name: "large uploads", Method: "REQMOD", Latency: result.NewHistogram()},
		{Name: "downloads", Method: "RESPMOD", Latency: result.NewHistogram()},
	}
	line := planned(&r.Setup, float64(p.seconds))
	for s := range p.seconds {
		rate := p.rate
		if p.stages != nil {
			rate = rateAt(line, float64(s)+0.5)
		}
		away := s >= p.killed[0] && s < p.killed[1]
		point := result.NewPoint()
		for range int(rate * (0.95 + 0.1*rng.Float64())) {
			sampleRequest(r, &point, rng, p, away)
		}
		point.InFlight = int64(1 + 10*rng.Float64())
		point.CPU = 0.3 + 0.2*rng.Float64()
		r.Generator.CPUSeconds += point.CPU
		r.Timeline.Append(point)
	}
	r.Late.Limit = 0.001
	r.Generator.CPUs = 2
	r.Dials, r.Resumed = 640, 200
	return r
}

func sampleRequest(r *result.Result, point *result.Point, rng *rand.Rand, p plan, away bool) {
	r.Begun++
	point.Begun++
	if away && rng.Float64() < 0.03 {
		kind, example := bench.Closed, "the peer closed the connection"
		if rng.Float64() < 0.3 {
			kind, example = bench.Status, "503 Service overloaded"
		}
		r.AddError(kind, result.Errors{Count: 1, Example: example})
		point.Failed++
		point.Errors[kind]++
		r.Entries[0].Failed++
		return
	}
	service := time.Duration(float64(p.service) * math.Exp(0.5*rng.NormFloat64()))
	delay := time.Duration(rng.ExpFloat64() * float64(100*time.Microsecond))
	if away {
		delay = time.Duration(rng.ExpFloat64() * float64(10*p.service))
		r.Late.Waited++
		point.Late++
	}
	r.Requests++
	point.Requests++
	r.Latency.Record(service + delay)
	point.Latency.Record(service + delay)
	r.Service.Record(service)
	r.Late.Delay.Record(delay)
	r.Phases.FirstByte.Record(service * 9 / 10)
	if r.Requests%100 == 0 {
		r.Phases.Connect.Record(200 * time.Microsecond)
		r.Phases.Handshake.Record(2 * time.Millisecond)
	}
	n := rng.IntN(p.servers)
	if away {
		n = max(n, min(1, p.servers-1)) // the first one is gone
	}
	server := fmt.Sprintf("10.2.1.%d:1344", 101+n)
	r.AddServer(server, 1)
	point.Servers[server]++
	r.Statuses[[]int{204, 204, 204, 200}[rng.IntN(4)]]++
	r.BytesSent += 20_000
	e := &r.Entries[rng.IntN(3)]
	e.Requests++
	e.Latency.Record(service + delay)
}

const hostile = "<script>alert(1)</script>\" ' & ]]> \x00\x1b[31m \xff </svg></style><img src=http://evil.example/ onerror=alert(1)>"

// samples are results of all sorts.
func samples(t testing.TB) map[string]*result.Result {
	short := plan{seconds: 5, rate: 400, servers: 1, service: time.Millisecond, seed: 1}
	open := plan{seconds: 120, servers: 3, service: 3 * time.Millisecond, killed: [2]int{60, 75}, seed: 2,
		stages: []result.Stage{{Seconds: 0, Rate: 50}, {Seconds: 30, Rate: 300}, {Seconds: 60, Rate: 300}, {Seconds: 0, Rate: 100}, {Seconds: 30, Rate: 100}}}
	hour := plan{seconds: 3600, rate: 20, servers: 4, service: 20 * time.Millisecond, killed: [2]int{1200, 1300}, seed: 3}
	many := plan{seconds: 60, rate: 1000, servers: 40, service: 3 * time.Millisecond, killed: [2]int{20, 35}, seed: 4}

	all := map[string]*result.Result{"empty": result.New(), "short": sample(short), "open": sample(open), "hour": sample(hour), "many": sample(many)}
	second := short
	second.seconds = 1
	all["second"] = sample(second)

	failed := result.New()
	failed.Setup = result.Setup{Target: "icap://gone:1344/", Scenario: "REQMOD of 1 KiB", Connections: 4, Open: true, Arrivals: "constant",
		Stages: []result.Stage{{Rate: 10}}}
	failed.Seconds, failed.Begun = 2, 20
	failed.AddError(bench.Connect, result.Errors{Count: 20, Example: "connection refused"})
	failed.Timeline.Append(result.Point{Failed: 10, Begun: 10, Errors: map[bench.Kind]int64{bench.Connect: 10}})
	failed.Timeline.Append(result.Point{Failed: 10, Begun: 10, Errors: map[bench.Kind]int64{bench.Connect: 10}})
	all["failed"] = failed

	evil := sample(plan{seconds: 3, rate: 100, servers: 2, service: time.Millisecond, seed: 5})
	evil.Label, evil.Setup.Target, evil.Setup.Scenario = hostile, hostile, hostile
	evil.AddServer(hostile, 50)
	evil.Timeline.Points[1].Servers[hostile] = 50
	evil.AddError(hostile, result.Errors{Count: 1, Example: hostile})
	evil.Faults[hostile] = &result.Fault{Count: 3, Outcomes: map[string]int64{hostile: 3}}
	evil.Entries[0].Name = hostile
	evil.Generator.Limited = []string{hostile}
	evil.Remarks = []string{hostile}
	all["hostile"] = evil

	left, right := open, open
	right.seed = 7
	a, b := sample(left), sample(right)
	a.Label, b.Label = "left", "right"
	b.Generator.Limited = []string{"it used 93 % of its CPUs"}
	b.Faults["slow_body"] = &result.Fault{Count: 20, Outcomes: map[string]int64{"204": 18, "closed": 2}}
	b.Started = b.Started.Add(1200 * time.Millisecond)
	merged, err := result.Merge([]*result.Result{a, b})
	if err != nil {
		t.Fatal(err)
	}
	all["merged"] = merged
	return all
}

// sampleCapacity makes a search whose knee is at 1,000 requests per second.
func sampleCapacity(t testing.TB) *result.Capacity {
	c := &result.Capacity{Format: result.CapacityFormat, Version: "1.2.3", Started: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC), Seconds: 200}
	c.Setup = result.CapacitySetup{Target: "icaps://gate.example:11344/reqmod", Scenario: "uploads.yaml", TLS: true, Connections: 64, Arrivals: "poisson",
		SLO: mustConditions(t, "p99<50ms,errors<0.01%"), From: 100, Precision: 0.02, Trial: 10, Settle: 2}
	for i, rate := range []float64{100, 200, 400, 800, 1600, 1200, 1000, 900, 950, 1050, 980, 1010, 1000} {
		over := max(rate-990, 0)
		r := sample(plan{seconds: 2, rate: rate, servers: 3, service: time.Duration((3 + over/4) * float64(time.Millisecond)), seed: uint64(i)})
		trial := result.Trial{Rate: rate, Rough: i < 5, Verdict: result.Held, Result: r}
		switch {
		case rate == 1600:
			trial.Verdict, trial.Notes = result.Limited, []string{"it used 95 % of its CPUs"}
		case r.Latency.Quantile(99) > 50*time.Millisecond:
			trial.Verdict, trial.Cut = result.Failed, rate > 1100
			trial.Broken = []result.Broken{{Condition: "p99<50ms", Value: result.Time(r.Latency.Quantile(99))}}
		}
		c.Trials = append(c.Trials, trial)
	}
	c.Finding = result.Finding{Outcome: result.Found, Knee: 1020, Low: 1000, High: 1045, Confidence: 0.95, Width: 0.03, Held: 1010, Failed: 1050}
	return c
}
