package gateway

import (
	"bytes"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"icapgate/bench/dlpstub"
	"icapgate/gateway/discovery"
	"icapgate/pool"
)

// family is what the page says about a metric, or what a gateway prints of it.
type family struct {
	kind   string
	labels []string // sorted; nil: no series was seen
}

var (
	docRow    = regexp.MustCompile("^\\| `(icapgate_[a-z_]+)` \\| ([a-z]+) \\| ([a-z, ]*) ?\\| .*[.?] \\|$")
	typeLine  = regexp.MustCompile(`^# TYPE (icapgate_[a-z_]+) ([a-z]+)$`)
	series    = regexp.MustCompile(`^(icapgate_[a-z_]+?)(_bucket|_sum|_count)?(?:\{(.*)\})? [^ ]+$`)
	labelName = regexp.MustCompile(`([a-z_]+)="[^"]*"`)
)

// documented reads the tables of docs/METRICS.md.
func documented(t *testing.T, page string) map[string]family {
	t.Helper()
	found := make(map[string]family)
	for line := range strings.Lines(page) {
		m := docRow.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		switch {
		case m == nil && strings.HasPrefix(line, "| `icapgate_"):
			t.Errorf("this row can't be read: %s", line)
		case m != nil:
			labels := strings.FieldsFunc(m[3], func(r rune) bool { return r == ',' || r == ' ' })
			slices.Sort(labels)
			found[m[1]] = family{m[2], labels}
		}
	}
	return found
}

// printed reads /metrics.
func printed(t *testing.T, text string) map[string]family {
	t.Helper()
	found := make(map[string]family)
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if m := typeLine.FindStringSubmatch(line); m != nil {
			found[m[1]] = family{kind: m[2]}
			continue
		}
		m := series.FindStringSubmatch(line)
		if m == nil {
			continue // of the runtime
		}
		name := m[1]
		if _, ok := found[name]; !ok {
			name += m[2] // not of a histogram
		}
		f, ok := found[name]
		if !ok {
			t.Errorf("a series without a TYPE line before it: %s", line)
			continue
		}
		labels := []string{}
		for _, l := range labelName.FindAllStringSubmatch(m[3], -1) {
			if l[1] != "le" {
				labels = append(labels, l[1])
			}
		}
		slices.Sort(labels)
		if f.labels != nil && !slices.Equal(f.labels, labels) {
			t.Errorf("%s has series with labels %v and %v", name, f.labels, labels)
		}
		f.labels = labels
		found[name] = f
	}
	return found
}

// The page has every metric of a gateway that has done something, with its labels, and no other.
func TestMetricsDocumented(t *testing.T) {
	file, err := os.ReadFile("../docs/METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(file)
	_, server := startStub(t, dlpstub.Config{})
	g := startGateway(t, []string{server}, "    connection_share: dns:localhost\n", "").ready()
	c := g.dial(0)
	c.send("OPTIONS icap://gw/reqmod ICAP/1.0\r\nHost: gw\r\n\r\n")
	c.status(200)
	c.Close()
	eventually(t, "the end of the session", func() bool { return g.metric(`closes_total{side="client",reason="client_closed"}`) == 1 })
	var text bytes.Buffer
	g.WriteMetrics(&text)

	doc, real := documented(t, page), printed(t, text.String())
	for name, f := range real {
		d, ok := doc[name]
		switch {
		case !ok:
			t.Errorf("%s is not in docs/METRICS.md", name)
		case f.labels == nil:
			t.Errorf("%s has no series: let this test do something that is counted there", name)
		case d.kind != f.kind || !slices.Equal(d.labels, f.labels):
			t.Errorf("%s is a %s with labels %v, docs/METRICS.md says %s, %v", name, f.kind, f.labels, d.kind, d.labels)
		}
	}
	for name := range doc {
		if _, ok := real[name]; !ok {
			t.Errorf("docs/METRICS.md has %s, a gateway has not", name)
		}
	}
	if len(real) == 0 {
		t.Error("no metrics at all")
	}
}

// The page has every word that a label can be.
func TestLabelsDocumented(t *testing.T) {
	file, err := os.ReadFile("../docs/METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	_, afterRejects, _ := strings.Cut(string(file), "\n## Rejects\n")
	_, refused, _ := strings.Cut(string(file), "\n## Refusals\n")
	refused, _, _ = strings.Cut(refused, "\n## Rejects\n")
	rejects, afterReplays, _ := strings.Cut(afterRejects, "\n## Replays\n")
	replays, afterWaits, _ := strings.Cut(afterReplays, "\n## Waits\n")
	waits, closes, _ := strings.Cut(afterWaits, "\n## Closes\n")
	var causes []string
	for c := range pool.Cause(pool.Causes) {
		causes = append(causes, c.String())
	}
	for r := range pool.Refusal(pool.Refusals) {
		causes = append(causes, r.String())
	}
	var results []string
	for r := range handshakeResult(handshakeResults) {
		results = append(results, r.String())
	}
	var lookups []string
	for r := range discovery.Result(discovery.Results) {
		lookups = append(lookups, r.String())
	}
	var reasons []string
	for r := range refusal(refusals) {
		reasons = append(reasons, r.String())
	}
	for _, set := range []struct {
		where, text string
		words       []string
	}{
		{"refusals", refused, reasons},
		{"rejects", rejects, rejectNames[:]},
		{"replays", replays, failureNames[:]},
		{"waits", waits, causes},
		{"closes", closes, reasonNames[:]},
		{"the tables", string(file), slices.Concat(results, tlsVersionNames[:], directionNames[:], wayNames[:], lookups)},
	} {
		for _, word := range set.words {
			if !strings.Contains(set.text, "`"+word+"`") {
				t.Errorf("docs/METRICS.md lacks `%s` in %s", word, set.where)
			}
		}
	}
}
