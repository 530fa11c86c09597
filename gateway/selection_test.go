package gateway

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/configs"
	"icapgate/health"
	"icapgate/pool"
)

// gradedPool returns a pool whose servers have these tiers, all of them up.
func gradedPool(tierThreshold, panicThreshold float64, tiers ...int) *poolTable {
	cfg := configs.DefaultPool()
	cfg.TierThreshold, cfg.PanicThreshold = tierThreshold, panicThreshold
	p := &poolTable{queue: pool.NewQueue(1), ejector: new(health.Ejector)}
	var list []member
	for i, tier := range tiers {
		c := configs.DefaultServer()
		c.Address, c.Tier = fmt.Sprintf("192.0.2.%d:1344", i+1), tier
		cfg.Servers = append(cfg.Servers, c)
		s := pool.NewServer(netip.MustParseAddrPort(c.Address), c.Address, 1, pool.Limits{ConnectionShare: 1}, p.queue)
		s.Health.SetState(health.Up)
		list = append(list, member{server: s, from: c.Address, weight: 1, tier: tier})
	}
	p.cfg = cfg
	p.setServers(list)
	return p
}

func TestSelection(t *testing.T) {
	for _, tt := range []struct {
		name   string
		tier   float64
		panics float64
		tiers  []int
		states string // of each server: u up, d down, c checking, m in maintenance, 0 up with weight 0, t up and tried
		want   string // who gets requests
	}{
		{"no tiers", 0, 0, []int{0, 0, 0}, "udc", "a"},
		{"a backup has nothing to do", 0, 0, []int{0, 0, 1}, "udu", "a"},
		{"until nothing else is usable", 0, 0, []int{0, 0, 1}, "ddu", "c"},
		{"for one in maintenance, too", 0, 0, []int{0, 0, 1}, "dmu", "c"},
		{"or without a verdict", 0, 0, []int{0, 1}, "cu", "b"},
		{"or without weight", 0, 0, []int{0, 1}, "0u", "b"},
		{"the place in the list does not matter", 0, 0, []int{2, 1, 1}, "uuu", "bc"},
		{"the third tier", 0, 0, []int{0, 1, 2}, "ddu", "c"},
		{"below the threshold both take part", 0.5, 0, []int{0, 0, 0, 1, 1}, "udduu", "ade"},
		{"at the threshold they do not", 0.5, 0, []int{0, 0, 1}, "udu", "a"},
		{"each tier by itself", 0.6, 0, []int{0, 0, 1, 1, 2}, "ududu", "ace"},
		{"a whole tier is needed", 1, 0, []int{0, 0, 1}, "udu", "ac"},
		{"all have failed for this request", 0, 0, []int{0, 0, 1}, "tdu", "ac"},
		{"one has not", 0, 0, []int{0, 0, 1}, "tuu", "ab"},
		{"panic is off", 0, 0, []int{0, 0, 0}, "ddd", ""},
		{"panic", 0, 0.5, []int{0, 0, 0}, "udd", "abc"},
		{"not yet", 0, 0.5, []int{0, 0}, "ud", "a"},
		{"not for those who have no verdict", 0, 0.5, []int{0, 0, 0}, "ccd", ""},
		{"nor for those that an operator has taken out", 0, 0.5, []int{0, 0, 0}, "umm", "a"},
		{"who get nothing in panic either", 0, 0.5, []int{0, 0, 0}, "ddm", "ab"},
		{"panic is about all tiers", 0, 0.5, []int{0, 1}, "du", "b"},
		{"and goes to all of them", 0, 0.5, []int{0, 1, 1}, "ddu", "abc"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := gradedPool(tt.tier, tt.panics, tt.tiers...)
			var tried bitset
			for i, s := range p.servers {
				switch tt.states[i] {
				case 'd':
					s.Health.SetState(health.Down)
				case 'c':
					s.Health.SetState(health.Checking)
				case 'm':
					s.Health.SetAdmin(health.Maintenance)
				case '0':
					s.SetWeight(0)
				case 't':
					tried.set(i)
				}
			}
			var got strings.Builder
			sel := p.selection(anything, tried)
			for i := range p.servers {
				if p.takes(i, anything, sel) {
					got.WriteByte('a' + byte(i))
				}
			}
			if got.String() != tt.want {
				t.Errorf("%s gets requests, want %s", got.String(), tt.want)
			}
		})
	}
}

// startTiered runs a gateway on virtual time in front of servers of these tiers.
func startTiered(t *testing.T, pool string, tiers ...int) (v *virtual, stubs []*dlpstub.Server) {
	t.Helper()
	var list []string
	for _, tier := range tiers {
		s, address := startStub(t, dlpstub.Config{})
		stubs = append(stubs, s)
		list = append(list, fmt.Sprintf("{address: %q, tier: %d}", address, tier))
	}
	return startVirtualIn(t, "["+strings.Join(list, ", ")+"]", pool, ""), stubs
}

