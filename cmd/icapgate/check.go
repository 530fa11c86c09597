package main

import (
	"fmt"
	"time"

	"icapgate/configs"
)

// checkCommand parses, validates and lints a configuration and looks at the files that it names.
type checkCommand struct {
	Config string `short:"c" required:"" placeholder:"FILE" help:"Configuration to look at."`
}

// Help is shown by icapgate check --help.
func (checkCommand) Help() string {
	return `Every fault is printed as FILE:LINE: KEY: what is wrong, what is allowed. What is legal and unwise is a warning, on stderr.
The last line for a good configuration is "Configuration successful". Nothing is started, nothing is changed.

Examples:

    icapgate check --config /etc/icapgate/icapgate.yaml
    icapgate check -c new.yaml && systemctl reload icapgate

Exit codes:

    0    the configuration is good, perhaps with warnings
    1    it has faults
    2    the command line is wrong`
}

// Run is called by kong.
func (c *checkCommand) Run(s streams) error {
	_, warnings, err := load(c.Config)
	for _, w := range warnings {
		fmt.Fprintf(s.err, "warning: %v\n", w)
	}
	if err != nil {
		fmt.Fprintln(s.out, err)
		return errReported
	}
	fmt.Fprintln(s.out, "Configuration successful")
	return nil
}

// load reads a configuration and everything that it names. The error has every fault, one a line.
func load(path string) (*configs.Config, configs.Faults, error) {
	c, err := configs.Load(path)
	if err != nil {
		return nil, nil, err
	}
	faults, warnings := c.CheckFiles(time.Now())
	warnings = append(c.Lint(), warnings...)
	if len(faults) > 0 {
		return nil, warnings, faults
	}
	return c, warnings, nil
}
