package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"sync"
	"syscall"
	"time"

	"icapgate/bench"
	"icapgate/icap"
)

var drain = &trial{
	name:  "drain",
	about: "SIGTERM under load: every request that was sent is answered",
	help: `Clients send requests over icaps and icap, some without a pause and some with one between two requests; half of the requests are echoed.
In the middle of that the gateway gets SIGTERM. A connection may end after an answer that says Connection: close, or by a FIN that comes
before anything of the next request is sent. Claimed: no other request fails or is lost, the exit code is 0; and a second SIGTERM, a second
after the first, ends the gateway at once whatever runs.

What no gateway can prevent: a connection that was idle for a second is closed, and a request that crosses the FIN is lost; and so is
one on a connection that the kernel makes between our last accept and the close of the listening socket, which are microseconds. The clients
here are never idle for a second, and have met the other one in none of many thousand connections.

    go run ./bench/trial drain
    go run ./bench/trial drain --rounds 50 --clients 64
`,
	limit: 10 * time.Minute,
	flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		o := &drainOptions{}
		f.IntVar(&o.rounds, "rounds", 10, "gateways that are drained, one after the other")
		f.IntVar(&o.clients, "clients", 16, "connections, half of them icaps, half of each with pauses")
		f.DurationVar(&o.load, "load", time.Second, "time of load before the signal")
		return o.run
	},
}

type drainOptions struct {
	rounds, clients int
	load            time.Duration
}

// drainOutcome is what the clients of a round have seen.
type drainOutcome struct {
	mu       sync.Mutex
	answered int            // as they should be
	after    int            // of these, after the signal
	announce int            // connections that ended after Connection: close
	stale    int            // connections that ended between two requests
	lost     map[string]int // requests that got no answer, by what happened
	signal   time.Time
}

func (o *drainOptions) run(ctx context.Context, r *rig) error {
	if o.rounds < 1 || o.clients < 1 {
		return errors.New("--rounds and --clients have to be above 0")
	}
	servers, err := r.startServers(ctx, 2, serverConfig{Echo: false, Latency: 2 * time.Millisecond})
	if err != nil {
		return err
	}
	r.section("SIGTERM under load, %d rounds, %d clients", o.rounds, o.clients)
	all := drainOutcome{lost: map[string]int{}}
	var longest time.Duration
	codes := map[int]int{}
	for round := range o.rounds {
		out, took, code, err := o.round(ctx, r, servers)
		if err != nil {
			return err
		}
		all.answered, all.after = all.answered+out.answered, all.after+out.after
		all.announce, all.stale = all.announce+out.announce, all.stale+out.stale
		for what, n := range out.lost {
			all.lost[what] += n
		}
		longest = max(longest, took)
		codes[code]++
		fmt.Fprintf(r.progress, "round %d: %d answered, drained in %v\n", round, out.answered, took)
	}
	r.figure("requests answered", float64(all.answered), "")
	r.figure("of these, after the signal", float64(all.after), "")
	r.figure("connections that ended after Connection: close", float64(all.announce), "")
	r.figure("connections that ended between two requests", float64(all.stale), "")
	r.figure("longest drain", longest.Seconds(), "s")
	sum := 0
	for what, n := range all.lost {
		r.note("%d lost: %s", n, what)
		sum += n
	}
	r.claim(sum == 0, "0 requests lost or failed: %d", sum)
	r.claim(codes[exitOK] == o.rounds, "every gateway ended with exit code 0: %v", codes)
	return o.secondSignal(ctx, r)
}

