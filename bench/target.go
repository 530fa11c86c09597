package bench

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
)

// Target is where requests go.
type Target struct {
	URI     string // of the request line, as given
	Address string // host:port to connect to
	Host    string // value of Host
	Secure  bool   // icaps://: TLS from the first byte
}

// ParseTarget parses icap://host[:port]/path and icaps://host[:port]/path. The ports default to 1344 and 11344.
func ParseTarget(uri string) (Target, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return Target{}, fmt.Errorf("bad URI: %w", err)
	}
	scheme := strings.ToLower(u.Scheme)
	if scheme != "icap" && scheme != "icaps" || u.Hostname() == "" {
		return Target{}, fmt.Errorf("bad URI %q: want icap://host:port/path or icaps://host:port/path", uri)
	}
	if strings.ContainsAny(uri, " \t\r\n") || u.Fragment != "" {
		return Target{}, fmt.Errorf("bad URI %q: no blanks, no #", uri)
	}
	port := u.Port()
	if port == "" {
		port = "1344"
		if scheme == "icaps" {
			port = "11344"
		}
	}
	t := Target{URI: uri, Address: net.JoinHostPort(u.Hostname(), port), Host: u.Host, Secure: scheme == "icaps"}
	if u.Path == "" {
		if u.RawQuery != "" {
			return Target{}, fmt.Errorf("bad URI %q: a query needs a path before it", uri)
		}
		t.URI += "/"
	}
	return t, nil
}

// WithPath returns the target with another path, which may have a query.
func (t Target) WithPath(path string) (Target, error) {
	if !strings.HasPrefix(path, "/") {
		return Target{}, fmt.Errorf("bad path %q: want /path", path)
	}
	scheme, rest, _ := strings.Cut(t.URI, "://")
	authority, _, _ := strings.Cut(rest, "/")
	return ParseTarget(scheme + "://" + authority + path)
}

// TLSOptions are the choices for icaps:// targets.
type TLSOptions struct {
	Insecure   bool   // the certificate is not verified
	CAFile     string // PEM; "": the system's
	ServerName string // to verify and for SNI; "": the host of the target
	CertFile   string // client certificate and key, one combined PEM; "": none
	MinVersion string // of TLS, "1.2" or "1.3"; "": 1.2
	MaxVersion string // "": 1.3
}

// Config returns the configuration for connections to t, nil for icap://.
func (o TLSOptions) Config(t Target) (*tls.Config, error) {
	if !t.Secure {
		return nil, nil
	}
	host, _, _ := net.SplitHostPort(t.Address)
	cfg := &tls.Config{
		ServerName:                  host,
		InsecureSkipVerify:          o.Insecure,
		DynamicRecordSizingDisabled: true, // full records from the start: bodies are large
	}
	if o.ServerName != "" {
		cfg.ServerName = o.ServerName
	}
	var err error
	if cfg.MinVersion, err = tlsVersion(o.MinVersion); err != nil {
		return nil, err
	}
	if cfg.MaxVersion, err = tlsVersion(o.MaxVersion); err != nil {
		return nil, err
	}
	if cfg.MaxVersion != 0 && cfg.MinVersion > cfg.MaxVersion {
		return nil, fmt.Errorf("no version of TLS is at least %s and at most %s", o.MinVersion, o.MaxVersion)
	}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("cannot read the CA file: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("cannot find a certificate in %q", o.CAFile)
		}
	}
	if o.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(o.CertFile, o.CertFile)
		if err != nil {
			return nil, fmt.Errorf("cannot load the client certificate and key from %q: %w", o.CertFile, err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	return cfg, nil
}

// tlsVersion returns the number of a version, 0 for that of crypto/tls.
func tlsVersion(name string) (uint16, error) {
	switch name {
	case "":
		return 0, nil
	case "1.2":
		return tls.VersionTLS12, nil
	case "1.3":
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("bad version of TLS %q: want 1.2 or 1.3", name)
}
