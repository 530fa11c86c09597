package gateway

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// preview is the start of a request with a preview of at most n bytes, and of what the server gets for it.
func preview(n int) string { return previewWith("", n) }

func previewWith(fields string, n int) string {
	return RL + fields + fmt.Sprintf("Preview: %d¶", n) + reqBody
}

func TestPreviews(t *testing.T) {
	const abcd = "4¶abcd¶"
	const (
		partial = "ICAP/1.0 206 Partial Content¶ISTag: \"s\"¶Encapsulated: res-hdr=0, res-body=19¶¶" + S + "5¶hello¶0; use-original-body=4¶¶"
		echo    = "ICAP/1.0 200 OK¶ISTag: \"s\"¶Encapsulated: req-hdr=0, req-body=28¶¶" + P + "6¶abcdef¶0¶¶"
		partly  = "ICAP/1.0 200 OK¶ISTag: \"s\"¶Encapsulated: req-hdr=0, req-body=28¶¶" + P + abcd
	)
	// asked is an exchange in which the server asks for the rest.
	asked := func(head, part, rest string, end ...step) []step {
		return append([]step{sends(head + part), arrives(forwarded(head) + part), answers(goOn), gets(goOn), sends(rest), arrives(rest)}, end...)
	}
	final := func(head, part string, answer string) []step {
		return []step{sends(head + part), arrives(forwarded(head) + part), answers(answer), gets(answer)}
	}
	pageStep := []step{answers(page), gets(page)}
	null := RL + "Preview: 0¶" + reqNull

	vectors := []exchange{
		{"V10 preview-100", asked(preview(4), abcd+"0¶¶", "2¶ef¶0¶¶", pageStep...)},
		{"V10 echo-after-100", asked(preview(4), abcd+"0¶¶", "2¶ef¶0¶¶", answers(echo), gets(echo))},
		{"V10 204-in-preview-without-allow", final(preview(4), abcd+"0¶¶", noContent)},
		{"V10 204-after-100-with-allow", asked(previewWith("Allow: 204¶", 4), abcd+"0¶¶", "2¶ef¶0¶¶", answers(noContent), gets(noContent))},
		{"V10 echo-instead-of-100", final(preview(4), abcd+"0¶¶", echo)},
		{"V11 preview-ieof", final(preview(9), abcd+"0; ieof¶¶", noContent)},
		{"V12 exact-ieof", final(preview(4), abcd+"0; ieof¶¶", noContent)},
		{"V13 preview-exact-plain", asked(preview(4), abcd+"0¶¶", "0¶¶", pageStep...)},
		{"V14 preview0-body", asked(preview(0), "0¶¶", chunks, pageStep...)},
		{"V15 preview0-ieof", final(preview(0), "0; ieof¶¶", noContent)},
		{"V16 preview0-null", final(null, "", page)},
		{"V16 preview0-null-204", final(null, "", noContent)},
		{"M33 preview-in-two-chunks", asked(preview(4), "2¶ab¶2¶cd¶0¶¶", "0¶¶", pageStep...)},
		{"M34 preview-short-plain", asked(preview(9), abcd+"0¶¶", "2¶ef¶0¶¶", pageStep...)},
		{"M53 use-original-body-in-preview", []step{sends(preview(9) + "5¶hello¶0; use-original-body=5¶¶"), arrives(forwarded(preview(9)) + "5¶hello¶0¶¶"),
			answers(noContent), gets(noContent)}},
		{"R16 206-in-preview", final(previewWith("Allow: 206¶", 4), abcd+"0¶¶", partial)},
		{"R16 206-after-100", asked(previewWith("Allow: 204, 206¶", 4), abcd+"0¶¶", "2¶ef¶0¶¶", answers(partial), gets(partial))},
		{"R16 206-without-preview", []step{sends(RL + "Allow: 204, 206¶" + reqBody + chunks), arrives(forwarded(RL+"Allow: 204, 206¶"+reqBody) + chunks), answers(partial), gets(partial)}},
		{"preview-403-like", final(preview(4), abcd+"0¶¶", "ICAP/1.0 403 Forbidden¶ISTag: \"s\"¶¶")},

		{"R06 early-100", []step{sends(preview(4)), arrives(forwarded(preview(4))), answers(goOn), sends(abcd + "0¶¶"), gets(goOn),
			arrives(abcd + "0¶¶"), sends("2¶ef¶0¶¶"), arrives("2¶ef¶0¶¶"), answers(page), gets(page)}},
		{"R06 early-100-ieof", []step{sends(preview(4)), arrives(forwarded(preview(4))), answers(goOn), sends(abcd + "0; ieof¶¶"),
			arrives(abcd + "0; ieof¶¶"), answers(noContent), gets(noContent)}},
		{"R07 double-100", asked(preview(4), abcd+"0¶¶", "2¶ef¶0¶¶", answers(goOn), answers(page), gets(page))},
		{"R07 double-100-glued", []step{sends(preview(4) + abcd + "0¶¶"), arrives(forwarded(preview(4)) + abcd + "0¶¶"), answers(goOn + goOn), gets(goOn),
			sends("0¶¶"), arrives("0¶¶"), answers(page), gets(page)}},
		{"R08 100-after-ieof", []step{sends(preview(4) + abcd + "0; ieof¶¶"), arrives(forwarded(preview(4)) + abcd + "0; ieof¶¶"),
			answers(goOn), answers(goOn + noContent), gets(noContent)}},
		{"R09 100-without-preview", []step{sends(v05), arrives(forwarded(v05)), answers(goOn + page), gets(page)}},
		{"R09 100-null-body", []step{sends(null), arrives(forwarded(null)), answers(goOn + page), gets(page)}},
		{"R10 100-with-headers", []step{sends(preview(4) + abcd + "0¶¶"), arrives(forwarded(preview(4)) + abcd + "0¶¶"),
			answers("ICAP/1.0 100 Continue¶ISTag: \"x\"¶¶"), gets(goOn), sends("0¶¶"), arrives("0¶¶"), answers(page), gets(page)}},
		{"R11 100-glued", []step{sends(preview(4) + abcd + "0¶¶"), arrives(forwarded(preview(4)) + abcd + "0¶¶"), answers(goOn + page), gets(goOn + page),
			sends("2¶ef¶0¶¶"), arrives("2¶ef¶0¶¶")}},
		{"R11 100-glued-to-a-body", []step{sends(preview(4) + abcd + "0¶¶"), arrives(forwarded(preview(4)) + abcd + "0¶¶"), answers(goOn + echo), gets(goOn + echo),
			sends("2¶ef¶0¶¶"), arrives("2¶ef¶0¶¶")}},
		{"R11 100-glued-to-half-an-answer", []step{sends(preview(4) + abcd + "0¶¶"), arrives(forwarded(preview(4)) + abcd + "0¶¶"), answers(goOn + partly), gets(goOn + partly),
			sends("2¶ef¶0¶¶"), arrives("2¶ef¶0¶¶"), answers("2¶ef¶0¶¶"), gets("2¶ef¶0¶¶")}},
		{"M36 rest-before-100", []step{sends(preview(4) + abcd + "0¶¶" + "2¶ef¶0¶¶"), arrives(forwarded(preview(4)) + abcd + "0¶¶"), answers(goOn), gets(goOn),
			arrives("2¶ef¶0¶¶"), answers(page), gets(page)}},
	}
	playAll(t, vectors)
}

