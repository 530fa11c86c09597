package gateway

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"icapgate/gateway/admin"
	"icapgate/gateway/discovery"
	"icapgate/health"
	"icapgate/icap"
	"icapgate/pool"
)

// This file is the gateway as operators see it: admin.Gateway.

var _ admin.Gateway = (*Gateway)(nil)

const maxWeight = 256 // as in the configuration

// openAdmin serves the admin and the metrics address.
func (g *Gateway) openAdmin() error {
	for _, a := range []struct {
		address  string
		readOnly bool
	}{{g.config.Load().Admin.Address, false}, {g.config.Load().Metrics.Address, true}} {
		if a.address == "" || a.address == "off" {
			continue
		}
		s, err := admin.Listen(a.address, g, a.readOnly, g.log)
		if err != nil {
			return err
		}
		g.admins = append(g.admins, s)
	}
	return nil
}

// Status is everything known of the running gateway.
func (g *Gateway) Status() admin.Status {
	st := admin.Status{Version: g.version, UptimeSeconds: time.Since(g.started).Seconds(), Draining: g.draining.Load()}
	m := &g.limits
	st.Limits = admin.LimitsStatus{
		Connections: int(m.clients.Load()), MaxConnections: int(m.maxClients.Load()), Memory: m.memory.Load(), MaxMemory: m.maxMemory.Load(),
	}
	connections, memory := m.overloaded()
	if connections {
		st.Limits.Overloaded = append(st.Limits.Overloaded, refusedConnections.String())
	}
	if memory {
		st.Limits.Overloaded = append(st.Limits.Overloaded, refusedMemory.String())
	}
	for i, ls := range g.listeners {
		st.Listeners = append(st.Listeners, admin.ListenerStatus{
			Name: ls.name, Address: g.Addresses()[i], Sessions: int(ls.sessions.Load()), Connections: int(ls.clients.Load()),
		})
	}
	now := g.servers.clock()
	for _, s := range g.table.Load().services {
		st.Services = append(st.Services, serviceStatus(s, now))
	}
	for _, p := range g.table.Load().pools {
		sel := p.selection(anything, bitset{})
		ps := admin.PoolStatus{
			Name: p.name, Balance: p.cfg.Balance, Queue: p.queue.Depth(), Waits: waitsStatus(p.queue.Waits(), now), Tier: p.tierOf(sel), Panic: sel.panic,
			ConnectionShare: shown(g.servers.shareInForce(p)),
		}
		for i, s := range p.servers {
			st := serverStatus(p, s, now)
			st.Tier, st.From = int(p.tiers[i]), p.members[i].from
			ps.Servers = append(ps.Servers, st)
		}
		setShares(ps.Servers)
		st.Pools = append(st.Pools, ps)
	}
	for _, s := range g.servers.names.States() {
		st.Names = append(st.Names, nameStatus(s))
	}
	return st
}

func serviceStatus(s *service, now int64) admin.ServiceStatus {
	f := s.face
	st := admin.ServiceStatus{
		Service: s.name, Listener: s.lead.listener, ServerNames: s.lead.serverNames, Up: s.isUp(now),
		ISTag: tagOfLine(s.ownTag()), ISTags: int(f.kinds.Load()), ISTagChanges: f.changes.Load(),
		Announced: make(map[string][]string),
	}
	for _, r := range s.parts {
		if !slices.Contains(st.Pools, r.pool.name) {
			st.Pools = append(st.Pools, r.pool.name)
		}
	}
	if !s.lead.forwards {
		for path, fields := range *f.announced.Load() {
			st.Announced[path] = strings.Split(strings.TrimSuffix(string(fields), "\r\n"), "\r\n")
		}
	}
	return st
}

// setShares says which share of the requests each server has got.
func setShares(list []admin.ServerStatus) {
	all := uint64(0)
	for i := range list {
		all += list[i].Requests
	}
	for i := range list {
		if all > 0 {
			list[i].RequestShare = float64(list[i].Requests) / float64(all)
		}
	}
}

func nameStatus(s discovery.State) admin.NameStatus {
	st := admin.NameStatus{Name: s.Question.String(), Asked: s.Asked, Next: s.Next, FailingSince: s.Since}
	for _, t := range s.Answer.Targets {
		if s.SRV {
			st.Addresses = append(st.Addresses, netip.AddrPortFrom(t.Addr, t.Port).String())
		} else {
			st.Addresses = append(st.Addresses, t.Addr.String())
		}
	}
	if len(s.Answer.Targets) > 0 && s.Answer.TTL != discovery.NoTTL {
		ttl := s.Answer.TTL.Seconds()
		st.TTLSeconds = &ttl
	}
	if s.Err != nil {
		st.LastError = s.Err.Error()
	}
	return st
}

func waitsStatus(w pool.Waits, now int64) admin.WaitsStatus {
	st := admin.WaitsStatus{
		Now: make(map[string]int), OldestSeconds: oldest(w, now), Ended: make(map[string]uint64), Seconds: make(map[string]float64), Refused: make(map[string]uint64),
	}
	for c := range pool.Cause(pool.Causes) {
		st.Now[c.String()], st.Ended[c.String()], st.Seconds[c.String()] = w.Depth[c], w.Ended[c], float64(w.Time[c])/1e9
	}
	for r := range pool.Refusal(pool.Refusals) {
		st.Refused[r.String()] = w.Refused[r]
	}
	return st
}

// oldest is how long, in seconds, the first in line has waited.
func oldest(w pool.Waits, now int64) float64 {
	if w.Depth == ([pool.Causes]int{}) {
		return 0
	}
	return float64(max(now-w.Since, 0)) / 1e9
}

