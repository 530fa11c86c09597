package scenario

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// variable is what a template has filled in for each request. Its name stands in ${}; "$${" is a plain "${".
type variable string

const (
	literal variable = "" // no variable, but text

	varUser        variable = "user"        // DOMAIN/user
	varUserBase64  variable = "user_base64" // WinNT://DOMAIN/user in base64, as X-Authenticated-User has it
	varClientIP    variable = "client_ip"
	varID          variable = "id" // of the incident: RUN-N
	varN           variable = "n"  // number of the request in the run, from 0
	varUUID        variable = "uuid"
	varSize        variable = "size" // of the body, with the form around it
	varFile        variable = "file" // name of the file that is sent
	varNumber      variable = "number"
	varEncapsulate variable = "encapsulated"
)

var (
	requestVariables = []variable{varUser, varUserBase64, varClientIP, varID, varN, varUUID, varSize, varFile}
	userVariables    = []variable{varNumber}
	headVariables    = append(slices.Clone(requestVariables), varEncapsulate)
)

// template is a text with variables.
type template []piece

type piece struct {
	variable variable
	text     []byte // of a literal
}

// parseTemplate splits a text at the variables in it, which have to be among those that are allowed.
func parseTemplate(text []byte, allowed []variable) (template, error) {
	var t template
	var plain []byte
	for {
		before, after, found := bytes.Cut(text, []byte("${"))
		plain = append(plain, before...)
		if !found {
			break
		}
		if n := len(plain); len(before) > 0 && plain[n-1] == '$' {
			plain, text = append(plain[:n-1], "${"...), after
			continue
		}
		name, rest, closed := bytes.Cut(after, []byte("}"))
		v := variable(name)
		if !closed || !slices.Contains(allowed, v) {
			return nil, fmt.Errorf("%.30q names no variable, allowed: %s; $${ for a plain ${", "${"+string(after), names(allowed))
		}
		if len(plain) > 0 {
			t = append(t, piece{text: plain})
			plain = nil
		}
		t = append(t, piece{variable: v})
		text = rest
	}
	if len(plain) > 0 {
		t = append(t, piece{text: plain})
	}
	return t, nil
}

func names(variables []variable) string {
	var list []string
	for _, v := range variables {
		list = append(list, "${"+string(v)+"}")
	}
	return strings.Join(list, ", ")
}

// uses says whether one of the variables is in the template.
func (t template) uses(variables ...variable) bool {
	return slices.ContainsFunc(t, func(p piece) bool { return slices.Contains(variables, p.variable) })
}

// values is what the variables of one request stand for.
type values struct {
	run          string
	n            uint64
	user         []byte
	clientIP     []byte
	uuid         [16]byte
	size         int64
	file         string
	encapsulated []byte
	scratch      []byte
}

// append appends the template with the values in it.
func (v *values) append(dst []byte, t template) []byte {
	for i := range t {
		switch p := &t[i]; p.variable {
		case literal:
			dst = append(dst, p.text...)
		case varUser:
			dst = append(dst, v.user...)
		case varUserBase64:
			v.scratch = append(append(v.scratch[:0], "WinNT://"...), v.user...)
			dst = base64.StdEncoding.AppendEncode(dst, v.scratch)
		case varClientIP:
			dst = append(dst, v.clientIP...)
		case varID:
			dst = append(append(dst, v.run...), '-')
			dst = strconv.AppendUint(dst, v.n, 10)
		case varN:
			dst = strconv.AppendUint(dst, v.n, 10)
		case varUUID:
			dst = v.appendUUID(dst)
		case varSize:
			dst = strconv.AppendInt(dst, v.size, 10)
		case varFile:
			dst = append(dst, v.file...)
		case varEncapsulate:
			dst = append(dst, v.encapsulated...)
		}
	}
	return dst
}

// appendUUID writes the random bits as a UUID of version 4 (RFC 9562 section 5.4).
func (v *values) appendUUID(dst []byte) []byte {
	id := v.uuid
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	for i, end := range [...]int{4, 6, 8, 10, 16} {
		start := [...]int{0, 4, 6, 8, 10}[i]
		if i > 0 {
			dst = append(dst, '-')
		}
		dst = hex.AppendEncode(dst, id[start:end])
	}
	return dst
}
