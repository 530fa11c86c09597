package gateway

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"icapgate/configs"
	"icapgate/gateway/discovery"
	"icapgate/health"
	"icapgate/pool"
)

// servers is the control plane of the pools: it turns addresses into servers, keeps a checker for each, and follows
// what DNS says of names. A server whose pool, address and authority stay the same stays the same object.
type servers struct {
	gw     *Gateway
	ctx    context.Context
	cancel context.CancelFunc
	group  sync.WaitGroup
	clock  func() int64  // loopTime, but for tests on virtual time
	sweeps time.Duration // interval of sweep; 0, in tests: they do it

	names  *discovery.Names
	lookup func(configs.DNS) discovery.Lookup // tests have their own

	changing sync.Mutex // held from reading the table in force to replacing it

	mu      sync.Mutex
	running map[*pool.Server]*checking     // guarded by mu
	ending  map[*pool.Server]chan struct{} // checkers that have been cancelled for another one; guarded by mu

	selections map[string]selection // by pool, as last logged; guarded by mu
	unspoken   map[unspokenFor]bool // as last logged; guarded by mu
	shares     map[string]int       // gateways that share the servers' caps, by pool, as in force; guarded by mu

	stalls map[*pool.Server]stall // servers that have requests; owned by sweep

	faces   map[string]*face    // of services, by key; guarded by mu
	kept    map[string]keptFace // of the process before this one; static
	dir     string              // state_dir, "": none
	news    chan struct{}       // holds a token when the services have something to look at
	looked  int64               // loop time of their latest look; owned by sweeping
	keeping chan keptFile       // what is to be written; holds the newest
	unkept  atomic.Int64        // loop time at which that has failed, 0: it has not
}

func (m *servers) init(g *Gateway) {
	m.gw, m.clock, m.sweeps = g, loopTime, sweepInterval
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.running = make(map[*pool.Server]*checking)
	m.ending = make(map[*pool.Server]chan struct{})
	m.selections = make(map[string]selection)
	m.unspoken = make(map[unspokenFor]bool)
	m.shares = make(map[string]int)
	m.faces, m.keeping, m.news = make(map[string]*face), make(chan keptFile, 1), make(chan struct{}, 1)
	m.names = discovery.NewNames(g.log)
	m.lookup = func(c configs.DNS) discovery.Lookup {
		return discovery.NewResolver(discovery.Config{Servers: c.Servers, Timeout: time.Duration(c.Timeout)}).Lookup
	}
}

// build makes the table of a configuration. What stays the same of the old table is kept: the queue and the budget of a pool with that
// name, and its servers, with their connections, health and counters. A name that can't be looked up leaves its pool without those
// servers for now.
func (m *servers) build(cfg *configs.Config, old *table) (*table, error) {
	m.askAll(cfg)
	t := &table{idHeader: cfg.AccessLog.IDHeader, via: newVia(cfg.GatewayID)}
	for _, c := range cfg.Pools {
		tlsConfig, err := newPoolTLS(c.TLS)
		if err != nil {
			return nil, fmt.Errorf("pool %s: %w", c.Name, err)
		}
		p := &poolTable{name: c.Name, cfg: c, tls: tlsConfig, retryOn: newCauses(c.Retry.On), others: new(otherPaths)}
		was := old.pool(c.Name)
		if p.probe, err = newProbe(p, was); err != nil {
			return nil, err
		}
		if was != nil && reflect.DeepEqual(was.cfg.TLS, c.TLS) {
			p.servers, p.queue, p.budget, p.ejector = was.servers, was.queue, was.budget, was.ejector
			if was.cfg.Retry.Budget != c.Retry.Budget {
				p.budget = nil
			}
		}
		if p.queue == nil {
			p.queue = pool.NewQueue(c.Queue.Max)
			p.queue.SetLead(ownPatience(c.Queue))
		}
		if p.budget == nil {
			p.budget = pool.NewBudget(c.Retry.Budget, loopTime())
		}
		if p.ejector == nil {
			p.ejector = m.newEjector(c.Name)
		}
		p.setServers(m.resolve(p))
		t.pools = append(t.pools, p)
	}
	t.routes = newRoutes(cfg, t.pools)
	return t, t.setServices(m.faceOf)
}

