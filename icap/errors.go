package icap

import "errors"

// ErrIncomplete says that the input ends before the element does: call again with more bytes. It is no fault.
var ErrIncomplete = errors.New("icap: need more bytes")

// ProtocolError is a fault of the peer's bytes. After it the framing of the connection is lost.
type ProtocolError struct {
	Status int    // what a gateway answers to its client: 400 or 505 for a request, 502 for a response
	Msg    string // what is wrong, lower case, without the peer's bytes
}

func (e *ProtocolError) Error() string { return "icap: " + e.Msg }

func badRequest(msg string) error { return &ProtocolError{Status: 400, Msg: msg} }

// inResponse turns a fault into that of a server.
func inResponse(err error) error {
	if e, ok := err.(*ProtocolError); ok && e.Status != 502 {
		return &ProtocolError{Status: 502, Msg: e.Msg}
	}
	return err
}
