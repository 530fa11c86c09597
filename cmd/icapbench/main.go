// Command icapbench sends ICAP requests to a gateway or a server, one or many, and plays the DLP server behind it.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/alecthomas/kong"

	"icapgate/bench"
	"icapgate/cmd/completion"
)

// Exit codes, as the help of each command tells them.
const (
	exitOK       = 0
	exitFailure  = 1 // send: output not written; load: a request failed; serve: not listening
	exitUsage    = 2 // flags, arguments, files that cannot be read
	exitConnect  = 3 // no connection, no TLS
	exitNoAnswer = 4 // the connection ended or stood still before the answer was complete
	exitFraming  = 5 // the answer is malformed or was not allowed
	exitStatus   = 6 // an ICAP status of 400 and more

	exitCondition = 7 // load, report: a condition of --fail-if holds

	exitGenerator = 8 // capacity: the load generator was the limit
	exitImprecise = 9 // capacity: time was up

	exitInterrupted = 130 // load, capacity: ended by a signal, as shells have it
)

type cli struct {
	Send     sendCmd     `cmd:"" help:"Send one file as an ICAP client would, and print the exchange and the verdict."`
	Load     loadCmd     `cmd:"" help:"Make a load and measure it."`
	Capacity capacityCmd `cmd:"" help:"Find the highest rate at which a target holds an SLO."`
	Report   reportCmd   `cmd:"" help:"Merge, compare and show the results of loads."`
	Serve    serveCmd    `cmd:"" help:"Be one or more fake DLP servers."`

	Completion completion.Command `cmd:"" help:"Print a script that completes this command line in a shell."`
}

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	var commands cli
	code := -1
	parser, err := kong.New(&commands,
		kong.Name("icapbench"),
		kong.Description("A client, a load generator and a fake server for ICAP and secure ICAP.\n\n`icapbench COMMAND --help` has examples and exit codes."),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 120}),
		kong.Exit(func(c int) { code = c }),
	)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	ctx, err := parser.Parse(args)
	if code >= 0 { // the help was printed
		return code
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "icapbench: %v\nTry 'icapbench --help'.\n", err)
		return exitUsage
	}
	if err := ctx.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "icapbench: %v\n", err)
		return exitCode(err)
	}
	return exitOK
}

// exitError is an error with an exit code of its own.
type exitError struct {
	error
	code int
}

func (e *exitError) Unwrap() error { return e.error }

func usageError(err error) error { return &exitError{err, exitUsage} }

// exitCode returns the exit code that tells what went wrong.
func exitCode(err error) int {
	var own *exitError
	if errors.As(err, &own) {
		return own.code
	}
	var failed *bench.Error
	if !errors.As(err, &failed) {
		return exitFailure
	}
	switch failed.Kind {
	case bench.Connect, bench.Handshake:
		return exitConnect
	case bench.Timeout, bench.Closed, bench.Truncated:
		return exitNoAnswer
	case bench.Framing:
		return exitFraming
	case bench.Status:
		return exitStatus
	case bench.Input:
		return exitUsage
	}
	return exitFailure
}
