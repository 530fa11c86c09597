package scenario

import (
	"fmt"
	"path/filepath"
	"strings"

	"icapgate/bench"
	"icapgate/configs"
)

// Scenario is a whole file. What its top keys say beside requests, users, clients and faults is for the one that makes the load; a zero value
// there means that nothing is said.
type Scenario struct {
	Connections    int              `yaml:"connections"`
	Rate           float64          `yaml:"rate"`     // requests per second; 0: as fast as answers come
	Arrivals       string           `yaml:"arrivals"` // Constant or Poisson; "": not said
	Stages         []Stage          `yaml:"stages"`
	Duration       configs.Duration `yaml:"duration"`
	WarmUp         configs.Duration `yaml:"warm_up"`
	Timeout        configs.Duration `yaml:"timeout"` // for a connection, and for every wait for bytes
	KeepAlive      KeepAlive        `yaml:"keep_alive"`
	TLS            TLS              `yaml:"tls"`
	IncidentHeader string           `yaml:"incident_header"` // that carries a name of its own for each REQMOD and RESPMOD; "": none
	Users          Users            `yaml:"users"`
	Clients        Clients          `yaml:"clients"`
	FailIf         []string         `yaml:"fail_if"`
	Requests       []RequestType    `yaml:"requests"`
	Faults         []FaultType      `yaml:"faults"`

	doc *configs.Document // where the keys stand; nil: it comes from no file
}

// Arrivals.
const (
	Constant = "constant" // at equal distances
	Poisson  = "poisson"  // independent of each other, as those of many users are
)

// Stage is a ramp from the rate before to Rate.
type Stage struct {
	Duration configs.Duration `yaml:"duration"`
	Rate     float64          `yaml:"rate"`
}

// KeepAlive says when clients close a connection that could be used again.
type KeepAlive struct {
	Requests int              `yaml:"requests"` // after so many requests; 0: never
	Idle     configs.Duration `yaml:"idle"`     // unused for so long; 0: never
}

// TLS says how clients of icaps:// targets connect. File names count from the folder of the scenario.
type TLS struct {
	MinVersion string  `yaml:"min_version"` // "1.2" or "1.3"; "": that of the program
	MaxVersion string  `yaml:"max_version"`
	Resume     float64 `yaml:"resume"`      // share of the connections that may resume an earlier session, 0 to 1
	CAFile     string  `yaml:"ca_file"`     // PEM; "": the system's
	CertFile   string  `yaml:"cert_file"`   // client certificate and key, one combined PEM; "": none
	ServerName string  `yaml:"server_name"` // to verify and for SNI; "": the host of the target
	Insecure   bool    `yaml:"insecure"`    // the certificate is not verified
}

// Users are whom the requests come from. Skew s makes the k-th of them as frequent as 1/k to the power of s (Zipf); 0: all are alike.
type Users struct {
	Count  int     `yaml:"count"`
	Skew   float64 `yaml:"skew"`   // 0, or above 1
	Format string  `yaml:"format"` // DOMAIN/user, with ${number}
}

// Clients are the addresses that they use: the first Count of a network.
type Clients struct {
	Count   int            `yaml:"count"`
	Skew    float64        `yaml:"skew"`
	Network configs.Prefix `yaml:"network"`
}

// RequestType is one kind of request in the mix.
type RequestType struct {
	Name        string        `yaml:"name"`
	Weight      float64       `yaml:"weight"` // its share is that of the weight in their sum
	Method      string        `yaml:"method"`
	Path        string        `yaml:"path"` // in place of the target's; "": that
	Profile     string        `yaml:"profile"`
	Body        *Body         `yaml:"body"` // nil: none
	Chunk       Chunks        `yaml:"chunk"`
	Preview     *Preview      `yaml:"preview"` // nil: as the profile does it
	Allow       []int         `yaml:"allow"`   // 204, 206
	URL         string        `yaml:"url"`     // of the encapsulated HTTP request
	Headers     configs.Pairs `yaml:"headers"`
	HTTPHeaders configs.Pairs `yaml:"http_headers"`
	// HTTPResponseHeaders are for the encapsulated response, which a RESPMOD has.
	HTTPResponseHeaders configs.Pairs `yaml:"http_response_headers"`
	Expect              Expect        `yaml:"expect"`

	message *bench.Message // of Single, in place of what the keys say; Body is its size
}

// Body says what the body of a request is; in YAML a size alone will do.
type Body struct {
	Size  *Size  `yaml:"size"`  // bytes of the pattern
	Files string `yaml:"files"` // folder of the files to send, in place of Size
	Form  *Form  `yaml:"form"`  // wraps the content of a REQMOD; nil: as the profile does it
}

// Form is multipart/form-data around a file.
type Form struct {
	Field    string        `yaml:"field"`     // that has the file
	FileName string        `yaml:"file_name"` // with variables
	Fields   configs.Pairs `yaml:"fields"`    // before the file
}

