package load

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// timer lets one goroutine wait as exactly as the kernel can (about 50 µs). The timers of Go end up to a millisecond late in a process that
// is mostly idle, since its epoll counts in milliseconds.
type timer struct {
	file *os.File
	raw  syscall.RawConn
}

func newTimer() (*timer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	t := &timer{file: os.NewFile(uintptr(fd), "timerfd")}
	if t.raw, err = t.file.SyscallConn(); err != nil {
		t.file.Close()
		return nil, err
	}
	return t, nil
}

// close ends a wait, and the timer.
func (t *timer) close() { t.file.Close() }

// wait waits for d, or until the timer is closed.
func (t *timer) wait(d time.Duration) {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(d, 1)))} // 0 would stop it
	var failed error
	err := t.raw.Control(func(fd uintptr) { failed = unix.TimerfdSettime(int(fd), 0, &spec, nil) })
	if err != nil || failed != nil {
		return
	}
	var expirations [8]byte
	_, _ = t.file.Read(expirations[:]) // fails when the timer is closed
}
