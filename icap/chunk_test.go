package icap

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestMalformedChunks(t *testing.T) { checkVectors(t, stream{}, malformedChunks()) }

func malformedChunks() []vector {
	const (
		noHex     = "400 chunk size is no hexadecimal number"
		junk      = "400 junk behind the chunk size"
		digits    = "400 chunk size has more than 15 digits"
		noCRLF    = "400 chunk data without CRLF behind it"
		sizeCR    = "400 bare CR in chunk size line"
		quoted    = "400 control character in a quoted chunk extension"
		noName    = "400 chunk extension without name"
		noValue   = "400 chunk extension without value"
		extJunk   = "400 junk in a chunk extension"
		extBudget = "400 too many bytes of chunk extensions"
		noColon   = "400 trailer line without colon"
		trailerCR = "400 bare CR in trailer"
		badLine   = "400 bad trailer line"
	)
	body := func(name, in, sent, message string) vector {
		const head = RL + "Encapsulated: req-body=0¶¶"
		return fault(name, head+in, head+sent, message)
	}
	preview := func(name, in, sent, message string) vector {
		const head = RL + "Preview: 4¶Encapsulated: req-body=0¶¶"
		return fault(name, head+in, head+sent, message)
	}
	return []vector{
		body("M37 minus", "-5¶hello¶0¶¶", "", noHex),
		body("M37 plus", "+5¶hello¶0¶¶", "", noHex),
		body("M37 blank-before", " 5¶hello¶0¶¶", "", noHex),
		body("M37 in-second-chunk", "5¶hello¶-5¶hello¶0¶¶", "5¶hello¶", noHex),
		body("M38 0x-chunk", "0x5¶hello¶0¶¶", "", junk),
		body("M39 16-digits", "FFFFFFFFFFFFFFFF¶", "", digits),
		body("M39 17-digits", "10000000000000005¶", "", digits),
		body("M39 40-digits", strings.Repeat("1", 40)+"¶", "", digits),
		body("M39 16-canonical-digits", "1000000000000000¶", "", digits),
		body("M40 two-words", "5 5¶hello¶0¶¶", "", junk),
		body("M40 tab-before", "\t5¶hello¶0¶¶", "", noHex),
		body("M40 vertical-tab", "5\x0b¶hello¶0¶¶", "", junk),
		body("M40 letters", "5zz¶hello¶0¶¶", "", junk),
		body("M40 nine-blanks", "5         ¶hello¶0¶¶", "", "400 more than 8 blanks behind the chunk size"),
		body("M41 empty-size", "¶5¶hello¶0¶¶", "", noHex),
		body("M42 no-crlf-after-data", "5¶helloX0¶¶", "5¶hello", noCRLF),
		body("M42 cr-alone-after-data", "5¶hello\rX0¶¶", "5¶hello", noCRLF),
		body("M43 lf-after-data", "5¶hello\n0\n\n", "5¶hello", noCRLF),
		body("M43 lf-after-size", "5\nhello¶0¶¶", "", junk),
		body("M43 lf-after-last", "5¶hello¶0\n\n", "5¶hello¶", junk),
		body("M43 lf-at-end", "5¶hello¶0¶\n", "5¶hello¶", badLine),
		body("M43 cr-alone-at-end", "5¶hello¶0¶\rX", "5¶hello¶", trailerCR),
		body("M43 cr-alone-after-size", "5\rhello¶", "", sizeCR),
		body("M44 ext-crlf-inject", "5;a=\"¶0¶¶RESPMOD icap://gw/r ICAP/1.0¶¶", "", quoted),
		body("M44 escaped-crlf", "5;a=\"\\¶\"¶hello¶0¶¶", "", quoted),
		body("M44 ext-lf", "5;a=b\n¶", "", extJunk),
		body("M44 ext-nul", "5;a\x00=b¶", "", extJunk),
		body("M44 ext-no-name", "5;¶hello¶0¶¶", "", noName),
		body("M44 ext-no-name-between", "5;a;;b¶hello¶0¶¶", "", noName),
		body("M44 ext-no-value", "5;a=¶hello¶0¶¶", "", noValue),
		body("M44 ext-two-values", "5;a=b c¶hello¶0¶¶", "", extJunk),
		body("M44 ext-behind-quotes", "5;a=\"b\"c¶hello¶0¶¶", "", extJunk),
		body("M45 ext-huge", "5;a="+strings.Repeat("x", 1<<20), "", "400 chunk size line longer than 4 KiB"),
		body("M45 zeros-huge", strings.Repeat("0", 5000), "", "400 chunk size line longer than 4 KiB"),
		body("M54 trailer-huge", "5¶hello¶0¶"+strings.Repeat("X: y¶", 4000), "5¶hello¶", "400 trailer larger than 16 KiB"),
		body("M54 trailer-line-huge", "5¶hello¶0¶X:"+strings.Repeat("y", 17<<10), "5¶hello¶", "400 trailer larger than 16 KiB"),
		body("M54 chunks-with-extensions", strings.Repeat("1;aaaaaaaa¶x¶", 10000), strings.Repeat("1¶x¶", 7332), extBudget),
		body("M46 last-chunk-garbage", "0¶X¶", "", noColon),
		body("M46 blank-before-colon", "0¶X : y¶¶", "", noColon),
		body("M46 fold-first", "0¶ X: y¶¶", "", badLine),
		body("M46 empty-name", "0¶: y¶¶", "", badLine),
		body("M46 nul-in-trailer", "0¶X: \x00¶¶", "", "400 control character in trailer"),
		body("M46 cr-in-trailer", "0¶X: a\rb¶¶", "", trailerCR),
		body("M46 next-request-garbage", "0¶¶GARBAGE¶¶", "0¶¶[body]", "400 request line is not METHOD URI ICAP/1.0"),
		preview("M33 preview-overrun", "8¶abcdefgh¶0¶¶", "", "400 more preview than declared"),
		preview("M33 preview-overrun-in-second-chunk", "2¶ab¶3¶cde¶0¶¶", "2¶ab¶", "400 more preview than declared"),
		preview("M33 ieof-with-value", "2¶ab¶0; ieof=1¶¶", "2¶ab¶", "400 ieof with a value"),
	}
}

