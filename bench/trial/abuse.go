package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"icapgate/bench"
	"icapgate/bench/process"
	"icapgate/icap"
)

var abuseTrial = &trial{
	name:  "abuse",
	about: "hostile clients, each kind alone and all together: normal requests go on, memory is bounded",
	help: abuseHelp() + `
These clients are processes of their own. A connection that the gateway ends is made anew a moment later. Meanwhile, ten times a second, a
normal client makes a new TLS connection and a request on it, and another one a request on a connection that lives.
Claimed: no normal request fails, none takes longer than --slowest, what the hostile clients get is what they should (a close, a 400, a 408),
the gateway's memory stays below --memory, and all is given back when they have left.

The timeouts of the listeners are shorter than their defaults, so that those who are to run into them do so within the run:
handshake 5s (10s), head 3s (10s), body 5s (60s). Idle connections to servers are kept for 1s (30s), so that all is given back within the run.

Latencies are those of a machine that runs the hostile clients, too: what a request straight to a server takes meanwhile tells how busy it is.
That is why no more than 500 of them begin per second, of all kinds together; and why there are so few that never read: over loopback each of them fills 30 MB of socket buffers, most of them not the gateway's, and
what all sockets of a machine may have (tcp_mem) is soon gone, which slows down everybody.

    go run ./bench/trial abuse
    go run ./bench/trial abuse --only silent,half-open --hold 30s
    go run ./bench/trial abuse --alone=false               only all together
`,
	limit: 10 * time.Minute,
	flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		o := &abuseOptions{counts: map[string]*int{}}
		for _, a := range abuses {
			o.counts[a.name] = f.Int(a.name, abuseCounts[a.name], "clients that "+a.about)
		}
		f.StringVar(&o.only, "only", "", "`kinds` of abuse, with commas (default all)")
		f.BoolVar(&o.alone, "alone", true, "each kind alone, too")
		f.DurationVar(&o.hold, "hold", 6*time.Second, "time of each part, when all its clients are there")
		f.DurationVar(&o.slowest, "slowest", time.Second, "what a normal request may take")
		f.IntVar(&o.memory, "memory", 512, "bound of the gateway's resident memory, in `MB`")
		return o.run
	},
}

// abuseCounts are how many clients of each kind there are.
var abuseCounts = map[string]int{
	"silent": 5000, "half-open": 1000, "garbage": 50, "tls-on-plain": 50, "plain-on-tls": 50, "slow-head": 200, "huge-head": 20,
	"malformed": 50, "deaf": 32, "idle": 2000,
}

func abuseHelp() string {
	var b strings.Builder
	b.WriteString("Hostile clients:\n\n")
	for _, a := range abuses {
		fmt.Fprintf(&b, "    %-14s %4d that %s\n", a.name, abuseCounts[a.name], a.about)
	}
	return b.String()
}

type abuseOptions struct {
	counts  map[string]*int
	only    string
	alone   bool
	hold    time.Duration
	slowest time.Duration
	memory  int // MB
}

func (o *abuseOptions) run(ctx context.Context, r *rig) error {
	kinds, err := o.kinds()
	if err != nil {
		return err
	}
	servers, err := r.startServers(ctx, 2, serverConfig{})
	if err != nil {
		return err
	}
	echo, err := r.startServer(ctx, serverConfig{Echo: true})
	if err != nil {
		return err
	}
	further := fmt.Sprintf("    idle: {timeout: 1s}\n  - {name: echo, servers: [%q]}\nservices:\n  - {path: /echo, pool: echo}\n  - {path: /reqmod, pool: %s}\n", echo.address, poolName)
	if err := r.startGateway(ctx, gatewayConfig{Servers: servers, Listeners: "timeouts: {handshake: 5s, head: 3s, body: 5s}", Pool: further}); err != nil {
		return err
	}
	before, err := r.usage(ctx)
	if err != nil {
		return err
	}
	r.note("before: %v", before)
	if err := o.part(ctx, r, "nobody"); err != nil {
		return err
	}
	for _, kind := range kinds {
		if o.alone {
			if err := o.part(ctx, r, kind, kind); err != nil {
				return err
			}
		}
	}
	if len(kinds) > 1 || !o.alone {
		if err := o.part(ctx, r, "all together", kinds...); err != nil {
			return err
		}
	}
	m, err := r.metrics(ctx)
	if err != nil {
		return err
	}
	r.section("in the end")
	r.note("handshakes: %v", m.by("handshakes_total", "result"))
	r.note("refused: %v", m.by("refused_total", "reason"))
	r.note("rejects: %v", m.by("rejects_total", "reason"))
	r.claim(m.sum("panics_total") == 0, "no panic")
	r.note("checks of servers: %v", m.by("checks_total", "result"))
	r.claim(m.sum("server_up") == 3, "every server is up")
	return nil
}

