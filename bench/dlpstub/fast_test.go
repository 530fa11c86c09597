package dlpstub

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
)

// exchanges are what a gateway and its benchmarks ask for most.
var exchanges = []struct {
	name    string
	cfg     Config
	request string
	answer  string
}{
	{"204", Config{Name: "one"},
		reqmod + "Allow: 204\r\nEncapsulated: req-hdr=0, req-body=28\r\n\r\n" + post + "400\r\n" + strings.Repeat("x", 1024) + "\r\n0\r\n\r\n",
		strings.Replace(head(204, ""), "\r\n\r\n", "\r\nX-Server: one\r\n\r\n", 1)},
	{"204 in a slot, of an incident", Config{Name: "one", Slots: 1, Incidents: NewIncidents()},
		reqmod + "Allow: 204\r\nX-Incident-ID: ab12-7\r\nEncapsulated: req-hdr=0, req-body=28\r\n\r\n" + post + "400\r\n" + strings.Repeat("x", 1024) + "\r\n0\r\n\r\n",
		strings.Replace(head(204, ""), "\r\n\r\n", "\r\nX-Server: one\r\n\r\n", 1)},
	{"echo", Config{Mode: Echo},
		resp + "Encapsulated: req-hdr=0, res-hdr=27, res-body=46\r\n\r\n" + get + ok + "400\r\n" + strings.Repeat("x", 1024) + "\r\n0\r\n\r\n",
		head(200, "Encapsulated: res-hdr=0, res-body=19\r\n") + ok + "400\r\n" + strings.Repeat("x", 1024) + "\r\n0\r\n\r\n"},
	{"echo of 64 KiB", Config{Mode: Echo},
		reqmod + "Encapsulated: req-body=0\r\n\r\n10000\r\n" + strings.Repeat("x", 65536) + "\r\n0\r\n\r\n",
		head(200, "Encapsulated: req-body=0\r\n") + "10000\r\n" + strings.Repeat("x", 65536) + "\r\n0\r\n\r\n"},
	{"echo of a preview", Config{Mode: Echo},
		reqmod + "Preview: 4\r\nEncapsulated: req-body=0\r\n\r\n4\r\nabcd\r\n0; ieof\r\n\r\n",
		head(200, "Encapsulated: req-body=0\r\n") + "4\r\nabcd\r\n0\r\n\r\n"},
}

// exchange returns a function that does one exchange on a connection to a server, and one that ends both.
func exchange(tb testing.TB, cfg Config, request, answer string, secure bool) (once, end func()) {
	if secure {
		https := httptest.NewTLSServer(nil) // for its certificate
		https.Close()
		cfg.TLS = &tls.Config{Certificates: https.TLS.Certificates}
	}
	s := New(cfg)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	go s.Serve(ln)
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	if secure {
		roots := x509.NewCertPool()
		cert, _ := x509.ParseCertificate(cfg.TLS.Certificates[0].Certificate[0])
		roots.AddCert(cert)
		nc = tls.Client(nc, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"})
	}
	out, in := []byte(request), make([]byte, len(answer))
	once = func() {
		if _, err := nc.Write(out); err != nil {
			tb.Fatal(err)
		}
		if _, err := io.ReadFull(nc, in); err != nil || string(in) != answer {
			tb.Fatalf("%v, got %.300q", err, in)
		}
	}
	return once, func() {
		nc.Close()
		s.Close()
	}
}

func TestTLS(t *testing.T) {
	for _, x := range exchanges {
		once, end := exchange(t, x.cfg, x.request, x.answer, true)
		once()
		once()
		end()
	}
}

// TestNoAllocation is about plain connections; crypto/tls itself allocates for every record that it reads.
func TestNoAllocation(t *testing.T) {
	for _, x := range exchanges {
		once, end := exchange(t, x.cfg, x.request, x.answer, false)
		for range 20 { // buffers grow
			once()
		}
		if n := testing.AllocsPerRun(200, once); n >= 1 {
			t.Errorf("%s: %v allocations per exchange", x.name, n)
		}
		end()
	}
}

func BenchmarkExchange(b *testing.B) {
	for _, x := range exchanges {
		b.Run(x.name, func(b *testing.B) {
			once, end := exchange(b, x.cfg, x.request, x.answer, false)
			defer end()
			b.SetBytes(int64(len(x.request)))
			b.ReportAllocs()
			for b.Loop() {
				once()
			}
		})
	}
}
