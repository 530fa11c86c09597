package gateway

import (
	"slices"
	"time"

	"icapgate/health"
	"icapgate/pool"
)

// This file is passive health on the gateway's side: what attempts say of their servers, and what a server of which nothing is heard costs. What
// follows from it is decided by health.Ejector.

// remark is what the running attempt of a connection has said of its server.
type remark uint8

const (
	saidNothing remark = iota // so far
	saidVoid                  // nothing, and it will not: 503, or somebody else's fault
	saidGood
	saidFailed
)

const (
	// connectPatience is for how long a connect may wait for its answer before the server is doubted. The answer comes within a round trip, which
	// between continents is 200 ms or so; if it does not come, the SYN is sent again after a second. A doubt is cheap: one check ends it.
	connectPatience = 250 * time.Millisecond
	// slowClient is for how long a client may send nothing of its body until it is rather its fault if the server loses its patience.
	slowClient = int64(time.Second)
	// stallAfter is for how long a server may have requests and end none of them before it is checked at once.
	stallAfter = int64(time.Second)
	// sweepInterval is how often ejections are looked at.
	sweepInterval = 250 * time.Millisecond
)

// answerHead notes the status of the attempt's answer.
func (c *serverConn) answerHead(status int) {
	h := c.server.Health
	if status < 500 {
		return
	}
	if h.Heard(c.loop.now) {
		c.loop.gw.servers.onRelief(c.server)
	}
	if isFull(status) {
		c.said = saidVoid
		return
	}
	c.failed(health.FailedRequest)
}

// answerEnd notes that the attempt's answer has come whole.
func (c *serverConn) answerEnd() {
	if c.said != saidNothing {
		return
	}
	c.said = saidGood
	if c.server.Health.Answered(c.loop.now) {
		c.loop.gw.servers.onRelief(c.server)
	}
}

// blame notes that the attempt has failed, if that is the server's fault.
func (c *serverConn) blame(f failure, r closeReason, reused bool) {
	t, now := c.tx, c.loop.now
	silent := r == reasonConnectTimeout || r == reasonVanished
	if r == reasonConnectTimeout {
		t.giveUp(c.server)
	}
	switch {
	case c.said != saidNothing:
	case f == failOverloaded || f == failSpill:
	case f == failNoAnswer && reused && now-c.began < lookAfter: // it was closed while it was idle, most likely
	case f == failNoAnswer && t.s.isSlow(now):
	case silent && (r == reasonVanished || !c.server.Health.HeardSince(max(c.dialedAt, c.doubtedAt))):
		c.loop.gw.servers.doubt(c.server)
		c.failed(health.FailedSilent)
		c.loop.gw.abandonConnects(c.server)
	case f == failConnect:
		c.failed(health.FailedConnect)
	default:
		c.failed(health.FailedRequest)
	}
}

// late notes that there is no time left for the verdict. It is the server's fault if most of that time was its own: others may have had the request
// before, and it may have waited.
func (c *serverConn) late(decision int64) {
	now := c.loop.now
	switch {
	case c.said != saidNothing:
	case c.place > 0 && now-c.dialedAt > decision/2:
		c.failed(health.FailedConnect)
	case c.state == serverBusy && now-max(c.readyAt, c.tx.wholeAt) > decision/2:
		c.failed(health.FailedRequest)
	}
}

func (c *serverConn) failed(f health.Failure) {
	c.said = saidFailed
	c.pool.table.ejector.Failed(c.server.Health, f, c.began, c.loop.now)
}

// endAttempt is called once for each attempt, with its connection open or closed.
func (c *serverConn) endAttempt() {
	if c.said != saidGood && c.said != saidFailed {
		c.server.Health.Void()
	}
	c.tx.endBounds(c.server)
	c.tx = nil
	c.server.End()
}

// isSlow says whether the client keeps its server waiting for more of the request.
func (s *session) isSlow(now int64) bool { return s.waits == waitBody && now-s.activeAt >= slowClient }

// giveUp marks a server that has not answered to a connect: the request does not go there again.
func (t *transaction) giveUp(s *pool.Server) {
	if i := t.pool.table.index(s); i >= 0 {
		t.silent.set(i)
	}
}

// beginConnect is called when a connect has begun; endConnect when it has ended, in whatever way.
func (c *serverConn) beginConnect() {
	c.dialedAt, c.doubtedAt = c.loop.now, 0
	c.reached.Store(false)
	h := c.shard
	h.connecting = append(h.connecting, c)
	c.place = len(h.connecting)
}

func (c *serverConn) endConnect() {
	if c.place == 0 {
		return
	}
	h := c.shard
	last := h.connecting[len(h.connecting)-1]
	h.connecting[c.place-1], last.place = last, c.place
	h.connecting[len(h.connecting)-1] = nil
	h.connecting = h.connecting[:len(h.connecting)-1]
	c.place = 0
}

