package gateway

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"icapgate/configs"
	"icapgate/icap"
)

// withHeaders is YAML of a service with a header policy.
func withHeaders(policy string) string { return "services: [{headers: " + policy + "}]" }

// filled puts in what a test can't know before.
func (p *player) filled(s string) string {
	host, _ := os.Hostname()
	_, port, _ := net.SplitHostPort(p.c.LocalAddr().String())
	return strings.NewReplacer("PORT", port, "HOSTNAME", hostName(host)).Replace(s)
}

// What servers get: fields that are added come last, and nothing else is touched.
func TestRequestHeaders(t *testing.T) {
	const inside = "Encapsulated: req-hdr=0, null-body=48¶¶GET / HTTP/1.1¶Host: a¶X-Client-IP: inside¶¶"
	for _, v := range []struct{ name, policy, fields, want string }{
		{"no policy", `{}`, "X-Client-IP: 192.0.2.7¶X-A:  1¶", "X-Client-IP: 192.0.2.7¶X-A: 1¶"},
		{"the client's address", `{client_ip: true}`, "X-A: 1¶", "X-A: 1¶X-Client-IP: 127.0.0.1¶"},
		{"the request has one", `{client_ip: true}`, "x-client-ip: 192.0.2.7¶", "x-client-ip: 192.0.2.7¶"},
		{"the request has one that says nothing", `{client_ip: true}`, "x-client-ip: ¶X-A: 1¶X-Client-IP:¶", "X-A: 1¶X-Client-IP: 127.0.0.1¶"},
		{"the request has one for the gateway only", `{client_ip: true}`, "Connection: X-Client-IP¶X-Client-IP: 192.0.2.7¶", "X-Client-IP: 127.0.0.1¶"},
		{"always ours", `{client_ip: true, request: {remove: [X-Client-IP]}}`, "X-Client-IP: 192.0.2.7¶X-Client-IP: 192.0.2.8¶", "X-Client-IP: 127.0.0.1¶"},
		{"remove", `{request: {remove: [x-b]}}`, "X-A: 1¶X-B: 2¶X-BB: 3¶x-b:¶ folded¶X-C: 4¶", "X-A: 1¶X-BB: 3¶X-C: 4¶"},
		{"remove by prefix", `{request: {remove: ["X-Debug-*"]}}`, "X-Debug: 1¶x-debug-a: 2¶X-DEBUG-: 3¶X-Debug-B: 4¶", "X-Debug: 1¶"},
		{"set where there is none", `{request: {set: {X-A: "1 2"}}}`, "", "X-A: 1 2¶"},
		{"set in the place of all", `{request: {set: {X-A: new}}}`, "x-a: 1¶X-B: 2¶X-A:¶\t3¶ 4¶X-a: 5¶", "X-B: 2¶X-A: new¶"},
		{"add", `{request: {add: {X-A: new}}}`, "x-a: 1¶X-B: 2¶", "x-a: 1¶X-B: 2¶X-A: new¶"},
		{"remove, set, add", `{request: {add: {X-A: 3, X-C: 4}, set: {X-A: 2}, remove: [X-C, X-A]}}`, "X-A: 0¶X-C: 0¶", "X-A: 2¶X-A: 3¶X-C: 4¶"},
		{"set is more than client_ip", `{client_ip: true, request: {set: {x-client-ip: "${client_ip}:${client_port}"}}}`, "X-Client-IP: 1¶", "x-client-ip: 127.0.0.1:PORT¶"},
		{"variables", `{request: {set: {X-A: "<${listener}> ${service} $$${hostname}$${x}"}}}`, "", "X-A: <icap> * $HOSTNAME${x}¶"},
		{"a value that comes out empty", `{request: {set: {X-A: "${server_name}", X-B: "${server_name}."}, add: {X-C: "${server_name}${server_name}"}}}`, "x-a: 1¶X-C: 2¶", "X-C: 2¶X-B: .¶"},
		{"Preview and Allow stay where they are", `{client_ip: true}`, "Allow: 204, trailers¶Preview: 0¶X-A: 1¶", "Allow: 204¶X-A: 1¶X-Client-IP: 127.0.0.1¶Preview: 0¶"},
		{"blanks alone are no value", `{request: {set: {X-A: " ${server_name} ${server_name}"}, add: {X-B: "${server_name} a"}}}`, "X-A: 1¶", "X-B:  a¶"},
		{"the mark of a probe", `{request: {remove: ["X-I*"]}}`, "x-icapgate-probe: dlp¶X-Include: 1¶", ""},
		{"credentials pass", `{request: {remove: ["X-*"]}}`, "Proxy-Authorization: Basic eA==¶X-A: 1¶", "Proxy-Authorization: Basic eA==¶"},
	} {
		t.Run(v.name, func(t *testing.T) {
			f := startFake(t)
			p := newPlayer(t, startGateway(t, []string{f.address}, quiet, withHeaders(v.policy)).ready(), f, 1)
			for _, cut := range []int{whole, 100, bytewise} { // also where the head is parsed twice
				p.clientCut = cut
				p.play(simple(RL+v.fields+inside, forwarded(RL)+p.filled(v.want)+inside)...)
			}
		})
	}
}

