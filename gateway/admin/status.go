package admin

import (
	"fmt"
	"time"
)

// Status is everything known of a running gateway, as /status gives it. Fields may be added; they are not renamed.
type Status struct {
	Version       string           `json:"version"`
	UptimeSeconds float64          `json:"uptime_seconds"`
	Draining      bool             `json:"draining"`
	Limits        LimitsStatus     `json:"limits"`
	Listeners     []ListenerStatus `json:"listeners"`
	Services      []ServiceStatus  `json:"services"`
	Pools         []PoolStatus     `json:"pools"`
	Names         []NameStatus     `json:"names"`
}

// LimitsStatus is how near the gateway is to refusing new clients.
type LimitsStatus struct {
	Connections    int      `json:"connections"` // of clients now, handshakes included
	MaxConnections int      `json:"max_connections"`
	Memory         int64    `json:"memory"`     // resident, in bytes, when last looked at; 0: there is no limit
	MaxMemory      int64    `json:"max_memory"` // bytes; 0: no limit
	Overloaded     []string `json:"overloaded"` // why new clients are refused now: connections, memory
}

// ListenerStatus is one address that clients connect to.
type ListenerStatus struct {
	Name        string `json:"name"`
	Address     string `json:"address"`
	Sessions    int    `json:"sessions"`    // client connections now
	Connections int    `json:"connections"` // the same with those in their handshake
}

// ServiceStatus is one service as its clients know it.
type ServiceStatus struct {
	Service      string              `json:"service"`                // its path, with a * at its end if it is all below
	Listener     string              `json:"listener,omitempty"`     // "": every one
	ServerNames  []string            `json:"server_names,omitempty"` // none: all
	Pools        []string            `json:"pools"`                  // that its methods are routed to
	Up           bool                `json:"up"`                     // clients are not told that it is unavailable
	ISTag        string              `json:"istag"`                  // of the gateway's own answers
	ISTags       int                 `json:"istags"`                 // different ones that the servers of a pool have for one path, where they are the most
	ISTagChanges uint64              `json:"istag_changes"`          // of the gateway's own
	Announced    map[string][]string `json:"announced"`              // by path: what the gateway answers to OPTIONS; empty: it is the servers' to answer
}

// PoolStatus is one pool.
type PoolStatus struct {
	Name    string         `json:"name"`
	Balance string         `json:"balance"`
	Queue   int            `json:"queue"` // transactions that wait for a server
	Waits   WaitsStatus    `json:"waits"`
	Tier    int            `json:"tier"`  // the highest one whose servers get requests
	Panic   bool           `json:"panic"` // so few servers are usable that requests go to all of them, whatever the checks say
	Servers []ServerStatus `json:"servers"`

	ConnectionShare int `json:"connection_share"` // number of gateways that share the servers' caps, 0: DNS has not told it yet
}

// WaitsStatus is what a pool's queue does. Causes are cap, full, health and own; reasons max, full and timeout: docs/METRICS.md has them.
type WaitsStatus struct {
	Now           map[string]int     `json:"now,omitempty"`     // transactions that wait, by cause
	OldestSeconds float64            `json:"oldest_seconds"`    // how long the first of them has waited
	Ended         map[string]uint64  `json:"ended,omitempty"`   // waits so far, by cause
	Seconds       map[string]float64 `json:"seconds,omitempty"` // that they took
	Refused       map[string]uint64  `json:"refused,omitempty"` // transactions that were not to wait, or no longer, by reason
}

