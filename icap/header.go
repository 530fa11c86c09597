package icap

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

// Limits of an ICAP head, in bytes (fields: in lines that are no folds).
const (
	MaxLine       = 16 << 10 // one line, without its end
	MaxHead       = 64 << 10 // request or status line and all fields, the empty line included
	MaxFields     = 200
	maxEmptyLines = 4  // before the first line
	maxNamed      = 64 // members of all Connection fields of a head
)

// HeadScanner finds the end of an ICAP head and checks, byte by byte, what needs no meaning: line ends, control
// characters, sizes. The zero value is ready for requests. It remembers how far it has looked, so each byte is looked at once.
type HeadScanner struct {
	LenientLF bool // a bare LF ends a line too (servers; clients only where configured)
	Response  bool // faults are those of a server (status 502)

	start  int // of the first line that is not empty
	line   int // of the current line
	pos    int // next byte to look at
	empty  int // empty lines before start
	fields int
}

// Reset makes the scanner ready for the next head; LenientLF and Response stay.
func (s *HeadScanner) Reset() {
	*s = HeadScanner{LenientLF: s.LenientLF, Response: s.Response}
}

// Scan looks at buf, which holds everything received from the first byte of the head on.
// The head is buf[start:end], its empty line included; start skips up to 4 leading empty lines.
// ErrIncomplete: call again with buf grown. A *ProtocolError is final.
func (s *HeadScanner) Scan(buf []byte) (start, end int, err error) {
	end, err = s.scan(buf)
	if s.Response {
		err = inResponse(err)
	}
	return s.start, end, err
}

func (s *HeadScanner) scan(buf []byte) (end int, err error) {
	for {
		s.pos += indexControl(buf[s.pos:])
		if s.pos-s.line > MaxLine {
			return 0, badRequest("head line longer than 16 KiB")
		}
		if s.pos-s.start > MaxHead {
			return 0, badRequest("head larger than 64 KiB")
		}
		if s.pos == len(buf) {
			return 0, ErrIncomplete
		}
		next := s.pos + 1
		switch buf[s.pos] {
		case '\t':
			s.pos = next
			continue
		case '\n':
			if !s.LenientLF {
				return 0, badRequest("bare LF in head")
			}
		case '\r':
			if next == len(buf) {
				return 0, ErrIncomplete
			}
			if buf[next] != '\n' {
				return 0, badRequest("bare CR in head")
			}
			next++
		default:
			return 0, badRequest("control character in head")
		}
		done, err := s.endLine(buf, next)
		if done || err != nil {
			return next, err
		}
	}
}

// endLine counts the line buf[s.line:s.pos] and goes on to the next one; it says whether the line ended the head.
func (s *HeadScanner) endLine(buf []byte, next int) (done bool, err error) {
	empty, first := s.pos == s.line, s.line == s.start
	switch {
	case empty && first:
		if s.empty++; s.empty > maxEmptyLines {
			return false, badRequest("too many empty lines before the head")
		}
		s.start = next
	case next-s.start > MaxHead:
		return false, badRequest("head larger than 64 KiB")
	case empty:
		return true, nil
	case !first && !isBlank(buf[s.line]):
		if s.fields++; s.fields > MaxFields {
			return false, badRequest("more than 200 fields")
		}
	}
	s.line, s.pos = next, next
	return false, nil
}

// indexControl returns the index of the first control character in b, len(b) if there is none. It takes 8 bytes at a time.
func indexControl(b []byte) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(b); i += 8 {
		x := binary.LittleEndian.Uint64(b[i:])
		del := x ^ ones*0x7f
		// The lowest bit that is set is exact; a borrow can spoil higher ones only.
		if m := ((x-ones*0x20)&^x | (del-ones)&^del) & highs; m != 0 {
			return i + bits.TrailingZeros64(m)/8
		}
	}
	for ; i < len(b); i++ {
		if isControl(b[i]) {
			return i
		}
	}
	return i
}

