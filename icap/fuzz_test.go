package icap

import (
	"bytes"
	"errors"
	"io"
	"net/http/httputil"
	"strings"
	"testing"
)

// seeds returns the streams of all vectors that are short enough to be worth mutating.
func seeds(tables ...[]vector) (streams [][]byte) {
	for _, vectors := range tables {
		for _, v := range vectors {
			if in := toWire.Replace(v.in); len(in) < 2<<10 {
				streams = append(streams, []byte(in))
			}
		}
	}
	return streams
}

// FuzzHead: a head parses the same however it is cut, and what is sent on for it is a head with the same fields, which a strict
// reader accepts.
func FuzzHead(f *testing.F) {
	for _, in := range seeds(validRequests(), malformedHeads(), malformedLists()) {
		f.Add(in, false, false)
		f.Add(bytes.ReplaceAll(in, []byte("\r\n"), []byte("\n")), true, false)
	}
	for _, in := range seeds(responses()) {
		f.Add(in, true, true)
	}
	f.Fuzz(func(t *testing.T, in []byte, lenientLF, response bool) {
		whole := HeadScanner{LenientLF: lenientLF, Response: response}
		start, end, err := whole.Scan(in)

		pieces := HeadScanner{LenientLF: lenientLF, Response: response}
		start2, end2, err2 := 0, 0, error(ErrIncomplete)
		for i := 0; i <= len(in) && err2 == ErrIncomplete; i++ {
			start2, end2, err2 = pieces.Scan(in[:i])
		}
		if start != start2 || end != end2 || describeOK(err) != describeOK(err2) {
			t.Fatalf("whole: %d, %d, %v; byte by byte: %d, %d, %v", start, end, err, start2, end2, err2)
		}
		if err != nil {
			return
		}
		var sent []byte
		if response {
			sent = []byte("ICAP/1.0 200 OK\r\n")
			sent, err = appendResponse(sent, in[start:end])
		} else {
			sent = []byte("OPTIONS icap://gw/r ICAP/1.0\r\n")
			sent, err = appendRequest(sent, in[start:end])
		}
		if err != nil || len(sent) > MaxHead-2 {
			return
		}
		sent = append(sent, "\r\n"...)
		var strict HeadScanner
		if start, end, err := strict.Scan(sent); start != 0 || end != len(sent) || err != nil {
			t.Fatalf("sent on as %q, which scans as %d, %d, %v", sent, start, end, err)
		}
		var again []byte
		if response {
			again, err = appendResponse([]byte("ICAP/1.0 200 OK\r\n"), sent)
		} else {
			again, err = appendRequest([]byte("OPTIONS icap://gw/r ICAP/1.0\r\n"), sent)
		}
		if again = append(again, "\r\n"...); err != nil || !bytes.Equal(sent, again) {
			t.Fatalf("sent on as\n%q and then as\n%q, %v", sent, again, err)
		}
	})
}

func appendRequest(dst, head []byte) ([]byte, error) {
	var r Request
	err := r.Parse(head)
	return r.AppendFields(dst), err
}

func appendResponse(dst, head []byte) ([]byte, error) {
	var r Response
	err := r.Parse(head)
	return r.AppendFields(dst, true), err
}

func describeOK(err error) string {
	if err == nil {
		return "ok"
	}
	return describe(err)
}

// FuzzEncapsulated: a list that is accepted comes out in a form that every reader accepts, and blocks are found in the same
// places however they are cut.
func FuzzEncapsulated(f *testing.F) {
	blocks := []byte(toWire.Replace(G + S + "5¶hello¶0¶¶"))
	for _, tables := range seeds(validRequests(), malformedLists(), responses()) {
		if _, list, ok := strings.Cut(string(tables), "Encapsulated:"); ok {
			list, rest, _ := strings.Cut(list, "\r\n")
			f.Add([]byte(list), blocks)
			f.Add([]byte(list), []byte(rest))
		}
	}
	f.Fuzz(func(t *testing.T, list, buf []byte) {
		strict, strictErr := parseEncapsulated(list)
		lenient, lenientErr := parseEncapsulatedResponse(list)
		if strictErr == nil {
			scanBlocks(t, strict, false, buf)
			strict.correctBody()
			if lenientErr != nil || strict != lenient {
				t.Fatalf("strict: %v; lenient: %v, %v", strict, lenient, lenientErr)
			}
		}
		if lenientErr == nil {
			scanBlocks(t, lenient, true, buf)
		}
	})
}

