package gateway

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"icapgate/configs"
	"icapgate/gateway/discovery"
	"icapgate/gateway/discovery/dnstest"
	"icapgate/health"
	"icapgate/pool"
)

// dnsGateway is a running gateway that asks a nameserver of the test.
type dnsGateway struct {
	*testGateway
	dns   *dnstest.Server
	fakes []*fakeServer // on 127.0.0.1, 127.0.0.2 and so on, all on the same port
	port  string
	log   *lockedBuffer
}

// lockedBuffer is a log that a test reads while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// lines are those with some words, each without its time.
func (l *lockedBuffer) lines(words string) (list []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if _, line, _ = strings.Cut(strings.TrimSpace(line), " "); strings.Contains(line, words) {
			list = append(list, line)
		}
	}
	return list
}

func startNameserver(t testing.TB) *dnstest.Server {
	t.Helper()
	s, err := dnstest.Start("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// hour is an interval that never comes: names are looked up when a test says so.
const hour = "interval: 1h, timeout: 5s"

// startDNS runs a gateway in front of n servers on one port. servers is its list in YAML, pool as for startGateway; PORT stands for the port. records are what
// the nameserver has at first, settings those of dns beside its servers.
func startDNS(t *testing.T, n int, servers, pool, settings string, records ...string) *dnsGateway {
	t.Helper()
	var hosts []string
	for i := range n {
		hosts = append(hosts, fmt.Sprintf("127.0.0.%d", i+1))
	}
	lns, port := listenOn(t, hosts...)
	d := &dnsGateway{dns: startNameserver(t), port: port, log: new(lockedBuffer)}
	for _, ln := range lns {
		d.fakes = append(d.fakes, serveFake(t, ln, nil))
	}
	d.set(records...)
	d.testGateway = newLoggedGateway(t, strings.ReplaceAll(servers, "PORT", port), pool, fmt.Sprintf("\ndns: {servers: [%q], %s}", d.dns.Addr, settings),
		slog.New(slog.NewTextHandler(d.log, nil)))
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *dnsGateway) set(records ...string) {
	for i := range records {
		records[i] = strings.ReplaceAll(records[i], "PORT", d.port)
	}
	d.dns.Set(records...)
}

// look has all names looked up now, and the gateway follow.
func (d *dnsGateway) look() {
	d.t.Helper()
	d.servers.askAll(d.config.Load())
	d.servers.refresh()
}

// answerAll answers every request of the servers until the test ends.
func (d *dnsGateway) answerAll() {
	stop := make(chan struct{})
	var answering sync.WaitGroup
	for _, f := range d.fakes {
		answering.Go(func() {
			for {
				select {
				case <-stop:
					return
				case s := <-f.begun:
					s.t = d.t
					s.head()
					s.expect(text(G))
					s.send(text(page))
					s.release()
				}
			}
		})
	}
	d.t.Cleanup(func() { close(stop); answering.Wait() })
}

func (d *dnsGateway) requireServers(want ...string) {
	d.t.Helper()
	var got []string
	for _, s := range d.Status().Pools[0].Servers {
		got = append(got, fmt.Sprintf("%d: %s of %s as %s x %d", s.Tier, s.Address, s.From, s.Authority, s.Weight))
	}
	for i := range want {
		want[i] = strings.ReplaceAll(want[i], "PORT", d.port)
	}
	if !slices.Equal(got, want) {
		d.t.Errorf("servers %q\nwant    %q", got, want)
	}
}

func (d *dnsGateway) byAddress(host string) *pool.Server {
	for _, s := range d.table.Load().pools[0].servers {
		if s.Addr.Addr().String() == host {
			return s
		}
	}
	return nil
}

// SRV records are servers with weights and tiers; a request says which target it is for. What changes of servers that stay is put in force, and they are the
// same with their connections; an operator's word stays.
func TestSRV(t *testing.T) {
	const srv = "_icap._tcp.test. 0 SRV "
	d := startDNS(t, 3, `["srv:_icap._tcp.test", {address: "127.0.0.3:PORT", tier: 2}]`, quiet, hour,
		srv+"10 20 PORT a.test.", srv+"20 20 PORT b.test.", "a.test. 0 A 127.0.0.1", "b.test. 0 A 127.0.0.2")
	d.ready()
	d.requireServers(
		"0: 127.0.0.1:PORT of srv:_icap._tcp.test as a.test:PORT x 1",
		"1: 127.0.0.2:PORT of srv:_icap._tcp.test as b.test:PORT x 1",
		"2: 127.0.0.3:PORT of 127.0.0.3:PORT as 127.0.0.3:PORT x 1")
	c := d.dial(1)
	request := func(f *fakeServer, authority string) {
		t.Helper()
		c.send(text(v04))
		s := f.next(t)
		s.expect(strings.ReplaceAll(text(forwarded(v04)), "SERVER", strings.ReplaceAll(authority, "PORT", d.port)))
		s.send(text(page))
		c.expect(text(page))
		s.release()
	}
	request(d.fakes[0], "a.test:PORT")
	a, b := d.byAddress("127.0.0.1"), d.byAddress("127.0.0.2")
	eventually(t, "an idle connection", func() bool { return a.Idle() == 1 })

	if err := d.SetWeight("dlp", "127.0.0.3:"+d.port, 7); err != nil {
		t.Fatal(err)
	}
	if err := d.SetWeight("dlp", b.Name, 9); err != nil {
		t.Fatal(err)
	}
	// Now b comes first, and beside it c, at the address of the third server.
	d.set(srv+"20 20 PORT a.test.", srv+"10 10 PORT b.test.", srv+"10 30 PORT c.test.", "a.test. 0 A 127.0.0.1", "b.test. 0 A 127.0.0.2", "c.test. 0 A 127.0.0.3")
	d.look()
	d.requireServers(
		"0: 127.0.0.2:PORT of srv:_icap._tcp.test as b.test:PORT x 9",
		"0: 127.0.0.3:PORT of srv:_icap._tcp.test as c.test:PORT x 3",
		"1: 127.0.0.1:PORT of srv:_icap._tcp.test as a.test:PORT x 1")
	if d.byAddress("127.0.0.1") != a || d.byAddress("127.0.0.2") != b || a.Idle() != 1 || a.Requests() != 1 {
		t.Error("servers that stay are others now, or have lost their connections")
	}
	d.ready()
	d.byAddress("127.0.0.3").SetWeight(0)
	request(d.fakes[1], "b.test:PORT")
	table := d.table.Load()
	d.look()
	if d.table.Load() != table {
		t.Error("the table was replaced although nothing has changed")
	}

	// A target that goes gets nothing more, and its connections are closed.
	d.set(srv+"10 10 PORT b.test.", "b.test. 0 A 127.0.0.2")
	d.look()
	eventually(t, "no connection to a server that has gone", func() bool { return a.Connections() == 0 })
	d.requireServers("0: 127.0.0.2:PORT of srv:_icap._tcp.test as b.test:PORT x 9", "2: 127.0.0.3:PORT of 127.0.0.3:PORT as 127.0.0.3:PORT x 1")
	if lines := d.log.lines("the servers of a pool have changed"); len(lines) != 2 || !strings.HasSuffix(lines[0], " changed=2") ||
		!strings.HasSuffix(lines[1], fmt.Sprintf("pool=dlp servers=2 added=[127.0.0.3:%s] removed=\"[127.0.0.3:%[1]s 127.0.0.1:%[1]s]\" changed=0", d.port)) {
		t.Errorf("log %q", lines)
	}
}

// Weight 0 of the configuration holds for all servers of SRV records, and tiers go up to 9.
func TestSRVSettings(t *testing.T) {
	var records []string
	for i := range 12 {
		records = append(records, fmt.Sprintf("s.test. 0 SRV %d 5 %d a.test.", i, 1000+i))
	}
	ns := startNameserver(t)
	ns.Set(append(records, "a.test. 0 A 192.0.2.1")...)
	m, book := newTestServers(t, nil)
	p := poolOf(configs.Server{Address: "srv:s.test", Weight: 0, Tier: 1, MaxConnections: 7})
	m.names.Use(m.lookup(configs.DNS{Servers: []string{ns.Addr}, Timeout: configs.Duration(patience)}), time.Hour)
	m.names.Follow(t.Context(), questions(&configs.Config{Pools: []configs.Pool{p.cfg}}))
	list := m.resolve(p)
	if len(list) != 12 || len(book.names) != 0 {
		t.Fatalf("%d servers", len(list))
	}
	for i, o := range list {
		if o.weight != 0 || o.tier != min(1+i, 9) || o.maxConnections != 7 || o.server.Addr.Port() != uint16(1000+i) {
			t.Errorf("server %d: %+v", i, o)
		}
	}
}

// Whatever happens to DNS, the pool keeps what it had, and the log has one line for it.
func TestDNSFails(t *testing.T) {
	d := startDNS(t, 2, `["dlp.test:PORT"]`, quiet, "interval: 1h, timeout: 1s", "dlp.test. 0 A 127.0.0.1", "dlp.test. 0 A 127.0.0.2")
	d.ready()
	d.answerAll()
	c := d.dial(0)
	table := d.table.Load()
	for _, fault := range []struct {
		name string
		set  func()
	}{
		{"SERVFAIL", func() { d.dns.Fail(dns.RcodeServerFailure) }},
		{"REFUSED", func() { d.dns.Fail(dns.RcodeRefused) }},
		{"silence", d.dns.Silence},
		{"garbage", func() {
			d.dns.Handle(func(w dns.ResponseWriter, _ *dns.Msg, _ bool) bool {
				_, _ = w.Write([]byte("garbage, garbage"))
				return true
			})
		}},
		{"no such name", func() { d.dns.Handle(nil); d.set("other.test. 0 A 127.0.0.1") }},
		{"no addresses", func() { d.set("dlp.test. 0 TXT x") }},
	} {
		fault.set()
		d.look()
		if d.table.Load() != table {
			t.Errorf("%s: other servers", fault.name)
		}
		st := d.Status().Names[0]
		if st.Name != "dlp.test" || st.LastError == "" || st.FailingSince.IsZero() || len(st.Addresses) != 2 || d.metric(`dns_name_failing{name="dlp.test"}`) != 1 {
			t.Errorf("%s: %+v", fault.name, st)
		}
		c.send(text(v04))
		c.expect(text(page))
	}
	d.set("dlp.test. 7 A 127.0.0.1")
	d.look()
	st := d.Status().Names[0]
	if st.LastError != "" || !st.FailingSince.IsZero() || len(st.Addresses) != 1 || st.TTLSeconds == nil || *st.TTLSeconds != 7 || d.metric(`dns_name_failing{name="dlp.test"}`) != 0 {
		t.Errorf("%+v", st)
	}
	if failed, ok := d.log.lines("cannot look up a name"), d.log.lines("a name can be looked up again"); len(failed) != 1 || len(ok) != 1 {
		t.Errorf("log %q, %q", failed, ok)
	}
	for _, result := range []string{"ok", "not_found", "timeout", "failed"} {
		if d.metric(`dns_lookups_total{result="`+result+`"}`) == 0 {
			t.Errorf("no lookups were counted as %s", result)
		}
	}
}

// A gateway whose name is not known yet starts, and has servers as soon as it is.
func TestDNSLater(t *testing.T) {
	d := startDNS(t, 1, `["dlp.test:PORT"]`, "", "interval: 30s")
	if n := len(d.table.Load().pools[0].servers); n != 0 {
		t.Fatalf("%d servers", n)
	}
	d.set("dlp.test. 0 A 127.0.0.1")
	d.answerAll()
	eventually(t, "the server", func() bool { return d.byAddress("127.0.0.1") != nil })
	d.ready()
	c := d.dial(1)
	c.send(text(v04))
	c.expect(text(page))
}

// The TTL says when a name is looked up again: with one of 0, in a second.
func TestDNSByTTL(t *testing.T) {
	d := startDNS(t, 2, `["dlp.test:PORT"]`, "", "interval: 1h", "dlp.test. 0 A 127.0.0.1")
	d.ready()
	d.set("dlp.test. 0 A 127.0.0.2")
	eventually(t, "the other server", func() bool { return d.byAddress("127.0.0.2") != nil && d.byAddress("127.0.0.1") == nil })
}

// The addresses of a name, as of a headless service, change all the time, and no request fails. No connection to a server that has gone stays.
func TestDNSUnderLoad(t *testing.T) {
	a := func(hosts ...int) (records []string) {
		for _, h := range hosts {
			records = append(records, fmt.Sprintf("dlp.test. 0 A 127.0.0.%d", h))
		}
		return records
	}
	d := startDNS(t, 3, `["dlp.test:PORT"]`, "    slow_start: 0s\n", hour, a(1)...)
	d.ready()
	d.answerAll()
	var stop atomic.Bool
	var served atomic.Int64
	var clients sync.WaitGroup
	for i := range 4 {
		c := d.dial(i % 2)
		clients.Go(func() {
			for !stop.Load() {
				_ = c.SetDeadline(time.Now().Add(patience))
				c.send(text(v04))
				c.expect(text(page))
				served.Add(1)
			}
		})
	}
	gone := make(map[*pool.Server]bool)
	for _, hosts := range [][]int{{1, 2, 3}, {2, 3}, {1}, {1, 2, 3}, {3}, {1, 3}, {2}, {1, 2}} {
		for _, s := range d.table.Load().pools[0].servers {
			gone[s] = true
		}
		d.set(a(hosts...)...)
		d.look()
		for _, s := range d.table.Load().pools[0].servers {
			delete(gone, s)
		}
		if n := len(d.table.Load().pools[0].servers); n != len(hosts) {
			t.Errorf("%d servers, want %d", n, len(hosts))
		}
		d.ready()
		seen := served.Load()
		eventually(t, "requests between changes", func() bool { return served.Load() > seen+50 || t.Failed() })
	}
	stop.Store(true)
	clients.Wait()
	eventually(t, "no connection to a server that has gone", func() bool {
		for s := range gone { // some have come back as other servers, with which they count their connections together
			if s.InFlight() != 0 || s.Idle() != 0 || s.Connections() != 0 && d.byAddress(s.Addr.Addr().String()) == nil {
				return false
			}
		}
		for _, s := range d.table.Load().pools[0].servers {
			if s.Connections() != s.Idle() {
				return false
			}
		}
		return true
	})
	for _, r := range rejectNames {
		if n := d.metric(`rejects_total{reason="` + r + `"}`); n != 0 {
			t.Errorf("%v requests were answered with an error: %s", n, r)
		}
	}
}

// The addresses of a name are the gateways that share the caps. More of them cut nothing; when there are fewer, what waits goes on.
func TestConnectionShareByName(t *testing.T) {
	a := func(n int) (records []string) {
		for i := range n {
			records = append(records, fmt.Sprintf("gateways.test. 0 A 192.0.2.%d", i+1), fmt.Sprintf("gateways.test. 0 AAAA 2001:db8::%d", i+1))
		}
		return records
	}
	d := startDNS(t, 1, `[{address: "127.0.0.1:PORT", max_connections: 6}]`, quiet+"    connection_share: dns:gateways.test\n    reserve: 0\n", "interval: 1h, timeout: 1s", a(2)...)
	d.ready()
	s := d.byAddress("127.0.0.1")
	requireShare := func(n, limit int) {
		t.Helper()
		if st := d.Status().Pools[0]; st.ConnectionShare != n || st.Servers[0].Cap != limit || d.metric(`connection_share{pool="dlp"}`) != float64(n) {
			t.Errorf("%d gateways share, the cap is %d; want %d and %d", st.ConnectionShare, st.Servers[0].Cap, n, limit)
		}
	}
	requireShare(2, 3)
	var clients []*client
	var sides []*serverSide
	for range 3 {
		c := d.dial(1)
		c.send(text(v04))
		side := d.fakes[0].next(t)
		side.head()
		side.expect(text(G))
		clients, sides = append(clients, c), append(sides, side)
	}
	d.set(a(3)...)
	d.look()
	requireShare(3, 2)
	waiting := d.dial(1)
	waiting.send(text(v04))
	queue := d.table.Load().pools[0].queue
	eventually(t, "a request in the queue", func() bool { return queue.Depth() == 1 })
	if s.Connections() != 3 {
		t.Errorf("%d connections, want the 3 that there were", s.Connections())
	}

	for _, fail := range []func(){func() { d.dns.Fail(dns.RcodeServerFailure) }, d.dns.Silence, func() { d.dns.Handle(nil); d.set() }} {
		fail()
		d.look()
		requireShare(3, 2)
	}

	d.set(a(1)...)
	d.look()
	requireShare(1, 6)
	side := d.fakes[0].next(t) // the one that waited
	side.head()
	side.expect(text(G))
	for i, c := range append(clients, waiting) {
		o := append(sides, side)[i]
		o.send(text(page))
		c.expect(text(page))
		o.release()
	}
	if lines := d.log.lines("so many gateways share"); len(lines) != 3 || !strings.HasSuffix(lines[2], "gateways=1 before=3") {
		t.Errorf("log %q", lines)
	}
}

// As long as nothing is known, there is one connection; when the name has been unknown to DNS for a while, this gateway is alone.
func TestConnectionShareUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, book := newTestServers(t, map[string][]string{})
		p := poolOf(named("192.0.2.1:1344")...)
		p.cfg.ConnectionShare = "dns:gateways"
		share := func(want int) {
			t.Helper()
			synctest.Wait()
			if got := m.share(&p.cfg); got != want {
				t.Errorf("after %v: %d, want %d", time.Now(), got, want)
			}
		}
		share(pool.ShareUnknown)
		p.setServers(book.ask(t, m, p))
		share(pool.ShareUnknown)
		if s := p.servers[0]; s.HasSlot() != true || s.Cap() != 0 { // it has said no limit, so there is nothing to share
			t.Errorf("cap %d", s.Cap())
		}
		time.Sleep(aloneAfter - time.Second)
		share(pool.ShareUnknown)
		time.Sleep(10 * time.Second)
		share(1)
		book.set("gateways", "192.0.2.1", "192.0.2.2")
		book.ask(t, m, p)
		share(2)
		book.forget("gateways")
		time.Sleep(2 * time.Hour)
		share(2)
		m.stop()
	})
}

