package e2e

import (
	"bytes"
	"fmt"
	"testing"
)

// startTunnel runs a stunnel in front of a server, as many a DLP server has one. Its certificate is for 127.0.0.1 and gateway.example.
func startTunnel(t *testing.T, s *cicap) (address, trust string) {
	t.Helper()
	pem, trust := makeCertificate(t)
	return startStunnel(t, fmt.Sprintf("connect = %s\ncert = %s\n", s.address, pem)), trust
}

// TestStunnelServer reaches c-icap through stunnel: TLS from the client to the gateway, and from there to the server.
func TestStunnelServer(t *testing.T) {
	need(t, "c-icap", "c-icap")
	need(t, "stunnel", "stunnel4")
	tests := []struct{ name, serverName string }{
		{"address in the certificate", ""},
		{"name in the certificate", ", server_name: gateway.example"},
	}
	large := randomBytes(3 << 20)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			checkLeaks(t)
			server := startCICAP(t, "")
			address, trust := startTunnel(t, server)
			g := startGateway(t, []string{address}, fmt.Sprintf("tls: {ca_file: %q%s}", trust, test.serverName))
			const rounds = 40 // 160 requests: more than c-icap takes on one connection
			for _, listener := range []int{icaps, icap} {
				c := g.dial(listener, "/echo")
				for i := range rounds {
					body := large[i : i+1<<(i%22)] // to 2 MiB
					for _, r := range []request{{method: "OPTIONS"}, {method: "REQMOD", body: body}, {method: "RESPMOD", body: body, chunk: 8000}, {method: "REQMOD"}} {
						a, err := c.do(r)
						if err != nil {
							t.Fatalf("round %d, %s of %d bytes: %v", i, r.method, len(r.body), err)
						}
						if a.status != 200 || !bytes.Equal(a.body, r.body) {
							t.Fatalf("round %d, %s: status %d with %d bytes, want 200 with %d", i, r.method, a.status, len(a.body), len(r.body))
						}
					}
				}
			}
			server.eventuallyServed(t, "REQMOD", 4*rounds)
			server.eventuallyServed(t, "RESPMOD", 2*rounds)
			if opened := g.opened(); opened > 2*(4*rounds/101+2) {
				t.Errorf("%d server connections for %d requests", opened, 8*rounds)
			}
			g.noRejects()
		})
	}
}

// TestUntrustedServer wants that nothing is sent to a server whose certificate is not the right one.
func TestUntrustedServer(t *testing.T) {
	checkLeaks(t)
	server := startCICAP(t, "")
	address, trust := startTunnel(t, server)
	_, stranger := makeCertificate(t)
	asked := server.served(t, "OPTIONS") // by startCICAP
	tests := []struct{ name, pool string }{
		{"wrong name", fmt.Sprintf("tls: {ca_file: %q, server_name: other.example}", trust)},
		{"unknown authority", fmt.Sprintf("tls: {ca_file: %q}", stranger)},
		{"authorities of the system", "tls: {}"},
		{"plain to a TLS port", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			g := startGatewayUnchecked(t, []string{address}, test.pool)
			c := g.dial(icap, "/echo")
			for _, r := range []request{{method: "REQMOD", body: []byte("secret")}, {method: "OPTIONS"}} {
				a, err := c.do(r)
				if err != nil {
					t.Fatal(err)
				}
				if a.status != 502 && a.status != 503 {
					t.Errorf("%s: status %d, want 502 or 503", r.method, a.status)
				}
			}
			eventually(t, "a failed check", func() bool { return g.sum("checks_total", `result="failed"`) > 0 })
			if g.sum("server_up", "") != 0 {
				t.Error("the server is up")
			}
		})
	}
	for method, want := range map[string]int{"REQMOD": 0, "RESPMOD": 0, "OPTIONS": asked} {
		if n := server.served(t, method); n != want {
			t.Errorf("%d %s have reached c-icap, want %d", n, method, want)
		}
	}
}
