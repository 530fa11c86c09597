package pool

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// takeAll empties a budget at now and returns how many tokens it had.
func takeAll(b *Budget, now int64) (n int) {
	for b.Take(now) {
		n++
	}
	return n
}

func TestBudget(t *testing.T) {
	const ms = int64(time.Millisecond)
	tests := []struct {
		name   string
		share  float64
		firsts int
		after  int64 // ns since the budget was empty
		want   int
	}{
		{"nothing happens", 0.2, 0, 0, 0},
		{"less than a token of requests", 0.2, 4, 0, 0},
		{"a token of requests", 0.2, 5, 0, 1},
		{"a fifth of the requests", 0.2, 100, 0, 20},
		{"every request", 1, 7, 0, 7},
		{"no share", 0, 1000, 0, 0},
		{"just below the first token of time", 0.2, 0, 99 * ms, 0},
		{"a token of time", 0.2, 0, 100 * ms, 1},
		{"ten a second", 0, 0, 1000 * ms, 10},
		{"requests and time add up", 0.5, 3, 150 * ms, 3},
		{"full after ten seconds", 0, 0, 10_000 * ms, 100},
		{"never more than full by time", 0.2, 0, 3_600_000 * ms, 100},
		{"never more than full by requests", 0.2, 1_000_000, 0, 100},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			const start = int64(time.Hour) // loop time is never 0
			b := NewBudget(tt.share, start)
			if n := takeAll(b, start); n != budgetFull {
				t.Fatalf("a new budget had %d tokens, want %d", n, budgetFull)
			}
			for range tt.firsts {
				b.First()
			}
			if n := takeAll(b, start+tt.after); n != tt.want {
				t.Errorf("%d tokens, want %d", n, tt.want)
			}
			if n := takeAll(b, start+tt.after); n != 0 {
				t.Errorf("%d tokens more in the same moment", n)
			}
		})
	}
}

// Over a long time the retries stay within what the budget promises, whatever the pattern: all that was in it, the share of the
// first attempts and the minimum rate; and one that is wanted after a pause is always given.
func TestBudgetBound(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		share := rapid.Float64Range(0, 1).Draw(t, "share")
		b := NewBudget(share, 0)
		var now int64
		firsts, taken := 0, 0
		for range rapid.IntRange(1, 50).Draw(t, "steps") {
			pause := rapid.Int64Range(0, int64(3*time.Second)).Draw(t, "pause")
			now += pause
			n := rapid.IntRange(0, 500).Draw(t, "firsts")
			for range n {
				b.First()
			}
			firsts += n
			got := 0
			for range rapid.IntRange(0, 200).Draw(t, "wanted") {
				if b.Take(now) {
					got++
				} else if got == 0 && pause >= int64(time.Second)/budgetPerSecond {
					t.Fatal("no token after a pause that earns one")
				}
			}
			taken += got
			if most := budgetFull + share*float64(firsts) + budgetPerSecond*float64(now)/1e9; float64(taken) > most+1e-6 {
				t.Fatalf("%d tokens taken, at most %.2f were earned", taken, most)
			}
			if got > budgetFull {
				t.Fatalf("%d tokens at once, full is %d", got, budgetFull)
			}
		}
	})
}

// Loops read their clocks apart: a time that is a little behind the latest one costs nothing and earns nothing.
func TestBudgetWithClocksApart(t *testing.T) {
	b := NewBudget(0, 0)
	takeAll(b, 0)
	const second = int64(time.Second)
	n := 0
	for i := range int64(100) {
		now := i * second / 100
		for _, at := range []int64{now, now - second/100} {
			if at >= 0 && b.Take(at) {
				n++
			}
		}
	}
	if n < 9 || n > 10 {
		t.Errorf("%d tokens in a second, want about %d", n, budgetPerSecond)
	}
}

func TestBudgetFromManyGoroutines(t *testing.T) {
	b := NewBudget(0.5, 0)
	takeAll(b, 0)
	var taken atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				b.First()
				b.First()
				if b.Take(0) {
					taken.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if got := int(taken.Load()) + takeAll(b, 0); got != 160 {
		t.Errorf("%d tokens of 320 first attempts and a share of a half, want 160", got)
	}
}
