//go:build !race

package gateway

import (
	"bytes"
	"fmt"
	"path"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sort"
	"strings"
	"testing"

	"icapgate/balancer"
	"icapgate/bench/dlpstub"
)

// steadyExchanges are what a gateway does all day. The server answers an exchange with as many bytes each time.
var steadyExchanges = []struct {
	name    string
	server  dlpstub.Config
	request string
}{
	{"REQMOD 1 KiB", dlpstub.Config{}, RL + "Allow: 204¶" + reqBody + "400¶" + strings.Repeat("x", 1024) + "¶0¶¶"},
	{"RESPMOD 1 KiB echoed", dlpstub.Config{Mode: dlpstub.Echo}, PL + resBody + "400¶" + strings.Repeat("x", 1024) + "¶0¶¶"},
	{"preview with ieof", dlpstub.Config{}, RL + "Preview: 1024¶" + reqBody + "5¶hello¶0; ieof¶¶"},
	{"OPTIONS", dlpstub.Config{}, OL + "¶"},
	{"REQMOD 20 KiB", dlpstub.Config{}, RL + "Allow: 204¶" + reqBody + "5000¶" + strings.Repeat("x", 20<<10) + "¶0¶¶"},
	{"REQMOD 64 KiB", dlpstub.Config{}, RL + "Allow: 204¶" + reqBody + "10000¶" + strings.Repeat("x", 64<<10) + "¶0¶¶"},
	{"RESPMOD 64 KiB echoed", dlpstub.Config{Mode: dlpstub.Echo}, PL + resBody + "10000¶" + strings.Repeat("x", 64<<10) + "¶0¶¶"},
	{"RESPMOD 64 KiB in chunks of 100 bytes", dlpstub.Config{Mode: dlpstub.Echo}, PL + resBody + strings.Repeat("64¶"+strings.Repeat("x", 100)+"¶", 640) + "0¶¶"},
}

// exchanger does one exchange after another on one connection, and allocates nothing on a plain one.
type exchanger struct {
	c       *client
	out, in []byte
}

// startSteady runs a gateway with everything that a gateway has by default; its access log is a file.
func startSteady(t testing.TB, server dlpstub.Config) *testGateway {
	t.Helper()
	_, addr := startStub(t, server)
	rest := fmt.Sprintf("services: [{path: /r, options: merge, istag: \"\"}]\naccess_log: {output: %q}", filepath.Join(t.TempDir(), "access.log"))
	return startGateway(t, []string{addr}, quiet, rest).ready()
}

// newExchanger connects and warms up what its exchanges need.
func newExchanger(t testing.TB, g *testGateway, request string, listener int) *exchanger {
	t.Helper()
	x := &exchanger{c: g.dial(listener), out: []byte(text(request))}
	// The first answer tells how long they all are: another request's one ends it.
	x.c.send(string(x.out))
	x.c.send(text("REQMOD icap://gw/x ICAP/9.9¶¶"))
	all := x.c.rest()
	x.in = make([]byte, strings.LastIndex(all, "ICAP/1.0 505"))
	if len(x.in) == 0 {
		t.Fatalf("got %q", all)
	}
	x.c = g.dial(listener)
	x.run(t, 200)
	return x
}

func (x *exchanger) run(t testing.TB, n int) {
	written := make(chan error, 1)
	for range n {
		if len(x.out) <= 4<<10 {
			if _, err := x.c.Write(x.out); err != nil {
				t.Fatal(err)
			}
		} else { // longer than what the sockets may hold
			go func() { _, err := x.c.Write(x.out); written <- err }()
		}
		for got := 0; got < len(x.in); {
			k, err := x.c.Read(x.in[got:])
			if err != nil {
				t.Fatal(err)
			}
			got += k
		}
		if !bytes.HasPrefix(x.in, []byte("ICAP/1.0 20")) {
			t.Fatalf("got %q", shorten(string(x.in)))
		}
		if len(x.out) > 4<<10 {
			if err := <-written; err != nil {
				t.Fatal(err)
			}
		}
	}
}

// allocated is what one place in the program has allocated.
type allocated struct {
	objects, bytes int64
	where          string
}