func scanBlocks(t *testing.T, e Encapsulated, lenient bool, buf []byte) {
	line := bytes.TrimPrefix(e.AppendTo(nil), []byte("Encapsulated: "))
	listed := e
	listed.inferred = false
	if again, err := parseEncapsulated(bytes.TrimSuffix(line, []byte("\r\n"))); err != nil || again != listed {
		t.Fatalf("%v written as %q and read as %v, %v", e, line, again, err)
	}
	var whole, pieces BlockScanner
	whole.Reset(e, lenient)
	pieces.Reset(e, lenient)
	n, err := whole.Scan(buf)
	n2, err2 := 0, error(ErrIncomplete)
	for i := 0; i <= len(buf) && err2 == ErrIncomplete; i++ {
		n2, err2 = pieces.Scan(buf[:i])
	}
	if n != n2 || describeOK(err) != describeOK(err2) {
		t.Fatalf("whole: %d, %v; byte by byte: %d, %v", n, err, n2, err2)
	}
	if err != nil {
		return
	}
	if whole.Encapsulated != pieces.Encapsulated || whole.Corrected != pieces.Corrected || whole.Encapsulated.HeadLen() != n || n > len(buf) {
		t.Fatalf("whole: %+v; byte by byte: %+v", whole, pieces)
	}
	pieces.Reset(whole.Encapsulated, true)
	if n2, err := pieces.Scan(buf); n2 != n || err != nil || pieces.Corrected {
		t.Fatalf("%v scanned again: %d, %v, %v", whole.Encapsulated, n2, err, pieces.Corrected)
	}
}

// FuzzChunked: a body is understood the same however it is cut and by both ways to read it; what is sent on for it is a fixed point and
// means to Go's HTTP reader what it meant here.
func FuzzChunked(f *testing.F) {
	for _, in := range seeds(validRequests(), malformedChunks(), toleratedChunks(), responses()) {
		if _, body, ok := strings.Cut(string(in), "body=0\r\n\r\n"); ok {
			f.Add([]byte(body), -1, int64(0), false, false, uint(3))
			f.Add([]byte(body), 4, int64(3), false, false, uint(7))
			f.Add([]byte(body), -1, int64(0), true, true, uint(9))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte, preview int, maxChunk int64, response, trailers bool, cut uint) {
		c := BodyConfig{Preview: max(preview, -1), MaxChunk: maxChunk, Response: response, Trailers: trailers}
		i := int(cut % uint(len(in)+1))
		whole := readBody(t, c, (*BodyReader).Next, in)
		for _, pieces := range [][][]byte{bytewise(in), {in[:i], in[i:]}} {
			if got := readBody(t, c, (*BodyReader).Next, pieces...); got != whole {
				t.Fatalf("whole: %+v\nin pieces: %+v", whole, got)
			}
		}
		plain := c
		plain.Trailers = false // a preview has none
		asPreview := readBody(t, plain, (*BodyReader).Next, in)
		plain.Plain = true
		for _, pieces := range [][][]byte{{in}, bytewise(in)} {
			got, want := readBody(t, plain, (*BodyReader).Next, pieces...), asPreview
			want.out = withoutPreview(asPreview)
			if got != want {
				t.Fatalf("plain: %+v\nwant: %+v", got, want)
			}
		}
		data := readBody(t, c, (*BodyReader).NextData, in)
		if got := readBody(t, c, (*BodyReader).NextData, bytewise(in)...); got != data {
			t.Fatalf("data whole: %+v\nin pieces: %+v", data, got)
		}
		if data.end != whole.end || data.err != whole.err || data.payload != whole.payload || data.consumed != whole.consumed || uint64(len(data.out)) != data.payload {
			t.Fatalf("Next: %+v\nNextData: %+v", whole, data)
		}

		c.Trailers = false
		again := readBody(t, c, (*BodyReader).Next, []byte(whole.out))
		if again.out != whole.out || again.err != "" || again.payload != whole.payload || whole.end != EndNone && again.end != whole.end {
			t.Fatalf("sent on: %+v\nand again: %+v", whole, again)
		}
		if whole.end != EndNone {
			payload, err := io.ReadAll(httputil.NewChunkedReader(strings.NewReader(whole.out)))
			if err != nil || string(payload) != data.out {
				t.Fatalf("sent on as %q, which HTTP reads as %q, %v; payload %q", whole.out, payload, err, data.out)
			}
		}
	})
}

