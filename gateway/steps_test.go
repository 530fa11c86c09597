package gateway

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"icapgate/gateway/vectors"
	"icapgate/icap"
)

// Blocks of the vectors; "¶" stands for CRLF, SERVER for the server's address.
const (
	G  = vectors.G
	P  = vectors.P
	S  = vectors.S
	RL = vectors.RL
	PL = vectors.PL
	OL = vectors.OL

	chunks  = vectors.Chunks
	reqNull = vectors.ReqNull
	reqBody = vectors.ReqBody
	resBody = vectors.ResBody

	v04 = vectors.V04
	v05 = vectors.V05
	v08 = vectors.V08

	// Answers. A block page is legal whatever the request allows.
	page      = "ICAP/1.0 200 OK¶ISTag: \"s\"¶Encapsulated: res-hdr=0, null-body=19¶¶" + S
	noContent = "ICAP/1.0 204 No modifications needed¶ISTag: \"s\"¶¶"
	goOn      = "ICAP/1.0 100 Continue¶¶"
)

// forwarded is what a server gets for a request that is canonical already.
func forwarded(request string) string {
	return strings.NewReplacer("icap://gw/", "icap://SERVER/", "Host: gw¶", "Host: SERVER¶").Replace(request)
}

// step is one move of an exchange: somebody sends text, or has to get exactly text.
type step struct {
	who  mover
	text string
}

type mover uint8

const (
	clientSends mover = iota
	serverGets
	serverSends
	clientGets
)

func sends(text string) step   { return step{clientSends, text} }
func arrives(text string) step { return step{serverGets, text} }
func answers(text string) step { return step{serverSends, text} }
func gets(text string) step    { return step{clientGets, text} }

// simple is the exchange of a request that the server gets as want and answers with a page.
func simple(request, want string) []step {
	return []step{sends(request), arrives(want), answers(page), gets(page)}
}

// player plays exchanges between a client and the scripted server.
type player struct {
	t testing.TB
	g *testGateway
	f *fakeServer
	c *client
	s *serverSide // connection of the latest request; nil: none yet
	// How what is sent is cut: negative: not at all; else in two behind so many bytes (of all that this side sends), or, with
	// bytewise, into single bytes. The gateway handles each piece before the next one is sent.
	clientCut, serverCut int
}

const (
	whole    = -1
	bytewise = 1 << 30
)

func newPlayer(t testing.TB, g *testGateway, f *fakeServer, listener int) *player {
	return &player{t, g, f, g.dialFor(t, listener), nil, whole, whole}
}

// play makes the steps in their order. Only the first one for the server waits for a request.
func (p *player) play(steps ...step) {
	p.t.Helper()
	p.s = nil
	cuts := [2]int{p.clientCut, p.serverCut}
	for i, st := range steps {
		if (st.who == serverGets || st.who == serverSends) && p.s == nil {
			p.s = p.f.next(p.t)
		}
		b := strings.ReplaceAll(text(st.text), "SERVER", p.f.address)
		switch st.who {
		case clientSends:
			p.write(p.c, b, &cuts[0])
		case serverSends:
			p.write(p.s.client, b, &cuts[1])
		case serverGets:
			p.s.expectStep(i, "server", b)
		case clientGets:
			p.c.expectStep(i, "client", b)
		}
	}
	if p.s != nil {
		p.s.release()
	}
}

// again checks that another request works on the client's connection, and, if the server's connection was to be kept, that it is used.
func (p *player) again(kept bool) {
	p.t.Helper()
	was := p.s
	p.clientCut, p.serverCut = whole, whole
	p.play(simple(v04, forwarded(v04))...)
	if was != nil && (p.s == was) != kept {
		p.t.Fatalf("another request on the same server connection: %v, want %v", p.s == was, kept)
	}
}

func (p *player) write(c *client, b string, cut *int) {
	p.t.Helper()
	switch {
	case *cut == bytewise:
		for i := range len(b) {
			c.send(b[i : i+1])
			p.g.settle()
		}
		return
	case *cut > 0 && *cut < len(b):
		c.send(b[:*cut])
		p.g.settle()
		c.send(b[*cut:])
	default:
		c.send(b)
	}
	*cut -= len(b)
}

