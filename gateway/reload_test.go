package gateway

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/configs"
	"icapgate/gateway/selfsign"
)

// reloader is a running gateway whose configuration a test changes.
type reloader struct {
	*testGateway
	text string // of the configuration that the next reload reads
	cert string
}

const reloadable = `
listeners:
  - {name: icaps, address: "127.0.0.1:0", tls: {certificates: [{cert_file: CERT}]}}
  - {name: icap, address: "127.0.0.1:0"}
access_log: {output: "off"}
`

func startReloader(t *testing.T, servers ...string) *reloader {
	g := startGateway(t, servers, "", reloadable)
	r := &reloader{testGateway: g, cert: g.config.Load().Listeners[0].TLS.Certificates[0].CertFile}
	r.set(servers, "")
	g.load = func() (*configs.Config, error) { return parseBare(r.text) }
	return r
}

// set changes the configuration: its servers and further YAML of the pool.
func (r *reloader) set(servers []string, pool string) {
	r.text = strings.ReplaceAll(reloadable, "CERT", r.cert) +
		fmt.Sprintf("admin: {address: \"off\"}\npools:\n  - name: dlp\n    servers: [%s]\n%s", strings.Join(servers, ", "), pool)
}

func (r *reloader) reload() {
	r.t.Helper()
	if err := r.Reload(); err != nil {
		r.t.Fatal(err)
	}
}

// names are the servers in force.
func (r *reloader) names() (list []string) {
	for _, s := range r.table.Load().pools[0].servers {
		list = append(list, s.Name)
	}
	return list
}

func TestReloadKeepsWhatStays(t *testing.T) {
	_, a := startStub(t, dlpstub.Config{})
	stubB, b := startStub(t, dlpstub.Config{})
	_, c := startStub(t, dlpstub.Config{})
	r := startReloader(t, a, b)
	r.ready()
	client := r.dial(0)
	ask := func() {
		client.send(text(RL + "Allow: 204¶" + reqNull))
		client.status(204)
	}
	for range 8 {
		ask()
	}
	before := r.table.Load().pools[0].servers[0]
	requests := before.Requests()

	r.set([]string{a, c}, "    balance: round_robin\n    slow_start: 0s\n    queue: {max: 7}\n")
	r.reload()
	after := r.table.Load().pools[0].servers[0]
	if after != before || after.Requests() < requests || requests == 0 {
		t.Error("a server that stayed is another one now")
	}
	if got, want := r.names(), []string{a, c}; strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("servers %v, want %v", got, want)
	}
	eventually(t, "connections to the server that left closed", func() bool { return stubB.Stats().Open == 0 })
	r.ready()
	for range 8 { // the same client connection
		ask()
	}
	if n := r.table.Load().pools[0].servers[1].Requests(); n < 3 {
		t.Errorf("the new server got %d requests", n)
	}
}

// A request whose client has gone is waited for by a drain also when a reload has taken its server out.
func TestReloadThenDrain(t *testing.T) {
	old, other := startFake(t), startFake(t)
	r := startReloader(t, old.address)
	r.ready()
	c := r.dial(1)
	c.send(text(v05))
	s := old.next(t)
	s.gets(v05)
	c.reset()
	eventually(t, "the client gone", func() bool { return r.Sessions() == 0 })
	for range 2 {
		r.set([]string{other.address}, "")
		r.reload()
	}
	drained := make(chan struct{})
	go func() { r.Drain(t.Context()); close(drained) }()
	eventually(t, "the drain begun", func() bool { return r.draining.Load() })
	if n := r.inFlight(); n != 1 {
		t.Errorf("%d requests run, want that of the server that was taken out", n)
	}
	s.send(text(page))
	select {
	case <-drained:
	case <-time.After(patience):
		t.Error("the drain does not end")
	}
}

