package gateway

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"icapgate/configs"
	"icapgate/gateway/istag"
	"icapgate/health"
	"icapgate/icap"
)

// faceWith are two servers that differ in what they say of /r, behind a gateway that has looked at them.
func faceWith(t *testing.T, services string) (v *virtual, a, b *fakeServer) {
	t.Helper()
	a, b = startFake(t), startFake(t)
	a.says("/r", `ICAP/1.0 200 OK¶ISTag: "a1"¶Methods: REQMOD, RESPMOD¶Preview: 4096¶Options-TTL: 3600¶Max-Connections: 4¶Allow: 204, 206¶X-Include: X-Client-IP¶`)
	b.says("/r", `ICAP/1.0 200 OK¶ISTag: "b1"¶Methods: REQMOD¶Preview: 1024¶Options-TTL: 1800¶Max-Connections: 9¶Allow: 204¶X-Include: X-Server-IP¶Opt-body-type: X¶`)
	v = startVirtualFor(t, []string{a.address, b.address}, "    balance: round_robin\n", services)
	v.f = a
	v.look()
	return v, a, b
}

// look has the services take in what the servers have said.
func (v *virtual) look() { v.servers.lookAtFaces(v.time.Load()) }

// checkAgain has all servers checked, and returns when that with this number has said something of a path.
func (v *virtual) checkAgain(number int, path string) {
	v.t.Helper()
	began, table := time.Now(), v.table.Load()
	v.servers.recheck(table)
	p := table.pools[0]
	eventually(v.t, "a check", func() bool {
		o := p.said(p.servers[number], path, p.place(path))
		return o != nil && o.Seen.After(began)
	})
}

// tagOf is the ISTag of an answer.
func tagOf(t *testing.T, head string) string {
	t.Helper()
	m := regexp.MustCompile(`\r\nISTag: "([^"\r\n]*)"\r\n`).FindAllStringSubmatch(head, -1)
	if len(m) != 1 || len(m[0][1]) > 30 {
		t.Errorf("no single legal ISTag in %q", head)
		return ""
	}
	return m[0][1]
}

// An OPTIONS is answered by what holds for all servers, and none of them hears of it (vectors V01, V02, V03, R36).
func TestOptionsMerged(t *testing.T) {
	v, a, b := faceWith(t, "limits: {max_connections: 77}\nservices: [{path: /r, options: merge}, {path: /told, max_connections: 5}]")
	overBoth(t, func(t *testing.T, listener int) {
		c := v.dialFor(t, listener)
		for _, request := range []string{OL + "¶", OL + "Encapsulated: null-body=0¶¶", OL + "Encapsulated: opt-body=0¶¶3¶abc¶0¶¶", "OPTIONS icap://gw/r?mode=x ICAP/1.0¶¶"} {
			c.send(text(request))
			h := c.status(200)
			date := regexp.MustCompile(`Date: [A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT\r\n`)
			if !date.MatchString(h) {
				t.Errorf("no Date in %q", h)
			}
			want := fmt.Sprintf("ICAP/1.0 200 OK¶ISTag: \"%s\"¶Methods: REQMOD¶Service: icapgate¶Options-TTL: 1800¶Preview: 1024¶Transfer-Preview: *¶Allow: 204¶"+
				"X-Include: X-Client-IP, X-Server-IP¶Max-Connections: 77¶Encapsulated: null-body=0¶¶", tagOf(t, h))
			if got := date.ReplaceAllString(h, ""); got != text(want) {
				t.Errorf("got %q, want %q", got, text(want))
			}
		}
	})
	a.idle(t)
	b.idle(t)
	v.downForGood() // health changes nothing of it
	v.look()
	c := v.dial(1)
	c.send(text(OL + "¶"))
	if h := c.status(200); !strings.Contains(h, "\r\nMethods: REQMOD\r\n") || !strings.Contains(h, "\r\nMax-Connections: 77\r\n") {
		t.Errorf("got %q while all are down", h)
	}
}

