package dlpstub

import (
	"net"
	"slices"
	"sync"
)

// Excess says what becomes of connections beyond Config.ConnectionLimit.
type Excess uint8

const (
	// ExcessWaits accepts them and serves each when one of the others has ended, as c-icap does for want of a thread.
	ExcessWaits Excess = iota
	// ExcessRefused answers their first request with 503 and closes, as Symantec DLP does.
	ExcessRefused
)

// door lets in as many connections as the limit says.
type door struct {
	mu     sync.Mutex
	inside int
	line   []*conn
}

// enter waits until the connection may be served. Beyond the limit of ExcessRefused it does not wait and sets c.excess. The caller has to
// call leave unless there is an error.
func (c *conn) enter() error {
	d, cfg := &c.srv.door, &c.srv.cfg
	d.mu.Lock()
	if cfg.ConnectionLimit == 0 || d.inside < cfg.ConnectionLimit || cfg.Excess == ExcessRefused {
		c.excess = cfg.ConnectionLimit > 0 && d.inside >= cfg.ConnectionLimit
		d.inside++
		d.mu.Unlock()
		return nil
	}
	c.inside = make(chan struct{})
	d.line = append(d.line, c)
	d.mu.Unlock()
	select {
	case <-c.inside:
		return nil
	case <-c.ended:
	}
	d.mu.Lock()
	i := slices.Index(d.line, c)
	if i >= 0 {
		d.line = slices.Delete(d.line, i, i+1)
	}
	d.mu.Unlock()
	if i < 0 {
		c.leave()
	}
	return net.ErrClosed
}

// leave lets the next one in.
func (c *conn) leave() {
	d := &c.srv.door
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.line) == 0 {
		d.inside--
		return
	}
	close(d.line[0].inside)
	d.line = slices.Delete(d.line, 0, 1)
}