func TestToleratedChunks(t *testing.T) { checkVectors(t, stream{}, toleratedChunks()) }

func toleratedChunks() []vector {
	head := RL + "Encapsulated: req-body=0¶¶"
	return []vector{
		{"V19 extensions", head + "5 ; a ;b = c; d=\"e;\\\"\\\\\tf\xff\" ;g=h\t¶hello¶0;x=\"0\"¶¶", head + "5¶hello¶0¶¶[body]"},
		{"V20 trailers", head + "5¶hello¶0;a¶X-T: 1¶ folded\t¶Y:¶¶", head + "5¶hello¶0¶¶[body]"},
		{"V21 many-zeros", head + strings.Repeat("0", 4000) + "5¶hello¶" + strings.Repeat("0", 4000) + "¶¶", head + "5¶hello¶0¶¶[body]"},
	}
}

// What extensions may take grows with the payload, so that a large body of a server that adds one to each chunk passes.
func TestExtensionsOfLargeBody(t *testing.T) {
	chunk := []byte("2000;chunk-signature=0123456789abcdef0123456789abcdef\r\n" + strings.Repeat("x", 8<<10) + "\r\n")
	var b BodyReader
	b.Reset(BodyConfig{Preview: -1})
	for range 10 << 10 { // 500 KB of extensions, 80 MB of payload
		for rest := chunk; len(rest) > 0; {
			_, n, err := b.NextData(rest)
			if err != nil {
				t.Fatalf("after %d bytes: %v", b.Payload(), err)
			}
			rest = rest[n:]
		}
	}
}

