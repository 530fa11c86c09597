package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"icapgate/bench/load"
	"icapgate/bench/process"
	benchresult "icapgate/bench/result"
)

var faults = &trial{
	name:  "faults",
	about: "a table of what happens to requests while one of three servers fails, in many ways",
	help: `Three servers take 20 ms for a request. 300 requests of 1 KiB come per second, evenly, over icaps, whatever the answers do. After 3 s the first server gets a fault,
15 s later it is well again:

    kill         its port is closed and its connections are reset
    stall        SIGSTOP: its kernel goes on acknowledging
    silent       requests are read and not answered; OPTIONS are answered well, here and below
    garbage      random bytes in place of answers
    reset        RST in the middle of requests
    slow         answers take ten times as long
    slow-out     the same with ejection.latency_factor: 3
    500          status 500 to every request
    500-again    the same with retry.on: [connect, reset, 503, 5xx]
    503          status 503 to every request
    scanner      status 204 to every request, also to those that should be blocked; there is a health.probe every 2 s
    istag        another ISTag every 100 ms
    dns          the servers are those of a host name: the first one's address goes from DNS, and that of a fourth one comes; the TTL is 1 s

timeouts.response is 5 s, so that a run need not wait for a minute; all else is as it is by default, unless the row says more. For each row it tells how many requests there were in the
15 s, how many failed, by status; how many were sent again; the p99 and the longest latency of the others; how many attempts the faulty server still got, and how many of them later than 1 s after the
begin; after what time it was out, which is the begin of the first 0.9 s in which it gets nothing; and after what time from its return it got requests again.

Claimed of each row is what has to hold for it: see the claims. Where answers are bad, those are lost that the server has answered before it is out: nothing is sent twice to servers that may have written an incident.

    go run ./bench/trial faults
    go run ./bench/trial faults --only kill,500
`,
	limit: 30 * time.Minute,
	flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		o := &faultsOptions{}
		f.StringVar(&o.only, "only", "", "`names` of rows, with commas between; empty: all")
		f.DurationVar(&o.length, "length", 15*time.Second, "of each fault")
		f.Float64Var(&o.rate, "rate", 300, "requests per second")
		return o.run
	},
}

type faultsOptions struct {
	only   string
	length time.Duration
	rate   float64

	names *nameServer
}

// Where the servers are: the first three, and the one that takes a place in DNS.
var faultHosts = []string{"127.0.0.11", "127.0.0.12", "127.0.0.13", "127.0.0.14"}

const (
	faultName     = "dlp.test."
	faultProbe    = "DLP-PROBE-5F2E91" // what has it is blocked
	faultServers  = 3
	faultLead     = 3 * time.Second // of load before a fault
	faultLatency  = 20 * time.Millisecond
	faultPool     = "    timeouts: {response: 5s}\n" // of every row
	faultCrossing = 200 * time.Millisecond           // requests that came so much before a fault count: they may be on the server when it begins
	faultQuiet    = 900 * time.Millisecond           // without an attempt: then a server is out. After a 503 it gets one a second
	faultLook     = 25 * time.Millisecond            // between two looks at the gateway's metrics

	// A server whose answers are bad is out after 5 in a row (ejection.consecutive), and so after those and what was in flight; the ejection
	// ends after 10 s, within the fault.
	faultLost = 2 * (5 + 10)
)

// faultCase is a row.
type faultCase struct {
	name  string
	pool  string // further YAML of the pool, indented by 4
	named bool   // the gateway knows the servers by their name
	begin func(ctx context.Context, f *fakes) error
	again time.Duration // begin is repeated so often; 0: never
	end   func(ctx context.Context, f *fakes) error
	claim func(r *rig, s *faultSight)
}

// faultSight is what a row has shown.
type faultSight struct {
	name     string
	res      *benchresult.Result
	statuses map[string]float64 // of what failed: 500 12
	replays  map[string]float64
	tries    float64       // on the faulty server, while it was that
	late     float64       // of these, from 1 s after the begin on
	inFlight float64       // on it, at the begin
	out      time.Duration // -1: it was not
	back     time.Duration // -1: it was not
	slow     int64         // requests that were answered, after a second or more
	after    *benchresult.Result
}

// injected returns what begins a fault of `icapbench serve`.
func injected(fault string) func(context.Context, *fakes) error {
	return func(ctx context.Context, f *fakes) error { return f.order(ctx, "fault", "fault", fault) }
}

// noneFailed claims that.
func noneFailed(r *rig, s *faultSight) {
	r.claim(s.res.Failed == 0, "%s: 0 of %d requests failed: %d", s.name, s.res.Begun, s.res.Failed)
}

