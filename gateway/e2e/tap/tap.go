package tap

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Config says where a Tap stands.
type Config struct {
	Gateway      Direction // what the gateway says: Requests before a server, Answers before the gateway
	Target       string    // host:port of what it forwards to
	PreserveHost bool      // the gateway's requests may name another server
	MaxChunk     uint64    // in the gateway's requests, in bytes; 0: any

	// Alter may change bytes in place before they are read and go on: what a side can't be made to say. nil: nothing is changed.
	Alter func(Direction, []byte)

	// Finished is called for each exchange that is over, in the order in which they are; nil: nobody wants to know.
	Finished func(Exchange)

	// For a Tap between TLS clients and the gateway: it ends TLS with the one and begins it again with the other.
	ServerTLS, ClientTLS *tls.Config
}

// What a Tap keeps at most. Beyond it things are counted only.
const (
	maxFindings  = 1000
	maxExchanges = 1 << 17
)

// Tap forwards connections and reads along.
type Tap struct {
	cfg     Config
	address string
	place   int          // socket that keeps the port while the Tap refuses connections
	target  atomic.Value // string

	ending context.Context
	end    context.CancelFunc
	group  sync.WaitGroup

	mu     sync.Mutex // guards all below
	ln     net.Listener
	links  map[*link]bool
	record Record
}

// Record is what a Tap has seen so far.
type Record struct {
	Connections int
	Requests    []int // by connection: the requests that it has carried, OPTIONS too
	Exchanges   []Exchange
	Faults      []Finding // of the gateway
	Remarks     []Finding // of the other side
	FaultCount  int       // all of them, those too that are not kept
	RemarkCount int
	Lost        [2]int // connections of which a direction could not be read to its end
}

// Start begins to accept connections on a loopback port.
func Start(cfg Config) (*Tap, error) {
	t := &Tap{cfg: cfg, links: make(map[*link]bool)}
	t.target.Store(cfg.Target)
	t.ending, t.end = context.WithCancel(context.Background())
	place, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	t.place = place
	err = unix.SetsockoptInt(place, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	if err == nil {
		err = unix.Bind(place, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	var bound unix.Sockaddr
	if err == nil {
		bound, err = unix.Getsockname(place)
	}
	if err == nil {
		t.address = net.JoinHostPort("127.0.0.1", strconv.Itoa(bound.(*unix.SockaddrInet4).Port))
		err = t.Listen()
	}
	if err != nil {
		unix.Close(place)
		return nil, err
	}
	return t, nil
}

// Address is where the Tap accepts connections.
func (t *Tap) Address() string { return t.address }

// Forward makes connections to come go to another target.
func (t *Tap) Forward(target string) { t.target.Store(target) }

// Listen accepts connections again, after Refuse.
func (t *Tap) Listen() error {
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var err error
		if cerr := rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); cerr != nil {
			return cerr
		}
		return err
	}}
	ln, err := lc.Listen(t.ending, "tcp4", t.address)
	if err != nil {
		return err
	}
	t.mu.Lock()
	t.ln = ln
	t.mu.Unlock()
	t.group.Go(func() { t.accept(ln) })
	return nil
}

// Refuse lets further connections fail, as a server does that is not there. Those that are open go on.
func (t *Tap) Refuse() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ln.Close()
}

// Cut resets all connections.
func (t *Tap) Cut() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for l := range t.links {
		l.abort()
	}
}

// Close ends all connections and returns when nothing of the Tap runs any more.
func (t *Tap) Close() {
	t.end()
	t.Refuse()
	t.Cut()
	t.group.Wait()
	unix.Close(t.place)
}

// Record returns what the Tap has seen so far. Exchanges that are not over are in it when their connection has ended.
func (t *Tap) Record() Record {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.record
	r.Requests, r.Exchanges = slices.Clone(r.Requests), slices.Clone(r.Exchanges)
	r.Faults, r.Remarks = slices.Clone(r.Faults), slices.Clone(r.Remarks)
	return r
}

