package icap

import "bytes"

// Options is what an OPTIONS response says of a server.
type Options struct {
	Methods        [NumMethods]bool // all false: not said
	MaxConnections int              // 0: not said
	Preview        int              // bytes, -1: not said
	TTL            int              // seconds, 0: not said
	ISTag          string           // as received, with quotes if it has them
	Allow          Allow

	// Texts and lists as received, those of several fields joined by commas; "": not said.
	Service          string
	ServiceID        string
	TransferPreview  string
	TransferIgnore   string
	TransferComplete string
	OptBodyType      string
	Include          string // X-Include
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
		case equalFold(f.Name, "service"):
			o.Service = join(o.Service, f.Value)
		case equalFold(f.Name, "service-id"):
			o.ServiceID = join(o.ServiceID, f.Value)
		case equalFold(f.Name, "transfer-preview"):
			o.TransferPreview = join(o.TransferPreview, f.Value)
		case equalFold(f.Name, "transfer-ignore"):
			o.TransferIgnore = join(o.TransferIgnore, f.Value)
		case equalFold(f.Name, "transfer-complete"):
			o.TransferComplete = join(o.TransferComplete, f.Value)
		case equalFold(f.Name, "opt-body-type"):
			o.OptBodyType = join(o.OptBodyType, f.Value)
		case equalFold(f.Name, "x-include"):
			o.Include = join(o.Include, f.Value)
		}
	}
	return o
}

// Lacks says whether the server has named its methods and m, a REQMOD or RESPMOD, is not among them. One that names neither of these two has
// said nothing that can be relied on.
func (o *Options) Lacks(m Method) bool {
	return (m == MethodReqmod || m == MethodRespmod) && !o.Methods[m] && (o.Methods[MethodReqmod] || o.Methods[MethodRespmod])
}

// join appends the value of a field to that of an earlier one of the same name; folds and runs of blanks become one blank.
func join(before string, value []byte) string {
	text := string(bytes.Join(bytes.Fields(value), []byte(" ")))
	if before == "" || text == "" {
		return before + text
	}
	return before + ", " + text
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
