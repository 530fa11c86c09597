package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"icapgate/balancer"
	"icapgate/bench"
	"icapgate/bench/load"
	"icapgate/bench/rounds"
	"icapgate/bench/scenario"
	"icapgate/icap"
)

var cost = &trial{
	name:  "cost",
	about: "what a request costs the gateway under each policy, beside round_robin, and with some other settings",
	help: `REQMODs of 1 KiB from 1000 users are answered 204 by four fake servers, over icaps and over icap, as fast as answers come. Measured is the CPU time of
the gateway's process per request, without that of opening the connections. Each policy of pools[].balance has a gateway that is started anew in each
round, since one process may be a little faster than the next one of the same program; the order rotates from round to round. round_robin is measured twice:
what lies between the two is chance, and says how far a ratio can be trusted. Then some more that can be switched on or off is looked at beside what it is switched on or off from:
affinity, ejection, latency_factor, a retry.spill that no request needs, and three header rules for each direction with a gateway_id. And a service as it is to be one in front of many servers: its own OPTIONS,
one ISTag that is written into every answer, and three header rules (take X-Client-IP away, add the right one, set another with a variable), beside one that leaves all of that to the servers ("as the servers do").

Claimed: no request fails, and none costs more than 1.03 times what it is looked at beside (a service 1.05 times): the 95 % interval of the median of the ratios reaches it.

    go run ./bench/trial cost
    go run ./bench/trial cost --only "service,as the servers do again" --work reqmod,respmod --connections 16
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
		f.StringVar(&o.work, "work", "reqmod", "reqmod: 1 KiB that is answered 204; respmod: 64 KiB that is echoed")
		f.Float64Var(&o.most, "most", 1.03, "ratio that the interval has to reach")
		return o.run
	},
}

type costOptions struct {
	rounds, requests, connections int
	only, doors, work             string
	most                          float64
}

const costServers = 4

// costCase is one way to configure the pool.
type costCase struct {
	name   string
	pool   string   // YAML, indented by 4
	more   string   // YAML for further top-level keys
	beside []string // names of the cases that it is compared with
	most   float64  // what the ratio may be, 0: --most
	same   bool     // it is that case once more, which shows what is chance
}

// costCases are all that is measured.
func costCases() (list []costCase) {
	const base, usual = "round_robin", "least_inflight"
	policy := func(name, further string) string { return fmt.Sprintf("    balance: %s\n%s", name, further) }
	list = append(list, costCase{name: base, pool: policy(base, "")}, costCase{name: base + " again", pool: policy(base, ""), beside: []string{base}, same: true})
	for _, name := range balancer.Names() {
		if name != base {
			list = append(list, costCase{name: name, pool: policy(name, ""), beside: []string{base}})
		}
	}
	at := slices.IndexFunc(list, func(c costCase) bool { return c.name == usual })
	list[at].beside = append(list[at].beside, "without ejection")
	return append(list,
		costCase{name: "affinity: session", pool: policy(usual, "    affinity: session\n"), beside: []string{base, usual}},
		costCase{name: "without ejection", pool: policy(usual, "    ejection: {consecutive: 0, failure_share: 0}\n")},
		costCase{name: "latency_factor: 3", pool: policy(usual, "    ejection: {latency_factor: 3}\n"), beside: []string{usual}},
		costCase{name: "retry.spill: 256MiB", pool: policy(usual, "    retry: {spill: 256MiB}\n"), beside: []string{usual}},
		costCase{name: "header rules", pool: policy(usual, ""), more: headerRules, beside: []string{usual}},
		costCase{name: "as the servers do", pool: policy(usual, ""), more: forwarding},
		costCase{name: "as the servers do again", pool: policy(usual, ""), more: forwarding, beside: []string{"as the servers do"}, same: true},
		costCase{name: "service", pool: policy(usual, ""), more: oneService, beside: []string{"as the servers do"}, most: 1.05},
	)
}

// oneService is one service in front of many servers, and forwarding leaves to these what OPTIONS and ISTag are.
const (
	forwarding = "services: [{options: forward, istag: pass}]\n"
	oneService = `services: [{options: merge, istag: "", headers: {client_ip: true, request: {remove: [X-Client-IP], set: {X-From: "${listener} ${client_ip}"}}}}]` + "\n"
)

// headerRules are three for each direction, with and without variables, for clients that are not trusted.
const headerRules = `gateway_id: trial
services:
  - headers:
      client_ip: true
      trusted: [192.0.2.0/24]
      request: {remove: [X-Debug-*], set: {X-From: "${client_ip}:${client_port} ${listener}"}, add: {X-Gateway: trial}}
      response: {remove: [X-Engine-*], set: {Server: icapgate}, add: {X-From: "${hostname} ${listener} ${client_ip}"}}
`

// chosen returns the cases that --only names, with those beside which they are looked at.
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
		wanted[name] = true
		for _, other := range all[i].beside {
			wanted[other] = true
		}
	}
	for _, c := range all {
		if wanted[c.name] {
			c.beside = slices.DeleteFunc(c.beside, func(other string) bool { return !wanted[other] })
			list = append(list, c)
		}
	}
	return list, nil
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
	for kind := range strings.SplitSeq(o.work, ",") {
		work, ok := costWorks[kind]
		if !ok {
			return fmt.Errorf("--work: %q is neither reqmod nor respmod", kind)
		}
		for door := range strings.SplitSeq(o.doors, ",") {
			if door != "icaps" && door != "icap" {
				return fmt.Errorf("--doors: %q is neither icaps nor icap", door)
			}
			if err := o.compare(ctx, r, servers, cases, work, door); err != nil {
				return err
			}
		}
	}
	return nil
}

// costWork is what is asked of the gateway.
type costWork struct {
	name string
	load func(r *rig, secure bool, connections int) (load.Config, error)
}

var costWorks = map[string]costWork{
	"reqmod": {"REQMOD 1 KiB, 204", func(r *rig, secure bool, connections int) (load.Config, error) {
		return r.userLoad(secure, "1KiB", connections)
	}},
	"respmod": {"RESPMOD 64 KiB, echoed", func(r *rig, secure bool, connections int) (cfg load.Config, err error) {
		cfg = load.Config{Connections: connections, Timeout: time.Minute, Seed: 1}
		cfg.Target, cfg.TLS = r.target(secure, "/respmod")
		cfg.Mix, err = scenario.Single(bench.Message{Profile: bench.Zscaler, Method: icap.MethodRespmod, Preview: -1, No204: true}, 64<<10).Compile(cfg.Target)
		return cfg, err
	}},
}

// compare measures all cases at one door, in turns.
func (o *costOptions) compare(ctx context.Context, r *rig, servers []*server, cases []costCase, work costWork, door string) error {
	var drivers []driver
	for _, c := range cases {
		drivers = append(drivers, driver{c.name, func(ctx context.Context) (drive, error) {
			return o.measure(ctx, r, gatewayConfig{Servers: servers, Pool: c.pool, Further: c.more}, work, door == "icaps")
		}})
	}
	name := work.name + " over " + door
	r.section("%s, %d servers, %d connections: the gateway's CPU", name, costServers, o.connections)
	all, err := r.inTurn(ctx, o.rounds, drivers)
	if err != nil {
		return err
	}
	var text strings.Builder
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tµs per request\tbeside\tratio\tinterval")
	failed := int64(0)
	var claims []func()
	for _, c := range cases {
		costs := series(all[c.name], drive.gatewayCost)
		for _, d := range all[c.name] {
			failed += d.failed
		}
		fmt.Fprintf(t, "%s\t%.2f (%.2f..%.2f)", c.name, rounds.Median(costs), slices.Min(costs), slices.Max(costs))
		r.store(name+", "+c.name, rounds.Median(costs), "µs of CPU per request")
		for i, other := range c.beside {
			mid, low, high := ratio(costs, series(all[other], drive.gatewayCost))
			if i > 0 {
				fmt.Fprint(t, "\n\t")
			}
			fmt.Fprintf(t, "\t%s\t%.3f\t%.3f..%.3f", other, mid, low, high)
			r.store(name+", "+c.name+" / "+other, mid, "")
			r.store(name+", "+c.name+" / "+other+", lower end", low, "")
			r.store(name+", "+c.name+" / "+other+", upper end", high, "")
			if !c.same {
				most := cmp.Or(c.most, o.most)
				claims = append(claims, func() {
					r.claim(low <= most, "%s, %s: the interval reaches %g times what %s costs: it begins at %.3f", name, c.name, most, other, low)
				})
			}
		}
		if len(c.beside) == 0 {
			fmt.Fprint(t, "\t\t\t") // so that the columns stay together
		}
		fmt.Fprintln(t)
	}
	t.Flush()
	r.note("%s", strings.TrimRight(text.String(), "\n"))
	r.claim(failed == 0, "%s: no request failed: %d did", name, failed)
	for _, claim := range claims {
		claim()
	}
	return nil
}

// measure starts a gateway, and makes a load to warm it up, one that only opens the connections, and one that counts.
func (o *costOptions) measure(ctx context.Context, r *rig, c gatewayConfig, work costWork, secure bool) (used drive, err error) {
	if err := r.startGateway(ctx, c); err != nil {
		return used, err
	}
	defer r.stopGateway()
	cfg, err := work.load(r, secure, o.connections)
	if err != nil {
		return used, err
	}
	run := func(requests int) (d drive, err error) {
		cfg.Requests = int64(requests)
		d.gateway, err = r.gatewayCPU(func() error {
			shown, err := load.Run(ctx, cfg)
			if err == nil && shown.Interrupted {
				err = context.Cause(ctx)
			}
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
