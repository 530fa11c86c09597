package gateway

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"icapgate/gateway/discovery"
	"icapgate/health"
	"icapgate/icap"
	"icapgate/pool"
)

// The data path counts into loopStats, one per loop, whose fields only that loop writes: no lock and no contended
// cache line per message. They are added up when somebody asks.

var methodNames = [icap.NumMethods]string{icap.MethodOther: "other", icap.MethodOptions: "OPTIONS", icap.MethodReqmod: "REQMOD", icap.MethodRespmod: "RESPMOD"}

var failureNames = [...]string{failConnect: "connect", failNoAnswer: "no_answer", failVanished: "vanished", failFull: "full", failAnswer: "bad_answer", failTimeout: "timeout", failOverloaded: "overloaded", failStatus: "status", failSpill: "spill"}

// Directions and ways of body bytes, for body_bytes_total.
const (
	towardsServer = iota
	towardsClient
	directions
)

const (
	viaSplice   = iota // moved from socket to socket by the kernel
	viaDirect          // taken by the socket in the round in which they were read
	viaBuffered        // kept for replay, or until the socket took them
	ways
)

var (
	directionNames = [directions]string{"request", "response"}
	wayNames       = [ways]string{"splice", "direct", "buffered"}
)

// phase is one of the durations of a transaction.
type phase uint8

const (
	phaseRequest   phase = iota // from the request's heads to the end of the answer
	phaseQueue                  // waiting for a connection
	phaseConnect                // opening one
	phaseFirstByte              // from the request's heads to the head of the answer
	phases         = iota
)

var phaseNames = [phases]string{"request", "queue", "connect", "first_byte"}

// buckets are the upper bounds of the duration histograms.
var buckets = [...]time.Duration{
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second, 30 * time.Second, 60 * time.Second,
}

// histogram has one writer, its loop.
type histogram struct {
	counts [len(buckets) + 1]atomic.Uint64 // not cumulative
	sum    atomic.Int64                    // ns
}

func (h *histogram) observe(ns int64) {
	i := sort.Search(len(buckets), func(i int) bool { return ns <= int64(buckets[i]) })
	h.counts[i].Add(1)
	h.sum.Add(ns)
}

// loopStats is what one loop has counted.
type loopStats struct {
	rejects         [rejectCount]atomic.Uint64
	allowed         [rejectCount][allowedWays]atomic.Uint64
	replays         [len(failureNames)]atomic.Uint64
	clientCloses    [reasonCount]atomic.Uint64
	serverCloses    [reasonCount]atomic.Uint64
	corrected       atomic.Uint64
	unchangedEchoed atomic.Uint64
	spills          [spillResults]atomic.Uint64
	body            [directions][ways]atomic.Uint64

	// Only the loop adds to these maps, with mu held; it reads them without.
	mu       sync.Mutex
	requests map[requestSeries]*atomic.Uint64
	phases   map[string]*[phases]histogram // by pool

	left map[string]int64 // since when servers of requests are in no table; owned by the loop
}

// requestSeries are the labels of requests_total.
type requestSeries struct {
	listener *listener
	pool     string // "": answered by the gateway before it had one
	server   string // ip:port, "": the gateway itself
	method   icap.Method
	status   int
}

func newLoopStats() *loopStats {
	return &loopStats{requests: make(map[requestSeries]*atomic.Uint64), phases: make(map[string]*[phases]histogram), left: make(map[string]int64)}
}

// keepSeries is for how long a server that has gone has series, in ns: until everybody has read them.
const keepSeries = int64(time.Hour)

