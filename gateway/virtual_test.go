package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"icapgate/health"
)

// virtual is a gateway on virtual time: its sockets and its loops are real, but the loops' clock stands still except in pass. So a test
// can say what happens one nanosecond before a deadline, and what at it, however busy the machine is.
type virtual struct {
	*testGateway
	f       *fakeServer
	time    atomic.Int64 // what the loops' clocks say
	checks  atomic.Int32 // brought forward by a failed attempt
	sweeps  bool         // pass looks at ejections and stalled servers, too
	log     string       // file of the access log
	counted []string     // what charged has seen
}

// startVirtual runs a gateway on virtual time in front of f, or of a server of its own if that is nil; pool and rest as for startGateway.
func startVirtual(t testing.TB, f *fakeServer, pool, rest string) *virtual {
	t.Helper()
	if f == nil {
		f = startFake(t)
	}
	v := startVirtualFor(t, []string{f.address}, pool, rest)
	v.f = f
	return v
}

func startVirtualFor(t testing.TB, servers []string, pool, rest string) *virtual {
	t.Helper()
	return startVirtualIn(t, fmt.Sprintf("[\"%s\"]", strings.Join(servers, `","`)), pool, rest)
}

// startVirtualIn is startVirtualFor with the list of servers in YAML.
func startVirtualIn(t testing.TB, servers, pool, rest string) *virtual {
	t.Helper()
	v := &virtual{log: filepath.Join(t.TempDir(), "access.log")}
	v.testGateway = newGatewayIn(t, servers, "    health: {interval: 1h, timeout: 100ms, fall: 100}\n"+pool, rest+fmt.Sprintf("\naccess_log: {output: %q}", v.log))
	v.time.Store(loopTime())
	for _, l := range v.loops {
		l.clock = v.time.Load
	}
	v.servers.clock, v.servers.sweeps = v.time.Load, 0
	if err := v.Start(); err != nil {
		t.Fatal(err)
	}
	for _, s := range v.table.Load().pools[0].servers {
		eventually(t, "the first checks", func() bool { return s.Health.Checked() })
		s.Health.SetState(health.Up) // whatever they said
		s.Health.Heard(v.time.Load())
		s.SetExpedite(func() { v.checks.Add(1) })
	}
	return v
}

// connect is dialFor, and returns when the session is on its loop.
func (v *virtual) connect(listener int) *client {
	v.t.Helper()
	before := v.onTheirLoops()
	c := v.dial(listener)
	eventually(v.t, "the session on its loop", func() bool { return v.onTheirLoops() > before })
	return c
}

func (v *virtual) onTheirLoops() (n int) {
	v.onLoops(func(l *loop) { n += len(l.sessions) })
	return n
}

// play connects a client and plays steps with it.
func (v *virtual) play(listener int, steps ...step) *player {
	v.t.Helper()
	p := &player{v.t, v.testGateway, v.f, v.connect(listener), nil, whole, whole}
	p.play(steps...)
	return p
}

// say sends something to the gateway, which has handled it when say returns.
func (v *virtual) say(c *client, s string) {
	v.t.Helper()
	c.send(text(s))
	eventually(v.t, "the bytes at the gateway's socket", func() bool {
		n := 0
		c.control(v.t, func(fd int) (err error) { n, err = unix.IoctlGetInt(fd, unix.TIOCOUTQ); return err })
		return n == 0
	})
	v.settle()
}

// pass lets so much time go by. The loops wake up whenever a timer is due in between.
func (v *virtual) pass(d time.Duration) {
	v.t.Helper()
	v.settle()
	for end := v.time.Load() + int64(d); ; {
		at := end
		if v.sweeps {
			at = min(at, v.time.Load()+int64(sweepInterval))
		}
		v.testGateway.onLoops(func(l *loop) {
			if next := l.wheel.next(); next != 0 {
				at = min(at, max(next, l.now))
			}
		})
		v.time.Store(at)
		v.testGateway.onLoops(func(l *loop) { l.wheel.advance(l.now) })
		if v.sweeps {
			v.servers.sweep()
		}
		v.settle()
		if at == end {
			return
		}
	}
}

// due lets d pass. Until the last nanosecond nothing may be charged, and then, within the tick, exactly want; see charged.
func (v *virtual) due(d time.Duration, want ...string) {
	v.t.Helper()
	v.pass(d - 1)
	v.charged()
	v.pass(time.Duration(1 + tick))
	v.charged(want...)
}

// quiet lets d pass, in which nobody is charged with anything.
func (v *virtual) quiet(d time.Duration) {
	v.t.Helper()
	v.pass(d)
	v.charged()
}

// side says which connection of the only transaction a test is about.
type side uint8

const (
	theClient side = iota
	theServer
)

