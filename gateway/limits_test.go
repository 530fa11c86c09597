package gateway

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"icapgate/bench/dlpstub"
)

// ask sends one request and wants its answer.
func (c *client) ask() {
	c.t.Helper()
	c.send(fits204)
	c.status(204)
}

// At a limit of connections new clients are closed at once, those that are there go on, and a place that comes free is used again.
func TestConnectionLimits(t *testing.T) {
	for _, v := range []struct {
		name, rest string
		listener   int
		reason     string
		overloaded float64
	}{
		{"all", "limits: {max_connections: 3}", 0, "connections", 1},
		{"all, plain", "limits: {max_connections: 3}", 1, "connections", 1},
		{"listener", `
listeners:
  - {name: icaps, address: "127.0.0.1:0", max_connections: 3, tls: {certificates: [{cert_file: CERT}]}}
  - {name: icap, address: "127.0.0.1:0"}
`, 0, "listener_connections", 0},
	} {
		t.Run(v.name, func(t *testing.T) {
			_, server := startStub(t, dlpstub.Config{})
			g := startGateway(t, []string{server}, quiet, v.rest).ready()
			refused := fmt.Sprintf(`refused_total{listener=%q,reason=%q}`, g.listeners[v.listener].name, v.reason)
			var there []*client
			for range 3 {
				c := g.dial(v.listener)
				c.ask()
				there = append(there, c)
			}
			if n := g.metric(fmt.Sprintf("client_connections{listener=%q}", g.listeners[v.listener].name)); n != 3 {
				t.Errorf("client_connections is %v, want 3", n)
			}
			for i := range 3 {
				dialPlain(t, g.address(v.listener)).closed()
				if n := g.metric(refused); n != float64(i+1) {
					t.Errorf("%s is %v, want %d", refused, n, i+1)
				}
				for _, c := range there {
					c.ask()
				}
			}
			if n := g.metric(`overloaded{reason="connections"}`); n != v.overloaded {
				t.Errorf("overloaded is %v, want %v", n, v.overloaded)
			}
			if st := g.Status().Limits; (len(st.Overloaded) > 0) != (v.overloaded > 0) || st.Connections != 3 {
				t.Errorf("status %+v", st)
			}
			if err := g.Ready("dlp"); err != nil {
				t.Errorf("not ready: %v", err)
			}
			there[0].Close()
			eventually(t, "a free place", func() bool { return g.listeners[v.listener].clients.Load() == 2 })
			g.dial(v.listener).ask()
		})
	}
}

// A reload changes limits; clients beyond a smaller one stay.
func TestLimitsReload(t *testing.T) {
	_, server := startStub(t, dlpstub.Config{})
	r := startReloader(t, server)
	r.ready()
	open := r.metric("max_connections")
	a, b := r.dial(0), r.dial(1)
	a.ask()
	b.ask()
	r.text += "\nlimits: {max_connections: 1}"
	r.reload()
	if n := r.metric("max_connections"); n != 1 {
		t.Errorf("max_connections is %v, want 1", n)
	}
	a.ask()
	b.ask()
	dialPlain(t, r.address(1)).closed()
	r.text = strings.ReplaceAll(r.text, "max_connections: 1", "max_connections: 0")
	r.reload()
	if n := r.metric("max_connections"); n != open {
		t.Errorf("max_connections is %v, want %v as before", n, open)
	}
	r.dial(1).ask()
}

// What is not allowed by the open files is cut down to it.
func TestMaxConnectionsBeyondOpenFiles(t *testing.T) {
	_, server := startStub(t, dlpstub.Config{})
	g := startGateway(t, []string{server}, quiet, "limits: {max_connections: 1048576}")
	if n := int64(g.metric("max_connections")); n != g.limits.most.Load()/2 || n < 1 {
		t.Errorf("max_connections is %d, with %d descriptors for sockets", n, g.limits.most.Load())
	}
	g.limits.openFiles = g.limits.inUse + reservedFiles + 2
	if err := g.limits.apply(g.config.Load(), g.table.Load()); err == nil || !strings.Contains(err.Error(), "LimitNOFILE") {
		t.Errorf("with too few open files: %v", err)
	}
}

