package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"icapgate/bench"
	"icapgate/bench/dlpstub"
	"icapgate/bench/result"
	"icapgate/bench/scenario"
	"icapgate/icap"
)

func TestRun(t *testing.T) {
	tests := []struct {
		name     string
		stub     dlpstub.Config
		message  bench.Message
		size     int64
		requests int64
		perConn  int
		status   int
		received int64 // bytes per request
		dials    int64
	}{
		{"REQMOD 204", dlpstub.Config{}, small, 1024, 400, 0, 204, 0, 4},
		{"REQMOD echo", dlpstub.Config{}, bench.Message{Method: icap.MethodReqmod, Preview: -1, No204: true}, 1024, 400, 0, 200, 1024, 4},
		{"RESPMOD echo", dlpstub.Config{Mode: dlpstub.Echo}, bench.Message{Method: icap.MethodRespmod, Preview: -1}, 100000, 100, 0, 200, 100000, 4},
		{"RESPMOD echo without a body", dlpstub.Config{Mode: dlpstub.Echo}, bench.Message{Method: icap.MethodRespmod, Preview: -1}, 0, 100, 0, 200, 0, 4},
		{"OPTIONS", dlpstub.Config{}, bench.Message{Method: icap.MethodOptions, Preview: -1}, 1024, 400, 0, 200, 0, 4},
		{"preview", dlpstub.Config{Mode: dlpstub.Echo}, bench.Message{Method: icap.MethodReqmod, Preview: 512, Profile: bench.Squid}, 1024, 100, 0, 200, 1024, 4},
		{"ieof", dlpstub.Config{Mode: dlpstub.Echo}, bench.Message{Method: icap.MethodReqmod, Preview: 1024}, 1024, 100, 0, 200, 1024, 4},
		{"small chunks", dlpstub.Config{Mode: dlpstub.Echo}, bench.Message{Method: icap.MethodReqmod, Preview: -1, Chunk: 100}, 1024, 100, 0, 200, 1024, 4},
		{"connection per request", dlpstub.Config{}, small, 1024, 40, 1, 204, 0, 40},
		{"server closes", dlpstub.Config{CloseAfter: 1}, small, 1024, 40, 0, 204, 0, 40},
	}
	server, client := testTLS(t)
	for _, tt := range tests {
		for _, secure := range []bool{false, true} {
			for _, open := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/tls=%v/open=%v", tt.name, secure, open), func(t *testing.T) {
					tt.stub.Name = "one"
					cfg := Config{Mix: mustMix(t, tt.message, tt.size), Connections: 4, Requests: tt.requests, PerConn: tt.perConn}
					if secure {
						tt.stub.TLS = server
						cfg.TLS = client
					}
					if open {
						cfg.Stages = Constant(20000, 0)
					}
					var stub *dlpstub.Server
					cfg.Target, stub = serve(t, tt.stub)
					r := mustRun(t, cfg)
					if r.Requests != tt.requests || r.Failed != 0 || r.Begun != tt.requests || r.Statuses[tt.status] != tt.requests || r.Servers["one"] != tt.requests {
						t.Errorf("got %+v %+v", r, r.Errors)
					}
					if r.BytesReceived != tt.received*tt.requests || r.NewHeads != 0 || r.Modified != 0 {
						t.Errorf("received %d, other heads %d, block pages %d", r.BytesReceived, r.NewHeads, r.Modified)
					}
					// A worker that gets no turn has connected all the same.
					if r.Dials < tt.dials || tt.dials > 4 && r.Dials > tt.dials+3 || tt.dials == 4 && r.Dials != 4 {
						t.Errorf("%d connections made, want %d", r.Dials, tt.dials)
					}
					checkHistograms(t, r, secure, open)
					if st := stub.Stats(); st.Requests[tt.message.Method] != uint64(tt.requests) || st.Refused+st.Truncated > 0 {
						t.Errorf("server saw %+v", st)
					}
				})
			}
		}
	}
}

