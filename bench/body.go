package bench

import (
	"bytes"
	"io"
	"math/rand/v2"
	"sync"
)

// The bodies of a load are runs of one endless pattern, each request's from another place, so that bytes of one
// request that turn up in another's answer are noticed, and a body of any size needs no memory.

// patternSize is the period of the pattern in bytes: a prime, so that shifts by usual buffer sizes do not hide.
const patternSize = 1048573

// pattern returns one period.
var pattern = sync.OnceValue(func() []byte {
	p := make([]byte, patternSize)
	rng := rand.New(rand.NewPCG(3507, 1344))
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
})

// maxRuns bounds the parts of a Body: a form has its head, the file and its end.
const maxRuns = 4

// Body is the body of one request: runs of bytes, one after the other, each read over and over from a buffer (the endless pattern, a form's
// boundary, a file in memory), so that a body of any size needs no memory and what comes back can be compared byte by byte. The zero
// value is empty. Reading and checking have places of their own: one goroutine may read while another checks.
type Body struct {
	runs    [maxRuns]run
	count   int // of the runs
	size    int64
	read    place
	checked place
}

// run is size bytes of a buffer that is taken to go on and on, from the byte at start.
type run struct {
	buffer []byte
	start  int
	size   int64
}

// place is a position in a Body.
type place struct {
	run    int
	within int64 // the run
	total  int64 // from the beginning of the body
}

// PatternBody returns a body of size bytes of the pattern: another one for each start up to patternSize.
func PatternBody(start int, size int64) io.Reader {
	b := new(Body)
	b.AddPattern(start, size)
	return b
}

// Reset makes the body empty.
func (b *Body) Reset() { *b = Body{} }

// Rewind lets it be read and checked from the beginning again.
func (b *Body) Rewind() { b.read, b.checked = place{}, place{} }

// AddPattern adds size bytes of the pattern, from any place >= 0.
func (b *Body) AddPattern(start int, size int64) { b.add(run{pattern(), start % patternSize, size}) }

// AddBytes adds p, which is not copied.
func (b *Body) AddBytes(p []byte) { b.add(run{p, 0, int64(len(p))}) }

func (b *Body) add(r run) {
	if r.size <= 0 {
		return
	}
	if b.count == maxRuns {
		panic("BUG: bench: a body of too many parts")
	}
	b.runs[b.count] = r
	b.count++
	b.size += r.size
}

// Size returns how many bytes the body has.
func (b *Body) Size() int64 { return b.size }

// Read gives the next bytes.
func (b *Body) Read(p []byte) (n int, err error) {
	for n < len(p) {
		next := b.next(&b.read, len(p)-n)
		if len(next) == 0 {
			return n, io.EOF
		}
		n += copy(p[n:], next)
	}
	return n, nil
}

// next returns the bytes at a place, at most so many, and moves it behind them; none at the end.
func (b *Body) next(at *place, most int) []byte {
	for at.run < b.count {
		r := &b.runs[at.run]
		if left := r.size - at.within; left > 0 {
			from := int((int64(r.start) + at.within) % int64(len(r.buffer)))
			next := r.buffer[from : from+int(min(int64(most), left, int64(len(r.buffer)-from)))]
			at.within += int64(len(next))
			at.total += int64(len(next))
			return next
		}
		at.run, at.within = at.run+1, 0
	}
	return nil
}

// Check compares the next bytes that came back with the body. If they are not the same, offset is that of the first one in the body that
// differs; its size, if the body is over.
func (b *Body) Check(p []byte) (offset int64, ok bool) {
	for len(p) > 0 {
		before := b.checked.total
		want := b.next(&b.checked, len(p))
		if len(want) == 0 {
			return before, false
		}
		if !bytes.Equal(want, p[:len(want)]) {
			for i := range want {
				if want[i] != p[i] {
					return before + int64(i), false
				}
			}
		}
		p = p[len(want):]
	}
	return 0, true
}

// CheckRest says that the rest is the original's from offset on, as a 206 does. It is the body's only if exactly the bytes before offset have
// come back; the whole body counts as checked then.
func (b *Body) CheckRest(offset int64) bool {
	if b.checked.total != offset {
		return false
	}
	b.checked = place{run: b.count, total: b.size}
	return true
}

// Checked returns how many bytes have come back so far.
func (b *Body) Checked() int64 { return b.checked.total }

// CheckedAll says whether that is the whole body.
func (b *Body) CheckedAll() bool { return b.checked.total == b.size }
