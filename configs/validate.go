package configs

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Words that a key may have as its value.
var (
	policies   = []string{"round_robin", "least_inflight", "random_two", "peak_ewma", "hash"}
	affinities = []string{"none", "session"}
	methods    = []string{"REQMOD", "RESPMOD", "OPTIONS"}
	tlsMinimum = []string{"1.2", "1.3"}
	logLevels  = []string{"debug", "info", "warn", "error"}
	logFormats = []string{"json", "text"}
	duplicates = []string{"avoid", "accept"}
	switches   = []string{"on", "off"}
	answers    = []string{"merge", "forward"}
	verdicts   = []string{"reject", "allow"}                    // of requests that no server has judged
	causes     = []string{"connect", "reset", "timeout", "5xx"} // of retry.on, beside single statuses
)

// Limits of what is believable; beyond them a value is rather a slip.
const (
	minTimeout  = Duration(time.Millisecond)
	maxTimeout  = Duration(24 * time.Hour)
	minInterval = Duration(100 * time.Millisecond) // of checks
	maxInterval = Duration(time.Hour)

	maxListeners   = 256
	maxPools       = 1024
	maxServices    = 4096
	maxServers     = 1024 // of a pool
	maxWeight      = 256
	maxTier        = 9
	maxConnections = 1 << 20 // of a server or of clients, waiters and requests alike
	maxShare       = 1000    // gateways
	maxNameservers = 8
	maxAttempts    = 10
	maxBudget      = 10
	maxRiseFall    = 100
	maxInARow      = 1000
	maxFactor      = 1000
	minWindow      = Duration(time.Second)
	maxReplay      = Size(64 << 20)
	maxBody        = Size(1 << 50)
	maxSpill       = Size(1 << 40)
	minMemory      = Size(64 << 20)
	maxMemory      = Size(1 << 50)
	minChunk       = Size(1 << 10)
	maxChunk       = Size(1 << 30)
	maxPath        = 8 << 10 // of an ICAP URI
	maxUnixPath    = 107     // of sockaddr_un
	maxName        = 64
	maxProbe       = 1 << 20 // bytes of a probe's content
	maxFilename    = 255
	maxFields      = 64
	maxTrusted     = 4096
)

// validator looks for everything that cannot work. What is in files is left to CheckFiles, what is unwise to Lint.
type validator struct {
	findings
	c      *Config
	opened []opened
}

// opened is an address that this process listens on.
type opened struct {
	key string
	address
}

func (c *Config) validate() Faults {
	v := &validator{findings{source: c.source}, c, nil}
	if len(c.Listeners) == 0 {
		v.add("listeners", "none, needed: at least one, such as {address: \":%d\"}", PortICAP)
	}
	for i := range v.some("listeners", len(c.Listeners), maxListeners) {
		v.listener(fmt.Sprintf("listeners[%d]", i), &c.Listeners[i], c.Listeners[:i])
	}
	if len(c.Pools) == 0 {
		v.add("pools", "none, needed: at least one with its servers")
	}
	for i := range v.some("pools", len(c.Pools), maxPools) {
		v.pool(fmt.Sprintf("pools[%d]", i), &c.Pools[i], c.Pools[:i])
	}
	if len(c.Services) == 0 && len(c.Pools) > 1 {
		v.add("services", "none, needed with several pools: which path goes to which pool")
	}
	for i := range v.some("services", len(c.Services), maxServices) {
		v.service(fmt.Sprintf("services[%d]", i), &c.Services[i])
	}
	v.rest()
	return v.faults
}