// V17: every spelling of ieof is sent on as the one that servers know.
func TestIeofSpellings(t *testing.T) {
	var vectors []exchange
	for _, last := range []string{"0;ieof", "0 ; ieof", "0;  ieof", "00; IEOF", "0; ieof; x=\"y\""} {
		vectors = append(vectors, exchange{last, []step{sends(preview(9) + "4¶abcd¶" + last + "¶¶"), arrives(forwarded(preview(9)) + "4¶abcd¶0; ieof¶¶"),
			answers(noContent), gets(noContent)}})
	}
	playAll(t, vectors)
}

// The server gets nothing beyond the preview before it asks: servers throw such bytes away.
func TestNothingBehindPreview(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		part := "4¶abcd¶0¶¶"
		p.c.send(text(preview(4) + part + "2¶ef¶0¶¶"))
		s := f.next(t)
		s.expectStep(0, "server", strings.ReplaceAll(text(forwarded(preview(4))+part), "SERVER", f.address))
		g.settle()
		if n := unread(t, s); n > 0 {
			t.Errorf("%d bytes behind the preview before a 100", n)
		}
		s.send(text(goOn))
		p.c.expect(text(goOn))
		s.expect(text("2¶ef¶0¶¶"))
		s.send(text(page))
		p.c.expect(text(page))
		s.release()
	})
}

