package e2e

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"icapgate/gateway/e2e/tap"
	"icapgate/gateway/vectors"
)

var smugglings = flag.Int("smuggling", 2500, "number of mutated streams that TestSmuggling sends to each of its gateways; by default what it can send in 8 s")

// smugglingTime is for how long TestSmuggling sends by default, however slow the machine is.
const smugglingTime = 8 * time.Second

// message is what is compared of a request: as the reference reads it in the client's stream, and as it comes to a server.
type message struct {
	method, path string
	complete     bool
	heads, body  [32]byte // sums; zero where the request is not complete
	bytes        int64    // of both
}

func messageOf(x tap.Exchange) message {
	m := message{method: x.Method, path: x.Path, complete: x.Request.Complete}
	if m.complete {
		m.heads, m.body, m.bytes = x.Request.Heads.Sum, x.Request.Body.Sum, x.Request.Heads.Size+x.Request.Body.Size
	}
	return m
}

func (m message) String() string {
	if !m.complete {
		return fmt.Sprintf("%s %.100q, cut", m.method, m.path)
	}
	return fmt.Sprintf("%s %.100q, %d bytes", m.method, m.path, m.bytes)
}

// smuggling is a gateway before two c-icap servers, each behind a tap. What clients send to the gateway is read by a reference, the parser of the taps.
// A server must get nothing but requests that the reference has read, as it has read them: not one more, not one that ends elsewhere.
type smuggling struct {
	g       *testGateway
	servers []*tapped

	mu     sync.Mutex
	read   map[message]int // by the reference
	came   map[message]int // to a server
	faults []string        // in what the gateway has told clients
}

func startSmuggling(t testing.TB, pool string) *smuggling {
	s := &smuggling{read: make(map[message]int), came: make(map[message]int)}
	var addresses []string
	for range 2 {
		server := startTappedWith(t, "ServiceAlias r echo\n", tap.Config{Finished: s.arrived})
		s.servers, addresses = append(s.servers, server), append(addresses, server.address)
	}
	s.g = startGateway(t, addresses, "health: {interval: 1h}, "+pool, "services: [{path: /r, pool: dlp}]")
	return s
}

// isCheck says whether a request is the gateway's own.
func isCheck(method, path string) bool { return method == "OPTIONS" && path == "/r" }

func (s *smuggling) arrived(x tap.Exchange) {
	if isCheck(x.Method, x.Path) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.came[messageOf(x)]++
}

