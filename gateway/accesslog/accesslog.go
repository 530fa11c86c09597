// Package accesslog writes one JSON line per transaction, off the loops.
//
// A loop appends its records to a Buffer of its own, which costs no lock and no system call. Full buffers, and those whose oldest
// record has waited for FlushAfter, go to the Log's goroutine through a bounded queue. When the disk is slower than the
// traffic the queue fills up, and records are dropped and counted: a log must not stop the traffic.
package accesslog

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// FlushAfter is how long a record may wait in its loop's Buffer.
const FlushAfter = 200 * time.Millisecond

const (
	bufferSize = 64 << 10 // bytes of a Buffer that is handed over
	queueSize  = 32       // buffers: 2 MiB that wait for the disk
)

// Log is one output. Its methods may be called from any goroutine.
type Log struct {
	path string // "": stdout
	log  *slog.Logger

	queue chan *chunk
	free  chan *chunk
	done  chan struct{} // the writer has ended

	dropped atomic.Uint64 // records
	reopen  chan chan error

	closing sync.Once
}

// chunk is the encoded records that travel from a loop to the writer.
type chunk struct {
	bytes   []byte
	records int
}

// Open opens output: "stdout" or the name of a file, to which is appended.
func Open(output string, logger *slog.Logger) (*Log, error) {
	l := &Log{log: logger, queue: make(chan *chunk, queueSize), free: make(chan *chunk, queueSize), done: make(chan struct{}), reopen: make(chan chan error)}
	w := io.WriteCloser(nopCloser{os.Stdout})
	if output != "stdout" {
		l.path = output
		f, err := openFile(output)
		if err != nil {
			return nil, err
		}
		w = f
	}
	go l.write(w)
	return l, nil
}

func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, fmt.Errorf("cannot open the access log: %w", err)
	}
	return f, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// Dropped is the number of records that were lost because the output was too slow or failed.
func (l *Log) Dropped() uint64 { return l.dropped.Load() }

// Reopen closes the file and opens its name again, after a rotation. Records that were logged before are in the old file.
func (l *Log) Reopen() error {
	if l.path == "" {
		return nil
	}
	answer := make(chan error)
	select {
	case l.reopen <- answer:
		return <-answer
	case <-l.done:
		return errors.New("the access log is closed")
	}
}

// Close writes what was handed over and closes the output. No Buffer may be flushed any more.
func (l *Log) Close() {
	l.closing.Do(func() { close(l.queue) })
	<-l.done
}

// write is the writer's goroutine.
func (l *Log) write(w io.WriteCloser) {
	defer close(l.done)
	defer func() { w.Close() }()
	failing := false
	put := func(c *chunk) {
		_, err := w.Write(c.bytes)
		if err != nil {
			l.dropped.Add(uint64(c.records))
			if !failing {
				l.log.Error("cannot write the access log; records are lost until it works again", "error", err)
			}
		}
		failing = err != nil
		l.recycle(c)
	}
	for {
		select {
		case c, ok := <-l.queue:
			if !ok {
				return
			}
			put(c)
		case answer := <-l.reopen:
			for n := len(l.queue); n > 0; n-- {
				if c, ok := <-l.queue; ok {
					put(c)
				}
			}
			f, err := openFile(l.path)
			if err == nil { // otherwise the old file goes on
				w.Close()
				w = f
			}
			answer <- err
		}
	}
}

func (l *Log) recycle(c *chunk) {
	c.bytes, c.records = c.bytes[:0], 0
	select {
	case l.free <- c:
	default:
	}
}

// Buffer is one loop's end of a Log. Owned by the loop.
type Buffer struct {
	log   *Log
	chunk *chunk
	clock clock
}

// NewBuffer returns an empty Buffer.
func (l *Log) NewBuffer() *Buffer { return &Buffer{log: l} }

// Append encodes a record. first says that it is the only one waiting: the caller flushes within FlushAfter.
func (b *Buffer) Append(r *Record) (first bool) {
	if b.chunk == nil {
		select {
		case b.chunk = <-b.log.free:
		default:
			b.chunk = &chunk{bytes: make([]byte, 0, bufferSize+4096)}
		}
	}
	b.chunk.bytes = r.append(b.chunk.bytes, &b.clock)
	b.chunk.records++
	if len(b.chunk.bytes) >= bufferSize {
		b.Flush()
		return false
	}
	return b.chunk.records == 1
}

// Flush hands over what has been appended. It never blocks: when the queue is full the records are dropped.
func (b *Buffer) Flush() {
	c := b.chunk
	if c == nil || c.records == 0 {
		return
	}
	b.chunk = nil
	select {
	case b.log.queue <- c:
	default:
		b.log.dropped.Add(uint64(c.records))
		b.log.recycle(c)
	}
}
