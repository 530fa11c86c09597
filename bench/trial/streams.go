package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"icapgate/bench"
	"icapgate/icap"
)

var streams = &trial{
	name:  "streams",
	about: "downloads without an end, more than there are connections to servers: what becomes of short requests, without and with long_streams",
	help: `Two servers with 4 connections each for the gateway, and 10 downloads (RESPMOD) that never end. Half of them the servers judge when they have all of it; the others do not take
a 204, and come back as they go. Who is thrown out begins again after 2 s, as radio players do. Beside them clients send REQMODs of 1 KiB, each one every 100 ms. Three times, each with a gateway of its own:

    none      as the gateway is by default: no limit
    reject    long_streams: {after: 1s, share: 0.5}
    allow     the same with on_limit: allow, and downloads that all take a 204. Such a one is over for the gateway, and does not come again

Claimed: with none, all connections are held by streams, and no short request that begins then is answered by a server. With the others none fails, none takes longer than 3 s (a stream has
its connection for 'after' at least, so that is what a short request may have to wait; the rest is to spare), and no server has more than 2 long streams. With reject, each stream that is thrown
out hears 413 or, if its answer has begun, is cut, and is counted. With allow, as many pass as are too many: 6.

    go run ./bench/trial streams
    go run ./bench/trial streams --length 30s
`,
	limit: 2 * time.Minute,
	flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		o := &streamsOptions{}
		f.DurationVar(&o.length, "length", 10*time.Second, "of the load with reject, and with allow")
		f.IntVar(&o.clients, "clients", 6, "clients with short requests")
		return o.run
	},
}

type streamsOptions struct {
	length  time.Duration
	clients int
}

const (
	streamCount  = 10
	streamCap    = 4                      // connections to each of two servers
	streamShare  = streamCap / 2          // of them for long streams
	streamAfter  = time.Second            // until a stream is long
	streamPause  = 2 * time.Second        // until one that was thrown out begins again
	streamPeriod = 50 * time.Millisecond  // between two pieces of a stream
	shortPeriod  = 100 * time.Millisecond // between two short requests of a client
	shortPatient = time.Second            // queue.timeout without limits
	shortLongest = streamAfter + 2*time.Second
)

func (o *streamsOptions) run(ctx context.Context, r *rig) error {
	if o.length < 4*time.Second || o.clients < 1 {
		return errors.New("--length has to be 4s at least, and --clients above 0")
	}
	servers, err := r.startServers(ctx, 2, serverConfig{MaxConnections: streamCap + 1}) // one is the gateway's reserve
	if err != nil {
		return err
	}
	const bounded = "    long_streams: {after: 1s, share: 0.5}\n"
	for _, v := range []*streaming{
		{name: "none", length: 4 * time.Second, pool: fmt.Sprintf("    queue: {timeout: %v}\n", shortPatient)},
		{name: "reject", length: o.length, pool: bounded},
		{name: "allow", length: o.length, pool: bounded, allow: true},
	} {
		v.shorts = o.clients
		if err := v.try(ctx, r, servers); err != nil {
			return fmt.Errorf("%s: %w", v.name, err)
		}
	}
	return nil
}

// streaming is one of the loads.
type streaming struct {
	name   string
	length time.Duration
	pool   string // YAML of the gateway's pool
	allow  bool   // streams pass
	shorts int    // clients with short requests

	mu      sync.Mutex
	ended   map[string]int // streams, by how
	answers map[int]int    // short requests by their status, 0: none
	took    []time.Duration
	most    int // long streams of a server when looked at
	counted metrics
}

// try has streams and short requests at the same time.
func (v *streaming) try(ctx context.Context, r *rig, servers []*server) error {
	v.ended, v.answers = map[string]int{}, map[int]int{}
	c := gatewayConfig{Servers: servers, Pool: v.pool}
	if v.allow {
		c.Further = "services: [{on_limit: allow}]\n"
	}
	if err := r.startGateway(ctx, c); err != nil {
		return err
	}
	defer r.stopGateway()
	r.section("%s: %d streams on %d connections, %v", v.name, streamCount, 2*streamCap, v.length)
	loading, end := context.WithCancel(ctx)
	defer end()
	var clients sync.WaitGroup
	defer clients.Wait()
	for i := range streamCount {
		clients.Go(func() { v.stream(loading, r, i%2 == 0, v.allow || i%4 < 2) })
	}
	if err := r.awaitInFlight(ctx, 2*streamCap); err != nil { // they hold all that there is
		end()
		return err
	}
	tellWaits := r.pulse(ctx)
	for i := range v.shorts {
		clients.Go(func() { v.short(loading, r, i%2 == 0) })
	}
	for over := time.Now().Add(v.length); time.Now().Before(over); {
		if err := v.look(ctx, r); err != nil {
			end()
			return err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			end()
			return err
		}
	}
	err := v.look(ctx, r) // before the clients go away
	end()
	clients.Wait()
	tellWaits()
	if err == nil {
		v.judge(r)
	}
	return err
}

// look notes what the gateway says of long streams.
func (v *streaming) look(ctx context.Context, r *rig) (err error) {
	if v.counted, err = r.metrics(ctx); err != nil {
		return err
	}
	for _, n := range v.counted.by("server_long_streams", "server") {
		v.most = max(v.most, int(n))
	}
	return nil
}

// errAnswered ends a stream whose client has its answer.
var errAnswered = errors.New("it has its answer")

