package report

import (
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"time"

	"icapgate/bench/result"
)

//go:embed page.html
var pageHTML string

//go:embed style.css
var style string

//go:embed hover.js
var script string

// page is the template of all pages.
var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"style":  func() template.CSS { return template.CSS(style) },
	"script": func() template.JS { return template.JS(script) },
	"policy": func() string {
		sum := sha256.Sum256([]byte(script))
		return "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	},
	"text": printable,
}).Parse(pageHTML))

// view is what a page shows, in the order in which it does.
type view struct {
	Title    string
	Subtitle string
	Badge    string // the verdict, in a word or two
	Good     bool
	Cautions []string
	Cards    []card
	Tables   []table // before the charts
	Figures  []figure
	Rows     template.HTML // servers over time, if they are many
	Details  []table
	Foot     string // version and time of the report
}

// card is a figure that is shown large.
type card struct{ Name, Value, Note string }

// table is a table of text. Columns after the first are right-aligned, if they are numbers.
type table struct {
	Title   string
	About   string
	Columns []string // with units
	Words   bool     // columns are words, not numbers
	Rows    []row
	More    string // what was left out
}

// row is a row of a table.
type row struct {
	Group bool // a heading within the table
	Cells []cell
}

// cell is text with a class, and perhaps a bar of so many per cent of the width behind it.
type cell struct {
	Text  string
	Class string
	Bar   float64 // 0: none
}

func cells(texts ...string) []cell {
	list := make([]cell, len(texts))
	for i, t := range texts {
		list[i].Text = t
	}
	return list
}

// Verdicts are the thresholds of a run and what became of them.
type Verdicts struct {
	FailIf []result.Condition // the run has failed if one of them holds
	Proof  *result.Proof      // nil: there are no accounts of servers

	AllowDoubled bool // incidents that came more than once are no failure
}

// HTML writes the page of a result.
func HTML(w io.Writer, r *result.Result, v Verdicts) error {
	list := spans(r)
	p := &view{
		Title:    cmp.Or(r.Label, r.Setup.Scenario, "Load"),
		Subtitle: subtitle(r),
		Cautions: r.Cautions(),
		Cards:    cards(r),
		Foot:     foot(r.Version),
	}
	if r.Requests == 0 {
		p.Cautions = append(p.Cautions, "no request was answered")
	}
	p.verdict(r, &v)
	p.Tables = nonEmpty(setupTable(r), verdictTable(r, v.FailIf), proofTable(v.Proof))
	p.Figures = []figure{latencyOverTime(r, list), latencyPercentiles(r), throughput(r, list)}
	if n := len(r.Servers); n > 0 && n <= maxStacks {
		p.Figures = append(p.Figures, serversOverTime(r, list))
	} else if n > 0 && len(list) > 0 {
		p.Rows = serverRows(r, list)
	}
	if r.Failed > 0 {
		p.Figures = append(p.Figures, errorsOverTime(r, list))
	}
	p.Figures = append(p.Figures, histogram(r.Latency), inFlight(r, list))
	if r.Late.Waited+r.Late.Generator > 0 {
		p.Figures = append(p.Figures, lateOverTime(r, list))
	}
	p.Figures = notEmpty(append(p.Figures, ownCPU(r, list)))
	p.Details = nonEmpty(phasesTable(r), serversTable(r), entriesTable(r), answersTable(r), errorsTable(r), faultsTable(r), machinesTable(r))
	return page.Execute(w, p)
}

func foot(version string) string {
	return strings.TrimSpace("icapbench " + version)
}

func subtitle(r *result.Result) string {
	text := duration(r.Seconds)
	if r.Setup.Target != "" {
		text = r.Setup.Target + ", " + text
	}
	if !r.Started.IsZero() {
		text += " from " + r.Started.Format("2006-01-02 15:04:05 MST")
	}
	return text
}

