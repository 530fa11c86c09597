package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"icapgate/bench"
	"icapgate/bench/process"
	"icapgate/bench/result"
	"icapgate/icap"
)

const (
	loadPatience = 60 * time.Second      // for the load of one round
	settle       = 50 * time.Millisecond // until a gateway has closed the connections of a load
	idleSettle   = 2 * time.Second       // until memory that is only used in passing is given back
	idleOpeners  = 8                     // that open connections at the same time
)

// sample is what one round has shown of one gateway.
type sample struct {
	Value float64 `json:"value"` // in the unit of the row
	Error string  `json:"error,omitempty"`

	CPU        float64 `json:"cpu_seconds"`            // with all connections
	ConnectCPU float64 `json:"connect_cpu_seconds"`    // of the connections and one request each, which is taken off
	Seconds    float64 `json:"seconds"`                // that the load took
	Requests   int64   `json:"requests"`               // of the load, for Value less those of ConnectCPU
	BodyBytes  int64   `json:"body_bytes"`             // the same
	Rate       float64 `json:"rate"`                   // requests per second
	P50        int64   `json:"p50_us"`                 // seen by the client
	P99        int64   `json:"p99_us"`                 //
	ClientCPU  float64 `json:"client_cpu_seconds"`     // of icapbench
	Memory     int64   `json:"memory_bytes,omitempty"` // that the idle connections added
}

// meter measures gateways.
type meter struct {
	dir       string // for files in passing
	icapbench string // program
	trust     string // PEM of the certificate
	roots     *x509.CertPool
	scale     float64 // of the number of requests
}

// measure measures a gateway once.
func (m *meter) measure(ctx context.Context, r *row, g *gateway) sample {
	var s sample
	var err error
	switch r.unit {
	case perConnection:
		err = m.measureMemory(ctx, r, g, &s)
	case growth:
		err = m.measureGrowth(ctx, r, g, &s)
	default:
		err = m.measureCPU(ctx, r, g, &s)
	}
	if err != nil {
		s.Error = err.Error()
	}
	return s
}

// measureCPU makes the load of a round.
func (m *meter) measureCPU(ctx context.Context, r *row, g *gateway, s *sample) error {
	opening := result.New()
	if !r.fresh {
		var err error
		if opening, s.ConnectCPU, err = m.load(ctx, r, g, r.connections); err != nil {
			return err
		}
	}
	full, cpu, err := m.load(ctx, r, g, max(int(float64(r.requests)*m.scale), 2*r.connections))
	if err != nil {
		return err
	}
	if !r.fresh && opening.Dials != full.Dials {
		return fmt.Errorf("%d connections were made, then %d: the first can't be taken off", opening.Dials, full.Dials)
	}
	s.CPU, s.Seconds, s.Requests, s.BodyBytes = cpu, full.Seconds, full.Requests, full.BytesSent
	s.Rate, s.P50, s.P99, s.ClientCPU = full.Rate(), full.Latency.Quantile(50).Microseconds(), full.Latency.Quantile(99).Microseconds(), full.Generator.CPUSeconds
	switch r.unit {
	case perGigabyte:
		s.Value = (cpu - s.ConnectCPU) / (float64(full.BytesSent-opening.BytesSent) / 1e9)
	case tail:
		s.Value = float64(s.P99)
	default:
		s.Value = (cpu - s.ConnectCPU) / float64(full.Requests-opening.Requests) * 1e6
	}
	return nil
}

// measureGrowth makes the load of a round with fewer connections first.
func (m *meter) measureGrowth(ctx context.Context, r *row, g *gateway, s *sample) error {
	base := *r
	base.connections, base.unit = r.fewer, perRequest
	var before sample
	if err := m.measureCPU(ctx, &base, g, &before); err != nil {
		return err
	}
	err := m.measureCPU(ctx, r, g, s)
	s.Value /= before.Value
	return err
}

