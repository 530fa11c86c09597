package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/bench/result"
	"icapgate/bench/serve"
)

var binary string // of this command

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "icapbench")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "icapbench")
	out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput()
	code := 1
	if err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// runBinary runs the command and returns what it prints and its exit code.
func runBinary(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = &o, &e
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// serveStub serves a fake DLP server and returns its address.
func serveStub(t *testing.T, cfg dlpstub.Config) string {
	t.Helper()
	ln := mustListen(t)
	s := dlpstub.New(cfg)
	done := make(chan error)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// serveBytes answers the first bytes of every connection and closes it.
func serveBytes(t *testing.T, answer string) string {
	t.Helper()
	ln := mustListen(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			nc.Read(make([]byte, 64<<10))
			io.WriteString(nc, answer)
			nc.Close()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	return ln.Addr().String()
}

func mustListen(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func mustWriteFile(t *testing.T, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// combinedPEM writes a self-signed certificate for 127.0.0.1 and its key.
func combinedPEM(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now, NotAfter: now.Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	content := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	content = append(content, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	return mustWriteFile(t, "server.pem", content)
}

func TestExitCodes(t *testing.T) {
	file := mustWriteFile(t, "file.txt", []byte("content"))
	missing := filepath.Join(t.TempDir(), "missing", "file")
	good := "icap://" + serveStub(t, dlpstub.Config{}) + "/reqmod"
	echo := "icap://" + serveStub(t, dlpstub.Config{Mode: dlpstub.Echo}) + "/reqmod"
	full := "icap://" + serveStub(t, dlpstub.Config{Status: 503}) + "/reqmod"
	ending := "icap://" + serveBytes(t, "") + "/reqmod"
	wrong := "icap://" + serveBytes(t, "HTTP/1.1 200 OK\r\n\r\n") + "/reqmod"
	ln := mustListen(t)
	taken := ln.Addr().String()
	defer ln.Close()
	gone := mustListen(t)
	gone.Close()
	refused := "icap://" + gone.Addr().String() + "/reqmod"

	tests := []struct {
		args string
		code int
		says string // on stdout or stderr
	}{
		{"--help", exitOK, "Usage: icapbench"},
		{"send --help", exitOK, "Exit codes"},
		{"load --help", exitOK, "Exit codes"},
		{"serve --help", exitOK, "Exit codes"},
		{"", exitUsage, "send"},
		{"fly", exitUsage, "fly"},

		{"send " + file + " " + good, exitOK, "verdict: no modification (204)"},
		{"send " + file + " " + echo + " -m respmod --as squid --preview 3", exitOK, "verdict: identical echo (200)"},
		{"send " + file + " " + good + " --as zscaler --no-204 --chunk 10 -H X-A:1", exitOK, "verdict: identical echo (200)"},
		{"send " + good + " -m options", exitOK, "verdict: service (200)"},
		{"send " + file + " " + echo + " -o " + missing, exitFailure, missing},
		{"send " + missing + " " + good, exitUsage, missing},
		{"send " + file + " http://a/", exitUsage, "icap://host:port/path"},
		{"send a b " + good, exitUsage, "one FILE"},
		{"send " + file + " " + good + " --preview many", exitUsage, "none"},
		{"send " + file + " " + good + " --preview 65537", exitUsage, "65536"},
		{"send " + file + " " + good + " --chunk=-1", exitUsage, "size"},
		{"send " + file + " " + good + " --as apache", exitUsage, "zscaler"},
		{"send " + file + " " + good + " -H Preview:1", exitUsage, "framing"},
		{"send " + file + " icaps://127.0.0.1:1/ --ca " + missing, exitUsage, missing},
		{"send " + file + " " + refused, exitConnect, "refused"},
		{"send " + file + " " + strings.Replace(good, "icap:", "icaps:", 1), exitConnect, "handshake"},
		{"send " + file + " " + ending, exitNoAnswer, "closed"},
		{"send " + file + " " + wrong, exitFraming, "framing"},
		{"send " + file + " " + full, exitStatus, "503"},

		{"load " + good + " -n 20 -c 2", exitOK, "answers     204: 20"},
		{"load " + echo + " -n 20 -c 1 -m respmod -s 100KiB --new-connection-every 5", exitOK, "over 4 connections"},
		{"load " + good + " -n 20 --no-204", exitOK, "answers     200: 20"},
		{"load " + good + " -d 50ms -m options", exitOK, "answers     200"},
		{"load " + full + " -n 20", exitFailure, "20 of 20 requests failed"},
		{"load " + refused + " -n 2 -c 1", exitConnect, "no connection"},
		{"load " + good + " -c 0", exitUsage, "connection"},
		{"load " + good + " -s 1XB", exitUsage, "64KiB"},
		{"load " + good + " -n 40 --rate 4000 --arrivals poisson --warm-up 5ms --seed 7", exitOK, "poisson arrivals at 4000/s"},
		{"load " + good + " --stages 0s:500,50ms:1000", exitOK, "500/s to 1000/s in 50ms"},
		{"load " + good + " -n 20 --profile zscaler --fault half_close=50%", exitOK, "faulty      half_close"},
		{"load " + good + " -n 20 --incident-header X-Incident-ID --allow-206", exitOK, "204: 20"},
		{"load " + full + " -n 20 --fail-if errors>30", exitOK, "errors>30: ok, it is 20"},
		{"load " + full + " -n 20 --fail-if errors>10%", exitCondition, "errors>10%: FAILED, it is 100% (20 of 20)"},
		{"load " + good + " -n 20 --fail-if p99", exitUsage, "p99<50ms"},
		{"load " + good + " -n 20 --fail-if entry.page.p99>50ms", exitUsage, `the scenario has no entry "page"; it has request`},
		{"load " + good + " -n 20 --rate=-1", exitUsage, "rate"},
		{"load " + good + " -n 20 --json x --html x", exitUsage, "both write"},
		{"load " + good + " -n 20 --rate NaN", exitUsage, "bad rate NaN"},
		{"load " + good + " -n 20 --resume NaN", exitUsage, "between 0 and 1"},
		{"load " + good + " -n 20 --new-connection-every=-1", exitUsage, "negative"},
		{"load " + good + " --stages 5s", exitUsage, "30s:100"},
		{"load " + good + " --start-at tomorrow", exitUsage, "15:04:05"},
		{"load " + good + " --fault anger=1%", exitUsage, "slow_body"},
		{"load " + good + " --fault slow_body=200%", exitUsage, "slow_body"},
		{"load " + good + " -m options --fault slow_body=1%", exitUsage, "needs a request with a body"},
		{"load " + good + " --arrivals often", exitUsage, "poisson"},
		{"load " + good + " --profile apache", exitUsage, "zscaler"},
		{"load " + good + " --profile zscaler -s 10", exitUsage, "a profile has its own"},
		{"load " + good + " --scenario " + missing, exitUsage, missing},
		{"load " + good + " --metrics-address " + taken, exitUsage, taken},
		{"load icaps://127.0.0.1:1/ --tls-version 1.1", exitUsage, "1.2 or 1.3"},
		{"load " + good + " -n 1 --json " + missing, exitUsage, missing},
		{"load ftp://a/", exitUsage, "icap://host:port/path"},

		{"serve", exitUsage, "--listen"},
		{"serve --listen 127.0.0.1:0 --config x.yaml", exitUsage, "one of them"},
		{"serve --config " + missing, exitUsage, missing},
		{"serve --listen 127.0.0.1:0 --mode fast", exitUsage, "--mode: "},
		{"serve --listen 127.0.0.1:0 --fault explode", exitUsage, "explode"},
		{"serve --listen 127.0.0.1:0 --profile squid", exitUsage, "symantec"},
		{"serve --listen 127.0.0.1:0 --control " + taken, exitFailure, taken},
		{"serve --listen " + taken, exitFailure, taken},
		{"serve --listen 127.0.0.1:0 --json " + missing + "/x", exitUsage, missing},
		{"serve --listen 127.0.0.1:0 --status 99", exitUsage, "status"},
		{"serve --listen 127.0.0.1:0 --preview 65537", exitUsage, "preview"},
		{"serve --listen 127.0.0.1:0 --methods options", exitUsage, "method"},
		{"serve --listen 127.0.0.1:0 --tls-cert " + missing, exitUsage, missing},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			stdout, stderr, code := runBinary(t, strings.Fields(tt.args)...)
			if code != tt.code || !strings.Contains(stdout+stderr, tt.says) {
				t.Errorf("exit code %d, want %d and %q in\n%s%s", code, tt.code, tt.says, stdout, stderr)
			}
			if code != exitOK && stderr == "" {
				t.Error("nothing on stderr")
			}
		})
	}
}

func TestLoadJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "result.json")
	uri := "icap://" + serveStub(t, dlpstub.Config{Name: "one"}) + "/reqmod"
	if stdout, stderr, code := runBinary(t, "load", uri, "-n", "30", "-c", "3", "--json", path); code != exitOK {
		t.Fatalf("%d %s%s", code, stdout, stderr)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := result.Parse(content)
	if err != nil {
		t.Fatal(err)
	}
	if r.Requests != 30 || r.Setup.Connections != 3 || r.Servers["one"] != 30 || r.Latency.Max() == 0 {
		t.Errorf("%+v", r)
	}
}

// TestServe runs two servers with TLS in one process until a signal.
func TestServe(t *testing.T) {
	certificate := combinedPEM(t)
	cmd := exec.Command(binary, "serve", "--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--mode", "echo", "--preview", "0", "--max-connections", "9",
		"--tls-cert", certificate)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewReader(stdout)
	ready, err := lines.ReadString('\n')
	words := strings.Fields(ready)
	if err != nil || len(words) != 4 || words[0] != "icapbench" || words[1] != "ready" {
		t.Fatalf("%q, %v, %s", ready, err, stderr.String())
	}
	for _, address := range words[2:] {
		out, errs, code := runBinary(t, "send", "icaps://"+address+"/x", "-m", "options", "--ca", certificate)
		if code != exitOK || !strings.Contains(out, "X-Server: "+address) || !strings.Contains(out, "preview 0, 204 allowed, at most 9 connections") {
			t.Errorf("%d %s%s", code, out, errs)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	summary, err := io.ReadAll(lines)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v, %s", err, stderr.String())
	}
	for _, address := range words[2:] {
		if !strings.Contains(string(summary), address+": 1 OPTIONS, 0 REQMOD") {
			t.Errorf("no summary of %s in\n%s", address, summary)
		}
	}
}

// TestServeCounts runs a configured server as a process: it fails on command over HTTP, and its counters show every incident.
func TestServeCounts(t *testing.T) {
	config := mustWriteFile(t, "servers.yaml", []byte("control: 127.0.0.1:0\nservers:\n  - {listen: \"127.0.0.1:0\", name: one, match: SECRET, slots: 2}\n"))
	counters := filepath.Join(t.TempDir(), "counters.json")
	cmd := exec.Command(binary, "serve", "--config", config, "--preview", "1024", "--json", counters)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewReader(stdout)
	ready, err := lines.ReadString('\n')
	words := strings.Fields(ready)
	if err != nil || len(words) != 4 || !strings.HasPrefix(words[3], "control=") {
		t.Fatalf("%q, %v, %s", ready, err, stderr.String())
	}
	uri, control := "icap://"+words[2]+"/reqmod", "http://"+strings.TrimPrefix(words[3], "control=")
	file := mustWriteFile(t, "file.txt", []byte("a SECRET"))
	send := func(id string, want int, says string) {
		t.Helper()
		if out, errs, code := runBinary(t, "send", file, uri, "-H", "X-Incident-ID:"+id); code != want || !strings.Contains(out, says) {
			t.Errorf("%s: %d %s%s", id, code, out, errs)
		}
	}
	send("run-0", exitOK, "HTTP 403")
	r, err := http.Post(control+"/fault?fault=status:100%25:503&count=1", "", nil)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatal(r, err)
	}
	r.Body.Close()
	send("run-1", exitStatus, "503")
	send("run-1", exitOK, "HTTP 403")
	r, err = http.Get(control + "/stats")
	if err != nil {
		t.Fatal(err)
	}
	live, err := serve.ReadStats(r.Body)
	r.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	http.DefaultClient.CloseIdleConnections()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	summary, err := io.ReadAll(lines)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v, %s", err, stderr.String())
	}
	if !strings.Contains(string(summary), "run run: 2 incidents in 2 requests, highest 1, 0 missing below it, 0 more than once; 0 requests cut short, 1 refused") {
		t.Errorf("%s", summary)
	}
	f, err := os.Open(counters)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	last, err := serve.ReadStats(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*serve.Stats{live, last} {
		if len(s.Runs) != 1 || len(s.Runs[0].Missing(2))+len(s.Runs[0].Repeated()) != 0 || s.Servers[0].Blocked != 2 || s.Servers[0].Faults["status"] != 1 {
			t.Errorf("%+v", s)
		}
	}
}

func TestSize(t *testing.T) {
	f := func(text string, want int64) {
		t.Helper()
		var s size
		if err := s.UnmarshalText([]byte(text)); err != nil || int64(s) != want {
			t.Errorf("%q: %d, %v", text, s, err)
		}
	}
	f("0", 0)
	f("512", 512)
	f("512B", 512)
	f("64KiB", 64<<10)
	f("1.5MiB", 3<<19)
	f("10MB", 10e6)
	f("5 GiB", 5<<30)
	for _, bad := range []string{"", "-1", "KiB", "1TB", "1e30", "NaN", "x"} {
		var s size
		if err := s.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is %d", bad, s)
		}
	}
}
