package health

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// This file says in words for an operator why a server could not be asked.

// OwnFault says whether a connection failed because this machine lacks a descriptor or memory, which says nothing about the server.
func OwnFault(err error) bool {
	for _, lack := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, lack) {
			return true
		}
	}
	return false
}

// explain says what went wrong with a request, such as OPTIONS /a. connected: a connection had come about, TLS included.
func explain(request string, cfg *CheckConfig, connected bool, timeout time.Duration, err error) error {
	var late net.Error
	isLate := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &late) && late.Timeout()
	switch {
	case isLate && !connected && cfg.TLS != nil && errors.Is(err, errHandshake):
		return fmt.Errorf("no TLS connection within %v: the server does not answer the TLS handshake; is %s its port for secure ICAP?", timeout, cfg.Address)
	case isLate && !connected:
		return fmt.Errorf("no connection within %v", timeout)
	case isLate:
		return fmt.Errorf("%s: no answer within %v", request, timeout)
	case errors.Is(err, errHandshake):
		return handshakeFault(cfg, err)
	case !connected:
		return err // of the connect, which names the address
	case isAlert(err): // with TLS 1.3 the server judges our certificate after the handshake
		return alertFault(cfg, err)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%s: the server closed the connection in the middle of its answer", request)
	}
	return fmt.Errorf("%s: %w", request, err)
}

var errHandshake = errors.New("TLS handshake")

// secure does the handshake of the pool's TLS on a new connection, if there is any.
func (cfg *CheckConfig) secure(ctx context.Context, conn net.Conn) (net.Conn, error) {
	if cfg.TLS == nil {
		return conn, nil
	}
	secure := tls.Client(conn, cfg.TLS)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%w: %w", errHandshake, err)
	}
	return secure, nil
}

// handshakeFault says why TLS did not come about, and what to do.
func handshakeFault(cfg *CheckConfig, err error) error {
	var (
		invalid   x509.CertificateInvalidError
		authority x509.UnknownAuthorityError
		name      x509.HostnameError
		record    tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && time.Now().Before(invalid.Cert.NotBefore):
		return fmt.Errorf("the server's certificate is not valid before %s: look at the clocks of both machines", invalid.Cert.NotBefore.UTC().Format(time.DateTime))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("the server's certificate expired on %s: renew it there", invalid.Cert.NotAfter.UTC().Format(time.DateTime))
	case errors.As(err, &authority):
		return errors.New("the server's certificate is not signed by a CA that is trusted: set tls.ca_file of the pool to its CA, or to itself if it is self-signed")
	case errors.As(err, &name):
		return fmt.Errorf("the server's certificate is for %s, not for %s: set tls.server_name of the pool to its name", namesOf(name.Certificate), name.Host)
	case errors.As(err, &record):
		return fmt.Errorf("the server does not speak TLS on %s: use its port for secure ICAP, or remove tls of the pool", cfg.Address)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("the server ended the TLS handshake without a word: is %s its port for secure ICAP?", cfg.Address)
	case isAlert(err):
		return alertFault(cfg, err)
	}
	return err
}

// namesOf lists whom a certificate is for.
func namesOf(c *x509.Certificate) string {
	const most = 5
	names := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) > most {
		names = append(names[:most], "…")
	}
	if len(names) == 0 {
		return "no name at all"
	}
	return strings.Join(names, ", ")
}

// isAlert says whether the server has refused TLS with an alert.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// alertFault is about the server's reasons to refuse. What is told of certificates is about ours.
func alertFault(cfg *CheckConfig, err error) error {
	var op *net.OpError
	errors.As(err, &op)
	reason := strings.TrimPrefix(op.Err.Error(), "tls: ")
	ours := len(cfg.TLS.Certificates) > 0
	switch {
	case strings.Contains(reason, "protocol version"):
		return fmt.Errorf("the server refuses TLS (%s): it needs to speak TLS 1.2 or 1.3", reason)
	case !ours && (strings.Contains(reason, "certificate") || strings.Contains(reason, "handshake failure")):
		return fmt.Errorf("the server refuses TLS (%s): if it demands a client certificate, set tls.cert_file of the pool", reason)
	case ours && (strings.Contains(reason, "certificate") || strings.Contains(reason, "handshake failure")):
		return fmt.Errorf("the server refuses TLS (%s): it does not accept the client certificate in tls.cert_file of the pool", reason)
	}
	return fmt.Errorf("the server refuses TLS (%s)", reason)
}