func (v *validator) listener(key string, l *Listener, before []Listener) {
	if l.Name != l.Address { // a name that was derived is as good as the address
		v.name(key+".name", l.Name)
	}
	if slices.ContainsFunc(before, func(o Listener) bool { return o.Name == l.Name }) {
		v.add(key+".name", "%s is the name of an earlier listener too", quote(l.Name))
	}
	v.listen(key+".address", l.Address)

	if l.TLS != nil {
		v.oneOf(key+".tls.min_version", "version", l.TLS.MinVersion, tlsMinimum)
		if len(l.TLS.Certificates) == 0 {
			v.add(key+".tls.certificates", "none, needed: at least one with cert_file; icapgate cert FILE.pem makes one")
		}
		for i, pair := range l.TLS.Certificates {
			if pair.CertFile == "" {
				v.add(fmt.Sprintf("%s.tls.certificates[%d].cert_file", key, i), "missing, needed: a PEM file")
			}
		}
	}

	v.number(key+".max_connections", l.MaxConnections, 0, maxConnections)
	v.duration(key+".timeouts.handshake", l.Timeouts.Handshake, minTimeout, maxTimeout)
	v.duration(key+".timeouts.head", l.Timeouts.Head, minTimeout, maxTimeout)
	v.duration(key+".timeouts.idle", l.Timeouts.Idle, minTimeout, maxTimeout)
	v.duration(key+".timeouts.body", l.Timeouts.Body, minTimeout, maxTimeout)
}

func (v *validator) pool(key string, p *Pool, before []Pool) {
	v.name(key+".name", p.Name)
	if slices.ContainsFunc(before, func(o Pool) bool { return o.Name == p.Name && p.Name != "" }) {
		v.add(key+".name", "%s is the name of an earlier pool too", quote(p.Name))
	}
	v.oneOf(key+".balance", "policy", p.Balance, policies)
	if name, header := strings.CutPrefix(p.HashOn, "header:"); p.HashOn != "client_ip" && p.HashOn != "user" && !(header && fieldName.MatchString(name)) {
		v.add(key+".hash_on", "%s is unknown, allowed: client_ip, user, or header: and the name of an ICAP header", quote(p.HashOn))
	}
	v.oneOf(key+".affinity", "affinity", p.Affinity, affinities)
	if len(p.Servers) == 0 {
		v.add(key+".servers", "none, needed: at least one, such as 10.2.1.101:%d", PortICAP)
	}
	for i := range v.some(key+".servers", len(p.Servers), maxServers) {
		v.server(fmt.Sprintf("%s.servers[%d]", key, i), &p.Servers[i], p.Servers[:i])
	}
	if p.TLS != nil && p.TLS.ServerName != "" {
		if err := checkHost(p.TLS.ServerName); err != nil {
			v.add(key+".tls.server_name", "%s: %v", quote(p.TLS.ServerName), err)
		}
	}
	v.duration(key+".slow_start", p.SlowStart, 0, maxInterval)
	v.share(key+".tier_threshold", p.TierThreshold)
	v.share(key+".panic_threshold", p.PanicThreshold)
	v.shareOfConnections(key+".connection_share", p.ConnectionShare)
	v.number(key+".reserve", p.Reserve, 0, maxConnections)

	v.duration(key+".idle.timeout", p.Idle.Timeout, minTimeout, maxTimeout)
	v.duration(key+".idle.max_age", p.Idle.MaxAge, 0, maxTimeout)
	v.number(key+".idle.max_requests", p.Idle.MaxRequests, 0, maxConnections)
	v.duration(key+".timeouts.connect", p.Timeouts.Connect, minTimeout, maxTimeout)
	v.duration(key+".timeouts.send", p.Timeouts.Send, minTimeout, maxTimeout)
	v.duration(key+".timeouts.response", p.Timeouts.Response, minTimeout, maxTimeout)
	v.duration(key+".timeouts.progress", p.Timeouts.Progress, minTimeout, maxTimeout)
	v.number(key+".queue.max", p.Queue.Max, 0, maxConnections)
	v.duration(key+".queue.timeout", p.Queue.Timeout, minTimeout, maxTimeout)

	v.number(key+".retry.attempts", p.Retry.Attempts, 0, maxAttempts)
	v.size(key+".retry.replay_buffer", p.Retry.ReplayBuffer, 0, maxReplay)
	if b := p.Retry.Budget; !(b >= 0 && b <= maxBudget) { // NaN fails too
		v.add(key+".retry.budget", "%v is out of range, allowed: 0 to %d retries per request", b, maxBudget)
	}
	for i, cause := range p.Retry.On {
		if !slices.Contains(causes, cause) && !serverFault.MatchString(cause) {
			v.add(fmt.Sprintf("%s.retry.on[%d]", key, i), "%s is unknown, allowed: %s, or a status from 500 to 599", quote(cause), strings.Join(causes, ", "))
		}
	}
	v.size(key+".retry.spill", p.Retry.Spill, 0, maxSpill)
	if p.Retry.Spill > 0 && v.c.StateDir == "" {
		v.add(key+".retry.spill", "needs state_dir, the folder for its files, and neither that nor $STATE_DIRECTORY or $HOME is set")
	}
	v.duration(key+".long_streams.after", p.LongStreams.After, 0, maxTimeout)
	v.share(key+".long_streams.share", p.LongStreams.Share)
	v.size(key+".max_chunk", p.MaxChunk, minChunk, maxChunk)
	v.oneOf(key+".preview", "preview", p.Preview, switches)

	v.duration(key+".health.interval", p.Health.Interval, minInterval, maxInterval)
	v.duration(key+".health.timeout", p.Health.Timeout, minTimeout, maxInterval)
	v.number(key+".health.rise", p.Health.Rise, 1, maxRiseFall)
	v.number(key+".health.fall", p.Health.Fall, 1, maxRiseFall)
	if p.Health.Path != "" {
		v.path(key+".health.path", p.Health.Path)
	}
	if p.Health.Probe != nil {
		v.probe(key+".health.probe", p.Health.Probe, p.Name)
	}
	v.ejection(key+".ejection", &p.Ejection)
}

