package health

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// runRound makes one round of questions.
func runRound(f *fakeServer, cfg CheckConfig) report {
	c := NewChecker(cfg)
	r := round{cfg: &c.cfg, paths: c.cfg.asked()}
	return r.run(context.Background())
}

func TestRoundRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: always(ok200)}
		runRound(f, f.config("/reqmod", "/respmod?mode=a"))
		synctest.Wait()
		f.checkNoneOpen(t)
		want := []string{
			"OPTIONS icap://dlp.example:1344/reqmod ICAP/1.0\r\nHost: dlp.example:1344\r\nUser-Agent: icapgate-check\r\n\r\n",
			"OPTIONS icap://dlp.example:1344/respmod?mode=a ICAP/1.0\r\nHost: dlp.example:1344\r\nUser-Agent: icapgate-check\r\n" +
				"Connection: close\r\n\r\n",
		}
		if !reflect.DeepEqual(f.requests, want) {
			t.Errorf("requests %q, want %q", f.requests, want)
		}
		if len(f.dials) != 1 {
			t.Errorf("%d connections for two paths, want 1", len(f.dials))
		}

		cfg := f.config("/reqmod")
		cfg.Fields = "X-ICAP-Via: ICAP/1.0 gw-1\r\n"
		runRound(f, cfg)
		if want, got := strings.Replace(want[0], "check\r\n", "check\r\n"+cfg.Fields+"Connection: close\r\n", 1), f.requests[2]; got != want {
			t.Errorf("with fields of the gateway %q, want %q", got, want)
		}
	})
}

func TestRoundAnyPath(t *testing.T) {
	for name, tt := range map[string]struct {
		answer string
		want   outcome
	}{
		"200":          {ok200, good},
		"404":          {gone404, good},
		"500":          {"ICAP/1.0 500 Server error\r\n\r\n", good},
		"508":          {"ICAP/1.0 508 Loop Detected\r\n\r\n", bad},
		"no reason":    {"ICAP/1.0 404\r\n\r\n", good},
		"bare LF":      {"ICAP/1.0 200 OK\nISTag: x\n\n", good},
		"HTTP":         {"HTTP/1.1 200 OK\r\n\r\n", bad},
		"no status":    {"ICAP/1.0 OK\r\n\r\n", bad},
		"binary":       {"\x16\x03\x01\x02\x00\r\n\r\n", bad},
		"silent close": {drop, bad},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeServer{answer: always(tt.answer)}
				rep := runRound(f, f.config())
				if rep.outcome != tt.want || (rep.fault == "") != (tt.want == good) {
					t.Errorf("outcome %v, fault %q, want outcome %v", rep.outcome, rep.fault, tt.want)
				}
				if len(f.requests) != 1 || !strings.HasPrefix(f.requests[0], "OPTIONS icap://dlp.example:1344/ ICAP/1.0\r\n") {
					t.Errorf("requests %q, want one for /", f.requests)
				}
			})
		})
	}
}

func TestRoundPaths(t *testing.T) {
	error500 := "ICAP/1.0 500 Server error\r\n\r\n"
	tests := []struct {
		name       string
		answers    map[string]string
		otherPaths bool
		want       report
	}{
		{"both", map[string]string{"/a": ok200, "/b": ok200}, false,
			report{good, "", []bool{false, false}, false}},
		{"one missing", map[string]string{"/a": ok200}, false,
			report{good, "OPTIONS /b: 404 ICAP Service not found", []bool{false, true}, false}},
		{"the first missing", map[string]string{"/b": ok200}, false,
			report{good, "OPTIONS /a: 404 ICAP Service not found", []bool{true, false}, false}},
		{"all missing", nil, false,
			report{bad, "OPTIONS /a: 404 ICAP Service not found", []bool{true, true}, false}},
		{"all missing beside other paths", nil, true,
			report{good, "OPTIONS /a: 404 ICAP Service not found", []bool{true, true}, false}},
		{"one full", map[string]string{"/a": busy503, "/b": ok200}, false,
			report{good, "OPTIONS /a: 503 Service overloaded", []bool{false, false}, false}},
		{"all full", map[string]string{"/a": busy503, "/b": busy503}, false,
			report{full, "OPTIONS /a: 503 Service overloaded", []bool{false, false}, false}},
		{"full and missing", map[string]string{"/b": busy503}, false,
			report{full, "OPTIONS /a: 404 ICAP Service not found", []bool{true, false}, false}},
		{"an error", map[string]string{"/a": ok200, "/b": error500}, false,
			report{bad, "OPTIONS /b: 500 Server error", nil, false}},
		{"no answer", map[string]string{"/a": ok200, "/b": hang}, false,
			report{bad, "OPTIONS /b: no answer within 2s", nil, false}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeServer{answer: byPath(tt.answers)}
				cfg := f.config("/a", "/b")
				cfg.OtherPaths = tt.otherPaths
				if got := runRound(f, cfg); !reflect.DeepEqual(got, tt.want) {
					t.Errorf("got %+v, want %+v", got, tt.want)
				}
				synctest.Wait()
				f.checkNoneOpen(t)
			})
		})
	}
}

