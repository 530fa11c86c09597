package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"icapgate/bench"
	"icapgate/icap"
)

// replaySize is up to which size of body a request is surely held by the gateway for a replay (64 KiB with heads and framing).
const replaySize = 48 << 10

// accessLine is what is looked at of a line of the access log.
type accessLine struct {
	Path     string `json:"path"`
	Method   string `json:"method"`
	Server   string `json:"server"`
	Status   int    `json:"status"`
	Attempts int    `json:"attempts"`
	Failure  string `json:"failure"`
	End      string `json:"end"`
	In       int64  `json:"bytes_in"`
	Out      int64  `json:"bytes_out"`
}

// readAccessLog reads those lines of an access log that are to be kept, by the id in the path.
func readAccessLog(path string, keep func(*accessLine) bool) (map[string][]accessLine, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := map[string][]accessLine{}
	for d := json.NewDecoder(bufio.NewReader(f)); ; {
		var line accessLine
		if err := d.Decode(&line); err == io.EOF {
			return lines, nil
		} else if err != nil {
			return nil, fmt.Errorf("access log: %w", err)
		}
		if keep(&line) {
			_, id, _ := strings.Cut(line.Path, "?id=")
			lines[id] = append(lines[id], line)
		}
	}
}

// seen is a record and the server that made it.
type seen struct {
	*server
	record
}

// accounts put together what clients, servers and the gateway have seen of each request.
type accounts struct {
	s        *soaking
	lines    map[string][]accessLine // by id
	records  map[string][]seen       // by id
	outcomes map[string]*outcome     // by what happened and why
	faults   []string                // that nothing explains
	count    int                     // of these
}

type outcome struct {
	count   int
	example string
}

func (a *accounts) note(what, example string) {
	o := a.outcomes[what]
	if o == nil {
		o = &outcome{example: example}
		a.outcomes[what] = o
	}
	o.count++
}

// unexpected notes what nothing explains.
func (a *accounts) unexpected(p *plan, format string, args ...any) {
	a.count++
	if len(a.faults) < 10 {
		a.faults = append(a.faults, a.describe(p)+fmt.Sprintf(format, args...))
	}
}

func (a *accounts) describe(p *plan) string {
	return fmt.Sprintf("%v %s, %d bytes, preview %d, chunks of %d, wish %q: ", p.message.Method, p.id, p.size, p.message.Preview, p.message.Chunk, p.wish)
}

// account puts everything together and claims that it fits.
func (s *soaking) account(m metrics) error {
	a := &accounts{s: s, lines: map[string][]accessLine{}, records: map[string][]seen{}, outcomes: map[string]*outcome{}}
	if err := a.read(); err != nil {
		return err
	}
	for i := range s.results {
		a.judge(&s.results[i])
	}
	s.section("outcomes of %d requests, %d times a server was killed, %d reloads", len(s.results), len(s.kills), s.reloads)
	for _, what := range slices.Sorted(maps.Keys(a.outcomes)) {
		o := a.outcomes[what]
		s.note("%8d  %s", o.count, what)
		if o.example != "" {
			s.note("          for one: %s", o.example)
		}
	}
	for _, fault := range a.faults {
		s.note("UNEXPECTED  %s", fault)
	}
	s.claim(a.count == 0, "every request was answered rightly, or a fault explains why not: %d were not", a.count)
	a.judgeServers()
	a.judgeGateway(m)
	return nil
}

// read reads the access log and the records of the servers.
func (a *accounts) read() (err error) {
	if a.lines, err = readAccessLog(a.s.log, func(*accessLine) bool { return true }); err != nil {
		return err
	}
	for _, server := range a.s.list {
		list, err := server.records()
		if err != nil {
			return fmt.Errorf("records of %s: %w", server.name, err)
		}
		for _, r := range list {
			a.records[r.ID] = append(a.records[r.ID], seen{server, r})
		}
	}
	return nil
}

// judge says what came of a request, and why.
func (a *accounts) judge(r *result) {
	lines := a.lines[r.id]
	if len(lines) != 1 && !(r.abort >= 0 && r.err != nil && len(lines) == 0) {
		a.unexpected(r.plan, "%d lines in the access log", len(lines))
		return
	}
	var line accessLine
	if len(lines) == 1 {
		line = lines[0]
	}
	switch {
	case r.wrong != nil:
		a.unexpected(r.plan, "answer %d of %s is wrong: %v", r.status, r.server, r.wrong)
	case errors.Is(r.err, errAborted):
		a.note("the client went away, as planned", "")
	case r.err != nil:
		a.judgeError(r, line)
	case line.Status != r.status:
		a.unexpected(r.plan, "the client got %d, the access log has %d", r.status, line.Status)
	case r.status == 200 || r.status == 204:
		a.judgeAnswer(r, line)
	case r.status == 503 && r.server != "":
		if r.wish.what != busy || !r.wish.concerns(r.server) {
			a.unexpected(r.plan, "503 of %s", r.server)
			return
		}
		a.note("503 of the server, as wished", "")
	case r.status == 502 && (line.End == "server_failed" || line.End == "late"), r.status == 503 && (line.End == "no_server" || line.End == "full"):
		a.explain(r, line, fmt.Sprintf("%d", r.status))
	default:
		a.unexpected(r.plan, "status %d, %s", r.status, line.End)
	}
}