func (v *validator) ejection(key string, e *Ejection) {
	v.number(key+".consecutive", e.Consecutive, 0, maxInARow)
	v.share(key+".failure_share", e.FailureShare)
	if f := e.LatencyFactor; f != 0 && !(f > 1 && f <= maxFactor) { // NaN fails too
		v.add(key+".latency_factor", "%v is out of range, allowed: 0 (off), or above 1 to %d, such as 3", f, maxFactor)
	}
	v.duration(key+".window", e.Window, minWindow, maxInterval)
	v.number(key+".min_requests", e.MinRequests, 1, maxConnections)
	v.duration(key+".time", e.Time, minInterval, maxInterval)
	if e.MaxTime < e.Time {
		v.add(key+".max_time", "%v is less than time, which is %v", e.MaxTime, e.Time)
	} else {
		v.duration(key+".max_time", e.MaxTime, minInterval, maxTimeout)
	}
	v.share(key+".max_share", e.MaxShare)
}

func (v *validator) probe(key string, p *Probe, pool string) {
	switch leads := func(s Service) bool { return s.Pool == pool && s.leadsTo("REQMOD", p.Path) }; {
	case p.Path == "":
		v.add(key+".path", "missing, needed: where the servers get REQMODs, such as /reqmod")
	case !strings.HasPrefix(p.Path, "/"):
		v.path(key+".path", p.Path)
	case len(v.c.Services) > 0 && pool != "" && !slices.ContainsFunc(v.c.Services, leads):
		v.add(key+".path", "%s: no service leads REQMODs for it to pool %s", quote(p.Path), pool)
	default:
		v.path(key+".path", p.Path)
	}
	switch {
	case p.Body == "" && p.BodyFile == "":
		v.add(key+".body", "missing, needed: content that the servers have to judge as expected, here or in body_file")
	case p.Body != "" && p.BodyFile != "":
		v.add(key+".body_file", "is given beside body, allowed: one of them")
	case len(p.Body) > maxProbe:
		v.add(key+".body", "has %d bytes, allowed: up to %d", len(p.Body), maxProbe)
	}
	if strings.ContainsFunc(p.Filename, func(r rune) bool { return r < ' ' || r == 0x7f || strings.ContainsRune(`"\/`, r) }) || len(p.Filename) > maxFilename {
		v.add(key+".filename", "%s is no name for an upload, allowed: up to %d bytes without \", \\ and /", quote(p.Filename), maxFilename)
	}
	if !contentType.MatchString(p.ContentType) {
		v.add(key+".content_type", "%s is none, allowed: such as text/plain or application/pdf", quote(p.ContentType))
	}
	if u, err := url.Parse(p.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || !printable(p.URL, maxPath) {
		v.add(key+".url", "%s is no URL of a POST, allowed: such as http://probe.example.com/upload", quote(p.URL))
	}
	for i := range v.some(key+".fields", len(p.Fields), maxFields) {
		switch f := p.Fields[i]; {
		case !idHeader.MatchString(f.Name) || strings.EqualFold(f.Name, "X-Icapgate-Probe"):
			v.add(key+".fields", "%s can't be set, allowed: header names that start with X-, but X-Icapgate-Probe", quote(f.Name))
		case !printable(strings.ReplaceAll(f.Value, " ", ""), maxPath):
			v.add(key+".fields", "the value of %s has characters that are not allowed in a header, or is too long", f.Name)
		}
	}
	v.duration(key+".interval", p.Interval, Duration(time.Second), maxTimeout)
	v.duration(key+".timeout", p.Timeout, minTimeout, maxInterval)
	v.number(key+".rise", p.Rise, 1, maxRiseFall)
	v.number(key+".fall", p.Fall, 1, maxRiseFall)
	v.expectation(key+".expect", &p.Expect)
}

func (v *validator) expectation(key string, e *Expectation) {
	if *e == (Expectation{}) {
		v.add(key, "nothing, needed: status, header or body, by which the verdict is known from any other answer")
	}
	switch {
	case e.Status == 503 || e.Status == 506:
		v.add(key+".status", "%d says that a server is full, which is no verdict; allowed: 200 to 599 without 503 and 506", e.Status)
	case e.Status != 0:
		v.number(key+".status", e.Status, 200, 599)
	}
	for _, pattern := range []struct{ key, text string }{{".header", e.Header}, {".body", e.Body}} {
		if _, err := regexp.Compile(pattern.text); err != nil {
			var fault *syntax.Error
			errors.As(err, &fault)
			v.add(key+pattern.key, "%s is no regular expression: %s", quote(pattern.text), fault.Code)
		}
	}
}

// printable says whether a text has up to most bytes, all of them visible ASCII.
func printable(text string, most int) bool {
	return len(text) <= most && !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// leadsTo says whether requests with a method can be routed by s to a path of the servers.
func (s *Service) leadsTo(method, path string) bool {
	if len(s.Methods) > 0 && !slices.Contains(s.Methods, method) {
		return false
	}
	at := s.Path
	if s.Rewrite != "" {
		at = s.Rewrite
	}
	if start, prefix := strings.CutSuffix(at, "*"); prefix {
		return strings.HasPrefix(path, start)
	}
	return at == path
}

// shareOfConnections checks a number of gateways, or a name that counts them.
func (v *validator) shareOfConnections(key string, s Share) {
	if name, byName := strings.CutPrefix(string(s), sharePrefix); byName {
		if err := checkName(name); err != nil {
			v.add(key, "%s: %v", quote(string(s)), err)
		}
		return
	}
	if n, err := strconv.Atoi(string(s)); err != nil {
		v.add(key, "%s is no number of gateways, allowed: 1 to %d, or dns: and a host name", quote(string(s)), maxShare)
	} else {
		v.number(key, n, 1, maxShare)
	}
}

func (v *validator) server(key string, s *Server, before []Server) {
	name, srv := strings.CutPrefix(s.Address, srvPrefix)
	switch a, err := parseAddress(s.Address, PortICAP); {
	case s.Address == "":
		v.add(key+".address", "missing, needed: host:port")
	case srv && strings.Contains(name, ":"):
		v.add(key+".address", "%s has a port, which is for the SRV records to say; allowed: such as srv:_icap._tcp.example.com", quote(s.Address))
	case srv:
		if err := checkName(name); err != nil {
			v.add(key+".address", "%s: %v", quote(s.Address), err)
		}
	case err != nil:
		v.add(key+".address", "%v", err)
	case a.host == "":
		v.add(key+".address", "%s has no host, needed: host:port", quote(s.Address))
	case a.port == 0:
		v.add(key+".address", "%s: port 0 is out of range, allowed: 1 to 65535", quote(s.Address))
	}
	for i := range before {
		if s.Address != "" && strings.EqualFold(s.Address, before[i].Address) {
			v.add(key+".address", "%s is an earlier server of this pool too; for more requests give it a weight", quote(s.Address))
			break
		}
	}
	v.number(key+".weight", s.Weight, 0, maxWeight)
	v.number(key+".tier", s.Tier, 0, maxTier)
	v.number(key+".max_connections", s.MaxConnections, 0, maxConnections)
}

func (v *validator) service(key string, s *Service) {
	if path, prefix := strings.CutSuffix(s.Path, "*"); path != "" || !prefix {
		v.path(key+".path", path)
	}
	for i, name := range s.ServerNames {
		host := strings.TrimPrefix(name, "*.")
		if _, err := netip.ParseAddr(host); err == nil || host == "" || checkHost(host) != nil || strings.HasSuffix(host, ".") {
			v.add(fmt.Sprintf("%s.server_names[%d]", key, i), "%s is not a host name, allowed: such as gw.example.com, or *.example.com", quote(name))
		}
	}
	if s.Rewrite != "" {
		path, rest := strings.CutSuffix(s.Rewrite, "*")
		v.path(key+".rewrite", path)
		if rest && !strings.HasSuffix(s.Path, "*") {
			v.add(key+".rewrite", "%s ends in *, and %s has no rest that it could stand for", quote(s.Rewrite), quote(s.Path))
		}
	}
	for i, m := range s.Methods {
		v.oneOf(fmt.Sprintf("%s.methods[%d]", key, i), "method", m, methods)
	}
	if len(s.Methods) > 0 && !slices.ContainsFunc(s.Methods, func(m string) bool { return m != "OPTIONS" }) {
		v.add(key+".methods", "OPTIONS alone leads nothing here: an OPTIONS is for the methods of its path, needed: REQMOD or RESPMOD")
	}
	v.oneOf(key+".on_unavailable", "policy", s.OnUnavailable, verdicts)
	v.oneOf(key+".on_error", "policy", s.OnError, verdicts)
	v.oneOf(key+".on_timeout", "policy", s.OnTimeout, verdicts)
	v.duration(key+".decision_timeout", s.DecisionTimeout, 0, maxTimeout)
	v.size(key+".max_body", s.MaxBody, 0, maxBody)
	v.duration(key+".max_duration", s.MaxDuration, 0, maxTimeout)
	v.oneOf(key+".on_limit", "policy", s.OnLimit, verdicts)
	v.oneOf(key+".options", "way", s.Options, answers)
	v.duration(key+".options_grace", s.OptionsGrace, 0, maxTimeout)
	v.number(key+".max_connections", s.MaxConnections, 0, maxConnections)
	if s.ISTag != "" && !istag.MatchString(s.ISTag) {
		v.add(key+".istag", "%s cannot be an ISTag, allowed: up to 30 letters, digits and signs without quotes and blanks; or pass", quote(s.ISTag))
	}
	v.oneOf(key+".duplicates", "policy", s.Duplicates, duplicates)
	v.headers(key+".headers", &s.Headers)
	var listeners, pools []string
	for i := range v.c.Listeners {
		listeners = append(listeners, v.c.Listeners[i].Name)
	}
	for i := range v.c.Pools {
		if name := v.c.Pools[i].Name; name != "" {
			pools = append(pools, name)
		}
	}
	if s.Listener != "" {
		v.oneOf(key+".listener", "listener", s.Listener, listeners)
	}
	if s.Pool == "" {
		v.add(key+".pool", "missing, needed with several pools, allowed: %s", strings.Join(pools, ", "))
	} else {
		v.oneOf(key+".pool", "pool", s.Pool, pools)
	}
}

// istag are the ISTags (RFC 3507 4.7): with their quotes they have 32 characters at most.
var istag = regexp.MustCompile(`^[!#-\[\]-~]{1,30}$`)

// serverFault are the statuses by which a server says that the fault is its own.
var serverFault = regexp.MustCompile("^5[0-9][0-9]$")

// fieldName are the names of header fields (RFC 9110 5.6.2).
var fieldName = regexp.MustCompile("^[-!#$%&'*+.^_`|~A-Za-z0-9]{1,64}$")

// gatewayID are the ids of gateways. None has a character that ends a word in a list.
var gatewayID = regexp.MustCompile("^[-._A-Za-z0-9]{1,64}$")

// contentType are media types with their parameters (RFC 9110 8.3.1), roughly.
var contentType = regexp.MustCompile(`^[-!#$%&'*+.^_|~A-Za-z0-9]{1,64}/[-!#$%&'*+.^_|~A-Za-z0-9]{1,64}( *; *[-A-Za-z0-9]{1,64}="?[-+.:_A-Za-z0-9]{1,64}"?){0,4}$`)

// idHeader are the names that can carry a transaction id: none that has a meaning in ICAP.
var idHeader = regexp.MustCompile(`^[Xx]-[A-Za-z0-9-]{1,64}$`)

// rest is what stands at the top level.
func (v *validator) rest() {
	c := v.c
	for i := range v.some("dns.servers", len(c.DNS.Servers), maxNameservers) {
		v.nameserver(fmt.Sprintf("dns.servers[%d]", i), c.DNS.Servers[i])
	}
	v.duration("dns.interval", c.DNS.Interval, Duration(time.Second), maxInterval)
	v.duration("dns.timeout", c.DNS.Timeout, minInterval, Duration(time.Minute))
	v.number("limits.max_connections", c.Limits.MaxConnections, 0, maxConnections)
	if c.Limits.MaxMemory != 0 {
		v.size("limits.max_memory", c.Limits.MaxMemory, minMemory, maxMemory)
	}
	v.size("limits.max_spill", c.Limits.MaxSpill, 0, maxSpill)
	if c.GatewayID != "" && !gatewayID.MatchString(c.GatewayID) {
		v.add("gateway_id", "%s can't stand in a header, allowed: up to 64 letters, digits, - . and _", quote(c.GatewayID))
	}
	v.duration("drain_timeout", c.DrainTimeout, 0, maxTimeout)
	v.oneOf("log.level", "level", c.Log.Level, logLevels)
	v.oneOf("log.format", "format", c.Log.Format, logFormats)
	if out := c.AccessLog.Output; out != "off" && out != "stdout" && !strings.Contains(out, "/") {
		v.add("access_log.output", "%s is unknown, allowed: off, stdout, or a file with a / in its name", quote(out))
	}
	if name := c.AccessLog.IDHeader; name != "" && (!idHeader.MatchString(name) || isOwnField(name) || isMark(name)) {
		v.add("access_log.id_header", "%s can't carry the id, allowed: a header name that starts with X-, but %s, X-Include and %s...", quote(name), ViaHeader, MarkPrefix)
	}
	switch path, unix := strings.CutPrefix(c.Admin.Address, "unix:"); {
	case c.Admin.Address == "off":
	case unix && path == "":
		v.add("admin.address", "has no file name, allowed: unix:/path/of/socket")
	case unix && len(path) > maxUnixPath:
		v.add("admin.address", "the name of a socket has at most %d bytes, %s has %d", maxUnixPath, quote(path), len(path))
	case !unix && c.Admin.Address == "":
		v.add("admin.address", "is empty, allowed: host:port, unix:/path/of/socket, off")
	case !unix:
		v.listen("admin.address", c.Admin.Address)
	}
	if c.Metrics.Address != "" {
		v.listen("metrics.address", c.Metrics.Address)
	}
}

// nameserver checks the address of a nameserver; its name would have to be looked up.
func (v *validator) nameserver(key, s string) {
	a, err := parseAddress(s, portDNS)
	if err == nil {
		if _, err = netip.ParseAddr(a.host); err != nil {
			err = fmt.Errorf("%s is not an IP address, allowed: such as 10.0.0.2, or 10.0.0.2:%d", quote(s), portDNS)
		} else if a.port == 0 {
			err = fmt.Errorf("%s: port 0 is out of range, allowed: 1 to 65535", quote(s))
		}
	}
	if err != nil {
		v.add(key, "%v", err)
	}
}

// listen checks an address to be listened on, and that nothing before it took the port.
func (v *validator) listen(key, s string) {
	if s == "" {
		v.add(key, "missing, needed: host:port, or :port for every address of this machine")
		return
	}
	if strings.Trim(s, "0123456789") == "" {
		v.add(key, "%s is no address, allowed: host:port, or :%s for every address of this machine", quote(s), s)
		return
	}
	a, err := parseAddress(s, 0)
	if err != nil {
		v.add(key, "%v", err)
		return
	}
	for _, o := range v.opened {
		if a.collides(o.address) {
			v.add(key, "%s is taken by %s (%s)", quote(s), o.key, o.address)
			break
		}
	}
	v.opened = append(v.opened, opened{key, a})
}

// path checks a path as it stands in an ICAP URI; routes compare it byte by byte.
func (v *validator) path(key, path string) {
	switch {
	case !strings.HasPrefix(path, "/"):
		v.add(key, "%s does not start with a /, allowed: such as /reqmod", quote(path))
	case strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune("*?#", r) }):
		v.add(key, "%s has a character that is not allowed: *, ?, # or a blank; only a service's path may end in a *", quote(path))
	case len(path) > maxPath:
		v.add(key, "has %d bytes, allowed: up to %d", len(path), maxPath)
	}
}

