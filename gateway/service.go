package gateway

import (
	"cmp"
	"fmt"
	"iter"
	"math"
	"slices"
	"strconv"
	"strings"

	"icapgate/gateway/istag"
	"icapgate/gateway/options"
	"icapgate/icap"
)

// service is one ICAP service as clients know it: what a path stands for, with all its methods. These may be routed to different pools; an OPTIONS
// stands for all of them, and all answers have one ISTag.
type service struct {
	name   string
	routes routesOf
	lead   *route // the first of them, whose settings hold
	parts  []part // the routes, each once
	face   *face  // what clients see of it; lives on in later tables

	// Owned by look.
	voices  []voice
	sources []istag.Source // parallel to voices
	others  int            // paths that the checks of its pools asked for besides, when these were made
}

// part is a route of a service, and the methods that go there.
type part struct {
	*route
	methods [icap.NumMethods]bool
}

// routesOf are the routes of a path by method; nil: not to be had.
type routesOf [icap.NumMethods]*route

// routesOf finds the routes of a path.
func (t *table) routesOf(in entrance, path []byte) (routes routesOf) {
	for _, m := range [...]icap.Method{icap.MethodReqmod, icap.MethodRespmod} {
		routes[m], _ = t.match(in, path, m)
	}
	return routes
}

// maxServices bounds the services of a table. There are as many as services in the configuration, most often; routes of single methods that overlap
// in many ways make more.
const maxServices = 4 * 4096

// setServices makes the services of the table's routes: each combination of routes that the methods of some path are routed to. faceOf gives the face of a
// service, the same in every table.
func (t *table) setServices(faceOf func(s *service) *face) error {
	t.services, t.byRoutes = nil, make(map[routesOf]*service)
	for at := range t.origins() {
		routes := t.routesOf(at.entrance, at.path)
		if routes == (routesOf{}) || t.byRoutes[routes] != nil {
			continue
		}
		if len(t.services) == maxServices {
			return fmt.Errorf("the services overlap in more than %d ways: name both methods in those of a path", maxServices)
		}
		s := &service{routes: routes}
		s.setParts()
		s.name = cmp.Or(s.path(), s.lead.name)
		s.face = faceOf(s)
		t.services, t.byRoutes[routes] = append(t.services, s), s
		for _, r := range s.parts {
			r.services++
			r.service = s
		}
		s.askOthers()
	}
	return nil
}

// askOthers has the checks of its pools ask for its paths, also where they don't judge by them.
func (s *service) askOthers() {
	for _, path := range s.paths() {
		for _, r := range s.parts {
			r.pool.addOther(r.serversPath(path), math.MaxInt)
		}
	}
}

// key says what the service is to clients: the same after a restart, and after a reload that gives it other servers.
func (s *service) key() string {
	var b strings.Builder
	for m, r := range s.routes {
		if r != nil {
			fmt.Fprintf(&b, "%v %q listener %q names %q; ", icap.Method(m), r.name, r.listener, r.serverNames)
		}
	}
	return strings.TrimSuffix(b.String(), "; ")
}

// origin is a path that a client may ask for, and where it comes in.
type origin struct {
	entrance entrance
	path     []byte
}

// unknown stands for a listener, or begins a name or ends a path, that no route names.
const unknown = "\x00"

// origins are enough of them to meet every combination of routes. Where routes overlap, what they have in common is what one of them says of the
// listener, one of the path, and one of a name; an origin that is no more special than that is taken by an earlier route only if all of it is.
func (t *table) origins() iter.Seq[origin] {
	return func(yield func(origin) bool) {
		var own [][]origin // by route
		for _, r := range t.routes {
			own = append(own, r.origins())
		}
		for i, r := range t.routes {
			for _, o := range own[i] {
				if !yield(o) {
					return
				}
			}
			if r.methods[icap.MethodReqmod] && r.methods[icap.MethodRespmod] {
				continue // it leaves nothing to others of what they have in common
			}
			for j, later := range t.routes[i+1:] {
				for _, o := range common(r, later, own[i], own[i+1+j]) {
					if !yield(o) {
						return
					}
				}
			}
		}
	}
}

// origins are those that r matches and no other route that does not match all that r does, one for each of its names.
func (r *route) origins() (all []origin) {
	in, path := entrance{listener: cmp.Or(r.listener, unknown), serverName: unknown}, []byte(r.path)
	if r.prefix {
		path = append(path, unknown...)
	}
	if len(r.serverNames) == 0 {
		return []origin{{in, path}}
	}
	for _, name := range r.serverNames {
		if in.serverName = name; name[0] == '*' {
			in.serverName = unknown + name[1:]
		}
		all = append(all, origin{in, path})
	}
	return all
}

// common are the origins of what two routes have in common.
func common(a, b *route, ofA, ofB []origin) (all []origin) {
	path := ofA[0].path
	if !b.hasPath(path) {
		if path = ofB[0].path; !a.hasPath(path) {
			return nil
		}
	}
	listener := ofA[0].entrance.listener
	if a.listener == "" {
		listener = ofB[0].entrance.listener
	}
	for _, list := range [][]origin{ofA, ofB} {
		for _, o := range list {
			in := entrance{listener, o.entrance.serverName}
			if a.isAt(in) && b.isAt(in) {
				all = append(all, origin{in, path})
			}
		}
	}
	return all
}