// withoutPreview is what is sent on for a body whose preview is ended.
func withoutPreview(r bodyResult) string {
	switch r.end {
	case EndPreview:
		return strings.TrimSuffix(r.out, "0\r\n\r\n")
	case EndIeof:
		return strings.TrimSuffix(r.out, "0; ieof\r\n\r\n") + "0\r\n\r\n"
	}
	return r.out
}

type bodyResult struct {
	out         string
	end         BodyEnd
	payload     uint64
	useOriginal uint64
	consumed    int // not counted in a faulty body
	err         string
}

// readBody reads pieces to their end or that of the body.
func readBody(t *testing.T, c BodyConfig, next func(*BodyReader, []byte) ([]byte, int, error), pieces ...[]byte) (r bodyResult) {
	var b BodyReader
	b.Reset(c)
	for _, p := range pieces {
		for len(p) > 0 && b.End() == EndNone {
			out, n, err := next(&b, p)
			if err != nil {
				var fault *ProtocolError
				if !errors.As(err, &fault) || len(out) > 0 {
					t.Fatalf("fault %v with %q", err, out)
				}
				r.end, r.payload, r.consumed, r.err = b.End(), b.Payload(), 0, describe(err)
				return r
			}
			if n == 0 && len(out) == 0 {
				t.Fatalf("no progress at %q", p)
			}
			r.out += string(out)
			r.consumed += n
			p = p[n:]
		}
	}
	r.end, r.payload, r.useOriginal = b.End(), b.Payload(), b.UseOriginal()
	return r
}

// FuzzStream: two readers of a connection that get it in different pieces agree on every message, and what they send on is a
// fixed point.
func FuzzStream(f *testing.F) {
	for _, in := range seeds(validRequests(), malformedHeads(), malformedLists(), malformedBlocks(), malformedChunks(), toleratedChunks()) {
		f.Add(in, false, false, uint16(0), uint(len(in)/2))
		f.Add(in, false, true, uint16(3), uint(len(in)/3))
	}
	for _, in := range seeds(responses()) {
		f.Add(in, true, true, uint16(0), uint(len(in)/2))
	}
	f.Fuzz(func(t *testing.T, in []byte, responses, lenientLF bool, maxChunk uint16, cut uint) {
		s := stream{responses: responses, lenientLF: lenientLF, maxChunk: int64(maxChunk)}
		i := int(cut % uint(len(in)+1))
		whole, wire := s.run(in)
		if got, _ := s.run(in[:i], in[i:]); got != whole {
			t.Fatalf("whole: %q\ncut at %d: %q", whole, i, got)
		}
		if got, _ := s.run(bytewise(in)...); got != whole {
			t.Fatalf("whole: %q\nbyte by byte: %q", whole, got)
		}
		if strings.Contains(whole, "NextData") {
			t.Fatal(whole)
		}
		if again, wireAgain := s.run(wire); !bytes.Equal(wire, wireAgain) {
			t.Fatalf("sent on: %q\nand again: %q\n%s", wire, wireAgain, again)
		}
	})
}
