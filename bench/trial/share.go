package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"icapgate/bench/load"
	benchresult "icapgate/bench/result"
	"icapgate/gateway/admin"
)

var share = &trial{
	name:  "share",
	about: "a server that counts connections and says 503 beyond its limit, behind two gateways that share it",
	help: `The server is one as Symantec DLP is: OPTIONS says Max-Connections: 16, idle connections and checks count, and what comes on a 17th connection is answered 503. It takes
20 ms for a request, so that 14 connections (half of the limit for each gateway, less one for its checks) serve 700/s. 200 clients send requests of 1 KiB through two
gateways with connection_share: 2, each client its next one as soon as the last one is answered, so that most requests wait; queue.timeout is 20 s, so that they may.

Claimed: every request is answered, the server says 503 to none, and it never has more connections than its limit. The server counts them itself. What happens
without connection_share, when each gateway takes the limit for its own, is told beside it: the one that comes later gets hardly a connection.

Then gateways are counted by a name (connection_share: dns:NAME; the trial has a DNS server), and while the load goes on a third one joins, with 100 clients more, and leaves. In the first of two
runs its address is in DNS some seconds before it starts, so that the others have made room for it; the same is claimed. In the second it starts as soon as it is there, and
there can be more connections for a moment than the server takes, which is told; claimed is that all gateways come to the same part, and that every request is answered.

    go run ./bench/trial share
    go run ./bench/trial share --length 60s --clients 1000
`,
	limit: 15 * time.Minute,
	flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		o := &shareOptions{}
		f.DurationVar(&o.length, "length", 20*time.Second, "of each load")
		f.IntVar(&o.clients, "clients", 200, "of both gateways together")
		return o.run
	},
}

type shareOptions struct {
	length  time.Duration
	clients int
}

// What the server can do, and for how many gateways.
const (
	sharing      = 2 // gateways
	shareCap     = 16
	shareLatency = 20 * time.Millisecond
)

func (o *shareOptions) run(ctx context.Context, r *rig) error {
	if o.length <= 0 || o.clients < 2 {
		return errors.New("--length has to be above 0, --clients 2 at least")
	}
	if err := r.buildBench(ctx); err != nil {
		return err
	}
	for _, gateways := range []int{sharing, 1} {
		if err := o.fixed(ctx, r, gateways); err != nil {
			return err
		}
	}
	for _, early := range []bool{false, true} {
		if err := o.named(ctx, r, early); err != nil {
			return err
		}
	}
	return nil
}

// startLimited starts the server.
func (o *shareOptions) startLimited(ctx context.Context, r *rig, name string) (*fakes, error) {
	limit := strconv.Itoa(shareCap)
	return r.startFakes(ctx, name, []string{"127.0.0.11:0"}, "--profile", "symantec", "--max-connections", limit, "--connection-limit", limit,
		"--latency", shareLatency.String())
}

// fixed lets two gateways share the server, which are told that there are so many.
func (o *shareOptions) fixed(ctx context.Context, r *rig, told int) error {
	pool := fmt.Sprintf("connection_share: %d", told)
	r.section("%s, %d clients, %v", pool, o.clients, o.length)
	server, err := o.startLimited(ctx, r, fmt.Sprintf("limited%d", told))
	if err != nil {
		return err
	}
	defer server.stop()
	var gateways [sharing]*rig
	for i := range gateways {
		if gateways[i], err = o.startSharing(ctx, r, fmt.Sprintf("gateway%d", i), server, pool, ""); err != nil {
			return err
		}
		defer gateways[i].stopGateway()
	}
	var results [sharing]*benchresult.Result
	var errs [sharing]error
	var loads sync.WaitGroup
	for i, g := range gateways {
		loads.Go(func() { results[i], errs[i] = o.load(ctx, g, o.clients/sharing, o.length) })
	}
	loads.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	for i, g := range gateways {
		if err := g.tellSharing(ctx, results[i]); err != nil {
			return err
		}
	}
	claims := noneRefused
	if told != sharing {
		claims = nothing
	}
	return o.judge(ctx, r, pool, server, results[:], claims)
}

