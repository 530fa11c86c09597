package configs

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Lint returns what is legal and unwise.
func (c *Config) Lint() Faults {
	l := &linter{findings{source: c.source}, c}
	for i := range c.Listeners {
		l.listener(fmt.Sprintf("listeners[%d]", i), &c.Listeners[i])
	}
	for i := range c.Services {
		l.service(i)
	}
	for i := range c.Pools {
		l.pool(fmt.Sprintf("pools[%d]", i), &c.Pools[i])
	}
	if a, err := parseAddress(c.Admin.Address, 0); err == nil && !a.loopback() {
		l.add("admin.address", "%s: whoever reaches this address can drain the gateway; better 127.0.0.1:port or unix:/path, "+
			"and metrics.address for what is only read", c.Admin.Address)
	}
	l.faults.sort()
	return l.faults
}

type linter struct {
	findings
	c *Config
}

func (l *linter) listener(key string, in *Listener) {
	if all := l.c.Limits.MaxConnections; all > 0 && in.MaxConnections > all {
		l.add(key+".max_connections", "%d is never reached: limits.max_connections is %d", in.MaxConnections, all)
	}
	if a, err := parseAddress(in.Address, 0); err == nil && in.TLS == nil && !a.loopback() {
		l.add(key+".address", "plain ICAP on %s: what clients send crosses the network in clear; better with tls, or on 127.0.0.1", in.Address)
	}
}

// service warns of a route that an earlier one leaves nothing for.
func (l *linter) service(i int) {
	later := &l.c.Services[i]
	if len(later.ServerNames) > 0 && !slices.ContainsFunc(l.c.Listeners, func(in Listener) bool { return in.TLS != nil && (later.Listener == "" || later.Listener == in.Name) }) {
		l.add(fmt.Sprintf("services[%d].server_names", i), "is never matched: no listener that leads here has tls")
	}
	l.headers(fmt.Sprintf("services[%d].headers", i), &later.Headers)
	if later.Duplicates == "avoid" {
		for j := range l.c.Pools {
			if p := &l.c.Pools[j]; p.Name == later.Pool && slices.Contains(p.Retry.On, "timeout") {
				l.add(fmt.Sprintf("services[%d].duplicates", i), "avoid: timeout in pools[%d].retry.on has no effect here, as a server that is late has the request", j)
			}
		}
	}
	l.limits(fmt.Sprintf("services[%d]", i), later)
	l.istag(fmt.Sprintf("services[%d].istag", i), later)
	for j := range l.c.Services[:i] {
		if covers(&l.c.Services[j], later) {
			l.add(fmt.Sprintf("services[%d]", i), "is never used: services[%d] matches all of it and comes first", j)
			return
		}
	}
}

// limits warns of limits of a service that have no effect, or not the one that is wanted.
func (l *linter) limits(key string, s *Service) {
	if s.MaxDuration > 0 && s.DecisionTimeout >= s.MaxDuration {
		l.add(key+".decision_timeout", "%v is never reached: max_duration is %v", s.DecisionTimeout, s.MaxDuration)
	}
	i := slices.IndexFunc(l.c.Pools, func(p Pool) bool { return p.Name == s.Pool })
	if i < 0 || s.OnLimit != "allow" {
		return
	}
	p := &l.c.Pools[i]
	if s.MaxBody == 0 && s.MaxDuration == 0 && p.LongStreams.After == 0 {
		l.add(key+".on_limit", "allow has no effect: neither max_body nor max_duration is set, nor long_streams.after of pool %s", p.Name)
	}
	if s.MaxBody > p.Retry.ReplayBuffer {
		l.add(key+".on_limit", "allow: of bodies beyond max_body (%v) more than retry.replay_buffer of pool %s (%v) has gone, so clients that do not take a 204 then are rejected all the same",
			s.MaxBody, p.Name, p.Retry.ReplayBuffer)
	}
}

// headers warns of a policy that does less than it seems to.
func (l *linter) headers(key string, h *Headers) {
	switch standard := DefaultHeaders().Guarded; {
	case len(h.Trusted) > 0 && len(h.Guarded) == 0:
		l.add(key+".trusted", "has no effect: guarded is empty, so nothing is taken from the requests of other clients")
	case len(h.Trusted) == 0 && !slices.Equal(h.Guarded, standard):
		l.add(key+".guarded", "has no effect: trusted is empty, so all clients may say whom a request is from")
	}
	if h.ClientIP && slices.ContainsFunc(h.Request.Set, func(p Pair) bool { return strings.EqualFold(p.Name, "X-Client-IP") }) {
		l.add(key+".client_ip", "has no effect: request.set has X-Client-IP")
	}
}