// A server that a reload adds takes requests that wait in the queue already, in their order.
func TestReloadServesWaiting(t *testing.T) {
	for _, loops := range []int{1, 2} {
		t.Run(fmt.Sprintf("loops-%d", loops), func(t *testing.T) {
			withLoops(t, loops)
			old, added := startFake(t), startFake(t)
			for _, f := range []*fakeServer{old, added} {
				f.says("", optionsAnswer+"Max-Connections: 1¶")
			}
			const pool = "    health: {interval: 100ms}\n    reserve: 0\n"
			r := startReloader(t, old.address)
			r.set([]string{old.address}, pool)
			r.reload()
			r.ready()
			first, second, third := r.dial(1), r.dial(1), r.dial(1)
			first.send(text(number(1)))
			busy := old.next(t)
			busy.gets(number(1))
			queue := r.table.Load().pools[0].queue
			for i, c := range []*client{second, third} {
				c.send(text(number(2 + i)))
				eventually(t, "a request in line", func() bool { return queue.Depth() == i+1 })
			}
			r.set([]string{old.address, added.address}, pool)
			r.reload()
			block := v04[strings.Index(v04, "¶¶")+len("¶¶"):]
			var order []string
			for range 2 {
				s := added.next(t)
				uri := strings.Fields(s.head())[1]
				order = append(order, uri[strings.LastIndexByte(uri, '/'):])
				s.expect(text(block))
				s.send(text(page))
				s.release()
			}
			second.expect(text(page))
			third.expect(text(page))
			if got := strings.Join(order, " "); got != "/2 /3" && (loops == 1 || got != "/3 /2") { // loops line up their requests anew at the same time
				t.Errorf("the requests were sent in the order %s", got)
			}
			busy.send(text(page))
			first.expect(text(page))
			busy.release()
		})
	}
}

