package configs

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Ports of the two URI schemes (RFC 3507 section 4.2 for icap; 11344 is what secure ICAP clients use).
const (
	PortICAP  = 1344
	PortICAPS = 11344
)

const portDNS = 53

// DefaultPoolName is what the only pool of a configuration is called if it has no name.
const DefaultPoolName = "default"

// Default returns a configuration with every default and no listener, service or pool.
func Default() Config {
	return Config{
		DNS:          DNS{Interval: seconds(30), Timeout: seconds(2)},
		Limits:       Limits{MaxSpill: 1 << 30},
		DrainTimeout: seconds(30),
		Log:          Log{Level: "info", Format: "json"},
		AccessLog:    AccessLog{Output: "stdout"},
		Admin:        Admin{Address: "127.0.0.1:9344"},
	}
}

// DefaultListener returns a listener that lacks only its address.
func DefaultListener() Listener {
	return Listener{Timeouts: ListenerTimeouts{
		Handshake: seconds(10),
		Head:      seconds(10),
		Idle:      seconds(300),
		Body:      seconds(60),
	}}
}

// DefaultPool returns a pool that lacks only its servers.
func DefaultPool() Pool {
	return Pool{
		Balance:         "least_inflight",
		HashOn:          "client_ip",
		Affinity:        "none",
		SlowStart:       seconds(30),
		ConnectionShare: "1",
		Reserve:         1,
		Reuse:           true,
		Idle:            Idle{Timeout: seconds(30)},
		Timeouts:        PoolTimeouts{Connect: seconds(2), Send: seconds(60), Response: seconds(60), Progress: seconds(600)},
		Queue:           Queue{Max: 1024, Timeout: seconds(5)},
		Retry:           Retry{Attempts: 2, ReplayBuffer: 64 << 10, Budget: 0.2, On: []string{"connect", "reset", "503"}},
		LongStreams:     LongStreams{Share: 0.5},
		MaxChunk:        1 << 20,
		Preview:         "on",
		Health:          Health{Interval: seconds(5), Timeout: seconds(2), Rise: 2, Fall: 3},
		Ejection: Ejection{
			Consecutive: 5, FailureShare: 0.5, Window: seconds(10), MinRequests: 20,
			Time: seconds(10), MaxTime: seconds(300), MaxShare: 0.5,
		},
	}
}

// DefaultService returns a service for everything that lacks only its pool.
func DefaultService() Service {
	return Service{
		Path: "*", OnUnavailable: "reject", OnError: "reject", OnTimeout: "reject", OnLimit: "reject", Options: "merge", OptionsGrace: seconds(60),
		Duplicates: "accept", Headers: DefaultHeaders(),
	}
}

// DefaultHeaders returns a policy that changes nothing. Guarded are the fields by which clients tell user and address: those of the draft that most
// use, of Squid, and of Symantec; and the one that marks a gateway's probe, of which servers may write no incident.
func DefaultHeaders() Headers {
	return Headers{Guarded: []string{
		"X-Client-IP", "X-Client-Port", "X-Server-IP", "X-Subscriber-ID", "X-Authenticated-User", "X-Authenticated-Groups", "X-Client-Username",
		"X-SYMC-Authenticated-User", "X-SYMC-User-Email-Address", "X-Icapgate-Probe",
	}}
}

// DefaultProbe returns a probe that lacks its path, its content and what is expected.
func DefaultProbe() Probe {
	return Probe{
		ContentType: "text/plain", URL: "http://probe.icapgate.invalid/",
		Interval: seconds(60), Timeout: seconds(10), Rise: 1, Fall: 2,
	}
}

// DefaultServer returns a server that lacks only its address.
func DefaultServer() Server { return Server{Weight: 1} }

func seconds(n int) Duration { return Duration(time.Duration(n) * time.Second) }

// What appears in a file starts from these, so that a mapping names only what differs.
func (c *Config) setDefaults()      { *c = Default() }
func (l *Listener) setDefaults()    { *l = DefaultListener() }
func (t *ListenerTLS) setDefaults() { t.MinVersion = "1.2" }
func (s *Service) setDefaults()     { *s = DefaultService() }
func (p *Pool) setDefaults()        { *p = DefaultPool(); p.PanicThreshold = derived }
func (p *Probe) setDefaults()       { *p = DefaultProbe() }
func (s *Server) setDefaults()      { *s = DefaultServer() }

