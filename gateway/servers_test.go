package gateway

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"icapgate/configs"
	"icapgate/gateway/discovery"
	"icapgate/pool"
)

// nameBook is a resolver: host names and their addresses. A name that is not in it can't be resolved.
type nameBook struct {
	mu    sync.Mutex
	names map[string][]string
}

func (b *nameBook) set(name string, addrs ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.names[name] = addrs
}

func (b *nameBook) forget(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.names, name)
}

func (b *nameBook) lookup(_ context.Context, q discovery.Question, _ discovery.Answer) (a discovery.Answer, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.names[q.Name] {
		a.Targets = append(a.Targets, discovery.Target{Addr: netip.MustParseAddr(s)})
	}
	if len(a.Targets) == 0 {
		return a, &discovery.Error{Result: discovery.NotFound, Name: q.Name, Reason: "no such name"}
	}
	a.TTL = discovery.NoTTL
	return a, nil
}

// ask has the names of a pool looked up, and returns what it finds.
func (b *nameBook) ask(t *testing.T, m *servers, p *poolTable) []member {
	t.Helper()
	m.names.Use(b.lookup, time.Hour)
	m.names.Follow(t.Context(), questions(&configs.Config{Pools: []configs.Pool{p.cfg}}))
	return m.resolve(p)
}

// newTestServers returns the control plane of a gateway without loops, and the resolver that it asks.
func newTestServers(t *testing.T, names map[string][]string) (*servers, *nameBook) {
	t.Helper()
	g := &Gateway{log: slog.New(slog.DiscardHandler)}
	m := &g.servers
	m.init(g)
	t.Cleanup(m.stop)
	return m, &nameBook{names: names}
}

// poolOf returns a pool that has not been resolved yet.
func poolOf(servers ...configs.Server) *poolTable {
	p := configs.DefaultPool()
	p.Name, p.Servers = "dlp", servers
	return &poolTable{name: p.Name, cfg: p, queue: pool.NewQueue(1)}
}

func named(addresses ...string) (list []configs.Server) {
	for _, a := range addresses {
		s := configs.DefaultServer()
		s.Address = a
		list = append(list, s)
	}
	return list
}

// describe lists servers as "address of authority".
func describe(list []member) (out []string) {
	for _, o := range list {
		out = append(out, o.server.Name+" of "+o.server.Authority)
	}
	return out
}

