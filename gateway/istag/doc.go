// Package istag gives a service one ISTag of the gateway's own (RFC 3507 4.7), whichever servers stand behind it.
//
// Clients drop all verdicts that they have kept when an ISTag changes. So the tag stands for what all configured servers have last said, also those
// that are down; it is held for a while before it follows them, so that an update of all servers, one after the other, is one change; and a server that
// has another tag in every answer has no say. The package does no I/O and has no clock: tests give it any moment.
package istag
