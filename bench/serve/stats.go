package serve

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/icap"
)

// Kind marks the JSON of Stats.
const Kind = "icapbench serve"

// Stats are what the servers of a process have got. They are printed at its end and served at GET /stats.
type Stats struct {
	Kind    string        `json:"kind"` // Kind
	Began   time.Time     `json:"began"`
	Seconds float64       `json:"seconds"` // since then
	Servers []ServerStats `json:"servers"`

	// Runs are the incidents by load run, whichever server they came to.
	Runs []RunStats `json:"runs"`
	// Unparsed is how many ids had another form than RUN-N, Beyond how many could not be counted for lack of room: then IDs have gaps
	// that mean nothing.
	Unparsed uint64 `json:"ids_unparsed"`
	Beyond   uint64 `json:"ids_beyond"`
}

// ServerStats are what one server has got.
type ServerStats struct {
	Name     string            `json:"name"`
	Address  string            `json:"address"`
	Requests map[string]uint64 `json:"requests"` // whose heads were read, by method; "other": any other
	Answers  map[string]uint64 `json:"answers"`  // final answers that began, by ICAP status
	Faults   map[string]uint64 `json:"faults"`   // that happened, by kind

	BodyBytes uint64 `json:"body_bytes"` // received, without framing
	Blocked   uint64 `json:"blocked"`    // answered with the block page
	Malformed uint64 `json:"malformed"`  // requests with a protocol error
	Truncated uint64 `json:"truncated"`  // requests that the end of their connection cut
	LastError string `json:"last_error"` // of these two, "": none

	Active     int    `json:"active"` // requests being served or in line
	PeakActive int    `json:"peak_active"`
	PeakQueue  int    `json:"peak_queue"` // in line for a slot
	Turned     uint64 `json:"turned_away"`

	Connections     uint64          `json:"connections"` // accepted
	Open            int             `json:"open"`
	PeakOpen        int             `json:"peak_open"`
	RequestsPerConn ConnectionStats `json:"requests_per_connection"`
}

// ConnectionStats say how many requests connections had, those included that are open.
type ConnectionStats struct {
	Min       uint64   `json:"min"`
	Max       uint64   `json:"max"`
	Mean      float64  `json:"mean"`
	Histogram []Bucket `json:"histogram"` // without the empty buckets
}

// Bucket is how many connections had From to To requests. To of the last bucket that there can be is 0: any number.
type Bucket struct {
	From  uint64 `json:"from"`
	To    uint64 `json:"to"`
	Count uint64 `json:"count"`
}

// RunStats are the incidents of one load run. Each has a number from 0, and its id is RUN-N.
type RunStats struct {
	Run      string  `json:"run"`
	Distinct uint64  `json:"distinct"` // incidents that came whole, and were not refused, at least once
	Total    uint64  `json:"total"`    // requests that came whole and were not refused
	Cut      uint64  `json:"cut"`      // requests that ended before they were whole
	Refused  uint64  `json:"refused"`  // requests that were answered with a status of 400 and more
	IDs      []Range `json:"ids"`      // by number; what is not here did not come
}

// Range says that each of the numbers From to To came Count times; 255: at least.
type Range struct {
	From  uint64 `json:"from"`
	To    uint64 `json:"to"`
	Count int    `json:"count"`
}

// Missing returns the numbers below n that did not come, with a count of 0. A load run that sent n incidents has lost these.
func (r *RunStats) Missing(n uint64) (missing []Range) {
	next := uint64(0)
	for _, ids := range r.IDs {
		if ids.From >= n {
			break
		}
		if ids.From > next {
			missing = append(missing, Range{From: next, To: ids.From - 1})
		}
		next = ids.To + 1
	}
	if next < n {
		missing = append(missing, Range{From: next, To: n - 1})
	}
	return missing
}

// Repeated returns the numbers that came more than once.
func (r *RunStats) Repeated() (repeated []Range) {
	for _, ids := range r.IDs {
		if ids.Count > 1 {
			repeated = append(repeated, ids)
		}
	}
	return repeated
}

// ReadStats reads what a process has printed or served, and checks that it is that.
func ReadStats(r io.Reader) (*Stats, error) {
	var s Stats
	if err := json.NewDecoder(r).Decode(&s); err != nil {
		return nil, fmt.Errorf("not the JSON of icapbench serve: %w", err)
	}
	if s.Kind != Kind {
		return nil, fmt.Errorf("not the JSON of icapbench serve: its kind is %q, not %q", s.Kind, Kind)
	}
	for _, run := range s.Runs {
		for i, ids := range run.IDs {
			if ids.From > ids.To || ids.Count < 1 || i > 0 && ids.From <= run.IDs[i-1].To {
				return nil, fmt.Errorf("run %q: ids %d to %d, %d times, are out of order or wrong", run.Run, ids.From, ids.To, ids.Count)
			}
		}
	}
	return &s, nil
}

