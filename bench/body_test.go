package bench

import (
	"bytes"
	"io"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// patternBytes returns what a run of the pattern is, one byte at a time.
func patternBytes(start int, size int64) []byte {
	var p []byte
	for i := range int(size) {
		p = append(p, pattern()[(start+i)%patternSize])
	}
	return p
}

func TestBodyIsItsParts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b Body
		var want []byte
		for range rapid.IntRange(0, maxRuns).Draw(t, "parts") {
			if rapid.Bool().Draw(t, "bytes") {
				p := rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "content")
				b.AddBytes(p)
				want = append(want, p...)
				continue
			}
			start := rapid.OneOf(rapid.IntRange(0, 10), rapid.IntRange(patternSize-10, patternSize+10)).Draw(t, "start")
			size := rapid.Int64Range(0, 100).Draw(t, "size")
			b.AddPattern(start, size)
			want = append(want, patternBytes(start, size)...)
		}
		if b.Size() != int64(len(want)) {
			t.Fatalf("size %d of %d bytes", b.Size(), len(want))
		}
		for range 2 {
			if err := iotest.TestReader(&b, want); err != nil {
				t.Fatal(err)
			}
			b.Rewind()
		}

		// What comes back is compared in pieces of any size, whatever was read meanwhile.
		for rest := want; len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "piece")
			if offset, ok := b.Check(rest[:n]); !ok {
				t.Fatalf("byte %d differs", offset)
			}
			_, _ = b.Read(make([]byte, 7))
			rest = rest[n:]
			if b.CheckedAll() != (len(rest) == 0) || b.Checked() != int64(len(want)-len(rest)) {
				t.Fatalf("%d of %d checked with %d left", b.Checked(), len(want), len(rest))
			}
		}
		if offset, ok := b.Check([]byte{0}); ok || offset != b.Size() {
			t.Fatalf("a byte more than %d: %d, %v", b.Size(), offset, ok)
		}
		if len(want) == 0 {
			return
		}
		b.Rewind()
		at := rapid.IntRange(0, len(want)-1).Draw(t, "wrong")
		wrong := bytes.Clone(want)
		wrong[at] ^= 1
		if offset, ok := b.Check(wrong); ok || offset != int64(at) {
			t.Fatalf("wrong byte %d: %d, %v", at, offset, ok)
		}
	})
}

func TestCheckRest(t *testing.T) {
	f := func(came int, offset int64, want bool) {
		t.Helper()
		var b Body
		b.AddBytes([]byte("ab"))
		b.AddPattern(0, 8)
		sent, err := io.ReadAll(&b)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := b.Check(sent[:came]); !ok {
			t.Fatal("differs")
		}
		if got := b.CheckRest(offset); got != want || b.CheckedAll() != (want || came == 10) {
			t.Errorf("%d bytes, then the rest from %d on: %v, all %v", came, offset, got, b.CheckedAll())
		}
	}
	f(0, 0, true)
	f(5, 5, true)
	f(10, 10, true)
	f(5, 4, false)
	f(5, 6, false)
	f(0, 10, false)
}

// A body that is made anew for each request of a load must not cost memory.
func TestBodyAllocatesNothing(t *testing.T) {
	var b Body
	head, buf := []byte("head"), make([]byte, 1000)
	n := testing.AllocsPerRun(100, func() {
		b.Reset()
		b.AddBytes(head)
		b.AddPattern(patternSize-10, 900)
		k, _ := b.Read(buf)
		if _, ok := b.Check(buf[:k]); !ok || !b.CheckedAll() {
			t.Error("differs")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
