package capacity

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"icapgate/bench/load"
	"icapgate/bench/result"
)

// Config says what is searched, and how.
type Config struct {
	Load load.Config // of every trial; the search sets its rate, times and seed
	SLO  []result.Condition
	Settings

	Requests string // a digest of what Load sends beyond what its figures say, so that no other search is gone on with; "": not known

	Budget time.Duration // no trial begins that would end later; of this session, if a search is gone on with
	Trial  time.Duration // length of a trial, Settle included; 0: it follows from Budget
	Settle time.Duration // at the begin of a trial, that is left out; 0: a fifth of Trial

	Say  func(string)                 // takes a line for people before and after each trial; nil: nobody listens
	Save func(*result.Capacity) error // after each trial; nil: it is not saved. Its error ends the search
}

const (
	minTrial       = 2 * time.Second
	trialsInBudget = 30 // that a search needs
	stretch        = 3  // times as long as planned is a trial at most, so that its figures mean something

	roughShare    = 4 // a short trial is that part of a long one
	roughRequests = 200
	leastRequests = 10 // in any trial, however long that takes: one without a request would seem to have failed

	idleRequests  = 10 // that show what the target needs when it is idle
	probeRequests = 3  // that show whether it is idle again
	probePause    = 200 * time.Millisecond
	maxDrain      = 30 * time.Second // for the target to get idle
)

// ErrNoConnection says that the target can't be reached.
var ErrNoConnection = errors.New("no connection was made")

// errBudget ends a search that has no time for another trial.
var errBudget = errors.New("time is up")

// SetDefaults fills in the times that follow from others.
func (cfg *Config) SetDefaults() {
	cfg.Trial = cmp.Or(cfg.Trial, max(cfg.Budget/trialsInBudget, minTrial).Round(100*time.Millisecond))
	cfg.Settle = cmp.Or(cfg.Settle, cfg.Trial/5)
}

// Check says what makes no sense.
func (cfg *Config) Check() error {
	if err := cfg.Settings.Check(); err != nil {
		return err
	}
	latency := false
	for _, c := range cfg.SLO {
		if !c.Upper() && !c.OnRate() {
			return fmt.Errorf("an SLO says what has to hold, such as p99<50ms; %q is what is not to be", c)
		}
		latency = latency || c.OnLatency()
	}
	switch {
	case !latency:
		return errors.New("the SLO needs a limit for the latency, such as p99<1s: a target that falls behind for ever may never fail")
	case cfg.Budget <= 0:
		return errors.New("the budget must be above 0")
	case cfg.Trial <= cfg.Settle || cfg.Settle < 0:
		return fmt.Errorf("a trial is %v long, which must be more than the %v of it to settle", cfg.Trial, cfg.Settle)
	case cfg.Trial > cfg.Budget:
		return fmt.Errorf("one trial is %v long, the budget is %v", cfg.Trial, cfg.Budget)
	case cfg.least(cfg.From) > cfg.Budget:
		return fmt.Errorf("a trial of %d requests at the lowest rate, %g/s, is %v long, the budget is %v: have a larger one, or begin at a higher rate",
			leastRequests, cfg.From, cfg.least(cfg.From), cfg.Budget)
	}
	return nil
}

// setup is what a report says of the configuration.
func (cfg *Config) setup() result.CapacitySetup {
	arrivals := "constant"
	if cfg.Load.Poisson {
		arrivals = "poisson"
	}
	return result.CapacitySetup{
		Target: cfg.Load.Target.URI, Scenario: cfg.Load.Name, Requests: cfg.Requests, TLS: cfg.Load.TLS != nil, Connections: cfg.Load.Connections, Arrivals: arrivals, SLO: cfg.SLO,
		From: cfg.From, To: cfg.To, Precision: cfg.Precision, Trial: cfg.Trial.Seconds(), Settle: cfg.Settle.Seconds(),
	}
}

