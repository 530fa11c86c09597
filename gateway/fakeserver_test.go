package gateway

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeServer is a scripted server: a test says byte by byte what it wants to get and what is answered. The gateway's checks are
// answered by the fakeServer itself, from options.
type fakeServer struct {
	ln      net.Listener
	tls     *tls.Config // nil: plain
	address string
	begun   chan *serverSide // connections on which a request has begun
	checks  chan struct{}    // nil, or: a check is answered when something can be received from it
	done    chan struct{}    // closed at the end of the test
	running sync.WaitGroup

	mu       sync.Mutex
	conns    map[*net.TCPConn]struct{}
	accepted int
	peak     int               // most connections at a time, as of the latest forgetPeak
	options  map[string]string // answers to checks by path, "": for all others; heads without their empty line
}

const optionsAnswer = "ICAP/1.0 200 OK¶ISTag: \"s\"¶Methods: REQMOD, RESPMOD¶"

// startFake runs a scripted server.
func startFake(t testing.TB) *fakeServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serveFake(t, ln, nil)
}

// startFakeHeld runs a scripted server that answers a check when something is sent to checks, or it is closed.
func startFakeHeld(t testing.TB) *fakeServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := newFake(ln, nil)
	f.checks = make(chan struct{})
	f.start(t)
	return f
}

func serveFake(t testing.TB, ln net.Listener, cfg *tls.Config) *fakeServer {
	f := newFake(ln, cfg)
	f.start(t)
	return f
}

func newFake(ln net.Listener, cfg *tls.Config) *fakeServer {
	return &fakeServer{
		ln: ln, tls: cfg, address: ln.Addr().String(), begun: make(chan *serverSide), done: make(chan struct{}),
		conns: make(map[*net.TCPConn]struct{}), options: map[string]string{"": optionsAnswer},
	}
}

func (f *fakeServer) start(t testing.TB) {
	f.running.Go(f.accept)
	t.Cleanup(f.stop)
}

func (f *fakeServer) stop() {
	close(f.done)
	f.ln.Close()
	f.mu.Lock()
	for nc := range f.conns {
		nc.Close()
	}
	f.mu.Unlock()
	f.running.Wait()
}

func (f *fakeServer) accept() {
	for {
		nc, err := f.ln.Accept()
		if err != nil {
			return
		}
		f.mu.Lock()
		select {
		case <-f.done:
			nc.Close()
		default:
			f.accepted++
			f.conns[nc.(*net.TCPConn)] = struct{}{}
			f.peak = max(f.peak, f.open())
			if f.tls != nil {
				nc = tls.Server(nc, f.tls)
			}
			s := &serverSide{
				client: &client{Conn: nc, r: bufio.NewReader(nc)}, f: f, number: f.accepted,
				released: make(chan struct{}), ended: make(chan struct{}),
			}
			f.running.Go(func() { f.serve(s) })
		}
		f.mu.Unlock()
	}
}

// open counts the connections that the gateway has not closed. It needs f.mu.
func (f *fakeServer) open() (n int) {
	for nc := range f.conns {
		rc, err := nc.SyscallConn()
		if err != nil {
			continue
		}
		_ = rc.Control(func(fd uintptr) {
			const established = 1
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			if err == nil && info.State == established {
				n++
			}
		})
	}
	return n
}

// counts returns how many connections there are, how many there have been at a time, and how many ever, checks included.
func (f *fakeServer) counts() (open, peak, accepted int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open(), f.peak, f.accepted
}

func (f *fakeServer) forgetPeak() {
	f.mu.Lock()
	f.peak = 0
	f.mu.Unlock()
}

// says makes head (without its empty line) the answer to checks that ask for a path; "": for all that have no answer of their own.
func (f *fakeServer) says(path, head string) {
	f.mu.Lock()
	f.options[path] = head
	f.mu.Unlock()
}

func (f *fakeServer) checkAnswer(path string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	head, ok := f.options[path]
	if !ok {
		head = f.options[""]
	}
	return text(head + "¶")
}

