package gateway

import (
	"strings"
	"testing"
)

// R21, everywhere: an answer that ends behind any of its bytes. As long as the client has got nothing of it, it gets a 502; after that its
// connection is cut, and what it got is the beginning of the answer, never a last chunk.
func TestAnswersTruncatedEverywhere(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet+"    retry: {attempts: 0}\n", "").ready()
	heads := len(text(okLine + tag + echoList + P))
	whole := text(echo)
	overBoth(t, func(t *testing.T, listener int) {
		c := g.dialFor(t, listener)
		for cut := range len(whole) {
			c.send(text(v05))
			s := f.next(t)
			s.t = t
			s.gets(v05)
			s.send(whole[:cut])
			s.Close()
			if cut < heads {
				c.refusal(502, false)
				continue
			}
			got := c.rest()
			if !strings.HasPrefix(whole, got) || len(got) < heads || strings.HasSuffix(got, "\r\n0\r\n\r\n") {
				t.Fatalf("cut at %d: the client got %q", cut, got)
			}
			c.Close()
			c = g.dialFor(t, listener)
		}
	})
	if n := g.metric("panics_total"); n != 0 {
		t.Errorf("%v panics", n)
	}
}

// M19, everywhere: a request that ends behind any of its bytes. Nothing of it reaches a server before its heads are in; after that the
// server gets a beginning and the end of its connection, never a last chunk.
func TestRequestsTruncatedEverywhere(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	heads := len(text(RL + reqBody))
	whole := text(v05)
	sent := strings.ReplaceAll(text(forwarded(v05)), "SERVER", f.address)
	for _, end := range []struct {
		name string
		do   func(c *client)
	}{
		{"fin", (*client).closeWrite},
		{"rst", (*client).reset},
	} {
		t.Run(end.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				for cut := 1; cut < len(whole); cut++ {
					c := g.dialFor(t, listener)
					c.send(whole[:cut])
					if cut < heads {
						g.settle()
						end.do(c)
						c.rest()
						f.idle(t)
						continue
					}
					s := f.next(t)
					s.gets(RL + reqBody)
					g.settle()
					end.do(c)
					if rest := s.rest(); !strings.HasPrefix(sent[len(sent)-len(text(chunks)):], rest) || rest == text(chunks) {
						t.Fatalf("cut at %d: the server got %q", cut, rest)
					}
					c.rest()
				}
			})
		})
	}
	eventually(t, "no session", func() bool { return g.Sessions() == 0 })
	for listener := range 2 {
		newPlayer(t, g, f, listener).again(false)
	}
}

// V28 in every form of a request: the answer says close, and the connection ends behind the rest of the request.
func TestConnectionCloseForms(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	closing := func(answer string) string {
		i := strings.Index(answer, "¶¶")
		if j := strings.Index(answer, "¶Encapsulated"); j >= 0 && j < i {
			i = j
		}
		return answer[:i] + "¶Connection: close" + answer[i:]
	}
	withClose := func(request string) string {
		return strings.Replace(request, "Host: gw¶", "Host: gw¶Connection: close¶", 1)
	}
	part := preview(4) + "4¶abcd¶0¶¶"
	for _, v := range []exchange{
		{"null", []step{sends(withClose(v04)), arrives(forwarded(v04)), answers(page), gets(closing(page))}},
		{"preview-204", []step{sends(withClose(part)), arrives(forwarded(part)), answers(noContent), gets(closing(noContent))}},
		{"preview-100", []step{sends(withClose(part)), arrives(forwarded(part)), answers(goOn), gets(goOn), sends("2¶ef¶0¶¶"), arrives("2¶ef¶0¶¶"),
			answers(echo), gets(closing(echo))}},
		{"early", []step{sends(withClose(RL + reqBody)), arrives(forwarded(RL + reqBody)), answers(page), gets(closing(page)), sends(chunks), arrives(chunks)}},
		{"pipelined", []step{sends(withClose(v05) + v04), arrives(forwarded(v05)), answers(page), gets(closing(page))}},
		{"of-both", []step{sends(withClose(v05)), arrives(forwarded(v05)), answers(closing(page)), gets(closing(page))}},
	} {
		t.Run(v.name, func(t *testing.T) {
			overBoth(t, func(t *testing.T, listener int) {
				p := newPlayer(t, g, f, listener)
				p.play(v.steps...)
				p.c.closed()
				g.settle()
				f.idle(t)
			})
		})
	}
}
