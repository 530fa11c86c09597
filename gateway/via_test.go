package gateway

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"icapgate/health"
)

// With an id, requests carry it behind what is there already, and pass other gateways; one that has it already does not pass.
func TestVia(t *testing.T) {
	const ours = "X-ICAP-Via: ICAP/1.0 gw-1¶"
	for _, v := range []struct {
		name, fields, want string // "": refused
	}{
		{"none", "X-A: 1¶", "X-A: 1¶" + ours},
		{"another gateway", "X-ICAP-Via: ICAP/1.0 gw-2¶X-A: 1¶", "X-ICAP-Via: ICAP/1.0 gw-2¶X-A: 1¶" + ours},
		{"several", "x-icap-via: ICAP/1.0 gw-2, ICAP/1.0 gw-3¶X-ICAP-VIA: ICAP/1.0 gw-11 (gw-1)¶", "x-icap-via: ICAP/1.0 gw-2, ICAP/1.0 gw-3¶X-ICAP-VIA: ICAP/1.0 gw-11 (gw-1)¶" + ours},
		{"something else", "X-ICAP-Via: , ¶X-Via: gw-1¶Via: ICAP/1.0 gw-1¶", "X-ICAP-Via: ,¶X-Via: gw-1¶Via: ICAP/1.0 gw-1¶" + ours},
		{"ours", ours, ""},
		{"ours in another case", "x-icap-via: icap/1.0 GW-1¶", ""},
		{"ours in a list", "X-ICAP-Via: ICAP/1.0 gw-2,ICAP/1.0 gw-1 (x),ICAP/1.0 gw-3¶", ""},
		{"ours in a further field", "X-ICAP-Via: ICAP/1.0 gw-2¶X-ICAP-Via: ICAP/1.0 gw-1¶", ""},
		{"ours in a fold", "X-ICAP-Via: ICAP/1.0 gw-2,¶\tICAP/1.0¶ gw-1¶", ""},
		{"ours for the gateway only", "Connection: X-ICAP-Via¶" + ours, ""},
		{"ours alone", "X-ICAP-Via: gw-1¶", ""},
	} {
		t.Run(v.name, func(t *testing.T) {
			f := startFake(t)
			g := startGateway(t, []string{f.address}, quiet, "gateway_id: gw-1").ready()
			p := newPlayer(t, g, f, 1)
			if v.want != "" {
				p.play(simple(RL+v.fields+reqNull, forwarded(RL)+v.want+reqNull)...)
				return
			}
			for _, request := range []string{RL + v.fields + reqBody + chunks, OL + v.fields + "¶", strings.Replace(RL, "/r", "/r2", 1) + v.fields + reqNull} {
				p.c.send(text(request))
				p.c.refusal(508, false)
			}
			f.idle(t)
			if n := g.metric(`rejects_total{reason="loop"}`); n != 3 {
				t.Errorf("%v rejects, want 3", n)
			}
		})
	}
}

// No rule takes X-ICAP-Via away: neither ours, nor that of another gateway, which could not tell its own requests any more.
func TestViaComesAfterRules(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, withHeaders(`{trusted: [192.0.2.1], guarded: ["X-ICAP-*"], request: {remove: ["X-*"]}}`)+"\ngateway_id: gw-1").ready()
	p := newPlayer(t, g, f, 1)
	p.play(simple(RL+"X-A: 1¶x-icap-via: ICAP/1.0 gw-2¶"+reqNull, forwarded(RL)+"x-icap-via: ICAP/1.0 gw-2¶X-ICAP-Via: ICAP/1.0 gw-1¶"+reqNull)...)
	p.c.send(text(RL + "X-ICAP-Via: ICAP/1.0 gw-1¶" + reqNull))
	p.c.refusal(508, false)
}

// The Via of an encapsulated message is content, and without an id X-ICAP-Via is a field as any other.
func TestViaIsLeftAlone(t *testing.T) {
	const inside = "Encapsulated: req-hdr=0, null-body=64¶¶GET / HTTP/1.1¶Host: a¶Via: 1.1 gw-1¶X-ICAP-Via: ICAP/1.0 gw-1¶¶"
	f := startFake(t)
	p := newPlayer(t, startGateway(t, []string{f.address}, quiet, "gateway_id: gw-1").ready(), f, 1)
	inGet := strings.Replace(inside, "64", fmt.Sprint(len(text(inside[strings.Index(inside, "GET"):]))), 1)
	p.play(simple(RL+inGet, forwarded(RL)+"X-ICAP-Via: ICAP/1.0 gw-1¶"+inGet)...)

	f = startFake(t)
	p = newPlayer(t, startGateway(t, []string{f.address}, quiet, "").ready(), f, 1)
	p.play(simple(RL+"X-ICAP-Via: ICAP/1.0 gw-1¶"+reqNull, forwarded(RL)+"X-ICAP-Via: ICAP/1.0 gw-1¶"+reqNull)...)
}

