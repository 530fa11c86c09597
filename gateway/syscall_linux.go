package gateway

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// System calls of the data path. Its sockets are non-blocking, so these return at once and need not tell the Go scheduler that the
// thread may be away for long, which costs more than the bookkeeping of a small message: RawSyscall in place of Syscall.

// readNow is recv(2) into p, which has at least one byte, on a non-blocking socket; read(2) takes a longer way to the same code.
func readNow(fd int, p []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), 0, 0, 0)
	return result(n, errno)
}

// writeNow is send(2) of p, which has at least one byte, on a non-blocking socket.
func writeNow(fd int, p []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, 0, 0)
	return result(n, errno)
}

// peekNow is recv(2) with MSG_PEEK into p; unix.Recvfrom allocates an address.
func peekNow(fd int, p []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)),
		unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	return result(n, errno)
}

// spliceNow is splice(2) of up to most bytes between a pipe and a socket, both of them non-blocking.
func spliceNow(from, to, most int) (int, error) {
	const flags = unix.SPLICE_F_MOVE | unix.SPLICE_F_NONBLOCK
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(most), flags)
		if errno != unix.EINTR {
			return result(n, errno)
		}
	}
}

// tcpInfo asks for the state of a TCP connection; unix.GetsockoptTCPInfo allocates. What an older kernel does not know stays 0.
func tcpInfo(fd int, info *unix.TCPInfo) error {
	*info = unix.TCPInfo{}
	size := uint32(unix.SizeofTCPInfo)
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_INFO, uintptr(unsafe.Pointer(info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

func result(n uintptr, errno unix.Errno) (int, error) {
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}
