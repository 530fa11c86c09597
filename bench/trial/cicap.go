package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"icapgate/bench/process"
)

// cicap is a c-icap daemon with the service "echo".
type cicap struct {
	name, address string
	rig           *rig
	process       *process.Process // nil: not running

	children, most, threads int // StartServers, MaxServers, ThreadsPerChild
}

// newCICAP returns a daemon that has Debian's values of /etc/c-icap/c-icap.conf.
func (r *rig) newCICAP(name, address string) *cicap {
	return &cicap{name: name, address: address, rig: r, children: 3, most: 10, threads: 10}
}

func (s *cicap) dir() string { return filepath.Join(s.rig.dir, s.name) }

// start starts it, at the address where it was before.
func (s *cicap) start(ctx context.Context) error {
	path, err := exec.LookPath("c-icap")
	if err != nil {
		return fmt.Errorf("c-icap is not installed (Debian package c-icap): %w", err)
	}
	modules, _ := filepath.Glob("/usr/lib/*/c_icap/srv_echo.so")
	if len(modules) == 0 {
		return errors.New("c-icap has no srv_echo.so in /usr/lib/*/c_icap")
	}
	dir := s.dir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	conf := strings.NewReplacer("DIR", dir, "ADDRESS", s.address, "MODULES", filepath.Dir(modules[0]),
		"CHILDREN", strconv.Itoa(s.children), "MOST", strconv.Itoa(s.most), "THREADS", strconv.Itoa(s.threads), "SPARE", strconv.Itoa(2*s.threads)).Replace(`PidFile DIR/c-icap.pid
CommandsSocket DIR/c-icap.ctl
Timeout 300
MaxKeepAliveRequests 100
KeepAliveTimeout 600
StartServers CHILDREN
MaxServers MOST
MinSpareThreads THREADS
MaxSpareThreads SPARE
ThreadsPerChild THREADS
MaxRequestsPerChild 0
Port ADDRESS
ServerName trial
TmpDir DIR
DebugLevel 1
Pipelining on
ModulesDir MODULES
ServicesDir MODULES
TemplateDir /usr/share/c_icap/templates/
TemplateDefaultLanguage en
LoadMagicFile /etc/c-icap/c-icap.magic
ServerLog DIR/server.log
AccessLog DIR/access.log
Service echo srv_echo.so
`)
	file := filepath.Join(dir, "c-icap.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return err
	}
	if s.process, err = process.Start(dir, s.name, path, "-N", "-D", "-f", file); err != nil {
		return err
	}
	return s.process.Await(ctx, s.address)
}

// kill ends it as a crash does. The shared memory that it has no time to remove goes, too.
func (s *cicap) kill() error {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", s.process.PID()))
	s.process.Kill()
	s.process = nil
	for line := range strings.Lines(string(maps)) {
		if at := strings.Index(line, "/dev/shm/c-icap"); at >= 0 {
			_ = os.Remove(strings.TrimSpace(line[at:]))
		}
	}
	return err
}

func (s *cicap) stop() {
	if s.process != nil {
		s.process.Stop()
		s.process = nil
	}
}

// reconfigure has it start new processes with the configuration that it has, and end the present ones when their connections have ended.
func (s *cicap) reconfigure() error {
	f, err := os.OpenFile(filepath.Join(s.dir(), "c-icap.ctl"), os.O_WRONLY|syscall.O_NONBLOCK, 0) // a FIFO: O_NONBLOCK is an error if nobody reads it
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString("reconfigure")
	return err
}
