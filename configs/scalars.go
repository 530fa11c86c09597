package configs

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration written as 5s, 250ms, 1m30s. A bare number is refused, since it hides its unit; 0 is the
// exception.
type Duration time.Duration

// UnmarshalText reads 5s, 250ms, 1m30s.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	switch {
	case err == nil && v >= 0:
		*d = Duration(v)
		return nil
	case err == nil:
		return fmt.Errorf("%s is negative, allowed: a time such as 5s", quote(string(text)))
	}
	if _, err := strconv.ParseFloat(string(text), 64); err == nil {
		return fmt.Errorf("%s has no unit, allowed: a time such as %[2]ss, %[2]sms or %[2]sm", quote(string(text)), text)
	}
	return fmt.Errorf("%s is not a time, allowed: a number and a unit (ms, s, m, h) such as 5s, 250ms, 1m30s", quote(string(text)))
}

// MarshalText writes what UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String is the time without the zero units of time.Duration: 5m, not 5m0s.
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Size is a number of bytes written as 512, 64KiB, 1MiB, 2GiB. KB and MB are refused: they mean 1000 to some and 1024 to
// others.
type Size int64

var sizeUnits = []struct {
	name  string
	bytes int64
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// UnmarshalText reads 512, 64KiB, 1MiB, 2GiB.
func (s *Size) UnmarshalText(text []byte) error {
	number, unit := string(text), int64(1)
	for _, u := range sizeUnits {
		if n, ok := strings.CutSuffix(number, u.name); ok {
			number, unit = n, u.bytes
			break
		}
	}
	n, err := strconv.ParseUint(number, 10, 63)
	if errors.Is(err, strconv.ErrRange) || int64(n) > math.MaxInt64/unit {
		return fmt.Errorf("%s is too large for a size", quote(string(text)))
	}
	if err != nil {
		return fmt.Errorf("%s is not a size, allowed: whole bytes, or a whole number of KiB, MiB or GiB (powers of 1024) such as 64KiB",
			quote(string(text)))
	}
	*s = Size(int64(n) * unit)
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String is the size in the largest unit that needs no fraction.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if s != 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// Prefix is a CIDR range; a single address is one too.
type Prefix netip.Prefix

// UnmarshalText reads 192.0.2.0/24, 2001:db8::/32, 192.0.2.1.
func (p *Prefix) UnmarshalText(text []byte) error {
	prefix, err := netip.ParsePrefix(string(text))
	if err != nil {
		var addr netip.Addr
		if addr, err = netip.ParseAddr(string(text)); err == nil && addr.Zone() == "" {
			addr = addr.Unmap()
			*p = Prefix(netip.PrefixFrom(addr, addr.BitLen()))
			return nil
		}
		return fmt.Errorf("%s is no address range, allowed: a range such as 192.0.2.0/24 or 2001:db8::/32, or one address", quote(string(text)))
	}
	if prefix.Addr().Is4In6() {
		if prefix.Bits() < 96 {
			return fmt.Errorf("%s mixes IPv4 and IPv6, allowed: a range such as 192.0.2.0/24 or 2001:db8::/32", quote(string(text)))
		}
		prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
	}
	if prefix != prefix.Masked() {
		return fmt.Errorf("%s has bits set behind its length, allowed: %s, or %s for the one address",
			quote(string(text)), prefix.Masked(), prefix.Addr())
	}
	*p = Prefix(prefix)
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (p Prefix) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// String is the range as CIDR; a single address stands alone.
func (p Prefix) String() string {
	prefix := netip.Prefix(p)
	if prefix.IsSingleIP() {
		return prefix.Addr().String()
	}
	return prefix.String()
}

// Share is the number of gateways that share the servers' caps: a number, or dns: and a host name that has the address of each of them.
type Share string

// Name is the host name whose addresses are counted, "": there is none.
func (s Share) Name() string {
	name, ok := strings.CutPrefix(string(s), sharePrefix)
	if !ok {
		return ""
	}
	return name
}

// Count is the number, 0 if a name has to be asked.
func (s Share) Count() int {
	n, err := strconv.Atoi(string(s))
	if err != nil {
		return 0
	}
	return n
}

const (
	sharePrefix = "dns:"
	srvPrefix   = "srv:"
)

// SRV is the name of the SRV records that tell the servers, "": the address is that of a host.
func (s *Server) SRV() string {
	name, ok := strings.CutPrefix(s.Address, srvPrefix)
	if !ok {
		return ""
	}
	return name
}

// UnmarshalText reads the short form of a server, its address alone.
func (s *Server) UnmarshalText(text []byte) error {
	s.Address = string(text)
	return nil
}
