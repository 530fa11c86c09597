package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"icapgate/balancer"
	"icapgate/bench/dlpstub"
	"icapgate/bench/load"
	benchresult "icapgate/bench/result"
)

var balance = &trial{
	name:  "balance",
	about: "three servers, one of them ten times slower: shares and latencies under each policy; one that is killed again and again",
	help: `Requests of 1 KiB from 1000 users come at random (Poisson) at two rates, under each policy of pools[].balance in turn. Each of the three servers
serves 16 requests at a time and lets the others wait; two take 10 ms for one, the third 100 ms, so it can do 160/s of 3,360/s. At 300/s its third is
less than that, at 900/s it is more. A latency counts from the time for which a request was planned.
Claimed: no request fails, and at 900/s the p99 of round_robin is at least 3 times that of least_inflight and of peak_ewma. At 300/s it is told only:
the difference is then 90 ms at most, which is less than a busy machine adds. Then, at 900/s and under each policy, the third server, as fast as the others now, is killed and started again, again and again.
Claimed: no request fails, and from 1 s after a kill on no request is tried on it. Checks alone, with their default values, would take longer.

    go run ./bench/trial balance
    go run ./bench/trial balance --length 60s
`,
	limit: 20 * time.Minute,
	flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		o := &balanceOptions{}
		f.DurationVar(&o.length, "length", 15*time.Second, "of each load, after 3 s that do not count")
		f.IntVar(&o.kills, "kills", 3, "of the third server under each policy; 0: leave that part out")
		return o.run
	},
}

type balanceOptions struct {
	length time.Duration
	kills  int
}

// What the servers can do, and what is asked of them.
const (
	balanceSlots   = 16
	balanceFast    = 10 * time.Millisecond
	balanceSlow    = 100 * time.Millisecond
	balanceLow     = 300 // requests/s
	balanceHigh    = 900
	balanceClients = 2500 // connections: more than wait in the worst case
	balanceUp      = 4 * time.Second
	balanceDown    = 3 * time.Second
)

func (o *balanceOptions) run(ctx context.Context, r *rig) error {
	if o.length < time.Second || o.kills < 0 {
		return errors.New("--length has to be 1s at least, --kills 0")
	}
	stub := serverConfig{Slots: balanceSlots, Latency: balanceFast}
	servers, err := r.startServers(ctx, 2, stub)
	if err != nil {
		return err
	}
	stub.Latency = balanceSlow
	slow, err := r.startServer(ctx, stub)
	if err != nil {
		return err
	}
	for _, rate := range []float64{balanceLow, balanceHigh} {
		if err := o.compare(ctx, r, append(servers, slow), rate); err != nil {
			return err
		}
	}
	if o.kills == 0 {
		return nil
	}
	stub.Latency = balanceFast
	flapping, err := r.startServer(ctx, stub)
	if err != nil {
		return err
	}
	r.section("a server that is killed and started again, %d times, at %d/s", o.kills, balanceHigh)
	r.note("%-15s %9s %9s %9s   %s", "policy", "p50", "p99", "longest", "tried on it from 1 s after a kill on")
	var claims []func()
	for _, policy := range balancer.Names() {
		claim, err := o.flap(ctx, r, append(servers, flapping), policy)
		if err != nil {
			return err
		}
		claims = append(claims, claim)
	}
	for _, claim := range claims {
		claim()
	}
	return nil
}

