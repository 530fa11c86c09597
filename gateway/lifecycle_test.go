package gateway

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/gateway/selfsign"
	"icapgate/health"
)

// A server that is down gets no traffic; when it comes back it does.
func TestServerDown(t *testing.T) {
	stub, address := startStub(t, dlpstub.Config{})
	f := startFake(t)
	g := startGateway(t, []string{f.address, address}, "    health: {interval: 100ms, fall: 2, rise: 1}\n    retry: {attempts: 3}\n", "services: [{path: /r, pool: dlp}]").ready()
	stub.Kill()
	eventually(t, "the server down", func() bool { return g.metric(`server_up{pool="dlp",server="`+address+`"}`) == 0 })
	replays := g.metric(`replays_total{reason="connect"}`)
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		for range 5 {
			p.play(simple(v05, forwarded(v05))...)
		}
	})
	if n := g.metric(`replays_total{reason="connect"}`); n != replays {
		t.Errorf("%v requests were tried on a server that is down", n-replays)
	}
	revived := dlpstub.New(dlpstub.Config{})
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	go revived.Serve(ln)
	t.Cleanup(revived.Close)
	eventually(t, "the server up", func() bool { return g.metric(`server_up{pool="dlp",server="`+address+`"}`) == 1 })
	f.says("", "ICAP/1.0 500 Sick¶")
	eventually(t, "the other one down", func() bool { return !g.up(f) })
	overBoth(t, func(t *testing.T, listener int) {
		c := g.dialFor(t, listener)
		for range 5 {
			c.send(text(RL + "Allow: 204¶" + reqBody + chunks))
			c.status(204)
		}
	})
}

// Requests that come before anything is known of the servers wait for the first verdict, whatever status brought it.
func TestRequestsBeforeFirstCheck(t *testing.T) {
	for _, answer := range []string{optionsAnswer, "ICAP/1.0 404 Not Found¶"} {
		overBoth(t, func(t *testing.T, listener int) {
			f := startFakeHeld(t)
			f.says("", answer)
			g := startGateway(t, []string{f.address}, quiet, "")
			c := g.dialFor(t, listener)
			c.send(text(v05))
			eventually(t, "the request in line", func() bool { return g.metric(`queue_depth{pool="dlp"}`) == 1 })
			f.idle(t)
			close(f.checks)
			s := f.next(t)
			s.gets(v05)
			s.send(text(page))
			c.expect(text(page))
		})
	}
}

// Servers that answer no check are used all the same after the time of grace, by those who wait already, too.
func TestGrace(t *testing.T) {
	f := startFakeHeld(t)
	g := startGateway(t, []string{f.address}, "    health: {interval: 1h, timeout: 1m}\n    queue: {timeout: 15s}\n", "")
	c := g.dial(1)
	c.send(text(v05))
	s := f.next(t)
	s.gets(v05)
	s.send(text(page))
	c.expect(text(page))
	if g.up(f) {
		t.Error("the server counts as up without a check")
	}
}

// A path that a server answers 404 for keeps it from getting requests for that path, and for no other.
func TestPathMissing(t *testing.T) {
	f, other := startFake(t), startFake(t)
	services := `
services:
  - {path: /r, pool: dlp}
  - {path: /s, pool: dlp}
`
	f.says("/r", "ICAP/1.0 404 Not Found¶")
	g := startGateway(t, []string{f.address, other.address}, quiet, services).ready()
	eventually(t, "the path missing", func() bool { return g.table.Load().pools[0].servers[0].Health.Missing() != nil })
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, other, listener)
		for range 4 {
			p.play(simple(v04, forwarded(v04))...)
		}
		c := g.dialFor(t, listener)
		seen := make(map[*fakeServer]bool)
		for range 4 {
			c.send(text(strings.Replace(v04, "/r ", "/s ", 1)))
			s, _ := (&pair{g, f, other}).next(t)
			seen[s.f] = true
			s.head()
			s.expect(text(G))
			s.send(text(page))
			c.expect(text(page))
			s.release()
		}
		if !seen[f] {
			t.Error("the server is not used for the path that it has")
		}
	})
}

// Without a server that has the path there is nobody to ask.
func TestPathMissingEverywhere(t *testing.T) {
	f := startFake(t)
	f.says("/r", "ICAP/1.0 404 Not Found¶")
	g := startGateway(t, []string{f.address}, quiet, "services: [{path: /r, pool: dlp}, {path: /s, pool: dlp}]").ready()
	overBoth(t, func(t *testing.T, listener int) {
		c := g.dialFor(t, listener)
		c.send(text(v05))
		c.refusal(503, false)
		f.idle(t)
		p := newPlayer(t, g, f, listener)
		ok := strings.NewReplacer("/r ", "/s ")
		p.play(simple(ok.Replace(v05), ok.Replace(forwarded(v05)))...)
	})
}

