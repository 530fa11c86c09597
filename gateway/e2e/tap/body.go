package tap

import (
	"bytes"
	"crypto/sha256"
	"hash"
	"regexp"
	"strconv"
	"strings"
)

// maxLine limits a size line or the line of a trailer, in bytes.
const maxLine = 16 << 10

// Body says what has passed of a body, or of encapsulated heads.
type Body struct {
	Size  int64
	Sum   [sha256.Size]byte // of the payload; valid when it is complete
	Parts int               // chunks, or heads
}

// chunks reads a chunked body.
type chunks struct {
	state    chunkState
	line     []byte // unfinished line
	left     uint64 // of the chunk's data
	last     string // what stands behind the 0 of the last chunk
	trailers int    // lines of them
	most     int    // bytes that a preview may have; -1: it is none
	hash     hash.Hash
	body     Body
}

type chunkState uint8

const (
	inSize chunkState = iota
	inData
	behindData // its CR LF
	inTrailer  // lines up to the empty one
)

func (c *chunks) reset(preview int) {
	*c = chunks{line: c.line[:0], most: preview, hash: sha256.New()}
}

// resume goes on behind the end of a preview.
func (c *chunks) resume() {
	c.state, c.line, c.last, c.most = inSize, c.line[:0], "", -1
}

// feed takes what belongs to the body. done: its end is in p[:n]; !ok: it can't be read in one way only.
func (c *chunks) feed(p []byte, limit uint64, complain complain) (n int, done, ok bool) {
	for n < len(p) {
		if c.state == inData {
			k := min(c.left, uint64(len(p)-n))
			c.hash.Write(p[n : n+int(k)])
			c.body.Size += int64(k)
			n += int(k)
			if c.left -= k; c.left == 0 {
				c.state = behindData
			}
			continue
		}
		k := bytes.IndexByte(p[n:], '\n')
		if k < 0 {
			k = len(p) - n - 1
		}
		c.line = append(c.line, p[n:n+k+1]...)
		n += k + 1
		if c.state == behindData && !strings.HasPrefix("\r\n", string(c.line)) {
			complain(ChunkEnd, "%.40q", c.line)
			return n, false, false
		}
		if c.line[len(c.line)-1] != '\n' {
			if len(c.line) > maxLine {
				complain(ChunkSize, "a line of more than %d bytes", maxLine)
				return n, false, false
			}
			continue
		}
		if done, ok := c.endLine(limit, complain); done || !ok {
			return n, done, ok
		}
		c.line = c.line[:0]
	}
	return n, false, true
}

// endLine takes a whole line.
func (c *chunks) endLine(limit uint64, complain complain) (done, ok bool) {
	line, crlf := strings.CutSuffix(string(c.line), "\r\n")
	if !crlf || strings.ContainsAny(line, "\r\x00") {
		complain(LineEnd, "%.40q in a body", c.line)
		return false, false
	}
	switch c.state {
	case behindData:
		c.state = inSize
	case inSize:
		return false, c.size(line, limit, complain)
	case inTrailer:
		if line == "" {
			c.hash.Sum(c.body.Sum[:0])
			return true, true
		}
		complain(Trailer, "%.80q", line)
		if c.trailers++; c.trailers > 1 && (line[0] == ' ' || line[0] == '\t') {
			return false, true // goes on with the one before
		}
		_, ok := parseField(line, func(Rule, string, ...any) {})
		return false, ok
	}
	return false, true
}

// sizeLine is a size, what may stand behind it, and well-formed extensions.
var (
	sizeLine  = regexp.MustCompile(`^0*([0-9A-Fa-f]{1,15})[ \t]*((?:;[ \t]*[-!#$%&'*+.^_` + "`" + `|~0-9A-Za-z]+[ \t]*(?:=[ \t]*(?:[-!#$%&'*+.^_` + "`" + `|~0-9A-Za-z]+|"(?:[^"\\]|\\.)*"))?[ \t]*)*)$`)
	extension = regexp.MustCompile(`(?i);[ \t]*(ieof|use-original-body=[0-9]+)[ \t]*(?:;|$)`)
)

func (c *chunks) size(line string, limit uint64, complain complain) (ok bool) {
	m := sizeLine.FindStringSubmatch(line)
	if m == nil {
		complain(ChunkSize, "%.40q", line)
		return false
	}
	c.left, _ = strconv.ParseUint(m[1], 16, 64)
	digits := strconv.FormatUint(c.left, 16)
	if !strings.HasPrefix(line, digits) || len(line) > len(digits) && line[len(digits)] != ';' {
		complain(ChunkSize, "%.40q", line)
	}
	if c.left > 0 {
		c.state = inData
		c.body.Parts++
		if m[2] != "" {
			complain(Extension, "%.40q", line)
		}
		if c.most >= 0 && c.body.Size+int64(c.left) > int64(c.most) {
			complain(PreviewSize, "%d bytes, %d are announced", c.body.Size+int64(c.left), c.most)
			return false
		}
		if limit > 0 && c.left > limit {
			complain(ChunkLimit, "%d bytes, at most %d are configured", c.left, limit)
		}
		return true
	}
	c.state = inTrailer
	if e := extension.FindStringSubmatch(m[2]); e != nil {
		c.last = strings.ToLower(e[1])
	}
	if m[2] != "" && m[2] != "; "+c.last {
		complain(Extension, "%.40q", line)
	}
	return true
}

// block reads one encapsulated head, whose length is known: only whether it ends there by itself, too.
type block struct {
	left int
	tail [4]byte // its last bytes
	size int
}

func (b *block) reset(size int) { *b = block{left: size} }

func (b *block) feed(p []byte, complain complain) (n int, ok bool) {
	for n < len(p) && b.left > 0 {
		b.tail = [4]byte{b.tail[1], b.tail[2], b.tail[3], p[n]}
		b.left--
		b.size++
		n++
		ends := string(b.tail[:]) == "\r\n\r\n" || b.size == 2 && string(b.tail[2:]) == "\r\n"
		if ends != (b.left == 0) && (ends || b.left == 0) {
			complain(Blocks, "an encapsulated head of %d bytes has its empty line at %d", b.size+b.left, b.size)
			return n, false
		}
	}
	return n, true
}
