package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

// endPatience is how long a process may take to end when asked to.
const endPatience = 3 * time.Second

// process is a program that runs beside us. It has a process group of its own, so that a Ctrl-C reaches us only and we end it.
type process struct {
	name  string
	cmd   *exec.Cmd
	log   string        // file with its stdout and stderr
	ended chan struct{} // closed when it has ended
}

// Pdeathsig is sent when the thread ends that has started a process, so all are started by the main thread, which stays.
func init() { runtime.LockOSThread() }

// ownGroup makes a command end with us, whatever ends us.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

// start starts a program that writes to a log in dir.
func start(dir, name, path string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.cmd = exec.Command(path, args...)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, out, out
	ownGroup(p.cmd)
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// await waits until all addresses accept connections.
func (p *process) await(ctx context.Context, addresses ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for _, address := range addresses {
		for {
			nc, err := new(net.Dialer).DialContext(ctx, "tcp", address)
			if err == nil {
				nc.Close()
				break
			}
			select {
			case <-p.ended:
				return fmt.Errorf("%s has ended:\n%s", p.name, p.output())
			case <-ctx.Done():
				return fmt.Errorf("%s does not accept on %s: %w\n%s", p.name, address, err, p.output())
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	return nil
}

// output returns the end of what the program has printed.
func (p *process) output() string {
	text, _ := os.ReadFile(p.log)
	return string(text[max(0, len(text)-2000):])
}

// stop ends the program and what it has started.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(endPatience):
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.ended
}

// cpu returns the CPU time that the program's processes have used so far, with all their threads, also those that have ended.
func (p *process) cpu() (time.Duration, error) {
	tree, err := descendants(p.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, pid := range tree {
		t, err := processCPU(pid)
		if err != nil {
			return 0, fmt.Errorf("%s: process %d: %w", p.name, pid, err)
		}
		sum += t
	}
	return sum, nil
}

// processCPU reads the CPU clock of another process, which counts nanoseconds; /proc/PID/stat has hundredths of a second.
func processCPU(pid int) (time.Duration, error) {
	const schedClock = 2 // CPUCLOCK_SCHED of the kernel: all threads, user and system time
	clock := ^pid<<3 | schedClock
	var t syscall.Timespec
	if _, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(clock), uintptr(unsafe.Pointer(&t)), 0); errno != 0 {
		return 0, fmt.Errorf("cannot read its CPU clock: %w", errno)
	}
	return time.Duration(t.Nano()), nil
}

// rss returns the bytes of memory that the program's processes have in use.
func (p *process) rss() (int64, error) {
	tree, err := descendants(p.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, pid := range tree {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
		if err != nil {
			return 0, fmt.Errorf("%s: %w", p.name, err)
		}
		fields := bytes.Fields(text)
		if len(fields) < 2 {
			return 0, fmt.Errorf("%s: strange statm of process %d: %q", p.name, pid, text)
		}
		pages, err := strconv.ParseInt(string(fields[1]), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: strange statm of process %d: %w", p.name, pid, err)
		}
		sum += pages * int64(os.Getpagesize())
	}
	return sum, nil
}

// descendants returns a process and all below it. They are looked up each time: a program that accepts connections may not have
// forked its workers yet.
func descendants(root int) ([]int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		pid, parent, err := parseStat(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		children[parent] = append(children[parent], pid)
	}
	tree := []int{root}
	for i := 0; i < len(tree); i++ {
		tree = append(tree, children[tree[i]]...)
	}
	return tree, nil
}

// parseStat returns a process and its parent from /proc/PID/stat. The name between them may have blanks and parentheses.
func parseStat(text []byte) (pid, parent int, err error) {
	before, _, _ := bytes.Cut(text, []byte(" "))
	after := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(after) < 2 {
		return 0, 0, errors.New("strange content")
	}
	if pid, err = strconv.Atoi(string(before)); err != nil {
		return 0, 0, err
	}
	parent, err = strconv.Atoi(string(after[1]))
	return pid, parent, err
}

// freeAddresses returns loopback addresses that nobody listens on.
func freeAddresses(n int) ([]string, error) {
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
