package gateway

import (
	"bytes"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"icapgate/bench/dlpstub"
)

// samples are the series of one look at /metrics, by name with labels and without the prefix.
type samples struct {
	values   map[string]float64
	families map[string]string // type by name
	order    []string
}

var (
	sampleLine = regexp.MustCompile(`^([a-z_][a-z0-9_]*)(\{(?:[A-Za-z_]+="(?:[^"\\\n]|\\["\\n])*",? ?)*\})? (-?[0-9.e+-]+|\+Inf|NaN)$`)
	familyLine = regexp.MustCompile(`^# TYPE (icapgate_[a-z_]+) (counter|gauge|histogram)$`)
	labelPair  = regexp.MustCompile(`([a-z_]+)="((?:[^"\\]|\\.)*)"`)
)

// metrics reads and parses /metrics. Each family of ours has its type before its series, and no series is there twice.
func (o *operator) metrics() *samples {
	o.t.Helper()
	status, body := o.get("/metrics")
	if status != 200 {
		o.t.Fatalf("GET /metrics: %d", status)
	}
	m := &samples{values: make(map[string]float64), families: make(map[string]string)}
	for line := range strings.Lines(body) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "#") {
			f := familyLine.FindStringSubmatch(line)
			if f != nil && m.families[f[1]] != "" {
				o.t.Errorf("the type of %s is there twice", f[1])
			}
			if f != nil {
				m.families[f[1]] = f[2]
			}
			continue
		}
		s := sampleLine.FindStringSubmatch(line)
		if s == nil {
			o.t.Errorf("not a sample: %q", line)
			continue
		}
		name, ours := strings.CutPrefix(s[1]+s[2], "icapgate_")
		if !ours {
			continue
		}
		if _, ok := m.values[name]; ok {
			o.t.Errorf("%s is there twice", name)
		}
		if m.family(name) == "" {
			o.t.Errorf("%s comes without or before its type", name)
		}
		m.values[name], _ = strconv.ParseFloat(s[3], 64)
		m.order = append(m.order, name)
	}
	return m
}

// family is the type of the family that a series belongs to.
func (m *samples) family(series string) string {
	name, _, _ := strings.Cut(series, "{")
	if kind := m.families["icapgate_"+name]; kind != "" {
		return kind
	}
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if base, ok := strings.CutSuffix(name, suffix); ok && m.families["icapgate_"+base] == "histogram" {
			return "histogram"
		}
	}
	return ""
}

func (m *samples) expect(t *testing.T, series string, want float64) {
	t.Helper()
	if got, ok := m.values[series]; got != want || !ok {
		t.Errorf("%s is %v (there: %v), want %v", series, got, ok, want)
	}
}

// labels takes a series apart.
func labels(series string) (name string, pairs map[string]string) {
	name, rest, _ := strings.Cut(series, "{")
	pairs = make(map[string]string)
	for _, p := range labelPair.FindAllStringSubmatch(rest, -1) {
		pairs[p[1]] = p[2]
	}
	return name, pairs
}

