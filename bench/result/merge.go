package result

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Machine is what one of several load generators has done.
type Machine struct {
	Label       string    `json:"label,omitempty"`
	Target      string    `json:"target"`
	Started     time.Time `json:"started"`
	Seconds     float64   `json:"seconds"`
	Connections int       `json:"connections"`
	Begun       int64     `json:"begun"`
	Requests    int64     `json:"requests"`
	Failed      int64     `json:"failed"`
	Late        int64     `json:"late"` // because of the load generator
	Latency     Histogram `json:"latency"`
	Generator   Generator `json:"generator"`
}

// Rate returns answered requests per second.
func (m *Machine) Rate() float64 {
	if m.Seconds == 0 {
		return 0
	}
	return float64(m.Requests) / m.Seconds
}

// Merge makes one result of those of several load generators that took part in one test, as if one of them had made the whole load. A
// single result is returned as it is.
//
// Results that are no one test are refused: the same run twice, open and closed loops together (their latencies count from different
// moments), and runs of which one began when the others were over, whose rates would be those of an idle time too. Different targets are no
// such thing, as a cluster may have several addresses, nor are different scenarios: the result has a remark then, as it has on all that the
// reader of its figures should know.
func Merge(list []*Result) (*Result, error) {
	switch len(list) {
	case 0:
		return nil, errors.New("there is no result to merge")
	case 1:
		return list[0], nil
	}
	m := New()
	for _, r := range list {
		m.Machines = append(m.Machines, r.machines()...)
		for _, remark := range r.Remarks {
			m.Remarks = append(m.Remarks, r.labelled(remark))
		}
	}
	if err := oneTest(list, m.Machines); err != nil {
		return nil, err
	}
	m.mergeTime(list)
	m.mergeSetup(list)
	m.mergeTimeline(list)
	for _, r := range list {
		m.Add(r)
	}
	m.mergeIncidents(list)
	m.Remarks = distinct(m.Remarks)
	return m, nil
}

// machines returns the load generators that the result comes from.
func (r *Result) machines() []Machine {
	if len(r.Machines) > 0 {
		return r.Machines
	}
	return []Machine{{
		Label: r.Label, Target: r.Setup.Target, Started: r.Started, Seconds: r.Seconds, Connections: r.Setup.Connections,
		Begun: r.Begun, Requests: r.Requests, Failed: r.Failed, Late: r.Late.Generator, Latency: r.Latency, Generator: r.Generator,
	}}
}

// oneTest refuses results that cannot be those of one test.
func oneTest(list []*Result, machines []Machine) error {
	for i := range machines {
		for j := range machines[:i] {
			a, b := &machines[i], &machines[j]
			if a.Started.Equal(b.Started) && a.Seconds == b.Seconds && a.Begun == b.Begun && a.Generator.CPUSeconds == b.Generator.CPUSeconds && a.Begun > 0 {
				return fmt.Errorf("two of the results are those of the same run, %s", a.name())
			}
		}
	}
	runs := map[string]bool{}
	for _, r := range list {
		if r.Setup.Open != list[0].Setup.Open {
			return errors.New("one result is of an open loop and another one of a closed loop: their latencies count from different moments")
		}
		if r.Incidents == nil {
			continue
		}
		for _, run := range r.Incidents.Runs {
			if runs[run] {
				return fmt.Errorf("two of the results are those of the same run: both have incident ids %s-…", run)
			}
			runs[run] = true
		}
	}
	return noGap(ran(machines))
}

// ran returns those that sent a request, in the order in which they began. The others have no time.
func ran(machines []Machine) []*Machine {
	var out []*Machine
	for i := range machines {
		if machines[i].Begun > 0 {
			out = append(out, &machines[i])
		}
	}
	slices.SortStableFunc(out, func(a, b *Machine) int { return a.Started.Compare(b.Started) })
	return out
}

