package health

import (
	"context"
	"crypto/tls"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"icapgate/icap"
)

const (
	changingInterval = time.Second            // between checks while a verdict is near, or a restart is likely
	restartTime      = 30 * time.Second       // for which a restart is likely after a server has gone down
	expediteGap      = 200 * time.Millisecond // least time from the end of a check to one that is brought forward
	jitter           = 0.1                    // intervals differ by up to this share either way
)

// CheckConfig says how one server is checked.
type CheckConfig struct {
	Address   string   // ip:port that is dialled
	Authority string   // host:port in the request line and Host
	Fields    string   // further lines of the ICAP heads of checks and probes, each with its CRLF
	Paths     []string // exact paths routed to the pool, or the one configured path; empty: none is known, ask for "/"

	// Others are further paths that a good server is asked for, by whose answers it is not judged; nil: none. The list may grow at its end.
	Others func() []string

	Methods [][icap.NumMethods]bool // by path: what is routed there, for which a server is judged by its Methods; nil: not known

	// OtherPaths says that more than Paths is routed to the pool (a prefix, or everything): a server that has none of Paths
	// is then still of use. Otherwise 404 for all of them is a failed check.
	OtherPaths bool

	Probe      *Probe // nil: none
	NoPreviews bool   // the server can't do previews, whatever its answers say: probes have none

	TLS *tls.Config // nil: plain. Without ServerName the host of Authority is verified

	Interval time.Duration // 1 s, if that is shorter, while a verdict is near; 0: 5 s
	Timeout  time.Duration // of each question, connect and handshake included; 0: 2 s
	Rise     int           // successes in a row that bring a server up; 0: 2
	Fall     int           // failures in a row that take it down; 0: 3

	Group  *Group  // the pool's servers; nil: no grace
	Status *Status // written by the Checker; nil: a new one
	Stats  *Stats  // counted into, and may be shared by all checkers; nil: nowhere

	OnCheck          func(number uint64, ok bool) // called by the Checker's goroutine with the result of each check; nil: nobody wants to know
	OnMaxConnections func(n int)                  // called by the Checker's goroutine after each check with a 200: the smallest limit that is said for a path, 0: none; may be nil
	Logger           *slog.Logger                 // one line per change; nil: none

	// For tests.
	Dial   func(ctx context.Context, network, address string) (net.Conn, error) // nil: net.Dialer
	Random func() float64                                                       // in [0, 1), for the jitter; nil: math/rand
}

// Stats counts checks by result.
type Stats struct {
	OK      atomic.Uint64 // the server answered and was good, or full
	Failed  atomic.Uint64
	Skipped atomic.Uint64 // not asked: this machine lacked a descriptor or memory
	Probes  ProbeStats
}

// Checker checks one server.
type Checker struct {
	cfg    CheckConfig // static
	status *Status
	wake   chan struct{} // holds a token when a check has been asked for

	// Owned by Run.
	machine machine // of the checks
	answers bool    // the latest check was good
	said    said
	proof   proof
}

// NewChecker makes a Checker. It carries on from what cfg.Status knows; only one Checker may run on a Status at a time.
func NewChecker(cfg CheckConfig) *Checker {
	if cfg.Status == nil {
		cfg.Status = new(Status)
	}
	if cfg.Stats == nil {
		cfg.Stats = new(Stats)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = new(net.Dialer).DialContext
	}
	if cfg.Random == nil {
		cfg.Random = rand.Float64
	}
	cfg.Interval = orDefault(cfg.Interval, 5*time.Second)
	cfg.Timeout = orDefault(cfg.Timeout, 2*time.Second)
	cfg.Rise = orDefault(cfg.Rise, 2)
	cfg.Fall = orDefault(cfg.Fall, 3)
	if cfg.TLS != nil && cfg.TLS.ServerName == "" {
		cfg.TLS = cfg.TLS.Clone()
		cfg.TLS.ServerName = host(cfg.Authority)
	}
	c := &Checker{
		cfg:     cfg,
		status:  cfg.Status,
		wake:    make(chan struct{}, 1),
		machine: machine{rise: cfg.Rise, fall: cfg.Fall},
	}
	c.proof.init(c)
	return c
}

// orDefault returns v, or def where v is not set.
func orDefault[T int | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}

// MaxOthers is how many paths CheckConfig.Others should have: each is a question more in every check.
const MaxOthers = 32

// judged lists the paths by whose answers the server is judged.
func (cfg *CheckConfig) judged() []string {
	if len(cfg.Paths) == 0 {
		return []string{anyPath}
	}
	return cfg.Paths
}

// asked lists the paths that are asked for: those by whose answers the server is judged come first.
func (cfg *CheckConfig) asked() []string {
	if cfg.Others == nil {
		return cfg.judged()
	}
	return slices.Concat(cfg.judged(), cfg.Others())
}

// host returns authority without its port and brackets.
func host(authority string) string {
	if h, _, err := net.SplitHostPort(authority); err == nil {
		return h
	}
	return strings.Trim(authority, "[]")
}

// Status returns what the Checker writes.
func (c *Checker) Status() *Status { return c.status }

