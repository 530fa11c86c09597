package icap

import "bytes"

// Response is a parsed ICAP response head; aliasing and reuse as Request.
type Response struct {
	Status          int
	Reason          []byte // may be empty
	Close           bool   // Connection: close
	HasEncapsulated bool
	Encapsulated    Encapsulated // zero value when absent: no body
	Trailers        bool         // Allow: trailers and a Trailer field: an ICAP trailer follows the body
	ISTag           []byte       // raw value, with quotes if it has them
	Fields          []Field
}

// Parse parses one whole head, as HeadScanner found it. Only a nil error makes the Response valid.
func (r *Response) Parse(head []byte) error {
	*r = Response{Fields: r.Fields[:0]}
	return inResponse(r.parse(head))
}

func (r *Response) parse(head []byte) error {
	line, block, ok := cutLine(head)
	if !ok {
		return badRequest("head without an empty line")
	}
	if err := r.parseLine(line); err != nil {
		return err
	}
	var err error
	if r.Fields, err = parseFields(r.Fields, block); err != nil {
		return err
	}
	if err := r.readFields(); err != nil {
		return err
	}
	r.Close, err = applyConnection(r.Fields)
	return err
}

// parseLine reads "ICAP/1.x NNN reason"; the reason may be missing.
func (r *Response) parseLine(line []byte) error {
	version, rest, _ := bytes.Cut(line, []byte(" "))
	minor, ok := bytes.CutPrefix(version, []byte("ICAP/1."))
	if _, number := parseDecimal(minor, 99); !ok || !number {
		return badRequest("status line is not ICAP/1.x NNN")
	}
	code, reason, _ := bytes.Cut(trim(rest), []byte(" "))
	status, ok := parseDecimal(code, 599)
	if !ok || len(code) != 3 || status < 100 {
		return badRequest("status is not a number from 100 to 599")
	}
	r.Status, r.Reason = int(status), trim(reason)
	return nil
}

func (r *Response) readFields() error {
	var allow Allow
	var trailer bool
	for i := range r.Fields {
		switch f := &r.Fields[i]; f.kind {
		case allowField:
			allow |= parseAllow(f.Value)
		case trailerField:
			trailer = true
		case istagField:
			if r.ISTag == nil {
				r.ISTag = f.Value
			}
		case encapsulatedField:
			if r.HasEncapsulated {
				return badRequest("two Encapsulated fields")
			}
			if f.folded {
				return badRequest("fold in Encapsulated")
			}
			r.HasEncapsulated = true
			var err error
			if r.Encapsulated, err = parseEncapsulatedResponse(f.Value); err != nil {
				return err
			}
		}
	}
	r.Trailers = trailer && allow&AllowTrailers != 0
	return nil
}

// AppendFields appends the fields that go on to the client, as "Name: value" lines in the received order, with their folds: without
// hop-by-hop fields and those named by Connection, Encapsulated, Trailer, Transfer-Encoding, Content-Length, and without
// "trailers" in Allow, and without ISTag if the caller has one of its own. The status line, Encapsulated and the empty line are the caller's.
func (r *Response) AppendFields(dst []byte, istag bool) []byte {
	for i := range r.Fields {
		f := &r.Fields[i]
		switch f.kind {
		case hopField, connectionField, encapsulatedField, trailerField:
		case allowField:
			dst = appendAllow(dst, f)
		default:
			if f.kind == istagField && !istag {
				continue
			}
			if f.folded {
				dst = appendFolded(dst, f.Name, f.Value, "\r\n")
			} else {
				dst = appendField(dst, f.Name, f.Value)
			}
		}
	}
	return dst
}

// appendAllow appends an Allow field without the member "trailers", and nothing if there is no other. Members that this package
// does not know go on: they are the server's (a 405 lists methods).
func appendAllow(dst []byte, f *Field) []byte {
	first := true
	for member, rest := cutMember(f.Value); member != nil; member, rest = cutMember(rest) {
		if equalFold(member, "trailers") || !isToken(member) {
			continue
		}
		if first {
			dst = append(append(dst, f.Name...), ": "...)
		} else {
			dst = append(dst, ", "...)
		}
		dst = append(dst, member...)
		first = false
	}
	if !first {
		dst = append(dst, "\r\n"...)
	}
	return dst
}

// Drop keeps AppendFields from passing on the fields with that name (any case). Those that have a meaning in this package stay.
func (r *Response) Drop(name string) { dropNamed(r.Fields, name) }

// DropPrefix is Drop for all names that begin so, but for those that begin with one of but.
func (r *Response) DropPrefix(prefix string, but ...string) { dropPrefixed(r.Fields, prefix, but) }

// Get returns the value of the first field with that name (any case) that goes on to the client, nil if there is none.
func (r *Response) Get(name string) []byte { return get(r.Fields, name) }