// send writes a stream to the gateway, cut at some places, ends it, and reads all that comes back.
func (s *smuggling) send(stream []byte, cuts ...int) error {
	nc, err := net.Dial("tcp", s.g.address(icap))
	if err != nil {
		return err
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(patience))
	var mu sync.Mutex // orders what is sent and what comes
	var requests []tap.Exchange
	reference := tap.NewWire(tap.Rules{Gateway: tap.Answers}, func(f tap.Finding) {
		if f.Direction == tap.Answers {
			s.mu.Lock()
			s.faults = append(s.faults, fmt.Sprintf("%v\nto %.2000q", f, stream))
			s.mu.Unlock()
		}
	}, func(x tap.Exchange) { requests = append(requests, x) })

	sent := make(chan error, 1)
	go func() {
		slices.Sort(cuts)
		rest := stream
		for _, cut := range append(cuts, len(stream)) {
			n := min(max(cut-(len(stream)-len(rest)), 0), len(rest))
			mu.Lock()
			reference.Feed(tap.Requests, rest[:n])
			mu.Unlock()
			_, _ = nc.Write(rest[:n]) // the gateway may have closed already
			rest = rest[n:]
		}
		sent <- nc.(*net.TCPConn).CloseWrite()
	}()
	buffer := make([]byte, 32<<10)
	for err == nil {
		var n int
		n, err = nc.Read(buffer)
		mu.Lock()
		reference.Feed(tap.Answers, buffer[:n])
		mu.Unlock()
	}
	<-sent
	reference.End()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range requests {
		s.read[messageOf(x)]++
		if x.Request.Complete { // of an attempt that was broken off, a server may have a part
			s.read[message{method: x.Method, path: x.Path}]++
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the gateway does not come to an end with %.2000q", stream)
	}
	return nil
}

// check compares what has come to the servers so far with what the reference has read. Requests that were sent again may come twice.
func (s *smuggling) check(t testing.TB) {
	t.Helper()
	again := (&testGateway{Gateway: s.g.Gateway, t: t}).sum("replays_total", "")
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults[:min(5, len(s.faults))] {
		t.Error(f)
	}
	twice := 0
	for m, n := range s.came {
		switch more := n - s.read[m]; {
		case s.read[m] == 0:
			t.Errorf("a server got %v, which no client has sent", m)
		case more > 0:
			twice += more
		}
	}
	if twice > again {
		t.Errorf("%d requests came more often than they were sent, only %d were sent again", twice, again)
	}
}

// accounts ends the gateway and compares the counts of all who have counted: the gateway, the taps, and c-icap in its log. whole is how many
// requests have come to a server to their end.
func (s *smuggling) accounts(t testing.TB) (whole int) {
	t.Helper()
	eventually(t, "no session", func() bool { return s.g.Sessions() == 0 })
	came, attempts := 0, s.g.sum("attempts_total", "")
	s.g.Close() // what a server still waits for does not come any more
	for _, server := range s.servers {
		answered := map[string]int{}
		n := 0
		for _, x := range server.tap.Record().Exchanges {
			if x.Status != 0 {
				answered[logged(x.Method, x.Path)]++
			}
			if !isCheck(x.Method, x.Path) {
				n++
				if x.Request.Complete {
					whole++
				}
			}
		}
		came += n
		var log map[string]int
		eventually(t, "the log of "+server.address, func() bool {
			log = server.log(t)
			return !slices.ContainsFunc(mapKeys(answered), func(line string) bool { return log[line] < answered[line] })
		})
		all := map[string]int{}
		for _, x := range server.tap.Record().Exchanges {
			all[logged(x.Method, x.Path)]++
		}
		for line, n := range log {
			if n > all[line] && line != logged("OPTIONS", "/echo") { // by which the test sees that it is up
				t.Errorf("c-icap has read %d of %q, the gateway has sent %d", n, line, all[line])
			}
		}
	}
	if came > attempts {
		t.Errorf("%d requests have come to the servers, the gateway knows of %d", came, attempts)
	}
	if n := s.g.sum("panics_total", ""); n > 0 {
		t.Errorf("%d panics", n)
	}
	t.Logf("%d attempts, %d requests at the servers, %d of them whole", attempts, came, whole)
	return whole
}

func mapKeys(m map[string]int) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	return keys
}

// logged is how c-icap writes a request into its log.
func logged(method, path string) string { return method + " " + strings.TrimPrefix(path, "/") }

// log counts the requests in c-icap's access log. One that it could not read at all is UNKNOWN, or has no path.
func (c *cicap) log(t testing.TB) map[string]int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, "access.log"))
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]int{}
	for line := range strings.Lines(string(text)) {
		// time zone, local peer method path status
		if f := strings.Fields(line); len(f) >= 7 {
			lines[strings.Join(f[4:len(f)-1], " ")]++
		}
	}
	return lines
}

// marked is a vector with a number in the path of each of its requests, which so is its own.
func marked(vector string, number int) []byte {
	parts := strings.Split(vectors.Text(vector), "gw/r")
	var b bytes.Buffer
	for i, p := range parts {
		if i > 0 {
			fmt.Fprintf(&b, "gw/r?%d.%d", number, i)
		}
		b.WriteString(p)
	}
	return b.Bytes()
}

// smuggler makes streams that may be read in more ways than one, the same ones for each seed.
type smuggler struct {
	*rand.Rand
	number int
}

func newSmuggler(number int) *smuggler {
	return &smuggler{rand.New(rand.NewPCG(6, uint64(number))), number}
}

// hidden is a request that stands within another one. marked does not change it, so that its length stays.
func (s *smuggler) hidden() string {
	return fmt.Sprintf("REQMOD icap://inner/r?%d.hidden ICAP/1.0¶Host: inner¶Encapsulated: null-body=0¶¶", s.number)
}

