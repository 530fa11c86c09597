package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fakeGateway records commands.
type fakeGateway struct {
	mu       sync.Mutex
	commands []string
	err      error // of every command and of Ready
	status   Status
}

func (g *fakeGateway) Status() Status { return g.status }

func (g *fakeGateway) Ready(pool string) error {
	if pool == "nowhere" {
		return fmt.Errorf("pool %q: %w", pool, ErrNotFound)
	}
	return g.err
}

func (g *fakeGateway) WriteMetrics(w io.Writer) { io.WriteString(w, "icapgate_requests_total 7\n") }

func (g *fakeGateway) Reload() error { return g.record("reload") }

func (g *fakeGateway) SetAdmin(pool, server, state string) error {
	return g.record(fmt.Sprintf("%s %s %s", state, pool, server))
}

func (g *fakeGateway) SetWeight(pool, server string, weight int) error {
	return g.record(fmt.Sprintf("weight %s %s %d", pool, server, weight))
}

func (g *fakeGateway) record(command string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.commands = append(g.commands, command)
	return g.err
}

// newFakeGateway has a server that is in one pool and one that is in two.
func newFakeGateway() *fakeGateway {
	ttl := 30.0
	return &fakeGateway{status: Status{
		Version:       "1.2.3",
		UptimeSeconds: 3725,
		Limits:        LimitsStatus{Connections: 12, MaxConnections: 12, Memory: 1 << 20, MaxMemory: 1 << 30, Overloaded: []string{"connections"}},
		Listeners:     []ListenerStatus{{Name: "icaps", Address: ":11344", Sessions: 12}},
		Services: []ServiceStatus{
			{Service: "/scan", Pools: []string{"dlp"}, Up: true, ISTag: "GW-1", ISTags: 2, ISTagChanges: 3, Announced: map[string][]string{"/scan": {"Methods: REQMOD"}}},
			{Service: "/scan*", Listener: "icaps", ServerNames: []string{"av.test"}, Pools: []string{"dlp"}, ISTag: "GW-1", ISTags: 2, Announced: map[string][]string{"/scan": {"Methods: <REQMOD>"}}},
		},
		Pools: []PoolStatus{
			{Name: "dlp", Queue: 3, ConnectionShare: 3, Servers: []ServerStatus{
				{Address: "192.0.2.1:1344", From: "dlp.test:1344", Authority: "dlp.test:1344", Health: "up", Admin: "ready", Weight: 2, Share: 0.5, InFlight: 4, Connections: 6, Idle: 2, Cap: 16,
					Requests: 1000, Since: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), CheckSeconds: 0.002,
					Ejected: true, EjectionReason: "connect", EjectedUntil: time.Date(2026, 1, 2, 3, 5, 5, 0, time.UTC), Ejections: 3},
				{Address: "192.0.2.2:1344", Health: "down", Admin: "drain", Weight: 1, LastError: "<b>no answer</b> within 2s", MissingPaths: []string{"/scan"},
					MissingMethods: []string{"RESPMOD /echo"}, Probe: &ProbeStatus{Result: "failed", Error: "REQMOD /r: <204>", At: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Seconds: 0.5}},
			}},
			{Name: "av", ConnectionShare: 1, Servers: []ServerStatus{{Address: "192.0.2.2:1344", Health: "checking", Admin: "ready"}}},
		},
		Names: []NameStatus{{Name: "dlp.test", Addresses: []string{"192.0.2.1"}, TTLSeconds: &ttl, Asked: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), LastError: "dlp.test.: SERVFAIL"}},
	}}
}

// Every method on every route: what is allowed, and that only POST to /api changes anything.
func TestMethods(t *testing.T) {
	gets := []string{"/metrics", "/healthz", "/readyz", "/status", "/"}
	posts := []string{"/api/reload", "/api/drain", "/api/ready", "/api/maintenance", "/api/weight"}
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"} {
		for _, path := range append(append([]string{"/nothing", "/api", "/api/", "/index.html"}, gets...), posts...) {
			for _, readOnly := range []bool{false, true} {
				g := newFakeGateway()
				r := httptest.NewRequest(method, path+"?server=192.0.2.1:1344&weight=5", nil)
				w := httptest.NewRecorder()
				NewHandler(g, Options{ReadOnly: readOnly}).ServeHTTP(w, r)

				want, allow := http.StatusNotFound, ""
				switch isGet, isPost := contains(gets, path), contains(posts, path); {
				case readOnly && !contains(gets[:3], path):
				case isGet && (method == "GET" || method == "HEAD"), isPost && method == "POST":
					want = http.StatusOK
				case isGet:
					want, allow = http.StatusMethodNotAllowed, "GET, HEAD"
				case isPost:
					want, allow = http.StatusMethodNotAllowed, "POST"
				}
				name := fmt.Sprintf("%s %s (read-only %v)", method, path, readOnly)
				if w.Code != want || w.Header().Get("Allow") != allow {
					t.Errorf("%s: %d, Allow %q, want %d, %q", name, w.Code, w.Header().Get("Allow"), want, allow)
				}
				if changed := len(g.commands) > 0; changed != (want == http.StatusOK && method == "POST") {
					t.Errorf("%s: commands %q", name, g.commands)
				}
			}
		}
	}
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

