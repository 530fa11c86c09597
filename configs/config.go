// Package configs holds the configuration of icapgate: the structs with their defaults, a strict YAML reader that reports
// every fault with its line, validation, lint, and the check of the files that a configuration names.
//
// The way of a file: Load reads it, decode fills the structs over their defaults, complete derives what follows from other
// values (names, ports, key files), validate looks for faults. Lint and CheckFiles are asked for separately, since an example
// is a good configuration on a machine without its certificates too.
package configs

// Config is one whole configuration file. Load and Parse return it complete and valid: names and ports are filled in, file
// names are relative to the working directory or absolute.
type Config struct {
	Listeners    []Listener `yaml:"listeners"`
	Services     []Service  `yaml:"services"`
	Pools        []Pool     `yaml:"pools"`
	DNS          DNS        `yaml:"dns"`
	Limits       Limits     `yaml:"limits"`
	GatewayID    string     `yaml:"gateway_id"` // by which a request that comes back is known; "": it is not
	DrainTimeout Duration   `yaml:"drain_timeout"`
	StateDir     string     `yaml:"state_dir"`
	Log          Log        `yaml:"log"`
	AccessLog    AccessLog  `yaml:"access_log"`
	Admin        Admin      `yaml:"admin"`
	Metrics      Metrics    `yaml:"metrics"`

	source source // where each key stands; empty if the configuration was made in code
}

// Listener is an address that clients connect to.
type Listener struct {
	Name           string           `yaml:"name"`
	Address        string           `yaml:"address"`
	TLS            *ListenerTLS     `yaml:"tls"` // nil: plain icap://
	Allow          []Prefix         `yaml:"allow"`
	MaxConnections int              `yaml:"max_connections"` // of clients; 0: no limit but that of Limits
	Timeouts       ListenerTimeouts `yaml:"timeouts"`
	LenientLF      bool             `yaml:"lenient_lf"` // a bare LF ends a head line too
}

// ListenerTLS is the server side of TLS.
type ListenerTLS struct {
	Certificates []Certificate `yaml:"certificates"`
	MinVersion   string        `yaml:"min_version"` // "1.2" or "1.3"
}

// Certificate names PEM files; KeyFile defaults to CertFile (one combined PEM).
type Certificate struct {
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
}

// ListenerTimeouts bound what a client may take its time for.
type ListenerTimeouts struct {
	Handshake Duration `yaml:"handshake"` // TLS handshake, whole
	Head      Duration `yaml:"head"`      // from the first byte of a request to the end of its heads
	Idle      Duration `yaml:"idle"`      // between requests
	Body      Duration `yaml:"body"`      // without a byte of a body that we want to read
}

// Service routes requests to a pool; the first match wins.
type Service struct {
	Path            string   `yaml:"path"`         // exact, or a prefix if it ends in "*"
	Listener        string   `yaml:"listener"`     // "": every listener
	Methods         []string `yaml:"methods"`      // empty: all
	ServerNames     []string `yaml:"server_names"` // that the client's TLS asks for (SNI), *.example.com for all below; empty: all
	Pool            string   `yaml:"pool"`
	Rewrite         string   `yaml:"rewrite"` // path at the servers; ends in "*" if only the prefix is replaced; "": the same
	PreserveHost    bool     `yaml:"preserve_host"`
	OnUnavailable   string   `yaml:"on_unavailable"`   // reject | allow: what becomes of a request for which no server is usable or free
	OnError         string   `yaml:"on_error"`         // reject | allow: whose server gave no answer, or one that says that it failed
	OnTimeout       string   `yaml:"on_timeout"`       // reject | allow: whose server was late, or DecisionTimeout has passed
	DecisionTimeout Duration `yaml:"decision_timeout"` // for a verdict, from when a server could begin with it; 0: none
	MaxBody         Size     `yaml:"max_body"`         // bytes of a request's body that go to a server; 0: no limit
	MaxDuration     Duration `yaml:"max_duration"`     // from a request's heads to the end of its answer; 0: no limit
	OnLimit         string   `yaml:"on_limit"`         // reject | allow: what becomes of a request beyond these two, or LongStreams of its pool
	Options         string   `yaml:"options"`          // merge | forward: who answers OPTIONS, the gateway for all servers of the pool or one of them
	OptionsGrace    Duration `yaml:"options_grace"`    // for which the gateway answers OPTIONS while no server is usable, before it says 503
	MaxConnections  int      `yaml:"max_connections"`  // that OPTIONS tells each client; 0: what the listener admits
	ISTag           string   `yaml:"istag"`            // "": the gateway's own, made of those of the servers; pass: that of the server; else this one
	Duplicates      string   `yaml:"duplicates"`       // avoid | accept: may a request be sent again once a server may have seen it whole?
	Headers         Headers  `yaml:"headers"`
}

