package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

// Tree returns the program's process and all below it.
func (p *Process) Tree() ([]int, error) { return Descendants(p.PID()) }

// CPU returns the CPU time that the program's processes have used so far, with all their threads, also those that have ended.
func (p *Process) CPU() (time.Duration, error) {
	var sum time.Duration
	err := p.each(func(pid int) error {
		t, err := processCPU(pid)
		sum += t
		return err
	})
	return sum, err
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

// RSS returns the bytes of memory that the program's processes have in use.
func (p *Process) RSS() (int64, error) { return p.status("VmRSS:") }

// PeakRSS returns the sum of the most that each of the program's processes has had in use since it started or since ResetPeakRSS.
func (p *Process) PeakRSS() (int64, error) { return p.status("VmHWM:") }

// ResetPeakRSS makes the memory in use now the peak.
func (p *Process) ResetPeakRSS() error {
	return p.each(func(pid int) error {
		const peak = "5" // of clear_refs, see proc(5)
		return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte(peak), 0)
	})
}

// status sums up a field of /proc/PID/status that is in kB.
func (p *Process) status(field string) (sum int64, err error) {
	err = p.each(func(pid int) error {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return err
		}
		_, after, _ := bytes.Cut(text, []byte("\n"+field))
		value := bytes.Fields(after)
		if len(value) < 2 || string(value[1]) != "kB" {
			return fmt.Errorf("no %s in its status", field)
		}
		n, err := strconv.ParseInt(string(value[0]), 10, 64)
		sum += n << 10
		return err
	})
	return sum, err
}

// FDs returns the number of descriptors that the program's processes have open.
func (p *Process) FDs() (sum int, err error) {
	err = p.each(func(pid int) error {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		sum += len(entries)
		return err
	})
	return sum, err
}

// each calls f with every process of the program.
func (p *Process) each(f func(pid int) error) error {
	tree, err := p.Tree()
	if err != nil {
		return err
	}
	for _, pid := range tree {
		if err := f(pid); err != nil {
			return fmt.Errorf("%s: process %d: %w", p.Name, pid, err)
		}
	}
	return nil
}

// Descendants returns a process and all below it. They are looked up each time: a program that accepts connections may not have
// forked its workers yet.
func Descendants(root int) ([]int, error) {
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
