package gateway

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"icapgate/configs"
)

// A server that vanishes (its power, its network) says nothing: no FIN, no RST. What tells it from one that thinks, or from one that
// keeps its window closed, is that bytes stay unacknowledged although it has said that it takes them, and that nothing at all is heard
// of it: the kernel of a server that is alive acknowledges within a moment, whatever the program behind it does. So while an attempt
// waits, the kernel is asked now and then how the peer takes what was sent. Idle connections are left to keepalive and to their timeout.

// watchTimes say for how long a server may be silent. Tests have shorter ones.
type watchTimes struct {
	look        time.Duration // between looks; a server that was silent for that long is checked at once
	unreachable time.Duration // is enough where the latest check could not connect either, and no byte of the request was acknowledged
	silent      time.Duration // is enough by itself
}

var defaultWatchTimes = watchTimes{look: time.Second, unreachable: 2 * time.Second, silent: 10 * time.Second}

// watch is wait with looks at the server in between. An answer within the time to the first of them costs nothing.
func (c *serverConn) watch(kind waitKind, timeout configs.Duration) {
	if c.state != serverBusy {
		c.wait(kind, timeout)
		return
	}
	c.beginWait(kind)
	at := max(c.activeAt, c.lookedAt) + int64(c.loop.watch.look)
	if timeout > 0 {
		at = min(at, c.activeAt+int64(timeout))
	}
	c.loop.wheel.set(&c.timer, at)
}

// isOver says whether the timeout of what is watched has passed.
func (c *serverConn) isOver(timeout configs.Duration) bool {
	return timeout > 0 && c.loop.now >= c.activeAt+int64(timeout)
}

// onWatch is called when it is time for a look, or when the timeout has passed.
func (c *serverConn) onWatch(timeout configs.Duration, late closeReason) {
	over := c.isOver(timeout)
	switch {
	case c.state != serverBusy: // the answer came early, and the rest of the request is not taken
		c.shut(late)
	case c.hasVanished(over):
		c.vanish()
	case over:
		c.fail(failTimeout, late)
	default:
		c.setTimer()
	}
}

// hasVanished looks at the connection. When the attempt is over in any case, it says whether the server has vanished as far as one
// can see now.
func (c *serverConn) hasVanished(over bool) bool {
	l := c.loop
	c.lookedAt = l.now
	i := &l.tcpInfo
	if tcpInfo(c.fd, i) != nil || i.Unacked == 0 || i.Snd_wnd == 0 {
		return false
	}
	heard := time.Duration(min(i.Last_ack_recv, i.Last_data_recv)) * time.Millisecond
	silence := min(heard, time.Duration(l.now-c.activeAt)) // before that, there may have been nothing to acknowledge
	switch {
	case silence >= l.watch.silent, over && !c.hasTaken():
		return true
	case silence < l.watch.look:
		return false
	}
	c.server.Expedite()
	return silence >= l.watch.unreachable && c.server.Health.Unreachable() && !c.hasTaken()
}

// hasTaken says whether the server has acknowledged a byte of the running attempt, by the latest look.
func (c *serverConn) hasTaken() bool {
	const syn = 1 // counts as a byte
	return c.loop.tcpInfo.Bytes_acked > c.sentBefore+syn
}

// mayHaveAll says whether the server may have got the whole request of an attempt that has come to its end. If the kernel has taken all of it, only
// an end in good order says that the server has not: a FIN tells what came before it, while a RST does not, and acknowledgements may be late.
func (c *serverConn) mayHaveAll() bool {
	if !c.tx.sentAll() || c.pending() > 0 || c.writeErr != nil {
		return false
	}
	return !c.eof || tcpInfo(c.fd, &c.loop.tcpInfo) != nil || c.loop.tcpInfo.Bytes_acked > c.sent // the SYN counts, too
}

// vanish ends the attempt. With no byte of it acknowledged, the request was not sent. The kernel must not go on sending it, either: the
// server may come back after somebody else has got it. The server's idle connections lead nowhere, too.
func (c *serverConn) vanish() {
	l, s := c.loop, c.server
	l.log.Debug("a server has vanished", "server", s.Name)
	f := failVanished
	if tcpInfo(c.fd, &l.tcpInfo) != nil || c.hasTaken() {
		f = failTimeout
	}
	_ = unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	for _, other := range l.gw.loops {
		if other != l {
			other.post(func() { other.dropIdle(s, reasonVanished) })
		}
	}
	l.dropIdle(s, reasonVanished)
	c.fail(f, reasonVanished)
}

// unanswered says whether the kernel has given up on a connection whose peer does not answer: after timeouts.send or by keepalive.
func unanswered(err error) bool {
	return errors.Is(err, unix.ETIMEDOUT) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)
}
