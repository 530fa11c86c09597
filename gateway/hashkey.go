package gateway

import (
	"net/netip"
	"strings"

	"icapgate/balancer"
	"icapgate/icap"
)

// hashKey says what requests of a pool with balance: hash are told apart by.
type hashKey struct {
	headers [2]string // the first of these that a request has, "": none
	address bool      // without them, the address of the client's connection
}

// newHashKey reads pools[].hash_on.
func newHashKey(on string) hashKey {
	switch on {
	case "client_ip":
		return hashKey{[2]string{"X-Client-IP"}, true}
	case "user":
		return hashKey{[2]string{"X-Authenticated-User", "X-Client-Username"}, false} // the second is what Squid says
	}
	return hashKey{[2]string{strings.TrimPrefix(on, "header:")}, false}
}

// of returns the key of a request; ok is false if it has none.
func (k *hashKey) of(req *icap.Request, client netip.AddrPort) (key uint64, ok bool) {
	for _, name := range k.headers {
		if name == "" {
			break
		}
		if value := req.Get(name); len(value) > 0 {
			return balancer.Key(value), true
		}
	}
	if !k.address {
		return 0, false
	}
	var text [64]byte // as an X-Client-IP would say it
	return balancer.Key(client.Addr().Unmap().WithZone("").AppendTo(text[:0])), true
}
