package scenario

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"icapgate/bench"
	"icapgate/configs"
	"icapgate/icap"
)

const (
	maxRequestTypes = 1000
	maxWeight       = 1_000_000
	maxFields       = 200 // of one head or form
	maxFaultTypes   = 100
	maxPeople       = 1 << 30 // users or clients: their numbers are drawn, not kept
	maxBody         = 1 << 40 // bytes
	holdTime        = 5 * time.Second
)

// validate looks for faults in what could be read.
func (s *Scenario) validate() {
	s.validateTop()
	s.validatePeople("users", s.Users.Count, s.Users.Skew)
	s.validatePeople("clients", s.Clients.Count, s.Clients.Skew)
	if most := addresses(s.Clients.Network); float64(s.Clients.Count) > most {
		s.doc.Fault("clients.count", "is %d, but %v has only %.0f addresses for them", s.Clients.Count, s.Clients.Network, most)
	}
	if _, err := parseTemplate([]byte(s.Users.Format), userVariables); err != nil {
		s.doc.Fault("users.format", "%v", err)
	} else if !isPrintable(s.Users.Format) {
		s.doc.Fault("users.format", "is %s, allowed: printable text such as EXAMPLE/user${number}", configs.Quote(s.Users.Format))
	}
	switch n := len(s.Requests); {
	case n == 0:
		s.doc.Fault("requests", "none, needed: at least one, such as {method: REQMOD, body: 64KiB}")
	case n > maxRequestTypes:
		s.doc.Fault("requests", "are %d, allowed: at most %d", n, maxRequestTypes)
		return
	}
	total := 0.0
	for i := range s.Requests {
		s.validateRequest(fmt.Sprintf("requests[%d]", i), i)
		total += s.Requests[i].Weight
	}
	if len(s.Requests) > 0 && total <= 0 {
		s.doc.Fault("requests", "have no weight above 0")
	}
	s.validateFaults()
}

func (s *Scenario) validateTop() {
	s.atLeast("connections", float64(s.Connections), 0)
	s.atLeast("rate", s.Rate, 0)
	s.oneOf("arrivals", s.Arrivals, "", Constant, Poisson)
	if len(s.Stages) > 0 && s.Duration > 0 {
		s.doc.Fault("duration", "is given by the stages, remove it or them")
	}
	for i, stage := range s.Stages {
		key := fmt.Sprintf("stages[%d]", i)
		s.atLeast(key+".rate", stage.Rate, 0)
		if stage.Duration <= 0 {
			s.doc.Fault(key+".duration", "none, needed: a time such as 30s")
		}
	}
	s.atLeast("keep_alive.requests", float64(s.KeepAlive.Requests), 0)
	s.oneOf("tls.min_version", s.TLS.MinVersion, "", "1.2", "1.3")
	s.oneOf("tls.max_version", s.TLS.MaxVersion, "", "1.2", "1.3")
	if s.TLS.MinVersion == "1.3" && s.TLS.MaxVersion == "1.2" {
		s.doc.Fault("tls.max_version", "is below min_version")
	}
	s.within("tls.resume", s.TLS.Resume, 0, 1)
	if s.IncidentHeader != "" && !isToken(s.IncidentHeader) {
		s.doc.Fault("incident_header", "%s is no name of a header, allowed: one such as X-Incident-ID", configs.Quote(s.IncidentHeader))
	}
}

func (s *Scenario) validatePeople(key string, count int, skew float64) {
	if count < 1 || count > maxPeople {
		s.doc.Fault(key+".count", "is %d, allowed: 1 to %d", count, maxPeople)
	}
	if skew != 0 && !(skew > 1 && skew <= 10) {
		s.doc.Fault(key+".skew", "is %v, allowed: 0 (all alike), or above 1 to 10, such as 1.1", skew)
	}
}

