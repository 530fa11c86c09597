package gateway

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"icapgate/bench/dlpstub"
	"icapgate/configs"
	"icapgate/health"
	"icapgate/icap"
)

// scanner is a fake server that blocks a marker as long as its scanner is alive. OPTIONS it answers in any case.
type scanner struct {
	address string
	dead    atomic.Bool

	mu     sync.Mutex
	probes []string // ICAP and encapsulated heads
}

func startScanner(t *testing.T, preview int) *scanner {
	s := new(scanner)
	_, s.address = startStub(t, dlpstub.Config{
		Preview: preview, Match: regexp.MustCompile("DLP-PROBE"), Page: dlpstub.Page{Body: "blocked by the policy"},
		Treat: func(r *dlpstub.Request, how *dlpstub.Treatment) {
			if bytes.Contains(r.Head, []byte(health.ProbeHeader)) {
				s.mu.Lock()
				s.probes = append(s.probes, string(r.Head)+string(r.Blocks))
				s.mu.Unlock()
			}
			if s.dead.Load() {
				how.Status = 204
			}
		},
	})
	return s
}

func (s *scanner) seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.probes
}

// probed is YAML of a pool that probes as often as it may.
const probed = `    slow_start: 0s
    health:
      interval: 200ms
      rise: 1
      probe: {path: /r, body: this is a DLP-PROBE, interval: 1s, expect: {status: 200, header: "^http/1.1 403 ", body: by the policy}}
`

// A server that answers OPTIONS and scans no more goes down by its probe alone, and gets requests again when it scans.
func TestProbeOfDeadScanner(t *testing.T) {
	for _, preview := range []int{0, 4, 4096} {
		t.Run(fmt.Sprintf("preview %d", preview), func(t *testing.T) {
			a, b := startScanner(t, preview), startScanner(t, preview)
			g := newGateway(t, []string{a.address, b.address}, probed, "")
			book := g.keepLog()
			if err := g.Start(); err != nil {
				t.Fatal(err)
			}
			g.ready()
			c := g.dial(0)
			if got := g.served(c, reqmod, 8, 204); got[0] == 0 || got[1] == 0 {
				t.Errorf("with both: %v", got)
			}
			if n := g.metric(`probes_total{result="ok"}`); n < 2 {
				t.Errorf("%v probes before the first request, want one for each server", n)
			}
			state := func(want string) {
				t.Helper()
				eventually(t, want, func() bool { return g.Status().Pools[0].Servers[0].Health == want })
			}
			a.dead.Store(true)
			state("down")
			st := g.Status().Pools[0].Servers[0]
			if st.LastError != "" || st.Probe.Result != "failed" || !strings.Contains(st.Probe.Error, "204 No modifications needed, expected status 200") || st.Probe.At.IsZero() || st.Probe.Seconds <= 0 {
				t.Errorf("status %+v, probe %+v", st, st.Probe)
			}
			if got := g.served(c, reqmod, 4, 204); got[0] != 0 {
				t.Errorf("with the second one: %v", got)
			}
			a.dead.Store(false)
			state("up")
			if st := g.Status().Pools[0].Servers[0]; st.Probe.Result != "ok" || st.Probe.Error != "" {
				t.Errorf("probe %+v", st.Probe)
			}
			if got := g.served(c, reqmod, 8, 204); got[0] == 0 {
				t.Errorf("with both again: %v", got)
			}
			if lines := book.lines("server is down"); len(lines) != 1 || !containsAll(lines[0], []string{a.address, `reason="probe: REQMOD /r: 204 `, "failures=2 since="}) {
				t.Errorf("logged %q", lines)
			}
			if n := g.metric(`probes_total{result="failed"}`); n < 2 {
				t.Errorf("%v failed probes", n)
			}
			for _, p := range b.seen() {
				if (preview > 0) != strings.Contains(p, fmt.Sprintf("\r\nPreview: %d\r\n", preview)) {
					t.Errorf("a server that offers a preview of %d got %q", preview, p)
				}
			}
		})
	}
}

