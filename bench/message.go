package bench

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"icapgate/icap"
)

// Profile names the client whose requests are imitated.
type Profile string

const (
	// Zscaler sends the file as a browser's upload: a POST with multipart/form-data, and who it was in X- fields.
	Zscaler Profile = "zscaler"
	// Squid sends the file as a raw POST, or as a download, with a preview and an offer of trailers.
	Squid Profile = "squid"
	// ProxySG sends the file as a raw POST, or as a download, with who it was in X- fields and an offer to hear of the progress of a scan.
	ProxySG Profile = "proxysg"
	// Plain sends the file as a raw POST or download and nothing that is not needed.
	Plain Profile = "plain"
)

const (
	defaultChunk = 64 << 10 // bytes
	squidPreview = 1024     // bytes, as a server asks Squid for

	defaultClientIP = "192.0.2.77" // of the imagined user: an address for documentation
	serverIP        = "198.51.100.80"
	defaultUser     = "EXAMPLE/alice"
	defaultURL      = "http://upload.example.com/files"

	userAgent = "Mozilla/5.0 (Windows NT 10.0; Win64; x64)"
	anyType   = "application/octet-stream"
)

// Message says what a request looks like.
type Message struct {
	Profile  Profile // "": Plain
	Method   icap.Method
	Preview  int64 // bytes; -1: none
	Chunk    int64 // bytes in one chunk at most; 0: 64 KiB
	No204    bool  // don't offer Allow: 204
	Allow206 bool  // offer Allow: 206
	FileName string
	Form     *Form // how an upload is wrapped; nil: as the profile does it

	User        string // of X-Authenticated-User, DOMAIN/user; "": EXAMPLE/alice
	EncodedUser string // value of X-Authenticated-User as it stands, in place of User
	ClientIP    string // of X-Client-IP; "": 192.0.2.77
	URL         string // of the HTTP request; "": http://upload.example.com/files

	Fields             []string // "Name: value": added to the ICAP head, or put in the place of a field with that name; "Name:" takes it away
	HTTPFields         []string // the same for the head of the HTTP request
	HTTPResponseFields []string // and for that of the HTTP response, which a RESPMOD has
}

// Form says how multipart/form-data carries a file, as a browser's upload does.
type Form struct {
	Boundary string // "": another one for each request
	Field    string // that has the file; "": file
	Fields   []FormField
}

// FormField is a field of a form beside its file.
type FormField struct{ Name, Value string }

// DefaultPreview returns the preview that clients of a profile send where nobody chooses one, -1: none.
func (p Profile) DefaultPreview() int64 {
	if p == Squid {
		return squidPreview
	}
	return -1
}

// Build returns the request for a body of size bytes, or without a body if body is nil. The body may be wrapped; Request has
// what is really sent.
func (m *Message) Build(t Target, body io.Reader, size int64) (*Request, error) {
	switch m.Profile {
	case "", Plain, Squid, Zscaler, ProxySG:
	default:
		return nil, fmt.Errorf("unknown profile %q: want zscaler, squid, proxysg or plain", m.Profile)
	}
	r := &Request{Method: m.Method, Body: body, Size: size, Chunk: m.Chunk, Preview: -1}
	if r.Chunk <= 0 {
		r.Chunk = defaultChunk
	}
	var list string // of Encapsulated
	var err error
	switch m.Method {
	case icap.MethodOptions:
		r.Body, r.Size = nil, 0
		list = "null-body=0"
	case icap.MethodReqmod:
		if r.Blocks, err = m.httpRequest(r); err != nil {
			return nil, err
		}
		list = "req-hdr=0, " + bodyName(r.Body, "req-body") + "=" + strconv.Itoa(len(r.Blocks))
	case icap.MethodRespmod:
		request, err := m.httpGet()
		if err != nil {
			return nil, err
		}
		response, err := m.httpResponse(r)
		if err != nil {
			return nil, err
		}
		r.Blocks, r.EchoFrom = append(request, response...), len(request)
		list = "req-hdr=0, res-hdr=" + strconv.Itoa(r.EchoFrom) + ", " + bodyName(r.Body, "res-body") + "=" + strconv.Itoa(len(r.Blocks))
	default:
		return nil, errors.New("unknown method: want REQMOD, RESPMOD or OPTIONS")
	}
	fields, err := m.fields(t, r, list)
	if err != nil {
		return nil, err
	}
	r.Head = fmt.Appendf(nil, "%v %s ICAP/1.0\r\n", m.Method, t.URI)
	for _, f := range fields {
		r.Head = fmt.Appendf(r.Head, "%s: %s\r\n", f.name, f.value)
		if strings.EqualFold(f.name, "Allow") {
			r.Allow204 = r.Allow204 || listed(f.value, "204")
			r.Allow206 = r.Allow206 || listed(f.value, "206")
			r.AllowTrailers = r.AllowTrailers || listed(f.value, "trailers")
		}
		if strings.EqualFold(f.name, "Connection") {
			r.Close = r.Close || listed(f.value, "close")
		}
	}
	r.Head = append(r.Head, "\r\n"...)
	return r, nil
}