// M36: a final answer to a preview whose rest has been written without waiting: the rest can't be told from a next request.
func TestRestBeforeFinal(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		p := newPlayer(t, g, f, listener)
		closing := strings.Replace(noContent, "¶¶", "¶Connection: close¶¶", 1)
		p.play(sends(preview(4)+"4¶abcd¶0¶¶"+"2¶ef¶0¶¶"), arrives(forwarded(preview(4))+"4¶abcd¶0¶¶"), answers(noContent), gets(closing))
		p.c.closed()

		p = newPlayer(t, g, f, listener) // a next request may well have been written early
		p.play(sends(preview(4)+"4¶abcd¶0¶¶"+v05), arrives(forwarded(preview(4))+"4¶abcd¶0¶¶"), answers(noContent), gets(noContent))
		p.play(arrives(forwarded(v05)), answers(page), gets(page))
	})
}

// An early final answer, before the preview is in, makes the rest of the preview the last that comes of the request.
func TestFinalBeforePreviewEnd(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	overBoth(t, func(t *testing.T, listener int) {
		for _, last := range []string{"0¶¶", "0; ieof¶¶"} {
			p := newPlayer(t, g, f, listener)
			p.play(sends(preview(8)+"4¶abcd¶"), arrives(forwarded(preview(8))+"4¶abcd¶"), answers(page), gets(page),
				sends("2¶ef¶"+last), arrives("2¶ef¶"+last))
			p.again(true)
		}
	})
}

// V10: 100 Continue comes to the client as exactly these bytes and nothing else in the same read, even when more is there already.
func TestContinueAlone(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet, "").ready()
	p := newPlayer(t, g, f, 1)
	p.c.send(text(preview(4) + "4¶abcd¶0¶¶"))
	s := f.next(t)
	s.expect(strings.ReplaceAll(text(forwarded(preview(4))+"4¶abcd¶0¶¶"), "SERVER", f.address))
	before := segments(t, p.c)
	s.send(text(goOn + page))
	p.c.expect(text(goOn + page))
	if n := segments(t, p.c) - before; n != 2 {
		t.Errorf("100 and the answer behind it came in %d segments, want 2", n)
	}
}

// R06: an early 100 of a server that dies before the preview is in counts for nothing: another one will ask for itself, and until then the client can get a 204.
func TestEarlyContinueOfADeadServer(t *testing.T) {
	f := startFake(t)
	g := startGateway(t, []string{f.address}, quiet+"    queue: {timeout: 1h}\n", "").ready()
	server, queue := g.table.Load().pools[0].servers[0], g.table.Load().pools[0].queue
	overBoth(t, func(t *testing.T, listener int) {
		c := g.dialFor(t, listener)
		c.send(text(preview(4)))
		s := f.next(t)
		s.gets(preview(4))
		s.send(text(goOn))
		g.settle()
		server.MarkFull(loopTime() + int64(time.Hour))
		s.reset()
		eventually(t, "the request in line", func() bool { return queue.Depth() == 1 })
		c.send(text("4¶abcd¶0¶¶"))
		g.settle()
		server.MarkFull(0)
		g.onLoops(func(l *loop) { l.gw.offer(server) })
		s = f.next(t)
		s.gets(preview(4) + "4¶abcd¶0¶¶")
		s.send(text(noContent))
		c.expect(text(noContent))
		s.release()
	})
}
