package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"icapgate/bench"
	"icapgate/bench/result"
	"icapgate/bench/serve"
)

// mustWriteResult writes a result of 100 requests of 1 to 100 ms.
func mustWriteResult(t *testing.T, name string, change func(*result.Result)) string {
	t.Helper()
	r := result.New()
	r.Setup = result.Setup{Target: "icap://gate:1344/reqmod", Scenario: "uploads", Connections: 4, Machines: 1}
	r.Started, r.Seconds = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC), 10
	r.Begun, r.Requests, r.Dials = 101, 100, 4
	r.Generator = result.Generator{CPUSeconds: float64(len(name)), CPUs: 2}
	r.AddError(bench.Status, result.Errors{Count: 1, Example: "503"})
	r.AddServer("one", 100)
	for i := range 100 {
		r.Latency.Record(time.Duration(i+1) * time.Millisecond)
	}
	change(r)
	var text bytes.Buffer
	if err := r.Write(&text); err != nil {
		t.Fatal(err)
	}
	return mustWriteFile(t, name, text.Bytes())
}

// mustWriteStats writes what servers have counted of the run ab.
func mustWriteStats(t *testing.T, beyond uint64, ids ...serve.Range) string {
	t.Helper()
	var text bytes.Buffer
	stats := serve.Stats{Kind: serve.Kind, Runs: []serve.RunStats{{Run: "ab", IDs: ids}}, Beyond: beyond}
	if err := stats.WriteJSON(&text); err != nil {
		t.Fatal(err)
	}
	return mustWriteFile(t, "stats.json", text.Bytes())
}

func TestReportServers(t *testing.T) {
	plain := mustWriteResult(t, "plain.json", func(*result.Result) {})
	run := mustWriteResult(t, "run.json", func(r *result.Result) {
		r.Incidents = &result.Incidents{Header: "X-Incident-ID", Runs: []string{"ab"}, Sent: []result.Range{{Run: "ab", From: 0, To: 99}},
			Failed: []result.Range{{Run: "ab", From: 50, To: 50}}}
	})
	all := mustWriteStats(t, 0, serve.Range{From: 0, To: 49, Count: 1}, serve.Range{From: 51, To: 99, Count: 1})
	first := mustWriteStats(t, 0, serve.Range{From: 0, To: 60, Count: 1})
	second := mustWriteStats(t, 7, serve.Range{From: 60, To: 98, Count: 1})

	tests := []struct {
		args string
		code int
		says string // on stdout or stderr
	}{
		{run + " --servers " + all, exitOK, "99 answered, of these 0 lost (at no server); 1 failed, of these 0 at a server; 0 doubled"},
		{run + " --servers " + all + " --fail-if errors>0", exitCondition, "0 lost"},
		{run + " --servers " + first + " --servers " + second, exitFailure, "lost        ab-99\ndoubled     ab-60: 2 times"},
		{run + " --servers " + first + " --servers " + second + " --fail-if errors>0", exitFailure, "1 incidents were answered but are at no server"},
		{run + " --servers " + second, exitFailure, "could not count 7 incident ids"},
		{run + " --servers " + all + " --servers " + first, exitFailure, "60 doubled"},
		{run + " --servers " + all + " --servers " + first, exitFailure, "--allow-doubled"},
		{run + " --servers " + all + " --servers " + first + " --allow-doubled", exitOK, "60 doubled"},
		{plain + " --servers " + all, exitUsage, "--incident-header"},
		{run + " --servers " + run, exitUsage, "not the JSON of icapbench serve"},
		{run + " --servers missing.json", exitUsage, "missing.json"},
	}
	for _, tt := range tests {
		stdout, stderr, code := runBinary(t, append([]string{"report"}, strings.Fields(tt.args)...)...)
		if code != tt.code || !strings.Contains(stdout+stderr, tt.says) {
			t.Errorf("icapbench report %s: exit code %d, want %d and %q:\n%s%s", tt.args, code, tt.code, tt.says, stdout, stderr)
		}
	}
}

func TestReport(t *testing.T) {
	one := mustWriteResult(t, "one.json", func(*result.Result) {})
	second := mustWriteResult(t, "second.json", func(r *result.Result) { r.Label = "the second" })
	later := mustWriteResult(t, "a-later-one.json", func(r *result.Result) { r.Started = r.Started.Add(time.Hour) })
	old := mustWriteFile(t, "old.json", []byte(`{"target":"icap://a/"}`))
	missing := filepath.Join(t.TempDir(), "missing", "file")
	all, page := filepath.Join(t.TempDir(), "all.json"), filepath.Join(t.TempDir(), "page.html")

	tests := []struct {
		args string
		code int
		says string // on stdout or stderr
	}{
		{one, exitOK, "requests    100 in 10.00 s, 1 failed"},
		{one + " " + second + " --json " + all, exitOK, "requests    200 in 10.00 s, 2 failed"},
		{all, exitOK, "  the second"},
		{one + " --fail-if p99>50ms --fail-if errors>50%", exitCondition, "fail-if     p99>50ms: FAILED, it is 99"},
		{one + " --fail-if p99>50ms --fail-if errors>50%", exitCondition, "fail-if     errors>50%: ok, it is 0.99% (1 of 101)"},
		{one + " --html " + page, exitOK, "requests    100"},
		{"--compare --html " + page + " " + one + " " + later, exitOK, "latency"},
		{one + " --html " + missing, exitFailure, missing},
		{one + " --fail-if p99>1s", exitOK, "fail-if     p99>1s: ok"},
		{"--compare " + one + " " + later, exitOK, "answered in all                       100            100     1.000"},
		{"", exitUsage, "file"},
		{missing, exitUsage, missing},
		{old, exitUsage, "old.json"},
		{one + " " + one, exitUsage, "same run"},
		{one + " " + later, exitUsage, "--compare"},
		{one + " --fail-if p99", exitUsage, "p99<50ms"},
		{one + " --json " + missing, exitFailure, missing},
		{one + " --json " + page + " --html " + page, exitUsage, "both write"},
		{"--compare " + one, exitUsage, "two results, not 1"},
		{"--compare --json " + all + " " + one + " " + later, exitUsage, "do not go with --compare"},
		{"--help", exitOK, "Exit codes"},
	}
	for _, tt := range tests {
		stdout, stderr, code := runBinary(t, append([]string{"report"}, strings.Fields(tt.args)...)...)
		if code != tt.code || !strings.Contains(stdout+stderr, tt.says) {
			t.Errorf("icapbench report %s: exit code %d, want %d and %q:\n%s%s", tt.args, code, tt.code, tt.says, stdout, stderr)
		}
	}
	if html, err := os.ReadFile(page); err != nil || !bytes.Contains(html, []byte("one and a-later-one")) {
		t.Errorf("%v: %.200s", err, html)
	}
}
