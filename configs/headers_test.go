package configs

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseValue(t *testing.T) {
	good := func(value string, want ...ValuePart) {
		t.Helper()
		got, err := ParseValue(value)
		if err != nil {
			t.Errorf("%q: %v", value, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q -want +got:\n%s", value, diff)
		}
	}
	text := func(s string) ValuePart { return ValuePart{Text: s} }
	variable := func(s string) ValuePart { return ValuePart{Variable: s} }
	good("")
	good("a b", text("a b"))
	good("{}", text("{}"))
	good("$$", text("$"))
	good("$${client_ip}", text("${client_ip}"))
	good("$$$$a$$", text("$$a$"))
	good("${client_ip}", variable("client_ip"))
	good("a${id}b$$${service}}", text("a"), variable("id"), text("b$"), variable("service"), text("}"))
	for _, name := range Variables {
		good("${"+name+"}${"+name+"}", variable(name), variable(name))
	}

	bad := func(value, want string) {
		t.Helper()
		if parts, err := ParseValue(value); err == nil || parts != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v, want an error with %q", value, parts, err, want)
		}
	}
	bad("$", "$$ for a dollar")
	bad("$a", "$$ for a dollar")
	bad("$$$", "$$ for a dollar")
	bad("${id", "without its }")
	bad("${", "without its }")
	bad("${}", "allowed: ${client_ip}")
	bad("${id }", `"id "`)
	bad("${client_pi}", "did you mean ${client_ip}?")
	bad("${${id}}", `"${id"`)
}

// FuzzParseValue: what is taken apart can be put together again.
func FuzzParseValue(f *testing.F) {
	for _, s := range []string{"", "a", "$$", "${client_ip}:${client_port}", "$$${id}$$", "${x}", "$", "${", "${id", "}${listener}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		parts, err := ParseValue(value)
		if err != nil {
			if parts != nil || strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("%q: %v, %q", value, parts, err)
			}
			return
		}
		again := ""
		for _, p := range parts {
			switch {
			case (p.Text == "") == (p.Variable == ""):
				t.Fatalf("%q: %+v", value, p)
			case p.Variable != "":
				again += fmt.Sprintf("${%s}", p.Variable)
				if !slices.Contains(Variables, p.Variable) {
					t.Errorf("%q: unknown %q", value, p.Variable)
				}
			default:
				again += strings.ReplaceAll(p.Text, "$", "$$")
			}
		}
		if again != value {
			t.Errorf("%q has become %q", value, again)
		}
	})
}
