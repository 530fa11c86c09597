package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"icapgate/bench/load"
	"icapgate/bench/report"
	"icapgate/bench/result"
	"icapgate/bench/scenario"
)

type loadCmd struct {
	URI string `arg:"" help:"ICAP URI of the target."`

	Duration time.Duration `short:"d" help:"Time after which no request begins. Default: 10s, unless --requests or --stages is given." group:"How much"`
	Requests int64         `short:"n" help:"Requests in all." group:"How much"`
	Rate     float64       `short:"r" placeholder:"N" help:"Open loop: requests per second, whatever the target does. Default: each connection as fast as answers come." group:"How much"`
	Stages   []stage       `placeholder:"TIME:RATE" help:"Open loop in stages: ramps from the rate before (at first --rate, or 0) to RATE in TIME; 0s:RATE is a step. Such as 30s:100,2m:1000." group:"How much"`
	WarmUp   time.Duration `placeholder:"TIME" help:"Time before the figures count, at the rate that the run begins with." group:"How much"`
	StartAt  startTime     `placeholder:"TIME" help:"When to begin, so that several machines do together: 15:04:05, or 2006-01-02T15:04:05Z." group:"How much"`

	FailIf  []string `name:"fail-if" sep:"none" placeholder:"CONDITION" help:"Exit with 7 if the result is like that: 'p99>50ms', 'errors>0.1%'. Errors are tolerated otherwise. Repeatable." group:"Result"`
	Label   string   `placeholder:"NAME" help:"Name of the run or the machine in reports." group:"Result"`
	JSON    string   `name:"json" placeholder:"FILE" help:"Write the result to FILE as JSON, for icapbench report." group:"Result"`
	HTML    string   `name:"html" placeholder:"FILE" help:"Write a page with charts to FILE." group:"Result"`
	Metrics string   `name:"metrics-address" placeholder:"HOST:PORT" help:"Serve the figures so far for Prometheus, at /metrics." group:"Result"`

	requestFlags
}

func (*loadCmd) Help() string {
	return `With --rate or --stages the loop is open: requests are planned by the clock, and their latency counts from the planned time, so that what
they wait for a slow target is seen. Without, the loop is closed: a connection sends its next request when it has the answer to
the last one. What comes back is checked: the status, the framing to the last byte, and bodies byte by byte.

Examples:

    icapbench load icaps://127.0.0.1:11344/reqmod --insecure
    icapbench load icaps://gate.example:11344/reqmod --ca ca.pem -c 64 --rate 2000 -d 1m --warm-up 5s --html report.html
    icapbench load icaps://gate.example:11344/reqmod --ca ca.pem --profile zscaler --rate 500 -d 5m --fail-if 'p99>50ms'
    icapbench load icaps://gate.example:11344/ --ca ca.pem --scenario day.yaml --stages 5m:1000,10m:1000,1m:0 --json day.json
    icapbench load icap://127.0.0.1:1344/respmod -m respmod -s 10MB -c 4 -n 100
    icapbench load icaps://127.0.0.1:11344/reqmod --insecure --new-connection-every 1 --resume 0.5
    icapbench load icaps://127.0.0.1:11344/reqmod --insecure --rate 100 --fault slow_body=2% --fault abort_body=1%

Exit codes:

    0    every request was answered as it should be; with --fail-if: no condition holds
    1    a request was not, and there is no --fail-if; or a file could not be written
    2    wrong usage
    3    no connection was made
    7    a condition of --fail-if holds
    130  ended by a signal (the report is whole), and neither 1 nor 7`
}

