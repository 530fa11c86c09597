package gateway

import (
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// ownAnswer is what every answer of the gateway itself looks like; it has no body.
var ownAnswer = regexp.MustCompile(`^ICAP/1\.0 (\d{3}) [^\r\n]+\r\nISTag: "[^"]{1,32}"\r\nDate: [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT\r\n` +
	`(Retry-After: \d+\r\n)?(Connection: close\r\n)?Encapsulated: null-body=0\r\n\r\n$`)

// refusal reads an answer of the gateway itself.
func (c *client) refusal(status int, closes bool) (head string) {
	c.t.Helper()
	head = c.head()
	m := ownAnswer.FindStringSubmatch(head)
	if m == nil {
		c.t.Fatalf("got %q, want an answer of the gateway itself", head)
	}
	if m[1] != strconv.Itoa(status) || (m[3] != "") != closes {
		c.t.Fatalf("got %q, want status %d, Connection: close %v", head, status, closes)
	}
	return head
}

// fault is a request that breaks the protocol. status 0 means that the connection is closed without an answer.
type fault struct {
	name, request string
	status        int
}

// refuseAll sends each fault with one write: the client gets the status with Connection: close and then the end of its connection;
// no server hears of it, as the next valid request shows.
func refuseAll(t *testing.T, faults []fault) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		for _, v := range faults {
			t.Run(v.name, func(t *testing.T) {
				p := newPlayer(t, g, f, listener)
				p.c.send(text(v.request))
				if v.status != 0 {
					p.c.refusal(v.status, true)
				}
				p.c.closed()
				newPlayer(t, g, f, listener).again(false)
			})
		}
	})
	if n := requestsOf(g); n != uint64(2*len(faults)) {
		t.Errorf("the servers heard of %d requests, want %d", n, 2*len(faults))
	}
}

// requestsOf is the number of attempts that have been made.
func requestsOf(g *testGateway) (n uint64) {
	for _, p := range g.table.Load().pools {
		for _, s := range p.servers {
			n += s.Requests()
		}
	}
	return n
}