// round drains one gateway.
func (o *drainOptions) round(ctx context.Context, r *rig, servers []*server) (*drainOutcome, time.Duration, int, error) {
	if err := r.startGateway(ctx, gatewayConfig{Servers: servers}); err != nil {
		return nil, 0, 0, err
	}
	defer r.stopGateway()
	out := &drainOutcome{lost: map[string]int{}}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var clients sync.WaitGroup
	for i := range o.clients {
		clients.Go(func() { out.client(ctx, r, i) })
	}
	if err := pause(ctx, o.load); err != nil {
		cancel()
		clients.Wait()
		return nil, 0, 0, err
	}
	out.mu.Lock()
	out.signal = time.Now()
	out.mu.Unlock()
	r.gateway.Signal(syscall.SIGTERM)
	select {
	case <-r.gateway.Ended():
	case <-ctx.Done():
		return nil, 0, 0, context.Cause(ctx)
	}
	took := time.Since(out.signal)
	clients.Wait()
	return out, took, r.gateway.ExitCode(), nil
}

// client sends requests until the gateway does not accept any more.
func (d *drainOutcome) client(ctx context.Context, r *rig, number int) {
	c := &client{}
	c.target, c.tls = r.target(number%2 == 0, "/reqmod")
	defer c.close()
	think := time.Duration(number/2%2) * time.Duration(1+number) * time.Millisecond
	q := &call{Message: bench.Message{Method: icap.MethodReqmod, Preview: -1, No204: number%3 == 0}, Size: 1 << 10}
	if number%4 == 0 {
		q.Size = 64 << 10
	}
	for ; ; q.Start++ {
		if c.connect(ctx) != nil {
			return // it has stopped accepting, or before that the connect was in its backlog
		}
		first := !c.used
		err := c.do(q)
		d.note(q, err, first, c.conn == nil)
		if ctx.Err() != nil || pause(ctx, think) != nil {
			return
		}
	}
}

// note counts what came of a request.
func (d *drainOutcome) note(q *call, err error, first, ended bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err == errStale:
		d.stale++
		return
	case err == nil && q.wrong == nil && (q.status == 204 || q.status == 200):
		d.answered++
		if !d.signal.IsZero() {
			d.after++
		}
		if ended {
			d.announce++
		}
		return
	case err == nil && q.wrong == nil:
		err = fmt.Errorf("status %d", q.status)
	case err == nil:
		err = q.wrong
	}
	when := "before the signal: "
	if !d.signal.IsZero() {
		when = "after the signal: "
	}
	if first {
		when += "first request of a connection: "
	}
	d.lost[when+err.Error()]++
}

// secondSignal drains a gateway that has a request which does not end.
func (o *drainOptions) secondSignal(ctx context.Context, r *rig) error {
	r.section("a second SIGTERM")
	s, err := r.startServer(ctx, serverConfig{Latency: time.Minute})
	if err != nil {
		return err
	}
	if err := r.startGateway(ctx, gatewayConfig{Servers: []*server{s}, Further: "drain_timeout: 60s\n"}); err != nil {
		return err
	}
	defer r.stopGateway()
	c := &client{}
	c.target, c.tls = r.target(true, "/reqmod")
	if err := c.connect(ctx); err != nil {
		return err
	}
	var waiting sync.WaitGroup
	waiting.Go(func() {
		_ = c.do(&call{Message: bench.Message{Method: icap.MethodReqmod, Preview: -1}, Size: 1 << 10})
		c.close()
	})
	defer waiting.Wait()
	defer r.gateway.Stop() // lets go the client
	if err := r.awaitInFlight(ctx, 1); err != nil {
		return err
	}
	r.gateway.Signal(syscall.SIGTERM)
	if err := pause(ctx, 1500*time.Millisecond); err != nil { // within a second the gateway takes it for the same order
		return err
	}
	select {
	case <-r.gateway.Ended():
		r.claim(false, "it waits for a request that runs")
		return nil
	default:
	}
	start := time.Now()
	r.gateway.Signal(syscall.SIGTERM)
	select {
	case <-r.gateway.Ended():
	case <-time.After(10 * time.Second):
		r.claim(false, "the second signal ends it")
		return nil
	}
	r.figure("from the second signal to the end", time.Since(start).Seconds(), "s")
	r.claim(time.Since(start) < time.Second, "the second signal ends it at once")
	r.claim(r.gateway.ExitCode() == exitFailure, "and the exit code tells: %d", r.gateway.ExitCode())
	return nil
}
