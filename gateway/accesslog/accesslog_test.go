package accesslog

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func record() *Record {
	return &Record{
		Time: time.Date(2026, 11, 21, 20, 58, 1, 23_456_000, time.UTC), ID: ID{Start: 0x1122334455667788, Loop: 1, Number: 42},
		Client: netip.MustParseAddrPort("192.0.2.7:1234"), Listener: "icaps", TLS: "1.3", Method: "REQMOD", Path: []byte("/reqmod?a=b"),
		Service: "/reqmod", Pool: "dlp", Server: "10.0.0.1:1344", Status: 204, Attempts: 2, Failure: "connect", In: 1024, Out: 0,
		Queue: 1500 * time.Microsecond, QueueCause: "cap", FirstByte: 2 * time.Second, Total: 2*time.Second + time.Microsecond,
		ClientIP: []byte("198.51.100.9"), User: []byte(base64.StdEncoding.EncodeToString([]byte(`WinNT://DOM/jürgen`))), End: "done",
	}
}

func TestRecord(t *testing.T) {
	line := record().append(nil, new(clock))
	if !bytes.HasSuffix(line, []byte("}\n")) {
		t.Fatalf("no line: %q", line)
	}
	var got map[string]any
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	want := map[string]any{
		"time": "2026-11-21T20:58:01.023456Z", "id": "1122334455667788-1-2a", "client": "192.0.2.7:1234", "listener": "icaps", "tls": "1.3",
		"method": "REQMOD", "path": "/reqmod?a=b", "service": "/reqmod", "pool": "dlp", "server": "10.0.0.1:1344", "status": 204.0,
		"attempts": 2.0, "failure": "connect", "bytes_in": 1024.0, "bytes_out": 0.0, "queue": 0.0015, "queue_cause": "cap", "connect": 0.0, "first_byte": 2.0, "total": 2.000001,
		"x_client_ip": "198.51.100.9", "user": "WinNT://DOM/jürgen", "end": "done",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// Nothing that a client sends can break out of its string, or of its line.
func TestHostileText(t *testing.T) {
	for _, value := range []string{
		`","status":200,"x":"`, "a\nb", "a\r\nb", "\x00\x01\x7f", `\`, "\xff\xfe", "\xe2\x28", "\u2028", strings.Repeat("x", 100_000), "é", "\xf0\x9f\x98",
	} {
		r := record()
		r.Path, r.ClientIP, r.User = []byte(value), []byte(value), []byte(value)
		line := r.append(nil, new(clock))
		if n := bytes.Count(line, []byte("\n")); n != 1 {
			t.Errorf("%q: %d lines", value, n)
		}
		var got struct {
			Path, User string
			Status     int
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Errorf("%q: %v", value, err)
		}
		if want := strings.ToValidUTF8(value, "\ufffd"); got.Path != want && len(got.Path) < len(want) || got.Status != 204 {
			t.Errorf("%q: got %+v", value, got)
		}
	}
}

func TestUser(t *testing.T) {
	encode := base64.StdEncoding.EncodeToString
	for _, c := range []struct{ sent, logged string }{
		{encode([]byte("Local://user")), "Local://user"},
		{"WinNT://DOM/user", "WinNT://DOM/user"},                                             // not base64
		{encode([]byte{1, 2, 3}), encode([]byte{1, 2, 3})},                                   // base64 of no text
		{encode([]byte(strings.Repeat("x", 600))), encode([]byte(strings.Repeat("x", 600)))}, // too long to be a user
	} {
		var got struct{ User string }
		r := record()
		r.User = []byte(c.sent)
		if err := json.Unmarshal(r.append(nil, new(clock)), &got); err != nil || got.User != c.logged {
			t.Errorf("%q: got %q (%v), want %q", c.sent, got.User, err, c.logged)
		}
	}
}

func TestLogToFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "access.log")
	l, err := Open(name, slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	b := l.NewBuffer()
	if !b.Append(record()) || b.Append(record()) {
		t.Error("first is not told from later records")
	}
	b.Flush()
	if err := os.Rename(name, name+".1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	for range 1000 { // more than a buffer
		b.Append(record())
	}
	b.Flush()
	l.Close()
	for file, want := range map[string]int{name + ".1": 2, name: 1000} {
		text, err := os.ReadFile(file)
		if n := bytes.Count(text, []byte("\n")); err != nil || n != want {
			t.Errorf("%s: %d lines (%v), want %d", filepath.Base(file), n, err, want)
		}
	}
	if l.Dropped() != 0 {
		t.Error("records were dropped")
	}
	if err := l.Reopen(); err == nil {
		t.Error("a closed log can be reopened")
	}
}

// A full disk loses records and counts them; nothing blocks, and the log works again when the disk does.
func TestDiskFull(t *testing.T) {
	l, err := Open("/dev/full", slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		t.Skip("no /dev/full here: ", err)
	}
	b := l.NewBuffer()
	for range 100 {
		b.Append(record())
	}
	b.Flush()
	l.Close()
	if n := l.Dropped(); n != 100 {
		t.Errorf("%d dropped, want 100", n)
	}
}

// blocked is an output that takes nothing until it is released.
type blocked struct {
	release chan struct{}
	bytes.Buffer
}

func (b *blocked) Write(p []byte) (int, error) { <-b.release; return b.Buffer.Write(p) }
func (b *blocked) Close() error                { return nil }

// An output that stands still costs records, never time: what is kept is bounded, what is lost is counted.
func TestSlowOutput(t *testing.T) {
	l := &Log{log: slog.Default(), queue: make(chan *chunk, 4), free: make(chan *chunk, 4), done: make(chan struct{}), reopen: make(chan chan error)}
	out := &blocked{release: make(chan struct{})}
	go l.write(out)
	b := l.NewBuffer()
	const n = 5000
	for range n {
		b.Append(record())
	}
	b.Flush()
	if l.Dropped() == 0 {
		t.Error("nothing was dropped")
	}
	close(out.release)
	l.Close()
	if got := uint64(bytes.Count(out.Bytes(), []byte("\n"))) + l.Dropped(); got != n {
		t.Errorf("%d records written or counted as dropped, want %d", got, n)
	}
}

func TestAppendAllocates(t *testing.T) {
	l := &Log{queue: make(chan *chunk, 1), free: make(chan *chunk, 1)}
	b, r := l.NewBuffer(), record()
	b.Append(r)
	if n := testing.AllocsPerRun(1000, func() { // the queue is full after the first buffer: the others come back at once
		b.Append(r)
	}); n != 0 {
		t.Errorf("%v allocations per record", n)
	}
}

func BenchmarkAppend(b *testing.B) {
	l := &Log{queue: make(chan *chunk, 1), free: make(chan *chunk, 1)}
	buf, r := l.NewBuffer(), record()
	b.ReportAllocs()
	for b.Loop() {
		buf.Append(r)
	}
}
