package options

import (
	"fmt"
	"strings"
	"testing"

	"icapgate/icap"
)

// said reads what a server says; lines are separated by ¶.
func said(t *testing.T, lines string) icap.Options {
	t.Helper()
	var r icap.Response
	if err := r.Parse([]byte("ICAP/1.0 200 OK\r\n" + strings.ReplaceAll(lines, "¶", "\r\n") + "\r\n\r\n")); err != nil {
		t.Fatalf("%q: %v", lines, err)
	}
	return icap.ParseOptions(&r)
}

const (
	reqmod = 1 << iota
	respmod
	both = reqmod | respmod
)

func routed(set int) (m [icap.NumMethods]bool) {
	m[icap.MethodReqmod], m[icap.MethodRespmod] = set&reqmod != 0, set&respmod != 0
	return m
}

func TestMerge(t *testing.T) {
	type group struct {
		methods int
		ended   bool
		servers []string
	}
	one := func(servers ...string) []group { return []group{{both, false, servers}} }
	const min = "Methods: REQMOD, RESPMOD¶Options-TTL: 600" // what is said in any case
	tests := []struct {
		name   string
		groups []group
		want   string // without Service
	}{
		{"a stock c-icap", one("Methods: RESPMOD, REQMOD¶Service: C-ICAP/0.5.10 server - Echo demo service¶ISTag: \"CI0001\"¶Max-Connections: 20¶Options-TTL: 3600¶Preview: 1024¶" +
			"Allow: 204, 206, trailers¶Transfer-Preview: *¶X-Include: X-Client-IP, X-Authenticated-User¶Encapsulated: null-body=0¶Connection: keep-alive"),
			"Methods: REQMOD, RESPMOD¶Options-TTL: 3600¶Preview: 1024¶Transfer-Preview: *¶Allow: 204, 206¶X-Include: X-Client-IP, X-Authenticated-User"},
		{"nothing known", one(), min},
		{"nothing said", one("", ""), min},

		{"methods: intersection", one("Methods: REQMOD, RESPMOD", "Methods: REQMOD"), "Methods: REQMOD¶Options-TTL: 600"},
		{"methods: only those that are routed", []group{{reqmod, false, []string{"Methods: REQMOD, RESPMOD"}}}, "Methods: REQMOD¶Options-TTL: 600"},
		{"methods: each request goes to a server that does it", one("Methods: RESPMOD", "Methods: REQMOD"), min},
		{"methods: none is said by one", one("", "Methods: RESPMOD"), "Methods: RESPMOD¶Options-TTL: 600"},
		{"methods: none of the routed ones", []group{{reqmod, false, []string{"Methods: RESPMOD"}}}, "Methods: REQMOD¶Options-TTL: 600"},
		{"methods: nonsense counts for nothing", one("Methods: LOG, FILEMOD"), min},
		{"methods of two pools: union", []group{{reqmod, false, []string{"Methods: REQMOD, RESPMOD", "Methods: REQMOD"}}, {respmod, false, []string{"Methods: RESPMOD"}}}, min},
		{"methods of two pools, one of which is silent", []group{{reqmod, false, nil}, {respmod, false, []string{"Methods: RESPMOD"}}}, min},

		{"preview: smallest", one("Preview: 4096", "Preview: 1024", "Preview: 2048"), min + "¶Preview: 1024¶Transfer-Preview: *"},
		{"preview: 0 is one", one("Preview: 4096", "Preview: 0"), min + "¶Preview: 0¶Transfer-Preview: *"},
		{"preview: one takes none", one("Preview: 4096", ""), min},
		{"preview: not more than the gateway takes", one("Preview: 1048576"), min + "¶Preview: 65536¶Transfer-Preview: *"},
		{"preview: nonsense is none", one("Preview: 4096", "Preview: -1"), min},
		{"preview: one pool takes none", []group{{reqmod, false, []string{"Preview: 1"}}, {respmod, false, []string{""}}}, min},
		{"preview: ended by the gateway", []group{{both, true, []string{"", "Preview: 7"}}}, min + "¶Preview: 4096¶Transfer-Preview: *"},
		{"preview: ended for one of two pools", []group{{reqmod, true, []string{""}}, {respmod, false, []string{"Preview: 1024"}}}, min + "¶Preview: 1024¶Transfer-Preview: *"},

		{"TTL: smallest", one("Options-TTL: 1200", "Options-TTL: 700"), "Methods: REQMOD, RESPMOD¶Options-TTL: 700"},
		{"TTL: not said by one", one("Options-TTL: 1200", ""), "Methods: REQMOD, RESPMOD¶Options-TTL: 1200"},
		{"TTL: clients would see gaps", one("Options-TTL: 5"), "Methods: REQMOD, RESPMOD¶Options-TTL: 60"},
		{"TTL: a week", one("Options-TTL: 604800"), "Methods: REQMOD, RESPMOD¶Options-TTL: 3600"},
		{"TTL: nonsense", one("Options-TTL: 0", "Options-TTL: -1", "Options-TTL: soon"), min},

		{"allow: intersection", one("Allow: 204, 206", "Allow: 204"), min + "¶Allow: 204"},
		{"allow: never trailers", one("Allow: trailers, 206"), min + "¶Allow: 206"},
		{"allow: one says none", one("Allow: 204", ""), min},
		{"include: union, once each", one("X-Include: X-Client-IP, X-Server-IP", "X-Include: x-client-ip,X-Authenticated-User"),
			min + "¶X-Include: X-Client-IP, X-Server-IP, X-Authenticated-User"},
		{"an opt-body is not announced", one("Opt-body-type: Simple-text"), min},

		{"transfer: ignore what all ignore", one("Preview: 1¶Transfer-Preview: *¶Transfer-Ignore: JPG, gif", "Preview: 1¶Transfer-Preview: *¶Transfer-Ignore: jpg, png"),
			min + "¶Preview: 1¶Transfer-Preview: *¶Transfer-Ignore: jpg"},
		{"transfer: complete what one wants so", one("Preview: 1¶Transfer-Preview: *¶Transfer-Complete: exe", "Preview: 1¶Transfer-Preview: *¶Transfer-Ignore: exe"),
			min + "¶Preview: 1¶Transfer-Preview: *¶Transfer-Complete: exe"},
		{"transfer: one star", one("Preview: 1¶Transfer-Ignore: *¶Transfer-Preview: exe", "Preview: 1¶Transfer-Complete: *¶Transfer-Ignore: jpg"),
			min + "¶Preview: 1¶Transfer-Ignore: jpg¶Transfer-Complete: *"},
		{"transfer: all ignore all but some", one("Preview: 1¶Transfer-Ignore: *¶Transfer-Preview: exe", "Preview: 1¶Transfer-Ignore: *¶Transfer-Complete: zip"),
			min + "¶Preview: 1¶Transfer-Preview: exe¶Transfer-Ignore: *¶Transfer-Complete: zip"},
		{"transfer: no star is complete", one("Preview: 1¶Transfer-Preview: exe"), min + "¶Preview: 1¶Transfer-Preview: exe¶Transfer-Complete: *"},
		{"transfer: two stars", one("Preview: 1¶Transfer-Complete: *¶Transfer-Preview: *"), min + "¶Preview: 1¶Transfer-Preview: *"},
		{"transfer: without a preview all at once", one("Preview: 1¶Transfer-Preview: *¶Transfer-Ignore: jpg", "Transfer-Ignore: jpg"), min + "¶Transfer-Ignore: jpg¶Transfer-Complete: *"},
		{"transfer: the gateway ends previews", []group{{both, true, []string{"Transfer-Complete: *¶Transfer-Ignore: jpg"}}},
			min + "¶Preview: 4096¶Transfer-Preview: *¶Transfer-Ignore: jpg"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var groups, turned []Group
			for _, g := range test.groups {
				list := Group{Routed: routed(g.methods), EndsPreviews: g.ended}
				for _, s := range g.servers {
					list.Servers = append(list.Servers, said(t, s))
				}
				groups = append(groups, list)
			}
			got := rendered(groups)
			if got != test.want {
				t.Errorf("got\n%s, want\n%s", got, test.want)
			}
			for _, g := range groups { // whatever the order, clients are told the same, but for that of X-Include
				r := g
				r.Servers = nil
				for i := range g.Servers {
					r.Servers = append(r.Servers, g.Servers[len(g.Servers)-1-i])
				}
				turned = append([]Group{r}, turned...)
			}
			if back := rendered(turned); back != got && !strings.Contains(got, "X-Include") {
				t.Errorf("the other way round\n%s, want\n%s", back, got)
			}
		})
	}
}