// The counters agree with what was sent, over both listeners and with every kind of answer.
func TestMetricsAgree(t *testing.T) {
	_, a := startStub(t, dlpstub.Config{Name: "a"})
	g := startGateway(t, []string{a}, quiet, "services: [{path: /r, pool: dlp}, {path: /only, methods: [RESPMOD], pool: dlp}]").ready()
	o := g.operator()
	const secret = "secret-path?user=alice"
	c, plain := g.dial(0), g.dial(1)
	exchange := func(c *client, n int, request string, status int) {
		t.Helper()
		for range n {
			c.send(text(request))
			if h := c.status(status); strings.Contains(h, "-body=") && !strings.Contains(h, "null-body") {
				c.expect(text(S + chunks))
			}
		}
	}
	exchange(c, 6, v05Allow, 204)
	exchange(plain, 3, PL+"Allow: 204¶X-Authenticated-User: alice¶"+resBody+chunks, 204)
	exchange(plain, 2, v08, 200)
	exchange(c, 4, OL+"¶", 200)
	exchange(c, 1, strings.ReplaceAll(v04, "/r", "/"+secret), 404)
	exchange(c, 2, strings.ReplaceAll(v05, "/r", "/only"), 405)
	exchange(plain, 1, "EVIL icap://gw/r ICAP/1.0¶Host: gw¶Encapsulated: null-body=0¶¶", 501)
	bad := g.dial(1)
	bad.send(text(RL + "Encapsulated: nonsense¶¶"))
	bad.status(400)
	bad.closed()
	old := g.dial(1)
	old.send(text("REQMOD icap://gw/r ICAP/2.0¶¶"))
	old.status(505)
	old.closed()
	plain.Close()
	eventually(t, "the plain sessions have ended", func() bool { return g.listeners[1].sessions.Load() == 0 })
	g.settle()

	m := o.metrics()
	series := func(listener, pool, server, method, code string) string {
		return fmt.Sprintf(`requests_total{listener=%q,pool=%q,server=%q,method=%q,code=%q}`, listener, pool, server, method, code)
	}
	for name, want := range map[string]float64{
		series("icaps", "dlp", a, "REQMOD", "204"):   6,
		series("icap", "dlp", a, "RESPMOD", "204"):   3,
		series("icap", "dlp", a, "RESPMOD", "200"):   2,
		series("icaps", "dlp", a, "OPTIONS", "200"):  4,
		series("icaps", "", "", "REQMOD", "404"):     1,
		series("icaps", "", "", "REQMOD", "405"):     2,
		series("icap", "", "", "other", "501"):       1,
		`rejects_total{reason="no_service"}`:         1,
		`rejects_total{reason="method_not_allowed"}`: 2,
		`rejects_total{reason="unknown_method"}`:     1,
		`rejects_total{reason="bad_request"}`:        1,
		`rejects_total{reason="version"}`:            1,
		`rejects_total{reason="no_server"}`:          0,

		fmt.Sprintf(`attempts_total{pool="dlp",server=%q}`, a):   15,
		fmt.Sprintf(`server_up{pool="dlp",server=%q}`, a):        1,
		fmt.Sprintf(`server_in_flight{pool="dlp",server=%q}`, a): 0,

		`request_duration_seconds_count{pool="dlp"}`:    15,
		`first_byte_duration_seconds_count{pool="dlp"}`: 15,
		`queue_duration_seconds_count{pool="dlp"}`:      0,
		`queue_depth{pool="dlp"}`:                       0,

		`sessions{listener="icaps"}`:                                              1,
		`sessions{listener="icap"}`:                                               0,
		`handshakes_total{listener="icaps",result="ok",version="1.3"}`:            1,
		`handshakes_total{listener="icaps",result="ok",version="1.2"}`:            0,
		`refused_total{listener="icap",reason="allow"}`:                           0,
		`closes_total{side="client",reason="bad_request"}`:                        2,
		`closes_total{side="client",reason="client_closed"}`:                      1,
		`checks_total{result="failed"}`:                                           0,
		`panics_total`:                                                            0,
		`body_bytes_total{direction="response",via="buffered"}`:                   0,
		fmt.Sprintf(`build_info{version="",go=%q}`, runtime.Version()):            1,
		fmt.Sprintf(`server_cap{pool="dlp",server=%q}`, a):                        0,
		`replays_total{reason="connect"}`:                                         0,
		fmt.Sprintf(`server_connections{pool="dlp",server=%q,state="active"}`, a): 0,
	} {
		m.expect(t, name, want)
	}
	idle := m.values[fmt.Sprintf(`server_connections{pool="dlp",server=%q,state="idle"}`, a)]
	if n := m.values[`connect_duration_seconds_count{pool="dlp"}`]; n < 1 || n != idle {
		t.Errorf("%v connects took time, %v connections are open", n, idle)
	}
	if n := m.values[`checks_total{result="ok"}`]; n < 1 {
		t.Errorf("%v checks went well, want 1 at least", n)
	}
	const payload, framed = 5, 5 + 10 // of each body: "hello", and with its size lines and ends
	requests := m.values[`body_bytes_total{direction="request",via="direct"}`] + m.values[`body_bytes_total{direction="request",via="buffered"}`]
	if least, most := 11*payload, 11*framed; requests < float64(least) || requests > float64(most) {
		t.Errorf("%v body bytes of requests, want %d to %d", requests, least, most)
	}
	if n := m.values[`body_bytes_total{direction="response",via="direct"}`]; n < 2*payload || n > 2*framed {
		t.Errorf("%v body bytes of responses, want %d to %d", n, 2*payload, 2*framed)
	}
	if _, body := o.get("/metrics"); strings.Contains(body, "secret") || strings.Contains(body, "alice") || strings.Contains(body, "EVIL") ||
		strings.Contains(body, c.LocalAddr().String()) || strings.Contains(body, "gw") {
		t.Error("a label tells of a client, a user, a path or a method that is not ours")
	}
}

