package icap

import (
	"bytes"
	"strconv"
)

// MaxBlocks limits the encapsulated header blocks of a message together, in bytes.
const MaxBlocks = 1 << 20

// Section is a member of an Encapsulated list. Their order is the order on the wire; a list has one body at most.
type Section uint8

const (
	NoSection Section = iota
	ReqHdr
	ResHdr
	ReqBody
	ResBody
	OptBody
	NullBody
)

var sectionNames = [...]string{"", "req-hdr", "res-hdr", "req-body", "res-body", "opt-body", "null-body"}

func (s Section) String() string { return sectionNames[s] }

func sectionOf(name []byte) Section {
	for s := ReqHdr; s <= NullBody; s++ {
		if equalFold(name, sectionNames[s]) {
			return s
		}
	}
	return NoSection
}

// Encapsulated is a parsed Encapsulated field: at most two header blocks and one body, which is last.
// The zero value means that the field was absent.
type Encapsulated struct {
	sections [3]Section
	offsets  [3]int
	n        int8
	inferred bool // the first section was not listed; its block has to end exactly at the next offset
}

func (e *Encapsulated) isZero() bool { return e.n == 0 }

// heads returns the number of header blocks.
func (e *Encapsulated) heads() int { return max(int(e.n)-1, 0) }

// HeadLen returns the number of bytes of encapsulated header blocks, which is the offset of the body.
func (e *Encapsulated) HeadLen() int { return e.offsets[e.heads()] }

// Body returns the body section: ReqBody, ResBody, OptBody, NullBody or NoSection.
func (e *Encapsulated) Body() Section { return e.sections[e.heads()] }

// HasBody says whether chunks follow the header blocks.
func (e *Encapsulated) HasBody() bool { return e.n > 0 && e.Body() != NullBody }

// AppendTo appends the canonical field line: "Encapsulated: req-hdr=0, req-body=28\r\n" (nothing for the zero value).
func (e *Encapsulated) AppendTo(dst []byte) []byte {
	if e.isZero() {
		return dst
	}
	separator := "Encapsulated: "
	for i := range e.n {
		dst = append(dst, separator...)
		dst = append(dst, e.sections[i].String()...)
		dst = append(dst, '=')
		dst = strconv.AppendInt(dst, int64(e.offsets[i]), 10)
		separator = ", "
	}
	return append(dst, "\r\n"...)
}

// Unchanged returns the list of an answer that gives the message of a request back as it is, and how many bytes of the request's blocks are not in
// it: an answer to a RESPMOD has no request head (RFC 3507 4.9.2).
func (e *Encapsulated) Unchanged(m Method) (list Encapsulated, skip int) {
	for i := range e.n {
		if m == MethodRespmod && e.sections[i] == ReqHdr {
			skip = e.offsets[i+1]
			continue
		}
		list.sections[list.n], list.offsets[list.n] = e.sections[i], e.offsets[i]-skip
		list.n++
	}
	return list, skip
}

// parseEncapsulated reads the list of a request: in order, offsets from 0 strictly increasing, a body at the end.
func parseEncapsulated(value []byte) (e Encapsulated, err error) {
	if err = e.parseList(value, false); err == nil {
		err = e.check()
	}
	return e, err
}

// parseEncapsulatedResponse reads the list of a response. Blanks do not matter, members may be in any order, the entry of the
// first block may be missing where it can only be one, and behind the head of a response only its body can come. A list that announces nothing at all becomes "null-body=0".
func parseEncapsulatedResponse(value []byte) (e Encapsulated, err error) {
	if err = e.parseList(value, true); err != nil {
		return e, err
	}
	e.sort()
	if e.n > 0 && e.Body() == NullBody && e.HeadLen() == 0 {
		return Encapsulated{sections: [3]Section{NullBody}, n: 1}, nil
	}
	e.inferFirst()
	e.correctBody()
	return e, e.check()
}

