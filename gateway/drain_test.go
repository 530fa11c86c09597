package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"icapgate/configs"
)

// ending counts the sessions that the gateway has ended.
func (v *virtual) ending() (n int) {
	v.testGateway.onLoops(func(l *loop) {
		for s := range l.sessions {
			if s.ending {
				n++
			}
		}
	})
	return n
}

// Idle clients are closed one after the other, 5 ms apart, or closer if half of drain_timeout would not suffice. Who makes a request
// before its turn gets its answer, with Connection: close.
func TestDrainSpreadsCloses(t *testing.T) {
	const clients = 200
	for _, w := range []struct{ timeout, span time.Duration }{{time.Second, time.Second / 2}, {30 * time.Second, time.Second}, {0, 0}} {
		t.Run(fmt.Sprint(w.timeout), func(t *testing.T) {
			withLoops(t, 1)
			v := startVirtual(t, nil, "", fmt.Sprintf("drain_timeout: %v", w.timeout))
			var all []*client
			for range clients {
				all = append(all, v.connect(1))
			}
			v.pass(time.Second)
			v.beginDrain()
			v.settle()
			if w.span == 0 {
				v.pass(time.Duration(tick))
				if n := v.ending(); n != clients {
					t.Errorf("%d of %d sessions are ended, want all", n, clients)
				}
				return
			}
			v.pass(w.span / 2)
			if n := v.ending(); n < clients*4/10 || n > clients*6/10 {
				t.Errorf("%d of %d sessions are ended after half of the time", n, clients)
			}
			var address netip.AddrPort
			v.testGateway.onLoops(func(l *loop) {
				for s := range l.sessions {
					if !s.ending {
						address = s.client
					}
				}
			})
			one := all[slices.IndexFunc(all, func(c *client) bool { return c.LocalAddr().(*net.TCPAddr).AddrPort() == address })]
			v.say(one, v04)
			s := v.f.next(t)
			s.gets(v04)
			v.pass(w.span/2 + time.Duration(tick))
			if n := v.ending(); n != clients-1 {
				t.Errorf("%d of %d sessions are ended, want all but one", n, clients)
			}
			s.send(text(page))
			s.release()
			one.expect(text("ICAP/1.0 200 OK¶ISTag: \"s\"¶Connection: close¶Encapsulated: res-hdr=0, null-body=19¶¶" + S))
			for _, c := range all {
				c.closed()
			}
			v.charged(append(slices.Repeat([]string{"client shutdown"}, clients-1), "client done")...)
			v.logged("200 done")
		})
	}
}

// A client that was on its way to its loop when the drain began has a second for its request.
func TestDrainLateClient(t *testing.T) {
	v := startVirtual(t, nil, "", "drain_timeout: 4s")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c := dialPlain(t, ln.Addr().String())
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	v.beginDrain()
	v.settle()
	v.listeners[1].handOver(nc, netip.AddrPort{}, nil)
	v.due(time.Second)
	c.closed()
	v.charged("client shutdown")
}

// Of those in the backlog, which are accepted when the drain begins, who has reset its connection costs the others nothing.
func TestDrainTakesBacklog(t *testing.T) {
	v := startVirtual(t, nil, "", "")
	ls := v.listeners[1]
	_ = ls.ln.(*net.TCPListener).SetDeadline(time.Unix(1, 0)) // nobody is accepted any more
	ls.accepting.Wait()
	dialPlain(t, v.address(1)).reset()
	c := dialPlain(t, v.address(1))
	c.send(text(v04))
	v.beginDrain()
	s := v.f.next(t)
	s.gets(v04)
	s.send(text(page))
	s.release()
	c.expect(text(strings.Replace(page, "Encapsulated", "Connection: close¶Encapsulated", 1)))
	c.closed()
	v.charged("client done")
}

// What is left when drain_timeout is over is closed, with a reason.
func TestDrainEnds(t *testing.T) {
	v := startVirtual(t, nil, "", "")
	p := v.play(1)
	v.say(p.c, v05)
	s := v.f.next(t)
	s.gets(v05)
	v.beginDrain()
	v.quiet(30 * time.Second)
	v.testGateway.onLoops((*loop).abortAll) // as Close does
	v.charged("client shutdown", "server shutdown")
	if got := p.c.rest(); got != "" {
		t.Errorf("got %q", got)
	}
	v.logged("0 shutdown")
}

// Drain waits for the sessions, but not longer than drain_timeout, and not when it is told to stop.
func TestDrainWaits(t *testing.T) {
	for _, w := range []struct {
		name             string
		left, told, want time.Duration
	}{
		{"nobody", 0, time.Hour, 0},
		{"until-they-are-gone", 7 * time.Second, time.Hour, 7 * time.Second},
		{"drain_timeout", time.Hour, time.Hour, 30 * time.Second},
		{"told-to-stop", time.Hour, 3 * time.Second, 3 * time.Second},
	} {
		t.Run(w.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cfg := configs.Default()
				g := &Gateway{log: slog.New(slog.DiscardHandler), stopping: make(chan struct{})}
				g.config.Store(&cfg)
				g.table.Store(new(table))
				ln, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				ls := &listener{gw: g, ln: ln}
				g.listeners = []*listener{ls}
				if w.left > 0 {
					ls.sessions.Store(1)
					time.AfterFunc(w.left, func() { ls.sessions.Store(0) })
				}
				ctx, cancel := context.WithTimeout(t.Context(), w.told)
				defer cancel()
				start := time.Now()
				g.Drain(ctx)
				if took := time.Since(start); took < w.want || took > w.want+10*time.Millisecond {
					t.Errorf("it waited %v, want %v", took, w.want)
				}
			})
		})
	}
}
