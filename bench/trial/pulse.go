package main

import (
	"context"
	"sync/atomic"
	"time"
)

// pulse finds out how long this program has to wait for a CPU: on a machine on which others work, too, times say no more than that. What it
// returns ends it, and notes the longest wait.
func (r *rig) pulse(ctx context.Context) (tell func()) {
	const beat = time.Millisecond
	var longest atomic.Int64
	ctx, end := context.WithCancel(ctx)
	go func() {
		for {
			before := time.Now()
			if pause(ctx, beat) != nil {
				return
			}
			longest.Store(max(longest.Load(), int64(time.Since(before)-beat)))
		}
	}()
	return func() {
		end()
		r.note("this program itself had to wait for a CPU for %s at most", shown(time.Duration(longest.Load())))
	}
}