// At a limit of connections, handshakes that keep the gateway waiting make room, before the ClientHello and after it.
func TestStalledHandshakesMakeRoom(t *testing.T) {
	hello := clientHello(t)
	for name, sent := range map[string][]byte{"silent": nil, "part of a ClientHello": hello[:100], "ClientHello": hello} {
		t.Run(name, func(t *testing.T) {
			_, server := startStub(t, dlpstub.Config{})
			g := startGateway(t, []string{server}, quiet, "limits: {max_connections: 16}").ready()
			h := &g.listeners[0].handshakes
			var stalled []*client
			for range 16 {
				c := dialPlain(t, g.address(0))
				c.send(string(sent))
				stalled = append(stalled, c)
			}
			eventually(t, "all of them wait", func() bool {
				h.mu.Lock()
				defer h.mu.Unlock()
				return h.silent.Len()+h.halfOpen.Len() == 16 && (h.halfOpen.Len() == 16) == (len(sent) == len(hello))
			})
			for range 3 {
				g.dial(0).ask()
			}
			if len(sent) < len(hello) { // else their order is that in which handshakes came so far
				for _, c := range stalled[:3] {
					c.rest() // to its end
				}
			}
			if n := g.metric(`handshakes_total{listener="icaps",result="evicted",version="none"}`); n != 3 {
				t.Errorf("%v were evicted, want 3", n)
			}
			if n := g.limits.clients.Load(); n != 16 {
				t.Errorf("%d clients are counted, want 16", n)
			}
			g.dial(1).ask() // the plain listener is heard, too
		})
	}
}

// When sessions have the places, the few handshakes that wait are not closed for each other.
func TestNewcomersDoNotEvictEachOther(t *testing.T) {
	_, server := startStub(t, dlpstub.Config{})
	g := startGateway(t, []string{server}, quiet, "limits: {max_connections: 16}").ready()
	for range 15 {
		g.dial(0).ask()
	}
	newcomer := dialPlain(t, g.address(0))
	eventually(t, "the newcomer in its handshake", func() bool { return g.limits.clients.Load() == 16 })
	dialPlain(t, g.address(0)).closed()
	secure(t, g, newcomer).ask()
}

// secure makes the handshake on a connection that is there.
func secure(t *testing.T, g *testGateway, c *client) *client {
	t.Helper()
	tc := tls.Client(c.Conn, &tls.Config{RootCAs: g.roots, ServerName: "127.0.0.1"})
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	return newClient(t, tc)
}

// A handshake that is at work for the client is not in the list of those that wait for it.
func TestHalfOpenBooks(t *testing.T) {
	hello := clientHello(t)
	synctest.Test(t, func(t *testing.T) {
		ls := newHandshakeListener(t)
		h := &ls.handshakes
		client, server := ls.connect()
		go func() { _, _ = client.Write(hello) }()
		synctest.Wait() // net.Pipe has no buffer: it is about to write its answer
		if e, ok := h.pending[server]; !ok || e != nil {
			t.Error("a handshake at work is not in the books as such")
		}
		buf := make([]byte, 16<<10)
		for h.halfOpen.Len() == 0 {
			if _, err := client.Read(buf); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if h.pending[server] == nil || h.silent.Len() != 0 {
			t.Error("a handshake that waits for its client is not in the books as such")
		}
		if !ls.evict(1) || len(h.pending) != 0 || h.halfOpen.Len() != 0 || !isClosed(client) {
			t.Error("it was not evicted")
		}
		if ls.evict(1) {
			t.Error("there is one more to evict")
		}
		h.closeAll(ls)
	})
}

// Without a descriptor for a connection to a server a request waits. It is no fault of the server.
func TestNoDescriptorForServer(t *testing.T) {
	serverTLS, file := serverCertificate(t)
	for _, v := range []struct {
		name, pool string
		cfg        dlpstub.Config
	}{
		{"plain", "", dlpstub.Config{}},
		{"tls", fmt.Sprintf("    tls: {ca_file: %q}\n", file), dlpstub.Config{TLS: serverTLS}},
	} {
		t.Run(v.name, func(t *testing.T) {
			_, server := startStub(t, v.cfg)
			g := startGateway(t, []string{server}, quiet+v.pool+"    timeouts: {connect: 300ms}\n", "").ready()
			c := g.dial(0)
			eventually(t, "the session", func() bool { return g.Sessions() == 1 })
			g.limits.most.Store(1) // which the client has
			c.send(fits204)
			if head := c.status(503); !strings.Contains(head, "Retry-After: 1\r\n") || strings.Contains(head, "close") {
				t.Errorf("got %q", head)
			}
			c.send(fits204)
			eventually(t, "a request that waits", func() bool { return g.metric(fmt.Sprintf("server_in_flight{pool=\"dlp\",server=%q}", server)) == 1 })
			g.limits.most.Store(2)
			c.status(204)
			for series, want := range map[string]float64{
				`rejects_total{reason="overloaded"}`:                   1,
				`closes_total{side="server",reason="no_descriptor"}`:   1,
				`closes_total{side="server",reason="connect_failed"}`:  0,
				`checks_total{result="failed"}`:                        0,
				fmt.Sprintf(`server_up{pool="dlp",server=%q}`, server): 1,
			} {
				if got := g.metric(series); got != want {
					t.Errorf("%s is %v, want %v", series, got, want)
				}
			}
			c.Close()
			eventually(t, "nothing counted", func() bool { return g.limits.clients.Load() == 0 })
			g.closeIdle()
			eventually(t, "nothing taken", func() bool { return g.limits.taken.Load() == 0 })
		})
	}
}

// fits204 is a request that a fake server answers with 204.
const fits204 = "REQMOD icap://gw/reqmod ICAP/1.0\r\nHost: gw\r\nAllow: 204\r\nEncapsulated: null-body=0\r\n\r\n"

// Idle connections are closed when a descriptor is needed for another.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	_, first := startStub(t, dlpstub.Config{})
	_, second := startStub(t, dlpstub.Config{})
	g := startGateway(t, []string{first, second}, quiet+"    balance: round_robin\n    timeouts: {connect: 15s}\n", "").ready()
	c := g.dial(1)
	c.ask()
	g.limits.most.Store(2) // one client, one idle connection
	c.ask()                // the other server's turn
	if n := g.metric(`closes_total{side="server",reason="no_descriptor"}`); n != 1 {
		t.Errorf("%v idle connections were closed, want 1", n)
	}
	if n := g.limits.taken.Load(); n != 1 {
		t.Errorf("%d descriptors are taken, want 1", n)
	}
}