// A client that is told how many connections it may open is told the least of what holds for it.
func TestOptionsMaxConnections(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, `
listeners: [{name: one, address: "127.0.0.1:0", max_connections: 33}, {name: two, address: "127.0.0.1:0"}]
limits: {max_connections: 44}
services: [{path: /r, options: merge}, {path: /told, max_connections: 5}]`).ready()
	eventually(t, "the first look", func() bool { return len(*g.table.Load().services[1].face.announced.Load()) > 0 })
	for listener, want := range []int{33, 44} {
		c := g.dial(listener)
		c.send(text(OL + "¶"))
		if h := c.status(200); !strings.Contains(h, fmt.Sprintf("\r\nMax-Connections: %d\r\n", want)) {
			t.Errorf("got %q, want %d", h, want)
		}
		c.send(strings.Replace(text(OL+"¶"), "/r ", "/told ", 1))
		if h := c.status(200); !strings.Contains(h, "\r\nMax-Connections: 5\r\n") {
			t.Errorf("got %q, want 5", h)
		}
	}
}

// While all servers are down the service goes on for options_grace, and for ever where its requests pass without them.
func TestOptionsGrace(t *testing.T) {
	for _, test := range []struct {
		name, service string
		grace         time.Duration
	}{
		{"default", "{path: /r}", time.Minute},
		{"short", "{path: /r, options_grace: 5s}", 5 * time.Second},
		{"none", "{path: /r, options_grace: 0s}", 0},
		{"fail open", "{path: /r, on_unavailable: allow}", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			v, _, _ := faceWith(t, "services: ["+test.service+"] # options: merge")
			c := v.connect(1)
			ask := func(status int) {
				t.Helper()
				c.send(text(OL + "¶"))
				h := c.status(status)
				if retry := strings.Contains(h, "\r\nRetry-After: "); retry != (status == 503) {
					t.Errorf("got %q", h)
				}
				tagOf(t, h)
			}
			v.pass(100 * time.Millisecond) // between two looks
			ask(200)
			v.look()
			for _, s := range v.table.Load().pools[0].servers {
				s.Health.SetState(health.Down)
			}
			v.look()
			if test.name == "fail open" {
				v.pass(24 * time.Hour)
				v.look()
				c = v.connect(1)
				ask(200)
				return
			}
			v.pass(test.grace)
			v.look()
			ask(200)
			v.pass(time.Second)
			v.look()
			ask(503)
			v.table.Load().pools[0].servers[1].Health.SetState(health.Up)
			v.look()
			ask(200)
		})
	}
}

// As long as no check has told anything of a path, the first server that answers does, in the gateway's words.
func TestOptionsUnknown(t *testing.T) {
	f := startFake(t)
	f.says("/r", "ICAP/1.0 403 Forbidden¶")
	v := startVirtual(t, f, "", "services: [{path: /r, options: merge}]")
	v.look()
	overBoth(t, func(t *testing.T, listener int) {
		c := v.connect(listener)
		for _, body := range []string{"", "Encapsulated: opt-body=0¶¶2¶xy¶0¶", "Encapsulated: req-hdr=0, req-body=28¶¶" + P + "2¶xy¶0¶"} {
			c.send(text(OL + "¶"))
			s := f.next(t)
			s.gets(forwarded(OL + "¶"))
			s.send(text("ICAP/1.0 200 Fine¶ISTag: \"s\"¶Date: Thu, 01 Jan 1970 00:00:00 GMT¶Methods: REQMOD¶Preview: 30¶Options-TTL: 9999¶Max-Connections: 3¶X-Own: x¶" + body + "¶"))
			s.release()
			h := c.status(200)
			for _, want := range []string{"Methods: REQMOD", "Preview: 30", "Transfer-Preview: *", "Options-TTL: 60", "Encapsulated: null-body=0"} {
				if !strings.Contains(h, "\r\n"+want+"\r\n") {
					t.Errorf("%s is not in %q", want, h)
				}
			}
			if strings.Contains(h, "1970") || strings.Contains(h, "X-Own") || strings.Contains(h, "Max-Connections: 3\r") || tagOf(t, h) == "s" {
				t.Errorf("the server's own words in %q", h)
			}
		}
		c.send(text(OL + "¶"))
		s := f.next(t)
		s.gets(forwarded(OL + "¶"))
		s.send(text("ICAP/1.0 404 Not Found¶ISTag: \"s\"¶¶"))
		s.release()
		if h := c.status(404); tagOf(t, h) == "s" {
			t.Errorf("got %q", h)
		}
	})
}