func TestResolve(t *testing.T) {
	tests := []struct {
		name    string
		names   map[string][]string
		servers []string
		want    []string
	}{
		{"an address", nil, []string{"192.0.2.1:1344"}, []string{"192.0.2.1:1344 of 192.0.2.1:1344"}},
		{"an IPv6 address", nil, []string{"[2001:db8::1]:1344"}, []string{"[2001:db8::1]:1344 of [2001:db8::1]:1344"}},
		{"a name is one server per address, by address", map[string][]string{"dlp": {"192.0.2.3", "192.0.2.20", "192.0.2.100", "2001:db8::1"}},
			[]string{"dlp:1344"},
			[]string{"192.0.2.3:1344 of dlp:1344", "192.0.2.20:1344 of dlp:1344", "192.0.2.100:1344 of dlp:1344", "[2001:db8::1]:1344 of dlp:1344"}},
		{"a name that is complete", map[string][]string{"dlp.test.": {"192.0.2.3"}}, []string{"dlp.test.:1"}, []string{"192.0.2.3:1 of dlp.test:1"}},
		{"the order of the configuration", map[string][]string{"b": {"192.0.2.1"}, "a": {"192.0.2.2"}}, []string{"b:1", "192.0.2.9:1", "a:1"},
			[]string{"192.0.2.1:1 of b:1", "192.0.2.9:1 of 192.0.2.9:1", "192.0.2.2:1 of a:1"}},
		{"an address of two names is the first one's", map[string][]string{"a": {"192.0.2.1", "192.0.2.2"}, "b": {"192.0.2.2", "192.0.2.3"}}, []string{"a:1", "b:1"},
			[]string{"192.0.2.1:1 of a:1", "192.0.2.2:1 of a:1", "192.0.2.3:1 of b:1"}},
		{"ports tell servers apart", map[string][]string{"a": {"192.0.2.1"}}, []string{"a:1", "a:2"}, []string{"192.0.2.1:1 of a:1", "192.0.2.1:2 of a:2"}},
		{"a name that is not known", nil, []string{"dlp:1", "192.0.2.1:1"}, []string{"192.0.2.1:1 of 192.0.2.1:1"}},
		{"a name without addresses", map[string][]string{"dlp": nil}, []string{"dlp:1", "192.0.2.1:1"}, []string{"192.0.2.1:1 of 192.0.2.1:1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, book := newTestServers(t, tt.names)
			if got := describe(book.ask(t, m, poolOf(named(tt.servers...)...))); !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// What the configuration says of a name holds for each of its servers.
func TestResolveTakesSettings(t *testing.T) {
	m, book := newTestServers(t, map[string][]string{"dlp": {"192.0.2.1", "192.0.2.2"}})
	p := poolOf(configs.Server{Address: "dlp:1", Weight: 7, MaxConnections: 40}, configs.Server{Address: "192.0.2.3:1", Weight: 0})
	p.cfg.ConnectionShare, p.cfg.Reserve = "2", 3
	list := book.ask(t, m, p)
	for i, want := range []struct{ weight, cap int }{{7, 17}, {7, 17}, {0, 0}} {
		if s := list[i].server; s.Weight() != want.weight || s.Cap() != want.cap || s.Queue != p.queue {
			t.Errorf("%s has weight %d and cap %d, want %+v", s.Name, s.Weight(), s.Cap(), want)
		}
	}
}

// Servers that stay are the same objects, so that their connections, counters and health live on.
func TestResolveAgain(t *testing.T) {
	m, book := newTestServers(t, map[string][]string{"a": {"192.0.2.1", "192.0.2.2"}, "b": {"192.0.2.9"}})
	p := poolOf(named("a:1", "b:1")...)
	again := func(changedWant bool, want ...string) {
		t.Helper()
		list := book.ask(t, m, p)
		if got, changed := describe(list), !slices.Equal(list, p.members); !slices.Equal(got, want) || changed != changedWant {
			t.Errorf("got %q, changed %v; want %q, %v", got, changed, want, changedWant)
		}
		for _, is := range list {
			for _, was := range p.servers {
				if was.Name == is.server.Name && was.Authority == is.server.Authority && was != is.server {
					t.Errorf("%s is another object", was.Name)
				}
			}
		}
		p.setServers(list)
	}
	again(true, "192.0.2.1:1 of a:1", "192.0.2.2:1 of a:1", "192.0.2.9:1 of b:1")
	again(false, "192.0.2.1:1 of a:1", "192.0.2.2:1 of a:1", "192.0.2.9:1 of b:1")
	book.set("a", "192.0.2.2", "192.0.2.3") // one for another
	again(true, "192.0.2.2:1 of a:1", "192.0.2.3:1 of a:1", "192.0.2.9:1 of b:1")
	book.forget("a") // the resolver has a bad time
	again(false, "192.0.2.2:1 of a:1", "192.0.2.3:1 of a:1", "192.0.2.9:1 of b:1")
	book.set("b") // and another name is gone
	again(false, "192.0.2.2:1 of a:1", "192.0.2.3:1 of a:1", "192.0.2.9:1 of b:1")
	book.set("b", "192.0.2.3", "192.0.2.4") // one of them is a's still
	again(true, "192.0.2.2:1 of a:1", "192.0.2.3:1 of a:1", "192.0.2.4:1 of b:1")
	book.set("a", "192.0.2.2") // and now it is b's: another authority, so another server
	again(true, "192.0.2.2:1 of a:1", "192.0.2.3:1 of b:1", "192.0.2.4:1 of b:1")
}

// listenOn opens one port on several loopback addresses, as the servers of one name have it.
func listenOn(t *testing.T, hosts ...string) (lns []net.Listener, port string) {
	t.Helper()
	for range 50 {
		for i, host := range hosts {
			if i == 0 {
				port = "0"
			}
			ln, err := net.Listen("tcp", net.JoinHostPort(host, port))
			if err != nil {
				if i == 0 {
					t.Fatal(err)
				}
				break
			}
			lns = append(lns, ln)
			_, port, _ = net.SplitHostPort(ln.Addr().String())
		}
		if len(lns) == len(hosts) {
			return lns, port
		}
		for _, ln := range lns { // another process has the port on one of them
			ln.Close()
		}
		lns = nil
	}
	t.Skipf("no port is free on all of %v", hosts)
	return nil, ""
}

// namedGateway is a running gateway whose only pool is a name, for which each address is a scripted server.
type namedGateway struct {
	*testGateway
	book  *nameBook
	fakes []*fakeServer // by address, 127.0.0.1 and so on
	hosts []string
}

// newNamedGateway starts a gateway whose name has the first two of three addresses.
func newNamedGateway(t *testing.T) *namedGateway {
	hosts := []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}
	lns, port := listenOn(t, hosts...)
	n := &namedGateway{hosts: hosts, book: &nameBook{names: map[string][]string{}}}
	for _, ln := range lns {
		n.fakes = append(n.fakes, serveFake(t, ln, nil))
	}
	n.testGateway = startGateway(t, []string{"localhost:" + port}, quiet, "")
	n.servers.names.Use(n.book.lookup, time.Hour)
	n.now(hosts[:2]...)
	n.ready()
	return n
}

// now lets the name have other addresses, and the gateway ask for them.
func (n *namedGateway) now(addrs ...string) {
	n.book.set("localhost", addrs...)
	n.refresh()
}

func (n *namedGateway) refresh() {
	n.servers.names.Follow(n.t.Context(), []discovery.Question{discovery.Host("localhost")})
	n.servers.refresh()
}

// server is the server of an address, nil if the table has none.
func (n *namedGateway) server(host string) *pool.Server {
	for _, s := range n.table.Load().pools[0].servers {
		if s.Addr.Addr().String() == host {
			return s
		}
	}
	return nil
}

// only sends all new requests to one address.
func (n *namedGateway) only(host string) {
	for _, s := range n.table.Load().pools[0].servers {
		s.SetWeight(0)
	}
	n.server(host).SetWeight(1)
}

// request sends a request and returns the server's side of it.
func (n *namedGateway) request(c *client, f *fakeServer) *serverSide {
	n.t.Helper()
	c.send(text(v04))
	s := f.next(n.t)
	s.expect(strings.ReplaceAll(text(forwarded(v04)), "SERVER", n.server(n.hosts[0]).Authority))
	return s
}

func (n *namedGateway) answer(c *client, s *serverSide) {
	n.t.Helper()
	s.send(text(page))
	c.expect(text(page))
	s.release()
}

// Addresses appear and disappear: the table is replaced, what stays keeps its object, what goes loses its checker and its idle
// connections, and a request that runs there comes to its end.
func TestRefresh(t *testing.T) {
	n := newNamedGateway(t)
	table := n.table.Load()
	kept, gone := n.server("127.0.0.1"), n.server("127.0.0.2")
	if len(table.pools[0].servers) != 2 || kept == nil || gone == nil {
		t.Fatalf("servers %q, want the two addresses", describe(table.pools[0].members))
	}

	n.now("127.0.0.1", "127.0.0.2")
	if n.table.Load() != table {
		t.Error("the table was replaced although nothing has changed")
	}
	n.book.forget("localhost")
	n.refresh()
	n.now()
	if n.table.Load() != table {
		t.Error("the table was replaced although the resolver had no answer")
	}

	// Two requests at the server that will go: one comes to its end, the other runs.
	n.only("127.0.0.2")
	running, done := n.dial(1), n.dial(1)
	s1, s2 := n.request(running, n.fakes[1]), n.request(done, n.fakes[1])
	n.answer(done, s2)
	eventually(t, "an idle connection", func() bool { return gone.Idle() == 1 })

	n.now("127.0.0.1", "127.0.0.3")
	next := n.table.Load()
	added := n.server("127.0.0.3")
	if next == table || added == nil || n.server("127.0.0.2") != nil || n.server("127.0.0.1") != kept {
		t.Fatalf("servers %q, want the kept one as it was and the new one", describe(next.pools[0].members))
	}
	if len(table.pools[0].servers) != 2 || table.pools[0].servers[1] != gone {
		t.Error("the old table has changed")
	}
	s2.over(t) // the idle connection is closed
	eventually(t, "no idle connection", func() bool { return gone.Idle() == 0 && gone.Connections() == 1 })

	n.servers.mu.Lock()
	checked := len(n.servers.running)
	stillChecked := n.servers.running[gone] != nil
	n.servers.mu.Unlock()
	if checked != 2 || stillChecked {
		t.Errorf("%d checkers run, the gone server's among them: %v; want 2 and false", checked, stillChecked)
	}
	eventually(t, "the new server is up", func() bool { return added.Health.Usable(-1) })

	// The request that ran is answered, and its client's next one follows the new table.
	n.only("127.0.0.3")
	n.answer(running, s1)
	s3 := n.request(running, n.fakes[2])
	n.answer(running, s3)
	if gone.Requests() != 2 || added.Requests() != 1 {
		t.Errorf("%d requests at the gone server, %d at the new one; want 2 and 1", gone.Requests(), added.Requests())
	}
}

// A connection to a server that went while a request ran on it is of no use any more.
func TestRefreshEndsConnectionAfterItsRequest(t *testing.T) {
	n := newNamedGateway(t)
	gone := n.server("127.0.0.2")
	n.only("127.0.0.2")
	c := n.dial(1)
	s := n.request(c, n.fakes[1])
	n.now("127.0.0.1")
	n.answer(c, s)
	s.over(t)
	eventually(t, "its slot is free", func() bool { return gone.Connections() == 0 })
}

// A server that went is checked no more, not even when somebody wants it at once.
func TestRefreshStopsChecker(t *testing.T) {
	n := newNamedGateway(t)
	gone, kept := n.server("127.0.0.2"), n.server("127.0.0.1")
	n.now("127.0.0.1")
	_, _, before := n.fakes[1].counts()
	_, _, keptBefore := n.fakes[0].counts()
	gone.Expedite()
	kept.Expedite()
	eventually(t, "a check of the server that stays", func() bool { _, _, now := n.fakes[0].counts(); return now > keptBefore })
	if _, _, after := n.fakes[1].counts(); after != before {
		t.Error("the server that went is still checked")
	}
}

// An address that comes back is a new server: nothing is known of it.
func TestRefreshComesBack(t *testing.T) {
	n := newNamedGateway(t)
	was := n.server("127.0.0.2")
	n.now("127.0.0.1")
	n.now("127.0.0.1", "127.0.0.2")
	is := n.server("127.0.0.2")
	if is == nil || is == was {
		t.Fatal("want a new object")
	}
	n.ready()
	n.only("127.0.0.2")
	c := n.dial(0)
	n.answer(c, n.request(c, n.fakes[1]))
	if is.Requests() != 1 || was.Requests() != 0 {
		t.Errorf("%d requests at the new object, %d at the old one; want 1 and 0", is.Requests(), was.Requests())
	}
}

// Requests go on while the addresses change all the time.
func TestRefreshUnderLoad(t *testing.T) {
	n := newNamedGateway(t)
	stop := make(chan struct{})
	var answering sync.WaitGroup
	for _, f := range n.fakes {
		answering.Go(func() {
			for {
				select {
				case <-stop:
					return
				case s := <-f.begun:
					s.t = t
					s.head()
					s.expect(text(G))
					s.send(text(page))
					s.release()
				}
			}
		})
	}
	var clients sync.WaitGroup
	for i := range 4 {
		c := n.dial(i % 2)
		clients.Go(func() {
			for range 50 {
				c.send(text(v04))
				c.expect(text(page))
			}
		})
	}
	finished := make(chan struct{})
	go func() { clients.Wait(); close(finished) }()
	sets := [][]string{{"127.0.0.1", "127.0.0.3"}, {"127.0.0.1", "127.0.0.2"}, {"127.0.0.1"}, {"127.0.0.1", "127.0.0.2", "127.0.0.3"}}
	changes := 0
	for running := true; running; changes++ {
		n.now(sets[changes%len(sets)]...)
		select {
		case <-finished:
			running = false
		default:
		}
	}
	close(stop)
	answering.Wait()
	n.servers.mu.Lock()
	defer n.servers.mu.Unlock()
	if want := len(n.table.Load().pools[0].servers); len(n.servers.running) != want {
		t.Errorf("%d checkers run for %d servers after %d changes", len(n.servers.running), want, changes)
	}
	if s := n.server("127.0.0.1"); s.Requests() == 0 {
		t.Error("the server that stayed has got nothing")
	}
}
