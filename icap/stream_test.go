package icap

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// Blocks of the vectors; "¶" stands for CRLF.
const (
	G  = "GET / HTTP/1.1¶Host: a¶¶"              // 27 bytes
	P  = "POST / HTTP/1.1¶Host: a¶¶"             // 28 bytes
	S  = "HTTP/1.1 200 OK¶¶"                     // 19 bytes
	RL = "REQMOD icap://gw/r ICAP/1.0¶Host: gw¶" // also what is sent on for it
	PL = "RESPMOD icap://gw/r ICAP/1.0¶Host: gw¶"
)

var (
	toWire   = strings.NewReplacer("¶", "\r\n")
	fromWire = strings.NewReplacer("\r\n", "¶")
)

// stream drives the four parsers over a connection's bytes the way a gateway does. It writes down what it would send on, and
// notes in brackets: how bodies end, Connection: close, faults, and "[more]" where a message is still incomplete.
type stream struct {
	lenientLF bool
	responses bool // the bytes come from a server
	maxChunk  int64

	buf  []byte // received and not consumed
	log  []byte // what is sent on, with notes
	wire []byte // the same without notes
	part func() error
	err  error

	next     []byte // the head to send on, without Encapsulated
	closes   bool
	busy     bool // inside a message
	head     HeadScanner
	request  Request
	response Response
	blocks   BlockScanner
	body     BodyReader
	reader   BodyReader // the same body, read by NextData
}

func (s *stream) start() {
	s.head = HeadScanner{LenientLF: s.lenientLF, Response: s.responses}
	s.part, s.busy = s.readHead, false
}

// feed takes the next bytes of the connection.
func (s *stream) feed(p []byte) {
	if s.err != nil {
		return
	}
	s.buf = append(s.buf, p...)
	for s.err == nil && len(s.buf) > 0 {
		if err := s.part(); errors.Is(err, ErrIncomplete) {
			return
		} else if err != nil {
			s.err = err
			s.note(describe(err))
		}
	}
}

// finish returns the log of a stream that ends here.
func (s *stream) finish() string {
	if s.err == nil && (len(s.buf) > 0 || s.busy) {
		s.note("more")
	}
	return fromWire.Replace(string(s.log))
}

func (s *stream) send(p []byte) {
	s.log = append(s.log, p...)
	s.wire = append(s.wire, p...)
}

func (s *stream) note(text string) { s.log = fmt.Appendf(s.log, "[%s]", text) }

func describe(err error) string {
	var fault *ProtocolError
	if errors.As(err, &fault) {
		return fmt.Sprint(fault.Status, " ", fault.Msg)
	}
	return err.Error()
}

func (s *stream) readHead() error {
	start, end, err := s.head.Scan(s.buf)
	if err != nil {
		return err
	}
	if s.responses {
		err = s.response.Parse(s.buf[start:end])
	} else {
		err = s.request.Parse(s.buf[start:end])
	}
	if err != nil {
		return err
	}
	list := s.responseHead
	if !s.responses {
		list = s.requestHead
	}
	s.buf = s.buf[end:]
	s.blocks.Reset(list(), s.responses)
	s.part, s.busy = s.readBlocks, true
	return s.readBlocks() // there may be none, so that no further byte is needed
}

func (s *stream) requestHead() Encapsulated {
	r := &s.request
	s.next = fmt.Appendf(nil, "%s icap://%s%s ICAP/1.0\r\n", r.MethodName, r.Authority, r.Target)
	if r.Host != nil {
		s.next = fmt.Appendf(s.next, "Host: %s\r\n", r.Host)
	}
	if r.Preview >= 0 {
		s.next = fmt.Appendf(s.next, "Preview: %d\r\n", r.Preview)
	}
	s.next, s.closes = r.AppendFields(s.next), r.Close
	return r.Encapsulated
}

func (s *stream) responseHead() Encapsulated {
	r := &s.response
	s.next = fmt.Appendf(nil, "ICAP/1.0 %d %s\r\n", r.Status, r.Reason)
	s.next, s.closes = r.AppendFields(s.next, true), r.Close
	return r.Encapsulated
}

