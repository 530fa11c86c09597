package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"icapgate/bench/process"
	"icapgate/configs"
)

// need returns the path of an installed peer.
func need(t *testing.T, program string) string {
	t.Helper()
	path, ok := find(program)
	if ok {
		return path
	}
	text := program + " is not installed"
	if os.Getenv("ICAPGATE_REQUIRE_PEERS") == "1" {
		t.Fatal(text + " and ICAPGATE_REQUIRE_PEERS=1 is set")
	}
	t.Skip(text + "; ICAPGATE_REQUIRE_PEERS=1 makes this a failure")
	return ""
}

// testSetup has what a run would have found.
func testSetup(t *testing.T) setup {
	t.Helper()
	dir := t.TempDir()
	s := setup{Dir: dir, PEM: filepath.Join(dir, "combined.pem"), CPUs: 3, AccessLog: "off"}
	if _, _, err := makeCertificate(dir, s.PEM); err != nil {
		t.Fatal(err)
	}
	addresses, err := process.FreeAddresses(8)
	if err != nil {
		t.Fatal(err)
	}
	s.Secure, s.Echo, s.Plain, s.Admin = addresses[0], addresses[1], addresses[2], addresses[3]
	s.Servers, s.EchoServers = addresses[4:6], addresses[6:8]
	return s
}

// Every configuration names all doors and servers, and its own program finds no fault in it.
func TestConfigurations(t *testing.T) {
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) {
			s := testSetup(t)
			var path string
			if p.name != ours {
				path = need(t, p.name)
			}
			if p.name == "nginx" {
				var err error
				if s.Module, err = streamModule(path); err != nil {
					t.Fatal(err)
				}
			}
			file, err := p.write(s)
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			wanted := append(append([]string{s.PEM}, s.Servers...), s.EchoServers...)
			for _, d := range p.doors {
				wanted = append(wanted, (&gateway{setup: s}).address(d))
			}
			for _, w := range wanted {
				if !strings.Contains(string(text), w) {
					t.Errorf("%s is not in\n%s", w, text)
				}
			}
			switch {
			case p.name == ours:
				_, err = configs.Parse(file, text)
			case p.check != nil:
				var out []byte
				if out, err = exec.Command(path, fill(p.check, file)...).CombinedOutput(); err != nil {
					err = fmt.Errorf("%w\n%s", err, out)
				}
			}
			if err != nil {
				t.Errorf("%v\n%s", err, text)
			}
		})
	}
}

func TestVersionLine(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		if got := versionLine(text); got != want {
			t.Errorf("versionLine(%q) = %q, want %q", text, got, want)
		}
	}
	f("icapgate v1.2.3 (go1.26.8, linux/amd64)\n", "v1.2.3")
	f("HAProxy version 2.6.12-1 2026/10/17 - https://haproxy.org/\nBuilt with OpenSSL version : OpenSSL 3.0.22 25 Aug 2026\n"+
		"Running on OpenSSL version : OpenSSL 3.0.19 27 Jan 2026\nOpenSSL library supports SNI : yes\n", "2.6.12-1, OpenSSL 3.0.19")
	f("nginx version: nginx/1.22.1\nbuilt with OpenSSL 3.0.22 25 Aug 2026 (running with OpenSSL 3.0.19 27 Jan 2026)\n", "1.22.1, OpenSSL 3.0.19")
	f("nginx version: nginx/1.22.1\nbuilt with OpenSSL 3.0.22 25 Aug 2026\n", "1.22.1, OpenSSL 3.0.22")
	f("Initializing inetd mode configuration\nstunnel 5.68 on x86_64-pc-linux-gnu platform\nCompiled with OpenSSL 3.0.9 30 May 2023\n"+
		"Running  with OpenSSL 3.0.19 27 Jan 2026\n", "5.68, OpenSSL 3.0.19")
	f("hello\n", "of unknown version")
}
