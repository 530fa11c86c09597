package gateway

import (
	"crypto/tls"
	"slices"
	"strings"

	"icapgate/balancer"
	"icapgate/configs"
	"icapgate/icap"
	"icapgate/pool"
)

// table is one immutable snapshot of routes and pools. A transaction loads it once, so a live client connection follows
// a new table at its next request.
type table struct {
	routes   []*route
	pools    []*poolTable
	idHeader string // ICAP header for the transaction's id, "": none
}

// route is one service of the configuration.
type route struct {
	index        int    // place in table.routes: policies are kept per route and method
	name         string // its path as configured
	path         string
	prefix       bool
	listener     string // "": every listener
	methods      [icap.NumMethods]bool
	pool         *poolTable
	checkPath    int // index of path among the pool's checked paths, -1: not checked on its own
	preserveHost bool
	onlyOnce     bool // duplicates: avoid
}

// poolTable is one pool of a table.
type poolTable struct {
	name    string
	cfg     configs.Pool
	tls     *tls.Config // nil: plain
	servers []*pool.Server
	members []member                // parallel to servers
	queue   *pool.Queue             // lives on in later tables
	budget  *pool.Budget            // likewise
	paths   []string                // what the checks ask for
	methods [][icap.NumMethods]bool // by path: what is routed there
	hash    *hashing                // nil: balance is not hash
	tiers   []uint8                 // parallel to servers
	levels  []uint8                 // the tiers that there are, ascending
	graded  bool                    // tiers or the panic threshold make a difference; see selection

	retryOn causes // retry.on

	otherPaths bool // a prefix leads here, too: a server without any of paths may still be of use
}

// member is a server of a pool, and what the configuration and DNS say of it.
type member struct {
	server         *pool.Server
	from           string // the address in the configuration
	weight         int
	tier           int
	maxConnections int
}

// hashing is what a pool with balance: hash goes by.
type hashing struct {
	key    hashKey
	maglev *balancer.Maglev // over the servers of the table
}

// setServers gives the pool its servers, and makes what follows from them.
func (p *poolTable) setServers(list []member) {
	p.members, p.servers = list, nil
	for _, o := range list {
		p.servers = append(p.servers, o.server)
	}
	p.setTiers()
	if !balancer.Hashes(p.cfg.Balance) {
		return
	}
	names, weights := make([]string, len(list)), make([]int32, len(list))
	for i, o := range list {
		names[i] = o.server.Name
		weights[i] = int32(max(o.weight, 1)) // one of weight 0 may get some at run time
	}
	p.hash = &hashing{newHashKey(p.cfg.HashOn), balancer.NewMaglev(names, weights)}
}

// match finds the route for a request. Without one, status is the answer: 404 or, when only the method does not fit, 405.
// OPTIONS fits every route of its listener and path.
func (t *table) match(listener string, path []byte, m icap.Method) (r *route, status int) {
	status = 404
	for _, r := range t.routes {
		if r.listener != "" && r.listener != listener {
			continue
		}
		if r.prefix {
			if len(path) < len(r.path) || string(path[:len(r.path)]) != r.path {
				continue
			}
		} else if string(path) != r.path {
			continue
		}
		if m == icap.MethodOptions || r.methods[m] {
			return r, 0
		}
		status = 405
	}
	return nil, status
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
		r := &route{index: i, name: s.Path, path: s.Path, listener: s.Listener, pool: byName[s.Pool], checkPath: -1, preserveHost: s.PreserveHost, onlyOnce: s.Duplicates == "avoid"}
		if p, ok := strings.CutSuffix(s.Path, "*"); ok {
			r.path, r.prefix = p, true
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
		case r.pool.cfg.Health.Path != "": // the only path that is asked for
		case r.prefix:
			r.pool.otherPaths = true
		default:
			r.checkPath = r.pool.addPath(r.path, r.methods)
		}
		routes = append(routes, r)
	}
	for _, p := range pools {
		if p.cfg.Health.Path != "" {
			p.paths, p.methods = []string{p.cfg.Health.Path}, nil
		}
	}
	return routes
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

// withServers returns a copy of t in which pool i has other servers.
func (t *table) withServers(i int, list []member) *table {
	p := *t.pools[i]
	p.setServers(list)
	out := &table{idHeader: t.idHeader, pools: append([]*poolTable(nil), t.pools...)}
	out.pools[i] = &p
	for _, r := range t.routes {
		c := *r
		if c.pool == t.pools[i] {
			c.pool = &p
		}
		out.routes = append(out.routes, &c)
	}
	return out
}

// pool finds a pool by its name, nil: there is none.
func (t *table) pool(name string) *poolTable {
	for _, p := range t.pools {
		if p.name == name {
			return p
		}
	}
	return nil
}

// names says whether some pool of t has the server.
func (t *table) names(s *pool.Server) bool {
	for _, p := range t.pools {
		if p.has(s) {
			return true
		}
	}
	return false
}
