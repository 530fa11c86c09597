package gateway

import (
	"bytes"
	"slices"
	"strings"

	"icapgate/configs"
	"icapgate/icap"
)

// route is one service of the configuration.
type route struct {
	index        int    // place in table.routes: policies are kept per route and method
	name         string // its path as configured
	path         string
	prefix       bool
	listener     string   // "": every listener
	serverNames  []string // in lower case, *.example.com for all below; empty: every one, and none
	methods      [icap.NumMethods]bool
	pool         *poolTable
	rewrites     bool   // the servers know the service by another path:
	rewrite      string // in place of path
	rewriteAll   bool   // in place of what follows path, too
	checkPath    int    // index of the servers' path among the pool's checked paths, -1: not checked on its own
	preserveHost bool
	onlyOnce     bool          // duplicates: avoid
	headers      *headerPolicy // nil: none

	allows   [rejectCount]bool // passes what would be rejected for this reason
	decision int64             // ns in which a verdict has to be there, 0: no limit

	maxBody        uint64   // bytes of a body that go to a server, 0: no limit
	maxDuration    int64    // ns from a request's heads to the end of its answer, 0: no limit
	services       int      // how many it is part of, one most often
	service        *service // one of them
	forwards       bool     // options: forward
	istag          string   // "": the gateway's own; passTag; else fixed
	istagLine      []byte   // of a fixed one
	grace          int64    // ns for which OPTIONS is answered while no server is usable
	maxConnections int      // that each client is told; 0: as many as there may be of all
}

// entrance is where a session has come in.
type entrance struct {
	listener   string
	serverName string // that the client's TLS asked for, in lower case; "": none
}

// match finds the route for a request. Without one, status is the answer: 404 or, when only the method does not fit, 405.
// OPTIONS fits every route of its entrance and path.
func (t *table) match(in entrance, path []byte, m icap.Method) (r *route, status int) {
	status = 404
	for _, r := range t.routes {
		if !r.isAt(in) || !r.hasPath(path) {
			continue
		}
		if m == icap.MethodOptions || r.methods[m] {
			return r, 0
		}
		status = 405
	}
	return nil, status
}

// hasPath says whether the route is for requests with a path.
func (r *route) hasPath(path []byte) bool {
	if r.prefix {
		return len(path) >= len(r.path) && string(path[:len(r.path)]) == r.path
	}
	return string(path) == r.path
}

// isAt says whether the route is for clients that come in there.
func (r *route) isAt(in entrance) bool {
	return (r.listener == "" || r.listener == in.listener) && r.knows(in.serverName)
}

// knows says whether the route is for clients that ask for a name.
func (r *route) knows(name string) bool {
	if len(r.serverNames) == 0 {
		return true
	}
	for _, n := range r.serverNames {
		if n == name || n[0] == '*' && strings.HasSuffix(name, n[1:]) && len(name) >= len(n) {
			return true
		}
	}
	return false
}

// appendTarget appends the path and query that the servers get for what the client has asked for.
func (r *route) appendTarget(dst, target []byte) []byte {
	if !r.rewrites {
		return append(dst, target...)
	}
	path, query := target, []byte(nil)
	if i := bytes.IndexByte(target, '?'); i >= 0 {
		path, query = target[:i], target[i:]
	}
	dst = append(dst, r.rewrite...)
	if !r.rewriteAll {
		dst = append(dst, path[len(r.path):]...)
	}
	return append(dst, query...)
}

// paths names the paths of the services, for a log: what clients can ask for.
func (t *table) paths() string {
	var names []string
	for _, r := range t.routes {
		if len(names) == 20 {
			return strings.Join(names, " ") + " ..."
		}
		if !slices.Contains(names, r.name) {
			names = append(names, r.name)
		}
	}
	return strings.Join(names, " ")
}

// newRoutes builds the routes of a configuration over its pools, and each pool's list of paths to check.
func newRoutes(cfg *configs.Config, pools []*poolTable) []*route {
	byName := make(map[string]*poolTable)
	for _, p := range pools {
		byName[p.name] = p
	}
	services := cfg.Services
	if len(services) == 0 && len(pools) == 1 {
		all := configs.DefaultService()
		all.Pool = pools[0].name
		services = []configs.Service{all}
	}
	var routes []*route
	for i, s := range services {
		r := newRoute(s, byName[s.Pool])
		r.index = i
		routes = append(routes, r)
	}
	for _, p := range pools {
		if p.cfg.Health.Path != "" {
			p.paths, p.methods = []string{p.cfg.Health.Path}, nil
		} else if p.probe != nil { // a prefix may lead there, and now the path is known
			p.addPath(p.probe.Path, [icap.NumMethods]bool{})
		}
	}
	return routes
}

func newRoute(s configs.Service, p *poolTable) *route {
	r := &route{
		name: s.Path, path: s.Path, listener: s.Listener, pool: p, checkPath: -1,
		preserveHost: s.PreserveHost, onlyOnce: s.Duplicates == "avoid", rewrites: s.Rewrite != "",
		headers: newHeaderPolicy(&s.Headers, s.Path),
	}
	r.decision = int64(s.DecisionTimeout)
	r.maxBody, r.maxDuration = uint64(s.MaxBody), int64(s.MaxDuration)
	r.forwards, r.grace, r.maxConnections = s.Options == "forward", int64(s.OptionsGrace), s.MaxConnections
	r.istag, r.istagLine = s.ISTag, istagLine(s.ISTag)
	for _, why := range unjudged {
		r.allows[why] = s.OnUnavailable == "allow"
	}
	r.allows[rejectServerFailed], r.allows[rejectLate] = s.OnError == "allow", s.OnTimeout == "allow"
	for _, why := range []rejectReason{rejectBody, rejectDuration, rejectLong} {
		r.allows[why] = s.OnLimit == "allow"
	}
	for _, name := range s.ServerNames {
		r.serverNames = append(r.serverNames, strings.ToLower(name))
	}
	if path, ok := strings.CutSuffix(s.Path, "*"); ok {
		r.path, r.prefix = path, true
	}
	path, prefix := r.path, r.prefix // as the servers know it
	if r.rewrites {
		path, prefix = strings.CutSuffix(s.Rewrite, "*")
		r.rewrite, r.rewriteAll = path, !prefix
	}
	for _, m := range s.Methods {
		switch m {
		case "REQMOD":
			r.methods[icap.MethodReqmod] = true
		case "RESPMOD":
			r.methods[icap.MethodRespmod] = true
		}
	}
	if len(s.Methods) == 0 {
		r.methods[icap.MethodReqmod], r.methods[icap.MethodRespmod] = true, true
	}
	switch {
	case p.cfg.Health.Path != "": // the only path that is asked for
	case prefix:
		p.otherPaths = true
	default:
		r.checkPath = p.addPath(path, r.methods)
	}
	return r
}

// addPath adds a path that is routed with some methods to what the checks ask for, and returns its index.
func (p *poolTable) addPath(path string, methods [icap.NumMethods]bool) int {
	i := slices.Index(p.paths, path)
	if i < 0 {
		i = len(p.paths)
		p.paths, p.methods = append(p.paths, path), append(p.methods, [icap.NumMethods]bool{})
	}
	for m, routed := range methods {
		p.methods[i][m] = p.methods[i][m] || routed
	}
	return i
}
