package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"icapgate/configs"
	"icapgate/gateway/discovery"
	"icapgate/pool"
)

// This file turns the addresses of a configuration into servers: names are looked up, and looked up again, and the pools follow.

const (
	// lookupPatience is how long the start and a reload wait for names. What comes later comes as a change.
	lookupPatience = 5 * time.Second

	// aloneAfter is how long the name of connection_share has to be unknown to DNS until this gateway takes itself for the only one.
	aloneAfter = 10 * time.Second

	maxServers = 1024 // of a pool
	maxTier    = 9    // both as in the configuration
)

// question is what has to be looked up for an entry of the configuration, and the port of its servers where DNS does not tell it. ok is false if
// the entry is an address.
func question(c *configs.Server) (q discovery.Question, port uint16, ok bool) {
	if name := c.SRV(); name != "" {
		return discovery.Service(name), 0, true
	}
	host, text, err := net.SplitHostPort(c.Address)
	n, portErr := strconv.ParseUint(text, 10, 16)
	if err != nil || portErr != nil {
		return q, 0, false // the configuration has been validated
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return q, 0, false
	}
	return discovery.Host(host), uint16(n), true
}

// questions are the names of a configuration, each once.
func questions(cfg *configs.Config) (list []discovery.Question) {
	add := func(q discovery.Question) {
		if !slices.Contains(list, q) {
			list = append(list, q)
		}
	}
	for i := range cfg.Pools {
		p := &cfg.Pools[i]
		for j := range p.Servers {
			if q, _, ok := question(&p.Servers[j]); ok {
				add(q)
			}
		}
		if name := p.ConnectionShare.Name(); name != "" {
			add(discovery.Host(name))
		}
	}
	return list
}

// askAll looks all names of a configuration up, with its settings.
func (m *servers) askAll(cfg *configs.Config) {
	ctx, cancel := context.WithTimeout(m.ctx, lookupPatience)
	defer cancel()
	m.names.Use(m.lookup(cfg.DNS), time.Duration(cfg.DNS.Interval))
	m.names.Follow(ctx, questions(cfg))
}

// followOnly has the names of a configuration followed, with its settings, and no others.
func (m *servers) followOnly(cfg *configs.Config) {
	m.names.Use(m.lookup(cfg.DNS), time.Duration(cfg.DNS.Interval))
	m.names.Keep(questions(cfg))
}

// place is where a server is, as an entry of the configuration or DNS says.
type place struct {
	addr         netip.AddrPort
	authority    string
	weight, tier int
}

// places are the servers of an entry. The authority of a host name is the name itself, that of an SRV record is its target; a dot at the end is
// for DNS only.
func (m *servers) places(c *configs.Server) (list []place) {
	q, port, ok := question(c)
	if !ok {
		if addr, err := netip.ParseAddrPort(c.Address); err == nil {
			list = append(list, place{addr, c.Address, c.Weight, c.Tier})
		}
		return list
	}
	answer, _ := m.names.Answer(q)
	for _, t := range answer.Targets {
		if !q.SRV {
			list = append(list, place{netip.AddrPortFrom(t.Addr, port), strings.Replace(c.Address, ".:", ":", 1), c.Weight, c.Tier})
			continue
		}
		weight := t.Weight
		if c.Weight == 0 {
			weight = 0
		}
		list = append(list, place{
			netip.AddrPortFrom(t.Addr, t.Port), net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port))), weight, min(c.Tier+t.Tier, maxTier),
		})
	}
	return list
}

// resolve returns the servers of a pool: one per address, in the order of the configuration. Servers that the pool has already are kept. An entry
// whose name has never been found has none.
func (m *servers) resolve(p *poolTable) (list []member) {
	type key struct {
		addr      netip.AddrPort
		authority string
	}
	have := make(map[key]*pool.Server)
	for _, s := range p.servers {
		have[key{s.Addr, s.Authority}] = s
	}
	share := m.share(&p.cfg)
	seen := make(map[netip.AddrPort]bool)
	for i := range p.cfg.Servers {
		c := &p.cfg.Servers[i]
		for _, at := range m.places(c) {
			if seen[at.addr] || len(list) == maxServers {
				continue
			}
			seen[at.addr] = true
			s := have[key{at.addr, at.authority}]
			if s == nil {
				s = pool.NewServer(at.addr, at.authority, at.weight, limitsOf(&p.cfg, c.MaxConnections, share), p.queue)
				if before := m.before(p, at.addr); before != nil {
					s.Inherit(before)
				}
				s.Health.OnChange(m.onHealth(s))
			}
			list = append(list, member{s, c.Address, at.weight, at.tier, c.MaxConnections})
		}
	}
	return list
}

// keepsServers names the pools that have servers and would have none, because none of their names is known: a name with a fault in it, most often.
func (m *servers) keepsServers(old, t *table) error {
	var faults []error
	for _, p := range t.pools {
		if was := old.pool(p.name); len(p.servers) > 0 || was == nil || len(was.servers) == 0 {
			continue
		}
		var why []error
		for i := range p.cfg.Servers {
			if q, _, ok := question(&p.cfg.Servers[i]); ok {
				err := m.names.State(q).Err
				if err == nil {
					err = fmt.Errorf("%s has not been looked up yet", q)
				}
				why = append(why, err)
			}
		}
		faults = append(faults, fmt.Errorf("pool %s would have no server: %w", p.name, errors.Join(why...)))
	}
	return errors.Join(faults...)
}

