package gateway

import (
	"fmt"
	"log/slog"

	gneterrors "github.com/panjf2000/gnet/v2/pkg/errors"
	"github.com/panjf2000/gnet/v2/pkg/logging"
	"github.com/panjf2000/gnet/v2/pkg/netpoll"
	"github.com/panjf2000/gnet/v2/pkg/queue"
	"golang.org/x/sys/unix"
)

// This file is the only one that knows gnet. Its poller is used, not its engine: see docs/ARCHITECTURE.md.

// Events as the kernel reports them for an fd that was added edge-triggered for reading and writing.
const (
	eventRead  = unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLRDHUP
	eventWrite = unix.EPOLLOUT
	eventError = unix.EPOLLERR | unix.EPOLLHUP
	eventRDHup = unix.EPOLLRDHUP
)

// errStop, returned from a posted function, ends poller.run.
var errStop = gneterrors.ErrEngineShutdown

// poller waits for the events of one loop's fds and runs what other goroutines post to it.
type poller struct{ p *netpoll.Poller }

func openPoller() (poller, error) {
	p, err := netpoll.OpenPoller()
	return poller{p}, err
}

// add registers fd once, edge-triggered for reading and writing, for its whole life.
func (p poller) add(fd int) error { return p.p.AddReadWrite(&netpoll.PollAttachment{FD: fd}, true) }

// remove ends the events of fd; those of the batch being handled may still come.
func (p poller) remove(fd int) { _ = p.p.Delete(fd) }

// post runs f(arg) on the loop, after the events of the batch being handled. It may be called from any goroutine; but a posted
// function that posts itself would starve every fd.
func (p poller) post(f func(arg any) error, arg any) {
	if err := p.p.Trigger(queue.HighPriority, f, arg); err != nil {
		slog.Error("cannot wake a loop", "error", err)
	}
}

// run handles events until a posted function returns errStop.
func (p poller) run(handle func(fd int, events uint32)) error {
	err := p.p.Polling(func(fd int, events netpoll.IOEvent, _ netpoll.IOFlags) error {
		handle(fd, events)
		return nil
	})
	if err == errStop {
		return nil
	}
	return err
}

func (p poller) close() { _ = p.p.Close() }

// gnetLogger sends what gnet's packages log to our log: their own logger writes to stdout.
type gnetLogger struct{}

func init() { logging.SetDefaultLoggerAndFlusher(gnetLogger{}, nil) }

func (gnetLogger) Debugf(format string, args ...any) { slog.Debug(fmt.Sprintf(format, args...)) }
func (gnetLogger) Infof(format string, args ...any)  { slog.Info(fmt.Sprintf(format, args...)) }
func (gnetLogger) Warnf(format string, args ...any)  { slog.Warn(fmt.Sprintf(format, args...)) }
func (gnetLogger) Errorf(format string, args ...any) { slog.Error(fmt.Sprintf(format, args...)) }
func (gnetLogger) Fatalf(format string, args ...any) { panic("gnet: " + fmt.Sprintf(format, args...)) }
