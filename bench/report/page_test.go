package report

import (
	"bytes"
	"encoding/xml"
	"flag"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"icapgate/bench/result"
)

var pages = flag.String("pages", "", "folder to write the pages of the samples to, to look at them")

func mustConditions(t testing.TB, text string) []result.Condition {
	t.Helper()
	list, err := result.ParseConditions(text)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// samplePages returns pages of all sorts.
func samplePages(t *testing.T) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	add := func(name string, write func(io.Writer) error) {
		var out bytes.Buffer
		if err := write(&out); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all[name] = out.Bytes()
	}
	list := samples(t)
	for name, r := range list {
		v := Verdicts{}
		switch name {
		case "open", "empty":
			v.FailIf = mustConditions(t, "p99>50ms,errors>1%,rate<10")
		case "merged":
			v.Proof = &result.Proof{Answered: 5000, Failed: 3, Lost: []result.Range{{Run: "ab", From: 7, To: 9}}}
		}
		add(name, func(w io.Writer) error { return HTML(w, r, v) })
	}
	pairs := map[string][2]string{
		"compare": {"open", "merged"}, "compare-short": {"short", "empty"}, "compare-hour": {"hour", "hostile"}, "compare-empty": {"empty", "empty"},
	}
	for name, pair := range pairs {
		add(name, func(w io.Writer) error { return Compare(w, list[pair[0]], list[pair[1]]) })
	}
	add("capacity", func(w io.Writer) error { return Capacity(w, sampleCapacity(t)) })
	add("capacity-empty", func(w io.Writer) error { return Capacity(w, &result.Capacity{}) })
	if *pages != "" {
		for name, page := range all {
			if err := os.WriteFile(filepath.Join(*pages, name+".html"), page, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return all
}

// charts are how many there are on each page.
var charts = map[string]int{
	"empty": 0, "failed": 4, "second": 7, "short": 7, "open": 9, "hour": 9, "many": 9, "hostile": 8, "merged": 9,
	"compare": 6, "compare-short": 5, "compare-hour": 6, "compare-empty": 0, "capacity": 2, "capacity-empty": 0,
}

var (
	coordinate = regexp.MustCompile(`-?[0-9.]+(e[-+]?[0-9]+)?`)
	elsewhere  = regexp.MustCompile(`(?i)url\(|@import|https?:|//`)
)

// TestPages reads all pages as XML, which they are too, so that every element has to end and every attribute to be quoted. They must not
// refer to anything, nor have a chart with a place that is no place.
func TestPages(t *testing.T) {
	for name, page := range samplePages(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dec := xml.NewDecoder(bytes.NewReader(page))
			seen := map[string]int{}
			var open []string
			for {
				token, err := dec.Token()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				switch token := token.(type) {
				case xml.StartElement:
					open = append(open, token.Name.Local)
					seen[token.Name.Local]++
					checkAttributes(t, token, slices.Contains(open, "svg"))
				case xml.EndElement:
					open = open[:len(open)-1]
				case xml.CharData:
					if in := open; len(in) > 0 && (in[len(in)-1] == "style" || in[len(in)-1] == "script") && elsewhere.Match(comments.ReplaceAll(token, nil)) {
						t.Errorf("%s refers to something: %s", in[len(in)-1], elsewhere.Find(token))
					}
				}
			}
			if seen["svg"] != charts[name] {
				t.Errorf("%d charts, want %d", seen["svg"], charts[name])
			}
			for _, alien := range []string{"img", "link", "iframe", "object", "base", "form", "a"} {
				if seen[alien] > 0 {
					t.Errorf("there is a <%s>", alien)
				}
			}
			if seen["script"] != 1 || seen["style"] != 1 || seen["h1"] != 1 || seen["title"] == 0 {
				t.Errorf("elements: %v", seen)
			}
		})
	}
}

var comments = regexp.MustCompile(`(?m)^\s*// .*$`) // of the script

func checkAttributes(t *testing.T, e xml.StartElement, drawn bool) {
	t.Helper()
	for _, a := range e.Attr {
		switch {
		case strings.HasPrefix(a.Name.Local, "on"), a.Name.Local == "src", a.Name.Local == "href":
			t.Errorf("<%s> has %s=%q", e.Name.Local, a.Name.Local, a.Value)
		case drawn && slices.Contains([]string{"d", "x", "y", "width", "height", "cx", "cy", "r", "fill-opacity", "viewBox"}, a.Name.Local):
			checkPlaces(t, a.Value)
		case a.Name.Local == "data-values" || a.Name.Local == "data-hover" || a.Name.Local == "style":
			if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") {
				t.Errorf("%s is %.100q", a.Name.Local, a.Value)
			}
		}
	}
	if e.Name.Local == "svg" && !slices.ContainsFunc(e.Attr, func(a xml.Attr) bool { return a.Name.Local == "aria-label" && a.Value != "" }) {
		t.Error("a chart has no label")
	}
}

