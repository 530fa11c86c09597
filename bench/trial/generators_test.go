package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	benchresult "icapgate/bench/result"
)

// The statistics are printed once a second; the last ones count.
func TestParseStretch(t *testing.T) {
	const v05 = `Files to send:1
Create thread 0
Statistics:
	 Files used :1
	 Number of threads :16
	 Requests served :90
	 Requests failed :0
	 Requests soft failed :0
Running for 3 seconds
Thread 15 exited
Statistics:
	 Files used :1
	 Number of threads :16
	 Requests served :116
	 Requests failed :2
	 Requests soft failed :3
	 Incoming bytes :153352
Running for 4 seconds
`
	const v06 = `Statistics:
	Files used :1
	 Number of threads :16
	Running for 20 seconds
	Requests: 10309
	Failed Requests: 1
	Soft Failed Requests: 4
	Incoming bytes: 13802Kbs and 391bytes
`
	for _, c := range []struct {
		text             string
		requests, failed int64
		wrong            bool
	}{
		{text: v05, requests: 116, failed: 5},
		{text: v06, requests: 10309, failed: 5},
		{text: "", wrong: true},
		{text: "Files to send:1\nCreate thread 0\n", wrong: true},
		{text: "\tRequests: 99999999999999999999\n\tFailed Requests: 0\n\tSoft Failed Requests: 0\n", wrong: true},
	} {
		requests, failed, err := parseStretch(c.text)
		if requests != c.requests || failed != c.failed || (err != nil) != c.wrong {
			t.Errorf("%d requests, %d failed, error %v, want %d and %d:\n%s", requests, failed, err, c.requests, c.failed, c.text)
		}
	}
}

func TestDrive(t *testing.T) {
	d := drive{requests: 2000, seconds: 0.5, cpu: 0.1, gateway: 0.04}
	if d.rate() != 4000 || d.cost() != 50 || d.perCore() != 20000 || d.gatewayCost() != 20 {
		t.Errorf("%v/s, %v µs, %v per core-second, %v µs of the gateway", d.rate(), d.cost(), d.perCore(), d.gatewayCost())
	}
	runs := func(costs ...float64) (list []drive) {
		for _, us := range costs {
			list = append(list, drive{requests: 1e6, cpu: us})
		}
		return list
	}
	mid, low, high := ratio(series(runs(2, 4, 9), drive.cost), series(runs(1, 1, 3), drive.cost))
	if mid != 3 || low != 2 || high != 4 {
		t.Errorf("ratio %v (%v..%v)", mid, low, high)
	}
}

// A rate is judged by what was sent: evenly within the share asked for, at random within what chance allows.
func TestJudgeRates(t *testing.T) {
	for _, c := range []struct {
		arrivals         string
		requests, failed int64
		held             int
	}{
		{"constant", 10000, 0, 2},
		{"constant", 10099, 0, 2},
		{"constant", 9899, 0, 1},
		{"constant", 10000, 1, 1},
		{"poisson", 9650, 0, 2},
		{"poisson", 9550, 0, 1},
	} {
		rp := newReport("test", io.Discard)
		shown := benchresult.New()
		shown.Requests, shown.Failed, shown.Begun, shown.Seconds = c.requests, c.failed, c.requests, 10
		(&ratesOptions{length: 10 * time.Second, within: 0.01}).judge(&rig{report: rp}, 1000, c.arrivals, shown)
		held := 0
		for _, claim := range rp.Claims {
			if claim.Held {
				held++
			}
		}
		if held != c.held {
			t.Errorf("%+v: %d claims held: %+v", c, held, rp.Claims)
		}
	}
}

// A program that behaves like c-icap-stretch is driven and believed; one that is none is not.
func TestStretch(t *testing.T) {
	dir := t.TempDir()
	script := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	r := &rig{dir: dir}
	s, err := r.newStretch(t.Context(), script("good", `[ $# = 0 ] && { echo "Usage: [-tls ]"; exit 255; }
[ "$*" = "-i 192.0.2.1 -p 1344 -s echo -m 1 -t 16 -tls -tls-no-verify body" ] || { echo "$*"; exit 1; }
printf '\tRequests: 7\n\tFailed Requests: 2\n\tSoft Failed Requests: 1\n'
`))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("cc"); s.hasten == "" && err == nil {
		t.Error("there is a C compiler, and nothing that takes the pauses away")
	}
	used, err := s.run(t.Context(), "192.0.2.1:1344", "body", true, s.hasten != "", 16)
	if err != nil || !s.tls || used.requests != 7 || used.failed != 3 || used.seconds <= 0 || used.cpu <= 0 {
		t.Errorf("%+v of %+v, error %v", used, s, err)
	}
	bad := &stretch{path: script("bad", "echo something else\n")}
	if _, err := bad.run(t.Context(), "192.0.2.1:1344", "body", false, false, 16); err == nil || !strings.Contains(err.Error(), "no statistics") {
		t.Errorf("error %v", err)
	}
	if _, err := r.newStretch(t.Context(), filepath.Join(dir, "nothing")); err == nil {
		t.Error("what is not there is found")
	}
}

// The help says what there is to choose.
func TestGeneratorsUsage(t *testing.T) {
	for args, want := range map[string]string{
		"generators --help": "--stretch off",
		"rates --help":      "--length 60s",
	} {
		var out bytes.Buffer
		if code := run(strings.Fields(args), &out, &out); code != exitOK || !strings.Contains(out.String(), want) {
			t.Errorf("%s: exit code %d\n%s", args, code, &out)
		}
	}
}
