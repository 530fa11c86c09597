package gateway

import (
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/health"
	"icapgate/pool"
)

// startHoles runs a gateway on virtual time in front of some servers that do not answer to connects, and some that work.
func startHoles(t *testing.T, holes, good int, pool string) *virtual {
	t.Helper()
	var list []string
	for range holes {
		list = append(list, blackHole(t))
	}
	for range good {
		_, address := startStub(t, dlpstub.Config{})
		list = append(list, address)
	}
	v := startVirtualFor(t, list, "    balance: round_robin\n    slow_start: 0s\n"+pool, "")
	v.sweeps = true
	return v
}

func (v *virtual) servers0() []*pool.Server { return v.table.Load().pools[0].servers }

// begin sends a request and returns the place of the server that it went to first.
func (v *virtual) begin(c *client) (place int) {
	v.t.Helper()
	servers := v.servers0()
	before := make([]uint64, len(servers))
	for i, s := range servers {
		before[i] = s.Requests()
	}
	v.say(c, RL+"Allow: 204¶"+reqNull)
	eventually(v.t, "an attempt", func() bool {
		place = slices.IndexFunc(servers, func(s *pool.Server) bool { return s.Requests() > before[slices.Index(servers, s)] })
		return place >= 0
	})
	return place
}

// spread sends requests, each on a connection of its own, and takes the answers that come without any time going by. It returns those who wait, and how
// many requests went to each server first.
func (v *virtual) spread(n, holes int) (waiting []*client, went []int) {
	v.t.Helper()
	went = make([]int, len(v.servers0()))
	for range n {
		c := v.connect(1)
		place := v.begin(c)
		went[place]++
		if place < holes {
			waiting = append(waiting, c)
		} else {
			c.status(204)
		}
	}
	return waiting, went
}

// A server whose packets vanish costs the requests that go to it at first one connect timeout, and those that come later nothing: after 250 ms without an
// answer others are preferred, and after the timeout it is ejected, and all who wait for it go elsewhere at once, on every loop.
func TestBlackHole(t *testing.T) {
	v := startHoles(t, 1, 2, "")
	hole := v.servers0()[0]
	waiting, went := v.spread(12, 1)
	if went[0] < 2 || len(waiting) != went[0] {
		t.Fatalf("first requests: %v", went)
	}
	v.pass(connectPatience - 50*time.Millisecond)
	more, went := v.spread(9, 1) // it is not known yet
	if went[0] == 0 {
		t.Fatalf("requests before it is doubted: %v", went)
	}
	waiting = append(waiting, more...)
	v.pass(50*time.Millisecond + time.Duration(tick))
	if st := v.Status().Pools[0].Servers[0]; !st.Doubted || st.Ejected || v.checks.Load() == 0 {
		t.Fatalf("after %v without an answer: %+v", connectPatience, st)
	}
	if _, went = v.spread(9, 1); went[0] != 0 {
		t.Errorf("requests while it is doubted: %v, want none to the first", went)
	}
	v.pass(2*time.Second - connectPatience - 2*time.Duration(tick))
	if got := v.ejected(); got != nil {
		t.Fatalf("ejected before the timeout: %v", got)
	}
	dialled := hole.Requests()
	v.pass(2 * time.Duration(tick))
	for _, c := range waiting { // also of those that came 200 ms later
		c.status(204)
	}
	st := v.Status().Pools[0].Servers[0]
	if !slices.Equal(v.ejected(), []int{0}) || st.EjectionReason != "connect" {
		t.Errorf("after the timeout: %+v", st)
	}
	if _, went = v.spread(9, 1); went[0] != 0 {
		t.Errorf("requests after the timeout: %v, want none to the first", went)
	}
	if n := hole.Requests() - dialled; n != 0 {
		t.Errorf("the silent server was tried %d times more", n)
	}

	// Its check at the start could not connect. So time alone does not bring it back, for a request to find out whether it is there; a check does.
	v.pass(time.Minute)
	if !slices.Equal(v.ejected(), []int{0}) {
		t.Fatal("an ejection for connects has ended by time")
	}
	v.table.Load().pools[0].ejector.Checked(hole.Health, 1000, v.time.Load())
	if got := v.ejected(); got != nil {
		t.Fatalf("%v is ejected after a good check", got)
	}
}