// However long the lists of servers are, clients can read what they are told, and it is made in no time.
func TestLongLists(t *testing.T) {
	list := func(from, n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "x%d, ", from+i)
		}
		return b.String()
	}
	for _, field := range []string{"X-Include", "Transfer-Preview", "Transfer-Ignore", "Transfer-Complete"} {
		for _, n := range []int{300, 2500} { // each server's alone is too long, or only all of them together
			g := Group{Routed: routed(both)}
			for i := range 50 {
				g.Servers = append(g.Servers, said(t, "Preview: 1¶"+field+": "+list(i*n, n)))
			}
			o := Merge([]Group{g})
			lines := string(Append(nil, &o))
			switch {
			case len(lines) > 7<<10:
				t.Errorf("%s of %d: %d bytes", field, n, len(lines))
			case field == "X-Include" && !strings.HasPrefix(o.Include, "x0, x1, x2, "):
				t.Errorf("%d: X-Include begins with %.30s", n, o.Include)
			case field != "X-Include" && !strings.Contains(lines, "\r\nTransfer-Complete: *\r\n") && field != "Transfer-Ignore" || strings.Contains(lines, "Ignore"):
				t.Errorf("%s of %d: %.300s", field, n, lines)
			}
		}
	}
}

func rendered(groups []Group) string {
	o := Merge(groups)
	got := strings.TrimSuffix(strings.ReplaceAll(string(Append(nil, &o)), "\r\n", "¶"), "¶")
	return strings.Replace(got, "Service: icapgate¶", "", 1)
}

