package dlpstub

import (
	"strconv"
	"time"

	"icapgate/icap"
)

// heads holds the bytes of answers that are the same for every request as long as the ISTag is; each in two forms, [0] for a
// connection that stays open and [1] with "Connection: close".
type heads struct {
	tag       string
	change    uint64      // which change of the ISTag this one is of, from 0
	noContent [2][]byte   // whole
	status    [2][]byte   // whole, of Config.Status
	block     [2][]byte   // whole
	ok        [2][]byte   // up to the Encapsulated field of a 200
	options   [][2][]byte // up to the value of the Date field, by service
}

const dateFormat = "Mon, 02 Jan 2006 15:04:05 GMT"

var continueAnswer = []byte("ICAP/1.0 100 Continue\r\n\r\n")

func newHeads(cfg *Config, services []service, tag string, change uint64) *heads {
	h := &heads{tag: tag, change: change}
	for i := range 2 {
		closing := i == 1
		h.noContent[i] = appendBrief(nil, cfg, tag, 204, closing, cfg.Fields)
		if cfg.Status != 0 {
			h.status[i] = appendBrief(nil, cfg, tag, cfg.Status, closing, cfg.Fields+cfg.retryAfter(cfg.Status))
		}
		h.block[i] = appendBlock(nil, cfg, tag, closing, cfg.Fields)
		h.ok[i] = appendHead(nil, cfg, tag, 200, closing)
	}
	for _, s := range services {
		h.options = append(h.options, [2][]byte{appendOptions(nil, cfg, tag, s.listed, false), appendOptions(nil, cfg, tag, s.listed, true)})
	}
	return h
}

// appendField appends one field line.
func (cfg *Config) appendField(dst []byte, name, value string) []byte {
	dst = append(dst, name...)
	if cfg.TightFields {
		dst = append(dst, ':')
	} else {
		dst = append(dst, ": "...)
	}
	return append(append(dst, value...), "\r\n"...)
}