// Headers is the policy of a service for fields of the ICAP heads. Encapsulated HTTP heads are content, and never changed.
type Headers struct {
	ClientIP bool        `yaml:"client_ip"` // adds X-Client-IP with the client's address to requests without one
	Trusted  []Prefix    `yaml:"trusted"`   // clients that may say whom a request is from; empty: all
	Guarded  []string    `yaml:"guarded"`   // fields that are taken from the requests of all others; a * at the end of a name stands for more
	Request  HeaderRules `yaml:"request"`
	Response HeaderRules `yaml:"response"`
}

// HeaderRules change the fields of one direction: first Remove, then Set, then Add.
type HeaderRules struct {
	Set    Pairs    `yaml:"set"`    // in the place of all fields with that name; values as ParseValue reads them
	Add    Pairs    `yaml:"add"`    // beside them
	Remove []string `yaml:"remove"` // a * at the end of a name stands for more
}

// Pool is a named group of servers with one policy.
type Pool struct {
	Name            string       `yaml:"name"`
	Balance         string       `yaml:"balance"`    // round_robin | least_inflight (default) | random_two | peak_ewma | hash
	HashOn          string       `yaml:"hash_on"`    // client_ip | user | header:NAME; of balance: hash
	Affinity        string       `yaml:"affinity"`   // none (default) | session: a client connection stays with its server
	SlowStart       Duration     `yaml:"slow_start"` // in which a cold server comes to its full weight; 0: at once
	Servers         []Server     `yaml:"servers"`
	TLS             *PoolTLS     `yaml:"tls"`             // nil: plain icap to the servers
	TierThreshold   float64      `yaml:"tier_threshold"`  // usable share of a tier's weight below which the next tier takes part; 0: none usable
	PanicThreshold  float64      `yaml:"panic_threshold"` // usable share of the pool's weight below which health is not looked at; 0: never
	ConnectionShare Share        `yaml:"connection_share"`
	Reserve         int          `yaml:"reserve"` // connections of a server's cap left free for checks
	Reuse           bool         `yaml:"reuse"`   // false: one request per connection
	Idle            Idle         `yaml:"idle"`
	Timeouts        PoolTimeouts `yaml:"timeouts"`
	Queue           Queue        `yaml:"queue"`
	Retry           Retry        `yaml:"retry"`
	LongStreams     LongStreams  `yaml:"long_streams"`
	MaxChunk        Size         `yaml:"max_chunk"` // larger chunks of a client are split
	Preview         string       `yaml:"preview"`   // on (default) | off: the gateway ends previews itself, servers get whole requests only
	Health          Health       `yaml:"health"`
	Ejection        Ejection     `yaml:"ejection"`
}

// Server is one server; in YAML a string (the address) or a mapping.
type Server struct {
	Address        string `yaml:"address"`         // host:port, the port defaults to 1344, 11344 with tls; or srv: and the name of SRV records
	Weight         int    `yaml:"weight"`          // share of the requests; 0: none
	Tier           int    `yaml:"tier"`            // above 0: a backup for those of lower tiers
	MaxConnections int    `yaml:"max_connections"` // 0: what the server's OPTIONS says; none said: unlimited
}

// PoolTLS is TLS to the servers. The chain is always verified.
type PoolTLS struct {
	CAFile     string `yaml:"ca_file"`     // "": the system's
	ServerName string `yaml:"server_name"` // "": the host of the server's address; of an SRV record its target
	CertFile   string `yaml:"cert_file"`   // client certificate, combined PEM
}

// Idle says how long an unused connection to a server is kept.
type Idle struct {
	Timeout     Duration `yaml:"timeout"`
	MaxAge      Duration `yaml:"max_age"`      // 0: no limit
	MaxRequests int      `yaml:"max_requests"` // 0: no limit
}

// PoolTimeouts bound what a server may take its time for.
type PoolTimeouts struct {
	Connect  Duration `yaml:"connect"`  // TCP connect, and with tls the handshake
	Send     Duration `yaml:"send"`     // without taking a byte that we have for it
	Response Duration `yaml:"response"` // until the first byte of an answer, then for its heads, then without a byte of its body
	Progress Duration `yaml:"progress"` // until the first byte of an answer, in all, with interim answers in between
}

// Queue bounds the transactions that wait for a server of the pool.
type Queue struct {
	Max     int      `yaml:"max"` // 0: nothing waits
	Timeout Duration `yaml:"timeout"`
}