// parseList reads member *("," member), member = name "=" digits, with blanks around the members. lenient allows blanks around "="
// and empty members.
func (e *Encapsulated) parseList(list []byte, lenient bool) error {
	for more := true; more; {
		var member []byte
		member, list, more = bytes.Cut(list, comma)
		if member = trim(member); len(member) == 0 && lenient {
			continue
		}
		name, digits, ok := bytes.Cut(member, []byte("="))
		if !ok {
			return badRequest("member of Encapsulated without offset")
		}
		if lenient {
			name, digits = trim(name), trim(digits)
		}
		section := sectionOf(name)
		if section == NoSection {
			return badRequest("unknown member of Encapsulated")
		}
		offset, ok := parseDecimal(digits, MaxBlocks)
		if !ok || len(digits) > 10 {
			return badRequest("bad offset in Encapsulated (digits, at most 1 MiB)")
		}
		if int(e.n) == len(e.sections) {
			return badRequest("too many members in Encapsulated")
		}
		e.sections[e.n], e.offsets[e.n] = section, int(offset)
		e.n++
	}
	return nil
}

// sort puts the members into the order of their offsets, sections of equal offset into that of the wire.
func (e *Encapsulated) sort() {
	for i := 1; i < int(e.n); i++ {
		for j := i; j > 0; j-- {
			if e.offsets[j-1] < e.offsets[j] || e.offsets[j-1] == e.offsets[j] && e.sections[j-1] <= e.sections[j] {
				break
			}
			e.sections[j-1], e.sections[j] = e.sections[j], e.sections[j-1]
			e.offsets[j-1], e.offsets[j] = e.offsets[j], e.offsets[j-1]
		}
	}
}

// inferFirst inserts the block that stands before the first listed one. Only one kind can stand before a response head or
// a body of known kind.
func (e *Encapsulated) inferFirst() {
	if e.n == 0 || e.offsets[0] == 0 {
		return
	}
	var missing Section
	switch e.sections[0] {
	case ReqHdr: // nothing can stand before it: the offset is wrong
		e.offsets[0] = 0
		return
	case ResHdr, ReqBody:
		missing = ReqHdr
	case ResBody:
		missing = ResHdr
	}
	if missing == NoSection || int(e.n) == len(e.sections) {
		return
	}
	copy(e.sections[1:], e.sections[:e.n])
	copy(e.offsets[1:], e.offsets[:e.n])
	e.sections[0], e.offsets[0] = missing, 0
	e.n++
	e.inferred = true
}

// correctBody makes a req-body behind the head of a response a res-body: so e2guardian names it on a connection that has carried a REQMOD.
func (e *Encapsulated) correctBody() {
	if n := e.heads(); n > 0 && e.sections[n-1] == ResHdr && e.sections[n] == ReqBody {
		e.sections[n] = ResBody
	}
}

// check wants what every list has to obey.
func (e *Encapsulated) check() error {
	switch {
	case e.n == 0:
		return badRequest("empty Encapsulated")
	case e.offsets[0] != 0:
		return badRequest("first offset in Encapsulated is not 0")
	case e.Body() < ReqBody:
		return badRequest("Encapsulated without a body at its end")
	}
	for i := 1; i < int(e.n); i++ {
		if e.offsets[i] <= e.offsets[i-1] {
			return badRequest("offsets in Encapsulated do not increase")
		}
		if e.sections[i-1] > ResHdr || e.sections[i-1] >= e.sections[i] {
			return badRequest("members of Encapsulated in wrong order or twice")
		}
	}
	return nil
}