// onHealth is called whenever the health of s has changed. A usable one is given what waits, slowly if it may be cold. That is one that
// was down, and one that has come while the gateway runs; at the start of the process nothing is known, and somebody has to take the requests.
func (m *servers) onHealth(s *pool.Server) func(usable, cold bool) {
	var come atomic.Bool
	come.Store(m.gw.table.Load() != nil)
	return func(usable, cold bool) {
		if usable && (come.Swap(false) || cold) {
			s.StartSlowly(m.clock())
		}
		if usable {
			m.gw.offer(s)
		}
		m.lookSoon() // what it says of itself may be new, too
		if t := m.gw.table.Load(); t != nil {
			for _, p := range t.pools {
				if p.has(s) {
					m.onSelection(p)
					m.onMethods(t, p)
				}
			}
		}
	}
}

// apply puts a pool's limits, weights and length of the queue in force, which belong to objects that outlive a table.
func (g *Gateway) apply(p *poolTable) {
	p.queue.SetMax(p.cfg.Queue.Max)
	p.setEjection(g.servers.clock())
	p.queue.SetLead(ownPatience(p.cfg.Queue))
	for _, o := range p.members {
		o.server.ResetWeight(o.weight)
	}
	g.servers.limit(p)
}

// start begins to check the servers of the table and to follow their names.
func (m *servers) start(t *table) {
	for _, p := range t.pools {
		m.limit(p)
		p.setEjection(m.clock())
		p.tellEjector()
		m.check(p, p.servers)
	}
	m.group.Go(m.follow)
	m.group.Go(m.keep)
	if m.sweeps > 0 {
		m.group.Go(m.sweeping)
	}
}

// check starts a checker for each of the servers that has none.
func (m *servers) check(p *poolTable, list []*pool.Server) {
	var statuses []*health.Status
	for _, s := range p.servers {
		statuses = append(statuses, s.Health)
	}
	group := &health.Group{Members: statuses, Logger: m.gw.log.With("pool", p.name)}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range list {
		if m.running[s] != nil {
			continue
		}
		ctx, cancel := context.WithCancel(m.ctx)
		ended := make(chan struct{})
		m.running[s] = &checking{cancel, ended}
		c := health.NewChecker(health.CheckConfig{
			Address: s.Name, Authority: s.Authority, Paths: p.paths, Methods: p.methods, Others: p.others.get, OtherPaths: p.otherPaths, TLS: p.tls,
			Probe: p.probe, NoPreviews: p.endsPreviews(),
			Fields:   newVia(m.gw.config.Load().GatewayID).line(),
			Interval: time.Duration(p.cfg.Health.Interval), Timeout: time.Duration(p.cfg.Health.Timeout),
			Rise: p.cfg.Health.Rise, Fall: p.cfg.Health.Fall, Group: group, Status: s.Health, Stats: &m.gw.metrics.checks,
			OnCheck: m.onCheck(p, s), OnMaxConnections: m.onMaxConnections(s), Logger: m.gw.log.With("pool", p.name),
		})
		s.SetExpedite(c.Expedite)
		before := m.ending[s]
		delete(m.ending, s)
		m.group.Go(func() {
			defer close(ended)
			if before != nil {
				<-before // one checker at a time writes a Status
			}
			c.Run(ctx)
		})
	}
	m.group.Go(func() { group.Run(m.ctx) })
}

