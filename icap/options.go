package icap

import "bytes"

// Options is what an OPTIONS response says of a server.
type Options struct {
	Methods        [NumMethods]bool
	MaxConnections int // 0: not said
	Preview        int // bytes, -1: not said
	TTL            int // seconds, 0: not said
	ISTag          string
	Allow          Allow
}

// ParseOptions reads the fields of a 200 to OPTIONS; values that make no sense count as not said.
func ParseOptions(r *Response) Options {
	o := Options{Preview: -1, ISTag: string(r.ISTag), MaxConnections: r.MaxConnections()}
	for i := range r.Fields {
		f := &r.Fields[i]
		switch {
		case f.kind == allowField:
			o.Allow |= parseAllow(f.Value)
		case f.kind == previewField:
			o.Preview = parseNumber(f.Value, o.Preview)
		case equalFold(f.Name, "methods"):
			o.readMethods(f.Value)
		case equalFold(f.Name, "options-ttl"):
			o.TTL = parseNumber(f.Value, o.TTL)
		}
	}
	return o
}

// MaxConnections is ParseOptions for this one field, without allocating: the data path reads it from every answer to OPTIONS.
func (r *Response) MaxConnections() int {
	n := 0
	for i := range r.Fields {
		if f := &r.Fields[i]; equalFold(f.Name, "max-connections") {
			n = parseNumber(f.Value, n)
		}
	}
	return n
}

func (o *Options) readMethods(list []byte) {
	for member, rest := cutMember(list); member != nil; member, rest = cutMember(rest) {
		for _, name := range bytes.Fields(member) {
			if m := methodOf(bytes.ToUpper(name)); m != MethodOther {
				o.Methods[m] = true
			}
		}
	}
}

// parseNumber reads a number of bytes, seconds or connections; def stands for everything that is none.
func parseNumber(value []byte, def int) int {
	const most = 1<<31 - 1
	n, ok := parseDecimal(value, most)
	if !ok {
		return def
	}
	return int(n)
}
