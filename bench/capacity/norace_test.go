//go:build !race

package capacity

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/bench/result"
)

const race = false

// The tests below run nothing at the same time that the others don't, and take minutes with the race detector.

// TestFindsKnee compares the knees of strict SLOs, which are well below the limit, with those of the same queue computed without a network.
func TestFindsKnee(t *testing.T) {
	for _, limit := range []time.Duration{40 * time.Millisecond, 80 * time.Millisecond} {
		virtually(t, dlpstub.Config{Slots: 8, Queue: dlpstub.QueueAll, Latency: service}, func(t *testing.T, cfg Config) {
			cfg.SLO = mustConditions(t, fmt.Sprintf("p99<%v", limit))
			cfg.Trial = 20 * time.Second
			mustFind(t, cfg, computedKnee(8, limit, cfg.Trial-cfg.Trial/5), 0.05)
		})
	}
}

// TestFindsLossKnee searches a server that answers 503 when all slots are taken. Erlang's formula says at which rate that is 1 % of the
// requests: far below what the slots can serve.
func TestFindsLossKnee(t *testing.T) {
	const slots = 8
	erlang := func(load float64) float64 {
		b := 1.0
		for i := 1.0; i <= slots; i++ {
			b = load * b / (i + load*b)
		}
		return b
	}
	load := 0.0
	for erlang(load) < 0.01 {
		load += 0.001
	}
	virtually(t, dlpstub.Config{Slots: slots, Latency: service}, func(t *testing.T, cfg Config) {
		cfg.Trial = 30 * time.Second
		c := mustFind(t, cfg, load/service.Seconds(), 0.06)
		if broken := c.FirstBroken().Broken; len(broken) != 1 || broken[0].Condition != "errors<1%" {
			t.Errorf("%+v", broken)
		}
	})
}

// TestSearchIsHonest searches many targets. The knee has to be within the precision, and within the interval as often as is said.
func TestSearchIsHonest(t *testing.T) {
	tests := []struct {
		width, wrong float64
		in           int // of 10 knees, within the interval
		trials       int // a search takes on average, at most
	}{
		{0, 0, 10, 35},
		{0, 0.1, 10, 45},
		{0.01, 0.02, 9, 55},
		{0.04, 0.02, 8, 100},
	}
	const seeds = 10
	for _, tt := range tests {
		in, trials := 0, 0
		for seed := range uint64(seeds) {
			rng := rand.New(rand.NewPCG(seed, 1))
			f := &target{knee: 50 * math.Exp(6*rng.Float64()), width: tt.width, wrong: tt.wrong, rng: rng}
			s := Settings{From: 10, Precision: 0.02}
			all := mustSearch(t, s, nil, f.run)
			trials += len(all)
			found := Find(s, all)
			if found.Outcome != result.Found || found.High/found.Low > 1.02*1.02 {
				t.Errorf("width %g: found %+v", tt.width, found)
			}
			if found.Low <= f.knee && f.knee <= found.High {
				in++
			}
			if off := math.Abs(found.Knee/f.knee - 1); off > 0.02+tt.width {
				t.Errorf("width %g, wrong %g, seed %d: found %+v, want %g", tt.width, tt.wrong, seed, found, f.knee)
			}
		}
		if in < tt.in || trials > seeds*tt.trials {
			t.Errorf("width %g, wrong %g: %d of 10 within the interval, %.1f trials", tt.width, tt.wrong, in, float64(trials)/seeds)
		}
	}
}