func TestMalformedHeads(t *testing.T) {
	line := func(l string) string { return l + "¶" + reqNull }
	fields := func(f string) string { return RL + f + reqNull }
	lf := strings.NewReplacer("¶", "\n").Replace
	refuseAll(t, []fault{
		{"M01 http-on-port", "GET / HTTP/1.1¶Host: a¶¶", 400},
		{"M03 lower-method", "reqmod icap://gw/r ICAP/1.0¶Host: gw¶¶" + P + chunks, 501},
		{"M04 unknown-method", "FOO icap://gw/r ICAP/1.0¶¶", 501},
		{"M05 1.1", line("REQMOD icap://gw/r ICAP/1.1"), 505},
		{"M05 2.0", line("REQMOD icap://gw/r ICAP/2.0"), 505},
		{"M05 1", line("REQMOD icap://gw/r ICAP/1"), 505},
		{"M05 01.0", line("REQMOD icap://gw/r ICAP/01.0"), 505},
		{"M05 HTTP", line("REQMOD icap://gw/r HTTP/1.0"), 400},
		{"M06 origin-form", line("REQMOD /r ICAP/1.0"), 400},
		{"M06 asterisk", line("OPTIONS * ICAP/1.0"), 400},
		{"M06 no-host", line("REQMOD icap:///r ICAP/1.0"), 400},
		{"M06 http", line("REQMOD http://gw/r ICAP/1.0"), 400},
		{"M06 port-too-big", line("REQMOD icap://gw:99999/r ICAP/1.0"), 400},
		{"M06 blank-in-path", line("REQMOD icap://gw/a b ICAP/1.0"), 400},
		{"M06 control-in-path", line("REQMOD icap://gw/a\x01b ICAP/1.0"), 400},
		{"M06 long", line("REQMOD icap://gw/" + strings.Repeat("a", 8<<10) + " ICAP/1.0"), 400},
		{"M07 two-blanks", line("REQMOD  icap://gw/r ICAP/1.0"), 400},
		{"M07 tab", line("REQMOD\ticap://gw/r ICAP/1.0"), 400},
		{"M07 trailing-blank", line("REQMOD icap://gw/r ICAP/1.0 "), 400},
		{"M07 four-words", line("REQMOD icap://gw/r x ICAP/1.0"), 400},
		{"M08 bare-lf", lf(v05), 400},
		{"M09 bare-cr", fields("X: a\rb¶"), 400},
		{"M09 bare-cr-in-line", line("REQMOD icap://gw/r\rX ICAP/1.0"), 400},
		{"M09 bare-cr-in-framing", RL + "Encapsulated: req-hdr=0,\r null-body=27¶¶" + G, 400},
		{"M10 nul", fields("X: a\x00b¶"), 400},
		{"M10 nul-in-line", line("REQMOD icap://gw/r\x00 ICAP/1.0"), 400},
		{"M10 nul-in-name", fields("X\x00: a¶"), 400},
		{"M10 nul-first", "\x00" + v04, 400},
		{"M11 space-colon", RL + "Encapsulated : null-body=0¶¶", 400},
		{"M12 fold-framing", RL + "Encapsulated: req-hdr=0,¶ null-body=27¶¶" + G, 400},
		{"M12 fold-preview", fields("Preview:¶ 4¶"), 400},
		{"M13 no-colon", fields("garbage¶"), 400},
		{"M13 empty-name", fields(": x¶"), 400},
		{"M16 head-65-KB", fields(strings.Repeat("X: "+strings.Repeat("x", 10<<10)+"¶", 7)), 400},
		{"M16 line-17-KB", fields("X: " + strings.Repeat("x", 17<<10) + "¶"), 400},
		{"M16 300-fields", fields(strings.Repeat("X: 1¶", 300)), 400},
		{"M20 no-encapsulated", RL + "¶", 400},
		{"M20 respmod-no-encapsulated", PL + "¶", 400},
		{"M21 dup-encapsulated", fields("Encapsulated: null-body=0¶"), 400},
		{"M21 dup-encapsulated-equal", fields("Encapsulated: req-hdr=0, null-body=27¶"), 400},
		{"M31 negative", fields("Preview: -1¶"), 400},
		{"M31 exponent", fields("Preview: 1e3¶"), 400},
		{"M31 empty", fields("Preview:  ¶"), 400},
		{"M31 11-digits", fields("Preview: 99999999999¶"), 400},
		{"M31 list", fields("Preview: 4,4¶"), 400},
		{"M31 two-lines", fields("Preview: 4¶Preview: 4¶"), 400},
		{"M32 preview-too-big", fields("Preview: 1073741824¶"), 400},
		{"M49 head-inject", RL + "X-Client-IP: 1\r\rEncapsulated: req-body=0¶" + reqNull, 400},
		{"M50 dup-host", fields("Host: other¶"), 400},
		{"V34 five-empty-lines", "¶¶¶¶¶" + v04, 400},
	})
}