func (s *stream) readBlocks() error {
	n, err := s.blocks.Scan(s.buf)
	if err != nil {
		return err
	}
	s.send(s.blocks.Encapsulated.AppendTo(s.next))
	if s.closes {
		s.note("close")
	}
	s.send([]byte("\r\n"))
	if s.blocks.Corrected {
		s.note("corrected")
	}
	s.send(s.buf[:n])
	s.buf = s.buf[n:]
	if !s.blocks.Encapsulated.HasBody() {
		s.start()
		return nil
	}
	c := BodyConfig{MaxChunk: s.maxChunk, Preview: -1, Response: s.responses}
	if s.responses {
		c.Trailers = s.response.Trailers
	} else {
		c.Preview = s.request.Preview
	}
	s.resetBody(c)
	s.part = s.readBody
	return nil
}

func (s *stream) resetBody(c BodyConfig) {
	s.body.Reset(c)
	s.reader.Reset(c)
}

func (s *stream) readBody() error {
	out, n, err := s.body.Next(s.buf)
	if err != nil {
		return err
	}
	s.send(out)
	if err := s.readData(s.buf[:n]); err != nil {
		return err
	}
	s.buf = s.buf[n:]
	switch end := s.body.End(); end {
	case EndNone:
	case EndPreview: // the test's server answers 100
		s.note("preview")
		s.resetBody(BodyConfig{MaxChunk: s.maxChunk, Preview: -1})
	case EndUseOriginal:
		s.note(fmt.Sprint("original ", s.body.UseOriginal()))
		s.start()
	default:
		s.note(map[BodyEnd]string{EndBody: "body", EndIeof: "ieof"}[end])
		s.start()
	}
	return nil
}

// readData checks that NextData sees in p what Next saw.
func (s *stream) readData(p []byte) error {
	for len(p) > 0 {
		_, n, err := s.reader.NextData(p)
		if err != nil {
			return fmt.Errorf("NextData: %w", err)
		}
		p = p[n:]
	}
	if s.reader.End() != s.body.End() || s.reader.Payload() != s.body.Payload() || s.reader.UseOriginal() != s.body.UseOriginal() {
		return fmt.Errorf("NextData is at %d (end %d), Next at %d (end %d)", s.reader.Payload(), s.reader.End(), s.body.Payload(), s.body.End())
	}
	return nil
}

// run drives a copy of the stream over pieces and returns its log.
func (s stream) run(pieces ...[]byte) (log string, wire []byte) {
	s.start()
	for _, p := range pieces {
		s.feed(bytes.Clone(p)) // so that nothing can hold on to it
	}
	return s.finish(), s.wire
}

// bytewise cuts p into single bytes; megabytes into pieces of 100.
func bytewise(p []byte) [][]byte {
	size := 1
	if len(p) > 300<<10 {
		size = 100
	}
	return slices.Collect(slices.Chunk(p, size))
}

// vector is a stream of one direction and what is sent on for it.
type vector struct {
	name, in, want string
}

// checkVectors feeds every vector whole, byte by byte, and cut in two at every offset (at some of the offsets of a long one).
// What is sent on has to be the same, and has to be a fixed point: read again, it comes out as it is.
func checkVectors(t *testing.T, s stream, vectors []vector) {
	for _, v := range vectors {
		t.Run(v.name, func(t *testing.T) {
			in := []byte(toWire.Replace(v.in))
			v.want = fromWire.Replace(toWire.Replace(v.want))
			got, wire := s.run(in)
			if got != v.want {
				t.Fatalf("sent on, whole:\n got %s\nwant %s", shorten(got), shorten(v.want))
			}
			if got, _ := s.run(bytewise(in)...); got != v.want {
				t.Fatalf("sent on, byte by byte:\n got %s\nwant %s", shorten(got), shorten(v.want))
			}
			step := 1
			if len(in) > 4<<10 {
				step = len(in)/50 + 1
			}
			for cut := 0; cut <= len(in); cut += step {
				if got, _ := s.run(in[:cut], in[cut:]); got != v.want {
					t.Fatalf("sent on, cut at %d:\n got %s\nwant %s", cut, shorten(got), shorten(v.want))
				}
			}
			if _, again := s.run(wire); !bytes.Equal(again, wire) {
				t.Fatalf("sent on again:\n got %q\nwant %q", shorten(string(again)), shorten(string(wire)))
			}
		})
	}
}

func shorten(s string) string {
	if len(s) > 1000 {
		return fmt.Sprintf("%s ... (%d bytes) ... %s", s[:200], len(s), s[len(s)-200:])
	}
	return s
}
