package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"icapgate/bench"
	"icapgate/bench/result"
	"icapgate/bench/scenario"
)

// Config says what load is made.
type Config struct {
	Target bench.Target
	TLS    *tls.Config   // of bench.TLSOptions.Config; nil: plain ICAP
	Resume float64       // share of the TLS handshakes that offer a session of the same worker to be resumed, 0 to 1
	Mix    *scenario.Mix // what requests look like
	Name   string        // of the scenario, for the result
	Label  string        // of the run, for the result

	IncidentHeader string // that carries the incident ids of Mix, for the result; "": there are none
	IncidentRun    string // their first part, as Mix.SetRun got it

	Connections int           // each with one request at a time
	PerConn     int           // requests after which a connection is closed and a new one made; 0: no limit
	Idle        time.Duration // after which a connection without a request is closed; 0: never
	Timeout     time.Duration // for a connection, and for every wait for bytes

	// Stages make the loop open. A first one without length is the rate to begin with, otherwise that is 0. Without stages the loop is closed.
	Stages  []result.Stage
	Poisson bool // arrivals of an open loop come at random and not evenly
	Seed    uint64

	StartAt  time.Time     // when the run begins; zero: at once
	WarmUp   time.Duration // before the figures count
	Requests int64         // that are sent in all, after the warm-up; 0: until the time is over
	Duration time.Duration // after the warm-up, when no request begins any more; 0: the length of the stages, or until Requests are done

	ServerHeader string // header of the answers by which servers are told apart, "": X-Server

	// Dial, if set, makes the connections in place of TCP to Target. Waits are those of package time then, so that a run in a
	// testing/synctest bubble takes no real time.
	Dial func(context.Context) (net.Conn, error)

	// Progress, if set, is called once a second with the figures so far, without those of the entries. They are its own, except that the
	// timeline may be looked at during the call only.
	Progress func(*result.Result)
}

// Constant returns the stages of a constant rate, in requests per second. With d == 0 it goes on until something else ends the run.
func Constant(rate float64, d time.Duration) []result.Stage {
	stages := []result.Stage{{Rate: rate}}
	if d > 0 {
		stages = append(stages, result.Stage{Seconds: d.Seconds(), Rate: rate})
	}
	return stages
}

// open says whether arrivals are planned.
func (cfg *Config) open() bool { return len(cfg.Stages) > 0 }

// Length is how long requests begin, after the warm-up; 0: without end.
func (cfg *Config) Length() time.Duration {
	if cfg.Duration > 0 {
		return cfg.Duration
	}
	return length(cfg.Stages)
}

func (cfg *Config) check() error {
	if cfg.Mix == nil {
		return errors.New("a load needs a scenario")
	}
	for i, s := range cfg.Stages {
		if s.Rate != 0 && !(s.Rate >= minRate && s.Rate <= maxRate) || !(s.Seconds >= 0 && s.Seconds <= maxSeconds) {
			return fmt.Errorf("stage %d goes to %g/s in %g s, allowed: a rate of 0, or %g to %g, in a time of 0 to %g",
				i+1, s.Rate, s.Seconds, minRate, float64(maxRate), float64(maxSeconds))
		}
	}
	switch {
	case cfg.Connections < 1:
		return errors.New("at least one connection is needed")
	case cfg.Requests < 0:
		return errors.New("the number of requests cannot be negative")
	case cfg.PerConn < 0:
		return errors.New("the number of requests after which a connection is closed cannot be negative")
	case cfg.Requests == 0 && cfg.Length() <= 0:
		return errors.New("a number of requests or a duration is needed")
	case cfg.Duration < 0 || cfg.WarmUp < 0:
		return errors.New("times cannot be negative")
	case cfg.Timeout <= 0:
		return errors.New("the timeout must be above 0")
	case !(cfg.Resume >= 0 && cfg.Resume <= 1):
		return errors.New("the share of resumed sessions must be between 0 and 1")
	case cfg.open() && cfg.WarmUp > 0 && firstRate(cfg.Stages) == 0:
		return errors.New("a warm-up needs a rate to begin with: put a stage without length before the others, such as 0s:100")
	case cfg.open() && length(cfg.Stages) == 0 && firstRate(cfg.Stages) == 0:
		return errors.New("the rate is 0")
	}
	return nil
}

const (
	minRate    = 1e-6 // requests per second; far below, the time of the next one would be beyond what a time can be
	maxRate    = 10e6
	maxSeconds = 366 * 864e2 // a year
)
