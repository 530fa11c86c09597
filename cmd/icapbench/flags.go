package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"icapgate/bench"
)

// size is a number of bytes, such as 512, 64KiB, 10MB.
type size int64

var units = []struct {
	suffix string
	bytes  float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"B", 1}, {"", 1},
}

func (s *size) UnmarshalText(text []byte) error {
	for _, u := range units {
		number, ok := strings.CutSuffix(string(text), u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if err != nil || n < 0 || n*u.bytes > math.MaxInt64/2 || math.IsNaN(n) {
			break
		}
		*s = size(n * u.bytes)
		return nil
	}
	return fmt.Errorf("bad size %q: want a number of bytes such as 512, 64KiB, 10MB", text)
}

// preview is a number of bytes or none; the zero value is "not chosen".
type preview struct {
	chosen bool
	bytes  int64 // -1: none
}

func (p *preview) UnmarshalText(text []byte) error {
	if string(text) == "none" {
		*p = preview{true, -1}
		return nil
	}
	n, err := strconv.ParseUint(string(text), 10, 31)
	if err != nil {
		return fmt.Errorf("bad preview %q: want a number of bytes or none", text)
	}
	*p = preview{true, int64(n)}
	return nil
}

// or returns the chosen preview, otherwise def.
func (p preview) or(def int64) int64 {
	if p.chosen {
		return p.bytes
	}
	return def
}

// tlsFlags are those of an icaps:// target.
type tlsFlags struct {
	Insecure   bool   `help:"Do not verify the certificate." group:"TLS"`
	CA         string `name:"ca" placeholder:"FILE" help:"PEM file with the CA, or the self-signed certificate, to trust in place of the system's." group:"TLS"`
	ServerName string `placeholder:"NAME" help:"Name to verify and to send as SNI, in place of the host of the URI." group:"TLS"`
	Cert       string `placeholder:"FILE" help:"Client certificate and key, one combined PEM." group:"TLS"`
}

func (f *tlsFlags) options() bench.TLSOptions {
	return bench.TLSOptions{Insecure: f.Insecure, CAFile: f.CA, ServerName: f.ServerName, CertFile: f.Cert}
}
