package result

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
)

// maxID bounds the numbers of incidents.
const maxID = 1 << 62

// Received says that servers got each id of a range so many times.
type Received struct {
	Range
	Count int64
}

// Proof compares the incident ids that were sent with those that servers have received.
type Proof struct {
	Answered uint64 // ids of requests that were answered as they should be
	Failed   uint64 // ids of those that were not
	Arrived  uint64 // of the failed ones, at a server nevertheless

	Lost    []Range    // answered, but at no server
	Doubled []Received // at servers more than once
	Unknown []Range    // at a server, but not sent; of the runs of the result
}

// check refuses ranges that are none.
func (in *Incidents) check() error {
	if in == nil {
		return nil
	}
	for _, list := range [][]Range{in.Sent, in.Failed} {
		for _, r := range list {
			if err := r.check(); err != nil {
				return err
			}
			if !slices.Contains(in.Runs, r.Run) {
				return fmt.Errorf("it has incident ids of the run %q, which is none of its runs", r.Run)
			}
		}
	}
	return nil
}

func (r Range) check() error {
	if r.From > r.To || r.To > maxID {
		return fmt.Errorf("it has the range of incident ids %d to %d", r.From, r.To)
	}
	return nil
}

// size returns how many ids there are.
func size(list []Range) (n uint64) {
	for _, r := range list {
		n += r.To - r.From + 1
	}
	return n
}

// edge is a number at which a range begins or ends.
type edge struct {
	at                     uint64
	sent, failed, received int64 // changes
}

// Prove compares the ids with what all servers have received together. What servers received of other runs does not matter.
func (in *Incidents) Prove(received []Received) (*Proof, error) {
	edges := map[string][]edge{}
	add := func(r Range, sent, failed, received int64) {
		edges[r.Run] = append(edges[r.Run], edge{r.From, sent, failed, received}, edge{r.To + 1, -sent, -failed, -received})
	}
	for _, r := range in.Sent {
		add(r, 1, 0, 0)
	}
	for _, r := range in.Failed {
		add(r, 0, 1, 0)
	}
	for _, r := range received {
		if err := r.check(); err != nil {
			return nil, err
		}
		if r.Count <= 0 {
			return nil, errors.New("it has a range of incident ids with the count " + fmt.Sprint(r.Count))
		}
		add(r.Range, 0, 0, r.Count)
	}
	p := &Proof{}
	for _, run := range in.Runs {
		p.sweep(run, edges[run])
	}
	return p, nil
}

// sweep goes through the numbers of a run, from edge to edge.
func (p *Proof) sweep(run string, edges []edge) {
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	var now edge
	for i, e := range edges {
		now.sent, now.failed, now.received = now.sent+e.sent, now.failed+e.failed, now.received+e.received
		if i+1 < len(edges) && edges[i+1].at > e.at {
			p.judge(now, Range{run, e.at, edges[i+1].at - 1})
		}
	}
}

// judge sorts a range of which all ids had the same fate.
func (p *Proof) judge(now edge, r Range) {
	n := r.To - r.From + 1
	switch {
	case now.sent == 0 && now.received > 0:
		p.Unknown = appendRange(p.Unknown, r)
		return
	case now.sent == 0:
		return
	case now.failed > 0:
		p.Failed += n
		if now.received > 0 {
			p.Arrived += n
		}
	default:
		p.Answered += n
		if now.received == 0 {
			p.Lost = appendRange(p.Lost, r)
		}
	}
	if now.received > 1 {
		p.Doubled = append(p.Doubled, Received{r, now.received})
	}
}

// appendRange adds a range, to the last one if it goes on from there.
func appendRange(list []Range, r Range) []Range {
	if last := len(list) - 1; last >= 0 && list[last].Run == r.Run && list[last].To+1 == r.From {
		list[last].To = r.To
		return list
	}
	return append(list, r)
}

// LostIDs and DoubledIDs return how many ids were lost, and received more than once.
func (p *Proof) LostIDs() uint64 { return size(p.Lost) }

func (p *Proof) DoubledIDs() (n uint64) {
	for _, d := range p.Doubled {
		n += d.To - d.From + 1
	}
	return n
}

// maxShown bounds the ids that are printed of each sort.
const maxShown = 10

// Print writes the proof for people.
func (p *Proof) Print(w io.Writer) {
	fmt.Fprintf(w, "incidents   %d answered, of these %d lost (at no server); %d failed, of these %d at a server; %d doubled\n",
		p.Answered, p.LostIDs(), p.Failed, p.Arrived, p.DoubledIDs())
	for i, r := range p.Lost {
		if i == maxShown {
			fmt.Fprintf(w, "lost        and %d more\n", size(p.Lost[i:]))
			break
		}
		fmt.Fprintf(w, "lost        %v\n", r)
	}
	for i, d := range p.Doubled {
		if i == maxShown {
			fmt.Fprintf(w, "doubled     and %d more ranges\n", len(p.Doubled)-i)
			break
		}
		fmt.Fprintf(w, "doubled     %v: %d times\n", d.Range, d.Count)
	}
	if len(p.Unknown) > 0 {
		fmt.Fprintf(w, "CAUTION     servers have %d ids of these runs that were not sent, the first is %v\n", size(p.Unknown), p.Unknown[0])
	}
}

// String returns the ids as they are sent: ab-7, or ab-7 to ab-9.
func (r Range) String() string {
	if r.From == r.To {
		return fmt.Sprintf("%s-%d", r.Run, r.From)
	}
	return fmt.Sprintf("%s-%d to %s-%d", r.Run, r.From, r.Run, r.To)
}
