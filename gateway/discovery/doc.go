// Package discovery finds the servers that stand behind a name: the addresses of a host name, or the targets of an SRV record (RFC 2782). It belongs
// to the control plane: everything here may block.
//
// Names asks for each of its names again and again, as their TTLs demand, and keeps the last good answer: whatever happens to DNS, a name
// that has had servers has servers. Resolver makes one lookup. It answers out of the hosts file, as programs on the machine
// are used to, and otherwise asks the nameservers of resolv.conf, or others, directly: Go's own resolver tells no TTL.
package discovery
