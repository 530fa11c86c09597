package health

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, pool: x509.NewCertPool()}
	pair := a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	a.key = pair.PrivateKey.(*ecdsa.PrivateKey)
	a.cert, _ = x509.ParseCertificate(pair.Certificate[0])
	a.pool.AddCert(a.cert)
	return a
}

// sign makes a certificate of a template, whose times are around now unless it has some.
func (a *authority) sign(template *x509.Certificate) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(1)
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	parent, signer := template, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// What is wrong with TLS is said with what to do about it, by checks and by probes.
func TestTLSFaults(t *testing.T) {
	names := func(names ...string) *x509.Certificate { return &x509.Certificate{DNSNames: names} }
	now := time.Now().UTC()
	at := func(c *x509.Certificate, from, to time.Duration) *x509.Certificate {
		c.NotBefore, c.NotAfter = now.Add(from), now.Add(to)
		return c
	}
	demand := func(c *tls.Config) { c.ClientAuth = tls.RequireAndVerifyClientCert }
	for _, tt := range []struct {
		name   string
		cert   *x509.Certificate
		server func(*tls.Config)                               // what is special about it
		plain  func(net.Conn) net.Conn                         // in place of TLS
		client func(t *testing.T, a *authority, c *tls.Config) // what is special about our side
		want   string                                          // "": none
	}{
		{name: "good", cert: names("dlp.example")},
		{name: "expired", cert: at(names("dlp.example"), -48*time.Hour, -24*time.Hour), want: "the server's certificate expired on " + now.Add(-24*time.Hour).Format(time.DateTime) + ": renew it there"},
		{name: "not yet", cert: at(names("dlp.example"), 24*time.Hour, 48*time.Hour), want: "the server's certificate is not valid before " + now.Add(24*time.Hour).Format(time.DateTime) + ": look at the clocks of both machines"},
		{name: "another name", cert: names("a.example", "b.example"), want: "the server's certificate is for a.example, b.example, not for dlp.example: set tls.server_name of the pool to its name"},
		{name: "no name", cert: names(), want: "the server's certificate is for no name at all, not for dlp.example: "},
		{name: "many names", cert: names("1.a", "2.a", "3.a", "4.a", "5.a", "6.a"), want: "is for 1.a, 2.a, 3.a, 4.a, 5.a, …, not for dlp.example: "},
		{name: "an address", cert: &x509.Certificate{IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)}}, want: "is for 192.0.2.1, not for dlp.example: "},
		{name: "another CA", cert: names("dlp.example"), client: func(_ *testing.T, _ *authority, c *tls.Config) { c.RootCAs = x509.NewCertPool() },
			want: "the server's certificate is not signed by a CA that is trusted: set tls.ca_file of the pool to its CA"},
		{name: "a client certificate, TLS 1.3", cert: names("dlp.example"), server: demand,
			want: "the server refuses TLS (certificate required): if it demands a client certificate, set tls.cert_file of the pool"},
		{name: "a client certificate, TLS 1.2", cert: names("dlp.example"), server: func(c *tls.Config) { demand(c); c.MaxVersion = tls.VersionTLS12 },
			want: "the server refuses TLS (handshake failure): if it demands a client certificate, set tls.cert_file of the pool"},
		{name: "another client certificate", cert: names("dlp.example"), server: demand, client: func(t *testing.T, _ *authority, c *tls.Config) {
			stranger := newAuthority(t).sign(&x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &stranger, nil }
			c.Certificates = []tls.Certificate{stranger}
		}, want: "it does not accept the client certificate in tls.cert_file of the pool"},
		{name: "the right client certificate", cert: names("dlp.example"), server: demand, client: func(_ *testing.T, a *authority, c *tls.Config) {
			c.Certificates = []tls.Certificate{a.sign(&x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})}
		}},
		{name: "an old version", cert: names("dlp.example"), server: func(c *tls.Config) { c.MaxVersion = tls.VersionTLS11; c.MinVersion = tls.VersionTLS10 },
			want: "the server refuses TLS (protocol version not supported): it needs to speak TLS 1.2 or 1.3"},
		{name: "plain, silent", plain: func(c net.Conn) net.Conn { return c },
			want: "no TLS connection within 100ms: the server does not answer the TLS handshake; is 192.0.2.1:1344 its port for secure ICAP?"},
		{name: "plain, with an answer", plain: func(c net.Conn) net.Conn {
			_, _ = c.Read(make([]byte, 1<<10))
			_, _ = c.Write([]byte("ICAP/1.0 400 Bad request\r\n\r\n"))
			c.Close()
			return c
		}, want: "the server does not speak TLS on 192.0.2.1:1344: use its port for secure ICAP, or remove tls of the pool"},
		{name: "plain, closes", plain: func(c net.Conn) net.Conn {
			_, _ = c.Read(make([]byte, 1<<10))
			c.Close()
			return c
		}, want: "the server ended the TLS handshake without a word: is 192.0.2.1:1344 its port for secure ICAP?"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := newAuthority(t)
			f := &fakeServer{answer: scanner(ok200), accept: tt.plain}
			if tt.plain == nil {
				server := &tls.Config{Certificates: []tls.Certificate{a.sign(tt.cert)}, ClientCAs: a.pool}
				if tt.server != nil {
					tt.server(server)
				}
				f.accept = func(c net.Conn) net.Conn { return tls.Server(c, server) }
			}
			cfg := f.probeConfig()
			cfg.Dial = f.listen(t)
			cfg.TLS = &tls.Config{RootCAs: a.pool, MinVersion: tls.VersionTLS12}
			if tt.client != nil {
				tt.client(t, a, cfg.TLS)
			}
			cfg.Timeout = 20 * time.Second
			if strings.Contains(tt.want, "100ms") {
				cfg.Timeout = 100 * ms
			}
			cfg.Probe.Timeout = cfg.Timeout
			rep := runRound(f, cfg)
			if (rep.outcome == good) != (tt.want == "") || !strings.Contains(rep.fault, tt.want) || rep.unreachable {
				t.Errorf("check: %+v, want %q", rep, tt.want)
			}
			if o, fault := runProbe(f, cfg, -1); (o == good) != (tt.want == "") || !strings.Contains(fault, tt.want) {
				t.Errorf("probe: %v, %q, want %q", o, fault, tt.want)
			}
		})
	}
}
