// Package completion makes completion scripts for bash, zsh and fish out of a command line that is described with kong: commands,
// their flags, and the words that a flag or an argument is restricted to. Everything else completes to file names.
package completion

import (
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"
)

// Command is the command "completion SHELL" of a program.
type Command struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Help is shown by PROGRAM completion --help.
func (Command) Help() string {
	return `It is the same for icapgate and icapbench.

Examples:

    icapgate completion bash >/etc/bash_completion.d/icapgate
    source <(icapgate completion zsh)            in ~/.zshrc; with bash in ~/.bashrc
    icapgate completion fish | source            in ~/.config/fish/config.fish

Exit codes:

    0    done
    2    the command line is wrong`
}

// Run is called by kong.
func (c *Command) Run(ctx *kong.Context) error {
	return write(ctx.Stdout, ctx.Model.Node, c.Shell)
}

func write(out io.Writer, program *kong.Node, shell string) error {
	var script string
	switch shell {
	case "bash":
		script = bash(program)
	case "zsh":
		script = zshHead + bash(program)
	case "fish":
		script = fish(program)
	}
	_, err := io.WriteString(out, script)
	return err
}

// zshHead lets zsh take the script for bash.
const zshHead = `(( $+functions[compdef] )) || { autoload -U compinit && compinit }
(( $+functions[complete] )) || { autoload -U bashcompinit && bashcompinit }
`

// bashScript takes the program's name, its commands, and the cases of their words.
const bashScript = `_%[1]s() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} words=
    if [[ $current == = ]]; then # --flag=, which is two words here
        current=
    elif [[ $previous == = ]]; then
        previous=${COMP_WORDS[COMP_CWORD-2]}
    fi
    if (( COMP_CWORD == 1 )); then
        words="%[2]s --help"
    else
        case ${COMP_WORDS[1]},$previous,$current in
%[3]s        esac
    fi
    COMPREPLY=( $(compgen -W "$words" -- "$current") ) # none: file names
}
complete -o default -F _%[1]s %[1]s
`

func bash(program *kong.Node) string {
	var commands []string
	var cases strings.Builder
	for _, c := range program.Children {
		commands = append(commands, c.Name)
		var names []string
		for _, f := range flags(c) {
			names = append(names, spellings(f)...)
			if f.IsBool() {
				continue
			}
			var patterns []string
			for _, s := range spellings(f) {
				patterns = append(patterns, c.Name+","+s+",*")
			}
			fmt.Fprintf(&cases, "        %s) words=%q ;;\n", strings.Join(patterns, "|"), enum(f.Value))
		}
		fmt.Fprintf(&cases, "        %s,*,-*) words=%q ;;\n", c.Name, strings.Join(names, " "))
		if words := arguments(c); words != "" {
			fmt.Fprintf(&cases, "        %s,*) words=%q ;;\n", c.Name, words)
		}
	}
	return fmt.Sprintf(bashScript, program.Name, strings.Join(commands, " "), cases.String())
}

func fish(program *kong.Node) string {
	var b strings.Builder
	for _, c := range program.Children {
		fmt.Fprintf(&b, "complete -c %s -n __fish_use_subcommand -f -a %s -d %s\n", program.Name, c.Name, quote(c.Help))
		line := fmt.Sprintf("complete -c %s -n '__fish_seen_subcommand_from %s'", program.Name, c.Name)
		for _, f := range flags(c) {
			b.WriteString(line)
			for _, s := range spellings(f) {
				if long, ok := strings.CutPrefix(s, "--"); ok {
					b.WriteString(" -l " + long)
				} else {
					b.WriteString(" -s " + s[1:])
				}
			}
			switch {
			case f.IsBool():
			case f.PlaceHolder == "FILE":
				b.WriteString(" -r")
			default:
				b.WriteString(" -x -a " + quote(enum(f.Value)))
			}
			b.WriteString(" -d " + quote(f.Help) + "\n")
		}
		if words := arguments(c); words != "" {
			fmt.Fprintf(&b, "%s -f -a %s\n", line, quote(words))
		}
	}
	return b.String()
}

// flags returns all flags of a command, --help too.
func flags(command *kong.Node) []*kong.Flag {
	var all []*kong.Flag
	for _, group := range command.AllFlags(true) {
		all = append(all, group...)
	}
	return all
}

// spellings returns every way to write a flag.
func spellings(f *kong.Flag) []string {
	all := []string{"--" + f.Name}
	if f.Short != 0 {
		all = append(all, "-"+string(f.Short))
	}
	if no := f.Tag.Negatable; no != "" {
		all = append(all, "--"+no)
	}
	return all
}

// enum returns the words that a value is restricted to, "": it is not.
func enum(v *kong.Value) string { return strings.ReplaceAll(v.Enum, ",", " ") }

// arguments returns the words that a command's arguments are restricted to.
func arguments(command *kong.Node) string {
	var words []string
	for _, a := range command.Positional {
		if w := enum(a); w != "" {
			words = append(words, w)
		}
	}
	return strings.Join(words, " ")
}

// quote makes one word of fish.
func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}
