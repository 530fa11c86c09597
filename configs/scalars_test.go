package configs

import (
	"encoding"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"
)

func TestDuration(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "5s": 5 * time.Second, "250ms": 250 * time.Millisecond, "1m30s": 90 * time.Second,
		"1h": time.Hour, "1.5h": 90 * time.Minute, "90m": 90 * time.Minute, "1h0m5s": time.Hour + 5*time.Second,
	} {
		var d Duration
		if err := d.UnmarshalText([]byte(in)); err != nil || time.Duration(d) != want {
			t.Errorf("%s: %v, %v", in, time.Duration(d), err)
		}
		roundTrip(t, d, new(Duration))
	}
	for in, want := range map[string]string{
		"5": "no unit", "1.5": "no unit", "-5s": "negative", "": "not a time", "5 s": "not a time", "5d": "not a time", "s": "not a time",
		"1e3s": "not a time", strings.Repeat("9", 1000) + "s": "not a time",
	} {
		var d Duration
		if err := d.UnmarshalText([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20s: %v, want %s", in, err, want)
		}
	}
	for in, want := range map[Duration]string{
		seconds(300): "5m", seconds(3600): "1h", seconds(3660): "1h1m", seconds(600): "10m", seconds(36000): "10h", seconds(3605): "1h0m5s", 0: "0s",
	} {
		if got := in.String(); got != want {
			t.Errorf("%v is written as %s, want %s", time.Duration(in), got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "512": 512, "64KiB": 64 << 10, "1MiB": 1 << 20, "2GiB": 2 << 30, "1025KiB": 1025 << 10, "0KiB": 0,
		"9223372036854775807": 1<<63 - 1, "8589934591GiB": 8589934591 << 30,
	} {
		var s Size
		if err := s.UnmarshalText([]byte(in)); err != nil || int64(s) != want {
			t.Errorf("%s: %d, %v", in, s, err)
		}
		roundTrip(t, s, new(Size))
	}
	for in, want := range map[string]string{
		"": "not a size", "KiB": "not a size", "1KB": "not a size", "1M": "not a size", "1kib": "not a size", "1 KiB": "not a size",
		"-1": "not a size", "+1": "not a size", "1.5MiB": "not a size", "0x10": "not a size", "1KiBKiB": "not a size",
		"9223372036854775808": "too large", "8589934592GiB": "too large", "99999999999999999999KiB": "too large",
	} {
		var s Size
		if err := s.UnmarshalText([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %d, %v, want %s", in, s, err, want)
		}
	}
}

func TestPrefix(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.0/24": "192.0.2.0/24", "2001:db8::/32": "2001:db8::/32", "0.0.0.0/0": "0.0.0.0/0",
		"192.0.2.1": "192.0.2.1/32", "192.0.2.1/32": "192.0.2.1/32", "2001:db8::1": "2001:db8::1/128",
		"::ffff:192.0.2.1": "192.0.2.1/32", "::ffff:192.0.2.0/120": "192.0.2.0/24", "::/0": "::/0",
	} {
		var p Prefix
		if err := p.UnmarshalText([]byte(in)); err != nil || netip.Prefix(p).String() != want {
			t.Errorf("%s: %v, %v", in, netip.Prefix(p), err)
		}
		roundTrip(t, p, new(Prefix))
	}
	for in, want := range map[string]string{
		"192.0.2.1/24": "192.0.2.0/24", "2001:db8::1/32": "2001:db8::/32", "localhost": "no address range", "": "no address range",
		"192.0.2.0/33": "no address range", "fe80::1%lo": "no address range", "::ffff:0:0/90": "mixes", "192.0.2": "no address range",
	} {
		var p Prefix
		if err := p.UnmarshalText([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v, want %s", in, netip.Prefix(p), err, want)
		}
	}
}

// roundTrip writes a value and reads it back.
func roundTrip[T interface {
	comparable
	encoding.TextMarshaler
}, P interface {
	*T
	encoding.TextUnmarshaler
}](t *testing.T, in T, out P) {
	t.Helper()
	text, err := in.MarshalText()
	if err == nil {
		err = out.UnmarshalText(text)
	}
	if err != nil || *out != in {
		t.Errorf("%v is written as %s and read back as %v: %v", in, text, *out, err)
	}
}

// A configuration that is written out says the same when it is read.
func TestMarshal(t *testing.T) {
	c, err := Load("icapgate.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text, err := yaml.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"max_chunk: 1MiB", "idle: 5m", "- address: 10.2.1.101:1344"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
}
