package gateway

import (
	"encoding/binary"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Events as the kernel reports them for an fd that was added edge-triggered for reading and writing.
const (
	eventRead  = unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLRDHUP
	eventWrite = unix.EPOLLOUT
	eventError = unix.EPOLLERR | unix.EPOLLHUP
	eventRDHup = unix.EPOLLRDHUP
)

// batchSize is how many events one wait brings at most.
const batchSize = 128

// poller waits for the events of one loop's fds, and for what other goroutines post to the loop. Only post may be called by others.
type poller struct {
	fd     int // epoll
	wakeFD int // eventfd: something was posted
	events [batchSize]unix.EpollEvent

	mu     sync.Mutex
	posted []func() // guarded by mu
	taken  []func() // what takePosted has returned last; its memory is used again
}

func openPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	p := &poller{fd: fd}
	if p.wakeFD, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("eventfd", err)
	}
	if err := p.add(p.wakeFD); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// add registers fd once, edge-triggered for reading and writing, for its whole life.
func (p *poller) add(fd int) error {
	e := unix.EpollEvent{Fd: int32(fd), Events: eventRead | eventWrite | unix.EPOLLET&0xffffffff}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &e))
}

// remove ends the events of fd; those of the batch being handled may still come.
func (p *poller) remove(fd int) { _ = unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, fd, nil) }

// wait returns the next batch of events, valid until the next wait. Without any it waits for at most timeout, or for ever if that is
// negative; it may return none before.
func (p *poller) wait(timeout time.Duration) ([]unix.EpollEvent, error) {
	ms := -1
	if timeout >= 0 {
		ms = int((timeout + time.Millisecond - 1) / time.Millisecond)
	}
	n, err := unix.EpollWait(p.fd, p.events[:], ms)
	if err == unix.EINTR {
		return nil, nil
	}
	return p.events[:max(n, 0)], os.NewSyscallError("epoll_wait", err)
}

// post makes the loop run f after the batch of events being handled. It may be called from any goroutine.
func (p *poller) post(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.posted = append(p.posted, f); len(p.posted) > 1 {
		return // the loop has been woken and has not looked yet
	}
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(p.wakeFD, one[:])
}

// takePosted returns what was posted, valid until the next call. It is called after an event of wakeFD.
func (p *poller) takePosted() []func() {
	var n [8]byte
	_, _ = unix.Read(p.wakeFD, n[:])
	clear(p.taken)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.posted, p.taken = p.taken[:0], p.posted
	return p.taken
}

// close is called when nobody waits any more. What is posted later is never run.
func (p *poller) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	unix.Close(p.wakeFD)
	p.wakeFD = -1 // post must not write to whatever gets its number
	unix.Close(p.fd)
}