// connectDue is when a connect is to be looked at: when it has waited for long, and when its time is over. For how long the request has waited for a descriptor
// before is not the server's business. With TLS it is the TCP connection that has to
// come soon; the handshake, which is work for the server, has half of the timeout.
func (c *serverConn) connectDue() int64 {
	timeout := int64(c.pool.table.cfg.Timeouts.Connect)
	end := c.dialedAt + timeout
	if c.doubtedAt != 0 {
		return end
	}
	patience := timeout / 2
	if !c.reached.Load() {
		patience = min(patience, int64(connectPatience))
	}
	return min(end, c.dialedAt+patience)
}

// onConnectDue is called then.
func (c *serverConn) onConnectDue() {
	now := c.loop.now
	switch {
	case now >= c.dialedAt+int64(c.pool.table.cfg.Timeouts.Connect):
		c.fail(failConnect, reasonConnectTimeout)
		return
	case now >= c.connectDue():
		c.doubtedAt = now
		c.loop.gw.servers.doubt(c.server)
		c.server.Expedite()
	}
	c.setTimer()
}

// abandonConnects ends all attempts that are connecting to a server which does not answer, as far as they have somewhere else to go.
func (g *Gateway) abandonConnects(s *pool.Server) {
	for _, l := range g.loops {
		l.post(func() {
			h := l.shards[s]
			if h == nil {
				return
			}
			for _, c := range slices.Clone(h.connecting) {
				if t := c.tx; c.place > 0 && t != nil && t.pool.othersUsable(t, s) && t.retryable(failConnect, false, false) {
					c.said = saidVoid
					c.fail(failConnect, reasonConnectTimeout)
				}
			}
		})
	}
}

// doubt notes that nothing is heard of a server; on any goroutine, as onRelief. Who waits for it rather than for others may have these now.
func (m *servers) doubt(s *pool.Server) {
	if !s.Health.Doubt() {
		return
	}
	for _, p := range m.gw.table.Load().pools {
		if !p.has(s) {
			continue
		}
		if s.Health.Usable(-1) {
			m.gw.log.Info("nothing is heard of a server: others are preferred", "pool", p.name, "server", s.Name)
		}
		m.gw.offerAll(p)
	}
}

// onRelief is called when something has been heard of a doubted server. One that is ejected or, in panic, down may be what some wait for.
func (m *servers) onRelief(s *pool.Server) {
	for _, p := range m.gw.table.Load().pools {
		if p.has(s) && s.Health.Usable(-1) {
			m.gw.log.Info("the server is heard of again", "pool", p.name, "server", s.Name)
		}
	}
	m.gw.offer(s)
}

// onCheck takes the result of a check of s.
func (m *servers) onCheck(p *poolTable, s *pool.Server) func(number uint64, ok bool) {
	return func(number uint64, ok bool) {
		now := m.clock()
		if !ok && s.Health.Unheard() {
			m.doubt(s)
			return
		}
		if s.Health.Heard(now) {
			m.onRelief(s)
		}
		if ok {
			p.ejector.Checked(s.Health, number, now)
		}
	}
}

// newEjector makes the ejector of a pool.
func (m *servers) newEjector(pool string) *health.Ejector {
	return &health.Ejector{Logger: m.gw.log.With("pool", pool)}
}

// setEjection puts the pool's settings in force.
func (p *poolTable) setEjection(now int64) {
	c := &p.cfg.Ejection
	p.ejector.SetConfig(health.EjectionConfig{
		Consecutive: c.Consecutive, FailureShare: c.FailureShare, LatencyFactor: c.LatencyFactor, Window: time.Duration(c.Window), MinRequests: c.MinRequests,
		Time: time.Duration(c.Time), MaxTime: time.Duration(c.MaxTime), MaxShare: c.MaxShare,
	}, now)
}

// tellEjector tells the pool's ejector which servers there are.
func (p *poolTable) tellEjector() {
	var list []health.Member
	for _, s := range p.servers {
		list = append(list, health.Member{Name: s.Name, Status: s.Health, Weight: s.Weight, Ended: s.Ended})
	}
	p.ejector.SetMembers(list)
}

// sweeping looks at ejections again and again.
func (m *servers) sweeping() {
	ticker := time.NewTicker(m.sweeps)
	defer ticker.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-ticker.C:
			m.sweep()
		case <-m.news:
			m.lookAtFaces(m.clock())
		}
	}
}

// stall is since when a server has ended no request, though it has some.
type stall struct {
	ended   uint64
	since   int64
	checked bool
}

// sweep looks at ejections, at what clients see of the services, and at servers that have stalled: they take connections and requests, and answer none.
// Their checks will tell, the sooner the better. A server that takes long for each request is checked once for it.
func (m *servers) sweep() {
	now := m.clock()
	stalls := make(map[*pool.Server]stall, len(m.stalls))
	for _, p := range m.gw.table.Load().pools {
		p.ejector.Tick(now)
		for _, s := range p.servers {
			ended, st := s.Ended(), m.stalls[s]
			switch {
			case s.InFlight() == 0:
				continue
			case st.since == 0 || st.ended != ended:
				st = stall{ended: ended, since: now}
			case !st.checked && now-st.since >= stallAfter:
				st.checked = true
				s.Expedite()
			}
			stalls[s] = st
		}
	}
	m.stalls = stalls
	if now-m.looked >= lookInterval {
		m.lookAtFaces(now)
	}
}