// Every name that the interface promises is there, and labels have the promised names and values from closed sets.
func TestMetricsNames(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	o := g.operator()
	for i, answer := range []string{page, strings.Replace(noContent, "204", "499", 1)} {
		c := g.dial(i)
		c.send(text(strings.Replace(v05, "Host:", "Allow: 204¶Host:", 1)))
		s := f.next(t)
		s.head()
		s.expect(text(P + chunks))
		s.send(text(answer))
		c.head()
		s.release()
		c.Close()
	}
	eventually(t, "the sessions have ended", func() bool { return g.Sessions() == 0 })
	g.settle()
	m := o.metrics()

	words := func(list ...string) []string { return list }
	var free []string // not from a set
	le := words()
	for _, b := range buckets {
		le = append(le, strconv.FormatFloat(b.Seconds(), 'g', -1, 64))
	}
	le = append(le, "+Inf")
	listeners, pools, servers := words("icaps", "icap"), words("dlp", ""), words(f.address, "")
	promised := map[string]map[string][]string{
		"requests_total": {"listener": listeners, "pool": pools, "server": servers,
			"method": words("REQMOD", "RESPMOD", "OPTIONS", "other"), "code": words("200", "other")},
		"sessions":           {"listener": listeners},
		"handshakes_total":   {"listener": words("icaps"), "result": words("ok", "timeout", "closed", "failed", "evicted"), "version": words("none", "1.2", "1.3")},
		"attempts_total":     {"pool": pools, "server": servers},
		"replays_total":      {"reason": failureNames[:]},
		"rejects_total":      {"reason": rejectNames[:]},
		"closes_total":       {"side": words("client", "server"), "reason": reasonNames[:]},
		"server_up":          {"pool": pools, "server": servers},
		"server_in_flight":   {"pool": pools, "server": servers},
		"server_connections": {"pool": pools, "server": servers, "state": words("active", "idle")},
		"checks_total":       {"result": words("ok", "failed", "skipped")},
		"queue_depth":        {"pool": pools},
		"body_bytes_total":   {"direction": words("request", "response"), "via": words("splice", "direct", "buffered")},
		"build_info":         {"version": free, "go": free},
	}
	for _, phase := range []string{"request", "queue", "connect", "first_byte"} {
		name := phase + "_duration_seconds"
		promised[name+"_bucket"] = map[string][]string{"pool": pools, "le": le}
		promised[name+"_sum"] = map[string][]string{"pool": pools}
		promised[name+"_count"] = map[string][]string{"pool": pools}
	}
	seen := make(map[string]bool)
	for series, value := range m.values {
		name, pairs := labels(series)
		seen[name] = true
		if value < 0 {
			t.Errorf("%s is %v", series, value)
		}
		if kind := m.family(series); (kind == "counter") != strings.HasSuffix(name, "_total") {
			t.Errorf("%s is a %s", name, kind)
		}
		sets, ok := promised[name]
		if !ok {
			continue // more than is promised
		}
		if len(pairs) != len(sets) {
			t.Errorf("%s has the labels %v, want %v", series, pairs, sets)
		}
		for label, value := range pairs {
			set, ok := sets[label]
			if !ok || set != nil && !slices.Contains(set, value) {
				t.Errorf("%s: label %s=%q is not in %q", series, label, value, set)
			}
		}
	}
	for name := range promised {
		if !seen[name] {
			t.Errorf("%s is not there", name)
		}
	}
	for _, name := range []string{"go_goroutines", "go_memstats_heap_inuse_bytes", "process_cpu_seconds_total"} {
		if _, body := o.get("/metrics"); !strings.Contains(body, "\n"+name+" ") {
			t.Errorf("%s of the Go runtime is not there", name)
		}
	}
}

