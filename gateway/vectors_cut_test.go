package gateway

import (
	"fmt"
	"strings"
	"testing"
)

// cutVectors are the exchanges that are cut at every offset, on the client's side and on the server's.
var cutVectors = []exchange{
	{"V05 reqmod-body", []step{sends(v05), arrives(forwarded(v05)), answers(echo), gets(echo)}},
	{"V08 respmod-3", []step{sends(v08), arrives(forwarded(v08)), answers(blockPage), gets(blockPage)}},
	{"V10 preview-100", []step{sends(preview(4) + "4¶abcd¶0¶¶"), arrives(forwarded(preview(4)) + "4¶abcd¶0¶¶"), answers(goOn), gets(goOn),
		sends("2¶ef¶0¶¶"), arrives("2¶ef¶0¶¶"), answers(echo), gets(echo)}},
	{"V11 preview-ieof", []step{sends(preview(9) + "4¶abcd¶0; ieof¶¶"), arrives(forwarded(preview(9)) + "4¶abcd¶0; ieof¶¶"), answers(noContent), gets(noContent)}},
	{"not-canonical", []step{sends(RL + "Encapsulated: req-body=0¶¶005;a=b¶hello¶00;c¶X: 1¶¶"), arrives(forwarded(RL+"Encapsulated: req-body=0¶¶") + chunks),
		answers(okLine + "Allow: trailers¶Trailer: T¶" + echoList + P + "05 ¶hello¶000;x=\"y\"¶A: b¶¶T: 1¶¶"), gets(okLine + echoList + P + chunks)}},
}

// sent is how much one side sends.
func (v *exchange) sent(who mover) (n int) {
	for _, st := range v.steps {
		if st.who == who {
			n += len(text(st.text))
		}
	}
	return n
}

// V26: a request that comes in two pieces, cut anywhere, is the same request.
func TestRequestsCutEverywhere(t *testing.T) { playCut(t, clientSends) }

// The same for answers.
func TestAnswersCutEverywhere(t *testing.T) { playCut(t, serverSends) }

func playCut(t *testing.T, who mover) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		for _, v := range cutVectors {
			t.Run(v.name, func(t *testing.T) {
				p := newPlayer(t, g, f, listener)
				var s *serverSide
				for cut := 1; cut < v.sent(who); cut++ {
					p.clientCut, p.serverCut = whole, whole
					if who == clientSends {
						p.clientCut = cut
					} else {
						p.serverCut = cut
					}
					p.play(v.steps...)
					if s != nil && p.s != s {
						t.Fatalf("cut at %d: on another server connection", cut)
					}
					s = p.s
				}
			})
		}
	})
}

// V27: the same byte by byte, each in a TLS record of its own.
func TestByteByByte(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		for _, v := range cutVectors {
			t.Run(v.name, func(t *testing.T) {
				p := newPlayer(t, g, f, listener)
				p.clientCut, p.serverCut = bytewise, bytewise
				p.play(v.steps...)
				p.again(true)
			})
		}
	})
}

// V26: what comes in one read goes on in one write, however small its chunks.
func TestSmallChunksInOneWrite(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	for _, size := range []string{"1", "01"} { // canonical and not
		overBoth(t, func(t *testing.T, listener int) {
			p := newPlayer(t, g, f, listener)
			p.again(true) // so that the server's connection is there
			small := func(size string) string { return strings.Repeat(size+"¶x¶", 1000) + "0¶¶" }
			before := segments(t, p.s.client)
			p.play(sends(RL+reqBody+small(size)), arrives(forwarded(RL+reqBody)+small("1")), answers(okLine+echoList+P+small(size)), gets(okLine+echoList+P+small("1")))
			if n := segments(t, p.s.client) - before; n > 3 {
				t.Errorf("1000 chunks of %s went to the server in %d segments", fmt.Sprint(size), n)
			}
		})
	}
}
