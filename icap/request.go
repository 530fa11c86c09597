package icap

import "bytes"

// Limits of a request, in bytes.
const (
	MaxPreview = 64 << 10
	maxURI     = 8 << 10
)

// Method is a request method. Unknown ones, and known ones in lower case, are MethodOther.
type Method uint8

const (
	MethodOther Method = iota
	MethodOptions
	MethodReqmod
	MethodRespmod
	NumMethods = iota
)

func (m Method) String() string {
	return [NumMethods]string{"other", "OPTIONS", "REQMOD", "RESPMOD"}[m]
}

func methodOf(name []byte) Method {
	switch string(name) {
	case "OPTIONS":
		return MethodOptions
	case "REQMOD":
		return MethodReqmod
	case "RESPMOD":
		return MethodRespmod
	}
	return MethodOther
}

// Request is a parsed ICAP request head. All slices alias the bytes given to Parse, so it is valid as
// long as these are. It is reused from message to message; Parse resets every field and keeps Fields' capacity.
type Request struct {
	Method       Method
	MethodName   []byte // as received
	Authority    []byte // host[:port] of the request URI, userinfo dropped
	Target       []byte // path and query, byte for byte, starts with "/"
	Path         []byte // Target before "?"
	Host         []byte // value of Host, nil if none
	Preview      int    // declared preview in bytes, -1: none
	Allow        Allow
	Close        bool // Connection: close
	Encapsulated Encapsulated
	Fields       []Field

	query []byte // backs Target where the URI has a query and no path
}

// Parse parses one whole head, as HeadScanner found it. Only a nil error makes the Request valid.
func (r *Request) Parse(head []byte) error {
	*r = Request{Preview: -1, Fields: r.Fields[:0], query: r.query}
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
	if err := r.Encapsulated.checkRequest(r.Method); err != nil {
		return err
	}
	r.Close, err = applyConnection(r.Fields)
	return err
}

// parseLine reads "METHOD icap://authority/target ICAP/1.0".
func (r *Request) parseLine(line []byte) error {
	first, last := bytes.IndexByte(line, ' '), bytes.LastIndexByte(line, ' ')
	if first < 0 || first == last {
		return badRequest("request line is not METHOD URI ICAP/1.0")
	}
	r.MethodName = line[:first]
	uri, version := line[first+1:last], line[last+1:]
	if !isToken(r.MethodName) {
		return badRequest("bad method name")
	}
	for _, c := range uri {
		if c == ' ' || isControl(c) {
			return badRequest("blank or control character in the request URI")
		}
	}
	number, ok := bytes.CutPrefix(version, []byte("ICAP/"))
	if !ok {
		return badRequest("request line without ICAP version")
	}
	if string(number) != "1.0" {
		return &ProtocolError{Status: 505, Msg: "ICAP version other than 1.0"}
	}
	r.Method = methodOf(r.MethodName)
	return r.parseURI(uri)
}

func (r *Request) parseURI(uri []byte) error {
	if len(uri) > maxURI {
		return badRequest("request URI longer than 8 KiB")
	}
	colon := bytes.IndexByte(uri, ':')
	if colon < 0 || !equalFold(uri[:colon], "icap") && !equalFold(uri[:colon], "icaps") {
		return badRequest("request URI is neither icap:// nor icaps://")
	}
	rest, ok := bytes.CutPrefix(uri[colon+1:], []byte("//"))
	if !ok {
		return badRequest("request URI without authority")
	}
	r.Authority, r.Target = rest, root
	if i := bytes.IndexAny(rest, "/?"); i >= 0 {
		r.Authority, r.Target = rest[:i], rest[i:]
		if rest[i] == '?' {
			r.query = append(append(r.query[:0], '/'), rest[i:]...)
			r.Target = r.query
		}
	}
	if i := bytes.LastIndexByte(r.Authority, '@'); i >= 0 {
		r.Authority = r.Authority[i+1:]
	}
	r.Path, _, _ = bytes.Cut(r.Target, []byte("?"))
	return checkAuthority(r.Authority)
}

var root = []byte("/") // the path of a URI without one

