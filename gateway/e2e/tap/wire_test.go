package tap

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// said is what one side says in one piece; "¶" stands for CRLF.
type said struct {
	who  Direction
	text string
}

func asks(text string) said    { return said{Requests, strings.ReplaceAll(text, "¶", "\r\n")} }
func answers(text string) said { return said{Answers, strings.ReplaceAll(text, "¶", "\r\n")} }

const (
	get    = "GET / HTTP/1.1¶Host: a¶¶"  // 27 bytes
	post   = "POST / HTTP/1.1¶Host: a¶¶" // 28 bytes
	ok     = "HTTP/1.1 200 OK¶¶"         // 19 bytes
	line   = "REQMOD icap://s:1344/r ICAP/1.0¶Host: s:1344¶"
	noBody = "Encapsulated: req-hdr=0, null-body=27¶¶" + get
	list   = "Encapsulated: req-hdr=0, req-body=28¶¶" + post
	body   = "5¶hello¶0¶¶"
	upload = line + "Allow: 204, 206¶" + list + body

	tagged   = "ICAP/1.0 200 OK¶ISTag: \"t\"¶"
	unmod    = "ICAP/1.0 204 No modifications needed¶ISTag: \"t\"¶¶"
	page     = tagged + "Encapsulated: res-hdr=0, res-body=19¶¶" + ok + body
	goAhead  = "ICAP/1.0 100 Continue¶¶"
	options  = "OPTIONS icap://s:1344/r ICAP/1.0¶Host: s:1344¶¶"
	offer    = tagged + "Methods: REQMOD¶Encapsulated: null-body=0¶¶"
	partial  = "ICAP/1.0 206 Partial Content¶ISTag: \"t\"¶Encapsulated: req-hdr=0, req-body=28¶¶" + post + "5¶hello¶0; use-original-body=5¶¶"
	download = "RESPMOD icap://s:1344/r?a=b ICAP/1.0¶Host: s:1344¶X-Empty: ¶Encapsulated: req-hdr=0, res-hdr=27, res-body=46¶¶" + get + ok + body
)

// announced is the start of a request with a preview of n bytes.
func announced(n int) string { return line + fmt.Sprintf("Preview: %d¶", n) + list }

// listened feeds a conversation to a Wire, each piece in parts of so many bytes.
func listened(rules Rules, part int, conversation []said) (exchanges []Exchange, findings []Finding) {
	w := NewWire(rules, func(f Finding) { findings = append(findings, f) }, func(x Exchange) { exchanges = append(exchanges, x) })
	for _, s := range conversation {
		for p := []byte(s.text); len(p) > 0; p = p[min(part, len(p)):] {
			w.Feed(s.who, p[:min(part, len(p))])
		}
	}
	w.End()
	return exchanges, findings
}

const wholePieces = 1 << 20