// What clients get in servers' answers, and with every answer of the gateway itself that belongs to a service. A 100 stays bare.
func TestResponseHeaders(t *testing.T) {
	const policy = `{response: {remove: [x-engine, "X-Debug-*", "X-I*"], set: {Server: icapgate, X-From: "${server_name}${listener} ${client_ip}"}, add: {X-Seen: "1", X-None: "${server_name}"}}}`
	const added = "Server: icapgate¶X-Seen: 1¶X-From: icap 127.0.0.1¶"
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet+"    panic_threshold: 0\n    retry: {attempts: 0}\n",
		`services: [{path: "/r", on_error: allow, headers: `+policy+`}]`).ready()
	p := newPlayer(t, g, f, 1)

	p.play(sends(v04), arrives(forwarded(v04)),
		answers("ICAP/1.0 200 OK¶ISTag: \"s\"¶server: x¶Server: y¶X-Seen: 0¶X-Engine: 7¶x-debug-a:¶ folded¶X-Violations-Found: 1¶\tone¶Encapsulated: res-hdr=0, null-body=19¶¶"+S),
		gets("ICAP/1.0 200 OK¶ISTag: \"s\"¶X-Seen: 0¶X-Violations-Found: 1¶\tone¶"+added+"Encapsulated: res-hdr=0, null-body=19¶¶"+S))
	p.play(sends(OL+"¶"), arrives(forwarded(OL)+"¶"),
		answers("ICAP/1.0 200 OK¶ISTag: \"s\"¶Methods: REQMOD¶X-Include: X-A¶X-Infection: 1¶Server: x¶¶"), gets("ICAP/1.0 200 OK¶ISTag: \"s\"¶Methods: REQMOD¶X-Include: X-A¶"+added+"¶"))

	p.play(sends(v04), arrives(forwarded(v04)),
		answers("ICAP/1.0 200 OK¶ISTag: \"s\"¶X-Icapgate-Allowed: full¶X-Debug-A: 1¶Encapsulated: res-hdr=0, null-body=19¶¶"+S), // of a gateway behind this one
		gets("ICAP/1.0 200 OK¶ISTag: \"s\"¶X-Icapgate-Allowed: full¶"+added+"Encapsulated: res-hdr=0, null-body=19¶¶"+S))

	asks := preview(4) + "4¶abcd¶0¶¶"
	p.play(sends(asks), arrives(forwarded(preview(4))+"4¶abcd¶0¶¶"), answers(goOn), gets(goOn), sends("0¶¶"), arrives("0¶¶"),
		answers(strings.Replace(page, "Encaps", "x-engine: 8¶Encaps", 1)), gets(strings.Replace(page, "Encaps", added+"Encaps", 1)))

	own := func(status int, want bool) {
		t.Helper()
		if h := p.c.status(status); strings.Contains(h, text("¶"+added)) != want || strings.Contains(h, "X-None") {
			t.Errorf("%q: the fields are to be there: %v", h, want)
		}
	}
	fails := func(request string) {
		p.c.send(text(request))
		s := f.next(t)
		s.gets(request)
		s.reset()
	}
	fails(RL + "Allow: 204¶" + reqNull)
	own(204, true)
	fails(v04)
	own(200, true)
	p.c.expect(text(G))

	c := p.c
	p.c = g.dial(1)
	p.c.send(text(RL + reqBody + "5¶he"))
	f.next(t)
	p.c.send("llo!!") // no line end behind the chunk
	own(400, true)

	p.c = c
	g.downForGood()
	p.c.send(text(v04))
	own(503, true)
	p.c.send(text(strings.Replace(v04, "/r", "/none", 1)))
	own(404, false)
}