// noneFailedAndOut claims that, and that the server was not used any more.
func noneFailedAndOut(r *rig, s *faultSight) {
	noneFailed(r, s)
	r.claim(s.out >= 0, "%s: the server was out", s.name)
}

// fewFailed claims that only those requests failed that the server had before it was out.
func fewFailed(r *rig, s *faultSight) {
	r.claim(s.res.Failed <= faultLost, "%s: no more requests failed than a server gets before it is ejected, %d in this time: %d", s.name, faultLost, s.res.Failed)
	r.claim(s.out >= 0, "%s: the server was out", s.name)
}

// onlyThose claims that no other requests had to wait, or failed, than those that were on the server.
func onlyThose(r *rig, s *faultSight) {
	r.claim(float64(s.slow+s.res.Failed) <= s.tries+s.inFlight, "%s: no more requests took a second, or failed, than were on the server, %.0f: %d and %d", s.name,
		s.tries+s.inFlight, s.slow, s.res.Failed)
	r.claim(s.out >= 0, "%s: the server was out", s.name)
}

func (o *faultsOptions) cases() []faultCase {
	signal := func(n syscall.Signal) func(context.Context, *fakes) error {
		return func(_ context.Context, f *fakes) error { f.process.Signal(n); return nil }
	}
	order := func(command string) func(context.Context, *fakes) error {
		return func(ctx context.Context, f *fakes) error { return f.order(ctx, command) }
	}
	well := injected("none")
	dns := func(hosts ...string) func(context.Context, *fakes) error {
		return func(context.Context, *fakes) error { o.names.set(faultName, hosts...); return nil }
	}
	return []faultCase{
		{name: "kill", begin: order("down"), end: order("up"), claim: noneFailedAndOut},
		{name: "stall", begin: signal(syscall.SIGSTOP), end: signal(syscall.SIGCONT), claim: onlyThose},
		{name: "silent", begin: injected("silent:100%"), end: well, claim: onlyThose},
		{name: "garbage", begin: injected("garbage:100%"), end: well, claim: fewFailed},
		{name: "reset", begin: injected("reset-body:100%"), end: well, claim: noneFailed},
		{name: "slow", begin: injected("late:100%:180ms"), end: well, claim: noneFailed},
		{name: "slow-out", pool: "    ejection: {latency_factor: 3}\n", begin: injected("late:100%:180ms"), end: well, claim: noneFailedAndOut},
		{name: "500", begin: injected("status:100%:500"), end: well, claim: fewFailed},
		{name: "500-again", pool: "    retry: {on: [connect, reset, 503, 5xx]}\n", begin: injected("status:100%:500"), end: well, claim: noneFailed},
		{name: "503", begin: injected("status:100%:503"), end: well, claim: noneFailed},
		{name: "scanner", begin: injected("status:100%:204"), end: well, claim: noneFailedAndOut,
			pool: fmt.Sprintf("    health: {probe: {path: /reqmod, body: %q, interval: 2s, timeout: 1s, expect: {body: may not be sent}}}\n", faultProbe)},
		{name: "istag", begin: order("istag"), again: 100 * time.Millisecond, claim: func(r *rig, s *faultSight) {
			noneFailed(r, s)
			r.claim(s.out < 0, "istag: the server was in use all the time")
		}},
		{name: "dns", named: true, begin: dns(faultHosts[1:]...), end: dns(faultHosts[:faultServers]...), claim: noneFailedAndOut},
	}
}

func (o *faultsOptions) run(ctx context.Context, r *rig) error {
	if o.length < 2*time.Second || o.rate <= 0 {
		return errors.New("--length has to be 2s at least, --rate above 0")
	}
	cases := o.cases()
	if o.only != "" {
		wanted := strings.Split(o.only, ",")
		for _, name := range wanted {
			if !slices.ContainsFunc(cases, func(c faultCase) bool { return c.name == name }) {
				return fmt.Errorf("--only: there is no %q", name)
			}
		}
		cases = slices.DeleteFunc(cases, func(c faultCase) bool { return !slices.Contains(wanted, c.name) })
	}
	if err := r.buildBench(ctx); err != nil {
		return err
	}
	var err error
	if o.names, err = startNameServer(time.Second); err != nil {
		return err
	}
	defer o.names.stop()
	o.names.set(faultName, faultHosts[:faultServers]...)
	free, err := process.FreeAddresses(1)
	if err != nil {
		return err
	}
	_, port, _ := strings.Cut(free[0], ":")
	var servers []*fakes
	defer func() {
		for _, f := range servers {
			f.stop()
		}
	}()
	for i, host := range faultHosts {
		f, err := r.startFakes(ctx, fmt.Sprintf("fake%d", i), []string{host + ":" + port}, "--latency", faultLatency.String(), "--match", faultProbe)
		if err != nil {
			return err
		}
		servers = append(servers, f)
	}
	r.section("one of %d servers fails for %v, %.0f requests/s", faultServers, o.length, o.rate)
	tellWaits := r.pulse(ctx)
	var sights []*faultSight
	for i, c := range cases {
		s, err := o.try(ctx, r, c, servers)
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		fmt.Fprintf(r.progress, "%d/%d %s: %d requests, %d failed, out after %s, back after %s\n", i+1, len(cases), c.name, s.res.Begun, s.res.Failed, since(s.out), since(s.back))
		sights = append(sights, s)
	}
	tellWaits()
	o.report(r, sights)
	for i, c := range cases {
		c.claim(r, sights[i])
		s := sights[i]
		r.claim(s.back >= 0, "%s: the server gets requests again", s.name)
		r.claim(s.after.Failed == 0, "%s: none of %d requests failed after its return: %d", s.name, s.after.Begun, s.after.Failed)
	}
	return nil
}

