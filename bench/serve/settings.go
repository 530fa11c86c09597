package serve

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"icapgate/bench"
	"icapgate/bench/dlpstub"
	"icapgate/configs"
	"icapgate/icap"
)

// Settings say what a server does. All are keys of the YAML file and, but for Listen, flags of icapbench serve. nil: not given.
type Settings struct {
	Listen  string  `yaml:"listen" kong:"-"` // address
	Profile *string `yaml:"profile" help:"What the server imitates: symantec, c-icap or e2guardian. Other flags override its settings." placeholder:"NAME"`
	Name    *string `yaml:"name" help:"Name in X-Server and Service. Default: the address." placeholder:"NAME"`

	Mode         *string       `yaml:"mode" help:"Answer: 204 (echo where the client does not allow 204), echo, modify, partial (206, modify where the client does not allow it) or block. Default: 204." placeholder:"MODE" group:"Answers"`
	Status       *int          `yaml:"status" help:"Answer every REQMOD and RESPMOD with this ICAP status." placeholder:"CODE" group:"Answers"`
	Header       []string      `yaml:"header" sep:"none" help:"Field of every answer to REQMOD and RESPMOD, 'Name: value'. Repeatable." placeholder:"FIELD" group:"Answers"`
	ChangeHeader *string       `yaml:"change_header" help:"Field that modify and partial add to the HTTP head, 'Name: value'." placeholder:"FIELD" group:"Answers"`
	ChangeBody   *string       `yaml:"change_body" help:"Text that modify and partial put in front of the body." placeholder:"TEXT" group:"Answers"`
	ChangeSkip   *Skip         `yaml:"change_skip" help:"Bytes of the body that modify and partial leave out from its start, or all. Default: 0." placeholder:"N|all" group:"Answers"`
	Match        *string       `yaml:"match" help:"Block bodies that have this text." placeholder:"TEXT" group:"Answers"`
	MatchRegexp  *string       `yaml:"match_regexp" help:"Block bodies that have a match of this regular expression." placeholder:"EXPRESSION" group:"Answers"`
	MatchLimit   *configs.Size `yaml:"match_limit" help:"Bytes of a body that are held to look at them before it is echoed; more are not looked at then. Default: 1MiB." placeholder:"SIZE" group:"Answers"`
	BlockStatus  *int          `yaml:"block_status" help:"HTTP status of the block page. Default: 403." placeholder:"CODE" group:"Answers"`
	BlockPage    *string       `yaml:"block_page" help:"HTML of the block page." placeholder:"HTML" group:"Answers"`
	Preview      *Preview      `yaml:"preview" help:"Preview that OPTIONS asks for. Default: none." placeholder:"N|none" group:"Answers"`
	Continue     *bool         `yaml:"continue" negatable:"" help:"Ask for the rest after a preview even if a 204 would do." group:"Answers"`
	Alternate    *bool         `yaml:"alternate" negatable:"" help:"Answer every second preview 204 whatever the mode." group:"Answers"`
	WholePreview *bool         `yaml:"whole_preview" negatable:"" help:"Take a preview for the whole body." group:"Answers"`
	Early        *bool         `yaml:"early" negatable:"" help:"Answer before the body has been read." group:"Answers"`

	Latency          *configs.Duration `yaml:"latency" help:"Time that passes before an answer starts; the other latencies come on top." placeholder:"TIME" group:"Time"`
	LatencyUniform   *Uniform          `yaml:"latency_uniform" help:"Time that is drawn between two times, such as 10ms-30ms." placeholder:"MIN-MAX" group:"Time"`
	LatencyLognormal *Lognormal        `yaml:"latency_lognormal" help:"Time that is drawn from a lognormal distribution, such as 20ms:0.5." placeholder:"MEDIAN:SIGMA" group:"Time"`
	LatencyPerMiB    *configs.Duration `yaml:"latency_per_mib" name:"latency-per-mib" help:"Time per MiB of body." placeholder:"TIME" group:"Time"`
	Seed             *int              `yaml:"seed" help:"Seed of what is drawn. Default: 0." placeholder:"N" group:"Time"`
	ReadRate         *configs.Size     `yaml:"read_rate" help:"Bytes per second that are read from a connection. Default: all that come." placeholder:"SIZE" group:"Time"`

	Slots           *int              `yaml:"slots" help:"REQMOD and RESPMOD that are served at a time. Default: all." placeholder:"N" group:"Limits"`
	Queue           *Queue            `yaml:"queue" help:"Requests that wait in line for a slot; more are answered 503. Default: 0." placeholder:"N|all" group:"Limits"`
	RetryAfter      *configs.Duration `yaml:"retry_after" help:"Retry-After of a 503, whole seconds. Default: none." placeholder:"TIME" group:"Limits"`
	ConnectionLimit *int              `yaml:"connection_limit" help:"Connections that are served at a time, idle ones included. Default: all." placeholder:"N" group:"Limits"`
	Excess          *string           `yaml:"excess" help:"What becomes of connections beyond: wait (until another one ends) or refuse (503). Default: wait." placeholder:"wait|refuse" group:"Limits"`

	MaxConnections *int              `yaml:"max_connections" help:"Max-Connections that OPTIONS tells; it limits nothing." placeholder:"N" group:"OPTIONS"`
	Methods        []string          `yaml:"methods" help:"Methods that are served. Default: reqmod,respmod." placeholder:"METHOD" group:"OPTIONS"`
	Service        []string          `yaml:"service" sep:"none" help:"Path that is served, with its methods, such as /request:reqmod. Repeatable. Default: every path." placeholder:"PATH:METHODS" group:"OPTIONS"`
	ISTag          *string           `yaml:"istag" name:"istag" help:"ISTag, without quotes. Default: dlpstub-1." placeholder:"TAG" group:"OPTIONS"`
	ISTagEvery     *int              `yaml:"istag_every" name:"istag-every" help:"Change the ISTag after so many requests." placeholder:"N" group:"OPTIONS"`
	ISTagPeriod    *configs.Duration `yaml:"istag_period" name:"istag-period" help:"Change the ISTag after so much time." placeholder:"TIME" group:"OPTIONS"`
	OptionsTTL     *configs.Duration `yaml:"options_ttl" name:"options-ttl" help:"Options-TTL; 0s: none. Default: 1h." placeholder:"TIME" group:"OPTIONS"`

	CloseAfter         *int              `yaml:"close_after" help:"Close a connection after N requests." placeholder:"N" group:"Connections"`
	SilentClose        *bool             `yaml:"silent_close" negatable:"" help:"Do so without Connection: close." group:"Connections"`
	SilentOptionsClose *bool             `yaml:"silent_options_close" negatable:"" help:"Do so if the last request was OPTIONS." group:"Connections"`
	IdleTimeout        *configs.Duration `yaml:"idle_timeout" help:"Close a connection that is idle that long." placeholder:"TIME" group:"Connections"`
	IdleStatus         *int              `yaml:"idle_status" help:"Send it this ICAP status in place of its end." placeholder:"CODE" group:"Connections"`

	RespmodHeader *string `yaml:"respmod_header" help:"Field without which a RESPMOD is answered 418." placeholder:"NAME" group:"Spelling"`
	NullBody      *bool   `yaml:"null_body" negatable:"" help:"Say Encapsulated: null-body=0 in answers without a message." group:"Spelling"`
	TightFields   *bool   `yaml:"tight_fields" negatable:"" help:"Write ISTag, X-Server and Connection without a blank after the colon." group:"Spelling"`
	BareISTag     *bool   `yaml:"bare_istag" name:"bare-istag" negatable:"" help:"Write the ISTag without quotes." group:"Spelling"`
	OpenErrors    *bool   `yaml:"open_errors" negatable:"" help:"Answer bad requests 400 without the empty line at the end, and keep the connection if they have no body." group:"Spelling"`

	Fault []FaultSpec `yaml:"fault" sep:"none" help:"What goes wrong, and how often: KIND:SHARE, such as reset-body:1% or status:5%:503. Repeatable. Kinds: refuse, stall (connections), reset-body, reset-answer, silent, trickle[:TIME], late[:TIME], garbage, encapsulated, status:CODE. With :options OPTIONS fail too." placeholder:"FAULT" group:"Faults"`

	TLSCert  *string `yaml:"tls_cert" name:"tls-cert" help:"Certificate and key, one combined PEM: serve icaps." placeholder:"FILE" group:"TLS"`
	TLS      *bool   `yaml:"tls" name:"tls" negatable:"" help:"Serve icaps with a self-signed certificate that is made for this run." group:"TLS"`
	TLSCAOut *string `yaml:"tls_ca_out" name:"tls-ca-out" help:"File that its public part is written to, for clients to trust." placeholder:"FILE" group:"TLS"`
}

