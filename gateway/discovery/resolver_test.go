package discovery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"icapgate/gateway/discovery/dnstest"
)

func startNameserver(t testing.TB) *dnstest.Server {
	t.Helper()
	s, err := dnstest.Start("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// patience is the timeout of questions that are answered.
const patience = 20 * time.Second

// newTestResolver asks these nameservers; conf and hosts are the machine's files.
func newTestResolver(t testing.TB, timeout time.Duration, conf, hosts string, servers ...*dnstest.Server) *Resolver {
	t.Helper()
	dir := t.TempDir()
	cfg := Config{Timeout: timeout, ResolvConf: filepath.Join(dir, "resolv.conf"), Hosts: filepath.Join(dir, "hosts")}
	if err := errors.Join(os.WriteFile(cfg.ResolvConf, []byte(conf), 0o600), os.WriteFile(cfg.Hosts, []byte(hosts), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, s := range servers {
		cfg.Servers = append(cfg.Servers, s.Addr)
	}
	return NewResolver(cfg)
}

// describe is a target as tests write it: "192.0.2.1" or, of SRV records, "0: 192.0.2.1 of dlp1.test:1344 x 3".
func describe(targets []Target) (list []string) {
	for _, t := range targets {
		if t.Host == "" {
			list = append(list, t.Addr.String())
		} else {
			list = append(list, fmt.Sprintf("%d: %v of %s:%d x %d", t.Tier, t.Addr, t.Host, t.Port, t.Weight))
		}
	}
	return list
}

func requireTargets(t *testing.T, got []Target, want ...string) {
	t.Helper()
	if list := describe(got); !slices.Equal(list, want) {
		t.Errorf("got %q\nwant %q", list, want)
	}
}

func TestLookup(t *testing.T) {
	const srv = "_icap._tcp.test. 30 SRV "
	tests := []struct {
		name    string
		records []string
		q       Question
		ttl     time.Duration
		want    []string
	}{
		{"A and AAAA", []string{"dlp.test. 20 A 192.0.2.2", "dlp.test. 20 A 192.0.2.1", "dlp.test. 7 AAAA 2001:db8::1"}, Host("dlp.test"),
			7 * time.Second, []string{"192.0.2.1", "192.0.2.2", "2001:db8::1"}},
		{"A alone", []string{"dlp.test. 20 A 192.0.2.2"}, Host("DLP.Test."), 20 * time.Second, []string{"192.0.2.2"}},
		{"AAAA alone", []string{"dlp.test. 0 AAAA 2001:db8::1"}, Host("dlp.test"), 0, []string{"2001:db8::1"}},
		{"an address in both forms", []string{"dlp.test. 9 A 192.0.2.2", "dlp.test. 9 AAAA ::ffff:192.0.2.2"}, Host("dlp.test"), 9 * time.Second, []string{"192.0.2.2"}},
		{"addresses that are none", []string{"dlp.test. 9 A 0.0.0.0", "dlp.test. 9 A 224.0.0.1", "dlp.test. 9 A 192.0.2.2", "dlp.test. 9 AAAA ::", "dlp.test. 9 AAAA fe80::1"},
			Host("dlp.test"), 9 * time.Second, []string{"192.0.2.2"}},
		{"CNAMEs, whose TTL counts", []string{"dlp.test. 5 CNAME a.test.", "a.test. 50 CNAME B.test.", "b.test. 60 A 192.0.2.1", "c.test. 1 A 192.0.2.9"}, Host("dlp.test"),
			5 * time.Second, []string{"192.0.2.1"}},
		{"SRV", []string{srv + "10 1 1344 b.test.", srv + "10 3 1345 a.test.", srv + "20 5 1344 c.test.", "a.test. 9 A 192.0.2.1", "b.test. 99 A 192.0.2.2", "c.test. 99 AAAA 2001:db8::1"},
			Service("_icap._tcp.test"), 9 * time.Second,
			[]string{"0: 192.0.2.1 of a.test:1345 x 3", "0: 192.0.2.2 of b.test:1344 x 1", "1: 2001:db8::1 of c.test:1344 x 1"}},
		{"an address of two targets", []string{srv + "10 1 1344 a.test.", srv + "5 1 1344 b.test.", srv + "5 1 1345 b.test.", "a.test. 9 A 192.0.2.1", "b.test. 9 A 192.0.2.1"},
			Service("_icap._tcp.test"), 9 * time.Second, []string{"0: 192.0.2.1 of b.test:1344 x 1", "0: 192.0.2.1 of b.test:1345 x 1"}},
		{"a CNAME to SRV", []string{"s.test. 4 CNAME _icap._tcp.test.", srv + "0 0 1344 A.test.", "a.test. 9 A 192.0.2.1"}, Service("s.test"), 4 * time.Second,
			[]string{"0: 192.0.2.1 of a.test:1344 x 1"}},
		{"records without a port", []string{srv + "0 0 0 a.test.", srv + "0 0 1 a.test.", "a.test. 9 A 192.0.2.1"}, Service("_icap._tcp.test"), 9 * time.Second,
			[]string{"0: 192.0.2.1 of a.test:1 x 1"}},
		{"targets that are no host names", []string{srv + `0 0 1 a\032b.test.`, srv + `0 0 1 a\.b.test.`, srv + "0 0 1 a.test.", "a.test. 9 A 192.0.2.1"}, Service("_icap._tcp.test"), 9 * time.Second,
			[]string{"0: 192.0.2.1 of a.test:1 x 1"}},
		{"a target that is in the hosts file", []string{srv + "0 0 1 in-hosts.test."}, Service("_icap._tcp.test"), 30 * time.Second, []string{"0: 192.0.2.77 of in-hosts.test:1 x 1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := startNameserver(t)
			s.Set(tt.records...)
			a, err := newTestResolver(t, patience, "", "192.0.2.77 in-hosts.test", s).Lookup(t.Context(), tt.q, Answer{})
			if err != nil || a.Fault != nil || a.TTL != tt.ttl {
				t.Errorf("TTL %v, faults %v, %v; want %v and none", a.TTL, err, a.Fault, tt.ttl)
			}
			requireTargets(t, a.Targets, tt.want...)
		})
	}
}

func TestLookupFails(t *testing.T) {
	big := make([]string, maxTargets+1)
	for i := range big {
		big[i] = fmt.Sprintf("big.test. 9 A 192.0.%d.%d", i/250, i%250+1)
	}
	tests := []struct {
		name    string
		records []string
		q       Question
		result  Result
		want    string
	}{
		{"no such name", nil, Host("dlp.test"), NotFound, "dlp.test.: no such name"},
		{"no addresses", []string{"dlp.test. 9 TXT x"}, Host("dlp.test"), NotFound, "dlp.test.: no A records"},
		{"no address of use", []string{"dlp.test. 9 A 0.0.0.0"}, Host("dlp.test"), NotFound, "dlp.test.: no address that a server can have"},
		{"a CNAME to nothing", []string{"dlp.test. 9 CNAME a.test."}, Host("dlp.test"), NotFound, "dlp.test.: no such name"},
		{"a circle of CNAMEs", []string{"dlp.test. 9 CNAME a.test.", "a.test. 9 CNAME dlp.test."}, Host("dlp.test"), Failed, "dlp.test.: too many CNAMEs"},
		{"not a name", nil, Host(strings.Repeat("a", 64)), NotFound, "not a name"},
		{"no SRV records", []string{"s.test. 9 A 192.0.2.1"}, Service("s.test"), NotFound, "s.test.: no SRV records"},
		{"a service that is off", []string{"s.test. 9 SRV 0 0 0 ."}, Service("s.test"), NotFound, "s.test: the service is not available"},
		{"a target without addresses", []string{"s.test. 9 SRV 0 0 1 a.test."}, Service("s.test"), NotFound, "a.test.: no such name"},
		{"too many", big, Host("big.test"), Failed, "1025 addresses, at most 1024 are taken"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := startNameserver(t)
			s.Set(tt.records...)
			a, err := newTestResolver(t, patience, "", "", s).Lookup(t.Context(), tt.q, Answer{})
			if err == nil || ResultOf(err) != tt.result || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, %v, want %v: %s", a, err, tt.result, tt.want)
			}
		})
	}
}

// What a nameserver does that has no good answer, and what is thought of it.
func TestNameserverFaults(t *testing.T) {
	reply := func(change func(m *dns.Msg)) func(w dns.ResponseWriter, q *dns.Msg, tcp bool) bool {
		return func(w dns.ResponseWriter, q *dns.Msg, _ bool) bool {
			m := new(dns.Msg).SetReply(q)
			m.RecursionAvailable = true
			a, _ := dns.NewRR(q.Question[0].Name + " 9 A 192.0.2.66")
			m.Answer = append(m.Answer, a)
			change(m)
			_ = w.WriteMsg(m)
			return true
		}
	}
	tests := []struct {
		name   string
		handle func(w dns.ResponseWriter, q *dns.Msg, tcp bool) bool
		result Result
		want   string
	}{
		{"SERVFAIL", reply(func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }), Failed, "SERVFAIL from nameserver 127.0.0.1:"},
		{"REFUSED", reply(func(m *dns.Msg) { m.Rcode = dns.RcodeRefused }), Failed, "REFUSED from nameserver"},
		{"FORMERR, with and without EDNS0", reply(func(m *dns.Msg) { m.Rcode = dns.RcodeFormatError }), Failed, "FORMERR from nameserver"},
		{"silence", func(dns.ResponseWriter, *dns.Msg, bool) bool { return true }, Timeout, "no answer within 100ms from nameserver"},
		{"another id", reply(func(m *dns.Msg) { m.Id++ }), Timeout, "no answer within 100ms"},
		{"another name", reply(func(m *dns.Msg) { m.Question[0].Name = "other.test." }), Failed, "an answer to another question"},
		{"another type", reply(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTXT }), Failed, "an answer to another question"},
		{"a question", reply(func(m *dns.Msg) { m.Response = false }), Failed, "an answer to another question"},
		{"no question", reply(func(m *dns.Msg) { m.Question = nil }), Failed, "an answer to another question"},
		{"records of another name", reply(func(m *dns.Msg) { m.Answer[0].Header().Name = "other.test." }), NotFound, "no A records"},
		{"records of another class", reply(func(m *dns.Msg) { m.Answer[0].Header().Class = dns.ClassCHAOS }), NotFound, "no A records"},
		{"a referral", reply(func(m *dns.Msg) { m.Answer, m.RecursionAvailable = nil, false }), Failed, "a referral to others"},
		{"cut off over TCP, too", reply(func(m *dns.Msg) { m.Truncated = true }), Failed, "an answer that is cut off"},
		{"garbage", func(w dns.ResponseWriter, q *dns.Msg, _ bool) bool {
			b := make([]byte, 40)
			b[0], b[1], b[2], b[5] = byte(q.Id>>8), byte(q.Id), 0x80, 9
			_, _ = w.Write(b)
			return true
		}, Failed, "cannot ask nameserver"},
		{"too short", func(w dns.ResponseWriter, q *dns.Msg, _ bool) bool { _, _ = w.Write([]byte{1}); return true }, Failed, "cannot ask nameserver"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			timeout := patience
			if tt.result == Timeout {
				timeout = 100 * time.Millisecond
			}
			bad, good := startNameserver(t), startNameserver(t)
			bad.Handle(tt.handle)
			good.Set("dlp.test. 9 A 192.0.2.1")
			a, err := newTestResolver(t, timeout, "options attempts:1", "", bad).Lookup(t.Context(), Host("dlp.test"), Answer{})
			if ResultOf(err) != tt.result || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, %v, want %v: %s", a, err, tt.result, tt.want)
			}
			if tt.result == NotFound {
				return
			}
			// Another nameserver knows better.
			a, err = newTestResolver(t, max(timeout, time.Second), "", "", bad, good).Lookup(t.Context(), Host("dlp.test"), Answer{})
			if err != nil {
				t.Error(err)
			}
			requireTargets(t, a.Targets, "192.0.2.1")
		})
	}
}

