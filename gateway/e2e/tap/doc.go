// Package tap listens in on ICAP connections. A Tap stands between two programs, forwards what they say byte for byte, and reads it with a strict
// parser. It is for tests: before a server it shows what the gateway sends to it, before the gateway what the gateway tells its clients.
//
// The parser was written from RFC 3507 alone and shares no code with package icap, so that a misreading of the protocol is not made twice. It knows
// one spelling of everything, the one that all servers read alike, and has a [Rule] for each way to depart from it. What departs and has one
// meaning only is reported and read on; what may mean two things ends the reading of that direction.
//
// Whose fault is a departure? Of the two programs one is the gateway, and its departures are faults. Those of the other are remarks: the gateway has to
// cope with them.
//
// A body is hashed while it passes, and what is kept of a message is bounded, so exchanges may be of any size and number.
package tap
