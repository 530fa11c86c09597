package e2e

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"icapgate/gateway/e2e/tap"
)

// startE2Guardian runs e2guardian as an ICAP server, with Debian's configuration but for its files, its ports and fewer threads. It listens on all
// addresses, whatever it is told. Its services are /request and /response.
func startE2Guardian(t testing.TB) string {
	t.Helper()
	const installed = "/etc/e2guardian/"
	path := need(t, "e2guardian", "e2guardian")
	d, _, address := startDaemon(t, path, func(dir, address string) []string {
		conf, err := os.ReadFile(installed + "e2guardian.conf")
		if err != nil {
			t.Fatal(err)
		}
		group, err := os.ReadFile(installed + "e2guardianf1.conf") // it looks for that one beside the first
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(address)
		free := func() string {
			_, port, _ := net.SplitHostPort(freeAddress(t))
			return port
		}
		text := string(conf)
		for name, value := range map[string]string{
			"icapport": port, "filterports": free(), "transparenthttpsport": free(), "filterip": "127.0.0.1", "httpworkers": "20", "nodaemon": "on",
			"pidfilename": "'" + dir + "/pid'", "loglocation": "'" + dir + "/access.log'", "filecachedir": "'" + dir + "'",
		} {
			if at := regexp.MustCompile(`(?m)^#?` + name + ` =.*$`).FindStringIndex(text); at != nil {
				text = text[:at[0]] + name + " = " + value + text[at[1]:]
			}
		}
		writeFile(t, filepath.Join(dir, "e2guardianf1.conf"), string(group))
		return []string{"-N", "-c", writeFile(t, filepath.Join(dir, "e2guardian.conf"), text)}
	}, func(address string) error {
		nc, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		c := newClient(t, nc, "icap://"+address+"/request")
		defer c.Close()
		_, err = c.do(request{method: "OPTIONS"})
		return err
	})
	t.Cleanup(func() { _ = d.cmd.Process.Kill() }) // asked to end, it takes its time
	return address
}

// TestE2Guardian lets Squid use two e2guardian through the gateway. e2guardian takes a preview for the whole body, so the gateway ends the previews
// that Squid sends; and it answers no response without the X-ICAP-E2G that its answer to the request has had.
func TestE2Guardian(t *testing.T) {
	checkLeaks(t)
	need(t, "squid", "squid-openssl")
	var servers []*tap.Tap
	var addresses []string
	for range 2 {
		server := startE2Guardian(t)
		tp := startTap(t, "tap before "+server, tap.Config{Gateway: tap.Requests, Target: server, MaxChunk: 1 << 20})
		servers, addresses = append(servers, tp), append(addresses, tp.Address())
	}
	g := startGateway(t, addresses, "preview: off", "services: [{path: /request, pool: dlp}, {path: /response, pool: dlp}]")
	tp, uri := g.tap(icaps)
	s := startSquidOf(t, uri+"/request", uri+"/response", g.certs, "adaptation_masterx_shared_names X-ICAP-E2G\nadaptation_send_client_ip on")
	const most = 1 << 20
	o := startOrigin(t, most+1000)
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(s.url)}}
	t.Cleanup(client.CloseIdleConnections)
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	exchanges := 0
	for _, size := range []int{0, 1, 1023, 4096, 64<<10 - 1, 64<<10 + 1, most} {
		for _, chunked := range []bool{false, true} {
			for _, x := range []exchange{{size % 100, -1, size, chunked}, {size % 100, size, 100, chunked}} {
				exchanges++
				if err := x.run(ctx, o, client); err != nil {
					t.Errorf("%v: %v", x, err)
				}
			}
		}
	}
	s.checkLogs()
	for method, want := range map[string]int{"REQMOD": exchanges, "RESPMOD": exchanges} {
		if n, m := count(tp, method), count(servers[0], method)+count(servers[1], method); n != want || m != want {
			t.Errorf("%s: %d from Squid, %d at the servers, want %d", method, n, m, want)
		}
	}
	previews := 0
	for _, x := range tp.Record().Exchanges {
		if x.Preview >= 0 && x.Request.HasBody {
			previews++
		}
	}
	for _, server := range servers {
		for _, x := range server.Record().Exchanges {
			if x.Preview >= 0 {
				t.Errorf("%s %s with a preview", x.Method, x.Path)
			}
			if x.Status != 200 && x.Status != 204 {
				t.Errorf("%s %s: status %d", x.Method, x.Path, x.Status)
			}
		}
	}
	if previews == 0 {
		t.Error("Squid has sent no preview: the test shows nothing of how they end")
	}
	g.noRejects()
}