var good = []struct {
	name         string
	conversation []said
	want         string // method, path, sizes and how it went
}{
	{"options", []said{asks(options), answers(offer)}, "OPTIONS /r 200"},
	{"null-body", []said{asks(line + noBody), answers(page)}, "REQMOD /r 200 to=5"},
	{"path", []said{asks("OPTIONS icap://s:1344/r\xe9%20?a=/b?c ICAP/1.0¶Host: s:1344¶¶"), answers(offer)}, "OPTIONS /r\xe9%20?a=/b?c 200"},
	{"body", []said{asks(upload), answers(unmod)}, "REQMOD /r 204 from=5"},
	{"response", []said{asks(download), answers(page)}, "RESPMOD /r?a=b 200 from=5 to=5"},
	{"two", []said{asks(upload), answers(unmod), asks(options), answers(offer)}, "REQMOD /r 204 from=5, OPTIONS /r 200"},
	{"many chunks", []said{asks(line + list + "1¶a¶f¶0123456789abcde¶0¶¶"), answers(page)}, "REQMOD /r 200 from=16 to=5"},
	{"preview", []said{asks(announced(4) + "4¶abcd¶0¶¶"), answers(goAhead), asks("2¶ef¶0¶¶"), answers(page)}, "REQMOD /r 200 100 from=6 to=5"},
	{"whole preview", []said{asks(announced(9) + "4¶abcd¶0; ieof¶¶"), answers(unmod)}, "REQMOD /r 204 ieof from=4"},
	{"preview is enough", []said{asks(announced(4) + "4¶abcd¶0¶¶"), answers(unmod), asks(options), answers(offer)}, "REQMOD /r 204 from=4, OPTIONS /r 200"},
	{"empty preview", []said{asks(announced(0) + "0¶¶"), answers(goAhead), asks(body), answers(page)}, "REQMOD /r 200 100 from=5 to=5"},
	{"preview of nothing", []said{asks(line + "Preview: 0¶" + noBody), answers(unmod)}, "REQMOD /r 204"},
	{"partial", []said{asks(upload), answers(partial)}, "REQMOD /r 206 from=5 to=5"},
	{"early answer", []said{asks(line + list), answers(page), asks(body), asks(options), answers(offer)}, "REQMOD /r 200 from=5 to=5, OPTIONS /r 200"},
	{"answer within a preview", []said{asks(announced(8) + "4¶abcd¶"), answers(page), asks("0¶¶" + options), answers(offer)}, "REQMOD /r 200 from=4 to=5, OPTIONS /r 200"},
	{"folded answer", []said{asks(line + noBody), answers(tagged + "X-Found: 1¶\ta¶\tb¶Encapsulated: res-hdr=0, null-body=19¶¶" + ok)}, "REQMOD /r 200"},
	{"inner head without fields", []said{asks(line + "Encapsulated: req-hdr=0, null-body=2¶¶¶"), answers(page)}, "REQMOD /r 200 to=5"},
	{"close", []said{asks(line + "Connection: close¶" + noBody), answers(tagged + "Connection: close¶Encapsulated: res-hdr=0, null-body=19¶¶" + ok)}, "REQMOD /r 200 close"},
	{"dated", []said{asks(options), answers(tagged + "Date: Sun, 06 Nov 1994 08:49:37 GMT¶¶")}, "OPTIONS /r 200 date"},
	{"no answer", []said{asks(upload)}, "REQMOD /r 0 from=5 unanswered"},
	{"cut request", []said{asks(line + list + "5¶he")}, "REQMOD /r 0 from=2 cut unanswered"},
	{"cut answer", []said{asks(options), answers("ICAP/1.0 200 OK¶IST")}, "OPTIONS /r 0 unanswered"},
}

// told says in words what a Wire has made of a conversation.
func told(exchanges []Exchange) string {
	var all []string
	for _, x := range exchanges {
		s := fmt.Sprint(x.Method, " ", x.Path, " ", x.Status)
		for _, note := range []struct {
			what string
			is   bool
		}{{"ieof", x.Ieof}, {"100", x.Continued}, {"date", x.Dated}, {"close", x.Close}} {
			if note.is {
				s += " " + note.what
			}
		}
		if x.Request.HasBody {
			s += fmt.Sprintf(" from=%d", x.Request.Body.Size)
		}
		if x.Answer.HasBody {
			s += fmt.Sprintf(" to=%d", x.Answer.Body.Size)
		}
		if !x.Request.Complete {
			s += " cut"
		}
		if !x.Answer.Complete {
			s += " unanswered"
		}
		all = append(all, s)
	}
	return strings.Join(all, ", ")
}

