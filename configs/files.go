package configs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	maxPEM     = 4 << 20             // bytes of a certificate or key file; the bundles of CAs have 200 KB
	expirySoon = 30 * 24 * time.Hour // time enough to get a new certificate
)

// CheckFiles looks at the files that the configuration names: faults are what keeps the gateway from starting, warnings what
// is unwise. now decides which certificates have expired.
func (c *Config) CheckFiles(now time.Time) (faults, warnings Faults) {
	f := &files{
		now:      now,
		faults:   findings{source: c.source},
		warnings: findings{source: c.source},
	}
	for i := range c.Listeners {
		if t := c.Listeners[i].TLS; t != nil {
			for j, pair := range t.Certificates {
				key := fmt.Sprintf("listeners[%d].tls.certificates[%d]", i, j)
				f.keyPair(key+".cert_file", key+".key_file", pair)
			}
		}
	}
	for i := range c.Pools {
		if p := c.Pools[i].Health.Probe; p != nil && p.BodyFile != "" {
			f.content(fmt.Sprintf("pools[%d].health.probe.body_file", i), p)
		}
		t := c.Pools[i].TLS
		if t == nil {
			continue
		}
		if t.CAFile != "" {
			f.authorities(fmt.Sprintf("pools[%d].tls.ca_file", i), t.CAFile)
		}
		if t.CertFile != "" {
			key := fmt.Sprintf("pools[%d].tls.cert_file", i)
			f.keyPair(key, key, Certificate{t.CertFile, t.CertFile})
		}
	}
	if c.StateDir == "" {
		f.warnings.add("state_dir", "is not set, and neither $STATE_DIRECTORY nor $HOME says where it could be")
	} else {
		f.stateDir("state_dir", c.StateDir)
	}
	if strings.Contains(c.AccessLog.Output, "/") {
		f.parent("access_log.output", c.AccessLog.Output)
	}
	if path, ok := strings.CutPrefix(c.Admin.Address, "unix:"); ok {
		f.parent("admin.address", path)
	}
	f.faults.faults.sort()
	f.warnings.faults.sort()
	return f.faults.faults, f.warnings.faults
}

type files struct {
	now      time.Time
	faults   findings
	warnings findings
}

// keyPair checks a certificate chain and its key, which may be in one file.
func (f *files) keyPair(certKey, keyKey string, c Certificate) {
	certPEM, ok := f.read(certKey, c.CertFile)
	if !ok {
		return
	}
	keyPEM := certPEM
	if c.KeyFile != c.CertFile {
		if keyPEM, ok = f.read(keyKey, c.KeyFile); !ok {
			return
		}
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		f.faults.add(certKey, "%s with the key in %s cannot be used: %s",
			c.CertFile, c.KeyFile, strings.TrimPrefix(err.Error(), "tls: "))
		return
	}
	f.dates(certKey, c.CertFile, pair)

	if info, err := os.Stat(c.KeyFile); err == nil && info.Mode().Perm()&0o004 != 0 {
		f.warnings.add(keyKey, "everybody on this machine can read the private key in %s; better chmod o= %[1]s", c.KeyFile)
	}
}

// dates looks at each certificate of the chain, since clients do.
func (f *files) dates(key, name string, pair tls.Certificate) {
	for _, der := range pair.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			f.faults.add(key, "%s: %v", name, err)
			return
		}
		until := cert.NotAfter.UTC().Format(time.DateOnly)
		switch {
		case f.now.After(cert.NotAfter):
			f.warnings.add(key, "%s: the certificate of %s expired on %s", name, quote(cert.Subject.CommonName), until)
		case f.now.Add(expirySoon).After(cert.NotAfter):
			f.warnings.add(key, "%s: the certificate of %s expires soon, on %s", name, quote(cert.Subject.CommonName), until)
		case f.now.Before(cert.NotBefore):
			f.warnings.add(key, "%s: the certificate of %s is not valid before %s", name, quote(cert.Subject.CommonName),
				cert.NotBefore.UTC().Format(time.DateTime))
		}
	}
}

func (f *files) authorities(key, name string) {
	if pem, ok := f.read(key, name); ok && !x509.NewCertPool().AppendCertsFromPEM(pem) {
		f.faults.add(key, "there is no certificate in %s, needed: those of the CAs, as PEM", name)
	}
}

// Content is what the probe sends, be it in the configuration or in a file.
func (p *Probe) Content() ([]byte, error) {
	if p.BodyFile == "" {
		return []byte(p.Body), nil
	}
	file, err := os.Open(p.BodyFile)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %s", p.BodyFile, reason(err))
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxProbe+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot read %s: %s", p.BodyFile, reason(err))
	case len(data) > maxProbe:
		return nil, fmt.Errorf("%s is larger than %v", p.BodyFile, Size(maxProbe))
	case len(data) == 0:
		return nil, fmt.Errorf("%s is empty, needed: content that the servers have to judge as expected", p.BodyFile)
	}
	return data, nil
}

func (f *files) content(key string, p *Probe) {
	data, err := p.Content()
	switch {
	case err != nil:
		f.faults.add(key, "%v", err)
	case p.handsBack(data):
		f.warnings.add(key, "%s", handedBack)
	}
}

// stateDir is made when it is first needed: it has to be a folder or something that a folder can be made in.
func (f *files) stateDir(key, name string) {
	for dir := name; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
			continue
		}
		switch {
		case err != nil:
			f.faults.add(key, "cannot use %s: %s", name, reason(err))
		case !info.IsDir():
			f.faults.add(key, "cannot use %s: %s is not a folder", name, dir)
		}
		return
	}
}

// parent checks that a file can be made where it is wanted.
func (f *files) parent(key, name string) {
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		f.faults.add(key, "%s is a folder, needed: a file", name)
		return
	}
	if info, err := os.Stat(filepath.Dir(name)); err != nil {
		f.faults.add(key, "there is no place for %s: %s: %s", name, filepath.Dir(name), reason(err))
	} else if !info.IsDir() {
		f.faults.add(key, "there is no place for %s: %s is not a folder", name, filepath.Dir(name))
	}
}

func (f *files) read(key, name string) ([]byte, bool) {
	file, err := os.Open(name)
	if err != nil {
		f.faults.add(key, "cannot open %s: %s", name, reason(err))
		return nil, false
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxPEM+1))
	switch {
	case err != nil:
		f.faults.add(key, "cannot read %s: %s", name, reason(err))
	case len(data) > maxPEM:
		f.faults.add(key, "%s is larger than %v", name, Size(maxPEM))
	default:
		return data, true
	}
	return nil, false
}

// reason is an error without the file name that the message has already.
func reason(err error) string {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err.Error()
	}
	return err.Error()
}