// over returns the settings with those that are not given taken from the ones below.
func (s Settings) over(below Settings) Settings {
	to, from := reflect.ValueOf(&s).Elem(), reflect.ValueOf(&below).Elem()
	for i := range to.NumField() {
		if to.Field(i).IsZero() {
			to.Field(i).Set(from.Field(i))
		}
	}
	return s
}

// value returns what p points at, or zero.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// faultFunc takes what is wrong with the value of a key.
type faultFunc func(key, format string, args ...any)

// config turns settings into what the server of dlpstub takes, TLS apart.
func (s *Settings) config(fault faultFunc) dlpstub.Config {
	cfg := dlpstub.Config{
		Name:               value(s.Name),
		Status:             value(s.Status),
		Continue:           value(s.Continue),
		Alternate:          value(s.Alternate),
		WholePreview:       value(s.WholePreview),
		EarlyAnswer:        value(s.Early),
		Latency:            time.Duration(value(s.Latency)),
		LatencyPerMiB:      time.Duration(value(s.LatencyPerMiB)),
		Seed:               uint64(value(s.Seed)),
		ReadRate:           int64(value(s.ReadRate)),
		Slots:              s.count("slots", s.Slots, fault),
		Queue:              int(value(s.Queue)),
		RetryAfter:         s.wholeSeconds("retry_after", s.RetryAfter, fault),
		ConnectionLimit:    s.count("connection_limit", s.ConnectionLimit, fault),
		MaxConnections:     s.count("max_connections", s.MaxConnections, fault),
		ISTag:              value(s.ISTag),
		ISTagEvery:         s.count("istag_every", s.ISTagEvery, fault),
		ISTagPeriod:        time.Duration(value(s.ISTagPeriod)),
		OptionsTTL:         s.wholeSeconds("options_ttl", s.OptionsTTL, fault),
		CloseAfter:         s.count("close_after", s.CloseAfter, fault),
		SilentClose:        value(s.SilentClose),
		SilentOptionsClose: value(s.SilentOptionsClose),
		IdleTimeout:        time.Duration(value(s.IdleTimeout)),
		IdleStatus:         value(s.IdleStatus),
		RespmodField:       value(s.RespmodHeader),
		NullBody:           value(s.NullBody),
		TightFields:        value(s.TightFields),
		BareISTag:          value(s.BareISTag),
		OpenErrors:         value(s.OpenErrors),
	}
	if s.OptionsTTL != nil && *s.OptionsTTL == 0 {
		cfg.OptionsTTL = -1
	}
	s.setAnswers(&cfg, fault)
	s.setMethods(&cfg, fault)
	s.setDelay(&cfg, fault)
	switch value(s.Excess) {
	case "", "wait":
	case "refuse":
		cfg.Excess = dlpstub.ExcessRefused
	default:
		fault("excess", "%s is neither, allowed: wait, refuse", configs.Quote(*s.Excess))
	}
	if s.Queue != nil && s.Slots == nil {
		fault("queue", "needs slots: without them no request waits")
	}
	if s.Excess != nil && s.ConnectionLimit == nil {
		fault("excess", "needs connection_limit")
	}
	if !isTag(cfg.ISTag) {
		fault("istag", "%s is none, %s", configs.Quote(cfg.ISTag), wantedTag)
	}
	if s.IdleStatus != nil && s.IdleTimeout == nil {
		fault("idle_status", "needs idle_timeout")
	}
	for i, f := range s.Fault {
		if f.Kind == dlpstub.NoFault {
			fault(fmt.Sprintf("fault[%d]", i), "none is no fault to configure, allowed: %s", strings.Join(dlpstub.FaultNames(), ", "))
		}
		cfg.Faults = append(cfg.Faults, dlpstub.Fault(f))
	}
	return cfg
}

