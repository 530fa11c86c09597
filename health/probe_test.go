package health

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"reflect"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

const (
	marker = "MARKER"

	blocked = "ICAP/1.0 200 OK\r\nX-Infection-Found: Type=2; Threat=Probe;\r\nX-Violations-Found: 1\r\n\tprobe.txt\r\n\tSecret\r\nEncapsulated: res-hdr=0, res-body=52\r\n\r\n" +
		"HTTP/1.1 403 Forbidden\r\nContent-Type:\r\n text/html\r\n\r\n4\r\nbloc\r\n4\r\nked!\r\n0\r\n\r\n"
	clean = "ICAP/1.0 204 No modifications needed\r\n\r\n"
)

var httpHead = []byte("POST http://probe.example/ HTTP/1.1\r\nHost: probe.example\r\n\r\n")

// config of a Checker that probes: the answer has to be a page that says blocked.
func (f *fakeServer) probeConfig() CheckConfig {
	cfg := f.config("/a")
	cfg.Probe = &Probe{
		Path: "/a", Fields: ProbeHeader + ": p\r\n", HTTP: httpHead, Body: []byte("this is a " + marker),
		Status: 200, Content: regexp.MustCompile("blocked"),
	}
	return cfg
}

// scanner answers OPTIONS with options, and everything else by its content.
func scanner(options string) func(string) string { return judging(options, blocked) }

// judging is a scanner with another verdict about the marker.
func judging(options, verdict string) func(string) string {
	return func(request string) string {
		switch {
		case strings.HasPrefix(request, "OPTIONS"):
			return options
		case strings.Contains(request, marker):
			return verdict
		case strings.HasSuffix(request, "\r\n0\r\n\r\n") && strings.Contains(request, "\r\nPreview: ") && !strings.Contains(strings.TrimSuffix(request, "\r\n0\r\n\r\n"), "\r\n0\r\n\r\n"):
			return continue100
		}
		return clean
	}
}

// runProbe makes one probe.
func runProbe(f *fakeServer, cfg CheckConfig, preview int) (outcome, string) {
	c := NewChecker(cfg)
	p := probing{cfg: &c.cfg, preview: preview}
	o, err := p.run(context.Background())
	if err == nil {
		return o, ""
	}
	return o, err.Error()
}

func TestProbeRequest(t *testing.T) {
	long := strings.Repeat("x", probeChunk) + "yz"
	head := func(preview string) string {
		return "REQMOD icap://dlp.example:1344/a ICAP/1.0\r\nHost: dlp.example:1344\r\nDate: Sat, 01 Jan 2000 00:00:00 GMT\r\nUser-Agent: icapgate-probe\r\n" +
			"Allow: 204\r\nConnection: close\r\n" + preview + "X-Icapgate-Probe: p\r\nEncapsulated: req-hdr=0, req-body=60\r\n\r\n" + string(httpHead)
	}
	for _, tt := range []struct {
		body        string
		preview     int
		first, rest string
	}{
		{"hello", -1, head("") + "5\r\nhello\r\n0\r\n\r\n", ""},
		{"hello", 0, head("Preview: 0\r\n") + "0\r\n\r\n", "5\r\nhello\r\n0\r\n\r\n"},
		{"hello", 4, head("Preview: 4\r\n") + "4\r\nhell\r\n0\r\n\r\n", "1\r\no\r\n0\r\n\r\n"},
		{"hello", 5, head("Preview: 5\r\n") + "5\r\nhello\r\n0; ieof\r\n\r\n", ""},
		{"hello", 1 << 20, head("Preview: 65536\r\n") + "5\r\nhello\r\n0; ieof\r\n\r\n", ""},
		{long, -1, head("") + "4000\r\n" + long[:probeChunk] + "\r\n2\r\nyz\r\n0\r\n\r\n", ""},
	} {
		cfg := new(fakeServer).probeConfig()
		cfg.Probe.Body = []byte(tt.body)
		first, rest := cfg.request(tt.preview, time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))
		if string(first) != tt.first || string(rest) != tt.rest {
			t.Errorf("%d bytes, preview %d: %q, then %q\nwant %q, then %q", len(tt.body), tt.preview, first, rest, tt.first, tt.rest)
		}
		cfg.Fields = "X-ICAP-Via: ICAP/1.0 gw-1\r\n"
		if first, _ := cfg.request(tt.preview, time.Now()); !strings.Contains(string(first), "\r\n"+cfg.Fields+"X-Icapgate-Probe: p\r\n") {
			t.Errorf("with fields of the gateway: %q", first)
		}
		if want := strings.Index(tt.first, string(httpHead)); len(httpHead) != 60 || want < 0 {
			t.Errorf("the test's own length of the head is wrong: %d", len(httpHead))
		}
	}
}

