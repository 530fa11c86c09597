package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"icapgate/gateway/istag"
)

// This file keeps the ISTags in state_dir, so that a restart does not change them, whichever servers are down just then.

// keptFace is what is kept of the face of a service.
type keptFace struct {
	istag.Saved
	Paths []string `json:"paths,omitempty"` // under a prefix, that clients have asked for
}

// keptFile is the content of the file.
type keptFile struct {
	Services map[string]keptFace `json:"services"` // by face.key
}

// keptName is the file's name in state_dir.
const keptName = "istags.json"

// readKept reads what was kept by the process before this one. Without it all is new, which a client takes for a change.
func (m *servers) readKept(dir string) {
	m.dir = dir
	if dir == "" {
		return
	}
	b, err := os.ReadFile(filepath.Join(dir, keptName))
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var file keptFile
	if err == nil {
		err = json.Unmarshal(b, &file)
	}
	if err != nil {
		m.gw.log.Warn("cannot read the ISTags of before the restart: clients get new ones", "file", filepath.Join(dir, keptName), "error", err)
		return
	}
	m.kept = file.Services
}

// keepFaces has the faces of a table written, by a goroutine of its own: a disk that hangs holds up nothing else.
func (m *servers) keepFaces(t *table) {
	own := slices.ContainsFunc(t.services, func(s *service) bool { return s.lead.istag == "" })
	if m.dir == "" || !own {
		return
	}
	file := keptFile{make(map[string]keptFace)}
	for _, s := range t.services {
		file.Services[s.face.key] = keptFace{s.face.own.Save(), s.face.askedPaths()}
	}
	select {
	case <-m.keeping: // it has not been written, and is out of date
	default:
	}
	m.keeping <- file
}

// keepAgain is after how long, in ns, what could not be written is tried again.
const keepAgain = int64(time.Minute)

// keep writes the file whenever there is something new.
func (m *servers) keep() {
	for {
		select {
		case <-m.ctx.Done():
			return
		case file := <-m.keeping:
			if err := writeKept(m.dir, file); err != nil {
				m.unkept.Store(max(m.clock(), 1))
				if n, ok := m.gw.keptLog.next(); ok {
					m.gw.log.Warn("cannot keep the ISTags: a restart may change them, and clients forget their verdicts then (state_dir says where); it is tried again", "error", err, "times", n)
				}
			}
		}
	}
}

// writeKept replaces the file as a whole, so that a crash leaves the old one or the new one.
func writeKept(dir string, file keptFile) error {
	b, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, keptName+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // once it has its name, there is nothing to remove
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, keptName))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", keptName, err)
	}
	return nil
}