// checkRequest wants a list that the method allows. An unknown method may have any list, so that its body can be drained.
func (e *Encapsulated) checkRequest(m Method) error {
	if e.isZero() {
		if m == MethodReqmod || m == MethodRespmod {
			return badRequest("request without Encapsulated")
		}
		return nil
	}
	body, last := e.Body(), NoSection
	if heads := e.heads(); heads > 0 {
		last = e.sections[heads-1]
	}
	ok := true
	switch m {
	case MethodOptions:
		ok = e.n == 1 && (body == OptBody || body == NullBody)
	case MethodReqmod:
		ok = last <= ReqHdr && (body == ReqBody || body == NullBody)
	case MethodRespmod:
		ok = body == ResBody || body == NullBody
	}
	if !ok {
		return badRequest("Encapsulated does not fit the method")
	}
	return nil
}

// BlockScanner walks over the encapsulated header blocks. Strict (requests): every block's first empty line must be exactly where the
// list says. Lenient (responses): the real empty lines decide and the offsets are recomputed.
type BlockScanner struct {
	Encapsulated Encapsulated // after success: canonical, offsets as they really are
	Corrected    bool         // lenient: the offsets had to be recomputed, or the list completed

	lenient bool
	block   int // index of the current block
	start   int // of the current block
	line    int // of the current line
	pos     int // next byte to look at
}

// Reset makes the scanner ready for the blocks of e.
func (s *BlockScanner) Reset(e Encapsulated, lenient bool) {
	*s = BlockScanner{Encapsulated: e, lenient: lenient}
}

// Scan looks at buf, which holds everything received after the ICAP head, and returns the length of all blocks together.
// ErrIncomplete: call again with buf grown (it remembers how far it looked). Blocks together are at most 1 MiB.
func (s *BlockScanner) Scan(buf []byte) (n int, err error) {
	if s.lenient {
		err = inResponse(s.scanLenient(buf))
	} else {
		err = s.scanStrict(buf)
	}
	if err != nil {
		return 0, err
	}
	return s.Encapsulated.HeadLen(), nil
}

func (s *BlockScanner) scanStrict(buf []byte) error {
	for s.block < s.Encapsulated.heads() {
		want := s.Encapsulated.offsets[s.block+1]
		found, canonical := s.emptyLine(buf, want)
		switch {
		case found && s.pos < want:
			return badRequest("encapsulated head ends before its offset")
		case found && s.pos == want && !canonical:
			return badRequest("encapsulated head ends with a bare LF")
		case !found && len(buf) < want:
			return ErrIncomplete
		case !found || s.pos > want:
			return badRequest("encapsulated head does not end at its offset")
		}
		s.next()
	}
	return nil
}

func (s *BlockScanner) scanLenient(buf []byte) error {
	e := &s.Encapsulated
	for s.block < e.heads() {
		found, _ := s.emptyLine(buf, MaxBlocks)
		if s.pos > MaxBlocks || !found && len(buf) > MaxBlocks {
			return badRequest("encapsulated heads larger than 1 MiB")
		}
		if !found {
			return ErrIncomplete
		}
		if e.offsets[s.block+1] != s.pos {
			if e.inferred {
				return badRequest("incomplete Encapsulated does not fit the blocks")
			}
			e.offsets[s.block+1] = s.pos
			s.Corrected = true
		}
		s.next()
	}
	s.Corrected = s.Corrected || e.inferred
	e.inferred = false
	return nil
}

// emptyLine looks for the first empty line of the current block, as a tolerant reader sees it, and leaves pos behind it. It gives up
// behind limit. canonical says that it is CRLF and comes after CRLF or as the first line of the block.
func (s *BlockScanner) emptyLine(buf []byte, limit int) (found, canonical bool) {
	for s.pos <= limit {
		i := bytes.IndexByte(buf[s.pos:], '\n')
		if i < 0 {
			s.pos = len(buf)
			return false, false
		}
		line := buf[s.line : s.pos+i]
		first := s.line == s.start
		s.pos += i + 1
		crlf := string(line) == "\r"
		if crlf || len(line) == 0 {
			return true, crlf && (first || buf[s.line-2] == '\r')
		}
		s.line = s.pos
	}
	return false, false
}

func (s *BlockScanner) next() {
	s.block++
	s.start, s.line = s.pos, s.pos
}
