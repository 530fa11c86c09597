package process

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	pid, parent, err := parseStat([]byte("4711 (a) b (c) S 42 4711 4711 0 -1"))
	if pid != 4711 || parent != 42 || err != nil {
		t.Errorf("process %d of %d, error %v", pid, parent, err)
	}
	if _, _, err := parseStat([]byte("nonsense")); err == nil {
		t.Error("nonsense is a process")
	}
}

func TestUsage(t *testing.T) {
	busy, err := Start(t.TempDir(), "busy", "/bin/sh", "-c", "(while :; do :; done) & wait") // the child of the shell is what works
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Stop()
	for used := time.Duration(0); used < 10*time.Millisecond; { // the shell alone does not get there
		now, err := busy.CPU()
		if err != nil || now < used {
			t.Fatalf("CPU time %v after %v, error %v", now, used, err)
		}
		used = now
	}
	memory, err := busy.RSS()
	if err != nil || memory < 64<<10 {
		t.Errorf("memory %d, error %v", memory, err)
	}
	if err := busy.ResetPeakRSS(); err != nil {
		t.Error(err)
	}
	if peak, err := busy.PeakRSS(); err != nil || peak < memory/2 {
		t.Errorf("peak memory %d, error %v; in use were %d", peak, err, memory)
	}
	if n, err := busy.FDs(); err != nil || n < 6 { // stdin, stdout and stderr of two processes
		t.Errorf("%d descriptors, error %v", n, err)
	}
	busy.Stop()
	if _, err := busy.CPU(); err == nil {
		t.Error("a program that has ended has a CPU clock")
	}
	const noProcess = 1<<22 + 1 // above the largest id that the kernel gives
	if _, err := processCPU(noProcess); err == nil {
		t.Error("a process that does not exist has used CPU time")
	}
	if tree, err := Descendants(os.Getpid()); err != nil || len(tree) != 1 {
		t.Errorf("processes %v are left, error %v", tree, err)
	}
}

// A process ends in every state that it can be in, and tells how.
func TestEnds(t *testing.T) {
	for _, c := range []struct {
		name, script string
		end          func(p *Process)
		code         int
	}{
		{"by itself", "echo ready; exit 7", func(p *Process) { <-p.Ended() }, 7},
		{"by SIGTERM", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done", (*Process).Stop, 3},
		{"stopped", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done", func(p *Process) { p.Signal(syscall.SIGSTOP); p.Stop() }, 3},
		{"by SIGKILL", "echo ready; exec sleep 60", (*Process).Kill, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := Start(t.TempDir(), "program", "/bin/sh", "-c", c.script)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Stop()
			if rest, err := p.AwaitLine(t.Context(), "rea"); err != nil || rest != "dy" {
				t.Errorf("line %q, error %v", rest, err)
			}
			if c.end(p); p.ExitCode() != c.code {
				t.Errorf("exit code %d, want %d", p.ExitCode(), c.code)
			}
		})
	}
}

func TestNotReady(t *testing.T) {
	p, err := Start(t.TempDir(), "program", "/bin/sh", "-c", "echo no configuration >&2")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	if _, err := p.AwaitLine(t.Context(), "ready"); err == nil || !strings.Contains(err.Error(), "program has ended:\nno configuration") {
		t.Errorf("error %v", err)
	}
	out, err := Run(exec.Command("/bin/sh", "-c", "echo out; echo err >&2; exit 1"))
	if string(out) != "out\nerr\n" || err == nil {
		t.Errorf("output %q, error %v", out, err)
	}
}
