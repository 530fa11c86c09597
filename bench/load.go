package bench

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"icapgate/icap"
)

// LoadConfig says what load is made. With a Rate its loop is open: requests are planned at equal distances, each is sent by a connection
// that is free, and its latency counts from the planned time, so that a target that falls behind is seen to. Without one its loop is closed:
// each connection sends its next request when the answer to the last one is complete.
type LoadConfig struct {
	Target  Target
	TLS     *tls.Config // of TLSOptions.Config
	Message Message
	Size    int64 // of the body in bytes

	Connections int
	Rate        float64       // requests per second that are planned, 0: a closed loop
	Requests    int64         // that are sent in all; 0: until Duration is over
	Duration    time.Duration // after which no request begins; 0: until Requests are done
	PerConn     int           // requests after which a connection is closed and a new one made; 0: no limit
	Timeout     time.Duration // for a connection, and for every wait for bytes

	ServerHeader string // header of the answers by which servers are told apart, "": X-Server

	// Progress, if set, is called about once a second with the figures so far.
	Progress func(*Result)
}

const (
	// dialPause is how long a worker waits after a failed connect, so that a target that is gone is not hammered.
	dialPause = 50 * time.Millisecond
	// dialsAtATime bounds the connects at the start, so that they don't overflow the target's backlog.
	dialsAtATime = 128
)

func (cfg *LoadConfig) check() error {
	switch {
	case cfg.Connections < 1:
		return errors.New("at least one connection is needed")
	case cfg.Requests <= 0 && cfg.Duration <= 0:
		return errors.New("a number of requests or a duration is needed")
	case cfg.Rate < 0:
		return errors.New("the rate cannot be negative")
	case cfg.Size < 0:
		return errors.New("the size of a body cannot be negative")
	case cfg.Message.Profile == Zscaler:
		return errors.New("a load has raw bodies: use the profile plain or squid")
	case cfg.Timeout <= 0:
		return errors.New("the timeout must be above 0")
	}
	return nil
}

// Load makes the load and returns what came of it. All connections are made before the clock runs; without any there is no
// load. When ctx ends no further request begins. Its error says that the configuration makes no sense; what fails later is
// counted in the result.
func Load(ctx context.Context, cfg LoadConfig) (*Result, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.ServerHeader = strings.ToLower(cmp.Or(cfg.ServerHeader, "X-Server"))
	l := &load{cfg: &cfg, shards: newShards()}
	workers := make([]*worker, cfg.Connections)
	for i := range workers {
		w, err := newWorker(l, i)
		if err != nil {
			return nil, err
		}
		workers[i] = w
	}
	pattern() // made before the clock runs
	if !connectAll(ctx, workers) {
		result := l.result()
		result.summarize()
		return result, nil
	}

	cpu := cpuTime()
	l.start = time.Now()
	if cfg.Duration > 0 {
		l.end = l.start.Add(cfg.Duration)
	}
	var running sync.WaitGroup
	for _, w := range workers {
		running.Go(func() { w.run(ctx) })
	}
	stopProgress := l.reportProgress()
	running.Wait()
	stopProgress()

	result := l.result()
	result.summarize()
	result.CPUSeconds = (cpuTime() - cpu).Seconds()
	return result, nil
}

// connectAll lets every worker connect and says whether one could. The others are counted as errors, and will try again.
func connectAll(ctx context.Context, workers []*worker) bool {
	var dialing sync.WaitGroup
	var connected atomic.Bool
	slots := make(chan struct{}, dialsAtATime)
	for _, w := range workers {
		slots <- struct{}{}
		dialing.Go(func() {
			switch err := w.connect(ctx); {
			case err == nil:
				connected.Store(true)
			case !errors.Is(err, context.Canceled):
				w.shard.recordError(err)
			}
			<-slots
		})
	}
	dialing.Wait()
	return connected.Load()
}

// load is a running Load.
type load struct {
	cfg    *LoadConfig
	start  time.Time
	end    time.Time    // after which no request begins; zero: never
	begun  atomic.Int64 // requests that workers have asked for
	shards []*shard
}

// next waits until another request may begin and returns the time from which it counts; false: there is none.
func (l *load) next(ctx context.Context) (start time.Time, ok bool) {
	n := l.begun.Add(1)
	if l.cfg.Requests > 0 && n > l.cfg.Requests {
		return start, false
	}
	start = time.Now()
	if l.cfg.Rate > 0 {
		planned := l.start.Add(time.Duration(float64(n-1) / l.cfg.Rate * float64(time.Second)))
		if d := planned.Sub(start); d > 0 && (l.end.IsZero() || planned.Before(l.end)) {
			pause(ctx, d)
		}
		start = planned
	}
	return start, ctx.Err() == nil && (l.end.IsZero() || start.Before(l.end))
}

