package result

import (
	"strings"
	"testing"
	"time"

	"icapgate/bench"
)

func TestCompare(t *testing.T) {
	a, b := sample(), other(time.Hour)
	b.Setup.Target, b.Setup.Connections = "icap://b/reqmod", 16
	b.Requests, b.Failed = 200, 0
	b.Errors = map[bench.Kind]*Errors{bench.Echo: {Count: 1}}
	b.Servers = map[string]int64{"one": 100, "three": 100}
	for _, h := range []Histogram{b.Latency, b.Service, b.Phases.FirstByte, b.Late.Delay} {
		h.Reset()
		for i := range 200 {
			h.Record(time.Duration(i+1) * time.Millisecond / 4)
		}
	}
	b.Phases.Connect.Reset()
	found := map[string]Difference{}
	for _, d := range Compare(a, b) {
		if _, twice := found[d.Group+"/"+d.Name]; twice {
			t.Errorf("%s/%s is there twice", d.Group, d.Name)
		}
		found[d.Group+"/"+d.Name] = d
	}
	f := func(name, x, y, ratio string, sense int) {
		t.Helper()
		d, ok := found[name]
		if !ok || d.A != x || d.B != y || d.Ratio() != ratio || d.Sense != sense {
			t.Errorf("%s: %+v %s", name, d, d.Ratio())
		}
	}
	f("setup/target", "icaps://gate.example:11344/reqmod", "icap://b/reqmod", "-", 0)
	f("setup/connections", "8", "16", "-", 0)
	f("requests/answered", "10 /s", "20 /s", "2.000", 1)
	f("requests/failed", "2.91 %", "0 %", "0.000", -1)
	f("requests/errors: status", "2", "0", "0.000", -1)
	f("requests/errors: echo", "0", "1", "-", -1)
	f("latency/p50", "50ms", "25ms", "0.500", -1)
	f("latency/max", "100ms", "50ms", "0.500", -1)
	f("first byte/p99", "99ms", "49.5ms", "0.500", -1)
	f("connect/p50", "1ms", "-", "-", -1)
	f("servers/one", "70 %", "50 %", "0.714", 0)
	f("servers/three", "0 %", "50 %", "-", 0)
	f("servers/fairness (Jain's index)", "0.8621", "1", "1.160", 1)
	f("small (REQMOD)/answered", "9 /s", "9 /s", "1.000", 1)
	for name, want := range map[string]int{"latency/p50": 1, "requests/answered": 1, "requests/errors: echo": -1, "requests/errors: status": 1, "servers/one": 0, "connect/p50": 0, "small (REQMOD)/answered": 0} {
		if got := found[name].Better(); got != want {
			t.Errorf("%s: better %d, want %d", name, got, want)
		}
	}
	for _, same := range []string{"setup/scenario", "setup/load", "100 Continue/p50", "requests/errors: timeout"} {
		if d, ok := found[same]; ok {
			t.Errorf("%s is there: %+v", same, d)
		}
	}

	var out strings.Builder
	PrintComparison(&out, a, b)
	for _, want := range []string{
		"A: left, 2026-05-04 03:02:01, 100 requests, 3 failed\nB: right, 2026-05-04 04:02:01, 200 requests, 0 failed\n",
		"CAUTION     A: the load generator may have been the limit: it used 95 % of its CPUs",
		"  connections                A: 8\n                             B: 16\n",
		"latency                                   A              B       B/A\n",
		"  p50                                  50ms           25ms     0.500\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if len(Compare(New(), New())) > 0 {
		t.Error("two empty results differ")
	}
}
