package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// trial is one of the things that can be tried.
type trial struct {
	name  string
	about string        // one line
	help  string        // what it does and claims, and examples
	limit time.Duration // of a run; the default of --timeout

	// flags defines the trial's own flags and returns what carries it out. An error means that it could not be; a claim that does
	// not hold is said to the rig.
	flags func(f *flag.FlagSet) func(ctx context.Context, r *rig) error
}

var trials = []*trial{
	calls,
	drain,
	slow,
	soak,
	reload,
	abuseTrial,
	failover,
	balance,
	cost,
	share,
	restarts,
	blackhole,
	faults,
	generators,
	rates,
	streams,
	unavailable,
}

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run carries out the trial that the arguments name.
func run(args []string, out, progress io.Writer) int {
	if len(args) > 0 && args[0] == serveArg {
		return serveStub(args[1:], out, progress)
	}
	if len(args) > 0 && args[0] == abuseArg {
		return abuseClients(args[1:], out, progress)
	}
	if len(args) == 0 || args[0] == "-h" || args[0] == "--help" || args[0] == "help" {
		printTrials(out)
		return exitOK
	}
	t := find(args[0])
	if t == nil {
		fmt.Fprintf(progress, "trial: no trial %q\n", args[0])
		printTrials(progress)
		return exitUsage
	}
	o, err := parseFlags(t, args[1:], progress)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(progress, "trial: %v\n", err)
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("not done after %v: see --timeout", o.timeout))
	defer cancel()
	if err := o.carryOut(ctx, out, progress); err != nil {
		fmt.Fprintf(progress, "trial: %s: %v\n", t.name, err)
		return exitFailure
	}
	return exitOK
}

func printTrials(w io.Writer) {
	fmt.Fprintf(w, "Usage: go run ./bench/trial NAME [flags]\n\nTrials:\n")
	for _, t := range trials {
		fmt.Fprintf(w, "  %-11s %s\n", t.name, t.about)
	}
	fmt.Fprintf(w, "\n'go run ./bench/trial NAME --help' says what one does, with its flags and examples.\n")
}

func find(name string) *trial {
	for _, t := range trials {
		if t.name == name {
			return t
		}
	}
	return nil
}

// options are what the flags say.
type options struct {
	trial   *trial
	run     func(ctx context.Context, r *rig) error
	timeout time.Duration
	json    string
	dir     string
}

func parseFlags(t *trial, args []string, help io.Writer) (*options, error) {
	o := &options{trial: t}
	flags := flag.NewFlagSet(t.name, flag.ContinueOnError)
	flags.SetOutput(help)
	flags.Usage = func() {
		fmt.Fprintf(help, "Usage: go run ./bench/trial %s [flags]\n\n%s\nFlags:\n", t.name, t.help)
		flags.PrintDefaults()
	}
	flags.DurationVar(&o.timeout, "timeout", t.limit, "end of the run, whatever is done")
	flags.StringVar(&o.json, "json", "", "`file` for the report")
	flags.StringVar(&o.dir, "dir", "", "`folder` for configuration, logs and programs, which then stay there (default one that goes with the run)")
	o.run = t.flags(flags)
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	return o, nil
}

// carryOut sets up a rig, tries what is to be tried, prints the verdict and leaves nothing behind.
func (o *options) carryOut(ctx context.Context, out, progress io.Writer) (err error) {
	var file *os.File
	if o.json != "" { // before the run, so that it is not made in vain
		if file, err = os.Create(o.json); err != nil {
			return err
		}
		defer file.Close()
	}
	report := newReport(o.trial.name, out)
	r, err := newRig(ctx, report, o.dir, progress)
	if err != nil {
		return err
	}
	err = o.run(ctx, r)
	r.close()
	if ctx.Err() != nil {
		err = fmt.Errorf("ended early: %w", context.Cause(ctx))
	}
	report.printVerdict(err)
	if file != nil {
		if err := errors.Join(report.writeJSON(file), file.Close()); err != nil {
			return fmt.Errorf("cannot write %q: %w", o.json, err)
		}
	}
	if err == nil && report.failed() {
		err = errors.New("not every claim held: see above")
	}
	return err
}
