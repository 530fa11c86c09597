package gateway

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/health"
	"icapgate/icap"
	"icapgate/pool"
)

// logBook is what a gateway logs, for many goroutines.
type logBook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// lines are those with a text in them.
func (l *logBook) lines(text string) (list []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, text) {
			list = append(list, line)
		}
	}
	return list
}

// keepLog has the gateway log into a book. It has to be called before the start.
func (g *testGateway) keepLog() *logBook {
	book := new(logBook)
	g.log = slog.New(slog.NewTextHandler(book, nil))
	for _, l := range g.loops {
		l.log = g.log
	}
	return book
}

// methodStub is a fake server that does some methods, and says so; none: it does both and says nothing.
func methodStub(t *testing.T, methods ...icap.Method) (*dlpstub.Server, string) {
	return startStub(t, dlpstub.Config{Methods: methods})
}

const (
	respmod   = "RESPMOD icap://gw/r ICAP/1.0¶Host: gw¶Allow: 204¶Encapsulated: req-hdr=0, res-hdr=27, null-body=46¶¶" + G + S
	reqmod    = RL + "Allow: 204¶" + reqNull
	onlyPath  = "services: [{path: /r}]\n"
	often     = "    health: {interval: 100ms, fall: 1, rise: 1}\n    slow_start: 0s\n    balance: round_robin\n"
	seldom    = "    health: {interval: 1h}\n    slow_start: 0s\n    balance: round_robin\n"
	noneSpeak = "no usable server has method among its Methods"
)

// served sends requests and returns how many of them each server got.
func (g *testGateway) served(c *client, request string, n, status int) (got []uint64) {
	g.t.Helper()
	servers := g.table.Load().pools[0].servers
	for _, s := range servers {
		got = append(got, -s.Requests())
	}
	for range n {
		c.send(text(request))
		c.status(status)
	}
	for i, s := range servers {
		got[i] += s.Requests()
	}
	return got
}

// A server gets no requests with a method that it does not name for their path, as long as another one does them, in the same tier or a further one.
func TestMethodsOfServers(t *testing.T) {
	for _, tt := range []struct {
		name    string
		methods [2][]icap.Method // of two servers
		tiers   [2]int
		rest    string
		reqmod  []uint64 // of 4, by server
		respmod []uint64
		missing []string // of the first server
	}{
		{"both do both", [2][]icap.Method{}, [2]int{}, onlyPath, []uint64{2, 2}, []uint64{2, 2}, nil},
		{"one of them", [2][]icap.Method{{icap.MethodReqmod}, nil}, [2]int{}, onlyPath, []uint64{2, 2}, []uint64{0, 4}, []string{"RESPMOD /r"}},
		{"each one", [2][]icap.Method{{icap.MethodReqmod}, {icap.MethodRespmod}}, [2]int{}, onlyPath, []uint64{4, 0}, []uint64{0, 4}, []string{"RESPMOD /r"}},
		{"a backup does it", [2][]icap.Method{{icap.MethodReqmod}, nil}, [2]int{0, 1}, onlyPath, []uint64{4, 0}, []uint64{0, 4}, []string{"RESPMOD /r"}},
		{"the path is not known", [2][]icap.Method{{icap.MethodReqmod}, nil}, [2]int{0, 1}, "", []uint64{4, 0}, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var list []string
			for i, methods := range tt.methods {
				_, address := methodStub(t, methods...)
				list = append(list, fmt.Sprintf("{address: %q, tier: %d}", address, tt.tiers[i]))
			}
			g := newGatewayIn(t, "["+strings.Join(list, ", ")+"]", seldom, tt.rest)
			if err := g.Start(); err != nil {
				t.Fatal(err)
			}
			g.ready()
			c := g.dial(1)
			if got := g.served(c, reqmod, 4, 204); !slices.Equal(got, tt.reqmod) {
				t.Errorf("REQMODs went to %v, want %v", got, tt.reqmod)
			}
			if tt.respmod != nil {
				if got := g.served(c, respmod, 4, 204); !slices.Equal(got, tt.respmod) {
					t.Errorf("RESPMODs went to %v, want %v", got, tt.respmod)
				}
			}
			if got := g.Status().Pools[0].Servers[0].MissingMethods; !slices.Equal(got, tt.missing) {
				t.Errorf("/status says that %q are missing, want %q", got, tt.missing)
			}
			c.send("OPTIONS icap://gw/r ICAP/1.0\r\nHost: gw\r\n\r\n")
			c.status(200)
		})
	}
}

