package load

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http/httptest"
	"testing"
	"time"

	"go.uber.org/goleak"

	"icapgate/bench"
	"icapgate/bench/dlpstub"
	"icapgate/bench/result"
	"icapgate/bench/scenario"
	"icapgate/icap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits that end at once unless something is broken.
const patience = 20 * time.Second

var small = bench.Message{Method: icap.MethodReqmod, Preview: -1}

func mustTarget(t testing.TB, uri string) bench.Target {
	t.Helper()
	target, err := bench.ParseTarget(uri)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// mustMix returns a mix of one kind of request.
func mustMix(t testing.TB, message bench.Message, size int64) *scenario.Mix {
	t.Helper()
	return mustCompile(t, scenario.Single(message, size))
}

func mustCompile(t testing.TB, s *scenario.Scenario) *scenario.Mix {
	t.Helper()
	mix, err := s.Compile(mustTarget(t, "icap://127.0.0.1/reqmod"))
	if err != nil {
		t.Fatal(err)
	}
	return mix
}

func mustRun(t testing.TB, cfg Config) *result.Result {
	t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = patience
	}
	if cfg.Connections == 0 {
		cfg.Connections = 4
	}
	r, err := Run(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// inMemory returns a fake server and what connects to it without a network.
func inMemory(t testing.TB, cfg dlpstub.Config) (*dlpstub.Server, func(context.Context) (net.Conn, error)) {
	s := dlpstub.New(cfg)
	t.Cleanup(s.Close)
	return s, func(context.Context) (net.Conn, error) {
		client, server := net.Pipe()
		s.ServeConn(server)
		return client, nil
	}
}

// serve serves a fake server on loopback until the test ends.
func serve(t testing.TB, cfg dlpstub.Config) (bench.Target, *dlpstub.Server) {
	t.Helper()
	s := dlpstub.New(cfg)
	scheme := "icap"
	if cfg.TLS != nil {
		scheme = "icaps"
	}
	return mustListen(t, scheme, s.Serve, s.Close), s
}

// serveBytes serves one connection after the other. Each gets what answer makes of its first request and is closed; nil: it stays open
// until the client closes it.
func serveBytes(t testing.TB, answer func(request []byte) []byte) bench.Target {
	t.Helper()
	return mustListen(t, "icap", func(ln net.Listener) error {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return nil
			}
			answerOnce(nc, answer)
		}
	}, func() {})
}

func mustListen(t testing.TB, scheme string, run func(net.Listener) error, end func()) bench.Target {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- run(ln) }()
	t.Cleanup(func() {
		ln.Close()
		end()
		<-done
	})
	return mustTarget(t, scheme+"://"+ln.Addr().String()+"/reqmod")
}

// answerOnce reads a request that ends with a last chunk.
func answerOnce(nc net.Conn, answer func(request []byte) []byte) {
	defer nc.Close()
	var request []byte
	buf := make([]byte, 64<<10)
	for len(request) < 5 || string(request[len(request)-5:]) != "0\r\n\r\n" {
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

// testTLS returns configurations of a server and of a client that trusts it.
func testTLS(t testing.TB) (server, client *tls.Config) {
	t.Helper()
	https := httptest.NewTLSServer(nil) // has a certificate for 127.0.0.1
	defer https.Close()
	roots := x509.NewCertPool()
	roots.AddCert(https.Certificate())
	return &tls.Config{Certificates: https.TLS.Certificates}, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}
}
