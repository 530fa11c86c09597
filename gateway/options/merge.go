package options

import (
	"strings"

	"icapgate/icap"
)

// Limits of Options-TTL, in seconds. Clients ask again some 20 s before it is over, and not more often than every 30 s; below a minute there
// would be gaps in which the service counts as down.
const (
	MinTTL    = 60
	maxTTL    = 3600
	unsaidTTL = 600 // where no server says one
)

// EndedPreview is the preview in bytes that is announced where the gateway ends previews itself: most small messages are whole in it.
const EndedPreview = 4096

// What servers say in lists has no end of its own; some clients read no more than 8 KiB of a head. Both in bytes.
const (
	maxInclude   = 2 << 10
	maxTransfers = 4 << 10 // of all three lists
)

// Group is what the servers of one pool have last said, and what the gateway does with it.
type Group struct {
	Servers      []icap.Options        // of those that have said something
	Routed       [icap.NumMethods]bool // what clients can have of them
	EndsPreviews bool                  // the servers get no previews: the gateway says 100 itself
}

// Merge returns what holds for every server of all groups, whoever gets a request. Groups differ in their methods: each request goes to the group
// of its method. MaxConnections and ISTag are the caller's.
func Merge(groups []Group) icap.Options {
	m := icap.Options{Preview: -1, Allow: icap.Allow204 | icap.Allow206}
	var lists []transfers
	var include union
	first, listed := true, false
	for _, g := range groups {
		for method, does := range g.methods() {
			m.Methods[method] = m.Methods[method] || does
		}
		for i := range g.Servers {
			o := &g.Servers[i]
			preview := min(o.Preview, icap.MaxPreview)
			if g.EndsPreviews {
				preview = EndedPreview
			}
			if first || preview < m.Preview { // also -1: one that takes none
				m.Preview = preview
			}
			first = false
			if o.TTL > 0 && (m.TTL == 0 || o.TTL < m.TTL) {
				m.TTL = o.TTL
			}
			m.Allow &= o.Allow
			include.add(o.Include)
			list := newTransfers(o, g.EndsPreviews)
			lists, listed = append(lists, list), listed || list.said
		}
	}
	m.Include = strings.Join(include.members, ", ")
	if first {
		m.Allow = 0
	}
	if m.TTL == 0 {
		m.TTL = unsaidTTL
	}
	m.TTL = min(max(m.TTL, MinTTL), maxTTL)
	if listed || m.Preview >= 0 { // a client makes no previews unless it is told of what
		all := mergeTransfers(lists, m.Preview >= 0)
		m.TransferPreview, m.TransferIgnore, m.TransferComplete = all.list(previewed), all.list(ignored), all.list(complete)
		if len(m.TransferPreview)+len(m.TransferIgnore)+len(m.TransferComplete) > maxTransfers {
			m.TransferPreview, m.TransferIgnore, m.TransferComplete = "", "", "*" // a server may get more than it needs
		}
	}
	return m
}

// methods are those of the routed ones that all servers of the group do. Where that is none it is what some do, since each request goes to a server
// that does its method. Servers that name no method, or none that is routed, don't take part.
func (g *Group) methods() [icap.NumMethods]bool {
	all, some := g.Routed, [icap.NumMethods]bool{}
	for i := range g.Servers {
		for m := range g.Routed {
			does := g.Routed[m] && !g.Servers[i].Lacks(icap.Method(m))
			all[m] = all[m] && does
			some[m] = some[m] || does
		}
	}
	for _, methods := range [][icap.NumMethods]bool{all, some} {
		if methods != [icap.NumMethods]bool{} {
			return methods
		}
	}
	return g.Routed
}

// union is a list that has the members of several, each of them once, as far as there is room for them.
type union struct {
	members []string
	known   map[string]bool // in lower case
	length  int             // in bytes
}

// add adds the members of a list.
func (u *union) add(list string) {
	for member := range strings.SplitSeq(list, ",") {
		member = strings.TrimSpace(member)
		low := strings.ToLower(member)
		length := u.length + len(member) + len(", ")
		if member == "" || u.known[low] || length > maxInclude {
			continue
		}
		if u.known == nil {
			u.known = make(map[string]bool)
		}
		u.known[low] = true
		u.members, u.length = append(u.members, member), length
	}
}