// Who is not trusted can't say whom a request is from, in no spelling, and neither to the balancing nor to the access log.
func TestGuardedHeaders(t *testing.T) {
	claims := "x-client-ip:¶ 192.0.2.7¶X-AUTHENTICATED-USER: " + "V2luTlQ6Ly9ET00vamFuZQ==" + "¶X-A: 1¶X-Client-IP: 192.0.2.8¶X-SYMC-User-Email-Address: a@b¶"
	passed := strings.ReplaceAll(claims, ":¶ ", ": ")
	for _, v := range []struct {
		name, listen, policy string
		trusted              bool
	}{
		{"nobody is named", "127.0.0.1:0", `client_ip: true`, true},
		{"the address", "127.0.0.1:0", `client_ip: true, trusted: [127.0.0.1]`, true},
		{"a range", "127.0.0.1:0", `client_ip: true, trusted: [192.0.2.0/24, 127.0.0.0/8]`, true},
		{"another range", "127.0.0.1:0", `client_ip: true, trusted: [192.0.2.0/24]`, false},
		{"all of IPv6 is not IPv4", "127.0.0.1:0", `client_ip: true, trusted: ["::/0"]`, false},
		{"IPv4 as IPv6 says it", "127.0.0.1:0", `client_ip: true, trusted: ["::ffff:127.0.0.0/104"]`, true},
		{"by a socket of both", "[::]:0", `client_ip: true, trusted: [127.0.0.1]`, true},
		{"by a socket of both, another", "[::]:0", `client_ip: true, trusted: [127.0.0.2]`, false},
		{"IPv6", "[::1]:0", `client_ip: true, trusted: ["::1"]`, true},
		{"IPv6, another", "[::1]:0", `client_ip: true, trusted: ["2001:db8::/32", 127.0.0.0/8]`, false},
		{"without client_ip", "127.0.0.1:0", `trusted: [192.0.2.0/24]`, false},
		{"a list of its own", "127.0.0.1:0", `client_ip: true, trusted: [192.0.2.0/24], guarded: [x-client-ip, X-Auth*, "x-symc-*"]`, false},
	} {
		t.Run(v.name, func(t *testing.T) {
			probe, err := net.Listen("tcp", v.listen)
			if err != nil {
				t.Skipf("this machine can't listen there: %v", err)
			}
			probe.Close()
			log := filepath.Join(t.TempDir(), "access.log")
			f := startFake(t)
			g := startGateway(t, []string{f.address}, quiet, fmt.Sprintf("%s\nlisteners: [{name: in, address: %q}]\naccess_log: {output: %q}", withHeaders("{"+v.policy+"}"), v.listen, log)).ready()
			at := netip.MustParseAddrPort(g.address(0))
			if at.Addr().IsUnspecified() {
				at = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), at.Port())
			}
			c := dialPlain(t, at.String())
			want, user := passed, `WinNT://DOM/jane`
			address := "192.0.2.7"
			if !v.trusted {
				want, user, address = "X-A: 1¶", "", ""
				if strings.Contains(v.policy, "client_ip: true") {
					address = at.Addr().String()
					want += "X-Client-IP: " + address + "¶"
				}
			}
			for range 2 {
				c.send(text(RL + claims + reqNull))
				s := f.next(t)
				s.gets(RL + want + reqNull)
				s.send(text(page))
				s.release()
				c.expect(text(page))
			}
			g.settle()
			g.Close()
			b, err := os.ReadFile(log)
			if err != nil {
				t.Fatal(err)
			}
			var r struct {
				IP   string `json:"x_client_ip"`
				User string
			}
			first, _, _ := strings.Cut(string(b), "\n")
			if err := json.Unmarshal([]byte(first), &r); err != nil || r.IP != address || r.User != user {
				t.Errorf("the access log has %+v (%v), want %q and %q", r, err, address, user)
			}
		})
	}
}