// sides returns the connections of the transaction that runs on the loop: that which side is, and the one that brings the bytes for it.
func (l *loop) sides(which side) (to, from *conn) {
	for s := range l.sessions {
		if c := s.tx.srv; c != nil && which == theClient {
			return &s.conn, &c.conn
		} else if c != nil {
			return &c.conn, &s.conn
		}
	}
	return nil, nil
}

// pairUp replaces the socket of a plain connection by one end of a socketpair, and returns the other end. How much that holds depends on
// nothing but what is written and read, while TCP sends a part of what has not found room when 200 ms of real time have gone by.
func (v *virtual) pairUp(which side) *client {
	v.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		v.t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[1]), "")
	nc, err := net.FileConn(f)
	f.Close()
	if err != nil {
		v.t.Fatal(err)
	}
	v.testGateway.onLoops(func(l *loop) {
		if c, _ := l.sides(which); c != nil {
			setBuffers(v.t, fds[0], 64<<10)
			l.poller.remove(c.fd)
			if err := errors.Join(unix.Dup2(fds[0], c.fd), l.poller.add(c.fd)); err != nil {
				v.t.Error(err)
			}
		}
	})
	unix.Close(fds[0])
	return newClient(v.t, nc)
}

// full waits until a socket takes nothing more of what waits for it, even if tried, and the gateway has stopped to read for it.
func (v *virtual) full(which side) {
	v.t.Helper()
	eventually(v.t, "no more room", func() (full bool) {
		v.testGateway.onLoops(func(l *loop) {
			to, from := l.sides(which)
			switch {
			case to == nil || to.pending() == 0 || from.waits != waitNone:
			case to.takesMore():
				to.owner.onWritable()
			default:
				full = true
			}
		})
		return full
	})
}

var chargedSeries = regexp.MustCompile(`(?m)^icapgate_(closes|rejects|replays)_total\{(?:side="(\w+)",)?reason="(\w+)"\} (\d+)$`)

// charged checks who has been charged with what since it was called last: "client R" and "server R" are closed connections, "reject R"
// an answer of the gateway itself, "replay R" a request sent again, "check" a server whose health is doubted after a failed attempt.
func (v *virtual) charged(want ...string) {
	v.t.Helper()
	if len(want) == 0 {
		v.settle()
		if got := v.newCharges(); len(got) > 0 {
			v.t.Fatalf("charged with %q too early", got)
		}
		return
	}
	slices.Sort(want)
	var got []string
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		v.settle()
		if got = v.newCharges(); len(got) >= len(want) || time.Now().After(end) {
			break
		}
	}
	if !slices.Equal(got, want) {
		v.t.Fatalf("charged: %q\n   want: %q", got, want)
	}
	v.counted = append(v.counted, got...)
}

func (v *virtual) newCharges() (list []string) {
	var b strings.Builder
	v.writeMetrics(&b)
	for _, m := range chargedSeries.FindAllStringSubmatch(b.String(), -1) {
		var n int
		_, _ = fmt.Sscan(m[4], &n)
		name := map[string]string{"closes": m[2], "rejects": "reject", "replays": "replay"}[m[1]] + " " + m[3]
		list = append(list, slices.Repeat([]string{name}, n)...)
	}
	list = append(list, slices.Repeat([]string{"check"}, int(v.checks.Load()))...)
	for _, old := range v.counted {
		if i := slices.Index(list, old); i >= 0 {
			list = slices.Delete(list, i, i+1)
		}
	}
	slices.Sort(list)
	return list
}

// logged checks with which status and why the transactions ended, in their order, as the access log says. It is called last.
func (v *virtual) logged(want ...string) {
	v.t.Helper()
	v.Close()
	if got := logged(v.t, v.log); !slices.Equal(got, want) {
		v.t.Errorf("the access log says %q, want %q", got, want)
	}
}

// logged returns the status and the end in each line of an access log, and the failure if there was one.
func logged(t testing.TB, file string) (lines []string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		var record struct {
			Status       int
			End, Failure string
		}
		if err := json.Unmarshal(line, &record); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprint(record.Status, " ", record.End, " ", record.Failure)))
	}
	return lines
}

// The clock of a virtual gateway stands still, and passes when it is told to.
func TestVirtualTime(t *testing.T) {
	v := startVirtual(t, nil, "", "")
	read := func() (now int64) {
		now = math.MaxInt64
		v.testGateway.onLoops(func(l *loop) { now = min(now, l.now) })
		return now
	}
	before := read()
	if now := read(); now != before {
		t.Errorf("%v went by on their own", time.Duration(now-before))
	}
	v.pass(time.Hour)
	if now := read(); now != before+int64(time.Hour) {
		t.Errorf("%v went by, want 1h", time.Duration(now-before))
	}
}
