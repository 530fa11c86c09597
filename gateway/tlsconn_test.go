package gateway

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"icapgate/configs"
	"icapgate/gateway/selfsign"
)

// This file pins what the data path relies on in crypto/tls and what its documentation does not promise.

// lane is one direction of a connection. While it blocks, it is a pipe with a buffer, for the handshake. After that the test says
// how many bytes have arrived, and a reader that has had them gets errDry.
type lane struct {
	mu      sync.Mutex
	changed sync.Cond
	blocks  bool
	sent    []byte // not yet read
	arrived int    // of sent, when it does not block
	fin     bool   // behind sent
	writes  []int  // sizes
}

func newLane() *lane {
	w := &lane{blocks: true}
	w.changed.L = &w.mu
	return w
}

// arrive lets n more bytes through, at most all.
func (w *lane) arrive(n int) { w.arrived = min(w.arrived+n, len(w.sent)) }

// laneEnd is one end of a connection.
type laneEnd struct {
	net.Conn // nil: what is not below must not be called
	in, out  *lane
}

func (e *laneEnd) Read(p []byte) (int, error) {
	w := e.in
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.blocks && len(w.sent) == 0 {
		w.changed.Wait()
	}
	n := len(w.sent)
	if !w.blocks {
		n = w.arrived
	}
	if n == 0 && w.fin && len(w.sent) == 0 {
		return 0, io.EOF
	}
	if n == 0 {
		return 0, errDry
	}
	n = copy(p, w.sent[:n])
	w.sent = w.sent[n:]
	w.arrived = max(0, w.arrived-n)
	return n, nil
}

func (e *laneEnd) Write(p []byte) (int, error) {
	w := e.out
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent = append(w.sent, p...)
	w.writes = append(w.writes, len(p))
	w.changed.Broadcast()
	return len(p), nil
}

func (e *laneEnd) SetWriteDeadline(time.Time) error { return nil }

// tlsPair is a connection whose handshake is over. What the server has sent behind it (tickets) is still under way.
type tlsPair struct {
	client, server *tls.Conn
	up, down       *lane // client to server, server to client
}

// testCertificate returns a certificate for 127.0.0.1 and a pool that trusts it.
func testCertificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	pem, err := selfsign.Generate([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(pem, pem)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return pair, roots
}

// newTLSPair makes a connection. With a cache the server asks for a client certificate, because it then sends its tickets behind the
// client's Finished, as OpenSSL always does.
func newTLSPair(t *testing.T, version uint16, cache tls.ClientSessionCache) *tlsPair {
	t.Helper()
	cert, roots := testCertificate(t)
	p := &tlsPair{up: newLane(), down: newLane()}
	p.client = tls.Client(&laneEnd{in: p.down, out: p.up}, &tls.Config{
		RootCAs: roots, ServerName: "127.0.0.1", MinVersion: version, MaxVersion: version,
		DynamicRecordSizingDisabled: true, ClientSessionCache: cache,
	})
	config := &tls.Config{Certificates: []tls.Certificate{cert}, DynamicRecordSizingDisabled: true}
	if cache != nil {
		config.ClientAuth = tls.RequestClientCert
	}
	p.server = tls.Server(&laneEnd{in: p.up, out: p.down}, config)
	failed := make(chan error, 1)
	go func() { failed <- p.server.Handshake() }()
	if err := errors.Join(p.client.Handshake(), <-failed); err != nil {
		t.Fatal(err)
	}
	for _, w := range []*lane{p.up, p.down} {
		w.blocks, w.writes = false, nil
	}
	return p
}

// settle lets the client take what came with the handshake.
func (p *tlsPair) settle(t *testing.T) {
	t.Helper()
	p.down.arrive(1 << 20)
	if n, err := p.client.Read(make([]byte, 1)); n != 0 || err != errDry {
		t.Fatalf("reading what came with the handshake: %d, %v", n, err)
	}
}

func overVersions(t *testing.T, run func(t *testing.T, version uint16)) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) { run(t, version) })
	}
}

