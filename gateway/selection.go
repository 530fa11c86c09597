package gateway

import (
	"math"
	"slices"

	"icapgate/health"
	"icapgate/icap"
	"icapgate/pool"
)

// need is what a request needs of a server.
type need struct {
	path   int // index among the pool's checked paths, -1: it is not checked on its own
	method icap.Method
}

// anything is what a server is needed for in general.
var anything = need{path: -1}

// selection says which of a pool's servers get new requests, apart from limits: those that are usable in the tiers up to tier, with ejected also those
// whose ejection is all that speaks against them or, in panic, all that no operator has taken out and that are not plainly gone.
type selection struct {
	tier     uint8
	ejected  bool
	panic    bool
	unspoken bool // no server says that it does the method: all of them are as good
}

// setTiers notes which server is of which tier.
func (p *poolTable) setTiers() {
	p.tiers, p.levels = make([]uint8, len(p.servers)), nil
	for i, o := range p.members {
		p.tiers[i] = uint8(o.tier)
		if !slices.Contains(p.levels, p.tiers[i]) {
			p.levels = append(p.levels, p.tiers[i])
		}
	}
	slices.Sort(p.levels)
	p.graded = len(p.levels) > 1 || p.cfg.PanicThreshold > 0
}

// selection chooses for requests with a need that have failed on the tried servers. A further tier takes part when, by weight, less than
// tier_threshold of the tiers before it, each by itself, is usable, nothing of them, or nothing that the request has not failed on and that is not
// doubted. When there is nothing of that kind in any tier, ejected servers are better than none. On any goroutine.
func (p *poolTable) selection(n need, tried bitset) selection {
	sel := selection{tier: math.MaxUint8, panic: p.panics()}
	sel.unspoken = p.unspoken(n, sel)
	if sel.panic || !p.graded && !p.ejector.Any() {
		return sel
	}
	untried := false
	for _, tier := range p.levels {
		var all, usable float64
		for i, s := range p.servers {
			if p.tiers[i] != tier {
				continue
			}
			weight := float64(s.Weight())
			all += weight
			if weight > 0 && sel.allows(s, n) {
				usable += weight
				untried = untried || !tried.has(i) && !s.Health.Doubted()
			}
		}
		if untried && usable > 0 && usable >= p.cfg.TierThreshold*all {
			sel.tier = tier
			return sel
		}
	}
	sel.ejected = !untried && p.ejector.Any()
	return sel
}

// unspoken says whether none of the servers that could get a request, or that have no verdict yet, does its method by what it says of itself.
// Such a request goes to them all the same: what they answer is no worse than what the gateway could.
func (p *poolTable) unspoken(n need, sel selection) bool {
	lacking := false
	for _, s := range p.servers {
		switch waits := s.Health.State() == health.Checking && s.Health.Admitted(n.path) || s.Health.UsableButEjected(n.path); {
		case s.Health.Lacks(n.path, n.method):
			lacking = true
		case s.Weight() > 0 && (waits || sel.allows(s, n)):
			return false
		}
	}
	return lacking
}

// lacks says whether there is a server that does not do all that is routed to it, by what it says of itself.
func (p *poolTable) lacks() bool {
	return slices.ContainsFunc(p.servers, func(s *pool.Server) bool { return s.Health.LacksAny() })
}

// differs says whether not simply all servers that are usable get requests.
func (p *poolTable) differs() bool { return p.graded || p.ejector.Any() || p.lacks() }

// panics says whether so few servers are usable that health is not looked at any more: it may be the checks that fail. Servers that an operator has
// taken out do not count, and those without a verdict are given the time for one.
func (p *poolTable) panics() bool {
	if p.cfg.PanicThreshold == 0 {
		return false
	}
	var all, usable float64
	for _, s := range p.servers {
		if s.Health.Admin() != health.Ready {
			continue
		}
		all += float64(s.Weight())
		if s.Health.State() != health.Down && !s.Health.Ejected() {
			usable += float64(s.Weight())
		}
	}
	return all > 0 && usable < p.cfg.PanicThreshold*all
}

// takes says whether server i gets new requests with a need at all. On any goroutine.
func (p *poolTable) takes(i int, n need, sel selection) bool {
	s := p.servers[i]
	return s.Weight() > 0 && p.tiers[i] <= sel.tier && sel.allows(s, n)
}

// allows says whether the server's health is good enough, and whether it does what is needed.
func (sel selection) allows(s *pool.Server, n need) bool {
	h := s.Health
	good := h.Usable(n.path) || sel.ejected && h.UsableButEjected(n.path) && !h.Doubted() || sel.panic && h.Admitted(n.path) && !h.Gone()
	return good && (sel.unspoken || !h.Lacks(n.path, n.method))
}

// onSelection is called when the health or the weight of a server of the pool has changed: those who wait may now have others, also those that they
// have failed on, and doubted ones.
func (m *servers) onSelection(p *poolTable) {
	now := p.selection(anything, bitset{})
	m.mu.Lock()
	was, known := m.selections[p.name]
	if p.differs() {
		m.selections[p.name] = now
	} else { // all that are usable do, and which these are has been logged
		known = false
		delete(m.selections, p.name)
	}
	m.mu.Unlock()
	if known && was != now {
		m.gw.log.Warn("other servers of a pool get requests now", "pool", p.name, "tier", p.tierOf(now), "ejected", now.ejected, "panic", now.panic)
	}
	widest := selection{ejected: true, panic: now.panic, unspoken: true} // of those that requests may have which have failed on some
	for _, s := range p.servers {
		if s.Weight() > 0 && widest.allows(s, anything) {
			m.gw.offer(s)
		}
	}
}

// unspokenFor is a path and method of a pool that none of its servers says that it does.
type unspokenFor struct {
	pool, path string
	method     icap.Method
}

// onMethods is called when the health of a server of the pool has changed, or what it says of itself: it logs for which methods nobody is left
// that says that it does them.
func (m *servers) onMethods(t *table, p *poolTable) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.unspoken) == 0 && !p.lacks() {
		return
	}
	for _, r := range t.routes {
		if r.pool != p || r.checkPath < 0 {
			continue
		}
		var now [icap.NumMethods]bool
		spoken := false // is there a method that somebody does?
		for method := range icap.Method(icap.NumMethods) {
			if r.methods[method] {
				n := need{r.checkPath, method}
				now[method] = p.unspoken(n, selection{tier: math.MaxUint8}) && slices.ContainsFunc(p.servers, func(s *pool.Server) bool { return s.Health.Usable(n.path) })
				spoken = spoken || !now[method]
			}
		}
		for method := range icap.Method(icap.NumMethods) {
			if !r.methods[method] {
				continue
			}
			key := unspokenFor{p.name, r.path, method}
			log := m.gw.log.With("pool", p.name, "path", r.path, "method", method.String())
			switch {
			case now[method] && !m.unspoken[key] && spoken: // routed for all methods, most often, and a service for one of them
				log.Info("no usable server has method among its Methods: requests go to them all the same")
			case now[method] && !m.unspoken[key]:
				log.Warn("no usable server has method among its Methods, nor any other that is routed there: requests go to them all the same")
			case !now[method] && m.unspoken[key]:
				log.Info("a usable server has method among its Methods")
			}
			if now[method] {
				m.unspoken[key] = true
			} else {
				delete(m.unspoken, key)
			}
		}
	}
}

// tierOf is the highest tier that takes part.
func (p *poolTable) tierOf(sel selection) int {
	if len(p.levels) == 0 {
		return 0
	}
	return int(min(sel.tier, p.levels[len(p.levels)-1]))
}