func TestWire(t *testing.T) {
	for _, gateway := range []Direction{Requests, Answers} {
		for _, v := range good {
			t.Run(fmt.Sprint(v.name, " ", gateway), func(t *testing.T) {
				rules := Rules{Gateway: gateway, Authority: "s:1344", MaxChunk: 15}
				whole, findings := listened(rules, wholePieces, v.conversation)
				if got := told(whole); got != v.want || len(findings) > 0 {
					t.Errorf("got %s\nwant %s\nfindings %v", got, v.want, findings)
				}
				for part := 1; part < 40; part++ {
					if cut, findings := listened(rules, part, v.conversation); !cmp.Equal(cut, whole, cmp.AllowUnexported(Exchange{})) || len(findings) > 0 {
						t.Fatalf("in parts of %d: %s, findings %v", part, told(cut), findings)
					}
				}
			})
		}
	}
}

// The payload's hash does not depend on its chunks.
func TestBodiesAreHashed(t *testing.T) {
	sum := func(chunks string) Body {
		x, _ := listened(Rules{}, wholePieces, []said{asks(line + list + chunks), answers(unmod)})
		return x[0].Request.Body
	}
	one, three := sum("5¶hello¶0¶¶"), sum("1¶h¶3¶ell¶1¶o¶0¶¶")
	if one.Sum != three.Sum || one.Parts != 1 || three.Parts != 3 {
		t.Errorf("%+v and %+v", one, three)
	}
	if other := sum("5¶hellO¶0¶¶"); other.Sum == one.Sum {
		t.Errorf("hello and hellO have the same sum")
	}
}

