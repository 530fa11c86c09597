package main

import (
	"strings"
	"testing"
)

// All servers away, in short: what passes, what is rejected, that 16 MB come back over both, and that everything is accounted for. How soon is no matter of tests.
func TestUnavailable(t *testing.T) {
	o := &unavailableOptions{size: rejectedSize, slowSize: 2e6, slowRate: 1e6, requests: 4}
	out, err := carryOut(t, t.Context(), "", o.run)
	if err != nil && !strings.HasPrefix(err.Error(), "not every claim held") {
		t.Fatalf("%v\n%s", err, out)
	}
	for line := range strings.Lines(out) {
		if strings.Contains(line, "FAILED") && !strings.Contains(line, "half of the answers came within") && !strings.Contains(line, "the answers came after 1s") &&
			!strings.Contains(line, "happened while") {
			t.Error(line)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
	for _, want := range []string{"held    REQMOD over icaps: 16 MB came back", "held    RESPMOD over icap, after its preview: 16 MB came back", "held    allowed_total is what the clients saw"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
}

// What has to come of a request is told from what has not.
func TestWrongly(t *testing.T) {
	for _, c := range []struct {
		name    string
		q       *openCall
		status  int
		reasons []string
		wrong   string
	}{
		{"a verdict", &openCall{call: call{status: 204}}, 204, nil, ""},
		{"another status", &openCall{call: call{status: 502}}, 503, nil, "status 502, want 503"},
		{"nobody's word in place of a verdict", &openCall{call: call{status: 204}, allowed: "late"}, 204, nil, `allowed because of "late"`},
		{"a verdict in place of nobody's word", &openCall{call: call{status: 204}}, 204, noServer, `allowed because of ""`},
		{"another reason", &openCall{call: call{status: 204}, allowed: "late"}, 204, noServer, `allowed because of "late"`},
		{"one of two", &openCall{call: call{status: 204}, allowed: "no_server"}, 204, whenKilled, ""},
		{"no Retry-After", &openCall{call: call{status: 503}}, 503, nil, "no Retry-After"},
		{"with it", &openCall{call: call{status: 503}, retryAfter: "1"}, 503, nil, ""},
	} {
		if got := c.q.wrongly(c.status, c.reasons); (got == "") != (c.wrong == "") || !strings.Contains(got, c.wrong) {
			t.Errorf("%s: %q, want %q", c.name, got, c.wrong)
		}
	}
	for _, c := range []struct {
		name   string
		spoil  func(q *openCall)
		expect bool
	}{
		{"the message itself", func(*openCall) {}, true},
		{"other heads", func(q *openCall) { q.changed = true }, false},
		{"a byte too few", func(q *openCall) { q.got-- }, false},
		{"other bytes", func(q *openCall) { q.in.Write([]byte("x")) }, false},
	} {
		q := newCall(0, true, "/open", 5, false)
		q.got = 5
		q.sent.Store(5)
		q.in.Write([]byte("hello"))
		q.out.Write([]byte("hello"))
		c.spoil(q)
		if q.same() != c.expect {
			t.Errorf("%s: the same: %v", c.name, q.same())
		}
	}
}
