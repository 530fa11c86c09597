package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Limits of the latency histogram, in microseconds; slower requests count as the slowest.
const (
	minLatency  = 1
	maxLatency  = 10 * 60 * 1e6
	precision   = 3    // significant digits
	maxServers  = 1000 // that are told apart
	otherServer = "others"
)

// Result is what a load has shown. Its JSON form is what `icapbench report` is to read.
type Result struct {
	Target      string    `json:"target"`
	Method      string    `json:"method"`
	Size        int64     `json:"size"`    // bytes of a body
	Chunk       int64     `json:"chunk"`   // bytes
	Preview     int64     `json:"preview"` // bytes, -1: none
	Allow204    bool      `json:"allow_204"`
	TLS         bool      `json:"tls"`
	PerConn     int       `json:"requests_per_connection"` // 0: no limit
	Connections int       `json:"connections"`
	Planned     float64   `json:"planned_rate"` // requests per second, 0: a closed loop
	Started     time.Time `json:"started"`
	Seconds     float64   `json:"seconds"`

	Requests      int64            `json:"requests"` // that were answered as they should be
	Failed        int64            `json:"failed"`
	Dials         int64            `json:"dials"`          // connections made
	BytesSent     int64            `json:"bytes_sent"`     // of bodies, of the requests above
	BytesReceived int64            `json:"bytes_received"` // of bodies
	Statuses      map[int]int64    `json:"statuses"`       // of the requests above
	Modified      int64            `json:"modified"`       // of these, block pages
	NewHeads      int64            `json:"new_heads"`      // of these, echoes with other encapsulated heads
	Servers       map[string]int64 `json:"servers"`        // by the header that names them; empty: no answer had it
	Errors        map[Kind]*Errors `json:"errors"`
	Latency       Latency          `json:"latency"`
	CPUSeconds    float64          `json:"cpu_seconds"` // of this process

	histogram *hdrhistogram.Histogram
}

// Errors are those of one kind.
type Errors struct {
	Count   int64  `json:"count"`
	Example string `json:"example"` // the first
}

// Latency is the time from the first byte of a request (its connect, if it needed a new connection; the planned time, if there is a rate) to the
// last byte of its answer.
// Times are in microseconds.
type Latency struct {
	Mean      float64 `json:"mean_us"`
	P50       int64   `json:"p50_us"`
	P90       int64   `json:"p90_us"`
	P99       int64   `json:"p99_us"`
	P999      int64   `json:"p999_us"`
	Max       int64   `json:"max_us"`
	Histogram string  `json:"histogram,omitempty"` // HDR histogram, V2, compressed, base64; mergeable
}

func newResult(cfg *LoadConfig) *Result {
	chunk := cfg.Message.Chunk
	if chunk <= 0 {
		chunk = defaultChunk
	}
	return &Result{
		Target:      cfg.Target.URI,
		Method:      cfg.Message.Method.String(),
		Size:        cfg.Size,
		Chunk:       chunk,
		Preview:     cfg.Message.Preview,
		Allow204:    !cfg.Message.No204,
		TLS:         cfg.TLS != nil,
		PerConn:     cfg.PerConn,
		Connections: cfg.Connections,
		Planned:     cfg.Rate,
		Statuses:    map[int]int64{},
		Servers:     map[string]int64{},
		Errors:      map[Kind]*Errors{},
		histogram:   newHistogram(),
	}
}

func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(minLatency, maxLatency, precision)
}

// shard collects the figures of some workers; there are as many as CPUs, so that workers seldom wait for each other.
type shard struct {
	mu        sync.Mutex
	histogram *hdrhistogram.Histogram
	requests  int64
	dials     int64
	sent      int64
	received  int64
	modified  int64
	newHeads  int64
	statuses  [600]int64
	servers   map[string]*serverCount
	errors    map[Kind]*Errors
}

// serverCount belongs to its shard.
type serverCount struct{ requests int64 }

func newShards() []*shard {
	shards := make([]*shard, runtime.GOMAXPROCS(0))
	for i := range shards {
		shards[i] = &shard{histogram: newHistogram(), servers: map[string]*serverCount{}, errors: map[Kind]*Errors{}}
	}
	return shards
}

// serverOf returns the counter of the server that calls itself name, nil if it has no name.
func (s *shard) serverOf(name []byte) *serverCount {
	if len(name) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.servers[string(name)]; c != nil {
		return c
	}
	key := printable(name)
	if len(s.servers) >= maxServers {
		key = otherServer
	}
	c := s.servers[key]
	if c == nil {
		c = &serverCount{}
		s.servers[key] = c
	}
	return c
}

// record counts a request that w has finished.
func (s *shard) record(latency time.Duration, w *worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests++
	s.statuses[w.status]++
	s.sent += w.bodySize()
	s.received += w.received
	if w.modified {
		s.modified++
	}
	if w.newHeads {
		s.newHeads++
	}
	if w.server != nil {
		w.server.requests++
	}
	s.histogram.RecordValue(min(latency.Microseconds(), maxLatency))
}

