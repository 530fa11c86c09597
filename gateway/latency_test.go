package gateway

import (
	"testing"
	"time"

	"icapgate/icap"
)

// latency is what the loops know of the only server of a pool, for REQMOD; 0: nothing. Only one loop may know anything.
func (v *virtual) latency() (known time.Duration) {
	v.t.Helper()
	v.testGateway.onLoops(func(l *loop) {
		l.currentTable()
		for _, h := range l.shards {
			if at := h.latencies[icap.MethodReqmod].At(l.now); at > 0 && known > 0 {
				v.t.Error("two loops have taken samples")
			} else if at != 0 {
				known = time.Duration(at)
			}
		}
	})
	return known
}

// How long a server takes is the time from all that it can get, the preview or the whole request, to its answer. The client's
// time is not the server's, and a failure is no quick answer.
func TestLatencySamples(t *testing.T) {
	const ms = time.Millisecond
	const never = time.Duration(0)
	previewed := preview(4) + "4¶abcd¶0¶¶"
	broken := "ICAP/1.0 500 Broken¶ISTag: \"s\"¶Encapsulated: null-body=0¶¶"
	for _, tt := range []struct {
		name string
		play func(v *virtual, c *client)
		want time.Duration
	}{
		{"nothing sent", func(*virtual, *client) {}, never},
		{"no body", func(v *virtual, c *client) {
			v.say(c, v04)
			s := v.f.next(t)
			s.gets(v04)
			v.quiet(70 * ms)
			s.send(text(page))
			c.expect(text(page))
		}, 70 * ms},
		{"a body that takes its client a minute", func(v *virtual, c *client) {
			v.say(c, RL+reqBody)
			s := v.f.next(t)
			v.quiet(30 * time.Second)
			v.say(c, "5¶hello¶")
			v.quiet(30 * time.Second)
			v.say(c, "0¶¶")
			s.gets(v05)
			v.quiet(70 * ms)
			s.send(text(page))
			c.expect(text(page))
		}, 70 * ms},
		{"an answer that takes a minute counts to its first byte", func(v *virtual, c *client) {
			v.say(c, v04)
			s := v.f.next(t)
			s.gets(v04)
			v.quiet(70 * ms)
			s.send(text(page[:9]))
			v.settle()
			v.quiet(30 * time.Second)
			s.send(text(page[9:]))
			c.expect(text(page))
		}, 70 * ms},
		{"both waits of a preview, and not the client's", func(v *virtual, c *client) {
			v.say(c, previewed)
			s := v.f.next(t)
			s.gets(previewed)
			v.quiet(40 * ms)
			s.send(text(goOn))
			c.expect(text(goOn))
			v.quiet(20 * time.Second)
			v.say(c, "2¶ef¶0¶¶")
			s.expect(text("2¶ef¶0¶¶"))
			v.quiet(30 * ms)
			s.send(text(page))
			c.expect(text(page))
		}, 70 * ms},
		{"an answer to the preview", func(v *virtual, c *client) {
			v.say(c, previewed)
			s := v.f.next(t)
			s.gets(previewed)
			v.quiet(70 * ms)
			s.send(text(page))
			c.expect(text(page))
		}, 70 * ms},
		{"an answer before the end of the request: no wait at all", func(v *virtual, c *client) {
			v.say(c, RL+reqBody)
			s := v.f.next(t)
			s.gets(RL + reqBody)
			v.quiet(10 * time.Second)
			s.send(text(page))
			c.expect(text(page))
		}, ms},
		{"an error of the server", func(v *virtual, c *client) {
			v.say(c, v04)
			s := v.f.next(t)
			s.gets(v04)
			s.send(text(broken))
			c.status(500)
		}, time.Second},
		{"full", func(v *virtual, c *client) {
			v.say(c, v04)
			s := v.f.next(t)
			s.gets(v04)
			v.quiet(70 * ms)
			s.send(text("ICAP/1.0 503 Full¶Retry-After: 1¶Encapsulated: null-body=0¶¶"))
			c.status(503)
		}, -1},
		{"no answer", func(v *virtual, c *client) {
			v.say(c, v04)
			s := v.f.next(t)
			s.gets(v04)
			s.reset()
			c.status(502)
		}, time.Second},
		{"a kept connection that the server has closed is no failure", func(v *virtual, c *client) {
			v.say(c, v04)
			s := v.f.next(t)
			s.gets(v04)
			v.quiet(70 * ms)
			s.send(text(page))
			c.expect(text(page))
			s.release()
			v.say(c, v04)
			s = v.f.next(t)
			s.gets(v04)
			s.reset()
			c.status(502)
		}, 70 * ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := startVirtual(t, nil, "    balance: peak_ewma\n    retry: {attempts: 0}\n    timeouts: {connect: 1h, send: 1h, response: 1h}\n    queue: {max: 0}\n", "")
			tt.play(v, v.connect(1))
			v.settle()
			if got := v.latency(); got != tt.want {
				t.Errorf("latency %v, want %v", got, tt.want)
			}
		})
	}
}
