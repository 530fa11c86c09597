package e2e

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"icapgate/gateway/e2e/tap"
)

// Two servers of one service that differ in what they say of themselves.
const (
	firstServer  = "echo.PreviewSize 512\necho.MaxConnections 40\necho.OptionsTTL 600\nService filter srv_content_filtering.so\n"
	secondServer = "echo.PreviewSize 2048\necho.MaxConnections 30\nServiceAlias another echo\n"
	oneService   = "services: [{path: /echo, pool: dlp}]"
)

func startTwo(t testing.TB) []*tapped {
	t.Helper()
	needModule(t, "srv_content_filtering.so", "libc-icap-mod-contentfiltering")
	return []*tapped{startTapped(t, firstServer, "ONE-ONE-1"), startTapped(t, secondServer, "TWO-TWO-2")}
}

func addressesOf(servers []*tapped) (addresses []string) {
	for _, s := range servers {
		addresses = append(addresses, s.address)
	}
	return addresses
}

// count is how many exchanges of a method a tap has seen.
func count(tp *tap.Tap, method string) (n int) {
	for _, x := range tp.Record().Exchanges {
		if x.Method == method {
			n++
		}
	}
	return n
}

// tags are the ISTags that a tap has seen in answers for a path.
func tags(path string, taps ...*tap.Tap) (tags []string) {
	for _, tp := range taps {
		for _, x := range tp.Record().Exchanges {
			if x.Path == path && x.Status != 0 && !slices.Contains(tags, x.ISTag) {
				tags = append(tags, x.ISTag)
			}
		}
	}
	return tags
}

// checkOneService wants that clients saw one service: one ISTag whatever answers, where the servers have one each, and OPTIONS from the gateway.
func checkOneService(t *testing.T, clients []*tap.Tap, servers []*tapped) {
	t.Helper()
	if got := tags("/echo", clients...); len(got) != 1 {
		t.Errorf("clients saw the tags %q, want one", got)
	}
	if got := tags("/echo", servers[0].tap, servers[1].tap); len(got) != 2 {
		t.Errorf("the servers have the tags %q, want two", got)
	}
	for _, tp := range clients {
		for _, x := range tp.Record().Exchanges {
			if x.Method == "OPTIONS" && (x.Status != 200 || !x.Dated) {
				t.Errorf("OPTIONS: status %d, with a Date: %t", x.Status, x.Dated)
			}
		}
	}
}

// TestOneServiceOfClient sends files of many sizes with c-icap-client to a service of two servers that differ, plain and over TLS.
func TestOneServiceOfClient(t *testing.T) {
	checkLeaks(t)
	path := need(t, "c-icap-client", "c-icap")
	servers := startTwo(t)
	g := startGateway(t, addressesOf(servers), "", oneService)
	files := openDir(t)
	sizes := []int{0, 1, 1023, 4096, 64<<10 - 1, 64<<10 + 1, 1 << 20, 10 << 20}
	contents := make(map[int][]byte)
	for _, size := range sizes {
		contents[size] = randomBytes(size)
		writeFile(t, filepath.Join(files, fmt.Sprint(size)), string(contents[size]))
	}
	options := [][]string{nil, {"-nopreview"}, {"-no204"}}
	reqmod, respmod := []string{"-req", "http://origin.example/"}, []string{"-resp", "http://origin.example/"}
	var clients []*tap.Tap
	sent := 0
	for listener, args := range map[int][]string{icap: nil, icaps: {"-tls"}} {
		tp, uri := g.tap(listener)
		clients = append(clients, tp)
		_, address, _ := strings.Cut(uri, "://")
		c := &cicapClient{t, path, openDir(t), transport{name: uri, address: address, args: args, env: []string{"SSL_CERT_FILE=" + g.certs}}}
		printed, _ := c.send("")
		for _, want := range []string{"ICAP/1.0 200 OK", "Methods: REQMOD, RESPMOD", "Preview: 512", "Options-TTL: 600", "Transfer-Preview: *", "Allow: 204"} {
			if !strings.Contains(printed, want) {
				t.Errorf("no %q in the answer to OPTIONS:\n%s", want, printed)
			}
		}
		before := sent
		for _, method := range [][]string{reqmod, respmod} {
			for _, o := range options {
				for _, size := range sizes {
					n, _ := c.echoed(filepath.Join(files, fmt.Sprint(size)), contents[size], slices.Concat(o, method)...)
					sent += n
				}
			}
		}
		if n := count(tp, "REQMOD") + count(tp, "RESPMOD"); n != sent-before {
			t.Errorf("%s: %d requests, the client sent %d", uri, n, sent-before)
		}
	}
	if n := count(servers[0].tap, "REQMOD") + count(servers[0].tap, "RESPMOD") + count(servers[1].tap, "REQMOD") + count(servers[1].tap, "RESPMOD"); n != sent {
		t.Errorf("%d requests at the servers, the client sent %d", n, sent)
	}
	if asked, options := count(clients[0], "OPTIONS")+count(clients[1], "OPTIONS"), count(servers[0].tap, "OPTIONS")+count(servers[1].tap, "OPTIONS"); options > asked/4 {
		t.Errorf("%d OPTIONS at the servers, the client sent %d: they are the gateway's to answer", options, asked)
	}
	checkOneService(t, clients, servers)
	g.noRejects()
}