// appendHead appends the status line and the fields that every answer has, without the empty line.
func appendHead(dst []byte, cfg *Config, tag string, status int, closing bool) []byte {
	reason := icap.StatusText(status)
	if reason == "" {
		reason = "Status"
	}
	dst = append(dst, "ICAP/1.0 "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	dst = append(dst, reason...)
	dst = append(dst, "\r\n"...)
	if !cfg.BareISTag {
		tag = `"` + tag + `"`
	}
	dst = cfg.appendField(dst, "ISTag", tag)
	if cfg.Name != "" {
		dst = cfg.appendField(dst, "X-Server", cfg.Name)
	}
	if closing {
		dst = cfg.appendField(dst, "Connection", "close")
	}
	return dst
}

// appendBrief appends a whole answer that has no message.
func appendBrief(dst []byte, cfg *Config, tag string, status int, closing bool, fields string) []byte {
	dst = append(appendHead(dst, cfg, tag, status, closing), fields...)
	if cfg.NullBody {
		dst = cfg.appendField(dst, "Encapsulated", "null-body=0")
	}
	return append(dst, "\r\n"...)
}

// appendBlock appends a whole answer with the block page: an HTTP response, whether a request or a response was asked about.
func appendBlock(dst []byte, cfg *Config, tag string, closing bool, fields string) []byte {
	page := "HTTP/1.1 " + strconv.Itoa(cfg.Page.Status) + " " + httpReason(cfg.Page.Status) + "\r\n" +
		"Content-Type: text/html; charset=utf-8\r\nCache-Control: no-store\r\nContent-Length: " + strconv.Itoa(len(cfg.Page.Body)) + "\r\n\r\n"
	dst = append(appendHead(dst, cfg, tag, 200, closing), fields...)
	dst = append(dst, "Encapsulated: res-hdr=0, res-body="...)
	dst = strconv.AppendInt(dst, int64(len(page)), 10)
	dst = append(append(dst, "\r\n\r\n"...), page...)
	return append(appendChunk(dst, []byte(cfg.Page.Body)), "0\r\n\r\n"...)
}

// httpReason spares net/http, which the gateway does not need for this.
func httpReason(status int) string {
	switch status {
	case 200:
		return "OK"
	case 403:
		return "Forbidden"
	}
	return "Status"
}

// name is the one of the server, as Service tells it.
func (cfg *Config) name() string {
	if cfg.Name == "" {
		return "dlpstub"
	}
	return cfg.Name
}

// appendOpenError appends a 400 that has no end.
func (cfg *Config) appendOpenError(dst []byte) []byte {
	return append(append(append(dst, "ICAP/1.0 400 Bad request\r\nService: "...), cfg.name()...), "\r\n"...)
}

// appendOptions appends an OPTIONS answer up to the value of its Date.
func appendOptions(dst []byte, cfg *Config, tag string, served []icap.Method, closing bool) []byte {
	dst = appendHead(dst, cfg, tag, 200, closing)
	dst = append(dst, "Methods: "...)
	for i, m := range served {
		if i > 0 {
			dst = append(dst, ", "...)
		}
		dst = append(dst, m.String()...)
	}
	dst = append(append(dst, "\r\nService: "...), cfg.name()...)
	if cfg.MaxConnections > 0 {
		dst = append(dst, "\r\nMax-Connections: "...)
		dst = strconv.AppendInt(dst, int64(cfg.MaxConnections), 10)
	}
	if cfg.OptionsTTL > 0 {
		dst = append(dst, "\r\nOptions-TTL: "...)
		dst = strconv.AppendInt(dst, int64(cfg.OptionsTTL/time.Second), 10)
	}
	if cfg.Preview != 0 {
		dst = append(dst, "\r\nPreview: "...)
		dst = strconv.AppendInt(dst, int64(max(cfg.Preview, 0)), 10)
		dst = append(dst, "\r\nTransfer-Preview: *"...)
	}
	dst = append(dst, "\r\nAllow: 204"...)
	if cfg.Mode == Partial {
		dst = append(dst, ", 206"...)
	}
	return append(dst, "\r\nEncapsulated: null-body=0\r\nDate: "...)
}

// appendEncapsulated appends the Encapsulated field and the empty line of an answer with the message of a request: one head of the
// given size and a body, as the request had them. The offset of the body is wrong by off.
func appendEncapsulated(dst []byte, m icap.Method, head int, body bool, off int) []byte {
	kind := "req"
	if m == icap.MethodRespmod {
		kind = "res"
	}
	dst = append(dst, "Encapsulated: "...)
	if head > 0 {
		dst = append(append(dst, kind...), "-hdr=0, "...)
	}
	if !body {
		kind = "null"
	}
	dst = append(append(dst, kind...), "-body="...)
	dst = strconv.AppendInt(dst, int64(head+off), 10)
	return append(dst, "\r\n\r\n"...)
}

// appendChunk appends p as a chunk, nothing if p is empty.
func appendChunk(dst, p []byte) []byte {
	if len(p) == 0 {
		return dst
	}
	dst = strconv.AppendUint(dst, uint64(len(p)), 16)
	dst = append(append(dst, "\r\n"...), p...)
	return append(dst, "\r\n"...)
}

// heads returns the bytes of answers with the ISTag that is due now. Each call is for one answer.
func (s *Server) heads() *heads {
	h := s.current.Load()
	if s.cfg.ISTagEvery == 0 && s.cfg.ISTagPeriod == 0 {
		return h
	}
	change := s.tagBase.Load()
	if every := uint64(s.cfg.ISTagEvery); every > 0 {
		change += (s.tagged.Add(1) - 1) / every
	}
	if s.cfg.ISTagPeriod > 0 {
		change += uint64(time.Since(s.began) / s.cfg.ISTagPeriod)
	}
	if change <= h.change {
		return h
	}
	s.tagMu.Lock()
	defer s.tagMu.Unlock()
	if h = s.current.Load(); change > h.change {
		h = newHeads(&s.cfg, s.services, s.cfg.ISTag+"-"+strconv.FormatUint(change, 10), change)
		s.current.Store(h)
	}
	return h
}

// ChangeISTag changes the ISTag, as an update of a server's rules does: to tag, or if that is "" to the configured one with the next number.
func (s *Server) ChangeISTag(tag string) {
	s.tagMu.Lock()
	defer s.tagMu.Unlock()
	s.tagBase.Add(1)
	change := s.current.Load().change + 1
	if tag == "" {
		tag = s.cfg.ISTag + "-" + strconv.FormatUint(change, 10)
	}
	s.current.Store(newHeads(&s.cfg, s.services, tag, change))
}

// ISTag returns the one of the last answers.
func (s *Server) ISTag() string { return s.current.Load().tag }
