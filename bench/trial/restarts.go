package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"icapgate/bench"
	"icapgate/bench/process"
	"icapgate/gateway/admin"
	"icapgate/icap"
)

var restarts = &trial{
	name:  "restarts",
	about: "two c-icap servers with few threads are restarted in turn for minutes: no request fails",
	help: `Two c-icap daemons of the Debian package, with MaxServers: 2 and ThreadsPerChild: 5 (10 connections each, which pools[].servers[].max_connections says), answer with their
service echo. One of them after the other is restarted: most times with SIGTERM, as systemd does, sometimes with SIGKILL; and sometimes it is told to reconfigure, which
replaces its processes. The next one's turn comes when the gateway has both in use again. Clients over icaps send REQMODs of 1 to 48 KiB, which are within the replay buffer, and others of 10 MB,
one after the other. Which, when and how follows from the seed.

Claimed: no request fails (without retry.spill: none that is within the replay buffer); each answer has the body of its request. An answer that has begun when its
server goes can only be cut: the echo of 10 MB takes a while. If no more than a part of its head had come, the client gets a 502 in its place. Such are counted apart, and claimed is that each of them is explained: the gateway's
access log says that the server ended in its answer, and this server was being restarted then.

    go run ./bench/trial restarts
    go run ./bench/trial restarts --duration 1h --seed 7
    go run ./bench/trial restarts --spill 0
`,
	limit: 2 * time.Hour,
	flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		o := &restartsOptions{}
		f.DurationVar(&o.duration, "duration", 5*time.Minute, "time of load")
		f.Uint64Var(&o.seed, "seed", 0, "of requests and restarts (default one of its own, which is printed)")
		f.IntVar(&o.small, "small", 12, "clients that send bodies within the replay buffer")
		f.IntVar(&o.large, "large", 2, "clients that send 10 MB")
		f.StringVar(&o.spill, "spill", "256MiB", "retry.spill; 0: off")
		return o.run
	},
}

type restartsOptions struct {
	duration     time.Duration
	seed         uint64
	small, large int
	spill        string
}

const (
	restartThreads = 5
	restartBody    = 10e6
	restartPause   = 5 * time.Millisecond   // between two requests of a client
	largePause     = 100 * time.Millisecond // the same of 10 MB
)

// restart is something that was done to a server.
type restart struct {
	what     string
	server   string    // address
	from, to time.Time // until the gateway had it in use again
}

// restartRequest is one request and what came of it.
type restartRequest struct {
	id          string
	status      int
	err, wrong  error
	began, over time.Time
}

// good says whether it was answered as it should be.
func (q *restartRequest) good() bool {
	return q.err == nil && q.wrong == nil && (q.status == 200 || q.status == 204)
}

// restartClass are the requests of one kind of clients.
type restartClass struct {
	name   string
	lasted []time.Duration  // of all
	bad    []restartRequest // those that were not answered as they should be
}

// restarting is a running trial.
type restarting struct {
	*rig
	o       *restartsOptions
	log     string // access log
	servers []*cicap

	mu           sync.Mutex
	small, large restartClass
	restarts     []restart
}

func (o *restartsOptions) run(ctx context.Context, r *rig) error {
	if o.duration <= 0 || o.small < 0 || o.large < 0 || o.small+o.large < 1 {
		return errors.New("--duration has to be above 0, and there has to be a client")
	}
	if o.seed == 0 {
		o.seed = rand.Uint64N(1 << 32)
	}
	s := &restarting{rig: r, o: o, log: filepath.Join(r.dir, "access.log"), small: restartClass{name: "1 to 48 KiB"}, large: restartClass{name: "10 MB"}}
	defer func() {
		for _, c := range s.servers {
			c.stop()
		}
	}()
	if err := s.setUp(ctx); err != nil {
		return err
	}
	defer r.stopGateway()
	r.section("%v, %d clients with 1 to 48 KiB, %d with 10 MB, 2 servers for %d connections each, retry.spill %s: --seed %d", o.duration, o.small, o.large, 2*restartThreads, o.spill, o.seed)
	if err := s.load(ctx); err != nil {
		return err
	}
	m, err := r.metrics(ctx)
	if err != nil {
		return err
	}
	r.stopGateway() // writes the rest of its access log
	return s.judge(m)
}

