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

// maxHandshakes bounds a listener's connections between accept and the end of the handshake. When it is reached, the oldest that has
// not sent a ClientHello is closed, so clients that connect and stay silent can't keep others out.
const maxHandshakes = 4096

// handshakes runs the TLS handshakes of one listener, each in a goroutine with a deadline, because crypto/tls can't
// resume a handshake that would block.
type handshakes struct {
	mu      sync.Mutex
	pending map[net.Conn]*list.Element // guarded by mu; nil element: it has sent its ClientHello
	silent  list.List                  // of net.Conn, oldest first; guarded by mu
	closed  bool                       // guarded by mu
	running sync.WaitGroup
	results [handshakeResults][tlsVersions]atomic.Uint64
}

// handshakeResult is a label of handshakes_total.
type handshakeResult uint8

const (
	handshakeOK handshakeResult = iota
	handshakeTimeout
	handshakeClosed // by the client
	handshakeFailed
	handshakeEvicted // silent for the longest when the limit was reached
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

// start takes over nc.
func (h *handshakes) start(ls *listener, nc net.Conn, client netip.AddrPort) {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		nc.Close()
		return
	}
	if h.pending == nil {
		h.pending = make(map[net.Conn]*list.Element)
	}
	var evicted net.Conn
	if len(h.pending) >= maxHandshakes {
		oldest := h.silent.Front()
		if oldest == nil { // all of them are at work: this one has to come again
			h.mu.Unlock()
			h.results[handshakeEvicted][0].Add(1)
			nc.Close()
			return
		}
		evicted = oldest.Value.(net.Conn)
		h.remove(evicted)
	}
	h.pending[nc] = h.silent.PushBack(nc)
	h.running.Add(1)
	h.mu.Unlock()
	if evicted != nil {
		evicted.Close()
		h.results[handshakeEvicted][0].Add(1)
	}
	go h.run(ls, nc, client)
}

// run does the handshake and hands the connection to a loop.
func (h *handshakes) run(ls *listener, nc net.Conn, client netip.AddrPort) {
	defer h.running.Done()
	transport := &transport{Conn: nc}
	st := ls.settings.Load()
	deadline := time.Now().Add(time.Duration(st.cfg.Timeouts.Handshake))
	_ = nc.SetDeadline(deadline)
	tc := tls.Server(transport, st.tls.configFor(func() { h.heard(nc) }))
	err := tc.HandshakeContext(context.Background())
	if !h.done(nc) {
		return // evicted, or the listener was closed: counted there
	}
	version := tlsVersionIndex(tc.ConnectionState().Version)
	if err != nil {
		nc.Close()
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
		h.silent.Remove(e)
	}
	delete(h.pending, nc)
}

// closeAll closes what is pending and waits for the goroutines.
func (h *handshakes) closeAll() {
	h.mu.Lock()
	h.closed = true
	for nc := range h.pending {
		h.remove(nc)
		nc.Close()
	}
	h.mu.Unlock()
	h.running.Wait()
}
