package result

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"icapgate/bench"
)

// Format is the version of the JSON form. Files of another one are refused.
const Format = 2

// MaxServers bounds the servers that are told apart; the rest counts as OtherServers.
const (
	MaxServers   = 1000
	OtherServers = "others"
)

// Limits of what is read, far beyond what makes sense.
const (
	maxSeconds = 1e9
	maxStages  = 100_000
	maxRate    = 1e9
)

// Result is what a run has shown. It is complete by itself: what was asked for, what was planned and what came of it.
//
// Warm-up is left out of all figures but WarmUp. Requests of faulty clients are in Faults only.
type Result struct {
	Format  int    `json:"format"`
	Version string `json:"version"`         // of icapbench
	Label   string `json:"label,omitempty"` // what the user calls the run, or the machine
	Setup   Setup  `json:"setup"`

	Started     time.Time `json:"started"` // end of the warm-up
	Seconds     float64   `json:"seconds"` // from then to the last answer
	Interrupted bool      `json:"interrupted"`

	Begun    int64 `json:"begun"`    // requests, those that failed included
	Requests int64 `json:"requests"` // that were answered as they should be
	Failed   int64 `json:"failed"`
	WarmUp   Count `json:"warm_up"`

	Dials         int64 `json:"dials"`          // connections made, those of the warm-up included
	Resumed       int64 `json:"resumed"`        // TLS sessions of these that were resumed
	BytesSent     int64 `json:"bytes_sent"`     // of bodies, of the requests that were answered
	BytesReceived int64 `json:"bytes_received"` // of bodies

	Statuses map[int]int64          `json:"statuses"`  // of the requests that were answered
	Modified int64                  `json:"modified"`  // of these, block pages and other messages that are no echo
	NewHeads int64                  `json:"new_heads"` // of these, echoes with other encapsulated heads
	Servers  map[string]int64       `json:"servers"`   // by the header that names them; empty: no answer had it
	Errors   map[bench.Kind]*Errors `json:"errors"`
	Entries  []Entry                `json:"entries"` // of the scenario
	Faults   map[string]*Fault      `json:"faults,omitempty"`

	// Latency is the time from the planned begin of a request to the last byte of its answer. Without a rate, nothing is planned, and
	// it begins with the request (with its connect, if it needed a new connection). Service is the time from its first byte, whenever that
	// was sent. A target that falls behind shows in the first; in the second it can hide.
	Latency Histogram `json:"latency"`
	Service Histogram `json:"service"`
	Phases  Phases    `json:"phases"`
	Late    Late      `json:"late"`

	Timeline  Timeline   `json:"timeline"`
	Generator Generator  `json:"generator"`
	Incidents *Incidents `json:"incidents,omitempty"` // nil: requests had no incident ids

	Machines []Machine `json:"machines,omitempty"` // of a merged result
	Remarks  []string  `json:"remarks,omitempty"`  // what a reader of the figures has to know
}

// Setup says what was asked for.
type Setup struct {
	Target      string  `json:"target"`
	Scenario    string  `json:"scenario"` // in words, or the name of the file
	TLS         bool    `json:"tls"`
	Connections int     `json:"connections"`
	PerConn     int     `json:"requests_per_connection"` // 0: no limit
	Open        bool    `json:"open_loop"`
	Arrivals    string  `json:"arrivals,omitempty"` // of an open loop: constant or poisson
	Stages      []Stage `json:"stages,omitempty"`   // of an open loop
	Length      float64 `json:"length_seconds"`     // in which requests begin; 0: until there were enough
	Seed        uint64  `json:"seed"`
	Machines    int     `json:"machines"` // whose results this is
}

// Stage is a part of a run in which the rate goes evenly to Rate.
type Stage struct {
	Seconds float64 `json:"seconds"` // 0: at once
	Rate    float64 `json:"rate"`    // requests per second, at its end
}

// Count counts requests.
type Count struct {
	Requests int64 `json:"requests"` // that were answered as they should be
	Failed   int64 `json:"failed"`
}

// Errors are those of one kind.
type Errors struct {
	Count   int64  `json:"count"`
	Example string `json:"example"` // the first
}

// Entry is what came of one entry of the scenario.
type Entry struct {
	Name   string `json:"name"`
	Method string `json:"method"`
	Count
	Latency Histogram `json:"latency"` // as Result.Latency
}

// Fault is what came of the faulty clients of one kind.
type Fault struct {
	Count    int64            `json:"count"`
	Outcomes map[string]int64 `json:"outcomes"` // what the target did: a status, closed, …
}

// Phases are the parts of requests. FirstByte and Continue are counted from the first byte that was sent, FirstByte to the head of the final answer.
type Phases struct {
	Connect   Histogram `json:"connect"`
	Handshake Histogram `json:"handshake"`
	Continue  Histogram `json:"continue"`
	FirstByte Histogram `json:"first_byte"`
}

// Late says how far the sends of an open loop were behind their plan.
type Late struct {
	Delay     Histogram `json:"delay"`         // from the planned to the real begin, of all requests
	Waited    int64     `json:"no_connection"` // requests that began late because every connection was busy: the target's doing
	Generator int64     `json:"generator"`     // requests that began late though a connection was free: our own doing
	Limit     float64   `json:"limit_seconds"` // beyond which a request is late
}

