package e2e

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"icapgate/gateway/e2e/tap"
)

// startTap puts a tap before a server or before the gateway. At the end of the test it must have found nothing in what the gateway said; what the other
// side does in its own way goes to the test's log.
func startTap(t testing.TB, name string, cfg tap.Config) *tap.Tap {
	t.Helper()
	tp, err := tap.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tp.Close()
		r := tp.Record()
		for _, f := range r.Faults[:min(10, len(r.Faults))] {
			t.Errorf("%s: %v", name, f)
		}
		if r.FaultCount > 10 {
			t.Errorf("%s: %d faults in all", name, r.FaultCount)
		}
		if n := r.Lost[cfg.Gateway]; n > 0 {
			t.Errorf("%s: %d connections on which what the gateway says could not be read", name, n)
		}
		t.Logf("%s: %s", name, summary(r))
	})
	return tp
}

// summary says what has passed a tap.
func summary(r tap.Record) string {
	busy, most := 0, 0
	for _, n := range r.Requests {
		busy += min(n, 1)
		most = max(most, n)
	}
	methods := map[string]int{}
	for _, x := range r.Exchanges {
		methods[x.Method]++
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d connections, %d of them with requests, up to %d on one;", r.Connections, busy, most)
	for _, m := range slices.Sorted(maps.Keys(methods)) {
		fmt.Fprintf(&b, " %d %s", methods[m], m)
	}
	fmt.Fprintf(&b, "; %d faults of the gateway, %d remarks on the other side", r.FaultCount, r.RemarkCount)
	byRule := map[tap.Rule][]tap.Finding{}
	for _, f := range r.Remarks {
		byRule[f.Rule] = append(byRule[f.Rule], f)
	}
	for _, rule := range slices.SortedFunc(maps.Keys(byRule), func(a, b tap.Rule) int { return cmp.Compare(len(byRule[b]), len(byRule[a])) }) {
		fmt.Fprintf(&b, "\n\t%d such as %v", len(byRule[rule]), byRule[rule][0])
	}
	return b.String()
}

// tapped is a c-icap behind a tap, which is where the gateway finds it.
type tapped struct {
	*cicap
	tap *tap.Tap
}

// startTapped is startCICAP with a tap. tag takes the place of c-icap's ISTag, which no setting of its own can change: nine characters, "": it stays.
func startTapped(t testing.TB, more, tag string) *tapped {
	t.Helper()
	cfg := tap.Config{MaxChunk: 1 << 20}
	if tag != "" {
		cfg.Alter = func(d tap.Direction, p []byte) {
			// c-icap sends a head in one write, and nothing is on its way before it.
			if i := bytes.Index(p, []byte(`ISTag: "CI0001-XXXXXXXXX"`)); d == tap.Answers && i >= 0 && bytes.HasPrefix(p, []byte("ICAP/1.0 ")) {
				copy(p[i+len(`ISTag: "CI0001-`):], tag)
			}
		}
	}
	return startTappedWith(t, more, cfg)
}

// startTappedWith is startTapped with a tap of one's own.
func startTappedWith(t testing.TB, more string, cfg tap.Config) *tapped {
	t.Helper()
	server := startCICAP(t, more)
	cfg.Gateway, cfg.Target = tap.Requests, server.address
	tp := startTap(t, "tap before "+server.address, cfg)
	return &tapped{&cicap{server.daemon, tp.Address(), server.dir}, tp}
}

// tap puts a tap before a listener of the gateway, and returns the URI by which clients reach the gateway through it.
func (g *testGateway) tap(listener int) (tp *tap.Tap, uri string) {
	g.t.Helper()
	cfg := tap.Config{Gateway: tap.Answers, Target: g.address(listener)}
	scheme := "icap"
	if listener == icaps {
		certificate, err := tls.LoadX509KeyPair(g.pem, g.pem)
		if err != nil {
			g.t.Fatal(err)
		}
		scheme = "icaps"
		cfg.ServerTLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
		cfg.ClientTLS = &tls.Config{RootCAs: g.roots, ServerName: "127.0.0.1"}
	}
	tp = startTap(g.t, "tap before the gateway, "+scheme, cfg)
	return tp, scheme + "://" + tp.Address()
}
