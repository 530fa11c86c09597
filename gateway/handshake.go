package gateway

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// maxHandshakes bounds a listener's connections between accept and the end of the handshake. When it is reached, or a limit of
// connections, the oldest that has not sent a ClientHello is closed, or without such a one the oldest that has not answered
// ours: clients that connect and stay silent, then or later, can't keep others out.
//
// That is only done while such handshakes are at least a share of 1/stalledShare of the limit. Where nearly all are at work (many clients
// that come at once) or the limit is full of sessions, the newcomers would otherwise close each other, and none would come through.
const (
	maxHandshakes = 4096
	stalledShare  = 8
)

// handshakes runs the TLS handshakes of one listener, each in a goroutine with a deadline, because crypto/tls can't
// resume a handshake that would block.
type handshakes struct {
	mu       sync.Mutex
	pending  map[net.Conn]*list.Element // guarded by mu; nil element: at work
	silent   list.List                  // of net.Conn without a ClientHello, oldest first; guarded by mu
	halfOpen list.List                  // of net.Conn that owe an answer to our side of the handshake, oldest first; guarded by mu
	closed   bool                       // guarded by mu
	running  sync.WaitGroup
	results  [handshakeResults][tlsVersions]atomic.Uint64
}

// handshakeResult is a label of handshakes_total.
type handshakeResult uint8

const (
	handshakeOK handshakeResult = iota
	handshakeTimeout
	handshakeClosed // by the client
	handshakeFailed
	handshakeEvicted // kept us waiting for the longest when a limit was reached
	handshakeResults = iota
)

func (r handshakeResult) String() string {
	return [...]string{"ok", "timeout", "closed", "failed", "evicted"}[r]
}

// tlsVersions: index 0 stands for none agreed on.
const tlsVersions = 3

var tlsVersionNames = [tlsVersions]string{"none", "1.2", "1.3"}

func tlsVersionIndex(v uint16) int {
	switch v {
	case tls.VersionTLS12:
		return 1
	case tls.VersionTLS13:
		return 2
	}
	return 0
}

// start takes over nc, whose place among the clients goes with it: whoever takes it out of the books closes it and gives the place back,
// but for a handshake that succeeds.
func (h *handshakes) start(ls *listener, nc net.Conn, client netip.AddrPort) {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		nc.Close()
		ls.leave()
		return
	}
	if h.pending == nil {
		h.pending = make(map[net.Conn]*list.Element)
	}
	var evicted net.Conn
	if len(h.pending) >= maxHandshakes {
		if evicted = h.removeStalled(maxHandshakes); evicted == nil { // they are at work: this one has to come again
			h.mu.Unlock()
			ls.drop(nc)
			return
		}
	}
	h.pending[nc] = h.silent.PushBack(nc)
	h.running.Add(1)
	h.mu.Unlock()
	if evicted != nil {
		ls.drop(evicted)
	}
	go h.run(ls, nc, client)
}

// evict closes the handshake that has kept us waiting for the longest, where a limit of so many is reached; false: none is to be closed.
func (ls *listener) evict(most int) bool {
	h := &ls.handshakes
	h.mu.Lock()
	nc := h.removeStalled(most)
	h.mu.Unlock()
	if nc == nil {
		return false
	}
	ls.drop(nc)
	return true
}

// removeStalled is called with mu held; nil: there is none, or there are too few.
func (h *handshakes) removeStalled(most int) net.Conn {
	if h.silent.Len()+h.halfOpen.Len() < max(1, most/stalledShare) {
		return nil
	}
	oldest := h.silent.Front()
	if oldest == nil {
		oldest = h.halfOpen.Front()
	}
	nc := oldest.Value.(net.Conn)
	h.remove(nc)
	return nc
}

// drop closes a connection that made room. Its descriptor is free on return.
func (ls *listener) drop(nc net.Conn) {
	nc.Close()
	ls.leave()
	ls.handshakes.results[handshakeEvicted][0].Add(1)
}

// run does the handshake and hands the connection to a loop.
func (h *handshakes) run(ls *listener, nc net.Conn, client netip.AddrPort) {
	defer h.running.Done()
	transport := &transport{Conn: nc}
	st := ls.settings.Load()
	deadline := time.Now().Add(time.Duration(st.cfg.Timeouts.Handshake))
	_ = nc.SetDeadline(deadline)
	tc := tls.Server(transport, st.tls)
	err := tc.HandshakeContext(context.WithValue(context.Background(), onHello{}, func() {
		h.heard(nc)
		transport.onRead = func(begins bool) { h.awaits(nc, begins) }
	}))
	if !h.done(nc) {
		return // evicted, or the listener was closed: counted there
	}
	transport.onRead = nil
	version := tlsVersionIndex(tc.ConnectionState().Version)
	if err != nil {
		nc.Close()
		ls.leave()
		h.results[handshakeFailure(err)][version].Add(1)
		ls.gw.log.Debug("handshake failed", "listener", ls.name, "client", client, "error", err)
		return
	}
	h.results[handshakeOK][version].Add(1)
	_ = nc.SetDeadline(time.Time{})
	ls.handOver(nc, client, &tlsStream{tls: tc, transport: transport})
}

func handshakeFailure(err error) handshakeResult {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return handshakeTimeout
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), isReset(err):
		return handshakeClosed
	}
	return handshakeFailed
}

// heard notes that nc has sent its ClientHello.
func (h *handshakes) heard(nc net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if e := h.pending[nc]; e != nil {
		h.silent.Remove(e)
		h.pending[nc] = nil
	}
}

// awaits notes that nc's client is waited for, now that its ClientHello has come, or no longer.
func (h *handshakes) awaits(nc net.Conn, begins bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e, ok := h.pending[nc]
	switch {
	case !ok: // evicted
	case begins && e == nil:
		h.pending[nc] = h.halfOpen.PushBack(nc)
	case !begins && e != nil:
		h.halfOpen.Remove(e)
		h.pending[nc] = nil
	}
}

// done takes nc out of the books; false: it was not in them any more, and has been closed.
func (h *handshakes) done(nc net.Conn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.pending[nc]; !ok {
		return false
	}
	h.remove(nc)
	return true
}

// remove is called with mu held.
func (h *handshakes) remove(nc net.Conn) {
	if e := h.pending[nc]; e != nil {
		h.silent.Remove(e) // it is in one of them
		h.halfOpen.Remove(e)
	}
	delete(h.pending, nc)
}

// closeAll closes what is pending and waits for the goroutines.
func (h *handshakes) closeAll(ls *listener) {
	h.mu.Lock()
	h.closed = true
	var open []net.Conn
	for nc := range h.pending {
		h.remove(nc)
		open = append(open, nc)
	}
	h.mu.Unlock()
	for _, nc := range open {
		nc.Close()
		ls.leave()
	}
	h.running.Wait()
}