// Where requests pass without a server, an OPTIONS is answered without one too, also if none has ever said anything.
func TestOptionsOfNobody(t *testing.T) {
	f := startFake(t)
	f.says("/r", "ICAP/1.0 403 Forbidden¶")
	v := startVirtual(t, f, "    panic_threshold: 0\n", "services: [{path: /r, options: merge, on_unavailable: allow, methods: [REQMOD]}, {path: /s}, {path: /t, options: forward, on_unavailable: allow}]")
	v.table.Load().pools[0].servers[0].Health.SetState(health.Down)
	v.look()
	c := v.connect(1)
	c.send(text(OL + "¶"))
	if h := c.status(200); !strings.Contains(h, "\r\nMethods: REQMOD\r\n") || !strings.Contains(h, "\r\nOptions-TTL: 60\r\n") || strings.Contains(h, "Preview") {
		t.Errorf("got %q", h)
	}
	for _, path := range []string{"/s ", "/t "} {
		c.send(strings.Replace(text(OL+"¶"), "/r ", path, 1))
		c.status(503)
	}
	v.logged("200 done", "503 no_server", "503 no_server")
}

// What a client asks for under a prefix the checks ask all servers for from then on.
func TestOptionsUnderPrefix(t *testing.T) {
	a, b := startFake(t), startFake(t)
	a.says("/scan", `ICAP/1.0 200 OK¶ISTag: "a1"¶Methods: REQMOD¶Preview: 4096¶`)
	b.says("/scan", `ICAP/1.0 200 OK¶ISTag: "b1"¶Methods: REQMOD¶Preview: 1024¶`)
	dir := t.TempDir()
	rest := fmt.Sprintf("state_dir: %q\nservices: [{path: \"/x*\", options: merge, rewrite: \"/*\"}]", dir)
	g := startGateway(t, []string{a.address, b.address}, "", rest).ready()
	c := g.dial(1)
	ask := func(path string) string {
		t.Helper()
		c.send(text("OPTIONS icap://gw" + path + " ICAP/1.0¶¶"))
		return c.status(200)
	}
	c.send(text("OPTIONS icap://gw/xscan?a=b ICAP/1.0¶¶"))
	var s *serverSide
	select {
	case s = <-a.begun:
	case s = <-b.begun:
	case <-time.After(patience):
		t.Fatal("no request reached a server")
	}
	s.t = t
	if h := s.head(); !strings.Contains(h, "/scan?a=b ICAP/1.0\r\n") {
		t.Errorf("the server got %q", h)
	}
	s.send(text("ICAP/1.0 200 OK¶Methods: REQMOD¶Preview: 7¶¶"))
	s.release()
	first := c.status(200)
	if !strings.Contains(first, "\r\nPreview: 7\r\n") {
		t.Errorf("got %q", first)
	}
	key := g.table.Load().services[0].face.key
	eventually(t, "an answer for both servers", func() bool {
		face := g.table.Load().services[0].face
		return strings.Contains(string((*face.announced.Load())["/xscan"]), "\r\nPreview: 1024\r\n") && face.kinds.Load() >= 2
	})
	h := ask("/xscan")
	a.idle(t)
	b.idle(t)
	if tagOf(t, h) == tagOf(t, first) {
		t.Errorf("still the tag of a service of which nothing is known: %q", h)
	}
	eventually(t, "the file", func() bool {
		b, _ := os.ReadFile(filepath.Join(dir, keptName))
		return strings.Contains(string(b), tagOf(t, h)) && strings.Contains(string(b), "/xscan")
	})

	// After a restart the path is known, and the tag is the same.
	g.Close()
	next := startGateway(t, []string{a.address, b.address}, "", rest).ready()
	if next.table.Load().services[0].face.key != key {
		t.Error("the service has another key after the restart")
	}
	eventually(t, "an answer for both servers", func() bool {
		face := next.table.Load().services[0].face
		return strings.Contains(string((*face.announced.Load())["/xscan"]), "\r\nPreview: 1024\r\n")
	})
	c = next.dial(1)
	if again := ask("/xscan"); tagOf(t, again) != tagOf(t, h) {
		t.Errorf("%q after the restart, %q before", again, h)
	}
}

// Too many paths under a prefix: the gateway keeps an answer for some of them, the others go to the servers for ever.
func TestOptionsOfManyPaths(t *testing.T) {
	f := startFake(t)
	v := startVirtual(t, f, "", "services: [{path: \"*\", options: merge}]")
	c := v.connect(1)
	for i := range health.MaxOthers + 3 {
		request := fmt.Sprintf("OPTIONS icap://gw/%d ICAP/1.0¶Host: gw¶¶", i)
		c.send(text(request))
		s := f.next(t)
		s.gets(forwarded(request))
		s.send(text("ICAP/1.0 200 OK¶ISTag: \"s\"¶¶"))
		s.release()
		c.status(200)
	}
	if n := len(v.table.Load().services[0].face.askedPaths()); n != health.MaxOthers {
		t.Errorf("%d paths are asked for, want %d", n, health.MaxOthers)
	}
	if n := len(v.table.Load().pools[0].others.get()); n != health.MaxOthers {
		t.Errorf("the checks ask for %d paths, want %d", n, health.MaxOthers)
	}
}

