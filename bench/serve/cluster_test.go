package serve

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"icapgate/bench"
)

// TestProfiles looks at what makes each product different.
func TestProfiles(t *testing.T) {
	c := mustStart(t, `
servers:
  - {listen: "127.0.0.1:0", profile: symantec, name: s, match: SECRET, connection_limit: 2}
  - {listen: "127.0.0.1:0", profile: c-icap, name: c, connection_limit: 1, close_after: 3}
  - {listen: "127.0.0.1:0", profile: e2guardian, name: e}
`)
	symantec, cicap, e2guardian := c.Addresses()[0], c.Addresses()[1], c.Addresses()[2]

	// Symantec: a page with 200, REQMOD only, 503 to the connection beyond although the others are idle.
	nc := mustDial(t, symantec)
	request := "REQMOD icap://s/r ICAP/1.0\r\nAllow: 204\r\nEncapsulated: req-hdr=0, req-body=28\r\n\r\n" + post + "9\r\na SECRET!\r\n0\r\n\r\n"
	if got := exchange(t, nc, request, "</p>\n\r\n0\r\n\r\n"); !strings.HasPrefix(got, "ICAP/1.0 200") || !strings.Contains(got, "HTTP/1.1 200 OK") {
		t.Error(got)
	}
	got := exchange(t, nc, "OPTIONS icap://s/r ICAP/1.0\r\n\r\n", "\r\n\r\n")
	for _, want := range []string{`ISTag: "Vontu12.0"`, "Methods: REQMOD\r\n", "Preview: 4096", "Transfer-Preview: *", "Options-TTL: 3600", "Allow: 204", "Max-Connections: 25"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in %s", want, got)
		}
	}
	exchange(t, mustDial(t, symantec), bodyless, "\r\n\r\n")
	if got := exchange(t, mustDial(t, symantec), bodyless, "\r\n\r\n"); !strings.HasPrefix(got, "ICAP/1.0 503") || !strings.Contains(got, "Connection: close") {
		t.Error(got)
	}

	// c-icap: 200 and 204 in turn, OPTIONS as the last request closes without a word, the connection beyond hangs until then.
	preview := "REQMOD icap://s/r ICAP/1.0\r\nPreview: 4\r\nEncapsulated: req-hdr=0, req-body=28\r\n\r\n" + post + "2\r\nab\r\n0; ieof\r\n\r\n"
	nc = mustDial(t, cicap)
	if got := exchange(t, nc, preview, "0\r\n\r\n"); !strings.HasPrefix(got, "ICAP/1.0 200") {
		t.Error(got)
	}
	beyond := mustDial(t, cicap)
	hanging := make(chan string)
	go func() {
		io.WriteString(beyond, bodyless)
		buf := make([]byte, 1000)
		n, _ := beyond.Read(buf)
		hanging <- string(buf[:n])
	}()
	if got := exchange(t, nc, preview, "\r\n\r\n"); !strings.HasPrefix(got, "ICAP/1.0 204") || strings.Contains(got, "Encapsulated") {
		t.Error(got)
	}
	select {
	case got := <-hanging:
		t.Errorf("answered beyond the limit: %q", got)
	default:
	}
	if got := exchange(t, nc, "OPTIONS icap://s/r ICAP/1.0\r\n\r\n", "\r\n\r\n"); strings.Contains(got, "Connection: close") {
		t.Error(got)
	}
	if rest, err := io.ReadAll(nc); err != nil || len(rest) > 0 {
		t.Errorf("after the last answer: %q, %v", rest, err)
	}
	if got := <-hanging; !strings.HasPrefix(got, "ICAP/1.0 200") { // echo: no preview
		t.Error(got)
	}

	// e2guardian: the preview is all, spelling, 418, 400 without an end.
	nc = mustDial(t, e2guardian)
	got = exchange(t, nc, strings.Replace(strings.Replace(preview, "; ieof", "", 1), "/r", "/request", 1), "2\r\nab\r\n0\r\n\r\n")
	if !strings.HasPrefix(got, "ICAP/1.0 200 OK\r\nISTag:1700000000\r\nX-Server:e\r\nX-ICAP-E2G:-,G,0,0,0,\r\n") {
		t.Error(got)
	}
	respmod := "RESPMOD icap://s/response ICAP/1.0\r\nEncapsulated: null-body=0\r\n\r\n"
	if got := exchange(t, nc, respmod, "\r\n\r\n"); !strings.HasPrefix(got, "ICAP/1.0 418") {
		t.Error(got)
	}
	if got := exchange(t, nc, bodyless, "Service: e\r\n"); got != "ICAP/1.0 400 Bad request\r\nService: e\r\n" {
		t.Error(got)
	}
	if got := exchange(t, nc, "OPTIONS icap://s/request ICAP/1.0\r\n\r\n", "\r\n\r\n"); !strings.HasPrefix(got, "ICAP/1.0 200") || !strings.Contains(got, "Methods: REQMOD\r\n") || strings.Contains(got, "TTL") { // nothing came in between
		t.Error(got)
	}
}