// When the first of several black holes may not be ejected any more, others are preferred all the same.
func TestBlackHolesBeyondMaxShare(t *testing.T) {
	v := startHoles(t, 3, 1, "")
	waiting, went := v.spread(8, 3)
	if slices.Min(went) == 0 {
		t.Fatalf("first requests: %v", went)
	}
	for range 3 { // a request can meet all of them before it comes to the good one
		v.pass(2*time.Second + time.Duration(tick))
	}
	for _, c := range waiting {
		c.status(204)
	}
	if got := v.ejected(); len(got) != 2 {
		t.Errorf("ejected are %v, want 2 of 4", got)
	}
	if _, went = v.spread(8, 3); went[3] != 8 {
		t.Errorf("later requests: %v, want all for the last", went)
	}
}

// A request does not go to the same silent server again, though there is no other one.
func TestSilentServerOnce(t *testing.T) {
	for holes := 1; holes <= 2; holes++ {
		v := startHoles(t, holes, 0, "")
		c := v.connect(1)
		v.say(c, v05)
		v.pass(time.Duration(holes)*2*time.Second - 1)
		v.pass(time.Duration(1 + int64(holes)*tick))
		c.refusal(503, false)
		for i, s := range v.servers0() {
			if s.Requests() != 1 {
				t.Errorf("%d holes: server %d was tried %d times", holes, i, s.Requests())
			}
		}
	}
}

// Without any other server, who is connecting has all of its time: the first one may have been bad luck.
func TestSilentServerAlone(t *testing.T) {
	v := startHoles(t, 1, 0, "    retry: {attempts: 0}\n")
	first, second := v.connect(1), v.connect(1)
	v.say(first, v05)
	v.pass(time.Second)
	v.say(second, v05)
	v.pass(time.Second + time.Duration(tick))
	first.refusal(503, false)
	if n := v.inFlight(); n != 1 {
		t.Fatalf("%d in flight, want the second one", n)
	}
	v.pass(time.Second + time.Duration(tick))
	second.refusal(503, false)
}

// A connect that gets no answer while others do is no black hole.
func TestLostConnect(t *testing.T) {
	v := startHoles(t, 1, 1, "")
	hole := v.servers0()[0]
	waiting, went := v.spread(6, 1)
	if len(waiting) == 0 {
		t.Fatalf("first requests: %v", went)
	}
	v.pass(connectPatience + time.Duration(tick))
	if !hole.Health.Answered(v.time.Load()) { // another request, on another connection
		t.Fatal("the server was not doubted")
	}
	v.pass(2 * time.Second)
	for _, c := range waiting {
		c.status(204)
	}
	if got := v.ejected(); got != nil {
		t.Errorf("%v is ejected for one connect", got)
	}
}

// With TLS to the servers it is the same, and for one that accepts and never shakes hands half of the timeout is patience enough.
func TestBlackHoleTLS(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0") // its backlog accepts
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for name, tt := range map[string]struct {
		address string
		doubted time.Duration
	}{
		"no answer to the connect":   {blackHole(t), connectPatience},
		"no answer in the handshake": {ln.Addr().String(), time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, file := serverCertificate(t)
			good := startTCP(t, cfg)
			v := startVirtualFor(t, []string{tt.address, good.address}, fmt.Sprintf("    balance: round_robin\n    tls: {ca_file: %q}\n", file), "")
			v.sweeps = true
			silent, other := v.servers0()[0], v.servers0()[1]
			other.SetWeight(0)
			c := v.connect(1)
			v.begin(c)
			other.SetWeight(1)
			if tt.doubted > connectPatience {
				eventually(t, "a TCP connection", func() (reached bool) {
					v.testGateway.onLoops(func(l *loop) {
						if h := l.shards[silent]; h != nil && len(h.connecting) > 0 {
							reached = reached || h.connecting[0].reached.Load()
						}
					})
					return reached
				})
			}
			v.pass(tt.doubted - time.Duration(tick))
			if silent.Health.Doubted() {
				t.Fatal("doubted too early")
			}
			v.pass(2 * time.Duration(tick))
			if !silent.Health.Doubted() {
				t.Fatal("not doubted")
			}
			v.pass(2*time.Second - tt.doubted)
			s := good.next(t)
			s.gets(RL + "Allow: 204¶" + reqNull)
			s.send(text(noContent))
			c.status(204)
			s.release()
			if !slices.Equal(v.ejected(), []int{0}) {
				t.Error("it is not ejected")
			}
		})
	}
}