func TestSplitChunks(t *testing.T) {
	head := RL + "Encapsulated: req-body=0¶¶"
	checkVectors(t, stream{maxChunk: 4}, []vector{
		{"fits", head + "4¶abcd¶0¶¶", head + "4¶abcd¶0¶¶[body]"},
		{"one-more", head + "5¶abcde¶0¶¶", head + "4¶abcd¶1¶e¶0¶¶[body]"},
		{"multiple", head + "8¶abcdefgh¶4¶ijkl¶0¶¶", head + "4¶abcd¶4¶efgh¶4¶ijkl¶0¶¶[body]"},
		{"many", head + "1A;x¶abcdefghijklmnopqrstuvwxyz¶0¶¶", head + "4¶abcd¶4¶efgh¶4¶ijkl¶4¶mnop¶4¶qrst¶4¶uvwx¶2¶yz¶0¶¶[body]"},
		{"cut", head + "5¶abcde", head + "4¶abcd¶1¶e[more]"},
	})
}

// A buffer of canonical chunks comes back as one run of itself, in one call.
func TestCanonicalRun(t *testing.T) {
	tests := []struct {
		name, in string
		config   BodyConfig
		end      BodyEnd
	}{
		{"chunks", "3e8¶" + strings.Repeat("x", 1000) + "¶1¶y¶ff¶" + strings.Repeat("z", 255) + "¶0¶¶", BodyConfig{Preview: -1}, EndBody},
		{"empty", "0¶¶", BodyConfig{Preview: -1}, EndBody},
		{"preview", "4¶abcd¶0¶¶", BodyConfig{Preview: 4}, EndPreview},
		{"ieof", "4¶abcd¶0; ieof¶¶", BodyConfig{Preview: 5}, EndIeof},
		{"response", "4¶abcd¶0¶¶", BodyConfig{Preview: -1, Response: true}, EndBody},
		{"plain-where-there-is-no-preview", "4¶abcd¶0¶¶", BodyConfig{Preview: -1, Plain: true}, EndBody},
		{"chunk-goes-on", "ffffffffffff¶abcd", BodyConfig{Preview: -1}, EndNone},
		{"largest", "4¶abcd¶4¶abcd¶0¶¶", BodyConfig{Preview: -1, MaxChunk: 4}, EndBody},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			in := []byte(toWire.Replace(test.in))
			var b BodyReader
			b.Reset(test.config)
			out, n, err := b.Next(append(in, "next"...)[:len(in)])
			if err != nil || n != len(in) || len(out) != len(in) || !bytes.Equal(out, in) || b.End() != test.end {
				t.Fatalf("Next = %q, %d, %v, end %d", out, n, err, b.End())
			}
			if out, n, err := b.Next(nil); len(out) != 0 || n != 0 || err != nil {
				t.Errorf("Next(nil) = %q, %d, %v", out, n, err)
			}
		})
	}
}

func TestNextAliases(t *testing.T) {
	in := []byte("5\r\nhello\r\n0\r\n\r\n")
	var b BodyReader
	b.Reset(BodyConfig{Preview: -1})
	if out, _, _ := b.Next(in); &out[0] != &in[0] {
		t.Error("Next copied canonical input")
	}
	b.Reset(BodyConfig{Preview: -1})
	if data, n, _ := b.NextData(in); string(data) != "hello" || n != 8 || &data[0] != &in[3] {
		t.Errorf("NextData = %q, %d", data, n)
	}
}

