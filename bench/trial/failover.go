package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"icapgate/bench"
	"icapgate/bench/process"
	"icapgate/icap"
)

var failover = &trial{
	name:  "failover",
	about: "one of two servers is killed, stopped or unplugged under load, and comes back: no request fails",
	help: `Clients send REQMODs of 1 to 32 KiB over icaps, one after the other without a pause; such bodies are within the replay buffer. Then something
happens to one of the two servers, which is undone after some seconds:

    kill    SIGKILL, and a new process at the same address
    stop    SIGSTOP, and SIGCONT: its kernel goes on acknowledging
    unplug  its network is gone without a word: a network namespace whose link is set down (root, Debian package iproute2)
    cicap   kill with two c-icap daemons of the Debian package, configured as there: they close a connection after 100 requests

Claimed: no request fails, and the server gets requests again. An answer whose beginning has reached the client when its server dies can only
be cut: such are counted apart. (The fake servers give a 204, which has no middle; the echo of a c-icap gives a 204 and the body in turns.)
Told besides: the longest wait of a request; the time to notice, which is from the fault
until the last request was tried on that server before its return, and until its checks took it down; and the time to come back, from its return
until it has answered a request.

    go run ./bench/trial failover
    go run ./bench/trial failover --faults unplug --unplugged 30s
`,
	limit: 10 * time.Minute,
	flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		o := &failoverOptions{}
		f.StringVar(&o.faults, "faults", "kill,stop,unplug,cicap", "what is done, in this order")
		f.IntVar(&o.clients, "clients", 8, "connections")
		f.DurationVar(&o.away, "away", 5*time.Second, "time until the server comes back")
		f.DurationVar(&o.unplugged, "unplugged", 15*time.Second, "the same for unplug")
		f.DurationVar(&o.load, "load", 2*time.Second, "time of load before, and after its return")
		return o.run
	},
}

type failoverOptions struct {
	faults          string
	clients         int
	away, unplugged time.Duration
	load            time.Duration
}

const (
	smallestBody = 1 << 10
	largestBody  = 32 << 10

	returnPatience = time.Minute // until a server that is back gets requests again
)

// failoverCase is two servers, of which the first one gets into trouble.
type failoverCase struct {
	config     gatewayConfig
	victim     string // its address
	path       string // of the requests
	away       time.Duration
	fault      func(ctx context.Context) error
	undo       func(ctx context.Context) error
	close      func()
	whatIsDone string
}

