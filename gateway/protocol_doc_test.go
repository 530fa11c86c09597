package gateway

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var (
	vectorID    = regexp.MustCompile(`\b([VMR])(\d\d)\b(?:-[VMR]?(\d\d)\b)?`) // R07, R07-R09
	protocolRow = regexp.MustCompile(`^\| (.+?) \| (.+) \| (.*?) ?\|$`)
	testRef     = regexp.MustCompile("`([^`]+)`")
)

// testSource is what the functions of a package's tests say.
type testSource map[string]*sourceFunc

type sourceFunc struct {
	words []string // literals, comments
	calls []string
}

// readTests parses all tests of the repository, by folder. The vectors that they share belong to each of them.
func readTests(t *testing.T) map[string]testSource {
	t.Helper()
	folders, files := make(map[string]testSource), token.NewFileSet()
	err := filepath.WalkDir("..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") && !strings.HasPrefix(path, filepath.Join("..", "gateway", "vectors")+"/") {
			return err
		}
		file, err := parser.ParseFile(files, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		dir := filepath.Dir(path)
		if folders[dir] == nil {
			folders[dir] = make(testSource)
		}
		for _, d := range file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				folders[dir][d.Name.Name] = readFunc(d, d.Doc, file.Comments)
			case *ast.GenDecl: // tables that tests share
				for _, s := range d.Specs {
					if v, ok := s.(*ast.ValueSpec); ok {
						folders[dir][v.Names[0].Name] = readFunc(v, nil, nil)
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return folders
}

// readFunc collects what a function, or a table, says and whom it calls.
func readFunc(n ast.Node, doc *ast.CommentGroup, comments []*ast.CommentGroup) *sourceFunc {
	f := new(sourceFunc)
	for _, c := range comments {
		if c == doc || c.Pos() >= n.Pos() && c.End() <= n.End() {
			f.words = append(f.words, c.Text())
		}
	}
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BasicLit:
			if s, err := strconv.Unquote(n.Value); err == nil {
				f.words = append(f.words, s)
			}
		case *ast.Ident:
			f.calls = append(f.calls, n.Name)
		}
		return true
	})
	return f
}

// words is what a test says, with the functions and tables that it uses.
func (s testSource) words(name string, shared testSource, seen map[string]bool) (all []string) {
	f := s[name]
	if f == nil {
		f = shared[name]
	}
	if f == nil || seen[name] {
		return nil
	}
	seen[name] = true
	all = f.words
	for _, c := range f.calls {
		all = append(all, s.words(c, shared, seen)...)
	}
	return all
}

// vectorsIn are the ids that a text names.
func vectorsIn(text string) (ids []string) {
	for _, m := range vectorID.FindAllStringSubmatch(text, -1) {
		first, _ := strconv.Atoi(m[2])
		last := first
		if m[3] != "" {
			last, _ = strconv.Atoi(m[3])
		}
		for n := first; n <= last; n++ {
			ids = append(ids, fmt.Sprintf("%s%02d", m[1], n))
		}
	}
	return ids
}

// docs/PROTOCOL.md names tests that there are, and has a row for each vector with a test that knows it.
func TestProtocolDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	folders := readTests(t)
	shared := folders[filepath.Join("..", "gateway", "vectors")]
	// find returns what the tests of that name say.
	find := func(name string) (words []string, found bool) {
		for _, s := range folders {
			if s[name] != nil {
				words, found = append(words, s.words(name, shared, make(map[string]bool))...), true
			}
		}
		return words, found
	}
	rows := make(map[string]int)
	for line := range strings.Lines(string(page)) {
		m := protocolRow.FindStringSubmatch(strings.TrimSuffix(line, "\n"))
		if m == nil {
			if strings.HasPrefix(line, "|") && !strings.HasPrefix(line, "|---") {
				t.Errorf("this row can't be read: %s", line)
			}
			continue
		}
		ids := vectorID.FindAllString(strings.Fields(m[1])[0], -1)
		known := len(ids) == 0
		for _, ref := range testRef.FindAllStringSubmatch(m[3], -1) {
			name, part, _ := strings.Cut(ref[1], "/")
			words, ok := find(name)
			switch {
			case !ok || !strings.HasPrefix(name, "Test"):
				t.Errorf("there is no test %s: %s", name, line)
			case !slices.ContainsFunc(words, func(w string) bool { return strings.HasPrefix(w, part) }):
				t.Errorf("%s has no part %q: %s", name, part, line)
			}
			known = known || slices.ContainsFunc(words, func(w string) bool { return slices.Contains(vectorsIn(w), ids[0]) })
		}
		if !known {
			t.Errorf("no test of this row names %s: %s", ids[0], line)
		}
		for _, id := range ids {
			rows[id]++
		}
	}
	for kind, last := range map[string]int{"V": 36, "M": 56, "R": 38} {
		for n := 1; n <= last; n++ {
			if id := fmt.Sprintf("%s%02d", kind, n); rows[id] != 1 {
				t.Errorf("%s has %d rows, want one", id, rows[id])
			}
		}
	}
}