// A server that takes requests and answers none is checked after a second. When the check gets no answer either, others are preferred. Who
// waits for its answer goes on waiting: a timeout is not sent again.
func TestStalledServer(t *testing.T) {
	v, fakes := startEjecting(t, 2, "    balance: round_robin\n    slow_start: 0s\n")
	stalled := v.servers0()[0]
	c := v.connect(1)
	v.servers0()[1].SetWeight(0)
	v.say(c, v05)
	s := fakes[0].next(t)
	s.gets(v05)
	v.servers0()[1].SetWeight(1)
	v.quiet(time.Second)
	v.pass(sweepInterval + time.Duration(tick))
	v.charged("check")
	v.quiet(10 * time.Second) // once
	v.servers.doubt(stalled)  // as after a check without an answer
	for range 4 {
		other := v.connect(1)
		v.say(other, v04)
		o := fakes[1].next(t)
		o.gets(v04)
		o.send(text(page))
		other.expect(text(page))
		o.release()
	}
	s.send(text(page)) // it comes back
	c.expect(text(page))
	s.release()
	v.settle()
	if stalled.Health.Doubted() {
		t.Error("doubted after an answer")
	}
}

// Checks begin and end doubts: those of a server that gets no other requests.
func TestCheckedServerIsDoubted(t *testing.T) {
	held := startFakeHeld(t)
	_, good := startStub(t, dlpstub.Config{})
	g := startGateway(t, []string{held.address, good}, "    slow_start: 0s\n    health: {interval: 100ms, timeout: 50ms, fall: 100}\n", "")
	server := g.table.Load().pools[0].servers[0]
	eventually(t, "a check", server.Health.Checked)
	server.Health.SetState(health.Up)
	eventually(t, "a doubt", server.Health.Doubted)
	c := g.dial(1)
	for range 8 {
		if place := g.ask(c, ""); place != 1 {
			t.Errorf("a request went to server %d", place)
		}
	}
	if st := g.Status().Pools[0].Servers[0]; !st.Doubted || st.Ejected || st.Health != "up" {
		t.Errorf("%+v: want it up, and doubted", st)
	}
	close(held.checks)
	eventually(t, "no doubt", func() bool { return !server.Health.Doubted() })
}

// Requests that wait for a connection of a server of which nothing is heard any more are given to the backup at once.
func TestDoubtMovesWhatWaits(t *testing.T) {
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
	v.servers.doubt(v.servers0()[0])
	b := backup.next(t)
	b.gets(v04)
	b.send(text(page))
	second.expect(text(page))
	b.release()
	s.send(text(page))
	first.expect(text(page))
	s.release()
}

// A request that is waiting for a server of which nothing is heard yet is not given, over and over, one that has not answered to its connect.
func TestSilentServerIsNotWaitedFor(t *testing.T) {
	list := fmt.Sprintf("[%q, {address: %q, max_connections: 2}]", blackHole(t), blackHole(t))
	v := startVirtualIn(t, list, "    ejection: {consecutive: 0}\n", "")
	servers := v.servers0()
	servers[1].SetWeight(0)
	first, second := v.connect(1), v.connect(1)
	v.begin(first)
	v.pass(time.Second)
	servers[0].SetWeight(0)
	servers[1].SetWeight(1)
	v.begin(second)
	v.pass(900 * time.Millisecond)
	servers[0].SetWeight(1)
	v.pass(200 * time.Millisecond) // the first server has not answered to the first request, and all connections of the second are in use
	v.settle()
	if w := v.table.Load().pools[0].queue.Waits(); w.Depth[pool.CauseCap] != 1 || w.Ended[pool.CauseCap] > 1 {
		t.Errorf("%+v: want one request that waits, and goes on waiting", w)
	}
	v.pass(900 * time.Millisecond)
	if n := servers[1].InFlight(); n != 1 {
		t.Errorf("%d in flight on the second server, want the first request", n)
	}
}

// What waits gets a server that is ejected, when nobody else is left and something is heard of it.
func TestReliefOfEjectedServer(t *testing.T) {
	f, other := startFake(t), startFake(t)
	list := fmt.Sprintf("[{address: %q, max_connections: 2}, %q]", f.address, other.address)
	v := startVirtualIn(t, list, "    queue: {timeout: 1h}\n    timeouts: {response: 1h}\n", "")
	servers := v.servers0()
	for range 5 {
		v.table.Load().pools[0].ejector.Failed(servers[1].Health, health.FailedRequest, v.time.Load(), v.time.Load())
	}
	v.servers.doubt(servers[1])
	first, second := v.connect(1), v.connect(1)
	v.say(first, v04)
	s := f.next(t)
	s.gets(v04)
	v.say(second, v04)
	servers[0].Health.SetState(health.Down)
	v.settle()
	other.idle(t)
	v.servers.onCheck(v.table.Load().pools[0], servers[1])(1, true)
	o := other.next(t)
	o.gets(v04)
	o.send(text(page))
	second.expect(text(page))
	s.send(text(page))
	first.expect(text(page))
}