// setAnswers is about the form of answers.
func (s *Settings) setAnswers(cfg *dlpstub.Config, fault faultFunc) {
	modes := map[string]dlpstub.Mode{"": dlpstub.NoContent, "204": dlpstub.NoContent, "echo": dlpstub.Echo, "modify": dlpstub.Modify,
		"partial": dlpstub.Partial, "block": dlpstub.Block}
	mode, ok := modes[value(s.Mode)]
	if !ok {
		fault("mode", "%s is none, allowed: 204, echo, modify, partial, block", configs.Quote(*s.Mode))
	}
	cfg.Mode = mode
	statusOf := func(key string, code int) {
		if code != 0 && (code < 200 || code > 599 || code == 206) {
			fault(key, "%d is no status to answer with, allowed: 200 to 599, and not 206", code)
		}
	}
	statusOf("status", cfg.Status)
	statusOf("idle_status", cfg.IdleStatus)
	for i, line := range s.Header {
		if !isField(line) {
			fault(fmt.Sprintf("header[%d]", i), "%s is no field, allowed: Name: value", configs.Quote(line))
		}
		cfg.Fields += line + "\r\n"
	}
	if s.ChangeHeader != nil {
		if !isField(*s.ChangeHeader) {
			fault("change_header", "%s is no field, allowed: Name: value", configs.Quote(*s.ChangeHeader))
		}
		cfg.Change.Field = *s.ChangeHeader + "\r\n"
	}
	cfg.Change.Body = []byte(value(s.ChangeBody))
	cfg.Change.Skip = int(value(s.ChangeSkip))
	if (s.ChangeHeader != nil || s.ChangeBody != nil || s.ChangeSkip != nil) && mode != dlpstub.Modify && mode != dlpstub.Partial {
		fault("mode", "has to be modify or partial where change_header, change_body or change_skip are given")
	}
	switch pattern := value(s.MatchRegexp); {
	case s.Match != nil && s.MatchRegexp != nil:
		fault("match", "stands beside match_regexp, allowed: one of them")
	case s.Match != nil && *s.Match == "" || s.MatchRegexp != nil && pattern == "":
		fault("match", "is empty and would match everything; for that there is mode: block")
	case s.Match != nil && len(*s.Match) > dlpstub.MatchOverlap:
		fault("match", "has %d bytes, allowed: %d", len(*s.Match), dlpstub.MatchOverlap)
	case s.Match != nil:
		cfg.Match = regexp.MustCompile(regexp.QuoteMeta(*s.Match))
	case s.MatchRegexp != nil:
		var err error
		if cfg.Match, err = regexp.Compile(pattern); err != nil {
			fault("match_regexp", "%v", err)
		}
	}
	cfg.MatchLimit = int(value(s.MatchLimit))
	if cfg.MatchLimit > maxMatchLimit {
		fault("match_limit", "%v is too large: every connection may hold that much, allowed: %v", *s.MatchLimit, configs.Size(maxMatchLimit))
	}
	cfg.Page = dlpstub.Page{Status: value(s.BlockStatus), Body: value(s.BlockPage)}
	if n := cfg.Page.Status; n != 0 && (n < 200 || n > 599) {
		fault("block_status", "%d is no status of a page, allowed: 200 to 599", n)
	}
	if s.Preview != nil {
		cfg.Preview = s.Preview.config()
	}
}