// TestOneServiceOfSquid lets a Squid use a service of two servers that differ, plain and over TLS, while one of them is restarted.
func TestOneServiceOfSquid(t *testing.T) {
	checkLeaks(t)
	need(t, "squid", "squid-openssl")
	servers := startTwo(t)
	g := startGateway(t, addressesOf(servers), "health: {interval: 1s}", oneService)
	const most = 10 << 20
	o := startOrigin(t, most+1000)
	whole := t // what is started lasts for both
	for listener, name := range map[int]string{icap: "icap", icaps: "icaps"} {
		t.Run(name, func(t *testing.T) {
			tp, uri := (&testGateway{g.Gateway, t, g.pem, g.certs, g.roots}).tap(listener)
			s := startSquid(t, uri+"/echo", g.certs)
			client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(s.url), MaxIdleConnsPerHost: 20}}
			t.Cleanup(client.CloseIdleConnections)
			ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
			defer cancel()

			for _, size := range []int{0, 1, 1023, 4096, 64<<10 - 1, 64<<10 + 1, 1 << 20, most} {
				for _, chunked := range []bool{false, true} {
					for _, x := range []exchange{{size % 100, -1, size, chunked}, {size % 100, size, 100, chunked}} {
						if err := x.run(ctx, o, client); err != nil {
							t.Errorf("%v: %v", x, err)
						}
					}
				}
			}

			// Squid takes a connection that it has kept for a large upload only where the service has a preview.
			before := tp.Record()
			for i := range 20 {
				x := exchange{i, 200_000, 100, i%2 == 0}
				if err := x.run(ctx, o, client); err != nil {
					t.Errorf("%v: %v", x, err)
				}
			}
			after := tp.Record()
			if n := after.Connections - before.Connections; n > 2 {
				t.Errorf("%d connections for 20 large uploads one after the other, want them to be kept", n)
			}
			if n := count(tp, "OPTIONS"); n != 2 { // one for each of Squid's services
				t.Errorf("%d OPTIONS of Squid, want 2", n)
			}

			restart(whole, servers[listener], secondServer, g, func() {
				var group sync.WaitGroup
				for k := range 8 {
					group.Go(func() {
						for i := range 25 {
							x := exchange{k*100 + i, []int{-1, 500, 20_000}[i%3], []int{100, 30_000}[i%2], i%5 == 0}
							if err := x.run(ctx, o, client); err != nil {
								t.Errorf("while a server is restarted: %v: %v", x, err)
							}
						}
					})
				}
				group.Wait()
			})
			if n := count(tp, "OPTIONS"); n != 2 {
				t.Errorf("%d OPTIONS of Squid behind the restart of a server, want 2", n)
			}
			if n := int(o.unended.Swap(0)); n > 5 {
				t.Errorf("%d responses came without their last chunk, more than by Squid's own fault", n)
			}
			s.checkLogs()
			checkOneService(t, []*tap.Tap{tp}, servers)
		})
	}
	g.noRejects()
}

// TestOwnAnswers asks for what the gateway answers by itself: these, too, have a tag and a date, and are canonical.
func TestOwnAnswers(t *testing.T) {
	checkLeaks(t)
	g := startGatewayUnchecked(t, []string{fmt.Sprintf("%q", freeAddress(t))}, "health: {interval: 1s, fall: 1}", oneService)
	eventually(t, "the server is down", func() bool { return g.server(0).Health == "down" })
	tp, uri := g.tap(icaps)
	for _, v := range []struct {
		message string
		status  int
	}{
		{"REQMOD icap://gw/nothing ICAP/1.0\r\nHost: gw\r\nEncapsulated: null-body=0\r\n\r\n", 404},
		{"REQMOD icap://gw/echo ICAP/1.0\r\nHost: gw\r\nEncapsulated: null-body=0\r\n\r\n", 503},
		{"EVIL icap://gw/echo ICAP/1.0\r\nHost: gw\r\nEncapsulated: null-body=0\r\n\r\n", 501},
		{"REQMOD icap://gw/echo ICAP/1.0\r\nHost: gw\r\n\r\n", 400},
		{"REQMOD icap://gw/echo ICAP/2.0\r\nHost: gw\r\n\r\n", 505},
	} {
		c := dialClient(t, uri+"/echo", g.roots)
		if _, err := c.Write([]byte(v.message)); err != nil {
			t.Fatal(err)
		}
		if a, err := c.read(); err != nil || a.status != v.status || a.fields.Get("Date") == "" {
			t.Errorf("%q: %+v, %v, want status %d with a Date", v.message, a, err, v.status)
		}
		c.Close()
	}
	eventually(t, "the end of the connections", func() bool { return g.Sessions() == 0 })
	if n := len(tp.Record().Exchanges); n != 5 {
		t.Errorf("the tap has seen %d exchanges, want 5", n)
	}
}

// restart ends a server while requests are under way, lets more come while it is gone, and starts another one in its place.
func restart(t *testing.T, s *tapped, more string, g *testGateway, traffic func()) {
	t.Helper()
	var group sync.WaitGroup
	group.Go(traffic)
	s.tap.Refuse()
	s.stop()
	eventually(t, "the server is down", func() bool { return g.sum("server_up", "") == 1 })
	traffic()
	group.Wait()
	next := startCICAP(t, more)
	t.Cleanup(s.tap.Cut) // it would wait for them
	s.tap.Forward(next.address)
	if err := s.tap.Listen(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the server is up", func() bool { return g.sum("server_up", "") == 2 })
	traffic()
}
