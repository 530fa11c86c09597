package selfsign

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func TestGenerate(t *testing.T) {
	tests := []struct {
		name  string
		names []string
		good  []string // names that a client may verify
		bad   []string
	}{
		{"default", nil, Names(), []string{"other.example.com", "127.0.0.2"}},
		{"names", []string{"gw.example.com", "10.0.0.1", "2001:db8::1"}, []string{"gw.example.com", "10.0.0.1", "2001:db8::1"}, []string{"localhost", "10.0.0.2"}},
		{"wildcard", []string{"*.example.com"}, []string{"a.example.com"}, []string{"example.com", "a.b.example.com"}},
		{"long", []string{strings.Repeat("a", 60) + ".example.com"}, []string{strings.Repeat("a", 60) + ".example.com"}, []string{"example.com"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pem, err := Generate(tt.names)
			if err != nil {
				t.Fatal(err)
			}
			pair, err := tls.X509KeyPair(pem, pem)
			if err != nil {
				t.Fatalf("combined PEM: %v", err)
			}
			if key, ok := pair.PrivateKey.(*ecdsa.PrivateKey); !ok || key.Curve != elliptic.P256() {
				t.Errorf("key is %T, want ECDSA P-256", pair.PrivateKey)
			}
			leaf := pair.Leaf
			if leaf.IsCA {
				t.Error("certificate is one of a CA")
			}
			if leaf.NotBefore.After(time.Now()) || leaf.NotAfter.Before(time.Now().AddDate(9, 0, 0)) {
				t.Errorf("valid %v to %v", leaf.NotBefore, leaf.NotAfter)
			}
			roots := x509.NewCertPool()
			roots.AddCert(leaf)
			for _, name := range tt.good {
				if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			for _, name := range tt.bad {
				if leaf.VerifyHostname(name) == nil {
					t.Errorf("%s is accepted", name)
				}
			}
		})
	}
}

func TestGenerateRefuses(t *testing.T) {
	for _, name := range []string{"", "a b", "-a", "a..b", "*", "*.*.a", "https://a", strings.Repeat("a", 64), strings.Repeat("a.", 127) + "aa", "ü.example.com"} {
		if _, err := Generate([]string{name}); err == nil {
			t.Errorf("%q is accepted", name)
		}
	}
}

func TestSerialsDiffer(t *testing.T) {
	serials := make(map[string]bool)
	for range 3 {
		pem, err := Generate([]string{"a"})
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(pem, pem)
		if err != nil {
			t.Fatal(err)
		}
		serials[pair.Leaf.SerialNumber.String()] = true
	}
	if len(serials) != 3 {
		t.Errorf("%d serial numbers for 3 certificates", len(serials))
	}
}

// A TLS client that was handed the certificate connects to a server that uses it.
func TestHandshake(t *testing.T) {
	pem, err := Generate([]string{"gw.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(pem, pem)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	served := make(chan error, 1)
	go func() {
		_, err := tls.Server(there, &tls.Config{Certificates: []tls.Certificate{pair}}).Write([]byte("x"))
		served <- err
	}()
	client := tls.Client(here, &tls.Config{RootCAs: roots, ServerName: "gw.example.com"})
	if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
		t.Errorf("client: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("server: %v", err)
	}
}
