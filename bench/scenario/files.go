package scenario

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"icapgate/configs"
)

// maxFiles bounds the content of the folders of a scenario: it is read into memory, so that no disk is measured.
const maxFiles = 1 << 30

// file is one file to send.
type file struct {
	name    string // as a form has it: without folders, quotes and line ends
	content []byte
}

// folders are the files by folder, each read once.
type folders struct {
	files map[string][]file
	left  int64 // bytes that may still be read
}

func newFolders() *folders { return &folders{files: map[string][]file{}, left: maxFiles} }

// read returns the regular files in a folder and those below it, in the order of their paths. Names that begin with a dot are left out, and
// links are not followed.
func (f *folders) read(dir string) ([]file, error) {
	if files, ok := f.files[dir]; ok {
		return files, nil
	}
	if info, err := os.Stat(dir); err != nil {
		return nil, err
	} else if !info.IsDir() {
		return nil, fmt.Errorf("%s is no folder", configs.Quote(dir))
	}
	var files []file
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch hidden := strings.HasPrefix(entry.Name(), ".") && path != dir; {
		case err != nil:
			return err
		case hidden && entry.IsDir():
			return filepath.SkipDir
		case hidden || !entry.Type().IsRegular():
			return nil
		}
		content, err := f.readFile(path)
		if err != nil {
			return err
		}
		files = append(files, file{fileName(entry.Name()), content})
		return nil
	})
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("no file in %s", configs.Quote(dir))
	}
	if err != nil {
		return nil, err
	}
	f.files[dir] = files
	return files, nil
}

func (f *folders) readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > f.left {
		return nil, fmt.Errorf("more than %v in the files of all requests together, which are held in memory; %s is one too many",
			configs.Size(maxFiles), configs.Quote(path))
	}
	content, err := os.ReadFile(path)
	f.left -= int64(len(content))
	return content, err
}

// fileName makes a name fit into a quoted string, as browsers do.
func fileName(name string) string {
	return strings.NewReplacer(`"`, "%22", "\r", "%0D", "\n", "%0A", "\x00", "%00").Replace(name)
}
