package main

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"icapgate/bench"
	"icapgate/bench/dlpstub"
	"icapgate/bench/result"
)

var metricLine = regexp.MustCompile(`^[a-z_]+(\{[a-z]+="([^"\\]|\\["\\n])*"(,[a-z]+="[^"]*")*\})? [-+.e0-9]+$`)

func TestMetrics(t *testing.T) {
	l := &live{}
	var out strings.Builder
	l.write(&out) // before the first second
	r := result.New()
	r.Requests, r.Statuses, r.Dials = 3, map[int]int64{204: 2, 200: 1}, 4
	r.AddServer("one", 3)
	r.AddServer("a\tb\u00a0\"c\"\\", 1)
	r.AddError(bench.Status, result.Errors{Count: 5, Example: "503"})
	r.Late.Waited, r.Late.Generator = 6, 7
	for _, d := range []time.Duration{90 * time.Microsecond, 4 * time.Millisecond, 70 * time.Second} {
		r.Latency.Record(d)
	}
	l.set(r)
	out.Reset()
	l.write(&out)
	for _, want := range []string{
		`icapbench_requests_total{code="200"} 1`, `icapbench_requests_total{code="204"} 2`, `icapbench_errors_total{kind="status"} 5`,
		`icapbench_server_requests_total{server="one"} 3`, "icapbench_server_requests_total{server=\"a\tb\u00a0\\\"c\\\"\\\\\"} 1",
		`icapbench_connections_total 4`,
		`icapbench_late_requests_total{reason="no_connection"} 6`, `icapbench_late_requests_total{reason="generator"} 7`,
		`icapbench_request_duration_seconds_bucket{le="0.0001"} 1`, `icapbench_request_duration_seconds_bucket{le="0.005"} 2`,
		`icapbench_request_duration_seconds_bucket{le="60"} 2`, `icapbench_request_duration_seconds_bucket{le="+Inf"} 3`,
		`icapbench_request_duration_seconds_count 3`, "process_cpu_seconds_total",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %s in\n%s", want, out.String())
		}
	}
	docs, err := os.ReadFile("../../docs/BENCH.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "icapbench_") && !metricLine.MatchString(line) {
			t.Errorf("bad line %q", line)
		}
		if name, ok := strings.CutPrefix(line, "# TYPE "); ok && strings.HasPrefix(name, "icapbench_") {
			if name, _, _ = strings.Cut(name, " "); !strings.Contains(string(docs), "`"+name+"`") {
				t.Errorf("%s is not in docs/BENCH.md", name)
			}
		}
	}
}

// TestLiveMetrics reads the metrics of a run and then ends it by a signal.
func TestLiveMetrics(t *testing.T) {
	uri := "icap://" + serveStub(t, dlpstub.Config{Name: "one"}) + "/reqmod"
	cmd := exec.Command(binary, "load", uri, "-d", "1h", "--rate", "200", "--metrics-address", "127.0.0.1:0")
	var stdout strings.Builder
	cmd.Stdout = &stdout
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewReader(stderr)
	first, err := lines.ReadString('\n')
	url, ok := strings.CutPrefix(strings.TrimSpace(first), "metrics at ")
	if err != nil || !ok {
		t.Fatalf("%q, %v", first, err)
	}
	for text := ""; !strings.Contains(text, `icapbench_requests_total{code="204"}`); {
		response, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != 200 {
			t.Fatalf("%s, %v", response.Status, err)
		}
		text = string(content)
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, lines); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || !strings.Contains(stdout.String(), "the run was ended early") {
		t.Errorf("exit code %d\n%s", code, stdout.String())
	}
}