func (o *failoverOptions) run(ctx context.Context, r *rig) error {
	if o.clients < 1 {
		return errors.New("--clients has to be above 0")
	}
	cases := map[string]func(context.Context, *rig) (*failoverCase, error){
		"kill": o.killCase, "stop": o.stopCase, "unplug": o.unplugCase, "cicap": o.cicapCase,
	}
	names := strings.Split(o.faults, ",")
	for _, name := range names {
		if cases[name] == nil {
			return fmt.Errorf("--faults: unknown fault %q", name)
		}
	}
	for _, name := range names {
		c, err := cases[name](ctx, r)
		if err == nil {
			err = o.try(ctx, r, name, c)
			c.close()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// fakes starts the two fake servers of a case.
func (o *failoverOptions) fakes(ctx context.Context, r *rig, victim serverConfig, what string) (*failoverCase, *server, error) {
	first, err := r.startServer(ctx, victim)
	if err != nil {
		return nil, nil, err
	}
	second, err := r.startServer(ctx, serverConfig{})
	if err != nil {
		return nil, nil, err
	}
	return &failoverCase{
		config: gatewayConfig{Servers: []*server{first, second}}, victim: first.address, path: "/reqmod", away: o.away, whatIsDone: what,
		close: func() { first.stop(); second.stop() },
	}, first, nil
}

func (o *failoverOptions) killCase(ctx context.Context, r *rig) (*failoverCase, error) {
	c, s, err := o.fakes(ctx, r, serverConfig{}, "SIGKILL, and a new process")
	if err == nil {
		c.fault = func(context.Context) error { s.kill(); return nil }
		c.undo = s.start
	}
	return c, err
}

func (o *failoverOptions) stopCase(ctx context.Context, r *rig) (*failoverCase, error) {
	c, s, err := o.fakes(ctx, r, serverConfig{}, "SIGSTOP, and SIGCONT")
	if err == nil {
		c.fault = func(context.Context) error { s.freeze(); return nil }
		c.undo = func(context.Context) error { s.thaw(); return nil }
	}
	return c, err
}

func (o *failoverOptions) unplugCase(ctx context.Context, r *rig) (*failoverCase, error) {
	n, err := process.NewNamespace(ctx)
	if err != nil {
		return nil, err
	}
	c, _, err := o.fakes(ctx, r, serverConfig{Address: n.Host + ":0", Within: n.Within()}, "link down, and up")
	if err != nil {
		n.Close()
		return nil, err
	}
	c.away, c.fault, c.undo = o.unplugged, n.Unplug, n.Plug
	stop := c.close
	c.close = func() { stop(); n.Close() }
	return c, nil
}

func (o *failoverOptions) cicapCase(ctx context.Context, r *rig) (*failoverCase, error) {
	addresses, err := process.FreeAddresses(2)
	if err != nil {
		return nil, err
	}
	first, second := r.newCICAP("cicap0", addresses[0]), r.newCICAP("cicap1", addresses[1])
	c := &failoverCase{
		config: gatewayConfig{Addresses: addresses}, victim: first.address, path: "/echo", away: o.away, whatIsDone: "SIGKILL of a c-icap, and a new one",
		fault: func(context.Context) error { return first.kill() },
		undo:  first.start,
		close: func() { first.stop(); second.stop() },
	}
	for _, s := range []*cicap{first, second} {
		if err := s.start(ctx); err != nil {
			c.close()
			return nil, err
		}
	}
	return c, nil
}

// try does to a server what the case says, and undoes it, under load.
func (o *failoverOptions) try(ctx context.Context, r *rig, name string, c *failoverCase) error {
	r.section("%s: %s after %v, %d clients", name, c.whatIsDone, c.away, o.clients)
	if err := r.startGateway(ctx, c.config); err != nil {
		return err
	}
	defer r.stopGateway()
	out := &failoverOutcome{failed: map[string]int{}}
	load, cancel := context.WithCancel(ctx)
	var clients sync.WaitGroup
	for i := range o.clients {
		clients.Go(func() { out.client(load, r, c.path, i) })
	}
	seen, err := o.harm(ctx, r, c)
	cancel()
	clients.Wait()
	if err != nil {
		return err
	}
	m, err := r.metrics(ctx)
	if err != nil {
		return err
	}
	r.figure(name+": requests", float64(out.answered), "")
	if out.cut > 0 {
		r.figure(name+": answers cut in their middle", float64(out.cut), "")
	}
	failed := 0
	for what, n := range out.failed {
		r.note("%d failed: %s", n, what)
		failed += n
	}
	if len(out.waits) == 0 {
		return errors.New("no request was sent")
	}
	slices.Sort(out.waits)
	r.figure(name+": longest wait of a request", out.waits[len(out.waits)-1].Seconds(), "s")
	for _, bound := range []time.Duration{time.Second, 100 * time.Millisecond} {
		i, _ := slices.BinarySearch(out.waits, bound)
		r.figure(fmt.Sprintf("%s: requests of %v and more", name, bound), float64(len(out.waits)-i), "")
	}
	if seen.tried {
		r.figure(name+": to notice: until the last try on it", seen.lastTry.Seconds(), "s")
	}
	if seen.wentDown {
		r.figure(name+": to notice: until its checks took it down", seen.down.Seconds(), "s")
	} else {
		r.note("its checks did not take it down in that time")
	}
	if seen.isBack {
		r.figure(name+": to come back: until it answered a request", seen.back.Seconds(), "s")
	}
	for reason, n := range m.by("replays_total", "reason") {
		if n > 0 {
			r.figure(name+": requests sent again, "+reason, n, "")
		}
	}
	r.claim(failed == 0, "%s: 0 of %d requests failed: %d", name, out.answered+failed, failed)
	r.claim(seen.isBack, "%s: the server gets requests again", name)
	return nil
}

// failoverSight is what the gateway's metrics have told of the victim. Times are since the fault, back is since its return.
type failoverSight struct {
	tried, wentDown, isBack bool
	lastTry, down, back     time.Duration
}

// harm does it.
func (o *failoverOptions) harm(ctx context.Context, r *rig, c *failoverCase) (seen failoverSight, err error) {
	if err := pause(ctx, o.load); err != nil {
		return seen, err
	}
	server := fmt.Sprintf("server=%q", c.victim)
	look := func() (tries, answers float64, up bool, err error) {
		m, err := r.metrics(ctx)
		return m.sum("attempts_total", server), m.sum("requests_total", server), m.sum("server_up", server) == 1, err
	}
	if err := c.fault(ctx); err != nil {
		return seen, err
	}
	start := time.Now()
	last, _, _, err := look()
	for err == nil && time.Since(start) < c.away {
		var tries float64
		var up bool
		tries, _, up, err = look()
		if tries > last {
			seen.tried, seen.lastTry, last = true, time.Since(start), tries
		}
		if !up && !seen.wentDown {
			seen.wentDown, seen.down = true, time.Since(start)
		}
		if err == nil {
			err = pause(ctx, 20*time.Millisecond)
		}
	}
	if err != nil {
		return seen, err
	}
	_, before, _, err := look()
	if err != nil {
		return seen, err
	}
	if err := c.undo(ctx); err != nil {
		return seen, err
	}
	start = time.Now()
	for !seen.isBack && time.Since(start) < returnPatience {
		_, answers, _, err := look()
		if err != nil {
			return seen, err
		}
		if answers > before {
			seen.isBack, seen.back = true, time.Since(start)
		} else if err := pause(ctx, 20*time.Millisecond); err != nil {
			return seen, err
		}
	}
	return seen, pause(ctx, o.load)
}

// failoverOutcome is what the clients have seen.
type failoverOutcome struct {
	mu       sync.Mutex
	answered int
	cut      int             // answers that ended in their middle
	waits    []time.Duration // of all requests
	failed   map[string]int  // by what happened
}

// client sends requests until ctx ends, and then waits for the answer to its last one.
func (out *failoverOutcome) client(ctx context.Context, r *rig, path string, number int) {
	c := &client{}
	c.target, c.tls = r.target(true, path)
	defer c.close()
	random := rand.New(rand.NewPCG(1, uint64(number)))
	for ctx.Err() == nil {
		q := &call{
			Message: bench.Message{Method: icap.MethodReqmod, Preview: -1},
			Size:    smallestBody + random.Int64N(largestBody-smallestBody+1), Start: random.IntN(1 << 20),
		}
		start := time.Now()
		err := c.connect(context.WithoutCancel(ctx))
		if err == nil {
			err = c.do(q)
		}
		if err == errStale {
			continue
		}
		out.note(q, err, time.Since(start))
	}
}

func (out *failoverOutcome) note(q *call, err error, took time.Duration) {
	out.mu.Lock()
	defer out.mu.Unlock()
	out.waits = append(out.waits, took)
	switch {
	case err != nil && q.status != 0:
		out.cut++
		return
	case err != nil:
	case q.wrong != nil:
		err = q.wrong
	case q.status != 200 && q.status != 204:
		err = fmt.Errorf("status %d", q.status)
	default:
		out.answered++
		return
	}
	out.failed[err.Error()]++
}
