package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// versionCommand shows what was built from what.
type versionCommand struct{}

// Help is shown by icapgate version --help.
func (versionCommand) Help() string {
	return `Example:

    icapgate version`
}

// Run is called by kong.
func (versionCommand) Run(s streams) error {
	fmt.Fprintf(s.out, "icapgate %s (%s, %s/%s)\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return nil
}

// version is the tag or the revision that the go command has put into the binary.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