// checkHistograms checks that every request is in every histogram, and the timeline in step with them.
func checkHistograms(t *testing.T, r *result.Result, secure, open bool) {
	t.Helper()
	n := r.Requests
	if r.Latency.Count() != n || r.Service.Count() != n || r.Phases.FirstByte.Count() != n || r.Phases.Connect.Count() != r.Dials {
		t.Errorf("%d latencies, %d service times, %d first bytes, %d connects", r.Latency.Count(), r.Service.Count(), r.Phases.FirstByte.Count(), r.Phases.Connect.Count())
	}
	if want := r.Dials; secure != (r.Phases.Handshake.Count() == want) {
		t.Errorf("%d handshakes over %d connections", r.Phases.Handshake.Count(), want)
	}
	if open != (r.Late.Delay.Count() == n) {
		t.Errorf("%d delays", r.Late.Delay.Count())
	}
	if r.Latency.Max() <= 0 || r.Service.Quantile(50) > r.Latency.Quantile(50) || r.Seconds <= 0 || len(r.Entries) != 1 || r.Entries[0].Latency.Count() != n {
		t.Errorf("latency %v, service %v, entries %+v", r.Latency.Max(), r.Service.Max(), r.Entries)
	}
	var total, begun int64
	for _, p := range r.Timeline.Points {
		total += p.Requests
		begun += p.Begun
	}
	if total != n || begun != n || r.Timeline.Points[len(r.Timeline.Points)-1].InFlight != 0 {
		t.Errorf("%d requests begun and %d ended in the timeline %+v", begun, total, r.Timeline)
	}
}

// TestLies has servers whose answers are wrong, and counts the errors by kind.
func TestLies(t *testing.T) {
	for _, tt := range lies {
		t.Run(tt.name, func(t *testing.T) {
			message := tt.message
			message.Method = icap.MethodReqmod
			cfg := Config{Mix: mustMix(t, message, 1000), Connections: 1, Requests: 3, Timeout: patience}
			cfg.Target = serveBytes(t, func(request []byte) []byte { return tt.answer(trueEcho(request)) })
			if tt.want == bench.Timeout {
				cfg.Timeout = 10 * time.Millisecond
			}
			r := mustRun(t, cfg)
			e := r.Errors[tt.want]
			if r.Requests != 0 || r.Failed != 3 || e == nil || e.Count != 3 || !strings.Contains(e.Example, tt.example) {
				t.Errorf("got %+v, errors %+v", r, e)
				for kind, e := range r.Errors {
					t.Logf("%s: %+v", kind, e)
				}
			}
			if e := r.Timeline.Points[0].Errors[tt.want]; e != 3 {
				t.Errorf("%d errors in the timeline", e)
			}
		})
	}
}

// TestTruth makes sure that the lies fail for what is wrong in them only.
func TestTruth(t *testing.T) {
	target := serveBytes(t, func(request []byte) []byte { return closing(trueEcho(request)) })
	r := mustRun(t, Config{Target: target, Mix: mustMix(t, small, 1000), Connections: 1, Requests: 3})
	if r.Requests != 3 || r.Failed != 0 || r.NewHeads != 0 {
		t.Errorf("%+v %+v", r, r.Errors)
	}
}

// closing makes an answer the last one of its connection.
func closing(answer []byte) []byte {
	return bytes.Replace(answer, []byte("\r\n"), []byte("\r\nConnection: close\r\n"), 1)
}