// The verdict comes with or without a preview, in it or behind it.
func TestProbePreviews(t *testing.T) {
	for preview, requests := range map[int]int{-1: 1, 0: 2, 3: 2, 16: 1, 4096: 1} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeServer{answer: scanner(ok200)}
			o, fault := runProbe(f, f.probeConfig(), preview)
			if o != good || fault != "" || len(f.requests) != requests {
				t.Errorf("preview %d: %v, %q after %d requests, want good after %d", preview, o, fault, len(f.requests), requests)
			}
			synctest.Wait()
			f.checkNoneOpen(t)
		})
	}
}

func TestProbeVerdicts(t *testing.T) {
	status := func(n int) func(*Probe) { return func(p *Probe) { p.Status, p.Content = n, nil } }
	header := func(pattern string) func(*Probe) {
		return func(p *Probe) { p.Status, p.Content, p.Header = 0, nil, regexp.MustCompile(pattern) }
	}
	content := func(pattern string) func(*Probe) {
		return func(p *Probe) { p.Status, p.Content = 0, regexp.MustCompile(pattern) }
	}
	large := "ICAP/1.0 200 OK\r\nEncapsulated: res-body=0\r\n\r\n" + strings.Repeat("10000\r\nblocked"+strings.Repeat("x", 64<<10-7)+"\r\n", 16) + "5\r\nlater\r\n"
	for _, tt := range []struct {
		name   string
		expect func(*Probe)
		answer string
		want   outcome
		fault  string // in the fault
	}{
		{"the status", status(200), blocked, good, ""},
		{"another status", status(200), clean, bad, "REQMOD /a: 204 No modifications needed, expected status 200"},
		{"no such service", status(200), gone404, bad, "REQMOD /a: 404 ICAP Service not found, expected status 200"},
		{"an error that is expected", status(403), "ICAP/1.0 403 Forbidden\r\n\r\n", good, ""},
		{"an unknown status", status(200), "ICAP/1.0 299 x\r\n\r\n", bad, "REQMOD /a: 299, expected status 200"},
		{"an ICAP field", header("^X-Infection-Found: .+"), blocked, good, ""},
		{"a folded one", header("^X-Violations-Found: 1 probe.txt Secret$"), blocked, good, ""},
		{"an HTTP field, folded", header("^Content-Type: text/html$"), blocked, good, ""},
		{"the HTTP status line", header("^HTTP/1.1 403 "), blocked, good, ""},
		{"lines are matched one by one", header("Forbidden.*Content"), blocked, bad, "REQMOD /a: 200 OK, expected a header that matches Forbidden.*Content"},
		{"no field", header("^X-Blocked"), clean, bad, "REQMOD /a: 204 No modifications needed, expected a header that matches ^X-Blocked"},
		{"the body, over chunks", content("blocked!"), blocked, good, ""},
		{"not the body", content("^allowed"), blocked, bad, "expected a body that matches ^allowed, got 8 bytes that do not"},
		{"no body", content("blocked"), clean, bad, "got 0 bytes that do not"},
		{"all three", func(p *Probe) { p.Header = regexp.MustCompile("Threat=Probe") }, blocked, good, ""},
		{"two of three", func(p *Probe) { p.Header = regexp.MustCompile("Threat=Other") }, blocked, bad, "Threat=Other"},
		{"a large body", content("blocked"), large + hang, good, ""},
		{"beyond what is looked at", content("later"), large + hang, bad, "got 1048576 bytes that do not"},
		{"full", status(200), busy503, full, "REQMOD /a: 503 Service overloaded"},
		{"a 100 first", status(200), continue100 + continue100 + blocked, good, ""},
		{"progress first", status(200), "ICAP/1.0 102 Processing\r\nX-Scan-Progress: 10\r\n\r\n" + blocked, good, ""},
		{"nothing", status(200), hang, bad, "REQMOD /a: no answer within 10s"},
		{"half a head", status(200), "ICAP/1.0 200 OK\r\n" + drop, bad, "REQMOD /a: the server closed the connection in the middle of its answer"},
		{"half a body", status(200), strings.TrimSuffix(blocked, "0\r\n\r\n") + drop, bad, "in the middle of its answer"},
		{"silence within the body", status(200), strings.TrimSuffix(blocked, "0\r\n\r\n") + hang, bad, "no answer within 10s"},
		{"a broken body", status(200), strings.Replace(blocked, "4\r\n", "zz\r\n", 1), bad, "chunk size"},
		{"no ICAP", status(200), "HTTP/1.1 200 OK\r\n\r\n", bad, "status line is not ICAP"},
		{"closed", status(200), drop, bad, "REQMOD /a: the server closed the connection without an answer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeServer{answer: always(tt.answer)}
				cfg := f.probeConfig()
				tt.expect(cfg.Probe)
				o, fault := runProbe(f, cfg, -1)
				if o != tt.want || (fault == "") != (tt.want == good) || !strings.Contains(fault, tt.fault) {
					t.Errorf("%v, %q, want %v with %q", o, fault, tt.want, tt.fault)
				}
				synctest.Wait()
				f.checkNoneOpen(t)
			})
		})
	}
}