// serviceOf is the service that a path belongs to which a request has come with, and been routed to r by.
func (t *table) serviceOf(in entrance, path []byte, r *route) *service {
	if r.services == 1 {
		return r.service
	}
	return t.byRoutes[t.routesOf(in, path)]
}

// path is the one that the service is known by, "": it is all that is under a prefix.
func (s *service) path() string {
	for _, r := range s.routes {
		if r != nil && !r.prefix {
			return r.path
		}
	}
	return ""
}

// paths are those that its clients ask for, as far as they are known.
func (s *service) paths() []string {
	if path := s.path(); path != "" {
		return []string{path}
	}
	return s.face.askedPaths()
}

// asks says whether a path that a client has asked for is news to the checks, which are to ask for it: its options or its ISTag are the gateway's own.
func (s *service) asks(path []byte) bool {
	return s.path() == "" && (!s.lead.forwards || s.lead.istag == "") && !s.face.isAsked(path)
}

// serversPaths are those at the servers of one of its routes that the checks ask for.
func (s *service) serversPaths(r part) (paths []string) {
	if path := s.path(); path != "" {
		return []string{r.serversPath(path)}
	}
	if r.rewriteAll {
		return []string{r.rewrite}
	}
	prefix := r.serversPath(r.path)
	for _, path := range slices.Concat(r.pool.paths, r.pool.others.get()) {
		if strings.HasPrefix(path, prefix) {
			paths = append(paths, path)
		}
	}
	return paths
}

// serversPath is what the servers know a path by.
func (r *route) serversPath(path string) string { return string(r.appendTarget(nil, []byte(path))) }

// setParts makes the parts of its routes, and finds the lead.
func (s *service) setParts() {
	for m, r := range s.routes {
		if r == nil {
			continue
		}
		if s.lead == nil || r.index < s.lead.index {
			s.lead = r
		}
		i := slices.IndexFunc(s.parts, func(p part) bool { return p.route == r })
		if i < 0 {
			i = len(s.parts)
			s.parts = append(s.parts, part{route: r})
		}
		s.parts[i].methods[m] = true
	}
}

// relayedTag is the ISTag line of the answers of servers, nil: they keep their own.
func (s *service) relayedTag() []byte {
	switch s.lead.istag {
	case "":
		return *s.face.tag.Load()
	case passTag:
		return nil
	}
	return s.lead.istagLine
}

// ownTag is the ISTag line of answers that the gateway gives itself.
func (s *service) ownTag() []byte {
	switch s.lead.istag {
	case "":
		return *s.face.tag.Load()
	case passTag:
		return *s.face.passed.Load()
	}
	return s.lead.istagLine
}

// passTag is services[].istag where the servers' tags are not touched.
const passTag = "pass"

// isUp says whether clients may go on with their requests: a server of it is usable, or was within options_grace, or they pass without one.
func (s *service) isUp(now int64) bool {
	down := s.face.downSince.Load()
	return down == 0 || s.lead.allows[rejectNoServer] || now-down <= s.lead.grace
}

// answerOptions answers an OPTIONS by what is known of the service's servers; false: one of them has to.
func (t *transaction) answerOptions(path []byte) bool {
	l, s := t.s.loop, t.service
	fields, known := (*s.face.announced.Load())[string(path)]
	switch {
	case !known || s.lead.forwards:
		return false
	case !s.isUp(l.now):
		t.reply(503, rejectNoServer, retrySeconds(int64(s.lead.pool.cfg.Health.Interval)))
	default:
		l.mark = t.appendMaxConnections(append(l.mark[:0], fields...))
		t.answer(200, 0, l.mark)
	}
	return true
}

// appendMaxConnections appends how many connections a client may open: what the gateway admits, whatever its servers can take just now.
func (t *transaction) appendMaxConnections(dst []byte) []byte {
	n := t.service.lead.maxConnections
	if n == 0 {
		n = int(t.s.loop.gw.limits.maxClients.Load())
		if most := t.s.listener.settings.Load().cfg.MaxConnections; most > 0 {
			n = min(n, most)
		}
	}
	return append(strconv.AppendInt(append(dst, "Max-Connections: "...), int64(n), 10), "\r\n"...)
}

// normalise makes the answer of a single server to OPTIONS, which has to do until the checks have asked them all, one of the gateway's own.
func (t *transaction) normalise(r *icap.Response) []byte {
	return t.announceFor(options.Group{Servers: []icap.Options{icap.ParseOptions(r)}, EndsPreviews: t.route.pool.endsPreviews()})
}

// announceFor is what OPTIONS is told, for a minute, of servers that may get the requests with all of the service's methods.
func (t *transaction) announceFor(g options.Group) []byte {
	for m, route := range t.service.routes {
		g.Routed[m] = route != nil
	}
	o := options.Merge([]options.Group{g})
	o.TTL = options.MinTTL
	return t.appendMaxConnections(options.Append(nil, &o))
}
