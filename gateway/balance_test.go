package gateway

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"icapgate/balancer"
	"icapgate/bench/dlpstub"
	"icapgate/health"
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
			g := startGateway(t, servers, fmt.Sprintf("    balance: %s\n    hash_on: user\n    health: {interval: 1h}\n", name), "").ready()
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

// startSpread runs a gateway in front of n servers that are checked at the start only.
func startSpread(t *testing.T, n int, pool string) *testGateway {
	t.Helper()
	var servers []string
	for range n {
		_, address := startStub(t, dlpstub.Config{})
		servers = append(servers, address)
	}
	return startGateway(t, servers, quiet+pool, "").ready()
}

// ask makes a request with further fields, and returns the place of the server that got it.
func (g *testGateway) ask(c *client, fields string) (place int) {
	g.t.Helper()
	servers := g.table.Load().pools[0].servers
	before := make([]uint64, len(servers))
	for i, s := range servers {
		before[i] = s.Requests()
	}
	c.send(text(RL + fields + "Allow: 204¶" + reqNull))
	c.status(204)
	place = -1
	for i, s := range servers {
		if s.Requests() != before[i] {
			place = i
		}
	}
	return place
}

// askAll asks once for each of some keys.
func (g *testGateway) askAll(c *client, field string) (places []int) {
	g.t.Helper()
	for i := range 40 {
		places = append(places, g.ask(c, fmt.Sprintf("%s: 192.0.2.%d¶", field, i)))
	}
	return places
}

// Requests with the same key go to the same server, on whatever connection and loop they come. A server that is drained moves its own keys
// only, and gets them back.
func TestHash(t *testing.T) {
	for _, tt := range []struct{ on, field string }{
		{"client_ip", "X-Client-IP"},
		{"client_ip", "x-client-ip"},
		{"user", "X-Authenticated-User"},
		{"user", "X-Client-Username"},
		{`"header:X-Tenant"`, "X-Tenant"},
	} {
		t.Run(tt.on+" "+tt.field, func(t *testing.T) {
			g := startSpread(t, 4, "    balance: hash\n    hash_on: "+tt.on+"\n")
			places := g.askAll(g.dial(1), tt.field)
			for i := range 4 {
				if !slices.Contains(places, i) {
					t.Errorf("no key goes to server %d: %v", i, places)
				}
			}
			for listener := range 2 {
				if again := g.askAll(g.dial(listener), tt.field); !slices.Equal(again, places) {
					t.Errorf("on another connection keys go to %v, before to %v", again, places)
				}
			}

			drained := g.table.Load().pools[0].servers[2].Name
			if err := g.SetAdmin("dlp", drained, "drain"); err != nil {
				t.Fatal(err)
			}
			for i, now := range g.askAll(g.dial(1), tt.field) {
				if now == 2 || places[i] != 2 && now != places[i] {
					t.Errorf("with server 2 drained key %d goes to %d, before to %d", i, now, places[i])
				}
			}
			if err := g.SetAdmin("dlp", drained, "ready"); err != nil {
				t.Fatal(err)
			}
			if again := g.askAll(g.dial(1), tt.field); !slices.Equal(again, places) {
				t.Errorf("with server 2 back keys go to %v, before to %v", again, places)
			}
		})
	}
}

// Without a key a request goes where least_inflight says; client_ip always has one.
func TestHashWithoutKey(t *testing.T) {
	g := startSpread(t, 4, "    balance: hash\n    hash_on: user\n")
	got, c := [4]int{}, g.dial(1)
	for range 40 {
		got[g.ask(c, "X-Client-IP: 192.0.2.1¶")]++
	}
	if got != [4]int{10, 10, 10, 10} {
		t.Errorf("requests without a key: %v, want each server in turn", got)
	}

	g = startSpread(t, 4, "    balance: hash\n")
	first := g.ask(g.dial(1), "")
	for range 10 {
		if place := g.ask(g.dial(1), ""); place != first {
			t.Fatalf("requests of one address go to %d and %d", first, place)
		}
	}
	if said := g.ask(g.dial(1), "X-Client-IP: 127.0.0.1¶"); said != first {
		t.Errorf("the address goes to %d from the client itself, and to %d from a proxy", first, said)
	}
}

// A server that comes back gets a tenth of its share at first, and all of it after slow_start; the gateway's own start is none.
func TestSlowStart(t *testing.T) {
	var servers []string
	for range 2 {
		_, address := startStub(t, dlpstub.Config{})
		servers = append(servers, address)
	}
	for name, tolerance := range map[string]int{"round_robin": 1, "least_inflight": 1, "random_two": 70} { // 70: 7 standard deviations
		t.Run(name, func(t *testing.T) {
			v := startVirtualFor(t, servers, "    balance: "+name+"\n    slow_start: 20s\n", "")
			c := v.connect(1)
			ask := func(requests, want int, share float64) {
				t.Helper()
				got := 0
				for range requests {
					got += v.ask(c, "")
				}
				if got < want-tolerance || got > want+tolerance {
					t.Errorf("%d of %d requests for the second server, want %d", got, requests, want)
				}
				if s := v.Status().Pools[0].Servers[1]; s.Share != share || s.SlowStart() != (share < 1) {
					t.Errorf("its weight is said to be %v, want %v", s.Share, share)
				}
				if got := v.metric(fmt.Sprintf("server_weight{pool=%q,server=%q}", "dlp", servers[1])); got != share {
					t.Errorf("its weight is %v in the metrics, want %v", got, share)
				}
			}
			ask(200, 100, 1)
			second := v.table.Load().pools[0].servers[1]
			second.Health.SetState(health.Down)
			ask(20, 0, 1)
			second.Health.SetState(health.Up)
			ask(220, 20, 0.1)
			v.pass(10 * time.Second)
			ask(310, 110, 0.55)
			v.pass(10 * time.Second)
			ask(200, 100, 1)
		})
	}
}
