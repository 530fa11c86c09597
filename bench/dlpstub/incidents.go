package dlpstub

import (
	"bytes"
	"cmp"
	"slices"
	"sync"
)

// Bounds of what Incidents keep. What goes beyond is counted in Ledger.Beyond.
const (
	MaxIncidentRuns   = 64      // runs
	MaxIncidentNumber = 1 << 27 // numbers of a run are below this
	maxIncidentPages  = 1 << 16 // of idPage bytes, of all runs together: 256 MiB
	maxRunName        = 32

	idPage = 4096
)

// Incidents count the requests that carry an incident id: RUN-N, where RUN is the name of a load run in lower-case letters and digits,
// and N counts its incidents from 0, without leading zeros. Several servers may share one. It keeps one byte per incident.
type Incidents struct {
	mu     sync.Mutex
	runs   map[string]*incidentRun
	pages  int
	ledger Ledger // its Runs is unused
}

// incidentRun is one run. A page has the counters of idPage numbers, nil as long as they are all 0.
type incidentRun struct {
	pages    [][]byte
	distinct uint64
	total    uint64
	cut      uint64
	refused  uint64
}

// Ledger is what Incidents have counted.
type Ledger struct {
	Runs     []Run  // by name
	Unparsed uint64 // ids of another form
	Beyond   uint64 // requests whose id is beyond the bounds: their run has a gap there
}

// Run is what was counted of one load run.
type Run struct {
	Name     string
	Distinct uint64 // incidents that were received whole at least once
	Total    uint64 // requests that were received whole and not refused
	Cut      uint64 // requests that ended before they were whole
	Refused  uint64 // requests that were answered with a status of 400 and more
	IDs      []IDRange
}

// IDRange says that each number from From to To was received whole, and not refused, Count times; 255 stands for that and more.
type IDRange struct {
	From, To uint64
	Count    int
}

// NewIncidents returns a ledger without entries.
func NewIncidents() *Incidents { return &Incidents{runs: map[string]*incidentRun{}} }

// outcome is what became of a request.
type outcome uint8

const (
	whole outcome = iota
	cut
	refused
)

// parseIncident splits RUN-N.
func parseIncident(id []byte) (run []byte, n uint64, ok bool) {
	i := bytes.LastIndexByte(id, '-')
	if i <= 0 || i > maxRunName {
		return nil, 0, false
	}
	run, digits := id[:i], id[i+1:]
	for _, c := range run {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return nil, 0, false
		}
	}
	if len(digits) == 0 || len(digits) > 18 || digits[0] == '0' && len(digits) > 1 {
		return nil, 0, false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return nil, 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return run, n, true
}

// note counts one request.
func (in *Incidents) note(id []byte, what outcome) {
	name, n, ok := parseIncident(id)
	in.mu.Lock()
	defer in.mu.Unlock()
	if !ok {
		in.ledger.Unparsed++
		return
	}
	run := in.runs[string(name)]
	if run == nil {
		if len(in.runs) == MaxIncidentRuns {
			in.ledger.Beyond++
			return
		}
		run = &incidentRun{}
		in.runs[string(name)] = run
	}
	switch what {
	case cut:
		run.cut++
		return
	case refused:
		run.refused++
		return
	}
	p := n / idPage
	if n >= MaxIncidentNumber || in.pages == maxIncidentPages && (p >= uint64(len(run.pages)) || run.pages[p] == nil) {
		in.ledger.Beyond++
		return
	}
	if p >= uint64(len(run.pages)) {
		run.pages = append(run.pages, make([][]byte, int(p)+1-len(run.pages))...)
	}
	if run.pages[p] == nil {
		run.pages[p] = make([]byte, idPage)
		in.pages++
	}
	count := &run.pages[p][n%idPage]
	if *count == 0 {
		run.distinct++
	}
	if *count < 255 {
		*count++
	}
	run.total++
}

// Ledger returns what was counted until now. While requests come in, figures of a run may differ by those.
func (in *Incidents) Ledger() Ledger {
	in.mu.Lock()
	l := in.ledger
	runs := make(map[string]*incidentRun, len(in.runs))
	for name, run := range in.runs {
		runs[name] = run
	}
	in.mu.Unlock()
	for name, run := range runs {
		l.Runs = append(l.Runs, in.read(name, run))
	}
	slices.SortFunc(l.Runs, func(a, b Run) int { return cmp.Compare(a.Name, b.Name) })
	return l
}

// read copies one run page by page, so that no request waits for long.
func (in *Incidents) read(name string, run *incidentRun) Run {
	r := Run{Name: name}
	var page [idPage]byte
	for p := 0; ; p++ {
		in.mu.Lock()
		if p >= len(run.pages) {
			r.Distinct, r.Total, r.Cut, r.Refused = run.distinct, run.total, run.cut, run.refused
			in.mu.Unlock()
			return r
		}
		known := run.pages[p] != nil
		if known {
			copy(page[:], run.pages[p])
		}
		in.mu.Unlock()
		if known {
			r.add(uint64(p)*idPage, page[:])
		}
	}
}

// add appends the counters of the numbers from first on.
func (r *Run) add(first uint64, counts []byte) {
	for i, count := range counts {
		if count == 0 {
			continue
		}
		n := first + uint64(i)
		if last := len(r.IDs) - 1; last >= 0 && r.IDs[last].To+1 == n && r.IDs[last].Count == int(count) {
			r.IDs[last].To = n
			continue
		}
		r.IDs = append(r.IDs, IDRange{n, n, int(count)})
	}
}