// Retry says how often a transaction is tried on another server.
type Retry struct {
	Attempts     int      `yaml:"attempts"`      // attempts after the first
	ReplayBuffer Size     `yaml:"replay_buffer"` // bytes of a request that are held to be sent again
	Budget       float64  `yaml:"budget"`        // retries per first attempt
	On           []string `yaml:"on"`            // connect, reset, timeout, 5xx or a status such as 503: after what
	Spill        Size     `yaml:"spill"`         // bytes of a request that are kept in a file beyond ReplayBuffer; 0: none
}

// LongStreams bounds the connections that requests may hold which have been with a server for long.
type LongStreams struct {
	After Duration `yaml:"after"` // 0: no bound
	Share float64  `yaml:"share"` // of a server's connections; one at least
}

// Health describes the active checks of the servers: OPTIONS requests.
type Health struct {
	Interval Duration `yaml:"interval"`
	Timeout  Duration `yaml:"timeout"`
	Rise     int      `yaml:"rise"`  // good checks in a row until a server is up
	Fall     int      `yaml:"fall"`  // bad checks in a row until it is down
	Path     string   `yaml:"path"`  // "": the exact paths routed to the pool
	Probe    *Probe   `yaml:"probe"` // nil: none
}

// Probe is a REQMOD of our own with content that has to be judged as expected, or the server is not used.
type Probe struct {
	Path        string      `yaml:"path"`         // at the servers
	Body        string      `yaml:"body"`         // content; "": that of BodyFile
	BodyFile    string      `yaml:"body_file"`    // "": Body
	Filename    string      `yaml:"filename"`     // as which the content is uploaded in a form; "": it is the body of the POST itself
	ContentType string      `yaml:"content_type"` // of the content
	URL         string      `yaml:"url"`          // of the POST
	Fields      Pairs       `yaml:"fields"`       // X- fields of the ICAP head
	Interval    Duration    `yaml:"interval"`     // between two probes while they are good
	Timeout     Duration    `yaml:"timeout"`      // connect and answer
	Rise        int         `yaml:"rise"`         // good probes in a row until a server is up
	Fall        int         `yaml:"fall"`         // bad probes in a row until it is down
	Expect      Expectation `yaml:"expect"`
}

// Expectation is what the answer to a probe has to be like; all that is given has to hold.
type Expectation struct {
	Status int    `yaml:"status"` // of ICAP; 0: any
	Header string `yaml:"header"` // regular expression, upper and lower case alike, for a line of the ICAP head or an encapsulated one; "": any
	Body   string `yaml:"body"`   // regular expression for the body; "": any
}

// DNS says how names of servers, and of connection_share, are looked up.
type DNS struct {
	Servers  []string `yaml:"servers"`  // nameservers, ip:port, the port defaults to 53; empty: those of /etc/resolv.conf
	Interval Duration `yaml:"interval"` // between two lookups of a name, unless its TTL is shorter
	Timeout  Duration `yaml:"timeout"`  // of each question to a nameserver
}

// Ejection says when a server that fails requests is taken out, and for how long.
type Ejection struct {
	Consecutive   int      `yaml:"consecutive"`    // failures in a row; 0: off
	FailureShare  float64  `yaml:"failure_share"`  // failures of the requests of a window; 0: off
	LatencyFactor float64  `yaml:"latency_factor"` // times the pool's median that the p95 of a window may be; 0: off
	Window        Duration `yaml:"window"`
	MinRequests   int      `yaml:"min_requests"` // of a window, to conclude anything from it
	Time          Duration `yaml:"time"`         // of the first ejection; the next ones are twice as long each
	MaxTime       Duration `yaml:"max_time"`
	MaxShare      float64  `yaml:"max_share"` // of the pool's servers that may be ejected at a time
}

// Limits bound what the whole gateway takes. Beyond them new clients are refused; those that are connected go on.
type Limits struct {
	MaxConnections int  `yaml:"max_connections"` // of clients, on all listeners; 0: what the limit of open files allows
	MaxMemory      Size `yaml:"max_memory"`      // resident memory; 0: what the cgroup, RLIMIT_AS or GOMEMLIMIT allow
	MaxSpill       Size `yaml:"max_spill"`       // bytes that all requests together have in files; beyond them a request can't be replayed
}

// Log is the program's own log, on stderr.
type Log struct {
	Level  string `yaml:"level"`  // debug | info | warn | error
	Format string `yaml:"format"` // json | text
}

// AccessLog is the log of transactions, one line each.
type AccessLog struct {
	Output   string `yaml:"output"`    // off | stdout | a file
	IDHeader string `yaml:"id_header"` // ICAP header that tells the server the transaction's id, "": none
}

// Admin is the endpoint for metrics, health, status and control.
type Admin struct {
	Address string `yaml:"address"` // host:port, unix:PATH, or "off"
}

// Metrics is an optional second listener that is read-only.
type Metrics struct {
	Address string `yaml:"address"` // "": none
}