// verdict sets the badge.
func (p *view) verdict(r *result.Result, v *Verdicts) {
	var broken []string
	for _, c := range v.FailIf {
		if holds, _ := c.Holds(r); holds {
			broken = append(broken, c.String())
		}
	}
	if v.Proof != nil && len(v.Proof.Lost) > 0 {
		broken = append(broken, fmt.Sprintf("%d lost", v.Proof.LostIDs()))
	}
	if v.Proof != nil && len(v.Proof.Doubled) > 0 && !v.AllowDoubled {
		broken = append(broken, fmt.Sprintf("%d doubled", v.Proof.DoubledIDs()))
	}
	switch {
	case len(broken) > 0:
		p.Badge = "failed: " + strings.Join(broken, ", ")
	case len(v.FailIf) > 0:
		p.Badge, p.Good = "passed", true
	case r.Requests+r.Failed == 0:
		p.Badge = "no requests"
	case r.Failed > 0:
		p.Badge = share(r.Failed, r.Requests+r.Failed) + " failed"
	default:
		p.Badge, p.Good = "no errors", true
	}
}

// number writes a count with spaces between thousands.
func number(n int64) string {
	digits := fmt.Sprint(n)
	var out strings.Builder
	for i, c := range digits {
		if i > 0 && (len(digits)-i)%3 == 0 && digits[i-1] != '-' {
			out.WriteRune('\u202f')
		}
		out.WriteRune(c)
	}
	return out.String()
}

func share(n, of int64) string {
	if of == 0 {
		return "-"
	}
	return shortest(100*float64(n)/float64(of), 3) + " %"
}

func rate(n int64, seconds float64) string {
	if seconds == 0 {
		return "0"
	}
	return numberLabel(float64(n) / seconds)
}

func cards(r *result.Result) []card {
	ended := r.Requests + r.Failed
	list := []card{
		{"answered", numberLabel(r.Rate()) + " /s", number(r.Requests) + " requests"},
		{"failed", share(r.Failed, ended), number(r.Failed) + " requests"},
		{"latency p50", latency(r.Latency, 50), "half were slower"},
		{"latency p99", latency(r.Latency, 99), "1 of 100 was slower"},
		{"latency p99.9", latency(r.Latency, 99.9), "1 of 1,000 was slower"},
		{"latency max", latency(r.Latency, 100), "the slowest"},
	}
	if r.Setup.Open {
		late := r.Late.Waited + r.Late.Generator
		list = append(list, card{"begun late", share(late, r.Begun), number(late) + " requests"})
	}
	if len(r.Servers) > 1 {
		jain, most := r.Fairness()
		list = append(list, card{"fairness", shortest(jain, 3), fmt.Sprintf("busiest of %d: %s × mean", len(r.Servers), shortest(most, 3))})
	}
	return list
}

func latency(h result.Histogram, percent float64) string {
	if h.Count() == 0 {
		return "-"
	}
	return result.Time(h.Quantile(percent))
}

func nonEmpty(list ...table) []table {
	return slices.DeleteFunc(list, func(t table) bool { return len(t.Rows) == 0 })
}

func setupTable(r *result.Result) table {
	s := &r.Setup
	t := table{Title: "Setup", Words: true}
	add := func(name, value string) {
		if value != "" {
			t.Rows = append(t.Rows, row{Cells: cells(name, value)})
		}
	}
	add("Target", s.Target)
	add("Scenario", s.Scenario)
	add("Load", s.Load())
	connections := number(int64(s.Connections))
	if s.PerConn > 0 {
		connections += fmt.Sprintf(", closed after %s requests each", number(int64(s.PerConn)))
	}
	if s.TLS {
		connections += ", TLS"
	}
	made := number(r.Dials) + " made"
	if r.Resumed > 0 {
		made += fmt.Sprintf(", %s with a resumed TLS session", number(r.Resumed))
	}
	add("Connections", connections+" ("+made+")")
	if s.Machines > 1 {
		add("Load generators", number(int64(s.Machines)))
	}
	if n := r.WarmUp; n.Requests+n.Failed > 0 {
		add("Warm-up", fmt.Sprintf("%s requests, %s failed; not in these figures", number(n.Requests), number(n.Failed)))
	}
	if r.Seconds > 0 {
		add("Bodies", fmt.Sprintf("%s MB/s sent, %s MB/s received", shortest(float64(r.BytesSent)/1e6/r.Seconds, 3), shortest(float64(r.BytesReceived)/1e6/r.Seconds, 3)))
	}
	g := &r.Generator
	if ended := r.Requests + r.Failed; ended > 0 && r.Seconds > 0 {
		waited := ""
		if g.QueuedSeconds > 0 {
			waited = fmt.Sprintf("; waited %s s for a CPU", shortest(g.QueuedSeconds, 3))
		}
		add("Own CPU", fmt.Sprintf("%s s, %s µs per request, %s %% of %d CPUs%s", shortest(g.CPUSeconds, 3), shortest(g.CPUSeconds*1e6/float64(ended), 3),
			shortest(100*g.CPUSeconds/r.Seconds/float64(max(g.CPUs, 1)), 3), g.CPUs, waited))
	}
	add("Seed", fmt.Sprint(s.Seed))
	return t
}

