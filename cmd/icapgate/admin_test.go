package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"icapgate/gateway/admin"
)

// fakeGateway is what the commands ask: one server in one pool, another in two.
type fakeGateway struct {
	commands []string
	since    time.Time
}

func (g *fakeGateway) Status() admin.Status {
	return admin.Status{
		Version: "1.2.3", UptimeSeconds: 3725.4,
		Listeners: []admin.ListenerStatus{{Name: "icaps", Address: "icaps://192.0.2.1:11344", Sessions: 12}},
		Services: []admin.ServiceStatus{
			{Service: "/reqmod", Pools: []string{"dlp", "av"}, Up: true, ISTag: "GW-e3b0c44298fc1c14", ISTags: 2, Announced: map[string][]string{"/reqmod": {"Methods: REQMOD"}}},
			{Service: "*", Pools: []string{"dlp"}, ISTag: "own"},
		},
		Pools: []admin.PoolStatus{
			{Name: "dlp", Queue: 3, Waits: admin.WaitsStatus{Now: map[string]int{"own": 1, "cap": 2, "full": 0}, OldestSeconds: 1.23}, Servers: []admin.ServerStatus{
				{Address: "10.0.0.1:1344", Health: "up", Admin: "ready", Weight: 1, Share: 1, InFlight: 2, Connections: 5, Idle: 3, Cap: 99, Requests: 1234, RequestShare: 0.9876, Since: g.since},
				{Address: "10.0.0.2:1344", Health: "down", Admin: "drain", Weight: 2, LastError: "connection\nrefused", MissingPaths: []string{"/a", "/b"}},
			}},
			{Name: "av", Tier: 1, Servers: []admin.ServerStatus{{Address: "10.0.0.2:1344", Health: "checking", Admin: "ready", Weight: 1, Tier: 1, Share: 0.25, LongStreams: 2}}},
		},
	}
}

func (g *fakeGateway) Ready(string) error       { return nil }
func (g *fakeGateway) WriteMetrics(w io.Writer) {}
func (g *fakeGateway) Reload() error            { return errors.New("not asked for") }

func (g *fakeGateway) SetAdmin(pool, server, state string) error {
	g.commands = append(g.commands, fmt.Sprint(state, " ", pool, " ", server))
	return nil
}

func (g *fakeGateway) SetWeight(pool, server string, weight int) error {
	if weight > 256 {
		return errors.New("out of range")
	}
	g.commands = append(g.commands, fmt.Sprint("weight ", pool, " ", server, " ", weight))
	return nil
}