// A server that is down refuses and has no connections; it comes back on its port.
func TestDownAndUp(t *testing.T) {
	c := mustStart(t, `{control: "127.0.0.1:0", servers: [{listen: "127.0.0.1:0", name: a}, {listen: "127.0.0.1:0", name: b}]}`)
	a, b := mustDial(t, c.Addresses()[0]), mustDial(t, c.Addresses()[1])
	exchange(t, a, bodyless, "\r\n\r\n")
	exchange(t, b, bodyless, "\r\n\r\n")
	for range 2 { // the second time changes nothing
		if status, body := command(t, c, "/down", url.Values{"server": {"a"}}); status != 200 || !strings.Contains(body, `"down": true`) {
			t.Fatal(status, body)
		}
	}
	if _, err := a.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection ended with %v", err)
	}
	if nc, err := net.Dial("tcp", c.Addresses()[0]); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new connection: %v", err)
		nc.Close()
	}
	exchange(t, b, bodyless, "\r\n\r\n") // the other one does not mind
	for range 2 {
		if status, body := command(t, c, "/up", nil); status != 200 || strings.Contains(body, `"down": true`) {
			t.Fatal(status, body)
		}
	}
	exchange(t, mustDial(t, c.Addresses()[0]), bodyless, "\r\n\r\n")
	command(t, c, "/down", nil) // it is left down, and Close has to cope
}

func TestCommands(t *testing.T) {
	c := mustStart(t, `{control: "127.0.0.1:0", servers: [{listen: "127.0.0.1:0", name: a, istag: t}, {listen: "127.0.0.1:0", name: b, retry_after: 4s}]}`)
	a, b := mustDial(t, c.Addresses()[0]), mustDial(t, c.Addresses()[1])
	status := func(nc net.Conn) string {
		return strings.Fields(exchange(t, nc, bodyless, "\r\n\r\n"))[1]
	}
	f := func(path string, form url.Values, code int, want string) {
		t.Helper()
		if got, body := command(t, c, path, form); got != code || !strings.Contains(body, want) {
			t.Errorf("%s %v: %d %s, want %d %s", path, form, got, body, code, want)
		}
	}
	f("/fault", url.Values{"fault": {"status:100%:503"}, "count": {"2"}, "server": {"b"}}, 200, `"count": 2`)
	if got := []string{status(b), status(a), status(b), status(b)}; strings.Join(got, " ") != "503 204 503 204" {
		t.Error(got)
	}
	f("/fault", url.Values{"fault": {"status:100%:500"}, "for": {"1h"}, "server": {c.Addresses()[0]}}, 200, `"until": "20`)
	if got := status(a); got != "500" {
		t.Error(got)
	}
	f("/fault", url.Values{"fault": {"none"}}, 200, `"fault": "none"`)
	if got := status(a); got != "204" {
		t.Error(got)
	}
	f("/istag", url.Values{"server": {"a"}}, 200, `"istag": "t-1"`)
	f("/istag", url.Values{"server": {"a"}, "tag": {"new"}}, 200, `"istag": "new"`)
	if got := exchange(t, a, bodyless, "\r\n\r\n"); !strings.Contains(got, `ISTag: "new"`) {
		t.Error(got)
	}
	f("/reset", nil, 200, "")
	for _, nc := range []net.Conn{a, b} {
		if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after the reset: %v", err)
		}
	}

	f("/fault", url.Values{"fault": {"fire"}}, 400, `"fire" is no fault, allowed: refuse`)
	f("/fault", nil, 400, "allowed: refuse")
	f("/fault", url.Values{"fault": {"refuse"}, "count": {"0"}}, 400, "count: ")
	f("/fault", url.Values{"fault": {"refuse"}, "for": {"5"}}, 400, "for: ")
	f("/istag", url.Values{"tag": {"a b"}}, 400, "tag: ")
	f("/down", url.Values{"server": {"x"}}, 404, `no server has the name or address "x"`)
	f("/nothing", nil, 404, "")

	// GET changes nothing, a page of another site neither.
	r, err := http.Get("http://" + c.ControlAddress() + "/down")
	if err != nil || r.StatusCode != http.StatusMethodNotAllowed {
		t.Error(r, err)
	}
	r.Body.Close()
	request, err := http.NewRequest("POST", "http://"+c.ControlAddress()+"/down", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Sec-Fetch-Site", "cross-site")
	if r, err = http.DefaultClient.Do(request); err != nil || r.StatusCode != http.StatusForbidden {
		t.Error(r, err)
	}
	r.Body.Close()
	http.DefaultClient.CloseIdleConnections()

	var states []State
	if err := json.Unmarshal([]byte(mustGet(t, c, "/servers")), &states); err != nil || len(states) != 2 || states[0].Down {
		t.Errorf("%+v, %v", states, err)
	}
	if usage := mustGet(t, c, "/"); !strings.Contains(usage, "POST /fault") {
		t.Error(usage)
	}
}