// If nobody is left that says that it does a method, requests go to those who do not say so: their answer is theirs.
func TestMethodsNobodyHas(t *testing.T) {
	_, a := methodStub(t, icap.MethodReqmod)
	_, b := methodStub(t)
	g := newGateway(t, []string{a, b}, seldom, onlyPath)
	book := g.keepLog()
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	g.ready()
	servers := g.table.Load().pools[0].servers
	c := g.dial(1)
	for range 2 {
		if got := g.served(c, respmod, 2, 204); !slices.Equal(got, []uint64{0, 2}) {
			t.Errorf("with both: %v, want the one that does it", got)
		}
		servers[1].Health.SetState(health.Down)
		if got := g.served(c, respmod, 2, 405); !slices.Equal(got, []uint64{2, 0}) {
			t.Errorf("with the other one: %v, want that one", got)
		}
		servers[1].Health.SetState(health.Up)
	}
	want := []string{"level=INFO", "pool=dlp", "path=/r", "method=RESPMOD"}
	if lines := book.lines(noneSpeak); len(lines) != 2 || !containsAll(lines[0], want) {
		t.Errorf("logged %q, want two lines with %q", lines, want)
	}
	if lines := book.lines("a usable server has method among its Methods"); len(lines) != 2 {
		t.Errorf("logged %q, want two lines", lines)
	}
	if lines := book.lines("server does not have method among its Methods: not used for it"); len(lines) != 1 || !containsAll(lines[0], append(want, a)) {
		t.Errorf("logged %q, want one line with %q and %s", lines, want, a)
	}

	// In panic, too.
	for _, s := range servers {
		s.Health.SetState(health.Down)
	}
	p := *g.table.Load().pools[0] // the gateway looks at its own
	p.cfg.PanicThreshold, p.survey = 0.5, new(survey)
	sel := p.selection(need{0, icap.MethodRespmod}, bitset{})
	if !sel.panic || p.takes(0, need{0, icap.MethodRespmod}, sel) || !p.takes(1, need{0, icap.MethodRespmod}, sel) {
		t.Errorf("panic with %+v: want the second server only", sel)
	}
}

func containsAll(line string, words []string) bool {
	return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) })
}

// While a server that may do the method has no verdict, requests wait for it. When it turns out to be down, they go to the others.
func TestMethodsOfUncheckedServer(t *testing.T) {
	for _, verdict := range []health.State{health.Up, health.Down} {
		t.Run(verdict.String(), func(t *testing.T) {
			_, a := methodStub(t, icap.MethodReqmod)
			f := startFakeHeld(t)
			g := startGateway(t, []string{a, f.address}, seldom, onlyPath)
			server := g.table.Load().pools[0].servers
			eventually(t, "the first server", func() bool { return server[0].Health.Usable(0) })
			c := g.dial(1)
			c.send(text(respmod))
			eventually(t, "a request in line", func() bool { return server[0].Queue.Depth() == 1 })
			server[1].Health.SetState(verdict)
			if verdict == health.Down {
				c.status(405)
				return
			}
			s := f.next(t)
			s.gets(respmod)
			s.send(text("ICAP/1.0 204 No modifications needed¶¶"))
			s.release()
			c.status(204)
		})
	}
}

