package bench

import (
	"bytes"
	"io"
)

// patternStart returns where the body of a worker's request begins.
func patternStart(worker, request int) int {
	return (worker*104729 + request*7919) % patternSize
}

// patternReader reads a body of left bytes.
type patternReader struct {
	pos  int // in the pattern
	left int64
}

func (r *patternReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(int64(len(p)), r.left)], pattern()[r.pos:])
	r.pos = (r.pos + n) % patternSize
	r.left -= int64(n)
	return n, nil
}

// patternChecker compares a body with what was sent.
type patternChecker struct {
	pos  int
	seen int64
}

// check says whether p are the next bytes; if not, at which offset of the body the first wrong one is.
func (c *patternChecker) check(p []byte) (offset int64, ok bool) {
	for len(p) > 0 {
		want := pattern()[c.pos:]
		want = want[:min(len(want), len(p))]
		if !bytes.Equal(want, p[:len(want)]) {
			for i := range want {
				if want[i] != p[i] {
					return c.seen + int64(i), false
				}
			}
		}
		c.pos = (c.pos + len(want)) % patternSize
		c.seen += int64(len(want))
		p = p[len(want):]
	}
	return 0, true
}