// TestExpectedBody has an echo, an echo with other heads, another body and a block page.
func TestExpectedBody(t *testing.T) {
	answers := map[string]func(request []byte) []byte{
		"echo": trueEcho,
		"heads": func(request []byte) []byte {
			return bytes.Replace(trueEcho(request), []byte("Accept"), []byte("ACCEPT"), 1)
		},
		"body": func(request []byte) []byte {
			echo := trueEcho(request)
			echo[len(echo)-10] ^= 1
			return echo
		},
		"page": func([]byte) []byte {
			return []byte("ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=26\r\n\r\nHTTP/1.1 403 Forbidden\r\n\r\n5\r\nblock\r\n0\r\n\r\n")
		},
		"204": func([]byte) []byte { return []byte("ICAP/1.0 204 No modifications\r\n\r\n") },
	}
	for _, tt := range []struct {
		expect scenario.ExpectBody
		good   string // answers
	}{
		{scenario.EchoOrBlocked, "echo heads page 204"},
		{scenario.Echo, "echo heads 204"},
		{scenario.Modified, "heads body page 204"},
		{scenario.AnyBody, "echo heads body page 204"},
	} {
		for name, answer := range answers {
			s := scenario.Single(small, 1000)
			s.Requests[0].Expect.Body = tt.expect
			cfg := Config{Mix: mustCompile(t, s), Connections: 1, Requests: 2}
			cfg.Target = serveBytes(t, func(request []byte) []byte { return closing(answer(request)) })
			r := mustRun(t, cfg)
			good := strings.Contains(" "+tt.good+" ", " "+name+" ")
			if good && r.Requests != 2 || !good && (r.Errors[bench.Echo] == nil || r.Errors[bench.Echo].Count != 2) {
				t.Errorf("expect %q, answer %s: %+v %+v", tt.expect, name, r, r.Errors)
			}
			if modified := good && (name == "page" || tt.expect == scenario.Modified && name != "204"); modified != (r.Modified == 2) {
				t.Errorf("expect %q, answer %s: %d modified", tt.expect, name, r.Modified)
			}
		}
	}
}

func TestOverServers(t *testing.T) {
	servers := []*dlpstub.Server{dlpstub.New(dlpstub.Config{Name: "one"}), dlpstub.New(dlpstub.Config{Name: "two"})}
	var mu sync.Mutex
	next := 0
	dial := func(context.Context) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		client, server := net.Pipe()
		servers[next%2].ServeConn(server)
		next++
		return client, nil
	}
	r := mustRun(t, Config{Mix: mustMix(t, bench.Message{Method: icap.MethodOptions}, 0), Dial: dial, Connections: 2, Requests: 20, PerConn: 1})
	servers[0].Close()
	servers[1].Close()
	if r.Servers["one"]+r.Servers["two"] != 20 || r.Servers["one"] < 9 || r.Servers["one"] > 11 {
		t.Errorf("%+v", r.Servers)
	}
	if p := r.Timeline.Points[0].Servers; p["one"] != r.Servers["one"] || p["two"] != r.Servers["two"] {
		t.Errorf("timeline: %+v", p)
	}
}

func TestWithoutAServer(t *testing.T) {
	target, stub := serve(t, dlpstub.Config{})
	stub.Close()
	for _, stages := range [][]result.Stage{nil, Constant(100, 0)} {
		r := mustRun(t, Config{Target: target, Mix: mustMix(t, small, 10), Connections: 3, Requests: 4, Stages: stages})
		if r.Requests != 0 || r.Dials != 0 || r.Errors[bench.Connect] == nil || r.Errors[bench.Connect].Count != 3 || r.Incidents != nil {
			t.Errorf("%+v %+v", r, r.Errors)
		}
	}
}