// judgeAnswer looks at a request that was answered.
func (a *accounts) judgeAnswer(r *result, line accessLine) {
	w := r.wish
	switch {
	case line.End != "done":
		a.unexpected(r.plan, "status %d, and the access log says %s", r.status, line.End)
		return
	case (w.what == busy || w.what == noAnswer) && w.concerns(r.server):
		a.unexpected(r.plan, "%s has answered %d", r.server, r.status)
		return
	}
	// An early answer, or one before a cut, may leave before the body has been read: there is no record if the server died then.
	soon := w.what == early || w.what == cut
	found := soon && a.killed(r.server, r.began, r.ended.Add(time.Second))
	for _, seen := range a.records[r.id] {
		found = found || seen.name == r.server && (seen.Error == "" || soon)
	}
	if !found && r.message.Method != icap.MethodOptions {
		a.unexpected(r.plan, "%s has answered %d and not seen it whole", r.server, r.status)
		return
	}
	replayed := ""
	if line.Attempts > 1 {
		replayed = ", not by the first server"
	}
	a.note(fmt.Sprintf("%v %d%s", r.message.Method, r.status, replayed), "")
}

// judgeError looks at a request that got no answer, or a part of one.
func (a *accounts) judgeError(r *result, line accessLine) {
	var e *bench.Error
	if !errors.As(r.err, &e) || e.Kind != bench.Truncated || r.status == 0 && line.Status == 0 {
		a.unexpected(r.plan, "%v (access log: status %d, %s)", r.err, line.Status, line.End)
		return
	}
	a.explain(r, line, "truncated")
}

// explain looks for the fault that made a request fail.
func (a *accounts) explain(r *result, line accessLine, what string) {
	name := ""
	for _, server := range a.s.list {
		if server.address == line.Server {
			name = server.name
		}
	}
	w := r.wish
	replayable := ""
	if r.size <= replaySize && what != "truncated" && w.what != cut {
		replayable = " (of a request that could have been sent again)"
	}
	switch {
	case (w.what == cut || w.what == noAnswer) && w.server == "":
		a.note(what+": no server answers it", "")
	case (w.what == cut || w.what == noAnswer) && w.concerns(name):
		a.note(what+": its server ended the connection"+replayable, a.describe(r.plan))
	case a.killed(name, r.began, r.ended):
		a.note(what+": its server was killed"+replayable, a.describe(r.plan))
	case what == "503" && a.away(r.ended):
		a.note(what+": a server was away, the others were left out, full or had failed for it", a.describe(r.plan))
	default:
		a.unexpected(r.plan, "%s by %s after %d attempts, for no reason (%v, %s)", what, name, line.Attempts, r.err, line.End)
	}
}

// killed says whether a server died at a time, "": any server.
func (a *accounts) killed(name string, from, to time.Time) bool {
	const crossing = 100 * time.Millisecond // from a kill to the end of all it does
	for _, k := range a.s.kills {
		if (name == "" || k.server.name == name) && k.gone.After(from.Add(-crossing)) && k.from.Before(to.Add(crossing)) {
			return true
		}
	}
	return false
}

// away says whether a server was killed and not yet seen back at a time.
func (a *accounts) away(at time.Time) bool {
	for _, k := range a.s.kills {
		if at.After(k.from) && (k.to.IsZero() || at.Before(k.to.Add(recovery))) {
			return true
		}
	}
	return false
}

