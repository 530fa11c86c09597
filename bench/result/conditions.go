package result

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"icapgate/bench"
)

// Condition is a statement about a result, such as "p99<50ms", "errors.timeout>0" or "entry.uploads.p99.9<=2s". The zero value holds never.
type Condition struct {
	text     string  // as it was given
	entry    string  // of the scenario, which alone it is about; empty: all requests
	figure   figure  // what is compared
	of       string  // which times, errors or late requests; empty: the latency, all
	quantile float64 // in percent
	operator string  // <, <=, > or >=
	limit    float64 // seconds, requests, requests per second
	share    bool    // limit is a share of the requests, 0 to 1
}

type figure int

const (
	quantile figure = iota + 1
	mean
	failures
	late
	rate
)

// timesOf are the times of which there are quantiles and a mean; the latency has no name.
var timesOf = map[string]func(*Result) Histogram{
	"":           func(r *Result) Histogram { return r.Latency },
	"service":    func(r *Result) Histogram { return r.Service },
	"connect":    func(r *Result) Histogram { return r.Phases.Connect },
	"handshake":  func(r *Result) Histogram { return r.Phases.Handshake },
	"continue":   func(r *Result) Histogram { return r.Phases.Continue },
	"first_byte": func(r *Result) Histogram { return r.Phases.FirstByte },
	"delay":      func(r *Result) Histogram { return r.Late.Delay },
}

// kinds are those of errors.
var kinds = []bench.Kind{
	bench.Connect, bench.Handshake, bench.Timeout, bench.Closed, bench.Truncated, bench.Framing, bench.Status, bench.Echo, bench.Unsent, bench.Input,
}

// latenesses are the reasons to begin late.
var latenesses = []string{"no_connection", "generator"}

// What is allowed, in the words of errors.
const (
	figuresAllowed = "p50, p99.9 or any other percentile, mean, max (of the latency; of others after service., connect., handshake., continue., first_byte. or " +
		"delay.), errors, late, rate"
	entriesAllowed = "a percentile, mean, max or errors after the name of the entry, such as entry.uploads.p99"
)

// ParseCondition reads a condition: a figure, <, <=, > or >=, and a limit. The limit of a time has a unit (50ms), that of errors and late
// requests is a share (0.01%) or a number (10), that of the rate a number per second (1000).
func ParseCondition(text string) (Condition, error) {
	c := Condition{text: strings.TrimSpace(text)}
	if err := c.parse(); err != nil {
		return Condition{}, fmt.Errorf("bad condition %q: %w", text, err)
	}
	return c, nil
}

