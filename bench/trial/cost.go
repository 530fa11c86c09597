package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"icapgate/balancer"
	"icapgate/bench/load"
	"icapgate/bench/rounds"
)

var cost = &trial{
	name:  "cost",
	about: "what a request costs the gateway under each policy, beside round_robin",
	help: `REQMODs of 1 KiB from 1000 users are answered 204 by four fake servers, over icaps and over icap, as fast as answers come. Measured is the CPU time of
the gateway's process per request, without that of opening the connections. Each policy of pools[].balance has a gateway that is started anew in each
round, since one process may be a little faster than the next one of the same program; the order rotates from round to round. round_robin is measured twice:
what lies between the two is chance, and says how far a ratio can be trusted.

Claimed: no request fails, and no policy costs more than 1.03 times what round_robin does: the 95 % interval of the median of the ratios reaches 1.03.

    go run ./bench/trial cost
    go run ./bench/trial cost --rounds 41 --only least_inflight,peak_ewma --doors icap
`,
	limit: time.Hour,
	flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		o := &costOptions{}
		f.IntVar(&o.rounds, "rounds", 15, "rounds, after one to warm up")
		f.IntVar(&o.requests, "requests", 30000, "requests of each measurement")
		f.IntVar(&o.connections, "connections", 64, "connections of clients")
		f.StringVar(&o.only, "only", "", "`names` of what to measure beside its base, with commas between; empty: all")
		f.StringVar(&o.doors, "doors", "icaps,icap", "how clients connect")
		f.Float64Var(&o.most, "most", 1.03, "ratio that the interval has to reach")
		return o.run
	},
}

type costOptions struct {
	rounds, requests, connections int
	only, doors                   string
	most                          float64
}

const costServers = 4

// costCase is one way to configure the pool.
type costCase struct {
	name string
	pool string // YAML, indented by 4
	base string // name of the case beside which it is looked at; "": it is a base
	same bool   // it is the base once more, which shows what is chance
}

// costCases are all that is measured. A base stands before what is looked at beside it.
func costCases() (list []costCase) {
	const base = "round_robin"
	pool := func(policy string) string { return fmt.Sprintf("    balance: %s\n", policy) }
	list = append(list, costCase{name: base, pool: pool(base)}, costCase{name: base + " again", pool: pool(base), base: base, same: true})
	for _, policy := range balancer.Names() {
		if policy != base {
			list = append(list, costCase{name: policy, pool: pool(policy), base: base})
		}
	}
	return list
}

// chosen returns the cases that --only names, with their bases.
func (o *costOptions) chosen() (list []costCase, err error) {
	all := costCases()
	if o.only == "" {
		return all, nil
	}
	wanted := map[string]bool{}
	for name := range strings.SplitSeq(o.only, ",") {
		i := slices.IndexFunc(all, func(c costCase) bool { return c.name == name })
		if i < 0 {
			return nil, fmt.Errorf("--only: there is no %q", name)
		}
		wanted[name], wanted[all[i].base] = true, true
	}
	return slices.DeleteFunc(all, func(c costCase) bool { return !wanted[c.name] }), nil
}

func (o *costOptions) run(ctx context.Context, r *rig) error {
	if o.rounds < 1 || o.connections < 1 || o.requests < 2*o.connections {
		return errors.New("--rounds and --connections have to be above 0, --requests twice the --connections at least")
	}
	cases, err := o.chosen()
	if err != nil {
		return err
	}
	servers, err := r.startServers(ctx, costServers, serverConfig{})
	if err != nil {
		return err
	}
	r.note("%d rounds in rotating order after one to warm up; medians with smallest..largest; of ratios the median with its %.0f %% interval",
		o.rounds, 100*rounds.Confidence)
	for door := range strings.SplitSeq(o.doors, ",") {
		if door != "icaps" && door != "icap" {
			return fmt.Errorf("--doors: %q is neither icaps nor icap", door)
		}
		if err := o.compare(ctx, r, servers, cases, door); err != nil {
			return err
		}
	}
	return nil
}

// compare measures all cases at one door, in turns.
func (o *costOptions) compare(ctx context.Context, r *rig, servers []*server, cases []costCase, door string) error {
	var drivers []driver
	for _, c := range cases {
		drivers = append(drivers, driver{c.name, func(ctx context.Context) (drive, error) {
			return o.measure(ctx, r, gatewayConfig{Servers: servers, Pool: c.pool}, door == "icaps")
		}})
	}
	r.section("REQMOD 1 KiB over %s, 204, %d servers, %d connections: the gateway's CPU", door, costServers, o.connections)
	all, err := r.inTurn(ctx, o.rounds, drivers)
	if err != nil {
		return err
	}
	var text strings.Builder
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tµs per request\tratio\tinterval\tbeside")
	failed := int64(0)
	reached := map[string]float64{} // the lower end of the interval
	for _, c := range cases {
		costs := series(all[c.name], drive.gatewayCost)
		for _, d := range all[c.name] {
			failed += d.failed
		}
		fmt.Fprintf(t, "%s\t%.2f (%.2f..%.2f)", c.name, rounds.Median(costs), slices.Min(costs), slices.Max(costs))
		r.store(door+", "+c.name, rounds.Median(costs), "µs of CPU per request")
		if c.base != "" {
			mid, low, high := ratio(costs, series(all[c.base], drive.gatewayCost))
			reached[c.name] = low
			fmt.Fprintf(t, "\t%.3f\t%.3f..%.3f\t%s", mid, low, high, c.base)
			r.store(door+", "+c.name+" / "+c.base, mid, "")
			r.store(door+", "+c.name+" / "+c.base+", lower end", low, "")
			r.store(door+", "+c.name+" / "+c.base+", upper end", high, "")
		}
		fmt.Fprintln(t)
	}
	t.Flush()
	r.note("%s", strings.TrimRight(text.String(), "\n"))
	r.claim(failed == 0, "%s: no request failed: %d did", door, failed)
	for _, c := range cases {
		if c.base != "" && !c.same {
			r.claim(reached[c.name] <= o.most, "%s, %s: the interval reaches %g times what %s costs: it begins at %.3f", door, c.name, o.most, c.base, reached[c.name])
		}
	}
	return nil
}

// measure starts a gateway, and makes a load to warm it up, one that only opens the connections, and one that counts.
func (o *costOptions) measure(ctx context.Context, r *rig, c gatewayConfig, secure bool) (used drive, err error) {
	if err := r.startGateway(ctx, c); err != nil {
		return used, err
	}
	defer r.stopGateway()
	cfg, err := r.userLoad(secure, "1KiB", o.connections)
	if err != nil {
		return used, err
	}
	run := func(requests int) (d drive, err error) {
		cfg.Requests = int64(requests)
		d.gateway, err = r.gatewayCPU(func() error {
			shown, err := load.Run(ctx, cfg)
			if err == nil {
				d.requests, d.failed, d.seconds, d.cpu = shown.Requests, shown.Failed, shown.Seconds, shown.Generator.CPUSeconds
			}
			return err
		})
		return d, err
	}
	if _, err = run(o.requests / 4); err != nil {
		return used, err
	}
	opening, err := run(o.connections)
	if err != nil {
		return used, err
	}
	used, err = run(o.requests)
	used.requests -= opening.requests
	used.gateway -= opening.gateway
	used.failed += opening.failed
	return used, err
}
