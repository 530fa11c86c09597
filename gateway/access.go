package gateway

import (
	"time"

	"icapgate/gateway/accesslog"
	"icapgate/icap"
)

// endDone is the end of a transaction whose answer was relayed whole. Other ends are the words of rejectReason and closeReason.
const endDone = "done"

// noted is what the access log will say of a request and what is gone when its heads are. The buffer stays with the session.
type noted struct {
	b              []byte
	pathEnd, ipEnd int
}

// target notes what the request asks for. Values are cut to a length that keeps a line readable.
func (n *noted) target(req *icap.Request) {
	const most = 2048
	n.b = append(n.b[:0], req.Target[:min(len(req.Target), most)]...)
	n.pathEnd, n.ipEnd = len(n.b), len(n.b)
}

// claims notes whom the request is from, as the servers are told. Where no service has a policy for it, nobody knows whether that is true.
func (n *noted) claims(req *icap.Request) {
	ip := req.Get(clientIPField)
	n.b = append(n.b, ip[:min(len(ip), 128)]...)
	n.ipEnd = len(n.b)
	user := req.Get("X-Authenticated-User")
	n.b = append(n.b, user[:min(len(user), 1024)]...)
}

func (l *loop) transactionID(t *transaction) accesslog.ID {
	return accesslog.ID{Start: l.gw.id, Loop: uint8(l.index), Number: t.number}
}

// logAccess appends the record of an ended transaction.
func (l *loop) logAccess(t *transaction) {
	if l.access == nil {
		return
	}
	s := t.s
	r := &l.record
	*r = accesslog.Record{
		Time: epoch.Add(time.Duration(t.began)), ID: l.transactionID(t), Client: s.client, Listener: s.listener.name, TLS: s.tlsVersion,
		Method: methodNames[t.method], Path: t.noted.b[:t.noted.pathEnd], Status: t.status, Attempts: t.attempts, Failure: t.failed,
		In: t.payloadIn + s.body.Payload(), Out: t.payloadOut,
		Queue: time.Duration(t.queueTime), Connect: time.Duration(t.connectTime), Total: time.Duration(l.now - t.began),
		ClientIP: t.noted.b[t.noted.pathEnd:t.noted.ipEnd], User: t.noted.b[t.noted.ipEnd:], End: t.end,
	}
	if t.echoing {
		r.Out = r.In
	}
	if t.firstByte > 0 {
		r.FirstByte = time.Duration(t.firstByte - t.began)
	}
	if t.queueTime > 0 {
		r.QueueCause = t.why.String()
	}
	if t.route != nil {
		r.Service, r.Pool = t.route.name, t.pool.table.name
	}
	if t.lastServer != nil {
		r.Server = t.lastServer.Name
	}
	l.appendAccess(r)
}

// logBadRequest appends the record of bytes that were not understood far enough to be a transaction.
func (l *loop) logBadRequest(s *session, status int, why rejectReason) {
	if l.access == nil {
		return
	}
	l.transactions++
	r := &l.record
	*r = accesslog.Record{
		Time: epoch.Add(time.Duration(l.now)), ID: accesslog.ID{Start: l.gw.id, Loop: uint8(l.index), Number: l.transactions},
		Client: s.client, Listener: s.listener.name, TLS: s.tlsVersion, Status: status, End: why.String(),
	}
	l.appendAccess(r)
}

func (l *loop) appendAccess(r *accesslog.Record) {
	if first := l.access.Append(r); first {
		l.wheel.set(&l.accessTimer, l.now+int64(accesslog.FlushAfter))
	}
}