// Expedite brings the next check forward: a connection to the server has failed. It never blocks and may be called by any goroutine
// and as often as it likes; checks that are brought forward are at least 200 ms apart.
func (c *Checker) Expedite() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run checks until ctx ends. The first check is made at once.
func (c *Checker) Run(ctx context.Context) {
	c.machine.state = c.status.State()
	if c.status.Since().IsZero() {
		c.status.SetState(c.machine.state)
	}
	c.status.setMissing(nil) // of other paths than this Checker's
	c.recall()
	c.proof.begin()
	var latest, next time.Time // end of the latest check, and when the next one is due
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
			if wait := expediteGap - time.Since(latest); wait > 0 {
				next = time.Now().Add(wait)
				timer.Reset(wait)
				continue
			}
			next = time.Now()
		case <-timer.C:
		}
		if c.status.Admin() == Maintenance {
			c.forget()
		}
		if !time.Now().Before(next) {
			if c.status.Admin() != Maintenance {
				c.check(ctx)
				latest = time.Now()
			}
			next = time.Now().Add(c.pause())
		}
		// One after the other: check and probe together never have more than one connection to the server.
		if c.proof.isDue(time.Now()) {
			c.proof.probe(ctx)
		}
		timer.Reset(time.Until(c.proof.orDue(next)))
	}
}

// pause returns the time until the next check.
func (c *Checker) pause() time.Duration {
	interval := c.cfg.Interval
	if c.machine.changing() || c.machine.state == Down && time.Since(c.status.Since()) < restartTime {
		interval = min(interval, changingInterval)
	}
	return c.vary(interval)
}

// vary makes the Checkers of many servers and gateways drift apart.
func (c *Checker) vary(interval time.Duration) time.Duration {
	return time.Duration(float64(interval) * (1 + jitter*(2*c.cfg.Random()-1)))
}

// check makes one check and acts on its outcome.
func (c *Checker) check(ctx context.Context) {
	began, number := time.Now(), c.status.beginCheck()
	r := round{cfg: &c.cfg, paths: c.cfg.asked()}
	rep := r.run(ctx)
	if ctx.Err() != nil {
		return // the end of the Checker, not a fault of the server
	}
	switch rep.outcome {
	case bad:
		c.cfg.Stats.Failed.Add(1)
	case none:
		c.cfg.Stats.Skipped.Add(1)
	default:
		c.cfg.Stats.OK.Add(1)
	}
	if r.heard {
		c.status.answersCheck()
	}
	if c.cfg.OnCheck != nil && rep.outcome != none {
		c.cfg.OnCheck(number, rep.outcome != bad)
	}
	c.setMissing(rep.missing)
	c.learn(r.paths, r.options, time.Now())
	c.machine.step(rep.outcome, time.Now())
	c.answers = rep.outcome == good
	c.proof.onCheck()
	c.status.latest.Store(&verdict{fault: rep.fault, unreachable: rep.unreachable, took: time.Since(began)})
	c.publish(rep.fault)
}

// forget makes a server in maintenance one of which nothing is known.
func (c *Checker) forget() {
	c.machine.reset()
	c.answers = false
	c.proof.forget()
	c.setState(Checking, "in maintenance")
	c.status.setMissing(nil)
}

// publish puts together what checks and probes say, after one of them; fault is what was wrong with it.
func (c *Checker) publish(fault string) {
	checks, probes := &c.machine, &c.proof.machine
	switch {
	case checks.state == Down:
		c.setState(Down, fault, "failures", checks.decided, "since", checks.since)
	case c.cfg.Probe == nil && checks.state == Up:
		c.setState(Up, "checks succeed", "successes", checks.decided, "since", checks.since)
	case c.cfg.Probe == nil || checks.state == Checking || probes.state == Checking: // a server that was down stays so until it has proved that it scans
	case probes.state == Down:
		c.setState(Down, "probe: "+fault, "failures", probes.decided, "since", probes.since)
	default:
		c.setState(Up, "checks and probes succeed", "successes", probes.decided, "since", probes.since)
	}
}

// setState publishes the state. The log has one line per change, with counts that explain it.
func (c *Checker) setState(to State, reason string, counts ...any) {
	from := c.status.State()
	if from == to {
		return
	}
	c.status.SetState(to)
	if to == Up && c.cfg.Group != nil {
		c.cfg.Group.end()
	}
	level := slog.LevelInfo
	if to == Down {
		level = slog.LevelWarn
	}
	c.cfg.Logger.Log(context.Background(), level, "server is "+to.String(),
		append([]any{"server", c.cfg.Address, "from", from.String(), "to", to.String(), "reason", reason}, counts...)...)
}

// setMissing publishes which paths are missing, nil: not known, all stays as it is. A path that nobody serves is most often a fault in a
// configuration, so each change is logged.
func (c *Checker) setMissing(missing []bool) {
	if missing == nil {
		return
	}
	before := c.status.Missing()
	for i, path := range c.cfg.Paths {
		switch was := before != nil && before[i]; {
		case missing[i] && !was:
			c.cfg.Logger.Warn("server does not know path: not used for it", "server", c.cfg.Address, "path", path, "status", 404)
		case !missing[i] && was:
			c.cfg.Logger.Info("server knows path: used for it again", "server", c.cfg.Address, "path", path)
		}
	}
	c.status.setMissing(missing)
}