// A path whose methods are routed to different pools is one service: an OPTIONS has all of them, and there is one tag.
func TestOptionsOfSplitPath(t *testing.T) {
	a, b := startFake(t), startFake(t)
	a.says("/in", `ICAP/1.0 200 OK¶ISTag: "a1"¶Methods: REQMOD, RESPMOD¶Preview: 100¶`)
	b.says("/out", `ICAP/1.0 200 OK¶ISTag: "b1"¶Methods: RESPMOD¶Preview: 200¶`)
	v := startVirtual(t, a, "  - {name: out, servers: [\""+b.address+"\"], health: {interval: 1h}}\n",
		"services: [{path: /r, options: merge, methods: [REQMOD], pool: dlp, rewrite: /in}, {path: \"/*\", methods: [RESPMOD], pool: out, rewrite: /out}]")
	eventually(t, "the other check", func() bool { return v.table.Load().pools[1].servers[0].Health.Checked() })
	v.look()
	overBoth(t, func(t *testing.T, listener int) {
		c := v.connect(listener)
		c.send(text(OL + "¶"))
		h := c.status(200)
		if !strings.Contains(h, "\r\nMethods: REQMOD, RESPMOD\r\n") || !strings.Contains(h, "\r\nPreview: 100\r\n") {
			t.Errorf("got %q", h)
		}
		want := tagOf(t, h)
		for _, request := range []struct {
			stream, name string
			f            *fakeServer
		}{{v05, "in", a}, {v08, "out", b}} {
			c.send(text(request.stream))
			s := request.f.next(t)
			s.head()
			s.drained(request.stream)
			s.send(text("ICAP/1.0 403 Forbidden¶ISTag: \"x\"¶¶"))
			s.release()
			if got := tagOf(t, c.status(403)); got != want {
				t.Errorf("the tag of %s is %s, that of OPTIONS %s", request.name, got, want)
			}
		}
		c.send(strings.Replace(text(OL+"¶"), "/r ", "/other ", 1)) // only RESPMOD is routed here, and no check has asked yet
		s := b.next(t)
		s.head()
		s.send(text("ICAP/1.0 200 OK¶Methods: REQMOD, RESPMOD¶ISTag: \"x\"¶¶"))
		s.release()
		if h := c.status(200); !strings.Contains(h, "\r\nMethods: RESPMOD\r\n") || tagOf(t, h) == want {
			t.Errorf("got %q", h)
		}
		c.send(strings.Replace(text(v05), "/r ", "/other ", 1))
		c.status(405)
	})
}

// drained reads what is left of a request after its ICAP head.
func (s *serverSide) drained(request string) {
	s.t.Helper()
	_, rest, _ := strings.Cut(request, "¶¶")
	s.expect(text(rest))
}

