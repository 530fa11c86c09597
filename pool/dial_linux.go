package pool

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Dial starts a non-blocking connect and returns the socket, which the caller owns. The connect has ended when the
// socket becomes writable; ConnectError then tells how.
func Dial(addr netip.AddrPort, userTimeout time.Duration) (fd int, err error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(nil)
	if ip := addr.Addr(); ip.Is4() || ip.Is4In6() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: ip.Unmap().As4()}
	} else {
		to := &unix.SockaddrInet6{Port: int(addr.Port()), Addr: ip.As16()}
		if ip.Zone() != "" { // a link-local address
			link, err := net.InterfaceByName(ip.Zone())
			if err != nil {
				return -1, err
			}
			to.ZoneId = uint32(link.Index)
		}
		sa = to
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err = SetServerOptions(fd, userTimeout); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if err = unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return -1, os.NewSyscallError("connect", err)
	}
	return fd, nil
}

// ConnectError returns how a connect that Dial began has ended; nil: connected.
func ConnectError(fd int) error {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return os.NewSyscallError("getsockopt", err)
	}
	if code != 0 {
		return os.NewSyscallError("connect", unix.Errno(code))
	}
	return nil
}

// SetServerOptions prepares a socket to a server: no Nagle delay, and keepalive after 15 s, so that a peer that vanished
// without a RST is noticed while it is idle. userTimeout bounds how long sent bytes may stay unacknowledged, a closed window included,
// and how long keepalive goes on without an answer.
func SetServerOptions(fd int, userTimeout time.Duration) error {
	for _, o := range []struct {
		level, name, value int
	}{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 5},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3},
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds())},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("cannot set socket option %d: %w", o.name, os.NewSyscallError("setsockopt", err))
		}
	}
	return nil
}
