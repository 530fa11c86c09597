package gateway

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"icapgate/bench/dlpstub"
	"icapgate/gateway/admin"
)

// operator is somebody at the admin endpoint of a running gateway.
type operator struct {
	*admin.Client
	t   testing.TB
	url string
}

// operator opens the admin endpoint of g on a port of its own.
func (g *testGateway) operator() *operator {
	g.t.Helper()
	g.config.Load().Admin.Address = "127.0.0.1:0"
	if err := g.openAdmin(); err != nil {
		g.t.Fatal(err)
	}
	address := g.admins[len(g.admins)-1].Address()
	c, err := admin.NewClient(address)
	if err != nil {
		g.t.Fatal(err)
	}
	return &operator{c, g.t, "http://" + address}
}

// get makes one GET over a connection of its own.
func (o *operator) get(path string) (status int, body string) {
	o.t.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := c.Get(o.url + path)
	if err != nil {
		o.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		o.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func (o *operator) expectReady(path string, want int, text string) {
	o.t.Helper()
	if got, body := o.get(path); got != want || !strings.Contains(body, text) {
		o.t.Errorf("GET %s: %d %q, want %d with %q", path, got, body, want, text)
	}
}

func (o *operator) status() admin.Status {
	o.t.Helper()
	s, err := o.Status(o.t.Context())
	if err != nil {
		o.t.Fatal(err)
	}
	return s
}

// do fails the test if a command does.
func (o *operator) do(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}

// twoStubs starts a gateway in front of two servers, a and b, which get requests by turns.
func twoStubs(t *testing.T) (g *testGateway, o *operator, a, b string) {
	_, a = startStub(t, dlpstub.Config{Name: "a"})
	_, b = startStub(t, dlpstub.Config{Name: "b"})
	g = startGateway(t, []string{a, b}, quiet+"    balance: round_robin\n", "").ready()
	return g, g.operator(), a, b
}

const v05Allow = RL + "Allow: 204¶" + reqBody + chunks // a stub answers it with 204

// split sends n requests and counts which server answered.
func split(c *client, n int) (a, b int) {
	c.t.Helper()
	for range n {
		c.send(text(v05Allow))
		switch head := c.status(204); {
		case strings.Contains(head, "X-Server: a\r\n"):
			a++
		case strings.Contains(head, "X-Server: b\r\n"):
			b++
		}
	}
	return a, b
}

func expectSplit(t *testing.T, c *client, n, wantA, wantB int) {
	t.Helper()
	if a, b := split(c, n); a != wantA || b != wantB {
		t.Errorf("of %d requests %d and %d went to a and b, want %d and %d", n, a, b, wantA, wantB)
	}
}

func TestCommandAdminStates(t *testing.T) {
	g, o, a, b := twoStubs(t)
	ctx := t.Context()
	c := g.dial(0)
	expectSplit(t, c, 10, 5, 5)
	o.do(o.Drain(ctx, "dlp", a))
	expectSplit(t, c, 10, 0, 10)
	if s := o.status().Pools[0].Servers[0]; s.Admin != "drain" || s.Health != "up" || s.Requests != 5 || s.RequestShare != 0.25 {
		t.Errorf("the drained server: %+v", s)
	}
	o.do(o.Ready(ctx, "", a)) // the pool may be left out
	expectSplit(t, c, 10, 5, 5)
	o.do(o.Maintenance(ctx, "dlp", b))
	expectSplit(t, c, 10, 10, 0)
	if s := o.status().Pools[0].Servers[1]; s.Admin != "maintenance" {
		t.Errorf("the server in maintenance: %+v", s)
	}

	o.do(o.Drain(ctx, "dlp", a))
	c.send(text(v05Allow))
	if head := c.status(503); !strings.Contains(head, "Retry-After: ") {
		t.Errorf("with no server left: %q", head)
	}
	o.expectReady("/readyz?pool=dlp", 503, "no usable server")
	o.do(o.Ready(ctx, "dlp", a))
	expectSplit(t, c, 4, 4, 0)
}

// A request that runs on a server is not touched by draining it.
func TestDrainedServerFinishes(t *testing.T) {
	f := startFake(t)
	_, b := startStub(t, dlpstub.Config{Name: "b"})
	g := startGateway(t, []string{f.address, b}, quiet+"    balance: round_robin\n", "").ready()
	o := g.operator()
	c, other := g.dial(0), g.dial(1)
	o.do(o.Weight(t.Context(), "dlp", b, 0))
	c.send(text(v05))
	s := f.next(t)
	o.do(o.Weight(t.Context(), "dlp", b, 1))
	o.do(o.Drain(t.Context(), "dlp", f.address))
	expectSplit(t, other, 3, 0, 3)
	if st := o.status().Pools[0].Servers[0]; st.InFlight != 1 || st.Connections != 1 || st.Idle != 0 {
		t.Errorf("the drained server: %+v, want one request and its connection", st)
	}
	s.head()
	s.expect(text(P + chunks))
	s.send(text(page))
	c.expect(text(page))
	s.release()
	expectSplit(t, c, 3, 0, 3)
	f.idle(t)
}

func TestCommandWeights(t *testing.T) {
	g, o, a, b := twoStubs(t)
	ctx := t.Context()
	c := g.dial(1)
	o.do(o.Weight(ctx, "dlp", a, 0))
	expectSplit(t, c, 8, 0, 8)
	o.do(o.Weight(ctx, "dlp", a, 1))
	expectSplit(t, c, 8, 4, 4)
	o.do(o.Weight(ctx, "dlp", b, 3))
	expectSplit(t, c, 8, 2, 6)
	if s := o.status().Pools[0].Servers[1]; s.Weight != 3 {
		t.Errorf("weight %d in the status, want 3", s.Weight)
	}
	o.do(o.Weight(ctx, "dlp", a, 0))
	o.do(o.Weight(ctx, "dlp", b, 0))
	c.send(text(v05Allow))
	c.status(503)
}

func TestCommandFaults(t *testing.T) {
	_, o, a, _ := twoStubs(t)
	ctx := t.Context()
	before := o.status().Pools
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"unknown pool", o.Drain(ctx, "av", a), `no pool "av"`},
		{"unknown server", o.Drain(ctx, "dlp", "192.0.2.1:1344"), `no server "192.0.2.1:1344"`},
		{"unknown server, no pool", o.Ready(ctx, "", "192.0.2.1:1344"), `no pool has a server "192.0.2.1:1344"`},
		{"no server", o.Maintenance(ctx, "dlp", ""), "server is missing"},
		{"weight too large", o.Weight(ctx, "dlp", a, 257), "allowed: 0 to 256"},
		{"weight below 0", o.Weight(ctx, "dlp", a, -1), "below 0"},
		{"reload without a file", o.Reload(ctx), "no configuration file"},
	} {
		if tt.err == nil || !strings.Contains(tt.err.Error(), tt.want) {
			t.Errorf("%s: %v, want an error with %q", tt.name, tt.err, tt.want)
		}
	}
	after := o.status().Pools
	for i, s := range after[0].Servers {
		if s.Admin != before[0].Servers[i].Admin || s.Weight != before[0].Servers[i].Weight {
			t.Errorf("a command that failed has changed %+v", s)
		}
	}
}

