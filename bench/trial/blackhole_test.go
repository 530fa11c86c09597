package main

import (
	"strings"
	"testing"
	"time"
)

// A black hole, in short. How long requests take is no matter of tests; that they are told, and that none fails, is.
func TestBlackhole(t *testing.T) {
	o := &blackholeOptions{faults: "drop", stunnel: "off", live: 2, outage: 500 * time.Millisecond, load: 200 * time.Millisecond}
	out, err := carryOut(t, t.Context(), "", o.run)
	if err != nil && !strings.HasPrefix(err.Error(), "not every claim held") {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"icapgate, least_inflight  stay", "icapgate, round_robin     new", "held    drop, icapgate, round_robin: 0 of"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
}

func TestHoleFigures(t *testing.T) {
	var f holeFigures
	if f.quantile(0.5) != 0 {
		t.Errorf("the median of nothing is %v", f.quantile(0.5))
	}
	for i := range 100 {
		f.add(holeRequest{took: time.Duration(100-i) * 20 * time.Millisecond})
	}
	if f.quantile(0.99) != 1980*time.Millisecond || f.quantile(1) != 2*time.Second || f.slow != 51 {
		t.Errorf("p99 %v, longest %v, %d of a second, want 1.98s, 2s, 51", f.quantile(0.99), f.quantile(1), f.slow)
	}
	for d, want := range map[time.Duration]string{0: "-", 1234 * time.Microsecond: "1.2 ms", 123 * time.Millisecond: "123 ms", 12345 * time.Millisecond: "12.3 s"} {
		if got := shown(d); got != want {
			t.Errorf("%v is shown as %q, want %q", d, got, want)
		}
	}
}
