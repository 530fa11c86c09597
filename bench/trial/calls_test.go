package main

import (
	"maps"
	"testing"
)

func TestParseCalls(t *testing.T) {
	got, err := parseCalls(`% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 29.22    0.683623        1113       614           nanosleep
  9.08    0.212561           5     40047        17 recvfrom
------ ----------- ----------- --------- --------- ----------------
100.00    2.339588          26     88405        50 total
`)
	if want := map[string]int{"nanosleep": 614, "recvfrom": 40047}; err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v (%v), want %v", got, err, want)
	}
	for _, text := range []string{"", "strace: attach: ptrace(PTRACE_SEIZE, 1): Operation not permitted\n"} {
		if got, err := parseCalls(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}
