package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"icapgate/bench/dlpstub"
)

// process is a gateway that runs.
type process struct {
	*exec.Cmd
	ready string // the first line on stdout
	log   *bufio.Scanner
}

// startGateway returns when the gateway is ready.
func startGateway(t *testing.T, config string) *process {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, dir, "x.yaml", config)
	p := &process{Cmd: exec.Command(binary, "run", "--config", "x.yaml")}
	p.Dir = dir
	stdout, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := p.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(time.Minute, func() { p.Process.Kill() }) // ends every wait of the test
	t.Cleanup(func() {
		timer.Stop()
		p.Process.Kill()
		p.Wait()
	})
	p.log = bufio.NewScanner(stderr)
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() {
		t.Fatal("nothing on stdout")
	}
	p.ready = lines.Text()
	return p
}

// waitLog reads the log up to a line that contains text.
func (p *process) waitLog(t *testing.T, text string) {
	t.Helper()
	var seen []string
	for p.log.Scan() {
		if seen = append(seen, p.log.Text()); strings.Contains(p.log.Text(), text) {
			return
		}
	}
	t.Fatalf("%q is not in the log:\n%s", text, strings.Join(seen, "\n"))
}

// end reads the rest of the log and returns the exit code.
func (p *process) end() int {
	for p.log.Scan() {
	}
	p.Wait()
	return p.ProcessState.ExitCode()
}

func TestRunAndDrain(t *testing.T) {
	p := startGateway(t, `
listeners: [{address: "127.0.0.1:0"}]
pools: [{servers: ["127.0.0.1:1"]}]
admin: {address: "off"}
log: {level: info, format: text}
`)
	if !strings.HasPrefix(p.ready, "icapgate ready icap=icap://127.0.0.1:") {
		t.Errorf("first line %q", p.ready)
	}
	p.Process.Signal(syscall.SIGHUP)
	p.waitLog(t, "reloaded")
	p.Process.Signal(syscall.SIGUSR1)
	p.waitLog(t, "log files reopened")
	p.Process.Signal(syscall.SIGTERM)
	p.waitLog(t, "draining")
	if code := p.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// watchedConn tells when a request with this start comes in.
type watchedConn struct {
	net.Conn
	start []byte
	seen  chan<- struct{}
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if bytes.HasPrefix(p[:n], c.start) {
		select {
		case c.seen <- struct{}{}:
		default:
		}
	}
	return n, err
}

// A request is still served after the first signal; the second does not wait for it.
func TestSecondSignal(t *testing.T) {
	stub := dlpstub.New(dlpstub.Config{Latency: time.Hour})
	defer stub.Kill()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	arrived := make(chan struct{}, 1)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			stub.ServeConn(&watchedConn{conn, []byte("REQMOD "), arrived})
		}
	}()
	p := startGateway(t, fmt.Sprintf(`
listeners: [{address: "127.0.0.1:0"}]
pools: [{servers: ["%s"], timeouts: {response: 1h}, health: {interval: 1h}}]
admin: {address: "off"}
drain_timeout: 1h
`, ln.Addr()))
	client, err := net.Dial("tcp", strings.TrimPrefix(p.ready, "icapgate ready icap=icap://"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write(newRequest("gateway")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-arrived:
	case <-time.After(time.Minute):
		t.Fatal("the request has not come to the server")
	}
	p.Process.Signal(syscall.SIGINT)
	p.waitLog(t, "draining")
	ended := make(chan struct{})
	go func() { // one that comes too soon is not the second
		for p.Process.Signal(syscall.SIGTERM) == nil {
			select {
			case <-ended:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	p.waitLog(t, "ending without draining")
	close(ended)
	if code := p.end(); code != exitFailure {
		t.Errorf("exit code %d", code)
	}
}

// A signal that is sent to the process and to its group comes twice, and still means to drain.
func TestDoubleSignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signals := make(chan os.Signal)
		ends, exits := 0, 0
		go obey(signals, slog.New(slog.DiscardHandler), orders{reload: func() error { return nil }, end: func() { ends++ }, exit: func() { exits++ }})
		for _, step := range []struct {
			wait        time.Duration
			signal      os.Signal
			ends, exits int
		}{
			{0, syscall.SIGHUP, 0, 0},
			{0, syscall.SIGINT, 1, 0},
			{0, syscall.SIGINT, 1, 0},
			{time.Second - 1, syscall.SIGTERM, 1, 0},
			{1, syscall.SIGHUP, 1, 0},
			{0, syscall.SIGTERM, 1, 1},
		} {
			time.Sleep(step.wait)
			signals <- step.signal
			synctest.Wait()
			if ends != step.ends || exits != step.exits {
				t.Errorf("after %v: %d ends, %d exits, want %d, %d", step.signal, ends, exits, step.ends, step.exits)
			}
		}
		close(signals)
	})
}

func TestRunAddressTaken(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dir := t.TempDir()
	writeFile(t, dir, "x.yaml", fmt.Sprintf("listeners: [{address: '%s'}]\npools: [{servers: [127.0.0.1]}]\n", ln.Addr()))
	stdout, stderr, code := icapgate(t, dir, "run", "-c", "x.yaml")
	if code != exitFailure || stdout != "" || !strings.Contains(stderr, ln.Addr().String()) || !strings.Contains(stderr, "ss -ltnp") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}

// The demo loses no request when a server is killed, and uses it again when it is back.
func TestDemo(t *testing.T) {
	d, err := newDemo(addresses{"127.0.0.1:0", "127.0.0.1:0", "off"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	g, err := d.newGateway(newLogger(d.cfg.Log, io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := d.show(context.Background(), &out, g, 500*time.Millisecond); err != nil {
		t.Fatalf("%v after\n%s", err, out.String())
	}
	var steps [][3]int // dlp1, dlp2, failed
	for line := range strings.Lines(out.String()) {
		var s [3]int
		if n, _ := fmt.Sscanf(line, "    dlp1: %d dlp2: %d  failed: %d", &s[0], &s[1], &s[2]); n == 3 {
			steps = append(steps, s)
		}
	}
	if len(steps) != 3 {
		t.Fatalf("%d steps in\n%s", len(steps), out.String())
	}
	for i, s := range steps {
		if s[2] != 0 || s[1] == 0 || (s[0] == 0) != (i == 1) {
			t.Errorf("step %d: dlp1 %d, dlp2 %d, failed %d", i+1, s[0], s[1], s[2])
		}
	}
}
