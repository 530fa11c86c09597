package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// nameServer is a DNS server whose answers a trial changes as it goes. It knows addresses only, and no other name than those it is told.
type nameServer struct {
	Address string // host:port, of UDP and TCP

	servers [2]*dns.Server

	mu    sync.Mutex
	names map[string][]netip.Addr // by name with its dot
	ttl   time.Duration
}

// startNameServer starts one on loopback. Its answers are valid for ttl.
func startNameServer(ttl time.Duration) (*nameServer, error) {
	n := &nameServer{names: map[string][]netip.Addr{}, ttl: ttl}
	packets, stream, err := listenBoth()
	if err != nil {
		return nil, err
	}
	n.Address = stream.Addr().String()
	n.servers = [2]*dns.Server{{PacketConn: packets, Handler: n}, {Listener: stream, Handler: n}}
	var started sync.WaitGroup // one that has not started can't be shut down
	for _, s := range n.servers {
		started.Add(1)
		s.NotifyStartedFunc = started.Done
		go s.ActivateAndServe()
	}
	started.Wait()
	return n, nil
}

// listenBoth listens on a port that is free for TCP and for UDP.
func listenBoth() (packets net.PacketConn, stream net.Listener, err error) {
	for range 20 {
		if stream, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, nil, err
		}
		if packets, err = net.ListenPacket("udp", stream.Addr().String()); err == nil {
			return packets, stream, nil
		}
		stream.Close()
	}
	return nil, nil, err
}

// stop ends it.
func (n *nameServer) stop() {
	for _, s := range n.servers {
		s.Shutdown()
	}
}

// set gives a name these addresses; without any it does not exist.
func (n *nameServer) set(name string, addresses ...string) {
	var list []netip.Addr
	for _, a := range addresses {
		list = append(list, netip.MustParseAddr(a))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.names[dns.Fqdn(name)] = list
}

// ServeDNS implements dns.Handler.
func (n *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	n.mu.Lock()
	a := n.answer(q)
	n.mu.Unlock()
	_ = w.WriteMsg(a)
}

// answer needs n.mu.
func (n *nameServer) answer(q *dns.Msg) *dns.Msg {
	a := new(dns.Msg)
	if len(q.Question) != 1 {
		return a.SetRcode(q, dns.RcodeFormatError)
	}
	a.SetReply(q)
	a.Authoritative = true
	question := q.Question[0]
	addresses := n.names[strings.ToLower(question.Name)]
	if len(addresses) == 0 {
		return a.SetRcode(q, dns.RcodeNameError)
	}
	for _, address := range addresses {
		head := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: uint32(n.ttl.Seconds())}
		switch {
		case question.Qtype == dns.TypeA && address.Is4():
			a.Answer = append(a.Answer, &dns.A{Hdr: head, A: address.AsSlice()})
		case question.Qtype == dns.TypeAAAA && address.Is6():
			a.Answer = append(a.Answer, &dns.AAAA{Hdr: head, AAAA: address.AsSlice()})
		}
	}
	return a
}

// config is the YAML with which a gateway asks it.
func (n *nameServer) config() string { return fmt.Sprintf("dns: {servers: [%q]}\n", n.Address) }
