package discovery

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// service finds the targets of SRV records and their addresses.
func (l *lookup) service(ctx context.Context, name string) (Answer, error) {
	var found reply
	err := error(&Error{NotFound, name, "not a name that can be asked for"})
	for _, full := range l.candidates(name) {
		if found, err = l.ask(ctx, full, dns.TypeSRV); ResultOf(err) != NotFound {
			break // as for host names
		}
	}
	if err != nil {
		return Answer{}, err
	}
	targets := newTargets(found.records)
	if len(targets) == 0 {
		return Answer{}, &Error{NotFound, name, "the service is not available"} // RFC 2782: a target of "."
	}
	if len(targets) > maxTargets {
		return Answer{}, &Error{Failed, name, fmt.Sprintf("%d SRV records, at most %d are taken", len(targets), maxTargets)}
	}

	var asking sync.WaitGroup
	for _, t := range targets {
		asking.Go(func() { l.locate(ctx, t, found.extra) })
	}
	asking.Wait()

	a := Answer{TTL: found.ttl}
	for _, t := range targets {
		if t.err != nil {
			a.Fault = t.err
		}
		if len(t.addrs) > 0 {
			a.TTL = min(a.TTL, t.ttl)
		}
	}
	setWeights(targets)
	for _, t := range targets {
		for _, ip := range t.addrs {
			a.Targets = append(a.Targets, Target{ip, t.host, t.port, t.weight, t.tier})
		}
	}
	if len(a.Targets) == 0 {
		return Answer{}, a.Fault
	}
	return a, nil
}

// target is one SRV record, and where it leads to.
type target struct {
	host     string // in lower case, without the dot at its end
	port     uint16
	priority uint16
	parts    uint16 // its weight as DNS has it
	tier     int

	addrs  []netip.Addr
	ttl    time.Duration
	err    error
	weight int // of each address
}

// newTargets returns the records that name a server, by priority, and gives them their tiers.
func newTargets(records []dns.RR) (list []*target) {
	for _, rr := range records {
		srv, ok := rr.(*dns.SRV)
		if !ok {
			continue
		}
		host := strings.ToLower(strings.TrimSuffix(srv.Target, "."))
		if !isHostName(host) || srv.Port == 0 { // RFC 2782: a target of "." says that there is no such service
			continue
		}
		list = append(list, &target{host: host, port: srv.Port, priority: srv.Priority, parts: srv.Weight})
	}
	slices.SortStableFunc(list, func(a, b *target) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(a.host, b.host), cmp.Compare(a.port, b.port))
	})
	for i, t := range list {
		if i > 0 {
			t.tier = list[i-1].tier
			if t.priority != list[i-1].priority {
				t.tier++
			}
		}
	}
	return list
}

// locate finds the addresses of a target.
func (l *lookup) locate(ctx context.Context, t *target, extra []dns.RR) {
	if t.addrs = l.known(t.host); len(t.addrs) > 0 {
		t.ttl = NoTTL
		return
	}
	var known []netip.Addr
	for _, was := range l.last.Targets {
		if was.Host == t.host {
			known = appendUsable(known, was.Addr)
		}
	}
	t.addrs, t.ttl, t.err = l.addresses(ctx, dns.Fqdn(t.host), known, extra)
	if ResultOf(t.err) > NotFound && len(t.addrs) == 0 {
		t.addrs, t.ttl = known, NoTTL
	}
}

const (
	maxWeight = 256 // as in the configuration

	// shares is divisible by the numbers of addresses that targets have: 1 to 16.
	shares = 720720
)

// setWeights gives each address its part of its target's weight. Within a tier the proportions are those of the records: in the least whole
// numbers, if these are not more than 256. A weight of 0 is a very small share beside others (RFC 2782), here 1 of 256 or so; if all are 0, all are
// equal.
func setWeights(targets []*target) {
	for len(targets) > 0 {
		n := 1
		for n < len(targets) && targets[n].tier == targets[0].tier {
			n++
		}
		setTierWeights(targets[:n])
		targets = targets[n:]
	}
}

func setTierWeights(targets []*target) {
	var most, divisor int64
	none := false
	part := func(t *target) int64 { return int64(t.parts) * shares / int64(max(len(t.addrs), 1)) }
	for _, t := range targets {
		if len(t.addrs) == 0 {
			continue
		}
		p := part(t)
		most, divisor, none = max(most, p), gcd(p, divisor), none || p == 0
	}
	for _, t := range targets {
		switch {
		case most == 0:
			t.weight = 1
		case !none && most/divisor <= maxWeight:
			t.weight = int(part(t) / divisor)
		default:
			t.weight = int(max(1, (part(t)*maxWeight+most/2)/most))
		}
	}
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
