package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Config says whom a Resolver asks.
type Config struct {
	Servers []string      // nameservers, host:port; empty: those of resolv.conf
	Timeout time.Duration // of each question to a nameserver; 0: 2 s

	// For tests.
	ResolvConf string // "": /etc/resolv.conf
	Hosts      string // "": /etc/hosts
}

// Resolver makes lookups. All methods may be called by any goroutine.
type Resolver struct {
	cfg   Config
	slots chan struct{} // bounds the sockets: the descriptors of the process are spoken for

	mu     sync.Mutex
	silent map[string]time.Time // nameservers that did not answer, and until when they are asked after the others; guarded by mu
}

const (
	maxSockets = 8
	silentFor  = 30 * time.Second

	// leastSilence is how long a nameserver has to be silent to be known as such, if the whole lookup ends before its time is over.
	leastSilence = 500 * time.Millisecond

	// udpSize is the size of a UDP answer that gets through everywhere without fragments.
	udpSize = 1232
)

// NewResolver returns a Resolver.
func NewResolver(cfg Config) *Resolver {
	cfg.Timeout = cmp.Or(cfg.Timeout, 2*time.Second)
	cfg.ResolvConf = cmp.Or(cfg.ResolvConf, "/etc/resolv.conf")
	cfg.Hosts = cmp.Or(cfg.Hosts, "/etc/hosts")
	return &Resolver{cfg: cfg, slots: make(chan struct{}, maxSockets), silent: make(map[string]time.Time)}
}

// lookup is one lookup that runs.
type lookup struct {
	*Resolver
	system
	last Answer // the answer before this one
}

// Lookup finds what a name stands for now. last is the answer before, if there was one: a part of it that can't be asked for is kept, and
// Answer.Fault says so. An error is of type *Error.
func (r *Resolver) Lookup(ctx context.Context, q Question, last Answer) (Answer, error) {
	l := &lookup{r, readSystem(r.cfg.ResolvConf, r.cfg.Hosts), last}
	if len(r.cfg.Servers) > 0 {
		l.servers = r.cfg.Servers
	}
	var a Answer
	var err error
	if q.SRV {
		a, err = l.service(ctx, q.Name)
	} else {
		a, err = l.host(ctx, q.Name)
	}
	if err != nil {
		return Answer{}, err
	}
	return a.checked(q)
}

// host finds the addresses of a host name.
func (l *lookup) host(ctx context.Context, name string) (Answer, error) {
	var known []netip.Addr
	for _, t := range l.last.Targets {
		known = append(known, t.Addr)
	}
	found := l.known(name)
	ttl, err := NoTTL, error(nil)
	if len(found) == 0 {
		// A name of the list that could not be asked for ends the search: the names behind it may be those of other machines.
		err = &Error{NotFound, name, "not a name that can be asked for"}
		for _, full := range l.candidates(name) {
			found, ttl, err = l.addresses(ctx, full, known, nil)
			if ResultOf(err) != NotFound {
				break
			}
		}
	}
	if len(found) == 0 {
		return Answer{}, err
	}
	a := Answer{TTL: ttl, Fault: err}
	for _, ip := range found {
		a.Targets = append(a.Targets, Target{Addr: ip})
	}
	return a, nil
}