// recheck makes the checkers of the table's servers anew, with its settings.
func (m *servers) recheck(t *table) {
	m.mu.Lock()
	for _, p := range t.pools {
		for _, s := range p.servers {
			if c := m.running[s]; c != nil {
				c.cancel()
				delete(m.running, s)
				m.ending[s] = c.ended
			}
		}
	}
	m.mu.Unlock()
	for _, p := range t.pools {
		m.check(p, p.servers)
	}
}

// checking is a running checker.
type checking struct {
	cancel context.CancelFunc
	ended  chan struct{} // closed when it has ended
}

// onMaxConnections notes what a server says of its limit.
func (m *servers) onMaxConnections(s *pool.Server) func(int) {
	return func(n int) {
		s.Learn(n)
		m.gw.onCap(s)
	}
}

// retire stops the checkers of servers that the table does not name any more.
func (m *servers) retire(t *table) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for s, c := range m.running {
		if !t.names(s) {
			c.cancel()
			delete(m.running, s)
		}
	}
}

// stop ends all checkers and waits for them.
func (m *servers) stop() {
	if m.cancel != nil {
		m.cancel()
		m.changing.Lock() // a reload that runs may begin something more, and none does after it
		m.names.Close()
		m.changing.Unlock()
	}
	m.group.Wait()
}

// swap puts a table in force: transactions that begin from now on use it.
func (g *Gateway) swap(t *table) {
	g.retire(g.table.Load(), t)
	for _, p := range t.pools {
		p.tellEjector()
	}
	g.table.Store(t)
	g.servers.lookSoon()
	for _, l := range g.loops {
		l.post(func() {
			l.currentTable()
			l.rerouteWaiting()
		})
	}
}

// retire notes the servers that a new table leaves out: requests may run on them, and one that is being routed now may begin to.
func (g *Gateway) retire(old, t *table) {
	g.retired.mu.Lock()
	defer g.retired.mu.Unlock()
	g.retired.servers = slices.DeleteFunc(g.retired.servers, func(s *pool.Server) bool { return s.InFlight() == 0 })
	for _, p := range old.pools {
		for _, s := range p.servers {
			if !t.names(s) {
				g.retired.servers = append(g.retired.servers, s)
			}
		}
	}
}

// inFlight is the number of attempts, also on servers that a reload has taken out: clients that went away after their request may have some.
func (g *Gateway) inFlight() int {
	n := 0
	for _, p := range g.table.Load().pools {
		for _, s := range p.servers {
			n += s.InFlight()
		}
	}
	g.retired.mu.Lock()
	defer g.retired.mu.Unlock()
	for _, s := range g.retired.servers {
		n += s.InFlight()
	}
	return n
}

// onCap is called when the cap of s may have changed. A larger one may let those who wait go on; of a smaller one the idle connections beyond it
// go at once, busy ones when they have done their request, and long streams beyond their share. It may be called from any goroutine.
func (g *Gateway) onCap(s *pool.Server) {
	g.offer(s)
	g.trim(s, 0)
	s.TrimLong()
}

// trim closes the idle connections to s beyond its cap on the loops from i on, one loop after the other: together they would close too many.
func (g *Gateway) trim(s *pool.Server, i int) {
	if i < len(g.loops) && s.OverCap() { // a connection may become idle in this very moment
		g.loops[i].post(func() {
			g.loops[i].trim(s)
			g.trim(s, i+1)
		})
	}
}

// offerAll is offer for all servers of a pool.
func (g *Gateway) offerAll(p *poolTable) {
	for _, s := range p.servers {
		g.offer(s)
	}
}

// offer gives those who wait what they can have of s, which may have become usable for them: free slots, and the idle connections of all
// loops, which hold slots, too. It may be called from any goroutine.
func (g *Gateway) offer(s *pool.Server) {
	if s.Queue.Depth() == 0 {
		return
	}
	s.Queue.Offer(s)
	if s.Idle() == 0 {
		return
	}
	for _, l := range g.loops {
		l.post(func() { l.reclaim(s) })
	}
}