// A nameserver that does not know EDNS0 is asked without.
func TestWithoutEDNS0(t *testing.T) {
	s := startNameserver(t)
	s.Set("dlp.test. 9 A 192.0.2.1")
	s.Handle(func(w dns.ResponseWriter, q *dns.Msg, _ bool) bool {
		if q.IsEdns0() == nil {
			return false
		}
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeFormatError))
		return true
	})
	a, err := newTestResolver(t, patience, "", "", s).Lookup(t.Context(), Host("dlp.test"), Answer{})
	if err != nil {
		t.Fatal(err)
	}
	requireTargets(t, a.Targets, "192.0.2.1")
}

// An answer that does not fit into UDP is asked for over TCP.
func TestTruncated(t *testing.T) {
	s := startNameserver(t)
	var records, want []string
	for i := range 200 {
		records = append(records, fmt.Sprintf("dlp.test. 9 A 192.0.2.%d", i+1))
		want = append(want, fmt.Sprintf("192.0.2.%d", i+1))
	}
	s.Set(records...)
	a, err := newTestResolver(t, patience, "", "", s).Lookup(t.Context(), Host("dlp.test"), Answer{})
	if err != nil {
		t.Fatal(err)
	}
	requireTargets(t, a.Targets, want...)
	if asked := s.Asked(); !slices.Contains(asked, "tcp A dlp.test.") {
		t.Errorf("asked %q", asked)
	}
}