// overDirections runs a test on a fresh connection for both versions and both directions.
func overDirections(t *testing.T, run func(t *testing.T, from, to *tls.Conn, w *lane)) {
	overVersions(t, func(t *testing.T, version uint16) {
		t.Run("to the server", func(t *testing.T) {
			p := newTLSPair(t, version, nil)
			run(t, p.client, p.server, p.up)
		})
		t.Run("to the client", func(t *testing.T) {
			p := newTLSPair(t, version, nil)
			p.settle(t)
			run(t, p.server, p.client, p.down)
		})
	})
}

func write(t *testing.T, c *tls.Conn, p []byte) {
	t.Helper()
	if n, err := c.Write(p); n != len(p) || err != nil {
		t.Fatalf("wrote %d of %d: %v", n, len(p), err)
	}
}

// readDry reads until the transport is dry. Any other error ends the test.
func readDry(t *testing.T, c *tls.Conn) (got []byte) {
	t.Helper()
	buf := make([]byte, 500)
	for {
		n, err := c.Read(buf)
		got = append(got, buf[:n]...)
		if err == errDry {
			return got
		}
		if err != nil {
			t.Fatalf("Read: %v (%T), want errDry itself", err, err)
		}
	}
}

// pattern returns n bytes that no shift maps to themselves.
func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i ^ i>>8 ^ i>>16*7)
	}
	return p
}