// named lets gateways share the server that a name in DNS counts. A third one joins and leaves: some time after its address is in DNS or, early, at
// once.
func (o *shareOptions) named(ctx context.Context, r *rig, early bool) error {
	const name = "gateways.test."
	addresses := []string{"192.0.2.1", "192.0.2.2", "192.0.2.3"}
	what, run := "a third joins", "joined"
	pool := "connection_share: dns:" + name
	if early {
		what, run = "a third joins at once", "early"
		r.section("%s, %d clients; a third gateway joins as soon as it is in DNS, and leaves", pool, o.clients)
	} else {
		r.section("%s, %d clients; a third gateway joins when the others know of it, and leaves", pool, o.clients)
	}
	names, err := startNameServer(time.Second)
	if err != nil {
		return err
	}
	defer names.stop()
	names.set(name, addresses[:sharing]...)
	server, err := o.startLimited(ctx, r, "limited-"+run)
	if err != nil {
		return err
	}
	defer server.stop()
	var results []*benchresult.Result
	var gateways []*rig
	for i := range sharing {
		g, err := o.startSharing(ctx, r, fmt.Sprintf("%s%d", run, i), server, pool, names.config())
		if err != nil {
			return err
		}
		defer g.stopGateway()
		gateways = append(gateways, g)
	}
	if err := o.claimPart(ctx, r, what, gateways, sharing); err != nil {
		return err
	}
	loads := newLoads(ctx)
	defer loads.stop()
	for _, g := range gateways {
		loads.add(func(ctx context.Context) (*benchresult.Result, error) {
			return o.load(ctx, g, o.clients/sharing, time.Hour)
		})
	}
	if err := pause(ctx, o.length/4); err != nil {
		return err
	}

	fmt.Fprintf(r.progress, "a third gateway joins\n")
	names.set(name, addresses...)
	if !early {
		if err := o.claimPart(ctx, r, what, gateways, len(addresses)); err != nil {
			return err
		}
	}
	third, err := o.startSharing(ctx, r, run+"2", server, pool, names.config())
	if err != nil {
		return err
	}
	defer third.stopGateway()
	theirs := newLoads(ctx)
	defer theirs.stop()
	theirs.add(func(ctx context.Context) (*benchresult.Result, error) {
		return o.load(ctx, third, o.clients/sharing, time.Hour)
	})
	if err := pause(ctx, o.length/4); err != nil {
		return err
	}
	if err := o.claimPart(ctx, r, what, append(gateways, third), len(addresses)); err != nil {
		return err
	}
	if err := pause(ctx, o.length/4); err != nil {
		return err
	}

	fmt.Fprintf(r.progress, "it leaves\n")
	list, err := theirs.stop()
	if err != nil {
		return err
	}
	results = append(results, list...)
	if err := third.tellSharing(ctx, list[0]); err != nil {
		return err
	}
	third.stopGateway()
	names.set(name, addresses[:sharing]...)
	if err := o.claimPart(ctx, r, what, gateways, sharing); err != nil {
		return err
	}
	if err := pause(ctx, o.length/4); err != nil {
		return err
	}
	if list, err = loads.stop(); err != nil {
		return err
	}
	for i, g := range gateways {
		if err := g.tellSharing(ctx, list[i]); err != nil {
			return err
		}
	}
	claims := noneRefused
	if early {
		claims = allAnswered
	}
	return o.judge(ctx, r, what, server, append(results, list...), claims)
}

