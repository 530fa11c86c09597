package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"sync"
	"time"

	"icapgate/bench"
	"icapgate/icap"
)

var reload = &trial{
	name:  "reload",
	about: "reloads under load, with other servers, policies and certificates: no request fails, nothing is left behind",
	help: `Clients send requests over icaps and icap; half of them keep their connection, half make a new one every ten requests. Meanwhile the gateway
is reloaded again and again, with two or three servers, round robin or least in flight, one certificate or another.
Claimed: no reload is refused and no request fails, no connection ends by a reload, a client that connects after a reload sees the certificate
of that reload, and at rest there are as many goroutines and descriptors as before.

    go run ./bench/trial reload
    go run ./bench/trial reload --reloads 2000 --clients 64
`,
	limit: 10 * time.Minute,
	flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		o := &reloadOptions{}
		f.IntVar(&o.reloads, "reloads", 200, "how often the gateway is reloaded")
		f.IntVar(&o.clients, "clients", 16, "connections at a time, half of them icaps")
		f.DurationVar(&o.pause, "pause", 20*time.Millisecond, "time between two reloads")
		return o.run
	},
}

type reloadOptions struct {
	reloads, clients int
	pause            time.Duration
}

// reloadOutcome is what the clients have seen.
type reloadOutcome struct {
	mu       sync.Mutex
	answered int
	made     int // connections
	wanted   int // of these, those that clients wanted themselves
	failed   map[string]int
}

func (o *reloadOptions) run(ctx context.Context, r *rig) error {
	if o.reloads < 1 || o.clients < 1 || o.pause < 0 {
		return errors.New("--reloads and --clients have to be above 0")
	}
	servers, err := r.startServers(ctx, 3, serverConfig{})
	if err != nil {
		return err
	}
	pems := [2]string{r.pem}
	if pems[1], err = r.makeCertificate(ctx, "other"); err != nil {
		return err
	}
	// Configurations differ in their certificate, their policy and their servers.
	config := func(n int) gatewayConfig {
		c := gatewayConfig{Servers: servers, PEM: pems[n&1], Pool: "    idle: {timeout: 2s}\n    health: {interval: 1s}\n"}
		if n&2 != 0 {
			c.Pool += "    balance: round_robin\n"
		}
		if n&4 != 0 {
			c.Servers = servers[:2]
		}
		return c
	}
	if err := r.startGateway(ctx, config(0)); err != nil {
		return err
	}
	before, err := r.settled(ctx)
	if err != nil {
		return err
	}
	r.section("%d reloads, %d clients", o.reloads, o.clients)
	loading, stop := context.WithCancel(ctx)
	defer stop()
	out := &reloadOutcome{failed: map[string]int{}}
	var clients sync.WaitGroup
	for i := range o.clients {
		clients.Go(func() { out.client(ctx, loading, r, i) })
	}
	start := time.Now()
	stale, err := o.reload(ctx, r, config)
	took := time.Since(start)
	stop()
	clients.Wait()
	if err != nil {
		return err
	}
	r.figure("time", took.Seconds(), "s")
	r.figure("requests answered", float64(out.answered), "")
	r.figure("connections made", float64(out.made), "")
	failed := 0
	for what, n := range out.failed {
		r.note("%d failed: %s", n, what)
		failed += n
	}
	r.claim(failed == 0, "0 requests failed: %d", failed)
	r.claim(out.made == out.wanted, "no connection ended that its client wanted to keep: %d were made, %d wanted", out.made, out.wanted)
	r.claim(stale == 0, "who connects after a reload sees its certificate: %d did not", stale)
	m, err := r.metrics(ctx)
	if err != nil {
		return err
	}
	reloads := m.by("reloads_total", "result")
	r.claim(int(reloads["ok"]) == o.reloads+1 && reloads["failed"] == 0, "every reload, and one more to go back, was put in force: %v", reloads)
	after, err := r.settled(ctx)
	if err != nil {
		return err
	}
	r.note("before: %v\nafter:  %v", before, after)
	r.claimRest(before, after)
	return nil
}

// reload makes the reloads and goes back to the first configuration. It tells how often the certificate was not the one in force.
func (o *reloadOptions) reload(ctx context.Context, r *rig, config func(int) gatewayConfig) (stale int, err error) {
	put := func(n int) error {
		if _, err := r.writeConfig(config(n)); err != nil {
			return err
		}
		return r.admin.Reload(ctx)
	}
	serials := map[int]string{}
	for n := 1; n <= o.reloads; n++ {
		if err := put(n % 8); err != nil {
			return 0, err
		}
		serial, err := r.serial(ctx)
		if err != nil {
			return 0, err
		}
		if serials[n&1] == "" {
			serials[n&1] = serial
		}
		if serials[n&1] != serial || serials[0] == serials[1] {
			stale++
		}
		if err := pause(ctx, o.pause); err != nil {
			return 0, err
		}
	}
	return stale, put(0)
}

// serial tells the certificate that a new client sees.
func (r *rig) serial(ctx context.Context) (string, error) {
	_, cfg := r.target(true, "/")
	nc, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", r.Secure)
	if err != nil {
		return "", err
	}
	defer nc.Close()
	return nc.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}

// client sends requests until loading ends.
func (d *reloadOutcome) client(ctx, loading context.Context, r *rig, number int) {
	c := &client{}
	c.target, c.tls = r.target(number%2 == 0, "/reqmod")
	defer c.close()
	q := &call{Message: bench.Message{Method: icap.MethodReqmod, Preview: -1, No204: number%3 == 0}, Size: []int64{1 << 10, 64 << 10}[number/2%2]}
	wants := true // a new connection
	for ; loading.Err() == nil; q.Start++ {
		if number/4%2 == 0 && q.Start%10 == 0 {
			c.close()
			wants = true
		}
		made := c.conn == nil
		err := c.connect(ctx)
		if err == nil {
			err = c.do(q)
		}
		if err == nil {
			err = q.wrong
		}
		if err == nil && q.status != 200 && q.status != 204 {
			err = fmt.Errorf("status %d", q.status)
		}
		d.mu.Lock()
		if made {
			d.made++
		}
		if wants {
			d.wanted++
		}
		if err == nil {
			d.answered++
		} else {
			d.failed[err.Error()]++
		}
		d.mu.Unlock()
		wants = false
		if err != nil {
			c.close()
		}
	}
}
