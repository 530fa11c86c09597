// Package load is the load generator: it sends the requests of a scenario to a target, checks every byte of what comes back, and says what
// came of it in a result.Result.
//
// With stages the loop is open. Arrivals are planned from the clock alone; a pacer hands each, at its time, to a worker that is free, and its
// latency counts from the planned time. A target that falls behind does not slow the arrivals down, so what requests wait for it is
// seen (the correction of what is known as coordinated omission). Without stages the loop is closed: each worker sends its next
// request when it has the answer to the last one, and measures how much the target takes, not how long users would wait.
//
//	arrivals -> pacer -> worker (a connection each) -> shard (figures, one per CPU) -> collector (once a second) -> result
//
// All times can be virtual: with Config.Dial and in-memory connections, a run works inside a testing/synctest bubble.
package load