// Run searches until the knee is known, the budget is used up or ctx ends, and returns what is known then. before, if not nil, is a search
// to go on with. Its error says that the configuration makes no sense or that the search could not go on; what is known
// by then is returned with it.
func Run(ctx context.Context, cfg Config, before *result.Capacity) (*result.Capacity, error) {
	if before != nil { // times are those that the trials have had
		cfg.Trial, cfg.Settle = seconds(before.Setup.Trial), seconds(before.Setup.Settle)
	}
	cfg.SetDefaults()
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if cfg.Say == nil {
		cfg.Say = func(string) {}
	}
	s := &search{cfg: &cfg, start: time.Now()}
	if before == nil {
		s.report = &result.Capacity{Format: result.CapacityFormat, Setup: cfg.setup(), Started: s.start}
	} else {
		if err := same(&before.Setup, cfg.setup()); err != nil {
			return nil, err
		}
		again := *before
		again.Setup, again.Trials = cfg.setup(), slices.Clone(before.Trials)
		s.report = &again
		s.spent = seconds(before.Seconds)
	}
	if err := s.measureIdle(ctx); err != nil {
		return s.report, err
	}
	err := Search(cfg.Settings, s.report.Trials, func(step Step) (result.Trial, error) { return s.trial(ctx, step) }, s.keep)
	s.conclude()
	if errors.Is(err, errBudget) || ctx.Err() != nil {
		err = nil
	}
	return s.report, err
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// same says what a search cannot be gone on with for.
func same(before *result.CapacitySetup, now result.CapacitySetup) error {
	var differ []string
	check := func(what string, a, b any) {
		if fmt.Sprint(a) != fmt.Sprint(b) {
			differ = append(differ, fmt.Sprintf("%s: %v, now %v", what, a, b))
		}
	}
	check("target", before.Target, now.Target)
	check("scenario", before.Scenario, now.Scenario)
	if before.Requests != "" && before.Requests != now.Requests {
		differ = append(differ, "requests: the scenario or the flags for requests and connections have changed")
	}
	check("TLS", before.TLS, now.TLS)
	check("connections", before.Connections, now.Connections)
	check("arrivals", before.Arrivals, now.Arrivals)
	check("SLO", before.SLO, now.SLO)
	if len(differ) > 0 {
		return fmt.Errorf("that search was another one: %s", strings.Join(differ, "; "))
	}
	return nil
}

// search is a running Run.
type search struct {
	cfg    *Config
	report *result.Capacity
	start  time.Time
	spent  time.Duration // in earlier sessions
	idle   time.Duration // the longest time that the target takes when it is idle
	loads  int           // that were made
	doubt  string        // why the next trial may not stand for itself
}

// conclude writes down what is known by now.
func (s *search) conclude() {
	s.report.Seconds = (s.spent + time.Since(s.start)).Seconds()
	s.report.Finding = Find(s.cfg.Settings, s.report.Trials)
}

// length returns how long a trial is to be.
func (s *search) length(step Step) time.Duration {
	if step.Rough {
		length := max(s.cfg.Trial/roughShare, minTrial/2)
		return s.stretched(length, step.Rate, roughRequests/step.Rate)
	}
	enough := 0.0
	for _, c := range s.cfg.SLO {
		enough = max(enough, float64(c.Needs())/step.Rate, c.Backlog().Seconds()/s.cfg.Precision)
	}
	return s.stretched(s.cfg.Trial, step.Rate, enough)
}

// stretched makes a trial longer so that its figures stand for enough seconds, if that is not too long.
func (s *search) stretched(length time.Duration, rate, enough float64) time.Duration {
	return max(length, min(s.cfg.settled(enough), stretch*length), s.cfg.least(rate)).Round(time.Millisecond)
}

// settled returns how long a trial is of which so many seconds count.
func (cfg *Config) settled(enough float64) time.Duration {
	return seconds(min(enough*float64(cfg.Trial)/float64(cfg.Trial-cfg.Settle), 1e6))
}

// least returns the least length of a trial at a rate.
func (cfg *Config) least(rate float64) time.Duration { return cfg.settled(leastRequests / rate) }

// trial makes one trial.
func (s *search) trial(ctx context.Context, step Step) (result.Trial, error) {
	trials := s.report.Trials
	if n := len(trials); n > 0 && trials[n-1].Verdict != result.Held {
		if err := s.drain(ctx); err != nil {
			return result.Trial{}, err
		}
	}
	// A disturbance of the load generator is given the longer to pass the more often it was seen.
	pause(ctx, time.Duration(limitedInRow(trials))*time.Second)
	length := s.length(step)
	left := s.cfg.Budget - time.Since(s.start)
	if left < length {
		return result.Trial{}, errBudget
	}
	s.cfg.Say(fmt.Sprintf("trial %d: %s/s for %v, %v left", len(trials)+1, result.Figure(step.Rate), length.Round(100*time.Millisecond), left.Round(time.Second)))
	t, err := s.measure(ctx, step, length)
	if err == nil {
		s.cfg.Say(t.Line())
	}
	return t, err
}

// keep writes down the trials, and what follows from them.
func (s *search) keep(trials []result.Trial) error {
	s.report.Trials = trials
	s.conclude()
	if s.cfg.Save == nil {
		return nil
	}
	return s.cfg.Save(s.report)
}

// measure runs a trial and judges it.
func (s *search) measure(ctx context.Context, step Step, length time.Duration) (result.Trial, error) {
	cfg := s.cfg.Load
	cfg.WarmUp = time.Duration(float64(length) * float64(s.cfg.Settle) / float64(s.cfg.Trial)).Round(time.Millisecond)
	cfg.Requests, cfg.Duration = 0, 0
	cfg.Stages = load.Constant(step.Rate, length-cfg.WarmUp)
	cfg.Seed += uint64(len(s.report.Trials)) // so that each has arrivals of its own

	running, cut := context.WithCancel(ctx)
	defer cut()
	t := result.Trial{Rate: step.Rate, Rough: step.Rough, Verdict: result.Held}
	total := int64(step.Rate * (length - cfg.WarmUp).Seconds())
	show := cfg.Progress
	cfg.Progress = func(r *result.Result) {
		if show != nil {
			show(r)
		}
		if broken := lost(s.cfg.SLO, r, step.Rate, total); len(broken) > 0 && !t.Cut {
			t.Cut, t.Broken = true, broken
			cut()
		}
	}
	r, err := s.load(running, cfg)
	if err != nil {
		return t, err
	}
	if ctx.Err() != nil {
		return t, ctx.Err()
	}
	t.Result = r
	if !t.Cut {
		for _, c := range s.cfg.SLO {
			if holds, value := c.Holds(r); !holds {
				t.Broken = append(t.Broken, result.Broken{Condition: c.String(), Value: value})
			}
		}
	}
	s.judge(&t, total)
	return t, nil
}

// judge gives a trial its verdict, and notes what limits its worth.
func (s *search) judge(t *result.Trial, total int64) {
	r := t.Result
	if s.doubt != "" {
		t.Notes = append(t.Notes, s.doubt)
		s.doubt = ""
	}
	if len(t.Broken) > 0 {
		t.Verdict = result.Failed
		if s.disturbed(r) {
			t.Verdict = result.Limited
			t.Notes = append(t.Notes, "load generator: "+strings.Join(r.Generator.Limited, ", "))
		}
		if s.waitedForConnections(r) {
			t.Notes = append(t.Notes, fmt.Sprintf("all %d connections were busy, though the target was as fast as when it is idle: more of them may carry more",
				s.cfg.Load.Connections))
		}
	}
	if t.Rough {
		return
	}
	measured := float64(total) / t.Rate
	for _, c := range s.cfg.SLO {
		if few := c.Few(total); few != "" {
			t.Notes = append(t.Notes, few)
		}
		if least := c.Backlog().Seconds() / measured; t.Verdict == result.Held && least > 1.05*s.cfg.Precision {
			t.Notes = append(t.Notes, fmt.Sprintf("an overload below %.2g %% would not have shown in %.3g s, as it takes longer to break %s", 100*least, measured, c))
		}
	}
}

// disturbed says whether the load generator may be why the SLO was broken. A few late sends are not if many more requests broke it.
func (s *search) disturbed(r *result.Result) bool {
	late := r.Late.Generator
	if len(r.Generator.Limited) != 1 || float64(late) <= load.LateShare*float64(r.Begun) {
		return len(r.Generator.Limited) > 0
	}
	bad := int64(0)
	for _, c := range s.cfg.SLO {
		if limit := c.Backlog(); limit > 0 {
			bad = max(bad, r.Latency.Above(limit))
		}
	}
	return 2*late >= bad+r.Failed
}

// waitedForConnections says whether requests were late for want of a free connection, while the target was as fast as when it was idle.
func (s *search) waitedForConnections(r *result.Result) bool {
	return r.Late.Waited > r.Late.Generator && r.Service.Quantile(50) <= s.idle+time.Millisecond
}

// lost returns the conditions that can't hold any more in a trial that is to have total requests.
func lost(slo []result.Condition, r *result.Result, rate float64, total int64) (broken []result.Broken) {
	overdue := func(limit time.Duration) int64 { // planned before that, and not done; less what chance may bring late
		planned := min(rate*(r.Seconds-limit.Seconds()), float64(total))
		return int64(max(0, planned-4*math.Sqrt(max(planned, 0))-float64(r.Requests+r.Failed)))
	}
	for _, c := range slo {
		if !c.Lost(r, total, overdue) {
			continue
		}
		_, value := c.Holds(r)
		if n := int64(rate*r.Seconds) - r.Requests - r.Failed; n > 0 {
			value += fmt.Sprintf(" and %d requests behind", n)
		}
		broken = append(broken, result.Broken{Condition: c.String(), Value: value})
	}
	return broken
}

// measureIdle learns how long the target takes when it has nothing else to do, and that it works at all.
func (s *search) measureIdle(ctx context.Context) error {
	r, err := s.probe(ctx, idleRequests)
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return nil
	case r.Dials == 0:
		return ErrNoConnection
	case r.Failed > 0:
		return fmt.Errorf("%d of %d requests, one after the other, failed: %s", r.Failed, r.Requests+r.Failed, examples(r))
	}
	s.idle = r.Service.Max()
	s.cfg.Say(fmt.Sprintf("idle, the target takes %s, at most %s", result.Time(r.Service.Quantile(50)), result.Time(s.idle)))
	return nil
}