// TestNothingIsLost is what the counters are for: clients send incidents to two servers of which one fails, send again what was not
// answered, and the ledger shows that each came, and which came twice.
func TestNothingIsLost(t *testing.T) {
	c := mustStart(t, `
control: 127.0.0.1:0
servers:
  - {listen: "127.0.0.1:0", name: good}
  - {listen: "127.0.0.1:0", name: bad, seed: 3, fault: ["reset-body:10%", "reset-answer:10%", "status:10%:503"]}
`)
	const clients, each = 4, 250
	var all sync.WaitGroup
	for client := range clients {
		all.Go(func() {
			var nc net.Conn
			for i := range each {
				request := fmt.Sprintf("REQMOD icap://s/r ICAP/1.0\r\nAllow: 204\r\nX-Incident-ID: run1-%d\r\nEncapsulated: req-body=0\r\n\r\n5\r\nhello\r\n0\r\n\r\n", client*each+i)
				for try := 0; ; try++ {
					if nc == nil {
						var err error
						if nc, err = net.Dial("tcp", c.Addresses()[(i+try+1)%2]); err != nil {
							continue
						}
					}
					buf := make([]byte, 1000)
					io.WriteString(nc, request)
					n, err := nc.Read(buf)
					if err == nil && bytes.HasPrefix(buf[:n], []byte("ICAP/1.0 204")) && bytes.HasSuffix(buf[:n], []byte("\r\n\r\n")) {
						break
					}
					nc.Close()
					nc = nil
				}
				if i%10 == 9 && nc != nil { // so that both servers are used
					nc.Close()
					nc = nil
				}
			}
			if nc != nil {
				nc.Close()
			}
		})
	}
	all.Wait()
	stats, err := ReadStats(strings.NewReader(mustGet(t, c, "/stats")))
	if err != nil {
		t.Fatal(err)
	}
	if len(stats.Runs) != 1 {
		t.Fatalf("%+v", stats)
	}
	run := stats.Runs[0]
	if missing := run.Missing(clients * each); len(missing) > 0 || run.Distinct != clients*each {
		t.Errorf("lost: %v", missing)
	}
	bad := stats.Servers[1]
	// A reset answer means that the incident came, and comes again; the others come whole once.
	if twice := run.Total - run.Distinct; twice == 0 || twice != bad.Faults["reset-answer"] || run.Cut != bad.Faults["reset-body"] || run.Refused != bad.Faults["status"] {
		t.Errorf("run %+v, faults %v", run, bad.Faults)
	}
	if count(run.Repeated()) == 0 {
		t.Error("no repeated ids")
	}
}