func TestReloadCertificate(t *testing.T) {
	_, a := startStub(t, dlpstub.Config{})
	r := startReloader(t, a)
	r.ready()
	old := r.dial(0)
	serial := func(c *client) string {
		return c.Conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String()
	}
	pem, err := selfsign.Generate([]string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	r.cert = filepath.Join(t.TempDir(), "new.pem")
	if err := os.WriteFile(r.cert, pem, 0o600); err != nil {
		t.Fatal(err)
	}
	r.set([]string{a}, "")
	r.reload()
	r.roots.AppendCertsFromPEM(pem)
	now := r.dial(0)
	if serial(old) == serial(now) {
		t.Error("a new connection still got the old certificate")
	}
	for _, c := range []*client{old, now} {
		c.send(text(RL + "Allow: 204¶" + reqNull))
		c.status(204)
	}
}

// What can't be put in force changes nothing, and every reason is told.
func TestReloadRefused(t *testing.T) {
	_, a := startStub(t, dlpstub.Config{})
	r := startReloader(t, a)
	r.ready()
	good := r.text
	for _, v := range []struct{ text, want string }{
		{good + "nonsense: 1\n", "nonsense"},
		{strings.Replace(good, `name: icap,`, `name: other,`, 1), "listeners[1].name"},
		{strings.Replace(good, r.cert, r.cert+".gone", 1), "gone"},
		{strings.Replace(good, `{name: icap, address: "127.0.0.1:0"}`, `{name: icap, address: "127.0.0.1:1"}`, 1) + "state_dir: /elsewhere\n", "state_dir"},
		{strings.Replace(good, `{address: "off"}`, `{address: "127.0.0.1:1"}`, 1), "admin"},
	} {
		r.text = v.text
		before := r.table.Load()
		err := r.Reload()
		if err == nil || !strings.Contains(err.Error(), v.want) {
			t.Errorf("got %v, want an error about %s", err, v.want)
		}
		if r.table.Load() != before {
			t.Errorf("%s: something has changed", v.want)
		}
	}
	r.load = func() (*configs.Config, error) { return nil, errors.New("no such file") }
	if err := r.Reload(); err == nil {
		t.Error("a configuration that can't be read was put in force")
	}
	if n := r.metric(`reloads_total{result="failed"}`); n != 6 {
		t.Errorf("%v failed reloads counted", n)
	}
}

// 200 reloads under load, in which servers come and go and the certificate changes, cost no request.
func TestReloadsUnderLoad(t *testing.T) {
	_, a := startStub(t, dlpstub.Config{})
	_, b := startStub(t, dlpstub.Config{})
	_, c := startStub(t, dlpstub.Config{})
	r := startReloader(t, a, b)
	r.ready()
	var second []byte
	first, err := os.ReadFile(r.cert)
	if err == nil {
		second, err = selfsign.Generate([]string{"127.0.0.1"})
	}
	if err != nil {
		t.Fatal(err)
	}
	r.roots.AppendCertsFromPEM(second)

	var stop atomic.Bool
	var running sync.WaitGroup
	var served atomic.Int64
	request := text(RL + "Allow: 204¶" + reqNull)
	fails := make(chan error, 8)
	for i := range 8 {
		running.Go(func() {
			for n := 0; !stop.Load(); n++ {
				if err := r.exchanges(i%2, request, 50, &served); err != nil {
					fails <- err
					return
				}
			}
		})
	}
	pools := [][]string{{a, b}, {a, c}, {b, c}, {c}, {a, b, c}}
	for i := range 200 {
		if err := os.WriteFile(r.cert+".new", [][]byte{first, second}[i%2], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(r.cert+".new", r.cert); err != nil {
			t.Fatal(err)
		}
		r.set(pools[i%len(pools)], "")
		r.reload()
		seen := served.Load()
		eventually(t, "requests between reloads", func() bool { return served.Load() > seen+5 || len(fails) > 0 })
	}
	stop.Store(true)
	running.Wait()
	close(fails)
	for err := range fails {
		t.Error(err)
	}
	t.Logf("%d requests", served.Load())
	eventually(t, "slots and attempts given back", func() bool {
		for _, s := range r.table.Load().pools[0].servers {
			if s.InFlight() != 0 || s.Connections() != s.Idle() {
				return false
			}
		}
		return true
	})
}

// exchanges makes n requests on a connection of its own.
func (r *reloader) exchanges(listener int, request string, n int, served *atomic.Int64) error {
	nc, err := net.Dial("tcp", r.address(listener))
	if err != nil {
		return err
	}
	defer nc.Close()
	if listener == 0 {
		nc = tls.Client(nc, &tls.Config{RootCAs: r.roots, ServerName: "127.0.0.1"})
	}
	_ = nc.SetDeadline(time.Now().Add(patience))
	answer := make([]byte, 4096)
	for range n {
		if _, err := nc.Write([]byte(request)); err != nil {
			return err
		}
		got := ""
		for !strings.HasSuffix(got, "\r\n\r\n") {
			k, err := nc.Read(answer)
			if err != nil {
				return fmt.Errorf("after %q: %w", got, err)
			}
			got += string(answer[:k])
		}
		if !strings.HasPrefix(got, "ICAP/1.0 204 ") {
			return fmt.Errorf("got %q", got)
		}
		served.Add(1)
	}
	return nil
}

// A server that a reload adds comes to its weight slowly, those that were there keep theirs.
func TestReloadStartsSlowly(t *testing.T) {
	_, a := startStub(t, dlpstub.Config{})
	_, b := startStub(t, dlpstub.Config{})
	r := startReloader(t, a)
	r.ready()
	r.set([]string{a, b}, "    slow_start: 1h\n")
	r.reload()
	r.ready()
	servers := r.Status().Pools[0].Servers
	if servers[0].Share != 1 || servers[1].Share < 0.1 || servers[1].Share > 0.2 {
		t.Errorf("shares %v and %v, want 1 and a little more than 0.1", servers[0].Share, servers[1].Share)
	}
}

// A server that comes while the gateway runs has not been checked yet: that is no reason to take the gateway out, with all others that hear of the
// server at the same time.
func TestReadyWithNewServers(t *testing.T) {
	_, a := startStub(t, dlpstub.Config{})
	r := startReloader(t, a)
	eventually(t, "ready", func() bool { return r.Ready("") == nil })
	f := startFakeHeld(t)
	r.set([]string{a, f.address}, "    health: {timeout: 1m}\n")
	r.reload()
	if s := r.table.Load().pools[0].servers[1]; s.Health.Checked() {
		t.Fatal("the new server has been checked")
	}
	if err := r.Ready(""); err != nil {
		t.Errorf("not ready: %v", err)
	}
}

// A request that waits during a reload which takes decision_timeout back is not late because of it.
func TestReloadWithoutDecision(t *testing.T) {
	f := startFake(t)
	r := startReloader(t, f.address)
	set := func(service string) {
		r.set([]string{fmt.Sprintf("{address: %q, max_connections: 1}", f.address)}, "    reserve: 0\n"+quiet+"services: [{path: \"*\", pool: dlp"+service+"}]\n")
		r.reload()
	}
	set(", decision_timeout: 1h")
	r.ready()
	first, second := r.dial(0), r.dial(0)
	first.send(text(v04))
	side := f.next(t)
	side.head()
	side.expect(text(G))
	second.send(text(v04))
	eventually(t, "a request in the queue", func() bool { return r.table.Load().pools[0].queue.Depth() == 1 })
	set("")
	r.onLoops(func(l *loop) {
		for s := range l.sessions {
			if s.tx.waiting {
				s.tx.onDecision()
			}
		}
	})
	side.send(text(page))
	first.expect(text(page))
	side.release()
	side = f.next(t)
	side.head()
	side.expect(text(G))
	side.send(text(page))
	second.expect(text(page))
	side.release()
}
