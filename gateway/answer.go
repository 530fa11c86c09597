package gateway

import (
	"strconv"
	"time"

	"icapgate/icap"
)

// nullBodyEnd ends the head of a message that has neither heads nor a body.
const nullBodyEnd = "Encapsulated: null-body=0\r\n\r\n"

var continueAnswer = []byte("ICAP/1.0 100 Continue\r\n\r\n")

// appendAnswer appends an answer of the gateway's own, without a body. istag is the line that every ICAP answer needs (RFC 3507 4.7), retryAfter is in
// seconds, 0: none.
func appendAnswer(dst, istag []byte, status, retryAfter int, close bool, extra, mark []byte) []byte {
	dst = appendOwnHead(dst, istag, status, retryAfter, close, extra, mark)
	return append(dst, nullBodyEnd...)
}

// appendStatusLine appends the first line of an answer. One that comes without a reason gets the usual one.
func appendStatusLine(dst []byte, status int, reason []byte) []byte {
	dst = append(dst, "ICAP/1.0 "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	if len(reason) > 0 {
		dst = append(dst, reason...)
	} else {
		dst = append(dst, icap.StatusText(status)...)
	}
	return append(dst, "\r\n"...)
}

// appendOwnHead appends the head of an answer of the gateway's own, up to its Encapsulated. extra and mark are whole lines.
func appendOwnHead(dst, istag []byte, status, retryAfter int, close bool, extra, mark []byte) []byte {
	dst = appendStatusLine(dst, status, nil)
	dst = append(dst, istag...)
	dst = append(dst, "Date: "...)
	dst = time.Now().UTC().AppendFormat(dst, "Mon, 02 Jan 2006 15:04:05 GMT")
	if retryAfter > 0 {
		dst = append(dst, "\r\nRetry-After: "...)
		dst = strconv.AppendInt(dst, int64(retryAfter), 10)
	}
	if close {
		dst = append(dst, "\r\nConnection: close"...)
	}
	dst = append(dst, "\r\n"...)
	dst = append(dst, mark...)
	return append(dst, extra...)
}

// appendResponseHead appends a server's response head in canonical form, without the encapsulated blocks. istag is the line that takes the place of the
// server's, nil: that stays. Without e the answer loses its body.
func appendResponseHead(dst, istag []byte, r *icap.Response, e *icap.Encapsulated, close bool, extra []byte) []byte {
	dst = appendStatusLine(dst, r.Status, r.Reason)
	dst = append(dst, istag...)
	dst = r.AppendFields(dst, istag == nil)
	dst = append(dst, extra...)
	if close {
		dst = append(dst, "Connection: close\r\n"...)
	}
	if e == nil {
		return append(dst, nullBodyEnd...)
	}
	dst = e.AppendTo(dst)
	return append(dst, "\r\n"...)
}
