package gateway

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
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
// themselves, and look makes a face of it, which the loops read. It lives on when a reload leaves its service out: another one may bring that back.
type face struct {
	key       string
	tag       atomic.Pointer[[]byte]            // ISTag line of the gateway's own; never nil
	passed    atomic.Pointer[[]byte]            // ISTag line of a server, for istag: pass; never nil
	announced atomic.Pointer[map[string][]byte] // by path: the lines of an answer to OPTIONS that tell of the servers; never nil
	downSince atomic.Int64                      // loop time since when none of them is usable, 0: one is
	kinds     atomic.Int64                      // different ISTags that they have of one path, where they are the most
	changes   atomic.Uint64                     // of tag

	mu    sync.Mutex
	asked []string // paths under a prefix that clients have asked for; guarded by mu

	// Owned by look.
	own     istag.Tag
	differs int64 // loop time since when the servers have different ISTags, 0: they have not
	warned  bool  // of that
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
	f.downSince.Store(now)
	return f
}

// setTag puts the own tag in force.
func (f *face) setTag() {
	line := istagLine(f.own.Value())
	f.tag.Store(&line)
}

// istagLine is the header line for a tag without quotes.
func istagLine(tag string) []byte { return fmt.Appendf(nil, "ISTag: \"%s\"\r\n", tag) }

// tagOfLine is the reverse of istagLine.
func tagOfLine(line []byte) string {
	return istag.Unquote(strings.TrimSpace(strings.TrimPrefix(string(line), "ISTag:")))
}

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

// voice is one server, and what it has last said for one path of a service.
type voice struct {
	pool   *poolTable
	server *pool.Server
	path   string
	place  int             // of path among those that the checks ask the pool's servers for
	latest *health.Options // nil: nothing
}

// look takes in what the servers have said since the last time, and whether they are usable. It returns whether something has changed that is to be kept.
// With many services and servers it is called for a lot of both, and most have nothing new to say: that costs no more than to see it.
func (s *service) look(now int64, log *slog.Logger) (keep bool) {
	f := s.face
	switch {
	case s.isUsable():
		f.downSince.Store(0)
	case f.downSince.Load() == 0:
		f.downSince.Store(max(now, 1))
	}
	tags, rest := s.listen()
	if tags {
		s.setPassed()
	}
	if tags || f.own.Pending() {
		keep = s.followTags(now, log)
	}
	if rest {
		s.announce()
	}
	s.tellDiffering(now, log)
	return keep
}

// isUsable says whether some server of the service is.
func (s *service) isUsable() bool {
	for _, r := range s.parts {
		for _, server := range r.pool.servers {
			if server.Health.Usable(r.checkPath) || server.Health.UsableButEjected(r.checkPath) {
				return true
			}
		}
		if r.pool.panics() {
			return true
		}
	}
	return false
}

// listen takes in what the servers have said, and tells whether their tags may have changed, and whether something else has.
func (s *service) listen() (tags, rest bool) {
	others := 0
	for _, r := range s.parts {
		others += len(r.pool.others.get())
	}
	if s.voices == nil || others != s.others {
		s.others = others
		s.setVoices()
		tags, rest = true, true
	}
	for i := range s.voices {
		v := &s.voices[i]
		o := v.pool.said(v.server, v.path, v.place)
		if o == v.latest {
			continue
		}
		if o == nil || v.latest == nil {
			tags, rest = true, true
		} else {
			tags, rest = tags || o.ISTag != v.latest.ISTag, rest || announced(o) != announced(v.latest)
		}
		v.latest = o
		if o != nil {
			s.sources[i].Tag, s.sources[i].Seen = o.ISTag, o.Seen
		}
	}
	return tags, rest
}

// setVoices makes the voices anew.
func (s *service) setVoices() {
	s.voices, s.sources = []voice{}, nil
	for _, r := range s.parts {
		for _, path := range s.serversPaths(r) {
			place := r.pool.place(path)
			for _, server := range r.pool.servers {
				s.voices = append(s.voices, voice{pool: r.pool, server: server, path: path, place: place})
				s.sources = append(s.sources, istag.Source{ID: server.Name + path, Of: r.pool.name + path})
			}
		}
	}
}

// setPassed notes the tag of a server for istag: pass.
func (s *service) setPassed() {
	if i := slices.IndexFunc(s.sources, func(o istag.Source) bool { return o.Tag != "" }); i >= 0 {
		line := istagLine(istag.Unquote(s.sources[i].Tag))
		s.face.passed.Store(&line)
	}
}

// followTags has the own tag follow those of the servers. It returns whether there is something to keep.
func (s *service) followTags(now int64, log *slog.Logger) (keep bool) {
	f := s.face
	before := f.own.Save()
	if f.own.Observe(epoch.Add(time.Duration(now)), s.sources) {
		f.setTag()
		if before.Value != "" && s.lead.istag == "" {
			f.changes.Add(1)
			log.Info("service has another ISTag", "service", s.name, "from", before.Value, "to", f.own.Value())
		}
	}
	after := f.own.Save()
	return before.Value != after.Value || !maps.Equal(before.Known, after.Known)
}

// announce makes the answers to OPTIONS anew.
func (s *service) announce() {
	all := make(map[string][]byte)
	for _, path := range s.paths() {
		groups, some, every := s.groups(path)
		if !some {
			continue
		}
		o := options.Merge(groups)
		if !every {
			o.TTL = options.MinTTL // what the others say may be another thing
		}
		all[path] = options.Append(nil, &o)
	}
	s.face.announced.Store(&all)
}

