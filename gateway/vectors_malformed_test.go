package gateway

import (
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"icapgate/gateway/vectors"
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

// refuseAll sends each request with one write: the client gets its status with Connection: close and then the end of its connection;
// no server hears of it, as the next valid request shows. Status 0 means that the connection is closed without an answer.
func refuseAll(t *testing.T, requests []vectors.Request) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		for _, v := range requests {
			t.Run(v.Name, func(t *testing.T) {
				p := newPlayer(t, g, f, listener)
				p.c.send(text(v.Stream))
				if v.Status != 0 {
					p.c.refusal(v.Status, true)
				}
				p.c.closed()
				newPlayer(t, g, f, listener).again(false)
			})
		}
	})
	if n := requestsOf(g); n != uint64(2*len(requests)) {
		t.Errorf("the servers heard of %d requests, want %d", n, 2*len(requests))
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

func TestMalformedHeads(t *testing.T) { refuseAll(t, vectors.MalformedHeads()) }

func TestMalformedEncapsulated(t *testing.T) { refuseAll(t, vectors.MalformedLists()) }

func TestMalformedChunks(t *testing.T) { refuseAll(t, vectors.MalformedChunks()) }

// Faults behind a good request: it is answered, then the connection ends.
func TestFaultsBehindRequest(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	for _, v := range vectors.FaultsBehind() {
		t.Run(v.Name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				p := newPlayer(t, g, f, listener)
				p.play(simple(v.Stream, forwarded(v.Want))...)
				p.c.refusal(v.Status, true)
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
	for _, v := range vectors.UnknownMethods() {
		overBoth(t, func(t *testing.T, listener int) {
			p := newPlayer(t, g, f, listener)
			p.c.send(text(v.Stream))
			p.c.refusal(v.Status, false)
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
