// Package e2e holds the tests of the whole gateway against the programs that it meets in the field: c-icap as a server,
// c-icap-client and Squid as clients, stunnel on either side. They run as child processes on loopback, each with a folder and a
// port of its own. A test whose program is not installed is skipped; with ICAPGATE_REQUIRE_PEERS=1 in the environment it fails.
//
// Taps (package tap) stand before the servers and before the gateway, and want all that the gateway says to be canonical.
package e2e