// serve announces each request of a connection to the test, and leaves the connection to it until release.
func (f *fakeServer) serve(s *serverSide) {
	defer func() {
		s.Close()
		f.mu.Lock()
		delete(f.conns, s.tcp())
		f.mu.Unlock()
		close(s.ended)
	}()
	for {
		if _, s.end = s.r.Peek(1); s.end != nil {
			return
		}
		if path, ok := s.check(); ok {
			if f.checks != nil {
				select {
				case <-f.checks:
				case <-f.done:
					return
				}
			}
			if _, err := io.WriteString(s, f.checkAnswer(path)); err != nil {
				return
			}
			continue
		}
		select {
		case f.begun <- s:
		case <-f.done:
			return
		}
		select {
		case <-s.released:
		case <-f.done:
			return
		}
		s.served++
	}
}

// next returns the connection on which the next request comes. It is the test's until release.
func (f *fakeServer) next(t testing.TB) *serverSide {
	t.Helper()
	select {
	case s := <-f.begun:
		s.t = t
		_ = s.SetDeadline(time.Now().Add(patience))
		return s
	case <-time.After(patience):
		t.Fatal("no request reached the server")
	}
	return nil
}

// idle checks that no request has begun.
func (f *fakeServer) idle(t testing.TB) {
	t.Helper()
	select {
	case s := <-f.begun:
		got, _ := s.r.Peek(s.r.Buffered())
		t.Fatalf("a request reached the server: %q", got)
	default:
	}
}

// serverSide is a connection from the gateway as the server sees it.
type serverSide struct {
	*client
	f        *fakeServer
	number   int // in the order of acceptance, checks included
	served   int // requests before the current one
	released chan struct{}
	ended    chan struct{} // closed when it came to its end while released; end says how
	end      error
}

// check reads a check and says for which path it is; false: there is none.
func (s *serverSide) check() (path string, ok bool) {
	if p, _ := s.r.Peek(len("OPTIONS")); string(p) != "OPTIONS" {
		return "", false
	}
	for {
		p, _ := s.r.Peek(s.r.Buffered())
		if end := strings.Index(string(p), "\r\n\r\n"); end >= 0 {
			head := string(p[:end])
			if !strings.Contains(head, "icapgate-check") {
				return "", false
			}
			_, _ = s.r.Discard(end + 4)
			_, path, _ = strings.Cut(strings.Fields(head)[1], s.f.address)
			return path, true
		}
		if _, err := s.r.Peek(len(p) + 1); err != nil {
			return "", false
		}
	}
}

// release gives the connection back: the next request on it is announced.
func (s *serverSide) release() {
	_ = s.SetDeadline(time.Time{})
	s.released <- struct{}{}
}

// over waits until a released connection has been ended by the gateway.
func (s *serverSide) over(t testing.TB) {
	t.Helper()
	select {
	case <-s.ended:
	case <-time.After(patience):
		t.Fatal("the gateway keeps a connection that it can't use any more")
	}
}

// reset ends a connection with a RST.
func (c *client) reset() {
	_ = c.tcp().SetLinger(0)
	c.tcp().Close()
}

// rest reads to the end of the connection, however it comes.
func (c *client) rest() string {
	var b bytes.Buffer
	_, _ = b.ReadFrom(c.r)
	return b.String()
}

// text turns "¶" into CRLF.
func text(s string) string { return strings.ReplaceAll(s, "¶", "\r\n") }

// tcp is the socket below a connection.
func (c *client) tcp() *net.TCPConn {
	nc := c.Conn
	if tc, ok := nc.(interface{ NetConn() net.Conn }); ok {
		nc = tc.NetConn()
	}
	return nc.(*net.TCPConn)
}

// control runs f on the socket of a connection.
func (c *client) control(t testing.TB, f func(fd int) error) {
	t.Helper()
	rc, err := c.tcp().SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if cerr := rc.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
}

// unread is how many bytes have come and were not read.
func unread(t testing.TB, s *serverSide) (n int) {
	s.control(t, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.TIOCINQ)
		return err
	})
	return n + s.r.Buffered()
}

// segments is how many segments with data have come.
func segments(t testing.TB, c *client) (n int) {
	c.control(t, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			n = int(info.Data_segs_in)
		}
		return err
	})
	return n
}
