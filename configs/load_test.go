package configs

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the expected messages in testdata")

const wantPrefix = "# want: "

// TestBad and TestUnwise compare what is found with the `# want: line: key: text` at the top of each file.
func TestBad(t *testing.T) {
	golden(t, "testdata/bad/*.yaml", func(t *testing.T, name string, data []byte) Faults {
		c, err := Parse(name, data)
		var faults Faults
		if !errors.As(err, &faults) {
			t.Fatalf("error %v is no Faults", err)
		}
		if c != nil {
			t.Error("there is a configuration beside the error")
		}
		return faults
	})
}

func TestUnwise(t *testing.T) {
	golden(t, "testdata/unwise/*.yaml", func(t *testing.T, name string, data []byte) Faults {
		c, err := Parse(name, data)
		if err != nil {
			t.Fatal(err)
		}
		return c.Lint()
	})
}

func golden(t *testing.T, pattern string, find func(t *testing.T, name string, data []byte) Faults) {
	names, err := filepath.Glob(pattern)
	if err != nil || len(names) == 0 {
		t.Fatalf("%d files like %s: %v", len(names), pattern, err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.SplitAfter(string(data), "\n")
			body := slices.IndexFunc(lines, func(l string) bool { return !strings.HasPrefix(l, wantPrefix) })
			var got string
			for range 3 { // -update moves the lines, at most once
				got = ""
				for _, f := range find(t, name, data) {
					if strings.ContainsAny(f.Error(), "\r\n") {
						t.Errorf("more than one line: %q", f.Error())
					}
					got += wantPrefix + strings.TrimLeft(strings.TrimPrefix(f.Error(), name), ": ") + "\n"
				}
				if *update {
					data = []byte(got + strings.Join(lines[body:], ""))
				}
			}
			if *update {
				if err := os.WriteFile(name, data, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(strings.Join(lines[:body], ""), got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if body == 0 {
				t.Error("nothing is expected")
			}
		})
	}
}

func TestExamples(t *testing.T) {
	names, err := filepath.Glob("*.yaml")
	if err != nil || len(names) < 4 {
		t.Fatalf("%d examples: %v", len(names), err)
	}
	for _, name := range names {
		if strings.HasPrefix(name, "icapbench-") {
			continue // icapbench's own
		}
		c, err := Load(name)
		if err != nil {
			t.Errorf("%s:\n%v", name, err)
			continue
		}
		for _, warning := range c.Lint() {
			if !strings.Contains(warning.Text, "plain ICAP") {
				t.Errorf("an example is unwise: %v", warning)
			}
		}
	}
}

func TestMinimal(t *testing.T) {
	c, err := Load("minimal.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if l := c.Listeners[0]; l.Name != "icaps" || l.TLS.MinVersion != "1.2" || l.TLS.Certificates[0].KeyFile != "stunnel.pem" {
		t.Errorf("listener %+v, TLS %+v", l, l.TLS)
	}
	want := DefaultPool()
	want.Name = "default"
	want.Servers = []Server{{Address: "10.2.1.101:1344", Weight: 1}, {Address: "10.2.1.102:1344", Weight: 1}}
	if diff := cmp.Diff(want, c.Pools[0]); diff != "" {
		t.Errorf("pool -want +got:\n%s", diff)
	}
	service := DefaultService()
	service.Pool = "default"
	if diff := cmp.Diff([]Service{service}, c.Services); diff != "" {
		t.Errorf("services -want +got:\n%s", diff)
	}
}

// Where requests pass unjudged rather than being rejected, servers that may be fine are tried first.
func TestPanicThreshold(t *testing.T) {
	for _, tt := range []struct {
		services, pool string
		want           float64
	}{
		{"[{path: /a}]", "", 0},
		{"[{path: /a, on_unavailable: allow}]", "", 0.5},
		{"[{path: /a}, {path: /b, on_unavailable: allow}]", "", 0.5},
		{"[{path: /a, on_unavailable: allow}]", "panic_threshold: 0", 0},
		{"[{path: /a, on_unavailable: allow}]", "panic_threshold: 0.2", 0.2},
		{"[{path: /a, on_error: allow, on_timeout: allow}]", "", 0},
	} {
		c, err := Parse("test.yaml", fmt.Appendf(nil, "listeners: [{address: ':1'}]\nservices: %s\npools:\n  - servers: [127.0.0.1]\n    %s\n", tt.services, tt.pool))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Pools[0].PanicThreshold; got != tt.want {
			t.Errorf("%s %s: panic_threshold %v, want %v", tt.services, tt.pool, got, tt.want)
		}
	}
}

func TestAliasesAndMerge(t *testing.T) {
	c, err := Load("testdata/merged.yaml")
	if err != nil {
		t.Fatal(err)
	}
	second := c.Listeners[1]
	if second.Name != "second" || !second.LenientLF {
		t.Errorf("listener %+v lacks what it merges in", second)
	}
	if second.Timeouts.Idle != seconds(120) || second.Timeouts.Head != seconds(10) {
		t.Errorf("timeouts %+v, want its own over the defaults", second.Timeouts)
	}
	if diff := cmp.Diff(c.Pools[0].Servers, c.Pools[1].Servers); diff != "" {
		t.Errorf("servers of an alias differ:\n%s", diff)
	}
}

// A small file must not become a large configuration.
func TestAliasBomb(t *testing.T) {
	var b strings.Builder
	b.WriteString("pools:\n  - servers: &s [" + strings.Repeat("a,", 2000) + "]\n")
	b.WriteString(strings.Repeat("  - servers: *s\n", 2000))
	_, err := Parse("bomb", []byte(b.String()))
	if err == nil || !strings.Contains(err.Error(), "more than 200000 values") {
		t.Errorf("error %.300v", err)
	}

	b.Reset()
	b.WriteString("listeners: [&a0 {}")
	for i := range 12 {
		fmt.Fprintf(&b, ", &a%d {<<: [%s]}", i+1, strings.Repeat(fmt.Sprintf("*a%d, ", i), 20))
	}
	b.WriteString("]")
	if _, err := Parse("bomb", []byte(b.String())); err == nil || !strings.Contains(err.Error(), "more than 200000 values") {
		t.Errorf("error %.300v", err)
	}
}

func TestTooManyEntries(t *testing.T) {
	var b strings.Builder
	b.WriteString("listeners:\n")
	for i := range maxListeners + 1 {
		fmt.Fprintf(&b, "  - {address: \":%d\"}\n", i+1)
	}
	b.WriteString("pools: [{servers: [a]}]\n")
	_, err := Parse("x", []byte(b.String()))
	if want := "x:1: listeners: has 257 entries, allowed: up to 256"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestLoadCannotRead(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large.yaml")
	if err := os.WriteFile(large, make([]byte, maxFileSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		filepath.Join(dir, "none.yaml"): "cannot open: no such file or directory",
		dir:                             "cannot read: is a directory",
		large:                           "is larger than 4MiB",
	} {
		if _, err := Load(name); err == nil || err.Error() != name+": "+want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

func TestRelativeFiles(t *testing.T) {
	const text = `
listeners: [{address: ":0", tls: {certificates: [{cert_file: a.pem, key_file: /k/b.pem}]}}]
pools: [{servers: [a], tls: {ca_file: ca.pem, cert_file: ../c.pem}}]
state_dir: state
access_log: {output: ./access.log}
admin: {address: "unix:admin.sock"}
`
	c, err := Parse("/etc/icapgate/x.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	pair, pool := c.Listeners[0].TLS.Certificates[0], c.Pools[0].TLS
	got := []string{pair.CertFile, pair.KeyFile, pool.CAFile, pool.CertFile, c.StateDir, c.AccessLog.Output, c.Admin.Address}
	want := []string{"/etc/icapgate/a.pem", "/k/b.pem", "/etc/icapgate/ca.pem", "/etc/c.pem", "/etc/icapgate/state", "/etc/icapgate/access.log", "unix:/etc/icapgate/admin.sock"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if c, err = Parse("x.yaml", []byte(text)); err != nil || c.AccessLog.Output != "./access.log" {
		t.Errorf("beside a file without a folder: %v, %v", c, err)
	}
}

func TestDefaultStateDir(t *testing.T) {
	tests := []struct{ systemd, xdg, home, want string }{
		{"/var/lib/icapgate:/var/lib/more", "/x", "/home/u", "/var/lib/icapgate"},
		{"", "/x", "/home/u", "/x/icapgate"},
		{"", "relative", "/home/u", "/home/u/.local/state/icapgate"},
		{"", "", "/home/u", "/home/u/.local/state/icapgate"},
		{"", "", "", ""},
	}
	for _, tt := range tests {
		t.Setenv("STATE_DIRECTORY", tt.systemd)
		t.Setenv("XDG_STATE_HOME", tt.xdg)
		t.Setenv("HOME", tt.home)
		if got := defaultStateDir(); got != tt.want {
			t.Errorf("%+v: got %q", tt, got)
		}
	}
}

func TestListenerNames(t *testing.T) {
	const text = `
listeners:
  - {address: "127.0.0.1:1"}
  - {address: "127.0.0.1:2"}
  - {address: "127.0.0.1:3", tls: {certificates: [{cert_file: a}]}}
  - {address: "127.0.0.1:4", tls: {certificates: [{cert_file: a}]}}
  - {address: "127.0.0.1:5", name: mine}
pools: [{servers: [a]}]
`
	c, err := Parse("x", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range c.Listeners {
		got = append(got, l.Name)
	}
	if diff := cmp.Diff([]string{"icap", "127.0.0.1:2", "icaps", "127.0.0.1:4", "mine"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"*.yaml", "testdata/*.yaml", "testdata/*/*.yaml"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data)
		if err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !strings.HasPrefix(line, "f:") {
					t.Fatalf("a fault of several lines: %q", err.Error())
				}
			}
			return
		}
		c.Lint()
		c.source = source{}
		if again := c.validate(); len(again) > 0 {
			t.Fatalf("valid only once: %v", again)
		}
		if c.DrainTimeout > Duration(24*time.Hour) {
			t.Fatalf("drain_timeout %v", c.DrainTimeout)
		}
	})
}

// shape is a type of another package, as it looks to Decode.
type shape struct {
	Name  string `yaml:"name"`
	Sides sides  `yaml:"sides"`
	Notes Pairs  `yaml:"notes"`
}

func (s *shape) SetDefaults() { s.Name = "square" }

type sides int

func (*sides) Wanted() string { return "a number of sides such as 4" }

func (s *sides) UnmarshalText(text []byte) error {
	if string(text) != "four" {
		return fmt.Errorf("%s has no sides", Quote(string(text)))
	}
	*s = 4
	return nil
}

func TestDecode(t *testing.T) {
	f := func(text string, want shape, faults ...string) {
		t.Helper()
		var got shape
		doc := Decode("file", []byte(text), &got)
		if got.Sides == 0 {
			doc.Fault("sides", "none")
		}
		var lines []string
		if err := doc.Err(); err != nil {
			lines = strings.Split(err.Error(), "\n")
		}
		if diff := cmp.Diff(faults, lines); diff != "" {
			t.Errorf("%s\n-want +got:\n%s", text, diff)
		}
		if diff := cmp.Diff(want, got); len(faults) == 0 && diff != "" {
			t.Errorf("%s\n-want +got:\n%s", text, diff)
		}
	}
	f("sides: four\nnotes: {b: 1, a: ''}", shape{"square", 4, Pairs{{"b", "1"}, {"a", ""}}})
	f("name: x", shape{}, "file: sides: none")
	f("name: x\nsides: five", shape{}, `file:2: sides: "five" has no sides`)
	f("sides: []", shape{}, "file:1: sides: is a list, allowed: a number of sides such as 4")
	f("sides: four\nnotes: [a]", shape{}, "file:2: notes: is a list, allowed: a mapping (name: value)")
	f("sides: four\nnotes:\n  a: 1\n  a: 2", shape{}, "file:4: notes.a: is here twice, first in line 3")
	f("sides: four\nnotes:\n  a: [1]", shape{}, `file:3: notes.a: is a list, allowed: text, "" for none`)
	f("side: four", shape{}, "file: sides: none", "file:1: side: unknown key, did you mean sides?")
	f("", shape{}, "file: is empty, needed: at least one of the keys name, sides, notes")
}
