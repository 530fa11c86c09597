package gateway

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"

	"icapgate/configs"
	"icapgate/icap"
)

// headerPolicy is what a service changes of the fields of ICAP heads. Fields of a request are changed as soon as it has a route, before anything
// looks at them: what servers get is also what balance: hash and the access log go by. Immutable.
type headerPolicy struct {
	trusted  *addressSet // clients that may say whom a request is from, nil: all
	guarded  names       // what is taken from the requests of the others
	clientIP bool        // a request without X-Client-IP gets one
	drop     names       // of requests: what is removed or set
	add      []headerRule

	dropAnswer names // of answers
	fixedLines []byte
	addAnswer  []headerRule // those that are no fixedLines
}

// headerRule is a field that is added. Where its value comes out empty, it is not.
type headerRule struct {
	name  []byte
	value []valuePart
}

// valuePart is a text or, without one, a variable.
type valuePart struct {
	text     []byte
	variable variable
}

// variable is what the values of rules can have that differs from request to request.
type variable uint8

const (
	varClientIP variable = iota
	varClientPort
	varID
	varListener
	varServerName
)

var variables = map[string]variable{
	"client_ip": varClientIP, "client_port": varClientPort, "id": varID, "listener": varListener, "server_name": varServerName,
}

// names are those of fields, in any case.
type names struct{ whole, prefixes []string }

func newNames(patterns []string) (n names) {
	for _, p := range patterns {
		if start, prefix := strings.CutSuffix(p, "*"); prefix {
			n.prefixes = append(n.prefixes, start)
		} else {
			n.whole = append(n.whole, p)
		}
	}
	return n
}

// dropFrom takes the fields out of a head. Those that begin with one of but stay, whatever a name with a * says.
func (n *names) dropFrom(head interface {
	Drop(name string)
	DropPrefix(prefix string, but ...string)
}, but []string) {
	for _, name := range n.whole {
		head.Drop(name)
	}
	for _, prefix := range n.prefixes {
		head.DropPrefix(prefix, but...)
	}
}

// What no name with a * takes away: from requests what other gateways know theirs by, from answers what marks them, and what a client learns of its service.
var (
	keptInRequests = []string{configs.ViaHeader}
	keptInAnswers  = []string{configs.MarkPrefix, "X-Include"}
)

const clientIPField = "X-Client-IP"

// newHeaderPolicy compiles the policy of a service, whose path as configured is given; nil: it changes nothing.
func newHeaderPolicy(cfg *configs.Headers, service string) *headerPolicy {
	p := &headerPolicy{
		clientIP: cfg.ClientIP,
		drop:     newNames(slices.Concat(cfg.Request.Remove, namesOf(cfg.Request.Set))), add: newHeaderRules(cfg.Request, service),
		dropAnswer: newNames(slices.Concat(cfg.Response.Remove, namesOf(cfg.Response.Set))),
	}
	if len(cfg.Trusted) > 0 && len(cfg.Guarded) > 0 {
		p.trusted, p.guarded = newAddressSet(cfg.Trusted), newNames(cfg.Guarded)
	}
	for _, name := range namesOf(cfg.Request.Set) {
		p.clientIP = p.clientIP && !strings.EqualFold(name, clientIPField)
	}
	for _, r := range newHeaderRules(cfg.Response, service) {
		if text, ok := r.fixed(); ok {
			p.fixedLines = append(append(append(append(p.fixedLines, r.name...), ": "...), text...), "\r\n"...)
		} else {
			p.addAnswer = append(p.addAnswer, r)
		}
	}
	if p.trusted == nil && !p.clientIP && p.drop.none() && len(p.add) == 0 && p.dropAnswer.none() && len(p.fixedLines)+len(p.addAnswer) == 0 {
		return nil
	}
	return p
}

func (n *names) none() bool { return len(n.whole)+len(n.prefixes) == 0 }

func namesOf(pairs configs.Pairs) (list []string) {
	for _, p := range pairs {
		list = append(list, p.Name)
	}
	return list
}

// newHeaderRules compiles what is set and added. Variables that are known by now become text.
func newHeaderRules(cfg configs.HeaderRules, service string) (rules []headerRule) {
	host, _ := os.Hostname()
	for _, pair := range slices.Concat(cfg.Set, cfg.Add) {
		r := headerRule{name: []byte(pair.Name)}
		parts, err := configs.ParseValue(pair.Value)
		if err != nil {
			panic("BUG: gateway: " + err.Error()) // the configuration has been validated
		}
		for _, part := range parts {
			switch part.Variable {
			case "":
				r.addText(part.Text)
			case "hostname":
				r.addText(hostName(host))
			case "service":
				r.addText(service)
			default:
				r.value = append(r.value, valuePart{variable: variables[part.Variable]})
			}
		}
		rules = append(rules, r)
	}
	return rules
}

