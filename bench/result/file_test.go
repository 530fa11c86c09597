package result

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	text := func(s string) func(io.Writer) error {
		return func(w io.Writer) error {
			_, err := io.WriteString(w, s)
			return err
		}
	}
	has := func(want string, mode os.FileMode) {
		t.Helper()
		content, err := os.ReadFile(path)
		info, _ := os.Stat(path)
		if err != nil || string(content) != want || info.Mode().Perm() != mode {
			t.Errorf("%q, %v, %v, want %q", content, info.Mode(), err, want)
		}
		names, err := os.ReadDir(dir)
		for _, n := range names {
			if err != nil || n.Name() != "file" && n.Name() != "link" {
				t.Errorf("%s is left, %v", n.Name(), err)
			}
		}
	}
	if err := WriteFile(path, text("first")); err != nil {
		t.Fatal(err)
	}
	has("first", 0o644)
	broken := errors.New("broken")
	if err := WriteFile(path, func(w io.Writer) error { io.WriteString(w, "half"); return broken }); !errors.Is(err, broken) {
		t.Errorf("%v, want %v", err, broken)
	}
	has("first", 0o644)
	if err := errors.Join(os.Chmod(path, 0o600), os.Symlink(path, link)); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(link, text("second")); err != nil {
		t.Fatal(err)
	}
	has("second", 0o600)
	if target, err := os.Readlink(link); err != nil || target != path {
		t.Errorf("the link goes to %q, %v", target, err)
	}
	if err := WriteFile(os.DevNull, text("nothing")); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(os.DevNull); err != nil || info.Mode().IsRegular() {
		t.Errorf("%s is a file now", os.DevNull)
	}
	if err := WriteFile(filepath.Join(dir, "missing", "file"), text("x")); err == nil {
		t.Error("written into a folder that is not there")
	}
}