// ParseConditions reads a list of conditions between commas.
func ParseConditions(text string) ([]Condition, error) {
	var list []Condition
	for part := range strings.SplitSeq(text, ",") {
		c, err := ParseCondition(part)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

func (c *Condition) parse() error {
	at := strings.IndexAny(c.text, "<>")
	if at < 0 {
		return errors.New("want a figure, <, <=, > or >=, and a limit, such as p99<50ms")
	}
	name, limit := strings.TrimSpace(c.text[:at]), c.text[at+1:]
	c.operator = c.text[at : at+1]
	if rest, ok := strings.CutPrefix(limit, "="); ok {
		c.operator, limit = c.operator+"=", rest
	}
	if err := c.parseName(name); err != nil {
		return err
	}
	return c.parseLimit(strings.ReplaceAll(limit, " ", ""))
}

func (c *Condition) parseName(name string) error {
	rest, ok := strings.CutPrefix(name, "entry.")
	if !ok {
		if !c.parseFigure(name) {
			return fmt.Errorf("there is no figure %q; there are %s", name, c.similar(name))
		}
		return nil
	}
	for i := len(rest) - 1; i > 0; i-- { // names and figures may have dots
		if rest[i] == '.' && c.parseFigure(rest[i+1:]) && c.of == "" && c.figure != late && c.figure != rate {
			c.entry = rest[:i]
			return nil
		}
	}
	return fmt.Errorf("there is no figure %q; there are %s", name, entriesAllowed)
}

// similar returns the names that may have been meant.
func (c *Condition) similar(name string) string {
	var names []string
	switch first, _, _ := strings.Cut(name, "."); first {
	case "errors":
		for _, k := range kinds {
			names = append(names, "errors."+string(k))
		}
	case "late":
		for _, reason := range latenesses {
			names = append(names, "late."+reason)
		}
	default:
		return figuresAllowed
	}
	return strings.Join(names, ", ")
}

// parseFigure says whether name is the name of a figure.
func (c *Condition) parseFigure(name string) bool {
	c.figure, c.of = 0, ""
	first, rest, dotted := strings.Cut(name, ".")
	switch {
	case name == "rate":
		c.figure = rate
	case first == "errors" && (!dotted || slices.Contains(kinds, bench.Kind(rest))):
		c.figure, c.of = failures, rest
	case first == "late" && (!dotted || slices.Contains(latenesses, rest)):
		c.figure, c.of = late, rest
	default:
		if first != "" && timesOf[first] != nil {
			c.of, name = first, rest
		}
		c.parseStatistic(name)
	}
	return c.figure != 0
}

func (c *Condition) parseStatistic(name string) {
	switch {
	case name == "mean":
		c.figure = mean
	case name == "max":
		c.figure, c.quantile = quantile, 100
	case strings.HasPrefix(name, "p"):
		if percent, ok := number(name[1:]); ok && percent <= 100 {
			c.figure, c.quantile = quantile, percent
		}
	}
}

func (c *Condition) parseLimit(text string) error {
	switch c.figure {
	case quantile, mean:
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return fmt.Errorf("the limit is %q; want a time such as 50ms or 1.5s", text)
		}
		c.limit = d.Seconds()
		return nil
	case rate:
		n, ok := number(strings.TrimSuffix(text, "/s"))
		if !ok {
			return fmt.Errorf("the limit is %q; want requests per second such as 1000", text)
		}
		c.limit = n
		return nil
	}
	percent, share := strings.CutSuffix(text, "%")
	n, ok := number(percent)
	switch {
	case !ok, share && n > 100:
		return fmt.Errorf("the limit is %q; want a share of the requests such as 0.1%%, or their number", text)
	case !share && n != math.Trunc(n):
		return fmt.Errorf("the limit is %q, which is no number of requests; a share of them ends with %%", text)
	case share:
		n /= 100
	}
	c.limit, c.share = n, share
	return nil
}

// number reads a plain number: digits, perhaps with a point.
func number(text string) (n float64, ok bool) {
	if strings.Trim(text, "0123456789.") != "" {
		return 0, false
	}
	n, err := strconv.ParseFloat(text, 64)
	return n, err == nil
}

// String returns the condition as it was given.
func (c Condition) String() string { return c.text }

// Entry returns the name of the only entry of the scenario that the condition is about, empty if it is about all requests.
func (c Condition) Entry() string { return c.entry }

// LatencyLimit returns the quantile, in percent, and the limit of a condition that is about a quantile of the latency of all requests.
func (c Condition) LatencyLimit() (percent float64, limit time.Duration, ok bool) {
	return c.quantile, seconds(c.limit), c.figure == quantile && c.of == "" && c.entry == ""
}

// Upper says whether the condition holds below a limit, not above it.
func (c Condition) Upper() bool { return strings.HasPrefix(c.operator, "<") }

// OnLatency says whether the condition limits the latency of all requests.
func (c Condition) OnLatency() bool { return c.onTime() && c.of == "" && c.entry == "" }

// OnRate says whether the condition is about the rate.
func (c Condition) OnRate() bool { return c.figure == rate }

func (c Condition) onTime() bool { return c.figure == quantile || c.figure == mean }

// decisive is how many requests should be beyond a percentile, for it to be more than luck.
const decisive = 10

// Needs returns how many requests a run should have for a percentile to say something.
func (c Condition) Needs() int64 {
	if c.figure != quantile || c.quantile == 100 {
		return 0
	}
	return int64(math.Round(decisive / (1 - c.quantile/100)))
}

// Backlog returns how far a target may fall behind before the condition does not hold; 0: the condition does not say.
func (c Condition) Backlog() time.Duration {
	if !c.OnLatency() || !c.Upper() {
		return 0
	}
	return time.Duration(c.limit * float64(time.Second))
}

// Few says why the condition says little of a run of so many requests; empty: it does say something.
func (c Condition) Few(requests int64) string {
	switch {
	case requests < c.Needs():
		return fmt.Sprintf("%d requests are few for %s: %d should be made", requests, c, c.Needs())
	case c.share && c.limit > 0 && float64(requests)*c.limit < 1:
		return fmt.Sprintf("%d requests are few for %s: one alone breaks it", requests, c)
	}
	return ""
}

// MarshalText returns the condition as it was given.
func (c Condition) MarshalText() ([]byte, error) { return []byte(c.text), nil }

// UnmarshalText is ParseCondition.
func (c *Condition) UnmarshalText(text []byte) (err error) {
	*c, err = ParseCondition(string(text))
	return err
}

// Holds says whether the condition holds for r, and the figure that it has compared with the limit.
//
// A time or a share of no requests is endless, whatever the limit: a run without answers does not meet p99<50ms, and is stopped by
// p99>50ms. But a phase that none of the answered requests has gone through (no connect, no 100 Continue) took no time.
func (c Condition) Holds(r *Result) (holds bool, value string) {
	f, value := c.value(r)
	switch c.operator {
	case "<":
		holds = f < c.limit
	case "<=":
		holds = f <= c.limit
	case ">":
		holds = f > c.limit
	case ">=":
		holds = f >= c.limit
	}
	return holds, value
}

// value returns the figure, in the unit of the limit and for people.
func (c Condition) value(r *Result) (f float64, text string) {
	switch c.figure {
	case quantile, mean:
		return c.time(r)
	case rate:
		return r.Rate(), fmt.Sprintf("%.5g/s", r.Rate())
	}
	n, of := c.requests(r)
	if !c.share {
		return float64(n), fmt.Sprint(n)
	}
	if of == 0 {
		return math.Inf(1), "no requests"
	}
	share := float64(n) / float64(of)
	return share, fmt.Sprintf("%.3g%% (%d of %d)", 100*share, n, of)
}

func (c Condition) time(r *Result) (seconds float64, text string) {
	h, answered := c.histogram(r)
	if !answered {
		return math.Inf(1), "no answers"
	}
	d := h.Quantile(c.quantile)
	if c.figure == mean {
		d = h.Mean()
	}
	return d.Seconds(), Time(d)
}

// histogram returns the times of the condition, and whether there were answers.
func (c Condition) histogram(r *Result) (h Histogram, answered bool) {
	if c.entry == "" {
		return timesOf[c.of](r), r.Requests > 0
	}
	e := c.entryOf(r)
	return e.Latency, e.Requests > 0
}

// entryOf returns the entry of the condition, an empty one if the scenario has no such entry.
func (c Condition) entryOf(r *Result) *Entry {
	for i := range r.Entries {
		if r.Entries[i].Name == c.entry {
			return &r.Entries[i]
		}
	}
	return &Entry{}
}

// requests returns how many have failed or were late, and of how many.
func (c Condition) requests(r *Result) (n, of int64) {
	switch {
	case c.figure == late:
		if c.of != "generator" {
			n += r.Late.Waited
		}
		if c.of != "no_connection" {
			n += r.Late.Generator
		}
		return n, r.Begun
	case c.entry != "":
		e := c.entryOf(r)
		return e.Failed, e.Requests + e.Failed
	case c.of != "":
		if e := r.Errors[bench.Kind(c.of)]; e != nil {
			n = e.Count
		}
		return n, r.Requests + r.Failed
	}
	return r.Failed, r.Requests + r.Failed
}

// Lost says whether an upper limit is lost already in a run that is to have total requests: r is what is known of it, and overdue how many
// more requests have been under way for longer than a time.
func (c Condition) Lost(r *Result, total int64, overdue func(time.Duration) int64) bool {
	if !c.Upper() || c.entry != "" { // of an entry, the number of requests to come is not known
		return false
	}
	switch {
	case c.figure == quantile && c.of == "":
		limit := time.Duration(c.limit * float64(time.Second))
		allowed := float64(total) - c.quantile/100*float64(total)
		return float64(r.Latency.Above(limit)+overdue(limit)) > allowed+1
	case c.figure == failures || c.figure == late:
		n, _ := c.requests(r)
		if c.share {
			return float64(n) > c.limit*float64(total)+1
		}
		return float64(n) > c.limit
	}
	return false
}
