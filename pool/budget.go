package pool

import (
	"sync"
	"sync/atomic"
)

// Retry budget, per pool: a token bucket that first attempts fill, so that retries stay a share of the traffic and a failing
// pool is not buried under them. A minimum rate lets a quiet pool retry at all.
const (
	budgetPerSecond = 10  // tokens
	budgetFull      = 100 // tokens
)

// Budget may be used from any goroutine.
type Budget struct {
	firsts atomic.Uint64 // first attempts ever

	mu     sync.Mutex
	share  float64 // tokens per first attempt
	tokens float64
	seen   uint64 // firsts that tokens already contain
	at     int64  // loop time of the last refill, ns
}

// NewBudget returns a full budget that gains share tokens for each first attempt.
func NewBudget(share float64, now int64) *Budget {
	return &Budget{share: share, tokens: budgetFull, at: now}
}

// First notes a first attempt.
func (b *Budget) First() { b.firsts.Add(1) }

// Take takes a token for a retry; false: the budget is used up.
func (b *Budget) Take(now int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	firsts := b.firsts.Load()
	b.tokens += b.share*float64(firsts-b.seen) + budgetPerSecond*float64(now-b.at)/1e9
	b.tokens = min(b.tokens, budgetFull)
	b.seen, b.at = firsts, now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
