package result

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"icapgate/bench"
)

// sample returns a result in which everything is set.
func sample() *Result {
	r := New()
	r.Version, r.Label = "1.2.3", "left"
	r.Setup = Setup{
		Target: "icaps://gate.example:11344/reqmod", Scenario: "uploads.yaml", TLS: true, Connections: 8, PerConn: 100, Open: true, Arrivals: "poisson",
		Stages: []Stage{{0, 100}, {30, 100}, {120, 1000}}, Seed: 7, Machines: 1,
	}
	r.Started, r.Seconds = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC), 10
	r.Begun, r.Requests, r.WarmUp = 103, 100, Count{5, 1}
	r.Dials, r.Resumed, r.BytesSent, r.BytesReceived = 9, 3, 100<<10, 50
	r.Statuses = map[int]int64{200: 40, 204: 60}
	r.Modified, r.NewHeads = 2, 1
	r.AddServer("one", 70)
	r.AddServer("two", 30)
	r.AddError(bench.Status, Errors{Count: 2, Example: "503 Service overloaded"})
	r.AddError(bench.Closed, Errors{Count: 1, Example: "the peer closed the connection"})
	r.Entries = []Entry{{"small", "REQMOD", Count{90, 3}, NewHistogram()}, {"large", "RESPMOD", Count{10, 0}, NewHistogram()}}
	r.Faults["slow_body"] = &Fault{Count: 2, Outcomes: map[string]int64{"204": 1, "closed": 1}}
	for i := range 100 {
		d := time.Duration(i+1) * time.Millisecond
		for _, h := range []Histogram{r.Latency, r.Service, r.Phases.FirstByte, r.Late.Delay} {
			h.Record(d)
		}
	}
	r.Phases.Connect.Record(time.Millisecond)
	r.Late.Waited, r.Late.Generator, r.Late.Limit = 4, 2, 0.001
	for i := range 10 {
		p := NewPoint()
		p.Requests, p.Begun, p.InFlight = 10, 10, int64(i)
		p.Servers["one"] = 10
		p.Latency.Record(time.Millisecond)
		r.Timeline.Append(p)
	}
	r.Generator = Generator{CPUSeconds: 1.5, CPUs: 2, Limited: []string{"it used 95 % of its CPUs"}}
	r.Incidents = &Incidents{Header: "X-Incident-ID", Runs: []string{"ab"}, Sent: []Range{{"ab", 0, 107}}, Failed: []Range{{"ab", 5, 5}}}
	return r
}

func TestJSON(t *testing.T) {
	want := sample()
	path := filepath.Join(t.TempDir(), "result.json")
	var text bytes.Buffer
	if err := want.Write(&text); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	same := cmp.Comparer(func(a, b Histogram) bool {
		return a.Count() == b.Count() && a.Quantile(50) == b.Quantile(50) && a.Max() == b.Max()
	})
	if diff := cmp.Diff(want, got, same, cmpopts.EquateEmpty(),
		cmpopts.IgnoreUnexported(Timeline{})); diff != "" {
		t.Error(diff)
	}
	if _, err := Read(filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Error("a missing file is a result")
	}
}

func TestParseRefuses(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	f(``, "JSON")
	f(`{"format":1}`, "format 1")
	f(`{"format":2,"seconds":-1}`, "negative")
	f(`{"format":2,"errors":{"status":null}}`, "missing")
	f(`{"format":2,"faults":{"x":null}}`, "missing")
}

func TestTimelineHalves(t *testing.T) {
	var tl Timeline
	const seconds = 4*maxPoints + 5
	for i := range seconds {
		p := NewPoint()
		p.Requests, p.InFlight = 1, int64(i)
		p.Latency.Record(time.Millisecond)
		p.Servers["one"]++
		tl.Append(p)
	}
	if tl.Interval != 8 || len(tl.Points) != (seconds+7)/8 {
		t.Errorf("%d points of %d seconds", len(tl.Points), tl.Interval)
	}
	total := int64(0)
	for i, p := range tl.Points {
		total += p.Requests
		if last := int64(min(8*i+7, seconds-1)); p.InFlight != last || p.Latency.Count() != p.Requests || p.Servers["one"] != p.Requests {
			t.Fatalf("point %d: %+v, want in flight %d", i, p, last)
		}
	}
	if total != seconds {
		t.Errorf("%d requests", total)
	}
}

func TestTimelineExtends(t *testing.T) {
	var tl Timeline
	rest := NewPoint()
	rest.Requests, rest.InFlight = 3, 0
	tl.Extend(rest)
	second := NewPoint()
	second.Requests, second.InFlight = 10, 7
	tl.Append(second)
	tl.Extend(rest)
	if len(tl.Points) != 2 || tl.Points[0].Requests != 3 || tl.Points[1].Requests != 13 || tl.Points[1].InFlight != 0 {
		t.Errorf("%+v", tl)
	}
}

func TestPrint(t *testing.T) {
	var out bytes.Buffer
	sample().Print(&out)
	for _, want := range []string{
		"uploads.yaml to icaps://gate.example:11344/reqmod, 8 connections of 100 requests each, poisson arrivals at 100/s for 30s, 100/s to 1000/s in 2m0s",
		"requests    100 in 10.00 s, 3 failed, over 9 connections made, 3 with a resumed TLS session",
		"warm-up     5 requests before that, 1 failed",
		"from the planned time", "send behind plan", "late        4 requests began over 1ms late because every connection was busy, 2 because of the load generator",
		"answers     200: 40, 204: 60, block pages or modified: 2, echoes with other heads: 1",
		"server      one: 70 (70.0 %)", "error       status: 2, such as: 503 Service overloaded", "faulty      slow_body: 2 clients; 204: 1, closed: 1",
		"CAUTION     the load generator may have been the limit: it used 95 % of its CPUs",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if line := sample().Line(); !strings.HasPrefix(line, "10 s: 100 requests, 10/s, 3 failed, p50 50") {
		t.Error(line)
	}
}

func TestTime(t *testing.T) {
	f := func(d time.Duration, want string) {
		t.Helper()
		if got := Time(d); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	f(0, "0s")
	f(312*time.Microsecond, "312µs")
	f(4268*time.Microsecond, "4.27ms")
	f(1052*time.Millisecond, "1.05s")
}

func TestAddServerIsBounded(t *testing.T) {
	r := New()
	for i := range MaxServers + 10 {
		r.AddServer(fmt.Sprint(i), 1)
	}
	if len(r.Servers) != MaxServers+1 || r.Servers[OtherServers] != 10 {
		t.Errorf("%d servers, %d requests of others", len(r.Servers), r.Servers[OtherServers])
	}
}

func FuzzParse(f *testing.F) {
	var text bytes.Buffer
	if err := sample().Write(&text); err != nil {
		f.Fatal(err)
	}
	f.Add(text.Bytes())
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{"format":2,"timeline":{"interval_seconds":1,"points":[{}]}}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		r, err := Parse(content)
		if err != nil {
			return
		}
		r.Print(&bytes.Buffer{})
		if err := r.Write(&bytes.Buffer{}); err != nil {
			t.Error(err)
		}
	})
}