// A Read that found the transport dry can be called again, whatever part of a record had arrived.
func TestTLSReadResumesByteByByte(t *testing.T) {
	overDirections(t, func(t *testing.T, from, to *tls.Conn, w *lane) {
		var want, got []byte
		for _, size := range []int{1, 0, 100, 17_000} {
			p := pattern(size)
			write(t, from, p)
			want = append(want, p...)
		}
		for len(w.sent) > 0 {
			w.arrive(1)
			got = append(got, readDry(t, to)...)
			if !bytes.HasPrefix(want, got) {
				t.Fatalf("after %d bytes: not what was sent", len(got))
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("got %d bytes, want %d", len(got), len(want))
		}
	})
}

func TestTLSReadResumesCutAnywhere(t *testing.T) {
	overDirections(t, func(t *testing.T, from, to *tls.Conn, w *lane) {
		for cut := 0; ; cut++ {
			write(t, from, []byte("the first record"))
			write(t, from, []byte("the second"))
			all := len(w.sent)
			if cut > all {
				break
			}
			w.arrive(cut)
			got := readDry(t, to)
			w.arrive(all)
			got = append(got, readDry(t, to)...)
			if string(got) != "the first recordthe second" {
				t.Fatalf("cut at %d of %d: got %q", cut, all, got)
			}
		}
	})
}

// One read of the transport can bring several records: those that the tls.Conn holds raise no event and have to be fetched.
func TestTLSReadTakesBufferedRecords(t *testing.T) {
	overDirections(t, func(t *testing.T, from, to *tls.Conn, w *lane) {
		for range 3 {
			write(t, from, []byte("record"))
		}
		w.arrive(len(w.sent))
		n, err := to.Read(make([]byte, 100))
		if n != len("record") || err != nil {
			t.Fatalf("first Read: %d, %v, want one record", n, err)
		}
		if len(w.sent) != 0 {
			t.Fatalf("%d bytes are left in the transport: the test shows nothing", len(w.sent))
		}
		if got := readDry(t, to); string(got) != "recordrecord" {
			t.Errorf("with an empty transport: got %q more, want two records", got)
		}
	})
}

// A handshake can't be resumed, which is why it runs in a goroutine.
func TestTLSHandshakeDoesNotResume(t *testing.T) {
	cert, _ := testCertificate(t)
	up, down := newLane(), newLane()
	up.blocks = false
	server := tls.Server(&laneEnd{in: up, out: down}, &tls.Config{Certificates: []tls.Certificate{cert}})
	if err := server.Handshake(); !errors.Is(err, errDry) {
		t.Fatalf("Handshake without a ClientHello: %v, want errDry", err)
	}
	ended := newLane()
	ended.blocks, ended.fin = false, true
	_ = tls.Client(&laneEnd{in: ended, out: up}, &tls.Config{ServerName: "x"}).Handshake()
	if len(up.sent) == 0 {
		t.Fatal("the client has sent nothing")
	}
	up.arrive(len(up.sent))
	if err := server.Handshake(); !errors.Is(err, errDry) {
		t.Errorf("Handshake again: %v. If it can be resumed now, the handshake needs no goroutine", err)
	}
}

// Read may return bytes and a temporary error at once: in TLS 1.2 it looks at an alert that follows.
func TestTLSReadReturnsBytesWithError(t *testing.T) {
	p := newTLSPair(t, tls.VersionTLS12, nil)
	write(t, p.client, []byte("last words"))
	data := len(p.up.sent)
	if err := p.client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for partial := 1; partial < len(p.up.sent)-data; partial++ {
		p := newTLSPair(t, tls.VersionTLS12, nil)
		write(t, p.client, []byte("last words"))
		_ = p.client.CloseWrite()
		p.up.arrive(data + partial)
		buf := make([]byte, 100)
		if n, err := p.server.Read(buf); string(buf[:n]) != "last words" || err != errDry {
			t.Fatalf("with %d bytes of the alert: %q, %v, want all bytes and errDry", partial, buf[:n], err)
		}
		p.up.arrive(100)
		if n, err := p.server.Read(buf); n != 0 || err != io.EOF {
			t.Fatalf("with the rest of the alert: %d, %v, want io.EOF", n, err)
		}
	}
	p.up.arrive(len(p.up.sent))
	buf := make([]byte, 100)
	if n, err := p.server.Read(buf); string(buf[:n]) != "last words" || err != io.EOF {
		t.Errorf("with the whole alert: %q, %v, want all bytes and io.EOF", buf[:n], err)
	}
}

// Session tickets that come after the handshake are taken by a Read, which returns no bytes, in however many pieces they come.
func TestTLSTicketsArriveLate(t *testing.T) {
	cache := new(noteCache)
	p := newTLSPair(t, tls.VersionTLS13, cache)
	if len(p.down.sent) == 0 {
		t.Fatal("the server has sent no ticket: nothing to test")
	}
	for len(p.down.sent) > 0 {
		if cache.puts > 0 {
			t.Fatal("a ticket was taken before it was complete")
		}
		p.down.arrive(1)
		if got := readDry(t, p.client); len(got) > 0 {
			t.Fatalf("a ticket gave %q", got)
		}
	}
	if cache.puts == 0 {
		t.Error("no ticket was taken")
	}
	write(t, p.server, []byte("answer"))
	p.down.arrive(100)
	if got := readDry(t, p.client); string(got) != "answer" {
		t.Errorf("after the ticket: %q", got)
	}
}

// A ticket and an answer in one segment: the answer comes with the same Read.
func TestTLSTicketWithAnswer(t *testing.T) {
	p := newTLSPair(t, tls.VersionTLS13, new(noteCache))
	write(t, p.server, []byte("answer"))
	p.down.arrive(len(p.down.sent))
	if got := readDry(t, p.client); string(got) != "answer" {
		t.Errorf("got %q", got)
	}
}

type noteCache struct{ puts int }

func (c *noteCache) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (c *noteCache) Put(string, *tls.ClientSessionState)        { c.puts++ }

// Write hands out one record per write of the transport, and full ones from the start.
func TestTLSWritesFullRecords(t *testing.T) {
	overDirections(t, func(t *testing.T, from, to *tls.Conn, w *lane) {
		const record, overhead = 16 << 10, 5 + 8 + 1 + 16 // header, explicit nonce (1.2), type (1.3), tag
		write(t, from, pattern(256<<10))
		if len(w.writes) != 16 {
			t.Errorf("256 KiB took %d writes of %v bytes, want 16", len(w.writes), w.writes)
		}
		for _, n := range w.writes {
			if n < record || n > record+overhead {
				t.Errorf("a record of %d bytes, want 16 KiB and at most %d", n, overhead)
			}
		}
		w.writes = nil
		write(t, from, pattern(100))
		write(t, from, nil)
		if len(w.writes) != 1 || w.writes[0] > 100+overhead {
			t.Errorf("100 bytes and none took writes of %v, want one record", w.writes)
		}
	})
}

// Both configurations of ours switch off the small records with which crypto/tls begins.
func TestTLSConfigsHaveFullRecords(t *testing.T) {
	pem, err := selfsign.Generate([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "both.pem")
	if err := os.WriteFile(file, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := newServerTLS(&configs.ListenerTLS{Certificates: []configs.Certificate{{CertFile: file}}})
	if err != nil {
		t.Fatal(err)
	}
	if !l.DynamicRecordSizingDisabled || l.MinVersion != tls.VersionTLS12 {
		t.Error("a listener starts with small records or takes less than TLS 1.2")
	}
	p, err := newPoolTLS(&configs.PoolTLS{CAFile: file})
	if err != nil || !p.DynamicRecordSizingDisabled || p.MinVersion != tls.VersionTLS12 || p.ClientSessionCache == nil || p.InsecureSkipVerify {
		t.Errorf("a pool starts with small records, takes less than TLS 1.2, does not resume or does not verify: %v", err)
	}
}

func TestTLSCloseNotify(t *testing.T) {
	overDirections(t, func(t *testing.T, from, to *tls.Conn, w *lane) {
		write(t, from, []byte("bye"))
		if err := from.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if err := from.CloseWrite(); err != nil {
			t.Errorf("a second CloseWrite: %v", err)
		}
		if _, err := from.Write([]byte("more")); err == nil {
			t.Error("Write after CloseWrite worked")
		}
		var got []byte
		var end error
		buf := make([]byte, 10)
		for len(w.sent) > 0 || end == nil {
			w.arrive(1)
			n, err := to.Read(buf)
			got = append(got, buf[:n]...)
			if err != errDry && err != nil {
				end = err
				break
			}
		}
		if string(got) != "bye" || end != io.EOF || len(w.sent) > 0 {
			t.Errorf("got %q, %v with %d bytes under way, want io.EOF behind the last byte", got, end, len(w.sent))
		}
		if n, err := to.Read(buf); n != 0 || err != io.EOF {
			t.Errorf("another Read: %d, %v, want io.EOF again", n, err)
		}
	})
}

// Closing one direction leaves the other one open.
func TestTLSHalfClose(t *testing.T) {
	overVersions(t, func(t *testing.T, version uint16) {
		p := newTLSPair(t, version, nil)
		p.settle(t)
		_ = p.client.CloseWrite()
		p.up.arrive(100)
		if _, err := p.server.Read(make([]byte, 10)); err != io.EOF {
			t.Fatalf("Read: %v, want io.EOF", err)
		}
		write(t, p.server, []byte("answer"))
		p.down.arrive(100)
		if got := readDry(t, p.client); string(got) != "answer" {
			t.Errorf("after its close_notify the client read %q", got)
		}
	})
}

// A FIN without close_notify is io.EOF between records and io.ErrUnexpectedEOF within one.
func TestTLSFin(t *testing.T) {
	for _, tt := range []struct {
		name string
		cut  func(record int) int
		want error
	}{
		{"between records", func(int) int { return 0 }, io.EOF},
		{"within the header", func(int) int { return 3 }, io.ErrUnexpectedEOF},
		{"behind the header", func(int) int { return 5 }, io.ErrUnexpectedEOF},
		{"before the last byte", func(n int) int { return n - 1 }, io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			overDirections(t, func(t *testing.T, from, to *tls.Conn, w *lane) {
				write(t, from, []byte("whole"))
				w.arrive(len(w.sent))
				if got := readDry(t, to); string(got) != "whole" {
					t.Fatalf("got %q", got)
				}
				write(t, from, []byte("cut off"))
				w.sent, w.fin = w.sent[:tt.cut(len(w.sent))], true
				w.arrive(len(w.sent))
				if n, err := to.Read(make([]byte, 10)); n != 0 || err != tt.want {
					t.Errorf("Read: %d, %v, want %v", n, err, tt.want)
				}
			})
		})
	}
}

// Bytes that are no record of the peer's end the connection for good: the error is not taken for dryness.
func TestTLSBrokenRecord(t *testing.T) {
	overDirections(t, func(t *testing.T, from, to *tls.Conn, w *lane) {
		write(t, from, []byte("whole"))
		w.sent[len(w.sent)-1] ^= 1
		w.arrive(len(w.sent))
		for range 2 {
			if n, err := to.Read(make([]byte, 10)); n != 0 || err == nil || err == errDry || err == io.EOF {
				t.Errorf("Read: %d, %v, want an error that stays", n, err)
			}
		}
	})
}
