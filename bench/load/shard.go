package load

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"icapgate/bench"
	"icapgate/bench/result"
	"icapgate/bench/scenario"
	"icapgate/icap"
)

// shard collects the figures of some workers; there are as many as CPUs, so that workers seldom wait for each other.
type shard struct {
	incidents bool // requests have ids

	begun    atomic.Int64 // requests, those of the warm-up included
	measured atomic.Int64 // of these, after the warm-up

	mu      sync.Mutex // guards the rest
	ended   int64      // requests, those of the warm-up included
	figures result.Result
	entries []result.Entry // of the scenario, for figures
	servers map[string]*server
	second  result.Point // the current one
	sent    numbers      // of the requests that had an incident id
	failed  numbers      // of these, those that were not answered as they should be
	end     time.Time    // of the last request
}

// server belongs to its shard.
type server struct {
	requests int64
	second   int64 // of these, in the current one
}

// manyEntries is how many entries of a scenario have exact histograms.
const manyEntries = 32

func newShards(entries []scenario.Entry, incidents bool) []*shard {
	shards := make([]*shard, runtime.GOMAXPROCS(0))
	newHistogram := result.NewHistogram
	if len(entries) > manyEntries { // 172 KB each would add up
		newHistogram = result.NewCoarse
	}
	for i := range shards {
		shards[i] = &shard{incidents: incidents, figures: *result.New(), servers: map[string]*server{}, second: result.NewPoint()}
		for _, e := range entries {
			own := result.Entry{Name: e.Name, Method: e.Method.String(), Latency: newHistogram()}
			shards[i].entries = append(shards[i].entries, own)
		}
	}
	return shards
}

// serverOf returns the counter of the server that calls itself name. It needs s.mu.
func (s *shard) serverOf(name []byte) *server {
	if c := s.servers[string(name)]; c != nil {
		return c
	}
	key := bench.Printable(name)
	if len(s.servers) >= result.MaxServers {
		key = result.OtherServers
	}
	c := s.servers[key]
	if c == nil {
		c = &server{}
		s.servers[key] = c
	}
	return c
}

// recordConnection counts a connection that was made.
func (s *shard) recordConnection(c *bench.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.figures.Dials++
	s.figures.Phases.Connect.Record(c.ConnectTime)
	if c.HandshakeTime > 0 {
		s.figures.Phases.Handshake.Record(c.HandshakeTime)
	}
	if c.Resumed() {
		s.figures.Resumed++
	}
}

// times are those of one request. Each is zero if it did not come to that.
type times struct {
	begun     time.Time
	sent      time.Time // there is a connection, and the first byte goes out
	continued time.Time
	head      time.Time // of the final answer
	done      time.Time
}

// record counts a request that w has finished, with err if it was not answered as it should be.
func (s *shard) record(j job, w *worker, t *times, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended++
	s.recordIncident(w.req, err != nil)
	if errors.Is(err, errInterrupted) {
		return
	}
	s.end = t.done
	if j.warm {
		count(&s.figures.WarmUp, err)
		return
	}
	f := &s.figures
	e := &s.entries[w.req.Entry]
	f.Begun++
	if delay := t.begun.Sub(j.planned); w.load.cfg.open() {
		f.Late.Delay.Record(delay)
		if delay > lateLimit {
			s.second.Late++
			if j.blocked {
				f.Late.Waited++
			} else {
				f.Late.Generator++
			}
		}
	}
	count(&e.Count, err)
	if err != nil {
		s.addError(err)
		return
	}
	f.Requests++
	s.second.Requests++
	f.Statuses[w.status]++
	sent := w.req.Content.Size()
	f.BytesSent += sent
	f.BytesReceived += w.received
	s.second.BytesSent += sent
	s.second.BytesReceived += w.received
	if w.modified {
		f.Modified++
	}
	if w.newHeads {
		f.NewHeads++
	}
	if len(w.server) > 0 {
		c := s.serverOf(w.server)
		c.requests++
		c.second++
	}
	latency := t.done.Sub(j.planned)
	f.Latency.Record(latency)
	e.Latency.Record(latency)
	s.second.Latency.Record(latency)
	f.Service.Record(t.done.Sub(t.sent))
	f.Phases.FirstByte.Record(t.head.Sub(t.sent))
	if !t.continued.IsZero() {
		f.Phases.Continue.Record(t.continued.Sub(t.sent))
	}
}

func count(c *result.Count, err error) {
	if err != nil {
		c.Failed++
	} else {
		c.Requests++
	}
}

// recordDialError counts a connection that could not be made before the run.
func (s *shard) recordDialError(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addError(err)
}

// addError needs s.mu.
func (s *shard) addError(err error) {
	kind := bench.Input
	var e *bench.Error
	if errors.As(err, &e) {
		kind, err = e.Kind, e.Err
	}
	s.figures.AddError(kind, result.Errors{Count: 1, Example: bench.Printable([]byte(err.Error()))}) // a certificate's names may be in it
	s.second.Failed++
	s.second.Errors[kind]++
}

// recordIncident needs s.mu.
func (s *shard) recordIncident(req *scenario.Request, failed bool) {
	if !s.incidents || req.Method == icap.MethodOptions { // it has none
		return
	}
	s.sent.add(req.N)
	if failed {
		s.failed.add(req.N)
	}
}

// recordFault counts the request of a faulty client.
func (s *shard) recordFault(req *scenario.Request, warm bool, outcome string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recordIncident(req, true)
	if warm {
		return
	}
	kind := string(req.Fault.Kind)
	f := s.figures.Faults[kind]
	if f == nil {
		f = &result.Fault{Outcomes: map[string]int64{}}
		s.figures.Faults[kind] = f
	}
	f.Count++
	f.Outcomes[outcome]++
}

// takeSecond returns the current second and begins the next one. spare is an empty point.
func (s *shard) takeSecond(spare result.Point) result.Point {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.second
	s.second = spare
	for name, c := range s.servers {
		if c.second > 0 {
			p.Servers[name] = c.second
			c.second = 0
		}
	}
	p.InFlight = s.begun.Load() - s.ended
	return p
}

// addTo adds the figures to r, but for those of the entries.
func (s *shard) addTo(r *result.Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Add(&s.figures)
	for name, c := range s.servers {
		r.AddServer(name, c.requests)
	}
	r.Seconds = max(r.Seconds, s.end.Sub(r.Started).Seconds())
}

// addEntriesTo adds the figures of the entries to r. There may be many, and workers wait for that long.
func (s *shard) addEntriesTo(r *result.Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Add(&result.Result{Entries: s.entries})
}
