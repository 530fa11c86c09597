package gateway

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// These tests are about tlsStream itself, on a conn of a loop that does not run.

// streamPair is a tlsStream on a loop's connection and the client at its other end.
type streamPair struct {
	t      *testing.T
	conn   *conn
	client *tls.Conn
	raw    net.Conn // under client
	valve  *valve   // between the two
}

// valve keeps what is written once it has been shut.
type valve struct {
	net.Conn
	shut bool
	kept []byte
}

func (v *valve) Write(p []byte) (int, error) {
	if !v.shut {
		return v.Conn.Write(p)
	}
	v.kept = append(v.kept, p...)
	return len(p), nil
}

func newStreamPair(t *testing.T, version uint16) *streamPair {
	t.Helper()
	cert, roots := testCertificate(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	nc, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.SetDeadline(time.Now().Add(patience))
	v := &valve{Conn: raw}
	client := tls.Client(v, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1", MinVersion: version, MaxVersion: version})
	failed := make(chan error, 1)
	go func() { failed <- client.Handshake() }()
	transport := &transport{Conn: nc}
	s := &tlsStream{
		tls:       tls.Server(transport, &tls.Config{Certificates: []tls.Certificate{cert}, DynamicRecordSizingDisabled: true}),
		transport: transport,
	}
	if err := errors.Join(s.tls.Handshake(), <-failed); err != nil {
		t.Fatal(err)
	}
	fd, err := dupFD(nc)
	nc.Close()
	if err != nil {
		t.Fatal(err)
	}
	c := &conn{loop: &loop{now: 1}, fd: fd, writable: true, readable: true}
	s.attach(c)
	t.Cleanup(func() { unix.Close(fd); raw.Close() })
	return &streamPair{t, c, client, raw, v}
}

// wake waits until the socket is readable, as the poller would.
func (p *streamPair) wake() {
	p.t.Helper()
	poll := []unix.PollFd{{Fd: int32(p.conn.fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(poll, int(patience/time.Millisecond))
		if err == unix.EINTR {
			continue
		}
		if n != 1 || err != nil {
			p.t.Fatalf("nothing came: %v", err)
		}
		p.conn.readable, p.conn.dry = true, false
		return
	}
}

// One read takes as many records as there are and fit, and tells that the socket is dry in the same call.
func TestStreamReadsManyRecords(t *testing.T) {
	overVersions(t, func(t *testing.T, version uint16) {
		p := newStreamPair(t, version)
		if got := p.conn.stream.version(); got != version {
			t.Errorf("version %x, want %x", got, version)
		}
		if n, err := p.conn.read(make([]byte, 10)); n != 0 || err != errDry || !p.conn.dry {
			t.Fatalf("reading nothing: %d, %v, dry %v", n, err, p.conn.dry)
		}
		want := pattern(50_000)
		go p.client.Write(want)
		var got []byte
		buf := make([]byte, 64<<10)
		for len(got) < len(want) {
			p.wake()
			for !p.conn.dry {
				n, err := p.conn.read(buf)
				got = append(got, buf[:n]...)
				if err != nil && err != errDry {
					t.Fatal(err)
				}
			}
		}
		if !bytes.Equal(got, want) {
			t.Error("not what was sent")
		}
		if p.conn.received < uint64(len(want)) {
			t.Errorf("%d bytes counted on the wire, want at least %d", p.conn.received, len(want))
		}
	})
}

// A buffer smaller than a record: the rest comes from the stream while the socket is dry already.
func TestStreamReadsIntoSmallBuffers(t *testing.T) {
	overVersions(t, func(t *testing.T, version uint16) {
		p := newStreamPair(t, version)
		want := pattern(10_000)
		if _, err := p.client.Write(want); err != nil {
			t.Fatal(err)
		}
		var got []byte
		buf := make([]byte, 333)
		for len(got) < len(want) {
			p.wake()
			for !p.conn.dry {
				n, err := p.conn.read(buf)
				got = append(got, buf[:n]...)
				if err != nil && err != errDry || err == nil && n != len(buf) {
					t.Fatalf("read %d of %d: %v", n, len(buf), err)
				}
			}
		}
		if !bytes.Equal(got, want) {
			t.Error("not what was sent")
		}
	})
}

// However records are sized and cut, a stream that says that it is dry has given out all that has come: tls.Conn has nothing left either.
func TestStreamIsDryWhenItSaysSo(t *testing.T) {
	overVersions(t, func(t *testing.T, version uint16) {
		for seed := range uint64(30) {
			r := rand.New(rand.NewPCG(seed, 7))
			p := newStreamPair(t, version)
			p.valve.shut = true
			var want, got []byte
			for range 40 {
				data := pattern([]int{1, 2, 100, 1000, 16 << 10, 40_000}[r.IntN(6)])
				if _, err := p.client.Write(data); err != nil {
					t.Fatal(err)
				}
				want = append(want, data...)
			}
			buf := make([]byte, 64<<10)
			for wire := p.valve.kept; len(wire) > 0; {
				k := min(len(wire), []int{1, 3, 5, 21, 22, 23, 1029, 16<<10 + 22, 30_000}[r.IntN(9)])
				if _, err := p.raw.Write(wire[:k]); err != nil {
					t.Fatal(err)
				}
				wire = wire[k:]
				p.wake()
				for !p.conn.dry {
					n, err := p.conn.read(buf[:[]int{1, 100, 16 << 10, 64 << 10}[r.IntN(4)]])
					got = append(got, buf[:n]...)
					if err != nil && err != errDry {
						t.Fatal(err)
					}
				}
				if n, err := p.conn.stream.(*tlsStream).tls.Read(buf); n > 0 || err != errDry {
					t.Fatalf("seed %d: %d bytes (%v) were left after %d of %d", seed, n, err, len(got), len(want))
				}
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("seed %d: not what was sent", seed)
			}
		}
	})
}

// Both ends of a peer look like the end of the stream: ICAP's own framing tells whether something is missing.
func TestStreamEnds(t *testing.T) {
	ends := []struct {
		name string
		end  func(p *streamPair)
	}{
		{"close_notify", func(p *streamPair) { _ = p.client.CloseWrite() }},
		{"FIN", func(p *streamPair) { _ = p.raw.(*net.TCPConn).CloseWrite() }},
		{"FIN within a record", func(p *streamPair) {
			_, _ = p.raw.Write([]byte{23, 3, 3, 0, 100, 1, 2, 3})
			_ = p.raw.(*net.TCPConn).CloseWrite()
		}},
	}
	for _, e := range ends {
		t.Run(e.name, func(t *testing.T) {
			overVersions(t, func(t *testing.T, version uint16) {
				p := newStreamPair(t, version)
				if _, err := p.client.Write([]byte("last words")); err != nil {
					t.Fatal(err)
				}
				e.end(p)
				var got []byte
				var end error
				buf := make([]byte, 100)
				for end == nil {
					p.wake()
					for !p.conn.dry && end == nil {
						var n int
						n, end = p.conn.read(buf)
						got = append(got, buf[:n]...)
						if end == errDry {
							end = nil
						}
					}
				}
				if string(got) != "last words" || end != io.EOF || !p.conn.eof {
					t.Errorf("got %q, %v, eof %v, want all bytes and io.EOF", got, end, p.conn.eof)
				}
				if n, err := p.conn.read(buf); n != 0 || err != io.EOF {
					t.Errorf("another read: %d, %v, want io.EOF", n, err)
				}
			})
		})
	}
}

func TestStreamReset(t *testing.T) {
	p := newStreamPair(t, tls.VersionTLS13)
	_ = p.raw.(*net.TCPConn).SetLinger(0)
	p.raw.Close()
	p.wake()
	if n, err := p.conn.read(make([]byte, 10)); n != 0 || !isReset(err) {
		t.Errorf("read: %d, %v, want a reset", n, err)
	}
}

// Writing only appends to the out-buffer; flush sends what has gathered, close_notify included.
func TestStreamWritesWaitForFlush(t *testing.T) {
	overVersions(t, func(t *testing.T, version uint16) {
		p := newStreamPair(t, version)
		want := pattern(100_000)
		p.conn.send(want[:40_000])
		p.conn.send(want[40_000:])
		if p.conn.sent != 0 || p.conn.pending() <= len(want) {
			t.Fatalf("%d bytes sent and %d pending before the flush, want 0 and more than %d", p.conn.sent, p.conn.pending(), len(want))
		}
		p.conn.stream.closeWrite()
		got := make(chan []byte)
		go func() {
			b, err := io.ReadAll(p.client) // to the close_notify
			if err != nil {
				t.Error(err)
			}
			got <- b
		}()
		for p.conn.pending() > 0 {
			poll := []unix.PollFd{{Fd: int32(p.conn.fd), Events: unix.POLLOUT}}
			if n, err := unix.Poll(poll, int(patience/time.Millisecond)); n != 1 && err != unix.EINTR {
				t.Fatalf("the socket takes nothing: %v", err)
			}
			p.conn.writable = true
			p.conn.flush()
			if p.conn.writeErr != nil {
				t.Fatal(p.conn.writeErr)
			}
		}
		if !bytes.Equal(<-got, want) {
			t.Error("not what was sent")
		}
	})
}

func TestErrDryIsTemporary(t *testing.T) {
	var ne net.Error
	if !errors.As(errDry, &ne) || !ne.Timeout() || fmt.Sprint(errDry) == "" {
		t.Error("errDry is not a net.Error of a timeout")
	}
	if te, ok := errDry.(interface{ Temporary() bool }); !ok || !te.Temporary() {
		t.Error("errDry is not temporary: crypto/tls would make it permanent")
	}
}