// planted are conversations with one departure each, and where the reading ends because of it.
var planted = []struct {
	rule         Rule
	conversation []said
	lost         bool
}{
	{StartLine, []said{asks("REQMOD icaps://s:1344/r ICAP/1.0¶Host: s:1344¶" + noBody)}, false},
	{StartLine, []said{asks("REQMOD ICAP://s:1344/r ICAP/1.0¶Host: s:1344¶" + noBody)}, false},
	{StartLine, []said{asks("REQMOD icap://u@s:1344/r ICAP/1.0¶Host: s:1344¶" + noBody)}, false},
	{StartLine, []said{asks("REQMOD icap://s:1344?a ICAP/1.0¶Host: s:1344¶" + noBody)}, false},
	{StartLine, []said{asks("REQMOD  icap://s:1344/r ICAP/1.0¶Host: s:1344¶" + noBody)}, true},
	{StartLine, []said{asks("REQMOD icap://s:1344/r ICAP/1.0 ¶Host: s:1344¶" + noBody)}, true},
	{StartLine, []said{asks("REQMOD icap://s:1344/r ICAP/1.1¶Host: s:1344¶" + noBody)}, true},
	{StartLine, []said{asks("REQMOD /r ICAP/1.0¶Host: s:1344¶" + noBody)}, true},
	{StartLine, []said{asks("FILEMOD icap://s:1344/r ICAP/1.0¶Host: s:1344¶" + noBody)}, false},
	{StartLine, []said{asks(options), answers(offer), asks("0¶¶")}, true},
	{StartLine, []said{asks(options), answers("ICAP/1.0 200¶ISTag: \"t\"¶¶")}, false},
	{StartLine, []said{asks(options), answers("ICAP/1.0 2000 OK¶ISTag: \"t\"¶¶")}, true},
	{StartLine, []said{asks(options), answers("HTTP/1.1 200 OK¶ISTag: \"t\"¶¶")}, true},
	{LineEnd, []said{asks(line + "X: 1\n" + noBody)}, false},
	{LineEnd, []said{asks(line + "X: 1\r2¶" + noBody)}, true},
	{LineEnd, []said{asks(line + list + "5\nhello¶0¶¶")}, true},
	{LineEnd, []said{asks(options), answers("ICAP/1.0 200 OK\nISTag: \"t\"\n\n")}, false},
	{EmptyLine, []said{asks("¶" + options)}, false},
	{EmptyLine, []said{asks(options), answers(offer), asks("¶" + options)}, false},
	{EmptyLine, []said{asks(options), answers("¶" + offer)}, false},
	{FieldForm, []said{asks(line + "X:1¶" + noBody)}, false},
	{FieldForm, []said{asks(line + "X:  1¶" + noBody)}, false},
	{FieldForm, []said{asks(line + "X : 1¶" + noBody)}, true},
	{FieldForm, []said{asks(line + "X\x00: 1¶" + noBody)}, true},
	{FieldForm, []said{asks(line + "X: \x011¶" + noBody)}, false},
	{FieldForm, []said{asks(line + "nothing¶" + noBody)}, true},
	{FieldForm, []said{asks(line + "Encapsulated: req-hdr=0,¶ null-body=27¶¶" + get)}, true},
	{FieldForm, []said{asks(options), answers("ICAP/1.0 200 OK¶ISTag:\"t\"¶¶")}, false},
	{FieldTwice, []said{asks(line + "Encapsulated: req-hdr=0, null-body=27¶" + noBody)}, true},
	{FieldTwice, []said{asks(line + "Host: s:1344¶" + noBody)}, false},
	{FieldTwice, []said{asks(line + "Preview: 4¶Preview: 4¶" + noBody)}, true},
	{FieldTwice, []said{asks(options), answers(tagged + "ISTag: \"t\"¶¶")}, false},
	{HeadSize, []said{asks(line + strings.Repeat("X: 0123456789¶", 20_000))}, true},
	{Host, []said{asks("REQMOD icap://s:1344/r ICAP/1.0¶" + noBody)}, false},
	{Host, []said{asks("REQMOD icap://s:1344/r ICAP/1.0¶Host: s¶" + noBody)}, false},
	{Host, []said{asks("REQMOD icap://gw/r ICAP/1.0¶Host: gw¶" + noBody)}, false},
	{HopByHop, []said{asks(line + "Connection: keep-alive¶" + noBody)}, false},
	{HopByHop, []said{asks(line + "TE: trailers¶" + noBody)}, false},
	{HopByHop, []said{asks(line + "Content-Length: 5¶" + noBody)}, false},
	{HopByHop, []said{asks(line + "Transfer-Encoding: chunked¶" + noBody)}, false},
	{HopByHop, []said{asks(options), answers(tagged + "Keep-Alive: timeout=5¶¶")}, false},
	{Allow, []said{asks(line + "Allow: 204, 206, trailers¶" + noBody)}, false},
	{Allow, []said{asks(line + "Allow: 206,204¶" + noBody)}, false},
	{Allow, []said{asks(options), answers(tagged + "Allow: 204, trailers¶¶")}, false},
	{PreviewForm, []said{asks(line + "Preview: 04¶" + list + "0; ieof¶¶")}, false},
	{PreviewForm, []said{asks(line + "Preview: -1¶" + noBody)}, true},
	{PreviewForm, []said{asks(line + "Preview: 4,4¶" + noBody)}, true},
	{PreviewForm, []said{asks("OPTIONS icap://s:1344/r ICAP/1.0¶Host: s:1344¶Preview: 0¶¶")}, false},
	{PreviewSize, []said{asks(announced(4) + "8¶abcdefgh¶0¶¶")}, true},
	{PreviewSize, []said{asks(announced(4) + "4¶abcd¶1¶e¶0¶¶")}, true},
	{BehindPreview, []said{asks(announced(4) + "4¶abcd¶0¶¶2¶ef¶0¶¶"), answers(goAhead + page)}, false},
	{BehindPreview, []said{asks(announced(4) + "4¶abcd¶0¶¶" + options), answers(unmod + offer)}, false},
	{Encapsulated, []said{asks(line + "¶")}, true},
	{Encapsulated, []said{asks(line + "Encapsulated: req-hdr=0,null-body=27¶¶" + get)}, false},
	{Encapsulated, []said{asks(line + "Encapsulated: req-hdr=0,  null-body=27¶¶" + get)}, false},
	{Encapsulated, []said{asks(line + "Encapsulated: Req-Hdr=0, null-body=27¶¶" + get)}, false},
	{Encapsulated, []said{asks(line + "Encapsulated: req-hdr=0, null-body=027¶¶" + get)}, false},
	{Encapsulated, []said{asks(line + "Encapsulated: req-hdr=0, null-body=+27¶¶" + get)}, true},
	{Encapsulated, []said{asks(line + "Encapsulated: req-hdr=0; null-body=27¶¶" + get)}, true},
	{Encapsulated, []said{asks(line + noBody), answers(tagged + "¶")}, false},
	{Sections, []said{asks(line + "Encapsulated: req-hdr=5, null-body=32¶¶" + get)}, true},
	{Sections, []said{asks(line + "Encapsulated: req-hdr=0, req-body=0¶¶" + body)}, true},
	{Sections, []said{asks(line + "Encapsulated: req-body=0, null-body=5¶¶" + body)}, true},
	{Sections, []said{asks(line + "Encapsulated: req-hdr=0, res-body=28¶¶" + post + body)}, false},
	{Sections, []said{asks(line + "Encapsulated: req-hdr=0¶¶" + get)}, true},
	{Sections, []said{asks("OPTIONS icap://s:1344/r ICAP/1.0¶Host: s:1344¶Encapsulated: opt-body=0¶¶" + body)}, false},
	{Sections, []said{asks(download), answers(tagged + "Encapsulated: req-hdr=0, req-body=28¶¶" + post + body)}, false},
	{Blocks, []said{asks(line + "Encapsulated: req-hdr=0, req-body=20¶¶" + post + body)}, true},
	{Blocks, []said{asks(line + "Encapsulated: req-hdr=0, req-body=29¶¶" + post + body)}, true},
	{Blocks, []said{asks(line + "Encapsulated: req-hdr=0, req-body=40¶¶" + post + body)}, true},
	{Blocks, []said{asks(options), answers(tagged + "Encapsulated: res-hdr=0, null-body=18¶¶" + ok)}, true},
	{ChunkSize, []said{asks(line + list + "05¶hello¶0¶¶")}, false},
	{ChunkSize, []said{asks(line + list + "A¶0123456789¶0¶¶")}, false},
	{ChunkSize, []said{asks(line + list + "5 ¶hello¶0¶¶")}, false},
	{ChunkSize, []said{asks(line + list + "5¶hello¶00¶¶")}, false},
	{ChunkSize, []said{asks(line + list + "0x5¶hello¶0¶¶")}, true},
	{ChunkSize, []said{asks(line + list + "+5¶hello¶0¶¶")}, true},
	{ChunkSize, []said{asks(line + list + " 5¶hello¶0¶¶")}, true},
	{ChunkSize, []said{asks(line + list + "5zz¶hello¶0¶¶")}, true},
	{ChunkSize, []said{asks(line + list + "10000000000000005¶hello¶0¶¶")}, true},
	{ChunkSize, []said{asks(line + list + "¶5¶hello¶0¶¶")}, true},
	{ChunkSize, []said{asks(line + list + "5;" + strings.Repeat("x", maxLine))}, true},
	{ChunkLimit, []said{asks(line + list + "10¶0123456789abcdef¶0¶¶")}, false},
	{ChunkEnd, []said{asks(line + list + "5¶helloX0¶¶")}, true},
	{ChunkEnd, []said{asks(line + list + "5¶hello\n0¶¶")}, true},
	{Extension, []said{asks(line + list + "5;a=b¶hello¶0¶¶")}, false},
	{Extension, []said{asks(line + list + "5¶hello¶0;a=\"b\"¶¶")}, false},
	{Extension, []said{asks(announced(9) + "5¶hello¶0;ieof¶¶")}, false},
	{Extension, []said{asks(announced(9) + "5¶hello¶0; IEOF¶¶")}, false},
	{LastChunk, []said{asks(line + list + "5¶hello¶0; ieof¶¶")}, false},
	{LastChunk, []said{asks(announced(4) + "4¶abcd¶0¶¶"), answers(goAhead), asks("0; ieof¶¶")}, false},
	{LastChunk, []said{asks(announced(9) + "5¶hello¶0; use-original-body=5¶¶")}, false},
	{LastChunk, []said{asks(upload), answers(strings.Replace(page, "0¶¶", "0; use-original-body=5¶¶", 1))}, false},
	{Trailer, []said{asks(line + list + "5¶hello¶0¶X: 1¶¶")}, false},
	{Trailer, []said{asks(line + list + "5¶hello¶0¶X: 1¶ 2¶¶")}, false},
	{Trailer, []said{asks(line + list + "5¶hello¶0¶ 2¶¶")}, true},
	{Trailer, []said{asks(line + list + "5¶hello¶0¶X¶¶")}, true},
	{Pipelined, []said{asks(options + options), answers(offer + offer)}, false},
	{Pipelined, []said{asks(options), answers("ICAP/1.0 200 OK¶"), asks("OPTIONS"), answers("ISTag: \"t\"¶¶")}, false},
	{Pipelined, []said{asks(line + noBody), answers(strings.TrimSuffix(page, "0¶¶")), asks(options), answers("0¶¶" + offer)}, false},
	{Surplus, []said{asks(options), answers(offer + "0¶¶")}, true},
	{Surplus, []said{asks(options), answers(offer + offer)}, true},
	{Surplus, []said{answers("ICAP/1.0 408 Request timeout¶ISTag: \"t\"¶¶")}, true},
	{Continue, []said{asks(announced(4) + "4¶ab"), answers(goAhead), asks("cd¶0¶¶2¶ef¶0¶¶"), answers(page)}, false},
	{Continue, []said{asks(announced(4) + "4¶abcd¶0¶¶"), answers(goAhead + goAhead), asks("2¶ef¶0¶¶"), answers(page)}, false},
	{Continue, []said{asks(announced(9) + "4¶abcd¶0; ieof¶¶"), answers(goAhead + unmod)}, false},
	{Continue, []said{asks(upload), answers(goAhead + unmod)}, false},
	{Continue, []said{asks(announced(4) + "4¶abcd¶0¶¶"), answers("ICAP/1.0 100 Continue¶ISTag: \"t\"¶¶"), asks("0¶¶"), answers(page)}, false},
	{NotAllowed, []said{asks(line + list + body), answers(unmod)}, false},
	{NotAllowed, []said{asks(announced(4) + "4¶abcd¶0¶¶"), answers(goAhead), asks("0¶¶"), answers(unmod)}, false},
	{NotAllowed, []said{asks(line + "Allow: 204¶" + list + body), answers(partial)}, false},
	{ISTag, []said{asks(options), answers("ICAP/1.0 200 OK¶¶")}, false},
	{ISTag, []said{asks(options), answers("ICAP/1.0 200 OK¶ISTag: t¶¶")}, false},
	{ISTag, []said{asks(options), answers("ICAP/1.0 200 OK¶ISTag: \"" + strings.Repeat("t", 33) + "\"¶¶")}, false},
	{Date, []said{asks(options), answers(tagged + "Date: Sun, 6 Nov 1994 08:49:37 GMT¶¶")}, false},
}

