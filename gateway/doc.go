// Package gateway is icapgate's data path and what belongs to it: listeners, handshakes, loops, sessions,
// transactions and attempts.
//
// The data path, in the order in which data flows:
//
//	listener.accept       allow-list; the accept goroutine owns the connection
//	handshakes.run        TLS, in a goroutine with a deadline; then a loop owns a descriptor of its own
//	loop.newSession       the session is on the loop with the fewest sessions
//	session.run           reads as long as the bytes have somewhere to go
//	session.consume       icap parses; the transaction holds the request in canonical form
//	transaction.proceed   route -> attempt: pick a server, take an idle connection or dial
//	transaction.pump      held bytes, then body bytes straight from the read buffer, go to the server
//	serverConn.run        reads the answer as long as the client takes it
//	transaction.onFinal   relays its head, transaction.relay its body
//	transaction.finishIfDone   gives the connection back; the session goes on to its next request
//
// Ownership. A loop owns its sessions, its server connections, their buffers and timers; nothing of it is locked. A session
// owns its transaction, the transaction the server connection of its running attempt; an idle server connection belongs to
// its pool.Shard. Other goroutines reach a loop through loop.post only. A socket is closed in one place, conn.close.
//
// Two rules keep the callbacks simple. Nothing is read inside a call that was made while handling what had been read
// before: whoever makes another connection ready to go on puts it on the loop's ready list (runLater). And l.scratch, l.line,
// l.req and l.resp are valid only until the next read or the next head on the loop.
package gateway