// addresses asks for the A and AAAA records of a full name, unless they came along as extra. When one kind can't be asked for, those of it
// that are known already are kept: then there are addresses and an error.
func (l *lookup) addresses(ctx context.Context, full string, known []netip.Addr, extra []dns.RR) (addrs []netip.Addr, ttl time.Duration, err error) {
	types := [2]uint16{dns.TypeA, dns.TypeAAAA}
	var found [2]section
	var errs [2]error
	var asking sync.WaitGroup
	for i, t := range types {
		if found[i] = newSection(extra, full, t); len(found[i].records) > 0 {
			continue
		}
		asking.Go(func() {
			var r reply
			r, errs[i] = l.ask(ctx, full, t)
			found[i] = r.section
		})
	}
	asking.Wait()

	ttl = NoTTL
	kept := 0
	for i := range types {
		if ResultOf(errs[i]) > NotFound {
			err = errs[i]
			for _, ip := range known {
				if ip.Is4() == (i == 0) {
					addrs = appendUsable(addrs, ip)
					kept++
				}
			}
			continue
		}
		before := len(addrs)
		for _, rr := range found[i].records {
			switch rr := rr.(type) {
			case *dns.A:
				if ip, ok := netip.AddrFromSlice(rr.A); ok {
					addrs = appendUsable(addrs, ip)
				}
			case *dns.AAAA:
				if ip, ok := netip.AddrFromSlice(rr.AAAA); ok {
					addrs = appendUsable(addrs, ip)
				}
			}
		}
		if len(addrs) > before {
			ttl = min(ttl, found[i].ttl)
		}
	}
	switch {
	case len(addrs) == kept && err != nil: // nothing new: all of it is as it was
		return nil, 0, err
	case len(addrs) == 0 && errs[0] != nil:
		return nil, 0, errs[0]
	case len(addrs) == 0:
		return nil, 0, &Error{NotFound, full, "no address that a server can have"}
	}
	return addrs, ttl, err
}

// section is the part of an answer that is about the question.
type section struct {
	records []dns.RR
	ttl     time.Duration
	end     string // where the CNAMEs lead to, "": nowhere
}

// maxCNAMEs bounds a chain of CNAMEs.
const maxCNAMEs = 16

// newSection takes those records of a list that are of a type and belong to a name, or to what its CNAMEs lead to.
func newSection(list []dns.RR, name string, t uint16) section {
	s := section{ttl: NoTTL, end: name}
	keep := func(rr dns.RR) { s.ttl = min(s.ttl, time.Duration(rr.Header().Ttl)*time.Second) }
	for range maxCNAMEs {
		var next *dns.CNAME
		for _, rr := range list {
			h := rr.Header()
			if h.Class != dns.ClassINET || !strings.EqualFold(h.Name, s.end) {
				continue
			}
			if h.Rrtype == t {
				s.records = append(s.records, rr)
				keep(rr)
			} else if c, ok := rr.(*dns.CNAME); ok {
				next = c
			}
		}
		if len(s.records) > 0 || next == nil {
			return s
		}
		keep(next)
		s.end = next.Target
	}
	return section{}
}

// reply is what a nameserver says to a question.
type reply struct {
	section
	extra []dns.RR // what came along
}

// ask asks for the records of one type that a full name has. A CNAME whose end the nameserver has not added is followed.
func (l *lookup) ask(ctx context.Context, full string, t uint16) (reply, error) {
	ttl, name := NoTTL, full
	for range maxCNAMEs {
		m, err := l.exchange(ctx, name, t)
		if err != nil {
			return reply{}, err
		}
		s := newSection(m.Answer, name, t)
		ttl = min(ttl, s.ttl)
		switch {
		case len(s.records) > 0:
			s.ttl = ttl
			return reply{s, m.Extra}, nil
		case s.end == "":
			return reply{}, tooManyCNAMEs(full)
		case m.Rcode == dns.RcodeNameError:
			return reply{}, &Error{NotFound, full, "no such name"}
		case strings.EqualFold(s.end, name) || slices.ContainsFunc(m.Ns, isSOA):
			return reply{}, &Error{NotFound, full, "no " + dns.TypeToString[t] + " records"}
		}
		name = s.end
	}
	return reply{}, tooManyCNAMEs(full)
}

func tooManyCNAMEs(full string) error { return &Error{Failed, full, "too many CNAMEs"} }

func isSOA(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeSOA }

