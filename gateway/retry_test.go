package gateway

import (
	"fmt"
	"testing"
	"time"
)

// What is sent again after which end of an attempt, with retry.on and duplicates.
func TestRetryOn(t *testing.T) {
	const (
		unfinished = RL + reqBody + "5¶hel"
		part       = "4¶abcd¶0¶¶"
		ieof       = "4¶abcd¶0; ieof¶¶"
	)
	type does func(s *serverSide)
	rst := func(s *serverSide) { s.reset() }
	fin := func(s *serverSide) { s.Close() }
	status := func(n int) does {
		return func(s *serverSide) { s.send(text(fmt.Sprintf("ICAP/1.0 %d x¶¶", n))) }
	}
	for _, v := range []struct {
		name       string
		on         string // of retry
		duplicates string
		request    string
		warm       bool // on a connection that has served before
		do         does
		want       int // status that the client gets; 0: the request is sent again
	}{
		{"rst", "[connect, reset, 503]", "accept", v05, false, rst, 0},
		{"fin", "[connect, reset, 503]", "accept", v05, false, fin, 0},
		{"warm rst", "[connect, reset, 503]", "accept", v05, true, rst, 0},
		{"rst, not wanted", "[connect, 503]", "accept", v05, false, rst, 502},
		{"warm rst, not wanted", "[]", "accept", v05, true, rst, 502},
		{"503", "[503]", "accept", v05, false, status(503), 0},
		{"506 is full, too", "[503]", "accept", v05, false, status(506), 0},
		{"503, not wanted", "[connect, reset]", "accept", v05, false, status(503), 503},
		{"500, not wanted", "[connect, reset, 503]", "accept", v05, false, status(500), 500},
		{"500", "[5xx]", "accept", v05, false, status(500), 0},
		{"503 is one of them", "[5xx]", "accept", v05, false, status(503), 0},
		{"599", "[5xx]", "accept", v05, false, status(599), 0},
		{"502 only", "[502]", "accept", v05, false, status(502), 0},
		{"502 only, and 500", "[502]", "accept", v05, false, status(500), 500},
		{"404 is an answer", "[5xx]", "accept", v05, false, status(404), 404},
		{"500 to a preview", "[5xx]", "accept", preview(4) + part, false, status(500), 0},

		{"once: rst", "[connect, reset, 503]", "avoid", v05, false, rst, 502},
		{"once: fin", "[connect, reset, 503]", "avoid", v05, false, fin, 502},
		{"once: warm rst", "[connect, reset, 503]", "avoid", v05, true, rst, 502},
		{"once: warm fin", "[connect, reset, 503]", "avoid", v05, true, fin, 502},
		{"once: rst before its end", "[reset]", "avoid", unfinished, false, rst, 0},
		{"once: warm fin before its end", "[reset]", "avoid", unfinished, true, fin, 0},
		{"once: rst in the preview", "[reset]", "avoid", preview(4) + part, false, rst, 0},
		{"once: rst, the preview being all", "[reset]", "avoid", preview(9) + ieof, false, rst, 502},
		{"once: 503", "[503]", "avoid", v05, false, status(503), 0},
		{"once: 500", "[5xx]", "avoid", v05, false, status(500), 500},
		{"once: 500 before its end", "[5xx]", "avoid", unfinished, false, status(500), 0},
	} {
		t.Run(v.name, func(t *testing.T) {
			p := startPair(t, "    retry: {on: "+v.on+"}\n", "services: [{duplicates: "+v.duplicates+"}]")
			overBoth(t, func(t *testing.T, listener int) {
				c := p.dialFor(t, listener)
				if v.warm { // both servers
					for range 2 {
						c.send(text(v04))
						s, _ := p.next(t)
						s.gets(v04)
						s.send(text(page))
						c.expect(text(page))
						s.release()
						p.settle()
					}
				}
				c.send(text(v.request))
				s, other := p.next(t)
				if v.warm != (s.served > 0) {
					t.Fatalf("the connection has served %d times", s.served)
				}
				s.gets(v.request)
				v.do(s)
				if v.want != 0 {
					c.status(v.want)
					p.settle()
					other.idle(t)
				} else {
					s = other.next(t)
					s.gets(v.request)
					s.send(text(page))
					c.expect(text(page))
				}
				s.Close()
				c.Close()
				p.settle()
				for _, s := range p.table.Load().pools[0].servers {
					s.MarkFull(0)
				}
			})
		})
	}
}

