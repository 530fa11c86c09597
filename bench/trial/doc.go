// Command trial proves under load, faults and abuse what tests have no time for.
//
//	go run ./bench/trial                     the list of trials
//	go run ./bench/trial drain --help        what one of them does, and its flags
//	go run ./bench/trial drain
//
// It builds icapgate from this checkout, makes a certificate, starts the gateway and fake DLP servers as processes of their own, makes
// load through them, does harm to them and looks at what comes of it: every answer, the memory and the descriptors of the gateway, its
// metrics. It prints what it saw and, for every claim, whether it held.
//
// A trial is a file with one value of type trial, listed in trials; it works with a rig and says what it finds to the rig's report.
//
// Every run ends within its --timeout. The exit code is 0 if every claim held, 1 if one did not or the trial could not be carried
// out, 2 for wrong usage.
package main