// gatewayAllocations runs f and returns what the gateway has allocated meanwhile: in all, and by place. What the test and the fake
// server allocate is not counted.
func gatewayAllocations(f func()) (total allocated, places []allocated) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection would empty the pools
	defer func(rate int) { runtime.MemProfileRate = rate }(runtime.MemProfileRate)
	runtime.MemProfileRate = 1
	before := memProfile()
	f()
	for stack, now := range memProfile() {
		a := allocated{objects: now.objects - before[stack].objects, bytes: now.bytes - before[stack].bytes}
		var ours bool
		if a.where, ours = describeStack(stack); !ours || a.objects == 0 {
			continue
		}
		total.objects += a.objects
		total.bytes += a.bytes
		places = append(places, a)
	}
	sort.Slice(places, func(i, j int) bool { return places[i].objects > places[j].objects })
	return total, places
}

// memProfile returns all that was allocated so far, by stack.
func memProfile() map[[32]uintptr]allocated {
	runtime.GC() // the profile is as of the end of the collection before the latest
	runtime.GC()
	var records []runtime.MemProfileRecord
	for n, ok := runtime.MemProfile(nil, true); !ok; n, ok = runtime.MemProfile(records, true) {
		records = make([]runtime.MemProfileRecord, n+100)
	}
	out := make(map[[32]uintptr]allocated)
	for _, r := range records {
		if r.AllocObjects == 0 {
			continue
		}
		a := out[r.Stack0] // a stack has a record for each size
		a.objects += r.AllocObjects
		a.bytes += r.AllocBytes
		out[r.Stack0] = a
	}
	return out
}

// describeStack names the lowest functions of a stack, and says whether the gateway was running.
func describeStack(stack [32]uintptr) (names string, ours bool) {
	var list []string
	frames := runtime.CallersFrames(stack[:])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.File, "_test.go") || strings.Contains(f.Function, "dlpstub") {
			return "", false
		}
		ours = ours || strings.HasPrefix(f.Function, "icapgate/gateway")
		if !strings.HasPrefix(f.Function, "runtime.") && len(list) < 5 {
			list = append(list, fmt.Sprintf("%s:%d", path.Base(f.Function), f.Line))
		}
		if !more {
			return strings.Join(list, " < "), ours
		}
	}
}

// In the steady state a request allocates nothing, with metrics and access log on.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	for i, scheme := range []string{"icaps", "icap"} {
		for _, e := range steadyExchanges {
			t.Run(scheme+"/"+e.name, func(t *testing.T) {
				x := newExchanger(t, startSteady(t, e.server), e.request, i)
				const requests = 1000
				requireNoAllocations(t, requests, func() { x.run(t, requests) })
			})
		}
	}
}

// Under no policy either, with a key and without, and with affinity.
func TestPoliciesAllocateNothing(t *testing.T) {
	for _, name := range balancer.Names() {
		for _, fields := range []string{"", "X-Client-IP: 192.0.2.7¶"} {
			for _, affinity := range []string{"none", "session"} {
				t.Run(name+"/"+affinity+"/"+fields, func(t *testing.T) {
					g := startSpread(t, 3, "    balance: "+name+"\n    affinity: "+affinity+"\n")
					x := newExchanger(t, g, RL+fields+"Allow: 204¶"+reqNull, 1)
					const requests = 1000
					requireNoAllocations(t, requests, func() { x.run(t, requests) })
				})
			}
		}
	}
}

// Nor do previews that the gateway ends.
func TestEndedPreviewAllocatesNothing(t *testing.T) {
	_, addr := startStub(t, dlpstub.Config{})
	g := startGateway(t, []string{addr}, noPreviews, "").ready()
	for _, request := range []string{preview(9) + "4¶abcd¶0; ieof¶¶", RL + "Preview: 0¶" + reqNull} {
		x := newExchanger(t, g, request, 1)
		const requests = 1000
		requireNoAllocations(t, requests, func() { x.run(t, requests) })
	}
}

