// Command compare measures icapgate against the HAProxy, nginx (stream) and stunnel that are installed, all in one run.
//
//	go run ./bench/compare                                   every row, 15 rounds
//	go run ./bench/compare --rows reqmod-1k,reqmod-10m       some of them
//
// It builds icapgate and icapbench from this checkout, starts fake DLP servers and all gateways in front of them, and makes the
// same load on each in turn: a round measures every gateway once, in an order that rotates, so that what else happens on the
// machine hits all alike. What counts is the CPU time of a gateway's processes, by the kernel's clock of each; client and
// servers share the machine and are not counted. Absolute figures drift from run to run: only ratios within one run mean
// anything.
//
// Opening connections is measured apart, with one request on each, and taken off, except in the row that is about it. All
// gateways use the same certificate (ECDSA P-256), TLS 1.3, X25519 and AES-128-GCM, which is checked before the run. The
// gateways that only copy bytes choose a server for each connection, icapgate for each request. icapgate writes its access log to a file,
// the others write none.
//
// The exit code is 0 if everything was measured, whatever the ratios are, 1 if anything failed, 2 for wrong usage.
package main
