package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"icapgate/icap"
)

var soak = &trial{
	name:  "soak",
	about: "mixed load with random faults from a seeded script: every answer is checked and every request accounted for",
	help: `Clients send REQMOD, RESPMOD and OPTIONS over icaps and icap, with bodies of 0 bytes to 6 MB, with and without previews and 204, slowly and
fast, and go away in the middle of some. Servers close connections after a number of requests and when idle, and treat some requests
badly: 503, late, early, cut, no answer at all, read slowly. Meanwhile a script kills servers and starts them again, freezes them, and
reloads the gateway with other servers, policies and certificates. Everything follows from the seed.

Claimed: every answer is that of its request, by an id and the bytes of its body; servers got each body whole, and once, but for replays
that a fault explains; every request that failed did so by a fault that was made then and there; the gateway's access log and metrics say
the same as clients and servers; memory is flat, and goroutines and descriptors are back to what they were.

    go run ./bench/trial soak
    go run ./bench/trial soak --seed 7 --duration 1m
    go run ./bench/trial soak --seed 7 --script              the script of faults only
`,
	limit: 2 * time.Hour,
	flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		o := &soakOptions{}
		f.DurationVar(&o.duration, "duration", 10*time.Minute, "time of load")
		f.Uint64Var(&o.seed, "seed", 0, "of requests and faults (default one of its own, which is printed)")
		f.IntVar(&o.clients, "clients", 16, "clients, half of them icaps")
		f.BoolVar(&o.script, "script", false, "print the script of faults and end")
		return o.run
	},
}

type soakOptions struct {
	duration time.Duration
	seed     uint64
	clients  int
	script   bool
}

const (
	soakServers = 3
	soakIdle    = 3 * time.Second // of the gateway's connections to servers
)

// soaking is a running soak.
type soaking struct {
	*rig
	o       *soakOptions
	list    []*server
	pems    [2]string
	log     string // access log
	results []result
	kills   []kill
	reloads int
	memory  []int64 // RSS, each second
	mu      sync.Mutex
}

// result is what came of one request.
type result struct {
	*plan
	status       int
	server       string
	err          error // nil: an answer came whole
	wrong        error // with the answer
	began, ended time.Time
}

// kill is a server that was killed.
type kill struct {
	server         *server
	from, gone, to time.Time // of the signal, of the end of the process, of its return
}

func (o *soakOptions) run(ctx context.Context, r *rig) error {
	if o.clients < 1 || o.duration <= 0 {
		return errors.New("--clients and --duration have to be above 0")
	}
	if o.seed == 0 {
		o.seed = rand.Uint64N(1 << 32)
	}
	script := newScript(rand.New(rand.NewPCG(o.seed, 0)), o.duration, soakServers)
	r.section("%v of load by %d clients over %d servers, %d faults: --seed %d", o.duration, o.clients, soakServers, len(script), o.seed)
	if o.script {
		for _, f := range script {
			r.note("%10.3f s  %-8s server %d, configuration %d", f.at.Seconds(), f.what, f.server, f.config)
		}
		return nil
	}
	s := &soaking{rig: r, o: o, log: filepath.Join(r.dir, "access.log")}
	if err := s.setUp(ctx); err != nil {
		return err
	}
	before, err := r.settled(ctx)
	if err != nil {
		return err
	}
	if err := s.load(ctx, script); err != nil {
		return err
	}
	after, err := r.settled(ctx)
	if err != nil {
		return err
	}
	m, err := r.metrics(ctx)
	if err != nil {
		return err
	}
	r.stopGateway() // writes the rest of its access log
	if err := s.account(m); err != nil {
		return err
	}
	s.judgeMemory(before, after)
	return nil
}

// setUp starts the servers and the gateway.
func (s *soaking) setUp(ctx context.Context) (err error) {
	for _, c := range []serverConfig{{CloseAfter: 50, SilentClose: true}, {CloseAfter: 80}, {IdleTimeout: time.Second}} {
		c.Record, c.Obey = true, true
		server, err := s.startServer(ctx, c)
		if err != nil {
			return err
		}
		s.list = append(s.list, server)
	}
	s.pems[0] = s.pem
	if s.pems[1], err = s.makeCertificate(ctx, "other"); err != nil {
		return err
	}
	return s.startGateway(ctx, s.config(0))
}

// config is one of eight configurations.
func (s *soaking) config(n int) gatewayConfig {
	c := gatewayConfig{
		Servers: s.list, PEM: s.pems[n&1], AccessLog: s.log,
		Pool: fmt.Sprintf("    health: {interval: 500ms, timeout: 1s, rise: 1, fall: 2}\n    idle: {timeout: %v}\n", soakIdle),
	}
	if n&2 != 0 {
		c.Pool += "    balance: round_robin\n"
	}
	if n&4 != 0 {
		c.Servers = s.list[:2]
	}
	return c
}

