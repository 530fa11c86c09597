package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"icapgate/bench"
	"icapgate/icap"
)

// What a fault explains is told apart from what nothing does.
func TestJudge(t *testing.T) {
	start := time.Now()
	killed := &server{name: "server0", address: "a:0"}
	alive := &server{name: "server1", address: "a:1"}
	s := &soaking{list: []*server{killed, alive}, kills: []kill{{server: killed, from: start.Add(10 * time.Second), gone: start.Add(10100 * time.Millisecond), to: start.Add(11 * time.Second)}}}
	truncated := &bench.Error{Kind: bench.Truncated, Err: io.EOF}
	whole := []seen{{alive, record{}}}
	for _, c := range []struct {
		name    string
		wish    wish
		abort   int64
		at      time.Duration // of the end, after the start
		status  int
		server  string // that answered, "": the gateway
		err     error
		wrong   error
		line    accessLine
		records []seen
		want    string // "": unexpected
	}{
		{name: "answered", status: 204, server: "server1", line: accessLine{Status: 204, End: "done", Attempts: 1}, records: whole, want: "REQMOD 204"},
		{name: "replayed", status: 200, server: "server1", line: accessLine{Status: 200, End: "done", Attempts: 2}, records: whole, want: "REQMOD 200, not by"},
		{name: "wrong body", status: 200, server: "server1", wrong: errors.New("other"), line: accessLine{Status: 200, End: "done"}, records: whole},
		{name: "not seen by the server", status: 204, server: "server1", line: accessLine{Status: 204, End: "done"}},
		{name: "seen by another", status: 204, server: "server0", line: accessLine{Status: 204, End: "done"}, records: whole},
		{name: "seen in part", status: 204, server: "server1", line: accessLine{Status: 204, End: "done"}, records: []seen{{alive, record{Error: "cut"}}}},
		{name: "early", wish: wish{what: early}, status: 204, server: "server1", line: accessLine{Status: 204, End: "done"},
			records: []seen{{alive, record{Error: "cut"}}}, want: "REQMOD 204"},
		{name: "another status in the log", status: 204, server: "server1", line: accessLine{Status: 200, End: "done"}, records: whole},
		{name: "answered by who gives none", wish: wish{what: noAnswer, server: "server1"}, status: 204, server: "server1",
			line: accessLine{Status: 204, End: "done"}, records: whole},
		{name: "aborted", abort: 1, err: &bench.Error{Kind: bench.Input, Err: errAborted}, want: "the client went away"},
		{name: "no reason", status: 502, line: accessLine{Status: 502, End: "server_failed", Server: "a:1"}},
		{name: "killed", at: 10 * time.Second, status: 502, line: accessLine{Status: 502, End: "server_failed", Server: "a:0"}, want: "502: its server was killed"},
		{name: "another was killed", at: 10 * time.Second, status: 502, line: accessLine{Status: 502, End: "server_failed", Server: "a:1"}},
		{name: "killed later", at: 5 * time.Second, status: 502, line: accessLine{Status: 502, End: "server_failed", Server: "a:0"}},
		{name: "no answer", wish: wish{what: noAnswer}, status: 502, line: accessLine{Status: 502, End: "server_failed", Server: "a:1"}, want: "502: no server"},
		{name: "no answer of another", wish: wish{what: noAnswer, server: "server0"}, status: 502, line: accessLine{Status: 502, End: "server_failed", Server: "a:1"}},
		{name: "busy", wish: wish{what: busy, server: "server1"}, status: 503, server: "server1", line: accessLine{Status: 503, End: "done"}, want: "503 of the server"},
		{name: "busy for no reason", status: 503, server: "server1", line: accessLine{Status: 503, End: "done"}},
		{name: "away", at: 10500 * time.Millisecond, status: 503, line: accessLine{Status: 503, End: "no_server", Server: "a:1"}, want: "503: a server was away"},
		{name: "not away", at: 20 * time.Second, status: 503, line: accessLine{Status: 503, End: "no_server", Server: "a:1"}},
		{name: "cut", wish: wish{what: cut}, status: 200, err: truncated, line: accessLine{Status: 200, End: "truncated", Server: "a:1"}, want: "truncated: no server"},
		{name: "truncated", status: 200, err: truncated, line: accessLine{Status: 200, End: "truncated", Server: "a:1"}},
		{name: "closed", err: &bench.Error{Kind: bench.Closed, Err: io.EOF}, line: accessLine{End: "truncated", Server: "a:1"}},
		{name: "late", err: &bench.Error{Kind: bench.Timeout, Err: io.EOF}, line: accessLine{Server: "a:1"}},
		{name: "bad request", status: 400, line: accessLine{Status: 400, End: "bad_request"}},
	} {
		p := &plan{id: "1-2", message: bench.Message{Method: icap.MethodReqmod, Preview: -1}, wish: c.wish, abort: -1}
		if c.abort > 0 {
			p.abort = c.abort
		}
		a := &accounts{s: s, lines: map[string][]accessLine{"1-2": {c.line}}, records: map[string][]seen{"1-2": c.records}, outcomes: map[string]*outcome{}}
		a.judge(&result{plan: p, status: c.status, server: c.server, err: c.err, wrong: c.wrong, began: start.Add(c.at - time.Second), ended: start.Add(c.at)})
		var got string
		for what := range a.outcomes {
			got = what
		}
		if !strings.HasPrefix(got, c.want) || (c.want == "") != (got == "") || (c.want == "") != (a.count == 1) {
			t.Errorf("%s: outcome %q, unexpected %q; want %q", c.name, got, a.faults, c.want)
		}
	}
	p := &plan{id: "1-2", abort: -1}
	for _, lines := range [][]accessLine{nil, {{Status: 204, End: "done"}, {Status: 204, End: "done"}}} {
		a := &accounts{s: s, lines: map[string][]accessLine{"1-2": lines}, records: map[string][]seen{"1-2": whole}, outcomes: map[string]*outcome{}}
		if a.judge(&result{plan: p, status: 204, server: "server1"}); a.count != 1 {
			t.Errorf("%d lines in the access log are nothing to complain about", len(lines))
		}
	}
}