// TestPlantedFaults: each departure is found, as what it is, in whatever pieces it comes; and where it may mean two things, nothing behind it is read.
func TestPlantedFaults(t *testing.T) {
	tested := map[Rule]bool{}
	for i, v := range planted {
		tested[v.rule] = true
		t.Run(fmt.Sprint(i, " ", v.rule), func(t *testing.T) {
			last := v.conversation[len(v.conversation)-1].who
			rules := Rules{Authority: "s:1344", MaxChunk: 15}
			exchanges, findings := listened(rules, wholePieces, v.conversation)
			if !slices.ContainsFunc(findings, func(f Finding) bool { return f.Rule == v.rule }) {
				t.Errorf("findings %v, want %s", findings, v.rule)
			}
			w := NewWire(rules, func(Finding) {}, func(Exchange) {})
			for _, s := range v.conversation {
				w.Feed(s.who, []byte(s.text))
			}
			if w.Lost(last) != v.lost {
				t.Errorf("lost: %t, want %t", w.Lost(last), v.lost)
			}
			step := 1
			if len(v.conversation[0].text) > 10_000 {
				step = 1000
			}
			for part := step; part < 40*step; part += step {
				cut, again := listened(rules, part, v.conversation)
				if told(cut) != told(exchanges) || !slices.ContainsFunc(again, func(f Finding) bool { return f.Rule == v.rule }) {
					t.Fatalf("in parts of %d: %s, findings %v\nwhole: %s, findings %v", part, told(cut), again, told(exchanges), findings)
				}
			}
		})
	}
	for _, r := range allRules(t) {
		if !tested[r] {
			t.Errorf("no planted fault for %q", r)
		}
	}
}