// try gives the first server its fault under load, takes it back, and waits until it gets requests again.
func (o *faultsOptions) try(ctx context.Context, r *rig, c faultCase, servers []*fakes) (*faultSight, error) {
	g := gatewayConfig{Pool: faultPool + c.pool}
	for _, f := range servers[:faultServers] {
		g.Addresses = append(g.Addresses, f.addresses...)
	}
	if c.named {
		_, port, _ := strings.Cut(servers[0].addresses[0], ":")
		g.Addresses, g.Further = []string{faultName + ":" + port}, o.names.config()
	}
	if err := r.startGateway(ctx, g); err != nil {
		return nil, err
	}
	defer r.stopGateway()
	victim := servers[0]
	w := watch(ctx, r, victim.addresses[0])
	defer w.stop()
	s := &faultSight{name: c.name}
	loading, cut := context.WithCancel(ctx)
	defer cut()
	start := time.Now().Add(2 * time.Second) // of the load, once all connections are there
	loaded := o.load(loading, r, start, faultLead-faultCrossing, o.length+faultCrossing)
	if err := pause(ctx, time.Until(start.Add(faultLead))); err != nil {
		return nil, err
	}
	before, err := r.metrics(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := c.harm(ctx, victim, start.Add(faultLead+o.length)); err != nil {
		return nil, err
	}
	over := time.Now()
	got := <-loaded
	if got.err != nil {
		return nil, got.err
	}
	after, err := r.metrics(ctx)
	if err != nil {
		return nil, err
	}
	s.res, s.slow = got.res, got.res.Latency.Above(slowRequest)
	s.inFlight = before.sum("server_in_flight", fmt.Sprintf("server=%q", victim.addresses[0]))
	s.statuses, s.replays = added(before, after, "requests_total", "code"), added(before, after, "replays_total", "reason")
	maps.DeleteFunc(s.statuses, func(code string, _ float64) bool { return code < "400" })
	if s.after, s.back, err = o.awaitReturn(ctx, r, w, over); err != nil {
		return nil, err
	}
	s.tries = w.at(over) - w.at(began)
	s.late = max(0, w.at(over)-w.at(began.Add(time.Second)))
	s.out = w.quiet(began, over)
	return s, nil
}

// harm gives a server its fault until a time, and takes it back whatever happens.
func (c *faultCase) harm(ctx context.Context, f *fakes, end time.Time) (err error) {
	if c.end != nil {
		defer func() { err = errors.Join(err, c.end(context.WithoutCancel(ctx), f)) }()
	}
	for err = c.begin(ctx, f); err == nil && c.again > 0 && time.Until(end) > c.again; {
		if err = pause(ctx, c.again); err == nil {
			err = c.begin(ctx, f)
		}
	}
	if err == nil {
		err = pause(ctx, time.Until(end))
	}
	return err
}

// added returns by how much the series of a name have grown, by the value of a label.
func added(before, after metrics, name, label string) map[string]float64 {
	grown, earlier := after.by(name, label), before.by(name, label)
	for value := range grown {
		grown[value] -= earlier[value]
	}
	return grown
}

// loadEnd is how a load ended.
type loadEnd struct {
	res *benchresult.Result
	err error
}

// load makes requests from start on, of which those of the lead don't count.
func (o *faultsOptions) load(ctx context.Context, r *rig, start time.Time, lead, length time.Duration) <-chan loadEnd {
	done := make(chan loadEnd, 1)
	go func() {
		cfg, err := r.userLoad(true, "1KiB", 400)
		if err != nil {
			done <- loadEnd{nil, err}
			return
		}
		cfg.StartAt, cfg.WarmUp, cfg.Stages = start, lead, load.Constant(o.rate, length)
		res, err := load.Run(ctx, cfg)
		done <- loadEnd{res, err}
	}()
	return done
}

// returnLoad is for how long a server that is back is waited for at most. An ejection lasts 10 s, a second one 20 s.
const returnLoad = 45 * time.Second

// awaitReturn makes the same load until the server gets requests again, and a little longer.
func (o *faultsOptions) awaitReturn(ctx context.Context, r *rig, w *watcher, over time.Time) (*benchresult.Result, time.Duration, error) {
	loading, stop := context.WithCancel(ctx)
	defer stop()
	loaded := o.load(loading, r, time.Time{}, 0, returnLoad)
	back := time.Duration(-1)
	for err := error(nil); back < 0 && err == nil && time.Since(over) < returnLoad; err = pause(ctx, faultLook) {
		back = w.back(over)
	}
	err := pause(ctx, time.Second)
	stop()
	got := <-loaded
	return got.res, back, errors.Join(err, got.err)
}

// report prints the table.
func (o *faultsOptions) report(r *rig, sights []*faultSight) {
	var text strings.Builder
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "fault\trequests\tfailed\tby status\tsent again\tp99\tlongest\tattempts on it\tafter 1 s\tout after\tback after")
	for _, s := range sights {
		p99, longest := s.res.Latency.Quantile(99), s.res.Latency.Max()
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%s\t%s\t%s\t%.0f\t%.0f\t%s\t%s\n", s.name, s.res.Begun, s.res.Failed, nonzero(s.statuses), nonzero(s.replays), shown(p99), shown(longest),
			s.tries, s.late, since(s.out), since(s.back))
		r.store(s.name+": requests", float64(s.res.Begun), "")
		r.store(s.name+": failed", float64(s.res.Failed), "")
		r.store(s.name+": p99", p99.Seconds(), "s")
		r.store(s.name+": longest", longest.Seconds(), "s")
		r.store(s.name+": attempts on the faulty server", s.tries, "")
		r.store(s.name+": of these, later than 1 s", s.late, "")
		if s.out >= 0 {
			r.store(s.name+": out after", s.out.Seconds(), "s")
		}
		if s.back >= 0 {
			r.store(s.name+": back after", s.back.Seconds(), "s")
		}
	}
	t.Flush()
	r.note("%s", strings.TrimRight(text.String(), "\n"))
}

