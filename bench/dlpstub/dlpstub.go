// Package dlpstub is a fake DLP server: it speaks ICAP as real servers do, judges little and is fast. It serves
// the demo, icapbench and the tests.
//
// What it does with a REQMOD or RESPMOD is fixed by Config: it answers 204, echoes the encapsulated message
// in a 200, changes it (200 or 206), or blocks it, all of them or those in whose body a pattern is found. An echo is
// streamed: bytes go back while more are read, so the memory of a connection is constant
// whatever the size of the body, and a client has to read while it writes once a body is larger than what the
// sockets hold. A 204 is only given where the client allows it (Allow: 204, or within a preview); elsewhere the
// message is echoed, as RFC 3507 section 4.6 wants it.
//
// How long it takes is fixed or drawn from a distribution, and grows with the body if asked to. With slots it has a known limit: N slots
// and a latency of L serve N/L requests per second, and what is beyond waits in line or is told 503.
//
// It fails on purpose if it is told to (Fault), and counts what it gets (Stats, Incidents).
//
// Each connection has one goroutine. It allocates nothing per request once its buffers have grown (crypto/tls does, if
// TLS is used), and it writes an answer that fits its buffer with one call.
package dlpstub

import (
	"crypto/tls"
	"errors"
	"math/bits"
	"net"
	"regexp"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"icapgate/icap"
)

// Mode says how a REQMOD or RESPMOD is answered.
type Mode uint8

const (
	// NoContent answers 204 where the client allows it and echoes elsewhere.
	NoContent Mode = iota
	// Echo answers 200 with the encapsulated message of the request.
	Echo
	// Modify answers 200 with that message, changed as Config.Change says.
	Modify
	// Partial answers 206 with that change where the client allows it (Allow: 206 in a preview, both 204 and 206 elsewhere), so that the rest of
	// the body need not come back, and is Modify elsewhere.
	Partial
	// Block answers 200 with the block page.
	Block
)

// MatchOverlap is how long a match has to be found even across two pieces of a body that is looked at piece by piece.
const MatchOverlap = 4 << 10

// Page is the block page.
type Page struct {
	Status int    // of HTTP; 0: 403
	Body   string // HTML; "": a page that says that the content was blocked
}

// QueueAll as Config.Queue lets any number of requests wait.
const QueueAll = -1

// PreviewZero as Config.Preview offers "Preview: 0".
const PreviewZero = -1

