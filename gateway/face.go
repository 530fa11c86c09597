package gateway

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"icapgate/gateway/istag"
	"icapgate/gateway/options"
	"icapgate/health"
	"icapgate/icap"
	"icapgate/pool"
)

// face is what clients see of a service, whichever servers stand behind it: its ISTag and its answers to OPTIONS. Checks learn what the servers say of
// themselves, and look makes a face of it, which the loops read. It lives as long as its service is configured.
type face struct {
	key       string
	tag       atomic.Pointer[[]byte]            // ISTag line of the gateway's own; never nil
	passed    atomic.Pointer[[]byte]            // ISTag line of a server, for istag: pass; never nil
	announced atomic.Pointer[map[string][]byte] // by path: the lines of an answer to OPTIONS that tell of the servers; never nil
	usableAt  atomic.Int64                      // loop time at which one of them was usable the last time
	kinds     atomic.Int64                      // different ISTags that they have
	changes   atomic.Uint64                     // of tag

	mu    sync.Mutex
	asked []string // paths under a prefix that clients have asked for; guarded by mu

	// Owned by look.
	own     istag.Tag
	seen    []*health.Options // what all this was made of
	differs int64             // loop time since when the servers have different ISTags, 0: they have not
	warned  bool              // of that
}

// differing is for how long, in ns, the servers of a service may have different ISTags without a word: an update of all of them takes its time.
const differing = int64(2 * time.Minute)

// newFace makes the face of a service of which no more is known than what was kept.
func newFace(key string, kept keptFace, now int64) *face {
	f := &face{key: key, asked: kept.Paths}
	f.own.Restore(kept.Saved)
	f.setTag()
	f.passed.Store(&strayTag)
	f.announced.Store(new(map[string][]byte))
	f.usableAt.Store(now)
	return f
}

// setTag puts the own tag in force.
func (f *face) setTag() {
	line := istagLine(f.own.Value())
	f.tag.Store(&line)
}

// istagLine is the header line for a tag without quotes.
func istagLine(tag string) []byte { return fmt.Appendf(nil, "ISTag: \"%s\"\r\n", tag) }

// strayTag is the ISTag line of answers that belong to no service.
var strayTag = istagLine("icapgate")

// askedPaths are the paths under a prefix that clients have asked for.
func (f *face) askedPaths() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

// isAsked says whether path is among them.
func (f *face) isAsked(path []byte) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.ContainsFunc(f.asked, func(o string) bool { return o == string(path) })
}

// look takes in what the servers have said since the last time, and whether they are usable. It returns whether something has changed that is to be kept.
func (s *service) look(now int64, log *slog.Logger) (keep bool) {
	f := s.face
	routes, methods := s.distinct()
	var sources []istag.Source
	var seen []*health.Options
	for _, r := range routes {
		for _, server := range r.pool.servers {
			if server.Health.Usable(r.checkPath) || server.Health.UsableButEjected(r.checkPath) || r.pool.panics() {
				f.usableAt.Store(now)
			}
			for _, path := range s.serversPaths(r) {
				source, o := istag.Source{ID: server.Name + path}, r.pool.said(server, path)
				if o != nil {
					source.Tag, source.Seen = o.ISTag, o.Seen
				}
				sources, seen = append(sources, source), append(seen, o)
			}
		}
	}
	if slices.Equal(seen, f.seen) && !f.own.Pending() {
		s.tellDiffering(now, log)
		return false
	}
	f.seen = seen
	if i := slices.IndexFunc(sources, func(o istag.Source) bool { return o.Tag != "" }); i >= 0 {
		line := istagLine(istag.Unquote(sources[i].Tag))
		f.passed.Store(&line)
	}
	before := f.own.Save()
	if f.own.Observe(epoch.Add(time.Duration(now)), sources) {
		f.setTag()
		if before.Value != "" {
			f.changes.Add(1)
			log.Info("service has another ISTag", "service", s.name, "from", before.Value, "to", f.own.Value())
		}
	}
	s.tellDiffering(now, log)
	announced := make(map[string][]byte)
	for _, path := range s.paths() {
		if groups, known := s.groups(path, routes, methods); known {
			o := options.Merge(groups)
			announced[path] = options.Append(nil, &o)
		}
	}
	f.announced.Store(&announced)
	after := f.own.Save()
	return before.Value != after.Value || !maps.Equal(before.Known, after.Known)
}