func get(t *testing.T, g Gateway, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	NewHandler(g, Options{}).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w
}

func TestReading(t *testing.T) {
	g := newFakeGateway()
	for _, tt := range []struct{ path, contentType, want string }{
		{"/metrics", "text/plain; version=0.0.4; charset=utf-8", "icapgate_requests_total 7\n"},
		{"/healthz", "text/plain; charset=utf-8", "ok\n"},
		{"/readyz", "text/plain; charset=utf-8", "ready\n"},
		{"/readyz?pool=dlp", "text/plain; charset=utf-8", "ready\n"},
	} {
		w := get(t, g, tt.path)
		if w.Code != 200 || w.Body.String() != tt.want || w.Header().Get("Content-Type") != tt.contentType {
			t.Errorf("%s: %d, %q, %q", tt.path, w.Code, w.Header().Get("Content-Type"), w.Body)
		}
	}
	g.err = errors.New("draining")
	if w := get(t, g, "/readyz"); w.Code != 503 || w.Body.String() != "draining\n" {
		t.Errorf("not ready: %d, %q", w.Code, w.Body)
	}
	if w := get(t, g, "/readyz?pool=nowhere"); w.Code != 404 {
		t.Errorf("pool that does not exist: %d, %q", w.Code, w.Body)
	}
	if w := get(t, g, "/healthz"); w.Code != 200 {
		t.Errorf("a gateway that is not ready is alive all the same: %d", w.Code)
	}
}

func TestStatusJSON(t *testing.T) {
	g := newFakeGateway()
	w := get(t, g, "/status")
	var got Status
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("%v, %q: %s", err, w.Header().Get("Content-Type"), w.Body)
	}
	if diff := cmp.Diff(g.status, got); diff != "" {
		t.Errorf("status differs after a round trip:\n%s", diff)
	}

	// The names are public: scripts use them.
	var tree struct {
		Pools []struct{ Servers []map[string]any }
	}
	if err := json.Unmarshal(w.Body.Bytes(), &tree); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"address": "192.0.2.1:1344", "from": "dlp.test:1344", "authority": "dlp.test:1344", "health": "up", "admin": "ready", "tier": 0.0, "weight": 2.0, "share": 0.5, "in_flight": 4.0, "long_streams": 0.0, "connections": 6.0,
		"idle": 2.0, "cap": 16.0, "requests": 1000.0, "request_share": 0.0, "since": "2026-01-02T03:04:05Z", "doubted": false, "ejected": true, "ejection_reason": "connect",
		"ejected_until": "2026-01-02T03:05:05Z", "ejections": 3.0, "check_seconds": 0.002, "last_error": "", "istag_changes": 0.0,
	}
	if diff := cmp.Diff(want, tree.Pools[0].Servers[0]); diff != "" {
		t.Errorf("names of a server's fields:\n%s", diff)
	}
	if none := get(t, &fakeGateway{}, "/status").Body.String(); strings.Contains(none, "null") {
		t.Errorf("lists that are empty are null:\n%s", none)
	}
	empty := get(t, &fakeGateway{status: Status{Services: []ServiceStatus{{Service: "s"}}, Pools: []PoolStatus{{Name: "p"}}, Names: []NameStatus{{Name: "n"}}}}, "/status").Body.String()
	if strings.Contains(empty, "null") {
		t.Errorf("lists without elements are null:\n%s", empty)
	}
}

func TestPage(t *testing.T) {
	w := get(t, newFakeGateway(), "/")
	page := w.Body.String()
	if w.Code != 200 || w.Header().Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("%d, %q", w.Code, w.Header().Get("Content-Type"))
	}
	for _, want := range []string{"1.2.3", "1h2m", "icaps", ":11344", "Pool dlp", "3 waiting", "192.0.2.1:1344",
		`class="down">down`, "&lt;b&gt;no answer&lt;/b&gt; within 2s", "probe: REQMOD /r: &lt;204&gt;", "not used for /scan", "does not do RESPMOD /echo",
		"limits shared by 3 gateways", "of dlp.test:1344", "30 s", "SERVFAIL",
		"/scan* on icaps", "av.test", "GW-1", "Methods: &lt;REQMOD&gt;", "unavailable", "2 ISTags"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not show %q", want)
		}
	}
	for _, not := range []string{"<b>", "<script", "src=", "href=", "http://", "https://", "0001-01-01"} {
		if strings.Contains(page, not) {
			t.Errorf("the page contains %q", not)
		}
	}
	if policy := w.Header().Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") {
		t.Errorf("Content-Security-Policy is %q", policy)
	}
}

