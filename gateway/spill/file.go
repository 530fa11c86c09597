package spill

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	blockSize = 64 << 10 // bytes that are encrypted and written together
	overhead  = 12 + 16  // of an encrypted block: nonce and tag
	busyAt    = int32(4) // blocks that wait for the disk
	fileBlock = int64(blockSize + overhead)
)

// Why a File takes no more. It is of no use then.
var (
	ErrTooLarge = errors.New("the request is larger than what one may keep")
	ErrFull     = errors.New("the files of all requests together are as large as they may be")
)

// Events is how a File speaks to its owner. The functions are called by way of the owner's Post, so on its loop, and not after Close.
type Events struct {
	Post   func(func())                        // runs a function on the loop; from any goroutine
	Room   func()                              // Busy is false again
	Read   func(at int64, p []byte, err error) // what Read has asked for; p is valid during the call
	Fail   func(err error)                     // the disk does not take it: Close
	Closed func()                              // after Close, when the file is closed; called by the File's goroutine, the only one that is
}

// File is the bytes of one request. Its methods are for the loop that owns it.
type File struct {
	store  *Store
	events Events
	max    int64

	// Owned by the loop.
	size   int64  // bytes appended
	tail   *block // those behind the last whole block, nil: none
	closed bool

	waiting atomic.Int32 // blocks to be written
	taken   atomic.Int64 // bytes of the store's limit

	mu    sync.Mutex
	tasks []task // guarded by mu
	ended bool   // no further tasks; guarded by mu
	wake  sync.Cond

	// Owned by the goroutine.
	file   *os.File
	aead   cipher.AEAD
	sealed []byte // scratch

	failed atomic.Bool // nothing more is written
}

// block is what is encrypted together.
type block struct {
	b [blockSize]byte
	n int
}

var blocks = sync.Pool{New: func() any { return new(block) }}

// task is a block to be written, if there is one, and otherwise one to be read.
type task struct {
	block *block
	index int64
	at    int64 // of a read
}

// New returns an empty file for up to max bytes.
func (s *Store) New(max int64, e Events) *File {
	f := &File{store: s, events: e, max: max}
	f.wake.L = &f.mu
	s.mu.Lock()
	s.files[f] = struct{}{}
	s.mu.Unlock()
	s.working.Go(f.work)
	return f
}

// Size is the number of bytes that have been appended.
func (f *File) Size() int64 { return f.size }

// Busy says whether so many bytes wait for the disk that no more should come before Events.Room.
func (f *File) Busy() bool { return f.waiting.Load() >= busyAt }

// Append takes bytes that were sent.
func (f *File) Append(p []byte) error {
	if f.size+int64(len(p)) > f.max {
		return ErrTooLarge
	}
	for len(p) > 0 {
		if f.tail == nil {
			if !f.store.take(blockSize) {
				return ErrFull
			}
			f.taken.Add(blockSize)
			f.tail = blocks.Get().(*block)
			f.tail.n = 0
		}
		n := copy(f.tail.b[f.tail.n:], p)
		f.tail.n += n
		f.size += int64(n)
		p = p[n:]
		if f.tail.n == blockSize {
			f.waiting.Add(1)
			f.add(task{block: f.tail, index: f.size/blockSize - 1})
			f.tail = nil
		}
	}
	return nil
}

// Tail returns the bytes from a place on if they are still in memory, and nil if they have to be read. They are valid until the next Append.
func (f *File) Tail(at int64) []byte {
	if start := f.size / blockSize * blockSize; at >= start && f.tail != nil {
		return f.tail.b[at-start : f.tail.n]
	}
	return nil
}

// Read asks for the bytes from a place on, as many as are in its block; Events.Read gets them. The place has to be before those of Tail.
func (f *File) Read(at int64) { f.add(task{index: at / blockSize, at: at}) }

// Close gives up the file and all that was to be done with it.
func (f *File) Close() {
	f.closed = true
	if f.tail != nil {
		blocks.Put(f.tail)
		f.tail = nil
	}
	f.end()
}

// end has the goroutine end.
func (f *File) end() {
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
	f.wake.Signal()
}

func (f *File) add(t task) {
	f.mu.Lock()
	f.tasks = append(f.tasks, t)
	f.mu.Unlock()
	f.wake.Signal()
}