// serveAdmin opens an admin endpoint on an address and returns it with the address that it has got.
func serveAdmin(t *testing.T, address string) (*fakeGateway, string) {
	t.Helper()
	g := &fakeGateway{since: time.Now().Add(-time.Hour)}
	s, err := admin.Listen(address, g, false, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return g, s.Address()
}

// command runs a command line in this process.
func command(args ...string) (stdout, stderr string, code int) {
	var out, err bytes.Buffer
	code = execute(args, streams{&out, &err})
	return out.String(), err.String(), code
}

func TestPrintStatus(t *testing.T) {
	now := time.Now()
	g := &fakeGateway{since: now.Add(-192*time.Second - 5*time.Millisecond)}
	status := g.Status()
	status.Draining = true
	status.Pools[0].Servers[1].MissingMethods = []string{"RESPMOD /c"}
	status.Pools[0].Servers[1].Probe = &admin.ProbeStatus{Result: "failed", Error: "REQMOD /a: 204 No modifications needed, expected status 200"}
	status.Limits = admin.LimitsStatus{Connections: 480, MaxConnections: 480, Overloaded: []string{"connections"}}
	ttl := 30.0
	status.Pools[0].ConnectionShare, status.Pools[0].Servers[1].From = 1, "srv:_icap._tcp.example.com"
	status.Names = []admin.NameStatus{
		{Name: "gateways.example.com", LastError: "gateways.example.com.: SERVFAIL\nfrom nameserver 10.0.0.2:53", Asked: now.Add(-3 * time.Second), FailingSince: now.Add(-time.Minute)},
		{Name: "srv:_icap._tcp.example.com", Addresses: []string{"10.0.0.2:1344"}, TTLSeconds: &ttl, Asked: now.Add(-time.Second)},
	}
	var out bytes.Buffer
	if err := printStatus(&out, status, now); err != nil {
		t.Fatal(err)
	}
	want := `icapgate 1.2.3, up 1h2m5s, draining
New clients are refused: connections. There are 480, 480 are allowed.

LISTENER  ADDRESS                  SESSIONS
icaps     icaps://192.0.2.1:11344  12

SERVICE  POOLS   ISTAG                OPTIONS  REMARK
/reqmod  dlp av  GW-e3b0c44298fc1c14  gateway  servers have 2 ISTags
*        dlp     own                  servers  unavailable

Pool dlp, 3 waiting (cap 2, own 1; the first for 1.2s)
SERVER         HEALTH    ADMIN  WEIGHT  IN FLIGHT  CONNECTIONS  IDLE  CAP   REQUESTS  SHARE  REMARK
10.0.0.1:1344  up 3m12s  ready  1       2          5            3     99    1234      98.8%  -
10.0.0.2:1344  down      drain  2       0          0            0     none  0         -      of srv:_icap._tcp.example.com; connection refused; probe: REQMOD /a: 204 No modifications needed, expected status 200; does not know /a, /b; does not do RESPMOD /c

Pool av, 0 waiting, tiers up to 1 in use, number of gateways not known yet: one connection to each server with a limit
SERVER         HEALTH    ADMIN  WEIGHT  IN FLIGHT  CONNECTIONS  IDLE  CAP   REQUESTS  SHARE  REMARK
10.0.0.2:1344  checking  ready  1       0          0            0     none  0         -      long streams: 2; tier 1; slow start: its weight is 0.25

NAME                        ADDRESSES  TTL  LOOKED UP  REMARK
gateways.example.com        0          -    3s ago     fails since 1m0s: gateways.example.com.: SERVFAIL from nameserver 10.0.0.2:53
srv:_icap._tcp.example.com  1          30s  1s ago     -
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// The endpoint is what --admin says, else what the configuration says.
func TestStatusCommand(t *testing.T) {
	dir := t.TempDir()
	_, socket := serveAdmin(t, "unix:"+filepath.Join(dir, "s"))
	_, address := serveAdmin(t, "127.0.0.1:0")
	writeFile(t, dir, "x.yaml", "listeners: [{address: ':1344'}]\npools: [{servers: [127.0.0.1]}]\nadmin: {address: 'unix:s'}\n")
	writeFile(t, dir, "off.yaml", "listeners: [{address: ':1344'}]\npools: [{servers: [127.0.0.1]}]\nadmin: {address: 'off'}\n")
	for _, where := range [][]string{
		{"--admin", socket},
		{"--admin", address},
		{"--admin", "http://" + address},
		{"--config", filepath.Join(dir, "x.yaml")},
		{"--config", filepath.Join(dir, "off.yaml"), "--admin", address},
	} {
		stdout, stderr, code := command(append([]string{"status"}, where...)...)
		if code != exitOK || stderr != "" || !strings.HasPrefix(stdout, "icapgate 1.2.3, up 1h2m5s\n") {
			t.Errorf("status %v: exit code %d, stdout %q, stderr %q", where, code, stdout, stderr)
		}
		stdout, stderr, code = command(append([]string{"status", "--json"}, where...)...)
		var status admin.Status
		if err := json.Unmarshal([]byte(stdout), &status); err != nil || code != exitOK || stderr != "" || status.Pools[0].Servers[1].Address != "10.0.0.2:1344" {
			t.Errorf("status --json %v: exit code %d, %v, stdout %q, stderr %q", where, code, err, stdout, stderr)
		}
	}
}

func TestServerCommands(t *testing.T) {
	g, address := serveAdmin(t, "127.0.0.1:0")
	for _, tt := range []struct{ args, obeyed, stdout string }{
		{"drain 10.0.0.1:1344", "drain dlp 10.0.0.1:1344", "10.0.0.1:1344 of pool dlp: ready, up, weight 1, 2 in flight\n"},
		{"ready 10.0.0.1:1344", "ready dlp 10.0.0.1:1344", ""},
		{"maintenance 10.0.0.2:1344 --pool av", "maintenance av 10.0.0.2:1344", "10.0.0.2:1344 of pool av: ready, checking, weight 1, 0 in flight\n"},
		{"weight 10.0.0.1:1344 0", "weight dlp 10.0.0.1:1344 0", ""},
		{"weight --pool dlp 10.0.0.2:1344 7", "weight dlp 10.0.0.2:1344 7", ""},
	} {
		g.commands = nil
		stdout, stderr, code := command(append(strings.Fields(tt.args), "--admin", address)...)
		if code != exitOK || stderr != "" || len(g.commands) != 1 || g.commands[0] != tt.obeyed || tt.stdout != "" && stdout != tt.stdout {
			t.Errorf("%s: exit code %d, obeyed %q, stdout %q, stderr %q", tt.args, code, g.commands, stdout, stderr)
		}
	}
}

func TestAdminFaults(t *testing.T) {
	dir := t.TempDir()
	g, address := serveAdmin(t, "127.0.0.1:0")
	writeFile(t, dir, "off.yaml", "listeners: [{address: ':1344'}]\npools: [{servers: [127.0.0.1]}]\nadmin: {address: 'off'}\n")
	writeFile(t, dir, "bad.yaml", "listener: []\n")
	for _, tt := range []struct {
		args, stderr string
		code         int
	}{
		{"status --admin unix:" + dir + "/none", "is icapgate running", exitFailure},
		{"status --config " + dir + "/off.yaml", "admin.address off", exitFailure},
		{"status --config " + dir + "/bad.yaml", "bad.yaml:1: listener: unknown key", exitFailure},
		{"status --admin ftp://x", "http://HOST:PORT", exitUsage},
		{"drain", "SERVER", exitUsage},
		{"drain 10.0.0.1:1344 10.0.0.2:1344", "10.0.0.2:1344", exitUsage},
		{"drain 10.0.0.9:1344 --admin " + address, "10.0.0.9:1344", exitFailure},
		{"drain 10.0.0.2:1344 --admin " + address, "dlp, av", exitFailure},
		{"weight 10.0.0.1:1344 --admin " + address, "WEIGHT", exitUsage},
		{"weight 10.0.0.1:1344 much --admin " + address, "much", exitUsage},
		{"weight 10.0.0.1:1344 300 --admin " + address, "out of range", exitFailure},
	} {
		stdout, stderr, code := command(strings.Fields(tt.args)...)
		if code != tt.code || stdout != "" || !strings.Contains(stderr, tt.stderr) {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q, want exit code %d and %q", tt.args, code, stdout, stderr, tt.code, tt.stderr)
		}
	}
	if len(g.commands) > 0 {
		t.Errorf("obeyed: %q", g.commands)
	}
}

// A remark says of an ejected server why, and for how long.
func TestRemarkOnEjection(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		server admin.ServerStatus
		want   string
	}{
		{admin.ServerStatus{}, "-"},
		{admin.ServerStatus{Ejected: true, EjectionReason: "consecutive", EjectedUntil: now.Add(9400 * time.Millisecond), Ejections: 2}, "ejected for another 9s: it failed several requests in a row"},
		{admin.ServerStatus{Ejected: true, EjectionReason: "share", EjectedUntil: now.Add(time.Minute), LastError: "no answer"}, "ejected for another 1m0s: it failed too many requests; no answer"},
		{admin.ServerStatus{Ejected: true, EjectionReason: "latency", EjectedUntil: now.Add(time.Second)}, "ejected for another 1s: it is much slower than the others"},
		{admin.ServerStatus{Ejected: true, EjectionReason: "connect", EjectedUntil: now.Add(-time.Second)}, "ejected until a check succeeds: it could not be connected to"},
		{admin.ServerStatus{Doubted: true}, "nothing is heard of it: others are preferred"},
	} {
		if got := remark(tt.server, now); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.server, got, tt.want)
		}
	}
}