// Routes: an unknown path is 404, a method that a path has not is 405, and OPTIONS fits them all. The connection goes on, body or not.
func TestRouting(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "services: [{path: /r, pool: dlp, methods: [REQMOD]}, {path: /only, pool: dlp, listener: icaps}]").ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		for _, v := range []struct {
			request string
			status  int
		}{
			{strings.Replace(v05, "/r ", "/x ", 1), 404},
			{strings.Replace(v05, "/r ", "/R ", 1), 404},
			{strings.Replace(v05, "/r ", "/r/ ", 1), 404},
			{strings.Replace(v05, "/r ", "/%72 ", 1), 404},
			{v08, 405},
			{strings.Replace(preview(4), "/r ", "/x ", 1) + "4¶abcd¶0; ieof¶¶", 404},
			{strings.Replace(v04, "/r ", "/x ", 1), 404},
		} {
			p.c.send(text(v.request))
			p.c.refusal(v.status, false)
		}
		if listener == 1 {
			p.c.send(text(strings.Replace(v05, "/r ", "/only ", 1)))
			p.c.refusal(404, false)
		}
		p.play(simple("OPTIONS icap://gw/r?x ICAP/1.0¶Host: gw¶¶", "OPTIONS icap://SERVER/r?x ICAP/1.0¶Host: SERVER¶¶")...)
		p.again(true)

		// A preview whose refusal comes before its rest is asked for.
		p.c.send(text(strings.Replace(preview(4), "/r ", "/x ", 1) + "4¶abcd¶0¶¶"))
		p.c.refusal(404, false)
		p.again(true)
	})
}

// Drain: what runs is answered, with Connection: close; what waits for a request is ended; nobody new comes in.
func TestDrain(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	var clients []*client
	var servers []*serverSide
	for listener := range 2 {
		c := g.dial(listener)
		c.send(text(v05))
		s := f.next(t)
		s.gets(v05)
		clients, servers = append(clients, c), append(servers, s)
	}
	half := g.dial(1) // in the middle of its body
	half.send(text(RL + reqBody + "5¶hel"))
	halfServer := f.next(t)
	halfServer.gets(RL + reqBody)
	idle := []*client{g.dial(0), g.dial(1)}
	begun := g.dial(1)
	begun.send(text(RL))
	used := newPlayer(t, g, f, 1)
	used.play(simple(v04, forwarded(v04))...)
	eventually(t, "sessions", func() bool { return g.Sessions() == 7 })
	g.settle()

	done := make(chan struct{})
	go func() {
		g.Drain(context.Background())
		close(done)
	}()
	for _, c := range append(idle, used.c) {
		c.closed()
	}
	for listener := range 2 {
		if nc, err := net.Dial("tcp", g.address(listener)); err == nil {
			nc.Close()
			t.Error("a new connection was accepted while draining")
		}
	}
	closing := text(strings.Replace(page, "Encapsulated", "Connection: close¶Encapsulated", 1))
	for i, c := range clients {
		servers[i].send(text(page))
		servers[i].release()
		c.expect(closing)
		c.closed()
	}
	half.send(text("lo¶0¶¶"))
	halfServer.expect(text(chunks))
	halfServer.send(text(page))
	halfServer.release()
	half.expect(closing)
	half.closed()
	begun.send(text(reqNull)) // a request whose head had begun is served, too
	s := f.next(t)
	s.gets(v04)
	select {
	case <-done:
		t.Fatal("the drain ended before the last request")
	default:
	}
	s.send(text(page))
	begun.expect(closing)
	begun.closed()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the drain does not end")
	}
}

// A request that has come before the drain is answered, also if it has not been read by then.
func TestDrainReadsFirst(t *testing.T) {
	withLoops(t, 1)
	overBoth(t, func(t *testing.T, listener int) {
		f := startFake(t)
		g := startGateway(t, []string{f.address}, quiet, "").ready()
		p := newPlayer(t, g, f, listener)
		p.play(simple(v04, forwarded(v04))...)
		l := g.loops[0]
		busy, sent := make(chan struct{}), make(chan struct{})
		l.post(func() {
			close(busy)
			<-sent
		})
		<-busy
		p.c.send(text(v04))
		g.draining.Store(true)
		l.post(l.drain)
		close(sent)
		s := f.next(t)
		s.gets(v04)
		s.send(text(page))
		p.c.expect(text(strings.Replace(page, "Encapsulated", "Connection: close¶Encapsulated", 1)))
		p.c.closed()
	})
}