// groups are what the servers of the routes have said of a path, as far as they know it; known: some have.
func (s *service) groups(path string, routes []*route, methods [][icap.NumMethods]bool) (groups []options.Group, known bool) {
	for i, r := range routes {
		g := options.Group{Routed: methods[i], EndsPreviews: r.pool.endsPreviews()}
		for _, server := range r.pool.servers {
			if o := r.pool.said(server, r.serversPath(path)); o != nil {
				g.Servers = append(g.Servers, o.Options)
				known = true
			}
		}
		groups = append(groups, g)
	}
	return groups, known
}

// tellDiffering tells that the servers have different ISTags, when that lasts: they have different versions, or something that each makes up for itself.
func (s *service) tellDiffering(now int64, log *slog.Logger) {
	f := s.face
	kinds := f.own.Kinds()
	f.kinds.Store(int64(kinds))
	switch {
	case kinds <= 1 && f.warned:
		log.Info("the servers of a service have the same ISTag again", "service", s.name)
		f.differs, f.warned = 0, false
	case kinds <= 1:
		f.differs = 0
	case f.differs == 0:
		f.differs = now
	case now-f.differs >= differing && !f.warned:
		f.warned = true
		log.Warn("the servers of a service have different ISTags: not all of them may scan by the same version and policy", "service", s.name,
			"istags", f.own.Known(8), "kinds", kinds)
	}
}

// said is what a server has last said of a path that it knows, nil: nothing.
func (p *poolTable) said(s *pool.Server, path string) *health.Options {
	if i := slices.Index(p.paths, path); i >= 0 && i < len(s.Health.Missing()) && s.Health.Missing()[i] {
		return nil
	}
	for _, o := range s.Health.AllOptions() {
		if o != nil && o.Path == path {
			return o
		}
	}
	return nil
}

// lookAtFaces has every service of the table in force look, and what has changed kept.
func (m *servers) lookAtFaces(now int64) {
	keep := false
	t := m.gw.table.Load()
	for _, s := range t.services {
		keep = s.look(now, m.gw.log) || keep
	}
	if keep {
		m.keepFaces(t)
	}
}

// faceOf is the face for a key; from one table to the next it is the same.
func (m *servers) faceOf(key string) *face {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.faces[key]
	if f == nil {
		f = newFace(key, m.kept[key], m.clock())
		m.faces[key] = f
	}
	return f
}

// onAsked is called when a server has answered an OPTIONS for a path under a prefix: from now on the checks ask for it. On any goroutine.
func (m *servers) onAsked(s *service, path string) {
	f := s.face
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Contains(f.asked, path) {
		return
	}
	routes, _ := s.distinct()
	for _, r := range routes {
		if !r.pool.addOther(r.serversPath(path)) {
			if n, ok := m.gw.askedLog.next(); ok {
				m.gw.log.Warn("clients ask for more paths than the gateway keeps an answer for: their OPTIONS go to the servers; name the paths in services", "service", s.name,
					"path", path, "most", health.MaxOthers, "times", n)
			}
			return
		}
	}
	f.asked = append(f.asked, path)
	m.gw.log.Info("a client has asked for a path of a service: the checks ask for it from now on", "service", s.name, "path", path)
	for _, r := range routes {
		for _, server := range r.pool.servers {
			server.Expedite()
		}
	}
}

// otherPaths are the paths at the servers that the checks ask for without judging by them. They live as long as their pool's table.
type otherPaths struct {
	mu   sync.Mutex
	list atomic.Pointer[[]string] // the slice grows at its end only
}

func (o *otherPaths) get() []string {
	if list := o.list.Load(); list != nil {
		return *list
	}
	return nil
}

// addOther adds a path at the servers to those that are asked for; false: they are too many.
func (p *poolTable) addOther(path string) bool {
	if slices.Contains(p.paths, path) {
		return true
	}
	o := p.others
	o.mu.Lock()
	defer o.mu.Unlock()
	list := o.get()
	switch {
	case slices.Contains(list, path):
		return true
	case len(list) >= health.MaxOthers:
		return false
	}
	list = append(slices.Clip(list), path)
	o.list.Store(&list)
	return true
}