// Field is one header field, without its line end. Name and Value alias the parsed head.
// Value has no white space around it; inside it keeps obs-folds (CRLF + SP/TAB) as received.
type Field struct {
	Name, Value []byte
	kind        fieldKind
	folded      bool
}

// fieldKind says what a field means to this package.
type fieldKind uint8

const (
	otherField fieldKind = iota
	hopField             // never goes on to the next hop
	allowField
	connectionField
	encapsulatedField
	hostField
	istagField
	previewField
	trailerField
)

func kindOf(name []byte) fieldKind {
	switch len(name) {
	case 2:
		return kindIf(name, "te", hopField)
	case 4:
		return kindIf(name, "host", hostField)
	case 5:
		return kindIf(name, "allow", allowField) | kindIf(name, "istag", istagField)
	case 7:
		return kindIf(name, "preview", previewField) | kindIf(name, "trailer", trailerField) | kindIf(name, "upgrade", hopField)
	case 10:
		return kindIf(name, "connection", connectionField) | kindIf(name, "keep-alive", hopField)
	case 12:
		return kindIf(name, "encapsulated", encapsulatedField)
	case 14:
		return kindIf(name, "content-length", hopField)
	case 16:
		return kindIf(name, "proxy-connection", hopField)
	case 17:
		return kindIf(name, "transfer-encoding", hopField)
	}
	return otherField
}

func kindIf(name []byte, want string, kind fieldKind) fieldKind {
	if equalFold(name, want) {
		return kind
	}
	return otherField
}

// cutLine splits b after its first line and returns it without its end. ok is false if no line is complete.
func cutLine(b []byte) (line, rest []byte, ok bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		return nil, nil, false
	}
	line, rest = b[:i], b[i+1:]
	if i > 0 && line[i-1] == '\r' {
		line = line[:i-1]
	}
	return line, rest, true
}

// parseFields appends the fields of block, which begins after the first line and ends with the empty line. HeadScanner has seen
// to line ends, control characters and the number of fields.
func parseFields(fields []Field, block []byte) ([]Field, error) {
	for {
		line, rest, ok := cutLine(block)
		if !ok {
			return fields, badRequest("head without an empty line")
		}
		if len(line) == 0 {
			return fields, nil
		}
		if isBlank(line[0]) {
			return fields, badRequest("folded line without a field")
		}
		colon := tokenLen(line)
		if colon == len(line) {
			return fields, badRequest("field without colon")
		}
		if colon == 0 || line[colon] != ':' {
			return fields, badRequest("bad field name")
		}
		f := Field{Name: line[:colon]}
		end := len(line)
		for len(rest) > 0 && isBlank(rest[0]) {
			f.folded = true
			line, next, ok := cutLine(rest)
			if !ok {
				return fields, badRequest("head without an empty line")
			}
			end = len(block) - len(rest) + len(line)
			rest = next
		}
		f.Value = trim(block[colon+1 : end])
		f.kind = kindOf(f.Name)
		fields = append(fields, f)
		block = rest
	}
}

// applyConnection reads all Connection fields: it says whether one of them has "close" and turns the fields that they name into
// hop-by-hop ones. Fields that this package gives a meaning to keep it, whatever Connection says.
func applyConnection(fields []Field) (closes bool, err error) {
	named := 0
	for i := range fields {
		if fields[i].kind != connectionField {
			continue
		}
		for member, rest := cutMember(fields[i].Value); member != nil; member, rest = cutMember(rest) {
			if named++; named > maxNamed {
				return closes, badRequest("more than 64 names in Connection")
			}
			switch {
			case equalFold(member, "close"):
				closes = true
			case !equalFold(member, "keep-alive"):
				dropNamed(fields, member)
			}
		}
	}
	return closes, nil
}

func dropNamed[T []byte | string](fields []Field, name T) {
	for i := range fields {
		if f := &fields[i]; len(f.Name) == len(name) && f.kind == otherField && equalFold(f.Name, name) {
			f.kind = hopField
		}
	}
}