// A nameserver whose answers end with a CNAME is asked for its target.
func TestShortChain(t *testing.T) {
	s := startNameserver(t)
	s.Set("a.test. 9 A 192.0.2.1")
	s.Handle(func(w dns.ResponseWriter, q *dns.Msg, _ bool) bool {
		if q.Question[0].Name != "dlp.test." {
			return false
		}
		m := new(dns.Msg).SetReply(q)
		m.Authoritative = true
		c, _ := dns.NewRR("dlp.test. 4 CNAME a.test.")
		m.Answer = append(m.Answer, c)
		_ = w.WriteMsg(m)
		return true
	})
	a, err := newTestResolver(t, patience, "", "", s).Lookup(t.Context(), Host("dlp.test"), Answer{})
	if err != nil || a.TTL != 4*time.Second {
		t.Errorf("TTL %v, %v", a.TTL, err)
	}
	requireTargets(t, a.Targets, "192.0.2.1")
}

// Addresses of SRV targets that come along are not asked for; the other kind is.
func TestAdditional(t *testing.T) {
	s := startNameserver(t)
	s.Set("a.test. 9 AAAA 2001:db8::1", "b.test. 9 A 192.0.2.2")
	s.Handle(func(w dns.ResponseWriter, q *dns.Msg, _ bool) bool {
		if q.Question[0].Qtype != dns.TypeSRV {
			return false
		}
		m := new(dns.Msg).SetReply(q)
		m.RecursionAvailable = true
		for _, text := range []string{"s.test. 9 SRV 0 2 1344 a.test.", "s.test. 9 SRV 0 2 1344 b.test."} {
			rr, _ := dns.NewRR(text)
			m.Answer = append(m.Answer, rr)
		}
		for _, text := range []string{"A.test. 3 A 192.0.2.1", "other.test. 1 A 192.0.2.66"} {
			rr, _ := dns.NewRR(text)
			m.Extra = append(m.Extra, rr)
		}
		_ = w.WriteMsg(m)
		return true
	})
	a, err := newTestResolver(t, patience, "", "", s).Lookup(t.Context(), Service("s.test"), Answer{})
	if err != nil || a.TTL != 3*time.Second {
		t.Errorf("TTL %v, %v", a.TTL, err)
	}
	// Two addresses of one target share its weight.
	requireTargets(t, a.Targets, "0: 192.0.2.1 of a.test:1344 x 1", "0: 192.0.2.2 of b.test:1344 x 2", "0: 2001:db8::1 of a.test:1344 x 1")
	asked := s.Asked()
	slices.Sort(asked)
	if want := []string{"A b.test.", "AAAA a.test.", "AAAA b.test.", "SRV s.test."}; !slices.Equal(asked, want) {
		t.Errorf("asked %q, want %q", asked, want)
	}
}

