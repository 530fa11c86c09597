package e2e

import (
	"net/http/httptest"
	"strings"
	"testing"

	"icapgate/bench/serve"
	"icapgate/gateway/admin"
)

// server is what /status says of a server, by its place in the configuration.
func (g *testGateway) server(i int) admin.ServerStatus { return g.Status().Pools[0].Servers[i] }

// TestProbeOfCICAP probes two c-icap servers whose content filter should block the probe; only one of them has the rule for it. With the first
// come the checks of real answers: /filter is a service for both methods, /echo too, and their previews differ.
func TestProbeOfCICAP(t *testing.T) {
	need(t, "c-icap", "c-icap")
	checkLeaks(t)
	const service = "Service filter srv_content_filtering.so\n"
	const rule = "srv_content_filtering.Match Probe body /DLP-PROBE/ score=10\nsrv_content_filtering.Profile default block score{Probe>5}\n"
	needModule(t, "srv_content_filtering.so", "libc-icap-mod-contentfiltering")
	good, blind := startCICAP(t, service+rule), startCICAP(t, service)
	g := startGatewayUnchecked(t, []string{good.address, blind.address},
		`health: {interval: 1s, probe: {path: /filter, body: "this is a DLP-PROBE", interval: 2s, expect: {status: 200, header: "^HTTP/1.. 403 ", body: "(?i)blocked|forbidden|denied"}}}`)
	eventually(t, "the verdict on both", func() bool { return g.server(0).Health == "up" && g.server(1).Health == "down" })
	if st := g.server(0); st.Probe.Result != "ok" {
		t.Errorf("the server with the rule: %+v", st.Probe)
	}
	if st := g.server(1); st.Probe.Result != "failed" || !strings.HasPrefix(st.Probe.Error, "REQMOD /filter: 20") || st.LastError != "" {
		t.Errorf("the server without the rule: %+v, check %q", st.Probe, st.LastError)
	}
	c := g.dial(icap, "/filter")
	for range 5 {
		a, err := c.do(request{method: "REQMOD", body: []byte("harmless"), fields: "Allow: 204\r\n"})
		if err != nil || a.status != 204 && a.status != 200 {
			t.Fatalf("status %d, %v", a.status, err)
		}
	}
	if n := g.sum("attempts_total", `server="`+blind.address+`"`); n != 0 {
		t.Errorf("%d requests went to the server that does not scan", n)
	}
	if options := g.server(0).Options; len(options) != 1 || options[0].Path != "/filter" || options[0].ISTag == "" || len(options[0].Methods) == 0 {
		t.Errorf("the server says of itself %+v", options)
	}
}

// TestProbeOfEcho probes c-icap's echo, which answers previews with 204 and 200 in turn: by a field that both have, and by one that none has.
func TestProbeOfEcho(t *testing.T) {
	checkLeaks(t)
	server := startCICAP(t, "")
	for _, tt := range []struct{ header, health string }{{"^ISTag: .*CI0001", "up"}, {"^X-Blocked:", "down"}} {
		g := startGatewayUnchecked(t, []string{server.address}, `health: {interval: 1s, probe: {path: /echo, body: DLP-PROBE, interval: 1s, expect: {header: "`+tt.header+`"}}}`)
		eventually(t, tt.health, func() bool { return g.server(0).Health == tt.health })
		eventually(t, "some probes", func() bool { return g.sum("probes_total", "") >= 3 })
		if st := g.server(0); st.Health != tt.health || *st.Options[0].Preview != 1024 {
			t.Errorf("%s: %s, %+v, says %+v", tt.header, st.Health, st.Probe, st.Options)
		}
		g.Close()
	}
}

// TestProbeOfServe is a server of icapbench serve that blocks a pattern, until its scanner fails on command.
func TestProbeOfServe(t *testing.T) {
	checkLeaks(t)
	pattern := "DLP-PROBE"
	cfg, err := serve.Listening([]string{"127.0.0.1:0"}, serve.Settings{Match: &pattern})
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := serve.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cluster.Close)
	g := startGateway(t, cluster.Addresses(), `health: {interval: 1s, probe: {path: /reqmod, body: "a DLP-PROBE", interval: 1s, expect: {status: 200, body: "(?i)blocked"}}}`)
	order := func(command string) {
		t.Helper()
		w := httptest.NewRecorder()
		if cluster.Handler().ServeHTTP(w, httptest.NewRequest("POST", command, nil)); w.Code != 200 {
			t.Fatalf("%s: %d, %s", command, w.Code, w.Body)
		}
	}
	for _, step := range []struct{ fault, health, result string }{{"status:100%25:204", "down", "failed"}, {"none", "up", "ok"}} {
		order("/fault?fault=" + step.fault)
		eventually(t, step.health, func() bool { return g.server(0).Health == step.health })
		if st := g.server(0); st.Probe.Result != step.result || st.LastError != "" {
			t.Errorf("%s: probe %+v, check %q", step.fault, st.Probe, st.LastError)
		}
	}
}
