package spill

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// owner is the loop of a test: what is posted runs when it waits.
type owner struct {
	t      testing.TB
	posted chan func()
	file   *File

	room   int    // calls of Room
	read   []byte // of the latest Read
	reads  int
	err    error // of Read or Fail
	closed chan struct{}
}

func openStore(t testing.TB, max int64) *Store {
	t.Helper()
	s, err := Open(t.TempDir() + "/state")
	if err != nil {
		t.Fatal(err)
	}
	s.SetMax(max)
	t.Cleanup(s.Close)
	return s
}

func newOwner(t testing.TB, s *Store, max int64) *owner {
	o := &owner{t: t, posted: make(chan func(), 1000), closed: make(chan struct{})}
	o.file = s.New(max, Events{
		Post: func(f func()) { o.posted <- f },
		Room: func() { o.room++ },
		Read: func(_ int64, p []byte, err error) {
			o.reads++
			o.read, o.err = bytes.Clone(p), err
		},
		Fail:   func(err error) { o.err = err },
		Closed: func() { close(o.closed) },
	})
	return o
}

// until runs what is posted until ok.
func (o *owner) until(what string, ok func() bool) {
	o.t.Helper()
	for !ok() {
		select {
		case f := <-o.posted:
			f()
		case <-time.After(20 * time.Second):
			o.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// all reads the whole file, as a replay does.
func (o *owner) all() []byte {
	o.t.Helper()
	var got []byte
	for int64(len(got)) < o.file.Size() {
		if p := o.file.Tail(int64(len(got))); p != nil {
			got = append(got, p...)
			continue
		}
		before := o.reads
		o.file.Read(int64(len(got)))
		o.until("a read", func() bool { return o.reads > before })
		if o.err != nil {
			o.t.Fatal(o.err)
		}
		got = append(got, o.read...)
	}
	return got
}

func randomBytes(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(p)
	return p
}

// What was appended in whatever pieces is read again, from the beginning and from any place, also while it grows.
func TestRoundTrip(t *testing.T) {
	s := openStore(t, 1<<30)
	rapid.Check(t, func(rt *rapid.T) {
		o := newOwner(t, s, 1<<30)
		defer o.file.Close()
		var want []byte
		for range rapid.IntRange(1, 8).Draw(rt, "pieces") {
			n := rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(blockSize-2, blockSize+2), rapid.IntRange(0, 3*blockSize)).Draw(rt, "bytes")
			p := randomBytes(n)
			if err := o.file.Append(p); err != nil {
				rt.Fatal(err)
			}
			want = append(want, p...)
			if rapid.Bool().Draw(rt, "read in between") && !bytes.Equal(o.all(), want) {
				rt.Fatal("other bytes than were appended")
			}
		}
		if o.file.Size() != int64(len(want)) {
			rt.Fatalf("size %d, want %d", o.file.Size(), len(want))
		}
		if len(want) == 0 {
			return
		}
		at := rapid.IntRange(0, len(want)-1).Draw(rt, "place")
		p := o.file.Tail(int64(at))
		if p == nil {
			before := o.reads
			o.file.Read(int64(at))
			o.until("a read", func() bool { return o.reads > before })
			p = o.read
		}
		if len(p) == 0 || !bytes.HasPrefix(want[at:], p) {
			rt.Fatal("other bytes from the middle")
		}
	})
}

// The same where there are no files without a name: it has none from the beginning.
func TestCreateNamed(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.SetMax(1 << 20)
	s.create = func() (*os.File, error) { return createNamed(dir) }
	o := newOwner(t, s, 1<<20)
	defer o.file.Close()
	want := randomBytes(2*blockSize + 1)
	if err := o.file.Append(want); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(o.all(), want) {
		t.Error("other bytes than were appended")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("the folder has %v (%v), want nothing", entries, err)
	}
	if _, err := createNamed(dir + "/missing"); err == nil {
		t.Error("a file in a folder that is not there")
	}
}

// On the disk there is neither a name nor a byte of what was sent.
func TestNothingInClear(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	s.SetMax(1 << 20)
	defer s.Close()
	o := newOwner(t, s, 1<<20)
	text := strings.Repeat("confidential ", blockSize/13*2)
	if err := o.file.Append([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if got := string(o.all()); got != text {
		t.Fatal("other bytes than were appended")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("the folder has %v (%v), want nothing", entries, err)
	}
	raw := make([]byte, fileBlock)
	if _, err := o.file.file.ReadAt(raw, 0); err != nil { // its goroutine is idle: the read above came after the write
		t.Fatal(err)
	}
	if bytes.Contains(raw, []byte("confid")) {
		t.Error("the file has what was sent in clear")
	}
	o.file.Close()
}

// A file that somebody has changed is an error, not other bytes.
func TestChangedOnDisk(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, f *os.File){
		"a bit": func(t *testing.T, f *os.File) {
			var b [1]byte
			if _, err := f.ReadAt(b[:], 1000); err != nil {
				t.Fatal(err)
			}
			b[0] ^= 1
			if _, err := f.WriteAt(b[:], 1000); err != nil {
				t.Fatal(err)
			}
		},
		"blocks swapped": func(t *testing.T, f *os.File) {
			second := make([]byte, fileBlock)
			if _, err := f.ReadAt(second, fileBlock); err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(second, 0); err != nil {
				t.Fatal(err)
			}
		},
		"cut": func(t *testing.T, f *os.File) {
			if err := f.Truncate(100); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOwner(t, openStore(t, 1<<20), 1<<20)
			if err := o.file.Append(randomBytes(3 * blockSize)); err != nil {
				t.Fatal(err)
			}
			o.all()
			change(t, o.file.file)
			before := o.reads
			o.file.Read(0)
			o.until("a read", func() bool { return o.reads > before })
			if o.err == nil || o.read != nil {
				t.Errorf("%d bytes, error %v; want an error only", len(o.read), o.err)
			}
			o.file.Close()
		})
	}
}

func TestLimits(t *testing.T) {
	s := openStore(t, 3*blockSize)
	a, b := newOwner(t, s, 2*blockSize+10), newOwner(t, s, 1<<20)
	if err := a.file.Append(randomBytes(2*blockSize + 10)); err != nil {
		t.Fatal(err)
	}
	if err := a.file.Append([]byte{1}); err != ErrTooLarge {
		t.Errorf("a byte too many for one: %v, want %v", err, ErrTooLarge)
	}
	if err := b.file.Append([]byte{1}); err != ErrFull {
		t.Errorf("a byte too many for all: %v, want %v", err, ErrFull)
	}
	if s.Used() != 3*blockSize {
		t.Errorf("%d bytes used, want three blocks", s.Used())
	}
	a.file.Close()
	<-a.closed
	if s.Used() != 0 {
		t.Errorf("%d bytes used after the file was closed, want 0", s.Used())
	}
	if err := b.file.Append(randomBytes(3 * blockSize)); err != nil {
		t.Errorf("the place that the other file had: %v", err)
	}
	b.file.Close()
	<-b.closed
}

// A disk that takes nothing: the owner hears of it once, and every read fails.
func TestDiskFull(t *testing.T) {
	s := openStore(t, 1<<20)
	s.create = func() (*os.File, error) { return os.OpenFile("/dev/full", os.O_RDWR, 0) }
	o := newOwner(t, s, 1<<20)
	if err := o.file.Append(randomBytes(3 * blockSize)); err != nil {
		t.Fatal(err)
	}
	o.until("the error", func() bool { return o.err != nil })
	if !errors.Is(o.err, syscall.ENOSPC) {
		t.Errorf("error %v, want no space left", o.err)
	}
	o.err = nil
	o.file.Read(0)
	o.until("the read", func() bool { return o.reads == 1 })
	if o.err == nil {
		t.Error("a read of what was not written succeeded")
	}
	o.file.Close()
	<-o.closed
	for len(o.posted) > 0 {
		(<-o.posted)()
	}
	if o.reads != 1 {
		t.Error("an event came after Close")
	}
}

func TestNoFile(t *testing.T) {
	s := openStore(t, 1<<20)
	s.create = func() (*os.File, error) { return nil, syscall.EMFILE }
	o := newOwner(t, s, 1<<20)
	o.until("the error", func() bool { return o.err != nil })
	if !errors.Is(o.err, syscall.EMFILE) {
		t.Errorf("error %v, want that of the open", o.err)
	}
	o.file.Close()
	<-o.closed
}

// A disk that stands still: the owner is told to wait, and goes on when it is faster again; memory is bounded by what Busy is about.
func TestBusy(t *testing.T) {
	s := openStore(t, 1<<30)
	gate := make(chan struct{})
	s.create = func() (*os.File, error) { <-gate; return os.CreateTemp(t.TempDir(), "") }
	o := newOwner(t, s, 1<<30)
	n := 0
	for ; !o.file.Busy() && n < 100; n++ {
		if err := o.file.Append(randomBytes(blockSize)); err != nil {
			t.Fatal(err)
		}
	}
	if n != int(busyAt) {
		t.Errorf("busy after %d blocks, want %d", n, busyAt)
	}
	close(gate)
	o.until("room", func() bool { return o.room == 1 })
	if o.file.Busy() {
		t.Error("busy after Room")
	}
	o.file.Close()
	<-o.closed
}

// Close takes back what waits, whatever the goroutine does.
func TestCloseAtAnyTime(t *testing.T) {
	s := openStore(t, 1<<30)
	for i := range 50 {
		o := newOwner(t, s, 1<<30)
		for range i % 7 {
			if err := o.file.Append(randomBytes(blockSize - 3)); err != nil {
				t.Fatal(err)
			}
		}
		if o.file.Size() > blockSize {
			o.file.Read(0)
		}
		o.file.Close()
		<-o.closed
	}
	if s.Used() != 0 {
		t.Errorf("%d bytes used, want 0", s.Used())
	}
}

// The store ends files whose owners are gone.
func TestStoreClose(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s.SetMax(1 << 20)
	o := newOwner(t, s, 1<<20)
	if err := o.file.Append(randomBytes(blockSize + 1)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	<-o.closed
	if s.Used() != 0 {
		t.Errorf("%d bytes used, want 0", s.Used())
	}
}

func TestOpenFails(t *testing.T) {
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file); err == nil {
		t.Error("a file was taken for a folder")
	}
	if _, err := Open("/proc/icapgate"); err == nil {
		t.Error("a folder that can't be made was taken")
	}
}

func BenchmarkAppend(b *testing.B) {
	s := openStore(b, 1<<40)
	p := randomBytes(48 << 10)
	o := newOwner(b, s, 1<<40)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if o.file.Busy() {
			room := o.room
			o.until("room", func() bool { return o.room > room })
		}
		if err := o.file.Append(p); err != nil {
			b.Fatal(err)
		}
		if o.file.Size() > 64<<20 {
			o.file.Close()
			<-o.closed
			o = newOwner(b, s, 1<<40)
		}
	}
	o.file.Close()
}

// A disk that does not answer at all: the owner hears of it in time, new files are refused until it does, and nothing is left in the end.
func TestDiskStalls(t *testing.T) {
	s := openStore(t, 1<<30)
	s.patience = 10 * time.Millisecond
	gate := make(chan struct{})
	s.create = func() (*os.File, error) { <-gate; return os.CreateTemp(t.TempDir(), "") }
	o := newOwner(t, s, 1<<30)
	if err := o.file.Append(randomBytes(3 * blockSize)); err != nil {
		t.Fatal(err)
	}
	o.until("the error", func() bool { return o.err != nil })
	if !s.Stalled() {
		t.Error("the store would take another file")
	}
	o.file.Close()
	close(gate)
	<-o.closed
	if s.Stalled() || s.Used() != 0 {
		t.Errorf("stalled %v, %d bytes used when the disk has answered", s.Stalled(), s.Used())
	}
}
