package main

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

// A restart or two of real servers.
func TestRestarts(t *testing.T) {
	if _, err := exec.LookPath("c-icap"); err != nil {
		t.Skipf("c-icap is not installed (Debian package c-icap): %v", err)
	}
	o := &restartsOptions{duration: 4 * time.Second, seed: 4, small: 3, large: 1, spill: "64MiB"}
	out, err := carryOut(t, t.Context(), "", o.run)
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for _, want := range []string{"restarts by SIGKILL", "held    1 to 48 KiB: 0 of", "requests of 10 MB", "held    servers were restarted: 1 times"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
}

// What was cut has to be explained by the access log and by what was done to the server then.
func TestExplain(t *testing.T) {
	at := time.Now()
	s := &restarting{restarts: []restart{{what: "SIGTERM", server: "127.0.0.11:1344", from: at.Add(time.Second), to: at.Add(3 * time.Second)}}}
	req := restartRequest{began: at, over: at.Add(2 * time.Second)}
	for _, c := range []struct {
		line accessLine
		over time.Duration
		want bool
	}{
		{accessLine{End: "truncated", Server: "127.0.0.11:1344"}, 2 * time.Second, true},
		{accessLine{End: "truncated", Server: "127.0.0.12:1344"}, 2 * time.Second, false},
		{accessLine{End: "truncated", Server: "127.0.0.11:1344"}, time.Second / 2, false},
		{accessLine{End: "server_failed", Failure: "bad_answer", Server: "127.0.0.11:1344"}, 2 * time.Second, true},
		{accessLine{End: "server_failed", Failure: "no_answer", Server: "127.0.0.11:1344"}, 2 * time.Second, false},
		{accessLine{End: "done", Server: "127.0.0.11:1344"}, 2 * time.Second, false},
	} {
		req.over = at.Add(c.over)
		if why, ok := s.explain(req, c.line); ok != c.want {
			t.Errorf("%+v, over after %v: %q is an explanation: %v, want %v", c.line, c.over, why, ok, c.want)
		}
	}
}