// Config is what a server does. The zero value answers 204, offers no preview and advertises no limit.
type Config struct {
	Name string // X-Server of every answer and Service of OPTIONS; "": no X-Server
	Mode Mode

	Change Change // of Modify and Partial

	// Match, if set, is looked for in the body of every REQMOD and RESPMOD; where it is found the block page is the answer, in place of Mode.
	// The client is asked for what comes after its preview. An answer with bytes of the body can only be held back until it has begun:
	// then the first MatchLimit bytes (0: 1 MiB) are looked at, which are held in memory. In front of any other answer all of the body is
	// looked at, in pieces of that size with an overlap of MatchOverlap.
	Match      *regexp.Regexp
	MatchLimit int
	Page       Page

	// Alternate answers every second preview 204 in place of Mode, as the echo service of c-icap does.
	Alternate bool
	// WholePreview takes a preview for the whole body and asks for no more, as e2guardian does.
	WholePreview bool

	// Status, if not 0, is the ICAP status of every answer to REQMOD and RESPMOD (503, say), in place of Mode.
	Status int

	// The latency is the time that passes before the final answer to REQMOD and RESPMOD starts: Latency, plus what Delay draws, plus
	// LatencyPerMiB for the bytes of the body. If an answer begins before the body has ended, the last one passes before the end of an
	// echo, and not at all if the answer has no body.
	Latency       time.Duration
	Delay         Delay         // nil: nothing is drawn
	LatencyPerMiB time.Duration // of body
	Seed          uint64        // of what is drawn; each connection has its own sequence, by its number

	// Slots is how many REQMOD and RESPMOD are in service at a time, from their heads to the end of their answer; 0: all that come. In a
	// slot the latency counts from when the slot was taken, so that N slots serve N requests per latency if clients don't take
	// longer. Of the others as many as Queue says wait in line, first come, first served, with their bodies unread (QueueAll: any
	// number); the rest is answered 503, at once and with Retry-After in whole seconds unless that is 0.
	Slots      int
	Queue      int
	RetryAfter time.Duration

	// Incidents, if set, count the ids that requests carry in the field IncidentField ("": X-Incident-ID). Servers may share them.
	Incidents     *Incidents
	IncidentField string

	// Preview is the size that OPTIONS offers: 0 offers none, PreviewZero offers 0 bytes. A client that sends a
	// preview is served by the rules of previews whatever was offered.
	Preview int
	// Continue asks for the rest of a body with "100 Continue" where a 204 could have been given after the preview.
	Continue bool

	// EarlyAnswer answers as soon as the ICAP head and the encapsulated heads are there: a 204 or Status, after which the
	// body is read and dropped, or the head of an echo. A preview that is echoed is not answered early.
	EarlyAnswer bool

	// ReadRate is how many bytes per second are read from a connection; 0: as many as come.
	ReadRate int64

	// Treat, if set, is asked about each REQMOD and RESPMOD when its heads have been read, and may change how it is treated, which is
	// as the fields above say. Of the Request it sees what is known by then. It runs on the connection's goroutine.
	Treat func(*Request, *Treatment)

	// CloseAfter ends a connection after that many requests; 0: never. The last answer says "Connection: close"
	// unless SilentClose is set.
	CloseAfter         int
	SilentClose        bool
	SilentOptionsClose bool          // the same of an answer to OPTIONS only
	IdleTimeout        time.Duration // ends a connection that waits that long for a request; 0: never
	IdleStatus         int           // in place of its end, an idle connection gets an answer with this status that nobody asked for; 0: its end

	Methods        []icap.Method // what is served, the rest gets a 405; nil: REQMOD and RESPMOD
	MaxConnections int           // advertised, not enforced; 0: not said

	// Services are the paths that are served, each with its methods; the rest gets a 404. nil: every path serves Methods.
	Services map[string][]icap.Method
	// RespmodField is a field without which a RESPMOD gets a 418; "": none.
	RespmodField string

	// ConnectionLimit is how many connections are served at a time, idle ones included; 0: all. Excess says what becomes of the others.
	ConnectionLimit int
	Excess          Excess

	ISTag       string        // without quotes; "": "dlpstub-1"
	ISTagEvery  int           // the ISTag changes, to ISTag-1 and so on, after that many requests; 0: it does not
	ISTagPeriod time.Duration // or after that time; 0: it does not

	Fields      string // lines that are added to the ICAP head of every final answer to REQMOD and RESPMOD, each with its CRLF
	NullBody    bool   // answers without a message say "Encapsulated: null-body=0"
	TightFields bool   // no blank after the colon of ISTag, X-Server and Connection
	BareISTag   bool   // no quotes
	OpenErrors  bool   // a bad request gets a 400 without its empty line, and the connection stays open if the request has no body

	Faults []Fault // what goes wrong, and how often; the first of a request or connection counts

	OptionsTTL time.Duration // whole seconds; 0: one hour, negative: not said

	TLS *tls.Config // nil: plain ICAP

	// Hook, if set, is called once for each request whose ICAP head and encapsulated heads were read: when its body has ended, before the
	// end of the answer is written (an early 204 has been written by then), or when the connection was lost.
	// It runs on the connection's goroutine, so calls for several connections overlap, and must not call Close.
	Hook func(*Request)
}

// Treatment is how one request is treated: see the fields of Config with these names.
type Treatment struct {
	Mode        Mode
	Status      int
	Latency     time.Duration // of Config, and what Delay has drawn
	Continue    bool
	EarlyAnswer bool
	ReadRate    int64

	LatencyPerMiB time.Duration

	Fault Fault // its Share does not matter, and Refuse and Stall come too late

	Fields string // lines that are added to the ICAP head of the final answer, each with its CRLF; those of Config are here
	Close  bool   // the answer says "Connection: close"
	Cut    int    // bytes of the final answer after which the connection ends with RST; 0: it does not, NoAnswer: before the first
}

// NoAnswer as Treatment.Cut ends the connection when the answer was to begin.
const NoAnswer = -1

// Request is what a Hook gets to see. Head and Blocks are valid during the call only.
type Request struct {
	Connection int // number of the connection, from 1 in the order of acceptance
	Number     int // number of the request on its connection, from 1
	Method     icap.Method
	Head       []byte // the ICAP head as received, empty line included
	Blocks     []byte // the encapsulated heads as received
	Preview    int    // declared size, -1: none
	Continued  bool   // 100 Continue was sent
	Ieof       bool   // the preview ended with ieof
	BodyLen    uint64
	BodySHA256 [32]byte
	Err        error // nil: the request was read to its end
}

