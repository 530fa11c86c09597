package main

import (
	"context"
	"strings"
	"testing"
	"time"
)

// A few of each kind get what they should, and all is given back. How fast it goes is not for a test to judge.
func TestAbuse(t *testing.T) {
	o := &abuseOptions{counts: map[string]*int{}, hold: 4 * time.Second, slowest: time.Minute, memory: 1000}
	for _, a := range abuses {
		n := 3
		o.counts[a.name] = &n
		if abuseCounts[a.name] < 1 {
			t.Errorf("%s: no default", a.name)
		}
	}
	out, err := carryOut(t, t.Context(), "", func(ctx context.Context, r *rig) error { return o.run(ctx, r) })
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for _, a := range abuses {
		if !strings.Contains(out, "held    "+a.name+" got what they should\n") {
			t.Errorf("nothing is said of %s:\n%s", a.name, out)
		}
	}
}
