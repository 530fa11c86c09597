package capacity

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"icapgate/bench/result"
)

// target is a simulated one. The chance that a trial holds falls around its knee.
type target struct {
	knee  float64 // 0: nothing holds
	width float64 // as in belief; 0: sharp
	wrong float64 // chance that a trial fails for another reason
	own   float64 // rate from which on the load generator is the limit; 0: never
	rng   *rand.Rand
}

func (f *target) run(step Step) (result.Trial, error) {
	t := result.Trial{Rate: step.Rate, Rough: step.Rough, Verdict: result.Failed}
	width := f.width
	if step.Rough {
		width *= 2
	}
	switch holds := 1 / (1 + math.Pow(step.Rate/f.knee, 1/max(width, 1e-6))); {
	case f.own > 0 && step.Rate >= f.own:
		t.Verdict = result.Limited
	case f.rng.Float64() < holds && f.rng.Float64() >= f.wrong:
		t.Verdict = result.Held
	}
	return t, nil
}

// mustSearch returns all trials of a search.
func mustSearch(t *testing.T, s Settings, before []result.Trial, run func(Step) (result.Trial, error)) []result.Trial {
	t.Helper()
	trials := before
	if err := Search(s, before, run, func(all []result.Trial) error { trials = all; return nil }); err != nil {
		t.Fatal(err)
	}
	return trials
}

func TestSearchOutcomes(t *testing.T) {
	tests := []struct {
		name   string
		target target
		s      Settings
		want   result.Outcome
		rate   float64 // that is said, within the precision
		trials int     // at most
	}{
		{"the knee", target{knee: 345.03}, Settings{10, 0, 0.02}, result.Found, 345.03, 45},
		{"precisely", target{knee: 345.03}, Settings{300, 400, 0.005}, result.Found, 345.03, 110},
		{"coarsely", target{knee: 345.03}, Settings{10, 0, 0.2}, result.Found, 345.03, 25},
		{"at the lowest rate", target{knee: 10.05}, Settings{10, 0, 0.02}, result.Found, 10.05, 45},
		{"below the lowest rate", target{knee: 9}, Settings{10, 0, 0.02}, result.Below, 10, 6},
		{"nothing holds", target{}, Settings{10, 20, 0.02}, result.Below, 10, 6},
		{"all hold", target{knee: 1e9}, Settings{10, 100, 0.02}, result.AtLeast, 100, 6},
		{"one rate", target{knee: 1e9}, Settings{100, 100, 0.02}, result.AtLeast, 100, 2},
		{"just above the highest rate", target{knee: 101}, Settings{10, 100, 0.02}, result.AtLeast, 100, 12},
		{"all hold without a limit", target{knee: 1e9}, Settings{10, 0, 0.02}, result.AtLeast, 1e6, 19},
		{"the load generator", target{knee: 1e9, own: 700}, Settings{10, 0, 0.02}, result.GeneratorLimit, 700, 60},
		{"the load generator far above", target{knee: 345.03, own: 500}, Settings{10, 0, 0.02}, result.Found, 345.03, 45},
		{"the load generator at once", target{knee: 345.03, own: 5}, Settings{10, 0, 0.02}, result.GeneratorLimit, 0, maxLimited},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.target.rng = rand.New(rand.NewPCG(1, 1))
			all := mustSearch(t, tt.s, nil, tt.target.run)
			found := Find(tt.s, all)
			rate := found.Knee
			switch found.Outcome {
			case result.Below:
				rate = found.Failed
			case result.AtLeast:
				rate = found.Held
			}
			if found.Outcome != tt.want || math.Abs(rate-tt.rate) > tt.s.Precision*tt.rate || len(all) > tt.trials {
				t.Errorf("found %+v after %d trials", found, len(all))
			}
			for _, trial := range all {
				if trial.Rate < tt.s.From || trial.Rate > tt.s.limit() {
					t.Errorf("a trial at %g/s", trial.Rate)
				}
			}
		})
	}
}

// TestFindUnbounded has trials of which those that did not hold do not count, as a lower rate did not hold either right after them.
func TestFindUnbounded(t *testing.T) {
	s := Settings{From: 100, Precision: 0.02}
	trials := []result.Trial{{Rate: 100, Rough: true, Verdict: result.Held}, {Rate: 200, Rough: true, Verdict: result.Held}, {Rate: 400, Rough: true, Verdict: result.Limited},
		{Rate: 200, Rough: true, Verdict: result.Limited}}
	if f := Find(s, trials); f.Outcome != result.GeneratorLimit || f.Knee != 0 || f.High != 0 || f.Low < 100 || f.Low > 200 || !strings.HasPrefix(f.Sentence(), "at least 1") {
		t.Errorf("%+v: %s", f, f.Sentence())
	}
	trials = append(trials[:3], result.Trial{Rate: 200, Rough: true, Verdict: result.Held}) // it was the rate
	if f := Find(s, trials); f.Outcome != result.GeneratorLimit || f.Knee < 200 || f.Knee > 400 || f.High < 300 {
		t.Errorf("%+v: %s", f, f.Sentence())
	}
}