// load runs icapbench and returns its result and the seconds of CPU that the gateway has used.
func (m *meter) load(ctx context.Context, r *row, g *gateway, requests int) (shown *result.Result, cpu float64, err error) {
	before, err := g.process.CPU()
	if err != nil {
		return nil, 0, err
	}
	file := filepath.Join(m.dir, "load.json")
	_ = os.Remove(file) // so that a stale one is not taken for this load's
	limited, cancel := context.WithTimeout(ctx, loadPatience)
	defer cancel()
	cmd := exec.CommandContext(limited, m.icapbench, r.loadArgs(g.address(r.door), m.trust, file, requests)...)
	cmd.Env = append(os.Environ(), loadEnvironment)
	out, err := process.Run(cmd)
	if limited.Err() != nil {
		return nil, 0, fmt.Errorf("the load did not end: %w", limited.Err())
	}
	if err != nil {
		return nil, 0, fmt.Errorf("icapbench load: %w\n%s", err, out)
	}
	if err := pause(ctx, settle); err != nil {
		return nil, 0, err
	}
	after, err := g.process.CPU()
	if err != nil {
		return nil, 0, err
	}
	if shown, err = result.Read(file); err != nil {
		return nil, 0, err
	}
	if shown.Failed > 0 || shown.Requests != int64(requests) {
		return nil, 0, fmt.Errorf("%d of %d requests failed", int64(requests)-shown.Requests, requests)
	}
	if after <= before { // a process of the gateway has ended, or not the right ones are looked at
		return nil, 0, fmt.Errorf("%s has used %v of CPU for the load", g.name, after-before)
	}
	return shown, (after - before).Seconds(), nil
}

// measureMemory starts the gateway anew, so that memory which earlier loads left behind does not hide what the connections take.
func (m *meter) measureMemory(ctx context.Context, r *row, g *gateway, s *sample) error {
	g.stop()
	if err := g.start(ctx); err != nil {
		return err
	}
	connect, err := m.opener(ctx, r, g)
	if err != nil {
		return err
	}
	first, err := connect() // what is set up once does not count
	if err != nil {
		return err
	}
	defer first.Close()
	if err := pause(ctx, settle); err != nil {
		return err
	}
	before, err := g.process.RSS()
	if err != nil {
		return err
	}
	number := max(int(float64(r.connections)*m.scale), idleOpeners)
	conns, err := openAll(number, connect)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	if err != nil {
		return err
	}
	if err := pause(ctx, idleSettle); err != nil {
		return err
	}
	after, err := g.process.RSS()
	if err != nil {
		return err
	}
	s.Memory = after - before
	s.Value = float64(s.Memory) / 1024 / float64(number)
	return nil
}

// opener returns a function that makes one connection, sends one request on it and leaves it open. It may run several times at
// once.
func (m *meter) opener(ctx context.Context, r *row, g *gateway) (func() (*bench.Conn, error), error) {
	target, err := bench.ParseTarget("icaps://" + g.address(r.door) + "/" + r.method)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: m.roots, ServerName: "127.0.0.1", CurvePreferences: []tls.CurveID{tls.X25519}}
	const size = 64 << 10 // as the row is named
	message := bench.Message{Method: icap.MethodReqmod, Preview: -1}
	return func() (*bench.Conn, error) {
		request, err := message.Build(target, io.LimitReader(zeros{}, size), size)
		if err != nil {
			return nil, err
		}
		c, err := bench.Dial(ctx, target.Address, config, loadPatience)
		if err != nil {
			return nil, err
		}
		answer := &status{}
		err = c.Do(request, answer)
		if err == nil && (answer.code != 204 || !c.Reusable()) {
			err = fmt.Errorf("answer %d, connection reusable: %v", answer.code, c.Reusable())
		}
		if err != nil {
			c.Close()
			return nil, err
		}
		return c, nil
	}, nil
}

// openAll opens n connections and returns them also if some failed.
func openAll(n int, connect func() (*bench.Conn, error)) (conns []*bench.Conn, err error) {
	var mu sync.Mutex
	var openers sync.WaitGroup
	for i := range idleOpeners {
		openers.Go(func() {
			for range (n + i) / idleOpeners {
				c, e := connect()
				mu.Lock()
				if e == nil {
					conns = append(conns, c)
				}
				err = errors.Join(err, e)
				mu.Unlock()
				if e != nil {
					return
				}
			}
		})
	}
	openers.Wait()
	return conns, err
}

// zeros is a body.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// status receives an answer and keeps its status.
type status struct{ code int }

func (s *status) Head(r *icap.Response, _ []byte) error {
	s.code = r.Status
	return nil
}
func (*status) Blocks(*icap.Encapsulated, []byte, bool) error { return nil }
func (*status) Data([]byte) error                             { return nil }

// pause waits for d, or until ctx ends, which is an error.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
