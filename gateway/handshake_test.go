package gateway

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"icapgate/configs"
)

// newHandshakeListener returns a listener that accepts nothing: tests give it connections. Its clients have 10 s.
func newHandshakeListener(t *testing.T) *listener {
	t.Helper()
	cert, _ := testCertificate(t)
	ls := &listener{gw: &Gateway{log: slog.New(slog.DiscardHandler)}}
	ls.settings.Store(&listenerSettings{
		cfg: configs.DefaultListener(),
		tls: &tls.Config{Certificates: []tls.Certificate{cert}, GetConfigForClient: announceHello},
	})
	return ls
}

// connect begins a handshake and returns the two ends of its connection.
func (ls *listener) connect() (client, server net.Conn) {
	client, server = net.Pipe()
	ls.handshakes.start(ls, server, netip.AddrPort{})
	return client, server
}

// expectResults compares the handshakes counted, by result and version.
func (ls *listener) expectResults(t *testing.T, want map[handshakeResult][tlsVersions]uint64) {
	t.Helper()
	for r := range handshakeResults {
		for v := range tlsVersions {
			if got := ls.handshakes.results[r][v].Load(); got != want[handshakeResult(r)][v] {
				t.Errorf("%d handshakes with result %v and version %s, want %d", got, handshakeResult(r), tlsVersionNames[v], want[handshakeResult(r)][v])
			}
		}
	}
}

// isClosed says whether the gateway has closed its end. It is called when nothing runs.
func isClosed(client net.Conn) bool {
	_ = client.SetReadDeadline(time.Now())
	_, err := client.Read(make([]byte, 1))
	_ = client.SetReadDeadline(time.Time{})
	return err == io.EOF
}

func TestHandshakeDeadline(t *testing.T) {
	hello := clientHello(t)
	for name, sent := range map[string][]byte{"silent": nil, "within the ClientHello": hello[:len(hello)/2], "one byte": hello[:1]} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ls := newHandshakeListener(t)
				client, _ := ls.connect()
				if _, err := client.Write(sent); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10*time.Second - 1)
				synctest.Wait()
				if isClosed(client) {
					t.Error("closed before the deadline")
				}
				time.Sleep(time.Nanosecond)
				synctest.Wait()
				if !isClosed(client) {
					t.Error("not closed at the deadline")
				}
				if len(ls.handshakes.pending) != 0 || ls.handshakes.silent.Len() != 0 {
					t.Error("the connection is still in the books")
				}
				ls.expectResults(t, map[handshakeResult][tlsVersions]uint64{handshakeTimeout: {1, 0, 0}})
			})
		})
	}
}

// A client that sends a little now and then does not get more time.
func TestHandshakeTrickle(t *testing.T) {
	hello := clientHello(t)
	synctest.Test(t, func(t *testing.T) {
		ls := newHandshakeListener(t)
		client, _ := ls.connect()
		sent := 0
		for ; sent < len(hello); sent++ {
			if _, err := client.Write(hello[sent : sent+1]); err != nil {
				break
			}
			time.Sleep(1500 * time.Millisecond)
		}
		if sent != 7 {
			t.Errorf("the client could send %d bytes, one every 1.5 s, want 7", sent)
		}
		ls.expectResults(t, map[handshakeResult][tlsVersions]uint64{handshakeTimeout: {1, 0, 0}})
	})
}

