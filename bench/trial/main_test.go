package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"icapgate/bench"
	"icapgate/bench/dlpstub"
	"icapgate/bench/process"
	"icapgate/gateway/admin"
	"icapgate/icap"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == serveArg || os.Args[1] == abuseArg) {
		main() // a test has started us as a server, or as hostile clients
	}
	os.Exit(m.Run())
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args, out string
		code      int
	}{
		{"", "drain ", exitOK},
		{"--help", "drain ", exitOK},
		{"nonsense", `no trial "nonsense"`, exitUsage},
		{"drain --help", "--rounds 50", exitOK},
		{"drain --nonsense", "nonsense", exitUsage},
		{"drain 7", `unexpected argument "7"`, exitUsage},
		{"serve", "is what trials start", exitUsage},
		{"abuse-clients", "is what a trial starts", exitUsage},
		{"abuse-clients {}", "no abuse", exitUsage},
		{"abuse --only nonsense", "a kind that is not there", exitFailure},
		{"faults --only nonsense", `there is no "nonsense"`, exitFailure},
		{"cost --only nonsense", `there is no "nonsense"`, exitFailure},
		{"drain --json /no/such/folder/file", "no such file", exitFailure},
	} {
		var out bytes.Buffer
		if code := run(strings.Fields(c.args), &out, &out); code != c.code || !strings.Contains(out.String(), c.out) {
			t.Errorf("%q: exit code %d, want %d with %q:\n%s", c.args, code, c.code, c.out, &out)
		}
	}
	for _, trial := range trials {
		if trial.about == "" || !strings.Contains(trial.help, "go run ./bench/trial "+trial.name) || trial.limit <= 0 || find(trial.name) != trial {
			t.Errorf("%s: a line, examples, a limit or its own name is missing", trial.name)
		}
	}
}

// carryOut carries out a trial that is a function and returns what it has printed.
func carryOut(t *testing.T, ctx context.Context, file string, f func(ctx context.Context, r *rig) error) (string, error) {
	t.Helper()
	if testing.Short() {
		t.Skip("it takes some seconds")
	}
	var out bytes.Buffer
	o := &options{trial: &trial{name: "test"}, run: f, json: file}
	err := o.carryOut(ctx, &out, io.Discard)
	if tree, err := process.Descendants(os.Getpid()); err != nil || !slices.Equal(tree, []int{os.Getpid()}) {
		t.Errorf("processes %v are left, error %v", tree, err)
	}
	return out.String(), err
}

// What trials work with works.
func TestRig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.json")
	var dir string
	out, err := carryOut(t, t.Context(), file, func(ctx context.Context, r *rig) error {
		dir = r.dir
		servers, err := r.startServers(ctx, 2, serverConfig{Echo: true})
		if err != nil {
			return err
		}
		if err := r.startGateway(ctx, gatewayConfig{Servers: servers, Pool: "    health: {interval: 100ms, timeout: 100ms, fall: 1}\n", Loops: 1}); err != nil {
			return err
		}
		for _, secure := range []bool{true, false} {
			c := &client{}
			c.target, c.tls = r.target(secure, "/respmod")
			defer c.close()
			for i := range 3 {
				if err := c.connect(ctx); err != nil {
					return err
				}
				q := &call{Message: bench.Message{Method: icap.MethodRespmod, Preview: -1}, Size: 100_000, Start: i}
				if err := c.do(q); err != nil || q.wrong != nil || q.status != 200 || !strings.HasPrefix(q.server, "server") {
					t.Errorf("status %d from %q, error %v, wrong: %v", q.status, q.server, err, q.wrong)
				}
			}
		}
		m, err := r.metrics(ctx)
		if err != nil {
			return err
		}
		if got := m.sum("requests_total", `listener="icaps"`, `method="RESPMOD"`, `code="200"`); got != 3 {
			t.Errorf("%v requests over icaps, want 3", got)
		}
		if got := m.by("requests_total", "listener"); got["icaps"] != 3 || got["icap"] != 3 {
			t.Errorf("requests by listener: %v", got)
		}
		u, err := r.usage(ctx)
		if err != nil || u.RSS < 1<<20 || u.Peak < u.RSS || u.FDs < 5 || u.Goroutines < 5 || u.Sessions != 2 || u.InFlight != 0 {
			t.Errorf("usage %v, error %v", u, err)
		}
		address := servers[0].address
		health := func(want string) error {
			return r.awaitStatus(ctx, readyPatience, "with server0 "+want, func(s *admin.Status) bool {
				return s.Pools[0].Servers[0].Health == want
			})
		}
		servers[0].kill()
		if err := health("down"); err != nil {
			return err
		}
		if err := servers[0].start(ctx); err != nil || servers[0].address != address {
			t.Errorf("server0 is at %s now, was at %s, error %v", servers[0].address, address, err)
		}
		if err := health("up"); err != nil {
			return err
		}
		servers[0].freeze()
		if err := health("down"); err != nil {
			return err
		}
		servers[0].thaw()
		if err := health("up"); err != nil {
			return err
		}
		r.figure("answer", 42, "ms")
		r.claim(true, "this")
		r.claim(false, "that")
		return nil
	})
	if err == nil || err.Error() != "not every claim held: see above" {
		t.Errorf("error %v", err)
	}
	for _, line := range []string{"answer                                                       42 ms\n", "  held    this\n", "  FAILED  that\n", "1 of 2 claims held\n"} {
		if !strings.Contains(out, line) {
			t.Errorf("%q is missing in:\n%s", line, out)
		}
	}
	var got report
	text, _ := os.ReadFile(file)
	if err := json.Unmarshal(text, &got); err != nil || len(got.Claims) != 2 || len(got.Figures) != 1 {
		t.Errorf("report %s, error %v", text, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
}

// What ends a run early leaves nothing behind and is an error.
func TestEndedEarly(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := carryOut(t, ctx, "", func(ctx context.Context, r *rig) error {
		servers, err := r.startServers(ctx, 1, serverConfig{})
		if err != nil {
			return err
		}
		if err := r.startGateway(ctx, gatewayConfig{Servers: servers}); err != nil {
			return err
		}
		servers[0].freeze()
		cancel(errors.New("enough"))
		return pause(ctx, time.Hour)
	})
	if err == nil || err.Error() != "ended early: enough" {
		t.Errorf("error %v", err)
	}
}

// Short runs of the trials, so that they can't rot.
func TestTrials(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes some seconds")
	}
	for _, args := range []string{
		"drain --rounds 1 --clients 8 --load 200ms",
		"slow --duration 500ms --size 1500000 --fair 0",
		"soak --seed 7 --duration 12s",
		"reload --reloads 20 --clients 8",
		"generators --rounds 1 --length 50ms --stretch off --client off --factor 0",
		"rates --length 200ms --within 1",
		"share --length 500ms --clients 40",
		"faults --only 503 --length 2s --rate 50",
		"cost --rounds 1 --requests 200 --connections 4 --doors icap --only hash --most 1000",
	} {
		var out, progress bytes.Buffer
		if code := run(strings.Fields(args), &out, &progress); code != exitOK {
			t.Errorf("%s: exit code %d\n%s\n%s", args, code, &out, &progress)
		}
	}
}