// What waits for the last server of which something is heard goes to the others when that goes down.
func TestDoubtedServerTakesWhatWaits(t *testing.T) {
	f, other := startFake(t), startFake(t)
	list := fmt.Sprintf("[{address: %q, max_connections: 2}, %q]", f.address, other.address)
	v := startVirtualIn(t, list, "    queue: {timeout: 1h}\n    timeouts: {response: 1h}\n", "")
	v.servers.doubt(v.servers0()[1])
	first, second := v.connect(1), v.connect(1)
	v.say(first, v04)
	s := f.next(t)
	s.gets(v04)
	v.say(second, v04)
	v.quiet(time.Second)
	other.idle(t)
	v.servers0()[0].Health.SetState(health.Down)
	o := other.next(t)
	o.gets(v04)
	o.send(text(page))
	second.expect(text(page))
	s.send(text(page))
	first.expect(text(page))
}

// A doubted server is better than none, when the others are busy, or full for longer than a request may wait.
func TestDoubtedServerForWantOfOthers(t *testing.T) {
	full := func(v *virtual) { v.servers0()[0].MarkFull(v.time.Load() + int64(10*time.Second)) }
	busy := func(v *virtual) {
		v.servers0()[0].Learn(1)
		v.servers0()[0].Acquire()
	}
	for name, tt := range map[string]struct {
		queue string
		state func(v *virtual)
	}{
		"full, no queue":       {"{max: 0}", full},
		"full for longer":      {"{timeout: 5s}", full},
		"at its cap, no queue": {"{max: 0}", busy},
	} {
		t.Run(name, func(t *testing.T) {
			f, other := startFake(t), startFake(t)
			v := startVirtualFor(t, []string{f.address, other.address}, "    queue: "+tt.queue+"\n", "")
			tt.state(v)
			v.servers.doubt(v.servers0()[1])
			c := v.connect(1)
			v.say(c, v04)
			o := other.next(t)
			o.gets(v04)
			o.send(text(page))
			c.expect(text(page))
		})
	}
}

// A bad answer to a check is an answer all the same: it begins no doubt, and ends one.
func TestBadAnswerToCheckIsNoDoubt(t *testing.T) {
	f := startFakeHeld(t)
	f.says("", "ICAP/1.0 200 OK¶Encapsulated: null-body=zero¶")
	_, good := startStub(t, dlpstub.Config{})
	g := startGateway(t, []string{f.address, good}, "    health: {interval: 100ms, timeout: 50ms, fall: 100}\n", "")
	server := g.table.Load().pools[0].servers[0]
	eventually(t, "a check", server.Health.Checked)
	eventually(t, "a doubt", server.Health.Doubted)
	close(f.checks)
	eventually(t, "no doubt", func() bool { return !server.Health.Doubted() })
	for n := g.metrics.checks.Failed.Load(); g.metrics.checks.Failed.Load() < n+2; time.Sleep(time.Millisecond) {
		if server.Health.Doubted() {
			t.Fatal("doubted, though it answers")
		}
	}
}

// What a request has waited for a descriptor is not what its server has taken for the connect.
func TestConnectAfterDescriptor(t *testing.T) {
	v := startHoles(t, 1, 1, "")
	servers := v.servers0()
	servers[1].SetWeight(0)
	most := v.limits.most.Swap(1)
	v.limits.taken.Add(1)
	c := v.connect(1)
	v.begin(c)
	v.pass(1900 * time.Millisecond)
	v.limits.taken.Add(-1)
	v.limits.most.Store(most)
	servers[1].SetWeight(1)
	v.pass(200 * time.Millisecond)
	if got := v.ejected(); got != nil || servers[0].Health.Doubted() || servers[0].InFlight() != 1 {
		t.Errorf("after 200 ms of a connect: ejected %v, %+v", got, v.Status().Pools[0].Servers[0])
	}
	v.pass(2 * time.Second)
	c.status(204)
	if got := v.ejected(); !slices.Equal(got, []int{0}) {
		t.Errorf("after its timeout: ejected %v", got)
	}
}