// setUp starts the servers and the gateway.
func (s *restarting) setUp(ctx context.Context) error {
	addresses, err := process.FreeAddresses(2)
	if err != nil {
		return err
	}
	var list []string
	for i, address := range addresses {
		c := s.newCICAP(fmt.Sprintf("cicap%d", i), address)
		c.children, c.most, c.threads = 2, 2, restartThreads
		if err := c.start(ctx); err != nil {
			return err
		}
		s.servers = append(s.servers, c)
		list = append(list, fmt.Sprintf("{address: %q, max_connections: %d}", address, 2*restartThreads))
	}
	return s.startGateway(ctx, gatewayConfig{
		Addresses: list, AccessLog: s.log, Pool: fmt.Sprintf("    retry: {spill: %s}\n", s.o.spill), StateDir: s.dir,
	})
}

// load lets the clients send, and restarts the servers in turn.
func (s *restarting) load(ctx context.Context) (err error) {
	loading, stop := context.WithTimeout(ctx, s.o.duration)
	defer stop()
	var clients sync.WaitGroup
	for i := range s.o.small + s.o.large {
		clients.Go(func() { s.client(loading, i) })
	}
	random := rand.New(rand.NewPCG(s.o.seed, 0))
	for n := 0; err == nil && pause(loading, time.Second+time.Duration(random.Int64N(int64(2*time.Second)))) == nil; n++ {
		err = s.restart(ctx, random, s.servers[n%len(s.servers)])
	}
	stop()
	clients.Wait()
	return err
}

// restart does something to a server and waits until the gateway uses it again.
func (s *restarting) restart(ctx context.Context, random *rand.Rand, server *cicap) error {
	d := restart{what: "SIGTERM", server: server.address, from: time.Now()}
	away := time.Duration(random.Int64N(int64(2 * time.Second)))
	switch n := random.IntN(10); {
	case n < 2:
		d.what = "SIGKILL"
	case n < 4:
		d.what = "reconfigure"
	}
	switch d.what {
	case "reconfigure":
		if err := server.reconfigure(); err != nil {
			return fmt.Errorf("%s: reconfigure: %w", server.name, err)
		}
	case "SIGKILL":
		if err := server.kill(); err != nil {
			return err
		}
	default:
		server.stop()
	}
	if d.what != "reconfigure" {
		if err := pause(ctx, away); err != nil {
			return err
		}
		if err := server.start(ctx); err != nil {
			return err
		}
	}
	if err := pause(ctx, 2*time.Second); err != nil { // a check may not have seen yet that it was away
		return err
	}
	back := func(st *admin.Status) bool {
		return !slices.ContainsFunc(st.Pools[0].Servers, func(one admin.ServerStatus) bool { return one.Health != "up" })
	}
	if err := s.awaitStatus(ctx, returnPatience, "that uses both servers after "+d.what, back); err != nil {
		return err
	}
	d.to = time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restarts = append(s.restarts, d)
	fmt.Fprintf(s.progress, "%s of %s, away for %v: %d requests until now\n", d.what, server.name, d.to.Sub(d.from).Round(100*time.Millisecond), len(s.small.lasted)+len(s.large.lasted))
	return nil
}

// client sends requests until ctx ends, and waits for the answer to its last one. The first ones send small bodies.
func (s *restarting) client(ctx context.Context, number int) {
	random := rand.New(rand.NewPCG(s.o.seed, uint64(1+number)))
	c := &client{}
	defer c.close()
	class, between := &s.small, restartPause
	if number >= s.o.small {
		class, between = &s.large, largePause
	}
	for n := 0; pause(ctx, between) == nil; n++ {
		size := int64(restartBody)
		if class == &s.small {
			size = smallestBody + random.Int64N(replaySize-smallestBody+1)
		}
		req := restartRequest{id: fmt.Sprintf("%d-%d", number, n)}
		c.target, c.tls = s.target(true, "/echo?id="+req.id)
		q := &call{Message: bench.Message{Method: icap.MethodReqmod, Preview: -1}, Size: size, Start: random.IntN(1 << 20)}
		req.began = time.Now()
		for req.err = errStale; req.err == errStale; {
			if req.err = c.connect(context.WithoutCancel(ctx)); req.err == nil {
				req.err = c.do(q)
			}
		}
		if req.err != nil {
			c.close()
		}
		req.over, req.status, req.wrong = time.Now(), q.status, q.wrong
		s.mu.Lock()
		class.lasted = append(class.lasted, req.over.Sub(req.began))
		if !req.good() {
			class.bad = append(class.bad, req)
		}
		s.mu.Unlock()
	}
}

