package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"icapgate/bench/dlpstub"
)

// record is what a server has seen of one request, a line of its file. Lines are written when the body has ended, before the end of
// the answer, and outlive a server that is killed.
type record struct {
	ID     string `json:"id"` // of the query: /path?id=…
	PID    int    `json:"pid"`
	Method string `json:"method"`
	Length uint64 `json:"length"` // of the body
	SHA    string `json:"sha"`    // of the body
	Error  string `json:"error,omitempty"`
}

// recordFile is where a server keeps its records, in the folder in which it runs.
func recordFile(name string) string { return name + ".requests" }

// recorder returns a Hook that writes records.
func recorder(w io.Writer) func(*dlpstub.Request) {
	pid := syscall.Getpid()
	return func(r *dlpstub.Request) {
		line := record{ID: requestID(r.Head), PID: pid, Method: r.Method.String(), Length: r.BodyLen, SHA: hex.EncodeToString(r.BodySHA256[:])}
		if line.ID == "" {
			return // a check of the gateway's
		}
		if r.Err != nil {
			line.Error = r.Err.Error()
		}
		text, _ := json.Marshal(line)
		_, _ = w.Write(append(text, '\n')) // with one call: lines of several connections don't mix
	}
}

// requestID returns the id in the query of a request line, "" if there is none.
func requestID(head []byte) string {
	line, _, _ := bytes.Cut(head, []byte("\r\n"))
	_, query, _ := bytes.Cut(line, []byte("?id="))
	id, _, _ := bytes.Cut(query, []byte(" "))
	return string(id)
}

// records reads what a server has recorded so far, in all its runs.
func (s *server) records() (list []record, err error) {
	f, err := os.Open(filepath.Join(s.rig.dir, recordFile(s.name)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d := json.NewDecoder(bufio.NewReader(f))
	for {
		var line record
		if err := d.Decode(&line); err == io.EOF {
			return list, nil
		} else if err != nil {
			return list, err
		}
		list = append(list, line)
	}
}