func TestMalformedEncapsulated(t *testing.T) {
	var faults []fault
	for _, v := range []struct{ name, list string }{
		{"M22 first-not-0", "req-hdr=5, null-body=32"},
		{"M23 decreasing", "req-hdr=0, res-hdr=50, res-body=27"},
		{"M23 equal", "req-hdr=0, req-body=0"},
		{"M26 negative", "req-hdr=0, null-body=-1"},
		{"M26 plus", "req-hdr=0, null-body=+27"},
		{"M26 hex", "req-hdr=0, null-body=0x1b"},
		{"M26 junk", "req-hdr=0, null-body=27abc"},
		{"M26 blank-inside", "req-hdr=0, null-body=2 7"},
		{"M26 33-bit", "req-hdr=0, null-body=4294967323"},
		{"M26 30-digits", "req-hdr=0, null-body=" + strings.Repeat("9", 30)},
		{"M26 empty", "req-hdr=0, null-body="},
		{"M27 colon", "req-hdr:0, null-body=27"},
		{"M27 semicolon", "req-hdr=0; null-body=27"},
		{"M27 empty-member", "req-hdr=0,, null-body=27"},
		{"M27 blanks-around-equals", "req-hdr = 0, null-body=27"},
		{"M29 two-bodies", "req-body=0, null-body=0"},
		{"M29 header-after-body", "req-body=0, req-hdr=9"},
		{"M29 dup-entry", "req-hdr=0, req-hdr=9, req-body=20"},
		{"M30 res-body", "req-hdr=0, res-body=27"},
		{"M30 opt-body", "opt-body=0"},
		{"M30 unknown", "foo-hdr=0, req-body=27"},
	} {
		faults = append(faults, fault{v.name, RL + "Encapsulated: " + v.list + "¶¶" + G, 400})
	}
	refuseAll(t, append(faults,
		fault{"M24 offset-short", RL + "Encapsulated: req-hdr=0, req-body=20¶¶" + P + chunks, 400},
		fault{"M25 offset-long", RL + "Encapsulated: req-hdr=0, req-body=40¶¶" + P + chunks, 400},
		fault{"M30 respmod-opt-body", PL + "Encapsulated: opt-body=0¶¶" + chunks, 400},
		fault{"M30 respmod-req-body", PL + reqBody + chunks, 400},
	))
}

func TestMalformedChunks(t *testing.T) {
	body := func(chunks string) string { return RL + reqBody + chunks }
	faults := []fault{
		{"M33 preview-overrun", RL + "Preview: 4¶" + reqBody + "8¶abcdefgh¶0¶¶", 400},
		{"M38 0x-chunk", body("0x5¶hello¶0¶¶"), 400},
		{"M39 16-digits", body("FFFFFFFFFFFFFFFF¶hello¶0¶¶"), 400},
		{"M39 17-digits", body("10000000000000005¶hello¶0¶¶"), 400},
		{"M39 40-digits", body(strings.Repeat("1", 40) + "¶hello¶0¶¶"), 400},
		{"M41 empty-size", body("¶5¶hello¶0¶¶"), 400},
		{"M42 no-crlf-after-data", body("5¶helloX0¶¶"), 400},
		{"M43 lf-after-data", body("5¶hello\n0\n\n"), 400},
		{"M43 lf-after-size", body("5\nhello¶0¶¶"), 400},
		{"M44 ext-crlf-inject", body("5;a=\"¶0¶¶RESPMOD icap://gw/r ICAP/1.0¶¶"), 400},
		{"M45 ext-5-KB", body("5;" + strings.Repeat("a", 5<<10) + "¶hello¶0¶¶"), 400},
	}
	for _, size := range []string{"-5", "+5", " 5", "5 5", "\t5", "5\x0b", "5zz", "5;", "5;=a"} {
		faults = append(faults, fault{"M37 M40 " + strconv.Quote(size), body(size + "¶hello¶0¶¶"), 400})
	}
	refuseAll(t, append(faults,
		fault{"M46 trailer-without-colon", body("5¶hello¶0¶X¶¶"), 400},
	))
}

// Faults behind a good request: it is answered, then the connection ends.
func TestFaultsBehindRequest(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	for _, v := range []struct{ name, request, want, behind string }{
		{"M35 preview-null-with-chunk", RL + "Preview: 0¶" + reqNull, forwarded(RL + "Preview: 0¶" + reqNull), "0¶¶"},
		{"M46 garbage", v05, forwarded(v05), "GARBAGE¶¶"},
		{"M47 smuggled-fault", v05, forwarded(v05), "REQMOD /admin ICAP/1.0¶¶"},
		{"c-icap-70 extra-chunk", v05, forwarded(v05), chunks},
	} {
		t.Run(v.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				p := newPlayer(t, g, f, listener)
				p.play(simple(v.request+v.behind, v.want)...)
				p.c.refusal(400, true)
				p.c.closed()
				newPlayer(t, g, f, listener).again(false)
			})
		})
	}
}