// Forms of what is written in one way only, and of what may stand beside it.
var (
	sizeForms = []string{"0x%x", "+%x", "-%x", " %x", "%x ", "%x\t", "0%x", "00000000%x", "%x;a=b", "%x; ieof", "%x;a=\"¶\"", "%X", "%xg", "1%08x", "%x\n", "%x\r", "¶%x", "%x ;", "%x,", "%o", "%d"}
	lastForms = []string{"0; ieof", "0;ieof", "00", "0 ", "0;a", "0; use-original-body=3", "-0", "0x0", "0¶X: 1", "0¶X", "0\n", "", "0¶¶0", "000000000000000000"}
	endForms  = []string{"", "\n", "\r", "  ", "x\n", "\rx", "\n\r", "¶¶", "\r\r\n", "00"}
	fields    = []string{"Transfer-Encoding: chunked", "Content-Length: 3", "Encapsulated: null-body=0", "Encapsulated : null-body=0", " null-body=0", "\tnull-body=0", "Preview: 0", "Preview: 4",
		"Preview: 1024", "Preview:\t4", "Allow: 204", "Allow: 204, 206", "Host: other", "Connection: close", "Connection: Encapsulated", "Connection: Preview, Host", "X: 1\rEncapsulated: null-body=0",
		"X: 1\nEncapsulated: null-body=0", "X:\x00", "encapsulated:null-body=0", ": 1", "X", "Upgrade: TLS/1.0", "Expect: 100-continue", "X: ¶¶"}
	lists = []string{"req-hdr=%d, req-body=%d", "req-hdr=%d,req-body=%d", "req-body=%[2]d", "req-hdr=%d, req-hdr=10, req-body=%d", "req-hdr=%d, null-body=%d", "req-hdr=%d, res-body=%d", "req-hdr=%d; req-body=%d",
		"req-hdr=%d, req-body=0x%x", "req-hdr=%d, req-body=+%d", "req-hdr=%d, req-body=0%d", "null-body=0", "req-body=%[2]d, req-hdr=%[1]d", "req-hdr=%d, req-body=%d, null-body=90", "req-hdr=%d ,  req-body=%d", "req-hdr=-%d, req-body=%d"}
)

// pick returns one of several.
func pick[T any](s *smuggler, all []T) T { return all[s.IntN(len(all))] }

// rarely is true in one of n cases.
func (s *smuggler) rarely(n int) bool { return s.IntN(n) == 0 }

// request is a request with a body, each part of which may be spelled in a form of its own.
func (s *smuggler) request() string {
	b := "REQMOD icap://gw/r ICAP/1.0¶Host: gw¶"
	for s.rarely(8) {
		b += pick(s, fields) + "¶"
	}
	preview := -1
	if s.rarely(2) {
		preview = pick(s, []int{0, 4, 5, 12, 200})
		b += fmt.Sprintf("Preview: %d¶", preview)
	}
	head := vectors.Text(vectors.P)
	if s.rarely(4) {
		head = vectors.Text("POST / HTTP/1.1¶X: " + s.hidden())
	}
	offset, list := len(head), lists[0]
	if s.rarely(10) { // two heads, of which the offset takes in one or both
		head += vectors.Text(s.hidden())
		offset = pick(s, []int{offset, len(head)})
	}
	if s.rarely(12) {
		offset += s.IntN(9) - 4
	}
	if s.rarely(10) {
		list = pick(s, lists)
	}
	b += "Encapsulated: " + fmt.Sprintf(list, 0, offset)
	if i := strings.Index(b, "%!"); i >= 0 { // a list that names one of them only
		b = b[:i]
	}
	b += "¶¶" + head
	if preview > 0 {
		b += s.chunk(1 + s.IntN(preview))
	}
	end := "0"
	if preview >= 0 && s.rarely(2) {
		end = "0; ieof"
	}
	if preview >= 0 {
		b += s.last(end)
	}
	if end != "0" && !s.rarely(10) || s.rarely(10) {
		return b
	}
	for s.rarely(2) {
		b += s.chunk(100)
	}
	return b + s.last("0")
}

// chunk is a chunk of at most n bytes, where there is room for it with a hidden request.
func (s *smuggler) chunk(n int) string {
	data := strings.Repeat("x", 1+s.IntN(n))
	if in := vectors.Text("0¶¶" + s.hidden()); s.rarely(2) && len(in) <= n {
		data = in
	}
	size := "%x"
	if s.rarely(15) {
		size = pick(s, sizeForms)
	}
	n = len(data)
	if s.rarely(20) {
		n = max(0, n+s.IntN(7)-3)
	}
	end := "¶"
	if s.rarely(30) {
		end = pick(s, endForms)
	}
	return fmt.Sprintf(size, n) + "¶" + data + end
}

func (s *smuggler) last(canonical string) string {
	if s.rarely(15) {
		canonical = pick(s, lastForms)
	}
	return canonical + "¶¶"
}

