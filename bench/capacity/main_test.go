package capacity

import (
	"context"
	"math"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"icapgate/bench"
	"icapgate/bench/dlpstub"
	"icapgate/bench/load"
	"icapgate/bench/result"
	"icapgate/bench/scenario"
	"icapgate/icap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a listener whose connections are made in memory, so that they work in virtual time.
type memory struct {
	conns chan net.Conn
	ended chan struct{}
	once  sync.Once
}

func newMemory() *memory { return &memory{conns: make(chan net.Conn), ended: make(chan struct{})} }

func (m *memory) dial(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case m.conns <- far:
		return near, nil
	case <-m.ended:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (m *memory) Accept() (net.Conn, error) {
	select {
	case c := <-m.conns:
		return c, nil
	case <-m.ended:
		return nil, net.ErrClosed
	}
}

func (m *memory) Close() error {
	m.once.Do(func() { close(m.ended) })
	return nil
}

func (m *memory) Addr() net.Addr { return &net.TCPAddr{} }

// virtually runs f in virtual time, with what a search of a fake server of the configuration needs.
func virtually(t *testing.T, stub dlpstub.Config, f func(*testing.T, Config)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		server, listener := dlpstub.New(stub), newMemory()
		var serving sync.WaitGroup
		serving.Go(func() {
			if err := server.Serve(listener); err != nil {
				t.Error(err)
			}
		})
		defer serving.Wait()
		defer server.Close()
		target, err := bench.ParseTarget("icap://target.example/reqmod")
		if err != nil {
			t.Fatal(err)
		}
		mix, err := scenario.Single(bench.Message{Method: icap.MethodReqmod, Preview: -1}, 100).Compile(target)
		if err != nil {
			t.Fatal(err)
		}
		f(t, Config{
			Load: load.Config{Target: target, Mix: mix, Name: "small", Connections: 64, Timeout: 10 * time.Second, Poisson: true, Dial: listener.dial},
			SLO:  mustConditions(t, "p99<200ms,errors<1%"), Settings: Settings{From: 10, Precision: 0.02}, Budget: 20 * time.Minute, Trial: 10 * time.Second,
			Say: func(line string) { t.Log(line) },
		})
	})
}

func mustConditions(t *testing.T, text string) []result.Condition {
	t.Helper()
	list, err := result.ParseConditions(text)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// mustFind searches and checks the knee.
func mustFind(t *testing.T, cfg Config, knee, wrong float64) *result.Capacity {
	t.Helper()
	c, err := Run(t.Context(), cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	f := &c.Finding
	if f.Outcome != result.Found || math.Abs(f.Knee/knee-1) > wrong {
		t.Errorf("found %+v after %d trials, want %.1f", *f, len(c.Trials), knee)
	}
	t.Logf("found %.1f (%.1f to %.1f), want %.1f; %d trials, %.0f s", f.Knee, f.Low, f.High, knee, len(c.Trials), c.Seconds)
	return c
}
