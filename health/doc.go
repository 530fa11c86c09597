// Package health finds out which servers may get requests.
//
// Two things are known of a server, and they are kept apart. State is what the active checks say. AdminState is what an operator
// wants. Beside them stands the grace: while a gateway starts and none of a pool's servers has answered yet, they are all used rather
// than none.
//
//	State      checking     no verdict yet: the first success makes it up, fall failures in a row make it down
//	           up           fall failures in a row make it down
//	           down         rise successes in a row make it up
//	AdminState ready        the checks decide
//	           drain        no new requests, those that run go on; still checked
//	           maintenance  as drain, and not checked; it starts again as checking
//
// Whether a server is usable:
//
//	State      AdminState          grace   usable
//	checking   ready               no      no
//	checking   ready               yes     yes
//	up         ready               any     yes
//	down       ready               any     no
//	any        drain, maintenance  any     no
//
// A usable server is still not used for a path that it has answered with 404, as long as it does; see Status.Usable. One that does not name
// a method that is routed to a path is the last to be used for it; see Status.Lacks.
//
// Who does what: a Checker is one goroutine per server. It asks (round.go, answer.go), judges the answers by rise and fall (machine.go),
// keeps what the server says of itself (options.go), says what is wrong in words that help (fault.go), logs changes, and writes the
// server's Status. Loops read the Status without a lock at every pick, and call Checker.Expedite when they see a connection fail, so
// that the next check comes at once. A Group holds the servers of one pool together for the grace.
package health
