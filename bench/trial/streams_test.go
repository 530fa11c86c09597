package main

import (
	"strings"
	"testing"
	"time"
)

// Endless streams, in short. How long short requests take is no matter of tests; that they are answered, and who goes, is.
func TestStreams(t *testing.T) {
	o := &streamsOptions{length: 4 * time.Second, clients: 2}
	out, err := carryOut(t, t.Context(), "", o.run)
	if err != nil && !strings.HasPrefix(err.Error(), "not every claim held") {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"held    none: all", "held    reject: all", "held    reject: a server had up to 2 long streams", "held    allow: all", "held    allow: none was rejected"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
}
