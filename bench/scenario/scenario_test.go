package scenario

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"icapgate/bench"
	"icapgate/icap"
)

func mustTarget(t testing.TB) bench.Target {
	t.Helper()
	target, err := bench.ParseTarget("icap://gate.example:1344/reqmod")
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func mustParse(t testing.TB, text string) *Scenario {
	t.Helper()
	s, err := Parse("dir/file.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustCompile(t testing.TB, s *Scenario) *Mix {
	t.Helper()
	m, err := s.Compile(mustTarget(t))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

const examples = "../../configs/icapbench-*.yaml"

// everyScenario returns the presets and the examples by name.
func everyScenario(t testing.TB) map[string]*Scenario {
	t.Helper()
	all := make(map[string]*Scenario)
	for _, name := range Presets {
		s, err := Preset(name)
		if err != nil {
			t.Fatal(err)
		}
		all[name] = s
	}
	paths, err := filepath.Glob(examples)
	if err != nil || len(paths) < 4 {
		t.Fatalf("%d examples: %v", len(paths), err)
	}
	for _, path := range paths {
		if filepath.Base(path) == "icapbench-serve.yaml" {
			continue // servers, no scenario
		}
		s, err := Read(path)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(path)] = s
	}
	return all
}

func TestUnknownPreset(t *testing.T) {
	if _, err := Preset("bluecoat"); err == nil || !strings.Contains(err.Error(), "zscaler, squid, proxysg") {
		t.Errorf("error %v", err)
	}
}

// Every key that the program knows stands in the reference file.
func TestReferenceIsComplete(t *testing.T) {
	content, err := os.ReadFile("../../configs/icapbench-scenario.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var root any
	if err := yaml.Unmarshal(content, &root); err != nil {
		t.Fatal(err)
	}
	there := make(map[string]bool)
	var collect func(key string, v any)
	collect = func(key string, v any) {
		there[key] = true
		switch v := v.(type) {
		case map[string]any:
			for k, item := range v {
				collect(strings.TrimPrefix(key+"."+k, "."), item)
			}
		case []any:
			for _, item := range v {
				collect(key+"[]", item)
			}
		}
	}
	collect("", root)
	count := 0
	var walk func(key string, typ reflect.Type)
	walk = func(key string, typ reflect.Type) {
		switch {
		case typ.Kind() == reflect.Pointer:
			walk(key, typ.Elem())
		case typ.Kind() == reflect.Slice && typ.Elem().Kind() == reflect.Struct && typ.Elem().Name() != "Pair":
			walk(key+"[]", typ.Elem())
		case typ.Kind() == reflect.Struct:
			for i := range typ.NumField() {
				f := typ.Field(i)
				if !f.IsExported() {
					continue
				}
				name := f.Tag.Get("yaml")
				if name == "" {
					continue // inside a scalar such as Prefix
				}
				path := strings.TrimPrefix(key+"."+name, ".")
				if count++; !there[path] {
					t.Errorf("%s is not in the reference file", path)
				}
				walk(path, f.Type)
			}
		}
	}
	walk("", reflect.TypeFor[Scenario]())
	if count < 60 {
		t.Errorf("only %d keys were looked for", count)
	}
}

func TestDefaults(t *testing.T) {
	s := mustParse(t, "requests: [{}, {method: RESPMOD, body: {files: corpus}}, {}, {name: x, body: 1KiB, chunk: 512}]\ntls: {ca_file: ca.pem, cert_file: /abs.pem}")
	want := new(Scenario)
	want.SetDefaults()
	want.TLS = TLS{CAFile: "dir/ca.pem", CertFile: "/abs.pem"}
	want.Requests = []RequestType{
		{Name: "reqmod", Weight: 1, Method: "REQMOD", Profile: "plain"},
		{Name: "respmod", Weight: 1, Method: "RESPMOD", Profile: "plain", Body: &Body{Files: "dir/corpus"}},
		{Name: "reqmod-2", Weight: 1, Method: "REQMOD", Profile: "plain"},
		{Name: "x", Weight: 1, Method: "REQMOD", Profile: "plain", Body: &Body{Size: &Size{Fixed: 1024}}, Chunk: Chunks{512}},
	}
	s.doc = nil
	if diff := cmp.Diff(want, s, cmp.Exporter(func(reflect.Type) bool { return true })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if s.Users.Count != 1000 || s.Clients.Network.String() != "10.0.0.0/8" {
		t.Errorf("users %+v, clients %+v", s.Users, s.Clients)
	}
}

// Each fault is told with its line and key, and with what is allowed.
func TestFaults(t *testing.T) {
	f := func(text string, want ...string) {
		t.Helper()
		_, err := Parse("f.yaml", []byte(text))
		if err == nil {
			t.Errorf("%s\nis taken", text)
			return
		}
		if diff := cmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
			t.Errorf("%s\n-want +got:\n%s", text, diff)
		}
	}
	r := "requests: [{body: 1KiB}]\n"
	f("", "f.yaml: is empty, needed: requests")
	f("[]", "f.yaml:1: has no keys, needed: requests")
	f("rate: 1", "f.yaml: requests: none, needed: at least one, such as {method: REQMOD, body: 64KiB}")
	f("request: []", "f.yaml: requests: none, needed: at least one, such as {method: REQMOD, body: 64KiB}",
		"f.yaml:1: request: unknown key, did you mean requests?")
	f(r+"connections: -1\nrate: -1\narrivals: even", "f.yaml:2: connections: is -1, allowed: a number from 0 on",
		"f.yaml:3: rate: is -1, allowed: a number from 0 on", `f.yaml:4: arrivals: is "even", allowed: constant, poisson`)
	f(r+"rate: .inf", "f.yaml:2: rate: is +Inf, allowed: a number from 0 on")
	f(r+"rate: .nan", "f.yaml:2: rate: is NaN, allowed: a number from 0 on")
	f(r+"duration: 5", `f.yaml:2: duration: "5" has no unit, allowed: a time such as 5s, 5ms or 5m`)
	f(r+"duration: 1m\nstages:\n  - {duration: 1m, rate: 1}\n  - {rate: -5}", "f.yaml:2: duration: is given by the stages, remove it or them",
		"f.yaml:5: stages[1].rate: is -5, allowed: a number from 0 on", "f.yaml:5: stages[1].duration: none, needed: a time such as 30s")
	f(r+"keep_alive: {requests: -1}", "f.yaml:2: keep_alive.requests: is -1, allowed: a number from 0 on")
	f(r+"tls: {min_version: 1.1, resume: 2}", `f.yaml:2: tls.min_version: is "1.1", allowed: 1.2, 1.3`, "f.yaml:2: tls.resume: is 2, allowed: 0 to 1")
	f(r+"tls: {min_version: 1.3, max_version: 1.2}", "f.yaml:2: tls.max_version: is below min_version")
	f(r+"incident_header: 'X Y'", `f.yaml:2: incident_header: "X Y" is no name of a header, allowed: one such as X-Incident-ID`)
	f(r+"users:\n  count: 0\n  skew: 0.9\n  format: u${n}", "f.yaml:3: users.count: is 0, allowed: 1 to 1073741824",
		"f.yaml:4: users.skew: is 0.9, allowed: 0 (all alike), or above 1 to 10, such as 1.1",
		`f.yaml:5: users.format: "${n}" names no variable, allowed: ${number}; $${ for a plain ${`)
	f(r+"users: {skew: 1}", "f.yaml:2: users.skew: is 1, allowed: 0 (all alike), or above 1 to 10, such as 1.1")
	f(r+"users: {format: \"a\\nb\"}", `f.yaml:2: users.format: is "a\nb", allowed: printable text such as EXAMPLE/user${number}`)
	f(r+"clients: {count: 256, network: 192.0.2.0/24}", "f.yaml:2: clients.count: is 256, but 192.0.2.0/24 has only 255 addresses for them")
	f(r+"clients: {network: x}", `f.yaml:2: clients.network: "x" is no address range, allowed: a range such as 192.0.2.0/24 or 2001:db8::/32, or one address`)
	f("requests: [{method: PUT, profile: bluecoat, weight: -1, path: x}]", "f.yaml:1: requests[0].weight: is -1, allowed: 0 to 1e+06",
		`f.yaml:1: requests[0].method: is "PUT", allowed: REQMOD, RESPMOD, OPTIONS`, `f.yaml:1: requests[0].path: is "x", allowed: a path such as /reqmod`,
		`f.yaml:1: requests[0].profile: is "bluecoat", allowed: plain, zscaler, squid, proxysg`, "f.yaml:1: requests: have no weight above 0")
	f("requests:\n  - name: a\n  - name: a", `f.yaml:3: requests[1].name: "a" is the name of an earlier one too`)
	f("requests: [{weight: 0}]", "f.yaml:1: requests: have no weight above 0")
	f("requests: [{preview: all}]", `f.yaml:1: requests[0].preview: "all" is no preview, allowed: none, or 0 to 65536 bytes`)
	f("requests: [{preview: 65537}]", `f.yaml:1: requests[0].preview: "65537" is no preview, allowed: none, or 0 to 65536 bytes`)
	f("requests: [{preview: }]", "f.yaml:1: requests[0].preview: is empty, allowed: none, or a number of bytes such as 1024; or remove it")
	f("requests: [{allow: [204, 200]}]", "f.yaml:1: requests[0].allow[1]: is 200, allowed: 204, 206")
	f("requests: [{chunk: [1, 0]}]", "f.yaml:1: requests[0].chunk[1]: is 0, allowed: a size from 1 on")
	f("requests: [{chunk: {}}]", "f.yaml:1: requests[0].chunk: is a mapping, allowed: a size such as 64KiB, or a list of sizes that are used in turn")
	f("requests: [{expect: {status: [99], body: same}}]", "f.yaml:1: requests[0].expect.status[0]: is 99, allowed: 200 to 599",
		`f.yaml:1: requests[0].expect.body: is "same", allowed: echo, modified, any`)
	f("requests:\n  - headers:\n      X Y: 1\n      Encapsulated: x\n      Allow: 204\n      X-N: ${name}\n      X-M: |\n        a\n        b",
		`f.yaml:3: requests[0].headers.X Y: "X Y" is no name of a header`,
		"f.yaml:4: requests[0].headers.Encapsulated: is part of the framing and cannot be chosen",
		"f.yaml:5: requests[0].headers.Allow: is not chosen here, but by allow",
		`f.yaml:6: requests[0].headers.X-N: "${name}" names no variable, allowed: ${user}, ${user_base64}, ${client_ip}, ${id}, ${n}, ${uuid}, ${size}, ${file}; $${ for a plain ${`,
		"f.yaml:7: requests[0].headers.X-M: has more than one line")
	f("requests: [{method: OPTIONS, body: 1}]", "f.yaml:1: requests[0].body: an OPTIONS has none")
	f("requests: [{method: RESPMOD, body: {size: 1, form: {}}}]", "f.yaml:1: requests[0].body.form: a RESPMOD has no form, only a REQMOD")
	f("requests: [{body: {}}]", "f.yaml:1: requests[0].body: has neither size nor files, needed: one of them")
	f("requests: [{body: {size: 1, files: x}}]", "f.yaml:1: requests[0].body: has size and files, allowed: one of them")
	f("requests: [{body: [1]}]", "f.yaml:1: requests[0].body: is a list, allowed: a size such as 64KiB, or a mapping with size or files")
	f("requests: [{body: 1KB}]", `f.yaml:1: requests[0].body: "1KB" is not a size, allowed: whole bytes, or a whole number of KiB, MiB or GiB (powers of 1024) such as 64KiB`)
	f("requests: [{body: {size: {uniform: {min: 2, max: 1}}}}]", "f.yaml:1: requests[0].body.size.uniform.max: is 1, allowed: a size from min (2) on")
	f("requests: [{body: {size: {lognormal: {}}}}]", "f.yaml:1: requests[0].body.size.lognormal.median: none, needed: a size that half of the bodies are below",
		"f.yaml:1: requests[0].body.size.lognormal.sigma: is 0, allowed: above 0 to 10, such as 1.8",
		"f.yaml:1: requests[0].body.size.lognormal.min: is 1, allowed: a size up to the median (0)")
	f("requests: [{body: {size: {lognormal: {median: 1KiB, sigma: 1, max: 512}}}}]",
		"f.yaml:1: requests[0].body.size.lognormal.max: is 512, allowed: a size from the median (1KiB) on")
	f("requests: [{body: {size: {fixed: 1, uniform: {max: 1}}}}]", "f.yaml:1: requests[0].body.size: has more than one of fixed, uniform and lognormal")
	f("requests: [{body: {size: 1, form: {field: '', file_name: '${x}', fields: {'': a}}}}]",
		`f.yaml:1: requests[0].body.form.field: is "", allowed: printable text`,
		`f.yaml:1: requests[0].body.form.file_name: "${x}" names no variable, allowed: ${user}, ${user_base64}, ${client_ip}, ${id}, ${n}, ${uuid}, ${size}, ${file}; $${ for a plain ${`,
		`f.yaml:1: requests[0].body.form.fields: has a field with the name "", allowed: printable text`)
	f(r+"faults: [{kind: half_close, share: 0.6}, {kind: stop_reading, share: 0.5}]", "f.yaml:2: faults: have shares of 1.1 together, allowed: at most 1")
	f("requests: [{body: 2048GiB}]", "f.yaml:1: requests[0].body.size: is 2048GiB, allowed: at most 1024GiB")
	f("requests: [{body: {size: {lognormal: {median: 1, sigma: 1, max: 2048GiB}}}}]", "f.yaml:1: requests[0].body.size.lognormal.max: is 2048GiB, allowed: at most 1024GiB")
	f("requests: [{body: {size: {uniform: {max: 2048GiB}}}}]", "f.yaml:1: requests[0].body.size.uniform.max: is 2048GiB, allowed: at most 1024GiB")
	f(r+"faults:\n  - {kind: slow, share: 2}\n  - {kind: slow_body, rate: 0}", `f.yaml:3: faults[0].kind: is "slow", allowed: slow_body, stop_reading, abort_body, half_close, connect_and_leave`,
		"f.yaml:3: faults[0].share: is 2, allowed: 0 to 1",
		"f.yaml:4: faults[1].rate: is 0, allowed: a size from 1 on, in bytes per second")
	f("requests: [{}]\nfaults: [{kind: abort_body, share: 0.1}]", "f.yaml:2: faults[0].kind: abort_body needs a request with a body")
}

// A small file must not make much work.
func TestTooMany(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		if _, err := Parse("f.yaml", []byte(text)); err == nil || !strings.HasSuffix(err.Error(), ": "+want) {
			t.Errorf("error %.200v, want %q", err, want)
		}
	}
	many := func(item string, n int) string { return strings.Repeat(item+", ", n) }
	pairs := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "h%d: x, ", i)
		}
		return b.String()
	}
	f("requests: ["+many("{}", 50_000)+"]", "requests: are 50000, allowed: at most 1000")
	f("requests: [{headers: {"+pairs(201)+"}}]", "requests[0].headers: are 201, allowed: at most 200")
	f("requests: [{body: {size: 1, form: {fields: {"+pairs(201)+"}}}}]", "requests[0].body.form.fields: are 201, allowed: at most 200")
	f("requests: [{}]\nfaults: ["+many("{kind: half_close}", 101)+"]", "faults: are 101, allowed: at most 100")
}

