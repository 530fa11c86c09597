package serve

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"icapgate/bench/dlpstub"
	"icapgate/configs"
	"icapgate/icap"
)

func TestExample(t *testing.T) {
	cfg, err := Load("../../configs/icapbench-serve.yaml", Settings{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range cfg.Servers {
		names = append(names, s.Server.Name)
	}
	if diff := cmp.Diff([]string{"dlp1", "dlp2", "dlp3"}, names); diff != "" || cfg.Control == "" {
		t.Errorf("%s, control %q", diff, cfg.Control)
	}
	if one := cfg.Servers[0].Server; one.Slots != 4 || one.Queue != dlpstub.QueueAll || one.Latency != 20*time.Millisecond {
		t.Errorf("the known limit: %+v", one)
	}
	if two := cfg.Servers[1].Server; two.Delay == nil || two.Match == nil || len(two.Faults) != 2 {
		t.Errorf("the real one: %+v", two)
	}
	if three := cfg.Servers[2].Server; three.CloseAfter != 101 || three.ConnectionLimit != 16 || !three.Alternate {
		t.Errorf("c-icap: %+v", three)
	}
}

// Every fault of a file comes with its line and says what is allowed.
func TestFaults(t *testing.T) {
	const head = "servers:\n  - listen: 127.0.0.1:0\n    "
	tests := []struct{ text, want string }{
		{"", "x.yaml: is empty, needed: servers"},
		{"control: a:1", "x.yaml: servers: is missing, needed: at least one server with listen"},
		{"servers:\n  - mode: echo", "x.yaml:2: servers[0].listen: is missing, needed: an address such as 127.0.0.1:1344"},
		{"servers:\n  - listen: a:1\n  - listen: a:1", `x.yaml:3: servers[1].listen: "a:1" is here twice`},
		{head + "moda: echo", "x.yaml:3: servers[0].moda: unknown key, did you mean mode?"},
		{head + "mode: fast", `x.yaml:3: servers[0].mode: "fast" is none, allowed: 204, echo, modify, partial, block`},
		{head + "profile: squid", `x.yaml:3: servers[0].profile: "squid" is none, allowed: symantec, c-icap, e2guardian`},
		{head + "profile: ../x", `x.yaml:3: servers[0].profile: "../x" is none, allowed: symantec, c-icap, e2guardian`},
		{head + "status: 99", "x.yaml:3: servers[0].status: 99 is no status to answer with, allowed: 200 to 599, and not 206"},
		{head + "slots: many", `x.yaml:3: servers[0].slots: is "many", allowed: a whole number`},
		{head + "slots: -1", "x.yaml:3: servers[0].slots: -1 is negative, allowed: 0 (none) and more"},
		{head + "queue: all", "x.yaml:3: servers[0].queue: needs slots: without them no request waits"},
		{head + "queue: -3", `x.yaml:3: servers[0].queue: "-3" is no number, allowed: 0 and more, or all`},
		{head + "queue: [1]", "x.yaml:3: servers[0].queue: is a list, allowed: a number, or all"},
		{head + "latency: 5", `x.yaml:3: servers[0].latency: "5" has no unit, allowed: a time such as 5s, 5ms or 5m`},
		{head + "latency_uniform: 9ms-3ms", `x.yaml:3: servers[0].latency_uniform: "9ms-3ms" is none, allowed: two times up to 1h such as 10ms-30ms, the smaller one first`},
		{head + "latency_lognormal: 9ms", `x.yaml:3: servers[0].latency_lognormal: "9ms" is none, allowed: a median up to 1h and a sigma of 0 to 5 such as 20ms:0.5`},
		{head + "latency_lognormal: 9ms:1\n    latency_uniform: 1ms-2ms", "x.yaml:4: servers[0].latency_uniform: stands beside latency_lognormal, allowed: one of them"},
		{head + "retry_after: 500ms", "x.yaml:3: servers[0].retry_after: 500ms is not whole seconds"},
		{head + "preview: 65537", `x.yaml:3: servers[0].preview: "65537" is no preview, allowed: a number of bytes up to 65536, or none`},
		{head + "match: a\n    match_regexp: b", "x.yaml:3: servers[0].match: stands beside match_regexp, allowed: one of them"},
		{head + `match: ""`, "x.yaml:3: servers[0].match: is empty and would match everything; for that there is mode: block"},
		{head + `match_regexp: "("`, "x.yaml:3: servers[0].match_regexp: error parsing regexp: missing closing ): `(`"},
		{head + "match_limit: 1GiB", "x.yaml:3: servers[0].match_limit: 1GiB is too large: every connection may hold that much, allowed: 64MiB"},
		{head + "change_body: x", "x.yaml:2: servers[0].mode: has to be modify or partial where change_header, change_body or change_skip are given"},
		{head + `header: ["a b: c"]`, `x.yaml:3: servers[0].header[0]: "a b: c" is no field, allowed: Name: value`},
		{head + `header: ["A: b\r\nC: d"]`, `x.yaml:3: servers[0].header[0]: "A: b\r\nC: d" is no field, allowed: Name: value`},
		{head + "methods: [options]", `x.yaml:3: servers[0].methods[0]: "options" is none, allowed: reqmod, respmod`},
		{head + "service: [request]", `x.yaml:3: servers[0].service[0]: "request" is no path with methods, allowed: such as /request:reqmod`},
		{head + "service: [/request]", `x.yaml:3: servers[0].service[0]: "/request" names no method, allowed: reqmod, respmod or reqmod,respmod after the colon`},
		{head + "istag: a b", `x.yaml:3: servers[0].istag: "a b" is none, allowed: up to 32 ASCII characters without blanks and quotes`},
		{head + "excess: refuse", "x.yaml:3: servers[0].excess: needs connection_limit"},
		{head + "connection_limit: 1\n    excess: drop", `x.yaml:4: servers[0].excess: "drop" is neither, allowed: wait, refuse`},
		{head + "idle_status: 408", "x.yaml:3: servers[0].idle_status: needs idle_timeout"},
		{head + "seed: -1", "x.yaml:3: servers[0].seed: -1 is negative"},
		{head + `fault: ["explode:1%"]`, `x.yaml:3: servers[0].fault[0]: "explode" is no fault, allowed: ` + strings.Join(dlpstub.FaultNames(), ", ")},
		{head + `fault: ["silent:101%"]`, `x.yaml:3: servers[0].fault[0]: "101%" does not fit silent, allowed: a share such as 1%, then a status (of status), a time (of trickle, late), options, each after a colon`},
		{head + `fault: ["status:1%:100"]`, `x.yaml:3: servers[0].fault[0]: "100" is no status to answer with, allowed: 200 to 599, and not 206`},
		{head + `fault: [none]`, "x.yaml:3: servers[0].fault[0]: none is no fault to configure, allowed: " + strings.Join(dlpstub.FaultNames(), ", ")},
		{head + "tls_cert: none.pem", `x.yaml:3: servers[0].tls_cert: cannot read "none.pem": no such file or directory`},
		{head + "tls_cert: config_test.go", `x.yaml:3: servers[0].tls_cert: cannot load the certificate and key from "config_test.go": tls: failed to find any PEM data in certificate input`},
		{head + "tls_ca_out: x.pem", "x.yaml:3: servers[0].tls_ca_out: needs tls"},
		{"incident_header: a b\n" + head + "mode: echo", `x.yaml:1: incident_header: "a b" is no name of a field`},
	}
	for _, tt := range tests {
		_, err := Parse("x.yaml", []byte(tt.text), Settings{})
		var faults configs.Faults
		if !errors.As(err, &faults) || err.Error() != tt.want {
			t.Errorf("%s\ngot  %v\nwant %s", tt.text, err, tt.want)
		}
	}
}

// A fault of a flag names the flag, once however many servers there are.
func TestFaultsOfFlags(t *testing.T) {
	mode, queue := "fast", Queue(3)
	_, err := Listening([]string{"127.0.0.1:0", "127.0.0.1:0"}, Settings{Mode: &mode, Queue: &queue})
	want := `--mode: "fast" is none, allowed: 204, echo, modify, partial, block` + "\n--queue: needs slots: without them no request waits"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	_, err = Parse("x.yaml", []byte("servers: [{listen: a:1}, {listen: b:1}]"), Settings{Mode: &mode})
	if want = `--mode: "fast" is none, allowed: 204, echo, modify, partial, block`; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	_, err = Listening([]string{"a:1", "a:1"}, Settings{})
	if want = `--listen: "a:1" is here twice`; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// Flags stand over the file, the file over the profile.
func TestLayers(t *testing.T) {
	two := 2
	cfg, err := Parse("x.yaml", []byte("servers:\n  - {listen: a:1, profile: c-icap, preview: none, connection_limit: 3}\n  - {listen: b:1}\n"), Settings{ConnectionLimit: &two})
	if err != nil {
		t.Fatal(err)
	}
	a, b := cfg.Servers[0].Server, cfg.Servers[1].Server
	if a.ConnectionLimit != 2 || a.Preview != 0 || a.CloseAfter != 101 || a.Mode != dlpstub.Modify || b.ConnectionLimit != 2 || b.Mode != dlpstub.NoContent {
		t.Errorf("%+v\n%+v", a, b)
	}
	if diff := cmp.Diff([]icap.Method{icap.MethodRespmod, icap.MethodReqmod}, a.Methods); diff != "" {
		t.Error(diff)
	}
	none := 0
	cfg, err = Parse("x.yaml", []byte("servers: [{listen: a:1, profile: symantec}]"), Settings{ConnectionLimit: &none})
	if err != nil || cfg.Servers[0].Server.ConnectionLimit != 0 {
		t.Errorf("a limit that was taken back: %v", err)
	}
	echo := "echo"
	cfg, err = Parse("x.yaml", []byte("servers: [{listen: a:1, profile: c-icap}]"), Settings{Mode: &echo})
	if err != nil || cfg.Servers[0].Server.Mode != dlpstub.Echo || cfg.Servers[0].Server.Change.Field != "" {
		t.Errorf("a mode over that of a profile: %v", err)
	}
}

func TestProfilesAreFlat(t *testing.T) {
	for _, name := range Profiles {
		s, err := profile(name)
		if err != nil {
			t.Fatal(err)
		}
		s.config(func(key, format string, args ...any) {
			t.Errorf("%s: %s: "+format, append([]any{name, key}, args...)...)
		})
		if s.Profile != nil || s.Listen != "" {
			t.Errorf("%s has a profile or an address of its own", name)
		}
	}
}

// keys are those of a server in a file.
func keys() (list []string) {
	for t, i := reflect.TypeFor[Settings](), 0; i < t.NumField(); i++ {
		list = append(list, t.Field(i).Tag.Get("yaml"))
	}
	return list
}

// Each key is in the documentation.
func TestDocumentation(t *testing.T) {
	doc, err := os.ReadFile("../../docs/BENCH.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keys() {
		if !strings.Contains(string(doc), "`"+key+"`") {
			t.Errorf("docs/BENCH.md has nothing about %s", key)
		}
	}
	for _, name := range dlpstub.FaultNames() {
		if !strings.Contains(string(doc), "`"+name) {
			t.Errorf("docs/BENCH.md has nothing about the fault %s", name)
		}
	}
}

func TestFaultSpec(t *testing.T) {
	for text, want := range map[string]string{
		"refuse": "refuse:100%", "reset-body:1%": "reset-body:1%", "status": "status:100%:500", "status:0.05:503:options": "status:5%:503:options",
		"trickle:50%:20ms": "trickle:50%:20ms", "late:1%": "late:1%", "late:1:2s:options": "late:100%:2s:options", "none": "none", "silent:100%:options": "silent:100%:options",
	} {
		var f FaultSpec
		if err := f.UnmarshalText([]byte(text)); err != nil || f.String() != want {
			t.Errorf("%s: %v, %v, want %s", text, f, err, want)
		}
	}
	for _, text := range []string{"", "reset", "reset-body:", "reset-body:x", "reset-body:1%:5", "trickle:1%:-1s", "trickle:1%:1ms:1ms", "status:1%:abc",
		"status:1%:500:500", "refuse:1%:options", "status:NaN", "none:1%", "silent:-1%"} {
		var f FaultSpec
		if err := f.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken for %v", text, f)
		}
	}
}

func FuzzFaultSpec(f *testing.F) {
	for _, s := range []string{"none", "reset-body:1%", "status:0.05:503:options", "trickle:50%:20ms", "::", "status:1e-9"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var a, b FaultSpec
		if a.UnmarshalText([]byte(text)) != nil {
			return
		}
		if err := b.UnmarshalText([]byte(a.String())); err != nil || b.Kind != a.Kind || b.Status != a.Status || b.Pause != a.Pause || b.Options != a.Options {
			t.Errorf("%q was read as %+v, and again as %+v, %v", text, a, b, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	example, err := os.ReadFile("../../configs/icapbench-serve.yaml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	for _, name := range Profiles {
		data, err := profiles.ReadFile("profiles/" + name + ".yaml")
		if err != nil {
			f.Fatal(err)
		}
		f.Add([]byte("servers:\n  - listen: a:1\n    " + strings.ReplaceAll(string(data), "\n", "\n    ")))
	}
	f.Add([]byte("servers: [{listen: a:1, latency_lognormal: 1ms:0.5, fault: [status]}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if text := string(data); strings.Contains(text, "tls") || strings.Contains(text, `\`) { // they read and write files
			return
		}
		cfg, err := Parse("x.yaml", data, Settings{})
		if err != nil {
			var faults configs.Faults
			if !errors.As(err, &faults) || len(faults) == 0 {
				t.Errorf("%T %v", err, err)
			}
			return
		}
		for _, s := range cfg.Servers {
			dlpstub.New(s.Server).Close()
		}
	})
}

func TestLoadOfNoFile(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.yaml"), Settings{})
	if err == nil || !strings.Contains(err.Error(), "none.yaml\": no such file") {
		t.Error(err)
	}
}
