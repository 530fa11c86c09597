package bench

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
)

// Kind says what went wrong with a request. Kinds are the keys of a report.
type Kind string

const (
	Connect   Kind = "connect"   // no connection
	Handshake Kind = "handshake" // no TLS, or a certificate that is not trusted
	Timeout   Kind = "timeout"   // nothing moved for the timeout
	Closed    Kind = "closed"    // the connection ended before the answer began
	Truncated Kind = "truncated" // the connection ended within the answer
	Framing   Kind = "framing"   // the answer is malformed, was not allowed, or is followed by bytes that belong to nothing
	Status    Kind = "status"    // a well-formed answer that is no success
	Echo      Kind = "echo"      // the message that came back is another one
	Unsent    Kind = "unsent"    // it was planned, and no connection was free for it until the end
	Input     Kind = "input"     // what was to be sent makes no sense or cannot be read
)

// Error is the end of a request that failed.
type Error struct {
	Kind Kind
	Err  error
}

func (e *Error) Error() string { return string(e.Kind) + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

func fault(k Kind, format string, args ...any) error {
	return &Error{k, fmt.Errorf(format, args...)}
}

// ioError gives an error of a connection its kind: a timeout, or that the connection is gone, which is of the kind ended.
func ioError(err error, ended Kind) error {
	var ne net.Error
	switch {
	case errors.As(err, &ne) && ne.Timeout():
		return &Error{Timeout, err}
	case err == io.EOF:
		return &Error{ended, errors.New("the peer closed the connection")}
	}
	return &Error{ended, err}
}

// handshakeError says what to do about the usual reasons.
func handshakeError(err error) error {
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &authority):
		err = fmt.Errorf("%w (give its CA, or the certificate itself, with --ca; or use --insecure)", err)
	case errors.As(err, &name):
		err = fmt.Errorf("%w (give a name that it has with --server-name, or use --insecure)", err)
	case errors.As(err, &record):
		err = fmt.Errorf("%w (is it a port for plain icap://?)", err)
	}
	return ioError(err, Handshake)
}
