package istag

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strings"
	"time"
)

// Times for which a change of the servers' tags is held.
const (
	hold    = 60 * time.Second // nothing has changed any more for so long
	maxHold = 10 * time.Minute // and so long at most while the servers differ more than before: an update is under way
	maxWait = 10 * time.Second // for servers that have not said anything yet, before there is a first value
)

// An ISTag that is another one in so many answers in a row means nothing, until it has been the same in so many.
const (
	fickleAfter = 3
	steadyAfter = 10
)

// prefix begins every value: who sees it knows whose it is.
const prefix = "GW-"

// maxTag bounds what is kept of a server's tag. RFC 3507 4.7 allows 32 characters; servers say longer ones.
const maxTag = 256

// Unquote returns what a server has said without quotes, which not all send.
func Unquote(tag string) string { return strings.Trim(tag[:min(len(tag), maxTag)], `"`) }

// Source is what one server has last said for one path.
type Source struct {
	ID   string    // of server and path; the same over restarts
	Of   string    // what it is one of: these are to have the same tag
	Tag  string    // as received
	Seen time.Time // when; zero: it has said nothing since the start
}

// Tag is the tag of one service. Its zero value has none yet. It is not safe for concurrent use.
type Tag struct {
	value string             // as clients see it, without quotes; "": none yet
	kinds int                // different tags of the servers that it stands for
	known map[string]*source // by ID

	differing int  // different tags of sources that are to have the same, where they are the most
	counting  bool // some source has another tag than it had before, lately

	candidate string    // another value that what is known would make, "": none
	differs   time.Time // since when there is one
	settled   time.Time // since when it is this one
}

// source is what is known of a Source.
type source struct {
	of      string
	tag     string
	seen    time.Time
	changes int  // in a row
	same    int  // answers in a row with this tag
	fickle  bool // it has no say
}

// Value returns the tag, without quotes.
func (t *Tag) Value() string {
	if t.value == "" {
		return Unknown
	}
	return t.value
}

// Pending says whether Observe has something to do though no server says another tag: a change is held, or a tag has changed lately and it counts how
// often it stays the same.
func (t *Tag) Pending() bool { return t.candidate != "" || t.counting }

// Differing returns how many different tags there are among sources that are to have the same, where they are the most.
func (t *Tag) Differing() int { return t.differing }

// Observe takes in what the servers have last said: one Source for each configured server and path, also for those that have not said anything. It
// returns whether the value has changed.
func (t *Tag) Observe(now time.Time, sources []Source) (changed bool) {
	t.take(sources)
	tags := t.tags()
	next := ofTags(tags)
	switch {
	case next == t.value || len(tags) == 0:
		t.candidate = ""
		return false
	case t.candidate == "":
		t.candidate, t.differs, t.settled = next, now, now
	case t.candidate != next:
		t.candidate, t.settled = next, now
	}
	if t.holds(now, len(tags)) {
		return false
	}
	t.value, t.kinds, t.candidate = next, len(tags), ""
	return true
}

// holds says whether the candidate, which stands for so many tags, has to wait.
func (t *Tag) holds(now time.Time, kinds int) bool {
	since, unchanged := now.Sub(t.differs), now.Sub(t.settled)
	if t.value == "" {
		return since < maxWait && !t.allKnown()
	}
	underWay := kinds > t.kinds
	return since < maxHold && (underWay || unchanged < hold)
}

// allKnown says whether every server has said something.
func (t *Tag) allKnown() bool {
	for _, k := range t.known {
		if k.tag == "" {
			return false
		}
	}
	return true
}

// take notes what has been said since the last time, and forgets servers that are not configured any more.
func (t *Tag) take(sources []Source) {
	known := make(map[string]*source, len(sources))
	for _, s := range sources {
		k := t.known[s.ID]
		if k == nil {
			k = new(source)
		}
		k.of = s.Of
		known[s.ID] = k
		if s.Seen.IsZero() || s.Seen.Equal(k.seen) {
			continue
		}
		k.observe(Unquote(s.Tag), s.Seen)
	}
	t.known, t.differing, t.counting = known, 0, false
	type kind struct{ of, tag string }
	seen, kinds := make(map[kind]bool), make(map[string]int)
	for _, k := range known {
		t.counting = t.counting || k.changes > 0 || k.fickle
		if at := (kind{k.of, k.tag}); k.hasSay() && !seen[at] {
			seen[at] = true
			kinds[k.of]++
			t.differing = max(t.differing, kinds[k.of])
		}
	}
}

// hasSay says whether the tag stands for this one, too.
func (k *source) hasSay() bool { return k.tag != "" && !k.fickle }

// observe takes the tag of another answer.
func (k *source) observe(tag string, seen time.Time) {
	first := k.seen.IsZero() && k.tag == ""
	if tag == k.tag {
		k.changes, k.same = 0, k.same+1
	} else {
		k.changes, k.same = k.changes+1, 1
	}
	if first {
		k.changes = 0
	}
	k.tag, k.seen = tag, seen
	k.fickle = k.changes >= fickleAfter || k.fickle && k.same < steadyAfter
}

// tags are the different tags that are known, in order.
func (t *Tag) tags() []string {
	set := make(map[string]struct{})
	for _, k := range t.known {
		if k.hasSay() {
			set[k.tag] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// Known lists which source has which tag, up to a number of them, for a log. Those without a say are left out.
func (t *Tag) Known(most int) (list []string) {
	known := t.Save().Known
	for _, id := range slices.Sorted(maps.Keys(known)) {
		if len(list) == most {
			return append(list, "...")
		}
		list = append(list, id+" "+known[id])
	}
	return list
}

// ofTags is the value that stands for a set of tags: the same for every gateway and at any time.
func ofTags(tags []string) string {
	sum := sha256.Sum256([]byte(strings.Join(tags, "\x00")))
	return prefix + hex.EncodeToString(sum[:8])
}

// Unknown is the value while nothing is known of any server.
var Unknown = ofTags(nil)

// Saved is what outlives the process.
type Saved struct {
	Value string            `json:"istag"`
	Known map[string]string `json:"servers"` // tags by ID of the source
}

// Save returns what is to be restored after a restart. Tags without a say are left out.
func (t *Tag) Save() Saved {
	s := Saved{t.value, make(map[string]string)}
	for id, k := range t.known {
		if k.hasSay() {
			s.Known[id] = k.tag
		}
	}
	return s
}

// Restore makes t what it was when s was saved. A value that is none of this package's counts for nothing: it would be in every answer.
func (t *Tag) Restore(s Saved) {
	if sum, ours := strings.CutPrefix(s.Value, prefix); !ours || len(s.Value) != len(Unknown) || strings.Trim(sum, "0123456789abcdef") != "" {
		s.Value = ""
	}
	t.known = make(map[string]*source, len(s.Known))
	for id, tag := range s.Known {
		t.known[id] = &source{tag: tag, same: 1}
	}
	t.value, t.kinds = s.Value, max(len(t.tags()), 1)
}
