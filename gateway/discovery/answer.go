package discovery

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Question is what is asked for: a host name or, with SRV, the records of a service.
type Question struct {
	Name string // in lower case; one that ends in a dot is looked up as it is, without search domains
	SRV  bool
}

// Host asks for the addresses of a host name.
func Host(name string) Question { return Question{Name: strings.ToLower(name)} }

// Service asks for the SRV records of a name such as _icap._tcp.example.com.
func Service(name string) Question { return Question{strings.ToLower(name), true} }

func (q Question) String() string {
	if q.SRV {
		return "srv:" + q.Name
	}
	return q.Name
}

// Target is one address behind a name.
type Target struct {
	Addr netip.Addr

	// Of SRV records only.
	Host   string // the target's name, without a dot at its end
	Port   uint16
	Weight int // its share of the requests within its tier, 1 to 256
	Tier   int // 0: the lowest priority, 1: the next one, and so on
}

// Answer is what a name stands for.
type Answer struct {
	Targets []Target      // at least one; each address and port once, in an order of their own
	TTL     time.Duration // how long it holds, NoTTL: nobody says
	Fault   error         // a part could not be asked for, and is as it was in the answer before; nil: it is whole
}

// NoTTL is the TTL of what the hosts file says.
const NoTTL = time.Duration(math.MaxInt64)

// maxTargets bounds an answer: one with more is refused.
const maxTargets = 1024

// Hosts is how many machines an answer to Host stands for. One of them may have an IPv4 and an IPv6 address.
func (a Answer) Hosts() int {
	n := 0
	for _, t := range a.Targets {
		if t.Addr.Is4() {
			n++
		}
	}
	return max(n, len(a.Targets)-n)
}

func compareTargets(a, b Target) int {
	return cmp.Or(cmp.Compare(a.Tier, b.Tier), a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port))
}

// checked puts the targets in order; an address that is there several times stays with its lowest tier.
func (a Answer) checked(q Question) (Answer, error) {
	slices.SortStableFunc(a.Targets, compareTargets)
	type place struct {
		addr netip.Addr
		port uint16
	}
	seen := make(map[place]bool)
	a.Targets = slices.DeleteFunc(a.Targets, func(t Target) bool {
		at := place{t.Addr, t.Port}
		was := seen[at]
		seen[at] = true
		return was
	})
	if n := len(a.Targets); n > maxTargets {
		return Answer{}, &Error{Failed, q.Name, fmt.Sprintf("%d addresses, at most %d are taken", n, maxTargets)}
	}
	return a, nil
}

// Result says how a lookup has ended.
type Result uint8

const (
	OK       Result = iota
	NotFound        // there is no such name, or it has no such records
	Timeout         // no nameserver has answered in time
	Failed          // no nameserver could or would say, or what it said is of no use
	Results  = iota
)

func (r Result) String() string { return [...]string{"ok", "not_found", "timeout", "failed"}[r] }

// Error is a lookup that has failed.
type Error struct {
	Result Result
	Name   string // as it was asked for
	Reason string
}

func (e *Error) Error() string { return e.Name + ": " + e.Reason }

// ResultOf says how a lookup with that error has ended.
func ResultOf(err error) Result {
	var e *Error
	switch {
	case err == nil:
		return OK
	case errors.As(err, &e):
		return e.Result
	}
	return Failed
}