// stream is a client with a download that has no end, again and again, and takes a 204 or its own message as it goes.
func (v *streaming) stream(ctx context.Context, r *rig, secure, takes204 bool) {
	c := &client{}
	c.target, c.tls = r.target(secure, "/respmod?id=stream")
	defer c.close()
	for ctx.Err() == nil {
		if c.connect(ctx) != nil {
			v.noteEnd("no connection")
			return
		}
		var answered atomic.Bool
		q := &streamCall{answered: &answered}
		q.Message, q.Size, q.Trickle = bench.Message{Method: icap.MethodRespmod, Preview: -1, Chunk: 1 << 10, No204: !takes204}, 1<<40, true
		body := bench.PatternBody(0, q.Size)
		q.Send = reader(func(p []byte) (int, error) {
			switch {
			case pause(ctx, streamPeriod) != nil:
				return 0, errTimeOver
			case answered.Load():
				return 0, errAnswered
			}
			return body.Read(p[:min(len(p), 1<<10)])
		})
		err := q.do(c)
		c.close()
		switch {
		case ctx.Err() != nil:
			return
		case q.status == 0:
			v.noteEnd(fmt.Sprintf("without an answer (%v)", err))
		case q.status == 200 && err != nil:
			v.noteEnd("cut")
		default:
			v.noteEnd(fmt.Sprint(q.status))
		}
		if q.status == 204 || pause(ctx, streamPause) != nil {
			return
		}
	}
}

// streamCall is the call of a stream: it tells the writer when there is an answer that is not its own message.
type streamCall struct {
	call
	answered *atomic.Bool
}

// Head implements bench.Receiver.
func (q *streamCall) Head(h *icap.Response, head []byte) error {
	err := q.call.Head(h, head)
	q.answered.Store(q.status != 0 && q.status != 200)
	return err
}

func (q *streamCall) do(c *client) error {
	req, err := q.build(c.target)
	if err != nil {
		return err
	}
	return c.conn.Do(req, q)
}

func (v *streaming) noteEnd(how string) {
	v.mu.Lock()
	v.ended[how]++
	v.mu.Unlock()
}

// short is a client with short requests.
func (v *streaming) short(ctx context.Context, r *rig, secure bool) {
	c := &client{}
	c.target, c.tls = r.target(secure, "/reqmod?id=short")
	defer c.close()
	for pause(ctx, shortPeriod) == nil {
		if c.connect(ctx) != nil {
			return
		}
		q := &call{Message: bench.Message{Method: icap.MethodReqmod, Preview: -1}, Size: 1 << 10}
		began := time.Now()
		err := c.do(q)
		if errors.Is(err, errStale) {
			continue
		}
		if ctx.Err() != nil { // the streams are over, and so may be what it waited for
			return
		}
		v.mu.Lock()
		v.answers[q.status]++
		v.took = append(v.took, time.Since(began))
		v.mu.Unlock()
		if err != nil {
			c.close()
		}
	}
}

// judge says what has come of it.
func (v *streaming) judge(r *rig) {
	slices.Sort(v.took)
	at := func(share float64) time.Duration {
		if len(v.took) == 0 {
			return 0
		}
		return v.took[min(int(share*float64(len(v.took))), len(v.took)-1)]
	}
	all, good, streams := len(v.took), v.answers[200]+v.answers[204], 0
	for _, n := range v.ended {
		streams += n
	}
	var text strings.Builder
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	io.WriteString(t, "short requests\tanswered\trefused (503)\tmedian\tp99\tlongest\n")
	fmt.Fprintf(t, "%d\t%d\t%d\t%s\t%s\t%s\n", all, good, v.answers[503], shown(at(0.5)), shown(at(0.99)), shown(at(1)))
	t.Flush()
	r.note("%s", strings.TrimRight(text.String(), "\n"))
	r.note("streams that were ended: %v; long ones on a server: %d at most", v.ended, v.most)
	r.store(v.name+": short requests answered", float64(good), "")
	r.store(v.name+": short requests in all", float64(all), "")
	r.store(v.name+": p99 of short requests", at(0.99).Seconds()*1000, "ms")

	if v.name == "none" {
		r.claim(all > 0 && v.answers[503] == all, "none: all %d short requests were refused, as streams hold all connections, %d were", all, v.answers[503])
		r.claim(v.ended["503"] == streams, "none: no stream was ended but those that had no connection, %d of %d", streams-v.ended["503"], streams)
		return
	}
	r.claim(all > 0 && good == all, "%s: all %d short requests were answered, %d failed", v.name, all, all-good)
	r.claim(at(1) <= shortLongest, "%s: the longest took %s, at most %s", v.name, shown(at(1)), shown(shortLongest))
	r.claim(v.most == streamShare, "%s: a server had up to %d long streams, its share is %d", v.name, v.most, streamShare)
	rejects, passed := int(v.counted.sum("rejects_total", `reason="long_streams"`)), int(v.counted.sum("allowed_total", `reason="long_streams"`, `by="204"`))
	if v.allow {
		r.claim(passed == streamCount-2*streamShare && streams == passed && v.ended["204"] == passed, "allow: %d streams passed, %d were told so by a 204, want %d",
			passed, v.ended["204"], streamCount-2*streamShare)
		r.claim(rejects == 0, "allow: none was rejected, %d were", rejects)
		return
	}
	heard := v.ended["413"] + v.ended["cut"]
	r.claim(v.ended["413"] > 0 && v.ended["cut"] > 0 && heard == streams, "reject: all %d streams that were ended heard 413 or were cut, %d did", streams, heard)
	r.claim(rejects > 0 && streams-rejects >= 0 && streams-rejects <= streamCount, "reject: %d were counted when last looked at, %d had ended a moment later", rejects, streams)
}