// maxMatchLimit bounds match_limit.
const maxMatchLimit = 64 << 20

// setMethods is about what is served.
func (s *Settings) setMethods(cfg *dlpstub.Config, fault faultFunc) {
	for i, name := range s.Methods {
		if m, ok := methodOf(name); !ok {
			fault(fmt.Sprintf("methods[%d]", i), "%s is none, allowed: reqmod, respmod", configs.Quote(name))
		} else if !slices.Contains(cfg.Methods, m) {
			cfg.Methods = append(cfg.Methods, m)
		}
	}
	for i, spec := range s.Service {
		key := fmt.Sprintf("service[%d]", i)
		path, names, _ := strings.Cut(spec, ":")
		if !strings.HasPrefix(path, "/") {
			fault(key, "%s is no path with methods, allowed: such as /request:reqmod", configs.Quote(spec))
			continue
		}
		methods := []icap.Method{}
		for name := range strings.SplitSeq(names, ",") {
			m, ok := methodOf(name)
			if !ok {
				fault(key, "%s names no method, allowed: reqmod, respmod or reqmod,respmod after the colon", configs.Quote(spec))
				break
			}
			methods = append(methods, m)
		}
		if cfg.Services == nil {
			cfg.Services = make(map[string][]icap.Method)
		}
		cfg.Services[path] = methods
	}
}

