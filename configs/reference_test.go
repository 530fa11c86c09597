package configs

import (
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The reference file documents the defaults: what it does not call an example has to be one.
func TestReferenceHasTheDefaults(t *testing.T) {
	c, err := Load("icapgate.yaml")
	if err != nil {
		t.Fatal(err)
	}
	same := func(what string, want, got any) {
		t.Helper()
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(Config{}), cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".source" }, cmp.Ignore())); diff != "" {
			t.Errorf("%s -default +reference:\n%s", what, diff)
		}
	}

	top := Default()
	top.StateDir = defaultStateDir()
	top.DNS.Servers = []string{}
	top.Listeners, top.Services, top.Pools = c.Listeners, c.Services, c.Pools
	same("top level", top, *c)

	for _, l := range c.Listeners {
		want := DefaultListener()
		want.Name, want.Address, want.TLS, want.Allow = l.Name, l.Address, l.TLS, []Prefix{}
		if l.Allow == nil {
			want.Allow = nil
		}
		same("listener "+l.Name, want, l)
	}
	var listenerTLS ListenerTLS
	listenerTLS.setDefaults()
	listenerTLS.Certificates = []Certificate{{CertFile: "stunnel.pem", KeyFile: "stunnel.pem"}}
	same("listener's tls", &listenerTLS, c.Listeners[0].TLS)

	reqmod, others := DefaultService(), DefaultService()
	reqmod.Path, reqmod.Listener, reqmod.Methods, reqmod.Pool = "/reqmod", "icaps", []string{"REQMOD"}, "dlp"
	reqmod.ServerNames, others.Pool = []string{}, "scanners"
	none := HeaderRules{Pairs{}, Pairs{}, []string{}}
	reqmod.Headers.Trusted, reqmod.Headers.Request, reqmod.Headers.Response = []Prefix{}, none, none
	same("services", []Service{reqmod, others}, c.Services)

	for _, p := range c.Pools {
		want := DefaultPool()
		want.Name, want.Servers, want.TLS, want.Health.Probe = p.Name, p.Servers, p.TLS, p.Health.Probe
		same("pool "+p.Name, want, p)
		for _, s := range p.Servers {
			want := DefaultServer()
			want.Address = s.Address
			same("server "+s.Address, want, s)
		}
	}
	same("pool's tls", &PoolTLS{}, c.Pools[1].TLS)

	got, probe := c.Pools[0].Health.Probe, DefaultProbe()
	probe.Path, probe.Body, probe.Expect, probe.Fields = got.Path, got.Body, got.Expect, Pairs{}
	same("probe", &probe, got)
}

// Every key that the program knows stands in the reference file.
func TestReferenceIsComplete(t *testing.T) {
	c, err := Load("icapgate.yaml")
	if err != nil {
		t.Fatal(err)
	}
	there := make(map[string]bool)
	index := regexp.MustCompile(`\[\d+\]`)
	for key := range c.source.lines {
		there[index.ReplaceAllString(key, "[]")] = true
	}
	count := 0
	var walk func(key string, typ reflect.Type)
	walk = func(key string, typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer:
			walk(key, typ.Elem())
		case reflect.Slice:
			if typ != reflect.TypeFor[Pairs]() { // keys are the user's
				walk(key+"[]", typ.Elem())
			}
		case reflect.Struct:
			for _, f := range fieldsOf(typ) {
				path := strings.TrimPrefix(key+"."+f.name, ".")
				if count++; !there[path] {
					t.Errorf("%s is not in the reference file", path)
				}
				walk(path, typ.Field(f.index).Type)
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
	if count < 60 {
		t.Errorf("only %d keys were looked for", count)
	}
}
