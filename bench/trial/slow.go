package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"sync"
	"time"

	"icapgate/bench"
	"icapgate/bench/load"
	"icapgate/bench/scenario"
	"icapgate/icap"
)

var slow = &trial{
	name:  "slow",
	about: "bodies of 1 GB to and from slow peers: memory stays bounded, bytes arrive; 1 KiB requests beside 10 GB",
	help: `Uploads (REQMOD, chunked) to a server that reads 1 MB/s, and echoes (RESPMOD) to a client that reads 1 MB/s, each over icaps and icap, all
four together, of 1 GB each; they are cut after --duration, because what memory they take shows in the first seconds. Then the same
with peers that are fast, to the end. Then requests of 1 KiB beside an upload of 10 GB on the only event loop.
Claimed: the peak of the gateway's memory is less than 64 MB above its memory before, and every byte that arrived is the right one, by
comparison at the client and SHA-256 at the server. Latencies are told, not judged: they depend on the machine.

    go run ./bench/trial slow
    go run ./bench/trial slow --full                       all of the 1 GB at 1 MB/s: 17 minutes
    go run ./bench/trial slow --duration 10s --size 100000000
`,
	limit: 30 * time.Minute,
	flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		o := &slowOptions{}
		f.DurationVar(&o.duration, "duration", time.Minute, "time of the slow transfers")
		f.BoolVar(&o.full, "full", false, "don't cut them")
		f.Int64Var(&o.size, "size", 1e9, "bytes of a body")
		f.Int64Var(&o.rate, "rate", 1e6, "bytes per second of a slow peer")
		f.DurationVar(&o.fair, "fair", 10*time.Second, "time of each part with requests of 1 KiB; 0: leave them out")
		return o.run
	},
}

type slowOptions struct {
	duration   time.Duration
	full       bool
	size, rate int64
	fair       time.Duration
}

const (
	memoryBound = 64e6     // bytes above those of an idle gateway
	roundBytes  = 48 * 4   // KiB: see gateway/loop.go
	bigUpload   = 10e9     // bytes
	smallSize   = 1 << 10  // bytes
	smallChunk  = 64 << 10 // bytes, over icaps
	largeChunk  = 1 << 20  // bytes, over icap: the gateway splices these
)

// errTimeOver ends a transfer that is long enough.
var errTimeOver = errors.New("cut, as it should be")

func (o *slowOptions) run(ctx context.Context, r *rig) error {
	if o.size < 1 || o.rate < 1 || o.duration <= 0 || o.fair < 0 {
		return errors.New("--size, --rate and --duration have to be above 0")
	}
	reader, err := r.startServer(ctx, serverConfig{Record: true, ReadRate: o.rate})
	if err != nil {
		return err
	}
	echo, err := r.startServer(ctx, serverConfig{Echo: true, Record: true})
	if err != nil {
		return err
	}
	sink, err := r.startServer(ctx, serverConfig{Record: true})
	if err != nil {
		return err
	}
	pools := fmt.Sprintf(`  - {name: slow, servers: [%q]}
  - {name: echo, servers: [%q]}
services:
  - {path: /slow, pool: slow}
  - {path: /echo, pool: echo}
  - {path: /sink, pool: %s}
`, reader.address, echo.address, poolName)
	if err := r.startGateway(ctx, gatewayConfig{Servers: []*server{sink}, Pool: pools}); err != nil {
		return err
	}
	limit := o.duration
	if o.full {
		limit = 0
	}
	if err := o.transfers(ctx, r, "slow peers", []*transfer{
		{name: "upload-icaps", path: "/slow", secure: true, server: reader},
		{name: "upload-icap", path: "/slow", server: reader},
		{name: "echo-icaps", path: "/echo", secure: true, server: echo, rate: o.rate},
		{name: "echo-icap", path: "/echo", server: echo, rate: o.rate},
	}, limit); err != nil {
		return err
	}
	for _, t := range []*transfer{
		{name: "fast-upload-icaps", path: "/sink", secure: true, server: sink},
		{name: "fast-upload-icap", path: "/sink", server: sink},
		{name: "fast-echo-icaps", path: "/echo", secure: true, server: echo},
		{name: "fast-echo-icap", path: "/echo", server: echo},
	} {
		if err := o.transfers(ctx, r, t.name, []*transfer{t}, 0); err != nil {
			return err
		}
	}
	r.stopGateway()
	if o.fair == 0 {
		return nil
	}
	return o.fairness(ctx, r, sink, pools)
}

