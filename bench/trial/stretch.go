package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"icapgate/bench/process"
)

// stretch is c-icap-stretch, the load generator that comes with c-icap. It knows RESPMOD of files with a preview of 512 bytes (REQMOD without a
// body), a thread for each connection. Between two requests a thread sleeps half a second, and after three of ten requests it makes a new
// connection, a second later; so it sends 1.5 requests per second and thread. It writes a request in six parts without TCP_NODELAY,
// so that from the second on each waits for the peer's delayed ACK, 40 ms. It does not compare what comes back with anything.
type stretch struct {
	path   string
	tls    bool   // it has the option: c-icap 0.6
	hasten string // library to preload, "": none
}

// stretchPreview and stretchReconnect are what it does in terms of icapbench. It makes 3.3 requests per connection; 3 is to our disadvantage.
const (
	stretchPreview   = 512
	stretchReconnect = 3
)

// hastenSource takes the two things away that keep c-icap-stretch from making load: its pauses, and Nagle's algorithm.
const hastenSource = `#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
int usleep(unsigned time) { return 0; }
int connect(int fd, const struct sockaddr *to, socklen_t size) {
	int on = 1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	return syscall(SYS_connect, fd, to, size);
}
`

// newStretch finds the program, and hastens it if there is a C compiler.
func (r *rig) newStretch(ctx context.Context, name string) (*stretch, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	usage, _ := exec.CommandContext(ctx, path).CombinedOutput() // it prints that and fails
	s := &stretch{path: path, tls: strings.Contains(string(usage), "-tls")}
	if _, err := exec.LookPath("cc"); err != nil {
		return s, nil
	}
	source, library := filepath.Join(r.dir, "hasten.c"), filepath.Join(r.dir, "hasten.so")
	if err := os.WriteFile(source, []byte(hastenSource), 0o600); err != nil {
		return nil, err
	}
	if out, err := process.Run(exec.CommandContext(ctx, "cc", "-shared", "-fPIC", "-O2", "-w", "-D_GNU_SOURCE", "-o", library, source)); err != nil {
		return nil, fmt.Errorf("cc: %w\n%s", err, out)
	}
	s.hasten = library
	return s, nil
}

// run makes a load of one second, which is the shortest: it looks once a second whether there were enough requests.
func (s *stretch) run(ctx context.Context, address, file string, secure, hasten bool, threads int) (drive, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return drive{}, err
	}
	args := []string{"-i", host, "-p", port, "-s", "echo", "-m", "1", "-t", strconv.Itoa(threads)}
	if secure {
		args = append(args, "-tls", "-tls-no-verify")
	}
	cmd := exec.CommandContext(ctx, s.path, append(args, file)...)
	cmd.Env = os.Environ()
	if hasten {
		cmd.Env = append(cmd.Env, "LD_PRELOAD="+s.hasten)
	}
	out, used, err := timed(cmd)
	if err == nil {
		used.requests, used.failed, err = parseStretch(string(out))
	}
	if err != nil {
		return used, fmt.Errorf("%w\n%s", err, out[max(0, len(out)-2000):])
	}
	return used, nil
}

// The words for requests, and for those that failed before and after a byte was sent, of c-icap 0.5 and 0.6.
var (
	stretchServed = regexp.MustCompile(`(?m)^\s*(?:Requests served ?:|Requests: )(\d+)$`)
	stretchFailed = regexp.MustCompile(`(?m)^\s*(?:Requests failed ?:|Failed Requests: )(\d+)$`)
	stretchSoft   = regexp.MustCompile(`(?m)^\s*(?:Requests soft failed ?:|Soft Failed Requests: )(\d+)$`)
)

// parseStretch reads the last of the statistics that c-icap-stretch prints.
func parseStretch(text string) (requests, failed int64, err error) {
	var counts [3]int64
	for i, words := range []*regexp.Regexp{stretchServed, stretchFailed, stretchSoft} {
		all := words.FindAllStringSubmatch(text, -1)
		if all == nil {
			return 0, 0, errors.New("c-icap-stretch has printed no statistics")
		}
		if counts[i], err = strconv.ParseInt(all[len(all)-1][1], 10, 64); err != nil {
			return 0, 0, err
		}
	}
	return counts[0], counts[1] + counts[2], nil
}

// runClients runs c-icap-client over and over, some at a time: each is a process that asks for OPTIONS and then sends the file.
func runClients(ctx context.Context, path, address, file string, secure bool, number int, length time.Duration) (drive, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return drive{}, err
	}
	args := []string{"-i", host, "-p", port, "-s", "echo", "-f", file, "-w", strconv.Itoa(stretchPreview)}
	if secure {
		args = append(args, "-tls", "-tls-no-verify")
	}
	start := time.Now()
	var mu sync.Mutex
	var sum drive
	var running sync.WaitGroup
	for range number {
		running.Go(func() {
			for time.Since(start) < length && ctx.Err() == nil {
				_, used, err := timed(exec.CommandContext(ctx, path, args...))
				mu.Lock()
				sum.cpu += used.cpu
				if err == nil {
					sum.requests++
				} else {
					sum.failed++
				}
				mu.Unlock()
			}
		})
	}
	running.Wait()
	sum.seconds = time.Since(start).Seconds()
	return sum, ctx.Err()
}

// startCICAP starts a c-icap server with the service echo, as Debian configures it.
func (r *rig) startCICAP(ctx context.Context) (address string, p *process.Process, err error) {
	path, err := exec.LookPath("c-icap")
	if err != nil {
		return "", nil, err
	}
	modules, _ := filepath.Glob("/usr/lib/*/c_icap/srv_echo.so") // the folder has the architecture in its name
	if len(modules) == 0 {
		return "", nil, errors.New("c-icap is there, its srv_echo.so is not")
	}
	free, err := process.FreeAddresses(1)
	if err != nil {
		return "", nil, err
	}
	config := filepath.Join(r.dir, "c-icap.conf")
	text := strings.NewReplacer("DIR", r.dir, "ADDRESS", free[0], "MODULES", filepath.Dir(modules[0])).Replace(cicapConfig)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return "", nil, err
	}
	if p, err = process.Start(r.dir, "c-icap", path, "-N", "-D", "-f", config); err != nil {
		return "", nil, err
	}
	if err := p.Await(ctx, free[0]); err != nil {
		p.Stop()
		return "", nil, err
	}
	return free[0], p, nil
}

const cicapConfig = `PidFile DIR/c-icap.pid
CommandsSocket DIR/c-icap.ctl
Timeout 300
MaxKeepAliveRequests 100
KeepAliveTimeout 600
StartServers 3
MaxServers 10
MinSpareThreads 10
MaxSpareThreads 20
ThreadsPerChild 10
MaxRequestsPerChild 0
Port ADDRESS
ServerAdmin root
ServerName localhost
TmpDir DIR
MaxMemObject 131072
DebugLevel 0
ModulesDir MODULES
ServicesDir MODULES
TemplateDir /usr/share/c_icap/templates/
TemplateDefaultLanguage en
LoadMagicFile /etc/c-icap/c-icap.magic
ServerLog DIR/c-icap-server.log
AccessLog DIR/c-icap-access.log
Service echo srv_echo.so
`
