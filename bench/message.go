package bench

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"path/filepath"
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
	// Plain sends the file as a raw POST or download and nothing that is not needed.
	Plain Profile = "plain"
)

const (
	defaultChunk = 64 << 10 // bytes
	squidPreview = 1024     // bytes, as a server asks Squid for

	clientIP    = "192.0.2.77" // of the imagined user: an address for documentation
	defaultUser = "EXAMPLE/alice"
	uploadURL   = "http://upload.example.com/files"
	uploadHost  = "upload.example.com"
	userAgent   = "Mozilla/5.0 (Windows NT 10.0; Win64; x64)"
	anyType     = "application/octet-stream"
)

// Message says what a request looks like.
type Message struct {
	Profile  Profile // "": Plain
	Method   icap.Method
	Preview  int64 // bytes; -1: none
	Chunk    int64 // bytes in one chunk at most; 0: 64 KiB
	No204    bool  // don't offer Allow: 204
	FileName string
	User     string   // of X-Authenticated-User, DOMAIN/user; "": EXAMPLE/alice
	Fields   []string // "Name: value": added to the ICAP head, or put in the place of a field with that name; "Name:" takes it away
}

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
	case "", Plain, Squid, Zscaler:
	default:
		return nil, fmt.Errorf("unknown profile %q: want zscaler, squid or plain", m.Profile)
	}
	r := &Request{Method: m.Method, Body: body, Size: size, Chunk: m.Chunk, Preview: -1}
	if r.Chunk <= 0 {
		r.Chunk = defaultChunk
	}
	var list string // of Encapsulated
	switch m.Method {
	case icap.MethodOptions:
		r.Body, r.Size = nil, 0
		list = "null-body=0"
	case icap.MethodReqmod:
		r.Blocks = m.httpRequest(r)
		list = "req-hdr=0, " + bodyName(r.Body, "req-body") + "=" + strconv.Itoa(len(r.Blocks))
	case icap.MethodRespmod:
		request := append([]byte(nil), httpHead("GET "+uploadURL+" HTTP/1.1", "Host: "+uploadHost, "User-Agent: "+userAgent, "Accept: */*")...)
		r.Blocks, r.EchoFrom = append(request, m.httpResponse(r)...), len(request)
		list = "req-hdr=0, res-hdr=" + strconv.Itoa(len(request)) + ", " + bodyName(r.Body, "res-body") + "=" + strconv.Itoa(len(r.Blocks))
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
	if m.Profile == Squid {
		add("Date", time.Now().UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT"))
		allow = append(allow, "trailers")
	} else {
		add("User-Agent", "icapbench")
	}
	if m.Method == icap.MethodOptions {
		if m.Profile != Squid {
			add("Encapsulated", list)
		}
		return m.override(fields)
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
	if m.Profile == Squid || m.Profile == Zscaler {
		add("X-Client-IP", clientIP)
	}
	if m.Profile == Zscaler {
		user := m.User
		if user == "" {
			user = defaultUser
		}
		add("X-Server-IP", "198.51.100.80")
		add("X-Authenticated-User", base64.StdEncoding.EncodeToString([]byte("WinNT://"+user)))
	}
	return m.override(fields)
}

// override applies Fields.
func (m *Message) override(fields []field) ([]field, error) {
	for _, line := range m.Fields {
		name, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch {
		case !ok || name == "" || strings.ContainsAny(name, " \t") || strings.ContainsAny(line, "\r\n\x00"):
			return nil, fmt.Errorf("bad header %q: want 'Name: value'", line)
		case strings.EqualFold(name, "Encapsulated") || strings.EqualFold(name, "Preview"):
			return nil, fmt.Errorf("header %q is part of the framing and cannot be chosen", name)
		}
		kept := fields[:0]
		for _, f := range fields {
			if !strings.EqualFold(f.name, name) {
				kept = append(kept, f)
			}
		}
		fields = kept
		if value != "" {
			fields = append(fields, field{name, value})
		}
	}
	return fields, nil
}

// httpRequest returns the HTTP head of an upload; for Zscaler it wraps the body of r.
func (m *Message) httpRequest(r *Request) []byte {
	if r.Body == nil {
		return httpHead("GET "+uploadURL+" HTTP/1.1", "Host: "+uploadHost, "User-Agent: "+userAgent, "Accept: */*")
	}
	contentType := anyType
	if m.Profile == Zscaler {
		boundary := "----WebKitFormBoundary" + rand.Text()[:16]
		contentType = "multipart/form-data; boundary=" + boundary
		before := "--" + boundary + "\r\nContent-Disposition: form-data; name=\"file\"; filename=\"" + quotable(m.FileName) +
			"\"\r\nContent-Type: " + anyType + "\r\n\r\n"
		after := "\r\n--" + boundary + "--\r\n"
		r.Body = io.MultiReader(strings.NewReader(before), r.Body, strings.NewReader(after))
		r.Size += int64(len(before) + len(after))
	}
	return httpHead("POST "+uploadURL+" HTTP/1.1", "Host: "+uploadHost, "User-Agent: "+userAgent, "Accept: */*",
		"Content-Type: "+contentType, "Content-Length: "+strconv.FormatInt(r.Size, 10))
}

func (m *Message) httpResponse(r *Request) []byte {
	if r.Body == nil {
		return httpHead("HTTP/1.1 304 Not Modified", "Server: example")
	}
	return httpHead("HTTP/1.1 200 OK", "Server: example", "Content-Type: "+anyType, "Content-Length: "+strconv.FormatInt(r.Size, 10))
}

func httpHead(lines ...string) []byte {
	return []byte(strings.Join(lines, "\r\n") + "\r\n\r\n")
}

// quotable makes a file name fit into a quoted string, as browsers do.
func quotable(path string) string {
	if path == "" {
		return "file"
	}
	return strings.NewReplacer(`"`, "%22", "\r", "%0D", "\n", "%0A").Replace(filepath.Base(path))
}

// MethodOf returns the method with that name, in any case.
func MethodOf(name string) (icap.Method, error) {
	for m := icap.MethodOptions; m < icap.NumMethods; m++ {
		if strings.EqualFold(m.String(), name) {
			return m, nil
		}
	}
	return 0, fmt.Errorf("unknown method %q: want reqmod, respmod or options", name)
}
