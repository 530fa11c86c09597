package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"icapgate/configs"
	"icapgate/gateway"
)

// runCommand runs the gateway until a signal ends it.
type runCommand struct {
	Config string `short:"c" xor:"what" placeholder:"FILE" help:"Configuration to run."`
	Demo   bool   `xor:"what" help:"Run without a configuration, on loopback, with two fake DLP servers inside."`
}

// Help is shown by icapgate run --help.
func (runCommand) Help() string {
	return `Prints "icapgate ready" and the listeners on stdout once every listener accepts. Logs go to stderr.

Examples:

    icapgate run --demo
    icapgate run --config /etc/icapgate/icapgate.yaml

Signals:

    TERM, INT    drain: accept no client, end the running requests within drain_timeout, exit 0; one more, a second later,
                 ends at once
    HUP          reload: read the configuration and the certificates again and put them in force; a faulty one changes nothing
    USR1         open the file of the access log again, after a rotation

Exit codes:

    0    ended by a signal, after draining
    1    failed: a fault in the configuration, an address that cannot be listened on, or ended by a second signal
    2    the command line is wrong`
}

// Run is called by kong.
func (c *runCommand) Run(s streams) error {
	switch {
	case c.Demo:
		d, err := newDemo(demoAddresses)
		if err != nil {
			return err
		}
		defer d.close()
		return advise(d.run(s))
	case c.Config == "":
		return usageError{errors.New("nothing to run: icapgate run --config FILE runs the gateway with your configuration, " +
			"icapgate run --demo a demo on loopback that needs none")}
	}
	cfg, warnings, err := load(c.Config)
	if err != nil {
		fmt.Fprintln(s.err, err)
		return errReported
	}
	log := newLogger(cfg.Log, s.err)
	warn(log, warnings)
	again := func() (*configs.Config, error) {
		cfg, warnings, err := load(c.Config)
		if err == nil {
			warn(log, warnings)
		}
		return cfg, err
	}
	// One processor of the runtime more than there are loops: one that is idle keeps the runtime from taking a loop's processor away each
	// time that the loop waits for events, which cost a tenth of the CPU time under small requests (docs/ARCHITECTURE.md).
	loops := runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(loops + 1)
	g, err := gateway.New(cfg, gateway.Options{Logger: log, Version: version(), Load: again, Loops: loops})
	if err != nil {
		return advise(err)
	}
	return advise(serve(g, log, s.out, nil))
}

// warn logs what is legal and unwise.
func warn(log *slog.Logger, warnings configs.Faults) {
	for _, w := range warnings {
		log.Warn("configuration", "file", w.File, "line", w.Line, "key", w.Key, "text", w.Text)
	}
}

// advise adds what to do to errors about addresses.
func advise(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%w\nAnother program listens there, perhaps another icapgate: ss -ltnp shows which", err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%w\nThis machine does not have that address: ip address shows those it has", err)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w\nPorts below 1024 need root or the capability CAP_NET_BIND_SERVICE, a socket the right to write to its folder", err)
	}
	return err
}

// newLogger is the program's own log.
func newLogger(c configs.Log, to io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		panic("BUG: a level that validation let pass: " + c.Level)
	}
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "text" {
		return slog.New(slog.NewTextHandler(to, options))
	}
	return slog.New(slog.NewJSONHandler(to, options))
}

// sameOrder is the time within which a second signal belongs to the first: timeout(1) and others signal the process and its group.
const sameOrder = time.Second

// serve runs a gateway from start to drain. whenReady, if any, is called in between; its context ends with the first signal.
func serve(g *gateway.Gateway, log *slog.Logger, out io.Writer, whenReady func(context.Context) error) error {
	defer g.Close()
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1) // before there is something to drain
	signal.Ignore(syscall.SIGPIPE)                                                           // the reader of stdout may go, the gateway stays
	slog.SetDefault(log)                                                                     // libraries log there too
	if err := g.Start(); err != nil {
		return err
	}
	fmt.Fprintln(out, "icapgate ready", g.Listening())

	ended, end := context.WithCancel(context.Background())
	defer end()
	go obey(signals, log, orders{reload: g.Reload, reopen: g.ReopenLogs, end: end, exit: func() { os.Exit(exitFailure) }})
	if whenReady != nil {
		if err := whenReady(ended); err != nil && ended.Err() == nil {
			return err
		}
	}
	<-ended.Done()
	log.Info("draining")
	g.Drain(context.Background())
	log.Info("ended")
	return nil
}

// orders are what signals can ask for.
type orders struct {
	reload, reopen func() error
	end, exit      func() // drain and end; end at once
}

// obey calls end at the first signal to end, and exit at the second, which has to come a while later.
func obey(signals <-chan os.Signal, log *slog.Logger, o orders) {
	var ending time.Time // zero: no signal yet
	for s := range signals {
		switch {
		case s == syscall.SIGHUP:
			_ = o.reload() // it logs what came of it
		case s == syscall.SIGUSR1:
			if err := o.reopen(); err != nil {
				log.Error("the access log goes on in its old file", "error", err)
			} else {
				log.Info("log files reopened")
			}
		case ending.IsZero():
			log.Info("signal", "signal", s.String())
			ending = time.Now()
			o.end()
		case time.Since(ending) >= sameOrder:
			log.Warn("second signal: ending without draining", "signal", s.String())
			o.exit()
		}
	}
}
