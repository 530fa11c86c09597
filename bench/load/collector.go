package load

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"icapgate/bench/result"
)

// collector makes the timeline, from the end of the warm-up on, and reports progress.
type collector struct {
	load    *load
	before  usage // at the start
	seen    usage // at the last point
	used    usage // since the start; set by stop
	begun   int64 // requests, by the last point
	done    chan struct{}
	running sync.WaitGroup

	timeline result.Timeline
}

func (l *load) startCollector() *collector {
	c := &collector{load: l, done: make(chan struct{})}
	if l.cfg.WarmUp == 0 {
		c.begin()
	}
	c.running.Go(c.run)
	return c
}

// begin is where the figures begin to count.
func (c *collector) begin() {
	c.before = currentUsage()
	c.seen = c.before
}

func (c *collector) run() {
	at := c.load.start
	if !c.before.at.IsZero() {
		at = at.Add(time.Second)
	}
	wait := time.NewTimer(time.Until(at))
	defer wait.Stop()
	for {
		select {
		case <-wait.C:
		case <-c.done:
			return
		}
		if c.before.at.IsZero() {
			c.begin()
		} else {
			c.add(c.timeline.Append)
			c.report()
		}
		at = at.Add(time.Second)
		wait.Reset(time.Until(at))
	}
}

// stop ends the collector. What came after the last full second is a point of its own if it is more than a trifle.
func (c *collector) stop() {
	close(c.done)
	c.running.Wait()
	if c.before.at.IsZero() { // it has not come to the end of the warm-up
		return
	}
	add := c.timeline.Append
	if time.Since(c.seen.at) < trifle {
		add = c.timeline.Extend
	}
	c.add(add)
	c.used = currentUsage().since(c.before)
}

// trifle is less than a point of its own.
const trifle = 100 * time.Millisecond

// take returns the current second of all shards.
func (c *collector) take() result.Point {
	p := result.NewPoint()
	begun := int64(0)
	for _, s := range c.load.shards {
		part := s.takeSecond(result.NewPoint())
		p.Add(&part)
		begun += s.measured.Load()
	}
	p.Begun = begun - c.begun
	c.begun = begun
	return p
}

// add adds the current second to the timeline.
func (c *collector) add(to func(result.Point)) {
	p := c.take()
	now := currentUsage()
	p.CPU = now.since(c.seen).cpu.Seconds()
	c.seen = now
	to(p)
}

// report says how the run goes.
func (c *collector) report() {
	show := c.load.cfg.Progress
	if show == nil {
		return
	}
	r := c.load.figures()
	r.Seconds = c.seen.at.Sub(c.load.start).Seconds()
	r.Timeline = c.timeline
	show(r)
}

// usage is what this process has used of the machine.
type usage struct {
	at     time.Time
	cpu    time.Duration
	queued time.Duration // its threads wanted to run and got no CPU
}

func currentUsage() usage {
	u := usage{at: time.Now(), queued: queuedTime()}
	var r syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &r) == nil {
		u.cpu = time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	return u
}

func (u usage) since(before usage) usage {
	return usage{u.at, u.cpu - before.cpu, max(0, u.queued-before.queued)}
}

// queuedTime adds up how long the threads of this process have waited for a CPU, as the kernel counts it in schedstat; 0 where it does not.
func queuedTime() (sum time.Duration) {
	files, _ := filepath.Glob("/proc/self/task/*/schedstat")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil { // the thread has ended
			continue
		}
		if words := strings.Fields(string(text)); len(words) == 3 { // nanoseconds on a CPU, nanoseconds waiting, turns
			ns, _ := strconv.ParseInt(words[1], 10, 64)
			sum += time.Duration(ns)
		}
	}
	return sum
}

// LateShare is the share of the requests that may begin late without a reason in the target.
const LateShare = 0.01

// busyShare is that of its CPUs beyond which the generator was the limit.
const busyShare = 0.9

// generator judges whether the load generator itself was the limit.
func (u usage) generator(r *result.Result) result.Generator {
	g := result.Generator{CPUSeconds: u.cpu.Seconds(), QueuedSeconds: u.queued.Seconds(), CPUs: runtime.GOMAXPROCS(0), Limited: []string{}}
	if r.Seconds == 0 {
		return g
	}
	all := r.Seconds * float64(g.CPUs)
	switch used, wanted := g.CPUSeconds/all, (g.CPUSeconds+g.QueuedSeconds)/all; {
	case used > busyShare:
		g.Limited = append(g.Limited, fmt.Sprintf("it used %.0f %% of its %d CPUs", 100*used, g.CPUs))
	case wanted > busyShare:
		g.Limited = append(g.Limited, fmt.Sprintf("it had work for all of its %d CPUs and got %.0f %% of them, other programs had the rest", g.CPUs, 100*used))
	}
	if late := r.Late.Generator; float64(late) > LateShare*float64(r.Begun) {
		g.Limited = append(g.Limited, fmt.Sprintf("%d of %d requests began over %v late though a connection was free", late, r.Begun, lateLimit))
	}
	return g
}
