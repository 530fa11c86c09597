// Package dnstest is a nameserver for tests: a real one, over UDP and TCP, whose records and faults a test can change at any time.
package dnstest

import (
	"errors"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// Server is a nameserver on loopback. All methods may be called by any goroutine.
type Server struct {
	Addr string // host:port, for UDP and TCP

	udp, tcp *dns.Server
	serving  sync.WaitGroup

	mu      sync.Mutex
	records []dns.RR                                              // guarded by mu
	handle  func(w dns.ResponseWriter, q *dns.Msg, tcp bool) bool // guarded by mu
	asked   []string                                              // guarded by mu
}

// Start runs a nameserver without records on a free port of a host such as 127.0.0.1.
func Start(host string) (*Server, error) {
	s := new(Server)
	var pc net.PacketConn
	var ln net.Listener
	var err error
	for range 50 { // until the port that UDP has got is free for TCP, too
		if pc, err = net.ListenPacket("udp", net.JoinHostPort(host, "0")); err != nil {
			return nil, err
		}
		if ln, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			break
		}
		pc.Close()
	}
	if err != nil {
		return nil, err
	}
	s.Addr = pc.LocalAddr().String()
	s.udp = &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { s.serve(w, q, false) })}
	s.tcp = &dns.Server{Listener: ln, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { s.serve(w, q, true) })}
	for _, d := range []*dns.Server{s.udp, s.tcp} {
		started := make(chan struct{})
		d.NotifyStartedFunc = func() { close(started) }
		s.serving.Go(func() { _ = d.ActivateAndServe() })
		<-started
	}
	return s, nil
}

// Close ends the nameserver and waits.
func (s *Server) Close() error {
	err := errors.Join(s.udp.Shutdown(), s.tcp.Shutdown())
	s.serving.Wait()
	return err
}

// Set replaces the records; each is a line as in a zone file, such as "dlp.test. 30 A 127.0.0.1". It panics if one is not.
func (s *Server) Set(lines ...string) {
	var records []dns.RR
	for _, line := range lines {
		rr, err := dns.NewRR(line)
		if err != nil {
			panic(err)
		}
		records = append(records, rr)
	}
	s.mu.Lock()
	s.records = records
	s.mu.Unlock()
}

// Handle has f answer in place of the server; false: the server does. nil: no more.
func (s *Server) Handle(f func(w dns.ResponseWriter, q *dns.Msg, tcp bool) bool) {
	s.mu.Lock()
	s.handle = f
	s.mu.Unlock()
}

// Fail has every question answered with an error, such as dns.RcodeServerFailure.
func (s *Server) Fail(rcode int) {
	s.Handle(func(w dns.ResponseWriter, q *dns.Msg, _ bool) bool {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, rcode))
		return true
	})
}

// Silence has no question answered.
func (s *Server) Silence() {
	s.Handle(func(dns.ResponseWriter, *dns.Msg, bool) bool { return true })
}

// Asked returns the questions since it was called last, such as "A dlp.test." and, over TCP, "tcp A dlp.test.".
func (s *Server) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	return asked
}

func (s *Server) serve(w dns.ResponseWriter, q *dns.Msg, tcp bool) {
	question := dns.TypeToString[q.Question[0].Qtype] + " " + q.Question[0].Name
	if tcp {
		question = "tcp " + question
	}
	s.mu.Lock()
	s.asked = append(s.asked, question)
	handle := s.handle
	m := s.answer(q)
	s.mu.Unlock()
	if handle != nil && handle(w, q, tcp) {
		return
	}
	if !tcp {
		size := dns.MinMsgSize
		if o := q.IsEdns0(); o != nil {
			size = int(o.UDPSize())
		}
		m.Truncate(size)
	}
	_ = w.WriteMsg(m)
}

// answer is what a resolver says: with the whole chain of CNAMEs, and with the addresses of SRV targets that it knows.
func (s *Server) answer(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	name, t := q.Question[0].Name, q.Question[0].Qtype
	there := false
	for range 10 {
		var next string
		for _, rr := range s.records {
			h := rr.Header()
			if !strings.EqualFold(h.Name, name) {
				continue
			}
			there = true
			if h.Rrtype == t {
				m.Answer = append(m.Answer, rr)
			} else if c, ok := rr.(*dns.CNAME); ok {
				m.Answer = append(m.Answer, rr)
				next = c.Target
			}
		}
		if next == "" {
			break
		}
		name, there = next, len(m.Answer) > 8 // a circle
	}
	if len(m.Answer) < 8 && !slices.ContainsFunc(m.Answer, func(rr dns.RR) bool { return rr.Header().Rrtype == t }) {
		soa, _ := dns.NewRR(". 60 SOA ns.test. admin.test. 1 60 60 60 60")
		m.Ns = append(m.Ns, soa)
	}
	if !there {
		m.Rcode = dns.RcodeNameError
	}
	return m
}
