// Package health finds out which servers may get requests.
//
// Three things are known of a server, and they are kept apart. State is what the active checks say. AdminState is what an operator
// wants. Ejected is what the requests themselves say: it has failed too many of them, and is out for a time (passive health). Beside them stands the
// grace: while a gateway starts and none of a pool's servers has answered yet, they are all used rather than none.
//
//	State      checking     no verdict yet: the first success makes it up, fall failures in a row make it down
//	           up           fall failures in a row make it down
//	           down         rise successes in a row make it up
//	AdminState ready        the checks decide
//	           drain        no new requests, those that run go on; still checked
//	           maintenance  as drain, and not checked; it starts again as checking
//	Ejected    no           the checks decide
//	           yes          no new requests as long as another server is usable; still checked. It ends by time or, if no connection came about,
//	                        with a check that succeeds, and at once when an operator says ready
//
// Whether a server is usable:
//
//	State      AdminState          grace   ejected   usable
//	checking   ready               no      no        no
//	checking   ready               yes     no        yes
//	up         ready               any     no        yes
//	down       ready               any     any       no
//	any        drain, maintenance  any     any       no
//	any        any                 any     yes       no, but see Status.UsableButEjected
//
// With a Probe, a success is one of the checks and one of the probes, which have a rise and fall of their own; failures of either take a
// server down.
//
// A usable server is still not used for a path that it has answered with 404, as long as it does; see Status.Usable. One that does not name
// a method that is routed to a path is the last to be used for it; see Status.Lacks.
//
// Who does what: a Checker is one goroutine per server. It asks (round.go, probe.go, answer.go), judges the answers by rise and fall (machine.go),
// keeps what the server says of itself (options.go), says what is wrong in words that help (fault.go), logs changes, and writes the
// server's Status. Loops read the Status without a lock at every pick, and call Checker.Expedite when they see a connection fail, so
// that the next check comes at once. A Group holds the servers of one pool together for the grace, an Ejector for ejections
// (ejection.go), to which loops report what becomes of requests (traffic.go).
//
// Beside all this a server may be doubted (Status.Doubted): it has been asked, and nothing is heard of it yet. That is no state and counts in no table;
// it only makes the others a better choice for the moment.
package health
