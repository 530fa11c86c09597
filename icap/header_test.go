package icap

import (
	"bytes"
	"strings"
	"testing"
)

func TestIndexControl(t *testing.T) {
	for c := range 256 {
		for length := range 20 {
			for at := range length {
				b := bytes.Repeat([]byte{0xff}, length)
				b[at] = byte(c)
				b[length-1] = min(b[length-1], 0x7f) // one behind it, or itself
				want := length - 1
				if isControl(byte(c)) {
					want = at
				}
				if got := indexControl(b); got != want && !(at == length-1 && got == length) {
					t.Fatalf("indexControl(%x) = %d, want %d", b, got, want)
				}
			}
		}
	}
	if got := indexControl([]byte("no control character at all \x80\xff")); got != 30 {
		t.Errorf("indexControl = %d, want the length, 30", got)
	}
}

// The scanner answers as soon as the byte is there, not at the end of the line.
func TestScanIsEarly(t *testing.T) {
	for _, in := range []string{"\x16", "GET\x00", "OPTIONS icap://a/ ICAP/1.0\n", "OPTIONS\rX", strings.Repeat("x", MaxLine+1)} {
		var s HeadScanner
		if _, _, err := s.Scan([]byte(in[:len(in)-1])); err != ErrIncomplete {
			t.Errorf("%q without its last byte: %v", shorten(in), err)
		}
		if _, _, err := s.Scan([]byte(in)); err == nil || !strings.HasPrefix(describe(err), "400 ") {
			t.Errorf("%q: %v", shorten(in), err)
		}
	}
}

func TestScanLimits(t *testing.T) {
	line := "X: " + strings.Repeat("x", MaxLine-3)
	largest := strings.Repeat(line+"\r\n", 3)
	largest += "Y: " + strings.Repeat("y", MaxHead-len(largest)-len("Y: \r\n\r\n")) + "\r\n\r\n"
	fields := "S\r\n" + strings.Repeat("X: 1\r\n", MaxFields)
	for _, test := range []struct {
		name, in string
		ok       bool
	}{
		{"longest line", line + "\r\n\r\n", true},
		{"longer line", line + "x\r\n\r\n", false},
		{"largest head", largest, true},
		{"larger head", strings.Replace(largest, "Y", "YY", 1), false},
		{"largest head behind empty lines", "\r\n\r\n\r\n\r\n" + largest, true},
		{"most fields", fields + "\r\n", true},
		{"more fields", fields + "X: 1\r\n\r\n", false},
		{"folds are no fields", fields + strings.Repeat(" x\r\n", 300) + "\r\n", true},
	} {
		var s HeadScanner
		start, end, err := s.Scan([]byte(test.in))
		if ok := err == nil; ok != test.ok || ok && (end != len(test.in) || end-start > MaxHead) {
			t.Errorf("%s: %d, %d, %v", test.name, start, end, err)
		}
	}
}

func TestScannerReset(t *testing.T) {
	s := HeadScanner{LenientLF: true, Response: true}
	for range 2 {
		if start, end, err := s.Scan([]byte("\nICAP/1.0 200\n\nrest")); start != 1 || end != 15 || err != nil {
			t.Errorf("Scan = %d, %d, %v", start, end, err)
		}
		s.Reset()
	}
	if _, _, err := s.Scan([]byte{0}); err == nil || describe(err) != "502 control character in head" {
		t.Errorf("fault of a server: %v", err)
	}
}
