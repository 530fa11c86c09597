package gateway

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"icapgate/icap"
)

// Whatever is configured, a request belongs to the service whose routes its path has where it comes in.
func TestServiceOf(t *testing.T) {
	listeners, names := []string{"one", "two", "three"}, []string{"", "a.example", "x.a.example", "b.example", "x.y.a.example", "other"}
	paths := []string{"/", "/r", "/r/", "/r/x", "/r/x/y", "/s"}
	check := func(t *testing.T, services string) {
		t.Helper()
		table := newTestTable(t, "services:\n"+services+twoPools)
		for _, listener := range listeners {
			for _, name := range names {
				for _, path := range paths {
					in := entrance{listener, name}
					var want [icap.NumMethods]*route
					for _, m := range []icap.Method{icap.MethodReqmod, icap.MethodRespmod} {
						want[m], _ = table.match(in, []byte(path), m)
					}
					for _, m := range []icap.Method{icap.MethodOptions, icap.MethodReqmod, icap.MethodRespmod} {
						r, _ := table.match(in, []byte(path), m)
						if r == nil {
							continue
						}
						if s := table.serviceOf(in, []byte(path), r); s.routes != want {
							t.Fatalf("%v of %s at %s as %q is taken for service %s, of routes\n%s", m, path, listener, name, s.key(), services)
						}
					}
				}
			}
		}
	}
	check(t, `  - {path: /r, server_names: ["*.example"], methods: [REQMOD], pool: a}
  - {path: "*", server_names: [a.example], methods: [RESPMOD], pool: b}
`)
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(list ...string) string { return list[random.IntN(len(list))] }
	for range 500 {
		var b strings.Builder
		for range 1 + random.IntN(6) {
			fmt.Fprintf(&b, "  - {path: \"%s\", %s %s %s pool: %s}\n", pick("*", "/*", "/r", "/r*", "/r/*", "/r/", "/r/x", "/r/x*", "/s"),
				pick("", "", "listener: one,", "listener: two,"),
				pick("", "", `server_names: [a.example],`, `server_names: ["*.example"],`, `server_names: ["*.a.example", b.example],`, `server_names: [x.a.example, "*.example"],`),
				pick("", "methods: [REQMOD],", "methods: [RESPMOD],", "methods: [REQMOD, OPTIONS],"), pick("a", "b"))
		}
		check(t, b.String())
	}
}

// Many services are no burden for a start, a reload, or a change in DNS.
func TestManyServices(t *testing.T) {
	for name, line := range map[string]func(i int) string{
		"paths": func(i int) string { return fmt.Sprintf("  - {path: /%d, pool: a}\n", i) },
		"names": func(i int) string { return fmt.Sprintf("  - {path: /r, server_names: [n%d.example], pool: a}\n", i) },
		"paths and names": func(i int) string {
			return []string{fmt.Sprintf("  - {path: /%d, pool: a}\n", i), fmt.Sprintf("  - {path: /r, server_names: [n%d.example], pool: a}\n", i)}[i%2]
		},
		"methods": func(i int) string {
			return fmt.Sprintf("  - {path: /%d, methods: [%s], pool: a}\n", i/2, []string{"REQMOD", "RESPMOD"}[i%2])
		},
		"prefixes": func(i int) string { return fmt.Sprintf("  - {path: \"/%d/*\", pool: a}\n", i) },
	} {
		t.Run(name, func(t *testing.T) {
			var b strings.Builder
			for i := range 2000 {
				b.WriteString(line(i))
			}
			began := time.Now()
			table := newTestTable(t, "services:\n"+b.String()+twoPools)
			t.Logf("%d services in %v", len(table.services), time.Since(began))
			for _, r := range table.routes {
				if !slices.ContainsFunc(table.services, func(s *service) bool { return slices.Contains(s.routes[:], r) }) {
					t.Fatalf("route %d is in no service", r.index)
				}
			}
		})
	}
}
