package e2e

import (
	"crypto/tls"
	"testing"
	"time"

	"icapgate/bench"
	"icapgate/bench/load"
	"icapgate/bench/scenario"
)

// mixedLoad is a bit of everything that c-icap's echo takes.
const mixedLoad = `
users: {count: 50, skew: 1.2}
requests:
  - {name: upload, weight: 4, profile: zscaler, body: {size: {lognormal: {median: 20KiB, sigma: 2, max: 3MiB}}, form: {}}, chunk: [1KiB, 7, 32KiB]}
  - {name: squid upload, weight: 3, profile: squid, body: {size: {lognormal: {median: 4KiB, sigma: 2, max: 1MiB}}}}
  - {name: download, weight: 3, method: RESPMOD, profile: squid, body: {size: {uniform: {min: 1, max: 100KiB}}}}
  - {name: empty preview, body: 10KiB, preview: 0, allow: [204]}
  - {name: whole preview, body: 1000, preview: 1024}
  - {name: partial, body: 50KiB, preview: 1024, allow: [204, 206]}
  - {name: echo, method: RESPMOD, body: 200KiB, allow: [], expect: {status: [200], body: echo}}
  - {name: get, profile: proxysg}
  - {name: options, method: OPTIONS}
`

// TestLoad sends a mixed load to c-icap, and to two of them through the gateway, and wants every answer to be right. c-icap closes its
// connections after 101 requests, and after an OPTIONS without a word: on its own it loses a client the requests that cross that.
func TestLoad(t *testing.T) {
	need(t, "c-icap", "c-icap")
	run := func(t *testing.T, uri string, keepAlive int, cfg *tls.Config) {
		t.Helper()
		s, err := scenario.Parse("mixed.yaml", []byte(mixedLoad))
		if err != nil {
			t.Fatal(err)
		}
		target, err := bench.ParseTarget(uri)
		if err != nil {
			t.Fatal(err)
		}
		mix, err := s.Compile(target)
		if err != nil {
			t.Fatal(err)
		}
		r, err := load.Run(t.Context(), load.Config{
			Target: target, TLS: cfg, Mix: mix, Connections: 8, PerConn: keepAlive, Requests: 1500, Timeout: time.Minute, Seed: 1,
		})
		if err != nil {
			t.Fatal(err)
		}
		if r.Requests != 1500 || r.Failed != 0 || r.Modified != 0 { // c-icap adds a Via to the heads
			t.Errorf("%d answered, %d with other bodies", r.Requests, r.Modified)
			for kind, e := range r.Errors {
				t.Errorf("%s: %d, such as %s", kind, e.Count, e.Example)
			}
		}
		for _, e := range r.Entries {
			if e.Requests == 0 {
				t.Errorf("no request of %s", e.Name)
			}
		}
		if r.Statuses[200] == 0 || r.Statuses[204] == 0 {
			t.Errorf("answers: %v", r.Statuses)
		}
	}
	t.Run("c-icap", func(t *testing.T) {
		checkLeaks(t)
		run(t, "icap://"+startCICAP(t, "").address+"/echo", 100, nil)
	})
	t.Run("gateway", func(t *testing.T) {
		checkLeaks(t)
		g := startGateway(t, []string{startTapped(t, "", "").address, startTapped(t, "", "").address}, "")
		run(t, "icaps://"+g.address(icaps)+"/echo", 0, &tls.Config{RootCAs: g.roots, ServerName: "127.0.0.1"})
		g.noRejects()
	})
}