// A part of an answer that can't be asked for is as it was.
func TestPartKept(t *testing.T) {
	s := startNameserver(t)
	r := newTestResolver(t, patience, "", "", s)
	fail := func(questions ...string) {
		s.Handle(func(w dns.ResponseWriter, q *dns.Msg, _ bool) bool {
			if !slices.Contains(questions, dns.TypeToString[q.Question[0].Qtype]+" "+q.Question[0].Name) {
				return false
			}
			_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
			return true
		})
	}
	both := []string{"dlp.test. 9 A 192.0.2.1", "dlp.test. 9 AAAA 2001:db8::1"}
	s.Set(both...)
	whole, err := r.Lookup(t.Context(), Host("dlp.test"), Answer{})
	if err != nil {
		t.Fatal(err)
	}
	s.Set("dlp.test. 9 A 192.0.2.2")
	fail("AAAA dlp.test.")
	a, err := r.Lookup(t.Context(), Host("dlp.test"), whole)
	if err != nil || ResultOf(a.Fault) != Failed {
		t.Errorf("%v, fault %v", err, a.Fault)
	}
	requireTargets(t, a.Targets, "192.0.2.2", "2001:db8::1")
	if a, err = r.Lookup(t.Context(), Host("dlp.test"), Answer{}); err != nil {
		t.Error(err)
	}
	requireTargets(t, a.Targets, "192.0.2.2") // better than nothing
	s.Set("dlp.test. 9 TXT x")
	if a, err = r.Lookup(t.Context(), Host("dlp.test"), whole); ResultOf(err) != Failed {
		t.Errorf("got %v, %v, want an error: what is there is no address, and the rest is not known", a, err)
	}

	s.Handle(nil)
	srv := []string{"s.test. 9 SRV 0 1 1344 a.test.", "s.test. 9 SRV 0 1 1344 b.test.", "a.test. 9 A 192.0.2.1", "b.test. 9 A 192.0.2.2"}
	s.Set(srv...)
	if whole, err = r.Lookup(t.Context(), Service("s.test"), Answer{}); err != nil {
		t.Fatal(err)
	}
	fail("A a.test.", "AAAA a.test.")
	s.Set("s.test. 9 SRV 0 1 1345 a.test.", "s.test. 9 SRV 0 1 1344 c.test.", "c.test. 9 A 192.0.2.3")
	if a, err = r.Lookup(t.Context(), Service("s.test"), whole); err != nil || ResultOf(a.Fault) != Failed {
		t.Errorf("%v, fault %v", err, a.Fault)
	}
	requireTargets(t, a.Targets, "0: 192.0.2.1 of a.test:1345 x 1", "0: 192.0.2.3 of c.test:1344 x 1")

	// A target that has no address at all goes, as long as others have some.
	s.Handle(nil)
	if a, err = r.Lookup(t.Context(), Service("s.test"), whole); err != nil || ResultOf(a.Fault) != NotFound {
		t.Errorf("%v, fault %v", err, a.Fault)
	}
	requireTargets(t, a.Targets, "0: 192.0.2.3 of c.test:1344 x 1")
}

