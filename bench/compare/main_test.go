package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"icapgate/bench/process"
)

func TestFlags(t *testing.T) {
	f := func(args, want string) {
		t.Helper()
		_, err := parseFlags(strings.Fields(args), io.Discard)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: error %v, want %q", args, err, want)
		}
	}
	f("", "")
	f("--rows idle,options --gateways icapgate,nginx --rounds 15 --scale 0.5", "")
	f("--rows options,nonsense", `--rows: "nonsense" is not one of options,`)
	f("--gateways envoy", `--gateways: "envoy" is not one of icapgate,`)
	f("--rounds 0", "--rounds")
	f("--scale NaN", "--scale")
	f("idle", `unexpected argument "idle"`)

	o, err := parseFlags([]string{"--rows", "idle,options"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if got := names(o.rows, rowName); got != "options,idle" {
		t.Errorf("rows %s, want the order of the table", got)
	}
}

func TestLoadArgs(t *testing.T) {
	f := func(name, want string) {
		t.Helper()
		chosen, err := choose(rows, rowName, name)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(chosen[0].loadArgs("127.0.0.1:7", "trust.pem", "out.json", 99), " "); got != want {
			t.Errorf("%s: %s\nwant %s", name, got, want)
		}
	}
	f("options", "load icaps://127.0.0.1:7/options -m options -s 0 -c 16 -n 99 --json out.json --ca trust.pem")
	f("plain-10m", "load icap://127.0.0.1:7/reqmod -m reqmod -s 10MB -c 4 -n 99 --json out.json --chunk 1MiB")
	f("p99", "load icaps://127.0.0.1:7/reqmod -m reqmod -s 1KiB -c 64 -n 99 --json out.json --ca trust.pem --rate 8000")
	f("new-connection", "load icaps://127.0.0.1:7/reqmod -m reqmod -s 1KiB -c 16 -n 99 --json out.json --ca trust.pem --new-connection-every 1")
}

// A run with next to no load: everything starts, is measured without a failure and ends.
func TestRun(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes some seconds")
	}
	o, err := parseFlags([]string{"--rows", "reqmod-1k,respmod-1k,plain-10m,p99", "--rounds", "1", "--scale", "0.01", "--timeout", "2m",
		"--json", filepath.Join(t.TempDir(), "all.json")}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	var out, progress bytes.Buffer
	if err := run(t.Context(), o, &out, &progress); err != nil {
		t.Fatalf("%v\n%s\n%s", err, &progress, &out)
	}
	for _, r := range o.rows {
		if !strings.Contains(out.String(), "\n| "+r.name+" |") {
			t.Errorf("%s is not in the table:\n%s", r.name, &out)
		}
	}
	text, err := os.ReadFile(o.json)
	if err != nil || !bytes.Contains(text, []byte(`"p99_us"`)) {
		t.Errorf("no figures in the file: %v\n%s", err, text)
	}
	noChildren(t)
}

// What ends a run early leaves nothing behind.
func TestRunEnds(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes some seconds")
	}
	o, err := parseFlags([]string{"--rows", "new-connection,idle", "--gateways", "icapgate", "--rounds", "1", "--scale", "0.01"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	err = run(ctx, o, &out, writer(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte("idle 0/1")) {
			cancel()
		}
		return len(p), nil
	}))
	if err == nil || !strings.Contains(err.Error(), "ended early: context canceled") || strings.Contains(out.String(), "ERROR") {
		t.Errorf("error %v\n%s", err, &out)
	}
	noChildren(t)
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func noChildren(t *testing.T) {
	t.Helper()
	tree, err := process.Descendants(os.Getpid())
	if err != nil || !slices.Equal(tree, []int{os.Getpid()}) {
		t.Errorf("processes %v are left, error %v", tree, err)
	}
}