func (t *Tap) accept(ln net.Listener) {
	for {
		nc, err := ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptor left, say
			time.Sleep(10 * time.Millisecond)
			continue
		}
		t.group.Go(func() { t.serve(nc) })
	}
}

// serve forwards one connection.
func (t *Tap) serve(client net.Conn) {
	server, err := new(net.Dialer).DialContext(t.ending, "tcp", t.target.Load().(string))
	if err != nil {
		reset(client)
		return
	}
	if cfg := t.cfg.ServerTLS; cfg != nil {
		client = tls.Server(client, cfg)
	}
	if cfg := t.cfg.ClientTLS; cfg != nil {
		server = tls.Client(server, cfg)
	}
	l := t.open(client, server)
	if l == nil {
		return
	}
	defer t.finish(l)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		l.pump(Answers)
	}()
	l.pump(Requests)
	<-answered
}

func (t *Tap) open(client, server net.Conn) *link {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := &link{ends: [2]net.Conn{Requests: client, Answers: server}, number: t.record.Connections, alter: t.cfg.Alter}
	if t.ending.Err() != nil {
		l.abort()
		return nil
	}
	t.record.Connections++
	t.record.Requests = append(t.record.Requests, 0)
	rules := Rules{Gateway: t.cfg.Gateway, MaxChunk: t.cfg.MaxChunk}
	if !t.cfg.PreserveHost {
		rules.Authority = t.address
	}
	l.wire = NewWire(rules, func(f Finding) { t.found(l, f) }, func(x Exchange) { t.finished(l, x) })
	t.links[l] = true
	return l
}

func (t *Tap) finish(l *link) {
	l.mu.Lock()
	l.wire.End()
	l.mu.Unlock()
	l.close()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.links, l)
	for d := range t.record.Lost {
		if l.wire.Lost(Direction(d)) {
			t.record.Lost[d]++
		}
	}
}

func (t *Tap) found(l *link, f Finding) {
	f.Connection = l.number
	t.mu.Lock()
	defer t.mu.Unlock()
	kept, count := &t.record.Remarks, &t.record.RemarkCount
	if f.Direction == t.cfg.Gateway {
		kept, count = &t.record.Faults, &t.record.FaultCount
	}
	if *count++; len(*kept) < maxFindings {
		*kept = append(*kept, f)
	}
}

func (t *Tap) finished(l *link, x Exchange) {
	x.Connection = l.number
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cfg.Finished != nil {
		t.cfg.Finished(x)
	}
	t.record.Requests[l.number]++
	if len(t.record.Exchanges) < maxExchanges {
		t.record.Exchanges = append(t.record.Exchanges, x)
	}
}

// link is a connection through a Tap.
type link struct {
	number int
	ends   [2]net.Conn // by who speaks
	alter  func(Direction, []byte)

	mu   sync.Mutex // orders what both sides say
	wire *Wire
}

// pump forwards what one side says. It is read before it goes on, so that whatever the other side says because of it is read later.
func (l *link) pump(d Direction) {
	from, to := l.ends[d], l.ends[1-d]
	buffer := make([]byte, 32<<10)
	writes := true
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if l.alter != nil {
				l.alter(d, buffer[:n])
			}
			l.mu.Lock()
			l.wire.Feed(d, buffer[:n])
			l.mu.Unlock()
			if writes {
				_, werr := to.Write(buffer[:n])
				writes = werr == nil // an answer may have been sent before the end, so the other direction goes on
			}
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF { // the latter: a FIN without a close_notify before it
			if c, ok := to.(interface{ CloseWrite() error }); ok {
				_ = c.CloseWrite()
			}
			return
		}
		if err != nil {
			reset(to)
			reset(from)
			return
		}
	}
}

func (l *link) close() {
	for _, nc := range l.ends {
		nc.Close()
	}
}

func (l *link) abort() {
	for _, nc := range l.ends {
		reset(nc)
	}
}

// reset closes a connection so that the peer sees that it was cut.
func reset(nc net.Conn) {
	if c, ok := nc.(*tls.Conn); ok {
		nc = c.NetConn()
	}
	if c, ok := nc.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
	nc.Close()
}
