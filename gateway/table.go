package gateway

import (
	"crypto/tls"

	"icapgate/balancer"
	"icapgate/configs"
	"icapgate/health"
	"icapgate/icap"
	"icapgate/pool"
)

// table is one immutable snapshot of routes and pools. A transaction loads it once, so a live client connection follows
// a new table at its next request.
type table struct {
	routes   []*route
	services []*service
	byRoutes map[routesOf]*service
	pools    []*poolTable
	idHeader string // ICAP header for the transaction's id, "": none
	via      *via   // nil: the gateway has no id
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
	ejector *health.Ejector         // likewise
	paths   []string                // what the checks ask for
	methods [][icap.NumMethods]bool // by path: what is routed there
	others  *otherPaths             // what they ask for besides
	probe   *health.Probe           // nil: none
	hash    *hashing                // nil: balance is not hash
	tiers   []uint8                 // parallel to servers
	levels  []uint8                 // the tiers that there are, ascending
	graded  bool                    // tiers or the panic threshold make a difference; see selection
	sticks  bool                    // affinity: session
	survey  *survey                 // guarded by the queue's mu

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
	p.survey, p.sticks = new(survey), p.cfg.Affinity == "session"
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

// hasOwn says whether requests may have a server of their own: that of their key, or that of their session.
func (p *poolTable) hasOwn() bool { return p.sticks || p.hash != nil }

// withServers returns a copy of t in which pool i has other servers.
func (t *table) withServers(i int, list []member) *table {
	p := *t.pools[i]
	p.setServers(list)
	out := &table{idHeader: t.idHeader, via: t.via, pools: append([]*poolTable(nil), t.pools...)}
	out.pools[i] = &p
	for _, r := range t.routes {
		c := *r
		if c.pool == t.pools[i] {
			c.pool = &p
		}
		c.services, c.service = 0, nil
		out.routes = append(out.routes, &c)
	}
	faces := make(map[string]*face)
	for _, s := range t.services {
		faces[s.face.key] = s.face
	}
	_ = out.setServices(func(s *service) *face { return faces[s.key()] }) // they are as many as before
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

// endsPreviews says whether the gateway ends previews for the pool's servers, which get plain requests.
func (p *poolTable) endsPreviews() bool { return p.cfg.Preview == "off" }