// complete fills in what follows from other values. It leaves what it cannot understand to validate.
func (c *Config) complete() {
	dir := filepath.Dir(c.source.file)
	c.completeListeners(dir)
	c.completePools(dir)
	c.completeServices()
	for i, s := range c.DNS.Servers {
		if a, err := parseAddress(s, portDNS); err == nil {
			c.DNS.Servers[i] = a.String()
		}
	}

	if c.StateDir == "" {
		c.StateDir = defaultStateDir()
	}
	within(dir, &c.StateDir)
	if strings.Contains(c.AccessLog.Output, "/") {
		within(dir, &c.AccessLog.Output)
		if !strings.Contains(c.AccessLog.Output, "/") { // dir is "."
			c.AccessLog.Output = "./" + c.AccessLog.Output
		}
	}
	if path, ok := strings.CutPrefix(c.Admin.Address, "unix:"); ok {
		within(dir, &path)
		c.Admin.Address = "unix:" + path
	}
}

// completeListeners names a listener after its scheme, and from the second of a scheme on after its address.
func (c *Config) completeListeners(dir string) {
	taken := make(map[string]bool)
	for i := range c.Listeners {
		taken[c.Listeners[i].Name] = true
	}
	for i := range c.Listeners {
		l := &c.Listeners[i]
		if l.Name == "" {
			l.Name = "icap"
			if l.TLS != nil {
				l.Name = "icaps"
			}
			if taken[l.Name] {
				l.Name = l.Address
			}
			taken[l.Name] = true
		}
		if l.TLS == nil {
			continue
		}
		for j := range l.TLS.Certificates {
			pair := &l.TLS.Certificates[j]
			if pair.KeyFile == "" {
				pair.KeyFile = pair.CertFile
			}
			within(dir, &pair.CertFile)
			within(dir, &pair.KeyFile)
		}
	}
}

// derived is a PanicThreshold that is not in the file, and can't be.
const derived = -math.MaxFloat64

// openPanicThreshold is the one of pools whose requests pass unjudged when no server is usable: servers that may be fine are better than none.
const openPanicThreshold = 0.5

func (c *Config) completePools(dir string) {
	for i := range c.Pools {
		p := &c.Pools[i]
		if p.PanicThreshold == derived {
			p.PanicThreshold = 0
			if slices.ContainsFunc(c.Services, func(s Service) bool { return s.OnUnavailable == "allow" && (s.Pool == p.Name || len(c.Pools) == 1) }) {
				p.PanicThreshold = openPanicThreshold
			}
		}
		if p.Name == "" && len(c.Pools) == 1 {
			p.Name = DefaultPoolName
		}
		if p.Health.Probe != nil {
			within(dir, &p.Health.Probe.BodyFile)
		}
		port := PortICAP
		if p.TLS != nil {
			port = PortICAPS
			within(dir, &p.TLS.CAFile)
			within(dir, &p.TLS.CertFile)
		}
		for j := range p.Servers {
			if a, err := parseAddress(p.Servers[j].Address, port); err == nil && a.host != "" { // which srv: is not
				p.Servers[j].Address = a.String()
			}
		}
	}
}

// completeServices sends everything to the only pool, as far as nothing else is said.
func (c *Config) completeServices() {
	if len(c.Pools) != 1 {
		return
	}
	if len(c.Services) == 0 {
		c.Services = []Service{DefaultService()}
	}
	for i := range c.Services {
		if c.Services[i].Pool == "" {
			c.Services[i].Pool = c.Pools[0].Name
		}
	}
}

// within makes a relative file name count from the folder of the configuration, wherever the program was started.
func within(dir string, name *string) {
	if *name != "" && !filepath.IsAbs(*name) {
		*name = filepath.Join(dir, *name)
	}
}

// defaultStateDir is what systemd's StateDirectory= gives, else the user's state folder; "" if there is neither.
func defaultStateDir() string {
	if dirs := os.Getenv("STATE_DIRECTORY"); dirs != "" {
		first, _, _ := strings.Cut(dirs, ":")
		return first
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "icapgate")
	}
	if home, err := os.UserHomeDir(); err == nil && filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "state", "icapgate")
	}
	return ""
}