// clientHello is what a client sends first.
func clientHello(t *testing.T) []byte {
	t.Helper()
	client, server := net.Pipe()
	go tls.Client(client, &tls.Config{ServerName: "127.0.0.1"}).Handshake()
	defer client.Close()
	buf := make([]byte, 16<<10)
	n, err := server.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func TestHandshakeFailures(t *testing.T) {
	tests := []struct {
		name string
		do   func(client net.Conn)
		want map[handshakeResult][tlsVersions]uint64
	}{
		{"closed at once", func(c net.Conn) {}, map[handshakeResult][tlsVersions]uint64{handshakeClosed: {1, 0, 0}}},
		{"closed within the ClientHello", func(c net.Conn) { _, _ = c.Write([]byte{22, 3, 1, 0, 200, 1, 2, 3}) },
			map[handshakeResult][tlsVersions]uint64{handshakeClosed: {1, 0, 0}}},
		{"plain ICAP", func(c net.Conn) { talk(c, "OPTIONS icap://h/ ICAP/1.0\r\n\r\n") },
			map[handshakeResult][tlsVersions]uint64{handshakeFailed: {1, 0, 0}}},
		{"plain HTTP", func(c net.Conn) { talk(c, "GET / HTTP/1.1\r\nHost: h\r\n\r\n") },
			map[handshakeResult][tlsVersions]uint64{handshakeFailed: {1, 0, 0}}},
		{"zeros", func(c net.Conn) { talk(c, strings.Repeat("\x00", 1000)) },
			map[handshakeResult][tlsVersions]uint64{handshakeFailed: {1, 0, 0}}},
		{"a record that is too long", func(c net.Conn) { talk(c, "\x16\x03\x01\xff\xff") },
			map[handshakeResult][tlsVersions]uint64{handshakeFailed: {1, 0, 0}}},
		{"a ClientHello of nonsense", func(c net.Conn) { talk(c, "\x16\x03\x01\x00\x08\x01\x00\x00\x04abcd") },
			map[handshakeResult][tlsVersions]uint64{handshakeFailed: {1, 0, 0}}},
		{"TLS 1.1", func(c net.Conn) {
			_ = tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}).Handshake()
		}, map[handshakeResult][tlsVersions]uint64{handshakeFailed: {1, 0, 0}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ls := newHandshakeListener(t)
				client, _ := ls.connect()
				tt.do(client)
				client.Close()
				synctest.Wait()
				if len(ls.handshakes.pending) != 0 {
					t.Error("the connection is still in the books")
				}
				ls.expectResults(t, tt.want)
			})
		})
	}
}

// A client that does not like our certificate says so: that is a failure of the version agreed on.
func TestHandshakeOfAnotherName(t *testing.T) {
	g := startGateway(t, []string{"127.0.0.1:1"}, quiet, "")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		nc, err := net.Dial("tcp", g.address(0))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		_ = nc.SetDeadline(time.Now().Add(patience))
		tc := tls.Client(nc, &tls.Config{RootCAs: g.roots, ServerName: "other.example", MinVersion: version, MaxVersion: version})
		if err := tc.Handshake(); err == nil {
			t.Fatal("the handshake succeeded")
		}
	}
	ls := g.listeners[0]
	failed := &ls.handshakes.results[handshakeFailed]
	eventually(t, "both handshakes have failed", func() bool { return failed[1].Load()+failed[2].Load() == 2 })
	ls.expectResults(t, map[handshakeResult][tlsVersions]uint64{handshakeFailed: {0, 1, 1}})
}

// TestHandshakeResumes has a client come again: it resumes its session, which spares both sides most of the handshake.
func TestHandshakeResumes(t *testing.T) {
	g := startGateway(t, []string{"127.0.0.1:1"}, quiet, "")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cfg := &tls.Config{
			RootCAs: g.roots, ServerName: "127.0.0.1", MinVersion: version, MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(1),
		}
		for again := range 3 {
			nc, err := net.Dial("tcp", g.address(0))
			if err != nil {
				t.Fatal(err)
			}
			_ = nc.SetDeadline(time.Now().Add(patience))
			tc := tls.Client(nc, cfg)
			if _, err := io.WriteString(tc, "OPTIONS icap://127.0.0.1/ ICAP/1.0\r\nHost: 127.0.0.1\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := tc.Read(make([]byte, 1)); err != nil { // the ticket of TLS 1.3 comes before the answer
				t.Fatal(err)
			}
			if resumed := tc.ConnectionState().DidResume; resumed != (again > 0) {
				t.Errorf("%s, connection %d: resumed is %v", tls.VersionName(version), again+1, resumed)
			}
			tc.Close()
		}
	}
}

// talk sends s and reads the answer, which may come in the middle of it, to its end.
func talk(c net.Conn, s string) {
	go io.WriteString(c, s)
	_, _ = io.Copy(io.Discard, c)
}