// compare makes the same load under each policy.
func (o *balanceOptions) compare(ctx context.Context, r *rig, servers []*server, rate float64) error {
	r.section("%.0f requests/s, the third server is slow", rate)
	r.note("%-15s %8s %8s %8s %9s %9s %9s %9s", "policy", "first", "second", "slow", "p50", "p90", "p99", "longest")
	tellWaits := r.pulse(ctx)
	p99 := map[string]time.Duration{}
	for _, policy := range balancer.Names() {
		if err := r.startGateway(ctx, balanceConfig(servers, policy)); err != nil {
			return err
		}
		res, err := o.load(ctx, r, rate, o.length)
		r.stopGateway()
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%s, %.0f/s: ", policy, rate)
		row := []any{policy}
		for _, s := range servers {
			share := 100 * float64(res.Servers[s.name]) / float64(max(res.Requests, 1))
			r.store(name+"share of "+s.name, share, "%")
			row = append(row, fmt.Sprintf("%.1f %%", share))
		}
		for _, percent := range []float64{50, 90, 99, 100} {
			latency := res.Latency.Quantile(percent)
			r.store(fmt.Sprintf("%sp%g", name, percent), latency.Seconds()*1000, "ms")
			row = append(row, fmt.Sprintf("%.1f ms", latency.Seconds()*1000))
		}
		p99[policy] = res.Latency.Quantile(99)
		r.note("%-15s %8s %8s %8s %9s %9s %9s %9s", row...)
		if res.Failed > 0 || res.Requests == 0 {
			r.claim(false, "%s0 of %d requests failed: %d", name, res.Requests+res.Failed, res.Failed)
		}
	}
	tellWaits()
	for _, policy := range []string{"least_inflight", "peak_ewma"} {
		ratio := float64(p99["round_robin"]) / float64(p99[policy])
		r.figure(fmt.Sprintf("p99 of round_robin over that of %s", policy), ratio, "")
		if rate == balanceHigh {
			r.claim(ratio >= 3, "at %.0f/s it is 3 at least: %.1f", rate, ratio)
		}
	}
	return nil
}

// flap kills the third server again and again. It returns what claims what has to hold, below the table.
func (o *balanceOptions) flap(ctx context.Context, r *rig, servers []*server, policy string) (claim func(), err error) {
	if err := r.startGateway(ctx, balanceConfig(servers, policy)); err != nil {
		return nil, err
	}
	defer r.stopGateway()
	third := servers[2]
	tried := func() (float64, error) {
		m, err := r.metrics(ctx)
		return m.by("attempts_total", "server")[third.address], err
	}
	type outcome struct {
		res *benchresult.Result
		err error
	}
	done := make(chan outcome, 1)
	loading, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		res, err := o.load(loading, r, balanceHigh, time.Duration(o.kills)*(balanceUp+balanceDown))
		done <- outcome{res, err}
	}()
	late := 0.0
	harm := func() error {
		if err := pause(ctx, balanceUp); err != nil {
			return err
		}
		third.kill()
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
		before, err := tried()
		if err != nil {
			return err
		}
		if err := pause(ctx, balanceDown-time.Second); err != nil {
			return err
		}
		after, err := tried()
		if err != nil {
			return err
		}
		late += after - before
		return third.start(ctx)
	}
	for range o.kills {
		if err := harm(); err != nil {
			stop()
			<-done
			return nil, err
		}
	}
	end := <-done
	if end.err != nil {
		return nil, end.err
	}
	ms := func(percent float64) string {
		return fmt.Sprintf("%.1f ms", end.res.Latency.Quantile(percent).Seconds()*1000)
	}
	r.note("%-15s %9s %9s %9s   %.0f", policy, ms(50), ms(99), ms(100), late)
	return func() {
		r.claim(end.res.Failed == 0, "%s: 0 of %d requests failed: %d", policy, end.res.Requests+end.res.Failed, end.res.Failed)
		r.claim(late == 0, "%s: from 1 s after a kill on no request is tried on the server: %.0f were", policy, late)
	}, nil
}

func balanceConfig(servers []*server, policy string) gatewayConfig {
	return gatewayConfig{Servers: servers, Pool: fmt.Sprintf("    balance: %s\n    slow_start: 1s\n", policy)}
}

// load makes requests at random through the gateway.
func (o *balanceOptions) load(ctx context.Context, r *rig, rate float64, length time.Duration) (*benchresult.Result, error) {
	cfg, err := r.userLoad(false, "1KiB", balanceClients)
	if err != nil {
		return nil, err
	}
	cfg.Poisson, cfg.WarmUp, cfg.Stages = true, 3*time.Second, load.Constant(rate, length)
	return load.Run(ctx, cfg)
}

// line is the Queue of a server of which more requests wait than are in service; see dlpstub.Config.
func line(slots int) int {
	if slots == 0 {
		return 0
	}
	return dlpstub.QueueAll
}