// Backups get requests when nothing else is usable, and none any more when something is; so is told.
func TestBackupTakesOver(t *testing.T) {
	v, _ := startTiered(t, "    slow_start: 0s\n    balance: round_robin\n", 0, 0, 1)
	servers, c := v.table.Load().pools[0].servers, v.connect(1)
	ask := func(want [3]int, tier float64) {
		t.Helper()
		var got [3]int
		for range 4 {
			got[v.ask(c, "")]++
		}
		if got != want {
			t.Errorf("requests %v, want %v", got, want)
		}
		if st := v.Status().Pools[0]; st.Tier != int(tier) || st.Servers[2].Tier != 1 || v.metric(`pool_tier{pool="dlp"}`) != tier {
			t.Errorf("tier %d in the status and %v in the metrics, want %v", st.Tier, v.metric(`pool_tier{pool="dlp"}`), tier)
		}
	}
	ask([3]int{2, 2, 0}, 0)
	servers[0].Health.SetState(health.Down)
	ask([3]int{0, 4, 0}, 0)
	servers[1].Health.SetState(health.Down)
	ask([3]int{0, 0, 4}, 1)
	servers[0].Health.SetState(health.Up)
	ask([3]int{4, 0, 0}, 0)
}

// A request that fails on all servers of a tier goes to a backup, though these are still taken for usable.
func TestBackupTakesWhatFails(t *testing.T) {
	v, stubs := startTiered(t, "", 0, 0, 1)
	c := v.connect(1)
	stubs[0].Close()
	stubs[1].Close()
	if got := v.ask(c, ""); got != 2 {
		t.Errorf("server %d answered, want the backup", got)
	}
}

// Requests that wait for a connection of a server that goes down are given to the backup at once.
func TestBackupTakesWhatWaits(t *testing.T) {
	f, backup := startFake(t), startFake(t)
	list := fmt.Sprintf("[{address: %q, max_connections: 2}, {address: %q, tier: 1}]", f.address, backup.address)
	v := startVirtualIn(t, list, "    queue: {timeout: 1h}\n    timeouts: {response: 1h}\n", "")
	first, second := v.connect(1), v.connect(1)
	v.say(first, v04)
	s := f.next(t)
	s.gets(v04)
	v.say(second, v04)
	v.quiet(time.Second)
	backup.idle(t)
	v.table.Load().pools[0].servers[0].Health.SetState(health.Down)
	b := backup.next(t)
	b.gets(v04)
	b.send(text(page))
	second.expect(text(page))
	s.send(text(page))
	first.expect(text(page))
}

// Requests that wait for the first verdicts go on when these begin the panic.
func TestPanicTakesWhatWaits(t *testing.T) {
	f := startFake(t)
	v := startVirtualIn(t, fmt.Sprintf("[{address: %q}]", f.address), "    panic_threshold: 0.5\n    queue: {timeout: 1h}\n", "")
	server := v.table.Load().pools[0].servers[0]
	server.Health.SetState(health.Checking)
	c := v.connect(1)
	v.say(c, v04)
	v.quiet(time.Second)
	f.idle(t)
	server.Health.SetState(health.Down)
	s := f.next(t)
	s.gets(v04)
	s.send(text(page))
	c.expect(text(page))
}

// In panic requests go to servers that are down, too, and one that fails there is answered by another.
func TestPanic(t *testing.T) {
	v, stubs := startTiered(t, "    panic_threshold: 0.5\n    balance: round_robin\n", 0, 0, 0)
	servers, c := v.table.Load().pools[0].servers, v.connect(1)
	servers[1].Health.SetState(health.Down)
	for range 4 {
		if got := v.ask(c, ""); got == 1 {
			t.Error("a server that is down got a request")
		}
	}
	servers[2].Health.SetState(health.Down)
	got := [3]int{}
	for range 6 {
		got[v.ask(c, "")]++
	}
	if got != [3]int{2, 2, 2} || !v.Status().Pools[0].Panic || v.metric(`pool_panic{pool="dlp"}`) != 1 {
		t.Errorf("requests %v, want a third for each in panic, and that it is told", got)
	}
	stubs[1].Close()
	stubs[2].Close()
	for range 6 {
		v.ask(c, "")
	}
	if n := v.metric(`rejects_total{reason="no_server"}`); n != 0 {
		t.Errorf("%v requests failed", n)
	}
	servers[2].Health.SetState(health.Up)
	if v.Status().Pools[0].Panic {
		t.Error("panic with two of three up")
	}
}