// ServerStatus is one server of a pool.
type ServerStatus struct {
	Address      string    `json:"address"`      // ip:port
	From         string    `json:"from"`         // the address in the configuration: the same, or a name
	Authority    string    `json:"authority"`    // host:port that the server is spoken to as; of an SRV record its target
	Health       string    `json:"health"`       // checking, up, down
	Admin        string    `json:"admin"`        // ready, drain, maintenance
	Tier         int       `json:"tier"`         // above 0: a backup
	Weight       int       `json:"weight"`       // 0: no new requests
	Share        float64   `json:"share"`        // the weight of now: less than Weight in slow start
	InFlight     int       `json:"in_flight"`    // attempts that run
	LongStreams  int       `json:"long_streams"` // of these, those that have been there for longer than long_streams.after
	Connections  int       `json:"connections"`  // active and idle
	Idle         int       `json:"idle"`
	Cap          int       `json:"cap"`                     // most connections, 0: unlimited
	Requests     uint64    `json:"requests"`                // attempts since the server is known
	RequestShare float64   `json:"request_share"`           // of the attempts of all of the pool's servers, 0 to 1
	Since        time.Time `json:"since,omitzero"`          // when Health last changed
	CheckSeconds float64   `json:"check_seconds"`           // how long the latest check took
	LastError    string    `json:"last_error"`              // of the latest check, "": none
	MissingPaths []string  `json:"missing_paths,omitempty"` // paths that the server does not know: not used for these

	MissingMethods []string        `json:"missing_methods,omitempty"` // such as "RESPMOD /scan": routed there, and the server does not name it: not used for these while another server does them
	Options        []OptionsStatus `json:"options,omitempty"`         // what the server has last said of itself, for each path that it was asked for
	ISTagChanges   uint64          `json:"istag_changes"`             // how often it has come with another ISTag
	Probe          *ProbeStatus    `json:"probe,omitempty"`           // the latest one; absent: there was none

	Doubted        bool      `json:"doubted"`                   // nothing is heard of it: others are preferred
	Ejected        bool      `json:"ejected"`                   // taken out because of the requests that it has failed
	EjectionReason string    `json:"ejection_reason,omitempty"` // consecutive, share, latency, connect
	EjectedUntil   time.Time `json:"ejected_until,omitzero"`    // at the earliest, if only a check ends it
	Ejections      uint64    `json:"ejections"`                 // since the server is known
}

// ProbeStatus is what the latest probe of a server has come to.
type ProbeStatus struct {
	Result  string    `json:"result"` // ok, failed, full (it said so: no verdict) or skipped (not made)
	Error   string    `json:"error"`  // "": none
	At      time.Time `json:"at"`
	Seconds float64   `json:"seconds"` // that it took
}

// OptionsStatus is a server's answer to OPTIONS.
type OptionsStatus struct {
	Path           string    `json:"path"`
	Methods        []string  `json:"methods,omitempty"`
	ISTag          string    `json:"istag,omitempty"` // without quotes
	ISTagChanged   time.Time `json:"istag_changed,omitzero"`
	Preview        *int      `json:"preview,omitempty"`     // bytes
	TTL            int       `json:"options_ttl,omitempty"` // seconds
	MaxConnections int       `json:"max_connections,omitempty"`
	Service        string    `json:"service,omitempty"`
	Seen           time.Time `json:"seen"` // when it was last said
}

// NameStatus is a name in the configuration that DNS is asked about.
type NameStatus struct {
	Name         string    `json:"name"`                  // a host name, or srv: and the name of SRV records
	Addresses    []string  `json:"addresses"`             // as in use; of SRV records with ports
	TTLSeconds   *float64  `json:"ttl_seconds,omitempty"` // of the last good answer; none: the hosts file has it
	Asked        time.Time `json:"asked,omitzero"`        // when the latest lookup ended
	Next         time.Time `json:"next,omitzero"`         // when the next one begins
	LastError    string    `json:"last_error"`            // of the latest lookup, "": none
	FailingSince time.Time `json:"failing_since,omitzero"`
}

// SlowStart says whether the server has not come to its full weight yet.
func (s ServerStatus) SlowStart() bool { return s.Share > 0 && s.Share < float64(s.Weight) }

// Ejection says in words that the server is ejected, "" if it is not.
func (s ServerStatus) Ejection(now time.Time) string {
	if !s.Ejected {
		return ""
	}
	why := map[string]string{
		"consecutive": "it failed several requests in a row", "share": "it failed too many requests",
		"latency": "it is much slower than the others", "connect": "it could not be connected to",
	}[s.EjectionReason]
	if left := s.EjectedUntil.Sub(now); left > 0 {
		return fmt.Sprintf("ejected for another %v: %s", rounded(left), why)
	}
	return "ejected until a check succeeds: " + why
}

// listed gives every list that is nil a value, so that scripts find [] and not null.
func (s Status) listed() Status {
	if s.Limits.Overloaded == nil {
		s.Limits.Overloaded = []string{}
	}
	if s.Listeners == nil {
		s.Listeners = []ListenerStatus{}
	}
	services := make([]ServiceStatus, len(s.Services))
	for i, v := range s.Services {
		if v.Pools == nil {
			v.Pools = []string{}
		}
		if v.Announced == nil {
			v.Announced = map[string][]string{}
		}
		services[i] = v
	}
	s.Services = services
	names := make([]NameStatus, len(s.Names))
	for i, n := range s.Names {
		if n.Addresses == nil {
			n.Addresses = []string{}
		}
		names[i] = n
	}
	s.Names = names
	pools := make([]PoolStatus, len(s.Pools))
	for i, p := range s.Pools {
		if p.Servers == nil {
			p.Servers = []ServerStatus{}
		}
		pools[i] = p
	}
	s.Pools = pools
	return s
}
