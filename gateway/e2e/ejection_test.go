package e2e

import (
	"fmt"
	"testing"
	"time"

	"icapgate/bench/dlpstub"
)

// One of three servers fails all requests, in the ways that icapbench serve knows, while its checks are good. Clients see five failures at most, where they see any, and
// the server is ejected; 503 is no failure.
func TestFaultsEject(t *testing.T) {
	for _, tt := range []struct {
		fault  dlpstub.Fault
		reason string // "": it is not ejected
		seen   int    // by clients, at most
	}{
		{dlpstub.Fault{Kind: dlpstub.WrongStatus, Status: 500}, "consecutive", 5},
		{dlpstub.Fault{Kind: dlpstub.Garbage}, "consecutive", 5},
		{dlpstub.Fault{Kind: dlpstub.ResetAnswer}, "consecutive", 5},
		{dlpstub.Fault{Kind: dlpstub.ResetBody}, "consecutive", 0}, // sent again
		{dlpstub.Fault{Kind: dlpstub.WrongStatus, Status: 503}, "", 0},
	} {
		t.Run(fmt.Sprint(tt.fault.Kind, " ", tt.fault.Status), func(t *testing.T) {
			checkLeaks(t)
			var addresses []string
			var stubs []*stub
			for range 3 {
				s := startStub(t, dlpstub.Config{Mode: dlpstub.Echo})
				stubs, addresses = append(stubs, s), append(addresses, s.address)
			}
			g := startGateway(t, addresses, "balance: round_robin")
			c := g.dial(icaps, "/reqmod")
			fault := tt.fault
			fault.Share = 1
			stubs[0].Inject(fault, 0, time.Time{})
			failed := 0
			for i := range 300 {
				a, err := c.do(request{method: "REQMOD", body: fmt.Appendf(nil, "request %d", i), chunk: 1000})
				if err != nil { // the answer had begun
					c = g.dial(icaps, "/reqmod")
				}
				if err != nil || a.status != 200 {
					failed++
				}
			}
			if failed > tt.seen || tt.seen > 0 && failed == 0 {
				t.Errorf("the client saw %d failures, want %d at most", failed, tt.seen)
			}
			for _, reason := range []string{"consecutive", "share", "latency", "connect"} {
				want := 0
				if reason == tt.reason {
					want = 1
				}
				if n := g.sum("ejections_total", fmt.Sprintf("reason=%q", reason)); n != want {
					t.Errorf("%d ejections for %s, want %d", n, reason, want)
				}
			}
			if n := g.sum("server_up", ""); n != 3 {
				t.Errorf("%d servers are up, want 3: their checks are good", n)
			}
		})
	}
}