// Requests that no service has are from nobody: no policy says whether what they claim is true.
func TestStrayClaimsAreNotLogged(t *testing.T) {
	log := filepath.Join(t.TempDir(), "access.log")
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, fmt.Sprintf("services: [{path: /x}]\naccess_log: {output: %q}", log)).ready()
	c := g.dial(1)
	c.send(text(RL + "X-Client-IP: 192.0.2.7¶X-Authenticated-User: jane¶" + reqNull))
	c.status(404)
	g.settle()
	g.Close()
	if b, err := os.ReadFile(log); err != nil || !strings.Contains(string(b), `"path":"/r"`) || strings.Contains(string(b), "jane") || strings.Contains(string(b), "192.0.2.7") {
		t.Errorf("%s (%v)", b, err)
	}
}

// OPTIONS that the gateway answers itself has the fields of answers, too, and is from nobody who is not trusted.
func TestHeadersOfOptions(t *testing.T) {
	log := filepath.Join(t.TempDir(), "access.log")
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet,
		fmt.Sprintf("services: [{path: /r, options: merge, headers: {trusted: [192.0.2.0/24], response: {set: {X-A: \"${listener}\"}, remove: [X-*]}}}]\naccess_log: {output: %q}", log)).ready()
	c := g.dial(1)
	c.send(text(OL + "X-Authenticated-User: boss¶X-Client-IP: 192.0.2.7¶¶"))
	if h := c.status(200); !strings.Contains(h, "\r\nMethods: ") || strings.Count(h, "\r\nX-A: icap\r\n") != 1 {
		t.Errorf("%q", h)
	}
	f.idle(t)
	g.settle()
	g.Close()
	if b, err := os.ReadFile(log); err != nil || !strings.Contains(string(b), `"OPTIONS"`) || strings.Contains(string(b), "boss") || strings.Contains(string(b), "192.0.2.7") {
		t.Errorf("%s (%v)", b, err)
	}
}

// The key of balance: hash is that of the request as servers get it.
func TestHashAfterPolicy(t *testing.T) {
	var fakes []*fakeServer
	var list []string
	for range 3 {
		f := startFake(t)
		fakes, list = append(fakes, f), append(list, f.address)
	}
	for _, v := range []struct {
		on, policy, fields string
		one                bool // all requests are of one key
	}{
		{"client_ip", `{}`, "X-Client-IP: 192.0.2.%d¶", false},
		{"client_ip", `{trusted: [192.0.2.0/24]}`, "X-Client-IP: 192.0.2.%d¶", true},
		{"client_ip", `{client_ip: true, trusted: [192.0.2.0/24]}`, "X-Client-IP: 192.0.2.%d¶", true},
		{"header:X-Tenant", `{request: {set: {X-Tenant: "${listener}"}}}`, "X-Tenant: %d¶", true},
		{"header:X-Tenant", `{request: {add: {X-Tenant: "${listener}"}}}`, "X-Tenant: %d¶", false},
		{"header:X-Tenant", `{request: {add: {X-Tenant: "${listener}"}}}`, "X-No: %d¶", true},
		{"header:X-Client-IP", `{client_ip: true}`, "X-No: %d¶", true},
	} {
		t.Run(v.on+v.policy+v.fields, func(t *testing.T) {
			g := startGateway(t, list, quiet+"    balance: hash\n    hash_on: \""+v.on+"\"\n", withHeaders(v.policy)).ready()
			c := g.dial(1)
			var used [3]int
			for i := range 24 {
				c.send(text(RL + fmt.Sprintf(v.fields, i) + reqNull))
				var s *serverSide
				select {
				case s = <-fakes[0].begun:
					used[0]++
				case s = <-fakes[1].begun:
					used[1]++
				case s = <-fakes[2].begun:
					used[2]++
				}
				s.t = t
				s.head()
				s.expect(text(G))
				s.send(text(page))
				s.release()
				c.expect(text(page))
			}
			if one := slices.Max(used[:]) == 24; one != v.one {
				t.Errorf("requests went to the servers %v times", used)
			}
		})
	}
}

