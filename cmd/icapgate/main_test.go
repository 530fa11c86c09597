package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// binary is icapgate as it was built for these tests.
var binary string

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "icapgate-test-*")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	os.Setenv("STATE_DIRECTORY", filepath.Join(dir, "state"))
	binary = filepath.Join(dir, "icapgate")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// icapgate runs a command line that ends by itself.
func icapgate(t *testing.T, dir string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, err bytes.Buffer
	cmd := exec.Command(binary, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &err
	timer := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer timer.Stop()
	if runErr := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(runErr)
	}
	return out.String(), err.String(), cmd.ProcessState.ExitCode()
}

func writeFile(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	return lines[len(lines)-1]
}

func TestUsage(t *testing.T) {
	for args, want := range map[string]string{
		"":                       "run",
		"bogus":                  "bogus",
		"run":                    "icapgate run --config FILE",
		"run --demo --config x":  "--demo",
		"run --bogus":            "--bogus",
		"check":                  "--config",
		"cert":                   "FILE.pem",
		"cert --name a..b x.pem": `"a..b"`,
		"version x":              "x",
	} {
		stdout, stderr, code := icapgate(t, t.TempDir(), strings.Fields(args)...)
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, want) || !strings.Contains(stderr, "--help") {
			t.Errorf("icapgate %s: exit code %d, stdout %q, stderr %q, want exit code 2 and %s", args, code, stdout, stderr, want)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, command := range []string{"", "run", "check", "cert", "status", "drain", "ready", "maintenance", "weight", "completion"} {
		stdout, stderr, code := icapgate(t, "", append(strings.Fields(command), "--help")...)
		if code != 0 || stderr != "" {
			t.Errorf("icapgate %s --help: exit code %d, stderr %q", command, code, stderr)
		}
		for _, want := range []string{"Examples:\n\n    icapgate ", "Exit codes:\n\n    0 "} {
			if !strings.Contains(stdout, want) {
				t.Errorf("icapgate %s --help lacks %q:\n%s", command, want, stdout)
			}
		}
	}
}

func TestVersion(t *testing.T) {
	stdout, _, code := icapgate(t, "", "version")
	if code != 0 || !strings.HasPrefix(stdout, "icapgate ") || !strings.Contains(stdout, "go1.") {
		t.Errorf("exit code %d, %q", code, stdout)
	}
}

func TestCheckGood(t *testing.T) {
	dir := t.TempDir()
	if _, stderr, code := icapgate(t, dir, "cert", "stunnel.pem"); code != 0 {
		t.Fatal(stderr)
	}
	writeFile(t, dir, "good.yaml", "listeners: [{address: ':11344', tls: {certificates: [{cert_file: stunnel.pem}]}}]\npools: [{servers: [127.0.0.1]}]\n")
	stdout, stderr, code := icapgate(t, dir, "check", "--config", "good.yaml")
	if code != 0 || stdout != "Configuration successful\n" || stderr != "" {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}

	writeFile(t, dir, "unwise.yaml", "listeners: [{address: ':1344'}]\npools: [{servers: [10.0.0.1]}]\n")
	stdout, stderr, code = icapgate(t, dir, "check", "-c", "unwise.yaml")
	if code != 0 || lastLine(stdout) != "Configuration successful" {
		t.Errorf("exit code %d, stdout %q", code, stdout)
	}
	for _, want := range []string{"warning: unwise.yaml:1: listeners[0].address: plain ICAP", "warning: unwise.yaml:2: pools[0].servers: plain ICAP"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is not in %q", want, stderr)
		}
	}
}

func TestCheckBad(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, "bad.yaml", "listeners:\n  - address: ':1344'\n    timeouts: {head: 5}\npools:\n  - balance: rr\n    servers: [127.0.0.1]\n")
	want := `bad.yaml:3: listeners[0].timeouts.head: "5" has no unit, allowed: a time such as 5s, 5ms or 5m
bad.yaml:5: pools[0].balance: unknown policy "rr", allowed: round_robin, least_inflight, random_two, peak_ewma, hash
`
	if stdout, _, code := icapgate(t, dir, "check", "--config", "bad.yaml"); code != exitFailure || stdout != want {
		t.Errorf("exit code %d, stdout %q, want %q", code, stdout, want)
	}
	if stdout, stderr, code := icapgate(t, dir, "run", "--config", "bad.yaml"); code != exitFailure || stdout != "" || stderr != want {
		t.Errorf("run: exit code %d, stdout %q, stderr %q, want %q", code, stdout, stderr, want)
	}

	writeFile(t, dir, "files.yaml", "listeners:\n  - address: ':0'\n    tls: {certificates: [{cert_file: a.pem}, {cert_file: b.pem}]}\npools: [{servers: [127.0.0.1]}]\n")
	want = `files.yaml:3: listeners[0].tls.certificates[0].cert_file: cannot open a.pem: no such file or directory
files.yaml:3: listeners[0].tls.certificates[1].cert_file: cannot open b.pem: no such file or directory
`
	if stdout, _, code := icapgate(t, dir, "check", "--config", "files.yaml"); code != exitFailure || stdout != want {
		t.Errorf("exit code %d, stdout %q, want %q", code, stdout, want)
	}

	want = "none.yaml: cannot open: no such file or directory\n"
	if stdout, _, code := icapgate(t, dir, "check", "--config", "none.yaml"); code != exitFailure || stdout != want {
		t.Errorf("exit code %d, stdout %q, want %q", code, stdout, want)
	}
}

func TestCert(t *testing.T) {
	dir := t.TempDir()
	stdout, stderr, code := icapgate(t, dir, "cert", "--name", "gw.example.com", "--name", "192.0.2.1", "a.pem")
	if code != 0 || !strings.HasPrefix(stdout, "a.pem: key and certificate for gw.example.com, 192.0.2.1\n") || !strings.Contains(stdout, "SHA-256") {
		t.Fatalf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	path := filepath.Join(dir, "a.pem")
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	first, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}

	_, stderr, code = icapgate(t, dir, "cert", "a.pem")
	if again, _ := os.ReadFile(path); code != exitFailure || !strings.Contains(stderr, "a.pem exists; --force overwrites it") || !bytes.Equal(first, again) {
		t.Errorf("second: exit code %d, stderr %q, file replaced: %v", code, stderr, !bytes.Equal(first, again))
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	_, stderr, code = icapgate(t, dir, "cert", "--force", "a.pem")
	if again, _ := os.ReadFile(path); code != 0 || bytes.Equal(first, again) {
		t.Errorf("--force: exit code %d, stderr %q, file replaced: %v", code, stderr, !bytes.Equal(first, again))
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("--force: mode %v, %v", info.Mode(), err)
	}

	_, stderr, code = icapgate(t, dir, "cert", "none/a.pem")
	if code != exitFailure || !strings.Contains(stderr, "none/a.pem: no such file or directory") {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	if names, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(names) != 1 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}