// allRules are the constants of rules.go.
func allRules(t *testing.T) (rules []Rule) {
	file, err := parser.ParseFile(token.NewFileSet(), "rules.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok {
			if typ, ok := spec.Type.(*ast.Ident); ok && typ.Name == "Rule" {
				text, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				rules = append(rules, Rule(text))
			}
		}
		return true
	})
	if len(rules) < 20 {
		t.Fatalf("rules.go has %d rules only", len(rules))
	}
	return rules
}

// What a Wire holds is bounded, whatever is said.
func TestWireIsBounded(t *testing.T) {
	flood := strings.Repeat("x", 100_000)
	for name, begin := range map[string][]said{
		"head":           {asks(line + "X: ")},
		"encapsulated":   {asks(line + "Encapsulated: req-hdr=0, null-body=1000000000¶¶")},
		"chunk":          {asks(line + list + "fffffffff¶")},
		"extension":      {asks(line + list + "5;")},
		"trailer":        {asks(line + list + "0¶")},
		"behind preview": {asks(announced(0) + "0¶¶")},
		"surplus":        {asks(options), answers(offer)},
	} {
		t.Run(name, func(t *testing.T) {
			w := NewWire(Rules{}, func(Finding) {}, func(Exchange) {})
			for _, s := range begin {
				w.Feed(s.who, []byte(s.text))
			}
			d := begin[len(begin)-1].who
			for range 100 {
				w.Feed(d, []byte(flood))
			}
			r := &w.readers[d]
			if n := cap(r.head) + cap(r.held) + cap(r.chunks.line); n > 4<<20 {
				t.Errorf("%d bytes are held", n)
			}
		})
	}
}