// judgeServers compares what servers got with what was sent.
func (a *accounts) judgeServers() {
	s := a.s
	s.section("what servers have got")
	plans := map[string]*result{}
	for i := range s.results {
		plans[s.results[i].id] = &s.results[i]
	}
	count, whole, cutShort, twice, strangers, wrong := 0, 0, 0, 0, 0, 0
	var examples []string
	example := func(p *plan, format string, args ...any) {
		if len(examples) < 10 {
			examples = append(examples, a.describe(p)+fmt.Sprintf(format, args...))
		}
	}
	for id, list := range a.records {
		r := plans[id]
		if r == nil {
			strangers++
			continue
		}
		took := 0 // servers that took it, as far as they know
		for _, seen := range list {
			count++
			if seen.Error != "" {
				cutShort++
			} else {
				whole++
				if !(r.wish.concerns(seen.name) && (r.wish.what == busy || r.wish.what == noAnswer || r.wish.what == cut)) {
					took++
				}
			}
			if !bodyFits(r.plan, seen.record) {
				wrong++
				example(r.plan, "%s has got %d bytes with SHA-256 %s, error %q", seen.name, seen.Length, seen.SHA, seen.Error)
			}
		}
		if took > 1 && !a.killed("", r.began, r.ended) {
			twice++
			example(r.plan, "%d servers took it", took)
		}
	}
	s.figure("requests at servers", float64(count), "")
	s.figure("of these, whole", float64(whole), "")
	s.figure("of these, cut short", float64(cutShort), "")
	for _, e := range examples {
		s.note("UNEXPECTED  %s", e)
	}
	s.claim(strangers == 0, "servers have got no request that no client sent: %d", strangers)
	s.claim(wrong == 0, "servers have got every body as it was sent, and none as whole that was not: %d others", wrong)
	s.claim(twice == 0, "no request was taken twice, unless a server that had it was killed: %d", twice)
}

// bodyFits says whether a server has got what was sent: all of it, a preview, or the beginning if it knows that there was more.
func bodyFits(p *plan, r record) bool {
	size, length := max(0, p.size), int64(r.Length)
	switch {
	case r.Method != p.message.Method.String() || length > size:
		return false
	case r.Error == "" && length != size && length != p.message.Preview:
		return false
	}
	h := sha256.New()
	if _, err := io.Copy(h, bench.PatternBody(p.start, length)); err != nil {
		return false
	}
	return r.SHA == hex.EncodeToString(h.Sum(nil))
}

// judgeGateway compares the gateway's metrics with its access log.
func (a *accounts) judgeGateway(m metrics) {
	s := a.s
	s.section("what the gateway says")
	ended, rejected, attempts := map[string]int{}, map[string]int{}, 0
	lines, strangers := 0, 0
	for id, list := range a.lines {
		if id == "" {
			strangers += len(list)
		}
		for _, line := range list {
			lines++
			attempts += max(0, line.Attempts-1)
			switch line.End {
			case "done", "no_server", "full", "server_failed", "late", "no_service":
				ended[fmt.Sprintf("%s %d", line.Method, line.Status)]++
			}
			switch line.End {
			case "done":
			case "no_server", "full", "server_failed", "late", "no_service":
				rejected[line.End]++
			default:
				if line.Status == 502 || line.Status == 503 {
					rejected["and the client gone"]++
				}
			}
		}
	}
	counted := map[string]int{}
	for series, n := range m {
		if strings.HasPrefix(series, "icapgate_requests_total{") {
			counted[label(series, "method")+" "+label(series, "code")] += int(n)
		}
	}
	s.figure("lines in the access log", float64(lines), "")
	s.claim(strangers == 0, "each is of a request that a client sent: %d are not", strangers)
	s.claim(maps.Equal(ended, counted), "requests_total has as many by method and code: %v, the log %v", counted, ended)
	total := 0
	for reason, n := range m.by("rejects_total", "reason") {
		total += int(n)
		gone := rejected["and the client gone"]
		if int(n) < rejected[reason] || int(n) > rejected[reason]+gone {
			s.claim(false, "rejects_total{reason=%q} is %v, the log has %d", reason, n, rejected[reason])
		}
	}
	s.claim(total == sum(rejected), "rejects_total has as many: %d, the log %v", total, rejected)
	replays := int(m.sum("replays_total"))
	s.claim(replays >= attempts && replays <= attempts+sum(rejected), "replays_total fits the attempts: %d, the log has %d further ones", replays, attempts)
	s.note("by reason: %v", m.by("replays_total", "reason"))
	s.claim(m.sum("access_log_dropped_total") == 0, "no line was dropped")
	s.claim(m.sum("panics_total") == 0, "no panic")
	reloads := int(m.sum("reloads_total", `result="ok"`))
	s.claim(m.sum("reloads_total", `result="failed"`) == 0 && reloads > 0 == (s.reloads > 0) && reloads <= s.reloads, "%d reloads of %d signals, none refused", reloads, s.reloads)
}

// label returns the value of a label of a series.
func label(series, name string) string {
	_, rest, _ := strings.Cut(series, name+`="`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

func sum(counts map[string]int) (n int) {
	for _, k := range counts {
		n += k
	}
	return n
}
