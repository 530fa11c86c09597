package balancer

import (
	"fmt"
	"strings"
)

// Target is what a policy sees of one server at one moment.
type Target struct {
	Weight   int32 // share of the requests relative to the other targets; 0 or less: no new requests
	InFlight int32 // attempts running on it now, of all loops, and requests that wait for it alone
	Usable   bool  // false: not to be picked this time
	Busy     bool  // not Usable, but a Maglev may pick it for a request that waits until it is
	// Only for peak_ewma, see Latency.
	Running float64 // attempts in flight when the latency was so
	Latency int64   // ns, see Latency; 0: nothing known, -1: likewise, and an attempt runs that will tell
}

// open says whether the target may be picked.
func (t *Target) open() bool { return t.Usable && t.Weight > 0 }

// awaited says whether the target may be picked, be it for a request that has to wait for it.
func (t *Target) awaited() bool { return (t.Usable || t.Busy) && t.Weight > 0 }

// Policy picks the target of the next attempt. It belongs to one loop.
type Policy interface {
	// Pick returns the place in targets of the one to use next, -1 if none is usable or all of these have weight 0.
	// It does not keep or change the slice. Place i must mean the same server in every call, so the slice has
	// the same length during the life of a policy; a policy that is given another length starts anew.
	Pick(targets []Target) int
}

// policies is the table of all policies, in the order in which they are listed to users.
var policies = []struct {
	name string
	make func() Policy
}{
	{"round_robin", func() Policy { return new(roundRobin) }},
	{"least_inflight", func() Policy { return new(leastInFlight) }},
	{"random_two", func() Policy { return &randomTwo{newDice()} }},
	{"peak_ewma", func() Policy { return &peakEWMA{newDice()} }},
	{"hash", func() Policy { return new(hash) }},
}

// Measures says whether the policy of that name wants Target.Latency.
func Measures(name string) bool { return name == "peak_ewma" }

// Hashes says whether requests with a key are to go by a Maglev, and not by the policy of that name.
func Hashes(name string) bool { return name == "hash" }

// New makes a policy by its name in the configuration (pools[].balance).
func New(name string) (Policy, error) {
	for _, p := range policies {
		if p.name == name {
			return p.make(), nil
		}
	}
	return nil, fmt.Errorf("unknown balance policy %q: use one of %s", name, strings.Join(Names(), ", "))
}

// Names returns the names that New knows.
func Names() []string {
	names := make([]string, len(policies))
	for i, p := range policies {
		names[i] = p.name
	}
	return names
}
