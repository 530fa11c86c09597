package istag

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

var begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// fleet are servers that are asked every 5 s.
type fleet struct {
	t    *testing.T
	tag  Tag
	says map[string]string // by ID; "": it is down
	last map[string]Source
	now  time.Time
	new  int // changes of the tag so far
}

func newFleet(t *testing.T, says map[string]string) *fleet {
	return &fleet{t: t, says: says, last: make(map[string]Source), now: begin}
}

// pass lets so much time go by, with a look every second.
func (f *fleet) pass(d time.Duration) {
	for end := f.now.Add(d); ; f.now = f.now.Add(time.Second) {
		var all []Source
		for id, says := range f.says {
			s := f.last[id]
			s.ID = id
			if says != "" && f.now.Sub(begin)%(5*time.Second) == 0 {
				s.Tag, s.Seen = says, f.now
				if says == "random" {
					s.Tag = fmt.Sprintf("%q", f.now)
				}
			}
			f.last[id] = s
			all = append(all, s)
		}
		before := f.tag.Value()
		changed := f.tag.Observe(f.now, all)
		if changed != (f.tag.Value() != before) {
			f.t.Errorf("after %v: changed %v, from %s to %s", f.now.Sub(begin), changed, before, f.tag.Value())
		}
		if changed {
			f.new++
		}
		if !f.now.Before(end) {
			return
		}
	}
}

// expect checks how often the tag has changed since the last time.
func (f *fleet) expect(changes int, what string) {
	f.t.Helper()
	if f.new != changes {
		f.t.Errorf("%s: %d changes of the tag, want %d", what, f.new, changes)
	}
	f.new = 0
}

func TestTagLooks(t *testing.T) {
	f := newFleet(t, map[string]string{"a": `"one"`, "b": `one`})
	if f.tag.Value() != ofTags(nil) {
		t.Errorf("%s before anything is known", f.tag.Value())
	}
	f.pass(0)
	f.expect(1, "the first answers")
	if got := f.tag.Value(); got != ofTags([]string{"one"}) || len(got) > 30 {
		t.Errorf("tag %s, want one of up to 30 characters that stands for one tag, quotes or not", got)
	}
	one := f.tag.Value()
	other := newFleet(t, map[string]string{"x": "two", "y": "one"})
	other.pass(0)
	if other.tag.Value() == one {
		t.Error("other servers, the same tag")
	}
	again := newFleet(t, map[string]string{"c": "one", "d": "two", "e": "one"})
	again.pass(0)
	if again.tag.Value() != other.tag.Value() {
		t.Error("the tag depends on more than the tags of the servers: gateways would differ")
	}
}

func TestTagHolds(t *testing.T) {
	twenty := func(tag string) map[string]string {
		all := make(map[string]string)
		for i := range 20 {
			all[fmt.Sprint(i)] = tag
		}
		return all
	}
	tests := []struct {
		name string
		says map[string]string
		do   func(f *fleet)
	}{
		{"a server that goes down and comes back", map[string]string{"a": "1", "b": "2"}, func(f *fleet) {
			for range 10 {
				f.says["a"] = ""
				f.pass(30 * time.Second)
				f.says["a"] = "1"
				f.pass(30 * time.Second)
			}
			f.expect(0, "a flap")
		}},
		{"an update of one server only", map[string]string{"a": "1"}, func(f *fleet) {
			f.says["a"] = "2"
			f.pass(hold - time.Second)
			f.expect(0, "just before the hold is over")
			f.pass(6 * time.Second)
			f.expect(1, "the hold is over")
		}},
		{"an update that is taken back", map[string]string{"a": "1"}, func(f *fleet) {
			f.says["a"] = "2"
			f.pass(30 * time.Second)
			f.says["a"] = "1"
			f.pass(5 * time.Minute)
			f.expect(0, "an update that was none")
		}},
		{"a rolling update", twenty("1"), func(f *fleet) {
			for i := range 20 {
				f.says[fmt.Sprint(i)] = "2"
				f.pass(20 * time.Second)
			}
			f.expect(0, "during the update")
			f.pass(2 * time.Minute)
			f.expect(1, "after a rolling update")
		}},
		{"a rolling restart of servers that each have a tag of their own", map[string]string{"a": "a1", "b": "b1", "c": "c1"}, func(f *fleet) {
			for _, id := range []string{"a", "b", "c"} {
				f.says[id] = id + "2"
				f.pass(40 * time.Second)
			}
			f.pass(2 * time.Minute)
			f.expect(1, "after the restarts")
		}},
		{"an update that gets stuck", map[string]string{"a": "1", "b": "1"}, func(f *fleet) {
			f.says["a"] = "2"
			f.pass(maxHold - time.Second)
			f.expect(0, "while the update is under way")
			f.pass(10 * time.Second)
			f.expect(1, "it is stuck")
			f.says["b"] = "2"
			f.pass(2 * time.Minute)
			f.expect(1, "it went on")
		}},
		{"servers that never agree", map[string]string{"a": "1", "b": "2"}, func(f *fleet) {
			f.says["b"] = "3"
			f.pass(hold + 5*time.Second)
			f.expect(1, "an update")
		}},
		{"a tag that is another one each time", map[string]string{"a": "1", "b": "random"}, func(f *fleet) {
			f.pass(time.Hour)
			f.new = 0 // until it was found out
			f.pass(time.Hour)
			f.expect(0, "a fickle server")
			if f.tag.Value() != ofTags([]string{"1"}) || f.tag.Differing() != 1 {
				t.Errorf("tag %s of %d", f.tag.Value(), f.tag.Differing())
			}
			f.says["a"] = "2"
			f.pass(2 * time.Minute)
			f.expect(1, "an update of the other one")
			f.says["b"] = "2"
			f.pass(time.Hour)
			f.expect(0, "it has become steady, with the same tag")
		}},
		{"only fickle servers", map[string]string{"a": "random"}, func(f *fleet) {
			f.pass(time.Hour)
			f.new = 0
			f.pass(time.Hour)
			f.expect(0, "fickle servers only")
		}},
		{"a server more, with the same tag", map[string]string{"a": "1"}, func(f *fleet) {
			f.says["b"] = "1"
			f.pass(time.Hour)
			f.expect(0, "one more of the same")
		}},
		{"a server less", map[string]string{"a": "1", "b": "2"}, func(f *fleet) {
			delete(f.says, "b")
			f.pass(time.Hour)
			f.expect(1, "one has been taken out")
		}},
		{"no server any more", map[string]string{"a": "1"}, func(f *fleet) {
			delete(f.says, "a")
			f.pass(time.Hour)
			f.expect(0, "there is nothing that it could stand for")
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFleet(t, test.says)
			f.pass(5 * time.Minute)
			f.new = 0
			test.do(f)
		})
	}
}

