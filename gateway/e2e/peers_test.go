package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for what must come; it is never what a test measures.
const patience = 30 * time.Second

// need returns the path of a program that the test uses. Debian keeps daemons in /usr/sbin, which is not in every user's PATH.
func need(t testing.TB, program, debianPackage string) string {
	t.Helper()
	for _, name := range []string{program, "/usr/sbin/" + program} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	missing(t, program, debianPackage)
	return ""
}

// needModule is need for a service of c-icap.
func needModule(t testing.TB, module, debianPackage string) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(cicapModules(t), module)); err != nil {
		missing(t, module, debianPackage)
	}
}

// missing ends a test that can't do without something.
func missing(t testing.TB, what, debianPackage string) {
	t.Helper()
	text := fmt.Sprintf("%s is not installed (Debian package %s)", what, debianPackage)
	if os.Getenv("ICAPGATE_REQUIRE_PEERS") == "1" {
		t.Fatal(text + " and ICAPGATE_REQUIRE_PEERS=1 is set")
	}
	t.Skip(text + "; ICAPGATE_REQUIRE_PEERS=1 makes this a failure")
}

// eventually waits for a condition that another goroutine or process brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// daemon is a program that runs beside the test. It has a process group of its own, which ends with the test.
type daemon struct {
	name           string
	cmd            *exec.Cmd
	stdout, stderr string // files with what it has printed
	ended          chan struct{}
	result         error          // valid when ended is closed
	guard          io.WriteCloser // see launch
}

// launch starts a program. Should this process die without a clean-up (a panic, go test's own timeout), a guard ends the
// program's group: it is a shell that waits for a line from us and acts when it gets the end of the pipe instead.
func launch(t testing.TB, dir, path string, args ...string) *daemon {
	t.Helper()
	d := &daemon{
		name: filepath.Base(path), cmd: exec.Command(path, args...), ended: make(chan struct{}),
		stdout: filepath.Join(dir, "stdout"), stderr: filepath.Join(dir, "stderr"),
	}
	for file, to := range map[string]*io.Writer{d.stdout: &d.cmd.Stdout, d.stderr: &d.cmd.Stderr} {
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		*to = f
	}
	d.cmd.Dir = dir
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		t.Fatalf("cannot start %s: %v", d.name, err)
	}
	go func() {
		d.result = d.cmd.Wait()
		close(d.ended)
	}()
	const script = `read -r _ || { kill -TERM "-$1"; sleep 5; kill -KILL "-$1"; } 2>/dev/null`
	guard := exec.Command("/bin/sh", "-c", script, "guard", strconv.Itoa(d.cmd.Process.Pid))
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	d.guard, err = guard.StdinPipe()
	if err == nil {
		err = guard.Start()
	}
	if err != nil {
		d.stop()
		t.Fatalf("cannot start the guard of %s: %v", d.name, err)
	}
	t.Cleanup(func() {
		d.stop()
		_, _ = io.WriteString(d.guard, "done\n")
		_ = guard.Wait()
	})
	return d
}

// running says whether the program has not ended by itself.
func (d *daemon) running() bool {
	select {
	case <-d.ended:
		return false
	default:
		return true
	}
}

// stop asks the program to end, so that it can remove what it shares with the system, and then ends what is left of its group.
func (d *daemon) stop() {
	if d.running() {
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-d.ended:
		case <-time.After(10 * time.Second):
		}
	}
	_ = syscall.Kill(-d.cmd.Process.Pid, syscall.SIGKILL)
	<-d.ended
}

// output returns what the program has printed.
func (d *daemon) output() string {
	out, _ := os.ReadFile(d.stdout)
	log, _ := os.ReadFile(d.stderr)
	return string(out) + string(log)
}

