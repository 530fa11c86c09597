package gateway

import (
	"context"
	"crypto/tls"
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
	clients    atomic.Int64 // from accept to close
	sessions   atomic.Int32
	refused    [refusals]struct {
		atomic.Uint64
		log rateLimit
	}
	acceptErrors   atomic.Uint64
	acceptErrorLog rateLimit
	accepting      sync.WaitGroup
}

// listenerSettings is what a reload can change of a listener. Immutable.
type listenerSettings struct {
	cfg   configs.Listener
	allow *addressSet // nil: everyone
	tls   *tls.Config // nil: plain
}

func newListenerSettings(cfg configs.Listener) (*listenerSettings, error) {
	st := &listenerSettings{cfg: cfg}
	if len(cfg.Allow) > 0 {
		st.allow = newAddressSet(cfg.Allow)
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

// addressSet is a list of ranges. Immutable.
type addressSet struct{ ranges bart.Lite }

func newAddressSet(list []configs.Prefix) *addressSet {
	s := new(addressSet)
	for _, p := range list {
		s.ranges.Insert(netip.Prefix(p).Masked())
	}
	return s
}

// has looks an address up. Ranges have no zones, and one with a zone would be in none.
func (s *addressSet) has(a netip.Addr) bool { return s.ranges.Contains(a.Unmap().WithZone("")) }

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
		if err != nil { // no descriptor free in spite of the limits, most likely: the backlog waits for us
			ls.acceptErrors.Add(1)
			if n, ok := ls.acceptErrorLog.next(); ok {
				ls.gw.log.Warn("cannot accept", "listener", ls.name, "error", err, "times", n)
			}
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

// accept decides about a new connection. The allow-list comes before everything else, so that strangers cost nothing. One that
// is refused is closed at once: left in the backlog, it would not know, and neither would those behind it.
func (ls *listener) accept(nc net.Conn) {
	client := nc.RemoteAddr().(*net.TCPAddr).AddrPort()
	client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
	st := ls.settings.Load()
	if st.allow != nil && !st.allow.has(client.Addr()) {
		ls.refuse(nc, client, refusedAllow)
		return
	}
	if why, ok := ls.admit(st); !ok {
		ls.refuse(nc, client, why)
		return
	}
	if st.tls != nil {
		ls.handshakes.start(ls, nc, client)
		return
	}
	ls.handOver(nc, client, nil)
}

// refuse closes a connection that has no place.
func (ls *listener) refuse(nc net.Conn, client netip.AddrPort, why refusal) {
	r := &ls.refused[why]
	r.Add(1) // before the client knows
	nc.Close()
	n, ok := r.log.next()
	switch {
	case !ok:
	case why == refusedAllow:
		ls.gw.log.Warn("refused a client that is not in allow", "listener", ls.name, "client", client.Addr(), "refused_since_last", n)
	default:
		m := &ls.gw.limits
		ls.gw.log.Warn("refused a client: "+m.advice(why), "listener", ls.name, "client", client.Addr(), "reason", why.String(),
			"connections", m.clients.Load(), "max_connections", m.maxClients.Load(), "refused_since_last", n)
	}
}

// handOver gives the socket of nc to the loop with the fewest sessions. The loop gets a descriptor of its own, because the
// Go connection's can't be taken out of it without making it blocking.
func (ls *listener) handOver(nc net.Conn, client netip.AddrPort, stream *tlsStream) {
	fd, err := dupFD(nc)
	if err != nil {
		ls.refuse(nc, client, refusedDescriptor)
		ls.leave()
		return
	}
	nc.Close()
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

// acceptAll accepts what waits in the backlog, but for clients that have reset their connections meanwhile: those have no address any more.
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
		nc, err := net.FileConn(f)
		f.Close()
		switch {
		case err != nil:
		case nc.RemoteAddr() == nil:
			nc.Close()
		default:
			conns = append(conns, nc)
		}
	}
}

// logInterval is the least time between two log lines about the same.
const logInterval = 5 * time.Second

// rateLimit lets one log line through per logInterval and counts the others.
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
	if now.Sub(r.last) < logInterval {
		return 0, false
	}
	n, r.last, r.skipped = r.skipped, now, 0
	return n, true
}
