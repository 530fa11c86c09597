package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"icapgate/bench"
	"icapgate/bench/scenario"
)

// size is a number of bytes, such as 512, 64KiB, 10MB.
type size int64

var units = []struct {
	suffix string
	bytes  float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}, {"", 1},
}

func (s *size) UnmarshalText(text []byte) error {
	for _, u := range units {
		number, ok := strings.CutSuffix(string(text), u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || n < 0 || n*u.bytes > math.MaxInt64/2 || math.IsNaN(n) {
			break
		}
		*s = size(n * u.bytes)
		return nil
	}
	return fmt.Errorf("bad size %q: want a number of bytes such as 512, 64KiB, 10MB", text)
}

// preview is a number of bytes or none; the zero value is "not chosen".
type preview struct {
	chosen bool
	bytes  int64 // -1: none
}

func (p *preview) UnmarshalText(text []byte) error {
	if string(text) == "none" {
		*p = preview{true, -1}
		return nil
	}
	n, err := strconv.ParseUint(string(text), 10, 31)
	if err != nil {
		return fmt.Errorf("bad preview %q: want a number of bytes or none", text)
	}
	*p = preview{true, int64(n)}
	return nil
}

// or returns the chosen preview, otherwise def.
func (p preview) or(def int64) int64 {
	if p.chosen {
		return p.bytes
	}
	return def
}

// stage is a part of a run, such as 30s:100: to 100 requests per second in 30 s.
type stage struct {
	length time.Duration
	rate   float64
}

func (s *stage) UnmarshalText(text []byte) error {
	length, rate, ok := strings.Cut(string(text), ":")
	var err error
	if s.length, err = time.ParseDuration(length); err == nil {
		s.rate, err = strconv.ParseFloat(rate, 64)
	}
	if !ok || err != nil || s.length < 0 || !(s.rate >= 0) {
		return fmt.Errorf("bad stage %q: want a time and a rate at its end, such as 30s:100", text)
	}
	return nil
}

// startTime is a moment: 15:04:05 is the next time that a clock shows it here.
type startTime time.Time

func (t *startTime) UnmarshalText(text []byte) error {
	if at, err := time.Parse(time.RFC3339, string(text)); err == nil {
		*t = startTime(at)
		return nil
	}
	clock, err := time.Parse(time.TimeOnly, string(text))
	if err != nil {
		return fmt.Errorf("bad time %q: want 15:04:05, or 2006-01-02T15:04:05Z", text)
	}
	now := time.Now()
	at := time.Date(now.Year(), now.Month(), now.Day(), clock.Hour(), clock.Minute(), clock.Second(), 0, now.Location())
	if at.Before(now) {
		at = at.AddDate(0, 0, 1)
	}
	*t = startTime(at)
	return nil
}

// share is a part of a whole, such as 2% or 0.02.
type share float64

func (s *share) UnmarshalText(text []byte) error {
	n, err := parseShare(string(text))
	if err != nil {
		return fmt.Errorf("bad share %q: want a percentage such as 2%%", text)
	}
	*s = share(n)
	return nil
}

// parseShare reads a percentage, or a number from 0 to 1.
func parseShare(text string) (float64, error) {
	number, percent := strings.CutSuffix(text, "%")
	n, err := strconv.ParseFloat(number, 64)
	if percent {
		n /= 100
	}
	if err == nil && !(n >= 0 && n <= 1) {
		err = strconv.ErrRange
	}
	return n, err
}

// faultFlag is a kind of faulty client and its share, such as slow_body=1%.
type faultFlag struct {
	kind  scenario.FaultKind
	share float64
}

func (f *faultFlag) UnmarshalText(text []byte) error {
	kind, part, ok := strings.Cut(string(text), "=")
	n, err := parseShare(part)
	f.kind, f.share = scenario.FaultKind(strings.ReplaceAll(kind, "-", "_")), n
	if !ok || err != nil || !slices.Contains(scenario.FaultKinds, f.kind) {
		return fmt.Errorf("bad fault %q: want %s, and a share, such as slow_body=1%%", text, scenario.FaultNames())
	}
	return nil
}

// tlsFlags are those of an icaps:// target.
type tlsFlags struct {
	Insecure   bool   `help:"Do not verify the certificate." group:"TLS"`
	CA         string `name:"ca" placeholder:"FILE" help:"PEM file with the CA, or the self-signed certificate, to trust in place of the system's." group:"TLS"`
	ServerName string `placeholder:"NAME" help:"Name to verify and to send as SNI, in place of the host of the URI." group:"TLS"`
	Cert       string `placeholder:"FILE" help:"Client certificate and key, one combined PEM." group:"TLS"`
}

func (f *tlsFlags) options() bench.TLSOptions {
	return bench.TLSOptions{Insecure: f.Insecure, CAFile: f.CA, ServerName: f.ServerName, CertFile: f.Cert}
}
