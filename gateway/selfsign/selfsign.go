// Package selfsign makes self-signed certificates, for a first try and for clients that take the one they are given.
package selfsign

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"time"
)

// validYears is long, since a client trusts a self-signed certificate because it was handed over, not because of its dates:
// an end date brings no safety, only the outage of the day when nobody remembers it. To withdraw one, replace it.
const validYears = 10

// backdate is for clients whose clock is behind.
const backdate = time.Hour

// Names returns what a certificate is for if nobody says otherwise: this machine's host name and loopback.
func Names() []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	if host, err := os.Hostname(); err == nil && checkName(host) == nil && !slices.Contains(names, host) {
		names = slices.Insert(names, 0, host)
	}
	return names
}

// Generate makes an ECDSA P-256 key and a certificate for the names, which are host names, *.domain or IP addresses, and
// returns both as one PEM text, the key first. No name at all stands for Names.
func Generate(names []string) ([]byte, error) {
	if len(names) == 0 {
		names = Names()
	}
	template, err := newTemplate(names, time.Now())
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the key: %w", err)
	}
	var out bytes.Buffer
	for _, block := range []*pem.Block{{Type: "PRIVATE KEY", Bytes: pkcs8}, {Type: "CERTIFICATE", Bytes: cert}} {
		if err := pem.Encode(&out, block); err != nil {
			return nil, fmt.Errorf("encoding: %w", err)
		}
	}
	return out.Bytes(), nil
}

// newTemplate is a certificate of a server, not of a CA: whoever trusts it trusts this key for these names only.
func newTemplate(names []string, now time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	t := &x509.Certificate{
		SerialNumber:          serial.Add(serial, big.NewInt(1)),
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.AddDate(validYears, 0, 0),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if err := checkName(name); err != nil {
			return nil, err
		} else {
			t.DNSNames = append(t.DNSNames, name)
		}
	}
	t.Subject = pkix.Name{Organization: []string{"icapgate self-signed"}}
	if len(names[0]) <= 64 { // the most that a common name may have
		t.Subject.CommonName = names[0]
	}
	return t, nil
}

// checkName accepts a host name, and *. in front of one.
func checkName(name string) error {
	rest := strings.TrimPrefix(name, "*.")
	if len(name) > 253 {
		return errors.New("name too long, allowed: up to 253 characters")
	}
	for label := range strings.SplitSeq(rest, ".") {
		bad := label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.ContainsFunc(label, func(r rune) bool {
				return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' && r != '_'
			})
		if bad {
			return fmt.Errorf("name %q is not allowed, allowed: a host name, *.domain or an IP address", name)
		}
	}
	return nil
}