// groups are what the servers of the routes have said of a path, as far as they know it; some: some have; every: all those have that may know it.
func (s *service) groups(path string) (groups []options.Group, some, every bool) {
	every = true
	for _, r := range s.parts {
		g := options.Group{Routed: r.methods, EndsPreviews: r.pool.endsPreviews()}
		path := r.serversPath(path)
		place := r.pool.place(path)
		for _, server := range r.pool.servers {
			o := r.pool.said(server, path, place)
			if o == nil {
				every = every && r.pool.misses(server, place)
				continue
			}
			if said := announced(o); !slices.Contains(g.Servers, said) { // servers of one kind say the same
				g.Servers = append(g.Servers, said)
			}
			some = true
		}
		groups = append(groups, g)
	}
	return groups, some, every
}

// announced is what answers to OPTIONS are made of.
func announced(o *health.Options) icap.Options {
	said := o.Options
	said.ISTag, said.MaxConnections, said.Service, said.ServiceID, said.OptBodyType = "", 0, "", "", ""
	return said
}

// tellDiffering tells that the servers have different ISTags, when that lasts: they have different versions, or something that each makes up for itself.
func (s *service) tellDiffering(now int64, log *slog.Logger) {
	f := s.face
	kinds := f.own.Differing()
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

// place is the index of a path among those that the checks ask the pool's servers for, -1: they don't.
func (p *poolTable) place(path string) int {
	if i := slices.Index(p.paths, path); i >= 0 {
		return i
	}
	if i := slices.Index(p.others.get(), path); i >= 0 {
		return max(len(p.paths), 1) + i // where no path is known, they ask for one all the same
	}
	return -1
}

// misses says whether a server does not know the path at a place.
func (p *poolTable) misses(s *pool.Server, place int) bool {
	missing := s.Health.Missing()
	return place >= 0 && place < min(len(p.paths), len(missing)) && missing[place]
}

// said is what a server has last said of a path, and still knows of it, nil: nothing.
func (p *poolTable) said(s *pool.Server, path string, place int) *health.Options {
	if p.misses(s, place) {
		return nil
	}
	if o := s.Health.Options(place); o == nil || o.Path == path {
		return o
	}
	for _, o := range s.Health.AllOptions() { // the checks of the table before ask for other paths
		if o != nil && o.Path == path {
			return o
		}
	}
	return nil
}

// lookInterval is the time between two looks, in ns, where nothing calls for one at once.
const lookInterval = int64(time.Second)

// lookAtFaces has every service of the table in force look, and what has changed kept.
func (m *servers) lookAtFaces(now int64) {
	m.looked = now
	keep := false
	if failed := m.unkept.Load(); failed > 0 && now-failed >= keepAgain {
		m.unkept.Store(0)
		keep = true
	}
	t := m.gw.table.Load()
	for _, s := range t.services {
		keep = s.look(now, m.gw.log) || keep
	}
	if keep {
		m.keepFaces(t)
	}
}

// lookSoon has the services look at once: there is something new.
func (m *servers) lookSoon() {
	select {
	case m.news <- struct{}{}:
	default:
	}
}

// faceOf is the face of a service; from one table to the next it is the same.
func (m *servers) faceOf(s *service) *face {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := s.key()
	f := m.faces[key]
	if f == nil {
		kept := m.kept[key]
		if kept.Value == "" {
			kept.Value = m.tagBefore(s)
		}
		f = newFace(key, kept, m.clock())
		m.faces[key] = f
	}
	return f
}

// tagBefore is the tag that clients of a service have seen so far, "": none. A service whose routes have changed is another one, as a method more may
// come with other servers; its clients are the same.
func (m *servers) tagBefore(s *service) string {
	t := m.gw.table.Load()
	if t == nil {
		return ""
	}
	for _, o := range t.services {
		if o.name == s.name && o.lead.listener == s.lead.listener && slices.Equal(o.lead.serverNames, s.lead.serverNames) {
			if tag := tagOfLine(*o.face.tag.Load()); tag != istag.Unknown {
				return tag
			}
		}
	}
	return ""
}

// onAsked is called when a server has answered an OPTIONS for a path under a prefix: from now on the checks ask for it. On any goroutine.
func (m *servers) onAsked(s *service, path string) {
	f := s.face
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Contains(f.asked, path) {
		return
	}
	for _, r := range s.parts {
		if !r.pool.addOther(r.serversPath(path), health.MaxOthers) {
			if n, ok := m.gw.askedLog.next(); ok {
				m.gw.log.Warn("clients ask for more paths than the gateway keeps an answer for: their OPTIONS go to the servers; name the paths in services", "service", s.name,
					"path", path[:min(len(path), 256)], "most", health.MaxOthers, "times", n)
			}
			return
		}
	}
	f.asked = append(f.asked, path)
	m.gw.log.Info("a client has asked for a path of a service: the checks ask for it from now on", "service", s.name, "path", path[:min(len(path), 256)])
	for _, r := range s.parts {
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

// addOther adds a path at the servers to those that are asked for; false: they would be more than most.
func (p *poolTable) addOther(path string, most int) bool {
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
	case len(list) >= most:
		return false
	}
	list = append(slices.Clip(list), path)
	o.list.Store(&list)
	return true
}