func TestWeights(t *testing.T) {
	tests := []struct{ weights, addresses, want []int }{
		{[]int{1}, []int{1}, []int{1}},
		{[]int{0, 0}, []int{1, 1}, []int{1, 1}},
		{[]int{33, 33, 33}, []int{1, 1, 1}, []int{1, 1, 1}}, // so that equal ones stay as they are when their number changes
		{[]int{10, 60, 100}, []int{1, 1, 1}, []int{1, 6, 10}},
		{[]int{1, 0}, []int{1, 1}, []int{256, 1}},
		{[]int{50, 100, 0}, []int{1, 1, 1}, []int{128, 256, 1}},
		{[]int{65535, 1}, []int{1, 1}, []int{256, 1}},
		{[]int{30000, 10000, 20001}, []int{1, 1, 1}, []int{256, 85, 171}},
		{[]int{1, 1}, []int{1, 2}, []int{2, 1}},
		{[]int{3, 1}, []int{3, 0}, []int{1, 1}}, // one that has no address counts for nothing
		{[]int{1, 1}, []int{0, 0}, []int{1, 1}},
		{[]int{65535, 65535}, []int{1, 1000}, []int{256, 1}},
	}
	for _, tt := range tests {
		var list []*target
		for i, w := range tt.weights {
			list = append(list, &target{parts: uint16(w), addrs: make([]netip.Addr, tt.addresses[i])})
		}
		setWeights(list)
		for i, o := range list {
			if len(o.addrs) > 0 && o.weight != tt.want[i] {
				t.Errorf("%v over %v addresses: number %d has weight %d, want %d", tt.weights, tt.addresses, i, o.weight, tt.want[i])
			}
		}
	}
}