// Limits that are not reached cost no allocation either.
func TestLimitsAllocateNothing(t *testing.T) {
	for _, e := range steadyExchanges {
		t.Run(e.name, func(t *testing.T) {
			_, addr := startStub(t, e.server)
			g := startGateway(t, []string{addr}, quiet+"    long_streams: {after: 60s}\n", limited("max_body: 1GiB, max_duration: 60s")).ready()
			x := newExchanger(t, g, e.request, 1)
			const requests = 500
			requireNoAllocations(t, requests, func() { x.run(t, requests) })
		})
	}
}

// The rules of a header policy allocate nothing, and neither do the id of the gateway, an ISTag that is written into every answer, and OPTIONS that are merged.
func TestHeadersAllocateNothing(t *testing.T) {
	for i, scheme := range []string{"icaps", "icap"} {
		for _, e := range []struct {
			name    string
			server  dlpstub.Config
			request string
		}{
			{"REQMOD", dlpstub.Config{}, claimed},
			{"RESPMOD echoed", dlpstub.Config{Mode: dlpstub.Echo}, PL + "X-Client-IP: 198.51.100.7¶X-Debug-A: 1¶" + resBody + "400¶" + strings.Repeat("x", 1024) + "¶0¶¶"},
			{"OPTIONS", dlpstub.Config{}, OL + "X-Client-IP: 198.51.100.7¶¶"},
		} {
			t.Run(scheme+"/"+e.name, func(t *testing.T) {
				_, addr := startStub(t, e.server)
				g := startGateway(t, []string{addr}, quiet, "services: [{path: /r, options: merge, istag: \"\", headers: "+busyPolicy+"}]\ngateway_id: gw-1").ready()
				x := newExchanger(t, g, e.request, i)
				const requests = 1000
				requireNoAllocations(t, requests, func() { x.run(t, requests) })
			})
		}
	}
}

// Messages of all sizes on one gateway do not cost each other their buffers, however many of them are small.
func TestMixedSizesAllocateNothing(t *testing.T) {
	g := startSteady(t, dlpstub.Config{Mode: dlpstub.Echo})
	var mix []*exchanger
	for i := range 2 {
		for _, e := range steadyExchanges {
			mix = append(mix, newExchanger(t, g, e.request, i))
		}
	}
	const rounds = 100
	requireNoAllocations(t, rounds*len(mix), func() {
		for range rounds {
			for i, x := range mix {
				x.run(t, 1)
				mix[i%3].run(t, 3) // small ones
			}
		}
	})
}

// requireNoAllocations fails for each place in the gateway that allocates in more than every 20th of the requests that f makes: the
// collections before have emptied crypto/tls's pool of records. Two small objects for each record are crypto/tls's own.
func requireNoAllocations(t *testing.T, requests int, f func()) {
	t.Helper()
	_, places := gatewayAllocations(f)
	for _, p := range places {
		tlsOwn := strings.HasPrefix(p.where, "tls.(*Conn).readFromUntil:") && p.bytes/p.objects <= 24
		if p.objects >= int64(requests)/20 && !tlsOwn {
			t.Errorf("in %d requests %d objects of %d bytes: %s", requests, p.objects, p.bytes, p.where)
		}
	}
}

// BenchmarkExchange also reports what the gateway itself allocates per request; over TLS that is crypto/tls.
func BenchmarkExchange(b *testing.B) {
	for i, scheme := range []string{"icaps", "icap"} {
		for _, e := range steadyExchanges {
			b.Run(scheme+"/"+strings.ReplaceAll(e.name, " ", "_"), func(b *testing.B) {
				x := newExchanger(b, startSteady(b, e.server), e.request, i)
				const requests = 500
				total, places := gatewayAllocations(func() { x.run(b, requests) })
				for b.Loop() {
					x.run(b, 1)
				}
				b.ReportMetric(float64(total.objects)/requests, "gateway-allocs/op")
				b.ReportMetric(float64(total.bytes)/requests, "gateway-B/op")
				if testing.Verbose() {
					for _, p := range places[:min(len(places), 6)] {
						b.Logf("%8.3f objects %10.1f bytes per request: %s", float64(p.objects)/requests, float64(p.bytes)/requests, p.where)
					}
				}
			})
		}
	}
}