func TestConfig(t *testing.T) {
	good := Config{Mix: mustMix(t, small, 10), Connections: 1, Requests: 1, Timeout: 1}
	f := func(change func(*Config), want string) {
		t.Helper()
		cfg := good
		change(&cfg)
		if _, err := Run(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	f(func(c *Config) { c.Mix = nil }, "scenario")
	f(func(c *Config) { c.Connections = 0 }, "connection")
	f(func(c *Config) { c.Requests = 0 }, "duration")
	f(func(c *Config) { c.Duration = -1 }, "negative")
	f(func(c *Config) { c.Stages = Constant(-1, 0) }, "stage 1")
	f(func(c *Config) { c.Requests = -1; c.Duration = 1 }, "negative")
	f(func(c *Config) { c.PerConn = -1 }, "negative")
	f(func(c *Config) { c.Stages = Constant(math.NaN(), 0) }, "stage 1")
	f(func(c *Config) { c.Stages = Constant(1e-12, 0) }, "stage 1")
	f(func(c *Config) { c.Stages = []result.Stage{{Seconds: math.NaN(), Rate: 1}} }, "stage 1")
	f(func(c *Config) { c.Resume = math.NaN() }, "resumed")
	f(func(c *Config) { c.Stages = Constant(0, 0) }, "the rate is 0")
	f(func(c *Config) { c.Stages = []result.Stage{{Seconds: 1, Rate: 10}}; c.WarmUp = 1 }, "warm-up")
	f(func(c *Config) { c.Timeout = 0 }, "timeout")
	f(func(c *Config) { c.Resume = 2 }, "resumed")
}

// TestResume counts the TLS sessions that a server resumes.
func TestResume(t *testing.T) {
	server, client := testTLS(t)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, share := range []float64{0, 0.5, 1} {
			cfg := Config{Mix: mustMix(t, small, 10), TLS: client.Clone(), Resume: share, Connections: 1, Requests: 200, PerConn: 1, Seed: 1}
			cfg.TLS.MaxVersion = version
			cfg.Target, _ = serve(t, dlpstub.Config{TLS: server})
			r := mustRun(t, cfg)
			got := float64(r.Resumed) / float64(r.Dials)
			if r.Failed > 0 || got < share-0.12 || got > share+0.12 || share == 0 && got > 0 { // the first one can't
				t.Errorf("%s, share %v: %d of %d resumed, %+v", tls.VersionName(version), share, r.Resumed, r.Dials, r.Errors)
			}
		}
	}
}

// TestFaultyClients has one of each kind among good requests, which have to go on as if nothing was.
func TestFaultyClients(t *testing.T) {
	server, client := testTLS(t)
	for _, secure := range []bool{false, true} {
		for kind, outcome := range map[scenario.FaultKind]string{
			scenario.SlowBody: "200", scenario.AbortBody: "left", scenario.HalfClose: "200", scenario.ConnectAndLeave: "left", scenario.StopReading: "left",
		} {
			s := scenario.Single(small, 20000)
			s.Faults = []scenario.FaultType{{Kind: kind, Share: 0.2, Rate: 1 << 20, After: 0.5, Hold: 1}}
			cfg := Config{Mix: mustCompile(t, s), Connections: 2, Requests: 100, Seed: 3}
			stub := dlpstub.Config{Mode: dlpstub.Echo}
			if secure {
				stub.TLS, cfg.TLS = server, client
			}
			var seen *dlpstub.Server
			cfg.Target, seen = serve(t, stub)
			r := mustRun(t, cfg)
			f := r.Faults[string(kind)]
			if f == nil || f.Count < 10 || r.Requests+f.Count != 100 || r.Failed > 0 {
				t.Errorf("%s, TLS %v: %d good requests, %+v, %+v", kind, secure, r.Requests, f, r.Errors)
				continue
			}
			if f.Outcomes[outcome] != f.Count {
				t.Errorf("%s, TLS %v: %+v", kind, secure, f)
			}
			if kind == scenario.AbortBody && seen.Stats().Truncated == 0 {
				t.Error("the server has seen no body that was aborted")
			}
		}
	}
}

// TestStaleConnections has servers that close what is idle, or after each answer without a word: a client that looks before it sends loses nothing.
func TestStaleConnections(t *testing.T) {
	server, client := testTLS(t)
	for _, stub := range []dlpstub.Config{{IdleTimeout: 20 * time.Millisecond}, {CloseAfter: 1, SilentClose: true}} {
		for _, secure := range []bool{false, true} {
			cfg := Config{Mix: mustMix(t, small, 10), Connections: 1, Requests: 3, Stages: Constant(4, 0)}
			if stub.SilentClose {
				cfg.Stages = Constant(12, 0)
			}
			if secure {
				stub.TLS, cfg.TLS = server, client
			}
			cfg.Target, _ = serve(t, stub)
			if r := mustRun(t, cfg); r.Requests != 3 || r.Failed != 0 || r.Dials != 3 {
				t.Errorf("silent close %v, TLS %v: %d requests over %d connections, %+v", stub.SilentClose, secure, r.Requests, r.Dials, r.Errors)
			}
		}
	}
}

// once returns a worker's work for one request.
func once(tb testing.TB, stub dlpstub.Config, message bench.Message, size int64) (do, end func()) {
	cfg := Config{Mix: mustMix(tb, message, size), Connections: 1, Timeout: patience, ServerHeader: "x-server"}
	cfg.Target, _ = serve(tb, stub)
	l := &load{cfg: &cfg, shards: newShards(cfg.Mix.Entries(), cfg.IncidentHeader != "")}
	w := newWorker(l, 0)
	n := uint64(0)
	do = func() {
		w.do(context.Background(), job{n: n, planned: time.Now()})
		if n++; w.shard.figures.Failed > 0 {
			tb.Fatal(w.shard.figures.Errors)
		}
	}
	return do, w.disconnect
}

var loops = []struct {
	name    string
	stub    dlpstub.Config
	message bench.Message
	size    int64
}{
	{"204", dlpstub.Config{Name: "one"}, small, 1024},
	{"echo", dlpstub.Config{Name: "one", Mode: dlpstub.Echo}, bench.Message{Method: icap.MethodRespmod, Preview: -1}, 1024},
	{"preview", dlpstub.Config{Mode: dlpstub.Echo}, bench.Message{Method: icap.MethodRespmod, Preview: 100}, 1024},
	{"duplex", dlpstub.Config{Mode: dlpstub.Echo}, bench.Message{Method: icap.MethodRespmod, Preview: -1}, 1 << 20},
}

func TestRequestsDoNotAllocate(t *testing.T) {
	for _, tt := range loops {
		do, end := once(t, tt.stub, tt.message, tt.size)
		for range 20 { // buffers grow
			do()
		}
		if n := testing.AllocsPerRun(100, do); n >= 1 {
			t.Errorf("%s: %v allocations per request", tt.name, n)
		}
		end()
	}
}

func BenchmarkRequest(b *testing.B) {
	for _, tt := range loops {
		b.Run(tt.name, func(b *testing.B) {
			do, end := once(b, tt.stub, tt.message, tt.size)
			defer end()
			b.SetBytes(tt.size)
			b.ReportAllocs()
			for b.Loop() {
				do()
			}
		})
	}
}

// lies are answers to a REQMOD that offers 204 or not, and what is wrong with them.
var lies = []struct {
	name    string
	message bench.Message
	answer  func(echo []byte) []byte // of the true echo; nil: silence
	want    bench.Kind
	example string // part of the error
}{
	{"nothing", bench.Message{Preview: -1}, func([]byte) []byte { return []byte{} }, bench.Closed, "closed"},
	{"silence", bench.Message{Preview: -1}, func([]byte) []byte { return nil }, bench.Timeout, "timeout"},
	{"half a head", bench.Message{Preview: -1}, func(echo []byte) []byte { return echo[:20] }, bench.Truncated, "closed"},
	{"half the encapsulated head", bench.Message{Preview: -1}, func(echo []byte) []byte { return echo[:bytes.Index(echo, []byte("POST"))+10] }, bench.Truncated, "closed"},
	{"half a body", bench.Message{Preview: -1}, func(echo []byte) []byte { return echo[:len(echo)-100] }, bench.Truncated, "closed"},
	{"no last chunk", bench.Message{Preview: -1}, func(echo []byte) []byte { return echo[:len(echo)-5] }, bench.Truncated, "closed"},
	{"a wrong byte", bench.Message{Preview: -1}, func(echo []byte) []byte { echo[len(echo)-10] ^= 1; return echo }, bench.Echo, "byte 997 of the body differs"},
	{"a byte less", bench.Message{Preview: -1}, func(echo []byte) []byte {
		echo = bytes.Replace(echo, []byte("\r\n3e8\r\n"), []byte("\r\n3e7\r\n"), 1)
		return append(echo[:len(echo)-8], "\r\n0\r\n\r\n"...)
	}, bench.Echo, "999 of 1000 bytes"},
	{"a byte more", bench.Message{Preview: -1}, func(echo []byte) []byte { return append(echo[:len(echo)-5], "1\r\nx\r\n0\r\n\r\n"...) }, bench.Echo, "more than the 1000"},
	{"a bad chunk size", bench.Message{Preview: -1}, func(echo []byte) []byte {
		return bytes.Replace(echo, []byte("\r\n3e8\r\n"), []byte("\r\n0x3e8\r\n"), 1)
	}, bench.Framing, "chunk size"},
	{"bytes behind the end", bench.Message{Preview: -1}, func(echo []byte) []byte { return append(echo, "ICAP"...) }, bench.Framing, "4 bytes after the end"},
	{"a wrong offset", bench.Message{Preview: -1}, func(echo []byte) []byte { return bytes.Replace(echo, []byte("req-body="), []byte("req-body=1"), 1) }, bench.Framing, "does not fit"},
	{"no Encapsulated", bench.Message{Preview: -1}, func([]byte) []byte { return []byte("ICAP/1.0 200 OK\r\n\r\n") }, bench.Framing, "answer 200 to REQMOD"},
	{"an HTTP answer", bench.Message{Preview: -1}, func([]byte) []byte { return []byte("HTTP/1.1 200 OK\r\n\r\n") }, bench.Framing, "status line"},
	{"204 that was not allowed", bench.Message{Preview: -1, No204: true}, func([]byte) []byte { return []byte("ICAP/1.0 204 x\r\n\r\n") }, bench.Framing, "204"},
	{"204 with a body", bench.Message{Preview: -1}, func([]byte) []byte { return []byte("ICAP/1.0 204 x\r\nEncapsulated: req-body=0\r\n\r\n0\r\n\r\n") }, bench.Framing, "204 with a body"},
	{"206", bench.Message{Preview: -1}, func([]byte) []byte { return []byte("ICAP/1.0 206 x\r\nEncapsulated: req-body=0\r\n\r\n0\r\n\r\n") }, bench.Framing, "206"},
	{"use-original-body", bench.Message{Preview: -1}, func([]byte) []byte {
		return []byte("ICAP/1.0 200 x\r\nEncapsulated: req-body=0\r\n\r\n0; use-original-body=0\r\n\r\n")
	}, bench.Framing, "use-original-body in the last chunk of a 200"},
	{"100 without a preview", bench.Message{Preview: -1}, func([]byte) []byte { return []byte("ICAP/1.0 100 Continue\r\n\r\n") }, bench.Framing, "100"},
	{"503", bench.Message{Preview: -1}, func([]byte) []byte { return []byte("ICAP/1.0 503 Full\r\nConnection: close\r\n\r\n") }, bench.Status, "503 Full"},
}

// trueEcho makes the answer of an honest server out of a plain REQMOD request.
func trueEcho(request []byte) []byte {
	_, message, _ := bytes.Cut(request, []byte("\r\n\r\n"))
	offset := bytes.Index(message, []byte("\r\n\r\n")) + 4
	return append(fmt.Appendf(nil, "ICAP/1.0 200 OK\r\nEncapsulated: req-hdr=0, req-body=%d\r\n\r\n", offset), message...)
}

// TestRefusedRequestsKeepTheConnection has a server that answers every other request with an error, as one that is full does. The connection is
// as good as before, and a client goes on with it; TLS handshakes for each would be a load of their own.
func TestRefusedRequestsKeepTheConnection(t *testing.T) {
	var n atomic.Int64
	stub := dlpstub.Config{Treat: func(_ *dlpstub.Request, how *dlpstub.Treatment) {
		if n.Add(1)%2 == 0 {
			how.Status = 503
		}
	}}
	cfg := Config{Mix: mustMix(t, small, 10), Connections: 1, Requests: 20}
	cfg.Target, _ = serve(t, stub)
	if r := mustRun(t, cfg); r.Requests != 10 || r.Failed != 10 || r.Errors[bench.Status].Count != 10 || r.Dials != 1 {
		t.Errorf("%d requests over %d connections, %+v", r.Requests, r.Dials, r.Errors)
	}
}
