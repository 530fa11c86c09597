package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// transport is a way from c-icap-client to the gateway.
type transport struct {
	name    string
	address string
	args    []string
	env     []string
}

// transports are the ways to a gateway: plain, the client's own TLS, and a stunnel in client mode as it stands beside many clients.
func transports(t *testing.T, g *testGateway) []transport {
	tunnel := startStunnel(t, fmt.Sprintf("client = yes\nconnect = %s\nverifyChain = yes\nCAfile = %s\ncheckIP = 127.0.0.1\n", g.address(icaps), g.certs))
	return []transport{
		{name: "plain", address: g.address(icap)},
		{name: "tls", address: g.address(icaps), args: []string{"-tls"}, env: []string{"SSL_CERT_FILE=" + g.certs}},
		{name: "stunnel", address: tunnel},
	}
}

// cicapClient is the program c-icap-client on one transport.
type cicapClient struct {
	t    testing.TB
	path string
	dir  string
	via  transport
}

// send sends a file, or without one asks for OPTIONS. It returns what the client has printed and what it has received: nil for a 204, after
// which the client writes no file. The client exits with 0 whatever has happened, so all is judged by these two.
func (c *cicapClient) send(file string, args ...string) (printed string, received []byte) {
	c.t.Helper()
	host, port, _ := net.SplitHostPort(c.via.address)
	out := filepath.Join(c.dir, "received")
	_ = os.Remove(out) // the client does not overwrite
	all := append([]string{"-i", host, "-p", port, "-s", "echo", "-v"}, c.via.args...)
	if file != "" {
		all = append(all, "-f", file, "-o", out)
	}
	all = append(all, args...)
	printed = run(c.t, c.via.env, c.path, all...)
	received, err := os.ReadFile(out)
	if err == nil && received == nil {
		received = []byte{}
	}
	return printed, received
}

// echoed sends a file until echo has returned it. In a preview it answers 204 every other time.
func (c *cicapClient) echoed(file string, want []byte, args ...string) (sent, unmodified int) {
	c.t.Helper()
	for sent = 1; sent <= 20; sent++ {
		printed, received := c.send(file, args...)
		if received == nil && strings.Contains(printed, "ICAP/1.0 204 ") {
			unmodified++
			continue
		}
		if !strings.Contains(printed, "ICAP/1.0 200 ") || !bytes.Equal(received, want) {
			c.t.Errorf("%v: %d bytes received, %d sent; the client says\n%s", args, len(received), len(want), printed)
		}
		return sent, unmodified
	}
	c.t.Errorf("%v: nothing but 204", args)
	return sent, unmodified
}

// TestClientOfCICAP sends files of many sizes with c-icap-client through the gateway to two stock c-icap servers.
func TestClientOfCICAP(t *testing.T) {
	checkLeaks(t)
	path := need(t, "c-icap-client", "c-icap")
	servers := []*cicap{startCICAP(t, ""), startCICAP(t, "")}
	g := startGateway(t, []string{servers[0].address, servers[1].address}, "")

	files := openDir(t)
	contents := make(map[int][]byte)
	write := func(size int) string {
		file := filepath.Join(files, fmt.Sprint(size))
		if contents[size] == nil {
			contents[size] = randomBytes(size)
			writeFile(t, file, string(contents[size]))
		}
		return file
	}
	sizes := []int{0, 1, 1023, 1024, 1025, 1 << 20} // echo's preview is 1024
	large := 100 << 20
	if testing.Short() {
		large = 8 << 20
	}
	options := [][]string{nil, {"-nopreview"}, {"-no204"}, {"-nopreview", "-no204"}}
	reqmod, respmod := []string{"-req", "http://origin.example/"}, []string{"-resp", "http://origin.example/"}

	sent, unmodified := 0, 0
	for _, via := range transports(t, g) {
		t.Run(via.name, func(t *testing.T) {
			c := &cicapClient{t, path, openDir(t), via}
			printed, _ := c.send("")
			for _, want := range []string{"ICAP/1.0 200 OK", "Methods: REQMOD, RESPMOD", `ISTag: "GW-`, "Preview: 1024"} {
				if !strings.Contains(printed, want) {
					t.Errorf("no %q in the answer to OPTIONS:\n%s", want, printed)
				}
			}
			for _, method := range [][]string{reqmod, respmod} {
				for _, o := range options {
					for _, size := range sizes {
						n, u := c.echoed(write(size), contents[size], slices.Concat(o, method)...)
						sent, unmodified = sent+n, unmodified+u
					}
				}
			}
			n, u := c.echoed(write(large), contents[large], append(reqmod, "-nopreview")...)
			sent, unmodified = sent+n, unmodified+u
			if via.name != "plain" {
				n, u = c.echoed(write(large), contents[large], append(respmod, "-no204")...)
				sent, unmodified = sent+n, unmodified+u
			}
		})
	}

	requests := g.sum("requests_total", `method="REQMOD"`) + g.sum("requests_total", `method="RESPMOD"`)
	if requests != sent {
		t.Errorf("the gateway has counted %d requests, the clients sent %d", requests, sent)
	}
	if unmodified == 0 {
		t.Error("echo has answered no preview with 204")
	}
	checkSpread(t, g, servers, 47)
	attempts, opened := g.sum("attempts_total", ""), g.opened()
	t.Logf("%d transactions (%d of them 204) over %d server connections", attempts, unmodified, opened)
	if opened*10 > attempts {
		t.Errorf("%d server connections for %d transactions", opened, attempts)
	}
	g.noRejects()
}