func serverStatus(p *poolTable, s *pool.Server, now int64) admin.ServerStatus {
	st := admin.ServerStatus{
		Address: s.Name, Authority: s.Authority, Health: s.Health.State().String(), Admin: s.Health.Admin().String(), Weight: s.Weight(), Share: float64(s.Share(now, int64(p.cfg.SlowStart))) / pool.Parts,
		InFlight: s.InFlight(), LongStreams: s.LongStreams(), Connections: s.Connections(), Idle: s.Idle(), Cap: s.Cap(), Requests: s.Requests(),
		Doubted: s.Health.Doubted(),
		Since:   s.Health.Since(), CheckSeconds: s.Health.LastDuration().Seconds(), LastError: s.Health.LastError(),
	}
	e := p.ejector.Of(s.Health)
	if e.Out {
		st.Ejected, st.EjectionReason = true, e.Reason.String()
		st.EjectedUntil = time.Now().Add(time.Duration(e.Until - now)).Round(time.Millisecond)
	}
	for _, n := range e.Count {
		st.Ejections += n
	}
	for i, missing := range s.Health.Missing() {
		if missing && i < len(p.paths) {
			st.MissingPaths = append(st.MissingPaths, p.paths[i])
		}
	}
	for i, path := range p.paths {
		for m := range icap.Method(icap.NumMethods) {
			if s.Health.Lacks(i, m) {
				st.MissingMethods = append(st.MissingMethods, m.String()+" "+path)
			}
		}
	}
	if v := s.Health.Probe(); v != nil {
		st.Probe = &admin.ProbeStatus{Result: v.Result, Error: v.Fault, At: v.At, Seconds: v.Took.Seconds()}
	}
	st.ISTagChanges = s.Health.ISTagChanges()
	for _, o := range s.Health.AllOptions() {
		if o != nil {
			st.Options = append(st.Options, optionsStatus(o))
		}
	}
	return st
}

func optionsStatus(o *health.Options) admin.OptionsStatus {
	st := admin.OptionsStatus{
		Path: o.Path, ISTag: strings.Trim(o.ISTag, `"`), ISTagChanged: o.Changed, TTL: o.TTL, MaxConnections: o.MaxConnections,
		Service: o.Service, Seen: o.Seen,
	}
	for m, does := range o.Methods {
		if does {
			st.Methods = append(st.Methods, icap.Method(m).String())
		}
	}
	if o.Preview >= 0 {
		st.Preview = &o.Preview
	}
	return st
}

// Ready says why the gateway does not take requests, nil if it does: it accepts, it is not draining, and every server has been checked
// once. Servers that come later need not be: DNS tells all gateways of them at the same time, and one by one they can be taken without being
// ready, but not all together. With a pool name, that pool has to have a usable server, too.
//
// One that is overloaded is ready, as Envoy and HAProxy have it: it serves the clients that it has. To take it out would send what it
// refuses, and in Kubernetes all that is new, to the others, which are as full most often, until none is left.
func (g *Gateway) Ready(name string) error {
	if g.draining.Load() {
		return errors.New("draining")
	}
	found := false
	for _, p := range g.table.Load().pools {
		usable := 0
		for _, s := range p.servers {
			if s.Health.Usable(-1) || s.Health.UsableButEjected(-1) {
				usable++
			} else if !g.beenReady.Load() && !s.Health.Checked() && s.Health.Admin() == health.Ready {
				return fmt.Errorf("server %s of pool %s has not been checked yet", s.Name, p.name)
			}
		}
		if p.name == name {
			found = true
			if usable == 0 {
				return fmt.Errorf("pool %s has no usable server", name)
			}
		}
	}
	if name != "" && !found {
		return fmt.Errorf("no pool %q: %w", name, admin.ErrNotFound)
	}
	g.beenReady.Store(true)
	return nil
}

// SetAdmin sets a server's admin state: ready, drain or maintenance.
func (g *Gateway) SetAdmin(poolName, server, state string) error {
	a, err := health.ParseAdminState(state)
	if err != nil {
		return err
	}
	s, err := g.server(poolName, server)
	if err != nil {
		return err
	}
	s.Health.SetAdmin(a)
	if a == health.Ready {
		if p := g.table.Load().pool(poolName); p != nil {
			p.ejector.Release(s.Health, g.servers.clock())
		}
		s.Expedite()
	}
	g.log.Info("admin state set", "pool", poolName, "server", server, "state", state)
	return nil
}

// SetWeight sets a server's share of new requests, until the next start.
func (g *Gateway) SetWeight(poolName, server string, weight int) error {
	if weight < 0 || weight > maxWeight {
		return fmt.Errorf("weight %d is out of range, allowed: 0 to %d", weight, maxWeight)
	}
	s, err := g.server(poolName, server)
	if err != nil {
		return err
	}
	s.SetWeight(weight)
	g.offer(s) // it may have had none
	if p := g.table.Load().pool(poolName); p != nil {
		g.servers.onSelection(p)
	}
	g.log.Info("weight set", "pool", poolName, "server", server, "weight", weight)
	return nil
}

func (g *Gateway) server(poolName, name string) (*pool.Server, error) {
	for _, p := range g.table.Load().pools {
		if p.name != poolName {
			continue
		}
		for _, s := range p.servers {
			if s.Name == name {
				return s, nil
			}
		}
		return nil, fmt.Errorf("pool %s has no server %q (icapgate status shows them): %w", poolName, name, admin.ErrNotFound)
	}
	return nil, fmt.Errorf("no pool %q (icapgate status shows them): %w", poolName, admin.ErrNotFound)
}