// The same seed is the same script and the same requests; another one is not.
func TestSeed(t *testing.T) {
	servers := []string{"server0", "server1", "server2"}
	draw := func(seed uint64) string {
		r := rand.New(rand.NewPCG(seed, 1))
		text := fmt.Sprint(newScript(r, 10*time.Minute, len(servers)))
		for n := range 100 {
			text += fmt.Sprint(*newPlan(r, 0, n, servers))
		}
		return text
	}
	if first, again := draw(1), draw(1); first != again || first == draw(2) {
		t.Error("a run does not follow from its seed")
	}
	// One server at most is away, and comes back.
	for seed := range uint64(100) {
		away := -1
		for _, f := range newScript(rand.New(rand.NewPCG(seed, 0)), 10*time.Minute, len(servers)) {
			switch f.what {
			case faultKill, faultFreeze:
				if away >= 0 {
					t.Fatalf("seed %d: two servers are away at %v", seed, f.at)
				}
				away = f.server
			case faultStart, faultThaw:
				if away != f.server {
					t.Fatalf("seed %d: server %d comes back at %v, server %d is away", seed, f.server, f.at, away)
				}
				away = -1
			}
		}
		if away >= 0 {
			t.Fatalf("seed %d: server %d stays away", seed, away)
		}
	}
}

// A server does with a request what it wishes, if the wish is for that server.
func TestWish(t *testing.T) {
	for _, c := range []struct {
		wish wish
		want dlpstub.Treatment
	}{
		{wish{what: asUsual}, dlpstub.Treatment{}},
		{wish{what: echoed}, dlpstub.Treatment{Mode: dlpstub.Echo}},
		{wish{what: busy, server: "server1"}, dlpstub.Treatment{Status: 503}},
		{wish{what: busy, server: "server2"}, dlpstub.Treatment{}},
		{wish{what: late, number: 7}, dlpstub.Treatment{Latency: 7 * time.Millisecond}},
		{wish{what: cut, number: 9}, dlpstub.Treatment{Mode: dlpstub.Echo, Cut: 9}},
		{wish{what: noAnswer}, dlpstub.Treatment{Cut: dlpstub.NoAnswer}},
		{wish{what: slowly, number: 11}, dlpstub.Treatment{ReadRate: 11}},
	} {
		head := "REQMOD icap://a/reqmod?id=3-14 ICAP/1.0\r\nHost: a\r\nX-Wish: " + c.wish.String() + "\r\n\r\n"
		got := dlpstub.Treatment{}
		obey("server1")(&dlpstub.Request{Head: []byte(head)}, &got)
		c.want.Fields = "x-trial-id: 3-14\r\n"
		if got != c.want {
			t.Errorf("%v: %+v, want %+v", c.wish, got, c.want)
		}
	}
}

func TestParseFlags(t *testing.T) {
	o, err := parseFlags(&trial{name: "some", limit: time.Minute, flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		f.Int("number", 1, "")
		return nil
	}}, []string{"--number", "2", "--json", "file"}, io.Discard)
	if err != nil || o.timeout != time.Minute || o.json != "file" {
		t.Errorf("got %+v, error %v", o, err)
	}
}
