package load

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"icapgate/bench/result"
)

func TestGenerator(t *testing.T) {
	cpus := time.Duration(runtime.GOMAXPROCS(0))
	f := func(u usage, change func(*result.Result), want string) {
		t.Helper()
		r := result.New()
		r.Seconds, r.Begun = 10, 1000
		change(r)
		g := u.generator(r)
		if got := strings.Join(g.Limited, "; "); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%+v: %q, want %q", u, got, want)
		}
		if g.CPUSeconds != u.cpu.Seconds() || g.QueuedSeconds != u.queued.Seconds() || g.CPUs != int(cpus) {
			t.Errorf("%+v: %+v", u, g)
		}
	}
	nothing := func(*result.Result) {}
	f(usage{}, nothing, "")
	f(usage{cpu: 8 * cpus * time.Second}, nothing, "")
	f(usage{cpu: 95 * cpus * time.Second / 10}, nothing, "it used 95 % of its")
	f(usage{cpu: 5 * cpus * time.Second, queued: 6 * cpus * time.Second}, nothing, "got 50 % of them")
	f(usage{cpu: time.Second}, func(r *result.Result) { r.Late.Generator = 11 }, "11 of 1000 requests began over 1ms late")
	f(usage{cpu: time.Second}, func(r *result.Result) { r.Late.Generator, r.Late.Waited = 10, 900 }, "")
	f(usage{cpu: 100 * cpus * time.Second}, func(r *result.Result) { r.Seconds = 0 }, "")
}

func TestCurrentUsage(t *testing.T) {
	before := currentUsage()
	for time.Since(before.at) < 20*time.Millisecond { // work
	}
	if u := currentUsage().since(before); u.cpu <= 0 || u.queued < 0 {
		t.Errorf("%+v", u)
	}
}