func TestRounded(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 900 * time.Millisecond: "0s", 61*time.Second + 5: "1m1s", time.Hour: "1h0m", 50*time.Hour + 59*time.Second: "50h0m",
	} {
		if got := rounded(d); got != want {
			t.Errorf("rounded(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestCommands(t *testing.T) {
	const form, js = "application/x-www-form-urlencoded", "application/json"
	tests := []struct {
		name, path, contentType, body string
		code                          int
		want                          string // the command, or a part of the error
	}{
		{"reload", "/api/reload", "", "", 200, "reload"},
		{"form", "/api/drain", form, "pool=dlp&server=192.0.2.1:1344", 200, "drain dlp 192.0.2.1:1344"},
		{"JSON", "/api/drain", js, `{"pool":"dlp","server":"192.0.2.1:1344"}`, 200, "drain dlp 192.0.2.1:1344"},
		{"JSON with charset", "/api/ready", js + "; charset=utf-8", `{"pool":"dlp","server":"192.0.2.1:1344"}`, 200, "ready dlp 192.0.2.1:1344"},
		{"query", "/api/maintenance?pool=av&server=192.0.2.2:1344", "", "", 200, "maintenance av 192.0.2.2:1344"},
		{"pool found", "/api/drain", form, "server=192.0.2.1:1344", 200, "drain dlp 192.0.2.1:1344"},
		{"weight form", "/api/weight", form, "server=192.0.2.1:1344&weight=0", 200, "weight dlp 192.0.2.1:1344 0"},
		{"weight JSON", "/api/weight", js, `{"server":"192.0.2.1:1344","weight":7}`, 200, "weight dlp 192.0.2.1:1344 7"},

		{"pool ambiguous", "/api/drain", form, "server=192.0.2.2:1344", 400, "is in pools dlp, av"},
		{"unknown server", "/api/drain", form, "server=192.0.2.9:1344", 404, "no pool has a server"},
		{"no server", "/api/drain", form, "pool=dlp", 400, "server is missing"},
		{"nothing", "/api/drain", "", "", 400, "server is missing"},
		{"no weight", "/api/weight", form, "server=192.0.2.1:1344", 400, "weight is missing"},
		{"weight below 0", "/api/weight", js, `{"server":"192.0.2.1:1344","weight":-1}`, 400, "below 0"},
		{"weight no number", "/api/weight", form, "server=192.0.2.1:1344&weight=much", 400, "not a number"},
		{"weight a string", "/api/weight", js, `{"server":"192.0.2.1:1344","weight":"7"}`, 400, "cannot read the command"},
		{"unknown JSON field", "/api/drain", js, `{"srv":"x"}`, 400, "srv"},
		{"broken JSON", "/api/drain", js, `{"server":`, 400, "cannot read the command"},
		{"two values", "/api/drain", js, `{"server":"192.0.2.1:1344"} {}`, 400, "more than one"},
		{"broken form", "/api/drain", form, "server=%zz", 400, "cannot read the command"},
		{"other type", "/api/drain", "text/plain", "server=x", 415, "application/json"},
		{"large JSON", "/api/drain", js, `{"server":"` + strings.Repeat("x", maxBody) + `"}`, 413, "larger than"},
		{"large form", "/api/drain", form, "server=" + strings.Repeat("x", maxBody), 413, "larger than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newFakeGateway()
			r := httptest.NewRequest("POST", tt.path, strings.NewReader(tt.body))
			if tt.contentType != "" {
				r.Header.Set("Content-Type", tt.contentType)
			}
			w := httptest.NewRecorder()
			NewHandler(g, Options{}).ServeHTTP(w, r)
			var answer result
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
				t.Fatalf("the answer is not JSON: %v: %s", err, w.Body)
			}
			if w.Code != tt.code || answer.OK != (tt.code == 200) {
				t.Errorf("%d %+v, want %d", w.Code, answer, tt.code)
			}
			if tt.code == 200 {
				if len(g.commands) != 1 || g.commands[0] != tt.want {
					t.Errorf("commands %q, want %q", g.commands, tt.want)
				}
			} else if !strings.Contains(answer.Error, tt.want) || len(g.commands) != 0 {
				t.Errorf("error %q, want one with %q; commands %q", answer.Error, tt.want, g.commands)
			}
		})
	}
}

func TestCommandRefusedByGateway(t *testing.T) {
	for _, tt := range []struct {
		err  error
		code int
	}{
		{errors.New("icapgate.yaml:3: listeners: missing"), 422},
		{fmt.Errorf("pool %q: %w", "x", ErrNotFound), 404},
	} {
		g := newFakeGateway()
		g.err = tt.err
		w := httptest.NewRecorder()
		NewHandler(g, Options{}).ServeHTTP(w, httptest.NewRequest("POST", "/api/reload", nil))
		var answer result
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != tt.code || answer.Error != tt.err.Error() {
			t.Errorf("%v: %d %s", tt.err, w.Code, w.Body)
		}
	}
}