func verdictTable(r *result.Result, conditions []result.Condition) table {
	t := table{Title: "Thresholds", About: "The run fails if one of these holds.", Columns: []string{"fails if", "it is", "verdict"}, Words: true}
	for _, c := range conditions {
		holds, value := c.Holds(r)
		verdict := cell{Text: "passed", Class: "good"}
		if holds {
			verdict = cell{Text: "failed", Class: "bad"}
		}
		t.Rows = append(t.Rows, row{Cells: append(cells(c.String(), value), verdict)})
	}
	return t
}

func proofTable(p *result.Proof) table {
	t := table{Title: "Incidents", About: "Ids of the requests, compared with those that the servers have counted.", Columns: []string{"", "ids", "such as"}, Words: true}
	if p == nil {
		return t
	}
	add := func(name string, n uint64, example, class string) {
		t.Rows = append(t.Rows, row{Cells: []cell{{Text: name}, {Text: number(int64(n)), Class: class}, {Text: example}}})
	}
	add("answered", p.Answered, "", "")
	class, example := "good", ""
	if len(p.Lost) > 0 {
		class, example = "bad", p.Lost[0].String()
	}
	add("of these lost: at no server", p.LostIDs(), example, class)
	class, example = "good", ""
	if len(p.Doubled) > 0 {
		class, example = "bad", fmt.Sprintf("%v: %d times", p.Doubled[0].Range, p.Doubled[0].Count)
	}
	add("doubled: more than once at servers", p.DoubledIDs(), example, class)
	add("of requests that failed", p.Failed, "", "")
	add("of these at a server nevertheless", p.Arrived, "", "")
	return t
}

func latencyPercentiles(r *result.Result) figure {
	if !r.Setup.Open {
		return percentileCurve([]string{"latency"}, []string{"s1"}, []result.Histogram{r.Latency})
	}
	return percentileCurve([]string{"from the planned time", "from the real send", "send behind plan"}, []string{"s1", "s2", "faint"},
		[]result.Histogram{r.Latency, r.Service, r.Late.Delay})
}

// timeColumns are those of tables of times.
var timeColumns = []struct {
	name    string
	percent float64
}{{"p50", 50}, {"p90", 90}, {"p99", 99}, {"p99.9", 99.9}, {"p99.99", 99.99}, {"max", 100}}

func timesRow(name string, h result.Histogram, before ...string) row {
	c := cells(append([]string{name}, before...)...)
	c = append(c, cell{Text: result.Time(h.Mean())})
	for _, q := range timeColumns {
		c = append(c, cell{Text: latency(h, q.percent)})
	}
	return row{Cells: c}
}

func timesHead(before ...string) []string {
	head := append(before, "mean")
	for _, q := range timeColumns {
		head = append(head, q.name)
	}
	return head
}

func phasesTable(r *result.Result) table {
	t := table{Title: "Phases", About: "100 Continue and first byte count from the first byte that was sent; connect and handshake are those of new connections.",
		Columns: timesHead("time", "count")}
	add := func(name string, h result.Histogram) {
		if h.Count() > 0 {
			t.Rows = append(t.Rows, timesRow(name, h, number(h.Count())))
		}
	}
	if r.Setup.Open {
		add("from the planned time", r.Latency)
		add("from the real send", r.Service)
		add("send behind plan", r.Late.Delay)
	} else {
		add("whole request", r.Latency)
	}
	add("first byte", r.Phases.FirstByte)
	add("100 Continue", r.Phases.Continue)
	add("connect", r.Phases.Connect)
	add("TLS handshake", r.Phases.Handshake)
	return t
}