func (c *loadCmd) Run() error {
	conditions, err := parseConditions(c.FailIf)
	if err != nil {
		return usageError(err)
	}
	cfg, s, err := c.config(c.URI)
	if err != nil {
		return usageError(err)
	}
	if len(conditions) == 0 {
		if conditions, err = parseConditions(s.FailIf); err != nil {
			return usageError(err)
		}
	}
	if err := knowEntries(conditions, entryNames(cfg.Mix)); err != nil {
		return usageError(err)
	}
	if err := c.plan(&cfg, s); err != nil {
		return usageError(err)
	}
	if err := twoFiles(c.JSON, c.HTML); err != nil {
		return usageError(err)
	}
	for _, path := range []string{c.JSON, c.HTML} { // before the load, so that it is not made in vain
		if err := writable(path); err != nil {
			return usageError(err)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process
	defer stop()

	live, err := serveMetrics(c.Metrics)
	if err != nil {
		return usageError(err)
	}
	defer live.close()
	show := newProgress(&cfg)
	cfg.Progress = func(r *result.Result) {
		live.set(r)
		show.update(r)
	}
	r, err := load.Run(ctx, cfg)
	show.finish()
	if err != nil {
		return usageError(err)
	}
	r.Version = version()
	r.Print(os.Stdout)
	if err := writeFile(c.JSON, r.Write); err != nil {
		return err
	}
	if err := writeFile(c.HTML, func(w io.Writer) error { return report.HTML(w, r, report.Verdicts{FailIf: conditions}) }); err != nil {
		return err
	}
	return verdict(r, conditions)
}

func entryNames(mix *scenario.Mix) []string {
	var names []string
	for _, e := range mix.Entries() {
		names = append(names, e.Name)
	}
	return names
}

// plan adds when requests begin, and for how long.
func (c *loadCmd) plan(cfg *load.Config, s *scenario.Scenario) error {
	cfg.Label, cfg.Requests, cfg.Duration, cfg.WarmUp, cfg.StartAt = c.Label, c.Requests, c.Duration, c.WarmUp, time.Time(c.StartAt)
	rate, stages := c.Rate, c.Stages
	if rate == 0 && stages == nil {
		rate = s.Rate
		for _, of := range s.Stages {
			stages = append(stages, stage{time.Duration(of.Duration), of.Rate})
		}
	}
	if cfg.Duration == 0 && cfg.Requests == 0 && c.Stages == nil { // stages have a length of their own
		cfg.Duration = time.Duration(s.Duration)
	}
	if cfg.Duration == 0 && cfg.Requests == 0 && stages == nil {
		cfg.Duration = 10 * time.Second
	}
	if cfg.WarmUp == 0 {
		cfg.WarmUp = time.Duration(s.WarmUp)
	}
	if !(rate >= 0) {
		return fmt.Errorf("bad rate %g: want requests per second, above 0", rate)
	}
	if rate > 0 {
		cfg.Stages = load.Constant(rate, 0)
	}
	for _, of := range stages {
		cfg.Stages = append(cfg.Stages, result.Stage{Seconds: of.length.Seconds(), Rate: of.rate})
	}
	return nil
}

// verdict returns the error that tells how the run ended.
func verdict(r *result.Result, conditions []result.Condition) error {
	switch {
	case r.Dials == 0 && !(r.Interrupted && r.Failed == 0): // ended before it connected
		return &exitError{fmt.Errorf("no connection was made to %s", r.Setup.Target), exitConnect}
	case len(conditions) > 0:
		if err := failIf(conditions, r); err != nil {
			return err
		}
	case r.Failed > 0:
		return fmt.Errorf("%d of %d requests failed", r.Failed, r.Failed+r.Requests)
	}
	if r.Interrupted {
		return &exitError{fmt.Errorf("ended by a signal after %.1f s", r.Seconds), exitInterrupted}
	}
	return nil
}

// writable says whether a file can be written, and makes it.
func writable(path string) error {
	if path == "" {
		return nil
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o666)
	if err != nil {
		return err
	}
	return file.Close()
}

// twoFiles says whether --json and --html name different files, if any.
func twoFiles(json, html string) error {
	if json != "" && json == html {
		return fmt.Errorf("--json and --html both write to %q", json)
	}
	return nil
}
