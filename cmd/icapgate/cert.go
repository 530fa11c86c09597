package main

import (
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"icapgate/gateway/selfsign"
)

// certCommand makes a self-signed combined PEM, as stunnel does when it is installed.
type certCommand struct {
	Name  []string `placeholder:"NAME" help:"Host name or IP address that clients connect to; may be repeated. Default: the name of this machine, localhost, 127.0.0.1 and ::1."`
	Force bool     `help:"Overwrite FILE.pem if it exists."`
	File  string   `arg:"" name:"FILE.pem" help:"File to write: private key and certificate."`
}

// Help is shown by icapgate cert --help.
func (certCommand) Help() string {
	return `Writes an ECDSA P-256 key and a certificate for it into one file that only its owner can read. The certificate is valid for ten
years: a client trusts it because it was handed to the client, so an early end would only be an outage to come.

Examples:

    icapgate cert stunnel.pem
    icapgate cert --name gw.example.com --name 192.0.2.10 /etc/icapgate/stunnel.pem
    openssl x509 -in stunnel.pem -out trust.pem          what clients have to trust, without the key

Exit codes:

    0    the file was written
    1    it was not: it exists, or cannot be written
    2    the command line is wrong`
}

// Run is called by kong.
func (c *certCommand) Run(s streams) error {
	pem, err := selfsign.Generate(c.Name)
	if err != nil {
		return usageError{fmt.Errorf("--name: %w", err)}
	}
	pair, err := tls.X509KeyPair(pem, pem)
	if err != nil {
		return fmt.Errorf("cannot use the new certificate: %w", err)
	}
	if err := c.write(pem); err != nil {
		return err
	}
	names := pair.Leaf.DNSNames
	for _, ip := range pair.Leaf.IPAddresses {
		names = append(names, ip.String())
	}
	fmt.Fprintf(s.out, "%s: key and certificate for %s\nvalid until %s, SHA-256 fingerprint %X\n", c.File, strings.Join(names, ", "),
		pair.Leaf.NotAfter.UTC().Format(time.DateOnly), sha256.Sum256(pair.Leaf.Raw))
	return nil
}

// write leaves the whole file or none, never readable for others.
func (c *certCommand) write(pem []byte) error {
	file, err := c.create()
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s exists; --force overwrites it", c.File)
	}
	if err != nil {
		return fmt.Errorf("cannot write the certificate: %w", err)
	}
	_, err = file.Write(pem)
	err = errors.Join(err, file.Close())
	if err == nil && c.Force {
		err = os.Rename(file.Name(), c.File)
	}
	if err != nil {
		os.Remove(file.Name())
		return fmt.Errorf("cannot write the certificate: %w", err)
	}
	return nil
}

// create opens a file that did not exist before: the one that was asked for, or one beside it that is to take its place.
func (c *certCommand) create() (*os.File, error) {
	if c.Force {
		return os.CreateTemp(filepath.Dir(c.File), ".icapgate-cert-*") // mode 0600
	}
	return os.OpenFile(c.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}