// connect in retry.on: without it a refused connection is the end.
func TestRetryOnConnect(t *testing.T) {
	for _, on := range []string{"[connect]", "[reset, timeout, 5xx]"} {
		f, dead := startFake(t), startFake(t)
		g := startGateway(t, []string{dead.address, f.address}, quiet+"    balance: round_robin\n    retry: {on: "+on+"}\n", "").ready()
		dead.ln.Close()
		refused := 0
		c := g.dial(1)
		for range 2 {
			c.send(text(v04))
			answer := make(chan int, 1)
			go func() {
				status, err := c.answer()
				if err != nil {
					status = 0
				}
				answer <- status
			}()
			select {
			case status := <-answer:
				if status != 503 {
					t.Fatalf("%s: status %d", on, status)
				}
				refused++
			case s := <-f.begun:
				s.t = t
				s.gets(v04)
				s.send(text(page))
				if status := <-answer; status != 200 {
					t.Fatalf("%s: status %d", on, status)
				}
				s.release()
			}
			g.settle()
		}
		if want := on != "[connect]"; (refused > 0) != want {
			t.Errorf("%s: %d requests were refused", on, refused)
		}
	}
}

// timeout in retry.on: the request of a server that is late goes to another one, unless nothing is to be done twice.
func TestRetryOnTimeout(t *testing.T) {
	for _, v := range []struct {
		on, duplicates string
		again          bool
	}{
		{"[connect, reset, 503]", "accept", false},
		{"[timeout]", "accept", true},
		{"[timeout]", "avoid", false},
	} {
		t.Run(v.on+" "+v.duplicates, func(t *testing.T) {
			a, b := startFake(t), startFake(t)
			g := startVirtualFor(t, []string{a.address, b.address}, "    timeouts: {response: 10s}\n    retry: {on: "+v.on+"}\n", "services: [{duplicates: "+v.duplicates+"}]")
			p := &pair{g.testGateway, a, b}
			c := g.connect(1)
			g.say(c, v05)
			s, other := p.next(t)
			s.gets(v05)
			g.settle()
			g.pass(10*time.Second + time.Duration(tick))
			if !v.again {
				c.refusal(502, false)
				other.idle(t)
				return
			}
			s = other.next(t)
			s.gets(v05)
			s.send(text(page))
			c.expect(text(page))
			s.Close()
		})
	}
}

// A request that kills servers meets two of them, also if their connections were warm.
func TestKillerMeetsTwo(t *testing.T) {
	fakes := []*fakeServer{startFake(t), startFake(t), startFake(t)}
	g := startGateway(t, []string{fakes[0].address, fakes[1].address, fakes[2].address}, quiet+"    balance: round_robin\n    retry: {attempts: 5, budget: 10}\n", "").ready()
	next := func() (s *serverSide) {
		t.Helper()
		select {
		case s = <-fakes[0].begun:
		case s = <-fakes[1].begun:
		case s = <-fakes[2].begun:
		case <-time.After(patience):
			t.Fatal("no request reached a server")
		}
		s.t = t
		return s
	}
	overBoth(t, func(t *testing.T, listener int) {
		c := g.dialFor(t, listener)
		for range 3 {
			c.send(text(v04))
			s := next()
			s.gets(v04)
			s.send(text(page))
			c.expect(text(page))
			s.release()
		}
		g.settle()
		c.send(text(v05))
		for range 2 {
			s := next()
			s.gets(v05)
			s.reset()
		}
		c.refusal(502, false)
		g.settle()
		for _, f := range fakes {
			f.idle(t)
		}
	})
}