// Clients are refused while too much memory is in use, and sessions go on.
func TestMemoryLimit(t *testing.T) {
	_, server := startStub(t, dlpstub.Config{})
	g := startGateway(t, []string{server}, quiet, "").ready()
	before := g.metric("max_memory_bytes")
	there := []*client{g.dial(0), g.dial(1)}
	for _, c := range there {
		c.ask()
	}
	g.limits.memoryFull.Store(true)
	g.limits.maxMemory.Store(1) // from now on the watch finds the same, whatever is in use
	for i := range there {
		dialPlain(t, g.address(i)).closed()
		there[i].ask()
		if n := g.metric(fmt.Sprintf(`refused_total{listener=%q,reason="memory"}`, g.listeners[i].name)); n != 1 {
			t.Errorf("%v refusals are counted, want 1", n)
		}
	}
	if n := g.metric(`overloaded{reason="memory"}`); n != 1 {
		t.Errorf("overloaded is %v", n)
	}
	if st := g.Status().Limits; !slices.Equal(st.Overloaded, []string{"memory"}) || st.MaxMemory != 1 {
		t.Errorf("status %+v", st)
	}
	if err := g.Ready("dlp"); err != nil {
		t.Errorf("not ready: %v", err)
	}
	g.limits.maxMemory.Store(int64(before))
	eventually(t, "room", func() bool { return g.metric(`overloaded{reason="memory"}`) == 0 })
	g.dial(0).ask()
}

// The memory in use is what the kernel says, and the limit of the configuration is the runtime's too.
func TestMaxMemory(t *testing.T) {
	t.Setenv("GOMEMLIMIT", "")
	t.Cleanup(func() { debug.SetMemoryLimit(math.MaxInt64) })
	_, server := startStub(t, dlpstub.Config{})
	g := startGateway(t, []string{server}, quiet, "limits: {max_memory: 8GiB}").ready()
	most := g.limits.maxMemory.Load() // less where the machine's cgroup says so
	if most < 1 || most > 8<<30 {
		t.Errorf("the limit is %d", most)
	}
	if n := debug.SetMemoryLimit(-1); n != most/100*softLimit {
		t.Errorf("the runtime's limit is %d, want %d %% of %d", n, softLimit, most)
	}
	eventually(t, "a look", func() bool { return g.Status().Limits.Memory > 1<<20 })
	if n, err := g.limits.readResident(); err != nil || n < 1<<20 || n > 8<<30 {
		t.Errorf("%d bytes in use, %v", n, err)
	}
}