// Stats returns what the servers have got until now.
func (c *Cluster) Stats() *Stats {
	ledger := c.incidents.Ledger()
	s := &Stats{
		Kind: Kind, Began: c.began.UTC(), Seconds: time.Since(c.began).Seconds(), Unparsed: ledger.Unparsed, Beyond: ledger.Beyond,
		Servers: []ServerStats{}, Runs: []RunStats{},
	}
	for _, m := range c.members {
		s.Servers = append(s.Servers, serverStats(m))
	}
	for _, run := range ledger.Runs {
		r := RunStats{Run: run.Name, Distinct: run.Distinct, Total: run.Total, Cut: run.Cut, Refused: run.Refused, IDs: []Range{}}
		for _, ids := range run.IDs {
			r.IDs = append(r.IDs, Range(ids))
		}
		s.Runs = append(s.Runs, r)
	}
	return s
}

func serverStats(m *member) ServerStats {
	st := m.stub.Stats()
	s := ServerStats{
		Name: m.name, Address: m.address,
		Requests: map[string]uint64{
			"OPTIONS": st.Requests[icap.MethodOptions], "REQMOD": st.Requests[icap.MethodReqmod], "RESPMOD": st.Requests[icap.MethodRespmod],
			"other": st.Requests[icap.MethodOther],
		},
		Answers: map[string]uint64{}, Faults: map[string]uint64{},
		BodyBytes: st.PayloadBytes, Blocked: st.Blocked, Malformed: st.Refused, Truncated: st.Truncated,
		Active: st.Active, PeakActive: st.PeakActive, PeakQueue: st.PeakQueue, Turned: st.Turned,
		Connections: st.Accepted, Open: st.Open, PeakOpen: st.PeakOpen,
		RequestsPerConn: connectionStats(&st.PerConn),
	}
	if st.LastError != nil {
		s.LastError = st.LastError.Error()
	}
	for status, n := range st.Answers {
		s.Answers[strconv.Itoa(status)] = n
	}
	for kind, n := range st.Faults {
		s.Faults[kind.String()] = n
	}
	return s
}

func connectionStats(p *dlpstub.PerConn) ConnectionStats {
	s := ConnectionStats{Min: p.Least, Max: p.Most, Mean: p.Mean, Histogram: []Bucket{}}
	for i, n := range p.Counts {
		b := Bucket{Count: n}
		if i > 0 {
			b.From, b.To = 1<<(i-1), 1<<i-1
		}
		if i == len(p.Counts)-1 {
			b.To = 0
		}
		if n > 0 {
			s.Histogram = append(s.Histogram, b)
		}
	}
	return s
}

// WriteText writes the counters for people.
func (s *Stats) WriteText(w io.Writer) {
	for _, one := range s.Servers {
		fmt.Fprintf(w, "%s: %d OPTIONS, %d REQMOD, %d RESPMOD, %d other; %d bytes of bodies; %d connections, at most %d at a time\n", one.Name,
			one.Requests["OPTIONS"], one.Requests["REQMOD"], one.Requests["RESPMOD"], one.Requests["other"],
			one.BodyBytes, one.Connections, one.PeakOpen)
		if one.Malformed+one.Truncated > 0 || one.LastError != "" {
			fmt.Fprintf(w, "%s: %d requests malformed, %d cut short; last: %s\n", one.Name, one.Malformed, one.Truncated, one.LastError)
		}
	}
	for _, run := range s.Runs {
		fmt.Fprintf(w, "run %s: %d incidents in %d requests", run.Run, run.Distinct, run.Total)
		if len(run.IDs) > 0 {
			last := run.IDs[len(run.IDs)-1].To
			fmt.Fprintf(w, ", highest %d, %d missing below it, %d more than once", last, last+1-run.Distinct, count(run.Repeated()))
		}
		fmt.Fprintf(w, "; %d requests cut short, %d refused\n", run.Cut, run.Refused)
	}
	if s.Unparsed+s.Beyond > 0 {
		fmt.Fprintf(w, "ids: %d of another form than RUN-N, %d beyond what is counted\n", s.Unparsed, s.Beyond)
	}
}

// count returns how many numbers are in ranges.
func count(ranges []Range) (n uint64) {
	for _, r := range ranges {
		n += r.To - r.From + 1
	}
	return n
}

// WriteJSON writes the counters for ReadStats.
func (s *Stats) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	return e.Encode(s)
}
