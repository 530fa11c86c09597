package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"icapgate/bench/capacity"
	"icapgate/bench/report"
	"icapgate/bench/result"
)

type capacityCmd struct {
	URI string `arg:"" help:"ICAP URI of the target."`

	SLO       string        `name:"slo" required:"" sep:"none" placeholder:"CONDITIONS" help:"What has to hold, such as 'p99<50ms,errors<0.01%'. One of the conditions limits the latency." group:"Search"`
	From      float64       `default:"10" placeholder:"N" help:"Lowest rate that is tried, in requests per second. Default: 10." group:"Search"`
	To        float64       `placeholder:"N" help:"Highest rate that is tried. Default: no limit." group:"Search"`
	Precision share         `default:"2%" placeholder:"SHARE" help:"How far the result may be off, up or down. Default: 2%." group:"Search"`
	Budget    time.Duration `default:"10m" placeholder:"TIME" help:"Time for the search. Default: 10m." group:"Search"`
	Trial     time.Duration `placeholder:"TIME" help:"Length of a trial. Default: a 30th of the budget. It is up to 3 times as long where its figures would say little otherwise." group:"Search"`
	Settle    time.Duration `placeholder:"TIME" help:"Part of a trial that is left out at its begin. Default: a fifth." group:"Search"`

	JSON     string `name:"json" placeholder:"FILE" help:"Write the search to FILE as JSON, after each trial." group:"Result"`
	HTML     string `name:"html" placeholder:"FILE" help:"Write a page with charts to FILE." group:"Result"`
	Continue string `name:"continue" placeholder:"FILE" help:"Go on with the search of FILE, which --json has written, and write it there again. The target, the requests and the SLO have to be the same." group:"Search"`

	requestFlags
}

func (*capacityCmd) Help() string {
	return `Doubles the rate until the SLO is broken, and then tries rates around the knee until it is known as precisely as asked for. Near the knee a
trial holds or fails by chance; so the result is an interval, which all trials together support. A trial is ended as soon as it
can't hold any more, and the next one begins when the target is idle again.

The connections are the load's (--connections): have more than the rate times the latency, or as many as your clients have.

Examples:

    icapbench capacity icaps://gate.example:11344/reqmod --ca ca.pem --slo 'p99<50ms,errors<0.01%' -c 64
    icapbench capacity icaps://gate.example:11344/ --ca ca.pem --slo 'p99<1s,errors<0.1%' --profile zscaler -c 200 --arrivals poisson --budget 30m --json gate.json --html gate.html
    icapbench capacity icaps://gate.example:11344/ --ca ca.pem --slo 'p99<1s,errors<0.1%' --profile zscaler -c 200 --arrivals poisson --budget 30m --continue gate.json

Exit codes:

    0    the capacity was found, or the highest rate (--to) holds
    1    even the lowest rate (--from) fails; or the target does not answer as it should; or a file could not be written
    2    wrong usage
    3    no connection was made
    8    the load generator was the limit
    9    time was up before the capacity was known as precisely as asked for
    130  ended by a signal`
}

func (c *capacityCmd) Run() error {
	cfg, err := c.config()
	if err != nil {
		return usageError(err)
	}
	path := c.JSON
	var before *result.Capacity
	if c.Continue != "" {
		if before, err = result.ReadCapacity(c.Continue); err != nil {
			return usageError(err)
		}
		if path == "" {
			path = c.Continue
		}
	} else if err := writable(c.JSON); err != nil {
		return usageError(err)
	}
	if err := twoFiles(path, c.HTML); err != nil {
		return usageError(err)
	}
	if err := writable(c.HTML); err != nil {
		return usageError(err)
	}
	cfg.Save = func(found *result.Capacity) error {
		found.Version = version()
		if path == "" {
			return nil
		}
		return found.Save(path)
	}
	var clear func()
	cfg.Load.Progress, cfg.Say, clear = showTrials()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process
	defer stop()

	found, failed := capacity.Run(ctx, cfg, before)
	clear()
	if found == nil {
		return usageError(failed)
	}
	if failed == nil || len(found.Trials) > 0 {
		found.Print(os.Stdout)
		if err := cfg.Save(found); err != nil { // it may have ended in the first trial
			return err
		}
		if err := writeFile(c.HTML, func(w io.Writer) error { return report.Capacity(w, found) }); err != nil {
			return err
		}
	}
	switch {
	case errors.Is(failed, capacity.ErrNoConnection):
		return &exitError{fmt.Errorf("%s: %w", cfg.Load.Target.Address, failed), exitConnect}
	case failed != nil:
		return failed
	case ctx.Err() != nil:
		return &exitError{errors.New("ended by a signal"), exitInterrupted}
	}
	return outcome(&found.Finding)
}

// config returns what is searched.
func (c *capacityCmd) config() (capacity.Config, error) {
	cfg := capacity.Config{
		Settings: capacity.Settings{From: c.From, To: c.To, Precision: float64(c.Precision)},
		Budget:   c.Budget, Trial: c.Trial, Settle: c.Settle,
	}
	var err error
	if cfg.SLO, err = result.ParseConditions(c.SLO); err != nil {
		return cfg, err
	}
	if cfg.Load, _, err = c.requestFlags.config(c.URI); err != nil {
		return cfg, err
	}
	if cfg.Requests, err = c.digest(); err != nil {
		return cfg, err
	}
	return cfg, knowEntries(cfg.SLO, entryNames(cfg.Load.Mix))
}

// outcome returns the error that tells how a search has ended, nil if it was successful.
func outcome(f *result.Finding) error {
	switch f.Outcome {
	case result.Found, result.AtLeast:
		return nil
	case result.Below:
		return fmt.Errorf("the capacity is %s", f.Sentence())
	case result.GeneratorLimit:
		return &exitError{errors.New("the load generator was the limit"), exitGenerator}
	}
	return &exitError{errors.New("time was up; go on with --continue, or have a larger --budget"), exitImprecise}
}

// showTrials returns what shows on stderr how a search goes: a line before and after each trial, and on a terminal the figures so far between them.
func showTrials() (update func(*result.Result), say func(string), clear func()) {
	if info, err := os.Stderr.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return nil, func(line string) { fmt.Fprintln(os.Stderr, line) }, func() {}
	}
	const clearLine = "\r\x1b[K"
	return func(r *result.Result) { fmt.Fprint(os.Stderr, clearLine, r.Now()) },
		func(line string) { fmt.Fprintln(os.Stderr, clearLine+line) },
		func() { fmt.Fprint(os.Stderr, clearLine) }
}