func serversTable(r *result.Result) table {
	t := table{Title: "Servers", Columns: []string{"server", "answered", "share"}}
	names := byCount(r.Servers, func(n int64) int64 { return n })
	most := int64(1)
	for i, name := range names {
		n := r.Servers[name]
		most = max(most, n)
		if i == maxRows {
			t.More = fmt.Sprintf("and %d more servers", len(names)-maxRows)
			break
		}
		t.Rows = append(t.Rows, row{Cells: []cell{{Text: name}, {Text: number(n)}, {Text: share(n, r.Requests), Bar: 75 * float64(n) / float64(most)}}})
	}
	if jain, top := r.Fairness(); len(names) > 1 {
		t.About = fmt.Sprintf("Jain's index of fairness is %s (1: all got the same), the busiest had %s times the mean.", shortest(jain, 4), shortest(top, 3))
	}
	return t
}

func entriesTable(r *result.Result) table {
	t := table{Title: "Scenario", Columns: timesHead("entry", "method", "answered", "per s", "failed")}
	for _, e := range r.Entries {
		t.Rows = append(t.Rows, timesRow(e.Name, e.Latency, e.Method, number(e.Requests), rate(e.Requests, r.Seconds), number(e.Failed)))
	}
	return t
}

func answersTable(r *result.Result) table {
	t := table{Title: "Answers", Columns: []string{"answer", "requests", "share"}}
	for _, code := range byCount(r.Statuses, func(n int64) int64 { return n }) {
		n := r.Statuses[code]
		t.Rows = append(t.Rows, row{Cells: cells(fmt.Sprint(code), number(n), share(n, r.Requests))})
	}
	for _, kind := range []struct {
		name string
		n    int64
	}{{"block pages and other modified messages", r.Modified}, {"echoes with other heads", r.NewHeads}} {
		if kind.n > 0 {
			t.Rows = append(t.Rows, row{Cells: cells(kind.name, number(kind.n), share(kind.n, r.Requests))})
		}
	}
	return t
}

func errorsTable(r *result.Result) table {
	t := table{Title: "Errors", Columns: []string{"kind", "requests", "the first"}, Words: true}
	for _, kind := range errorKinds(r) {
		t.Rows = append(t.Rows, row{Cells: cells(string(kind), number(r.Errors[kind].Count), r.Errors[kind].Example)})
	}
	return t
}

func faultsTable(r *result.Result) table {
	t := table{Title: "Faulty clients", About: "They are in no other figure.", Columns: []string{"fault", "clients", "what the target did"}, Words: true}
	for _, name := range byCount(r.Faults, func(f *result.Fault) int64 { return f.Count }) {
		var outcomes []string
		f := r.Faults[name]
		for _, what := range byCount(f.Outcomes, func(n int64) int64 { return n }) {
			outcomes = append(outcomes, fmt.Sprintf("%s: %s", what, number(f.Outcomes[what])))
		}
		t.Rows = append(t.Rows, row{Cells: cells(name, number(f.Count), strings.Join(outcomes, ", "))})
	}
	return t
}

func machinesTable(r *result.Result) table {
	t := table{Title: "Load generators", Columns: []string{"load generator", "from", "answered", "per s", "failed", "late by itself", "p50", "p99", "max", "own CPU"}}
	for i := range r.Machines {
		m := &r.Machines[i]
		used := "-"
		if m.Seconds > 0 {
			used = shortest(100*m.Generator.CPUSeconds/m.Seconds/float64(max(m.Generator.CPUs, 1)), 3) + " %"
		}
		t.Rows = append(t.Rows, row{Cells: cells(cmp.Or(m.Label, m.Target), m.Started.Format(time.TimeOnly), number(m.Requests), rate(m.Requests, m.Seconds),
			number(m.Failed), number(m.Late), latency(m.Latency, 50), latency(m.Latency, 99), latency(m.Latency, 100), used)})
	}
	return t
}
