package report

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// need returns the path of a program that the test uses.
func need(t *testing.T, program, debianPackage string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	text := fmt.Sprintf("%s is not installed (Debian package %s)", program, debianPackage)
	if os.Getenv("ICAPGATE_REQUIRE_PEERS") == "1" {
		t.Fatal(text + " and ICAPGATE_REQUIRE_PEERS=1 is set")
	}
	t.Skip(text + "; ICAPGATE_REQUIRE_PEERS=1 makes this a failure")
	return ""
}

// load loads a page in a browser without a window, and returns what it has made of it and what it has logged.
func load(t *testing.T, chromium string, page []byte) (dom, log string) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "page.html")
	if err := os.WriteFile(file, page, 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--enable-logging=stderr", "--user-data-dir="+filepath.Join(dir, "profile"),
		"--dump-dom", "file://"+file)
	cmd.WaitDelay = 5 * time.Second
	var out, errors bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errors
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, errors.Bytes())
	}
	return out.String(), errors.String()
}

// consoleLines returns what pages have logged, such as errors of their scripts and what their policy has refused.
func consoleLines(log string) []string {
	return regexp.MustCompile(`.*:CONSOLE.*`).FindAllString(log, -1)
}

// pointer moves the pointer over all charts of a page, as a browser without a window has none, and leaves in data-at what the legends say.
const pointer = `<script>
document.querySelectorAll("figure[data-hover] svg").forEach(function (svg) {
  var box = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 2, clientY: box.top + 50}));
  var legend = svg.parentNode.querySelector(".legend");
  svg.parentNode.dataset.at = legend.textContent.replace(/\s+/g, " ");
  svg.dispatchEvent(new PointerEvent("pointerleave"));
  svg.parentNode.dataset.after = legend.textContent.replace(/\s+/g, " ");
});
</script></body>`

func TestInBrowser(t *testing.T) {
	chromium := need(t, "chromium", "chromium")
	all := samplePages(t)
	for _, name := range []string{"open", "many", "hostile", "empty", "compare", "capacity"} {
		t.Run(name, func(t *testing.T) {
			dom, log := load(t, chromium, all[name])
			if lines := consoleLines(log); len(lines) > 0 {
				t.Errorf("the browser complains: %s", strings.Join(lines, "\n"))
			}
			if got := strings.Count(dom, "<svg"); got != charts[name] {
				t.Errorf("%d charts, want %d", got, charts[name])
			}
			if strings.Count(dom, "<script") != 1 || strings.Contains(dom, "<img") {
				t.Error("what was text is an element")
			}
		})
	}
	t.Run("values under the pointer", func(t *testing.T) {
		page := regexp.MustCompile(`script-src [^"]*`).ReplaceAll(all["open"], []byte("script-src 'unsafe-inline'"))
		dom, log := load(t, chromium, bytes.Replace(page, []byte("</body>"), []byte(pointer), 1))
		if lines := consoleLines(log); len(lines) > 0 {
			t.Errorf("the browser complains: %s", strings.Join(lines, "\n"))
		}
		found := regexp.MustCompile(`data-at="([^"]*)" data-after="([^"]*)"`).FindAllStringSubmatch(dom, -1)
		if len(found) != charts["open"]-1 { // the distribution has no such values
			t.Fatalf("%d charts: %q", len(found), found)
		}
		times := regexp.MustCompile(`^ ?max [0-9.]+ ms p99 [0-9.]+ ms p90 [0-9.]+ ms p50 [0-9.]+ ms at 5[67]s$`)
		if !times.MatchString(strings.TrimSpace(found[0][1])) || regexp.MustCompile(`[0-9] ms`).MatchString(found[0][2]) {
			t.Errorf("over the time: %q, and afterwards %q", found[0][1], found[0][2])
		}
		if !strings.Contains(found[1][1], "at 99.") || !strings.Contains(found[2][1], "planned 300 at 5") {
			t.Errorf("percentiles: %q, throughput: %q", found[1][1], found[2][1])
		}
	})
	t.Run("a complaint would be seen", func(t *testing.T) {
		bad := bytes.Replace(all["empty"], []byte("</body>"), []byte("<script>missing()</script></body>"), 1)
		if _, log := load(t, chromium, bad); len(consoleLines(log)) == 0 {
			t.Errorf("a script that the policy forbids is not logged:\n%s", log)
		}
	})
}