// Bytes behind the end belong to the next message.
func TestBytesBehindTheEnd(t *testing.T) {
	for _, last := range []string{"0\r\n\r\n", "00\r\n\r\n", "0\r\nX: y\r\n\r\n"} {
		in := []byte(last + "OPTIONS")
		var b BodyReader
		b.Reset(BodyConfig{Preview: -1})
		out, n, err := b.Next(in)
		if string(out) != "0\r\n\r\n" || n != len(last) || err != nil || b.End() != EndBody {
			t.Errorf("%q: Next = %q, %d, %v", last, out, n, err)
		}
		if out, n, err := b.Next(in[n:]); len(out) != 0 || n != 0 || err != nil {
			t.Errorf("%q: Next behind the end = %q, %d, %v", last, out, n, err)
		}
		if data, n, err := b.NextData(in[n:]); len(data) != 0 || n != 0 || err != nil {
			t.Errorf("%q: NextData behind the end = %q, %d, %v", last, data, n, err)
		}
	}
}

func TestFaultIsFinal(t *testing.T) {
	for _, response := range []bool{false, true} {
		var b BodyReader
		b.Reset(BodyConfig{Preview: -1, Response: response})
		_, _, first := b.Next([]byte("x"))
		_, n, again := b.Next([]byte("5\r\nhello\r\n"))
		_, m, data := b.NextData([]byte("5\r\nhello\r\n"))
		want := map[bool]string{false: "400", true: "502"}[response] + " chunk size is no hexadecimal number"
		if first == nil || describe(first) != want || again != first || data != first || n != 0 || m != 0 || b.End() != EndNone {
			t.Errorf("faults %v, %v, %v, want %s; consumed %d, %d", first, again, data, want, n, m)
		}
	}
}

// Payload that is moved without being looked at (splice) is announced by Rest and reported by Skip.
func TestSkip(t *testing.T) {
	for _, maxChunk := range []int64{0, 4 << 20} {
		const size = 5 << 30
		var b BodyReader
		b.Reset(BodyConfig{Preview: -1, MaxChunk: maxChunk})
		var moved, pieces uint64
		var emitted []byte
		out, n, err := b.Next(fmt.Appendf(nil, "%x\r\n", uint64(size)))
		for err == nil && b.Payload() < size {
			emitted = append(emitted, out...)
			pieces++
			moved += b.Rest()
			b.Skip(b.Rest() - 1)
			b.Skip(1)
			b.Skip(0)
			out, n, err = b.Next(nil)
		}
		if err != nil || n != 0 || moved != size || b.Rest() != 0 {
			t.Fatalf("moved %d, rest %d, consumed %d, %v", moved, b.Rest(), n, err)
		}
		want := "140000000\r\n"
		if maxChunk > 0 {
			want = "400000\r\n" + strings.Repeat("\r\n400000\r\n", size/(4<<20)-1)
		}
		if string(emitted) != want {
			t.Errorf("max %d: %d pieces, emitted %q", maxChunk, pieces, shorten(string(emitted)))
		}
		b.Skip(0)
		if out, _, err := b.Next([]byte("\r\n0\r\n\r\n")); string(out) != "\r\n0\r\n\r\n" || err != nil || b.End() != EndBody {
			t.Errorf("end = %q, %v", out, err)
		}
	}
}

func TestSkipTooFar(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	var b BodyReader
	b.Reset(BodyConfig{Preview: -1})
	b.Next([]byte("5\r\n"))
	b.Skip(6)
}

// A gateway that no longer sends a body on may go over from Next to NextData, in the middle of a split chunk too.
func TestNextThenNextData(t *testing.T) {
	in := []byte("a\r\n0123456789\r\n5\r\nhello\r\n0\r\n\r\n")
	for first := 0; first <= len(in); first++ {
		var b BodyReader
		b.Reset(BodyConfig{Preview: -1, MaxChunk: 4})
		rest := in
		for len(in)-len(rest) < first {
			_, n, err := b.Next(rest[:first-(len(in)-len(rest))])
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		for len(rest) > 0 {
			_, n, err := b.NextData(rest)
			if err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if b.End() != EndBody || b.Payload() != 15 || b.Rest() != 0 {
			t.Errorf("after %d bytes of Next: end %d, payload %d, rest %d", first, b.End(), b.Payload(), b.Rest())
		}
	}
}