// forget drops the series of servers that are gone for good: DNS brings new addresses as long as the gateway runs.
func (st *loopStats) forget(t *table, now int64) {
	there := make(map[string]bool)
	for _, p := range t.pools {
		for _, s := range p.servers {
			there[s.Name] = true
			delete(st.left, s.Name)
		}
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	for series := range st.requests {
		if series.server == "" || there[series.server] {
			continue
		}
		switch since, known := st.left[series.server]; {
		case !known:
			st.left[series.server] = now
		case now-since >= keepSeries:
			delete(st.requests, series)
		}
	}
	maps.DeleteFunc(st.left, func(_ string, since int64) bool { return now-since >= keepSeries })
}

// count notes a finished transaction.
func (st *loopStats) count(t *transaction) {
	series := requestSeries{listener: t.s.listener, method: t.method, status: t.status}
	if t.server != nil {
		series.server = t.server.Name
	}
	if t.pool != nil {
		series.pool = t.pool.table.name
	}
	n := st.requests[series]
	if n == nil {
		n = new(atomic.Uint64)
		st.mu.Lock()
		st.requests[series] = n
		st.mu.Unlock()
	}
	n.Add(1)
	if t.pool == nil {
		return
	}
	h := st.phases[series.pool]
	if h == nil {
		h = new([phases]histogram)
		st.mu.Lock()
		st.phases[series.pool] = h
		st.mu.Unlock()
	}
	h[phaseRequest].observe(t.s.loop.now - t.began)
	if t.queueTime > 0 {
		h[phaseQueue].observe(t.queueTime)
	}
	if t.connectTime > 0 {
		h[phaseConnect].observe(t.connectTime)
	}
	if t.firstByte > 0 {
		h[phaseFirstByte].observe(t.firstByte - t.began)
	}
}

// gatewayMetrics is what is counted outside the loops, and the set that prints everything.
type gatewayMetrics struct {
	panics atomic.Uint64
	checks health.Stats

	reloads [2]atomic.Uint64 // good, refused
	set     *metrics.Set
}

// WriteMetrics writes all metrics in Prometheus text format.
func (g *Gateway) WriteMetrics(w io.Writer) {
	g.metrics.set.WritePrometheus(w)
	metrics.WriteProcessMetrics(w)
}

func (g *Gateway) registerMetrics() {
	g.metrics.set = metrics.NewSet()
	g.metrics.set.RegisterMetricsWriter(g.writeMetrics)
}

// metricsWriter prints families: one HELP-less TYPE line, then its series.
type metricsWriter struct{ b bytes.Buffer }

func (w *metricsWriter) family(name, kind string) {
	fmt.Fprintf(&w.b, "# TYPE icapgate_%s %s\n", name, kind)
}

// series prints one line; labels come in pairs.
func (w *metricsWriter) series(name string, value float64, labels ...string) {
	w.b.WriteString("icapgate_")
	w.b.WriteString(name)
	for i := 0; i < len(labels); i += 2 {
		sep := byte(',')
		if i == 0 {
			sep = '{'
		}
		w.b.WriteByte(sep)
		w.b.WriteString(labels[i])
		w.b.WriteByte('=')
		w.b.WriteString(strconv.Quote(labels[i+1]))
	}
	if len(labels) > 0 {
		w.b.WriteByte('}')
	}
	w.b.WriteByte(' ')
	w.b.Write(strconv.AppendFloat(nil, value, 'g', -1, 64))
	w.b.WriteByte('\n')
}

func (g *Gateway) writeMetrics(out io.Writer) {
	w := new(metricsWriter)
	g.writeRequests(w)
	g.writeLoops(w)
	g.writeListeners(w)
	g.writeLimits(w)
	g.writeServices(w)
	g.writeServers(w)
	w.family("build_info", "gauge")
	w.series("build_info", 1, "version", g.version, "go", runtime.Version())
	w.family("reloads_total", "counter")
	w.series("reloads_total", float64(g.metrics.reloads[0].Load()), "result", "ok")
	w.series("reloads_total", float64(g.metrics.reloads[1].Load()), "result", "failed")
	w.family("start_time_seconds", "gauge")
	w.series("start_time_seconds", float64(g.started.UnixMilli())/1000)
	_, _ = out.Write(w.b.Bytes())
}

// codeLabel keeps the set of codes closed.
func codeLabel(status int) string {
	if icap.StatusText(status) == "" {
		return "other"
	}
	return strconv.Itoa(status)
}

func (g *Gateway) writeRequests(w *metricsWriter) {
	type labels struct{ listener, pool, server, method, code string }
	requests := make(map[labels]uint64)
	durations := make(map[string]*[phases][len(buckets) + 2]float64) // by pool: counts, then the sum
	for _, l := range g.loops {
		l.stats.mu.Lock()
		for s, n := range l.stats.requests {
			requests[labels{s.listener.name, s.pool, s.server, methodNames[s.method], codeLabel(s.status)}] += n.Load()
		}
		for name, hs := range l.stats.phases {
			sums := durations[name]
			if sums == nil {
				sums = new([phases][len(buckets) + 2]float64)
				durations[name] = sums
			}
			for p := range hs {
				for i := range hs[p].counts {
					sums[p][i] += float64(hs[p].counts[i].Load())
				}
				sums[p][len(buckets)+1] += float64(hs[p].sum.Load()) / 1e9
			}
		}
		l.stats.mu.Unlock()
	}
	w.family("requests_total", "counter")
	keys := slices.SortedFunc(maps.Keys(requests), func(a, b labels) int {
		return cmp.Or(cmp.Compare(a.listener, b.listener), cmp.Compare(a.pool, b.pool), cmp.Compare(a.server, b.server),
			cmp.Compare(a.method, b.method), cmp.Compare(a.code, b.code))
	})
	for _, k := range keys {
		w.series("requests_total", float64(requests[k]), "listener", k.listener, "pool", k.pool, "server", k.server, "method", k.method, "code", k.code)
	}
	for p := range phaseNames {
		name := phaseNames[p] + "_duration_seconds"
		w.family(name, "histogram")
		for _, poolName := range slices.Sorted(maps.Keys(durations)) {
			sums := durations[poolName]
			total := 0.0
			for i, bound := range buckets {
				total += sums[p][i]
				w.series(name+"_bucket", total, "pool", poolName, "le", strconv.FormatFloat(bound.Seconds(), 'g', -1, 64))
			}
			total += sums[p][len(buckets)]
			w.series(name+"_bucket", total, "pool", poolName, "le", "+Inf")
			w.series(name+"_sum", sums[p][len(buckets)+1], "pool", poolName)
			w.series(name+"_count", total, "pool", poolName)
		}
	}
}

func (g *Gateway) writeLoops(w *metricsWriter) {
	sum := func(of func(st *loopStats) uint64) (n uint64) {
		for _, l := range g.loops {
			n += of(l.stats)
		}
		return n
	}
	w.family("rejects_total", "counter")
	for r := range rejectNames {
		w.series("rejects_total", float64(sum(func(st *loopStats) uint64 { return st.rejects[r].Load() })), "reason", rejectNames[r])
	}
	w.family("allowed_total", "counter")
	for _, r := range unjudged {
		for v := range allowedWayNames {
			w.series("allowed_total", float64(sum(func(st *loopStats) uint64 { return st.allowed[r][v].Load() })), "reason", r.String(), "by", allowedWayNames[v])
		}
	}
	w.family("replays_total", "counter")
	for f := range failureNames {
		w.series("replays_total", float64(sum(func(st *loopStats) uint64 { return st.replays[f].Load() })), "reason", failureNames[f])
	}
	w.family("closes_total", "counter")
	for r := range reasonNames {
		if n := sum(func(st *loopStats) uint64 { return st.clientCloses[r].Load() }); n > 0 {
			w.series("closes_total", float64(n), "side", "client", "reason", reasonNames[r])
		}
		if n := sum(func(st *loopStats) uint64 { return st.serverCloses[r].Load() }); n > 0 {
			w.series("closes_total", float64(n), "side", "server", "reason", reasonNames[r])
		}
	}
	w.family("body_bytes_total", "counter")
	for d := range directionNames {
		for v := range wayNames {
			w.series("body_bytes_total", float64(sum(func(st *loopStats) uint64 { return st.body[d][v].Load() })), "direction", directionNames[d], "via", wayNames[v])
		}
	}
	w.family("unchanged_echoed_total", "counter")
	w.series("unchanged_echoed_total", float64(sum(func(st *loopStats) uint64 { return st.unchangedEchoed.Load() })))
	w.family("corrected_offsets_total", "counter")
	w.series("corrected_offsets_total", float64(sum(func(st *loopStats) uint64 { return st.corrected.Load() })))
	w.family("spills_total", "counter")
	for r := range spillNames {
		w.series("spills_total", float64(sum(func(st *loopStats) uint64 { return st.spills[r].Load() })), "result", spillNames[r])
	}
	spilled := int64(0)
	if s := g.spills.Load(); s != nil {
		spilled = s.Used()
	}
	w.family("spill_bytes", "gauge")
	w.series("spill_bytes", float64(spilled))
	dropped := uint64(0)
	if g.access != nil {
		dropped = g.access.Dropped()
	}
	w.family("access_log_dropped_total", "counter")
	w.series("access_log_dropped_total", float64(dropped))
	w.family("panics_total", "counter")
	w.series("panics_total", float64(g.metrics.panics.Load()))
	w.family("loop_sessions", "gauge")
	for _, l := range g.loops {
		w.series("loop_sessions", float64(l.sessionCount.Load()), "loop", strconv.Itoa(l.index))
	}
}

func (g *Gateway) writeListeners(w *metricsWriter) {
	w.family("sessions", "gauge")
	for _, ls := range g.listeners {
		w.series("sessions", float64(ls.sessions.Load()), "listener", ls.name)
	}
	w.family("refused_total", "counter")
	for _, ls := range g.listeners {
		for r := range ls.refused {
			w.series("refused_total", float64(ls.refused[r].Load()), "listener", ls.name, "reason", refusal(r).String())
		}
	}
	w.family("accept_errors_total", "counter")
	for _, ls := range g.listeners {
		w.series("accept_errors_total", float64(ls.acceptErrors.Load()), "listener", ls.name)
	}
	w.family("client_connections", "gauge")
	for _, ls := range g.listeners {
		w.series("client_connections", float64(ls.clients.Load()), "listener", ls.name)
	}
	w.family("handshakes_total", "counter")
	for _, ls := range g.listeners {
		if !ls.secure() {
			continue
		}
		for r := range ls.handshakes.results {
			for v := range tlsVersionNames {
				n := ls.handshakes.results[r][v].Load()
				if n > 0 || handshakeResult(r) == handshakeOK && v > 0 {
					w.series("handshakes_total", float64(n), "listener", ls.name, "result", handshakeResult(r).String(), "version", tlsVersionNames[v])
				}
			}
		}
	}
}

func (g *Gateway) writeLimits(w *metricsWriter) {
	m := &g.limits
	w.family("max_connections", "gauge")
	w.series("max_connections", float64(m.maxClients.Load()))
	w.family("max_memory_bytes", "gauge")
	w.series("max_memory_bytes", float64(m.maxMemory.Load()))
	w.family("overloaded", "gauge")
	connections, memory := m.overloaded()
	for _, o := range []struct {
		reason refusal
		is     bool
	}{{refusedConnections, connections}, {refusedMemory, memory}} {
		value := 0.0
		if o.is {
			value = 1
		}
		w.series("overloaded", value, "reason", o.reason.String())
	}
}

func (g *Gateway) writeServices(w *metricsWriter) {
	var names []string // some differ by listener or server name only
	kinds, changes := make(map[string]int64), make(map[string]uint64)
	for _, s := range g.table.Load().services {
		if _, known := kinds[s.name]; !known {
			names = append(names, s.name)
		}
		kinds[s.name] = max(kinds[s.name], s.face.kinds.Load())
		changes[s.name] += s.face.changes.Load()
	}
	w.family("service_istags", "gauge")
	for _, name := range names {
		w.series("service_istags", float64(kinds[name]), "service", name)
	}
	w.family("service_istag_changes_total", "counter")
	for _, name := range names {
		w.series("service_istag_changes_total", float64(changes[name]), "service", name)
	}
}

func (g *Gateway) writeServers(w *metricsWriter) {
	t := g.table.Load()
	each := func(name, kind string, value func(s *pool.Server) float64) {
		w.family(name, kind)
		for _, p := range t.pools {
			for _, s := range p.servers {
				w.series(name, value(s), "pool", p.name, "server", s.Name)
			}
		}
	}
	each("attempts_total", "counter", func(s *pool.Server) float64 { return float64(s.Requests()) })
	each("server_up", "gauge", func(s *pool.Server) float64 {
		if s.Health.State() == health.Up {
			return 1
		}
		return 0
	})
	now := g.servers.clock()
	w.family("server_weight", "gauge")
	for _, p := range t.pools {
		for _, s := range p.servers {
			w.series("server_weight", float64(s.Share(now, int64(p.cfg.SlowStart)))/pool.Parts, "pool", p.name, "server", s.Name)
		}
	}
	each("server_ejected", "gauge", func(s *pool.Server) float64 {
		if s.Health.Ejected() {
			return 1
		}
		return 0
	})
	each("server_doubted", "gauge", func(s *pool.Server) float64 {
		if s.Health.Doubted() {
			return 1
		}
		return 0
	})
	w.family("ejections_total", "counter")
	for _, p := range t.pools {
		for _, s := range p.servers {
			for r, n := range p.ejector.Of(s.Health).Count {
				w.series("ejections_total", float64(n), "pool", p.name, "server", s.Name, "reason", health.EjectionReason(r).String())
			}
		}
	}
	each("server_in_flight", "gauge", func(s *pool.Server) float64 { return float64(s.InFlight()) })
	each("server_long_streams", "gauge", func(s *pool.Server) float64 { return float64(s.LongStreams()) })
	each("server_cap", "gauge", func(s *pool.Server) float64 { return float64(s.Cap()) })
	w.family("server_connections", "gauge")
	for _, p := range t.pools {
		for _, s := range p.servers {
			idle := s.Idle()
			w.series("server_connections", float64(idle), "pool", p.name, "server", s.Name, "state", "idle")
			w.series("server_connections", float64(max(0, s.Connections()-idle)), "pool", p.name, "server", s.Name, "state", "active")
		}
	}
	each("istag_changes_total", "counter", func(s *pool.Server) float64 { return float64(s.Health.ISTagChanges()) })
	writeQueues(w, t, now)
	w.family("connection_share", "gauge")
	for _, p := range t.pools {
		w.series("connection_share", float64(shown(g.servers.shareInForce(p))), "pool", p.name)
	}
	w.family("pool_tier", "gauge")
	for _, p := range t.pools {
		w.series("pool_tier", float64(p.tierOf(p.selection(anything, bitset{}))), "pool", p.name)
	}
	w.family("pool_panic", "gauge")
	for _, p := range t.pools {
		value := 0.0
		if p.panics() {
			value = 1
		}
		w.series("pool_panic", value, "pool", p.name)
	}
	w.family("checks_total", "counter")
	w.series("checks_total", float64(g.metrics.checks.OK.Load()), "result", "ok")
	w.series("checks_total", float64(g.metrics.checks.Failed.Load()), "result", "failed")
	w.series("checks_total", float64(g.metrics.checks.Skipped.Load()), "result", "skipped")
	probes := &g.metrics.checks.Probes
	w.family("probes_total", "counter")
	w.series("probes_total", float64(probes.OK.Load()), "result", "ok")
	w.series("probes_total", float64(probes.Failed.Load()), "result", "failed")
	w.series("probes_total", float64(probes.Full.Load()), "result", "full")
	w.series("probes_total", float64(probes.Skipped.Load()), "result", "skipped")
	g.writeNames(w)
}

func (g *Gateway) writeNames(w *metricsWriter) {
	names := g.servers.names
	w.family("dns_lookups_total", "counter")
	for r := range discovery.Result(discovery.Results) {
		w.series("dns_lookups_total", float64(names.Lookups(r)), "result", r.String())
	}
	w.family("dns_name_failing", "gauge")
	for _, s := range names.States() {
		failing := 0.0
		if s.Err != nil {
			failing = 1
		}
		w.series("dns_name_failing", failing, "name", s.Question.String())
	}
}

func writeQueues(w *metricsWriter, t *table, now int64) {
	seen := make([]pool.Waits, len(t.pools))
	w.family("queue_depth", "gauge")
	for i, p := range t.pools {
		seen[i] = p.queue.Waits()
		w.series("queue_depth", float64(p.queue.Depth()), "pool", p.name)
	}
	w.family("queue_oldest_seconds", "gauge")
	for i, p := range t.pools {
		w.series("queue_oldest_seconds", oldest(seen[i], now), "pool", p.name)
	}
	w.family("queue_waits_total", "counter")
	for i, p := range t.pools {
		for c := range pool.Cause(pool.Causes) {
			w.series("queue_waits_total", float64(seen[i].Ended[c]), "pool", p.name, "cause", c.String())
		}
	}
	w.family("queue_wait_seconds_total", "counter")
	for i, p := range t.pools {
		for c := range pool.Cause(pool.Causes) {
			w.series("queue_wait_seconds_total", float64(seen[i].Time[c])/1e9, "pool", p.name, "cause", c.String())
		}
	}
	w.family("queue_refused_total", "counter")
	for i, p := range t.pools {
		for r := range pool.Refusal(pool.Refusals) {
			w.series("queue_refused_total", float64(seen[i].Refused[r]), "pool", p.name, "reason", r.String())
		}
	}
}