// startDaemon runs a program that listens. configure gets the program's folder and its address, writes what the program needs and
// returns its arguments; serves says whether it accepts work. The port is free when it is chosen, which does not keep others from
// taking it, so a program that ends at once gets another one.
func startDaemon(t testing.TB, path string, configure func(dir, address string) []string, serves func(address string) error) (d *daemon, dir, address string) {
	t.Helper()
	for range 5 {
		dir, address = openDir(t), freeAddress(t)
		d = launch(t, dir, path, configure(dir, address)...)
		err := errors.New("it has ended")
		for deadline := time.Now().Add(patience); d.running() && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if err = serves(address); err == nil {
				return d, dir, address
			}
		}
		if d.running() {
			t.Fatalf("%s does not serve %s: %v\n%s", d.name, address, err, d.output())
		}
		t.Logf("%s has ended at once on %s: %v\n%s", d.name, address, d.result, d.output())
	}
	t.Fatalf("%s does not start", d.name)
	return nil, "", ""
}

// freeAddress returns a loopback address that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// openDir makes a folder that every user may write to: started by root, c-icap and Squid go on as users of their own.
func openDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "icapgate-e2e-")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func writeFile(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// accepts says whether somebody listens on the address.
func accepts(address string) error {
	nc, err := net.DialTimeout("tcp", address, time.Second)
	if err == nil {
		nc.Close()
	}
	return err
}

// run runs a program to its end and returns what it printed.
func run(t testing.TB, env []string, path string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", path, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// cicap is a c-icap server with the service "echo".
type cicap struct {
	*daemon
	address string
	dir     string
}

// startCICAP runs c-icap with the values of Debian's /etc/c-icap/c-icap.conf; only files and the port are its own. more is further
// configuration, which wins.
func startCICAP(t testing.TB, more string) *cicap {
	t.Helper()
	path := need(t, "c-icap", "c-icap")
	d, dir, address := startDaemon(t, path, func(dir, address string) []string {
		conf := `PidFile DIR/c-icap.pid
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
USER
ServerAdmin you@your.address
ServerName YourServerName
TmpDir DIR
MaxMemObject 131072
DebugLevel 1
Pipelining on
SupportBuggyClients off
ModulesDir MODULES
ServicesDir MODULES
TemplateDir /usr/share/c_icap/templates/
TemplateDefaultLanguage en
LoadMagicFile /etc/c-icap/c-icap.magic
ServerLog DIR/server.log
AccessLog DIR/access.log
Service echo srv_echo.so
`
		asUser := ""
		if u, err := user.Lookup("c-icap"); err == nil && os.Getuid() == 0 {
			asUser = "User " + u.Username + "\nGroup c-icap"
		}
		conf = strings.NewReplacer("DIR", dir, "ADDRESS", address, "USER", asUser, "MODULES", cicapModules(t)).Replace(conf)
		return []string{"-N", "-D", "-f", writeFile(t, filepath.Join(dir, "c-icap.conf"), conf+more)}
	}, func(address string) error {
		nc, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return err
		}
		c := newClient(t, nc, "icap://"+address+"/echo")
		defer c.Close()
		_, err = c.do(request{method: "OPTIONS"})
		return err
	})
	return &cicap{d, address, dir}
}

// cicapModules finds the folder of c-icap's services, which has the machine's architecture in its name.
func cicapModules(t testing.TB) string {
	t.Helper()
	for _, pattern := range []string{"/usr/lib/*/c_icap/srv_echo.so", "/usr/lib*/c_icap/srv_echo.so", "/usr/local/lib/c_icap/srv_echo.so"} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return filepath.Dir(found[0])
		}
	}
	t.Fatal("c-icap is there, its srv_echo.so is not")
	return ""
}

// served counts the requests of a method in the server's own access log.
func (c *cicap) served(t testing.TB, method string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, "access.log"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(text, []byte(" "+method+" "))
}

// eventuallyServed waits until the log has so many requests of a method; a line is written after its answer.
func (c *cicap) eventuallyServed(t testing.TB, method string, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d %s in the log of %s", want, method, c.address), func() bool { return c.served(t, method) == want })
}

// startStunnel runs stunnel with one service; conf is its configuration but for the address to accept on.
func startStunnel(t testing.TB, conf string) (address string) {
	t.Helper()
	path := need(t, "stunnel", "stunnel4")
	_, _, address = startDaemon(t, path, func(dir, address string) []string {
		text := "foreground = yes\npid =\nsyslog = no\ndebug = notice\n[icap]\naccept = " + address + "\n" + conf
		return []string{writeFile(t, filepath.Join(dir, "stunnel.conf"), text)}
	}, accepts)
	return address
}
