package configs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"icapgate/gateway/selfsign"
)

func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, mode os.FileMode, data []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), data, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil { // whatever the umask is
			t.Fatal(err)
		}
	}
	pem, err := selfsign.Generate([]string{"gw.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	other, err := selfsign.Generate([]string{"other.example.com"})
	if err != nil {
		t.Fatal(err)
	}
	split := bytes.Index(pem, []byte("-----BEGIN CERTIFICATE"))
	write("good.pem", 0o600, pem)
	write("open.pem", 0o644, pem)
	write("key.pem", 0o600, pem[:split])
	write("cert.pem", 0o644, pem[split:])
	write("other.pem", 0o600, other)
	write("text.pem", 0o600, []byte("hello"))
	write("large.pem", 0o600, make([]byte, maxPEM+1))
	write("empty", 0o600, nil)

	now := time.Now()
	tests := []struct {
		name        string
		certificate string // of the listener
		rest        string // further lines; those that are indented belong to the pool
		now         time.Time
		fault       string
		warning     string
	}{
		{"combined", "cert_file: good.pem", "", now, "", ""},
		{"two files", "cert_file: cert.pem, key_file: key.pem", "", now, "", ""},
		{"missing", "cert_file: none.pem", "", now, "x.yaml:2: listeners[0].tls.certificates[0].cert_file: cannot open DIR/none.pem: no such file or directory", ""},
		{"missing key", "cert_file: cert.pem, key_file: none.pem", "", now, "key_file: cannot open DIR/none.pem: no such file", ""},
		{"key not in it", "cert_file: cert.pem", "", now, "cannot be used", ""},
		{"other key", "cert_file: good.pem, key_file: other.pem", "", now, "private key does not match public key", ""},
		{"no PEM", "cert_file: text.pem", "", now, "failed to find any PEM data", ""},
		{"folder", "cert_file: .", "", now, "cannot read DIR: is a directory", ""},
		{"large", "cert_file: large.pem", "", now, "DIR/large.pem is larger than 4MiB", ""},
		{"expired", "cert_file: good.pem", "", now.AddDate(11, 0, 0), "", `"gw.example.com" expired on 20`},
		{"soon", "cert_file: good.pem", "", now.AddDate(10, 0, -20), "", "expires soon, on 20"},
		{"not yet", "cert_file: good.pem", "", now.AddDate(0, 0, -1), "", "is not valid before 20"},
		{"readable", "cert_file: open.pem", "", now, "", "key_file: everybody on this machine can read the private key in DIR/open.pem; better chmod o= DIR/open.pem"},
		{"ca", "cert_file: good.pem", "    tls: {ca_file: cert.pem}", now, "", ""},
		{"ca without", "cert_file: good.pem", "    tls: {ca_file: key.pem}", now, "pools[0].tls.ca_file: there is no certificate in DIR/key.pem", ""},
		{"ca missing", "cert_file: good.pem", "    tls: {ca_file: none.pem}", now, "pools[0].tls.ca_file: cannot open", ""},
		{"client", "cert_file: good.pem", "    tls: {cert_file: other.pem}", now, "", ""},
		{"client without key", "cert_file: good.pem", "    tls: {cert_file: cert.pem}", now, "x.yaml:5: pools[0].tls.cert_file: DIR/cert.pem with the key in", ""},
		{"probe", "cert_file: good.pem", "    health: {probe: {path: /a, body_file: text.pem, expect: {body: blocked}}}", now, "", ""},
		{"probe missing", "cert_file: good.pem", "    health: {probe: {path: /a, body_file: none, expect: {status: 200}}}", now, "x.yaml:5: pools[0].health.probe.body_file: cannot open DIR/none: no such file", ""},
		{"probe folder", "cert_file: good.pem", "    health: {probe: {path: /a, body_file: ., expect: {status: 200}}}", now, "body_file: cannot read DIR: is a directory", ""},
		{"probe empty", "cert_file: good.pem", "    health: {probe: {path: /a, body_file: empty, expect: {status: 200}}}", now, "body_file: DIR/empty is empty, needed: content", ""},
		{"probe large", "cert_file: good.pem", "    health: {probe: {path: /a, body_file: large.pem, expect: {status: 200}}}", now, "body_file: DIR/large.pem is larger than 1MiB", ""},
		{"probe handed back", "cert_file: good.pem", "    health: {probe: {path: /a, body_file: text.pem, expect: {body: hell}}}", now, "", "body_file: expect.body matches the probe's own content"},
		{"state", "cert_file: good.pem", "state_dir: a/b/c", now, "", ""},
		{"state is a file", "cert_file: good.pem", "state_dir: good.pem", now, "state_dir: cannot use DIR/good.pem: DIR/good.pem is not a folder", ""},
		{"state in a file", "cert_file: good.pem", "state_dir: good.pem/a", now, "state_dir: cannot use DIR/good.pem/a: not a directory", ""},
		{"access log", "cert_file: good.pem", "access_log: {output: ./log}", now, "", ""},
		{"access log nowhere", "cert_file: good.pem", "access_log: {output: none/log}", now, "access_log.output: there is no place for DIR/none/log: DIR/none: no such file", ""},
		{"access log folder", "cert_file: good.pem", "access_log: {output: ../}", now, "is a folder, needed: a file", ""},
		{"admin socket", "cert_file: good.pem", "admin: {address: 'unix:good.pem/s'}", now, "admin.address: there is no place for DIR/good.pem/s: DIR/good.pem is not a folder", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("STATE_DIRECTORY", dir)
			text := fmt.Sprintf("listeners:\n  - {address: ':0', tls: {certificates: [{%s}]}}\npools:\n  - servers: [127.0.0.1]\n%s\n", tt.certificate, tt.rest)
			c, err := Parse(filepath.Join(dir, "x.yaml"), []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			faults, warnings := c.CheckFiles(tt.now)
			for _, got := range []struct {
				faults Faults
				want   string
			}{{faults, tt.fault}, {warnings, tt.warning}} {
				want := strings.ReplaceAll(got.want, "DIR", dir)
				if (want == "") != (len(got.faults) == 0) || !strings.Contains(got.faults.Error(), want) {
					t.Errorf("got %v, want %q", got.faults, want)
				}
			}
		})
	}
}