// TestSearchGoesOn ends a search at each of its trials and goes on with it.
func TestSearchGoesOn(t *testing.T) {
	s := Settings{From: 10, Precision: 0.02}
	sharp := func(step Step) (result.Trial, error) {
		return (&target{knee: 345.03, rng: rand.New(rand.NewPCG(1, 1))}).run(step)
	}
	want := mustSearch(t, s, nil, sharp)
	for n := range want {
		made := 0
		up := errors.New("time is up")
		var before []result.Trial
		err := Search(s, nil, func(step Step) (result.Trial, error) {
			if made == n {
				return result.Trial{}, up
			}
			made++
			return sharp(step)
		}, func(all []result.Trial) error { before = all; return nil })
		if err != up || len(before) != n {
			t.Fatalf("%v after %d trials, want %d", err, len(before), n)
		}
		outcome := Find(s, before).Outcome
		if outcome != result.Unfinished && outcome != result.Imprecise {
			t.Errorf("after %d trials: %s", n, outcome)
		}
		if got := mustSearch(t, s, before, sharp); !slices.EqualFunc(got, want, func(a, b result.Trial) bool { return a.Rate == b.Rate && a.Verdict == b.Verdict }) {
			t.Errorf("after %d trials it went another way", n)
		}
	}
}

// TestSearchWaitsOut has a load generator that is disturbed for some trials near the knee, and then is not any more.
func TestSearchWaitsOut(t *testing.T) {
	f := &target{knee: 345.03, width: 0.01, rng: rand.New(rand.NewPCG(1, 1))}
	s := Settings{From: 10, Precision: 0.02}
	n := 0
	all := mustSearch(t, s, nil, func(step Step) (result.Trial, error) {
		trial, err := f.run(step)
		if n++; n > 12 && n <= 24 {
			trial.Verdict = result.Limited
		}
		return trial, err
	})
	if found := Find(s, all); found.Outcome != result.Found || found.Low > 345 || found.High < 345 {
		t.Errorf("found %+v after %d trials", found, len(all))
	}
}

func TestSearchEnds(t *testing.T) {
	s := Settings{From: 10, Precision: 0.002}
	rng := rand.New(rand.NewPCG(1, 1))
	all := mustSearch(t, s, nil, func(step Step) (result.Trial, error) { // a target of moods
		verdict := result.Held
		if rng.IntN(2) == 0 {
			verdict = result.Failed
		}
		return result.Trial{Rate: step.Rate, Rough: step.Rough, Verdict: verdict}, nil
	})
	if found := Find(s, all); len(all) > MaxTrials || found.Outcome == result.Found && found.High/found.Low > 1.0041 {
		t.Errorf("%d trials, found %+v", len(all), found)
	}
	broken := errors.New("disk full")
	if err := Search(s, nil, (&target{knee: 100, rng: rng}).run, func([]result.Trial) error { return broken }); err != broken {
		t.Error(err)
	}
}

func TestSettingsCheck(t *testing.T) {
	f := func(s Settings, want string) {
		t.Helper()
		err := s.Check()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%+v: %v, want %q", s, err, want)
		}
	}
	f(Settings{10, 0, 0.02}, "")
	f(Settings{10, 10, 0.5}, "")
	f(Settings{0, 0, 0.02}, "lowest")
	f(Settings{math.NaN(), 0, 0.02}, "lowest")
	f(Settings{1e7, 0, 0.02}, "lowest")
	f(Settings{10, -1, 0.02}, "highest")
	f(Settings{10, 9, 0.02}, "below")
	f(Settings{10, 0, 0}, "precision")
	f(Settings{10, 0, 0.6}, "precision")
}

func TestRound(t *testing.T) {
	for rate, want := range map[float64]float64{10: 10, 0.0123456: 0.01235, 345.678: 345.7, 12345.6: 12350, 999.96: 1000} {
		if got := round(rate); math.Abs(got/want-1) > 1e-9 {
			t.Errorf("%g: %g, want %g", rate, got, want)
		}
	}
}