// transfer is one long body.
type transfer struct {
	name   string // and the id of the request
	path   string
	secure bool
	server *server
	rate   int64 // bytes per second that the client reads; 0: all that come

	sent, got int64 // bytes of body
	took      time.Duration
	err       error
	wrong     error
}

// transfers makes transfers at the same time and judges them and the gateway's memory. They are cut after limit; 0: they are not.
func (o *slowOptions) transfers(ctx context.Context, r *rig, title string, list []*transfer, limit time.Duration) error {
	r.section("%s", title)
	if err := r.gateway.ResetPeakRSS(); err != nil {
		return err
	}
	before, err := r.usage(ctx)
	if err != nil {
		return err
	}
	var end time.Time // zero: never
	if limit > 0 {
		end = time.Now().Add(limit)
	}
	var running sync.WaitGroup
	for i, t := range list {
		running.Go(func() { t.run(ctx, r, o.size, i*1001, end) })
	}
	running.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	after, err := r.usage(ctx)
	if err != nil {
		return err
	}
	for i, t := range list {
		if limit == 0 || !errors.Is(t.err, errTimeOver) {
			r.claim(t.err == nil, "%s: %.0f MB were answered: error %v", t.name, float64(o.size)/1e6, t.err)
		}
		r.figure(t.name+", sent", float64(t.sent)/1e6, "MB")
		if t.path == "/echo" {
			r.figure(t.name+", came back", float64(t.got)/1e6, "MB")
		}
		r.figure(t.name+", time", t.took.Seconds(), "s")
		if t.path == "/echo" {
			r.claim(t.wrong == nil, "%s: what came back is what was sent: %v", t.name, t.wrong)
		}
		if err := o.checkRecord(ctx, r, t, i*1001); err != nil {
			return err
		}
	}
	m, err := r.metrics(ctx)
	if err != nil {
		return err
	}
	r.note("body bytes of the gateway so far, by their way: %v", m.by("body_bytes_total", "via"))
	r.note("gateway before: %v\ngateway after:  %v", before, after)
	rise := after.Peak - before.RSS
	r.figure("peak of memory above that before", megabytes(rise), "MB")
	r.claim(rise < memoryBound, "less than 64 MB: %.1f", megabytes(rise))
	return nil
}

// run makes the transfer.
func (t *transfer) run(ctx context.Context, r *rig, size int64, start int, end time.Time) {
	c := &client{}
	c.target, c.tls = r.target(t.secure, t.path+"?id="+t.name)
	if t.err = c.connect(ctx); t.err != nil {
		return
	}
	defer c.close()
	over := func() error {
		if ctx.Err() != nil || !end.IsZero() && time.Now().After(end) {
			return errTimeOver
		}
		return nil
	}
	body := bench.PatternBody(start, size)
	began := time.Now()
	q := &call{Message: bench.Message{Method: icap.MethodReqmod, Preview: -1, Chunk: smallChunk}, Size: size, Start: start}
	if !t.secure {
		q.Message.Chunk = largeChunk
	}
	q.Send = reader(func(p []byte) (int, error) {
		if err := over(); err != nil {
			return 0, err
		}
		n, err := body.Read(p)
		t.sent += int64(n)
		return n, err
	})
	if t.path == "/echo" {
		q.Message.Method = icap.MethodRespmod
		q.Read = func(n int) error {
			t.got += int64(n)
			if t.rate > 0 {
				_ = pause(ctx, time.Until(began.Add(time.Duration(float64(t.got)/float64(t.rate)*float64(time.Second)))))
			}
			return over()
		}
	}
	t.err = c.do(q)
	t.took, t.wrong = time.Since(began), q.wrong
}

type reader func(p []byte) (int, error)