// Histograms are classic: buckets by upper bound in order, cumulative, the last one of them the count.
func TestMetricsHistograms(t *testing.T) {
	_, a := startStub(t, dlpstub.Config{})
	g := startGateway(t, []string{a}, quiet, "").ready()
	o := g.operator()
	split(g.dial(1), 20)
	// What no test can wait for: durations at and beyond the bounds.
	l := g.loops[0]
	done := make(chan struct{})
	l.post(func() {
		h := l.stats.phases["dlp"]
		if h == nil {
			h = new([phases]histogram)
			l.stats.mu.Lock()
			l.stats.phases["dlp"] = h
			l.stats.mu.Unlock()
		}
		for _, b := range buckets {
			h[phaseQueue].observe(int64(b))     // in its bucket
			h[phaseQueue].observe(int64(b) + 1) // in the next one
		}
		h[phaseQueue].observe(0)
		close(done)
	})
	<-done
	m := o.metrics()
	for p := range phaseNames {
		name := phaseNames[p] + "_duration_seconds"
		var bounds, counts []float64
		for _, series := range m.order {
			if n, pairs := labels(series); n == name+"_bucket" {
				bound, err := strconv.ParseFloat(pairs["le"], 64)
				if err != nil {
					t.Fatalf("%s: %v", series, err)
				}
				bounds, counts = append(bounds, bound), append(counts, m.values[series])
			}
		}
		if len(bounds) != len(buckets)+1 || !slices.IsSorted(bounds) || !slices.IsSorted(counts) {
			t.Errorf("%s: bounds %v with counts %v, want %d in order", name, bounds, counts, len(buckets)+1)
			continue
		}
		count, sum := m.values[name+`_count{pool="dlp"}`], m.values[name+`_sum{pool="dlp"}`]
		if count != counts[len(counts)-1] {
			t.Errorf("%s: count %v, last bucket %v", name, count, counts[len(counts)-1])
		}
		least := 0.0 // what the buckets say about the sum
		for i := range counts[1:] {
			least += (counts[i+1] - counts[i]) * bounds[i]
		}
		if sum < least || (sum > 0) != (count > 0) {
			t.Errorf("%s: sum %v of %v, the buckets say at least %v", name, sum, count, least)
		}
		if phase(p) == phaseQueue {
			for i := range buckets {
				if want := float64(2*i + 2); counts[i] != want {
					t.Errorf("%s: %v up to %v s, want %v", name, counts[i], bounds[i], want)
				}
			}
		}
	}
	m.expect(t, `request_duration_seconds_count{pool="dlp"}`, 20)
}

// Requests that are counted on several loops add up.
func TestMetricsAddUpLoops(t *testing.T) {
	_, a := startStub(t, dlpstub.Config{})
	g := startGateway(t, []string{a}, quiet, "").ready()
	o := g.operator()
	for range 2 * len(g.loops) { // each goes to the loop with the fewest
		split(g.dial(1), 5)
	}
	g.settle()
	m := o.metrics()
	total := 0.0
	for i := range g.loops {
		n := m.values[fmt.Sprintf("loop_sessions{loop=%q}", strconv.Itoa(i))]
		if n != 2 {
			t.Errorf("%v sessions on loop %d, want 2", n, i)
		}
		total += n
	}
	m.expect(t, `sessions{listener="icap"}`, total)
	m.expect(t, fmt.Sprintf(`requests_total{listener="icap",pool="dlp",server=%q,method="REQMOD",code="204"}`, a), float64(10*len(g.loops)))
	m.expect(t, `request_duration_seconds_count{pool="dlp"}`, float64(10*len(g.loops)))
	var direct bytes.Buffer
	g.WriteMetrics(&direct)
	if !strings.Contains(direct.String(), "icapgate_requests_total{") {
		t.Error("WriteMetrics writes something else")
	}
}
