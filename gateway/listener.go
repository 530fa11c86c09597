package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"

	"icapgate/configs"
)

// listener accepts clients on one address. Its accept goroutine owns a connection until it hands it to a handshake
// goroutine (TLS) or to a loop.
type listener struct {
	gw   *Gateway
	name string
	ln   net.Listener

	settings atomic.Pointer[listenerSettings] // replaced by a reload

	handshakes handshakes
	sessions   atomic.Int32
	refused    atomic.Uint64 // by allow
	refusedLog rateLimit
	accepting  sync.WaitGroup
}

// listenerSettings is what a reload can change of a listener. Immutable.
type listenerSettings struct {
	cfg   configs.Listener
	allow *bart.Lite // nil: everyone
	tls   *serverTLS // nil: plain
}

func newListenerSettings(cfg configs.Listener) (*listenerSettings, error) {
	st := &listenerSettings{cfg: cfg}
	if len(cfg.Allow) > 0 {
		st.allow = new(bart.Lite)
		for _, p := range cfg.Allow {
			st.allow.Insert(netip.Prefix(p).Masked())
		}
	}
	if cfg.TLS != nil {
		t, err := newServerTLS(cfg.TLS)
		if err != nil {
			return nil, fmt.Errorf("listener %s: %w", cfg.Name, err)
		}
		st.tls = t
	}
	return st, nil
}

func (g *Gateway) newListener(cfg configs.Listener) (*listener, error) {
	st, err := newListenerSettings(cfg)
	if err != nil {
		return nil, err
	}
	ls := &listener{gw: g, name: cfg.Name}
	ls.settings.Store(st)
	lc := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 60 * time.Second, Interval: 15 * time.Second, Count: 4}}
	ln, err := lc.Listen(context.Background(), "tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s for listener %s: %w", cfg.Address, cfg.Name, err)
	}
	ls.ln = ln
	return ls, nil
}

// secure says whether clients speak TLS; a reload can't change that.
func (ls *listener) secure() bool { return ls.settings.Load().tls != nil }

// scheme is how clients address the listener.
func (ls *listener) scheme() string {
	if ls.secure() {
		return "icaps"
	}
	return "icap"
}

// serve accepts until the listener is closed.
func (ls *listener) serve() {
	defer ls.accepting.Done()
	for {
		nc, err := ls.ln.Accept()
		if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil { // no descriptor free, most likely: the backlog waits for us
			ls.gw.log.Warn("cannot accept", "listener", ls.name, "error", err)
			select {
			case <-ls.gw.stopping:
				return
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		ls.accept(nc)
	}
}

// accept decides about a new connection. The allow-list comes before everything else, so that strangers cost nothing.
func (ls *listener) accept(nc net.Conn) {
	client := nc.RemoteAddr().(*net.TCPAddr).AddrPort()
	client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
	st := ls.settings.Load()
	if st.allow != nil && !st.allow.Contains(client.Addr()) {
		ls.refused.Add(1)
		if n, ok := ls.refusedLog.next(); ok {
			ls.gw.log.Warn("refused a client that is not in allow", "listener", ls.name, "client", client.Addr(), "refused_since_last", n)
		}
		nc.Close()
		return
	}
	if st.tls != nil {
		ls.handshakes.start(ls, nc, client)
		return
	}
	ls.handOver(nc, client, nil)
}

// handOver gives the socket of nc to the loop with the fewest sessions. The loop gets a descriptor of its own, because the
// Go connection's can't be taken out of it without making it blocking.
func (ls *listener) handOver(nc net.Conn, client netip.AddrPort, stream *tlsStream) {
	fd, err := dupFD(nc)
	nc.Close()
	if err != nil {
		ls.gw.log.Warn("cannot take over a connection", "listener", ls.name, "error", err)
		return
	}
	l := ls.gw.loops[0]
	for _, other := range ls.gw.loops[1:] {
		if other.sessionCount.Load() < l.sessionCount.Load() {
			l = other
		}
	}
	l.sessionCount.Add(1)
	ls.sessions.Add(1)
	l.post(func() { l.newSession(ls, fd, client, stream) })
}

// dupFD returns a non-blocking descriptor of nc's socket, which the caller owns.
func dupFD(nc net.Conn) (fd int, err error) {
	rc, err := nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		return -1, err
	}
	if cerr := rc.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return -1, cerr
	}
	return fd, err
}

// close stops accepting; sessions and handshakes go on. Clients whose connect the kernel has answered may have sent a request already:
// they are accepted before the socket goes, which would reset them.
func (ls *listener) close() {
	tcp := ls.ln.(*net.TCPListener)
	_ = tcp.SetDeadline(time.Unix(1, 0)) // ends serve
	ls.accepting.Wait()
	var waiting []net.Conn
	if rc, err := tcp.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { waiting = acceptAll(int(fd)) })
	}
	tcp.Close()
	for _, nc := range waiting {
		ls.accept(nc)
	}
}

// acceptAll accepts what waits in the backlog.
func acceptAll(listening int) (conns []net.Conn) {
	for {
		fd, _, err := unix.Accept4(listening, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err == unix.EINTR || err == unix.ECONNABORTED {
			continue
		}
		if err != nil {
			return conns
		}
		f := os.NewFile(uintptr(fd), "")
		if nc, err := net.FileConn(f); err == nil {
			conns = append(conns, nc)
		}
		f.Close()
	}
}

// rateLimit lets one log line a second through and counts the others.
type rateLimit struct {
	mu      sync.Mutex
	last    time.Time
	skipped int
}

// next says whether to log now, and how many occasions the line stands for.
func (r *rateLimit) next() (n int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.skipped++
	now := time.Now()
	if now.Sub(r.last) < time.Second {
		return 0, false
	}
	n, r.last, r.skipped = r.skipped, now, 0
	return n, true
}
