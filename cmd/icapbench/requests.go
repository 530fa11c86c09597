package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"icapgate/bench"
	"icapgate/bench/load"
	"icapgate/bench/scenario"
	"icapgate/configs"
)

// requestFlags say what requests a load sends, and over which connections. What a scenario says too, they override.
type requestFlags struct {
	Scenario string `placeholder:"FILE" help:"Send what this YAML file describes: configs/icapbench-scenario.yaml has all that it can. Flags override its values." group:"Requests"`
	Profile  string `placeholder:"NAME" help:"Send what such clients send: zscaler, squid or proxysg." group:"Requests"`

	Method   string   `short:"m" placeholder:"METHOD" help:"reqmod, respmod or options. Default: reqmod." group:"Requests"`
	Size     *size    `short:"s" placeholder:"SIZE" help:"Bytes of a body. Default: 1KiB." group:"Requests"`
	Chunk    *size    `placeholder:"SIZE" help:"Bytes in one chunk at most. Default: 64KiB." group:"Requests"`
	Preview  *preview `placeholder:"N|none" help:"Bytes of preview, or none. Default: none." group:"Requests"`
	No204    bool     `name:"no-204" help:"Do not offer Allow: 204; a server has to echo then." group:"Requests"`
	Allow206 bool     `name:"allow-206" help:"Offer Allow: 206." group:"Requests"`
	Header   []string `short:"H" sep:"none" placeholder:"'X: y'" help:"Field of the ICAP head to add or replace. Repeatable." group:"Requests"`

	IncidentHeader string      `placeholder:"NAME" help:"Give each REQMOD and RESPMOD an id in this header, such as X-Incident-ID, so that icapbench report can tell which ones reached a server." group:"Requests"`
	Fault          []faultFlag `placeholder:"KIND=SHARE" help:"Have faulty clients: slow_body, stop_reading, abort_body, half_close or connect_and_leave, such as slow_body=1%. Repeatable." group:"Requests"`

	Connections        *int          `short:"c" placeholder:"N" help:"Connections, each with one request at a time. Default: 16." group:"Connections"`
	NewConnectionEvery int           `name:"new-connection-every" placeholder:"N" help:"Close a connection after N requests; 1: a connection for each request." group:"Connections"`
	Timeout            time.Duration `placeholder:"TIME" help:"For a connection, and for every wait for bytes. Default: 30s." group:"Connections"`
	Arrivals           string        `placeholder:"KIND" help:"How the requests of an open loop come: constant (evenly) or poisson (at random). Default: constant." group:"Connections"`
	Seed               uint64        `placeholder:"N" help:"Repeats the run that had this seed: same requests, same arrivals. Default: a new one." group:"Connections"`
	ServerHeader       string        `default:"X-Server" placeholder:"NAME" help:"Header of the answers by which servers are told apart." group:"Connections"`

	TLSVersion string  `name:"tls-version" placeholder:"V" help:"1.2 or 1.3. Default: the best that the target has." group:"TLS"`
	Resume     float64 `placeholder:"SHARE" help:"Share of the connections that may resume an earlier TLS session, 0 to 1. Default: 0." group:"TLS"`
	tlsFlags
}

// config returns the load that the flags and the scenario describe, but for when requests begin.
func (f *requestFlags) config(uri string) (load.Config, *scenario.Scenario, error) {
	target, err := bench.ParseTarget(uri)
	if err != nil {
		return load.Config{}, nil, err
	}
	s, err := f.scenario()
	if err != nil {
		return load.Config{}, nil, err
	}
	f.override(s)
	if s.Arrivals != scenario.Constant && s.Arrivals != scenario.Poisson {
		return load.Config{}, nil, fmt.Errorf("bad arrivals %q: want constant or poisson", s.Arrivals)
	}
	cfg := load.Config{
		Target: target, Name: f.name(s),
		Resume: s.TLS.Resume, Connections: s.Connections, PerConn: s.KeepAlive.Requests, Idle: time.Duration(s.KeepAlive.Idle),
		Timeout: time.Duration(s.Timeout), Poisson: s.Arrivals == scenario.Poisson, Seed: f.Seed,
		IncidentHeader: s.IncidentHeader, ServerHeader: f.ServerHeader,
	}
	if cfg.Seed == 0 {
		cfg.Seed = uint64(mathrand.Uint32()) + 1 // small enough for every reader of JSON
	}
	if cfg.Mix, err = s.Compile(target); err != nil {
		return cfg, nil, err
	}
	if cfg.IncidentHeader != "" {
		cfg.IncidentRun = strings.ToLower(rand.Text()[:8])
		if err := cfg.Mix.SetRun(cfg.IncidentRun); err != nil {
			return cfg, nil, err
		}
	}
	t := &s.TLS
	options := bench.TLSOptions{
		Insecure: t.Insecure, CAFile: t.CAFile, ServerName: t.ServerName, CertFile: t.CertFile, MinVersion: t.MinVersion, MaxVersion: t.MaxVersion,
	}
	cfg.TLS, err = options.Config(target)
	return cfg, s, err
}