func bodyName(body io.Reader, name string) string {
	if body == nil {
		return "null-body"
	}
	return name
}

func listed(list, member string) bool {
	for m := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.TrimSpace(m), member) {
			return true
		}
	}
	return false
}

type field struct{ name, value string }

// fields returns the fields of the ICAP head in the order of the profile's client.
func (m *Message) fields(t Target, r *Request, list string) ([]field, error) {
	fields := []field{{"Host", t.Host}}
	add := func(name, value string) { fields = append(fields, field{name, value}) }
	var allow []string
	if !m.No204 {
		allow = append(allow, "204")
	}
	if m.Allow206 {
		allow = append(allow, "206")
	}
	switch m.Profile {
	case Squid:
		add("Date", time.Now().UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"))
		allow = append(allow, "trailers")
	case ProxySG:
	default:
		add("User-Agent", "icapbench")
	}
	if m.Method == icap.MethodOptions {
		if m.Profile != Squid {
			add("Encapsulated", list)
		}
		return override(fields, m.Fields, "Encapsulated", "Preview")
	}
	if m.Profile == ProxySG {
		add("X-Scan-Progress-Interval", "10")
		m.addIdentity(add)
	}
	add("Encapsulated", list)
	if m.Preview >= 0 {
		if m.Preview > icap.MaxPreview {
			return nil, fmt.Errorf("preview of %d bytes: at most %d are allowed", m.Preview, icap.MaxPreview)
		}
		r.Preview = m.Preview
		add("Preview", strconv.FormatInt(m.Preview, 10))
	}
	if len(allow) > 0 {
		add("Allow", strings.Join(allow, ", "))
	}
	switch m.Profile {
	case Squid:
		add("X-Client-IP", cmp.Or(m.ClientIP, defaultClientIP))
	case Zscaler:
		m.addIdentity(add)
	}
	return override(fields, m.Fields, "Encapsulated", "Preview")
}

// addIdentity adds who the user is and where the message goes, as proxies for whole companies tell it.
func (m *Message) addIdentity(add func(name, value string)) {
	user := m.EncodedUser
	if user == "" {
		user = base64.StdEncoding.EncodeToString([]byte("WinNT://" + cmp.Or(m.User, defaultUser)))
	}
	add("X-Client-IP", cmp.Or(m.ClientIP, defaultClientIP))
	add("X-Server-IP", serverIP)
	add("X-Authenticated-User", user)
}

// override puts lines of "Name: value" in the place of fields with these names, or behind all. The fixed fields are not to be chosen.
func override(fields []field, lines []string, fixed ...string) ([]field, error) {
	for _, line := range lines {
		name, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		if !ok || name == "" || strings.ContainsAny(name, " \t") || strings.ContainsAny(line, "\r\n\x00") {
			return nil, fmt.Errorf("bad header %q: want 'Name: value'", line)
		}
		if slices.ContainsFunc(fixed, func(f string) bool { return strings.EqualFold(f, name) }) {
			return nil, fmt.Errorf("header %q is part of the framing and cannot be chosen", name)
		}
		named := func(f field) bool { return strings.EqualFold(f.name, name) }
		i := slices.IndexFunc(fields, named)
		fields = slices.DeleteFunc(fields, named)
		switch {
		case value == "":
		case i < 0:
			fields = append(fields, field{name, value})
		default:
			fields = slices.Insert(fields, i, field{name, value})
		}
	}
	return fields, nil
}

// httpGet returns the head of an HTTP request without a body.
func (m *Message) httpGet() ([]byte, error) {
	return m.requestHead("GET", nil)
}

// httpRequest returns the HTTP head of an upload; it wraps the body of r if that is to be a form.
func (m *Message) httpRequest(r *Request) ([]byte, error) {
	if r.Body == nil {
		return m.httpGet()
	}
	contentType := anyType
	form := m.Form
	if form == nil && m.Profile == Zscaler {
		form = new(Form)
	}
	if form != nil {
		boundary := form.Boundary
		if boundary == "" {
			boundary = "----WebKitFormBoundary" + rand.Text()[:16]
		}
		contentType = "multipart/form-data; boundary=" + boundary
		r.Before, r.After = form.around(boundary, m.FileName)
		r.Body = io.MultiReader(bytes.NewReader(r.Before), r.Body, bytes.NewReader(r.After))
		r.Size += int64(len(r.Before) + len(r.After))
	}
	return m.requestHead("POST", []field{{"Content-Type", contentType}, {"Content-Length", strconv.FormatInt(r.Size, 10)}})
}

// around returns what stands before and behind the content of the file.
func (f *Form) around(boundary, fileName string) (before, after []byte) {
	for _, other := range f.Fields {
		before = fmt.Appendf(before, "--%s\r\nContent-Disposition: form-data; name=\"%s\"\r\n\r\n%s\r\n", boundary, quoted.Replace(other.Name), other.Value)
	}
	before = fmt.Appendf(before, "--%s\r\nContent-Disposition: form-data; name=\"%s\"; filename=\"%s\"\r\nContent-Type: %s\r\n\r\n",
		boundary, quoted.Replace(cmp.Or(f.Field, "file")), quotable(fileName), anyType)
	return before, fmt.Appendf(nil, "\r\n--%s--\r\n", boundary)
}

func (m *Message) requestHead(method string, more []field) ([]byte, error) {
	target := cmp.Or(m.URL, defaultURL)
	u, err := url.Parse(target)
	if err != nil || u.Host == "" || strings.ContainsAny(target, " \t\r\n") {
		return nil, fmt.Errorf("bad URL %q: want http://host/path", target)
	}
	fields := append([]field{{"Host", u.Host}, {"User-Agent", userAgent}, {"Accept", "*/*"}}, more...)
	return httpHead(method+" "+target+" HTTP/1.1", fields, m.HTTPFields)
}

func (m *Message) httpResponse(r *Request) ([]byte, error) {
	if r.Body == nil {
		return httpHead("HTTP/1.1 304 Not Modified", []field{{"Server", "example"}}, m.HTTPResponseFields)
	}
	return httpHead("HTTP/1.1 200 OK", []field{{"Server", "example"}, {"Content-Type", anyType}, {"Content-Length", strconv.FormatInt(r.Size, 10)}},
		m.HTTPResponseFields)
}

func httpHead(line string, fields []field, changes []string) ([]byte, error) {
	fields, err := override(fields, changes)
	if err != nil {
		return nil, err
	}
	head := append([]byte(line), "\r\n"...)
	for _, f := range fields {
		head = fmt.Appendf(head, "%s: %s\r\n", f.name, f.value)
	}
	return append(head, "\r\n"...), nil
}

// quotable makes a file name fit into a quoted string, as browsers do.
func quotable(path string) string {
	if path == "" {
		return "file"
	}
	return quoted.Replace(filepath.Base(path))
}

var quoted = strings.NewReplacer(`"`, "%22", "\r", "%0D", "\n", "%0A")

// MethodOf returns the method with that name, in any case.
func MethodOf(name string) (icap.Method, error) {
	for m := icap.MethodOptions; m < icap.NumMethods; m++ {
		if strings.EqualFold(m.String(), name) {
			return m, nil
		}
	}
	return 0, fmt.Errorf("unknown method %q: want reqmod, respmod or options", name)
}