// How often a round connects, by what the server does to the connection after the first of two answers.
func TestRoundConnections(t *testing.T) {
	withField := func(field string) string { return "ICAP/1.0 200 OK\r\n" + field + "\r\n\r\n" }
	tests := []struct {
		name  string
		first string
		dials int
	}{
		{"kept", ok200, 1},
		{"said close", withField("Connection: close"), 2},
		{"an opt-body follows", withField("Encapsulated: opt-body=0") + "3\r\nabc\r\n0\r\n\r\n", 1},
		{"and more", withField("Encapsulated: opt-body=0") + "3\r\nabc\r\n0\r\n\r\nx", 2},
		{"unasked bytes follow", ok200 + "ICAP/1.0 408", 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeServer{answer: script(tt.first, ok200)}
				if got := runRound(f, f.config("/a", "/b")); got.outcome != good || got.fault != "" {
					t.Errorf("got %+v, want good", got)
				}
				synctest.Wait()
				f.checkNoneOpen(t)
				if len(f.dials) != tt.dials {
					t.Errorf("%d connections, want %d", len(f.dials), tt.dials)
				}
			})
		})
	}
}

// A server that closes a used connection without a word is asked once more on a new one; a new one that ends so is a failure.
func TestRoundSilentClose(t *testing.T) {
	tests := []struct {
		name    string
		answers []string
		want    outcome
		dials   int
	}{
		{"after an answer", []string{ok200, drop, ok200}, good, 2},
		{"and again", []string{ok200, drop, drop}, bad, 2},
		{"at once", []string{drop}, bad, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeServer{answer: script(tt.answers...)}
				if got := runRound(f, f.config("/a", "/b")); got.outcome != tt.want {
					t.Errorf("got %+v, want outcome %v", got, tt.want)
				}
				if len(f.dials) != tt.dials {
					t.Errorf("%d connections, want %d", len(f.dials), tt.dials)
				}
			})
		})
	}
}

func TestRoundFaults(t *testing.T) {
	tests := []struct {
		name   string
		answer string
		want   string // in the fault
	}{
		{"silent", hang, "OPTIONS /a: no answer within 2s"},
		{"half a head", "ICAP/1.0 200 OK\r\nISTag" + hang, "OPTIONS /a: no answer within 2s"},
		{"closed", drop, "OPTIONS /a: the server closed the connection without an answer"},
		{"closed in a head", "ICAP/1.0 200 OK\r\n" + drop, "in the middle of its answer"},
		{"endless line", "ICAP/1.0 200 " + strings.Repeat("x", 20<<10), "16 KiB"},
		{"endless head", "ICAP/1.0 200 OK\r\n" + strings.Repeat("X-A: "+strings.Repeat("y", 1000)+"\r\n", 100), "64 KiB"},
		{"too many fields", "ICAP/1.0 200 OK\r\n" + strings.Repeat("A: b\r\n", 300), "200 fields"},
		{"an HTTP head", "ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, null-body=19\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "OPTIONS /a: the answer has HTTP heads"},
		{"a body", "ICAP/1.0 200 OK\r\nEncapsulated: res-body=0\r\n\r\n0\r\n\r\n", "OPTIONS /a: the answer has a res-body"},
		{"a request's body", "ICAP/1.0 200 OK\r\nEncapsulated: req-body=0\r\n\r\n0\r\n\r\n", "OPTIONS /a: the answer has a req-body"},
		{"a broken opt-body", "ICAP/1.0 200 OK\r\nEncapsulated: opt-body=0\r\n\r\nxyz", "chunk"},
		{"half an opt-body", "ICAP/1.0 200 OK\r\nEncapsulated: opt-body=0\r\n\r\n3\r\nab" + hang, "OPTIONS /a: no answer within 2s"},
		{"an opt-body cut short", "ICAP/1.0 200 OK\r\nEncapsulated: opt-body=0\r\n\r\n3\r\nab" + drop, "in the middle of its answer"},
		{"a huge opt-body", "ICAP/1.0 200 OK\r\nEncapsulated: opt-body=0\r\n\r\n" + strings.Repeat("10000\r\n"+strings.Repeat("x", 64<<10)+"\r\n", 17), "1 MiB"},
		{"a list that is none", "ICAP/1.0 200 OK\r\nEncapsulated: opt-body\r\n\r\n", "Encapsulated without offset"},
		{"HTTP", "HTTP/1.1 200 OK\r\n\r\n", "status line is not ICAP"},
		{"two Encapsulated", "ICAP/1.0 200 OK\r\nEncapsulated: null-body=0\r\nEncapsulated: null-body=0\r\n\r\n", "two Encapsulated"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeServer{answer: always(tt.answer)}
				got := runRound(f, f.config("/a"))
				if got.outcome != bad || !strings.Contains(got.fault, tt.want) || got.unreachable {
					t.Errorf("got %+v, want a fault with %q of a server that was reached", got, tt.want)
				}
				synctest.Wait()
				f.checkNoneOpen(t)
			})
		})
	}
}

func TestRoundConnectFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{refuse: errRefused}
		if got := runRound(f, f.config("/a")); got.outcome != bad || got.fault != errRefused.Error() || !got.unreachable {
			t.Errorf("got %+v, want the error of the connect", got)
		}
		start := time.Now()
		cfg := f.config("/a")
		cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			<-ctx.Done()
			return nil, &net.OpError{Op: "dial", Net: network, Err: os.ErrDeadlineExceeded}
		}
		got := runRound(f, cfg)
		if took := time.Since(start); got.outcome != bad || got.fault != "no connection within 2s" || !got.unreachable || took != 2*time.Second {
			t.Errorf("got %+v after %v, want no connection within 2s", got, took)
		}
	})
}

// One byte per second: the timeout is for the whole answer.
func TestRoundTrickle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: always(ok200), accept: newTrickle}
		start := time.Now()
		got := runRound(f, f.config("/a"))
		if took := time.Since(start); got.outcome != bad || took != 2*time.Second {
			t.Errorf("got %+v after %v, want bad after 2s", got, took)
		}
		time.Sleep(time.Second) // until the server writes again
		synctest.Wait()
		f.checkNoneOpen(t)
	})
}

// No status of a server can make up a report without a fault, or one with a verdict on paths that were not asked.
func TestRoundEveryStatus(t *testing.T) {
	for status := 100; status <= 599; status++ {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeServer{answer: always(fmt.Sprintf("ICAP/1.0 %d\r\n\r\n", status))}
			got := runRound(f, f.config("/a"))
			want := bad
			switch status {
			case 200:
				want = good
			case 503, 506:
				want = full
			}
			if got.outcome != want || (got.fault == "") != (want == good) {
				t.Errorf("status %d: got %+v, want outcome %v", status, got, want)
			}
		})
	}
}

func TestRoundTLS(t *testing.T) {
	tests := []struct {
		name       string
		certFor    string
		serverName string
		plain      bool   // the server does not speak TLS
		want       string // in the fault, "": good
	}{
		{name: "name from the authority", certFor: "dlp.example"},
		{name: "name configured", certFor: "other.example", serverName: "other.example"},
		{name: "wrong name", certFor: "other.example", want: "the server's certificate is for other.example, not for dlp.example: set tls.server_name"},
		{name: "plain server", certFor: "dlp.example", plain: true, want: "no TLS connection within 2s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				certificate, roots := newCertificate(t, tt.certFor)
				f := &fakeServer{answer: always(ok200)}
				if !tt.plain {
					f.accept = func(c net.Conn) net.Conn {
						return tls.Server(c, &tls.Config{Certificates: []tls.Certificate{certificate}})
					}
				}
				cfg := f.config("/a", "/b")
				cfg.TLS = &tls.Config{RootCAs: roots, ServerName: tt.serverName}
				got := runRound(f, cfg)
				if (got.outcome == good) != (tt.want == "") || !strings.Contains(got.fault, tt.want) {
					t.Errorf("got %+v, want a fault with %q", got, tt.want)
				}
				if cfg.TLS.ServerName != tt.serverName {
					t.Error("the caller's TLS configuration was changed")
				}
				synctest.Wait()
				f.checkNoneOpen(t)
			})
		})
	}
}
