package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/bench/result"
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