func TestStatus(t *testing.T) {
	f := startFake(t)
	f.says("", optionsAnswer+"Max-Connections: 2¶") // one of which is left for checks
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	o := g.operator()
	running, waiting := g.dial(0), g.dial(1)
	running.send(text(v04))
	s := f.next(t)
	s.head()
	s.expect(text(G))
	waiting.send(text(v04))
	eventually(t, "a request that waits", func() bool { return g.table.Load().pools[0].queue.Depth() == 1 })

	st := o.status()
	if st.Draining || st.UptimeSeconds <= 0 || len(st.Listeners) != 2 || len(st.Pools) != 1 || len(st.Pools[0].Servers) != 1 {
		t.Fatalf("%+v", st)
	}
	for i, want := range []admin.ListenerStatus{
		{Name: "icaps", Address: "icaps://" + g.address(0), Sessions: 1, Connections: 1},
		{Name: "icap", Address: "icap://" + g.address(1), Sessions: 1, Connections: 1},
	} {
		if st.Listeners[i] != want {
			t.Errorf("listener %+v, want %+v", st.Listeners[i], want)
		}
	}
	got := st.Pools[0].Servers[0]
	if got.Since.IsZero() || got.CheckSeconds <= 0 {
		t.Errorf("nothing is told of the checks: %+v", got)
	}
	if got.Address != f.address || got.Health != "up" || got.Admin != "ready" || got.Weight != 1 || got.InFlight != 1 ||
		got.Connections != 1 || got.Idle != 0 || got.Cap != 1 || got.Requests != 1 || got.LastError != "" {
		t.Errorf("server %+v", got)
	}
	if st.Pools[0].Name != "dlp" || st.Pools[0].Queue != 1 {
		t.Errorf("pool %s with a queue of %d, want dlp and 1", st.Pools[0].Name, st.Pools[0].Queue)
	}
	m := o.metrics()
	m.expect(t, `queue_depth{pool="dlp"}`, 1)
	m.expect(t, fmt.Sprintf(`server_cap{pool="dlp",server=%q}`, f.address), 1)
	m.expect(t, fmt.Sprintf(`server_in_flight{pool="dlp",server=%q}`, f.address), 1)
	m.expect(t, fmt.Sprintf(`server_connections{pool="dlp",server=%q,state="active"}`, f.address), 1)

	s.send(text(page))
	running.expect(text(page))
	s.release()
	s = f.next(t)
	s.head()
	s.expect(text(G))
	s.send(text(page))
	waiting.expect(text(page))
	s.release()
	g.settle()
	m = o.metrics()
	m.expect(t, `queue_depth{pool="dlp"}`, 0)
	m.expect(t, `queue_duration_seconds_count{pool="dlp"}`, 1)
	m.expect(t, fmt.Sprintf(`server_connections{pool="dlp",server=%q,state="idle"}`, f.address), 1)
}