// noGap refuses runs of which one began more than a second after the others had ended.
func noGap(ran []*Machine) error {
	for i := 1; i < len(ran); i++ {
		last := slices.MaxFunc(ran[:i], func(a, b *Machine) int { return a.end().Compare(b.end()) })
		if gap := ran[i].Started.Sub(last.end()); gap > time.Second {
			return fmt.Errorf("%s began %v after %s had ended: only runs of the same time can be merged, to put two side by side use --compare "+
				"(or is a clock wrong?)", ran[i].name(), gap.Round(time.Second), last.name())
		}
	}
	return nil
}

func (m *Machine) name() string {
	started := "started " + m.Started.Format(time.DateTime)
	if m.Label == "" {
		return "the run " + started
	}
	return fmt.Sprintf("the run %q (%s)", m.Label, started)
}

func (m *Machine) end() time.Time { return m.Started.Add(seconds(m.Seconds)) }

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// mergeTime sets the time from the earliest start to the latest end.
func (m *Result) mergeTime(list []*Result) {
	for _, r := range list {
		m.Interrupted = m.Interrupted || r.Interrupted
	}
	ran := ran(m.Machines)
	if len(ran) == 0 {
		m.Started = m.Machines[0].Started
		return
	}
	m.Started = ran[0].Started
	first, last := ran[0].end(), ran[0].end() // ends
	for _, machine := range ran[1:] {
		if end := machine.end(); end.Before(first) {
			first = end
		} else if end.After(last) {
			last = end
		}
	}
	m.Seconds = last.Sub(m.Started).Seconds()
	if together := first.Sub(ran[len(ran)-1].Started).Seconds(); together < 0.9*m.Seconds {
		m.remark("all load generators ran together for %.1f s of %.1f s only; rates are over the whole time", max(together, 0), m.Seconds)
	}
}

func (r *Result) remark(format string, args ...any) {
	r.Remarks = append(r.Remarks, fmt.Sprintf(format, args...))
}

// mergeSetup adds connections and rates, and lists what differs.
func (m *Result) mergeSetup(list []*Result) {
	s := &m.Setup
	*s = list[0].Setup
	s.Connections, s.Machines = 0, 0
	var versions, labels, targets, scenarios, arrivals, perConn []string
	for _, r := range list {
		s.Connections += r.Setup.Connections
		s.Machines += max(r.Setup.Machines, 1)
		s.Length = max(s.Length, float64(m.behind(r))+r.Setup.Length)
		s.TLS = s.TLS || r.Setup.TLS
		versions = append(versions, r.Version)
		targets = append(targets, r.Setup.Target)
		scenarios = append(scenarios, r.Setup.Scenario)
		arrivals = append(arrivals, r.Setup.Arrivals)
		perConn = append(perConn, fmt.Sprint(r.Setup.PerConn))
	}
	for _, machine := range m.Machines {
		labels = append(labels, machine.Label)
	}
	m.Version, m.Label = m.join("versions", versions), strings.Join(abridge(distinct(labels), 4), " + ")
	s.Target, s.Scenario, s.Arrivals = m.join("targets", targets), m.join("scenarios", scenarios), m.join("arrivals", arrivals)
	m.join("numbers of requests per connection", perConn)
	s.Stages = m.sumStages(list)
}

// join lists what differs, and remarks that it does.
func (m *Result) join(what string, values []string) string {
	values = distinct(values)
	all := strings.Join(abridge(values, 8), ", ")
	if len(values) > 1 {
		m.remark("the load generators had different %s: %s", what, all)
	}
	return all
}

