package accesslog

import (
	"encoding/base64"
	"net/netip"
	"strconv"
	"time"
	"unicode/utf8"
)

// Record is one transaction. The strings and slices are used during Append only.
type Record struct {
	Time     time.Time // when the request's heads were in
	ID       ID
	Client   netip.AddrPort
	Listener string
	TLS      string // "1.2", "1.3", "": plain
	Method   string
	Path     []byte // with the query, as received
	Service  string // path of the route, "": none
	Pool     string
	Server   string // ip:port of the last attempt
	Status   int    // ICAP status that the client got, 0: none
	Attempts int
	Failure  string // why the latest attempt that failed did, "": none
	In, Out  uint64 // payload bytes of the request's and of the answer's body

	Queue, Connect, FirstByte, Total time.Duration // FirstByte 0: no answer
	QueueCause                       string        // of its latest wait, "": it has not waited

	ClientIP []byte // X-Client-IP
	User     []byte // X-Authenticated-User as received; base64 is decoded
	End      string // why it ended
}

// ID names a transaction: unique among the gateways of a cluster for all practical purposes, and sortable by start and loop.
type ID struct {
	Start  uint64 // of the process, and its random part
	Loop   uint8
	Number uint64 // on the loop
}

// Append appends the ID as text: its three parts in hex.
func (id ID) Append(dst []byte) []byte {
	const digits = "0123456789abcdef"
	for shift := 60; shift >= 0; shift -= 4 {
		dst = append(dst, digits[id.Start>>shift&15])
	}
	dst = append(dst, '-')
	dst = strconv.AppendUint(dst, uint64(id.Loop), 16)
	dst = append(dst, '-')
	return strconv.AppendUint(dst, id.Number, 16)
}

// clock is the text of the second in which the latest record was made: most records share it with the one before.
type clock struct {
	second int64 // Unix time
	text   []byte
}

// append appends t as 2006-01-02T15:04:05.000000Z.
func (c *clock) append(b []byte, t time.Time) []byte {
	if s := t.Unix(); s != c.second || c.text == nil {
		c.second, c.text = s, t.UTC().AppendFormat(c.text[:0], "2006-01-02T15:04:05.")
	}
	b = append(b, c.text...)
	b = sixDigits(b, uint64(t.Nanosecond()/1000))
	return append(b, 'Z')
}

// append encodes r as a JSON object and a newline. Fields without a value are left out, except for those that every record has.
func (r *Record) append(b []byte, c *clock) []byte {
	b = append(b, `{"time":"`...)
	b = c.append(b, r.Time)
	b = append(b, `","id":"`...)
	b = r.ID.Append(b)
	b = append(b, `","client":"`...)
	b = r.Client.AppendTo(b)
	b = append(b, '"')
	b = text(b, `,"listener":`, r.Listener)
	b = text(b, `,"tls":`, r.TLS)
	b = text(b, `,"method":`, r.Method)
	b = text(b, `,"path":`, r.Path)
	b = text(b, `,"service":`, r.Service)
	b = text(b, `,"pool":`, r.Pool)
	b = text(b, `,"server":`, r.Server)
	b = number(b, `,"status":`, int64(r.Status))
	b = number(b, `,"attempts":`, int64(r.Attempts))
	b = text(b, `,"failure":`, r.Failure)
	b = number(b, `,"bytes_in":`, int64(r.In))
	b = number(b, `,"bytes_out":`, int64(r.Out))
	b = seconds(b, `,"queue":`, r.Queue)
	b = text(b, `,"queue_cause":`, r.QueueCause)
	b = seconds(b, `,"connect":`, r.Connect)
	b = seconds(b, `,"first_byte":`, r.FirstByte)
	b = seconds(b, `,"total":`, r.Total)
	b = text(b, `,"x_client_ip":`, r.ClientIP)
	b = user(b, r.User)
	b = text(b, `,"end":`, r.End)
	return append(b, "}\n"...)
}

// text appends a member unless it is empty. A name comes with what stands around it: `,"path":`.
func text[T string | []byte](b []byte, name string, value T) []byte {
	if len(value) == 0 {
		return b
	}
	return quote(append(b, name...), value)
}

func number(b []byte, name string, n int64) []byte {
	return strconv.AppendInt(append(b, name...), n, 10)
}

// seconds appends a duration in seconds with microseconds.
func seconds(b []byte, name string, d time.Duration) []byte {
	us := uint64(max(d, 0)) / 1000
	b = strconv.AppendUint(append(b, name...), us/1e6, 10)
	b = append(b, '.')
	return sixDigits(b, us%1e6)
}

func sixDigits(b []byte, n uint64) []byte {
	var digits [6]byte
	for i := len(digits) - 1; i >= 0; i-- {
		digits[i] = byte('0' + n%10)
		n /= 10
	}
	return append(b, digits[:]...)
}

// user appends X-Authenticated-User. Clients send it in base64 ("WinNT://DOMAIN/user"); a value that does not decode to text
// is logged as it is.
func user(b []byte, value []byte) []byte {
	if len(value) == 0 {
		return b
	}
	var plain [512]byte
	if n := base64.StdEncoding.DecodedLen(len(value)); n <= len(plain) {
		if n, err := base64.StdEncoding.Decode(plain[:], value); err == nil && printable(plain[:n]) {
			return text(b, `,"user":`, plain[:n])
		}
	}
	return text(b, `,"user":`, value)
}

func printable(p []byte) bool {
	for _, c := range p {
		if c < 0x20 || c == 0x7f {
			return false
		}
	}
	return len(p) > 0 && utf8.Valid(p)
}

// quote appends value as a JSON string. What is not UTF-8 becomes U+FFFD.
func quote[T string | []byte](b []byte, value T) []byte {
	const digits = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(value); {
		if n := plain(value[i:]); n > 0 {
			b = append(b, value[i:i+n]...)
			i += n
			continue
		}
		switch c := value[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
			i++
		case c < 0x20 || c == 0x7f:
			b = append(b, `\u00`...)
			b = append(b, digits[c>>4], digits[c&15])
			i++
		default:
			r, size := decodeRune(value[i:])
			b = utf8.AppendRune(b, r)
			i += size
		}
	}
	return append(b, '"')
}

// plain is how many bytes at the start of value stand for themselves in a JSON string.
func plain[T string | []byte](value T) int {
	for i := range len(value) {
		if c := value[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			return i
		}
	}
	return len(value)
}

func decodeRune[T string | []byte](value T) (rune, int) {
	var head [utf8.UTFMax]byte
	n := copy(head[:], value)
	return utf8.DecodeRune(head[:n])
}