// since prints a time that may not have come.
func since(d time.Duration) string {
	if d < 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// watcher looks at how many attempts a server has had, again and again.
type watcher struct {
	end  context.CancelFunc
	done chan struct{}

	mu    sync.Mutex
	looks []look
}

type look struct {
	at    time.Time
	tries float64
}

// watch begins to look.
func watch(ctx context.Context, r *rig, server string) *watcher {
	w := &watcher{done: make(chan struct{})}
	ctx, w.end = context.WithCancel(ctx)
	go func() {
		defer close(w.done)
		var before, last float64 // in earlier lives of the server: its counter goes with it when it leaves the pool
		for pause(ctx, faultLook) == nil {
			at := time.Now() // before it, so that nothing seems to have come earlier than it did
			m, err := r.metrics(ctx)
			if err != nil {
				continue
			}
			tries := m.sum("attempts_total", fmt.Sprintf("server=%q", server))
			if tries < last {
				before += last
			}
			last = tries
			w.mu.Lock()
			w.looks = append(w.looks, look{at, before + tries})
			w.mu.Unlock()
		}
	}()
	return w
}

func (w *watcher) stop() {
	w.end()
	<-w.done
}

// at returns how many attempts there had been at a time, as far as it was looked at.
func (w *watcher) at(t time.Time) (tries float64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.looks {
		if l.at.After(t) {
			break
		}
		tries = l.tries
	}
	return tries
}

// quiet returns how long after from the first time of faultQuiet without an attempt begins, -1 if there is none before to.
func (w *watcher) quiet(from, to time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var last look // the first one with so many attempts
	for _, l := range w.looks {
		switch {
		case l.at.Before(from):
			last = look{from, l.tries}
		case l.at.After(to):
			return -1
		case l.tries != last.tries:
			last = l
		case l.at.Sub(last.at) >= faultQuiet:
			return last.at.Sub(from)
		}
	}
	return -1
}

// back returns how long after a time the next attempt came, -1 if none has yet.
func (w *watcher) back(from time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, l := range w.looks {
		if i > 0 && l.at.After(from) && l.tries > w.looks[i-1].tries {
			return l.at.Sub(from)
		}
	}
	return -1
}
