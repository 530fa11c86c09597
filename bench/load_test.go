package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"icapgate/bench/dlpstub"
	"icapgate/icap"
)

func mustLoad(t *testing.T, cfg LoadConfig) *Result {
	t.Helper()
	if cfg.Timeout == 0 {
		cfg.Timeout = patience
	}
	r, err := Load(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLoad(t *testing.T) {
	tests := []struct {
		name     string
		stub     dlpstub.Config
		message  Message
		size     int64
		requests int64
		perConn  int
		status   int
		received int64 // bytes per request
		dials    int64
	}{
		{"REQMOD 204", dlpstub.Config{}, Message{Method: icap.MethodReqmod, Preview: -1}, 1024, 400, 0, 204, 0, 4},
		{"REQMOD echo", dlpstub.Config{}, Message{Method: icap.MethodReqmod, Preview: -1, No204: true}, 1024, 400, 0, 200, 1024, 4},
		{"RESPMOD echo", dlpstub.Config{Mode: dlpstub.Echo}, Message{Method: icap.MethodRespmod, Preview: -1}, 100000, 100, 0, 200, 100000, 4},
		{"RESPMOD echo without a body", dlpstub.Config{Mode: dlpstub.Echo}, Message{Method: icap.MethodRespmod, Preview: -1}, 0, 100, 0, 200, 0, 4},
		{"OPTIONS", dlpstub.Config{}, Message{Method: icap.MethodOptions, Preview: -1}, 1024, 400, 0, 200, 0, 4},
		{"preview", dlpstub.Config{Mode: dlpstub.Echo}, Message{Method: icap.MethodReqmod, Preview: 512, Profile: Squid}, 1024, 100, 0, 200, 1024, 4},
		{"ieof", dlpstub.Config{Mode: dlpstub.Echo}, Message{Method: icap.MethodReqmod, Preview: 1024}, 1024, 100, 0, 200, 1024, 4},
		{"small chunks", dlpstub.Config{Mode: dlpstub.Echo}, Message{Method: icap.MethodReqmod, Preview: -1, Chunk: 100}, 1024, 100, 0, 200, 1024, 4},
		{"connection per request", dlpstub.Config{}, Message{Method: icap.MethodReqmod, Preview: -1}, 1024, 40, 1, 204, 0, 40},
		{"server closes", dlpstub.Config{CloseAfter: 1}, Message{Method: icap.MethodReqmod, Preview: -1}, 1024, 40, 0, 204, 0, 40},
	}
	certificate, roots := testCertificate(t)
	for _, tt := range tests {
		for _, secure := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/tls=%v", tt.name, secure), func(t *testing.T) {
				tt.stub.Name = "one"
				cfg := LoadConfig{Message: tt.message, Size: tt.size, Connections: 4, Requests: tt.requests, PerConn: tt.perConn}
				if secure {
					tt.stub.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
					cfg.TLS = &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}
				}
				uri, stub := serveStub(t, tt.stub)
				cfg.Target = mustTarget(t, uri)
				r := mustLoad(t, cfg)
				if r.Requests != tt.requests || r.Failed != 0 || r.Statuses[tt.status] != tt.requests || r.Servers["one"] != tt.requests {
					t.Errorf("got %+v %+v", r, r.Errors)
				}
				if r.BytesReceived != tt.received*tt.requests || r.NewHeads != 0 || r.Modified != 0 {
					t.Errorf("received %d, other heads %d, block pages %d", r.BytesReceived, r.NewHeads, r.Modified)
				}
				// A worker that gets no turn has connected all the same.
				if r.Dials < tt.dials || tt.dials > 4 && r.Dials > tt.dials+3 || tt.dials == 4 && r.Dials != 4 {
					t.Errorf("%d connections made, want %d", r.Dials, tt.dials)
				}
				if r.Latency.Max <= 0 || r.Latency.P50 > r.Latency.P999 || r.Seconds <= 0 || r.histogram.TotalCount() != tt.requests {
					t.Errorf("latency %+v", r.Latency)
				}
				if st := stub.Stats(); st.Requests[tt.message.Method] != uint64(tt.requests) || st.Refused+st.Truncated > 0 {
					t.Errorf("server saw %+v", st)
				}
			})
		}
	}
}