// claimPart claims that each gateway comes to take no more than its part of the server's connections, one of so many.
func (o *shareOptions) claimPart(ctx context.Context, r *rig, what string, gateways []*rig, parts int) error {
	part := shareCap/parts - 1 // which is for its checks
	var missed error
	for _, g := range gateways {
		missed = errors.Join(missed, g.awaitStatus(ctx, readyPatience, fmt.Sprintf("with %d connections at most", part), func(s *admin.Status) bool {
			server := s.Pools[0].Servers[0]
			return server.Cap == part && server.Connections <= part
		}))
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	r.claim(missed == nil, "%s: each of %d gateways takes %d connections at most", what, len(gateways), part)
	return nil
}

// loads run beside what else is done, until they are stopped.
type loads struct {
	ctx     context.Context
	end     context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	results []*benchresult.Result // in the order of add
	err     error
}

func newLoads(ctx context.Context) *loads {
	l := &loads{}
	l.ctx, l.end = context.WithCancel(ctx)
	return l
}

func (l *loads) add(run func(context.Context) (*benchresult.Result, error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := len(l.results)
	l.results = append(l.results, nil)
	l.running.Go(func() {
		res, err := run(l.ctx)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.results[at], l.err = res, errors.Join(l.err, err)
	})
}

// stop ends the loads and waits for the answers to what has been sent. Called again it returns the same.
func (l *loads) stop() ([]*benchresult.Result, error) {
	l.end()
	l.running.Wait()
	return l.results, l.err
}

// startSharing starts a gateway in front of the server and waits until it knows the server's limit.
func (o *shareOptions) startSharing(ctx context.Context, r *rig, name string, server *fakes, pool, further string) (*rig, error) {
	g, err := r.another(name)
	if err != nil {
		return nil, err
	}
	err = g.startGateway(ctx, gatewayConfig{
		Addresses: server.addresses, Pool: "    " + pool + "\n    queue: {max: 1024, timeout: 20s}\n", Further: further,
	})
	if err == nil {
		err = g.awaitStatus(ctx, readyPatience, "that knows the limit of its server", func(s *admin.Status) bool { return s.Pools[0].Servers[0].Cap > 0 })
	}
	if err != nil {
		g.stopGateway()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return g, nil
}

// load is clients that send one request after the other through a gateway.
func (o *shareOptions) load(ctx context.Context, g *rig, clients int, length time.Duration) (*benchresult.Result, error) {
	cfg, err := g.userLoad(true, "1KiB", clients)
	if err != nil {
		return nil, err
	}
	cfg.Duration = length
	return load.Run(ctx, cfg)
}

// tellSharing says what went through a gateway.
func (g *rig) tellSharing(ctx context.Context, res *benchresult.Result) error {
	s, err := g.admin.Status(ctx)
	if err != nil {
		return err
	}
	m, err := g.metrics(ctx)
	if err != nil {
		return err
	}
	server := s.Pools[0].Servers[0]
	g.note("a gateway with %d of the server's connections at most: %d requests, %.0f/s; p50 %.0f ms, longest %.0f ms; %.0f have waited in its queue; replays %v",
		server.Cap, res.Requests, res.Rate(), res.Latency.Quantile(50).Seconds()*1000, res.Latency.Quantile(100).Seconds()*1000,
		m.sum("queue_duration_seconds_count"), nonzero(m.by("replays_total", "reason")))
	return nil
}

// shareClaims say what is claimed of a load.
type shareClaims int

const (
	nothing     shareClaims = iota
	allAnswered             // every request was answered
	noneRefused             // and the server had never more connections than it takes
)

// judge tells what came of it, and claims.
func (o *shareOptions) judge(ctx context.Context, r *rig, what string, server *fakes, results []*benchresult.Result, claims shareClaims) error {
	stats, err := server.stats(ctx)
	if err != nil {
		return err
	}
	answered, failed := int64(0), int64(0)
	for _, res := range results {
		answered, failed = answered+res.Requests, failed+res.Failed
		for kind, e := range res.Errors {
			r.note("%d failed, %s: %s", e.Count, kind, e.Example)
		}
	}
	s := stats.Servers[0]
	r.figure(what+": requests answered", float64(answered), "")
	r.figure(what+": requests that failed", float64(failed), "")
	r.figure(what+": most connections at the server", float64(s.PeakOpen), "")
	r.figure(what+": 503 that the server has said", float64(s.Answers["503"]), "")
	if claims >= allAnswered {
		r.claim(failed == 0 && answered > 0, "%s: every request was answered: %d of %d", what, answered, answered+failed)
	}
	if claims >= noneRefused {
		r.claim(s.Answers["503"] == 0, "%s: the server has said no 503: %d", what, s.Answers["503"])
		r.claim(s.PeakOpen <= shareCap, "%s: never more than %d connections at the server: %d", what, shareCap, s.PeakOpen)
	}
	return nil
}

// nonzero prints counts by their names, without those that are 0.
func nonzero(counts map[string]float64) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		if counts[name] != 0 {
			list = append(list, fmt.Sprintf("%s %.0f", name, counts[name]))
		}
	}
	if list == nil {
		return "none"
	}
	return strings.Join(list, ", ")
}