// Not ready before every server has been checked once, whatever came out.
func TestReadyAfterFirstChecks(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // accepts nobody: the check waits
	if err != nil {
		t.Fatal(err)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	_, other := startStub(t, dlpstub.Config{})
	g := startGateway(t, []string{ln.Addr().String(), closed.Addr().String(), other}, "    health: {interval: 1h, timeout: 1m}\n", "")
	o := g.operator()
	eventually(t, "the other servers are checked", func() bool {
		s := g.table.Load().pools[0].servers
		return s[1].Health.Checked() && s[2].Health.Checked()
	})
	o.expectReady("/readyz", 503, "server "+ln.Addr().String()+" of pool dlp has not been checked yet")
	o.expectReady("/healthz", 200, "ok")
	serveFake(t, ln, nil)
	g.eventuallyReady(o)
	o.expectReady("/readyz?pool=dlp", 200, "ready")
	o.expectReady("/readyz?pool=av", 404, `no pool "av"`)
}

func (g *testGateway) eventuallyReady(o *operator) {
	g.t.Helper()
	eventually(g.t, "ready", func() bool { status, _ := o.get("/readyz"); return status == 200 })
}

// A server in maintenance is not checked, and does not keep the gateway from being ready.
func TestReadyWithMaintenance(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, other := startStub(t, dlpstub.Config{})
	g := startGateway(t, []string{ln.Addr().String(), other}, "    health: {interval: 1h, timeout: 1m}\n", "")
	o := g.operator()
	eventually(t, "the other server is checked", func() bool { return g.table.Load().pools[0].servers[1].Health.Checked() })
	o.expectReady("/readyz", 503, "has not been checked yet")
	o.do(o.Maintenance(t.Context(), "dlp", ln.Addr().String()))
	o.expectReady("/readyz", 200, "ready")
}

// No usable server: the gateway itself is ready, its pool is not.
func TestReadyWithoutServers(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	g := startGateway(t, []string{closed.Addr().String()}, "    health: {interval: 1h, fall: 1}\n", "")
	o := g.operator()
	g.eventuallyReady(o)
	o.expectReady("/readyz?pool=dlp", 503, "pool dlp has no usable server")
	m := o.metrics()
	m.expect(t, fmt.Sprintf(`server_up{pool="dlp",server=%q}`, closed.Addr()), 0)
	m.expect(t, `checks_total{result="failed"}`, 1)
	if st := o.status().Pools[0].Servers[0]; st.Health != "down" || st.LastError == "" {
		t.Errorf("server %+v, want down with an error", st)
	}
}

// Drain: not ready, nobody gets in, the idle go, the request that runs is answered, and then it is over.
func TestReadyWhileDraining(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	o := g.operator()
	c, idle := g.dial(0), g.dial(1)
	g.eventuallyReady(o)
	c.send(text(v05))
	s := f.next(t)
	drained := make(chan struct{})
	go func() {
		g.Drain(context.Background())
		close(drained)
	}()
	idle.closed()
	eventually(t, "the idle session has ended", func() bool { return g.listeners[1].sessions.Load() == 0 })
	o.expectReady("/readyz", 503, "draining")
	o.expectReady("/readyz?pool=dlp", 503, "draining")
	o.expectReady("/healthz", 200, "ok")
	if st := o.status(); !st.Draining || st.Listeners[0].Sessions != 1 {
		t.Errorf("%+v", st)
	}
	if nc, err := net.Dial("tcp", g.address(1)); err == nil {
		nc.Close()
		t.Error("a new client got in")
	}
	select {
	case <-drained:
		t.Fatal("Drain did not wait for the request")
	default:
	}
	s.head()
	s.expect(text(P + chunks))
	s.send(text(page))
	c.expect(strings.Replace(text(page), "Encapsulated", "Connection: close\r\nEncapsulated", 1))
	c.closed()
	s.release()
	<-drained
}

// Start opens both addresses, and says what is wrong with them.
func TestStartOpensAdmin(t *testing.T) {
	_, addr := startStub(t, dlpstub.Config{})
	g := startGateway(t, []string{addr}, quiet, "metrics: {address: \"127.0.0.1:0\"}").ready()
	o := &operator{t: t, url: "http://" + g.admins[0].Address()}
	for path, want := range map[string]int{"/metrics": 200, "/healthz": 200, "/readyz": 200, "/status": 404, "/": 404} {
		o.expectReady(path, want, "")
	}
	taken := newIdleGateway(t)
	taken.config.Load().Admin.Address = g.admins[0].Address()
	if err := taken.Start(); err == nil || !strings.Contains(err.Error(), taken.config.Load().Admin.Address) {
		t.Errorf("Start with an address that is taken: %v", err)
	}
	inTime(t, taken.Close)
}

// What is wrong with TLS to a server is in /status and in the log, with what to do; requests get a 503 meanwhile.
func TestStatusTellsOfTLS(t *testing.T) {
	right, file := serverCertificate(t)
	other, otherFile := certificateFor(t, "dlp.example")
	for _, tt := range []struct {
		name, pool string
		server     *tls.Config // nil: plain
		want       string
	}{
		{"unknown CA", "{}", right, "is not signed by a CA that is trusted: set tls.ca_file of the pool"},
		{"another name", "{ca_file: " + otherFile + "}", other, "certificate is for dlp.example, not for 127.0.0.1: set tls.server_name of the pool"},
		{"plain", "{ca_file: " + file + "}", nil, "use its port for secure ICAP, or remove tls of the pool"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, address := startStub(t, dlpstub.Config{TLS: tt.server})
			g := newGateway(t, []string{address}, "    tls: "+tt.pool+"\n    health: {interval: 100ms, timeout: 20s, fall: 1}\n    queue: {timeout: 20s}\n", "")
			book := g.keepLog()
			if err := g.Start(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "down", func() bool { return g.Status().Pools[0].Servers[0].Health == "down" })
			if got := g.Status().Pools[0].Servers[0].LastError; !strings.Contains(got, tt.want) {
				t.Errorf("last error %q, want %q", got, tt.want)
			}
			eventually(t, "the line", func() bool { return len(book.lines("server is down")) > 0 })
			if lines := book.lines("server is down"); len(lines) != 1 || !containsAll(lines[0], []string{tt.want, "level=WARN", "failures=1 since="}) {
				t.Errorf("logged %q, want %q", lines, tt.want)
			}
			c := g.dial(1)
			c.send(text(v04))
			c.status(503)
		})
	}
}