// A server that answers before it has read all, and then reads no more, is heard.
func TestProbeEarlyAnswer(t *testing.T) {
	for _, preview := range []int{-1, 0, 10} {
		synctest.Test(t, func(t *testing.T) {
			f := new(fakeServer)
			cfg := f.probeConfig()
			cfg.Probe.Body = bytes.Repeat([]byte("x"), 1<<20)
			cfg.Dial = func(context.Context, string, string) (net.Conn, error) {
				client, server := net.Pipe()
				go func() {
					_, _ = io.ReadFull(server, make([]byte, 100))
					_, _ = io.WriteString(server, blocked)
				}()
				return client, nil
			}
			if o, fault := runProbe(f, cfg, preview); o != good {
				t.Errorf("preview %d: %v, %q", preview, o, fault)
			}
		})
	}
}

func TestProbeConnectFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{refuse: errRefused}
		if o, fault := runProbe(f, f.probeConfig(), -1); o != bad || fault != errRefused.Error() {
			t.Errorf("%v, %q, want the error of the connect", o, fault)
		}
		f.setRefuse(&net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)})
		if o, fault := runProbe(f, f.probeConfig(), -1); o != none || !strings.Contains(fault, "cannot probe: dial") {
			t.Errorf("%v, %q, want no verdict for want of a descriptor", o, fault)
		}
	})
}

// kinds says of each request that f got what it was: o for OPTIONS, r for REQMOD.
func (f *fakeServer) kinds() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, r := range f.requests {
		b.WriteByte(r[0] | 0x20)
	}
	return b.String()
}

// Probes have their own interval, come after a good check, and never beside one.
func TestProbeTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: scanner(ok200)}
		cfg := f.probeConfig()
		cfg.Probe.Interval = 12 * time.Second
		cfg.Stats = new(Stats)
		begin := time.Now()
		c, log := start(t, cfg)
		at(begin, 25*time.Second)
		s := time.Second
		requireTimes(t, f.since(begin), 0, 0, 5*s, 10*s, 12*s, 15*s, 20*s, 24*s, 25*s)
		if got := f.kinds(); got != "oroorooro" {
			t.Errorf("requests %s", got)
		}
		if v := c.Status().Probe(); v == nil || v.Result != "ok" || v.Fault != "" || !v.At.Equal(begin.Add(24*s)) || v.Took != 0 {
			t.Errorf("verdict %+v", v)
		}
		if p := &cfg.Stats.Probes; p.OK.Load() != 3 || p.Failed.Load() != 0 || cfg.Stats.OK.Load() != 6 {
			t.Errorf("%d probes ok, %d failed, %d checks", p.OK.Load(), p.Failed.Load(), cfg.Stats.OK.Load())
		}
		if n := f.peak.Load(); n != 1 {
			t.Errorf("%d connections at a time, want 1", n)
		}
		want := "level=INFO msg=\"server is up\" server=192.0.2.1:1344 from=checking to=up reason=\"checks and probes succeed\" successes=1 since=2000-01-01T00:00:00.000Z\n"
		if log.String() != want {
			t.Errorf("log is\n%swant\n%s", log, want)
		}
	})
}