// What is announced reads as it was meant.
func FuzzAnnounced(f *testing.F) {
	f.Add("Methods: REQMOD¶Preview: 1¶Transfer-Ignore: a, *¶Transfer-Complete: *, b", "Allow: 204¶X-Include: X-A,X-B")
	f.Add("Transfer-Preview: ,,*,¶Transfer-Preview: a", "Preview: 99999999999¶Options-TTL: 9999999999")
	f.Fuzz(func(t *testing.T, a, b string) {
		var servers []icap.Options
		for _, lines := range []string{a, b} {
			var r icap.Response
			if r.Parse([]byte("ICAP/1.0 200 OK\r\n"+strings.ReplaceAll(lines, "¶", "\r\n")+"\r\n\r\n")) != nil {
				return
			}
			servers = append(servers, icap.ParseOptions(&r))
		}
		o := Merge([]Group{{Servers: servers, Routed: routed(both)}})
		lines := string(Append(nil, &o))
		again := said(t, strings.TrimSuffix(strings.ReplaceAll(lines, "\r\n", "¶"), "¶"))
		again.Service = ""
		if again != o {
			t.Errorf("announced %+v, read %+v", o, again)
		}
		if stars := strings.Count(","+strings.ReplaceAll(o.TransferPreview+","+o.TransferIgnore+","+o.TransferComplete, " ", "")+",", ",*,"); stars > 1 || o.Preview >= 0 && stars == 0 {
			t.Errorf("%d times * in\n%s", stars, lines)
		}
	})
}
