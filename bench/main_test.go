package bench

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/http/httptest"
	"testing"
	"time"

	"go.uber.org/goleak"

	"icapgate/bench/dlpstub"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits that end at once unless something is broken.
const patience = 20 * time.Second

// serveStub serves a fake DLP server and returns its URI.
func serveStub(t testing.TB, cfg dlpstub.Config) (string, *dlpstub.Server) {
	t.Helper()
	s := dlpstub.New(cfg)
	scheme := "icap"
	if cfg.TLS != nil {
		scheme = "icaps"
	}
	return serve(t, scheme, s.Serve, s.Close), s
}

// serve serves a listener until the test ends.
func serve(t testing.TB, scheme string, run func(net.Listener) error, end func()) (uri string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- run(ln) }()
	t.Cleanup(func() {
		end()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return scheme + "://" + ln.Addr().String() + "/reqmod"
}

// serveBytes serves one connection after the other. Each gets what answer makes of its first request and is closed; nil: it stays open
// until the client closes it.
func serveBytes(t testing.TB, answer func(request []byte) []byte) (uri string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			answerOnce(nc, answer)
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	return "icap://" + ln.Addr().String() + "/reqmod"
}

// answerOnce reads a request that ends with a last chunk.
func answerOnce(nc net.Conn, answer func(request []byte) []byte) {
	defer nc.Close()
	var request []byte
	buf := make([]byte, 64<<10)
	for len(request) < 5 || string(request[len(request)-5:]) != lastChunk {
		n, err := nc.Read(buf)
		if err != nil {
			return
		}
		request = append(request, buf[:n]...)
	}
	if p := answer(request); p != nil {
		nc.Write(p)
		return
	}
	nc.Read(buf)
}

// testCertificate returns a certificate for 127.0.0.1 and a pool that trusts it.
func testCertificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	https := httptest.NewTLSServer(nil) // has one
	defer https.Close()
	roots := x509.NewCertPool()
	roots.AddCert(https.Certificate())
	return https.TLS.Certificates[0], roots
}

func mustTarget(t testing.TB, uri string) Target {
	t.Helper()
	target, err := ParseTarget(uri)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func pemOf(certificate tls.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]})
}