// judge says what came of the requests.
func (s *restarting) judge(m metrics) error {
	lines, err := readAccessLog(s.log, func(line *accessLine) bool { return line.End != "done" }) // the others are many
	if err != nil {
		return err
	}
	counts := map[string]int{}
	for _, d := range s.restarts {
		counts[d.what]++
	}
	for _, what := range slices.Sorted(maps.Keys(counts)) {
		s.figure("restarts by "+what, float64(counts[what]), "")
	}
	s.judgeClass(lines, &s.small)
	s.judgeClass(lines, &s.large)
	s.section("the gateway")
	for reason, n := range m.by("replays_total", "reason") {
		if n > 0 {
			s.figure("requests sent again, "+reason, n, "")
		}
	}
	s.note("connections to servers that ended: %s", nonzero(sides(m, "server")))
	s.note("connections of clients that ended: %s", nonzero(sides(m, "client")))
	s.claim(len(s.restarts) > 0, "servers were restarted: %d times", len(s.restarts))
	s.claim(m.sum("panics_total") == 0, "no panic")
	return nil
}

// sides are the closes of one side by their reason.
func sides(m metrics, side string) map[string]float64 {
	sums := map[string]float64{}
	for series, n := range m {
		if strings.HasPrefix(series, "icapgate_closes_total{") && label(series, "side") == side {
			sums[label(series, "reason")] += n
		}
	}
	return sums
}

// judgeClass says what came of requests of one kind.
func (s *restarting) judgeClass(lines map[string][]accessLine, class *restartClass) {
	if len(class.lasted) == 0 {
		return
	}
	name := class.name
	cut, explained, failed := 0, 0, 0
	reasons := map[string]int{}
	for _, req := range class.bad {
		line := accessLine{}
		if list := lines[req.id]; len(list) == 1 {
			line = list[0]
		}
		why := ""
		switch {
		case req.err != nil && req.status != 0, req.err == nil && line.Status == 502 && line.Failure == "bad_answer":
			cut++
			var ok bool
			if why, ok = s.explain(req, line); ok {
				explained++
			}
			why = "cut: " + why
		case req.err != nil:
			why = fmt.Sprintf("failed: %v (%s)", req.err, s.describe(req, line))
		case req.wrong != nil:
			why = fmt.Sprintf("failed: %v", req.wrong)
		default:
			why = fmt.Sprintf("failed: status %d (%s)", req.status, s.describe(req, line))
		}
		reasons[why]++
	}
	failed = len(class.bad) - cut
	slices.Sort(class.lasted)
	all := len(class.lasted)
	s.section("requests of %s", name)
	s.figure(name+": answered", float64(all-len(class.bad)), "")
	s.figure(name+": cut after the beginning of an answer", float64(cut), "")
	for _, why := range slices.SortedFunc(maps.Keys(reasons), func(a, b string) int { return cmp.Or(reasons[b]-reasons[a], strings.Compare(a, b)) }) {
		s.note("%8d  %s", reasons[why], why)
	}
	s.figure(name+": median", class.lasted[all/2].Seconds(), "s")
	s.figure(name+": p99", class.lasted[all*99/100].Seconds(), "s")
	s.figure(name+": longest", class.lasted[all-1].Seconds(), "s")
	if class == &s.small || s.o.spill != "0" {
		s.claim(failed == 0, "%s: 0 of %d requests failed: %d", name, all, failed)
	} else {
		s.note("%d of %d requests failed: they are beyond the replay buffer, and there is no retry.spill", failed, all)
	}
	s.claim(explained == cut, "%s: each of %d cut answers is explained: %d are", name, cut, explained)
}

// explain says why an answer was cut, and whether that is what has to be expected.
func (s *restarting) explain(req restartRequest, line accessLine) (why string, ok bool) {
	where := "middle"
	switch {
	case line.End == "server_failed" && line.Failure == "bad_answer":
		where = "head"
	case line.End != "truncated":
		return fmt.Sprintf("the access log says %q, the client %v", line.End, req.err), false
	}
	if what := s.during(req, line.Server); what != "" {
		return fmt.Sprintf("its server ended in the %s of its answer, because of %s", where, what), true
	}
	return fmt.Sprintf("its server ended in the %s of its answer, and was not being restarted", where), false
}

// during returns what was done to a server while a request ran, "": nothing.
func (s *restarting) during(req restartRequest, server string) string {
	for _, d := range s.restarts {
		if d.server == server && d.from.Before(req.over) && req.began.Before(d.to) {
			return d.what
		}
	}
	return ""
}

// describe says what the access log has of a request that failed.
func (s *restarting) describe(req restartRequest, line accessLine) string {
	text := fmt.Sprintf("%s, %s after %d attempts and %s", line.End, line.Failure, line.Attempts, shown(req.over.Sub(req.began)))
	if what := s.during(req, line.Server); what != "" {
		text += ", the last one on the server of " + what
	}
	return text
}