// At the limit the oldest connection that has not sent a ClientHello makes room, and nobody else.
func TestHandshakeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ls := newHandshakeListener(t)
		h := &ls.handshakes
		clients, servers := make([]net.Conn, maxHandshakes), make([]net.Conn, maxHandshakes)
		for i := range clients {
			clients[i], servers[i] = ls.connect()
		}
		synctest.Wait()
		if len(h.pending) != maxHandshakes {
			t.Fatalf("%d pending, want all %d", len(h.pending), maxHandshakes)
		}
		for i := range 3 { // these are at work
			h.heard(servers[i])
		}
		var late []net.Conn
		for range 2 {
			c, _ := ls.connect()
			late = append(late, c)
		}
		synctest.Wait()
		if len(h.pending) != maxHandshakes || h.silent.Len() != maxHandshakes-3 {
			t.Errorf("%d pending, %d of them silent; want %d and %d", len(h.pending), h.silent.Len(), maxHandshakes, maxHandshakes-3)
		}
		for i, c := range clients[:10] {
			if want := i == 3 || i == 4; isClosed(c) != want {
				t.Errorf("connection %d closed: %v, want %v", i, !want, want)
			}
		}
		for i, c := range append(late, clients[maxHandshakes-1]) {
			if isClosed(c) {
				t.Errorf("late connection %d was closed", i)
			}
		}
		ls.expectResults(t, map[handshakeResult][tlsVersions]uint64{handshakeEvicted: {2, 0, 0}})

		for nc := range h.pending {
			h.heard(nc)
		}
		refused, _ := ls.connect()
		synctest.Wait()
		if !isClosed(refused) || len(h.pending) != maxHandshakes {
			t.Errorf("with all %d at work a new one was let in (%d pending)", maxHandshakes, len(h.pending))
		}
		ls.expectResults(t, map[handshakeResult][tlsVersions]uint64{handshakeEvicted: {3, 0, 0}})
		h.closeAll(ls)
	})
}

// A ClientHello is noticed, so that its sender is no longer among the silent.
func TestHandshakeHeard(t *testing.T) {
	hello := clientHello(t)
	synctest.Test(t, func(t *testing.T) {
		ls := newHandshakeListener(t)
		h := &ls.handshakes
		client, server := ls.connect()
		if _, err := client.Write(hello[:len(hello)-1]); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if h.pending[server] == nil || h.silent.Len() != 1 {
			t.Error("heard before the ClientHello was complete")
		}
		if _, err := client.Write(hello[len(hello)-1:]); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if e, ok := h.pending[server]; !ok || e != nil || h.silent.Len() != 0 {
			t.Error("the ClientHello was not noticed")
		}
		h.closeAll(ls)
	})
}

// closeAll ends every handshake, wherever it stands, and whatever comes after it.
func TestHandshakeCloseAll(t *testing.T) {
	hello := clientHello(t)
	synctest.Test(t, func(t *testing.T) { // ends only when all goroutines have
		ls := newHandshakeListener(t)
		var clients []net.Conn
		for i := range 100 {
			c, _ := ls.connect()
			if _, err := c.Write(hello[:i%4*len(hello)/3]); err != nil { // nothing, parts, all
				t.Fatal(err)
			}
			clients = append(clients, c)
		}
		synctest.Wait()
		ls.handshakes.closeAll(ls)
		if len(ls.handshakes.pending) != 0 || ls.handshakes.silent.Len() != 0 {
			t.Error("connections are left in the books")
		}
		for i, c := range clients {
			if !isClosed(c) {
				t.Errorf("connection %d is open", i)
			}
		}
		after, _ := ls.connect()
		if !isClosed(after) {
			t.Error("a connection was taken after closeAll")
		}
		ls.expectResults(t, nil)
		ls.handshakes.closeAll(ls) // again does no harm
	})
}

// Silent connections up to the limit do not keep a client out that speaks, and a listener that is closed lets go of them.
func TestSilentClientsKeepNobodyOut(t *testing.T) {
	g := startGateway(t, []string{"127.0.0.1:1"}, quiet, `
listeners:
  - {name: icaps, address: "127.0.0.1:0", tls: {certificates: [{cert_file: CERT}]}, timeouts: {handshake: 5m}}
`)
	ls := g.listeners[0]
	silent := make([]net.Conn, maxHandshakes)
	for i := range silent {
		silent[i], _ = ls.connect()
	}
	for i, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		nc, err := net.Dial("tcp", g.address(0))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		tc := tls.Client(nc, &tls.Config{RootCAs: g.roots, ServerName: "127.0.0.1", MinVersion: version, MaxVersion: version})
		if err := tc.HandshakeContext(ctx); err != nil {
			t.Fatalf("a client that speaks was kept out: %v", err)
		}
		eventually(t, "its session", func() bool { return int(ls.sessions.Load()) == i+1 })
	}
	ls.expectResults(t, map[handshakeResult][tlsVersions]uint64{handshakeOK: {0, 1, 1}, handshakeEvicted: {1, 0, 0}})
	_ = silent[0].SetReadDeadline(time.Now().Add(patience))
	if _, err := silent[0].Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the oldest silent connection: %v, want its end", err)
	}
	g.stopAccepting()
	g.finishHandshakes(t.Context())
	_ = silent[maxHandshakes-1].SetReadDeadline(time.Now().Add(patience))
	if _, err := silent[maxHandshakes-1].Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the youngest silent connection after a drain: %v, want its end", err)
	}
}