// Some faults come out only when files and the target are looked at.
func TestCompileFaults(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f := func(request, want string) {
		t.Helper()
		s, err := Parse(filepath.Join(dir, "f.yaml"), []byte("requests:\n  - {name: fine}\n  - "+request))
		if err != nil {
			t.Fatal(err)
		}
		if _, err = s.Compile(mustTarget(t)); err == nil || !strings.HasPrefix(err.Error(), filepath.Join(dir, "f.yaml")+":3: requests[1]") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", request, err, want)
		}
	}
	f("body: {files: missing}", "body.files: ")
	f("body: {files: missing}", "no such file")
	f("body: {files: empty}", "no file in")
	f("body: {files: file}", "is no folder")
	f("path: /a#b", "bad URI")
	f("url: files", `bad URL "files"`)
	f(`headers: {X-A: "a\u0001b"}`, "makes no valid request: ")
	f("headers: {X-A: "+strings.Repeat("a", 100_000)+"}", "makes no valid request: ")

	if _, err := new(Scenario).Compile(mustTarget(t)); err == nil {
		t.Error("a scenario without requests is taken")
	}
	single := Single(bench.Message{Method: icap.MethodReqmod, Preview: -1, Fields: []string{"bad"}}, 0)
	if _, err := single.Compile(mustTarget(t)); err == nil || !strings.Contains(err.Error(), `bad header "bad"`) {
		t.Errorf("error %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{examples, "presets/*.yaml"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			f.Fatalf("%d files like %s: %v", len(paths), pattern, err)
		}
		for _, path := range paths {
			content, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(content)
		}
	}
	f.Add([]byte("requests: [{body: {size: {uniform: {min: 0, max: 9223372036854775807}}}, chunk: [1]}]\nusers: {skew: 10, count: 1}"))
	f.Fuzz(func(t *testing.T, content []byte) {
		s, err := Parse("fuzz.yaml", content)
		if err != nil {
			if strings.Count(err.Error(), "fuzz.yaml") < 1 {
				t.Errorf("error without the file: %v", err)
			}
			return
		}
		for _, r := range s.Requests {
			if r.Body != nil && r.Body.Files != "" {
				return // not to be read
			}
		}
		m, err := s.Compile(mustTarget(t))
		if err != nil {
			return
		}
		source := m.NewSource(1)
		for n := range uint64(20) {
			r := source.Next(n)
			if err := verify(r); err != nil {
				t.Fatalf("request %d: %v\n%s", n, err, r.Head)
			}
			if r.Body != nil && (r.Content.Size() != r.Size || r.Size < 0) {
				t.Fatalf("request %d: size %d of %d", n, r.Size, r.Content.Size())
			}
		}
	})
}