// TestLies has servers whose answers are wrong, and counts the errors by kind.
func TestLies(t *testing.T) {
	for _, tt := range lies {
		t.Run(tt.name, func(t *testing.T) {
			uri := serveBytes(t, func(request []byte) []byte { return tt.answer(trueEcho(request)) })
			message := tt.message
			message.Method = icap.MethodReqmod
			cfg := LoadConfig{Target: mustTarget(t, uri), Message: message, Size: 1000, Connections: 1, Requests: 3, Timeout: patience}
			if tt.want == Timeout {
				cfg.Timeout = 10 * time.Millisecond
			}
			r := mustLoad(t, cfg)
			e := r.Errors[tt.want]
			if r.Requests != 0 || r.Failed != 3 || e == nil || e.Count != 3 || !strings.Contains(e.Example, tt.example) {
				t.Errorf("got %+v, errors %+v", r, e)
				for kind, e := range r.Errors {
					t.Logf("%s: %+v", kind, e)
				}
			}
		})
	}
}

// TestTruth makes sure that the lies fail for what is wrong in them only.
func TestTruth(t *testing.T) {
	uri := serveBytes(t, func(request []byte) []byte {
		return bytes.Replace(trueEcho(request), []byte("\r\n"), []byte("\r\nConnection: close\r\n"), 1)
	})
	r := mustLoad(t, LoadConfig{Target: mustTarget(t, uri), Message: Message{Method: icap.MethodReqmod, Preview: -1}, Size: 1000, Connections: 1, Requests: 3})
	if r.Requests != 3 || r.Failed != 0 || r.NewHeads != 0 {
		t.Errorf("%+v %+v", r, r.Errors)
	}
}

func TestLoadOfChangedAnswers(t *testing.T) {
	page := func([]byte) []byte {
		return []byte("ICAP/1.0 200 OK\r\nConnection: close\r\nEncapsulated: res-hdr=0, res-body=26\r\n\r\nHTTP/1.1 403 Forbidden\r\n\r\n5\r\nblock\r\n0\r\n\r\n")
	}
	heads := func(request []byte) []byte {
		return bytes.Replace(bytes.Replace(trueEcho(request), []byte("\r\n"), []byte("\r\nConnection: close\r\n"), 1), []byte("Accept"), []byte("ACCEPT"), 1)
	}
	for name, answer := range map[string]func([]byte) []byte{"page": page, "heads": heads} {
		uri := serveBytes(t, answer)
		r := mustLoad(t, LoadConfig{Target: mustTarget(t, uri), Message: Message{Method: icap.MethodReqmod, Preview: -1}, Size: 1000, Connections: 1, Requests: 2})
		if r.Requests != 2 || r.Modified+r.NewHeads != 2 || (name == "page") != (r.Modified == 2) {
			t.Errorf("%s: %+v %+v", name, r, r.Errors)
		}
	}
}

func TestLoadOverServers(t *testing.T) {
	servers := []*dlpstub.Server{dlpstub.New(dlpstub.Config{Name: "one"}), dlpstub.New(dlpstub.Config{Name: "two"})}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			servers[i%2].ServeConn(nc)
		}
	}()
	r := mustLoad(t, LoadConfig{Target: mustTarget(t, "icap://"+ln.Addr().String()), Message: Message{Method: icap.MethodOptions}, Connections: 2, Requests: 20, PerConn: 1})
	ln.Close()
	<-done
	servers[0].Close()
	servers[1].Close()
	if r.Servers["one"] != 10 || r.Servers["two"] != 10 {
		t.Errorf("%+v", r.Servers)
	}
}

