package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Namespace is a network of its own with one host, at the end of a cable that can be unplugged: what is in it then vanishes without a
// word. It takes root and ip(8) to make one (Debian package iproute2).
type Namespace struct {
	Host string // address in it

	name string
	link string // our end of the cable
}

const innerLink = "eth0"

var namespaces atomic.Uint32 // made by this process

// NewNamespace makes a network whose host can be reached from here. It stays until Close, even if we end.
func NewNamespace(ctx context.Context) (n *Namespace, err error) {
	if os.Getuid() != 0 {
		return nil, errors.New("only root can make a network namespace")
	}
	pid, number := os.Getpid(), namespaces.Add(1)
	n = &Namespace{name: fmt.Sprintf("icapgate-%d-%d", pid, number), link: fmt.Sprintf("ig%dn%d", pid, number)}
	if err := n.ip(ctx, "netns", "add", n.name); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			n.Close()
		}
	}()
	// A /30 of 198.18.0.0/15, which is for tests of networks (RFC 2544), by process so that several can run beside each other.
	base := uint32(198<<24|18<<16) + uint32(pid)<<6&0x1ffc0 + number<<2&0x3c
	ours, theirs := ipv4(base+1), ipv4(base+2)
	n.Host = theirs
	for _, command := range []string{
		"link add " + n.link + " type veth peer name " + innerLink + " netns " + n.name,
		"addr add " + ours + "/30 dev " + n.link,
		"link set " + n.link + " up",
		"-n " + n.name + " addr add " + theirs + "/30 dev " + innerLink,
		"-n " + n.name + " link set " + innerLink + " up",
	} {
		if err := n.ip(ctx, strings.Fields(command)...); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func ipv4(a uint32) string { return net.IPv4(byte(a>>24), byte(a>>16), byte(a>>8), byte(a)).String() }

func (n *Namespace) ip(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "ip", args...)
	if out, err := Run(cmd); err != nil {
		return fmt.Errorf("ip %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Within is what to put before the command line of a program that is to run in the network.
func (n *Namespace) Within() []string { return []string{"ip", "netns", "exec", n.name} }

// Unplug pulls the cable out.
func (n *Namespace) Unplug(ctx context.Context) error {
	return n.ip(ctx, "-n", n.name, "link", "set", innerLink, "down")
}

// Plug puts the cable in again. Packets that have waited for it in our kernel, while it asked for the link address of the host, are lost as
// all others that were sent meanwhile.
func (n *Namespace) Plug(ctx context.Context) error {
	if err := n.ip(ctx, "neigh", "flush", "dev", n.link); err != nil {
		return err
	}
	return n.ip(ctx, "-n", n.name, "link", "set", innerLink, "up")
}

// Listen opens a socket of this process in the network, on a free port.
func (n *Namespace) Listen() (ln net.Listener, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		fd, e := unix.Open("/run/netns/"+n.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if e != nil {
			err = os.NewSyscallError("open", e)
			return
		}
		defer unix.Close(fd)
		if e := unix.Setns(fd, unix.CLONE_NEWNET); e != nil {
			err = os.NewSyscallError("setns", e)
			return
		}
		ln, err = net.Listen("tcp", n.Host+":0")
	}()
	<-done
	return ln, err
}

// Close removes the network. What still runs in it loses its cable.
func (n *Namespace) Close() {
	for _, command := range []string{"link del " + n.link, "netns del " + n.name} {
		_ = n.ip(context.Background(), strings.Fields(command)...)
	}
}