// before is the server that a pool has or had at an address under another name, or that has left and may have requests, nil: there is none.
func (m *servers) before(p *poolTable, addr netip.AddrPort) *pool.Server {
	m.gw.retired.mu.Lock()
	defer m.gw.retired.mu.Unlock()
	for _, list := range [][]*pool.Server{p.servers, m.gw.retired.servers} {
		for _, s := range slices.Backward(list) {
			if s.Addr == addr && s.Queue == p.queue {
				return s
			}
		}
	}
	return nil
}

func limitsOf(cfg *configs.Pool, maxConnections, share int) pool.Limits {
	l := pool.Limits{MaxConnections: maxConnections, ConnectionShare: share, Reserve: cfg.Reserve, LongShare: cfg.LongStreams.Share}
	if cfg.LongStreams.After == 0 {
		l.LongShare = pool.NoLongShare // those that are long from before a reload stay
	}
	return l
}

// follow has the pools follow what is heard of their names.
func (m *servers) follow() {
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-m.names.Changed():
			m.refresh()
		}
	}
}

// refresh puts a new table in force if DNS has other servers for some pool, or says something else of them. A pool that has servers never loses
// all of them.
func (m *servers) refresh() {
	m.changing.Lock()
	defer m.changing.Unlock()
	old := m.gw.table.Load()
	next := old
	var changed []*poolTable
	for i, p := range old.pools {
		list := m.resolve(p)
		if len(list) == 0 || slices.Equal(list, p.members) {
			continue
		}
		next = next.withServers(i, list)
		changed = append(changed, next.pools[i])
		m.logChange(p, next.pools[i])
	}
	if next != old {
		if _, err := m.gw.limits.divide(m.gw.config.Load(), next); err != nil {
			m.gw.log.Error("more servers than the limit of open files has room for", "error", err)
		}
		for _, p := range changed {
			for _, o := range p.members {
				o.server.FollowWeight(o.weight)
			}
			m.check(p, p.servers)
		}
		m.gw.swap(next)
		m.retire(next)
		for _, p := range changed {
			m.limit(p) // of an entry that stands for another server now
			m.onSelection(p)
			m.onMethods(next, p)
		}
	}
	for _, p := range next.pools {
		if m.share(&p.cfg) != m.shareInForce(p) {
			m.limit(p)
		}
	}
}

// logChange tells which servers a pool has got and lost, and how many have another weight or tier.
func (m *servers) logChange(old, p *poolTable) {
	names := func(of, notIn *poolTable) (list []string) {
		for _, s := range of.servers {
			if !notIn.has(s) {
				list = append(list, s.Name)
			}
		}
		return list
	}
	changed := 0
	for _, o := range p.members {
		if i := old.index(o.server); i >= 0 && old.members[i] != o {
			changed++
		}
	}
	attrs := []any{"pool", p.name, "servers", len(p.servers), "added", names(p, old), "removed", names(old, p), "changed", changed}
	if len(p.servers) == maxServers {
		attrs = append(attrs, "most_servers", maxServers)
	}
	m.gw.log.Info("the servers of a pool have changed", attrs...)
}

// share is the number of gateways that share the caps of a pool's servers. As long as DNS can't be asked about it, it may be any: with one
// connection to each server this gateway is no trouble to the others. A name that does not exist, for a while, is one that no other gateway
// is known by either.
func (m *servers) share(cfg *configs.Pool) int {
	name := cfg.ConnectionShare.Name()
	if name == "" {
		return cfg.ConnectionShare.Count()
	}
	s := m.names.State(discovery.Host(name))
	switch {
	case len(s.Answer.Targets) > 0:
		return s.Answer.Hosts()
	case !s.Gone.IsZero() && time.Since(s.Gone) >= aloneAfter:
		return 1
	}
	return pool.ShareUnknown
}

// limit puts the limits of a pool's servers in force. No request is cut for them.
func (m *servers) limit(p *poolTable) {
	share := m.share(&p.cfg)
	m.mu.Lock()
	was := m.shares[p.name]
	m.shares[p.name] = share
	m.mu.Unlock()
	if name := p.cfg.ConnectionShare.Name(); name != "" && was != share {
		level, message := slog.LevelInfo, "so many gateways share the limits of a pool's servers now"
		if share == pool.ShareUnknown {
			level = slog.LevelWarn
			message = "it is not known how many gateways share the limits of a pool's servers: there is one connection to each until it is"
		} else if s := m.names.State(discovery.Host(name)); len(s.Answer.Targets) == 0 {
			level, message = slog.LevelWarn, "nobody knows the name that counts the gateways: this one takes the limits of a pool's servers for itself"
		}
		m.gw.log.Log(context.Background(), level, message, "pool", p.name, "name", name, "gateways", shown(share), "before", shown(was))
	}
	for _, o := range p.members {
		o.server.SetLimits(limitsOf(&p.cfg, o.maxConnections, share))
		m.gw.onCap(o.server)
	}
}

// shareInForce is what limit has put in force.
func (m *servers) shareInForce(p *poolTable) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shares[p.name]
}

// shown is a number of gateways for people and metrics, 0: unknown.
func shown(share int) int {
	if share == pool.ShareUnknown {
		return 0
	}
	return share
}