func methodOf(name string) (icap.Method, bool) {
	m, err := bench.MethodOf(name)
	return m, err == nil && m != icap.MethodOptions
}

// setDelay is about what is drawn.
func (s *Settings) setDelay(cfg *dlpstub.Config, fault faultFunc) {
	switch {
	case s.LatencyUniform != nil && s.LatencyLognormal != nil:
		fault("latency_uniform", "stands beside latency_lognormal, allowed: one of them")
	case s.LatencyUniform != nil:
		cfg.Delay = dlpstub.Uniform(s.LatencyUniform.Least, s.LatencyUniform.Most)
	case s.LatencyLognormal != nil:
		cfg.Delay = dlpstub.Lognormal(s.LatencyLognormal.Median, s.LatencyLognormal.Sigma)
	}
	if s.Seed != nil && *s.Seed < 0 {
		fault("seed", "%d is negative", *s.Seed)
	}
}

// count checks a number, of which 0 is as good as none: it takes back what a profile says.
func (s *Settings) count(key string, n *int, fault faultFunc) int {
	if n != nil && *n < 0 {
		fault(key, "%d is negative, allowed: 0 (none) and more", *n)
	}
	return value(n)
}

func (s *Settings) wholeSeconds(key string, d *configs.Duration, fault faultFunc) time.Duration {
	t := time.Duration(value(d))
	if t%time.Second != 0 {
		fault(key, "%v is not whole seconds", t)
	}
	return t
}

const wantedTag = "allowed: up to 32 ASCII characters without blanks and quotes"

// isTag says whether a text can be an ISTag. "" stands for one of the server's choice.
func isTag(tag string) bool {
	return len(tag) <= 32 && !strings.ContainsFunc(tag, func(c rune) bool { return c <= ' ' || c > '~' || c == '"' })
}

// isField says whether a line can be sent as a field.
func isField(line string) bool {
	name, _, ok := strings.Cut(line, ":")
	return ok && name != "" && !strings.ContainsAny(name, " \t") && !strings.ContainsFunc(line, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f })
}

// readFile reads a file of the user, for a message that names it once.
func readFile(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if failed, ok := errors.AsType[*os.PathError](err); ok {
		err = failed.Err
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", configs.Quote(path), err)
	}
	return data, nil
}