// Stats are the counters of a server since New.
type Stats struct {
	Requests     [icap.NumMethods]uint64 // whose heads were read, by method
	PayloadBytes uint64                  // body bytes received, without framing
	Answers      map[int]uint64          // final answers that began, by ICAP status
	Active       int                     // requests between their heads and the end of their answer
	PeakActive   int
	PeakQueue    int                  // requests in line for a slot
	Turned       uint64               // requests answered 503 because the line was full
	Blocked      uint64               // requests answered with the block page
	Faults       map[FaultKind]uint64 // that happened
	Accepted     uint64               // connections
	Open         int                  // connections
	PeakOpen     int
	PerConn      PerConn
	Refused      uint64 // requests with a protocol error
	Truncated    uint64 // requests that the end of their connection cut
	LastError    error  // the last of these two, nil if there was none
}

// PerConn says how many requests connections had, those included that are open.
type PerConn struct {
	Least, Most uint64
	Mean        float64
	// Connections by requests: [0] had none, [i] had 2^(i-1) to 2^i-1; the last one has those with more too.
	Counts [20]uint64
}

func (p *PerConn) add(n uint64, seen uint64) {
	if seen == 0 || n < p.Least {
		p.Least = n
	}
	p.Most = max(p.Most, n)
	p.Mean = (p.Mean*float64(seen) + float64(n)) / float64(seen+1)
	p.Counts[min(bits.Len64(n), len(p.Counts)-1)]++
}

// Server is a fake DLP server. It may serve several listeners.
type Server struct {
	// Static after New.
	cfg      Config
	services []service      // [0] is that of every path, unless:
	paths    map[string]int // index of services; nil: every path is [0]
	began    time.Time

	slots    slots
	door     door
	injected atomic.Pointer[command]

	current atomic.Pointer[heads]
	tagged  atomic.Uint64 // answers that began, if ISTagEvery
	tagBase atomic.Uint64 // changes of the ISTag by command
	tagMu   sync.Mutex    // held while current is replaced

	requests  [icap.NumMethods]atomic.Uint64
	statuses  [1000]atomic.Uint64 // final answers by ICAP status
	active    atomic.Int64
	peak      atomic.Int64 // of active
	blocked   atomic.Uint64
	previews  atomic.Uint64 // if Alternate
	faults    [numFaults]atomic.Uint64
	payload   atomic.Uint64
	refused   atomic.Uint64
	truncated atomic.Uint64
	lastError atomic.Pointer[error]

	running sync.WaitGroup

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	accepted  uint64
	ended     uint64 // connections
	peakOpen  int
	perConn   PerConn // of connections that have ended
	closed    bool
}

// New returns a server that does what cfg says.
func New(cfg Config) *Server {
	if cfg.Methods == nil {
		cfg.Methods = []icap.Method{icap.MethodReqmod, icap.MethodRespmod}
	}
	if cfg.ISTag == "" {
		cfg.ISTag = "dlpstub-1"
	}
	if cfg.IncidentField == "" {
		cfg.IncidentField = "X-Incident-ID"
	}
	if cfg.OptionsTTL == 0 {
		cfg.OptionsTTL = time.Hour
	}
	if cfg.MatchLimit == 0 {
		cfg.MatchLimit = 1 << 20
	}
	if cfg.Page.Status == 0 {
		cfg.Page.Status = 403
	}
	if cfg.Page.Body == "" {
		cfg.Page.Body = "<!DOCTYPE html>\n<title>Blocked</title>\n<h1>Blocked</h1>\n<p>This content may not be sent.</p>\n"
	}
	s := &Server{
		cfg:       cfg,
		services:  []service{newService(cfg.Methods)},
		began:     time.Now(),
		listeners: map[net.Listener]struct{}{},
		conns:     map[*conn]struct{}{},
	}
	if cfg.Services != nil {
		s.paths = make(map[string]int, len(cfg.Services))
		for path, list := range cfg.Services {
			s.paths[path] = len(s.services)
			s.services = append(s.services, newService(list))
		}
	}
	s.current.Store(newHeads(&s.cfg, s.services, cfg.ISTag, 0))
	return s
}

// service is what is served at a path.
type service struct {
	listed []icap.Method
	serves [icap.NumMethods]bool
}

func newService(list []icap.Method) service {
	s := service{listed: list}
	for _, m := range list {
		s.serves[m] = true
	}
	return s
}

// look returns the service of a request, and the status if it is not served, otherwise 0.
func (s *Server) look(r *icap.Request) (at, refusal int) {
	if s.paths != nil {
		var ok bool
		if at, ok = s.paths[string(r.Path)]; !ok {
			return 0, 404
		}
	}
	switch m := r.Method; {
	case m == icap.MethodOther:
		refusal = 501
	case m != icap.MethodOptions && !s.services[at].serves[m]:
		refusal = 405
	case m == icap.MethodRespmod && s.cfg.RespmodField != "" && r.Get(s.cfg.RespmodField) == nil:
		refusal = 418
	}
	return at, refusal
}