// A name that a client's TLS asks for can't bring a line of its own, and one that no certificate could have is none.
func TestServerNameInHeaders(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, withHeaders(`{request: {set: {X-Name: "${server_name}"}}, response: {add: {X-Name: "${server_name}"}}}`)).ready()
	for name, want := range map[string]string{
		"gw.Example.com":                  "X-Name: gw.example.com¶",
		"_x-1.example":                    "X-Name: _x-1.example¶",
		"a\r\nX-Authenticated-User: boss": "",
		"a\nb":                            "",
		"a b":                             "",
		"a\x00b":                          "",
		"a\u00e4b":                        "",
		strings.Repeat("a.", 127) + "b":   "",
		"":                                "",
	} {
		nc, err := tls.Dial("tcp", g.address(0), &tls.Config{InsecureSkipVerify: true, ServerName: name})
		if err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		c := newClient(t, nc)
		c.send(text(RL + "X-Name: client¶" + reqNull))
		s := f.next(t)
		s.gets(RL + want + reqNull)
		s.send(text(page))
		s.release()
		c.expect(text(strings.Replace(page, "Encaps", want+"Encaps", 1)))
		c.Close()
	}
}

// A request that is sent again carries the same fields, and goes on with those of its beginning after a reload.
func TestHeadersOfRetries(t *testing.T) {
	p := startPair(t, "", withHeaders(`{request: {set: {X-ID: "${id}", X-From: "${client_ip}:${client_port}"}}}`)+"\naccess_log: {output: \"off\", id_header: X-Line}")
	c := p.dial(1)
	c.send(text(v05))
	s, other := p.next(t)
	first := s.head()
	s.reset()
	s = other.next(t)
	second := s.head()
	address := func(h string) string { return strings.SplitAfterN(h, "\r\n", 3)[2] } // behind request line and Host
	if address(first) != address(second) || !strings.Contains(first, "X-ID: ") || !strings.Contains(first, "X-From: 127.0.0.1:") {
		t.Errorf("the servers got %q and %q", first, second)
	}
	_, id, _ := strings.Cut(first, "X-ID: ")
	_, line, _ := strings.Cut(first, "X-Line: ")
	if id, line = id[:strings.Index(id, "\r")], line[:strings.Index(line, "\r")]; id != line {
		t.Errorf("${id} is %q, and the header with the id says %q", id, line)
	}
	s.expect(text(P + chunks))
	s.send(text(page))
	c.expect(text(page))
}

// So does one that is read back from a file.
func TestHeadersOfSpilled(t *testing.T) {
	p, _ := startSpilling(t, spilled, withHeaders(`{client_ip: true, request: {add: {X-From: "${listener}"}}}`))
	body := chunked(1<<20, 60<<10)
	c := p.dial(1)
	wrote := make(chan error, 1)
	go func() { _, err := c.Write([]byte(text(RL+reqBody) + body)); wrote <- err }()
	want := RL + "X-Client-IP: 127.0.0.1¶X-From: icap¶" + reqBody
	s, other := p.next(t)
	s.gets(want)
	s.expect(body[:len(body)/2])
	s.reset()
	s = other.next(t)
	s.gets(want)
	s.expect(body)
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	s.send(text(page))
	c.expect(text(page))
}