// A server whose scanner is dead goes down though OPTIONS is fine, and comes back when it scans again.
func TestProbeTakesDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: scanner(ok200)}
		cfg := f.probeConfig()
		cfg.Stats = new(Stats)
		begin := time.Now()
		c, log := start(t, cfg)
		s := c.Status()
		at(begin, 30*time.Second)
		f.set(judging(ok200, clean))
		for _, step := range []struct {
			after  time.Duration
			state  State
			failed uint64
		}{{60*time.Second - 1, Up, 0}, {60 * time.Second, Up, 1}, {61 * time.Second, Down, 2}, {63 * time.Second, Down, 3}, {67 * time.Second, Down, 4}, {75 * time.Second, Down, 5}} {
			at(begin, step.after)
			if s.State() != step.state || cfg.Stats.Probes.Failed.Load() != step.failed {
				t.Errorf("after %v: %v after %d probes, want %v after %d", step.after, s.State(), cfg.Stats.Probes.Failed.Load(), step.state, step.failed)
			}
		}
		if v := s.Probe(); v.Result != "failed" || v.Fault != "REQMOD /a: 204 No modifications needed, expected status 200" || s.LastError() != "" {
			t.Errorf("verdict %+v, error of the check %q", v, s.LastError())
		}
		f.set(scanner(ok200))
		at(begin, 91*time.Second)
		if s.State() != Up || s.Probe().Result != "ok" || s.Probe().Fault != "" {
			t.Errorf("%v, verdict %+v", s.State(), s.Probe())
		}
		if at(begin, 150*time.Second); cfg.Stats.Probes.OK.Load() != 2 {
			t.Errorf("%d good probes, want 2: from now on each minute", cfg.Stats.Probes.OK.Load())
		}
		want := `level=INFO msg="server is up" server=192.0.2.1:1344 from=checking to=up reason="checks and probes succeed" successes=1 since=2000-01-01T00:00:00.000Z
level=WARN msg="server is down" server=192.0.2.1:1344 from=up to=down reason="probe: REQMOD /a: 204 No modifications needed, expected status 200" failures=2 since=2000-01-01T00:01:00.000Z
level=INFO msg="server is up" server=192.0.2.1:1344 from=down to=up reason="checks and probes succeed" successes=1 since=2000-01-01T00:01:31.000Z
`
		if got := log.String(); got != want {
			t.Errorf("log is\n%swant\n%s", got, want)
		}
	})
}

// One wrong probe is looked at again soon; a 503 is no verdict; its own rise and fall count.
func TestProbeRiseAndFall(t *testing.T) {
	wrong, right := judging(ok200, clean), scanner(ok200)
	full := judging(ok200, busy503)
	for _, tt := range []struct {
		name       string
		rise, fall int
		probes     []func(string) string // the last one for ever
		want       string                // state after 0, 30 and 60 s
		result     string                // of the latest probe
	}{
		{"right", 0, 0, []func(string) string{right}, "uuu", "ok"},
		{"one wrong, first", 0, 0, []func(string) string{wrong, right}, "cuu", "ok"},
		{"one wrong, later", 0, 0, []func(string) string{right, wrong, right}, "uuu", "ok"},
		{"always wrong", 0, 0, []func(string) string{wrong}, "cdd", "failed"},
		{"fall 1", 0, 1, []func(string) string{wrong}, "ddd", "failed"},
		{"rise 2", 2, 0, []func(string) string{wrong, wrong, right, wrong, right, right}, "cdu", "ok"},
		{"full at first", 0, 0, []func(string) string{full}, "ccc", "full"},
		{"full later", 0, 0, []func(string) string{right, full}, "uuu", "full"},
		{"full and down", 0, 0, []func(string) string{wrong, wrong, full}, "cdd", "full"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				probes := tt.probes
				f := &fakeServer{answer: func(request string) string {
					answer := probes[0](request)
					if request[0] == 'R' && len(probes) > 1 {
						probes = probes[1:]
					}
					return answer
				}}
				cfg := f.probeConfig()
				cfg.Probe.Rise, cfg.Probe.Fall, cfg.Probe.Interval = tt.rise, tt.fall, 20*time.Second
				begin := time.Now()
				c, _ := start(t, cfg)
				var got []byte
				for _, after := range []time.Duration{0, 30, 60} {
					at(begin, after*time.Second)
					got = append(got, "cud"[c.Status().State()])
				}
				if string(got) != tt.want || c.Status().Probe().Result != tt.result {
					t.Errorf("states %s, result %s, want %s, %s", got, c.Status().Probe().Result, tt.want, tt.result)
				}
			})
		})
	}
}