// Serve accepts connections from ln, which it closes, until Close or Kill; it returns nil then.
func (s *Server) Serve(ln net.Listener) error {
	defer ln.Close()
	if !s.addListener(ln) {
		return nil
	}
	for {
		nc, err := ln.Accept()
		if err != nil {
			if isShortage(err) {
				time.Sleep(shortagePause)
				continue
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.listeners, ln)
			if s.closed {
				return nil
			}
			return err
		}
		s.ServeConn(nc)
	}
}

// shortagePause is how long no connection is accepted after one could not be for want of a descriptor or memory.
const shortagePause = 10 * time.Millisecond

// isShortage says whether an error of Accept may be another one's end or another time's luck.
func isShortage(err error) bool {
	for _, passing := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, passing) {
			return true
		}
	}
	return false
}

func (s *Server) addListener(ln net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.listeners[ln] = struct{}{}
	return true
}

// ServeConn serves one connection in a goroutine of its own and closes nc at its end. It returns at once.
func (s *Server) ServeConn(nc net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		nc.Close()
		return
	}
	s.accepted++
	c := newConn(s, nc, int(s.accepted))
	s.conns[c] = struct{}{}
	s.peakOpen = max(s.peakOpen, len(s.conns))
	s.running.Go(func() {
		c.serve()
		s.mu.Lock()
		delete(s.conns, c)
		s.perConn.add(c.requests.Load(), s.ended)
		s.ended++
		s.mu.Unlock()
	})
}

// Close closes the listeners and every connection, and returns when all goroutines of the server have ended.
func (s *Server) Close() { s.stop(false) }

// Kill is Close as a crash looks to the peers: connections end with RST.
func (s *Server) Kill() { s.stop(true) }

func (s *Server) stop(reset bool) {
	s.mu.Lock()
	s.closed = true
	for ln := range s.listeners {
		ln.Close()
	}
	s.closeConns(reset)
	s.mu.Unlock()
	s.running.Wait()
}

// ResetConnections ends every open connection with RST; the listeners go on.
func (s *Server) ResetConnections() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeConns(true)
}

// closeConns needs s.mu.
func (s *Server) closeConns(reset bool) {
	for c := range s.conns {
		if tcp, ok := c.raw.(*net.TCPConn); ok && reset {
			tcp.SetLinger(0)
		}
		c.raw.Close()
		c.interrupt()
	}
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	st := Stats{
		PayloadBytes: s.payload.Load(),
		Refused:      s.refused.Load(),
		Truncated:    s.truncated.Load(),
		Blocked:      s.blocked.Load(),
	}
	for kind := range s.faults {
		if n := s.faults[kind].Load(); n > 0 {
			if st.Faults == nil {
				st.Faults = make(map[FaultKind]uint64)
			}
			st.Faults[FaultKind(kind)] = n
		}
	}
	for m := range st.Requests {
		st.Requests[m] = s.requests[m].Load()
	}
	for code := range s.statuses {
		if n := s.statuses[code].Load(); n > 0 {
			if st.Answers == nil {
				st.Answers = make(map[int]uint64)
			}
			st.Answers[code] = n
		}
	}
	st.Active, st.PeakActive = int(s.active.Load()), int(s.peak.Load())
	s.slots.mu.Lock()
	st.PeakQueue, st.Turned = s.slots.peakLine, s.slots.turned
	s.slots.mu.Unlock()
	if p := s.lastError.Load(); p != nil {
		st.LastError = *p
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Accepted, st.Open, st.PeakOpen = s.accepted, len(s.conns), s.peakOpen
	st.PerConn = s.perConn
	seen := s.ended
	for c := range s.conns {
		st.PerConn.add(c.requests.Load(), seen)
		seen++
	}
	return st
}

// enter counts a request that begins.
func (s *Server) enter(m icap.Method) {
	s.requests[m].Add(1)
	for n := s.active.Add(1); ; {
		peak := s.peak.Load()
		if n <= peak || s.peak.CompareAndSwap(peak, n) {
			return
		}
	}
}

// noteError counts the error that ended a request.
func (s *Server) noteError(err error) {
	var fault *icap.ProtocolError
	if errors.As(err, &fault) {
		s.refused.Add(1)
	} else {
		s.truncated.Add(1)
	}
	s.lastError.Store(&err)
}
