package icap

import (
	"bytes"
	"fmt"
	"testing"
)

// squidHead is what Squid 5.7 sends for a POST, with its encapsulated head.
var squidHead = func() []byte {
	inner := toWire.Replace("POST http://files.example.com/upload?id=4711 HTTP/1.1¶Content-Type: application/octet-stream¶" +
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0¶Accept: */*¶Accept-Encoding: gzip, deflate¶" +
		"Cookie: session=0123456789abcdef0123456789abcdef¶Content-Length: 1024¶Host: files.example.com¶Via: 1.1 proxy (squid/5.7)¶" +
		"X-Forwarded-For: 192.0.2.10¶Cache-Control: max-age=259200¶Connection: keep-alive¶¶")
	head := fmt.Sprintf("REQMOD icaps://gw.example.com:11344/reqmod ICAP/1.0¶Host: gw.example.com:11344¶Date: Sat, 01 Aug 2026 10:00:00 GMT¶"+
		"Encapsulated: req-hdr=0, req-body=%d¶Preview: 1024¶Allow: 204, trailers¶X-Client-IP: 192.0.2.10¶"+
		"X-Authenticated-User: bG9jYWw6Ly9hbGljZQ==¶X-Client-Username: alice¶¶", len(inner))
	return []byte(toWire.Replace(head) + inner)
}()

// headWork is what a gateway does for the heads of one request.
type headWork struct {
	scanner HeadScanner
	request Request
	blocks  BlockScanner
	out     []byte
}

func (w *headWork) run(tb testing.TB, in []byte) {
	w.scanner.Reset()
	start, end, err := w.scanner.Scan(in)
	if err == nil {
		err = w.request.Parse(in[start:end])
	}
	if err != nil {
		tb.Fatal(err)
	}
	w.blocks.Reset(w.request.Encapsulated, false)
	n, err := w.blocks.Scan(in[end:])
	if err != nil {
		tb.Fatal(err)
	}
	out := append(w.out[:0], "REQMOD icap://10.2.1.101:1344/reqmod ICAP/1.0\r\nHost: 10.2.1.101:1344\r\n"...)
	out = w.request.AppendFields(out)
	out = w.blocks.Encapsulated.AppendTo(out)
	out = append(out, "\r\n"...)
	w.out = append(out, in[end:end+n]...)
}

var serverHead = []byte("ICAP/1.0 200 OK\r\nServer: C-ICAP/0.5.10\r\nConnection: keep-alive\r\nISTag: \"CI0001-XXXXXXXXX\"\r\n" +
	"X-Violations-Found: 1\r\n\tfile.bin\r\n\tEicar\r\n\t1\r\n\t2\r\nEncapsulated: res-hdr=0, res-body=19\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")

// responseWork is headWork for a response.
type responseWork struct {
	scanner  HeadScanner
	response Response
	blocks   BlockScanner
	out      []byte
}

func (w *responseWork) run(tb testing.TB, in []byte) {
	w.scanner.Reset()
	start, end, err := w.scanner.Scan(in)
	if err == nil {
		err = w.response.Parse(in[start:end])
	}
	if err != nil {
		tb.Fatal(err)
	}
	w.blocks.Reset(w.response.Encapsulated, true)
	if _, err = w.blocks.Scan(in[end:]); err != nil {
		tb.Fatal(err)
	}
	w.out = w.response.AppendFields(w.out[:0], true)
	w.out = w.blocks.Encapsulated.AppendTo(w.out)
}

func BenchmarkRequestHead(b *testing.B) {
	var w headWork
	b.SetBytes(int64(len(squidHead)))
	b.ReportAllocs()
	for b.Loop() {
		w.run(b, squidHead)
	}
}

func BenchmarkResponseHead(b *testing.B) {
	w := responseWork{scanner: HeadScanner{LenientLF: true, Response: true}}
	b.SetBytes(int64(len(serverHead)))
	b.ReportAllocs()
	for b.Loop() {
		w.run(b, serverHead)
	}
}

// chunkedMiB is 1 MiB in chunks of size bytes; line formats a size line.
func chunkedMiB(size int, line string) []byte {
	chunk := append(fmt.Appendf(nil, line, size), bytes.Repeat([]byte{'x'}, size)...)
	chunk = append(chunk, "\r\n"...)
	return append(bytes.Repeat(chunk, 1<<20/size), "0\r\n\r\n"...)
}

// bodyReads are ways in which 1 MiB may come, in reads of the given size.
var bodyReads = []struct {
	name   string
	in     []byte
	read   int
	config BodyConfig
}{
	{"16KiB-chunks", chunkedMiB(16<<10, "%x\r\n"), 64 << 10, BodyConfig{Preview: -1}},
	{"64B-chunks", chunkedMiB(64, "%x\r\n"), 64 << 10, BodyConfig{Preview: -1}},
	{"64B-chunks-with-extension", chunkedMiB(64, "%X;a\r\n"), 64 << 10, BodyConfig{Preview: -1}},
	{"1MiB-chunk-split", chunkedMiB(1<<20, "%x\r\n"), 64 << 10, BodyConfig{Preview: -1, MaxChunk: 32 << 10}},
	{"16KiB-chunks-in-reads-of-100B", chunkedMiB(16<<10, "%x\r\n"), 100, BodyConfig{Preview: -1}},
}

func runBody(tb testing.TB, b *BodyReader, c BodyConfig, in []byte, read int, next func(*BodyReader, []byte) ([]byte, int, error)) {
	b.Reset(c)
	for len(in) > 0 {
		p := in[:min(read, len(in))]
		in = in[len(p):]
		for len(p) > 0 {
			_, n, err := next(b, p)
			if err != nil {
				tb.Fatal(err)
			}
			p = p[n:]
		}
	}
	if b.End() != EndBody || b.Payload() != 1<<20 {
		tb.Fatalf("end %d, payload %d", b.End(), b.Payload())
	}
}

func BenchmarkBody(b *testing.B) {
	for _, test := range bodyReads {
		b.Run("Next/"+test.name, func(b *testing.B) {
			var r BodyReader
			b.SetBytes(1 << 20)
			b.ReportAllocs()
			for b.Loop() {
				runBody(b, &r, test.config, test.in, test.read, (*BodyReader).Next)
			}
		})
		b.Run("NextData/"+test.name, func(b *testing.B) {
			var r BodyReader
			b.SetBytes(1 << 20)
			b.ReportAllocs()
			for b.Loop() {
				runBody(b, &r, test.config, test.in, test.read, (*BodyReader).NextData)
			}
		})
	}
}

func TestNoAllocations(t *testing.T) {
	check := func(name string, f func()) {
		t.Helper()
		f() // warm: buffers take their size
		if n := testing.AllocsPerRun(20, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
	var request headWork
	check("a request head", func() { request.run(t, squidHead) })
	response := responseWork{scanner: HeadScanner{LenientLF: true, Response: true}}
	check("a response head", func() { response.run(t, serverHead) })

	// Rarer spellings of a request head.
	rare := []byte(toWire.Replace("RESPMOD icap://u@[::1]:1?q ICAP/1.0¶Connection: a, close¶A: 1¶X: 1¶ 2¶Encapsulated: RES-HDR=0,res-body=19¶¶" + S))
	check("a rare request head", func() { request.run(t, rare) })
	cut := 0
	check("a head that comes in pieces", func() {
		request.scanner.Reset()
		for cut = 0; cut < len(squidHead); cut += 100 {
			_, _, _ = request.scanner.Scan(squidHead[:cut])
		}
	})
	var body BodyReader
	for _, test := range bodyReads {
		check("Next of "+test.name, func() { runBody(t, &body, test.config, test.in, test.read, (*BodyReader).Next) })
		check("NextData of "+test.name, func() { runBody(t, &body, test.config, test.in, test.read, (*BodyReader).NextData) })
	}
	last := []byte("0; use-original-body=18446744073709551\r\nX: y\r\n\r\nX-T: 1\r\n\r\n")
	check("a last chunk with trailers", func() {
		body.Reset(BodyConfig{Preview: -1, Response: true, Trailers: true})
		for rest := last; len(rest) > 0; {
			_, n, err := body.Next(rest)
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if body.End() != EndUseOriginal {
			t.Fatalf("end %d", body.End())
		}
	})
}
