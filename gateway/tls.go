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

// serverTLS is a listener's side of TLS.
type serverTLS struct {
	base *tls.Config
}

func newServerTLS(cfg *configs.ListenerTLS) (*serverTLS, error) {
	base := &tls.Config{MinVersion: tls.VersionTLS12, DynamicRecordSizingDisabled: true}
	if cfg.MinVersion == "1.3" {
		base.MinVersion = tls.VersionTLS13
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
		base.Certificates = append(base.Certificates, pair)
	}
	return &serverTLS{base: base}, nil
}

// configFor returns the configuration for one handshake; heard is called when the ClientHello has come.
func (t *serverTLS) configFor(heard func()) *tls.Config {
	return &tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			heard()
			return t.base, nil
		},
	}
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