// What servers say of their methods changes; so does what is routed.
func TestMethodsChange(t *testing.T) {
	f := startFake(t)
	f.says("", "ICAP/1.0 200 OK¶Methods: RESPMOD¶")
	_, b := methodStub(t)
	g := newGateway(t, []string{f.address, b}, often, "services: [{path: /r, methods: [REQMOD]}]\n")
	book := g.keepLog()
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	g.ready()
	missing := func(want ...string) {
		t.Helper()
		eventually(t, fmt.Sprintf("missing: %q", want), func() bool { return slices.Equal(g.Status().Pools[0].Servers[0].MissingMethods, want) })
	}
	missing("REQMOD /r")
	c := g.dial(1)
	if got := g.served(c, reqmod, 4, 204); !slices.Equal(got, []uint64{0, 4}) {
		t.Errorf("REQMODs went to %v", got)
	}
	if lines := book.lines("nor any other that is routed there: not used for it"); len(lines) != 0 {
		t.Errorf("logged %q of a server that has a single routed method", lines)
	}
	f.says("", "ICAP/1.0 200 OK¶Methods: reqmod,Respmod¶")
	missing()
	f.says("", "ICAP/1.0 200 OK¶Methods: RESPMOD¶")
	missing("REQMOD /r")
	f.says("", "ICAP/1.0 200 OK¶")
	missing()
	if lines := book.lines("server has none of the routed methods among its Methods"); len(lines) != 2 || !containsAll(lines[0], []string{"level=WARN", f.address, "path=/r", "method=REQMOD"}) {
		t.Errorf("logged %q, want two warnings", lines)
	}
	if lines := book.lines("used for it again"); len(lines) != 2 {
		t.Errorf("logged %q, want two lines", lines)
	}
}

// What servers say of themselves is in /status, and a new ISTag is counted.
func TestOptionsInStatus(t *testing.T) {
	f := startFake(t)
	f.says("", "ICAP/1.0 200 OK¶ISTag: \"one\"¶Service: Scan¶Methods: REQMOD, RESPMOD¶Preview: 0¶Options-TTL: 3600¶Max-Connections: 9¶")
	f.says("/b", "ICAP/1.0 200 OK¶Max-Connections: 7¶")
	f.says("/c", "ICAP/1.0 404 no¶")
	g := startGateway(t, []string{f.address}, often, "services: [{path: /a}, {path: /b}, {path: /c}]\n").ready()
	var st = g.Status().Pools[0].Servers[0]
	eventually(t, "the answers", func() bool { st = g.Status().Pools[0].Servers[0]; return len(st.Options) == 2 })
	a, b := st.Options[0], st.Options[1]
	if a.Path != "/a" || a.ISTag != "one" || a.Service != "Scan" || *a.Preview != 0 || a.TTL != 3600 || a.MaxConnections != 9 ||
		!slices.Equal(a.Methods, []string{"REQMOD", "RESPMOD"}) || a.Seen.IsZero() || !a.ISTagChanged.IsZero() {
		t.Errorf("/a: %+v", a)
	}
	if b.Path != "/b" || b.ISTag != "" || b.Preview != nil || b.TTL != 0 || b.MaxConnections != 7 || b.Methods != nil {
		t.Errorf("/b: %+v", b)
	}
	if st.Cap != 6 {
		t.Errorf("the cap is %d, want the smaller one of 9 and 7, less the reserve", st.Cap)
	}
	f.says("", "ICAP/1.0 200 OK¶ISTag: \"two\"¶")
	eventually(t, "the new ISTag", func() bool { st = g.Status().Pools[0].Servers[0]; return st.Options[0].ISTag == "two" })
	if n := g.metric(fmt.Sprintf("istag_changes_total{pool=%q,server=%q}", "dlp", f.address)); n != 1 || st.ISTagChanges != 1 || st.Options[0].ISTagChanged.IsZero() {
		t.Errorf("after the change: %d changes, %+v", st.ISTagChanges, st.Options[0])
	}
}

