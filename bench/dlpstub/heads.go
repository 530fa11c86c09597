package dlpstub

import (
	"bytes"
	"strconv"
	"time"

	"icapgate/icap"
)

// answers holds the bytes of answers that are the same for every request; each in two forms, [0] for a
// connection that stays open and [1] with "Connection: close".
type answers struct {
	noContent [2][]byte // whole
	status    [2][]byte // whole, of Config.Status
	notServed [2][]byte // whole, 405
	unknown   [2][]byte // whole, 501
	ok        [2][]byte // up to the Encapsulated field of a 200
	options   [2][]byte // up to the value of the Date field
}

const dateFormat = "Mon, 02 Jan 2006 15:04:05 GMT"

var continueAnswer = []byte("ICAP/1.0 100 Continue\r\n\r\n")

func newAnswers(cfg *Config) answers {
	var a answers
	for i := range 2 {
		closing := i == 1
		a.noContent[i] = append(appendHead(nil, cfg, 204, closing), "\r\n"...)
		if cfg.Status != 0 {
			a.status[i] = append(appendHead(nil, cfg, cfg.Status, closing), "\r\n"...)
		}
		a.notServed[i] = append(appendHead(nil, cfg, 405, closing), "\r\n"...)
		a.unknown[i] = append(appendHead(nil, cfg, 501, closing), "\r\n"...)
		a.ok[i] = appendHead(nil, cfg, 200, closing)
		a.options[i] = appendOptions(nil, cfg, closing)
	}
	return a
}

// appendHead appends the status line and the fields that every answer has, without the empty line.
func appendHead(dst []byte, cfg *Config, status int, closing bool) []byte {
	reason := icap.StatusText(status)
	if reason == "" {
		reason = "Status"
	}
	dst = append(dst, "ICAP/1.0 "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	dst = append(dst, reason...)
	dst = append(dst, "\r\nISTag: \""...)
	dst = append(dst, cfg.ISTag...)
	dst = append(dst, "\"\r\n"...)
	if cfg.Name != "" {
		dst = append(dst, "X-Server: "...)
		dst = append(dst, cfg.Name...)
		dst = append(dst, "\r\n"...)
	}
	if closing {
		dst = append(dst, "Connection: close\r\n"...)
	}
	return dst
}

// appendOptions appends an OPTIONS answer up to the value of its Date.
func appendOptions(dst []byte, cfg *Config, closing bool) []byte {
	dst = appendHead(dst, cfg, 200, closing)
	dst = append(dst, "Methods: "...)
	for i, m := range cfg.Methods {
		if i > 0 {
			dst = append(dst, ", "...)
		}
		dst = append(dst, m.String()...)
	}
	service := cfg.Name
	if service == "" {
		service = "dlpstub"
	}
	dst = append(dst, "\r\nService: "...)
	dst = append(dst, service...)
	if cfg.MaxConnections > 0 {
		dst = append(dst, "\r\nMax-Connections: "...)
		dst = strconv.AppendInt(dst, int64(cfg.MaxConnections), 10)
	}
	dst = append(dst, "\r\nOptions-TTL: "...)
	dst = strconv.AppendInt(dst, int64(cfg.OptionsTTL/time.Second), 10)
	if cfg.Preview != 0 {
		dst = append(dst, "\r\nPreview: "...)
		dst = strconv.AppendInt(dst, int64(max(cfg.Preview, 0)), 10)
		dst = append(dst, "\r\nTransfer-Preview: *"...)
	}
	dst = append(dst, "\r\nAllow: 204\r\nEncapsulated: null-body=0\r\nDate: "...)
	return dst
}

// appendEcho appends the Encapsulated field, the empty line and the encapsulated heads of an echo of a request with
// these. The answer to a RESPMOD has no req-hdr (RFC 3507 section 4.9.2), so its offsets begin at the res-hdr.
func appendEcho(dst []byte, m icap.Method, e *icap.Encapsulated, blocks []byte) []byte {
	if m == icap.MethodRespmod {
		blocks = blocks[reqHdrLen(e):]
		dst = append(dst, "Encapsulated: "...)
		if len(blocks) > 0 {
			dst = append(dst, "res-hdr=0, "...)
		}
		if e.HasBody() {
			dst = append(dst, "res-body="...)
		} else {
			dst = append(dst, "null-body="...)
		}
		dst = strconv.AppendInt(dst, int64(len(blocks)), 10)
		dst = append(dst, "\r\n"...)
	} else {
		dst = e.AppendTo(dst)
	}
	dst = append(dst, "\r\n"...)
	return append(dst, blocks...)
}

// reqHdrLen returns the length of the req-hdr block, which is the offset of the section after it; 0 if there is none.
func reqHdrLen(e *icap.Encapsulated) (n int) {
	var line [128]byte
	next, ok := bytes.CutPrefix(e.AppendTo(line[:0]), []byte("Encapsulated: req-hdr=0, "))
	if !ok {
		return 0
	}
	for _, c := range next[bytes.IndexByte(next, '=')+1:] {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int(c-'0')
	}
	return n
}
