package tap

import (
	"bytes"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// maxHead limits the head of a message, in bytes, and so what the tap holds of it.
const maxHead = 256 << 10

// complain reports a departure from a rule.
type complain func(rule Rule, format string, args ...any)

// head is the head of a message.
type head struct {
	line   string
	fields []field
}

type field struct {
	name, value string
	folded      bool // over more than one line
}

// endOfHead is where the head at the start of p ends, behind its empty line; 0: not in p.
func endOfHead(p []byte) int {
	for i := 0; ; {
		k := bytes.IndexByte(p[i:], '\n')
		if k < 0 {
			return 0
		}
		i += k + 1
		switch {
		case bytes.HasPrefix(p[i:], []byte("\n")):
			return i + 1
		case bytes.HasPrefix(p[i:], []byte("\r\n")):
			return i + 2
		}
	}
}

// parseHead reads a head with its empty line; false: it can't be read in one way only.
func parseHead(p []byte, complain complain) (h head, ok bool) {
	if i := bytes.IndexByte(p, 0); i >= 0 {
		complain(FieldForm, "NUL at %d of the head", i)
		return h, false
	}
	for line := range strings.Lines(string(p)) {
		line = strings.TrimSuffix(line, "\n")
		text, crlf := strings.CutSuffix(line, "\r")
		if strings.ContainsRune(text, '\r') {
			complain(LineEnd, "CR in %q", text)
			return h, false
		}
		if !crlf {
			complain(LineEnd, "only LF behind %q", text)
		}
		switch {
		case h.line == "":
			h.line = text
		case text == "":
			return h, true
		case text[0] == ' ' || text[0] == '\t':
			if len(h.fields) == 0 {
				complain(FieldForm, "%q continues nothing", text)
				return h, false
			}
			last := &h.fields[len(h.fields)-1]
			last.value += " " + strings.Trim(text, " \t")
			last.folded = true
		default:
			f, ok := parseField(text, complain)
			if !ok {
				return h, false
			}
			h.fields = append(h.fields, f)
		}
	}
	return h, true
}

var fieldName = regexp.MustCompile("^[-!#$%&'*+.^_`|~0-9A-Za-z]+$")

func parseField(line string, complain complain) (f field, ok bool) {
	name, value, ok := strings.Cut(line, ":")
	if !ok || !fieldName.MatchString(name) {
		complain(FieldForm, "%q has no name", line)
		return f, false
	}
	if !strings.HasPrefix(value, " ") || strings.HasPrefix(value, "  ") || strings.HasPrefix(value, " \t") {
		complain(FieldForm, "%q: one blank has to stand behind the colon", line)
	}
	if i := strings.IndexFunc(value, func(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }); i >= 0 {
		complain(FieldForm, "%q has a control character", line)
	}
	return field{name: name, value: strings.Trim(value, " \t")}, true
}

// one returns the value of a field that stands once at most and on one line, as all that frames a message has to; false: it does not.
func (h *head) one(name string, complain complain) (value string, has, ok bool) {
	for _, f := range h.fields {
		switch {
		case !strings.EqualFold(f.name, name):
			continue
		case has:
			complain(FieldTwice, "%s: %q and %q", name, value, f.value)
			return value, true, false
		case f.folded:
			complain(FieldForm, "%s stands on more than one line", name)
			return f.value, true, false
		}
		value, has = f.value, true
	}
	return value, has, true
}

// contains says whether a list in a field has a member.
func (h *head) contains(name, member string) bool {
	for _, f := range h.fields {
		if strings.EqualFold(f.name, name) {
			for m := range strings.SplitSeq(f.value, ",") {
				if strings.EqualFold(strings.Trim(m, " \t"), member) {
					return true
				}
			}
		}
	}
	return false
}

// hopByHop are fields that concern one connection only, or that have no meaning in ICAP and could be taken for framing.
var hopByHop = []string{"keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "content-length"}

func (h *head) checkHopByHop(complain complain) {
	for _, f := range h.fields {
		name := strings.ToLower(f.name)
		if slices.Contains(hopByHop, name) || name == "connection" && !strings.EqualFold(f.value, "close") {
			complain(HopByHop, "%s: %s", f.name, f.value)
		}
	}
}

func (h *head) checkAllow(complain complain) {
	for _, f := range h.fields {
		if strings.EqualFold(f.name, "Allow") && !slices.Contains([]string{"204", "206", "204, 206"}, f.value) {
			complain(Allow, "%q", f.value)
		}
	}
}

func (h *head) checkDate(complain complain) (has bool) {
	for _, f := range h.fields {
		if strings.EqualFold(f.name, "Date") {
			has = true
			if at, err := http.ParseTime(f.value); err != nil || at.UTC().Format(http.TimeFormat) != f.value {
				complain(Date, "%q", f.value)
			}
		}
	}
	return has
}

var (
	requestLine = regexp.MustCompile(`^([!-~]+) ([^\x00- \x7f]+) ICAP/1\.0$`)
	absoluteURI = regexp.MustCompile(`^(?i:icaps?)://(?:[^/?@]*@)?([^/?@]+)([/?].*)?$`)
	statusLine  = regexp.MustCompile(`^ICAP/1\.0 ([1-9][0-9]{2})(?: (.*))?$`)
)

// target is what a request line asks for.
type target struct {
	method    string
	authority string
	path      string // with the query, from its "/" on
}

func parseRequestLine(line string, complain complain) (t target, ok bool) {
	m := requestLine.FindStringSubmatch(line)
	if m == nil {
		complain(StartLine, "%q", line)
		return t, false
	}
	uri := absoluteURI.FindStringSubmatch(m[2])
	if uri == nil {
		complain(StartLine, "%q names no icap URI", line)
		return t, false
	}
	t = target{m[1], uri[1], uri[2]}
	if !strings.HasPrefix(t.path, "/") {
		t.path = "/" + t.path
	}
	if !slices.Contains([]string{"OPTIONS", "REQMOD", "RESPMOD"}, t.method) || m[2] != "icap://"+t.authority+t.path {
		complain(StartLine, "%q", line)
	}
	return t, true
}

func parseStatusLine(line string, complain complain) (status int, ok bool) {
	m := statusLine.FindStringSubmatch(line)
	if m == nil {
		complain(StartLine, "%q", line)
		return 0, false
	}
	if m[2] == "" {
		complain(StartLine, "%q has no reason", line)
	}
	status, _ = strconv.Atoi(m[1])
	return status, true
}

// section is a member of an Encapsulated list.
type section struct {
	name   string
	offset int
}

// parseEncapsulated reads the list; false: what it means can't be told.
func parseEncapsulated(value string, complain complain) (list []section, ok bool) {
	for member := range strings.SplitSeq(value, ",") {
		name, digits, found := strings.Cut(strings.Trim(member, " \t"), "=")
		offset, err := strconv.ParseUint(digits, 10, 31)
		if !found || err != nil || strings.HasPrefix(digits, "+") {
			complain(Encapsulated, "%q", value)
			return nil, false
		}
		list = append(list, section{strings.ToLower(name), int(offset)})
	}
	var canonical []string
	for i, s := range list {
		canonical = append(canonical, s.name+"="+strconv.Itoa(s.offset))
		if i == 0 && s.offset != 0 || i > 0 && s.offset <= list[i-1].offset {
			complain(Sections, "%q does not increase from 0", value)
			return nil, false
		}
		if isBody := strings.HasSuffix(s.name, "-body"); isBody != (i == len(list)-1) {
			complain(Sections, "%q: one body, at the end", value)
			return nil, false
		}
	}
	if strings.Join(canonical, ", ") != value {
		complain(Encapsulated, "%q", value)
	}
	return list, true
}

// legalLists are the lists that a message may have, without offsets; see RFC 3507 4.4.1. An answer may bring a response to a REQMOD.
var legalLists = map[Direction]map[string]*regexp.Regexp{
	Requests: {
		"REQMOD":  regexp.MustCompile(`^(req-hdr )?(req|null)-body $`),
		"RESPMOD": regexp.MustCompile(`^(req-hdr )?(res-hdr )?(res|null)-body $`),
		"OPTIONS": regexp.MustCompile(`^null-body $`),
	},
	Answers: {
		"REQMOD":  regexp.MustCompile(`^((req-hdr )?(req|null)-body|(res-hdr )?(res|null)-body) $`),
		"RESPMOD": regexp.MustCompile(`^(res-hdr )?(res|null)-body $`),
		"OPTIONS": regexp.MustCompile(`^null-body $`),
	},
}

func checkSections(d Direction, method string, list []section, complain complain) {
	var names strings.Builder
	for _, s := range list {
		names.WriteString(s.name + " ")
	}
	if legal := legalLists[d][method]; legal != nil && !legal.MatchString(names.String()) {
		complain(Sections, "%sin %v of %s", names.String(), d, method)
	}
}