func (s *Scenario) validateRequest(key string, i int) {
	r := &s.Requests[i]
	for j := range i {
		if s.Requests[j].Name == r.Name {
			s.doc.Fault(key+".name", "%s is the name of an earlier one too", configs.Quote(r.Name))
		}
	}
	if !isPrintable(r.Name) {
		s.doc.Fault(key+".name", "is %s, allowed: printable text", configs.Quote(r.Name))
	}
	s.within(key+".weight", r.Weight, 0, maxWeight)
	method, err := bench.MethodOf(r.Method)
	if err != nil {
		s.doc.Fault(key+".method", "is %s, allowed: REQMOD, RESPMOD, OPTIONS", configs.Quote(r.Method))
	}
	if r.Path != "" && !strings.HasPrefix(r.Path, "/") {
		s.doc.Fault(key+".path", "is %s, allowed: a path such as /reqmod", configs.Quote(r.Path))
	}
	s.oneOf(key+".profile", r.Profile, string(bench.Plain), string(bench.Zscaler), string(bench.Squid), string(bench.ProxySG))
	for j, status := range r.Allow {
		if status != 204 && status != 206 {
			s.doc.Fault(fmt.Sprintf("%s.allow[%d]", key, j), "is %d, allowed: 204, 206", status)
		}
	}
	for j, size := range r.Chunk {
		if size < 1 {
			s.doc.Fault(fmt.Sprintf("%s.chunk[%d]", key, j), "is 0, allowed: a size from 1 on")
		}
	}
	for j, status := range r.Expect.Status {
		if status < 200 || status > 599 {
			s.doc.Fault(fmt.Sprintf("%s.expect.status[%d]", key, j), "is %d, allowed: 200 to 599", status)
		}
	}
	s.oneOf(key+".expect.body", string(r.Expect.Body), "", string(Echo), string(Modified), string(AnyBody))
	for _, list := range []struct {
		key   string
		pairs configs.Pairs
	}{{"headers", r.Headers}, {"http_headers", r.HTTPHeaders}, {"http_response_headers", r.HTTPResponseHeaders}} {
		if len(list.pairs) > maxFields {
			s.doc.Fault(key+"."+list.key, "are %d, allowed: at most %d", len(list.pairs), maxFields)
			continue
		}
		for _, p := range list.pairs {
			s.validateHeader(key+"."+list.key, p, list.key == "headers")
		}
	}
	if r.Body != nil {
		if err == nil && method == icap.MethodOptions {
			s.doc.Fault(key+".body", "an OPTIONS has none")
		}
		s.validateBody(key+".body", r.Body)
		if err == nil && r.Body.Form != nil && method != icap.MethodReqmod {
			s.doc.Fault(key+".body.form", "a %v has no form, only a REQMOD", method)
		}
	}
}

func (s *Scenario) validateHeader(key string, p configs.Pair, ofICAP bool) {
	key += "." + p.Name
	switch {
	case !isToken(p.Name):
		s.doc.Fault(key, "%s is no name of a header", configs.Quote(p.Name))
	case ofICAP && (strings.EqualFold(p.Name, "Encapsulated") || strings.EqualFold(p.Name, "Preview")):
		s.doc.Fault(key, "is part of the framing and cannot be chosen")
	case ofICAP && strings.EqualFold(p.Name, "Allow"):
		s.doc.Fault(key, "is not chosen here, but by allow")
	default:
		s.validateText(key, p.Value)
	}
}

// validateText looks at a text that goes into a head or a form.
func (s *Scenario) validateText(key, text string) {
	if strings.ContainsAny(text, "\r\n\x00") {
		s.doc.Fault(key, "has more than one line")
	} else if _, err := parseTemplate([]byte(text), requestVariables); err != nil {
		s.doc.Fault(key, "%v", err)
	}
}

func (s *Scenario) validateBody(key string, b *Body) {
	switch {
	case b.Size == nil && b.Files == "":
		s.doc.Fault(key, "has neither size nor files, needed: one of them")
	case b.Size != nil && b.Files != "":
		s.doc.Fault(key, "has size and files, allowed: one of them")
	case b.Size != nil:
		s.validateSize(key+".size", b.Size)
	}
	if f := b.Form; f != nil {
		if f.Field == "" || !isPrintable(f.Field) {
			s.doc.Fault(key+".form.field", "is %s, allowed: printable text", configs.Quote(f.Field))
		}
		s.validateText(key+".form.file_name", f.FileName)
		if len(f.Fields) > maxFields {
			s.doc.Fault(key+".form.fields", "are %d, allowed: at most %d", len(f.Fields), maxFields)
			return
		}
		for _, p := range f.Fields {
			if p.Name == "" || !isPrintable(p.Name) {
				s.doc.Fault(key+".form.fields", "has a field with the name %s, allowed: printable text", configs.Quote(p.Name))
			}
			s.validateText(key+".form.fields."+p.Name, p.Value)
		}
	}
}

