package result

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Limits of a histogram, in microseconds; what is slower counts as the slowest.
const (
	minTime = 1
	maxTime = 10 * 60 * 1e6

	fine   = 3 // significant digits: a figure is wrong by less than 0.1 %
	coarse = 2 // of the points of a timeline, less than 1 %
)

// Histogram is a distribution of times, of which it keeps three significant digits (0.1 %). The zero value is empty and can be read, but
// not written. It is not for concurrent use.
type Histogram struct {
	h *hdrhistogram.Histogram
	// packed is the JSON form of a coarse one that was read: a timeline of an hour takes some 80 MB otherwise. It is not written to.
	packed string
}

// NewHistogram returns an empty histogram.
func NewHistogram() Histogram { return Histogram{h: hdrhistogram.New(minTime, maxTime, fine)} }

// NewCoarse returns an empty histogram of two significant digits (1 %), which is an eighth as large.
func NewCoarse() Histogram { return Histogram{h: hdrhistogram.New(minTime, maxTime, coarse)} }

// times returns what can be read, nil if there is no time.
func (h Histogram) times() *hdrhistogram.Histogram {
	if h.packed != "" {
		unpacked, err := hdrhistogram.Decode([]byte(h.packed))
		if err != nil {
			panic("BUG: a histogram that was read cannot be read: " + err.Error())
		}
		return unpacked
	}
	if h.h == nil || h.h.TotalCount() == 0 {
		return nil
	}
	return h.h
}

// Record adds a time.
func (h Histogram) Record(d time.Duration) {
	_ = h.h.RecordValue(min(max(d.Microseconds(), 0), maxTime)) // fails beyond the limits only
}

// Add adds the times of other.
func (h Histogram) Add(other Histogram) {
	if times := other.times(); times != nil {
		h.h.Merge(times)
	}
}

// Reset forgets all times.
func (h Histogram) Reset() { h.h.Reset() }

// Count returns how many times there are.
func (h Histogram) Count() int64 {
	times := h.times()
	if times == nil {
		return 0
	}
	return times.TotalCount()
}

// Quantile returns the time that percent of all are not above; 0 if there is none. 0 is the shortest, 100 the longest.
func (h Histogram) Quantile(percent float64) time.Duration {
	times := h.times()
	if times == nil {
		return 0
	}
	return time.Duration(valueAt(times, percent)) * time.Microsecond
}

// valueAt returns the time, in microseconds, that percent of all are not above. The library rounds the rank of that time, so that of 160 times
// 2 could be above the p99; here it is rounded up, as in other libraries of HdrHistogram.
func valueAt(times *hdrhistogram.Histogram, percent float64) int64 {
	n := float64(times.TotalCount())
	const slack = 1e-9 // of a share in floating point: 99.9 % of 1,000 are 999
	rank := max(1, math.Ceil(percent/100*n-slack*n))
	return times.ValueAtQuantile(100 * (rank - 0.25) / n)
}

// Mean returns the mean; 0 if there is no time.
func (h Histogram) Mean() time.Duration {
	times := h.times()
	if times == nil {
		return 0
	}
	return time.Duration(times.Mean() * float64(time.Microsecond))
}

// Max returns the longest time.
func (h Histogram) Max() time.Duration { return h.Quantile(100) }

// Above returns how many times are above d.
func (h Histogram) Above(d time.Duration) int64 {
	n := int64(0)
	for _, b := range h.Bars() {
		if b.To > d {
			n += b.Count
		}
	}
	return n
}

// Bar is a run of times that the histogram does not tell apart.
type Bar struct {
	To    time.Duration // the longest of them
	Count int64
}

// Bars returns all times from the shortest to the longest.
func (h Histogram) Bars() []Bar {
	times := h.times()
	if times == nil {
		return nil
	}
	var bars []Bar
	for _, b := range times.Distribution() {
		if b.Count > 0 {
			bars = append(bars, Bar{time.Duration(b.To) * time.Microsecond, b.Count})
		}
	}
	return bars
}

// figures are those of the JSON form; they are not read back, as they follow from the histogram.
type figures struct {
	Count int64   `json:"count"`
	Mean  float64 `json:"mean_us"`
	P50   int64   `json:"p50_us"`
	P90   int64   `json:"p90_us"`
	P95   int64   `json:"p95_us"`
	P99   int64   `json:"p99_us"`
	P999  int64   `json:"p999_us"`
	P9999 int64   `json:"p9999_us"`
	Max   int64   `json:"max_us"`
}

// MarshalJSON writes the usual figures, in microseconds, and the histogram in the compressed form of HdrHistogram (V2, base64), which
// other tools read too.
func (h Histogram) MarshalJSON() ([]byte, error) {
	times := h.times()
	if times == nil {
		return []byte("{\"count\":0}"), nil
	}
	encoded, err := times.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	if err != nil {
		return nil, err
	}
	q := func(percent float64) int64 { return valueAt(times, percent) }
	return json.Marshal(struct {
		figures
		Histogram string `json:"histogram"`
	}{
		figures{
			Count: times.TotalCount(), Mean: times.Mean(), P50: q(50), P90: q(90), P95: q(95), P99: q(99), P999: q(99.9), P9999: q(99.99), Max: q(100),
		},
		string(encoded),
	})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (h *Histogram) UnmarshalJSON(text []byte) (err error) {
	var f struct {
		Count     int64  `json:"count"`
		Histogram string `json:"histogram"`
	}
	if err := json.Unmarshal(text, &f); err != nil {
		return err
	}
	*h = Histogram{}
	if f.Histogram == "" {
		if f.Count != 0 {
			return errors.New("a histogram is missing")
		}
		return nil
	}
	defer func() { // the library indexes with numbers that it has read
		if p := recover(); p != nil {
			err = fmt.Errorf("cannot read a histogram: %v", p)
		}
	}()
	read, err := hdrhistogram.Decode([]byte(f.Histogram))
	if err != nil {
		return fmt.Errorf("cannot read a histogram: %w", err)
	}
	if read.LowestTrackableValue() != minTime || read.HighestTrackableValue() != maxTime || read.TotalCount() != f.Count {
		return errors.New("cannot read a histogram: it is not one of icapbench")
	}
	if read.SignificantFigures() == coarse && f.Count > 0 {
		h.packed = f.Histogram
	} else {
		h.h = read
	}
	return nil
}
