package completion

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// program is a command line with a bit of everything.
type program struct {
	Load struct {
		Method string `short:"m" default:"reqmod" enum:"reqmod,respmod" help:"It's a method."`
		Size   int    `help:"Bytes."`
		CA     string `name:"ca" placeholder:"FILE" help:"CA."`
		Allow  bool   `negatable:"no-204" help:"Allow."`
		URI    string `arg:""`
	} `cmd:"" help:"Make a load."`
	Completion Command `cmd:"" help:"Print a script."`
}

// script returns what "x completion SHELL" prints.
func script(t *testing.T, shell string) string {
	t.Helper()
	var out bytes.Buffer
	ctx, err := kong.Must(&program{}, kong.Name("x"), kong.Writers(&out, &out)).Parse([]string{"completion", shell})
	if err != nil {
		t.Fatal(err)
	}
	if err := ctx.Run(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// What bash offers for a line with the cursor at its end.
func TestBash(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not installed")
	}
	text := script(t, "bash") + `
COMP_WORDS=("$@")
COMP_CWORD=$(( $# - 1 ))
_x
printf '%s ' "${COMPREPLY[@]}"
`
	for _, tt := range []struct {
		line []string
		want string
	}{
		{[]string{"x", ""}, "load completion --help"},
		{[]string{"x", "l"}, "load"},
		{[]string{"x", "load", ""}, ""}, // file names
		{[]string{"x", "load", "-"}, "--help -h --method -m --size --ca --allow --no-204"},
		{[]string{"x", "load", "--m"}, "--method"},
		{[]string{"x", "load", "--method", ""}, "reqmod respmod"},
		{[]string{"x", "load", "--size", "1", "-m", "re"}, "reqmod respmod"},
		{[]string{"x", "load", "--method", "="}, "reqmod respmod"},
		{[]string{"x", "load", "--method", "=", "res"}, "respmod"},
		{[]string{"x", "load", "--size", ""}, ""},
		{[]string{"x", "load", "--ca", "-"}, ""},
		{[]string{"x", "completion", ""}, "bash zsh fish"},
		{[]string{"x", "completion", "-"}, "--help -h"},
		{[]string{"x", "bogus", "-"}, ""},
	} {
		out, err := exec.Command(bash, append([]string{"--norc", "-c", text, "bash"}, tt.line...)...).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != tt.want {
			t.Errorf("%q: %v, got %q, want %q", tt.line, err, got, tt.want)
		}
	}
}

func TestZsh(t *testing.T) {
	if got := script(t, "zsh"); !strings.HasSuffix(got, script(t, "bash")) || !strings.Contains(got, "bashcompinit") {
		t.Errorf("got\n%s", got)
	}
}

func TestFish(t *testing.T) {
	want := `complete -c x -n __fish_use_subcommand -f -a load -d 'Make a load.'
complete -c x -n '__fish_seen_subcommand_from load' -l help -s h -d 'Show context-sensitive help.'
complete -c x -n '__fish_seen_subcommand_from load' -l method -s m -x -a 'reqmod respmod' -d 'It\'s a method.'
complete -c x -n '__fish_seen_subcommand_from load' -l size -x -a '' -d 'Bytes.'
complete -c x -n '__fish_seen_subcommand_from load' -l ca -r -d 'CA.'
complete -c x -n '__fish_seen_subcommand_from load' -l allow -l no-204 -d 'Allow.'
complete -c x -n __fish_use_subcommand -f -a completion -d 'Print a script.'
complete -c x -n '__fish_seen_subcommand_from completion' -l help -s h -d 'Show context-sensitive help.'
complete -c x -n '__fish_seen_subcommand_from completion' -f -a 'bash zsh fish'
`
	if got := script(t, "fish"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
