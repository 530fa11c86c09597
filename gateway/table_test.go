package gateway

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"icapgate/configs"
	"icapgate/icap"
	"icapgate/pool"
)

// newTestTable makes a table of the services and pools in YAML, with one server per pool that nobody connects to.
func newTestTable(t *testing.T, text string) *table {
	t.Helper()
	cfg, err := configs.Parse("test.yaml", []byte("listeners: [{name: one, address: \":1\"}, {name: two, address: \":2\"}]\n"+text))
	if err != nil {
		t.Fatal(err)
	}
	out := new(table)
	for _, c := range cfg.Pools {
		q := pool.NewQueue(1)
		s := pool.NewServer(netip.MustParseAddrPort(c.Servers[0].Address), c.Servers[0].Address, 1, pool.Limits{}, q)
		out.pools = append(out.pools, &poolTable{name: c.Name, cfg: c, queue: q, servers: []*pool.Server{s}, others: new(otherPaths)})
	}
	out.routes = newRoutes(cfg, out.pools)
	faces := make(map[string]*face)
	err = out.setServices(func(s *service) *face {
		key := s.key()
		if faces[key] == nil {
			faces[key] = newFace(key, keptFace{}, 0)
		}
		return faces[key]
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

const twoPools = `
pools:
  - {name: a, servers: ["192.0.2.1:1344"]}
  - {name: b, servers: ["192.0.2.2:1344"]}
`

func TestMatch(t *testing.T) {
	const (
		opt   = icap.MethodOptions
		req   = icap.MethodReqmod
		resp  = icap.MethodRespmod
		other = icap.MethodOther
	)
	tests := []struct {
		name, services string
		listener, path string
		method         icap.Method
		want           string // pool and the service's path, or a status
		serverName     string
	}{
		{"exact", `[{path: /r, pool: a}]`, "one", "/r", req, "a /r", ""},
		{"exact is not a prefix", `[{path: /r, pool: a}]`, "one", "/r/x", req, "404", ""},
		{"exact is not cut", `[{path: /reqmod, pool: a}]`, "one", "/r", req, "404", ""},
		{"exact keeps its case", `[{path: /r, pool: a}]`, "one", "/R", req, "404", ""},
		{"exact is not normalised", `[{path: /r, pool: a}]`, "one", "//r", req, "404", ""},
		{"a slash at the end counts", `[{path: /r, pool: a}]`, "one", "/r/", req, "404", ""},
		{"nothing is decoded", `[{path: /r, pool: a}]`, "one", "/%72", req, "404", ""},
		{"prefix", `[{path: /av/*, pool: a}]`, "one", "/av/x/y", req, "a /av/", ""},
		{"prefix alone", `[{path: /av/*, pool: a}]`, "one", "/av/", req, "a /av/", ""},
		{"shorter than the prefix", `[{path: /av/*, pool: a}]`, "one", "/av", req, "404", ""},
		{"other prefix", `[{path: /av/*, pool: a}]`, "one", "/avx", req, "404", ""},
		{"prefix in the middle of a name", `[{path: /av*, pool: a}]`, "one", "/avscan", req, "a /av", ""},
		{"everything", `[{path: "*", pool: a}]`, "one", "/x", req, "a ", ""},
		{"everything, root", `[{path: "*", pool: a}]`, "one", "/", resp, "a ", ""},
		{"no path is everything", `[{pool: a}]`, "one", "/x", req, "a ", ""},
		{"first match wins", `[{path: /r*, pool: a}, {path: /r, pool: b}]`, "one", "/r", req, "a /r", ""},
		{"first match wins, the other way round", `[{path: /r, pool: b}, {path: /r*, pool: a}]`, "one", "/r", req, "b /r", ""},
		{"a later route", `[{path: /r, pool: b}, {path: "*", pool: a}]`, "one", "/x", req, "a ", ""},

		{"its listener", `[{path: /r, listener: two, pool: a}]`, "two", "/r", req, "a /r", ""},
		{"another listener", `[{path: /r, listener: two, pool: a}]`, "one", "/r", req, "404", ""},
		{"one pool per listener", `[{path: /r, listener: one, pool: a}, {path: /r, listener: two, pool: b}]`, "two", "/r", req, "b /r", ""},
		{"rest after a listener's route", `[{path: /r, listener: two, pool: a}, {path: /r, pool: b}]`, "one", "/r", req, "b /r", ""},

		{"both methods by default", `[{path: /r, pool: a}]`, "one", "/r", resp, "a /r", ""},
		{"its method", `[{path: /r, methods: [RESPMOD], pool: a}]`, "one", "/r", resp, "a /r", ""},
		{"another method", `[{path: /r, methods: [RESPMOD], pool: a}]`, "one", "/r", req, "405", ""},
		{"another path's method", `[{path: /r, methods: [RESPMOD], pool: a}]`, "one", "/x", req, "404", ""},
		{"another listener's method", `[{path: /r, listener: two, methods: [RESPMOD], pool: a}]`, "one", "/r", req, "404", ""},
		{"a pool per method", `[{path: /r, methods: [REQMOD], pool: a}, {path: /r, methods: [RESPMOD], pool: b}]`, "one", "/r", resp, "b /r", ""},
		{"a wrong method and then a match", `[{path: /r, methods: [REQMOD], pool: a}, {path: "*", pool: b}]`, "one", "/r", resp, "b ", ""},
		{"a wrong method and then nothing", `[{path: /r, methods: [REQMOD], pool: a}, {path: /x, pool: b}]`, "one", "/r", resp, "405", ""},
		{"OPTIONS fits every method", `[{path: /r, methods: [RESPMOD], pool: a}]`, "one", "/r", opt, "a /r", ""},
		{"OPTIONS takes the first", `[{path: /r, methods: [REQMOD], pool: a}, {path: /r, methods: [RESPMOD], pool: b}]`, "one", "/r", opt, "a /r", ""},
		{"OPTIONS needs the path", `[{path: /r, pool: a}]`, "one", "/x", opt, "404", ""},
		{"OPTIONS needs the listener", `[{path: /r, listener: two, pool: a}]`, "one", "/r", opt, "404", ""},

		{"its server name", `[{path: /r, server_names: [x.example, A.Example], pool: a}]`, "one", "/r", req, "a /r", "a.example"},
		{"another server name", `[{path: /r, server_names: [a.example], pool: a}]`, "one", "/r", req, "404", "b.example"},
		{"no server name", `[{path: /r, server_names: [a.example], pool: a}]`, "one", "/r", req, "404", ""},
		{"a server name where none is wanted", `[{path: /r, pool: a}]`, "one", "/r", req, "a /r", "a.example"},
		{"a pool per server name", `[{server_names: [a.example], pool: a}, {server_names: [b.example], pool: b}]`, "one", "/r", req, "b ", "b.example"},
		{"all below a name", `[{server_names: ["*.example"], pool: a}]`, "one", "/r", req, "a ", "x.y.example"},
		{"the name itself is not below it", `[{server_names: ["*.example"], pool: a}]`, "one", "/r", req, "404", "example"},
		{"nor one that only ends like it", `[{server_names: ["*.example"], pool: a}]`, "one", "/r", req, "404", "anexample"},

		{"unknown methods fit nothing", `[{path: /r, pool: a}]`, "one", "/r", other, "405", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table := newTestTable(t, "services: "+tt.services+twoPools)
			r, status := table.match(entrance{tt.listener, tt.serverName}, []byte(tt.path), tt.method)
			got := fmt.Sprint(status)
			if r != nil {
				got = r.pool.name + " " + r.path
				if status != 0 {
					t.Errorf("status %d with a route", status)
				}
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// Without services everything goes to the only pool.
func TestMatchWithoutServices(t *testing.T) {
	table := newTestTable(t, "pools: [{name: a, servers: [\"192.0.2.1:1344\"]}]")
	for _, m := range []icap.Method{icap.MethodOptions, icap.MethodReqmod, icap.MethodRespmod} {
		if r, _ := table.match(entrance{listener: "two"}, []byte("/any/thing"), m); r == nil || r.pool.name != "a" {
			t.Errorf("%v does not reach the only pool", m)
		}
	}
}

func TestMatchAllocatesNothing(t *testing.T) {
	table := newTestTable(t, "services: [{path: /a, pool: a}, {path: /b*, pool: a}, {path: \"*\", listener: one, pool: b}]"+twoPools)
	path := []byte("/x")
	if n := testing.AllocsPerRun(100, func() { table.match(entrance{listener: "one"}, path, icap.MethodReqmod) }); n != 0 {
		t.Errorf("%v allocations per match, want 0", n)
	}
}

// What the servers of pool a are asked for, and which of it decides about each route.
func TestCheckPaths(t *testing.T) {
	tests := []struct {
		name, services, health string
		paths                  []string
		otherPaths             bool
		checkPath              []int // by route
	}{
		{"only everything", `[{path: "*", pool: a}]`, "{}", nil, true, []int{-1}},
		{"one path", `[{path: /r, pool: a}]`, "{}", []string{"/r"}, false, []int{0}},
		{"two paths", `[{path: /r, pool: a}, {path: /s, pool: a}]`, "{}", []string{"/r", "/s"}, false, []int{0, 1}},
		{"one path for two methods", `[{path: /r, methods: [REQMOD], pool: a}, {path: /r, methods: [RESPMOD], pool: a}, {path: /s, pool: a}]`, "{}",
			[]string{"/r", "/s"}, false, []int{0, 0, 1}},
		{"a path and a prefix", `[{path: /r, pool: a}, {path: /av/*, pool: a}]`, "{}", []string{"/r"}, true, []int{0, -1}},
		{"another pool's path and prefix", `[{path: /s, pool: b}, {path: /r, pool: a}, {path: "*", pool: b}]`, "{}", []string{"/r"}, false, []int{0, 0, -1}},
		{"a rewritten path", `[{path: /r, rewrite: /avscan, pool: a}, {path: /s, rewrite: /r, pool: a}]`, "{}", []string{"/avscan", "/r"}, false, []int{0, 1}},
		{"two that are one to the servers", `[{path: /r, rewrite: /x, pool: a}, {path: /s/*, rewrite: /x, pool: a}]`, "{}", []string{"/x"}, false, []int{0, 0}},
		{"a rewritten prefix", `[{path: /r/*, rewrite: /x/*, pool: a}]`, "{}", nil, true, []int{-1}},
		{"a configured path", `[{path: /r, pool: a}, {path: /s, pool: a}]`, "{path: /check}", []string{"/check"}, false, []int{-1, -1}},
		{"a configured path decides, though everything is routed here", `[{path: "*", pool: a}]`, "{path: /check}", []string{"/check"}, false, []int{-1}},
		{"a configured path that is a route, too", `[{path: /r, pool: a}, {path: /s, pool: a}]`, "{path: /s}", []string{"/s"}, false, []int{-1, -1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			table := newTestTable(t, fmt.Sprintf(`
services: %s
pools:
  - {name: a, servers: ["192.0.2.1:1344"], health: %s}
  - {name: b, servers: ["192.0.2.2:1344"]}
`, tt.services, tt.health))
			p := table.pools[0]
			if !slices.Equal(p.paths, tt.paths) || p.otherPaths != tt.otherPaths {
				t.Errorf("asked for %q, other paths %v; want %q, %v", p.paths, p.otherPaths, tt.paths, tt.otherPaths)
			}
			for i, want := range tt.checkPath {
				if r := table.routes[i]; r.checkPath != want || r.index != i {
					t.Errorf("route %d has index %d and check path %d, want %d", i, r.index, r.checkPath, want)
				}
			}
		})
	}
}

// withServers changes one pool in a copy: nothing of the old table moves, because transactions are still on it.
func TestWithServers(t *testing.T) {
	old := newTestTable(t, "services: [{path: /a, pool: a}, {path: /b, pool: b}, {path: \"*\", pool: a}]"+twoPools)
	a, b := old.pools[0], old.pools[1]
	was, kept := a.servers[0], b.servers[0]
	added := pool.NewServer(netip.MustParseAddrPort("192.0.2.9:1344"), "dlp:1344", 1, pool.Limits{}, a.queue)
	next := old.withServers(0, []member{{server: added}})

	if len(a.servers) != 1 || a.servers[0] != was || old.routes[0].pool != a || !old.names(was) || old.names(added) {
		t.Error("the old table has changed")
	}
	if !next.names(added) || !next.names(kept) || next.names(was) {
		t.Error("the new table does not name the new server and the other pool's one, and these only")
	}
	n := next.pools[0]
	if n == a || n.queue != a.queue || n.budget != a.budget || n.name != "a" || !slices.Equal(n.paths, a.paths) || !n.otherPaths {
		t.Error("the pool has not kept what stays")
	}
	if next.pools[1] != b {
		t.Error("the other pool was copied: the loops would forget its state")
	}
	for i, want := range []*poolTable{n, b, n} {
		r, o := next.routes[i], old.routes[i]
		if r.pool != want {
			t.Errorf("route %d leads to another pool", i)
		}
		if r.path != o.path || r.prefix != o.prefix || r.methods != o.methods || r.checkPath != o.checkPath || r.index != o.index {
			t.Errorf("route %d has changed: %+v, was %+v", i, r, o)
		}
	}
	if !n.has(added) || n.has(was) {
		t.Error("has does not follow the new servers")
	}
}

// What the servers get in place of the path that a client has asked for.
func TestRewrite(t *testing.T) {
	tests := []struct{ path, rewrite, target, want string }{
		{"/reqmod", "", "/reqmod?a=b", "/reqmod?a=b"},
		{"/reqmod", "/avscan", "/reqmod", "/avscan"},
		{"/reqmod", "/avscan", "/reqmod?a=/reqmod?", "/avscan?a=/reqmod?"},
		{"/reqmod", "/avscan", "/reqmod?", "/avscan?"},
		{"/a/*", "/b/c/*", "/a/x/y?q", "/b/c/x/y?q"},
		{"/a/*", "/b/*", "/a/", "/b/"},
		{"/a/*", "/b/*", "/a/?/a/", "/b/?/a/"},
		{"/a/*", "/b", "/a/x/y?q", "/b?q"},
		{"*", "/b*", "/x", "/b/x"},
		{"*", "/b", "/x?y", "/b?y"},
	}
	for _, tt := range tests {
		s := fmt.Sprintf("services: [{path: %q, rewrite: %q, pool: a}]", tt.path, tt.rewrite)
		r := newTestTable(t, s+twoPools).routes[0]
		if got := string(r.appendTarget([]byte("x"), []byte(tt.target))); got != "x"+tt.want {
			t.Errorf("%s: %q is %q, want %q", s, tt.target, got[1:], tt.want)
		}
	}
}

// The servers get the other path, in checks, too, also when the request is sent again; the client's own stays in the access log.
func TestRewrittenRequest(t *testing.T) {
	p := startPair(t, "", "services: [{path: /r, rewrite: /avscan, pool: dlp}]")
	overBoth(t, func(t *testing.T, listener int) {
		c := p.dialFor(t, listener)
		want := strings.Replace(v05, "/r ICAP", "/avscan ICAP", 1)
		c.send(text(v05))
		s, other := p.next(t)
		s.gets(want)
		s.Close()
		s = other.next(t)
		s.gets(want)
		s.send(text(page))
		c.expect(text(page))
		s.Close()
	})
	if got := p.table.Load().pools[0].paths; !slices.Equal(got, []string{"/avscan"}) {
		t.Errorf("the checks ask for %q", got)
	}
}

// One listener, one certificate each, two tenants.
func TestRouteByServerName(t *testing.T) {
	p := startPair(t, "", `
services: [{server_names: [localhost], pool: dlp}, {path: /other, pool: dlp}]
`)
	dial := func(name string) *client {
		nc, err := tls.Dial("tcp", p.address(0), &tls.Config{RootCAs: p.roots, ServerName: name})
		if err != nil {
			t.Fatal(err)
		}
		return newClient(t, nc)
	}
	c := dial("localhost")
	c.send(text(v04))
	s, _ := p.next(t)
	s.gets(v04)
	s.send(text(page))
	c.expect(text(page))
	s.release()
	c = dial("127.0.0.1") // no name: an address is not sent
	c.send(text(v04))
	c.refusal(404, false)
	c = p.dial(1)
	c.send(text(v04))
	c.refusal(404, false)
}

// A path that no service has is told to the operator, with those that there are, and not to the client.
func TestStrayPathIsLogged(t *testing.T) {
	g := newGateway(t, []string{startFake(t).address}, "", "services: [{path: /r, pool: dlp}, {path: /scan/*, pool: dlp}]")
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	g.log = logger
	for _, l := range g.loops {
		l.log = logger
	}
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	c := g.dial(1)
	c.send(text(strings.Replace(v04, "/r ICAP", "/reqmod ICAP", 1)))
	if h := c.refusal(404, false); strings.Contains(h, "/scan") {
		t.Errorf("the client is told of the services: %q", h)
	}
	g.Close()
	if got := log.String(); !strings.Contains(got, `services="/r /scan/*"`) || !strings.Contains(got, "path=/reqmod") {
		t.Errorf("the log says %s", got)
	}
}
