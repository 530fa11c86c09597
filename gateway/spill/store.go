package spill

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	diskPatience  = 5 * time.Second // for one block
	closePatience = 2 * time.Second // for all files at the end
)

// Store is a folder for files, and what they may take together.
type Store struct {
	create   func() (*os.File, error) // a new file; static, tests have their own
	patience time.Duration            // with the disk; likewise
	max      atomic.Int64             // bytes of all files
	stalled  atomic.Int32             // files for which the disk does not answer
	used     atomic.Int64             // bytes that files have taken of it
	working  sync.WaitGroup

	mu    sync.Mutex
	files map[*File]struct{} // that are open: guarded by mu
}

// Open returns the store in a folder, which it makes if it is missing. It fails if no file can be written there.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the folder for requests that are kept for replay: %w", err)
	}
	s := &Store{create: func() (*os.File, error) { return create(dir) }, patience: diskPatience, files: make(map[*File]struct{})}
	f, err := s.create()
	if err != nil {
		return nil, fmt.Errorf("cannot keep requests for replay: %w", err)
	}
	return s, f.Close()
}

// SetMax sets how many bytes all files together may have.
func (s *Store) SetMax(n int64) { s.max.Store(n) }

// Used is how many bytes all files together have, in whole blocks.
func (s *Store) Used() int64 { return s.used.Load() }

// Stalled says whether the disk does not answer just now: a new file would be of no use.
func (s *Store) Stalled() bool { return s.stalled.Load() > 0 }

// Close ends all files, whose owners are gone, and returns when their goroutines have ended, unless the disk keeps them for good.
func (s *Store) Close() {
	s.mu.Lock()
	for f := range s.files {
		f.end()
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() {
		s.working.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(closePatience):
	}
}

// take takes n bytes of the store's limit.
func (s *Store) take(n int64) bool {
	if s.used.Add(n) > s.max.Load() {
		s.used.Add(-n)
		return false
	}
	return true
}

// create opens a new file without a name.
func create(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), dir+"/(unnamed)"), nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EINVAL) {
		return nil, &os.PathError{Op: "create a file in", Path: dir, Err: err}
	}
	return createNamed(dir)
}

// createNamed does it on a file system that knows no files without a name.
func createNamed(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "replay-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