// checkSpread wants that each of two servers got at least so many per cent of the requests of each method, by the gateway's count
// and by the servers' own.
func checkSpread(t *testing.T, g *testGateway, servers []*cicap, least int) {
	t.Helper()
	for _, method := range []string{"REQMOD", "RESPMOD"} {
		var counted [2]int
		for i, s := range servers {
			counted[i] = g.sum("requests_total", fmt.Sprintf(`server="%s" method="%s"`, s.address, method))
			s.eventuallyServed(t, method, counted[i])
		}
		t.Logf("%s: %d and %d", method, counted[0], counted[1])
		if 100*min(counted[0], counted[1]) < least*(counted[0]+counted[1]) {
			t.Errorf("%s: %d and %d, want at least %d %% for each server", method, counted[0], counted[1], least)
		}
	}
}

// TestKeepAliveLimit sends more requests on one client connection than c-icap takes on one of its own: it closes after 101. It says so with
// the last answer, unless that one is for OPTIONS: then it closes without a word.
func TestKeepAliveLimit(t *testing.T) {
	need(t, "c-icap", "c-icap")
	small, large := randomBytes(700), randomBytes(50_000)
	mixed := func(i int) request {
		switch {
		case i%7 == 0:
			return request{method: "OPTIONS"}
		case i%3 == 0:
			return request{method: "RESPMOD", body: large, chunk: 4096}
		case i%5 == 0:
			return request{method: "REQMOD"}
		}
		return request{method: "REQMOD", body: small, fields: "Allow: 204\r\n"}
	}
	tests := []struct {
		name     string
		servers  int
		listener int
		number   int
		request  func(i int) request
	}{
		{"said", 1, icap, 404, func(int) request { return request{method: "REQMOD", body: small} }},
		{"silent, then REQMOD", 1, icap, 405, func(i int) request {
			if i%101 == 100 {
				return request{method: "OPTIONS"}
			}
			return request{method: "REQMOD", body: large}
		}},
		{"silent, then OPTIONS", 1, icap, 404, func(i int) request { return request{method: "OPTIONS"} }},
		{"mixed", 2, icap, 1000, mixed},
		{"mixed over TLS", 2, icaps, 1000, mixed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			checkLeaks(t)
			var addresses []string
			for range test.servers {
				addresses = append(addresses, startTapped(t, "", "").address)
			}
			g := startGateway(t, addresses, "", "services: [{path: /echo, options: forward}]")
			c := g.dial(test.listener, "/echo")
			for i := range test.number {
				r := test.request(i)
				a, err := c.do(r)
				if err != nil {
					t.Fatalf("request %d, %s: %v", i, r.method, err)
				}
				if a.status != 200 || !bytes.Equal(a.body, r.body) {
					t.Fatalf("request %d, %s: status %d with %d bytes, want 200 with %d", i, r.method, a.status, len(a.body), len(r.body))
				}
			}
			least := (test.number + 100) / 101
			if opened := g.opened(); opened < least || opened > least+test.servers {
				t.Errorf("%d server connections for %d requests, want %d or %d", opened, test.number, least, least+test.servers)
			}
			if n := g.sum("requests_total", `code="200"`); n != test.number {
				t.Errorf("%d requests counted, want %d", n, test.number)
			}
			g.noRejects()
		})
	}
}

// TestFewThreads has more clients at a time than the servers have threads. c-icap gives each connection a thread for as long as it is open, idle
// or not, and lets further ones hang; the gateway keeps within max_connections, with one left free for checks, and lets requests wait instead.
func TestFewThreads(t *testing.T) {
	checkLeaks(t)
	const threads, clients, each = 5, 24, 40
	limits := fmt.Sprintf("StartServers 1\nMaxServers 1\nMinSpareThreads 0\nMaxSpareThreads %d\nThreadsPerChild %d\n", threads, threads)
	var servers []string
	for range 2 {
		servers = append(servers, fmt.Sprintf("{address: %q, max_connections: %d}", startTapped(t, limits, "").address, threads))
	}
	g := startGateway(t, servers, "queue: {timeout: 30s}")
	sizes := []int{0, 800, 30_000, 200_000}
	var group sync.WaitGroup
	for k := range clients {
		c := g.dial(k%2, "/echo")
		group.Go(func() {
			for i := range each {
				body := randomBytes(sizes[(i+k)%len(sizes)])
				a, err := c.do(request{method: "REQMOD", body: body})
				if err != nil {
					t.Errorf("client %d, request %d: %v", k, i, err)
					return
				}
				if a.status != 200 || !bytes.Equal(a.body, body) {
					t.Errorf("client %d, request %d: status %d with %d bytes, want 200 with %d", k, i, a.status, len(a.body), len(body))
				}
			}
		})
	}
	group.Wait()
	if n := g.sum("server_connections", ""); n > 2*(threads-1) {
		t.Errorf("%d server connections at the end, want %d at most", n, 2*(threads-1))
	}
	if n := g.sum("queue_duration_seconds_count", ""); n == 0 {
		t.Error("no request has waited")
	}
	t.Logf("%d requests of %d clients over %d server connections", clients*each, clients, g.opened())
	g.noRejects()
}