func dropPrefixed(fields []Field, prefix string, but []string) {
	for i := range fields {
		if f := &fields[i]; f.kind == otherField && begins(f.Name, prefix) && !beginsAny(f.Name, but) {
			f.kind = hopField
		}
	}
}

// begins says whether a name begins so, in any case.
func begins(name []byte, prefix string) bool {
	return len(name) >= len(prefix) && equalFold(name[:len(prefix)], prefix)
}

func beginsAny(name []byte, prefixes []string) bool {
	for _, p := range prefixes {
		if begins(name, p) {
			return true
		}
	}
	return false
}

// Allow is the set of values of an Allow field that this protocol knows.
type Allow uint8

const (
	Allow204 Allow = 1 << iota
	Allow206
	AllowTrailers
)

// String returns the value of an Allow field for the next hop: without trailers, "" if there is nothing to say.
func (a Allow) String() string {
	switch a & (Allow204 | Allow206) {
	case Allow204:
		return "204"
	case Allow206:
		return "206"
	case Allow204 | Allow206:
		return "204, 206"
	}
	return ""
}

// parseAllow reads a comma list; members that it does not know count for nothing.
func parseAllow(value []byte) (a Allow) {
	for member, rest := cutMember(value); member != nil; member, rest = cutMember(rest) {
		switch {
		case string(member) == "204":
			a |= Allow204
		case string(member) == "206":
			a |= Allow206
		case equalFold(member, "trailers"):
			a |= AllowTrailers
		}
	}
	return a
}

// get returns the value of the first field with that name that is not dropped, nil if there is none.
func get(fields []Field, name string) []byte {
	for i := range fields {
		if f := &fields[i]; f.kind != hopField && equalFold(f.Name, name) {
			return f.Value
		}
	}
	return nil
}

func appendField(dst, name, value []byte) []byte {
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	dst = append(dst, value...)
	return append(dst, "\r\n"...)
}

// appendFolded is appendField for a value with folds: each one is written as fold and the blanks that it had, or as fold alone where
// fold is a blank itself. Lines of blanks only are left out, because some readers take them for the end of the head.
func appendFolded(dst, name, value []byte, fold string) []byte {
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	for first := true; len(value) > 0; first = false {
		line, rest, ok := cutLine(value)
		if !ok {
			line, rest = value, nil
		}
		text := trim(line)
		if len(text) > 0 {
			if !first {
				dst = append(dst, fold...)
			}
			if fold == " " {
				line = text
			}
			dst = append(dst, line...)
		}
		value = rest
	}
	return append(dst, "\r\n"...)
}

// cutMember returns the first non-empty member of a comma list, without white space around it, and what follows; nil at the end.
func cutMember(list []byte) (member, rest []byte) {
	for len(list) > 0 {
		member, rest, _ = bytes.Cut(list, comma)
		if member = trim(member); len(member) > 0 {
			return member, rest
		}
		list = rest
	}
	return nil, nil
}

var comma = []byte{','}

// trim removes blanks and line ends (of folds) around b.
func trim(b []byte) []byte {
	for len(b) > 0 && isSpace(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && isSpace(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

// equalFold compares without the case of ASCII letters.
func equalFold[T []byte | string](b []byte, s T) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if c != s[i] && lower(c) != lower(s[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// tokenLen returns the length of the token at the start of b.
func tokenLen(b []byte) int {
	for i, c := range b {
		if !tokenChars[c] {
			return i
		}
	}
	return len(b)
}

func isToken(b []byte) bool { return len(b) > 0 && tokenLen(b) == len(b) }

func isBlank(c byte) bool   { return c == ' ' || c == '\t' }
func isSpace(c byte) bool   { return isBlank(c) || c == '\r' || c == '\n' }
func isDigit(c byte) bool   { return '0' <= c && c <= '9' }
func isControl(c byte) bool { return c < 0x20 || c == 0x7f }

// tokenChars are the characters of method and field names and of chunk extensions.
var tokenChars = charSet("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")

func charSet(chars string) (set [256]bool) {
	for _, c := range []byte(chars) {
		set[c] = true
	}
	return set
}
