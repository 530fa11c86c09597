package gateway

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Of gnet the poller is used and not the engine (docs/ARCHITECTURE.md says why), and one file knows it.

const (
	gnetModule = "github.com/panjf2000/gnet"
	gnetEngine = gnetModule + "/v2"
	gnetPoller = gnetModule + "/v2/pkg/netpoll"
)

func TestOneFileImportsGnet(t *testing.T) {
	root := moduleRoot(t)
	files := 0
	var importers []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "_") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if d.IsDir() || filepath.Ext(path) != ".go" {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		files++
		for _, imp := range file.Imports {
			if strings.HasPrefix(strings.Trim(imp.Path.Value, "`\""), gnetModule) {
				name, _ := filepath.Rel(root, path)
				importers = append(importers, filepath.ToSlash(name)+" "+imp.Path.Value)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Fatalf("%d files looked at: this is not the whole module", files)
	}
	poller := false
	for _, i := range importers {
		name, path, _ := strings.Cut(i, " ")
		if name != "gateway/poller_linux.go" {
			t.Errorf("%s imports %s: only gateway/poller_linux.go may", name, path)
		}
		poller = poller || path == `"`+gnetPoller+`"`
	}
	if !poller {
		t.Errorf("gateway/poller_linux.go does not import %s; imports of gnet: %q", gnetPoller, importers)
	}
}

func moduleRoot(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
	}
}

// The program holds gnet's poller and not its engine, not even by way of somebody else.
func TestProgramHasNoGnetEngine(t *testing.T) {
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("the go command is not there: ", err)
	}
	cmd := exec.Command(goTool, "list", "-deps", "icapgate/cmd/icapgate")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	deps := make(map[string]bool)
	for line := range strings.Lines(string(out)) {
		deps[strings.TrimSpace(line)] = true
	}
	if !deps[gnetPoller] {
		t.Errorf("%s is not in the program", gnetPoller)
	}
	if deps[gnetEngine] || deps[gnetModule] {
		t.Errorf("the engine %s is in the program", gnetEngine)
	}
}

// What gnet logs goes to our log and never to stdout, where the ready line and the access log are.
func TestGnetLogsToOurLog(t *testing.T) {
	const role = "ICAPGATE_TEST_BROKEN_POLLER"
	if os.Getenv(role) != "" {
		p, err := openPoller()
		if err != nil {
			os.Exit(3)
		}
		p.close()
		if p.run(func(int, uint32) {}) == nil { // waits on a closed descriptor, which gnet logs
			os.Exit(4)
		}
		os.Exit(0) // before the testing package prints anything
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestGnetLogsToOurLog$")
	cmd.Env = append(os.Environ(), role+"=1")
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, &stdout, &stderr)
	}
	if stdout.Len() > 0 {
		t.Errorf("stdout got %q", &stdout)
	}
	if !strings.Contains(stderr.String(), "poll") || !strings.Contains(stderr.String(), "bad file descriptor") {
		t.Errorf("our log has not got gnet's line: %q", &stderr)
	}
}