func TestReadStats(t *testing.T) {
	c := mustStart(t, `{control: "127.0.0.1:0", servers: [{listen: "127.0.0.1:0", name: a}]}`)
	nc := mustDial(t, c.Addresses()[0])
	for range 3 {
		exchange(t, nc, strings.Replace(bodyless, "Allow", "X-Incident-ID: r-5\r\nAllow", 1), "\r\n\r\n")
	}
	nc.Close()
	c.Close()
	want := c.Stats()
	var text bytes.Buffer
	if err := want.WriteJSON(&text); err != nil {
		t.Fatal(err)
	}
	got, err := ReadStats(&text)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]RunStats{{Run: "r", Distinct: 1, Total: 3, IDs: []Range{{5, 5, 3}}}}, got.Runs); diff != "" {
		t.Error(diff)
	}
	server := got.Servers[0]
	if server.Requests["REQMOD"] != 3 || server.Answers["204"] != 3 || server.RequestsPerConn.Max != 3 || server.Connections != 1 ||
		!cmp.Equal(server.RequestsPerConn.Histogram, []Bucket{{2, 3, 1}}) {
		t.Errorf("%+v", server)
	}
	var lines bytes.Buffer
	got.WriteText(&lines)
	if want := "run r: 1 incidents in 3 requests, highest 5, 5 missing below it, 1 more than once; 0 requests cut short, 0 refused\n"; !strings.Contains(lines.String(), want) {
		t.Errorf("got\n%swant\n%s", lines.String(), want)
	}

	for _, text := range []string{"", "{", `{"kind":"icapbench load"}`, `[]`,
		`{"kind":"icapbench serve","runs":[{"ids":[{"from":3,"to":2,"count":1}]}]}`,
		`{"kind":"icapbench serve","runs":[{"ids":[{"from":3,"to":4,"count":1},{"from":4,"to":4,"count":2}]}]}`,
		`{"kind":"icapbench serve","runs":[{"ids":[{"from":3,"to":4,"count":0}]}]}`} {
		if _, err := ReadStats(strings.NewReader(text)); err == nil {
			t.Errorf("%s was taken for counters", text)
		}
	}
}

func TestMissing(t *testing.T) {
	r := RunStats{IDs: []Range{{2, 4, 1}, {5, 5, 2}, {9, 20, 1}}}
	for n, want := range map[uint64][]Range{0: nil, 1: {{0, 0, 0}}, 3: {{0, 1, 0}}, 9: {{0, 1, 0}, {6, 8, 0}}, 10: {{0, 1, 0}, {6, 8, 0}}, 23: {{0, 1, 0}, {6, 8, 0}, {21, 22, 0}}} {
		if got := r.Missing(n); !cmp.Equal(got, want) {
			t.Errorf("%d: %v, want %v", n, got, want)
		}
	}
	if got := (&RunStats{}).Missing(3); !cmp.Equal(got, []Range{{0, 2, 0}}) {
		t.Error(got)
	}
}

// The certificate that is made for the run is one, and clients that are given it trust every server.
func TestSelfSigned(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.pem")
	c := mustStart(t, fmt.Sprintf(`servers: [{listen: "127.0.0.1:0", tls: true, tls_ca_out: %s}, {listen: "127.0.0.1:0", tls: true, mode: echo}]`, ca))
	pem, err := os.ReadFile(ca)
	if err != nil || bytes.Contains(pem, []byte("KEY")) {
		t.Fatal(err, string(pem))
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	for _, address := range c.Addresses() {
		nc, err := bench.Dial(context.Background(), address, &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		nc.Close()
	}
}

func TestStartFails(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	taken := ln.Addr().String()
	for _, text := range []string{
		`servers: [{listen: "127.0.0.1:0"}, {listen: "` + taken + `"}]`,
		`{control: "` + taken + `", servers: [{listen: "127.0.0.1:0"}]}`,
	} {
		cfg, err := Parse("x.yaml", []byte(text), Settings{})
		if err != nil {
			t.Fatal(err)
		}
		if c, err := Start(cfg); err == nil || !strings.Contains(err.Error(), taken) {
			t.Errorf("%s: %v", text, err)
			c.Close()
		}
	}
}
