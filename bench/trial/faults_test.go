package main

import (
	"testing"
	"time"
)

// What a watcher has seen says when a server was out and back.
func TestWatcher(t *testing.T) {
	start := time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	for _, c := range []struct {
		name       string
		looks      []look
		out, back  time.Duration
		total, end float64 // attempts at the begin and at the end of the fault, which lasts from 1000 to 5000
	}{
		{"nothing seen", nil, -1, -1, 0, 0},
		{"out at once, back", []look{{at(900), 7}, {at(1500), 7}, {at(2100), 7}, {at(4900), 7}, {at(5100), 7}, {at(5200), 8}, {at(5300), 20}},
			0, 200 * time.Millisecond, 7, 7},
		{"out after some", []look{{at(900), 7}, {at(1500), 9}, {at(1600), 10}, {at(2500), 10}, {at(2600), 10}, {at(4900), 10}, {at(5100), 10}},
			600 * time.Millisecond, -1, 7, 10},
		{"never out", []look{{at(900), 7}, {at(1800), 9}, {at(2700), 11}, {at(3600), 13}, {at(4500), 15}, {at(5400), 16}}, -1, 400 * time.Millisecond, 7, 15},
		{"quiet too late", []look{{at(900), 7}, {at(1800), 9}, {at(2700), 11}, {at(3600), 13}, {at(4500), 15}, {at(5600), 15}}, -1, -1, 7, 15},
	} {
		w := &watcher{looks: c.looks}
		if out, back := w.quiet(at(1000), at(5000)), w.back(at(5000)); out != c.out || back != c.back {
			t.Errorf("%s: out after %v, back after %v, want %v, %v", c.name, out, back, c.out, c.back)
		}
		if a, b := w.at(at(1000)), w.at(at(5000)); a != c.total || b != c.end {
			t.Errorf("%s: %v attempts at the begin, %v at the end, want %v, %v", c.name, a, b, c.total, c.end)
		}
	}
}