// checkPlaces finds places that are not in a chart.
func checkPlaces(t *testing.T, value string) {
	t.Helper()
	if rest := coordinate.ReplaceAllString(value, ""); strings.Trim(rest, "MLHVZvhlm ") != "" {
		t.Errorf("bad place: %.100q", rest)
	}
	for _, text := range coordinate.FindAllString(value, -1) {
		if n, err := strconv.ParseFloat(text, 64); err != nil || n < -10 || n > 1000 {
			t.Errorf("%q is not in the chart", text)
		}
	}
}

// TestPageSays finds what a reader looks for.
func TestPageSays(t *testing.T) {
	all := samplePages(t)
	f := func(name string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(string(all[name]), w) {
				t.Errorf("%s: no %q", name, w)
			}
		}
	}
	f("open", "failed: p99&gt;50ms", ">p99&gt;50ms</th>", ">from the planned time<", "poisson arrivals at 50/s to 300/s in 30s", "503 Service overloaded", ">planned <",
		">time since the start<", ">percentile<", ">99.99 %<", ">latency (logarithmic)<", "Jain&#39;s index")
	f("empty", "no request was answered", "no answers")
	f("short", "no errors", ">0 %<")
	f("failed", "connection refused", "100 % failed", "no request was answered")
	f("hour", "in each 10s", ">30m<", ">1h<")
	f("many", "A row for each server", "10.2.1.140:1344, 20s: ")
	f("merged", "may have been the limit: right: it used 93 % of its CPUs", "slow_body", "204: 18, closed: 2", "failed: 3 lost", "ab-7 to ab-9", ">Load generators<", "left &#43; right")
	f("hostile", "&lt;script&gt;alert(1)&lt;/script&gt;")
	f("compare", "Different setup", ">B/A<", ">better<", ">worse<", ">p99.99<")
	f("capacity", ">1020 /s<", "SLO: p99&lt;50ms", "knee 1020 /s", "the knee is between 1000 and 1045 /s", "it used 95 % of its CPUs", "limited by the load generator")
	for _, name := range []string{"empty", "short", "open"} {
		if strings.Contains(string(all[name]), `role="note"`) != (name == "empty") {
			t.Errorf("%s: a caution is there that should not, or is missing", name)
		}
	}
}

// The badge says what the exit code of icapbench report does.
func TestBadge(t *testing.T) {
	r := samples(t)["short"]
	r.Failed = 0
	twice := &result.Proof{Answered: 9, Doubled: []result.Received{{Range: result.Range{Run: "ab", From: 7, To: 9}, Count: 2}}}
	for _, tt := range []struct {
		v    Verdicts
		want string
	}{
		{Verdicts{}, `<p class="badge good">no errors</p>`},
		{Verdicts{Proof: &result.Proof{Answered: 9}}, `<p class="badge good">no errors</p>`},
		{Verdicts{Proof: &result.Proof{Lost: []result.Range{{Run: "ab"}}}}, `<p class="badge bad">failed: 1 lost</p>`},
		{Verdicts{Proof: twice}, `<p class="badge bad">failed: 3 doubled</p>`},
		{Verdicts{Proof: twice, AllowDoubled: true}, `<p class="badge good">no errors</p>`},
	} {
		var out bytes.Buffer
		if err := HTML(&out, r, tt.v); err != nil || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%+v: no %s, %v", tt.v, tt.want, err)
		}
	}
}
