package gateway

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	for _, name := range []string{"STATE_DIRECTORY", "XDG_STATE_HOME", "HOME"} { // no state_dir but what a test gives: one must not learn from another
		os.Unsetenv(name)
	}
	goleak.VerifyTestMain(m)
}
