package discovery

import (
	"bytes"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// maxFile bounds what is read of resolv.conf and of the hosts file, in bytes.
const maxFile = 16 << 20

// system is what the machine's files say. They are read for each lookup: they change with networks, and containers.
type system struct {
	hosts    map[string][]netip.Addr // of the hosts file, by name in lower case
	servers  []string                // nameservers, host:port, in their order
	search   []string                // domains that a short name is looked up in
	ndots    int                     // a name with fewer dots is short
	attempts int                     // of each nameserver
}

// readSystem reads the files. What is missing or makes no sense is as if it were not there, as in other resolvers.
func readSystem(resolvConf, hosts string) system {
	sys := parseResolvConf(readSome(resolvConf))
	sys.hosts = parseHosts(readSome(hosts))
	return sys
}

func readSome(name string) []byte {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil
	}
	return data
}

const (
	maxServers  = 8 // of resolv.conf; others take 3
	maxSearch   = 32
	maxAttempts = 5
)

func parseResolvConf(data []byte) system {
	c, err := dns.ClientConfigFromReader(bytes.NewReader(data))
	if err != nil {
		c = &dns.ClientConfig{Ndots: 1, Attempts: 2}
	}
	sys := system{ndots: c.Ndots, attempts: min(c.Attempts, maxAttempts)}
	for _, s := range c.Servers {
		if ip, err := netip.ParseAddr(s); err == nil && len(sys.servers) < maxServers {
			sys.servers = append(sys.servers, net.JoinHostPort(ip.String(), "53"))
		}
	}
	if len(sys.servers) == 0 {
		sys.servers = []string{"127.0.0.1:53", "[::1]:53"}
	}
	for _, s := range c.Search {
		if len(sys.search) < maxSearch {
			sys.search = append(sys.search, dns.Fqdn(s))
		}
	}
	return sys
}

// candidates are the full names that a name may stand for, in the order in which they are asked for.
func (sys *system) candidates(name string) (list []string) {
	add := func(name string) {
		if isHostName(strings.TrimSuffix(name, ".")) && !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	full := dns.Fqdn(name)
	if full == name {
		add(full)
		return list
	}
	short := strings.Count(name, ".") < sys.ndots
	if !short {
		add(full)
	}
	for _, domain := range sys.search {
		add(full + strings.TrimPrefix(domain, "."))
	}
	if short {
		add(full)
	}
	return list
}

// isHostName says whether a name is one that may stand in a URI. DNS itself allows any byte.
func isHostName(name string) bool {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	_, ok := dns.IsDomainName(name)
	return ok && name != "" && !strings.HasSuffix(name, ".") && strings.Trim(name, letters) == ""
}

// parseHosts reads a hosts file: the addresses of each name, in lower case.
func parseHosts(data []byte) map[string][]netip.Addr {
	hosts := make(map[string][]netip.Addr)
	for line := range bytes.Lines(data) {
		line, _, _ = bytes.Cut(line, []byte("#"))
		fields := strings.Fields(string(line))
		if len(fields) < 2 {
			continue
		}
		ip, err := netip.ParseAddr(fields[0])
		if err != nil {
			continue
		}
		for _, name := range fields[1:] {
			name = strings.ToLower(strings.TrimSuffix(name, "."))
			if addrs := hosts[name]; len(addrs) < maxTargets {
				hosts[name] = appendUsable(addrs, ip)
			}
		}
	}
	return hosts
}

// known returns the addresses that need no nameserver: those of the hosts file, and those of localhost anyway (RFC 6761).
func (sys *system) known(name string) []netip.Addr {
	name = strings.TrimSuffix(name, ".")
	if addrs := sys.hosts[name]; len(addrs) > 0 {
		return slices.Clone(addrs)
	}
	if name == "localhost" || strings.HasSuffix(name, ".localhost") {
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	}
	return nil
}

// appendUsable adds an address that can be one server's. 0.0.0.0 and :: are what filters say of names that they block; connected to, they are
// this machine. A link-local address is of no use without the name of an interface.
func appendUsable(list []netip.Addr, ip netip.Addr) []netip.Addr {
	ip = ip.Unmap().WithZone("")
	if ip.IsUnspecified() || ip.IsMulticast() || ip.Is6() && ip.IsLinkLocalUnicast() || !ip.IsValid() || slices.Contains(list, ip) {
		return list
	}
	return append(list, ip)
}