// kinds are the names of what is to be done.
func (o *abuseOptions) kinds() (list []string, err error) {
	for _, a := range abuses {
		if o.only == "" || slices.Contains(strings.Split(o.only, ","), a.name) {
			list = append(list, a.name)
		}
	}
	if o.only != "" && len(list) < len(strings.Split(o.only, ",")) {
		return nil, fmt.Errorf("--only %s has a kind that is not there", o.only)
	}
	if o.hold <= 0 || o.slowest <= 0 || o.memory < 1 {
		return nil, errors.New("--hold, --slowest and --memory have to be above 0")
	}
	for name, n := range o.counts {
		if *n < 1 {
			return nil, fmt.Errorf("--%s has to be above 0", name)
		}
	}
	return list, nil
}

// beginRate is how many hostile clients begin per second.
const beginRate = 500

// part lets hostile clients of some kinds do what they do, normal ones beside them, and judges what comes of it.
func (o *abuseOptions) part(ctx context.Context, r *rig, title string, kinds ...string) error {
	r.section("%s", title)
	if err := r.gateway.ResetPeakRSS(); err != nil {
		return err
	}
	before, err := r.usage(ctx)
	if err != nil {
		return err
	}
	n := &normal{rig: r}
	stop := n.start(ctx)
	defer stop()

	all := 0
	for _, kind := range kinds {
		all += *o.counts[kind]
	}
	running := map[string]*process.Process{}
	defer func() {
		for _, p := range running {
			p.Stop()
		}
	}()
	for i, kind := range kinds {
		c := abuserConfig{Kind: kind, Secure: r.Secure, Plain: r.Plain, Count: *o.counts[kind], Rate: float64(beginRate) * float64(*o.counts[kind]) / float64(all), Source: 100 + i}
		text, err := json.Marshal(c)
		if err != nil {
			return err
		}
		if running[kind], err = process.Start(r.dir, "abuse-"+kind, r.self, abuseArg, string(text)); err != nil {
			return err
		}
	}
	for _, p := range running {
		if _, err := p.AwaitLine(ctx, fmt.Sprintf("%d ready", p.PID())); err != nil {
			return err
		}
	}
	there := time.Since(n.began).Round(time.Millisecond)
	if err := pause(ctx, o.hold); err != nil {
		return err
	}
	during, err := r.usage(ctx)
	if err != nil {
		return err
	}
	leave := time.Since(n.began).Round(time.Millisecond)
	for _, p := range running {
		p.Signal(syscall.SIGTERM)
	}
	for _, kind := range kinds {
		if err := o.judge(ctx, r, kind, running[kind]); err != nil {
			return err
		}
	}
	stop()
	r.note("during: %v", during)
	after, err := o.calm(ctx, r, before)
	if err != nil {
		return err
	}
	r.note("after:  %v", after)
	r.note("normal requests: %d; the slowest began at %v with %v on a new connection, at %v with %v on a live one; all clients were there at %v, and were told to leave at %v",
		n.newest.answered+n.live.answered, n.newest.at, n.newest.slowest, n.live.at, n.live.slowest, there, leave)
	r.figure("slowest request on a new connection", n.newest.slowest.Seconds()*1e3, "ms")
	r.figure("slowest request on a live connection", n.live.slowest.Seconds()*1e3, "ms")
	r.figure("slowest request straight to a server", n.direct.slowest.Seconds()*1e3, "ms")
	r.figure("peak RSS", megabytes(after.Peak), "MB")
	r.figure("RSS after all have left", megabytes(after.RSS), "MB")
	for _, what := range slices.Sorted(maps.Keys(n.failed)) {
		r.note("%d normal requests: %s", n.failed[what], what)
	}
	r.claim(len(n.failed) == 0 && n.newest.answered > 0 && n.live.answered > 0, "no normal request failed")
	r.claim(max(n.newest.slowest, n.live.slowest) < o.slowest, "each took less than %v", o.slowest)
	r.claim(after.Peak < int64(o.memory)*1e6, "memory stayed below %d MB", o.memory)
	r.claim(calmed(after, before), "all is given back")
	return nil
}

