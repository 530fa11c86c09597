package configs

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// address is a host and a port; the host is an IP address, a host name, or "" for every address of the machine.
type address struct {
	host string
	port int
}

func (a address) String() string { return net.JoinHostPort(a.host, strconv.Itoa(a.port)) }

// parseAddress reads host:port, and a host alone if there is a port to assume (assumed > 0).
func parseAddress(s string, assumed int) (address, error) {
	if strings.Contains(s, "://") {
		return address{}, fmt.Errorf("%s is a URI, allowed: host:port without scheme and path", quote(s))
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		bare := s
		if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
			bare = s[1 : len(s)-1]
		}
		ip, ipErr := netip.ParseAddr(bare)
		switch {
		case assumed > 0 && (ipErr == nil || !strings.ContainsAny(s, ":[]")):
			host, port = bare, strconv.Itoa(assumed)
		case ipErr == nil && ip.Is6():
			return address{}, fmt.Errorf("%s has no port, allowed: [%s]:port", quote(s), bare)
		default:
			return address{}, fmt.Errorf("%s is no address, allowed: host:port, with an IPv6 address in [ ]", quote(s))
		}
	}
	if host == "*" {
		return address{}, fmt.Errorf("%s: a * is not understood, allowed: :%s for every address of this machine", quote(s), port)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return address{}, fmt.Errorf("%s: %s is no port, allowed: 1 to 65535", quote(s), quote(port))
	}
	if err := checkHost(host); err != nil {
		return address{}, fmt.Errorf("%s: %w", quote(s), err)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.Unmap().String()
	}
	return address{host, int(n)}, nil
}

// checkHost accepts an IP address, a host name, or nothing.
func checkHost(host string) error {
	if _, err := netip.ParseAddr(host); err == nil || host == "" {
		return nil
	}
	if strings.Trim(host, "0123456789.") == "" || strings.Contains(host, ":") {
		return fmt.Errorf("%s is not an IP address", quote(host))
	}
	bad := errors.New("not a host name, allowed: letters, digits, - and . in labels of 1 to 63")
	if len(host) > 253 {
		return bad
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(host, "."), ".") {
		if len(label) < 1 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return bad
		}
		for _, c := range []byte(label) {
			if !isAlnum(c) && c != '-' && c != '_' {
				return bad
			}
		}
	}
	return nil
}

// checkName accepts a name that can be looked up.
func checkName(name string) error {
	if name == "" {
		return errors.New("no name, needed: a host name")
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return errors.New("an address, needed: a host name")
	}
	return checkHost(name)
}

func isAlnum(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' }

// loopback says whether the address is reached from this machine only.
func (a address) loopback() bool {
	ip, err := netip.ParseAddr(a.host)
	return err == nil && ip.IsLoopback() || strings.EqualFold(strings.TrimSuffix(a.host, "."), "localhost")
}

// collides says whether two listening sockets cannot both be opened. "" and :: take IPv4 too.
func (a address) collides(b address) bool {
	if a.port != b.port || a.port == 0 {
		return false
	}
	if strings.EqualFold(a.host, b.host) || a.everywhere() || b.everywhere() {
		return true
	}
	return a.host == "0.0.0.0" && !b.is6() || b.host == "0.0.0.0" && !a.is6()
}

func (a address) everywhere() bool { return a.host == "" || a.host == "::" }

func (a address) is6() bool { return strings.Contains(a.host, ":") }