// A drain that takes too long ends all the same.
func TestDrainTimeout(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "drain_timeout: 100ms").ready()
	c := g.dial(0)
	c.send(text(v05))
	f.next(t).gets(v05)
	g.drainAndClose()
	if got := c.rest(); got != "" {
		t.Errorf("got %q", got)
	}
}

// Who is not in allow gets nothing, not even a handshake, and is counted.
func TestAllow(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, `
listeners:
  - {name: icaps, address: "127.0.0.1:0", allow: [192.0.2.0/24], tls: {certificates: [{cert_file: "CERT"}]}}
  - {name: icap, address: "127.0.0.1:0", allow: ["2001:db8::/32", 127.0.0.2/32]}
`).ready()
	for i, name := range []string{"icaps", "icap"} {
		c := dialPlain(t, g.address(i))
		if got := c.rest(); got != "" {
			t.Errorf("%s: got %q", name, got)
		}
		eventually(t, "the refusal counted", func() bool { return g.metric(`refused_total{listener="`+name+`",reason="allow"}`) == 1 })
	}
	if n := g.metric(`handshakes_total{listener="icaps",result="closed",version="none"}`); n != 0 {
		t.Error("a handshake was begun with a stranger")
	}
	f.idle(t)
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	nc, err := dialer.Dial("tcp", g.address(1))
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, nc)
	c.send(text(v04))
	s := f.next(t)
	s.gets(v04)
	s.send(text(page))
	c.expect(text(page))
}

// Admin states: a server in drain or maintenance gets nothing new.
func TestAdminStates(t *testing.T) {
	for _, state := range []health.AdminState{health.Drain, health.Maintenance} {
		t.Run(state.String(), func(t *testing.T) {
			f, other := startFake(t), startFake(t)
			g := startGateway(t, []string{f.address, other.address}, quiet, "").ready()
			g.table.Load().pools[0].servers[0].Health.SetAdmin(state)
			overBoth(t, func(t *testing.T, listener int) {
				p := newPlayer(t, g, other, listener)
				for range 4 {
					p.play(simple(v04, forwarded(v04))...)
				}
			})
		})
	}
}

// A weight of 0 is no traffic either.
func TestWeightZero(t *testing.T) {
	f, other := startFake(t), startFake(t)
	g := startGateway(t, []string{f.address, other.address}, quiet, "").ready()
	g.table.Load().pools[0].servers[0].SetWeight(0)
	p := newPlayer(t, g, other, 1)
	for range 4 {
		p.play(simple(v04, forwarded(v04))...)
	}
}

// serverCertificate makes a certificate for a server on 127.0.0.1, and the file that a pool's ca_file names for it.
func serverCertificate(t testing.TB) (cfg *tls.Config, file string) {
	t.Helper()
	return certificateFor(t, "127.0.0.1")
}

func certificateFor(t testing.TB, name string) (cfg *tls.Config, file string) {
	t.Helper()
	pem, err := selfsign.Generate([]string{name})
	if err != nil {
		t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(pem, pem)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "server.pem")
	if err := os.WriteFile(file, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}}, file
}

// The same all over TLS to the servers: the vectors that matter most, and an echo of megabytes.
func TestTLSToServers(t *testing.T) {
	cfg, file := serverCertificate(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := serveFake(t, ln, cfg)
	g := startGateway(t, []string{f.address}, quiet+fmt.Sprintf("    tls: {ca_file: %q}\n", file), "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		for _, v := range cutVectors {
			t.Run(v.name, func(t *testing.T) {
				p := newPlayer(t, g, f, listener)
				p.play(v.steps...)
				p.again(true)
				p.clientCut, p.serverCut = bytewise, bytewise
				p.play(v.steps...)
				p.again(true)
			})
		}
		t.Run("large", func(t *testing.T) {
			p := newPlayer(t, g, f, listener)
			body := chunked(4<<20, 50000)
			p.c.send(text(RL + reqBody))
			s := f.next(t)
			s.gets(RL + reqBody)
			go p.c.Write([]byte(body))
			if err := s.matches(body); err != nil {
				t.Fatal(err)
			}
			go s.Write([]byte(text(okLine+echoList+P) + body))
			p.c.expect(text(okLine + echoList + P))
			if err := p.c.matches(body); err != nil {
				t.Fatal(err)
			}
			p.s = s
			s.release()
			p.again(true)
		})
		t.Run("idle-end", func(t *testing.T) {
			p := newPlayer(t, g, f, listener)
			s := p.warm()
			s.Close()
			g.settle()
			p.again(false)
		})
	})
}