func TestSearch(t *testing.T) {
	const conf = "search ns.svc.test svc.test\noptions ndots:2\n"
	tests := []struct {
		name, records string
		asked         string
		want          string
	}{
		{"dlp", "dlp.svc.test. 9 A 192.0.2.1", "dlp.ns.svc.test. dlp.svc.test.", "192.0.2.1"},
		{"dlp", "dlp. 9 A 192.0.2.1", "dlp.ns.svc.test. dlp.svc.test. dlp.", "192.0.2.1"},
		{"dlp.ns", "dlp.ns.svc.test. 9 A 192.0.2.1", "dlp.ns.ns.svc.test. dlp.ns.svc.test.", "192.0.2.1"},
		{"dlp.ns.svc", "dlp.ns.svc.svc.test. 9 A 192.0.2.1", "dlp.ns.svc. dlp.ns.svc.ns.svc.test. dlp.ns.svc.svc.test.", "192.0.2.1"},
		{"dlp.", "dlp.svc.test. 9 A 192.0.2.1", "dlp.", ""},
		{"dlp", "dlp.ns.svc.test. 9 TXT x", "dlp.ns.svc.test. dlp.svc.test. dlp.", ""},
	}
	for _, tt := range tests {
		s := startNameserver(t)
		s.Set(tt.records)
		a, err := newTestResolver(t, patience, conf, "", s).Lookup(t.Context(), Host(tt.name), Answer{})
		if (err == nil) != (tt.want != "") {
			t.Errorf("%s: %v", tt.name, err)
		}
		if got := strings.Join(describe(a.Targets), " "); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
		var asked []string
		for _, q := range s.Asked() {
			if name, ok := strings.CutPrefix(q, "A "); ok {
				asked = append(asked, name)
			}
		}
		if got := strings.Join(asked, " "); got != tt.asked {
			t.Errorf("%s: asked for %s, want %s", tt.name, got, tt.asked)
		}
	}
}

// When a candidate can't be asked for, the ones behind it are not taken for it.
func TestSearchStops(t *testing.T) {
	s := startNameserver(t)
	s.Set("dlp. 9 A 192.0.2.66")
	s.Handle(func(w dns.ResponseWriter, q *dns.Msg, _ bool) bool {
		if q.Question[0].Name != "dlp.svc.test." {
			return false
		}
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
		return true
	})
	a, err := newTestResolver(t, patience, "search svc.test", "", s).Lookup(t.Context(), Host("dlp"), Answer{})
	if ResultOf(err) != Failed {
		t.Errorf("got %v, %v", a, err)
	}
}