func TestLoadEnds(t *testing.T) {
	uri, stub := serveStub(t, dlpstub.Config{})
	cfg := LoadConfig{Target: mustTarget(t, uri), Message: Message{Method: icap.MethodReqmod, Preview: -1}, Size: 10, Connections: 3, Duration: 100 * time.Millisecond, Timeout: patience}
	if r := mustLoad(t, cfg); r.Requests == 0 || r.Failed > 0 || r.Seconds < 0.1 {
		t.Errorf("by duration: %+v %+v", r, r.Errors)
	}

	ctx, cancel := context.WithCancel(context.Background())
	cfg.Duration = time.Hour
	cfg.Progress = func(r *Result) {
		if r.Line() == "" {
			t.Error("empty progress")
		}
		cancel()
	}
	if r, err := Load(ctx, cfg); err != nil || r.Requests == 0 || r.Failed > 0 {
		t.Errorf("by its context: %+v %v", r, err)
	}

	stub.Close()
	cfg.Duration, cfg.Requests, cfg.Progress = 0, 4, nil
	if r := mustLoad(t, cfg); r.Requests != 0 || r.Dials != 0 || r.Errors[Connect] == nil || r.Errors[Connect].Count != 3 {
		t.Errorf("without a server: %+v %+v", r, r.Errors)
	}
}

// With a rate no request is sent before its time, and what one that waits for a connection has waited counts.
func TestLoadRate(t *testing.T) {
	const hold = 100 * time.Millisecond
	var first sync.Once
	uri, _ := serveStub(t, dlpstub.Config{Hook: func(*dlpstub.Request) { first.Do(func() { time.Sleep(hold) }) }})
	r := mustLoad(t, LoadConfig{Target: mustTarget(t, uri), Message: Message{Method: icap.MethodOptions, Preview: -1}, Connections: 1, Requests: 20, Rate: 1000})
	if r.Requests != 20 || r.Planned != 1000 || r.Seconds < 0.019 {
		t.Errorf("%+v", r)
	}
	if least := (hold - 20*time.Millisecond).Microseconds(); r.Latency.P50 < least {
		t.Errorf("half of the requests took %d µs, want %d at least: all had to wait for the first", r.Latency.P50, least)
	}
	r = mustLoad(t, LoadConfig{Target: mustTarget(t, uri), Message: Message{Method: icap.MethodOptions, Preview: -1}, Connections: 2, Duration: 50 * time.Millisecond, Rate: 100})
	if r.Requests > 5 || r.Failed > 0 {
		t.Errorf("%d requests in 50 ms at 100 per second", r.Requests)
	}
}