// exchange puts one question to the nameservers, one after the other, until one of them knows. A reply is good or says NXDOMAIN.
func (l *lookup) exchange(ctx context.Context, full string, t uint16) (m *dns.Msg, err error) {
	for range max(l.attempts, 1) {
		for _, server := range l.inTurn(l.servers) {
			m, err = l.askServer(ctx, server, full, t)
			switch {
			case err == nil:
				return m, nil
			case ctx.Err() != nil:
				return nil, &Error{Timeout, full, "no answer in time from the nameservers"}
			}
		}
	}
	return nil, err
}

// inTurn returns the nameservers in the order in which they are asked: those that lately kept silent come last.
func (r *Resolver) inTurn(servers []string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	var first, last []string
	for _, s := range servers {
		if now.Before(r.silent[s]) {
			last = append(last, s)
		} else {
			first = append(first, s)
		}
	}
	return append(first, last...)
}

// heard notes whether a nameserver has answered.
func (r *Resolver) heard(server string, answered bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if answered {
		delete(r.silent, server)
	} else {
		r.silent[server] = time.Now().Add(silentFor)
	}
}

// askServer puts one question to one nameserver: over UDP and, when the answer does not fit into that, over TCP.
func (r *Resolver) askServer(ctx context.Context, server, full string, t uint16) (*dns.Msg, error) {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	began := time.Now()
	q := new(dns.Msg)
	q.SetQuestion(full, t) // with a random id
	q.SetEdns0(udpSize, false)
	m, err := r.transfer(ctx, "udp", server, q)
	if err == nil && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) { // it does not know EDNS0, maybe
		q.Extra = nil
		q.Id = dns.Id()
		m, err = r.transfer(ctx, "udp", server, q)
	}
	if err == nil && m.Truncated {
		m, err = r.transfer(ctx, "tcp", server, q)
	}
	fail := func(result Result, reason string) (*dns.Msg, error) {
		return nil, &Error{result, full, fmt.Sprintf("%s from nameserver %s", reason, server)}
	}
	var timeout net.Error
	silent := errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, os.ErrDeadlineExceeded)
	if silent && time.Since(began) >= min(r.cfg.Timeout, leastSilence) || !silent && !errors.Is(err, context.Canceled) {
		r.heard(server, !silent)
	}
	switch {
	case silent:
		return fail(Timeout, "no answer within "+r.cfg.Timeout.String())
	case err != nil:
		return nil, &Error{Failed, full, fmt.Sprintf("cannot ask nameserver %s: %v", server, err)}
	case !answers(m, q):
		return fail(Failed, "an answer to another question")
	case m.Truncated:
		return fail(Failed, "an answer that is cut off")
	case m.Rcode == dns.RcodeNameError:
		return m, nil
	case m.Rcode != dns.RcodeSuccess:
		return fail(Failed, cmp.Or(dns.RcodeToString[m.Rcode], "an unknown error"))
	case len(m.Answer) == 0 && !m.Authoritative && !m.RecursionAvailable && !slices.ContainsFunc(m.Ns, isSOA):
		return fail(Failed, "a referral to others: it is no resolver") // it does not know, which is not the same as that there is nothing
	}
	return m, nil
}

// answers says whether m is the answer to q.
func answers(m, q *dns.Msg) bool {
	if !m.Response || m.Opcode != dns.OpcodeQuery || m.Id != q.Id || len(m.Question) != 1 {
		return false
	}
	is, want := m.Question[0], q.Question[0]
	return strings.EqualFold(is.Name, want.Name) && is.Qtype == want.Qtype && is.Qclass == want.Qclass
}

// transfer sends a message and receives the answer. Each has a socket of its own, hence a port that nobody can foresee, and takes only what
// comes from the nameserver's address.
func (r *Resolver) transfer(ctx context.Context, network, server string, q *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.Timeout)
	defer cancel()
	c := &dns.Client{Net: network, Timeout: r.cfg.Timeout}
	conn, err := c.DialContext(ctx, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })() // the client itself looks at deadlines only
	m, _, err := c.ExchangeWithConnContext(ctx, q, conn)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return m, err
}