// No request reaches a server before its first probe has come out right, and /readyz waits for it.
func TestProbeComesFirst(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, probed, "")
	server := g.table.Load().pools[0].servers[0]
	s := f.next(t) // the probe
	if head := s.head(); !strings.Contains(head, health.ProbeHeader) {
		t.Fatalf("got %q, want a probe", head)
	}
	if st := g.Status().Pools[0].Servers[0]; st.Health != "checking" || server.Health.Usable(-1) || g.Ready("") == nil {
		t.Errorf("%s, usable %v, ready %v, before the probe has ended", st.Health, server.Health.Usable(-1), g.Ready(""))
	}
	c := g.dial(1)
	c.send(text(v04))
	eventually(t, "the request in line", func() bool { return server.Queue.Depth() == 1 })
	s.send(text("ICAP/1.0 200 OK¶Encapsulated: res-hdr=0, res-body=26¶¶HTTP/1.1 403 Forbidden¶¶d¶by the policy¶0¶¶"))
	s.Close()
	next := f.next(t)
	next.gets(v04)
	next.send(text(page))
	c.expect(text(page))
	if err := g.Ready("dlp"); err != nil {
		t.Error(err)
	}
}

// The path of a probe is asked for by the checks, so that the server's preview is known, though only a prefix leads there.
func TestProbePathIsChecked(t *testing.T) {
	for _, tt := range []struct {
		health, services string
		want             []string
		other            bool
	}{
		{"", "", []string{"/r"}, true},
		{"", "services: [{path: /r}, {path: /s}]", []string{"/r", "/s"}, false},
		{"", "services: [{path: /s}, {path: /x, rewrite: /r}]", []string{"/s", "/r"}, false},
		{"", "services: [{path: /s}, {path: /*}]", []string{"/s", "/r"}, true},
		{"path: /h, ", "", []string{"/h"}, true},
	} {
		g := newGateway(t, []string{"127.0.0.1:1"}, "    health: {"+tt.health+"probe: {path: /r, body: x, expect: {status: 200}}}\n", tt.services)
		p := g.table.Load().pools[0]
		if fmt.Sprint(p.paths) != fmt.Sprint(tt.want) || tt.health == "" && p.otherPaths != tt.other {
			t.Errorf("%s %s: asks for %q, other paths %v; want %q, %v", tt.health, tt.services, p.paths, p.otherPaths, tt.want, tt.other)
		}
		if r, _ := g.table.Load().match(entrance{}, []byte("/elsewhere"), icap.MethodReqmod); r != nil && r.checkPath >= 0 {
			t.Errorf("%s: a prefix is taken for the probe's path", tt.services)
		}
	}
}

func TestProbeContent(t *testing.T) {
	probe := func(change func(*configs.Probe)) (head, body string) {
		cfg := configs.DefaultProbe()
		if change != nil {
			change(&cfg)
		}
		h, b := encapsulate(&cfg, "dlp", []byte("content"))
		return string(h), string(b)
	}
	const common = "User-Agent: icapgate-probe\r\nX-Icapgate-Probe: dlp\r\n"
	head, body := probe(nil)
	if want := "POST http://probe.icapgate.invalid/ HTTP/1.1\r\nHost: probe.icapgate.invalid\r\n" + common + "Content-Type: text/plain\r\nContent-Length: 7\r\n\r\n"; head != want || body != "content" {
		t.Errorf("%q, %q", head, body)
	}
	head, body = probe(func(p *configs.Probe) {
		p.Filename, p.ContentType, p.URL = "a b.pdf", "application/pdf", "https://u.example:8443/up?x=1"
	})
	wantBody := "--icapgate-probe\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a b.pdf\"\r\nContent-Type: application/pdf\r\n\r\ncontent\r\n--icapgate-probe--\r\n"
	if want := "POST https://u.example:8443/up?x=1 HTTP/1.1\r\nHost: u.example:8443\r\n" + common +
		fmt.Sprintf("Content-Type: multipart/form-data; boundary=icapgate-probe\r\nContent-Length: %d\r\n\r\n", len(wantBody)); head != want || body != wantBody {
		t.Errorf("%q, %q, want %q, %q", head, body, want, wantBody)
	}
	cfg := configs.DefaultProbe()
	cfg.Filename = "x"
	if h, b := encapsulate(&cfg, "dlp", []byte("--icapgate-probe--")); !bytes.Contains(h, []byte("boundary=icapgate-probe-")) || bytes.Count(b, []byte("\r\n--icapgate-probe---")) != 1 {
		t.Errorf("the boundary is in the content: %q, %q", h, b)
	}
}

