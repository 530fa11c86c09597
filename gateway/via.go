package gateway

import (
	"bytes"

	"icapgate/configs"
	"icapgate/icap"
)

// via is how a gateway with an id knows its own requests when they come back, by the ICAP header X-ICAP-Via. The Via of an encapsulated message is
// content. Immutable.
type via struct {
	id    []byte
	value []byte // of our field
}

// newVia returns nil for a gateway without an id.
func newVia(id string) *via {
	if id == "" {
		return nil
	}
	return &via{[]byte(id), []byte("ICAP/1.0 " + id)}
}

var viaName = []byte(configs.ViaHeader)

// line is the header line that the checks carry: to them, a server that is this gateway is down.
func (v *via) line() string {
	if v == nil {
		return ""
	}
	return configs.ViaHeader + ": " + string(v.value) + "\r\n"
}

// hasPassed says whether a request has been here before. In upper or lower case, and whatever else a member of the list says, the id is the id.
func (v *via) hasPassed(req *icap.Request) bool {
	for i := range req.Fields {
		if f := &req.Fields[i]; bytes.EqualFold(f.Name, viaName) && hasWord(f.Value, v.id) {
			return true
		}
	}
	return false
}

// hasWord says whether one of the words of a list, between commas and white space of any kind, is the one.
func hasWord(list, word []byte) bool {
	for len(list) > 0 {
		n := bytes.IndexAny(list, ", \t\r\n")
		if n < 0 {
			n = len(list)
		}
		if bytes.EqualFold(list[:n], word) {
			return true
		}
		list = list[min(n+1, len(list)):]
	}
	return false
}

// refuseLoop answers a request that has come back: it would go on in circles. The status is HTTP's own word for it (RFC 5842); whoever sent it, most
// likely this gateway, sees a server that has failed, and ejects it.
func (t *transaction) refuseLoop() {
	l := t.s.loop
	if n, ok := l.gw.loopLog.next(); ok {
		l.log.Warn("a request has come back to this gateway: some server of a pool leads here, or another gateway has the same gateway_id", "client", t.s.client,
			"listener", t.s.listener.name, "method", methodNames[t.method], "times", n)
	}
	t.reply(508, rejectLoop, 0)
}