// A server that was down has to prove that it scans before it is used again.
func TestProbeAfterDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: scanner(ok200)}
		begin := time.Now()
		c, log := start(t, f.probeConfig())
		at(begin, 1*time.Second)
		f.set(always(drop))
		at(begin, 10*time.Second)
		if c.Status().State() != Down {
			t.Fatalf("%v, want down", c.Status().State())
		}
		f.set(judging(ok200, clean)) // the port answers again, the scanner does not
		at(begin, 40*time.Second)
		if c.Status().State() != Down || c.Status().LastError() != "" || c.Status().Probe().Result != "failed" {
			t.Errorf("%v, check %q, probe %+v", c.Status().State(), c.Status().LastError(), c.Status().Probe())
		}
		f.set(scanner(ok200))
		at(begin, 80*time.Second)
		if c.Status().State() != Up || strings.Count(log.String(), "\n") != 3 {
			t.Errorf("%v, log\n%s", c.Status().State(), log)
		}
	})
}

// Before its first probe has come to a verdict a server is not used, whatever the grace; and it counts as not checked.
func TestProbeAndGrace(t *testing.T) {
	firstCheckHangs := func() func(string) string {
		checks := 0
		return func(request string) string {
			if request[0] == 'O' {
				if checks++; checks == 1 {
					return hang
				}
			}
			return scanner(ok200)(request)
		}
	}
	for _, tt := range []struct {
		name   string
		answer func(string) string
		slow   time.Duration // that a probe takes
		usable string        // after 1, 3 and 6 s
	}{
		{"a slow scanner", scanner(ok200), 5 * time.Second, "nny"},
		{"no scanner", judging(ok200, clean), 0, "nnn"},
		{"a full one", judging(ok200, busy503), 0, "nyy"},
		{"a full one, slowly", judging(ok200, busy503), 4 * time.Second, "nny"},
		{"no answer to checks", always(hang), 0, "nyy"},
		{"one to checks in the end", firstCheckHangs(), 5 * time.Second, "nnn"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeServer{answer: func(request string) string {
					if request[0] == 'R' {
						select {
						case <-time.After(tt.slow):
						case <-t.Context().Done():
						}
					}
					return tt.answer(request)
				}}
				s := new(Status)
				g := &Group{Members: []*Status{s}, Logger: slog.New(slog.DiscardHandler)}
				cfg := f.probeConfig()
				cfg.Status, cfg.Group, cfg.Timeout = s, g, 1900*ms
				begin := time.Now()
				start(t, cfg)
				go g.Run(t.Context())
				var got []byte
				for _, after := range []time.Duration{1, 3, 6} {
					at(begin, after*time.Second)
					got = append(got, map[bool]byte{true: 'y', false: 'n'}[s.Usable(0)])
					if tt.name == "a slow scanner" && s.Checked() != (after == 6) {
						t.Errorf("after %v s: checked %v", after, s.Checked())
					}
				}
				if string(got) != tt.usable {
					t.Errorf("usable %s, want %s", got, tt.usable)
				}
			})
		})
	}
}

// In maintenance there is no probe; afterwards the server proves itself anew.
func TestProbeInMaintenance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: scanner(ok200)}
		begin := time.Now()
		c, _ := start(t, f.probeConfig())
		at(begin, 1*time.Second)
		c.Status().SetAdmin(Maintenance)
		if at(begin, 10*time.Minute); f.kinds() != "or" || c.Status().State() != Checking {
			t.Errorf("requests %s, %v", f.kinds(), c.Status().State())
		}
		f.set(judging(ok200, clean))
		c.Status().SetAdmin(Ready)
		c.Expedite()
		if at(begin, 10*time.Minute+500*ms); f.kinds() != "oror" || c.Status().Usable(0) {
			t.Errorf("requests %s, usable %v", f.kinds(), c.Status().Usable(0))
		}
		c.Status().SetAdmin(Drain)
		f.set(scanner(ok200))
		if at(begin, 11*time.Minute); c.Status().State() != Up || c.Status().Usable(0) {
			t.Errorf("drained: %v, usable %v", c.Status().State(), c.Status().Usable(0))
		}
	})
}

