// Package options makes one answer to OPTIONS out of those of many servers, so that a client sees one service, whichever of them
// gets its requests (RFC 3507 4.10). It is pure: what the servers have said comes in, what the gateway says goes out.
package options
