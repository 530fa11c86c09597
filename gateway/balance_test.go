package gateway

import (
	"fmt"
	"testing"

	"icapgate/balancer"
	"icapgate/bench/dlpstub"
)

// Every policy can be configured, and spreads the requests of one client connection over the servers by their weights.
func TestEveryPolicySpreads(t *testing.T) {
	for _, name := range balancer.Names() {
		t.Run(name, func(t *testing.T) {
			var servers []string
			for range 3 {
				_, address := startStub(t, dlpstub.Config{})
				servers = append(servers, address)
			}
			g := startGateway(t, servers, fmt.Sprintf("    balance: %s\n    health: {interval: 1h}\n", name), "").ready()
			if err := g.SetWeight("dlp", servers[2], 0); err != nil {
				t.Fatal(err)
			}
			c := g.dial(1)
			const requests = 200
			for range requests {
				c.send(text(RL + "Allow: 204¶" + reqNull))
				c.status(204)
			}
			got := [3]int{}
			for i, s := range g.table.Load().pools[0].servers {
				got[i] = int(s.Requests())
			}
			least := 50 // 7 standard deviations of those that draw lots; what is in flight does not tell the servers apart
			if name == "peak_ewma" {
				least = 1 // it avoids for a while who has been slow once, which on a busy machine is chance
			}
			if got[0] < least || got[1] < least || got[0]+got[1] != requests || got[2] != 0 {
				t.Errorf("%s: requests %v of %d, want %d of each at least, and none of the weight 0", name, got, requests, least)
			}
		})
	}
}