func TestBodyFits(t *testing.T) {
	sha := func(start int, n int64) string {
		h := sha256.New()
		_, _ = io.Copy(h, bench.PatternBody(start, n))
		return hex.EncodeToString(h.Sum(nil))
	}
	for _, c := range []struct {
		name    string
		preview int64
		record  record
		want    bool
	}{
		{"whole", -1, record{Method: "REQMOD", Length: 100, SHA: sha(7, 100)}, true},
		{"another body", -1, record{Method: "REQMOD", Length: 100, SHA: sha(8, 100)}, false},
		{"another method", -1, record{Method: "RESPMOD", Length: 100, SHA: sha(7, 100)}, false},
		{"a part taken for the whole", -1, record{Method: "REQMOD", Length: 50, SHA: sha(7, 50)}, false},
		{"a part", -1, record{Method: "REQMOD", Length: 50, SHA: sha(7, 50), Error: "EOF"}, true},
		{"another part", -1, record{Method: "REQMOD", Length: 50, SHA: sha(8, 50), Error: "EOF"}, false},
		{"preview", 50, record{Method: "REQMOD", Length: 50, SHA: sha(7, 50)}, true},
		{"too much", -1, record{Method: "REQMOD", Length: 101, SHA: sha(7, 101)}, false},
	} {
		p := &plan{message: bench.Message{Method: icap.MethodReqmod, Preview: c.preview}, size: 100, start: 7}
		if got := bodyFits(p, c.record); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestMetrics(t *testing.T) {
	m := metrics{`icapgate_a_total{x="1",y="2"}`: 1, `icapgate_a_total{x="1",y="3"}`: 2, `icapgate_a_total{xx="1",y="2"}`: 4, "icapgate_b": 8, "go_c": 16}
	for _, c := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"a_total", nil, 7},
		{"a_total", []string{`x="1"`}, 3},
		{"a_total", []string{`y="2"`}, 5},
		{"a_total", []string{`x="1"`, `y="3"`}, 2},
		{"b", nil, 8},
		{"go_c", nil, 16},
		{"d", nil, 0},
	} {
		if got := m.sum(c.name, c.labels...); got != c.want {
			t.Errorf("%s %v: %v, want %v", c.name, c.labels, got, c.want)
		}
	}
	by := m.by("a_total", "y")
	if len(by) != 2 || by["2"] != 5 || by["3"] != 2 {
		t.Errorf("by y: %v", by)
	}
	if got := median([]int64{3, 1, 2}); got != 2 {
		t.Errorf("median %d", got)
	}
}