func (s *Scenario) validateSize(key string, size *Size) {
	given := 0
	upTo := func(key string, value configs.Size) {
		if value > maxBody {
			s.doc.Fault(key, "is %v, allowed: at most %v", value, configs.Size(maxBody))
		}
	}
	if size.Fixed > 0 {
		given++
		upTo(key, size.Fixed)
	}
	if u := size.Uniform; u != nil {
		given++
		if u.Max < u.Min || u.Max == 0 {
			s.doc.Fault(key+".uniform.max", "is %v, allowed: a size from min (%v) on", u.Max, u.Min)
		}
		upTo(key+".uniform.max", u.Max)
	}
	if l := size.LogNormal; l != nil {
		given++
		if l.Median < 1 {
			s.doc.Fault(key+".lognormal.median", "none, needed: a size that half of the bodies are below")
		}
		if !(l.Sigma > 0 && l.Sigma <= 10) {
			s.doc.Fault(key+".lognormal.sigma", "is %v, allowed: above 0 to 10, such as 1.8", l.Sigma)
		}
		if l.Max < l.Median {
			s.doc.Fault(key+".lognormal.max", "is %v, allowed: a size from the median (%v) on", l.Max, l.Median)
		}
		upTo(key+".lognormal.max", l.Max)
		if l.Min > l.Median {
			s.doc.Fault(key+".lognormal.min", "is %v, allowed: a size up to the median (%v)", l.Min, l.Median)
		}
	}
	if given > 1 {
		s.doc.Fault(key, "has more than one of fixed, uniform and lognormal")
	}
}

func (s *Scenario) validateFaults() {
	if n := len(s.Faults); n > maxFaultTypes {
		s.doc.Fault("faults", "are %d, allowed: at most %d", n, maxFaultTypes)
		return
	}
	total, inRange := 0.0, true
	for i, f := range s.Faults {
		key := fmt.Sprintf("faults[%d]", i)
		if !slices.Contains(FaultKinds, f.Kind) {
			s.doc.Fault(key+".kind", "is %s, allowed: %s", configs.Quote(string(f.Kind)), FaultNames())
		}
		s.within(key+".share", f.Share, 0, 1)
		s.within(key+".after", f.After, 0, 1)
		if f.Rate < 1 {
			s.doc.Fault(key+".rate", "is 0, allowed: a size from 1 on, in bytes per second")
		}
		total += f.Share
		inRange = inRange && f.Share >= 0 && f.Share <= 1
		if f.needsBody() && !slices.ContainsFunc(s.Requests, func(r RequestType) bool { return r.Body != nil && r.Weight > 0 }) {
			s.doc.Fault(key+".kind", "%s needs a request with a body", f.Kind)
		}
	}
	if inRange && total > 1 {
		s.doc.Fault("faults", "have shares of %.3g together, allowed: at most 1", total)
	}
}

// FaultNames lists the kinds of faulty clients for people.
func FaultNames() string {
	var names []string
	for _, kind := range FaultKinds {
		names = append(names, string(kind))
	}
	return strings.Join(names, ", ")
}

func (f *FaultType) needsBody() bool { return f.Kind == SlowBody || f.Kind == AbortBody }

func (s *Scenario) atLeast(key string, value, least float64) {
	if !(value >= least) || math.IsInf(value, 0) {
		s.doc.Fault(key, "is %v, allowed: a number from %v on", value, least)
	}
}

func (s *Scenario) within(key string, value, least, most float64) {
	if !(value >= least && value <= most) {
		s.doc.Fault(key, "is %v, allowed: %v to %v", value, least, most)
	}
}

// oneOf faults another word than those that are allowed; an empty one among them is not named.
func (s *Scenario) oneOf(key, value string, allowed ...string) {
	if slices.Contains(allowed, value) {
		return
	}
	s.doc.Fault(key, "is %s, allowed: %s", configs.Quote(value), strings.TrimPrefix(strings.Join(allowed, ", "), ", "))
}

func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd })
}

func isToken(s string) bool {
	const others = "!#$%&'*+-.^_`|~"
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune(others, r))
	})
}