// Gateways with ids of their own, one behind the other.
func TestViaOfSeveralGateways(t *testing.T) {
	f := startFake(t)
	last := startGateway(t, []string{f.address}, quiet, "gateway_id: gw-2").ready()
	first := startGateway(t, []string{last.address(1)}, quiet, "gateway_id: gw-1").ready()
	c := first.dial(0)
	c.send(text(v05))
	s := f.next(t)
	s.gets(RL + "X-ICAP-Via: ICAP/1.0 gw-1¶X-ICAP-Via: ICAP/1.0 gw-2¶" + reqBody + chunks)
	s.send(text(page))
	c.expect(text(page))
}

// relay passes connections on to a gateway that is started later, which so can have itself as a server.
type relay struct {
	ln      net.Listener
	to      chan string
	running sync.WaitGroup
}

func startRelay(t *testing.T) *relay {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{ln: ln, to: make(chan string, 1)}
	r.running.Go(r.run)
	t.Cleanup(func() { ln.Close(); close(r.to); r.running.Wait() })
	return r
}

func (r *relay) run() {
	to, ok := <-r.to
	for ok {
		in, err := r.ln.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", to)
		if err != nil {
			in.Close()
			continue
		}
		for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
			r.running.Go(func() {
				_, _ = io.Copy(way[0], way[1])
				way[0].Close()
				way[1].Close()
			})
		}
	}
}

// A gateway whose server is itself finds that out by its checks, for exact paths and for a prefix, and never uses it.
func TestOwnServerIsDown(t *testing.T) {
	for _, service := range []string{"path: /r, options: forward", "path: /r, options: merge", "options: merge", "options: forward"} {
		t.Run(service, func(t *testing.T) {
			r := startRelay(t)
			var log bytes.Buffer
			g := newLoggedGateway(t, fmt.Sprintf("[%q]", r.ln.Addr()), "    health: {interval: 100ms, fall: 1}\n",
				"gateway_id: gw-1\nservices: [{"+service+"}]", slog.New(slog.NewTextHandler(&syncWriter{w: &log}, nil)))
			if err := g.Start(); err != nil {
				t.Fatal(err)
			}
			r.to <- g.address(1)
			server := g.table.Load().pools[0].servers[0]
			eventually(t, "a check that shows it", func() bool { return server.Health.State() == health.Down })
			if fault := server.Health.LastError(); !strings.Contains(fault, "508") {
				t.Errorf("the server is down because of %q", fault)
			}
			c := g.dial(1)
			c.send(text(v05))
			c.refusal(503, false)
			g.Close()
			if !strings.Contains(log.String(), "a request has come back") {
				t.Errorf("the log has nothing of it: %s", log.String())
			}
		})
	}
}

// Requests that get there all the same come back once, with an id. Without one they go in circles until no more connections are allowed, and then
// all of them end: with an answer, and with nothing left behind.
func TestOwnServerIsUsed(t *testing.T) {
	for _, v := range []struct {
		id     string
		status int
	}{{"gateway_id: gw-1", 508}, {"", 502}} {
		t.Run(v.id, func(t *testing.T) {
			r := startRelay(t)
			const most = 40
			g := newGateway(t, []string{r.ln.Addr().String()}, "    health: {interval: 1h}\n    retry: {attempts: 0}\n    queue: {max: 0}\n    ejection: {consecutive: 0, failure_share: 0}\n",
				fmt.Sprintf("%s\nlimits: {max_connections: %d}", v.id, most))
			if err := g.Start(); err != nil {
				t.Fatal(err)
			}
			server := g.table.Load().pools[0].servers[0]
			r.to <- g.address(1)
			eventually(t, "the first check", func() bool { return server.Health.Checked() })
			eventually(t, "the check's end", func() bool { return g.Sessions() == 0 })
			server.Health.SetState(health.Up)
			c := g.dial(1)
			c.send(text(v05))
			c.status(v.status)
			c.Close()
			switch n := server.Requests(); {
			case v.id != "" && n != 1:
				t.Errorf("%d attempts, want 1", n)
			case v.id == "" && (n < 2 || n > most):
				t.Errorf("%d attempts, want more than one and no more than %d", n, most)
			}
			eventually(t, "the end of all requests", func() bool { return g.inFlight() == 0 })
		})
	}
}

// syncWriter is a writer for several goroutines.
type syncWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (w *syncWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(p)
}

func TestHasWord(t *testing.T) {
	for list, want := range map[string]bool{
		"": false, ",": false, "a": true, "A": true, "aa": false, "b,a": true, "b a": true, "b\r\n\ta": true, "b,,a,": true, "ICAP/1.0 a (b)": true, "(a)": false,
	} {
		if got := hasWord([]byte(list), []byte("a")); got != want {
			t.Errorf("hasWord(%q) = %v", list, got)
		}
	}
}