// The hosts file comes first.
func TestHostsFile(t *testing.T) {
	const hosts = "192.0.2.7\tdb DLP.test. # 192.0.2.8 dlp.test\n2001:db8::7 dlp.test\n127.0.0.1 localhost\nfe80::1%lo0 localhost\n#192.0.2.9 dlp.test\nnonsense dlp.test"
	s := startNameserver(t)
	s.Set("dlp.test. 9 A 192.0.2.1")
	r := newTestResolver(t, patience, "", hosts, s)
	for name, want := range map[string]string{
		"dlp.test": "192.0.2.7 2001:db8::7", "dlp.test.": "192.0.2.7 2001:db8::7", "DB": "192.0.2.7", "localhost": "127.0.0.1", "any.localhost": "127.0.0.1 ::1",
	} {
		a, err := r.Lookup(t.Context(), Host(name), Answer{})
		if err != nil || a.TTL != NoTTL {
			t.Errorf("%s: TTL %v, %v", name, a.TTL, err)
		}
		requireTargets(t, a.Targets, strings.Fields(want)...)
	}
	if asked := s.Asked(); len(asked) > 0 {
		t.Errorf("asked %q", asked)
	}
}

// A nameserver that is silent costs one timeout, and then comes after the others for a while.
func TestSilentNameserver(t *testing.T) {
	first, second := startNameserver(t), startNameserver(t)
	first.Silence()
	second.Set("dlp.test. 9 A 192.0.2.1")
	r := newTestResolver(t, time.Second, "", "", first, second)
	for range 5 {
		if _, err := r.Lookup(t.Context(), Host("dlp.test"), Answer{}); err != nil {
			t.Fatal(err)
		}
	}
	if asked := first.Asked(); len(asked) != 2 {
		t.Errorf("the silent one was asked %q", asked)
	}
	if r.inTurn([]string{first.Addr, second.Addr})[0] != second.Addr {
		t.Error("it is still the first")
	}
	r.heard(first.Addr, true)
	if r.inTurn([]string{first.Addr, second.Addr})[0] != first.Addr {
		t.Error("it has answered and is not the first")
	}
}

// A nameserver that is not there at all is found out at once.
func TestNoNameserver(t *testing.T) {
	gone, good := startNameserver(t), startNameserver(t)
	good.Set("dlp.test. 9 A 192.0.2.1")
	r := newTestResolver(t, patience, "", "", gone, good)
	if err := gone.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Lookup(t.Context(), Host("dlp.test"), Answer{}); err != nil {
		t.Error(err)
	}
}

// The end of the context ends a lookup that waits.
func TestLookupEnds(t *testing.T) {
	s := startNameserver(t)
	ctx, cancel := context.WithCancel(t.Context())
	s.Handle(func(dns.ResponseWriter, *dns.Msg, bool) bool { cancel(); return true })
	if _, err := newTestResolver(t, time.Hour, "", "", s).Lookup(ctx, Host("dlp.test"), Answer{}); ResultOf(err) != Timeout {
		t.Errorf("got %v", err)
	}
}

