package gateway

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"icapgate/configs"
)

// signatures bounds the private-key operations that run at a time to the number of CPUs: more would only make all of them
// later (the program gives the runtime one processor more later on, which is not for this). A place is held around the operation and never while waiting for bytes.
var signatures = make(chan struct{}, runtime.GOMAXPROCS(0))

// limitedSigner is a private key behind that bound.
type limitedSigner struct{ crypto.Signer }

func (s limitedSigner) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signatures <- struct{}{}
	defer func() { <-signatures }()
	return s.Signer.Sign(rand, digest, opts)
}

// newServerTLS builds a listener's side of TLS. All its handshakes share it, since the keys of session tickets are in it: a client can resume a
// session with the configuration only that gave it the ticket.
func newServerTLS(cfg *configs.ListenerTLS) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, DynamicRecordSizingDisabled: true, GetConfigForClient: announceHello}
	if cfg.MinVersion == "1.3" {
		t.MinVersion = tls.VersionTLS13
	}
	for _, c := range cfg.Certificates {
		key := c.KeyFile
		if key == "" {
			key = c.CertFile
		}
		pair, err := tls.LoadX509KeyPair(c.CertFile, key)
		if err != nil {
			return nil, fmt.Errorf("cannot load certificate %s: %w", c.CertFile, err)
		}
		if signer, ok := pair.PrivateKey.(crypto.Signer); ok {
			pair.PrivateKey = limitedSigner{signer}
		}
		t.Certificates = append(t.Certificates, pair)
	}
	return t, nil
}

// onHello is the key of what the context of a handshake has to call when the ClientHello has come, a func().
type onHello struct{}

// announceHello is called when a ClientHello has come, and keeps the configuration.
func announceHello(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	hello.Context().Value(onHello{}).(func())()
	return nil, nil
}

// newPoolTLS builds the client side of TLS for a pool; nil: plain. The chain and the name are always verified.
func newPoolTLS(cfg *configs.PoolTLS) (*tls.Config, error) {
	if cfg == nil {
		return nil, nil
	}
	t := &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: cfg.ServerName, DynamicRecordSizingDisabled: true,
		ClientSessionCache: tls.NewLRUClientSessionCache(64),
	}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("cannot read ca_file: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file %s holds no certificate", cfg.CAFile)
		}
	}
	if cfg.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.CertFile)
		if err != nil {
			return nil, fmt.Errorf("cannot load client certificate %s: %w", cfg.CertFile, err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// isReset says whether an error means that the peer has reset the connection.
func isReset(err error) bool { return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) }
