package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"icapgate/bench/dlpstub"
)

// limitFiles makes the program that is launched from dir run with at most n open files, and half of them until it asks for more.
func limitFiles(t *testing.T, dir string, n int) {
	t.Helper()
	path := filepath.Join(dir, "icapgate")
	if err := os.Rename(path, path+".real"); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\nulimit -S -n %d\nulimit -H -n %d\nexec %s.real \"$@\"\n", n/2, n, path)
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
}

// metric is the value of a series, 0 if it is not there.
func (b *binary) metric(series string) float64 {
	b.t.Helper()
	_, text := b.ask("/metrics")
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, "icapgate_"+series+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
			if err != nil {
				b.t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// openFiles is how many descriptors the process has.
func (b *binary) openFiles() int {
	b.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", b.cmd.Process.Pid))
	if err != nil {
		b.t.Fatal(err)
	}
	return len(entries)
}

// connect opens a connection that says nothing.
func connect(t *testing.T, uri string) net.Conn {
	t.Helper()
	_, address, _ := strings.Cut(uri, "://")
	nc, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(2 * patience))
	return nc
}

// ended waits for the end of a connection on which nothing comes.
func ended(t *testing.T, nc net.Conn) {
	t.Helper()
	var one [1]byte
	if n, err := nc.Read(one[:]); n > 0 || err == nil || os.IsTimeout(err) {
		t.Errorf("%d bytes, %v, want the end of the connection", n, err)
	}
}

// TestOpenFiles lets clients take all descriptors that a gateway with few of them gives away.
func TestOpenFiles(t *testing.T) {
	checkLeaks(t)
	stub := startStub(t, dlpstub.Config{})
	dir := installBinary(t, fmt.Sprintf("%q", stub.address), "")
	limitFiles(t, dir, 200)
	config := filepath.Join(dir, "icapgate.yaml")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, config, strings.Replace(string(text), "name: dlp,", "name: dlp, health: {interval: 100ms}, idle: {timeout: 1s},", 1))
	b := runBinary(t, dir)
	up := fmt.Sprintf("server_up{pool=\"dlp\",server=%q}", stub.address)
	eventually(t, "ready", func() bool { code, _ := b.ask("/readyz?pool=dlp"); return code == 200 && b.metric(up) == 1 })
	var limit unix.Rlimit
	if err := unix.Prlimit(b.cmd.Process.Pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil || limit.Cur < 199 || limit.Max != 200 {
		t.Fatalf("it has a limit of %d open files, %d at most, %v", limit.Cur, limit.Max, err)
	}
	idle := b.openFiles()
	most := int(b.metric("max_connections"))
	if most < 20 || idle+2*most > 200 {
		t.Fatalf("of 200 descriptors %d are open, %d clients are allowed", idle, most)
	}

	held := []*icapClient{b.dial("icaps"), b.dial("icap")}
	works := func() {
		t.Helper()
		for _, c := range held {
			a, err := c.do(request{method: "REQMOD", body: []byte("one"), fields: "Allow: 204\r\n"})
			if err != nil || a.status != 204 {
				t.Fatalf("%s: %v, %+v, want 204", c.uri, err, a)
			}
		}
	}
	works()
	var others []*icapClient // with a session and, after their request, an idle connection to a server
	for len(others) < most-len(held) {
		c := b.dial([]string{"icap", "icaps"}[len(others)%2])
		others = append(others, c)
	}
	for _, c := range others {
		if a, err := c.do(request{method: "REQMOD", body: []byte("one"), fields: "Allow: 204\r\n"}); err != nil || a.status != 204 {
			t.Fatalf("%s: %v, %+v, want 204", c.uri, err, a)
		}
	}
	if n := b.metric(`overloaded{reason="connections"}`); n != 1 {
		t.Errorf("overloaded is %v with %d clients", n, most)
	}

	checks := b.metric(`checks_total{result="ok"}`)
	for range 3 * most { // far more than there are descriptors
		ended(t, connect(t, b.listeners["icaps"]))
		ended(t, connect(t, b.listeners["icap"]))
	}
	works()
	refused := 0.0
	for _, name := range []string{"icap", "icaps"} {
		refused += b.metric(fmt.Sprintf("refused_total{listener=%q,reason=\"connections\"}", name))
	}
	if refused != float64(6*most) {
		t.Errorf("%v connections were refused, want %d", refused, 6*most)
	}
	eventually(t, "ten more checks", func() bool { return b.metric(`checks_total{result="ok"}`) >= checks+10 })
	for series, want := range map[string]float64{
		up: 1, `checks_total{result="failed"}`: 0, `checks_total{result="skipped"}`: 0, `accept_errors_total{listener="icap"}`: 0,
		`accept_errors_total{listener="icaps"}`: 0, "panics_total": 0,
	} {
		if n := b.metric(series); n != want {
			t.Errorf("%s is %v, want %v", series, n, want)
		}
	}
	if code, text := b.ask("/readyz?pool=dlp"); code != 200 {
		t.Errorf("/readyz: %d %s", code, text)
	}
	text, _ = os.ReadFile(b.stderr)
	if n := bytes.Count(text, []byte("refused a client: raise the limit of open files")); n < 1 || n > 2*(1+int(patience/(5*time.Second))) {
		t.Errorf("%d lines about it in the log:\n%s", n, text)
	}
	if err := b.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a reload", func() bool { return b.metric(`reloads_total{result="ok"}`) == 1 })

	for _, c := range others {
		c.Close()
	}
	eventually(t, "free places", func() bool {
		return b.metric(`client_connections{listener="icap"}`)+b.metric(`client_connections{listener="icaps"}`) == 2
	})
	works()
	for range 2 {
		c := b.dial("icaps")
		held = append(held, c)
		if a, err := c.do(request{method: "REQMOD", body: []byte("one"), fields: "Allow: 204\r\n"}); err != nil || a.status != 204 {
			t.Errorf("a new client: %v, %+v, want 204", err, a)
		}
	}
	for _, c := range held {
		c.Close()
	}
	eventually(t, fmt.Sprintf("descriptors closed but for %d", idle), func() bool { return b.openFiles() <= idle+1 }) // one of ours may ask just now
}

// TestSilentClients lets clients that say nothing take all places, again and again: one that speaks gets through.
func TestSilentClients(t *testing.T) {
	checkLeaks(t)
	stub := startStub(t, dlpstub.Config{})
	dir := installBinary(t, fmt.Sprintf("%q", stub.address), "")
	limitFiles(t, dir, 200)
	b := runBinary(t, dir)
	eventually(t, "ready", func() bool { code, _ := b.ask("/readyz?pool=dlp"); return code == 200 })
	most := int(b.metric("max_connections"))
	c := b.dial("icaps")
	for range 5 {
		for range most {
			connect(t, b.listeners["icaps"])
		}
		for _, c := range []*icapClient{c, b.dial("icaps")} {
			if a, err := c.do(request{method: "REQMOD", body: []byte("one"), fields: "Allow: 204\r\n"}); err != nil || a.status != 204 {
				t.Fatalf("%v, %+v, want 204", err, a)
			}
		}
	}
	if n := b.metric(`handshakes_total{listener="icaps",result="evicted",version="none"}`); n < float64(3*most) {
		t.Errorf("%v handshakes made room, want %d and more", n, 3*most)
	}
	if n := b.openFiles(); n > 200-32 {
		t.Errorf("%d descriptors are open", n)
	}
}

// TestTooFewOpenFiles does not begin what can't work.
func TestTooFewOpenFiles(t *testing.T) {
	dir := installBinary(t, `"127.0.0.1:1344"`, "")
	limitFiles(t, dir, 40)
	d := launch(t, dir, filepath.Join(dir, "icapgate"), "run", "--config", filepath.Join(dir, "icapgate.yaml"))
	eventually(t, "its end", func() bool { return !d.running() })
	if text := d.output(); !strings.Contains(text, "LimitNOFILE") || d.cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("exit code %d:\n%s", d.cmd.ProcessState.ExitCode(), text)
	}
}