// scenario returns what the file, the profile or the flags of a single kind of request say.
func (f *requestFlags) scenario() (*scenario.Scenario, error) {
	single := f.Method != "" || f.Size != nil || f.Chunk != nil || f.Preview != nil || f.No204 || f.Allow206 || f.Header != nil
	switch {
	case f.Scenario != "" && f.Profile != "":
		return nil, errors.New("--scenario and --profile exclude each other")
	case single && f.Scenario+f.Profile != "":
		return nil, errors.New("--method, --size, --chunk, --preview, --no-204, --allow-206 and --header are for a single kind of request; a scenario or a profile has its own")
	case f.Scenario != "":
		return scenario.Read(f.Scenario)
	case f.Profile != "":
		return scenario.Preset(f.Profile)
	}
	message := bench.Message{Preview: -1, No204: f.No204, Allow206: f.Allow206, Fields: f.Header}
	if f.Preview != nil {
		message.Preview = f.Preview.or(-1)
	}
	if f.Chunk != nil {
		message.Chunk = int64(*f.Chunk)
	}
	var err error
	if message.Method, err = bench.MethodOf(f.method()); err != nil {
		return nil, err
	}
	return scenario.Single(message, f.size()), nil
}

func (f *requestFlags) method() string {
	if f.Method == "" {
		return "reqmod"
	}
	return f.Method
}

func (f *requestFlags) size() int64 {
	if f.Size == nil {
		return 1 << 10
	}
	return int64(*f.Size)
}

// digest tells apart what is sent, and over which connections. The folders of files of a scenario are not looked into.
func (f *requestFlags) digest() (string, error) {
	h := sha256.New()
	if f.Scenario != "" {
		content, err := os.ReadFile(f.Scenario)
		if err != nil {
			return "", err
		}
		h.Write(content)
	}
	var preview preview
	if f.Preview != nil {
		preview = *f.Preview
	}
	var chunk size
	if f.Chunk != nil {
		chunk = *f.Chunk
	}
	fmt.Fprintf(h, "%#v", []any{f.Profile, f.method(), f.size(), chunk, preview, f.No204, f.Allow206, f.Header, f.Fault, f.NewConnectionEvery, f.Timeout,
		f.TLSVersion, f.Resume, f.Cert, f.ServerName})
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}

// name says in a few words what is sent.
func (f *requestFlags) name(s *scenario.Scenario) string {
	switch {
	case f.Scenario != "":
		return filepath.Base(f.Scenario)
	case f.Profile != "":
		return "profile " + f.Profile
	}
	name := strings.ToUpper(f.method())
	if name != "OPTIONS" {
		name += fmt.Sprintf(" of %d bytes", f.size())
	}
	return name
}

// override puts the flags that were given into the scenario, and the usual values where neither says anything.
func (f *requestFlags) override(s *scenario.Scenario) {
	if f.Connections != nil {
		s.Connections = *f.Connections
	} else if s.Connections == 0 {
		s.Connections = 16
	}
	set(&s.KeepAlive.Requests, f.NewConnectionEvery, 0)
	set(&s.Timeout, configs.Duration(f.Timeout), configs.Duration(30*time.Second))
	set(&s.Arrivals, f.Arrivals, scenario.Constant)
	set(&s.IncidentHeader, f.IncidentHeader, "")
	set(&s.TLS.MinVersion, f.TLSVersion, "")
	set(&s.TLS.MaxVersion, f.TLSVersion, "")
	set(&s.TLS.Resume, f.Resume, 0)
	set(&s.TLS.CAFile, f.CA, "")
	set(&s.TLS.CertFile, f.Cert, "")
	set(&s.TLS.ServerName, f.ServerName, "")
	set(&s.TLS.Insecure, f.Insecure, false)
	for _, fault := range f.Fault {
		of := scenario.FaultType{}
		of.SetDefaults()
		of.Kind, of.Share = fault.kind, fault.share
		s.Faults = append(s.Faults, of)
	}
}

// set overrides a value of the scenario by that of the flag, if it was given, or by the usual one, if neither was.
func set[T comparable](value *T, flag, usual T) {
	var none T
	if flag != none {
		*value = flag
	} else if *value == none {
		*value = usual
	}
}