// The nameservers of resolv.conf, as it is now.
func TestResolvConf(t *testing.T) {
	sys := parseResolvConf([]byte("# comment\nnameserver 192.0.2.1\nnameserver example.com\nnameserver 2001:db8::1\nsearch a.test b.test.\noptions ndots:3 attempts:9 rotate"))
	if !slices.Equal(sys.servers, []string{"192.0.2.1:53", "[2001:db8::1]:53"}) || !slices.Equal(sys.search, []string{"a.test.", "b.test."}) || sys.ndots != 3 || sys.attempts != maxAttempts {
		t.Errorf("%+v", sys)
	}
	if sys = parseResolvConf(nil); !slices.Equal(sys.servers, []string{"127.0.0.1:53", "[::1]:53"}) || sys.ndots != 1 || sys.attempts != 2 {
		t.Errorf("without a file: %+v", sys)
	}
	if sys = readSystem("/no/such/file", "/no/such/file"); len(sys.servers) != 2 || len(sys.hosts) != 0 {
		t.Errorf("without a file: %+v", sys)
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 192.0.2.1\nnameserver fe80::1%eth0\nsearch a.test . ..\noptions ndots:3 timeout:-1 attempts:99999999999\n"), "dlp.ns")
	f.Add([]byte("domain x\nsearch"), "a.")
	f.Fuzz(func(t *testing.T, data []byte, name string) {
		sys := parseResolvConf(data)
		if len(sys.servers) < 1 || len(sys.servers) > maxServers || sys.attempts < 1 || sys.attempts > maxAttempts {
			t.Fatalf("%+v", sys)
		}
		for _, s := range sys.servers {
			if _, err := net.ResolveUDPAddr("udp", s); err != nil && !strings.Contains(s, "%") {
				t.Fatal(err)
			}
		}
		for _, full := range sys.candidates(name) {
			if _, err := new(dns.Msg).SetQuestion(full, dns.TypeA).Pack(); err != nil {
				t.Fatalf("%q can't be asked for: %v", full, err)
			}
		}
	})
}

func FuzzHosts(f *testing.F) {
	f.Add([]byte("127.0.0.1 localhost # x\n::1\tLocalhost a.\n\n1 2 3"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for name, addrs := range parseHosts(data) {
			if name != strings.ToLower(name) || len(addrs) > maxTargets {
				t.Fatalf("%q has %d addresses", name, len(addrs))
			}
			for _, ip := range addrs {
				if !ip.IsValid() || ip.IsUnspecified() || ip.Zone() != "" {
					t.Fatalf("%q has %v", name, ip)
				}
			}
		}
	})
}

// Whatever a nameserver sends, what is taken of it is about the question.
func FuzzReply(f *testing.F) {
	for _, texts := range [][]string{{"dlp.test. 9 A 192.0.2.1"}, {"dlp.test. 9 CNAME a.test.", "a.test. 9 CNAME dlp.test."}, {"dlp.test. 9 SRV 1 2 3 a.test."}} {
		m := new(dns.Msg).SetQuestion("dlp.test.", dns.TypeA)
		m.Response = true
		for _, text := range texts {
			rr, err := dns.NewRR(text)
			if err != nil {
				f.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := new(dns.Msg)
		if m.Unpack(data) != nil {
			return
		}
		for _, want := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV} {
			s := newSection(m.Answer, "dlp.test.", want)
			for _, rr := range s.records {
				if rr.Header().Rrtype != want || !strings.EqualFold(rr.Header().Name, s.end) {
					t.Fatalf("%v was taken", rr)
				}
			}
			list := newTargets(s.records)
			for _, o := range list {
				o.addrs = []netip.Addr{netip.IPv6Loopback()}
			}
			setWeights(list)
			for _, o := range list {
				if o.weight < 1 || o.weight > maxWeight || o.tier < 0 || !isHostName(o.host) || strings.ContainsAny(o.host, "\\ /:") || o.port == 0 {
					t.Fatalf("%+v", o)
				}
			}
		}
	})
}

// A nameserver that is silent until the whole lookup has to end comes after the others, too: the next lookup succeeds.
func TestSilentForLong(t *testing.T) {
	silent, good := startNameserver(t), startNameserver(t)
	silent.Silence()
	good.Set("a.test. 60 A 192.0.2.1")
	r := newTestResolver(t, patience, "", "", silent, good)
	ctx, cancel := context.WithTimeout(t.Context(), leastSilence+100*time.Millisecond)
	defer cancel()
	if _, err := r.Lookup(ctx, Host("a.test"), Answer{}); ResultOf(err) != Timeout {
		t.Errorf("error %v", err)
	}
	silent.Asked()
	a, err := r.Lookup(t.Context(), Host("a.test"), Answer{})
	if err != nil {
		t.Fatal(err)
	}
	requireTargets(t, a.Targets, "192.0.2.1")
	if asked := silent.Asked(); len(asked) > 0 {
		t.Errorf("the silent one was asked %q", asked)
	}
}