// load lets the clients and the script run.
func (s *soaking) load(ctx context.Context, script []fault) (err error) {
	loading, stop := context.WithTimeout(ctx, s.o.duration)
	defer stop()
	var names []string
	for _, server := range s.list {
		names = append(names, server.name)
	}
	var clients, others sync.WaitGroup
	start := time.Now()
	for i := range s.o.clients {
		clients.Go(func() {
			results := s.client(ctx, loading, i, names)
			s.mu.Lock()
			s.results = append(s.results, results...)
			s.mu.Unlock()
		})
	}
	sampling, end := context.WithCancel(ctx)
	others.Go(func() { s.sample(sampling) })
	others.Go(func() {
		if err = s.play(loading, script, start); err != nil {
			stop()
		}
	})
	clients.Wait()
	end()
	others.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// client sends requests until loading ends.
func (s *soaking) client(ctx, loading context.Context, number int, servers []string) (results []result) {
	r := rand.New(rand.NewPCG(s.o.seed, uint64(1+number)))
	c := &client{}
	defer c.close()
	for n := 0; ; n++ {
		p := newPlan(r, number, n, servers)
		if pause(loading, p.think) != nil {
			return results
		}
		if p.fresh {
			c.close()
		}
		c.target, c.tls = s.target(number%2 == 0, p.path())
		q := p.call(ctx)
		res := result{plan: p, began: time.Now()}
		for res.err = errStale; res.err == errStale; { // nothing has been sent then
			if res.err = c.connect(ctx); res.err == nil {
				res.err = c.do(q)
			}
		}
		if res.err != nil {
			c.close()
		}
		res.ended, res.status, res.server, res.wrong = time.Now(), q.status, q.server, q.wrong
		if res.wrong == nil && res.err == nil && q.id != p.id && q.server != "" && p.message.Method != icap.MethodOptions {
			res.wrong = fmt.Errorf("it is the answer to %q", q.id)
		}
		results = append(results, res)
	}
}

// play makes the faults of a script.
func (s *soaking) play(ctx context.Context, script []fault, start time.Time) error {
	defer func() { // also when the script is cut short
		for _, server := range s.list {
			if server.process != nil {
				server.thaw()
			}
		}
	}()
	for _, f := range script {
		if pause(ctx, time.Until(start.Add(f.at))) != nil {
			return nil
		}
		server := s.list[f.server]
		fmt.Fprintf(s.progress, "%7.1f s  %s server %d, configuration %d\n", time.Since(start).Seconds(), f.what, f.server, f.config)
		switch f.what {
		case faultKill:
			s.kills = append(s.kills, kill{server: server, from: time.Now()})
			server.kill()
			s.kills[len(s.kills)-1].gone = time.Now()
		case faultStart:
			if err := server.start(ctx); err != nil {
				return err
			}
			s.kills[len(s.kills)-1].to = time.Now()
		case faultFreeze:
			server.freeze()
		case faultThaw:
			server.thaw()
		case faultReload:
			if _, err := s.writeConfig(s.config(f.config)); err != nil {
				return err
			}
			s.gateway.Signal(syscall.SIGHUP)
			s.reloads++
		}
	}
	return nil
}

// sample notes the gateway's memory each second.
func (s *soaking) sample(ctx context.Context) {
	for pause(ctx, time.Second) == nil {
		if rss, err := s.gateway.RSS(); err == nil {
			s.memory = append(s.memory, rss)
		}
	}
}

// judgeMemory compares the second minute with the last one, and what is used at rest before and after.
func (s *soaking) judgeMemory(before, after usage) {
	s.section("memory, goroutines and descriptors")
	s.note("before the load: %v\nafter the load:  %v", before, after)
	const minute = 60 // samples
	if len(s.memory) >= 4*minute {
		second, last := median(s.memory[minute:2*minute]), median(s.memory[len(s.memory)-minute:])
		s.figure("memory in the second minute, median", megabytes(second), "MB")
		s.figure("memory in the last minute, median", megabytes(last), "MB")
		s.claim(last < second+second/5, "it is flat: less than 20 %% more in the last minute than in the second")
	} else {
		s.note("too short a run to say whether memory is flat")
	}
	s.figure("most memory of a second", megabytes(slices.Max(append(s.memory, 0))), "MB")
	s.claimRest(before, after)
}

func median(list []int64) int64 {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}
