package gateway

import (
	"errors"
	"fmt"

	"icapgate/configs"
)

// Reload reads the configuration again and puts it in force: at the next request of live connections, and at the next handshake for
// certificates. No connection is closed for it, except idle ones to servers that are no longer configured. A configuration with a
// fault, or that changes what only a restart can, changes nothing; the error has every reason.
func (g *Gateway) Reload() error {
	err := g.reload()
	if err != nil {
		g.metrics.reloads[1].Add(1)
		g.log.Error("reload refused, nothing has changed", "error", err)
		return err
	}
	g.metrics.reloads[0].Add(1)
	g.log.Info("reloaded")
	return nil
}

func (g *Gateway) reload() error {
	if g.load == nil {
		return errors.New("there is no configuration file to read again")
	}
	m := &g.servers
	m.changing.Lock()
	defer m.changing.Unlock()
	if m.ctx.Err() != nil {
		return errEnding
	}
	cfg, err := g.load()
	if err != nil {
		return err
	}
	// Everything that can fail comes first.
	if err := needsRestart(g.config.Load(), cfg); err != nil {
		return err
	}
	settings := make([]*listenerSettings, len(cfg.Listeners))
	for i, c := range cfg.Listeners {
		if settings[i], err = newListenerSettings(c); err != nil {
			return err
		}
	}
	defer func() { m.followOnly(g.config.Load()) }() // whether it is the new one or still the old one
	t, err := m.build(cfg, g.table.Load())
	if err != nil {
		return err
	}
	if m.ctx.Err() != nil {
		return errEnding
	}
	if err := m.keepsServers(g.table.Load(), t); err != nil {
		return err
	}
	if err := g.openSpills(cfg); err != nil {
		return err
	}
	if err := g.limits.apply(cfg, t); err != nil { // last: what it puts in force stays
		return err
	}

	g.config.Store(cfg)
	g.limitSpills(cfg)
	for i, st := range settings {
		g.listeners[i].settings.Store(st)
	}
	for _, p := range t.pools {
		g.apply(p)
	}
	m.recheck(t)
	g.swap(t)
	m.retire(t)
	return nil
}

var errEnding = errors.New("the gateway is ending")

// needsRestart names every difference between two configurations that can't be put in force while running.
func needsRestart(old, new *configs.Config) error {
	var faults []error
	differs := func(key string, changed bool) {
		if changed {
			faults = append(faults, fmt.Errorf("%s has changed: that needs a restart", key))
		}
	}
	differs("listeners", len(old.Listeners) != len(new.Listeners))
	for i := range min(len(old.Listeners), len(new.Listeners)) {
		a, b := &old.Listeners[i], &new.Listeners[i]
		differs(fmt.Sprintf("listeners[%d].name", i), a.Name != b.Name)
		differs(fmt.Sprintf("listeners[%d].address", i), a.Address != b.Address)
		differs(fmt.Sprintf("listeners[%d].tls", i), (a.TLS == nil) != (b.TLS == nil))
	}
	differs("state_dir", old.StateDir != new.StateDir)
	differs("log", old.Log != new.Log)
	differs("access_log.output", old.AccessLog.Output != new.AccessLog.Output)
	differs("admin", old.Admin != new.Admin)
	differs("metrics", old.Metrics != new.Metrics)
	return errors.Join(faults...)
}