// stream is some requests one behind the other, built or taken from the vectors, and then spoilt.
func (s *smuggler) stream() []byte {
	var all string
	known := vectors.Requests()
	for range 1 + s.IntN(3) {
		if s.rarely(5) {
			v := pick(s, known).Stream
			all += v[:min(len(v), 4000)]
			continue
		}
		all += s.request()
	}
	b := marked(all, s.number)
	for s.rarely(4) {
		b = s.spoil(b)
	}
	return b
}

// spoil changes a stream at one place.
func (s *smuggler) spoil(b []byte) []byte {
	if len(b) == 0 {
		return b
	}
	at := s.IntN(len(b))
	if i := bytes.Index(b[at:], []byte("\r\n")); i >= 0 && !s.rarely(4) {
		at += i // where lines end, more goes wrong
	}
	switch end := min(len(b), at+2); s.IntN(9) {
	case 0:
		return slices.Concat(b[:end], b[at:]) // twice
	case 1:
		return slices.Concat(b[:at], b[end:]) // not at all
	case 2:
		return slices.Concat(b[:at], []byte(pick(s, []string{"\n", "\r", "\r\r\n", "\n\r", "\r\n\r\n", "\x00", " ", "\r\n ", "\v"})), b[end:])
	case 3:
		return slices.Insert(slices.Clone(b), at, []byte(vectors.Text("¶"+pick(s, fields)))...)
	case 4:
		return slices.Insert(slices.Clone(b), at, []byte(vectors.Text(s.hidden()))...)
	case 5:
		b = slices.Clone(b)
		b[at] = byte(s.IntN(256))
		return b
	case 6:
		return b[:at]
	case 7:
		n := s.IntN(200)
		return slices.Concat(b[:at], b[at:min(len(b), at+n)], b[at:])
	default:
		from := s.IntN(len(b))
		return slices.Concat(b[:at], b[from:])
	}
}

// cuts are places at which a stream is cut.
func (s *smuggler) cuts(b []byte) (cuts []int) {
	for range s.IntN(4) {
		cuts = append(cuts, s.IntN(len(b)+1))
	}
	return cuts
}

// TestSmuggling sends all vectors of requests, and streams made out of them, through the gateway to c-icap. What the gateway, a strict reference and
// c-icap take for a request has to be the same.
func TestSmuggling(t *testing.T) {
	for i, preview := range []string{"on", "off"} {
		t.Run("preview "+preview, func(t *testing.T) {
			checkLeaks(t)
			s := startSmuggling(t, "preview: "+preview)
			sent := s.sendAll(t, i**smugglings)
			if whole := s.accounts(t); 3*whole < sent {
				t.Errorf("only %d whole requests have come to the servers for %d streams: the test shows little", whole, sent)
			}
			s.check(t)
		})
	}
}

// sendAll sends the vectors, and mutated streams from a seed on, some at a time.
func (s *smuggling) sendAll(t *testing.T, seed int) (sent int) {
	known := vectors.Requests()
	began, unbounded := time.Now(), false
	flag.Visit(func(f *flag.Flag) { unbounded = unbounded || f.Name == "smuggling" })
	next := make(chan int)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for i := range next {
				var err error
				if i < len(known) {
					err = s.send(marked(known[i].Stream, i))
				} else {
					m := newSmuggler(seed + i)
					stream := m.stream()
					err = s.send(stream, m.cuts(stream)...)
				}
				if err != nil {
					t.Errorf("stream %d: %v", i, err)
				}
			}
		})
	}
	for ; sent < len(known)+*smugglings && (unbounded || sent < len(known) || time.Since(began) < smugglingTime); sent++ {
		next <- sent
	}
	close(next)
	group.Wait()
	t.Logf("%d vectors and %d mutated streams in %v", len(known), sent-len(known), time.Since(began).Round(time.Millisecond))
	return sent
}

// FuzzSmuggling is TestSmuggling with streams that the fuzzer makes.
func FuzzSmuggling(f *testing.F) {
	s := startSmuggling(f, "preview: on")
	for i, v := range vectors.Requests() {
		if len(v.Stream) < 4000 {
			f.Add(marked(v.Stream, i), 0)
		}
	}
	for i := range 200 {
		f.Add(newSmuggler(i).stream(), i)
	}
	f.Fuzz(func(t *testing.T, stream []byte, cut int) {
		if err := s.send(stream, cut); err != nil {
			t.Error(err)
		}
		s.check(t)
	})
}
