package main

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// Two faults, in short: no request fails, and what is told is there.
func TestFailover(t *testing.T) {
	o := &failoverOptions{faults: "kill,stop", clients: 2, away: 300 * time.Millisecond, load: 100 * time.Millisecond}
	out, err := carryOut(t, t.Context(), "", o.run)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for _, want := range []string{"kill: 0 of", "stop: 0 of", "longest wait", "to come back", "4 of 4 claims held"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
}

// A request that gets no answer has failed, one whose answer began was cut.
func TestFailoverCounts(t *testing.T) {
	out := &failoverOutcome{failed: map[string]int{}}
	for _, q := range []*call{{status: 204}, {status: 502}, {status: 200, wrong: errors.New("another body")}} {
		out.note(q, nil, time.Second)
	}
	out.note(&call{}, errors.New("the end"), time.Second)
	out.note(&call{status: 200}, errors.New("the end"), time.Second)
	if out.answered != 1 || out.cut != 1 || len(out.waits) != 5 {
		t.Errorf("%d answered, %d cut, %d in all, want 1, 1, 5", out.answered, out.cut, len(out.waits))
	}
	for _, want := range []string{"status 502", "another body", "the end"} {
		if out.failed[want] != 1 {
			t.Errorf("failed: %v, want 1 with %q", out.failed, want)
		}
	}
}

func TestFailoverUnknownFault(t *testing.T) {
	o := &failoverOptions{faults: "kill,earthquake", clients: 1}
	if _, err := carryOut(t, t.Context(), "", o.run); err == nil || !strings.Contains(err.Error(), `unknown fault "earthquake"`) {
		t.Errorf("error %v", err)
	}
}
