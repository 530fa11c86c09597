package gateway

import (
	"icapgate/balancer"
	"icapgate/icap"
	"icapgate/pool"
)

// survey is what one walk along the queue needs to know of the servers: it is the same for all who wait, and there may be a thousand of them. It
// belongs to a poolTable and is guarded by the mu of its queue.
type survey struct {
	scan       uint64            // that it was made for
	now        int64             // loop time
	place      int               // of the server that is offered, -1: it is not in the pool
	selections []selection       // by path and method
	known      []bool            // which of them are those of this scan
	targets    []balancer.Target // see load
	loaded     bool              // they are those of this scan for loadedFor, of requests that have failed on no server
	loadedFor  need
}

// begin forgets what was found out for another scan.
func (v *survey) begin(p *poolTable, s *pool.Server, scan uint64, clock func() int64) {
	if v.scan == scan {
		return
	}
	v.scan, v.now, v.place = scan, clock(), p.index(s)
	if v.known == nil {
		n := (len(p.paths) + 1) * icap.NumMethods
		v.known, v.selections = make([]bool, n), make([]selection, n)
	}
	clear(v.known)
	v.reload()
}

// selection is poolTable.selection, computed once for each need. Few requests have failed on a server: for them it is computed anew.
func (v *survey) selection(p *poolTable, n need, tried bitset) selection {
	if tried != (bitset{}) {
		return p.selection(n, tried)
	}
	at := (n.path+1)*icap.NumMethods + int(n.method)
	if !v.known[at] {
		v.known[at], v.selections[at] = true, p.selection(n, tried)
	}
	return v.selections[at]
}

// load returns the servers that a request can go to now, if they have a connection to give, with their loads. Who changes them calls reload.
func (v *survey) load(p *poolTable, n need, tried bitset, sel selection) []balancer.Target {
	if v.targets == nil {
		v.targets = make([]balancer.Target, len(p.servers))
	}
	first := tried == bitset{}
	if v.loaded && first && n == v.loadedFor {
		return v.targets
	}
	for i, s := range p.servers {
		v.targets[i] = balancer.Target{
			Weight: s.Share(v.now, int64(p.cfg.SlowStart)), InFlight: int32(s.Load()),
			Usable: p.takes(i, n, sel) && !tried.has(i) && !s.Full(v.now) && !s.Health.Doubted(),
		}
	}
	v.loaded, v.loadedFor = first, n
	return v.targets
}

// reload has load look at the servers again.
func (v *survey) reload() { v.loaded = false }