func (l *load) reportProgress() (stop func()) {
	if l.cfg.Progress == nil {
		return func() {}
	}
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				l.cfg.Progress(l.result())
			case <-done:
				return
			}
		}
	})
	return func() {
		close(done)
		running.Wait()
	}
}

// result merges the shards.
func (l *load) result() *Result {
	r := newResult(l.cfg)
	if r.Started = l.start; !l.start.IsZero() {
		r.Seconds = time.Since(l.start).Seconds()
	}
	for _, s := range l.shards {
		s.addTo(r)
	}
	return r
}

// worker is one connection of the load, replaced when it ends. It is the Receiver of its requests.
type worker struct {
	load  *load
	shard *shard
	index int
	count int // requests so far
	conn  *Conn
	used  int // requests on conn

	req  *Request
	body patternReader // belongs to the writer while a request is written

	// Of the answer that is being read.
	status   int
	server   *serverCount // nil: unnamed
	checker  patternChecker
	received int64 // bytes of the body
	modified bool  // a block page, not an echo
	newHeads bool  // an echo with other encapsulated heads
	refused  error // the status is no success
}

func newWorker(l *load, index int) (*worker, error) {
	w := &worker{load: l, index: index, shard: l.shards[index%len(l.shards)]}
	var err error
	if l.cfg.Size > 0 && l.cfg.Message.Method != icap.MethodOptions {
		w.req, err = l.cfg.Message.Build(l.cfg.Target, &w.body, l.cfg.Size)
	} else {
		w.req, err = l.cfg.Message.Build(l.cfg.Target, nil, 0)
	}
	return w, err
}

// run sends requests until there are enough.
func (w *worker) run(ctx context.Context) {
	for {
		start, ok := w.load.next(ctx)
		if !ok {
			break
		}
		err := w.connect(ctx)
		if err == nil {
			err = w.exchange()
		}
		if err == nil {
			w.shard.record(time.Since(start), w)
		} else if !errors.Is(err, context.Canceled) { // a connect that a signal cut short is no error
			w.shard.recordError(err)
		}
		if w.conn == nil {
			pause(ctx, dialPause)
			continue
		}
		if err != nil || !w.conn.Reusable() || w.used == w.load.cfg.PerConn {
			w.conn.Close()
			w.conn = nil
		}
	}
	if w.conn != nil {
		w.conn.Close()
	}
}

func (w *worker) connect(ctx context.Context) (err error) {
	if w.conn != nil {
		return nil
	}
	cfg := w.load.cfg
	w.conn, err = Dial(ctx, cfg.Target.Address, cfg.TLS, cfg.Timeout)
	if err == nil {
		w.used = 0
		w.shard.recordConnection()
	}
	return err
}

// exchange does one request and says what was wrong with its answer.
func (w *worker) exchange() error {
	start := patternStart(w.index, w.count)
	w.count++
	w.used++
	w.body = patternReader{pos: start, left: w.load.cfg.Size}
	w.checker = patternChecker{pos: start}
	w.received, w.modified, w.newHeads, w.refused = 0, false, false, nil
	if err := w.conn.Do(w.req, w); err != nil {
		return err
	}
	if w.echoed() && w.received != w.bodySize() {
		return fault(Echo, "%d of %d bytes came back", w.received, w.bodySize())
	}
	return w.refused
}

// echoed says whether the answer has to have the body of the request.
func (w *worker) echoed() bool {
	return w.status == 200 && !w.modified && w.req.Method != icap.MethodOptions
}

func (w *worker) bodySize() int64 {
	if w.req.Body == nil {
		return 0
	}
	return w.req.Size
}

func (w *worker) Head(r *icap.Response, _ []byte) error {
	if r.Status == 100 {
		return nil
	}
	w.status = r.Status
	if r.Status != 200 && r.Status != 204 {
		w.refused = fault(Status, "%d %s", r.Status, printable(r.Reason))
	}
	w.server = w.shard.serverOf(r.Get(w.load.cfg.ServerHeader))
	return nil
}

func (w *worker) Blocks(_ *icap.Encapsulated, blocks []byte, corrected bool) error {
	if corrected {
		return fault(Framing, "Encapsulated does not fit the encapsulated heads")
	}
	if w.req.Method == icap.MethodReqmod && bytes.HasPrefix(blocks, []byte("HTTP/")) {
		w.modified = true
	} else if w.req.Method != icap.MethodOptions {
		w.newHeads = !echoedHeads(w.req, blocks)
	}
	return nil
}

func (w *worker) Data(p []byte) error {
	w.received += int64(len(p))
	if !w.echoed() {
		return nil
	}
	if w.received > w.bodySize() {
		return fault(Echo, "more than the %d bytes of the body came back", w.bodySize())
	}
	if offset, ok := w.checker.check(p); !ok {
		return fault(Echo, "byte %d of the body differs", offset)
	}
	return nil
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