// A reload that brings a probe does not take servers out that are in use: they are probed at once, and go when that fails. One that takes
// the probe away brings back those that it had taken down.
func TestProbeCarriesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: judging(ok200, clean)}
		cfg := f.probeConfig()
		cfg.Status = new(Status)
		cfg.Status.SetState(Up)
		begin := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		go NewChecker(cfg).Run(ctx)
		if at(begin, 0); !cfg.Status.Usable(0) || f.kinds() != "or" {
			t.Errorf("usable %v, requests %s", cfg.Status.Usable(0), f.kinds())
		}
		if at(begin, 1*time.Second); cfg.Status.State() != Down {
			t.Errorf("%v, want down", cfg.Status.State())
		}
		cancel()
		synctest.Wait()
		cfg.Probe = nil
		start(t, cfg)
		if at(begin, 3*time.Second); cfg.Status.State() != Up || cfg.Status.Probe() != nil {
			t.Errorf("without a probe: %v, verdict %+v", cfg.Status.State(), cfg.Status.Probe())
		}
	})
}

// The end of the Checker cuts a probe short, and is no verdict.
func TestProbeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: judging(ok200, hang)}
		cfg := f.probeConfig()
		cfg.Stats = new(Stats)
		c := NewChecker(cfg)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		c.Run(ctx)
		if took := time.Since(begin); took != time.Second || c.Status().Probe() != nil || cfg.Stats.Probes.Failed.Load() != 0 {
			t.Errorf("ended after %v with %+v", took, c.Status().Probe())
		}
		synctest.Wait()
		f.checkNoneOpen(t)
	})
}

// Whatever a server sends, and however it is cut: no panic, bounded memory, and the same understanding.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		ok200, gone404, clean, blocked, continue100 + blocked, "ICAP/1.0 200 OK\r\nEncapsulated: opt-body=0\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"ICAP/1.0 200 OK\nEncapsulated: res-body=159\n\nHTTP/1.1 200 OK\r\n\r\n0\r\n\r\n",
		"ICAP/1.0 200 OK\r\nAllow: trailers\r\nTrailer: X\r\nEncapsulated: req-hdr=0, req-body=18\r\n\r\nGET / HTTP/1.1\r\n\r\n1;x=y\r\na\r\n0\r\n\r\nX: 1\r\n\r\n",
		"ICAP/1.0 206 x\r\nEncapsulated: res-body=0\r\n\r\n0; use-original-body=3\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		read := func(r io.Reader) (a answer, err error) {
			for {
				if err = a.readHead(r); err != nil || a.Status >= 200 {
					break
				}
			}
			if err == nil {
				err = a.readMessage(r)
			}
			return a, err
		}
		whole, err := read(bytes.NewReader(data))
		if len(whole.body) > maxBody || len(whole.blocks) > 1<<20 {
			t.Fatalf("%d bytes of heads, %d of body", len(whole.blocks), len(whole.body))
		}
		slowly, slowErr := read(iotest.OneByteReader(bytes.NewReader(data)))
		if fmt.Sprint(err) != fmt.Sprint(slowErr) || whole.Status != slowly.Status || !bytes.Equal(whole.body, slowly.body) || !bytes.Equal(whole.blocks, slowly.blocks) {
			t.Errorf("%d, %v, %q, %q\nbyte by byte %d, %v, %q, %q", whole.Status, err, whole.blocks, whole.body, slowly.Status, slowErr, slowly.blocks, slowly.body)
		}
		lines := func(a *answer) (all []string) {
			a.anyLine(func(line []byte) bool { all = append(all, string(line)); return false })
			return all
		}
		if err == nil && !reflect.DeepEqual(lines(&whole), lines(&slowly)) {
			t.Errorf("lines %q, byte by byte %q", lines(&whole), lines(&slowly))
		}
	})
}