// distinct returns the values without those that came before, and without empty ones.
func distinct(values []string) []string {
	var out []string
	for _, v := range values {
		if v != "" && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	return out
}

func abridge(values []string, most int) []string {
	if len(values) <= most {
		return values
	}
	return append(slices.Clone(values[:most-1]), fmt.Sprintf("%d more", len(values)-most+1))
}

// behind returns how long after the first run another one began, in whole seconds, the grid on which timelines and stages are added.
func (m *Result) behind(r *Result) int {
	after := min(max(r.Started.Sub(m.Started), 0), seconds(m.Seconds)) // a run without a request may have begun whenever
	return int(after.Round(time.Second) / time.Second)
}

// slope is a time in which a planned rate goes evenly from one value to another.
type slope struct{ begin, end, from, to float64 }

// slopes returns the plan of stages that begin at a time. Without any length there is one rate to the end.
func slopes(stages []Stage, at, end float64) []slope {
	var out []slope
	rate := 0.0
	for _, s := range stages {
		if s.Seconds > 0 {
			out = append(out, slope{at, at + s.Seconds, rate, s.Rate})
			at += s.Seconds
		}
		rate = s.Rate
	}
	if len(out) == 0 && end > at && rate > 0 {
		out = append(out, slope{at, end, rate, rate})
	}
	return out
}

// sumStages adds the planned rates. Runs may have stages of any shape: the sum has a stage for each time in which none of them bends.
func (m *Result) sumStages(list []*Result) []Stage {
	if steady, ok := sumSteady(list); ok {
		return steady
	}
	var plans [][]slope
	var bends []float64
	for _, r := range list {
		at := float64(m.behind(r))
		plan := slopes(r.Setup.Stages, at, at+cmp.Or(r.Setup.Length, math.Round(r.Seconds)))
		plans = append(plans, plan)
		for _, s := range plan {
			bends = append(bends, s.begin, s.end)
		}
	}
	slices.Sort(bends)
	bends = slices.CompactFunc(bends, func(a, b float64) bool { return math.Abs(b-a) < 1e-6 })
	var sum []Stage
	rate := 0.0
	for i := 1; i < len(bends); i++ {
		begin, end := bends[i-1], bends[i]
		from, to := 0.0, 0.0
		for n, plan := range plans {
			for len(plan) > 0 && plan[0].end < begin+1e-6 {
				plan = plan[1:]
			}
			plans[n] = plan
			if len(plan) > 0 && plan[0].begin < end-1e-6 {
				s := plan[0]
				steep := (s.to - s.from) / (s.end - s.begin)
				from += s.from + steep*(begin-s.begin)
				to += s.from + steep*(end-s.begin)
			}
		}
		if from != rate {
			sum = append(sum, Stage{0, from})
		}
		sum = append(sum, Stage{end - begin, to})
		rate = to
	}
	return sum
}

// sumSteady adds rates that are the same from the begin to the end.
func sumSteady(list []*Result) ([]Stage, bool) {
	rate := 0.0
	for _, r := range list {
		if len(r.Setup.Stages) != 1 || r.Setup.Stages[0].Seconds > 0 {
			return nil, false
		}
		rate += r.Setup.Stages[0].Rate
	}
	return []Stage{{0, rate}}, true
}

// mergeTimeline adds timelines second by second of the wall clock, in the longest of their intervals.
func (m *Result) mergeTimeline(list []*Result) {
	t := &m.Timeline
	for _, r := range list {
		t.Interval = max(t.Interval, r.Timeline.Interval)
	}
	if t.Interval == 0 {
		return
	}
	for _, r := range list {
		for m.behind(r)+len(r.Timeline.Points)*r.Timeline.Interval > maxPoints*t.Interval {
			t.Interval *= 2
		}
	}
	for _, r := range list {
		t.add(&r.Timeline, m.behind(r))
	}
}

// add adds a timeline that has no longer interval and begins so many seconds late.
func (t *Timeline) add(other *Timeline, behind int) {
	last := -1
	for i := range other.Points {
		at := (behind + i*other.Interval + other.Interval/2) / t.Interval
		for at >= len(t.Points) {
			t.Points = append(t.Points, NewPoint())
		}
		if at == last { // in flight are those of the last point only
			t.Points[at].InFlight -= other.Points[i-1].InFlight
		}
		t.Points[at].Add(&other.Points[i])
		last = at
	}
}

// Add adds the figures of r that can simply be added: all but its setup, times and timeline, and incidents.
func (m *Result) Add(r *Result) {
	m.Begun += r.Begun
	m.Requests += r.Requests
	m.WarmUp.Requests += r.WarmUp.Requests
	m.WarmUp.Failed += r.WarmUp.Failed
	m.Dials += r.Dials
	m.Resumed += r.Resumed
	m.BytesSent += r.BytesSent
	m.BytesReceived += r.BytesReceived
	m.Modified += r.Modified
	m.NewHeads += r.NewHeads
	for code, n := range r.Statuses {
		m.Statuses[code] += n
	}
	for name, n := range r.Servers {
		m.AddServer(name, n)
	}
	for kind, e := range r.Errors {
		m.AddError(kind, *e)
	}
	for _, e := range r.Entries {
		m.addEntry(e)
	}
	for name, f := range r.Faults {
		m.addFault(name, f)
	}
	m.Latency.Add(r.Latency)
	m.Service.Add(r.Service)
	m.Phases.Connect.Add(r.Phases.Connect)
	m.Phases.Handshake.Add(r.Phases.Handshake)
	m.Phases.Continue.Add(r.Phases.Continue)
	m.Phases.FirstByte.Add(r.Phases.FirstByte)
	m.Late.Delay.Add(r.Late.Delay)
	m.Late.Waited += r.Late.Waited
	m.Late.Generator += r.Late.Generator
	m.Late.Limit = max(m.Late.Limit, r.Late.Limit)
	m.Generator.CPUSeconds += r.Generator.CPUSeconds
	m.Generator.QueuedSeconds += r.Generator.QueuedSeconds
	m.Generator.CPUs += r.Generator.CPUs
	for _, reason := range r.Generator.Limited {
		m.Generator.Limited = append(m.Generator.Limited, r.labelled(reason))
	}
}

// labelled puts the label of a single load generator before what is said about it.
func (r *Result) labelled(text string) string {
	if r.Label == "" || len(r.Machines) > 0 {
		return text
	}
	return r.Label + ": " + text
}

// addEntry adds an entry of a scenario to the one of the same name and method.
func (m *Result) addEntry(e Entry) {
	own := m.entry(e.Name, e.Method)
	if own == nil {
		m.Entries = append(m.Entries, Entry{Name: e.Name, Method: e.Method, Latency: NewHistogram()})
		own = &m.Entries[len(m.Entries)-1]
	}
	own.Requests += e.Requests
	own.Failed += e.Failed
	own.Latency.Add(e.Latency)
}

// entry returns the entry of that name and method, nil if there is none.
func (r *Result) entry(name, method string) *Entry {
	i := slices.IndexFunc(r.Entries, func(e Entry) bool { return e.Name == name && e.Method == method })
	if i < 0 {
		return nil
	}
	return &r.Entries[i]
}

func (m *Result) addFault(name string, f *Fault) {
	own := m.Faults[name]
	if own == nil {
		own = &Fault{Outcomes: map[string]int64{}}
		m.Faults[name] = own
	}
	own.Count += f.Count
	for outcome, n := range f.Outcomes {
		own.Outcomes[outcome] += n
	}
}

// mergeIncidents puts the ids of all runs together. Runs have ids of their own.
func (m *Result) mergeIncidents(list []*Result) {
	var headers []string
	without := 0
	for _, r := range list {
		if r.Incidents == nil {
			without++
			continue
		}
		if m.Incidents == nil {
			m.Incidents = &Incidents{Header: r.Incidents.Header}
		}
		headers = append(headers, r.Incidents.Header)
		m.Incidents.Runs = append(m.Incidents.Runs, r.Incidents.Runs...)
		m.Incidents.Sent = append(m.Incidents.Sent, r.Incidents.Sent...)
		m.Incidents.Failed = append(m.Incidents.Failed, r.Incidents.Failed...)
	}
	m.join("headers of incident ids", headers)
	if without > 0 && m.Incidents != nil {
		m.remark("the requests of %d of %d load generators had no incident ids", without, len(list))
	}
}