// A reload takes the settings of dns in force, and asks about no name that is not in the configuration any more.
func TestReloadNames(t *testing.T) {
	lns, port := listenOn(t, "127.0.0.1", "127.0.0.2")
	for _, ln := range lns {
		serveFake(t, ln, nil)
	}
	first, second := startNameserver(t), startNameserver(t)
	first.Set("a.test. 0 A 127.0.0.1", "b.test. 0 A 127.0.0.1")
	second.Set("b.test. 0 A 127.0.0.2")
	r := startReloader(t, "127.0.0.1:"+port)
	put := func(ns *dnstest.Server, servers ...string) {
		for i := range servers {
			servers[i] += ":" + port
		}
		r.set(servers, fmt.Sprintf("dns: {servers: [%q], interval: 1h}\n", ns.Addr))
	}
	names := func(want ...string) {
		t.Helper()
		var got []string
		for _, n := range r.Status().Names {
			got = append(got, n.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("names %q, want %q", got, want)
		}
	}
	put(first, "a.test", "b.test")
	r.reload()
	names("a.test", "b.test")
	if got := r.names(); len(got) != 1 || got[0] != "127.0.0.1:"+port { // one address, one server
		t.Errorf("servers %q", got)
	}

	// One that is refused changes nothing.
	good := r.text
	put(second, "b.test", "c.test")
	r.text += "state_dir: /elsewhere\n"
	if r.Reload() == nil {
		t.Error("not refused")
	}
	names("a.test", "b.test")
	r.text = good

	put(second, "b.test")
	r.reload()
	names("b.test")
	if got := r.names(); len(got) != 1 || got[0] != "127.0.0.2:"+port {
		t.Errorf("servers %q", got)
	}
}

// The name that is verified is that of the configuration or, of an SRV record, its target.
func TestNameOfCertificate(t *testing.T) {
	ns := startNameserver(t)
	cfg, file := certificateFor(t, "a.test")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := serveFake(t, ln, cfg)
	_, port, _ := net.SplitHostPort(f.address)
	ns.Set("a.test. 0 A 127.0.0.1", "b.test. 0 A 127.0.0.1", "a-srv.test. 0 SRV 0 0 "+port+" a.test.", "b-srv.test. 0 SRV 0 0 "+port+" b.test.")
	for _, v := range []struct {
		server, settings string
		fits             bool
	}{
		{"a.test:" + port, "", true},
		{"b.test:" + port, "", false},
		{"b.test:" + port, ", server_name: a.test", true},
		{"srv:a-srv.test", "", true},
		{"srv:b-srv.test", "", false},
		{"srv:b-srv.test", ", server_name: a.test", true},
	} {
		t.Run(v.server+v.settings, func(t *testing.T) {
			f.says("", optionsAnswer)
			g := startGateway(t, []string{v.server}, quiet+fmt.Sprintf("    tls: {ca_file: %q%s}\n", file, v.settings), fmt.Sprintf("\ndns: {servers: [%q]}", ns.Addr))
			s := g.table.Load().pools[0].servers[0]
			eventually(t, "the first check", func() bool { return s.Health.Usable(-1) || s.Health.LastError() != "" })
			if s.Health.Usable(-1) != v.fits || !v.fits && !strings.Contains(s.Health.LastError(), "certificate is for a.test, not for b.test") {
				t.Errorf("usable %v, last error %q", s.Health.Usable(-1), s.Health.LastError())
			}
			s.Health.SetState(health.Up) // for the request's own handshake
			c := g.dial(1)
			c.send(text(v04))
			if !v.fits {
				c.status(503)
				return
			}
			side := f.next(t)
			side.head()
			side.expect(text(G))
			side.send(text(page))
			c.expect(text(page))
			side.release()
		})
	}
}

// More names than a pool may have servers are cut.
func TestMostServers(t *testing.T) {
	addrs := func(third int) (list []string) {
		for i := range 700 {
			list = append(list, fmt.Sprintf("10.%d.%d.%d", third, i/250, i%250+1))
		}
		return list
	}
	m, book := newTestServers(t, map[string][]string{"a": addrs(1), "b": addrs(2)})
	if n := len(book.ask(t, m, poolOf(named("a:1", "b:1")...))); n != maxServers {
		t.Errorf("%d servers", n)
	}
}

// Names that the hosts file has need no nameserver.
func TestHostsFileOfTheMachine(t *testing.T) {
	data, err := os.ReadFile("/etc/hosts")
	if err != nil || !strings.Contains(string(data), "localhost") {
		t.Skip("/etc/hosts does not have localhost")
	}
	ns := startNameserver(t)
	m, _ := newTestServers(t, nil)
	m.names.Use(m.lookup(configs.DNS{Servers: []string{ns.Addr}}), time.Hour)
	q := discovery.Host("localhost")
	m.names.Follow(t.Context(), []discovery.Question{q})
	if a, ok := m.names.Answer(q); !ok || !a.Targets[0].Addr.IsLoopback() || len(ns.Asked()) > 0 {
		t.Errorf("%v", a)
	}
}

// A request whose server has gone from DNS and then fails goes on to the servers that there are now, not to those of its beginning.
func TestRetryAfterChange(t *testing.T) {
	for _, hosts := range [][]string{{"127.0.0.2"}, {"127.0.0.2", "127.0.0.1"}} {
		t.Run(strings.Join(hosts, " "), func(t *testing.T) {
			d := startDNS(t, 2, `["dlp.test:PORT"]`, quiet, hour, "dlp.test. 0 A 127.0.0.1")
			d.ready()
			c := d.dial(1)
			c.send(text(v04))
			first := d.fakes[0].next(t)
			first.head()
			first.expect(text(G))
			var records []string
			for _, h := range hosts {
				records = append(records, "dlp.test. 0 A "+h)
			}
			d.set(records...)
			d.look()
			d.ready()
			first.Close()
			first.release()

			second := d.fakes[1].next(t)
			second.head()
			second.expect(text(G))
			second.send(text(page))
			c.expect(text(page))
			second.release()
		})
	}
}

// A server that another entry of the configuration stands for now has the limit of that entry.
func TestLimitOfOtherEntry(t *testing.T) {
	d := startDNS(t, 1, `[{address: "srv:s.test", max_connections: 4}, {address: "a.test:PORT", max_connections: 8}]`, quiet+"    reserve: 0\n", hour,
		"s.test. 0 SRV 0 0 PORT a.test.", "s.test. 0 SRV 0 0 1 b.test.", "a.test. 0 A 127.0.0.1", "b.test. 0 A 127.0.0.2")
	s := d.byAddress("127.0.0.1")
	if s.Cap() != 4 {
		t.Fatalf("cap %d", s.Cap())
	}
	d.set("s.test. 0 SRV 0 0 1 b.test.", "a.test. 0 A 127.0.0.1", "b.test. 0 A 127.0.0.2")
	d.look()
	if d.byAddress("127.0.0.1") != s || s.Cap() != 8 {
		t.Errorf("cap %d, want 8", s.Cap())
	}
}

// A server that comes back while requests run on the connections that it had is not given more than its limit allows together with them.
func TestLimitOfServerThatComesBack(t *testing.T) {
	d := startDNS(t, 1, `[{address: "dlp.test:PORT", max_connections: 2}, "127.0.0.2:1"]`, quiet+"    reserve: 0\n", hour, "dlp.test. 0 A 127.0.0.1")
	eventually(t, "the server", func() bool { return d.byAddress("127.0.0.1").Health.Usable(-1) })
	begin := func() (*client, *serverSide) {
		c := d.dial(1)
		c.send(text(v04))
		s := d.fakes[0].next(t)
		s.head()
		s.expect(text(G))
		return c, s
	}
	end := func(c *client, s *serverSide) {
		s.send(text(page))
		c.expect(text(page))
		s.release()
	}
	first, one := begin()
	old := d.byAddress("127.0.0.1")
	d.set("dlp.test. 0 A 127.0.0.9")
	d.look()
	d.set("dlp.test. 0 A 127.0.0.1")
	d.look()
	s := d.byAddress("127.0.0.1")
	if s == old || s.Requests() != 0 {
		t.Error("the server that came back is the one that went")
	}
	eventually(t, "the server", func() bool { return s.Health.Usable(-1) })
	if s.Connections() != 1 {
		t.Errorf("%d connections, want the one that there is", s.Connections())
	}
	second, two := begin()
	third := d.dial(1)
	third.send(text(v04))
	queue := d.table.Load().pools[0].queue
	eventually(t, "a request in the queue", func() bool { return queue.Depth() == 1 })
	end(first, one) // its end is what the third one waits for
	three := d.fakes[0].next(t)
	three.head()
	three.expect(text(G))
	end(third, three)
	end(second, two)
	if old.InFlight() != 0 {
		t.Errorf("%d requests", old.InFlight())
	}
}

// A server that has gone keeps its series until everybody has read them, and not for ever; one that comes back goes on counting.
func TestSeriesOfServersThatHaveGone(t *testing.T) {
	d := startDNS(t, 2, `["dlp.test:PORT"]`, quiet, hour, "dlp.test. 0 A 127.0.0.1")
	d.ready()
	d.answerAll()
	c := d.dial(1)
	series := func(host string) string {
		return fmt.Sprintf(`requests_total{listener="icap",pool="dlp",server="%s:%s",method="REQMOD",code="200"}`, host, d.port)
	}
	require := func(first, second float64) {
		t.Helper()
		c.send(text(v04))
		c.expect(text(page))
		eventually(t, "the count of the latest request", func() bool { return d.metric(series("127.0.0.2")) == second })
		if n := d.metric(series("127.0.0.1")); n != first {
			t.Errorf("%v requests on the first server, want %v", n, first)
		}
	}
	to := func(hosts ...string) {
		var records []string
		for _, h := range hosts {
			records = append(records, "dlp.test. 0 A "+h)
		}
		d.set(records...)
		d.look()
		d.ready()
	}
	pass := func(span int64) { // as if a time had passed
		d.onLoops(func(l *loop) {
			for name := range l.stats.left {
				l.stats.left[name] -= span
			}
		})
	}
	require(1, 0)
	to("127.0.0.2")
	require(1, 1)
	pass(keepSeries / 2)
	to("127.0.0.1", "127.0.0.2")
	d.byAddress("127.0.0.1").SetWeight(0)
	pass(keepSeries)
	require(1, 2)
	to("127.0.0.2")
	require(1, 3)
	pass(keepSeries)
	d.set("dlp.test. 0 A 127.0.0.2", "dlp.test. 0 A 192.0.2.1")
	d.look()
	d.byAddress("192.0.2.1").SetWeight(0)
	require(0, 4)
}

// A reload whose names nobody knows does not take all servers from a pool that has some: it is refused.
func TestReloadToUnknownName(t *testing.T) {
	f := startFake(t)
	ns := startNameserver(t)
	r := startReloader(t, f.address)
	r.set([]string{"typo.test"}, fmt.Sprintf("dns: {servers: [%q], interval: 1h}\n", ns.Addr))
	if err := r.Reload(); err == nil || !strings.Contains(err.Error(), "pool dlp would have no server") || !strings.Contains(err.Error(), "typo.test.: no such name") {
		t.Errorf("error %v", err)
	}
	if got := r.names(); !slices.Equal(got, []string{f.address}) || len(r.Status().Names) != 0 {
		t.Errorf("servers %q, names %v", got, r.Status().Names)
	}
	r.set([]string{"typo.test", f.address}, fmt.Sprintf("dns: {servers: [%q], interval: 1h}\n", ns.Addr))
	r.reload()
}

// A gateway that is closed during a reload ends it, and begins no other one.
func TestCloseDuringReload(t *testing.T) {
	f := startFake(t)
	ns := startNameserver(t)
	asked := make(chan struct{}, 100)
	ns.Handle(func(dns.ResponseWriter, *dns.Msg, bool) bool { asked <- struct{}{}; return true })
	r := startReloader(t, f.address)
	r.set([]string{f.address, "slow.test"}, fmt.Sprintf("dns: {servers: [%q], interval: 1h, timeout: 20s}\n", ns.Addr))
	reloaded := make(chan error, 1)
	go func() { reloaded <- r.Reload() }()
	<-asked
	r.Close()
	if <-reloaded == nil {
		t.Error("the reload has succeeded")
	}
	if r.Reload() == nil {
		t.Error("a reload after Close has succeeded")
	}
}
