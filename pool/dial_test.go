package pool

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// dial starts a connect and waits for its end.
func dial(t *testing.T, addr netip.AddrPort) (fd int, err error) {
	t.Helper()
	fd, err = Dial(addr, 60*time.Second)
	if err != nil {
		return -1, err
	}
	t.Cleanup(func() { unix.Close(fd) })
	for {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(poll, 10_000)
		switch {
		case err == unix.EINTR:
		case err != nil:
			t.Fatal(err)
		case n == 0:
			t.Fatal("the connect has not ended after 10 s")
		default:
			return fd, ConnectError(fd)
		}
	}
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("cannot listen on %s: %v", address, err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

func addrOf(ln net.Listener) netip.AddrPort { return ln.Addr().(*net.TCPAddr).AddrPort() }

func TestDial(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			ln := listen(t, address)
			fd, err := dial(t, addrOf(ln))
			if err != nil {
				t.Fatalf("cannot connect: %v", err)
			}
			nc, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			if _, err := unix.Write(fd, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 5)
			if _, err := nc.Read(got); err != nil || string(got) != "hello" {
				t.Errorf("the server read %q, %v", got, err)
			}
		})
	}
}

// An IPv4 address in IPv6 form is an IPv4 address.
func TestDialMapped(t *testing.T) {
	addr := addrOf(listen(t, "127.0.0.1:0"))
	mapped := netip.AddrPortFrom(netip.AddrFrom16(addr.Addr().As16()), addr.Port())
	if !mapped.Addr().Is4In6() {
		t.Fatalf("%v is not mapped", mapped)
	}
	if _, err := dial(t, mapped); err != nil {
		t.Errorf("cannot connect to %v: %v", mapped, err)
	}
}

func TestDialRefused(t *testing.T) {
	ln := listen(t, "127.0.0.1:0")
	addr := addrOf(ln)
	ln.Close()
	if _, err := dial(t, addr); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connecting to a closed port: %v, want connection refused", err)
	}
}

// A connect that can't even start says so at once and leaves no descriptor.
func TestDialFails(t *testing.T) {
	addr := netip.MustParseAddrPort("255.255.255.255:1344")
	if fd, err := Dial(addr, time.Second); err == nil || fd != -1 {
		t.Errorf("Dial(%v) = %d, %v, want an error and no descriptor", addr, fd, err)
	}
}

func TestConnectErrorOfNoSocket(t *testing.T) {
	if err := ConnectError(-1); !errors.Is(err, unix.EBADF) {
		t.Errorf("ConnectError(-1) = %v, want bad file descriptor", err)
	}
}

func TestSocketOptions(t *testing.T) {
	fd, err := dial(t, addrOf(listen(t, "127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range []struct {
		what              string
		level, name, want int
	}{
		{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"TCP_KEEPIDLE in s", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
		{"TCP_KEEPINTVL in s", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 5},
		{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
		{"TCP_USER_TIMEOUT in ms", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 60_000},
	} {
		if got, err := unix.GetsockoptInt(fd, o.level, o.name); err != nil || got != o.want {
			t.Errorf("%s is %d (%v), want %d", o.what, got, err, o.want)
		}
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("file status flags %#x (%v), want non-blocking", flags, err)
	}
	flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x (%v), want close-on-exec", flags, err)
	}
}

func TestSocketOptionsFail(t *testing.T) {
	if err := SetServerOptions(-1, time.Second); !errors.Is(err, unix.EBADF) {
		t.Errorf("SetServerOptions(-1) = %v, want bad file descriptor", err)
	}
}
