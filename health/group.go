package health

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// graceAfter is how long the servers of a pool have for a first success before they are used unchecked.
const graceAfter = 2 * time.Second

// Group is the servers of one pool while it starts. If none of them has answered a check after 2 s, those that have no verdict yet
// are used all the same: a gateway that can't check (a firewall rule, a server that does not know OPTIONS) is better than one that
// refuses. A server that answers checks and is being probed is waited for. The first server to come up ends it. Make one Group per pool and reload; one that starts with a server
// that is up gives no grace.
type Group struct {
	Members []*Status    // static
	Logger  *slog.Logger // static; nil: none

	mu    sync.Mutex
	due   bool // the time is over: guarded by mu
	ended bool // a member has been up: guarded by mu
}

// Run waits for the time of grace, gives it where it is due, and returns.
func (g *Group) Run(ctx context.Context) {
	timer := time.NewTimer(graceAfter)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
		g.give()
	}
}

func (g *Group) give() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.Members {
		if s.State() == Up {
			g.ended = true
		}
	}
	if g.ended {
		return
	}
	g.due = true
	given := 0
	for _, s := range g.Members {
		if s.State() == Checking && !s.proving.Load() {
			s.setGrace(true)
			given++
		}
	}
	if given > 0 && g.Logger != nil {
		g.Logger.Warn("no server has answered a check yet: using those without a verdict unchecked",
			"servers", given, "after", graceAfter.String())
	}
}

// giveLate gives the grace to a member that was being probed when it was due, and whose probe has come to no verdict. Its Checker calls it.
func (g *Group) giveLate(s *Status) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.due && !g.ended {
		s.setGrace(true)
	}
}

// end takes the grace back: a member has come up. Its Checker calls it.
func (g *Group) end() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		return
	}
	g.ended = true
	for _, s := range g.Members {
		s.setGrace(false)
	}
}
