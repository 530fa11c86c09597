package gateway

import (
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"icapgate/bench/dlpstub"
)

func newTestPoller(t testing.TB) *poller {
	t.Helper()
	p, err := openPoller()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	return p
}

// socketPair returns two connected non-blocking sockets.
func socketPair(t testing.TB) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return fds[0], fds[1]
}

// look returns what fd's next event says; 0: there is none now.
func (p *poller) look(t testing.TB, fd int) (events uint32) {
	t.Helper()
	batch, err := p.wait(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range batch {
		if int(e.Fd) == fd {
			events |= e.Events
		}
	}
	return events
}

// Events are told once, when they come up, and not for as long as they last.
func TestPollerEdges(t *testing.T) {
	p := newTestPoller(t)
	a, b := socketPair(t)
	if err := p.add(a); err != nil {
		t.Fatal(err)
	}
	if e := p.look(t, a); e&eventWrite == 0 {
		t.Errorf("after add: %#x, want room to write", e)
	}
	if e := p.look(t, a); e != 0 {
		t.Errorf("told twice: %#x", e)
	}
	for range 2 {
		if _, err := unix.Write(b, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if e := p.look(t, a); e&unix.EPOLLIN == 0 {
			t.Errorf("a byte has come: %#x", e)
		}
		if e := p.look(t, a); e != 0 {
			t.Errorf("told twice: %#x", e)
		}
	}
	if err := unix.Shutdown(b, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	if e := p.look(t, a); e&eventRDHup == 0 {
		t.Errorf("the peer's end has come: %#x", e)
	}
	p.remove(a)
	if _, err := unix.Write(b, []byte("x")); err == nil {
		t.Error("written after shutdown")
	}
	if e := p.look(t, a); e != 0 {
		t.Errorf("an event of an fd that was removed: %#x", e)
	}
	if err := p.add(-1); err == nil {
		t.Error("an fd that is none was added")
	}
}

func TestPollerTimeout(t *testing.T) {
	p := newTestPoller(t)
	_ = p.look(t, p.wakeFD) // what posts wake it with has just been added, and takes bytes
	began := time.Now()
	if batch, err := p.wait(1500 * time.Microsecond); err != nil || len(batch) > 0 {
		t.Errorf("%d events, error %v", len(batch), err)
	}
	if waited := time.Since(began); waited < 1500*time.Microsecond {
		t.Errorf("waited %v: a timer would be found not to be due, again and again", waited)
	}
}

// What any number of goroutines post runs once each, those of one goroutine in order, however posting and taking interleave.
func TestPollerPost(t *testing.T) {
	const goroutines, each = 8, 2000
	p := newTestPoller(t)
	var posting sync.WaitGroup
	var ran [goroutines]int
	for g := range goroutines {
		posting.Go(func() {
			for i := range each {
				p.post(func() {
					if ran[g] != i {
						t.Errorf("goroutine %d: function %d ran after %d others", g, i, ran[g])
					}
					ran[g]++
				})
			}
		})
	}
	for total, deadline := 0, time.Now().Add(time.Minute); total < goroutines*each; {
		batch, err := p.wait(time.Second)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range batch {
			if int(e.Fd) != p.wakeFD {
				t.Fatalf("an event of fd %d", e.Fd)
			}
			for _, f := range p.takePosted() {
				f()
				total++
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d ran", total, goroutines*each)
		}
	}
	posting.Wait()
	if batch, err := p.wait(0); err != nil || len(batch) > 0 && len(p.takePosted()) > 0 {
		t.Errorf("something is left; error %v", err)
	}
}

// A function that posts itself does not keep sockets and timers waiting.
func TestPostFromLoop(t *testing.T) {
	_, server := startStub(t, dlpstub.Config{})
	g := startGateway(t, []string{server}, "", "")
	l := g.loops[0]
	fired, stop := make(chan struct{}), false
	var again func()
	again = func() {
		if !stop {
			l.post(again)
		}
	}
	l.post(again)
	l.post(func() {
		tm := &timer{fire: func(int64) { stop = true; close(fired) }}
		l.wheel.set(tm, l.now+1)
	})
	select {
	case <-fired:
	case <-time.After(patience):
		t.Fatal("a timer does not fire while a function posts itself")
	}
}

// What is posted after close writes to nothing, whoever has the number of the eventfd by then.
func TestPostAfterClose(t *testing.T) {
	p, err := openPoller()
	if err != nil {
		t.Fatal(err)
	}
	number := p.wakeFD
	p.close()
	var other int
	for fd := -1; fd < number; fd = other { // the lowest free number is taken first
		if other, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(other)
	}
	if other != number {
		t.Skip("somebody else has got the number")
	}
	p.post(func() {})
	var b [8]byte
	if n, err := unix.Read(other, b[:]); err != unix.EAGAIN {
		t.Errorf("%d bytes were written to another's descriptor (%v)", n, err)
	}
}