// Expect says which answers are right.
type Expect struct {
	Status []int      `yaml:"status"` // nil: 200 and 204, and 206 where that is allowed; 200 for OPTIONS
	Body   ExpectBody `yaml:"body"`
}

// ExpectBody says what the body of a 200 or 206 has to be.
type ExpectBody string

// Bodies that come back.
const (
	EchoOrBlocked ExpectBody = ""         // an echo, or to a REQMOD an HTTP response: a block page
	Echo          ExpectBody = "echo"     // what was sent, byte by byte
	Modified      ExpectBody = "modified" // anything else
	AnyBody       ExpectBody = "any"
)

// FaultType is one way to misbehave and how much of the load does.
type FaultType struct {
	Kind  FaultKind        `yaml:"kind"`
	Share float64          `yaml:"share"` // of all requests, 0 to 1
	Rate  configs.Size     `yaml:"rate"`  // slow_body: bytes per second
	After float64          `yaml:"after"` // abort_body: share of the body that is sent, 0 to 1
	Hold  configs.Duration `yaml:"hold"`  // stop_reading, connect_and_leave: until the connection is closed
}

// FaultKind says what a faulty client does.
type FaultKind string

// Faulty clients.
const (
	SlowBody        FaultKind = "slow_body"         // sends its body slowly
	StopReading     FaultKind = "stop_reading"      // sends its request and reads nothing of the answer
	AbortBody       FaultKind = "abort_body"        // closes the connection within its body
	HalfClose       FaultKind = "half_close"        // closes its side of the connection behind its request, and reads the answer
	ConnectAndLeave FaultKind = "connect_and_leave" // sends nothing
)

// FaultKinds are all of them.
var FaultKinds = []FaultKind{SlowBody, StopReading, AbortBody, HalfClose, ConnectAndLeave}

// SetDefaults gives the keys their values for when a file does not name them.
func (s *Scenario) SetDefaults() {
	s.Users.SetDefaults()
	s.Clients.SetDefaults()
}

// SetDefaults is as that of Scenario.
func (u *Users) SetDefaults() { *u = Users{Count: 1000, Format: "EXAMPLE/user${number}"} }

// SetDefaults is as that of Scenario.
func (c *Clients) SetDefaults() {
	*c = Clients{Count: 1000}
	_ = c.Network.UnmarshalText([]byte("10.0.0.0/8"))
}

// SetDefaults is as that of Scenario.
func (r *RequestType) SetDefaults() {
	*r = RequestType{Weight: 1, Method: "REQMOD", Profile: string(bench.Plain)}
}

// SetDefaults is as that of Scenario.
func (f *Form) SetDefaults() { *f = Form{Field: "file", FileName: "${file}"} }

// SetDefaults is as that of Scenario.
func (f *FaultType) SetDefaults() {
	*f = FaultType{Rate: 1 << 10, After: 0.5, Hold: configs.Duration(holdTime)}
}

// Needed says what a scenario cannot be without.
func (*Scenario) Needed() string { return "requests" }

// Read reads a scenario file. The error has all that is wrong with it, one line for each fault: path:line: key: text.
func Read(path string) (*Scenario, error) {
	content, err := configs.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, content)
}

// Parse is Read for a text that is already at hand. Relative file names in it count from the folder of file.
func Parse(file string, content []byte) (*Scenario, error) {
	s := new(Scenario)
	s.doc = configs.Decode(file, content, s)
	s.complete(filepath.Dir(file))
	s.validate()
	if err := s.doc.Err(); err != nil {
		return nil, err
	}
	return s, nil
}

// Single returns a scenario of one message, with a body of size bytes; 0: without one. Compile says what is wrong with it.
func Single(message bench.Message, size int64) *Scenario {
	s := new(Scenario)
	s.SetDefaults()
	r := RequestType{Name: "request", Weight: 1, message: &message}
	if size > 0 {
		r.Body = &Body{Size: &Size{Fixed: configs.Size(size)}}
	}
	s.Requests = []RequestType{r}
	return s
}

// complete fills in what follows from other values. It leaves what it cannot understand to validate.
func (s *Scenario) complete(dir string) {
	within := func(name *string) {
		if *name != "" && !filepath.IsAbs(*name) {
			*name = filepath.Join(dir, *name)
		}
	}
	within(&s.TLS.CAFile)
	within(&s.TLS.CertFile)
	s.nameRequests()
	for i := range s.Requests {
		if b := s.Requests[i].Body; b != nil {
			within(&b.Files)
		}
	}
}

// nameRequests names those that have no name after their method, with a number from the second of that method on.
func (s *Scenario) nameRequests() {
	taken := make(map[string]bool)
	for i := range s.Requests {
		taken[s.Requests[i].Name] = true
	}
	count := make(map[string]int)
	for i := range s.Requests {
		r := &s.Requests[i]
		for r.Name == "" {
			name := strings.ToLower(r.Method)
			if count[name]++; count[name] > 1 {
				name = fmt.Sprintf("%s-%d", name, count[name])
			}
			if !taken[name] {
				r.Name, taken[name] = name, true
			}
		}
	}
}
