package main

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/bench/load"
	"icapgate/bench/result"
	"icapgate/bench/scenario"
	"icapgate/configs"
)

// TestSeveralMachines has two processes begin a load at the same moment, and merges what they have seen.
func TestSeveralMachines(t *testing.T) {
	uri := "icap://" + serveStub(t, dlpstub.Config{Name: "one"}) + "/reqmod"
	dir := t.TempDir()
	at := time.Now().Add(2 * time.Second).Truncate(time.Second)
	var commands []*exec.Cmd
	var outputs [2]strings.Builder
	var files []string
	for i, name := range []string{"left", "right"} {
		file := filepath.Join(dir, name+".json")
		cmd := exec.Command(binary, "load", uri, "-n", "40", "--rate", "1000", "--arrivals", "poisson", "--start-at", at.Format(time.RFC3339), "--label", name, "--json", file,
			"--incident-header", "X-Incident-ID", "--html", filepath.Join(dir, name+".html"))
		cmd.Stdout, cmd.Stderr = &outputs[i], &outputs[i]
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		commands, files = append(commands, cmd), append(files, file)
	}
	for i, cmd := range commands {
		if err := cmd.Wait(); err != nil || !strings.Contains(outputs[i].String(), "begins at") {
			t.Fatalf("%v\n%s", err, outputs[i].String())
		}
		r, err := result.Read(files[i])
		if err != nil {
			t.Fatal(err)
		}
		if r.Started.Before(at) || r.Requests != 40 || r.Incidents.Sent[0].To != 39 || r.Version == "" {
			t.Errorf("%d requests from %v on, want %v", r.Requests, r.Started, at)
		}
	}
	out, errs, code := runBinary(t, "report", files[0], files[1])
	if code != exitOK || !strings.Contains(out, "from 2 load generators") || !strings.Contains(out, "requests    80 in") {
		t.Errorf("%d %s%s", code, out, errs)
	}
}

// TestInterruptedWait ends a load by a signal that waits for its start: no connection was made, which is nobody's fault.
func TestInterruptedWait(t *testing.T) {
	cmd := exec.Command(binary, "load", "icap://127.0.0.1:1/", "--start-at", time.Now().Add(time.Hour).Format(time.RFC3339))
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewReader(stderr)
	if first, err := lines.ReadString('\n'); err != nil || !strings.HasPrefix(first, "begins at") {
		t.Fatalf("%q, %v", first, err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(lines)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || !strings.Contains(string(rest), "ended by a signal") {
		t.Errorf("exit code %d, %s", code, rest)
	}
}

// TestPlan puts flags over what a scenario says.
func TestPlan(t *testing.T) {
	day := &scenario.Scenario{Duration: configs.Duration(time.Minute), Rate: 5}
	waves := &scenario.Scenario{Stages: []scenario.Stage{{Duration: configs.Duration(time.Minute), Rate: 5}}}
	for _, tt := range []struct {
		flags  loadCmd
		s      *scenario.Scenario
		length time.Duration
		stages []result.Stage
	}{
		{loadCmd{}, &scenario.Scenario{}, 10 * time.Second, nil},
		{loadCmd{}, day, time.Minute, []result.Stage{{Rate: 5}}},
		{loadCmd{Rate: 7}, day, time.Minute, []result.Stage{{Rate: 7}}},
		{loadCmd{Duration: time.Hour}, day, time.Hour, []result.Stage{{Rate: 5}}},
		{loadCmd{Requests: 3}, day, 0, []result.Stage{{Rate: 5}}},
		{loadCmd{Stages: []stage{{time.Hour, 9}}}, day, time.Hour, []result.Stage{{Seconds: 3600, Rate: 9}}},
		{loadCmd{}, waves, time.Minute, []result.Stage{{Seconds: 60, Rate: 5}}},
		{loadCmd{Duration: time.Hour}, waves, time.Hour, []result.Stage{{Seconds: 60, Rate: 5}}},
	} {
		var cfg load.Config
		if err := tt.flags.plan(&cfg, tt.s); err != nil || cfg.Length() != tt.length || !slices.Equal(cfg.Stages, tt.stages) {
			t.Errorf("%+v: %v, stages %v, %v", tt, cfg.Length(), cfg.Stages, err)
		}
	}
}

func TestStage(t *testing.T) {
	f := func(text string, want stage) {
		t.Helper()
		var s stage
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q: %+v, %v", text, s, err)
		}
	}
	f("30s:100", stage{30 * time.Second, 100})
	f("0s:0.5", stage{0, 0.5})
	for _, bad := range []string{"", "30s", "100", "30:100", "-1s:100", "1s:-1", "1s:x", "1s:NaN"} {
		var s stage
		if err := s.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is %+v", bad, s)
		}
	}
}

func TestStartTime(t *testing.T) {
	for _, text := range []string{"23:59:59", "00:00:00", "2030-01-02T03:04:05Z"} {
		var at startTime
		if err := at.UnmarshalText([]byte(text)); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if d := time.Until(time.Time(at)); d < 0 || len(text) == 8 && d > 25*time.Hour {
			t.Errorf("%q begins in %v", text, d)
		}
	}
	var at startTime
	if err := at.UnmarshalText([]byte("25:00:00")); err == nil {
		t.Error("25:00:00 is a time")
	}
}

func TestFaultFlag(t *testing.T) {
	f := func(text string, share float64) {
		t.Helper()
		var got faultFlag
		if err := got.UnmarshalText([]byte(text)); err != nil || got.share != share || got.kind != "slow_body" {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	f("slow_body=1%", 0.01)
	f("slow-body=0.5", 0.5)
	for _, bad := range []string{"", "slow_body", "slow_body=", "slow_body=2", "slow_body=-1%", "slow_body=NaN", "fast_body=1%"} {
		var got faultFlag
		if err := got.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is %+v", bad, got)
		}
	}
}
