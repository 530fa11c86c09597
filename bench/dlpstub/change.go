package dlpstub

import (
	"bytes"
	"strconv"
)

// SkipAll as Change.Skip leaves nothing of the original body.
const SkipAll = -1

// Change is what Modify and Partial make of a message. A message without a body stays without one.
type Change struct {
	Field string // line that is added to the HTTP head, with its CRLF; "": none
	Body  []byte // stands in front of what is left of the body
	Skip  int    // bytes of the original body that are left out from its start, or SkipAll
}

// appendHead appends an HTTP head with the change. Its Content-Length is made to fit, if there is a body.
func (ch *Change) appendHead(dst, head []byte, body bool) []byte {
	for len(head) > 0 {
		line, rest := head, []byte(nil)
		if i := bytes.IndexByte(head, '\n'); i >= 0 {
			line, rest = head[:i+1], head[i+1:]
		}
		if len(bytes.TrimRight(line, "\r\n")) == 0 && len(rest) == 0 { // the empty line
			return append(append(dst, ch.Field...), line...)
		}
		if body {
			dst = ch.appendLine(dst, line)
		} else {
			dst = append(dst, line...)
		}
		head = rest
	}
	return dst
}

func (ch *Change) appendLine(dst, line []byte) []byte {
	name, value, _ := bytes.Cut(line, []byte(":"))
	if !bytes.EqualFold(name, []byte("Content-Length")) {
		return append(dst, line...)
	}
	n, err := strconv.Atoi(string(bytes.TrimSpace(value)))
	if err != nil || n < 0 {
		return append(dst, line...)
	}
	if ch.Skip == SkipAll {
		n = 0
	} else {
		n = max(0, n-ch.Skip)
	}
	dst = append(append(dst, name...), ": "...)
	dst = strconv.AppendInt(dst, int64(n+len(ch.Body)), 10)
	return append(dst, "\r\n"...)
}
