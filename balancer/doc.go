// Package balancer chooses the server for the next attempt.
//
// A Policy is a pure function over values, with a little memory of its own: it sees one Target per server of a pool and
// returns the place of one of them. It knows neither connections nor health nor time: what a loop has seen of a server over time, its
// Latency, comes in as a value, too. The caller, a loop, fills a scratch slice for each pick and marks as not usable
// what must not be picked: servers that are down, drained, full, or already tried by this
// transaction. The memory (whose turn it is) belongs to one loop and to one service and method, so nothing here takes a
// lock and nothing here allocates after the first pick. Per service and method, because a client such as Squid sends one
// REQMOD and then one RESPMOD for each page: a turn shared by both would send all of one kind to the same server.
//
// # Adding a policy
//
// A policy is one file with one type that implements Policy, and one line in the table of New. It must hold that
//   - Pick never returns a target that is not usable or has no weight, and returns -1 exactly if there is no other;
//   - over many picks among equally loaded targets, shares follow the weights;
//   - a target that comes back, or whose weight changes, neither gets a burst of picks nor is left out for long;
//   - Pick does not allocate, for 2 as for 64 targets.
//
// The tests of this package check every policy in the table for these. Its own file of tests shows its traces.
//
// Room for growth: what a later policy must know of a server becomes a field of Target, as the latency has. The hash of a
// request is no part of a policy: a Maglev, which all loops share, picks for it; the policy hash is for requests without one.
package balancer