// FuzzWire reads any conversation, in which \xff changes the side. However it is cut, it is read in the same way.
func FuzzWire(f *testing.F) {
	for _, v := range good {
		f.Add(joined(v.conversation), 1)
	}
	for i, v := range planted {
		if len(v.conversation[0].text) < 10_000 {
			f.Add(joined(v.conversation), i%50)
		}
	}
	f.Fuzz(func(t *testing.T, text string, part int) {
		var conversation []said
		for i, s := range strings.Split(text, "\xff") {
			conversation = append(conversation, said{Direction(i % 2), s})
		}
		rules := Rules{Authority: "s:1344", MaxChunk: 15}
		whole, findings := listened(rules, wholePieces, conversation)
		cut, again := listened(rules, max(1, part%100), conversation)
		if told(cut) != told(whole) {
			t.Errorf("in parts: %s\nwhole: %s", told(cut), told(whole))
		}
		if len(findings) == 0 != (len(again) == 0) {
			t.Errorf("in parts: %v\nwhole: %v", again, findings)
		}
	})
}

// joined is a conversation as FuzzWire takes it.
func joined(conversation []said) string {
	var text strings.Builder
	who := Requests
	for _, s := range conversation {
		if s.who != who {
			text.WriteByte(0xff)
			who = s.who
		}
		text.WriteString(s.text)
	}
	return text.String()
}