// Every answer of a service has its tag, whoever gives it (vectors R01, R27).
func TestTagInEveryAnswer(t *testing.T) {
	f := startFake(t)
	v := startVirtual(t, f, "", "services: [{path: /r, options: merge, on_error: allow}]")
	v.look()
	c := v.connect(1)
	c.send(text(OL + "¶"))
	want := tagOf(t, c.status(200))
	exchange := func(request, answer string, status int) string {
		t.Helper()
		c.send(text(request))
		s := f.next(t)
		s.head()
		s.drained(request)
		s.send(text(answer))
		s.release()
		h := c.status(status)
		if got := tagOf(t, h); got != want {
			t.Errorf("tag %q in %q, want %q", got, h, want)
		}
		return h
	}
	req204 := RL + "Allow: 204, 206¶" + reqBody + chunks
	for _, form := range []string{"ISTag: \"s\"¶", "ISTag:abc¶", "istag: unquoted¶", "ISTag: \"0123456789012345678901234567890123456789\"¶", "", "ISTag: \"a\"¶ISTag: \"b\"¶"} {
		h := exchange(v05, "ICAP/1.0 200 OK¶X-A: 1¶"+form+"X-B: 2¶Encapsulated: req-hdr=0, req-body=28¶¶"+P+chunks, 200)
		if !strings.Contains(h, "\r\nX-A: 1\r\n") || !strings.Contains(h, "\r\nX-B: 2\r\n") {
			t.Errorf("got %q", h)
		}
		c.expect(text(P + chunks))
		exchange(req204, "ICAP/1.0 204 No¶"+form+"¶", 204)
		exchange(v05, "ICAP/1.0 200 OK¶"+form+"Encapsulated: res-hdr=0, null-body=19¶¶"+S, 200)
		c.expect(text(S))
		exchange(req204, "ICAP/1.0 206 Partial¶"+form+"Encapsulated: req-hdr=0, req-body=28¶¶"+P+"0; use-original-body=0¶¶", 206)
		c.expect(text(P + "0; use-original-body=0¶¶"))
		exchange(v05, "ICAP/1.0 404 Not Found¶"+form+"¶", 404)
		exchange(v05, "ICAP/1.0 200 OK¶"+form+"¶", 200) // what the client gets back is its own message
		c.expect(text(P + chunks))
	}
	c.send(text(RL + "Preview: 4¶" + reqBody + "8¶abcdefgh¶0¶¶")) // more than the preview
	if got := tagOf(t, c.status(400)); got != want {
		t.Errorf("the tag of a bad request is %q, want %q", got, want)
	}
	c = v.connect(1)
	c.send(strings.Replace(text(v05), "/r ", "/x ", 1))
	if got := tagOf(t, c.status(404)); got != "icapgate" {
		t.Errorf("the tag of no service is %q", got)
	}
}

// reloads puts other services in force.
func (v *virtual) reloads(services string) {
	v.t.Helper()
	cfg, err := configs.Parse("test.yaml", []byte("listeners: [{name: x, address: \"127.0.0.1:0\"}]\npools: [{name: dlp, servers: [\"127.0.0.1:1\"]}]\n"+services))
	if err != nil {
		v.t.Fatal(err)
	}
	next := *v.config.Load()
	next.Services = cfg.Services
	v.load = func() (*configs.Config, error) { return &next, nil }
	if err := v.Reload(); err != nil {
		v.t.Fatal(err)
	}
}

// istag: pass leaves the servers' tags alone; a fixed one is in every answer. A reload puts either in force.
func TestTagIsConfigured(t *testing.T) {
	a := startFake(t)
	a.says("/r", `ICAP/1.0 200 OK¶ISTag: tag-of-a¶Methods: REQMOD¶`)
	v := startVirtual(t, a, "", "services: [{path: /r, istag: pass}]")
	v.look()
	c := v.connect(1)
	expect := func(options, relayed string) {
		t.Helper()
		c.send(text(OL + "¶"))
		if h := c.status(200); tagOf(t, h) != options {
			t.Errorf("OPTIONS: %q, want %s", h, options)
		}
		c.send(text(v05))
		s := a.next(t)
		s.head()
		s.drained(v05)
		s.send(text("ICAP/1.0 403 Forbidden¶X: y¶ISTag: server's¶¶"))
		s.release()
		if h := c.status(403); !strings.Contains(h, "\r\nISTag: "+relayed+"\r\n") {
			t.Errorf("relayed: %q, want %s", h, relayed)
		}
	}
	expect("tag-of-a", "server's")
	v.reloads("services: [{path: /r, istag: fixed-1}]")
	expect("fixed-1", `"fixed-1"`)
	v.reloads("services: [{path: /r, options: merge}]")
	v.look()
	c.send(text(OL + "¶"))
	own := tagOf(t, c.status(200))
	if !strings.HasPrefix(own, "GW-") {
		t.Errorf("own tag %q", own)
	}
	expect(own, `"`+own+`"`)
}