// checkAuthority wants host[:port]; the host is a name, an IPv4 address or an IPv6 address in brackets.
func checkAuthority(authority []byte) error {
	host, port, chars := authority, []byte(nil), &nameChars
	if len(host) > 0 && host[0] == '[' {
		end := bytes.IndexByte(host, ']')
		if end < 0 {
			return badRequest("bad IPv6 address in the request URI")
		}
		host, port, chars = authority[1:end], authority[end+1:], &literalChars
	} else if i := bytes.IndexByte(host, ':'); i >= 0 {
		host, port = authority[:i], authority[i:]
	}
	if len(host) == 0 {
		return badRequest("request URI without host")
	}
	for _, c := range host {
		if !chars[c] {
			return badRequest("bad host in the request URI")
		}
	}
	if len(port) == 0 {
		return nil
	}
	if n, ok := parseDecimal(port[1:], 65535); port[0] != ':' || !ok || n == 0 {
		return badRequest("bad port in the request URI")
	}
	return nil
}

var (
	nameChars    = charSet("-._~!$&'()*+,;=%0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	literalChars = charSet(":.%-_~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
)

// readFields takes the meaning out of the fields that have one here. None of these may be folded.
func (r *Request) readFields() error {
	for i := range r.Fields {
		f := &r.Fields[i]
		if f.folded && f.kind != otherField && f.kind != hopField {
			return badRequest("fold in a field of the framing")
		}
		switch f.kind {
		case hostField:
			if r.Host != nil && !bytes.EqualFold(r.Host, f.Value) {
				return badRequest("two different Host fields")
			}
			r.Host = f.Value
		case previewField:
			if r.Preview >= 0 {
				return badRequest("two Preview fields")
			}
			n, ok := parseDecimal(f.Value, MaxPreview)
			if !ok {
				return badRequest("bad Preview (digits, at most 65536)")
			}
			r.Preview = int(n)
		case allowField:
			r.Allow |= parseAllow(f.Value)
		case encapsulatedField:
			if !r.Encapsulated.isZero() {
				return badRequest("two Encapsulated fields")
			}
			var err error
			if r.Encapsulated, err = parseEncapsulated(f.Value); err != nil {
				return err
			}
		}
	}
	return nil
}

// parseDecimal reads digits and nothing else; ok is false if there is none or the value is above max.
func parseDecimal(b []byte, max int64) (n int64, ok bool) {
	for _, c := range b {
		if !isDigit(c) {
			return 0, false
		}
		if n = n*10 + int64(c-'0'); n > max {
			return 0, false
		}
	}
	return n, len(b) > 0
}

// AppendFields appends the fields that go on to the next hop, as "Name: value" lines in the received order: without hop-by-hop
// fields and those named by Connection, Host, Encapsulated, Preview, Transfer-Encoding, Content-Length; Allow is rewritten
// (204, 206; never trailers), folds become one blank. The request line, Host, Preview, Encapsulated and the empty line are the caller's.
func (r *Request) AppendFields(dst []byte) []byte {
	allow := r.Allow
	for i := range r.Fields {
		switch f := &r.Fields[i]; f.kind {
		case otherField, istagField:
			if f.folded {
				dst = appendFolded(dst, f.Name, f.Value, " ")
			} else {
				dst = appendField(dst, f.Name, f.Value)
			}
		case allowField:
			if value := allow.String(); value != "" {
				dst = append(append(dst, f.Name...), ": "...)
				dst = append(append(dst, value...), "\r\n"...)
			}
			allow = 0 // the first field stands for all
		}
	}
	return dst
}

// Drop keeps AppendFields from passing on the fields with that name (any case). Those that have a meaning in this package stay.
func (r *Request) Drop(name string) { dropNamed(r.Fields, name) }

// DropPrefix is Drop for all names that begin so, but for those that begin with one of but.
func (r *Request) DropPrefix(prefix string, but ...string) { dropPrefixed(r.Fields, prefix, but) }

// Add has AppendFields pass on one more field. The name is a token without a meaning in this package and the value has no line end; the slices
// have to stay as they are as long as the Request is used.
func (r *Request) Add(name, value []byte) {
	r.Fields = append(r.Fields, Field{Name: name, Value: value})
}

// Get returns the value of the first field with that name (any case) that goes on to the next hop, nil if there is none.
func (r *Request) Get(name string) []byte { return get(r.Fields, name) }