// istag warns of tags that clients see change from one gateway to the other, and of two for one path.
func (l *linter) istag(key string, s *Service) {
	for j := range l.c.Pools {
		if p := &l.c.Pools[j]; p.Name == s.Pool && s.ISTag == "" && p.ConnectionShare.Count() != 1 {
			l.add(key, "none, though there are several gateways (pools[%d].connection_share): each follows the tags of the servers in its own time, and clients forget "+
				"their verdicts at each change from one to the other; better a fixed tag, the same for all gateways", j)
			break
		}
	}
	for j := range l.c.Services {
		o := &l.c.Services[j]
		if o == s {
			return
		}
		if o.Path == s.Path && o.Listener == s.Listener && slices.Equal(o.ServerNames, s.ServerNames) && (o.ISTag != s.ISTag || o.Options != s.Options) {
			l.add(key, "istag or options differ from services[%d], which has the same path: it is one service to clients, and those of the first hold", j)
			return
		}
	}
}

// covers says whether every request that b matches is matched by a.
func covers(a, b *Service) bool {
	if a.Listener != "" && a.Listener != b.Listener {
		return false
	}
	if len(a.ServerNames) > 0 && !slices.Equal(a.ServerNames, b.ServerNames) {
		return false
	}
	ofB := b.Methods
	if len(ofB) == 0 {
		ofB = methods
	}
	for _, m := range ofB {
		if len(a.Methods) > 0 && m != "OPTIONS" && !slices.Contains(a.Methods, m) {
			return false
		}
	}
	start, prefix := strings.CutSuffix(a.Path, "*")
	if prefix {
		return strings.HasPrefix(strings.TrimSuffix(b.Path, "*"), start)
	}
	return a.Path == b.Path
}

func (l *linter) pool(key string, p *Pool) {
	if !slices.ContainsFunc(l.c.Services, func(s Service) bool { return s.Pool == p.Name }) {
		l.add(key, "no service leads to pool %s", p.Name)
	}
	if p.HashOn != DefaultPool().HashOn && p.Balance != "hash" {
		l.add(key+".hash_on", "%s is not used: balance is %s, not hash", p.HashOn, p.Balance)
	}
	if p.Affinity == "session" && p.Balance == "hash" {
		l.add(key+".affinity", "session comes before balance: hash: only the first request of a client connection goes by its key")
	}
	if p.TierThreshold > 0 && !slices.ContainsFunc(p.Servers, func(s Server) bool { return s.Tier != p.Servers[0].Tier }) {
		l.add(key+".tier_threshold", "%v is not used: all servers are of one tier", p.TierThreshold)
	}
	if t := &p.Timeouts; t.Progress < t.Response && t.Progress != DefaultPool().Timeouts.Progress {
		l.add(key+".timeouts.progress", "%v has no effect: a server has timeouts.response (%v) for its answer anyway", p.Timeouts.Progress, p.Timeouts.Response)
	}
	if i := slices.Index(p.Retry.On, "timeout"); i >= 0 {
		l.add(fmt.Sprintf("%s.retry.on[%d]", key, i), "timeout: the server that is late may have written its incident already, and another one will write it again")
	}
	if p.Retry.Spill > 0 && p.Retry.Spill <= p.Retry.ReplayBuffer {
		l.add(key+".retry.spill", "%v is not more than replay_buffer (%v), up to which requests are held in memory", p.Retry.Spill, p.Retry.ReplayBuffer)
	}
	if p.Retry.Spill > l.c.Limits.MaxSpill {
		l.add(key+".retry.spill", "%v is never reached: limits.max_spill is %v for all requests together", p.Retry.Spill, l.c.Limits.MaxSpill)
	}
	if p.PanicThreshold > 0.5 {
		l.add(key+".panic_threshold", "%v: requests go to servers that are down as soon as more than %.0f %% of all are down", p.PanicThreshold, 100*(1-p.PanicThreshold))
	}
	if n := p.ConnectionShare.Count(); n > 1 {
		l.add(key+".connection_share", "%d gateways share these servers: all of them need this same value; dns: and a name with all their addresses counts them", n)
	}

	l.longStreams(key, p)
	l.ejection(key+".ejection", p)
	if p.Health.Probe != nil {
		l.probe(key+".health.probe", p.Health.Probe)
	}

	share := max(1, p.ConnectionShare.Count())
	weights := 0
	var remote []string
	for i := range p.Servers {
		s := &p.Servers[i]
		weights += s.Weight
		// The same sum as the pool's own: a server never gets less than one connection.
		if n := s.MaxConnections; n > 0 && n/share-p.Reserve < 1 {
			l.add(fmt.Sprintf("%s.servers[%d].max_connections", key, i),
				"%d / connection_share %d - reserve %d leaves no connection for requests: 1 is used, more than was allowed",
				n, share, p.Reserve)
		}
		if a, err := parseAddress(s.Address, PortICAP); s.SRV() != "" || err == nil && !a.loopback() {
			remote = append(remote, s.Address)
		}
		l.srv(fmt.Sprintf("%s.servers[%d]", key, i), s, p.TLS)
		l.itself(fmt.Sprintf("%s.servers[%d]", key, i), s)
	}
	if weights == 0 {
		l.add(key+".servers", "every weight is 0: no server gets a request")
	}
	if p.TLS == nil && len(remote) > 0 {
		more := ""
		if len(remote) > 1 {
			more = fmt.Sprintf(" and %d more", len(remote)-1)
		}
		l.add(key+".servers", "plain ICAP to %s%s: decrypted content leaves this machine in clear; better with tls "+
			"(or a stunnel on the server), or on a network of its own", remote[0], more)
	}
}