func (s *shard) recordConnection() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dials++
}

func (s *shard) recordError(err error) {
	e := err.(*Error) // a worker has no others
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.errors[e.Kind] == nil {
		s.errors[e.Kind] = &Errors{Example: e.Err.Error()}
	}
	s.errors[e.Kind].Count++
}

// addTo adds the figures to r.
func (s *shard) addTo(r *Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Requests += s.requests
	r.Dials += s.dials
	r.BytesSent += s.sent
	r.BytesReceived += s.received
	r.Modified += s.modified
	r.NewHeads += s.newHeads
	for code, n := range s.statuses {
		if n > 0 {
			r.Statuses[code] += n
		}
	}
	for name, c := range s.servers {
		r.Servers[name] += c.requests
	}
	for kind, e := range s.errors {
		r.Failed += e.Count
		if r.Errors[kind] == nil {
			r.Errors[kind] = &Errors{Example: e.Example}
		}
		r.Errors[kind].Count += e.Count
	}
	r.histogram.Merge(s.histogram)
}

// summarize computes Latency from the histogram.
func (r *Result) summarize() {
	h := r.histogram
	r.Latency = Latency{
		Mean: h.Mean(),
		P50:  h.ValueAtQuantile(50),
		P90:  h.ValueAtQuantile(90),
		P99:  h.ValueAtQuantile(99),
		P999: h.ValueAtQuantile(99.9),
		Max:  h.Max(),
	}
	if encoded, err := h.Encode(hdrhistogram.V2CompressedEncodingCookieBase); err == nil {
		r.Latency.Histogram = string(encoded)
	}
}

// Rate returns answered requests per second.
func (r *Result) Rate() float64 { return r.perSecond(float64(r.Requests)) }

func (r *Result) perSecond(n float64) float64 {
	if r.Seconds == 0 { // no load was made
		return 0
	}
	return n / r.Seconds
}

// Line returns the figures so far in one line.
func (r *Result) Line() string {
	return fmt.Sprintf("%.0f s: %d requests, %.0f/s, %d failed, p50 %s, p99 %s", r.Seconds, r.Requests, r.Rate(), r.Failed,
		us(r.histogram.ValueAtQuantile(50)), us(r.histogram.ValueAtQuantile(99)))
}

// Print writes the result for people.
func (r *Result) Print(w io.Writer) {
	fmt.Fprintf(w, "%s %s, %d connections, %d bytes per body\n", r.Method, r.Target, r.Connections, r.Size)
	fmt.Fprintf(w, "requests    %d in %.2f s, %d failed, over %d connections made\n", r.Requests, r.Seconds, r.Failed, r.Dials)
	if r.Requests > 0 {
		r.printAnswered(w)
	}
	for _, kind := range slices.Sorted(maps.Keys(r.Errors)) {
		e := r.Errors[kind]
		fmt.Fprintf(w, "error       %s: %d, such as: %s\n", kind, e.Count, e.Example)
	}
}

// printAnswered writes what is known of requests that were answered as they should be.
func (r *Result) printAnswered(w io.Writer) {
	fmt.Fprintf(w, "throughput  %.0f requests/s, %.1f MB/s sent, %.1f MB/s received\n", r.Rate(),
		r.perSecond(float64(r.BytesSent)/1e6), r.perSecond(float64(r.BytesReceived)/1e6))
	l := &r.Latency
	fmt.Fprintf(w, "latency     mean %s, p50 %s, p90 %s, p99 %s, p99.9 %s, max %s\n", us(int64(l.Mean)), us(l.P50), us(l.P90), us(l.P99), us(l.P999), us(l.Max))
	fmt.Fprintf(w, "own CPU     %.2f s, %.1f us per request\n", r.CPUSeconds, r.CPUSeconds*1e6/float64(r.Requests))
	var statuses []string
	for _, code := range slices.Sorted(maps.Keys(r.Statuses)) {
		statuses = append(statuses, fmt.Sprintf("%d: %d", code, r.Statuses[code]))
	}
	if r.Modified > 0 {
		statuses = append(statuses, fmt.Sprintf("block pages: %d", r.Modified))
	}
	if r.NewHeads > 0 {
		statuses = append(statuses, fmt.Sprintf("echoes with other heads: %d", r.NewHeads))
	}
	fmt.Fprintf(w, "answers     %s\n", strings.Join(statuses, ", "))
	for _, name := range slices.Sorted(maps.Keys(r.Servers)) {
		fmt.Fprintf(w, "server      %s: %d (%.1f %%)\n", name, r.Servers[name], 100*float64(r.Servers[name])/float64(r.Requests))
	}
}

// WriteJSON writes the result for programs.
func (r *Result) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// us formats microseconds.
func us(n int64) string {
	return time.Duration(n * int64(time.Microsecond)).String()
}

// cpuTime returns the CPU time that this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
