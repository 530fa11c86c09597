// Package pool keeps the connections to the servers: how many each server may have, which of them are idle,
// and who waits for one.
//
// A Server is one address; it is shared by all loops and consists of atomics. A Shard is one loop's part of it: the idle
// connections that this loop owns. A Queue holds the waiters of one pool, for when every server has as many connections as
// it allows; it is the only thing here with a lock, and that lock is taken only while somebody waits.
//
// The cap counts connections, idle ones too, because servers do (a c-icap thread is held by an idle connection as
// by a busy one). A slot is taken with Server.Acquire before dialling and given back with Server.Release after
// closing; between the two it belongs to exactly one connection, or to a Grant on its way to a waiter.
package pool
