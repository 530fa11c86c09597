package scenario

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"icapgate/bench"
	"icapgate/configs"
	"icapgate/icap"
)

// Compile makes the requests of the scenario ready to be sent to t: it reads the folders of files, and builds and checks one request of each type.
func (s *Scenario) Compile(t bench.Target) (*Mix, error) {
	m := &Mix{run: "run", users: newPeople(s.Users.Count, s.Users.Skew), clients: newPeople(s.Clients.Count, s.Clients.Skew)}
	m.network = firstAddress(s.Clients.Network)
	var err error
	if m.userFormat, err = parseTemplate([]byte(s.Users.Format), userVariables); err != nil {
		return nil, err
	}
	folders := newFolders()
	var faults []error
	for i := range s.Requests {
		r := &s.Requests[i]
		e, err := s.compile(r, t, folders)
		if err == nil {
			m.entries = append(m.entries, e)
			m.weights.add(r.Weight)
			m.bodyWeights.add(r.Weight * boolWeight(e.hasBody))
			err = m.verify(i)
		}
		if err != nil {
			faults = append(faults, s.compileFault(i, r, err))
		}
	}
	for _, f := range s.Faults {
		m.faults = append(m.faults, f)
		m.faultShares.add(f.Share)
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	if len(m.entries) == 0 {
		return nil, errors.New("a scenario needs requests")
	}
	return m, m.checkFaults()
}

// checkFaults looks at faults that come from no file.
func (m *Mix) checkFaults() error {
	if total := m.faultShares.total(); total > 1 {
		return fmt.Errorf("the shares of faulty clients are %.3g together, at most 1 is allowed", total)
	}
	for i := range m.faults {
		if f := &m.faults[i]; f.needsBody() && m.bodyWeights.total() == 0 {
			return fmt.Errorf("%s needs a request with a body", f.Kind)
		}
	}
	return nil
}

func boolWeight(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// compileFault says where in the file a fault is that only came out now.
func (s *Scenario) compileFault(i int, r *RequestType, err error) error {
	if s.doc == nil {
		return err
	}
	key := fmt.Sprintf("requests[%d]", i)
	var folder *folderError
	if errors.As(err, &folder) {
		key += ".body.files"
	}
	return s.doc.At(key, "%v", err)
}

// folderError is a folder of files that cannot be sent.
type folderError struct{ error }

// compile builds the message of one type of request, with variables where its requests differ, and takes it apart into templates.
func (s *Scenario) compile(r *RequestType, t bench.Target, folders *folders) (*entry, error) {
	e := &entry{Entry: Entry{Name: r.Name}, expectBody: r.Expect.Body, statuses: r.Expect.Status}
	message, err := s.message(r)
	if err != nil {
		return nil, err
	}
	if r.Path != "" {
		if t, err = t.WithPath(r.Path); err != nil {
			return nil, err
		}
	}
	var body *bytes.Reader
	if r.Body != nil && message.Method != icap.MethodOptions {
		body, e.hasBody = new(bytes.Reader), true
		if e.size, err = newSizes(r.Body.Size); err != nil {
			return nil, err
		}
		if r.Body.Files != "" {
			if e.files, err = folders.read(r.Body.Files); err != nil {
				return nil, &folderError{err}
			}
		}
		length := []string{"Content-Length: ${size}"}
		if message.Method == icap.MethodReqmod {
			message.HTTPFields = append(length, message.HTTPFields...)
		} else {
			message.HTTPResponseFields = append(length, message.HTTPResponseFields...)
		}
	}
	built, err := build(message, t, body)
	if err != nil {
		return nil, err
	}
	for _, size := range r.Chunk {
		built.Chunks = append(built.Chunks, int64(size))
	}
	e.Method, e.request = message.Method, *built
	return e, e.parseTemplates(built)
}

// build is Build, with a body of no bytes unless it is nil.
func build(m *bench.Message, t bench.Target, body *bytes.Reader) (*bench.Request, error) {
	if body == nil {
		return m.Build(t, nil, 0)
	}
	return m.Build(t, body, 0)
}

// message returns what the keys of a request say, with the variables that its profile needs.
func (s *Scenario) message(r *RequestType) (*bench.Message, error) {
	m := &bench.Message{Profile: bench.Profile(r.Profile), URL: r.URL}
	if r.message != nil {
		single := *r.message
		m = &single
		m.HTTPFields, m.HTTPResponseFields = clip(m.HTTPFields), clip(m.HTTPResponseFields)
	} else {
		var err error
		if m.Method, err = bench.MethodOf(r.Method); err != nil {
			return nil, err
		}
		m.Preview = m.Profile.DefaultPreview()
		if r.Preview != nil {
			m.Preview = int64(*r.Preview)
		}
		if r.Allow != nil {
			m.No204, m.Allow206 = true, false
			for _, status := range r.Allow {
				m.No204 = m.No204 && status != 204
				m.Allow206 = m.Allow206 || status == 206
			}
		}
		m.HTTPFields, m.HTTPResponseFields = lines(r.HTTPHeaders), lines(r.HTTPResponseHeaders)
		if r.Body != nil && r.Body.Form != nil {
			m.Form = &bench.Form{Field: r.Body.Form.Field}
			for _, p := range r.Body.Form.Fields {
				m.Form.Fields = append(m.Form.Fields, bench.FormField{Name: p.Name, Value: p.Value})
			}
			m.FileName = r.Body.Form.FileName
		}
	}
	if m.User == "" && m.EncodedUser == "" {
		m.EncodedUser = "${user_base64}"
	}
	if m.ClientIP == "" {
		m.ClientIP = "${client_ip}"
	}
	if m.FileName == "" {
		m.FileName = "${file}"
	}
	if m.Form == nil && m.Profile == bench.Zscaler {
		m.Form = new(bench.Form)
	}
	if m.Form != nil { // the same for all, so that a run can be repeated
		form := *m.Form
		form.Boundary = "----WebKitFormBoundary7MA4YWxkTrZu0gW8"
		m.Form = &form
	}
	m.Fields = clip(m.Fields)
	if s.IncidentHeader != "" && m.Method != icap.MethodOptions {
		m.Fields = append(m.Fields, s.IncidentHeader+": ${id}")
	}
	m.Fields = append(m.Fields, lines(r.Headers)...)
	return m, nil
}

// clip makes sure that appending to a list of the caller's leaves that as it is.
func clip(list []string) []string { return list[:len(list):len(list)] }

func lines(pairs configs.Pairs) []string {
	var list []string
	for _, p := range pairs {
		list = append(list, p.Name+": "+p.Value)
	}
	return list
}

// parseTemplates takes a built request apart. Its Encapsulated field is made anew for each request, since the blocks differ in length.
func (e *entry) parseTemplates(r *bench.Request) error {
	const name = "\r\nEncapsulated: "
	head := r.Head
	if before, after, ok := bytes.Cut(head, []byte(name)); ok && len(r.Blocks) > 0 {
		_, rest, _ := bytes.Cut(after, []byte("\r\n"))
		head = fmt.Appendf(nil, "%s%s${%s}\r\n%s", before, name, varEncapsulate, rest)
	}
	for _, part := range []struct {
		t    *template
		text []byte
	}{{&e.head, head}, {&e.first, r.Blocks[:r.EchoFrom]}, {&e.last, r.Blocks[r.EchoFrom:]}, {&e.before, r.Before}, {&e.after, r.After}} {
		t, err := parseTemplate(part.text, headVariables)
		if err != nil {
			return err
		}
		*part.t = t
		e.usesUser = e.usesUser || t.uses(varUser, varUserBase64)
		e.usesClient = e.usesClient || t.uses(varClientIP)
		e.usesUUID = e.usesUUID || t.uses(varUUID)
	}
	return nil
}

// verify builds some requests of a type and reads them as strictly as a server may.
func (m *Mix) verify(i int) error {
	s := m.NewSource(1)
	for n := range uint64(3) {
		s.seed(n)
		s.build(i, n)
		if err := verify(&s.request); err != nil {
			return err
		}
	}
	return nil
}

func verify(r *Request) error {
	var scanner icap.HeadScanner
	var parsed icap.Request
	start, end, err := scanner.Scan(r.Head)
	if err == nil && (start != 0 || end != len(r.Head)) {
		err = errors.New("an empty line within the head")
	}
	if err == nil {
		err = parsed.Parse(r.Head)
	}
	if err == nil {
		var blocks icap.BlockScanner
		var n int
		blocks.Reset(parsed.Encapsulated, false)
		if n, err = blocks.Scan(r.Blocks); err == nil && n != len(r.Blocks) {
			err = errors.New("more encapsulated heads than Encapsulated says")
		}
	}
	if err != nil {
		return fmt.Errorf("makes no valid request: %s", strings.TrimPrefix(err.Error(), "icap: "))
	}
	return nil
}