// expectStep reads want, and fails at the first byte that is another one.
func (c *client) expectStep(i int, who, want string) {
	c.t.Helper()
	got := make([]byte, len(want))
	n := 0
	var err error
	for n < len(want) && err == nil && string(got[:n]) == want[:n] {
		var k int
		k, err = c.r.Read(got[n:])
		n += k
	}
	if string(got[:n]) != want {
		c.t.Fatalf("step %d: the %s got %q (%v)\nwant %q", i, who, shorten(string(got[:n])), err, shorten(want))
	}
}

func shorten(s string) string {
	if len(s) > 1200 {
		return fmt.Sprintf("%s ... (%d bytes) ... %s", s[:300], len(s), s[len(s)-300:])
	}
	return s
}

// settle returns when the loops have handled all that had reached the gateway's sockets before.
func (g *testGateway) settle() {
	for range 2 { // what a first round of events wakes is handled in a second one
		for _, l := range g.loops {
			done := make(chan struct{})
			l.post(func() { close(done) })
			<-done
		}
	}
}

// dialFor is dial for a subtest.
func (g *testGateway) dialFor(t testing.TB, listener int) *client {
	t.Helper()
	return (&testGateway{g.Gateway, t, g.roots}).dial(listener)
}

// overBoth runs a test over the icaps and the icap listener.
func overBoth(t *testing.T, run func(t *testing.T, listener int)) {
	for i, name := range []string{"icaps", "icap"} {
		t.Run(name, func(t *testing.T) { run(t, i) })
	}
}

// quiet is YAML of a pool whose servers are checked at the start and then left alone.
const quiet = "    health: {interval: 1h}\n"

// bodyReader reads a chunked body and forgets it.
type bodyReader struct{ body icap.BodyReader }

// read returns the size and the hash of the payload.
func (r *bodyReader) read(c *client) (n uint64, sum [32]byte, err error) {
	h := sha256.New()
	r.body.Reset(icap.BodyConfig{Preview: -1, Response: true})
	for r.body.End() == icap.EndNone {
		if _, err = c.r.Peek(1); err != nil {
			return r.body.Payload(), sum, err
		}
		p, _ := c.r.Peek(c.r.Buffered())
		data, k, err := r.body.NextData(p)
		if err != nil {
			return r.body.Payload(), sum, err
		}
		h.Write(data)
		_, _ = c.r.Discard(k)
	}
	return r.body.Payload(), [32]byte(h.Sum(nil)), nil
}

// payloadSum is the hash of the payload of chunked(n, size).
func payloadSum(n, size int) [32]byte {
	h := sha256.New()
	for ; n > 0; n -= size {
		k := min(n, size)
		_, _ = io.WriteString(h, strings.Repeat("0123456789abcdef", k/16+1)[:k])
	}
	return [32]byte(h.Sum(nil))
}

// dialPlain connects without TLS to whatever there is.
func dialPlain(t testing.TB, address string) *client {
	t.Helper()
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, nc)
}

// readHead reads a head, its empty line included. It may be called from any goroutine.
func (c *client) readHead() (head []byte, err error) {
	for err == nil && !bytes.HasSuffix(head, []byte("\r\n\r\n")) {
		var line []byte
		line, err = c.r.ReadBytes('\n')
		head = append(head, line...)
	}
	return head, err
}

// answer reads a whole answer and forgets it. It may be called from any goroutine.
func (c *client) answer() (status int, err error) {
	head, err := c.readHead()
	if err != nil {
		return 0, err
	}
	var response icap.Response
	if err := response.Parse(head); err != nil {
		return 0, err
	}
	list := &response.Encapsulated
	if _, err := c.r.Discard(list.HeadLen()); err != nil {
		return response.Status, err
	}
	if list.HasBody() {
		_, _, err = new(bodyReader).read(c)
	}
	return response.Status, err
}