// judge waits for the hostile clients of a kind to leave, and looks at what they got.
func (o *abuseOptions) judge(ctx context.Context, r *rig, kind string, p *process.Process) error {
	text, err := p.AwaitLine(ctx, fmt.Sprintf("%d report ", p.PID()))
	if err != nil {
		return err
	}
	var rep abuserReport
	if err := json.Unmarshal([]byte(text), &rep); err != nil {
		return err
	}
	wrong := 0
	for what, n := range rep.Wrong {
		r.note("%s, wrong: %d connections: %s", kind, n, what)
		wrong += n
	}
	var list []string
	for _, what := range slices.Sorted(maps.Keys(rep.Outcomes)) {
		list = append(list, fmt.Sprintf("%d %s", rep.Outcomes[what], what))
	}
	r.note("%s: %s", kind, strings.Join(list, "; "))
	r.claim(wrong == 0, "%s got what they should", kind)
	return nil
}

// calm waits until the gateway has let go of everybody and looks at what it uses then.
func (o *abuseOptions) calm(ctx context.Context, r *rig, before usage) (u usage, err error) {
	for deadline := time.Now().Add(readyPatience); ; {
		if u, err = r.usage(ctx); err != nil || calmed(u, before) || time.Now().After(deadline) {
			return u, err
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return u, err
		}
	}
}

// calmed says whether all is given back. A few descriptors and goroutines come and go with checks and with who asks for metrics.
func calmed(u, before usage) bool {
	const few = 8
	return u.Sessions == 0 && u.InFlight == 0 && u.FDs <= before.FDs+few && u.Goroutines <= before.Goroutines+few
}

// normal is clients that do nothing wrong: two of the gateway, and one of a server, which tells how fast the machine is meanwhile.
type normal struct {
	rig   *rig
	began time.Time

	mu                   sync.Mutex
	newest, live, direct timings
	failed               map[string]int
}

type timings struct {
	answered int
	slowest  time.Duration
	at       time.Duration // when the slowest was due, since the begin
}

const normalInterval = 100 * time.Millisecond

// start lets the clients begin. stop waits for them; it may be called more than once.
func (n *normal) start(ctx context.Context) (stop func()) {
	n.failed, n.began = map[string]int{}, time.Now()
	done := make(chan struct{})
	var running sync.WaitGroup
	each := func(f func(due time.Time)) {
		running.Go(func() {
			ticker := time.NewTicker(normalInterval)
			defer ticker.Stop()
			for {
				select {
				case <-done:
					return
				case due := <-ticker.C:
					f(due)
				}
			}
		})
	}
	each(func(due time.Time) { // does not wait for the one before
		running.Go(func() {
			c := n.client()
			defer c.close()
			n.request(ctx, c, due, &n.newest)
		})
	})
	live, direct := n.client(), n.client()
	each(func(due time.Time) { n.request(ctx, live, due, &n.live) })
	direct.tls, direct.target.Address = nil, n.rig.servers[0].address
	each(func(due time.Time) { n.request(ctx, direct, due, &n.direct) })
	return sync.OnceFunc(func() {
		close(done)
		running.Wait()
		live.close()
		direct.close()
	})
}

func (n *normal) client() *client {
	c := &client{}
	c.target, c.tls = n.rig.target(true, "/reqmod")
	return c
}

// request makes one that was due at some time.
func (n *normal) request(ctx context.Context, c *client, due time.Time, t *timings) {
	q := &call{Message: bench.Message{Method: icap.MethodReqmod, Preview: -1}, Size: 1 << 10}
	err := c.connect(ctx)
	if err == nil {
		err = c.do(q)
	}
	if err == nil && q.status != 204 {
		err = fmt.Errorf("status %d", q.status)
	}
	took := time.Since(due)
	n.mu.Lock()
	defer n.mu.Unlock()
	if err != nil {
		n.failed[err.Error()]++
		c.close()
		return
	}
	t.answered++
	if took > t.slowest {
		t.slowest, t.at = took.Round(time.Microsecond), due.Sub(n.began).Round(time.Millisecond)
	}
}
