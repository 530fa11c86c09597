package configs

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Variables are what can stand in a value of HeaderRules as ${name}.
var Variables = []string{"client_ip", "client_port", "hostname", "id", "listener", "server_name", "service"}

// ValuePart is a piece of a value of HeaderRules: a text, or a variable in whose place its own value comes.
type ValuePart struct{ Text, Variable string }

// ParseValue takes a value of HeaderRules apart. $$ is a dollar.
func ParseValue(value string) ([]ValuePart, error) {
	var parts []ValuePart
	text := ""
	for value != "" {
		before, rest, found := strings.Cut(value, "$")
		text += before
		switch {
		case !found:
			value = ""
			continue
		case strings.HasPrefix(rest, "$"):
			text, value = text+"$", rest[1:]
			continue
		case !strings.HasPrefix(rest, "{"):
			return nil, errors.New("has a $ that begins no variable, allowed: ${name}, and $$ for a dollar")
		}
		name, rest, found := strings.Cut(rest[1:], "}")
		if !found {
			return nil, errors.New("has a ${ without its }, allowed: ${name}, and $$ for a dollar")
		}
		if !slices.Contains(Variables, name) {
			return nil, unknownVariable(name)
		}
		if text != "" {
			parts, text = append(parts, ValuePart{Text: text}), ""
		}
		parts, value = append(parts, ValuePart{Variable: name}), rest
	}
	if text != "" {
		parts = append(parts, ValuePart{Text: text})
	}
	return parts, nil
}

func unknownVariable(name string) error {
	if meant := nearest(name, Variables); meant != "" {
		return fmt.Errorf("has the unknown variable %s, did you mean ${%s}?", quote(name), meant)
	}
	return fmt.Errorf("has the unknown variable %s, allowed: ${%s}", quote(name), strings.Join(Variables, "}, ${"))
}

// ViaHeader is the ICAP header in which gateways leave their id, so that a request that comes back is known.
const ViaHeader = "X-ICAP-Via"

// ownFields are in lower case the header fields that are the protocol's, or that the gateway writes itself: no rule can change them.
var ownFields = []string{
	"host", "encapsulated", "preview", "allow", "istag", "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "content-length", "upgrade",
	"date", "retry-after", "methods", "service", "service-id", "max-connections", "options-ttl", "opt-body-type", "transfer-preview", "transfer-ignore", "transfer-complete",
	"x-include", strings.ToLower(ViaHeader),
}

// MarkPrefix is how the names of all fields begin by which gateways mark what is their own. A rule can take them from requests, and do nothing else to them:
// a client's probe is none.
const MarkPrefix = "X-Icapgate-"

func isMark(name string) bool {
	return len(name) >= len(MarkPrefix) && strings.EqualFold(name[:len(MarkPrefix)], MarkPrefix)
}

func isOwnField(name string) bool { return slices.Contains(ownFields, strings.ToLower(name)) }

// headers checks the header policy of a service.
func (v *validator) headers(key string, h *Headers) {
	v.some(key+".trusted", len(h.Trusted), maxTrusted)
	v.fieldPatterns(key+".guarded", h.Guarded, true)
	v.fieldPatterns(key+".request.remove", h.Request.Remove, true)
	v.fieldPatterns(key+".response.remove", h.Response.Remove, false)
	v.headerRules(key+".request", &h.Request)
	v.headerRules(key+".response", &h.Response)
	if id := v.c.AccessLog.IDHeader; id != "" {
		for _, list := range []struct {
			key   string
			pairs Pairs
		}{{".request.set", h.Request.Set}, {".request.add", h.Request.Add}} {
			for _, p := range list.pairs {
				if strings.EqualFold(p.Name, id) {
					v.add(key+list.key+"."+p.Name, "is access_log.id_header, which has the id of the request; allowed: another name")
				}
			}
		}
	}
}

// headerRules checks what is set and added.
func (v *validator) headerRules(key string, r *HeaderRules) {
	for _, list := range []struct {
		key   string
		pairs Pairs
	}{{key + ".set", r.Set}, {key + ".add", r.Add}} {
		n := v.some(list.key, len(list.pairs), maxFields)
		for i, p := range list.pairs[:n] {
			at := list.key + "." + p.Name
			switch {
			case !ruleName.MatchString(p.Name):
				v.add(list.key, "%s is no header name, allowed: up to 64 letters, digits and -", quote(p.Name))
				continue
			case isOwnField(p.Name) || isMark(p.Name):
				v.add(at, "%s", ownFieldFault)
			case slices.ContainsFunc(list.pairs[:i], func(o Pair) bool { return strings.EqualFold(o.Name, p.Name) }):
				v.add(at, "is here twice: upper and lower case are the same in a header name")
			}
			v.headerValue(at, p.Value)
		}
	}
}

// ruleName are the names of header fields without the *, which stands for more.
var ruleName = regexp.MustCompile("^[-!#$%&'+.^_`|~A-Za-z0-9]{1,64}$")

const ownFieldFault = "is a header that the protocol needs or that the gateway writes itself, allowed: other names"

// headerValue checks a value of a rule. Nothing in it can end the line.
func (v *validator) headerValue(key, value string) {
	if strings.TrimSpace(value) == "" {
		v.add(key, "is empty, needed: a value; to take the header away, name it in remove")
		return
	}
	if !printable(strings.ReplaceAll(value, " ", ""), maxPath) {
		v.add(key, "has characters that are not allowed in a header, or is too long; allowed: up to %d letters, digits, blanks and signs of ASCII", maxPath)
		return
	}
	if _, err := ParseValue(value); err != nil {
		v.add(key, "%v", err)
	}
}

// fieldPatterns checks names of header fields that are taken away, of which some end in *: all that begin so. marks: they may be among them.
func (v *validator) fieldPatterns(key string, patterns []string, marks bool) {
	for i := range v.some(key, len(patterns), maxFields) {
		at, name := fmt.Sprintf("%s[%d]", key, i), patterns[i]
		start, prefix := strings.CutSuffix(name, "*")
		switch {
		case prefix && !idHeader.MatchString(start+"x"):
			v.add(at, "%s is no beginning of names, allowed: X-, more of the name, and a * at its end, such as X-Debug-*", quote(name))
		case prefix && !(isOwnField(start) || isMark(start) && !marks):
		case !prefix && !ruleName.MatchString(name):
			v.add(at, "%s is no header name, allowed: up to 64 letters, digits and -, or the beginning of names such as X-Debug-*", quote(name))
		case prefix || isOwnField(name) || isMark(name) && !marks:
			v.add(at, "%s %s", quote(name), ownFieldFault)
		}
	}
}
