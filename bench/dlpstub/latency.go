package dlpstub

import (
	"math"
	"math/rand/v2"
	"net"
	"time"
)

// Delay draws a time for one request.
type Delay func(*rand.Rand) time.Duration

// Uniform draws times between least and most, each as likely as the other.
func Uniform(least, most time.Duration) Delay {
	return func(r *rand.Rand) time.Duration { return least + time.Duration(r.Int64N(int64(most-least)+1)) }
}

// Lognormal draws times of which half are below the median, and of which the logarithm is spread by sigma: about 68 % are between
// median/e^sigma and median*e^sigma. No time is longer than an hour.
func Lognormal(median time.Duration, sigma float64) Delay {
	return func(r *rand.Rand) time.Duration {
		return time.Duration(min(float64(median)*math.Exp(sigma*r.NormFloat64()), float64(time.Hour)))
	}
}

// random returns the numbers of the connection: they depend on the seed and the connection's number alone.
func (c *conn) random() *rand.Rand {
	if c.rand == nil {
		c.rand = rand.New(rand.NewPCG(c.srv.cfg.Seed, uint64(c.number)))
	}
	return c.rand
}

// wait lets the latency of the request pass, as far as it is known: that of a body counts once the body has been read. In a slot, time
// counts from when the slot was taken; otherwise from now.
func (c *conn) wait() error {
	d := c.how.Latency
	c.whole = c.bodyEnded()
	if c.whole {
		d += c.bodyLatency()
	}
	if !c.slot.held {
		return c.pause(d)
	}
	c.due = c.slot.since.Add(d)
	return c.pause(time.Until(c.due))
}

// waitForBody lets the part of the latency pass that the size of the body makes, for an answer that began before the body's end.
func (c *conn) waitForBody() error {
	c.whole = true
	d := c.bodyLatency()
	if d == 0 || !c.slot.held {
		return c.pause(d)
	}
	c.due = c.due.Add(d)
	return c.pause(time.Until(c.due))
}

func (c *conn) bodyLatency() time.Duration {
	if c.how.LatencyPerMiB == 0 {
		return 0
	}
	return time.Duration(float64(c.how.LatencyPerMiB) * float64(c.bodySize()) / (1 << 20))
}

// pause waits for d, or until the connection is closed by its server, which is an error.
func (c *conn) pause(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	if c.timer == nil {
		c.timer = time.NewTimer(d)
	} else {
		c.timer.Reset(d)
	}
	select {
	case <-c.timer.C:
		return nil
	case <-c.ended:
		return net.ErrClosed
	}
}
