package health

import (
	"slices"
	"time"

	"icapgate/icap"
)

// Options is what a server has said of itself for one path, in its latest 200 to OPTIONS. It is never changed.
type Options struct {
	icap.Options
	Path    string    // that was asked for
	Seen    time.Time // when it was last said
	Changed time.Time // when the ISTag became another one; zero: it has not
}

// Options returns what the server has said for a path: the index of the path in CheckConfig.Paths; where none is known, 0 is the answer for "/".
// The answers for CheckConfig.Others come behind these. nil: it has said nothing yet. What it has said stays while it is down or in maintenance.
func (s *Status) Options(path int) *Options {
	if all := s.AllOptions(); path >= 0 && path < len(all) {
		return all[path]
	}
	return nil
}

// AllOptions returns what Options does for every path, by index. It must not be changed.
func (s *Status) AllOptions() []*Options {
	if all := s.options.Load(); all != nil {
		return *all
	}
	return nil
}

// ISTagChanges counts how often the server has come with another ISTag for a path.
func (s *Status) ISTagChanges() uint64 { return s.istags.Load() }

// methodSet has a bit for each icap.Method.
type methodSet uint8

func (m methodSet) has(method icap.Method) bool { return m&(1<<method) != 0 }

// Lacks says whether the server has said that it does not do a method for a path, though requests with it are routed there. Whoever has the
// choice takes another server.
func (s *Status) Lacks(path int, method icap.Method) bool {
	lacking := s.lacking.Load()
	return lacking != nil && path >= 0 && path < len(*lacking) && (*lacking)[path].has(method)
}

// LacksAny says whether Lacks is true for any path and method.
func (s *Status) LacksAny() bool { return s.lacking.Load() != nil }

// setOptions publishes what the server says, and which methods it lacks by that. Ownership of the slices passes to the Status.
func (s *Status) setOptions(all []*Options, lacking []methodSet) {
	s.options.Store(&all)
	var now *[]methodSet
	if slices.ContainsFunc(lacking, func(m methodSet) bool { return m != 0 }) {
		now = &lacking
	}
	before := s.lacking.Swap(now)
	if (before == nil) != (now == nil) || before != nil && !slices.Equal(*before, *now) {
		s.tell(usable(s.word.Load()), false) // others than before may serve those who wait
	}
}

// fickle is after how many changes in a row, from one check to the next, an ISTag says nothing any more and is not logged.
const fickle = 3

// said is what a Checker remembers of the answers for its paths.
type said struct {
	options []*Options  // by path; nil: nothing yet
	changes []int       // of the ISTag, in a row
	lacking []methodSet // as logged
}

// recall begins with what is known from an earlier Checker, which may have had other paths.
func (c *Checker) recall() {
	paths := c.cfg.asked()
	c.said = said{make([]*Options, len(paths)), make([]int, len(paths)), make([]methodSet, len(paths))}
	for _, o := range c.status.AllOptions() {
		if o == nil {
			continue
		}
		if i := slices.Index(paths, o.Path); i >= 0 {
			c.said.options[i] = o
		}
	}
	c.status.setOptions(slices.Clone(c.said.options), c.lacking())
}

// learn takes in the answers of one check, by path; nil: no 200 this time.
func (c *Checker) learn(paths []string, answers []*icap.Options, now time.Time) {
	if more := len(paths) - len(c.said.options); more > 0 { // Others has grown
		c.said.options = append(c.said.options, make([]*Options, more)...)
		c.said.changes = append(c.said.changes, make([]int, more)...)
		c.said.lacking = append(c.said.lacking, make([]methodSet, more)...)
	}
	news := false
	for i, answer := range answers {
		if answer == nil {
			continue
		}
		news = true
		next := &Options{Options: *answer, Path: paths[i], Seen: now}
		if before := c.said.options[i]; before != nil {
			next.Changed = before.Changed
			if before.ISTag != next.ISTag {
				next.Changed = now
				c.said.changes[i]++
				c.status.istags.Add(1)
				c.logISTag(next.Path, before.ISTag, next.ISTag, c.said.changes[i])
			} else {
				c.said.changes[i] = 0
			}
		}
		c.said.options[i] = next
	}
	if !news {
		return
	}
	lacking := c.lacking()
	for i, now := range lacking {
		c.logMethods(paths[i], i, c.said.lacking[i], now)
	}
	c.said.lacking = slices.Clone(lacking)
	c.status.setOptions(slices.Clone(c.said.options), lacking)
	if c.cfg.OnMaxConnections != nil {
		c.cfg.OnMaxConnections(c.maxConnections())
	}
}

// logISTag logs another ISTag, the nth change in a row. Some servers have a new one in every answer.
func (c *Checker) logISTag(path, before, now string, n int) {
	log := c.cfg.Logger.With("server", c.cfg.Address, "path", path, "from", cut(before), "to", cut(now))
	switch {
	case n < fickle:
		log.Info("ISTag has changed")
	case n == fickle:
		log.Warn("ISTag changes from check to check: further changes are counted and not logged", "changes", n)
	}
}

// cut bounds what a server has sent for the log.
func cut(text string) string {
	const most = 64
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}

// logMethods logs which methods a server has begun or ceased to lack for a path.
func (c *Checker) logMethods(path string, i int, before, now methodSet) {
	none := true // does the server do nothing of what is routed there?
	for m := range icap.Method(icap.NumMethods) {
		none = none && !(c.routed(i, m) && !now.has(m))
	}
	for m := range icap.Method(icap.NumMethods) {
		log := c.cfg.Logger.With("server", c.cfg.Address, "path", path, "method", m.String())
		switch {
		case now.has(m) && !before.has(m) && none:
			log.Warn("server has none of the routed methods among its Methods: not used for this one while another server does it")
		case now.has(m) && !before.has(m): // a service that is routed for all methods is one for one of them most often
			log.Info("server does not have method among its Methods: not used for it while another server does it")
		case before.has(m) && !now.has(m):
			log.Info("server has method among its Methods: used for it again")
		}
	}
}

// routed says whether requests with a method are routed to a path.
func (c *Checker) routed(i int, m icap.Method) bool {
	return i < len(c.cfg.Methods) && c.cfg.Methods[i][m]
}

// lacking lists the methods that are routed to a path and that the server does not do there by what it says.
func (c *Checker) lacking() []methodSet {
	list := make([]methodSet, len(c.said.options))
	for i, o := range c.said.options {
		for m := range icap.Method(icap.NumMethods) {
			if o != nil && c.routed(i, m) && o.Lacks(m) {
				list[i] |= 1 << m
			}
		}
	}
	return list
}

// maxConnections is the smallest limit that the server says for any path that it knows, since connections carry requests for all of them;
// 0: it says none.
func (c *Checker) maxConnections() (least int) {
	for i, o := range c.said.options {
		if o == nil || o.MaxConnections == 0 || c.status.lacks(i) {
			continue
		}
		if least == 0 || o.MaxConnections < least {
			least = o.MaxConnections
		}
	}
	return least
}