// next waits for a task; false: the file is closed.
func (f *File) next() (task, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.tasks) == 0 && !f.ended {
		f.wake.Wait()
	}
	if f.ended {
		return task{}, false
	}
	t := f.tasks[0]
	f.tasks = append(f.tasks[:0], f.tasks[1:]...)
	return t, true
}

// tell runs one of the events on the loop, unless the file has been closed meanwhile.
func (f *File) tell(event func()) {
	f.events.Post(func() {
		if !f.closed {
			event()
		}
	})
}

// work does the tasks in their order.
func (f *File) work() {
	defer f.release()
	f.inTime(func() {
		if err := f.open(); err != nil {
			f.fail(err)
		}
	})
	for {
		t, ok := f.next()
		if !ok {
			return
		}
		f.inTime(func() { f.do(t) })
	}
}

func (f *File) do(t task) {
	if t.block == nil {
		f.read(t)
		return
	}
	if err := f.write(t); err != nil {
		f.fail(err)
	}
	blocks.Put(t.block)
	if f.waiting.Add(-1) == busyAt-1 {
		f.tell(f.events.Room)
	}
}

// inTime runs what asks the disk for something. One that does not answer for as long as the store has patience has failed for this file, and the
// store takes no further ones until it does.
func (f *File) inTime(ask func()) {
	var late bool
	done := make(chan struct{})
	timer := time.AfterFunc(f.store.patience, func() {
		late = true
		f.store.stalled.Add(1)
		f.fail(errors.New("the disk does not answer"))
		close(done)
	})
	ask()
	if !timer.Stop() {
		<-done
	}
	if late {
		f.store.stalled.Add(-1)
	}
}

func (f *File) fail(err error) {
	if f.failed.CompareAndSwap(false, true) {
		f.tell(func() { f.events.Fail(err) })
	}
}

func (f *File) open() (err error) {
	if f.file, err = f.store.create(); err != nil {
		return err
	}
	key := make([]byte, 32)
	rand.Read(key) // never fails
	cipherBlock, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	f.aead, err = cipher.NewGCMWithRandomNonce(cipherBlock)
	return err
}

// write encrypts and writes a block. Its place is authenticated, too.
func (f *File) write(t task) error {
	if f.failed.Load() {
		return nil
	}
	f.sealed = f.aead.Seal(f.sealed[:0], nil, t.block.b[:], place(t.index))
	if _, err := f.file.WriteAt(f.sealed, t.index*fileBlock); err != nil {
		return fmt.Errorf("cannot keep a request for replay: %w", err)
	}
	return nil
}

func (f *File) read(t task) {
	p, err := f.readBlock(t.index)
	if err != nil {
		err = fmt.Errorf("cannot read a request that was kept for replay: %w", err)
		f.tell(func() { f.events.Read(t.at, nil, err) })
		return
	}
	f.tell(func() {
		f.events.Read(t.at, p.b[t.at-t.index*blockSize:], nil)
		blocks.Put(p)
	})
}

func (f *File) readBlock(index int64) (*block, error) {
	if f.failed.Load() {
		return nil, errors.New("it was not written")
	}
	if cap(f.sealed) < int(fileBlock) {
		f.sealed = make([]byte, fileBlock)
	}
	sealed := f.sealed[:fileBlock]
	if _, err := io.ReadFull(io.NewSectionReader(f.file, index*fileBlock, fileBlock), sealed); err != nil {
		return nil, err
	}
	p := blocks.Get().(*block)
	p.n = blockSize
	if _, err := f.aead.Open(p.b[:0], nil, sealed, place(index)); err != nil {
		return nil, err
	}
	return p, nil
}

func place(index int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(index)) }

// release gives back all that the file has taken. The loop does not use it any more.
func (f *File) release() {
	for _, t := range f.tasks {
		if t.block != nil {
			blocks.Put(t.block)
		}
	}
	f.tasks = nil
	if f.file != nil {
		f.file.Close()
	}
	s := f.store
	s.used.Add(-f.taken.Load())
	s.mu.Lock()
	delete(s.files, f)
	s.mu.Unlock()
	f.events.Closed()
}
