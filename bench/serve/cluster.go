package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"icapgate/bench/dlpstub"
)

// Cluster is the servers of one process.
type Cluster struct {
	members   []*member
	incidents *dlpstub.Incidents
	began     time.Time
	failed    chan error // the first server that cannot go on; capacity 1

	control   *http.Server // nil: none
	controlLn net.Listener
	running   sync.WaitGroup
}

// member is one server. It is down between down and up: its port is closed.
type member struct {
	name    string
	address string // that it listens on, with the port that it got
	secure  bool
	stub    *dlpstub.Server

	mu    sync.Mutex
	ln    net.Listener  // nil: down
	ended chan struct{} // closed when Serve of ln has returned
}

// Start listens on every address and serves. An error names the address.
func Start(cfg *Config) (*Cluster, error) {
	c := &Cluster{incidents: dlpstub.NewIncidents(), began: time.Now(), failed: make(chan error, 1)}
	names := make(map[string]bool)
	for _, sc := range cfg.Servers {
		ln, err := net.Listen("tcp", sc.Address)
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("cannot listen: %w", err)
		}
		m := &member{name: sc.Server.Name, address: ln.Addr().String(), secure: sc.Server.TLS != nil}
		if m.name == "" || names[m.name] {
			m.name = m.address
		}
		names[m.name] = true
		stub := sc.Server
		stub.Name, stub.Incidents, stub.IncidentField = m.name, c.incidents, cfg.IncidentHeader
		m.stub = dlpstub.New(stub)
		c.members = append(c.members, m)
		c.serve(m, ln)
	}
	if cfg.Control == "" {
		return c, nil
	}
	ln, err := net.Listen("tcp", cfg.Control)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("cannot listen for control: %w", err)
	}
	c.controlLn = ln
	c.control = &http.Server{Handler: c.Handler(), ReadHeaderTimeout: 10 * time.Second}
	c.running.Go(func() { c.control.Serve(ln) })
	return c, nil
}

// serve lets a server accept from ln. It needs m.mu, or that nobody else knows m.
func (c *Cluster) serve(m *member, ln net.Listener) {
	ended := make(chan struct{})
	m.ln, m.ended = ln, ended
	c.running.Go(func() {
		defer close(ended)
		if err := m.stub.Serve(ln); err != nil && !errors.Is(err, net.ErrClosed) {
			select {
			case c.failed <- fmt.Errorf("%s: %w", m.name, err):
			default:
			}
		}
	})
}

// Failed tells of a server that cannot go on.
func (c *Cluster) Failed() <-chan error { return c.failed }

// Addresses are those of the servers, in their order.
func (c *Cluster) Addresses() (list []string) {
	for _, m := range c.members {
		list = append(list, m.address)
	}
	return list
}

// ControlAddress is where the control endpoint listens, "" if there is none.
func (c *Cluster) ControlAddress() string {
	if c.controlLn == nil {
		return ""
	}
	return c.controlLn.Addr().String()
}

// Close ends all servers and returns when they have ended. Stats can be asked for afterwards.
func (c *Cluster) Close() {
	if c.control != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second) // for commands that are under way
		c.control.Shutdown(ctx)
		cancel()
		c.control.Close()
	}
	for _, m := range c.members {
		m.mu.Lock()
		m.stub.Close()
		m.mu.Unlock()
	}
	c.running.Wait()
}

// down closes the port and resets the connections, as the crash of a server looks.
func (m *member) down() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ln == nil {
		return
	}
	m.ln.Close()
	<-m.ended // then there is no connection that was accepted and is not known
	m.ln = nil
	m.stub.ResetConnections()
}

// up listens again on the address that the server had.
func (c *Cluster) up(m *member) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ln != nil {
		return nil
	}
	ln, err := net.Listen("tcp", m.address)
	if err != nil {
		return fmt.Errorf("cannot listen: %w", err)
	}
	c.serve(m, ln)
	return nil
}

func (m *member) isDown() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ln == nil
}
