// Package process runs programs beside us for measurements and trials: it builds them, starts them, tells from /proc and the
// kernel's clocks what they use, and ends them with us, whatever ends us.
package process

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// endPatience is how long a process may take to end when asked to; startPatience how long until it serves.
const (
	endPatience   = 3 * time.Second
	startPatience = 20 * time.Second
)

// Process is a program that runs beside us. It has a process group of its own, so that a Ctrl-C reaches us only and we end it.
type Process struct {
	Name string

	cmd   *exec.Cmd
	log   string        // file with its stdout and stderr
	ended chan struct{} // closed when it has ended
}

// Start starts a program that writes to a log in dir.
func Start(dir, name, path string, args ...string) (*Process, error) {
	p := &Process{Name: name, log: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.cmd = exec.Command(path, args...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, out, out
	if err := start(p.cmd); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// Run runs a command to its end, which is also ours, and returns what it has printed.
func Run(cmd *exec.Cmd) ([]byte, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := start(cmd); err != nil {
		return nil, err
	}
	err := cmd.Wait()
	return out.Bytes(), err
}

// starter runs functions on a thread that stays.
var starter = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// start starts a command that ends when we do. Pdeathsig is sent when the thread ends that has started a process, hence starter.
func start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	result := make(chan error)
	starter() <- func() { result <- cmd.Start() }
	return <-result
}

// Build builds packages of the module in which we are into dir/bin.
func Build(ctx context.Context, dir string, packages ...string) error {
	out, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("go env GOMOD: %w", err)
	}
	args := append([]string{"build", "-trimpath", "-buildvcs=auto", "-o", filepath.Join(dir, "bin") + "/"}, packages...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = filepath.Dir(string(bytes.TrimSpace(out)))
	if out, err := Run(cmd); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// Await waits until all addresses accept connections.
func (p *Process) Await(ctx context.Context, addresses ...string) error {
	for _, address := range addresses {
		err := p.awaitThat(ctx, "accept on "+address, func(ctx context.Context) bool {
			nc, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			if err == nil {
				nc.Close()
			}
			return err == nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// AwaitLine waits until the program has printed a line that starts with prefix, and returns the rest of the line.
func (p *Process) AwaitLine(ctx context.Context, prefix string) (rest string, err error) {
	err = p.awaitThat(ctx, "print "+prefix, func(context.Context) bool {
		text, _ := os.ReadFile(p.log)
		for line := range bytes.Lines(text) {
			if after, ok := bytes.CutPrefix(line, []byte(prefix)); ok && line[len(line)-1] == '\n' {
				rest = string(bytes.TrimSpace(after))
				return true
			}
		}
		return false
	})
	return rest, err
}

// awaitThat waits until done, which is what, says so.
func (p *Process) awaitThat(ctx context.Context, what string, done func(context.Context) bool) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for !done(ctx) {
		select {
		case <-p.ended:
			if done(ctx) { // it was quick
				return nil
			}
			return fmt.Errorf("%s has ended:\n%s", p.Name, p.Output())
		case <-ctx.Done():
			return fmt.Errorf("%s does not %s: %w\n%s", p.Name, what, ctx.Err(), p.Output())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// Output returns the end of what the program has printed.
func (p *Process) Output() string {
	text, _ := os.ReadFile(p.log)
	return string(text[max(0, len(text)-2000):])
}

// PID returns the number of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the process. One that has ended gets none.
func (p *Process) Signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// Ended is closed when the process has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// ExitCode returns the exit code of a process that has ended, -1 if it was a signal.
func (p *Process) ExitCode() int { return p.cmd.ProcessState.ExitCode() }

// Kill ends the program and what it has started with SIGKILL.
func (p *Process) Kill() {
	_ = syscall.Kill(-p.PID(), syscall.SIGKILL)
	<-p.ended
}

// Stop ends the program and what it has started: with SIGTERM and, if that takes too long, SIGKILL.
func (p *Process) Stop() {
	p.Signal(syscall.SIGTERM)
	p.Signal(syscall.SIGCONT) // a stopped one would not hear of it
	select {
	case <-p.ended:
	case <-time.After(endPatience):
	}
	p.Kill()
}

// FreeAddresses returns loopback addresses that nobody listens on.
func FreeAddresses(n int) ([]string, error) {
	var addresses []string
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close() // together, so that no two are the same
		addresses = append(addresses, ln.Addr().String())
	}
	return addresses, nil
}
