package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/bench/result"
)

func TestCapacity(t *testing.T) {
	good := "icap://" + serveStub(t, dlpstub.Config{Latency: 5 * time.Millisecond}) + "/reqmod"
	full := "icap://" + serveStub(t, dlpstub.Config{Status: 503}) + "/reqmod"
	gone := mustListen(t)
	gone.Close()
	refused := "icap://" + gone.Addr().String() + "/reqmod"
	dir := t.TempDir()
	file, page := filepath.Join(dir, "search.json"), filepath.Join(dir, "search.html")
	short := " --budget 20s --trial 1s --from 20 --to 20 --slo "

	tests := []struct {
		args string
		code int
		says string // on stdout or stderr
	}{
		{"capacity --help", exitOK, "Exit codes"},
		{"capacity " + good, exitUsage, "slo"},
		{"capacity " + good + " --slo p99", exitUsage, "such as p99<50ms"},
		{"capacity " + good + " --slo errors<1%", exitUsage, "limit for the latency"},
		{"capacity " + good + " --slo p99<1s,entry.x.p99<1s", exitUsage, `it has request`},
		{"capacity " + good + " --slo p99<1s --precision 90%", exitUsage, "precision"},
		{"capacity " + good + " --slo p99<1s --precision x", exitUsage, "such as 2%"},
		{"capacity " + good + " --slo p99<1s --from 5 --to 4", exitUsage, "below the lowest"},
		{"capacity " + good + " --slo p99<1s --continue " + filepath.Join(dir, "missing"), exitUsage, "missing"},
		{"capacity " + good + " --slo p99<1s --json " + filepath.Join(dir, "missing", "x"), exitUsage, "missing"},
		{"capacity " + full + " --slo p99<1s", exitFailure, "503"},
		{"capacity " + refused + " --slo p99<1s", exitConnect, "no connection was made"},
		{"capacity " + good + short + "p99<10s --json " + file + " --html " + page, exitOK, "capacity    at least 20/s"},
		{"capacity " + good + short + "p99<10s --continue " + file, exitOK, "capacity    at least 20/s"}, // nothing is left to do
		{"capacity " + good + short + "p99<9s --continue " + file, exitUsage, "SLO: [p99<10s], now [p99<9s]"},
		{"capacity " + good + short + "p99<10s --new-connection-every 1 --continue " + file, exitUsage, "have changed"},
		{"capacity " + good + " --slo p99<10s --budget 2s --from 10", exitImprecise, "--continue"},
	}
	for _, tt := range tests {
		stdout, stderr, code := runBinary(t, strings.Fields(tt.args)...)
		if code != tt.code || !strings.Contains(stdout+stderr, tt.says) {
			t.Errorf("%s: exit code %d, want %d and %q\n%s%s", tt.args, code, tt.code, tt.says, stdout, stderr)
		}
	}
	if c, err := result.ReadCapacity(file); err != nil || c.Finding.Outcome != result.AtLeast || c.Version == "" {
		t.Errorf("%+v, %v", c, err)
	}
	if content, err := os.ReadFile(page); err != nil || !strings.Contains(string(content), "<svg") {
		t.Errorf("%d bytes of a page, %v", len(content), err)
	}
}

// TestCapacityBelow has a target that is slower than the SLO at any rate.
func TestCapacityBelow(t *testing.T) {
	slow := "icap://" + serveStub(t, dlpstub.Config{Latency: 50 * time.Millisecond}) + "/reqmod"
	stdout, stderr, code := runBinary(t, "capacity", slow, "--slo", "p99<20ms", "--from", "20", "--budget", "15s", "--trial", "1s")
	busy := strings.Contains(stdout, string(result.Limited)) // this machine
	if !busy && (code != exitFailure || !strings.Contains(stdout, "capacity    below 20/s")) || code == exitOK {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
}

func TestCapacityEndsBySignal(t *testing.T) {
	good := "icap://" + serveStub(t, dlpstub.Config{}) + "/reqmod"
	var out strings.Builder
	file := filepath.Join(t.TempDir(), "search.json")
	cmd := exec.Command(binary, "capacity", good, "--slo", "p99<10s", "--json", file)
	cmd.Stdout = &out
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	seen := ""
	buf := make([]byte, 1024)
	for !strings.Contains(seen, "trial 1") {
		n, err := stderr.Read(buf)
		if err != nil {
			t.Fatalf("%v after %s", err, seen)
		}
		seen += string(buf[:n])
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stderr.Read(buf)
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || !strings.Contains(out.String(), "capacity    not known: time was up") {
		t.Errorf("exit code %d\n%s", code, out.String())
	}
	if c, err := result.ReadCapacity(file); err != nil || len(c.Trials) != 0 {
		t.Errorf("nothing to go on with: %v", err)
	}
}