// The fields of a probe: what is configured and the pool's name, by which it is known.
func TestProbeFields(t *testing.T) {
	s := startScanner(t, 0)
	startGateway(t, []string{s.address}, strings.Replace(probed, "interval: 1s", `interval: 1h, fields: {X-Client-IP: 192.0.2.1, X-Authenticated-User: "V2luTlQ6Ly9ET00vcHJvYmU="}`, 1), "").ready()
	probe := s.seen()[0]
	for _, want := range []string{
		"REQMOD icap://" + s.address + "/r ICAP/1.0\r\nHost: " + s.address + "\r\nDate: ", "\r\nX-Icapgate-Probe: dlp\r\nX-Client-IP: 192.0.2.1\r\nX-Authenticated-User: V2luTlQ6Ly9ET00vcHJvYmU=\r\nEncapsulated: req-hdr=0, req-body=",
		"\r\n\r\nPOST http://probe.icapgate.invalid/ HTTP/1.1\r\n", "\r\nX-Icapgate-Probe: dlp\r\nContent-Type: text/plain\r\n",
	} {
		if !strings.Contains(probe, want) {
			t.Errorf("%q is not in %q", want, probe)
		}
	}
}

// A probe has the preview that its server asks for, unless the servers are known to do none.
func TestProbePreviewOff(t *testing.T) {
	for setting, want := range map[string]bool{"on": true, "off": false} {
		s := startScanner(t, 4)
		startGateway(t, []string{s.address}, probed+fmt.Sprintf("    preview: %q\n", setting), "").ready()
		if probe := s.seen()[0]; strings.Contains(probe, "\r\nPreview: 4\r\n") != want {
			t.Errorf("preview %s: %q", setting, probe)
		}
	}
}

// A reload brings, changes and takes away probes. One that stays as it is does not probe anew what it has just proved.
func TestReloadProbe(t *testing.T) {
	s := startScanner(t, 0)
	r := startReloader(t, s.address)
	r.ready()
	if len(s.seen()) != 0 {
		t.Fatal("a probe without a configuration")
	}
	seldom := strings.Replace(probed, "interval: 1s", "interval: 1h", 1)
	server := r.table.Load().pools[0].servers[0]
	checks := func() float64 { return r.metric(`checks_total{result="ok"}`) }
	probes := func(n int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d probes", n), func() bool { return len(s.seen()) == n })
		before := checks()
		eventually(t, "two more checks", func() bool { return checks() >= before+2 })
		if got := len(s.seen()); got != n || server.Health.State() != health.Up {
			t.Errorf("%d probes, %v, want %d, up", got, server.Health.State(), n)
		}
	}
	r.set([]string{s.address}, seldom)
	r.reload()
	probes(1)
	r.reload()
	probes(1)
	r.set([]string{s.address}, strings.Replace(seldom, "this is a", "here is a", 1))
	r.reload()
	probes(2)

	r.set([]string{s.address}, strings.Replace(seldom, "by the policy", "by somebody", 1))
	r.reload()
	eventually(t, "a probe that is not as expected", func() bool { return server.Health.State() == health.Down })
	r.set([]string{s.address}, "    health: {interval: 200ms}\n")
	r.reload()
	eventually(t, "up without a probe", func() bool { return server.Health.State() == health.Up && server.Health.Probe() == nil })

	r.set([]string{s.address}, "    health: {probe: {path: /r, body_file: /no/such/file, expect: {status: 200}}}\n")
	if err := r.Reload(); err == nil || !strings.Contains(err.Error(), "pool dlp: probe: cannot open /no/such/file") {
		t.Errorf("error %v, want one about the file", err)
	}
}