// The first tag waits for those that have not answered yet, and not for ever.
func TestFirstTag(t *testing.T) {
	f := newFleet(t, map[string]string{"a": "1", "b": ""})
	f.pass(9 * time.Second)
	f.expect(0, "one has not said anything yet")
	f.says["b"] = "2"
	f.pass(time.Second)
	f.expect(1, "now all have")
	late := newFleet(t, map[string]string{"a": "1", "b": ""})
	late.pass(maxWait + time.Second)
	late.expect(1, "one is down")
}

func TestTagSurvivesARestart(t *testing.T) {
	f := newFleet(t, map[string]string{"a": "1", "b": "2", "c": "random"})
	f.pass(5 * time.Minute)
	saved := f.tag.Save()
	if len(saved.Known) != 2 {
		t.Errorf("saved %v, want no more than the tags that mean something", saved.Known)
	}
	next := newFleet(t, map[string]string{"a": "1", "b": "", "c": "random"})
	next.tag.Restore(saved)
	if next.tag.Value() != f.tag.Value() {
		t.Errorf("%s after the restart, %s before", next.tag.Value(), f.tag.Value())
	}
	next.pass(time.Hour)
	next.expect(0, "a server that is down since before the restart, and a fickle one")
	next.says["b"] = "3"
	next.pass(5 * time.Minute)
	next.expect(1, "it has come back with another tag")
}

func TestKnownIsCut(t *testing.T) {
	f := newFleet(t, map[string]string{"a": "1", "b": "2", "c": "random", "d": string(make([]byte, 1000))})
	f.pass(time.Minute)
	if got, want := f.tag.Known(1), []string{"a 1", "..."}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := f.tag.Save().Known["d"]; len(got) != maxTag {
		t.Errorf("%d characters are kept of a tag, want %d", len(got), maxTag)
	}
}

// Only servers of one kind are to have the same tag.
func TestDiffering(t *testing.T) {
	var tag Tag
	if tag.Observe(begin, []Source{{"a/x", "x", "1", begin}, {"b/x", "x", "1", begin}, {"a/y", "y", "2", begin}, {"b/y", "y", "3", begin}, {"c/y", "y", "", time.Time{}}}); tag.Differing() != 2 {
		t.Errorf("%d differ, want the 2 of y", tag.Differing())
	}
	if tag.Observe(begin, []Source{{"a/x", "x", "1", begin}, {"a/y", "y", "2", begin}}); tag.Differing() != 1 {
		t.Errorf("%d differ, want none", tag.Differing())
	}
}

// A file that somebody has written into does not get into answers.
func TestRestoreOfNonsense(t *testing.T) {
	for _, value := range []string{"GW-", "GW-0123456789abcdeg", "GW-0123456789abcdef0", "x\"\r\nX: y", "gw-0123456789abcdef"} {
		var tag Tag
		tag.Restore(Saved{Value: value, Known: map[string]string{"a": "1"}})
		if tag.Value() != Unknown {
			t.Errorf("%q is restored", tag.Value())
		}
	}
	var tag Tag
	if tag.Restore(Saved{Value: "GW-0123456789abcdef"}); tag.Value() != "GW-0123456789abcdef" {
		t.Errorf("%q is restored", tag.Value())
	}
}
