package health

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pool starts a Checker per server and their Group.
func pool(t *testing.T, servers ...*fakeServer) (statuses []*Status, log *bytes.Buffer) {
	log = new(bytes.Buffer)
	g := &Group{Logger: slog.New(slog.NewTextHandler(log, nil))}
	for range servers {
		g.Members = append(g.Members, new(Status))
	}
	for i, f := range servers {
		cfg := f.config("/a")
		cfg.Group, cfg.Status = g, g.Members[i]
		start(t, cfg)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		g.Run(ctx)
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return g.Members, log
}

func usableOf(statuses []*Status) string {
	var s strings.Builder
	for _, st := range statuses {
		s.WriteByte(map[bool]byte{true: 'y', false: 'n'}[st.Usable(0)])
	}
	return s.String()
}

// after answers once the time is over, as seen from the start of the test, and hangs before.
func after(begin time.Time, d time.Duration, answer string) func(string) string {
	return func(string) string {
		if time.Since(begin) < d {
			return hang
		}
		return answer
	}
}

// Each step is a time after the start and what is usable then, a letter per server.
func TestGroup(t *testing.T) {
	type step struct {
		after  time.Duration
		usable string
	}
	begin := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // of every synctest
	tests := []struct {
		name    string
		servers []*fakeServer
		steps   []step
		logged  bool // that the grace was given
	}{
		{"one answers: no grace",
			[]*fakeServer{{answer: always(ok200)}, {answer: always(hang)}},
			[]step{{0, "yn"}, {2500 * ms, "yn"}, {20 * time.Second, "yn"}}, false},
		{"none answers: all after 2 s, until they are down",
			[]*fakeServer{{answer: always(hang)}, {answer: always(hang)}},
			[]step{{1900 * ms, "nn"}, {2100 * ms, "yy"}, {7 * time.Second, "yy"}, {9 * time.Second, "nn"}}, true},
		{"the first to come up ends it",
			[]*fakeServer{{answer: after(begin, 3*time.Second, ok200)}, {answer: always(hang)}},
			[]step{{2100 * ms, "yy"}, {2900 * ms, "yy"}, {3100 * ms, "yn"}}, true},
		{"down is a verdict",
			[]*fakeServer{{refuse: errRefused}, {answer: always(hang)}},
			[]step{{1900 * ms, "nn"}, {2100 * ms, "ny"}}, true},
		{"full is alive and gets the grace",
			[]*fakeServer{{answer: always(busy503)}},
			[]step{{1900 * ms, "n"}, {2100 * ms, "y"}, {60 * time.Second, "y"}}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				statuses, log := pool(t, tt.servers...)
				for _, s := range tt.steps {
					at(begin, s.after)
					if got := usableOf(statuses); got != s.usable {
						t.Errorf("after %v: usable %s, want %s", s.after, got, s.usable)
					}
				}
				if got := strings.Contains(log.String(), "no server has answered a check yet"); got != tt.logged {
					t.Errorf("grace logged: %v, want %v", got, tt.logged)
				}
			})
		})
	}
}

// After a reload the pool has a server that is up: a new one waits for its first success.
func TestGroupOfRunningPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		up, fresh := new(Status), new(Status)
		up.SetState(Up)
		g := &Group{Members: []*Status{up, fresh}}
		g.Run(t.Context())
		if fresh.Usable(0) {
			t.Error("a server without a verdict is used beside one that is up")
		}
	})
}

func TestGroupEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(Status)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		(&Group{Members: []*Status{s}}).Run(ctx)
		if s.Usable(0) {
			t.Error("grace was given after the end")
		}
	})
}