// addText appends to the text at the end of the value.
func (r *headerRule) addText(text string) {
	if n := len(r.value); n > 0 && r.value[n-1].text != nil {
		r.value[n-1].text = append(r.value[n-1].text, text...)
	} else if text != "" {
		r.value = append(r.value, valuePart{text: []byte(text)})
	}
}

// fixed returns the value of a rule without variables.
func (r *headerRule) fixed() (text []byte, ok bool) {
	if len(r.value) == 1 && r.value[0].text != nil {
		return r.value[0].text, true
	}
	return nil, false
}

// appendValue appends the value for a transaction, unless it has nothing but blanks. Nothing that a client can choose ends the line: of the variables, only server_name is a
// client's word, and hostName has looked at that.
func (r *headerRule) appendValue(dst []byte, t *transaction) []byte {
	start := len(dst)
	for i := range r.value {
		switch part := &r.value[i]; {
		case part.text != nil:
			dst = append(dst, part.text...)
		case part.variable == varClientIP:
			dst = t.s.appendClientIP(dst)
		case part.variable == varClientPort:
			dst = strconv.AppendUint(dst, uint64(t.s.client.Port()), 10)
		case part.variable == varID:
			dst = t.s.loop.transactionID(t).Append(dst)
		case part.variable == varListener:
			dst = append(dst, t.s.listener.name...)
		case part.variable == varServerName:
			dst = append(dst, t.s.entrance.serverName...)
		}
	}
	if len(bytes.TrimLeft(dst[start:], " ")) == 0 {
		return dst[:start]
	}
	return dst
}

// appendClientIP appends the client's address, as an X-Client-IP says it.
func (s *session) appendClientIP(dst []byte) []byte {
	return s.client.Addr().WithZone("").AppendTo(dst)
}

// onRequest changes the fields of a request. Those that it adds are valid until the loop's next request.
func (p *headerPolicy) onRequest(t *transaction, req *icap.Request) {
	l := t.s.loop
	if p.trusted != nil && !p.trusted.has(t.s.client.Addr()) {
		p.guarded.dropFrom(req, keptInRequests)
	}
	p.drop.dropFrom(req, keptInRequests)
	b := l.values[:0] // values that it has got keep their old array when it grows
	if p.clientIP && len(req.Get(clientIPField)) == 0 {
		req.Drop(clientIPField) // one that says nothing
		b = t.s.appendClientIP(b)
		req.Add(clientIPName, b)
	}
	for i := range p.add {
		r := &p.add[i]
		value, ok := r.fixed()
		if !ok {
			start := len(b)
			b = r.appendValue(b, t)
			value = b[start:]
		}
		if len(value) > 0 {
			req.Add(r.name, value)
		}
	}
	l.values = b
}

var clientIPName = []byte(clientIPField)

// onAnswer takes the fields of a server's answer away that the client is not to get.
func (p *headerPolicy) onAnswer(r *icap.Response) { p.dropAnswer.dropFrom(r, keptInAnswers) }

// appendLines appends the lines that every answer gets, those of the gateway itself included.
func (p *headerPolicy) appendLines(dst []byte, t *transaction) []byte {
	dst = append(dst, p.fixedLines...)
	for i := range p.addAnswer {
		r, line := &p.addAnswer[i], len(dst)
		dst = append(append(dst, r.name...), ": "...)
		value := len(dst)
		if dst = r.appendValue(dst, t); len(dst) == value {
			dst = dst[:line]
			continue
		}
		dst = append(dst, "\r\n"...)
	}
	return dst
}

// extraFields are the lines that all answers to the request get in addition, until they are asked for again.
func (t *transaction) extraFields() []byte {
	l := t.s.loop
	if t.route == nil || t.route.headers == nil {
		return l.gw.extraFields
	}
	l.extra = t.route.headers.appendLines(append(l.extra[:0], l.gw.extraFields...), t)
	return l.extra
}

// hostName returns a name that a client's TLS has asked for in lower case, "" if no certificate could have it: it goes into routes, heads and logs,
// and crypto/tls takes any bytes.
func hostName(name string) string {
	if len(name) > 253 || strings.ContainsFunc(name, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-._", r))
	}) {
		return ""
	}
	return strings.ToLower(name)
}
