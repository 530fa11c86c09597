package dlpstub

import (
	"cmp"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"icapgate/icap"
)

// FaultKind is a way in which a server fails.
type FaultKind uint8

const (
	NoFault           FaultKind = iota
	Refuse                      // the connection ends with RST when it has been accepted
	Stall                       // nothing is read from the connection and nothing written to it, for StallTime at most
	ResetBody                   // the connection ends with RST in the middle of the request, before its body if it has one
	ResetAnswer                 // the connection ends with RST in the middle of the answer
	Silent                      // the request is read and not answered
	Trickle                     // the answer comes byte by byte
	Late                        // the answer comes later
	Garbage                     // random bytes come in place of an answer, then the end of the connection
	WrongEncapsulated           // the answer is an echo, and the offset of its body is wrong
	WrongStatus                 // the answer has the status of the fault
	numFaults
)

var faultNames = [numFaults]string{"none", "refuse", "stall", "reset-body", "reset-answer", "silent", "trickle", "late", "garbage", "encapsulated", "status"}

func (k FaultKind) String() string { return faultNames[k] }

// ParseFault returns the kind with that name; NoFault for a name that no kind has.
func ParseFault(name string) FaultKind {
	for k, s := range faultNames {
		if s == name {
			return FaultKind(k)
		}
	}
	return NoFault
}

// FaultNames are the names of the kinds.
func FaultNames() []string { return faultNames[1:] }

// ofConnections says whether a kind is drawn for a connection; otherwise it is for a request.
func (k FaultKind) ofConnections() bool { return k == Refuse || k == Stall }

// StallTime is how long a stalled connection is held at most: its server does not notice when the client leaves.
const StallTime = 10 * time.Minute

// defaultPause is Fault.Pause where that is 0.
const defaultPause = 100 * time.Millisecond

// Fault is what goes wrong and how often.
type Fault struct {
	Kind   FaultKind
	Share  float64       // of the requests, or connections, that have it: 0 to 1
	Status int           // of WrongStatus
	Pause  time.Duration // between two bytes of Trickle, before the answer of Late; 0: 100 ms

	// Options says that OPTIONS have the fault too. Otherwise a server that fails looks well to whoever asks for no more.
	Options bool
}

func (f *Fault) pause() time.Duration { return cmp.Or(f.Pause, defaultPause) }

// command is a fault that was ordered while the server runs.
type command struct {
	fault Fault
	left  atomic.Int64 // requests or connections that still get it; negative: any number
	until time.Time    // zero: for ever
}

// Inject lets a fault happen from now on, in place of the one that was injected before: to the next count requests (Refuse and Stall:
// connections), or to any number if count is 0, until the given time, or for ever if that is zero. The faults of Config go on.
func (s *Server) Inject(f Fault, count int, until time.Time) {
	if f.Kind == NoFault {
		s.injected.Store(nil)
		return
	}
	c := &command{fault: f, until: until}
	c.left.Store(int64(count))
	if count == 0 {
		c.left.Store(-1)
	}
	s.injected.Store(c)
}

// Injected returns the fault that was injected, if it still happens, and to how many requests or connections more (0: any number) and until
// when (zero: for ever).
func (s *Server) Injected() (f Fault, count int, until time.Time) {
	c := s.injected.Load()
	if c == nil || c.over() {
		return Fault{}, 0, time.Time{}
	}
	return c.fault, max(0, int(c.left.Load())), c.until
}

func (c *command) over() bool {
	return c.left.Load() == 0 || !c.until.IsZero() && !time.Now().Before(c.until)
}

// take says whether the fault happens this time.
func (c *command) take(r func() *rand.Rand) bool {
	if c.over() || c.fault.Share < 1 && r().Float64() >= c.fault.Share {
		return false
	}
	for {
		left := c.left.Load()
		if left == 0 {
			return false
		}
		if left < 0 || c.left.CompareAndSwap(left, left-1) {
			return true
		}
	}
}

// drawFault returns what goes wrong with this connection, or with this request. What is injected comes first, then the faults of Config in turn.
func (c *conn) drawFault(ofConnection bool) (f Fault) {
	s := c.srv
	meant := func(f *Fault) bool {
		return f.Kind.ofConnections() == ofConnection && (ofConnection || f.Options || c.req.Method != icap.MethodOptions)
	}
	if in := s.injected.Load(); in != nil && meant(&in.fault) && in.take(c.random) {
		f = in.fault
	}
	for i := range s.cfg.Faults {
		if one := &s.cfg.Faults[i]; f.Kind == NoFault && meant(one) && c.random().Float64() < one.Share {
			f = *one
		}
	}
	if f.Kind != NoFault {
		s.faults[f.Kind].Add(1)
	}
	return f
}

// failed lets a connection have its fault, if it has one.
func (c *conn) failed() bool {
	switch c.drawFault(true).Kind {
	case Refuse:
		c.reset()
	case Stall:
		c.pause(StallTime)
	default:
		return false
	}
	return true
}

// reset ends the connection with RST.
func (c *conn) reset() {
	if tcp, ok := c.raw.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	c.raw.Close()
}

// resetBody ends the connection when some of the body has come, if there is one.
func (c *conn) resetBody() error {
	if !c.bodyEnded() && c.r == c.w {
		if err := c.fill(); err != nil {
			return err
		}
	}
	c.finish(errCut) // counted before the client can know
	c.reset()
	return errCut
}

// beSilent reads the request, and then what comes until the client leaves.
func (c *conn) beSilent() error {
	if err := c.drain(false); err != nil {
		return err
	}
	c.finish(nil)
	io.Copy(io.Discard, c.net)
	return errCut
}

// answerGarbage answers with bytes that mean nothing, and ends the connection.
func (c *conn) answerGarbage() error {
	if err := c.drain(false); err != nil {
		return err
	}
	if err := c.wait(); err != nil {
		return err
	}
	c.finish(nil)
	c.answered = true
	for range 256 {
		c.out = append(c.out, byte(c.random().Uint32()))
	}
	c.closing = 1
	return c.flush()
}

// cutAt lets a ResetAnswer happen after so many bytes of the answer.
func (c *conn) cutAt(n int) {
	if c.how.Fault.Kind == ResetAnswer && c.how.Cut == 0 {
		c.how.Cut = max(1, n)
	}
}

// trickle writes p byte by byte.
func (c *conn) trickle(p []byte) error {
	pause := c.how.Fault.pause()
	for i := range p {
		if _, err := c.net.Write(p[i : i+1]); err != nil {
			return err
		}
		if err := c.pause(pause); err != nil {
			return err
		}
	}
	return nil
}