// name checks a name that metrics, logs and the admin endpoint use.
func (v *validator) name(key, name string) {
	switch {
	case name == "":
		v.add(key, "missing, needed when there are several")
	case len(name) > maxName:
		v.add(key, "%s is too long, allowed: up to %d characters", quote(name), maxName)
	default:
		for _, c := range []byte(name) {
			if !isAlnum(c) && !strings.ContainsRune("_-.:[]", rune(c)) {
				v.add(key, "%s has a character that is not allowed, allowed: letters, digits and _ - . : [ ]", quote(name))
				return
			}
		}
	}
}

func (v *validator) oneOf(key, what, value string, allowed []string) {
	if !slices.Contains(allowed, value) {
		v.add(key, "unknown %s %s, allowed: %s", what, quote(value), strings.Join(allowed, ", "))
	}
}

// some is how many of n entries are worth a look: all, unless there are too many.
func (v *validator) some(key string, n, most int) int {
	if n > most {
		v.add(key, "has %d entries, allowed: up to %d", n, most)
	}
	return min(n, most)
}

func (v *validator) number(key string, n, least, most int) {
	if n < least || n > most {
		v.add(key, "%d is out of range, allowed: %d to %d", n, least, most)
	}
}

// share checks a part of a whole.
func (v *validator) share(key string, s float64) {
	if !(s >= 0 && s <= 1) { // NaN fails too
		v.add(key, "%v is out of range, allowed: 0 to 1, such as 0.5", s)
	}
}

func (v *validator) duration(key string, d, least, most Duration) {
	if d < least || d > most {
		v.add(key, "%v is out of range, allowed: %v to %v", d, least, most)
	}
}

func (v *validator) size(key string, s, least, most Size) {
	if s < least || s > most {
		v.add(key, "%v is out of range, allowed: %v to %v", s, least, most)
	}
}
