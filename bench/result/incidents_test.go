package result

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestProve(t *testing.T) {
	ids := func(run string, from, to uint64) Range { return Range{run, from, to} }
	got := func(run string, from, to uint64, count int64) Received { return Received{Range{run, from, to}, count} }
	tests := []struct {
		name     string
		in       Incidents
		received []Received
		want     Proof
		says     string
	}{
		{
			"all arrived", Incidents{Runs: []string{"a", "b"}, Sent: []Range{ids("a", 0, 99), ids("b", 0, 9)}},
			[]Received{got("a", 0, 49, 1), got("b", 0, 9, 1), got("a", 50, 99, 1)},
			Proof{Answered: 110}, "110 answered, of these 0 lost",
		},
		{
			"every other id at another server", Incidents{Runs: []string{"a"}, Sent: []Range{ids("a", 0, 3)}},
			[]Received{got("a", 0, 0, 1), got("a", 2, 2, 1), got("a", 1, 1, 1), got("a", 3, 3, 1)},
			Proof{Answered: 4}, "0 doubled",
		},
		{
			"lost", Incidents{Runs: []string{"a"}, Sent: []Range{ids("a", 0, 99)}},
			[]Received{got("a", 0, 9, 1), got("a", 12, 98, 1)},
			Proof{Answered: 100, Lost: []Range{ids("a", 10, 11), ids("a", 99, 99)}}, "lost        a-10 to a-11\nlost        a-99\n",
		},
		{
			"no server has anything", Incidents{Runs: []string{"a"}, Sent: []Range{ids("a", 0, 9)}}, nil,
			Proof{Answered: 10, Lost: []Range{ids("a", 0, 9)}}, "of these 10 lost",
		},
		{
			"doubled by one server and by two", Incidents{Runs: []string{"a"}, Sent: []Range{ids("a", 0, 9)}},
			[]Received{got("a", 0, 9, 1), got("a", 3, 3, 2), got("a", 5, 5, 1)},
			Proof{Answered: 10, Doubled: []Received{got("a", 3, 3, 3), got("a", 5, 5, 2)}}, "doubled     a-3: 3 times",
		},
		{
			"failed ones may have arrived", Incidents{Runs: []string{"a"}, Sent: []Range{ids("a", 0, 9)}, Failed: []Range{ids("a", 4, 7)}},
			[]Received{got("a", 0, 5, 1), got("a", 8, 9, 1), got("a", 5, 5, 1)},
			Proof{Answered: 6, Failed: 4, Arrived: 2, Doubled: []Received{got("a", 5, 5, 2)}}, "4 failed, of these 2 at a server; 1 doubled",
		},
		{
			"other runs and unknown ids", Incidents{Runs: []string{"a"}, Sent: []Range{ids("a", 5, 9)}},
			[]Received{got("z", 0, 1000, 7), got("a", 3, 11, 1)},
			Proof{Answered: 5, Unknown: []Range{ids("a", 3, 4), ids("a", 10, 11)}}, "4 ids of these runs that were not sent, the first is a-3 to a-4",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := tt.in.Prove(tt.received)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&tt.want, p); diff != "" {
				t.Error(diff)
			}
			var out strings.Builder
			p.Print(&out)
			if !strings.Contains(out.String(), tt.says) {
				t.Errorf("no %q in\n%s", tt.says, out.String())
			}
		})
	}
	in := Incidents{Runs: []string{"a"}, Sent: []Range{ids("a", 0, 3)}}
	for _, bad := range []Received{got("a", 2, 1, 1), got("a", 0, 1, 0), got("a", 0, 1<<63, 1)} {
		if p, err := in.Prove([]Received{bad}); err == nil {
			t.Errorf("%v proves %+v", bad, p)
		}
	}
}

func TestManyLostAreAbridged(t *testing.T) {
	p := &Proof{}
	for i := range uint64(30) {
		p.Lost = append(p.Lost, Range{"a", 10 * i, 10*i + 1})
		p.Doubled = append(p.Doubled, Received{Range{"a", 10*i + 5, 10*i + 5}, 2})
	}
	var out strings.Builder
	p.Print(&out)
	for _, want := range []string{"of these 60 lost", "30 doubled", "lost        and 40 more\n", "doubled     and 20 more ranges\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
