package dlpstub

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"icapgate/icap"
)

func TestParseIncident(t *testing.T) {
	for _, tt := range []struct {
		id  string
		run string
		n   uint64
	}{
		{"ab12-0", "ab12", 0},
		{"a-5000", "a", 5000},
		{"0-999999999999999999", "0", 999999999999999999},
		{strings.Repeat("z", 32) + "-1", strings.Repeat("z", 32), 1},
	} {
		if run, n, ok := parseIncident([]byte(tt.id)); !ok || string(run) != tt.run || n != tt.n {
			t.Errorf("%q: %q, %d, %v", tt.id, run, n, ok)
		}
	}
	for _, id := range []string{"", "-", "-1", "a", "a-", "a-01", "a-1x", "a-+1", "a--1", "A-1", "a.b-1", "a b-1", "a-1000000000000000000",
		"a- 1", strings.Repeat("z", 33) + "-1"} {
		if run, n, ok := parseIncident([]byte(id)); ok {
			t.Errorf("%q was taken for %q, %d", id, run, n)
		}
	}
}

func FuzzParseIncident(f *testing.F) {
	for _, s := range []string{"ab12-0", "a-5000", "-1", "a-01", "a-999999999999999999999", "a-b-3"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, id []byte) {
		run, n, ok := parseIncident(id)
		if ok && fmt.Sprintf("%s-%d", run, n) != string(id) {
			t.Errorf("%q was taken for %q, %d", id, run, n)
		}
		in := NewIncidents()
		in.note(id, whole)
		l := in.Ledger()
		if parsed := len(l.Runs) == 1; parsed != ok || parsed == (l.Unparsed == 1) {
			t.Errorf("%q: %+v", id, l)
		}
	})
}

func TestIncidents(t *testing.T) {
	in := NewIncidents()
	for n := range 5000 {
		in.note(fmt.Appendf(nil, "ab12-%d", n), whole)
	}
	for _, n := range []int{7, 4095, 4096, 4096, 123456} {
		in.note(fmt.Appendf(nil, "ab12-%d", n), whole)
	}
	for range 300 {
		in.note([]byte("z-0"), whole)
	}
	in.note([]byte("ab12-9"), cut)
	in.note([]byte("ab12-5001"), cut)
	in.note([]byte("ab12-5001"), refused)
	in.note([]byte("other"), whole)
	want := Ledger{
		Runs: []Run{
			{Name: "ab12", Distinct: 5001, Total: 5005, Cut: 2, Refused: 1, IDs: []IDRange{
				{0, 6, 1}, {7, 7, 2}, {8, 4094, 1}, {4095, 4095, 2}, {4096, 4096, 3}, {4097, 4999, 1}, {123456, 123456, 1}}},
			{Name: "z", Distinct: 1, Total: 300, IDs: []IDRange{{0, 0, 255}}},
		},
		Unparsed: 1,
	}
	if diff := cmp.Diff(want, in.Ledger()); diff != "" {
		t.Error(diff)
	}
}

func TestIncidentsAreBounded(t *testing.T) {
	in := NewIncidents()
	for i := range MaxIncidentRuns + 3 {
		in.note(fmt.Appendf(nil, "r%d-0", i), whole)
	}
	in.note(fmt.Appendf(nil, "r0-%d", MaxIncidentNumber-1), whole)
	in.note(fmt.Appendf(nil, "r0-%d", MaxIncidentNumber), whole)
	in.pages = maxIncidentPages // as if that much had come
	in.note([]byte("r1-1"), whole)
	in.note([]byte("r1-9999"), whole)
	l := in.Ledger()
	if len(l.Runs) != MaxIncidentRuns || l.Beyond != 5 || l.Runs[0].Total != 2 || l.Runs[1].Total != 2 {
		t.Errorf("%d runs, %d beyond, %+v", len(l.Runs), l.Beyond, l.Runs[:2])
	}
}

// TestIncidentsOfRequests is about what counts as received, cut and refused.
func TestIncidentsOfRequests(t *testing.T) {
	in := NewIncidents()
	cfg := Config{Incidents: in, IncidentField: "X-ID", Treat: func(r *Request, how *Treatment) {
		if strings.Contains(string(r.Head), "X-Fail") {
			how.Status = 503
		}
	}}
	id := func(n int) string { return fmt.Sprintf("Allow: 204\r\nX-ID: run-%d\r\n", n) }
	s := New(cfg)
	nc := dialPipe(s)
	mustWrite(t, nc, reqmod+id(0)+"Encapsulated: req-body=0\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
	mustExpect(t, nc, head(204, ""))
	mustWrite(t, nc, reqmod+id(1)+"Preview: 4\r\nEncapsulated: req-body=0\r\n\r\n4\r\nhell\r\n0\r\n\r\n")
	mustExpect(t, nc, head(204, ""))
	mustWrite(t, nc, reqmod+id(2)+"X-Fail: 1\r\nEncapsulated: req-body=0\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
	mustExpect(t, nc, head(503, ""))
	mustWrite(t, nc, reqmod+"Allow: 204\r\nX-ID: nonsense\r\nEncapsulated: null-body=0\r\n\r\n")
	mustExpect(t, nc, head(204, ""))
	mustWrite(t, nc, bodyless) // without an id
	mustExpect(t, nc, head(204, ""))
	mustWrite(t, nc, reqmod+id(3)+"Encapsulated: req-body=0\r\n\r\n5\r\nhel")
	nc.Close()
	second := dialPipe(s)
	mustWrite(t, second, reqmod+id(3)+"Encapsulated: null-body=0\r\n\r\n")
	mustExpect(t, second, head(204, ""))
	second.Close()
	s.Close()
	want := Ledger{Unparsed: 1, Runs: []Run{{Name: "run", Distinct: 3, Total: 3, Cut: 1, Refused: 1, IDs: []IDRange{{0, 1, 1}, {3, 3, 1}}}}}
	if diff := cmp.Diff(want, in.Ledger()); diff != "" {
		t.Error(diff)
	}
	st := s.Stats()
	if diff := cmp.Diff(map[int]uint64{204: 5, 503: 1}, st.Answers); diff != "" {
		t.Error(diff)
	}
	counts := PerConn{Least: 1, Most: 6, Mean: 3.5}
	counts.Counts[1], counts.Counts[3] = 1, 1
	if st.PerConn != counts || st.Active != 0 || st.PeakActive < 1 || st.Requests[icap.MethodReqmod] != 7 {
		t.Errorf("%+v", st)
	}
}

// A request that was read to its end has arrived, also if its connection is reset before the answer to it is due.
func TestIncidentOfAResetConnection(t *testing.T) {
	for _, cfg := range []Config{{Latency: time.Hour}, {Mode: Echo, LatencyPerMiB: 1 << 60}} {
		in := NewIncidents()
		cfg.Incidents, cfg.IncidentField = in, "X-ID"
		s := New(cfg)
		synctest.Test(t, func(t *testing.T) {
			nc := dialPipe(s)
			mustWrite(t, nc, reqmod+"X-ID: run-0\r\nAllow: 204\r\nEncapsulated: req-body=0\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
			synctest.Wait()
			s.Close()
		})
		want := Ledger{Runs: []Run{{Name: "run", Distinct: 1, Total: 1, IDs: []IDRange{{0, 0, 1}}}}}
		if diff := cmp.Diff(want, in.Ledger()); diff != "" {
			t.Errorf("%+v: %s", cfg, diff)
		}
	}
}
