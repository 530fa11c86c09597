package gateway

import (
	"time"

	"icapgate/balancer"
	"icapgate/configs"
	"icapgate/pool"
)

// ownServers are the servers that a session stays with in pools with affinity: session, the latest first. Two pools are remembered: that of its
// REQMODs and that of its RESPMODs, most often.
type ownServers [2]*pool.Server

// of returns the server in the pool with that queue, nil: none.
func (o *ownServers) of(q *pool.Queue) *pool.Server {
	for _, s := range o {
		if s != nil && s.Queue == q {
			return s
		}
	}
	return nil
}

// set makes s the session's server in its pool.
func (o *ownServers) set(s *pool.Server) {
	if o[0] != nil && o[0].Queue != s.Queue {
		o[1] = o[0]
	}
	o[0] = s
}

// forget has the session have none in the pool with that queue.
func (o *ownServers) forget(q *pool.Queue) {
	for i, s := range o {
		if s != nil && s.Queue == q {
			o[i] = nil
		}
	}
}

// ownPatience is for how long a request waits for its own server alone.
func ownPatience(q configs.Queue) time.Duration { return time.Duration(q.Timeout) / 2 }

// ownServer returns the place of the server that the request has to go to or, if that is Busy, to wait for; -1: any will do. It goes by targets,
// as pick has filled them in.
//
// The server of a session is its own until it can't be used. When it is at its cap it is, until its load reaches the bound: then the session moves.
func (p *loopPool) ownServer(t *transaction) int {
	if p.sticks {
		i := p.table.index(t.s.own.of(p.table.queue))
		if i >= 0 && (p.targets[i].Usable || p.targets[i].Busy && balancer.HasRoom(p.targets, i)) {
			t.byKey = false
			return i
		}
	}
	if t.keyed && p.table.hash != nil {
		t.byKey = true
		return p.table.hash.maglev.Pick(t.key, p.targets)
	}
	return -1
}