// The cap follows what the server says, up and down, while requests wait and run: nobody is cut, and who waits gets what is new.
func TestCapChangesUnderWaiters(t *testing.T) {
	for _, policy := range []string{"round_robin", "least_inflight", "random_two", "peak_ewma", "hash"} {
		t.Run(policy, func(t *testing.T) {
			f := startFake(t)
			f.says("", optionsAnswer+"Max-Connections: 1¶")
			g := startGateway(t, []string{f.address}, "    health: {interval: 100ms}\n    reserve: 0\n    queue: {timeout: 20s}\n    balance: "+policy+"\n", "services: [{path: \"/r\"}]\n").ready()
			address := `{pool="dlp",server="` + f.address + `"`
			says := func(n int) {
				t.Helper()
				f.says("", optionsAnswer+fmt.Sprintf("Max-Connections: %d¶", n))
				eventually(t, "the new cap", func() bool { return g.metric("server_cap"+address+"}") == float64(n) })
			}
			var clients []*client
			for i := range 6 {
				c := g.dial(i % 2)
				c.send(text(v04))
				clients = append(clients, c)
			}
			g.holds(t, f, 1, 5)
			says(4)
			g.holds(t, f, 4, 2)
			says(2)
			g.settle()
			g.holds(t, f, 4, 2)
			var busy []*serverSide
			for range 4 {
				s := f.next(t)
				s.gets(v04)
				busy = append(busy, s)
			}
			for _, s := range busy[:2] { // two go for good, and nobody comes in their place
				s.send(text(page))
				s.release()
				s.over(t)
			}
			g.holds(t, f, 2, 2)
			eventually(t, "two connections", func() bool { return g.metric("server_connections"+address+`,state="active"}`) == 2 })
			f.idle(t)
			for _, s := range busy[2:] {
				s.send(text(page))
				s.release()
			}
			for range 2 {
				s := f.next(t)
				s.gets(v04)
				s.send(text(page))
				s.release()
			}
			for _, c := range clients {
				c.expect(text(page))
			}
			idle := func(n int) {
				t.Helper()
				eventually(t, fmt.Sprintf("%d idle connections", n), func() bool { return g.metric("server_connections"+address+`,state="idle"}`) == float64(n) })
			}
			idle(2)
			says(1) // idle ones beyond it go at once
			idle(1)
			if n := g.metric(`closes_total{side="server",reason="over_cap"}`); n != 3 {
				t.Errorf("%v connections were closed for the cap, want 3", n)
			}
		})
	}
}

// Under load a cap that changes all the time costs no request.
func TestCapChangesUnderLoad(t *testing.T) {
	for _, policy := range []string{"round_robin", "least_inflight", "random_two", "peak_ewma", "hash"} {
		t.Run(policy, func(t *testing.T) {
			withLoops(t, 2)
			var addresses []string
			for range 2 {
				_, address := startStub(t, dlpstub.Config{Mode: dlpstub.Echo})
				addresses = append(addresses, address)
			}
			g := startGateway(t, addresses, quiet+"    reserve: 0\n    queue: {timeout: 20s}\n    balance: "+policy+"\n", "").ready()
			servers := g.table.Load().pools[0].servers
			limit := func(n int) {
				for _, s := range servers {
					s.Learn(n)
					g.onCap(s)
				}
			}
			limit(4)
			var group sync.WaitGroup
			done := make(chan struct{})
			for i := range 8 {
				c := g.dial(i % 2)
				group.Go(func() {
					for n := range 60 {
						if err := c.exchange(text(RL + reqBody + chunks)); err != nil {
							t.Errorf("client %d, request %d: %v", i, n, err)
							return
						}
					}
				})
			}
			go func() { group.Wait(); close(done) }()
			for n := 0; ; n++ {
				select {
				case <-done:
					limit(1)
					eventually(t, "one connection to each server at most", func() bool {
						return !slices.ContainsFunc(servers, func(s *pool.Server) bool { return s.Connections() > 1 })
					})
					return
				case <-time.After(time.Millisecond):
					limit(1 + n%4)
				}
			}
		})
	}
}

// An OPTIONS of a client tells the cap only where the checks do not: they know the limits of all paths that share the connections.
func TestCapOfCheckedPath(t *testing.T) {
	f := startFake(t)
	f.says("/r", optionsAnswer+"Max-Connections: 5¶")
	g := startGateway(t, []string{f.address}, quiet, "services: [{path: /r}]\n").ready()
	c := g.dial(1)
	c.send(text("OPTIONS icap://gw/r ICAP/1.0¶Host: gw¶¶"))
	s := f.next(t)
	s.head()
	s.send(text(okLine + tag + "Max-Connections: 9¶¶"))
	s.release()
	c.status(200)
	if got := g.table.Load().pools[0].servers[0].Cap(); got != 4 {
		t.Errorf("the cap is %d, want 4", got)
	}
}
