package result

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// sampleCapacity returns a search in which everything is set.
func sampleCapacity(t testing.TB) *Capacity {
	t.Helper()
	slo, err := ParseConditions("p99<50ms,errors<0.01%")
	if err != nil {
		t.Fatal(err)
	}
	held, failed, limited := sample(), sample(), sample()
	return &Capacity{
		Format: CapacityFormat, Version: "1.2.3",
		Setup: CapacitySetup{
			Target: "icaps://gate.example:11344/reqmod", Scenario: "uploads.yaml", TLS: true, Connections: 64, Arrivals: "poisson", SLO: slo,
			From: 10, To: 10_000, Precision: 0.02, Trial: 20, Settle: 4,
		},
		Started: time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC), Seconds: 80,
		Trials: []Trial{
			{Rate: 320, Rough: true, Verdict: Held, Result: held, Notes: []string{"100 requests are few for a p99"}},
			{Rate: 640, Verdict: Failed, Cut: true, Broken: []Broken{{"p99<50ms", "99.1ms"}}, Result: failed},
			{Rate: 1280, Verdict: Limited, Broken: []Broken{{"p99<50ms", "2.1s"}}, Result: limited},
		},
		Finding: Finding{Outcome: Found, Knee: 400, Low: 396, High: 404.5, Confidence: 0.95, Width: 0.01, Held: 320, Failed: 640},
	}
}

func TestCapacityFile(t *testing.T) {
	want := sampleCapacity(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "capacity.json")
	for range 2 { // the second time it is replaced
		if err := want.Save(path); err != nil {
			t.Fatal(err)
		}
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("%v, %v", files, err)
	}
	got, err := ReadCapacity(path)
	if err != nil {
		t.Fatal(err)
	}
	same := cmp.Comparer(func(a, b Histogram) bool { return a.Count() == b.Count() && a.Max() == b.Max() })
	if diff := cmp.Diff(want, got, same, cmpopts.EquateEmpty(), cmpopts.EquateComparable(Condition{}), cmpopts.IgnoreUnexported(Timeline{})); diff != "" {
		t.Error(diff)
	}
	if err := want.Save(filepath.Join(dir, "missing", "capacity.json")); err == nil {
		t.Error("saved in a folder that is missing")
	}
	if _, err := ReadCapacity(dir); err == nil {
		t.Error("a folder is a search")
	}
}

func TestParseCapacityRefuses(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		if _, err := ParseCapacity([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	f(``, "JSON")
	f(`{"format":2}`, "no capacity search")
	f(`{"capacity_format":1,"seconds":-1}`, "a time of -1 s")
	f(`{"capacity_format":1,"setup":{"trial_seconds":1e300}}`, "a time of 1e+300 s")
	f(`{"capacity_format":1,"setup":{"slo":["p99"]}}`, "p99")
	f(`{"capacity_format":1,"trials":[{"rate":0}]}`, "trial 1: its rate is 0")
	f(`{"capacity_format":1,"trials":[{"rate":1e308}]}`, "trial 1: its rate is 1e+308")
	f(`{"capacity_format":1,"trials":[{"rate":1,"verdict":"good"}]}`, "allowed: held, failed, limited")
	f(`{"capacity_format":1,"trials":[{"rate":1,"verdict":"held"}]}`, "result is missing")
	f(`{"capacity_format":1,"trials":[{"rate":1,"verdict":"held","result":{"format":1}}]}`, "format 1")
	f(`{"capacity_format":1,"trials":[{"rate":1,"verdict":"held","result":{"format":2,"seconds":-1}}]}`, "negative")
}

func TestPrintCapacity(t *testing.T) {
	c := sampleCapacity(t)
	f := func(outcome Outcome, wants ...string) {
		t.Helper()
		c.Finding.Outcome = outcome
		var out bytes.Buffer
		c.Print(&out)
		for _, want := range wants {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %q in\n%s", want, out.String())
			}
		}
	}
	f(Found, "uploads.yaml to icaps://gate.example:11344/reqmod, 64 connections, poisson arrivals", "SLO         p99<50ms, errors<0.01%",
		"capacity    400/s, between 396/s and 404.5/s with 95 % confidence\n", "6.25/s for each of 64 connections",
		"the highest rate that held is 320/s, the lowest that failed is 640/s", "broke first at 640/s: p99<50ms: 99.1ms, ended early after 10.0 s\n",
		"100 requests are few", "limited")
	f(Imprecise, "400/s, between 396/s and 404.5/s with 95 % confidence; time was up before")
	f(AtLeast, "at least 320/s, the highest rate")
	f(Below, "below 640/s, the lowest rate")
	f(GeneratorLimit, "at least 396/s; the load generator was the limit")
	f(Unfinished, "at least 320/s, not known further: time was up")
	c.Finding = Finding{}
	c.Trials = nil
	f(Unfinished, "capacity    not known: time was up")

	if line := sampleCapacity(t).Trials[1].Line(); !strings.HasPrefix(line, "640/s failed: 103 requests in 10.0 s, 3 failed, p50 50ms") ||
		!strings.Contains(line, "p99<50ms: 99.1ms") {
		t.Error(line)
	}
}

func TestFigure(t *testing.T) {
	for x, want := range map[float64]string{0.123456: "0.1235", 12: "12", 399.96: "400", 1234.5: "1234", 1e6: "1000000"} {
		if got := Figure(x); got != want {
			t.Errorf("%g: %s, want %s", x, got, want)
		}
	}
}

func FuzzParseCapacity(f *testing.F) {
	var text bytes.Buffer
	if err := sampleCapacity(f).Write(&text); err != nil {
		f.Fatal(err)
	}
	f.Add(text.Bytes())
	f.Add([]byte(`{"capacity_format":1}`))
	f.Add([]byte(`{"capacity_format":1,"trials":[{"rate":1,"verdict":"held","result":{"format":2}}]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		c, err := ParseCapacity(content)
		if err != nil {
			return
		}
		c.Print(&bytes.Buffer{})
		if err := c.Write(&bytes.Buffer{}); err != nil {
			t.Error(err)
		}
	})
}