// The tag of a path outlives a reload that gives it other routes, whatever the servers say of those.
func TestTagSurvivesAReload(t *testing.T) {
	v, _, _ := faceWith(t, "services: [{path: /r, methods: [REQMOD], options: merge}]")
	tag := func() string {
		table := v.table.Load()
		r, _ := table.match(entrance{"icap", ""}, []byte("/r"), icap.MethodReqmod)
		return tagOfLine(table.serviceOf(entrance{"icap", ""}, []byte("/r"), r).ownTag())
	}
	want := tag()
	if want == istag.Unknown {
		t.Error("there is no tag")
	}
	for _, services := range []string{
		"[{path: /r}]",
		"[{path: /r, methods: [RESPMOD], on_error: allow}, {path: /r, methods: [REQMOD], options: merge}]",
		"[{path: \"/*\", server_names: [a.example]}, {path: /r, options_grace: 1s}]",
		"[{path: /r, methods: [REQMOD]}, {path: \"*\"}]",
	} {
		v.reloads("services: " + services)
		if got := tag(); got != want {
			t.Errorf("%s right after the reload to %s, %s before", got, services, want)
		}
		v.look()
		if got := tag(); got != want {
			t.Errorf("%s after the reload to %s, %s before", got, services, want)
		}
	}
}

// Servers that say different tags for different paths do not differ.
func TestDifferentPathsDoNotDiffer(t *testing.T) {
	a, b := startFake(t), startFake(t)
	for _, f := range []*fakeServer{a, b} {
		f.says("/x/echo", `ICAP/1.0 200 OK¶ISTag: "echo"¶`)
		f.says("/x/scan", `ICAP/1.0 200 OK¶ISTag: "scan"¶`)
		f.says("/xyz", `ICAP/1.0 200 OK¶ISTag: "xyz"¶`)
	}
	v := startVirtualFor(t, []string{a.address, b.address}, "",
		"services: [{path: /a, rewrite: /x/echo, options: merge}, {path: /b, rewrite: /x/scan}, {path: \"/c/*\", rewrite: /x}, {path: /d, rewrite: /xyz}, {path: \"*\", rewrite: \"/x/*\"}]")
	v.look()
	for _, s := range v.table.Load().services {
		if n := s.face.kinds.Load(); n > 1 {
			t.Errorf("%s: %d different tags", s.name, n)
		}
		if s.name == "/c/*" {
			for _, source := range s.sources {
				if !strings.HasSuffix(source.ID, "/x") {
					t.Errorf("%s is taken for one of %s", source.ID, s.name)
				}
			}
		}
	}
	b.says("/x/scan", `ICAP/1.0 200 OK¶ISTag: "other"¶`)
	v.checkAgain(1, "/x/scan")
	v.look()
	for _, s := range v.table.Load().services {
		if n, want := s.face.kinds.Load(), map[string]int64{"/b": 2, "*": 2}[s.name]; n != max(want, min(n, 1)) {
			t.Errorf("%s: %d different tags", s.name, n)
		}
	}
}

// As long as a server has said nothing, clients ask again soon: it may do no previews.
func TestOptionsOfSomeServers(t *testing.T) {
	a, b := startFake(t), startFakeHeld(t)
	a.says("/r", `ICAP/1.0 200 OK¶ISTag: "a1"¶Methods: REQMOD¶Preview: 4096¶Options-TTL: 3600¶`)
	b.says("/r", `ICAP/1.0 200 OK¶ISTag: "b1"¶Methods: REQMOD¶Options-TTL: 3600¶`)
	v := startVirtualFor(t, []string{a.address, b.address}, "", "services: [{path: /r, options: merge}]")
	v.look()
	c := v.connect(1)
	c.send(text(OL + "¶"))
	if h := c.status(200); !strings.Contains(h, "\r\nPreview: 4096\r\n") || !strings.Contains(h, "\r\nOptions-TTL: 60\r\n") {
		t.Errorf("got %q", h)
	}
	close(b.checks)
	v.checkAgain(1, "/r")
	v.look()
	c.send(text(OL + "¶"))
	if h := c.status(200); strings.Contains(h, "\r\nPreview: ") || !strings.Contains(h, "\r\nOptions-TTL: 3600\r\n") {
		t.Errorf("got %q", h)
	}
}

// A state_dir that can't be written to for a while has the tags in the end.
func TestTagsAreKeptInTheEnd(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // a file in its way
		t.Fatal(err)
	}
	f := startFake(t)
	f.says("/r", `ICAP/1.0 200 OK¶ISTag: "a1"¶`)
	v := startVirtual(t, f, "", fmt.Sprintf("state_dir: %q\nservices: [{path: /r, options: merge}]", dir))
	v.look()
	eventually(t, "the fault", func() bool { return v.servers.unkept.Load() > 0 })
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	v.pass(time.Minute)
	v.look()
	eventually(t, "the file", func() bool {
		b, _ := os.ReadFile(filepath.Join(dir, keptName))
		return strings.Contains(string(b), "a1")
	})
}
