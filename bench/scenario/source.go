package scenario

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"icapgate/bench"
	"icapgate/icap"
)

// Source makes the requests of one worker. It is not for concurrent use.
type Source struct {
	mix     *Mix
	first   uint64 // half of the seed
	pcg     rand.PCG
	rng     *rand.Rand
	users   *rand.Zipf
	clients *rand.Zipf

	request Request
	content io.Reader // the request's
	before  []byte    // of its form
	after   []byte
	values  values
}

// Request is one request of the run. All of it is valid until the next call of Next.
type Request struct {
	bench.Request            // ready for Conn.Do; its Body reads Content
	N             uint64     // number in the run
	Entry         int        // index into Mix.Entries
	Content       bench.Body // what is sent, for the comparison with what comes back; empty: no body, or one of no bytes
	ExpectBody    ExpectBody
	Fault         Fault

	statuses []int
}

// Fault says how the client of a request misbehaves.
type Fault struct {
	Kind  FaultKind     // "": not at all
	Rate  int64         // SlowBody: bytes per second
	After int64         // AbortBody: bytes of the body that are sent
	Hold  time.Duration // StopReading, ConnectAndLeave: until the connection is closed
}

// NewSource returns a source of the requests that belong to seed. Sources of the same seed make the same requests.
func (m *Mix) NewSource(seed uint64) *Source {
	s := &Source{mix: m, first: seed}
	s.rng = rand.New(&s.pcg)
	s.users, s.clients = m.users.zipf(s.rng), m.clients.zipf(s.rng)
	s.content = &s.request.Content
	s.values.run = m.run
	return s
}

// Next returns the n-th request of the run, from 0.
func (s *Source) Next(n uint64) *Request {
	m := s.mix
	s.seed(n)
	weights, fault := m.weights, (*FaultType)(nil)
	if len(m.faults) > 0 {
		if i := m.faultShares.pick(s.rng.Float64()); i < len(m.faults) {
			fault = &m.faults[i]
		}
	}
	if fault != nil && fault.needsBody() {
		weights = m.bodyWeights
	}
	s.build(weights.draw(s.rng), n)
	if fault != nil {
		s.request.Fault = Fault{fault.Kind, int64(fault.Rate), int64(fault.After * float64(s.request.Size)), time.Duration(fault.Hold)}
	}
	return &s.request
}

// seed makes the random numbers those of the n-th request, whatever was drawn before.
func (s *Source) seed(n uint64) { s.pcg.Seed(s.first, n) }

// build makes request n of an entry.
func (s *Source) build(entry int, n uint64) {
	e, r, v := s.mix.entries[entry], &s.request, &s.values
	buffers := r.Request
	r.Request = e.request
	r.Head, r.Blocks, r.Body = buffers.Head[:0], buffers.Blocks[:0], nil
	r.N, r.Entry, r.ExpectBody, r.Fault, r.statuses = n, entry, e.expectBody, Fault{}, e.statuses
	v.n = n
	s.drawPeople(e)
	s.buildBody(e)

	r.Blocks = v.append(r.Blocks, e.first)
	r.EchoFrom = len(r.Blocks)
	r.Blocks = v.append(r.Blocks, e.last)
	v.encapsulated = appendEncapsulated(v.encapsulated[:0], e, r)
	r.Head = v.append(r.Head, e.head)
}

func (s *Source) drawPeople(e *entry) {
	m, v := s.mix, &s.values
	if e.usesUser {
		v.user = v.user[:0]
		number := m.users.draw(s.rng, s.users)
		for i := range m.userFormat {
			if p := &m.userFormat[i]; p.variable == varNumber {
				v.user = strconv.AppendUint(v.user, number+1, 10)
			} else {
				v.user = append(v.user, p.text...)
			}
		}
	}
	if e.usesClient {
		v.clientIP = address(m.network, m.clients.draw(s.rng, s.clients)).AppendTo(v.clientIP[:0])
	}
	if e.usesUUID {
		binary.LittleEndian.PutUint64(v.uuid[:], s.rng.Uint64())
		binary.LittleEndian.PutUint64(v.uuid[8:], s.rng.Uint64())
	}
}

// buildBody chooses what is sent, with the form around it.
func (s *Source) buildBody(e *entry) {
	r, v := &s.request, &s.values
	r.Content.Reset()
	v.size, v.file = 0, generatedName
	if !e.hasBody {
		return
	}
	var content []byte
	if e.files != nil {
		f := &e.files[s.rng.IntN(len(e.files))]
		v.file, content = f.name, f.content
	}
	s.before, s.after = v.append(s.before[:0], e.before), v.append(s.after[:0], e.after)
	r.Content.AddBytes(s.before)
	if e.files != nil {
		r.Content.AddBytes(content)
	} else {
		r.Content.AddPattern(int(s.rng.Int32()), e.size.draw(s.rng))
	}
	r.Content.AddBytes(s.after)
	r.Body, r.Size, r.Before, r.After = s.content, r.Content.Size(), s.before, s.after
	v.size = r.Size
}

// generatedName is that of a file which is none.
const generatedName = "upload.bin"

func appendEncapsulated(dst []byte, e *entry, r *Request) []byte {
	dst = append(dst, "req-hdr=0, "...)
	body := "null-body="
	switch {
	case e.Method == icap.MethodRespmod:
		dst = append(dst, "res-hdr="...)
		dst = append(strconv.AppendInt(dst, int64(r.EchoFrom), 10), ", "...)
		if e.hasBody {
			body = "res-body="
		}
	case e.hasBody:
		body = "req-body="
	}
	return strconv.AppendInt(append(dst, body...), int64(len(r.Blocks)), 10)
}

// Expected says whether a status is one that the request may be answered with.
func (r *Request) Expected(status int) bool {
	switch {
	case r.statuses != nil:
		return slices.Contains(r.statuses, status)
	case r.Method == icap.MethodOptions:
		return status == 200
	}
	return status == 200 || status == 204 || status == 206 && r.Allow206
}