// A reload is in force at the next request. One that is sent again after it carries what it got at its beginning; its answer goes by the new rules.
func TestReloadHeaders(t *testing.T) {
	f := startFake(t)
	r := startReloader(t, f.address)
	r.ready()
	answered := func(s *serverSide, c *client, added string) {
		t.Helper()
		s.send(text(page))
		s.release()
		c.expect(text(strings.Replace(page, "Encaps", added+"Encaps", 1)))
	}
	c, other := r.dial(1), r.dial(1)
	c.send(text(v04))
	s := f.next(t)
	s.gets(v04)
	r.text += "gateway_id: gw-1\n" + withHeaders(`{client_ip: true, response: {add: {X-A: "1"}}}`)
	r.reload()

	s.reset()
	s = f.next(t)
	s.gets(v04)
	answered(s, c, "X-A: 1¶")
	for _, c := range []*client{c, other} {
		c.send(text(v04))
		s = f.next(t)
		s.gets(RL + "X-Client-IP: 127.0.0.1¶X-ICAP-Via: ICAP/1.0 gw-1¶" + reqNull)
		answered(s, c, "X-A: 1¶")
	}

	r.set([]string{f.address}, "")
	r.reload()
	c.send(text(v04))
	s = f.next(t)
	s.gets(v04)
	answered(s, c, "")
}

// The header with the id is that of its beginning, too: what is held has none of that name, but may have one of another.
func TestReloadIDHeader(t *testing.T) {
	f := startFake(t)
	r := startReloader(t, f.address)
	before := r.text
	r.text = strings.Replace(before, `output: "off"`, `output: "off", id_header: X-Old`, 1)
	r.reload()
	r.ready()
	c := r.dial(1)
	c.send(text(RL + "X-Old: forged¶X-New: 1¶" + reqNull))
	s := f.next(t)
	first := s.head()
	r.text = strings.Replace(before, `output: "off"`, `output: "off", id_header: X-New`, 1)
	r.reload()
	s.reset()
	s = f.next(t)
	if again := s.head(); again != first || strings.Count(first, "X-Old: ") != 1 || strings.Contains(first, "forged") || !strings.Contains(first, "X-New: 1\r\n") {
		t.Errorf("the server got %q, and after a reload %q", first, again)
	}
	s.send(text(page))
	c.expect(text(page))
}

// Every variable that a configuration may have means something here.
func TestVariables(t *testing.T) {
	for _, name := range configs.Variables {
		r := newHeaderRules(configs.HeaderRules{Add: configs.Pairs{{Name: "X-A", Value: "${" + name + "}"}}}, "/r")[0]
		_, known := variables[name]
		if text, fixed := r.fixed(); known == fixed || fixed && len(text) == 0 {
			t.Errorf("${%s} is compiled into %+v", name, r.value)
		}
	}
}

// busyPolicy is one with three rules for each direction beside the guard, claimed a request for it.
const (
	busyPolicy = `{client_ip: true, trusted: [192.0.2.0/24], request: {remove: ["X-Debug-*"], set: {X-From: "${client_ip}:${client_port} ${listener} ${id}"}, add: {X-Tenant: one}},
 response: {remove: [X-Engine], set: {X-From: "${listener} ${client_ip}"}, add: {X-Gateway: "${hostname}"}}}`
	claimed = RL + "Allow: 204¶X-Client-IP: 198.51.100.7¶X-Authenticated-User: V2luTlQ6Ly9ET00vamFuZQ==¶X-Debug-A: 1¶" + reqNull
)