func TestLoadConfig(t *testing.T) {
	good := LoadConfig{Connections: 1, Requests: 1, Timeout: 1, Message: Message{Method: icap.MethodReqmod}}
	f := func(change func(*LoadConfig), want string) {
		t.Helper()
		cfg := good
		change(&cfg)
		if _, err := Load(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	f(func(c *LoadConfig) { c.Connections = 0 }, "connection")
	f(func(c *LoadConfig) { c.Requests = 0 }, "duration")
	f(func(c *LoadConfig) { c.Rate = -1 }, "rate")
	f(func(c *LoadConfig) { c.Size = -1 }, "size")
	f(func(c *LoadConfig) { c.Timeout = 0 }, "timeout")
	f(func(c *LoadConfig) { c.Message.Profile = Zscaler }, "profile")
	f(func(c *LoadConfig) { c.Message.Method = icap.MethodOther }, "method")
	f(func(c *LoadConfig) { c.Message.Preview = 1 << 20; c.Size = 1 }, "preview")
}

func TestResultJSON(t *testing.T) {
	uri, _ := serveStub(t, dlpstub.Config{Status: 503})
	r := mustLoad(t, LoadConfig{Target: mustTarget(t, uri), Message: Message{Method: icap.MethodReqmod, Preview: -1}, Size: 10, Connections: 1, Requests: 3})
	var out bytes.Buffer
	if err := r.WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	var back Result
	if err := json.Unmarshal(out.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if back.Failed != 3 || back.Errors[Status].Count != 3 || back.Target != uri || back.Chunk != defaultChunk {
		t.Errorf("%+v", back)
	}
	if _, err := hdrhistogram.Decode([]byte(back.Latency.Histogram)); err != nil {
		t.Error(err)
	}
	var text bytes.Buffer
	r.Print(&text)
	for _, want := range []string{"REQMOD " + uri, "3 failed", "error       status: 3, such as: 503 Service overloaded"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
}

// loop returns a worker's inner loop against a fake server.
func loop(tb testing.TB, stub dlpstub.Config, message Message, size int64) (once, end func()) {
	uri, _ := serveStub(tb, stub)
	cfg := LoadConfig{Target: mustTarget(tb, uri), Message: message, Size: size, Connections: 1, Timeout: patience, ServerHeader: "x-server"}
	l := &load{cfg: &cfg, shards: newShards()}
	w, err := newWorker(l, 0)
	if err != nil {
		tb.Fatal(err)
	}
	if err := w.connect(context.Background()); err != nil {
		tb.Fatal(err)
	}
	once = func() {
		start := time.Now()
		if err := w.exchange(); err != nil {
			tb.Fatal(err)
		}
		w.shard.record(time.Since(start), w)
	}
	return once, func() { w.conn.Close() }
}

var loops = []struct {
	name    string
	stub    dlpstub.Config
	message Message
	size    int64
}{
	{"204", dlpstub.Config{Name: "one"}, Message{Method: icap.MethodReqmod, Preview: -1}, 1024},
	{"echo", dlpstub.Config{Name: "one", Mode: dlpstub.Echo}, Message{Method: icap.MethodRespmod, Preview: -1}, 1024},
	{"preview", dlpstub.Config{Mode: dlpstub.Echo}, Message{Method: icap.MethodRespmod, Preview: 100}, 1024},
	{"duplex", dlpstub.Config{Mode: dlpstub.Echo}, Message{Method: icap.MethodRespmod, Preview: -1}, 1 << 20},
}

func TestLoopDoesNotAllocate(t *testing.T) {
	for _, tt := range loops {
		once, end := loop(t, tt.stub, tt.message, tt.size)
		for range 20 { // buffers grow
			once()
		}
		if n := testing.AllocsPerRun(100, once); n >= 1 {
			t.Errorf("%s: %v allocations per request", tt.name, n)
		}
		end()
	}
}

func BenchmarkLoop(b *testing.B) {
	for _, tt := range loops {
		b.Run(tt.name, func(b *testing.B) {
			once, end := loop(b, tt.stub, tt.message, tt.size)
			defer end()
			b.SetBytes(tt.size)
			b.ReportAllocs()
			for b.Loop() {
				once()
			}
		})
	}
}

func TestPattern(t *testing.T) {
	for _, start := range []int{0, 5, patternSize - 3} {
		r := patternReader{pos: start, left: 2 * patternSize}
		c := patternChecker{pos: start}
		buf := make([]byte, 4099)
		for r.left > 0 {
			n, err := r.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			if offset, ok := c.check(buf[:n]); !ok {
				t.Fatalf("start %d: byte %d differs", start, offset)
			}
		}
		if c.seen != 2*patternSize {
			t.Errorf("start %d: %d bytes", start, c.seen)
		}
		copy(buf, pattern()[start:])
		n := min(100, patternSize-start)
		buf[n-1] ^= 1
		c = patternChecker{pos: start}
		if offset, ok := c.check(buf[:n]); ok || offset != int64(n-1) {
			t.Errorf("start %d: wrong byte %d found at %d, %v", start, n-1, offset, ok)
		}
	}
}
