package main

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"icapgate/bench/load"
	"icapgate/bench/result"
)

const (
	linesEvery = 5                      // calls of update, for a line where there is no terminal
	refresh    = 500 * time.Millisecond // of the bar
)

// progress shows on stderr how a run goes: a bar on a terminal, otherwise plain lines.
type progress struct {
	bars  *mpb.Progress // nil: plain lines
	bar   *mpb.Bar
	total int64 // of the bar: milliseconds, or requests
	count bool  // requests
	now   atomic.Pointer[string]
	calls int
}

func newProgress(cfg *load.Config) *progress {
	p := &progress{}
	if info, err := os.Stderr.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		if wait := before(cfg); wait != "" {
			fmt.Fprintln(os.Stderr, strings.TrimSpace(wait))
		}
		return p
	}
	if length := cfg.Length(); length > 0 {
		p.total = length.Milliseconds()
	} else {
		p.total, p.count = cfg.Requests, true
	}
	p.say(before(cfg))
	p.bars = mpb.New(mpb.WithOutput(os.Stderr), mpb.WithWidth(30), mpb.WithRefreshRate(refresh))
	p.bar = p.bars.New(p.total, mpb.BarStyle(),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return *p.now.Load() })),
		mpb.AppendDecorators(decor.Percentage(decor.WCSyncSpace)),
		mpb.BarRemoveOnComplete())
	return p
}

// before says what the run waits for at first.
func before(cfg *load.Config) string {
	switch {
	case !cfg.StartAt.IsZero():
		return "begins at " + cfg.StartAt.Local().Format(time.DateTime) + " "
	case cfg.WarmUp > 0:
		return fmt.Sprintf("warm-up of %v ", cfg.WarmUp)
	}
	return ""
}

func (p *progress) say(line string) { p.now.Store(&line) }

// update is called once a second.
func (p *progress) update(r *result.Result) {
	if p.bars == nil {
		if p.calls++; p.calls%linesEvery == 0 {
			fmt.Fprintln(os.Stderr, r.Line())
		}
		return
	}
	done, left := int64(r.Seconds*1000), ""
	if p.count {
		done = r.Requests + r.Failed
		if done > 0 {
			left = fmt.Sprintf(", %v left", time.Duration(float64(p.total-done)/float64(done)*r.Seconds*float64(time.Second)).Round(time.Second))
		}
	} else {
		left = fmt.Sprintf(", %v left", (time.Duration(max(0, p.total-done)) * time.Millisecond).Round(time.Second))
	}
	p.say(r.Now() + left + " ")
	p.bar.SetCurrent(min(done, p.total-1)) // finish completes it
}

// finish clears the line.
func (p *progress) finish() {
	if p.bars != nil {
		p.bar.Abort(true)
		p.bars.Wait()
	}
}