// What a policy adds to the reading and writing of a request's fields and of those of its answer.
func BenchmarkHeaders(b *testing.B) {
	for _, v := range []struct{ name, policy string }{{"none", "{}"}, {"policy", busyPolicy}} {
		b.Run(v.name, func(b *testing.B) {
			policy := newGateway(b, []string{"127.0.0.1:9"}, "", withHeaders(v.policy)).table.Load().routes[0].headers
			tx := loneTransaction("gw.example.com")
			head, answer := []byte(text(claimed)), []byte(text(noContent))
			var req icap.Request
			var resp icap.Response
			var out []byte
			b.ReportAllocs()
			for b.Loop() {
				if req.Parse(head) != nil || resp.Parse(answer) != nil {
					b.Fatal("the heads can't be read")
				}
				if policy != nil {
					policy.onRequest(tx, &req)
				}
				out = req.AppendFields(out[:0])
				if policy != nil {
					policy.onAnswer(&resp)
				}
				out = resp.AppendFields(out, true)
				if policy != nil {
					out = policy.appendLines(out, tx)
				}
			}
		})
	}
}

// loneTransaction is one of a session whose loop does not run.
func loneTransaction(serverName string) *transaction {
	s := &session{listener: &listener{name: "in"}, client: netip.MustParseAddrPort("[fe80::1%eth0]:4711"), entrance: entrance{serverName: hostName(serverName)}}
	s.loop = &loop{gw: new(Gateway)}
	s.tx.init(s)
	return &s.tx
}

// FuzzHeaderPolicy puts heads through a policy: a head comes out that can be read, without what is guarded, and with exactly the fields that were added.
func FuzzHeaderPolicy(f *testing.F) {
	f.Add("X-Client-IP: 1\r\nX-Client-IP:\r\n\t2\r\nConnection: X-A\r\nX-A: 1\r\n", "gw.example")
	f.Add("x-symc-a: a, b\r\nX-B*: 1\r\nALLOW: 204\r\nX-Name: 0\r\n", "a\r\nX-Client-IP: c")
	f.Add("X-Authenticated-User : boss\r\n", "")
	cfg := configs.DefaultHeaders()
	cfg.Trusted = []configs.Prefix{configs.Prefix(netip.MustParsePrefix("192.0.2.0/24"))}
	cfg.Guarded = append(cfg.Guarded, "X-SYMC-*")
	cfg.ClientIP = true
	cfg.Request.Set = configs.Pairs{{Name: "X-Name", Value: "${server_name}"}, {Name: "X-At", Value: "${listener} ${client_port}"}}
	cfg.Response.Add = configs.Pairs{{Name: "X-Name", Value: "${server_name}"}}
	policy := newHeaderPolicy(&cfg, "/r")
	f.Fuzz(func(t *testing.T, fields, name string) {
		tx := loneTransaction(name)
		var req icap.Request
		if read(&req, "OPTIONS icap://gw/r ICAP/1.0\r\nHost: gw\r\n"+fields+"\r\n") != nil {
			return
		}
		policy.onRequest(tx, &req)
		out := "OPTIONS icap://gw/r ICAP/1.0\r\nHost: gw\r\n" + string(req.AppendFields(nil)) + "\r\n"
		if err := read(&req, out); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		count := make(map[string]int)
		for _, f := range req.Fields {
			n := strings.ToLower(string(f.Name))
			if count[n]++; slices.ContainsFunc(cfg.Guarded[1:9], func(g string) bool { return strings.EqualFold(g, n) }) || strings.HasPrefix(n, "x-symc-") {
				t.Errorf("%q has %s", out, n)
			}
		}
		named := 0
		if tx.s.entrance.serverName != "" {
			named = 1
		}
		if count["x-client-ip"] != 1 || string(req.Get("X-Client-IP")) != "fe80::1" || count["x-at"] != 1 || string(req.Get("X-At")) != "in 4711" || count["x-name"] != named {
			t.Errorf("%q", out)
		}
		if lines := string(policy.appendLines(nil, tx)); strings.Count(lines, "\r\n") != named || strings.Count(lines, "\n") != named {
			t.Errorf("lines of answers: %q", lines)
		}
	})
}

// read parses a head that has to be one whole.
func read(req *icap.Request, head string) error {
	var scan icap.HeadScanner
	if start, end, err := scan.Scan([]byte(head)); err != nil || start != 0 || end != len(head) {
		return fmt.Errorf("%d to %d of %d: %w", start, end, len(head), err)
	}
	return req.Parse([]byte(head))
}
