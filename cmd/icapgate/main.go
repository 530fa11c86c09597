// Command icapgate is a gateway between ICAP clients and a cluster of DLP servers: it accepts secure and plain ICAP and gives
// every single request to the best server of a health-checked pool.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/alecthomas/kong"

	"icapgate/cmd/completion"
)

// Exit codes, which --help tells.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// commands is the command line.
type commands struct {
	Run   runCommand   `cmd:"" help:"Run the gateway."`
	Check checkCommand `cmd:"" help:"Look for faults in a configuration."`
	Cert  certCommand  `cmd:"" help:"Make a self-signed certificate."`

	Status      statusCommand      `cmd:"" help:"Show a running gateway: listeners, pools, servers."`
	Reload      reloadCommand      `cmd:"" help:"Have a running gateway read its configuration again."`
	Drain       drainCommand       `cmd:"" help:"Give a server no new requests."`
	Ready       readyCommand       `cmd:"" help:"Use a server again."`
	Maintenance maintenanceCommand `cmd:"" help:"Give a server no new requests, and no checks."`
	Weight      weightCommand      `cmd:"" help:"Set a server's share of the requests."`

	Version    versionCommand     `cmd:"" help:"Show the version."`
	Completion completion.Command `cmd:"" help:"Print a script that completes this command line in a shell."`
}

// Help is what follows the usage line of icapgate --help; kong sets indented lines as they are.
func (commands) Help() string {
	return `The front door of a cluster of DLP servers: icaps:// and icap:// in, every ICAP request to the best server of a pool.

Examples:

    icapgate run --demo                          see it work, without any configuration
    icapgate cert stunnel.pem                    a certificate for a first try
    icapgate check --config icapgate.yaml        is the configuration good?
    icapgate run --config icapgate.yaml
    icapgate status                              what does the running one do?
    icapgate drain 10.2.1.101:1344               let a server finish what it has

Exit codes:

    0    done
    1    failed: a fault in the configuration, or an error while running
    2    the command line is wrong`
}

// streams are where a command writes: what was asked for to out, the rest to err.
type streams struct{ out, err io.Writer }

// usageError is a command line that kong lets pass and that makes no sense all the same.
type usageError struct{ error }

// errReported is a failure that the command has described itself.
var errReported = errors.New("failed")

func main() {
	os.Exit(execute(os.Args[1:], streams{os.Stdout, os.Stderr}))
}

// execute runs one command line and returns its exit code.
func execute(args []string, s streams) int {
	parser := kong.Must(&commands{}, kong.Name("icapgate"), kong.Writers(s.out, s.err),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 120}), kong.Bind(s))
	command, err := parser.Parse(args)
	if err == nil {
		err = command.Run()
	} else {
		err = usageError{err}
	}
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintf(s.err, "icapgate: %v\nicapgate --help shows the commands.\n", err)
		return exitUsage
	case !errors.Is(err, errReported):
		fmt.Fprintf(s.err, "icapgate: %v\n", err)
	}
	return exitFailure
}