// longStreams warns of servers on which long streams have no bound, or one that leaves nothing for others.
func (l *linter) longStreams(key string, p *Pool) {
	if p.LongStreams.After == 0 {
		return
	}
	if p.LongStreams.Share == 1 {
		l.add(key+".long_streams.share", "1: long streams may hold all connections of a server")
	}
	for i := range p.Servers {
		at := fmt.Sprintf("%s.servers[%d].max_connections", key, i)
		switch n := p.Servers[i].MaxConnections; {
		case n == 0:
			l.add(at, "is not set: there is no bound on long_streams here unless the server's OPTIONS name Max-Connections")
		case n/max(1, p.ConnectionShare.Count())-p.Reserve <= 1:
			l.add(at, "%d leaves one connection for requests, which a long stream may hold", n)
		}
	}
}

// srv warns of what has no effect on the servers of SRV records, or none that is wanted.
func (l *linter) srv(key string, s *Server, tls *PoolTLS) {
	if s.SRV() == "" {
		return
	}
	if s.Weight > 1 {
		l.add(key+".weight", "%d is not used: SRV records have weights of their own", s.Weight)
	}
	if tls != nil && tls.CAFile == "" && tls.ServerName == "" {
		l.add(key+".address", "%s: whoever can forge DNS answers can name a server of his own, whose certificate the system's CAs know; "+
			"better with tls.ca_file or tls.server_name", s.Address)
	}
}

// itself warns of a server that is this gateway, as far as addresses tell.
func (l *linter) itself(key string, s *Server) {
	server, err := parseAddress(s.Address, PortICAP)
	if err != nil {
		return
	}
	for i := range l.c.Listeners {
		in := &l.c.Listeners[i]
		a, err := parseAddress(in.Address, 0)
		if err == nil && a.port == server.port && (strings.EqualFold(a.host, server.host) || server.loopback() && (a.everywhere() || a.host == "0.0.0.0")) {
			l.add(key+".address", "%s is this gateway's own listener %s: requests would come back and go in circles", s.Address, in.Name)
			return
		}
	}
}

func (l *linter) ejection(key string, p *Pool) {
	e := &p.Ejection
	if e.Consecutive == 1 {
		l.add(key+".consecutive", "1: a single request that fails takes a server out")
	}
	if e.FailureShare > 0 && e.FailureShare < 0.1 {
		l.add(key+".failure_share", "%v: servers are taken out for less than one failure in ten requests", e.FailureShare)
	}
	if e.LatencyFactor > 0 && e.LatencyFactor < 2 {
		l.add(key+".latency_factor", "%v: servers that work alike can differ by so much", e.LatencyFactor)
	}
	if p.PanicThreshold > 0 && e.MaxShare > 1-p.PanicThreshold {
		l.add(key+".max_share", "%v: together with panic_threshold %v so many ejections begin the panic, in which ejected servers are used",
			e.MaxShare, p.PanicThreshold)
	}
	if e.MaxShare > 0.5 {
		l.add(key+".max_share", "%v: the rest gets the load of all when more than half of the servers are out", e.MaxShare)
	}
}

func (l *linter) probe(key string, p *Probe) {
	if p.Interval < shortProbe {
		l.add(key+".interval", "%v: each probe of each server may write an incident, and so does that of each gateway; better %v or more, and a policy that leaves out "+
			"what carries the header X-Icapgate-Probe", p.Interval, shortProbe)
	}
	if p.BodyFile == "" && p.handsBack([]byte(p.Body)) {
		l.add(key+".expect.body", "%s", handedBack)
	}
}

// shortProbe is the interval below which probes write more incidents than anybody wants to see.
var shortProbe = seconds(10)

// handedBack is what is wrong with such a probe.
const handedBack = "expect.body matches the probe's own content: a server that lets it through and hands it back would pass; better a text of the block page alone"

// handsBack says whether the content itself is what is expected of the body of the answer.
func (p *Probe) handsBack(content []byte) bool {
	if p.Expect.Body == "" {
		return false
	}
	pattern, err := regexp.Compile(p.Expect.Body)
	return err == nil && pattern.Match(content)
}
