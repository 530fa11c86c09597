package result

import "icapgate/bench"

// maxPoints bounds a timeline. A longer run gets points of two seconds, then of four, and so on.
const maxPoints = 3600

// Timeline is what happened second by second. Requests count where they ended.
type Timeline struct {
	Interval int     `json:"interval_seconds"` // that one point stands for
	Points   []Point `json:"points"`           // from Result.Started on

	seconds int // that were appended
}

// Point is one interval of a timeline.
type Point struct {
	Begun    int64                `json:"begun"`
	Requests int64                `json:"requests"` // that were answered as they should be
	Failed   int64                `json:"failed"`
	Errors   map[bench.Kind]int64 `json:"errors,omitempty"`
	Late     int64                `json:"late"`      // requests that began late, for whichever reason
	InFlight int64                `json:"in_flight"` // at its end

	BytesSent     int64 `json:"bytes_sent"`
	BytesReceived int64 `json:"bytes_received"`

	Servers map[string]int64 `json:"servers,omitempty"`
	Latency Histogram        `json:"latency"`
	CPU     float64          `json:"cpu_seconds"` // of the load generator
}

// NewPoint returns an empty point.
func NewPoint() Point {
	return Point{Errors: map[bench.Kind]int64{}, Servers: map[string]int64{}, Latency: NewCoarse()}
}

// Append adds the next second, which is the timeline's from then on.
func (t *Timeline) Append(second Point) {
	t.Interval = max(t.Interval, 1)
	if t.seconds/t.Interval == maxPoints {
		t.halve()
	}
	if i := t.seconds / t.Interval; i < len(t.Points) {
		t.Points[i].Add(&second)
		t.Points[i].InFlight = second.InFlight
	} else {
		t.Points = append(t.Points, second)
	}
	t.seconds++
}

// Extend adds what came shortly after the last second to it, so that the timeline does not end with a point of almost nothing.
func (t *Timeline) Extend(rest Point) {
	n := len(t.Points)
	if n == 0 {
		t.Append(rest)
		return
	}
	t.Points[n-1].Add(&rest)
	t.Points[n-1].InFlight = rest.InFlight
}

// halve makes one point of two.
func (t *Timeline) halve() {
	t.Interval *= 2
	half := t.Points[:0]
	for i := 0; i < len(t.Points); i += 2 {
		p := t.Points[i]
		if i+1 < len(t.Points) {
			last := &t.Points[i+1]
			p.Add(last)
			p.InFlight = last.InFlight
		}
		half = append(half, p)
	}
	clear(t.Points[len(half):])
	t.Points = half
}

// Add adds the figures of another point, as of another machine at the same time.
func (p *Point) Add(other *Point) {
	p.Begun += other.Begun
	p.Requests += other.Requests
	p.Failed += other.Failed
	p.Late += other.Late
	p.InFlight += other.InFlight
	p.BytesSent += other.BytesSent
	p.BytesReceived += other.BytesReceived
	p.CPU += other.CPU
	for kind, n := range other.Errors {
		if p.Errors == nil {
			p.Errors = map[bench.Kind]int64{}
		}
		p.Errors[kind] += n
	}
	for name, n := range other.Servers {
		if p.Servers == nil {
			p.Servers = map[string]int64{}
		}
		addServer(p.Servers, name, n)
	}
	if p.Latency.h == nil { // as it is read from a file
		read := p.Latency
		p.Latency = NewCoarse()
		p.Latency.Add(read)
	}
	p.Latency.Add(other.Latency)
}
