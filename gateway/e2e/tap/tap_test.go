package tap

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"icapgate/gateway/selfsign"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peer is a server whose connections the test plays.
type peer struct {
	net.Listener
	t     *testing.T
	conns chan net.Conn
}

func startPeer(t *testing.T) *peer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{ln, t, make(chan net.Conn, 10)}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			p.conns <- nc
		}
	}()
	return p
}

func (p *peer) next() net.Conn {
	p.t.Helper()
	select {
	case nc := <-p.conns:
		p.t.Cleanup(func() { nc.Close() })
		_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
		return nc
	case <-time.After(30 * time.Second):
		p.t.Fatal("no connection")
		return nil
	}
}

func startTap(t *testing.T, cfg Config) *Tap {
	t.Helper()
	tap, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tap.Close)
	return tap
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
	return nc
}

func say(t *testing.T, nc net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(nc, strings.ReplaceAll(text, "¶", "\r\n")); err != nil {
		t.Fatal(err)
	}
}

func hear(t *testing.T, nc net.Conn, text string) {
	t.Helper()
	want := strings.ReplaceAll(text, "¶", "\r\n")
	got := make([]byte, len(want))
	if n, err := io.ReadFull(nc, got); string(got[:n]) != want {
		t.Fatalf("got %q (%v), want %q", got[:n], err, want)
	}
}

// at is a text whose server is at another address.
func at(address, text string) string { return strings.ReplaceAll(text, "s:1344", address) }

// TestTap plays exchanges on two connections through a Tap.
func TestTap(t *testing.T) {
	server := startPeer(t)
	tap := startTap(t, Config{Gateway: Requests, Target: server.Addr().String(), MaxChunk: 4})
	play := func(client, server net.Conn, request, answer string) {
		say(t, client, at(tap.Address(), request))
		hear(t, server, at(tap.Address(), request))
		say(t, server, answer)
		hear(t, client, answer)
	}
	first := dial(t, tap.Address())
	one := server.next()
	play(first, one, options, offer)
	play(first, one, line+noBody, page)
	second := dial(t, tap.Address())
	two := server.next()
	play(second, two, upload, unmod+"0")

	// A FIN goes on as one, and leaves the other direction open.
	_ = first.(*net.TCPConn).CloseWrite()
	if n, err := one.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("%d, %v instead of the end", n, err)
	}
	one.Close()
	if n, err := first.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("%d, %v instead of the end", n, err)
	}
	// A RST goes on as one.
	_ = two.(*net.TCPConn).SetLinger(0)
	two.Close()
	if _, err := second.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("%v instead of a reset", err)
	}

	r := tap.Record()
	if r.Connections != 2 || r.Requests[0] != 2 || r.Requests[1] != 1 || told(r.Exchanges) != "OPTIONS /r 200, REQMOD /r 200 to=5, REQMOD /r 204 from=5" {
		t.Errorf("%d connections with %d requests: %s", r.Connections, r.Requests, told(r.Exchanges))
	}
	if r.FaultCount != 1 || r.Faults[0].Rule != ChunkLimit || r.Faults[0].Connection != 1 {
		t.Errorf("faults: %v", r.Faults)
	}
	if r.RemarkCount != 1 || r.Remarks[0].Rule != Surplus || r.Remarks[0].Connection != 1 {
		t.Errorf("remarks: %v", r.Remarks)
	}
}

// A Tap that refuses is like a server that is not there, and keeps its port for the time when it is back.
func TestRefuse(t *testing.T) {
	before, after := startPeer(t), startPeer(t)
	tap := startTap(t, Config{Gateway: Requests, Target: before.Addr().String()})
	open := dial(t, tap.Address())
	server := before.next()
	tap.Refuse()
	if nc, err := net.Dial("tcp", tap.Address()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, %v, want it to be refused", nc, err)
	}
	say(t, open, "still open")
	hear(t, server, "still open")
	tap.Forward(after.Addr().String())
	if err := tap.Listen(); err != nil {
		t.Fatal(err)
	}
	say(t, dial(t, tap.Address()), "back")
	hear(t, after.next(), "back")

	// Nobody behind it: the connection is cut.
	after.Close()
	tap.Forward(after.Addr().String())
	nc, err := net.Dial("tcp", tap.Address())
	if err == nil { // not so soon
		defer nc.Close()
		_, err = nc.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v, want a reset", err)
	}
}

// TestTLS reads what is encrypted on both sides.
func TestTLS(t *testing.T) {
	pem, err := selfsign.Generate([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := tls.X509KeyPair(pem, pem)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem[bytes.Index(pem, []byte("-----BEGIN CERTIFICATE")):])
	serves, trusts := &tls.Config{Certificates: []tls.Certificate{certificate}}, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}
	server := startPeer(t)
	tap := startTap(t, Config{Gateway: Answers, Target: server.Addr().String(), ServerTLS: serves, ClientTLS: trusts})
	client := tls.Client(dial(t, tap.Address()), trusts)
	said := make(chan error, 1)
	go func() { said <- client.Handshake() }()
	answerer := tls.Server(server.next(), serves)
	if err := errors.Join(answerer.Handshake(), <-said); err != nil {
		t.Fatal(err)
	}
	say(t, client, options)
	hear(t, answerer, options)
	say(t, answerer, "ICAP/1.0 200 OK¶¶")
	hear(t, client, "ICAP/1.0 200 OK¶¶")
	_ = client.CloseWrite()
	if n, err := answerer.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d, %v instead of the end", n, err)
	}
	if r := tap.Record(); r.FaultCount != 1 || r.Faults[0].Rule != ISTag || told(r.Exchanges) != "OPTIONS /r 200" {
		t.Errorf("faults %v in %s", r.Faults, told(r.Exchanges))
	}
}