func (r reader) Read(p []byte) (int, error) { return r(p) }

// checkRecord compares what the server has got with what was sent.
func (o *slowOptions) checkRecord(ctx context.Context, r *rig, t *transfer, start int) error {
	var got *record
	for patience := time.Now().Add(readyPatience); got == nil && time.Now().Before(patience); { // a slow server reads on for a while
		list, err := t.server.records()
		if err != nil {
			return err
		}
		for i := range list {
			if list[i].ID == t.name {
				got = &list[i]
			}
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	if got == nil {
		r.claim(false, "%s: the server has seen the request", t.name)
		return nil
	}
	want := sha256.New()
	if _, err := io.Copy(want, bench.PatternBody(start, int64(got.Length))); err != nil {
		return err
	}
	whole := t.err != nil || int64(got.Length) == o.size
	r.claim(whole && int64(got.Length) <= t.sent && got.SHA == hex.EncodeToString(want.Sum(nil)),
		"%s: the %.1f MB that arrived at the server have the right SHA-256", t.name, float64(got.Length)/1e6)
	return nil
}

// fairness measures small requests alone, beside an upload that does not go through the gateway, and beside one that does.
func (o *slowOptions) fairness(ctx context.Context, r *rig, sink *server, pools string) error {
	r.section("requests of 1 KiB over 4 connections beside an upload of 10 GB, one event loop")
	if err := r.startGateway(ctx, gatewayConfig{Servers: []*server{sink}, Pool: pools, Loops: 1}); err != nil {
		return err
	}
	defer r.stopGateway()
	direct, err := bench.ParseTarget("icap://" + sink.address + "/sink")
	if err != nil {
		return err
	}
	through, _ := r.target(false, "/sink")
	for _, part := range []struct {
		name   string
		upload *bench.Target
	}{{"alone", nil}, {"beside an upload past the gateway", &direct}, {"beside an upload through the gateway", &through}} {
		if err := o.small(ctx, r, part.name, part.upload); err != nil {
			return err
		}
	}
	r.note("A round gives the upload %d KiB at most, then every other connection that is ready has its turn: gateway/loop.go, roundBytes.", roundBytes)
	return nil
}

// small measures small requests beside an upload, nil: none.
func (o *slowOptions) small(ctx context.Context, r *rig, name string, upload *bench.Target) (err error) {
	cfg := load.Config{Connections: 4, Duration: o.fair, Timeout: clientPatience}
	cfg.Target, cfg.TLS = r.target(true, "/sink")
	cfg.Mix, err = scenario.Single(bench.Message{Method: icap.MethodReqmod, Preview: -1}, smallSize).Compile(cfg.Target)
	if err != nil {
		return err
	}
	loading, stop := context.WithCancel(ctx)
	defer stop()
	var running sync.WaitGroup
	var sent int64
	if upload != nil {
		running.Go(func() {
			c := &client{target: *upload}
			if c.connect(loading) != nil {
				return
			}
			defer c.close()
			body := bench.PatternBody(0, bigUpload)
			_ = c.do(&call{Message: bench.Message{Method: icap.MethodReqmod, Preview: -1}, Size: bigUpload, Send: reader(func(p []byte) (int, error) {
				if loading.Err() != nil {
					return 0, errTimeOver
				}
				n, err := body.Read(p)
				sent += int64(n)
				return n, err
			})})
		})
	}
	result, err := load.Run(ctx, cfg)
	stop()
	running.Wait()
	if err != nil {
		return err
	}
	r.figure(name+": p50", result.Latency.Quantile(50).Seconds()*1000, "ms")
	r.figure(name+": p99", result.Latency.Quantile(99).Seconds()*1000, "ms")
	r.figure(name+": longest", result.Latency.Max().Seconds()*1000, "ms")
	r.figure(name+": rate", result.Rate(), "requests/s")
	if upload != nil {
		r.figure(name+": uploaded", float64(sent)/1e9/o.fair.Seconds(), "GB/s")
	}
	r.claim(result.Failed == 0, "%s: 0 of %d failed: %d", name, result.Requests+result.Failed, result.Failed)
	return nil
}