// M04, M03: an unknown method whose framing is known costs its own answer only.
func TestUnknownMethodWithBody(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	for _, request := range []string{
		"FILEMOD icap://gw/r ICAP/1.0¶" + reqBody + chunks,
		"LOG icap://gw/r ICAP/1.0¶Encapsulated: null-body=0¶¶",
		"reqmod icap://gw/r ICAP/1.0¶" + reqBody + chunks,
		"FOO icap://gw/r ICAP/1.0¶Preview: 4¶" + reqBody + "4¶hell¶0; ieof¶¶",
	} {
		overBoth(t, func(t *testing.T, listener int) {
			p := newPlayer(t, g, f, listener)
			p.c.send(text(request))
			p.c.refusal(501, false)
			p.again(true)
		})
	}
}

// M45, M54: floods of framing around little or no body end in a 400, and the server never gets a whole request.
func TestFramingFloods(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	for _, v := range []struct{ name, flood string }{
		{"M45 ext-1-MB", "5;" + strings.Repeat("a", 1<<20)},
		{"M45 tiny-chunks-with-ext", strings.Repeat("1;abcdefgh=ijklmnop¶x¶", 20000)},
		{"M54 trailers-1-MB", "0¶" + strings.Repeat("X: "+strings.Repeat("x", 1000)+"¶", 1000)},
	} {
		t.Run(v.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				p := newPlayer(t, g, f, listener)
				go io.WriteString(p.c, text(RL+reqBody))
				s := f.next(t) // the flood begins when the request has been sent on
				s.expectStep(0, "server", strings.ReplaceAll(text(forwarded(RL+reqBody)), "SERVER", f.address))
				go io.WriteString(p.c, text(v.flood))
				p.c.refusal(400, true)
				p.c.rest() // it may be cut off while it floods on
				if got := s.rest(); strings.HasSuffix(got, "0\r\n\r\n") {
					t.Errorf("the server got %d bytes that look complete", len(got))
				}
				newPlayer(t, g, f, listener).again(false)
			})
		})
	}
}

// M16: what a head that never ends costs is bounded, on both sides.
func TestUnfinishedHeadsAreBounded(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	for _, v := range []struct {
		name, part string
		most       int // bytes held
	}{
		{"head", RL + strings.Repeat("X: "+strings.Repeat("x", 1000)+"¶", 63), 256 << 10},
		{"inner-head", RL + "Encapsulated: req-hdr=0, null-body=1048576¶¶" + strings.Repeat("x", 1<<20-2), 4 << 20},
	} {
		t.Run(v.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				c := g.dialFor(t, listener)
				c.send(text(v.part))
				g.stuck(t)
				held := 0
				g.onLoops(func(l *loop) {
					for s := range l.sessions {
						if s.in != nil {
							held += cap(s.in.B)
						}
					}
				})
				if held < 60<<10 || held > v.most {
					t.Errorf("%d bytes are held", held)
				}
				c.Close()
				eventually(t, "no session", func() bool { return g.Sessions() == 0 })
				f.idle(t)
			})
		})
	}
}

// M02: a TLS client on the plain port and a plain client on the TLS port get no answer, and are counted.
func TestWrongTLS(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	plain := g.dialFor(t, 1)
	plain.send("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
	if got := plain.rest(); got != "" {
		t.Errorf("the plain listener answered %q to a ClientHello", got)
	}
	clear := dialPlain(t, g.address(0))
	clear.send(text(v05))
	if got := clear.rest(); strings.Contains(got, "ICAP") {
		t.Errorf("the TLS listener answered %q in clear", got)
	}
	f.idle(t)
	eventually(t, "counters", func() bool {
		m := g.metric
		return m(`closes_total{side="client",reason="tls_on_plain"}`) == 1 && m(`handshakes_total{listener="icaps",result="failed",version="none"}`) == 1
	})
}
