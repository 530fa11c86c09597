package gateway

import (
	"math"
	"slices"

	"icapgate/health"
	"icapgate/pool"
)

// selection says which of a pool's servers get new requests, apart from limits: those that are usable in the tiers up to tier or,
// in panic, all that no operator has taken out.
type selection struct {
	tier  uint8
	panic bool
}

// everyTier is the selection of pools that have neither tiers nor a panic threshold, and the last resort of the others.
var everyTier = selection{tier: math.MaxUint8}

// setTiers notes which server is of which tier.
func (p *poolTable) setTiers() {
	p.tiers, p.levels = make([]uint8, len(p.servers)), nil
	for i, s := range p.servers {
		p.tiers[i] = uint8(p.configured(s).Tier)
		if !slices.Contains(p.levels, p.tiers[i]) {
			p.levels = append(p.levels, p.tiers[i])
		}
	}
	slices.Sort(p.levels)
	p.graded = len(p.levels) > 1 || p.cfg.PanicThreshold > 0
}

// selection chooses for requests for a path that have failed on the tried servers. A further tier takes part when, by weight, less than
// tier_threshold of the tiers before it, each by itself, is usable, nothing of them, or nothing that the request has not failed on. On any goroutine.
func (p *poolTable) selection(path int, tried bitset) selection {
	if !p.graded {
		return everyTier
	}
	if p.panics() {
		return selection{math.MaxUint8, true}
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
			if weight > 0 && s.Health.Usable(path) {
				usable += weight
				untried = untried || !tried.has(i)
			}
		}
		if untried && usable > 0 && usable >= p.cfg.TierThreshold*all {
			return selection{tier: tier}
		}
	}
	return everyTier
}

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
		if s.Health.State() != health.Down {
			usable += float64(s.Weight())
		}
	}
	return all > 0 && usable < p.cfg.PanicThreshold*all
}

// takes says whether server i gets new requests for a path at all. On any goroutine.
func (p *poolTable) takes(i, path int, sel selection) bool {
	s := p.servers[i]
	return s.Weight() > 0 && p.tiers[i] <= sel.tier && sel.allows(s, path)
}

// allows says whether the server's health is good enough.
func (sel selection) allows(s *pool.Server, path int) bool {
	return s.Health.Usable(path) || sel.panic && s.Health.Admitted(path)
}

// onSelection is called when the health or the weight of a server of the pool has changed: those who wait may now have others.
func (m *servers) onSelection(p *poolTable) {
	if !p.graded {
		return
	}
	now := p.selection(-1, bitset{})
	m.mu.Lock()
	was, known := m.selections[p.name]
	m.selections[p.name] = now
	m.mu.Unlock()
	if known && was != now {
		m.gw.log.Warn("other servers of a pool get requests now", "pool", p.name, "tier", p.tierOf(now), "panic", now.panic)
	}
	for _, s := range p.servers {
		m.gw.offer(s)
	}
}

// tierOf is the highest tier that takes part.
func (p *poolTable) tierOf(sel selection) int {
	if len(p.levels) == 0 {
		return 0
	}
	return int(min(sel.tier, p.levels[len(p.levels)-1]))
}