func examples(r *result.Result) string {
	var list []string
	for _, kind := range slices.Sorted(maps.Keys(r.Errors)) {
		list = append(list, fmt.Sprintf("%s: %s", kind, r.Errors[kind].Example))
	}
	return strings.Join(list, "; ")
}

// drain waits until the target is as fast as when it was idle. One that isn't for long casts doubt on the next trial.
func (s *search) drain(ctx context.Context) error {
	limit := 2*s.idle + 10*time.Millisecond
	start := time.Now()
	patience := min(maxDrain, s.cfg.Budget-start.Sub(s.start))
	for {
		r, err := s.probe(ctx, probeRequests)
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case r.Dials > 0 && r.Failed == 0 && r.Service.Max() <= limit:
			return nil
		case time.Since(start) < patience:
		case r.Dials == 0:
			return fmt.Errorf("the target is gone: %w for %v", ErrNoConnection, patience.Round(time.Second))
		case r.Failed > 0:
			s.doubt = fmt.Sprintf("%v after the trial before, requests still failed: %s", patience.Round(time.Second), examples(r))
			return nil
		default:
			s.doubt = fmt.Sprintf("%v after the trial before, a request still took %s, idle %s", patience.Round(time.Second), result.Time(r.Service.Max()), result.Time(s.idle))
			return nil
		}
		pause(ctx, probePause)
	}
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// probe makes some requests one after the other, each time the same, or fewer if they take longer than a trial.
func (s *search) probe(ctx context.Context, requests int64) (*result.Result, error) {
	cfg := s.cfg.Load
	cfg.Connections, cfg.Stages, cfg.WarmUp, cfg.Duration, cfg.Requests, cfg.Progress = 1, nil, 0, s.cfg.Trial, requests, nil
	return s.load(ctx, cfg)
}

// load runs a load, whose incidents have ids of their own.
func (s *search) load(ctx context.Context, cfg load.Config) (*result.Result, error) {
	if cfg.IncidentHeader != "" {
		s.loads++
		cfg.IncidentRun = fmt.Sprintf("%sx%d", cfg.IncidentRun, s.loads)
		if err := cfg.Mix.SetRun(cfg.IncidentRun); err != nil {
			return nil, err
		}
	}
	return load.Run(ctx, cfg)
}