// What becomes of new clients, by the memory in use in MiB of 100: a look takes one reading, or two when garbage is collected in between.
func TestMemoryStates(t *testing.T) {
	type look struct {
		after    time.Duration
		readings []int64
		full     bool
	}
	const s = time.Second
	for _, v := range []struct {
		name  string
		looks []look
	}{
		{"below", []look{{s, []int64{10}, false}, {s, []int64{84}, false}}},
		{"garbage only", []look{{s, []int64{90, 50}, false}, {s, []int64{50}, false}, {s, []int64{90, 50}, false}}},
		{"full", []look{{s, []int64{85, 85}, true}, {s, []int64{84}, true}, {s, []int64{76}, true}, {s, []int64{74}, false}, {s, []int64{84}, false}}},
		{"full, then garbage", []look{{s, []int64{99, 86}, true}, {4 * s, []int64{99}, true}, {s, []int64{99, 80}, true}, {s, []int64{80}, true}, {4 * s, []int64{80, 40}, false}}},
	} {
		t.Run(v.name, func(t *testing.T) {
			var left []int64
			m := &limits{gw: &Gateway{log: slog.New(slog.DiscardHandler)}, collect: func() {}}
			m.maxMemory.Store(100 << 20)
			m.resident = func() (int64, error) {
				n := left[0]
				left = left[1:]
				return n << 20, nil
			}
			now := time.Now()
			for i, l := range v.looks {
				now, left = now.Add(l.after), l.readings
				m.look(now)
				if m.memoryFull.Load() != l.full || len(left) > 0 {
					t.Fatalf("look %d: full %v, want %v, %d readings are left", i, m.memoryFull.Load(), l.full, len(left))
				}
			}
			m.memoryFull.Store(true)
			m.maxMemory.Store(0)
			if m.look(now); m.memoryFull.Load() {
				t.Error("full without a limit")
			}
		})
	}
}

func TestCgroupLimit(t *testing.T) {
	for _, v := range []struct {
		name, cgroup string
		files        map[string]string
		want         int64
	}{
		{"none", "0::/\n", nil, 0},
		{"v2", "0::/a/b\n", map[string]string{"a/b/memory.max": "1048576\n"}, 1 << 20},
		{"v2 unlimited", "0::/a\n", map[string]string{"a/memory.max": "max\n"}, 0},
		{"v2 above", "0::/a/b\n", map[string]string{"a/b/memory.max": "max\n", "a/memory.max": "2097152\n"}, 2 << 20},
		{"v2 lowest", "0::/a/b\n", map[string]string{"a/b/memory.max": "4194304\n", "a/memory.max": "2097152\n"}, 2 << 20},
		{"v2 in a container", "0::/\n", map[string]string{"memory.max": "3145728\n"}, 3 << 20},
		{"v1", "4:memory:/a/b\n1:cpu:/\n0::/\n", map[string]string{"memory/a/b/memory.limit_in_bytes": "1048576\n"}, 1 << 20},
		{"v1 with another controller", "4:cpu,memory:/a\n", map[string]string{"memory/a/memory.limit_in_bytes": "1048576\n"}, 1 << 20},
		{"v1 unlimited", "4:memory:/\n", map[string]string{"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0},
		{"v1 in a container", "4:memory:/docker/0123\n", map[string]string{"memory/memory.limit_in_bytes": "1048576\n"}, 1 << 20},
		{"both", "4:memory:/\n0::/u\n", map[string]string{"memory/memory.limit_in_bytes": "2097152\n", "unified/u/memory.max": "1048576"}, 1 << 20},
		{"nonsense", "\n::\nx\n0:\n0::a\n4:memory\n", map[string]string{"memory.max": "many\n"}, 0},
	} {
		t.Run(v.name, func(t *testing.T) {
			proc, mount := t.TempDir(), t.TempDir()
			write := func(name, text string) {
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write(filepath.Join(proc, "cgroup"), v.cgroup)
			for name, text := range v.files {
				write(filepath.Join(mount, name), text)
			}
			if got := cgroupLimit(proc, mount); got != v.want {
				t.Errorf("got %d, want %d", got, v.want)
			}
			t.Setenv("GOMEMLIMIT", "")
			if configured := int64(5 << 20); v.want > 0 {
				if got, from := memoryLimit(configured, proc, mount); got != v.want || from != "cgroup" {
					t.Errorf("with a larger limit of the configuration: %d from %s", got, from)
				}
			} else if got, from := memoryLimit(configured, proc, mount); got != configured || from != "limits.max_memory" {
				t.Errorf("with the limit of the configuration: %d from %s", got, from)
			}
		})
	}
	if got := cgroupLimit(t.TempDir(), t.TempDir()); got != 0 {
		t.Errorf("without a file: %d", got)
	}
}