// Generator is how hard the load generator has worked.
type Generator struct {
	CPUSeconds float64 `json:"cpu_seconds"` // of this process
	// QueuedSeconds is how long its threads had work and waited for a CPU, each counted by itself; 0 where the kernel does not say.
	QueuedSeconds float64  `json:"queued_seconds"`
	CPUs          int      `json:"cpus"`    // that it may use
	Limited       []string `json:"limited"` // why the generator may have been the limit itself; empty: it was not
}

// Incidents says which incident ids were sent.
type Incidents struct {
	Header string   `json:"header"`
	Runs   []string `json:"runs"`   // names of the runs that were merged; ids are RUN-N
	Sent   []Range  `json:"sent"`   // that were begun, warm-up included; of each run
	Failed []Range  `json:"failed"` // of these, not answered as they should be: a server may have them or not
}

// Range is a run of ids, both ends included.
type Range struct {
	Run  string `json:"run"`
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
}

// New returns an empty result.
func New() *Result {
	return &Result{
		Format: Format, Statuses: map[int]int64{}, Servers: map[string]int64{}, Errors: map[bench.Kind]*Errors{}, Faults: map[string]*Fault{},
		Latency: NewHistogram(), Service: NewHistogram(),
		Phases: Phases{NewHistogram(), NewHistogram(), NewHistogram(), NewHistogram()},
		Late:   Late{Delay: NewHistogram()},
	}
}

// Rate returns answered requests per second.
func (r *Result) Rate() float64 { return r.perSecond(float64(r.Requests)) }

func (r *Result) perSecond(n float64) float64 {
	if r.Seconds == 0 { // nothing was sent
		return 0
	}
	return n / r.Seconds
}

// share returns how much of its CPUs the load generator has used in a time.
func (g *Generator) share(seconds float64) float64 {
	if seconds == 0 {
		return 0
	}
	return g.CPUSeconds / seconds / float64(max(g.CPUs, 1))
}

// Fairness says how evenly requests were spread over the servers: Jain's index, which is 1 if all servers got the same and 1/n if one of n
// got all, and the requests of the busiest in means. Both are 1 without servers.
func (r *Result) Fairness() (jain, most float64) {
	sum, squares, top := 0.0, 0.0, 0.0
	for _, n := range r.Servers {
		x := float64(n)
		sum, squares, top = sum+x, squares+x*x, max(top, x)
	}
	if sum == 0 {
		return 1, 1
	}
	servers := float64(len(r.Servers))
	return sum * sum / (servers * squares), top * servers / sum
}

// AddError counts errors of a kind.
func (r *Result) AddError(kind bench.Kind, e Errors) {
	r.Failed += e.Count
	if r.Errors[kind] == nil {
		r.Errors[kind] = &Errors{Example: e.Example}
	}
	r.Errors[kind].Count += e.Count
}

// AddServer counts the requests of a server, which becomes one of the others when there are too many.
func (r *Result) AddServer(name string, requests int64) {
	addServer(r.Servers, name, requests)
}

func addServer(servers map[string]int64, name string, requests int64) {
	if _, ok := servers[name]; !ok && len(servers) >= MaxServers {
		name = OtherServers
	}
	servers[name] += requests
}

// Write writes the result as JSON.
func (r *Result) Write(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// Read reads what Write has written to a file.
func Read(path string) (*Result, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r, err := Parse(content)
	if err != nil {
		return nil, fmt.Errorf("cannot read %q: %w", path, err)
	}
	return r, nil
}

// Parse reads what Write has written.
func Parse(content []byte) (*Result, error) {
	r := New()
	r.Format = 0 // has to be there
	if err := json.Unmarshal(content, r); err != nil {
		return nil, err
	}
	if r.Format != Format {
		return nil, fmt.Errorf("it is no result of this icapbench: format %d, want %d", r.Format, Format)
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	return r, nil
}

// check refuses what would make nonsense of a report or a merge.
func (r *Result) check() error {
	switch {
	case r.Seconds < 0, r.Begun < 0, r.Requests < 0, r.Failed < 0, r.Timeline.Interval < 0:
		return errors.New("it has negative figures")
	case r.Seconds > maxSeconds, r.Timeline.Interval > maxSeconds:
		return errors.New("it is of more than 30 years")
	case len(r.Timeline.Points) > 0 && r.Timeline.Interval == 0:
		return errors.New("its timeline has no interval")
	case r.Setup.Length < 0, r.Setup.Length > maxSeconds:
		return fmt.Errorf("its length is %g s", r.Setup.Length)
	case len(r.Setup.Stages) > maxStages:
		return fmt.Errorf("it has %d stages, at most %d are allowed", len(r.Setup.Stages), maxStages)
	case len(r.Timeline.Points) > maxPoints:
		return fmt.Errorf("its timeline has %d points, at most %d are allowed", len(r.Timeline.Points), maxPoints)
	}
	for _, s := range r.Setup.Stages {
		if s.Seconds < 0 || s.Seconds > maxSeconds || s.Rate < 0 || s.Rate > maxRate {
			return fmt.Errorf("it has a stage of %g requests/s in %g s", s.Rate, s.Seconds)
		}
	}
	for i := range r.Machines {
		if s := r.Machines[i].Seconds; s < 0 || s > maxSeconds {
			return fmt.Errorf("it has a load generator that ran for %g s", s)
		}
	}
	for kind, e := range r.Errors {
		if e == nil {
			return fmt.Errorf("its errors of the kind %q are missing", kind)
		}
	}
	for name, f := range r.Faults {
		if f == nil {
			return fmt.Errorf("its faults of the kind %q are missing", name)
		}
	}
	return r.Incidents.check()
}
