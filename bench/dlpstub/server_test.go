package dlpstub

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"icapgate/icap"
)

// listen starts a server on loopback, which is closed with the test, and returns its address.
func listen(t *testing.T, s *Server) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// failingListener fails before it accepts.
type failingListener struct {
	net.Listener
	errs []error
}

func (l *failingListener) Accept() (net.Conn, error) {
	if len(l.errs) > 0 {
		err := l.errs[0]
		l.errs = l.errs[1:]
		return nil, &net.OpError{Op: "accept", Err: err}
	}
	return l.Listener.Accept()
}

// A server that has run out of descriptors goes on when there are some.
func TestShortageOfDescriptors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := New(Config{})
	served := make(chan error, 1)
	go func() { served <- s.Serve(&failingListener{ln, []error{syscall.EMFILE, syscall.ECONNABORTED}}) }()
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	mustWrite(t, nc, bodyless)
	mustExpect(t, nc, head(204, ""))
	s.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	s = New(Config{})
	defer s.Close()
	if err := s.Serve(&failingListener{ln, []error{syscall.EINVAL}}); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("Serve went on after %v", err)
	}
}

// TestMatchInLongBodies looks for a needle at every kind of place of a body that is longer than what is held.
func TestMatchInLongBodies(t *testing.T) {
	const needle = "SECRET-4711"
	limit := 8 << 10
	for _, at := range []int{0, 1, limit - 5, limit, 2*limit - 3, 5*limit + 77, 100_000 - len(needle)} {
		body := bytes.Repeat([]byte("x"), 100_000)
		copy(body[at:], needle)
		var request bytes.Buffer
		request.WriteString(reqmod + "Allow: 204\r\nEncapsulated: req-body=0\r\n\r\n")
		for i := 0; i < len(body); i += 1000 {
			request.Write(appendChunk(nil, body[i:i+1000]))
		}
		request.WriteString("0\r\n\r\n")
		s := New(Config{Match: regexp.MustCompile(`SECRET-\d+`), MatchLimit: limit})
		nc := dialPipe(s)
		go nc.Write(request.Bytes())
		mustExpect(t, nc, "ICAP/1.0 200 OK\r\n")
		nc.Close()
		s.Close()
		if st := s.Stats(); st.Blocked != 1 || st.PayloadBytes != 100_000 {
			t.Errorf("at %d: %+v", at, st)
		}
	}
}

// A body without a match is echoed whole, whatever was held of it.
func TestNoMatchEchoesAll(t *testing.T) {
	body := strings.Repeat("0123456789", 50_000)
	for _, limit := range []int{1, 1000, 65536, 1 << 20} {
		var seen Request
		s := New(Config{Mode: Echo, Match: regexp.MustCompile(`x`), MatchLimit: limit, Hook: func(r *Request) { seen = *r }})
		nc := dialPipe(s)
		go nc.Write([]byte(reqmod + "Encapsulated: req-body=0\r\n\r\n" + string(appendChunk(nil, []byte(body))) + "0\r\n\r\n"))
		mustExpect(t, nc, head(200, "Encapsulated: req-body=0\r\n"))
		if got := mustReadBody(t, nc); got != body {
			t.Errorf("limit %d: echo of %d bytes", limit, len(got))
		}
		nc.Close()
		s.Close()
		if seen.BodyLen != uint64(len(body)) || seen.Err != nil {
			t.Errorf("limit %d: the hook saw %d bytes, %v", limit, seen.BodyLen, seen.Err)
		}
	}
}

func mustReadBody(t *testing.T, nc net.Conn) string {
	t.Helper()
	var body icap.BodyReader
	body.Reset(icap.BodyConfig{Preview: -1})
	var all bytes.Buffer
	buf := make([]byte, 1000)
	for body.End() == icap.EndNone {
		n, err := nc.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		for p := buf[:n]; len(p) > 0; {
			data, n, err := body.NextData(p)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(data)
			p = p[n:]
		}
	}
	return all.String()
}

func TestISTagChanges(t *testing.T) {
	tag := func(nc net.Conn) string {
		mustWrite(t, nc, bodyless)
		buf := make([]byte, 1000)
		n, _ := nc.Read(buf)
		var r icap.Response
		if err := r.Parse(buf[:n]); err != nil {
			t.Fatal(err)
		}
		return string(r.Get("ISTag"))
	}
	tags := func(nc net.Conn, n int) (list []string) {
		for range n {
			list = append(list, strings.Trim(tag(nc), `"`))
		}
		return list
	}
	f := func(cfg Config, want ...string) {
		t.Helper()
		s := New(cfg)
		defer s.Close()
		nc := dialPipe(s)
		defer nc.Close()
		if diff := cmp.Diff(want, tags(nc, len(want))); diff != "" {
			t.Error(diff)
		}
	}
	f(Config{}, "dlpstub-1", "dlpstub-1")
	f(Config{ISTag: "a", ISTagEvery: 1}, "a", "a-1", "a-2")
	f(Config{ISTag: "a", ISTagEvery: 2}, "a", "a", "a-1", "a-1", "a-2")
	synctest.Test(t, func(t *testing.T) {
		f(Config{ISTag: "a", ISTagPeriod: 5 * time.Second, Latency: 2 * time.Second}, "a", "a", "a", "a-1", "a-1", "a-2", "a-2", "a-2", "a-3")
	})
	s := New(Config{ISTag: "a"})
	defer s.Close()
	nc := dialPipe(s)
	defer nc.Close()
	s.ChangeISTag("")
	one := tag(nc)
	s.ChangeISTag("new")
	two := tag(nc)
	if one != `"a-1"` || two != `"new"` || s.ISTag() != "new" {
		t.Error(one, two, s.ISTag())
	}
}

// Connections beyond the limit wait until one of the others has ended, and those that leave the line leave no gap.
func TestConnectionLimitWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{ConnectionLimit: 2})
		defer s.Close()
		one, two := dialPipe(s), dialPipe(s)
		synctest.Wait()
		three := dialPipe(s)
		synctest.Wait()
		four := dialPipe(s)
		defer four.Close()
		synctest.Wait()
		answered := make(chan string, 1)
		go func() {
			io.WriteString(four, bodyless)
			buf := make([]byte, 1000)
			n, _ := four.Read(buf)
			answered <- string(buf[:n])
		}()
		time.Sleep(10 * time.Second)
		select {
		case got := <-answered:
			t.Fatalf("answered beyond the limit: %q", got)
		default:
		}
		three.Close() // in line: no place is free yet
		mustWrite(t, two, bodyless)
		mustExpect(t, two, head(204, ""))
		one.Close()
		if got := <-answered; got != head(204, "") {
			t.Errorf("got %q", got)
		}
		two.Close()
	})
}

func TestConnectionLimitRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{ConnectionLimit: 1, Excess: ExcessRefused, RetryAfter: 3 * time.Second})
		defer s.Close()
		idle := dialPipe(s)
		synctest.Wait()
		for _, request := range []string{"OPTIONS icap://s/r ICAP/1.0\r\n\r\n", bodyless} {
			nc := dialPipe(s)
			mustWrite(t, nc, request)
			mustExpect(t, nc, head(503, connClose+"Retry-After: 3\r\n"))
			if rest, err := io.ReadAll(nc); err != nil || len(rest) > 0 {
				t.Errorf("after the 503: %q, %v", rest, err)
			}
			nc.Close()
			synctest.Wait()
		}
		idle.Close()
		synctest.Wait()
		nc := dialPipe(s)
		defer nc.Close()
		mustWrite(t, nc, bodyless)
		mustExpect(t, nc, head(204, ""))
	})
}

// An idle connection is told 408 each time, over TLS too, and can still be used.
func TestIdleStatus(t *testing.T) {
	https := httptest.NewTLSServer(nil) // for its certificate
	https.Close()
	for _, secure := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			cfg := Config{IdleTimeout: 5 * time.Second, IdleStatus: 408}
			if secure {
				cfg.TLS = &tls.Config{Certificates: https.TLS.Certificates}
			}
			s := New(cfg)
			defer s.Close()
			nc := dialPipe(s)
			if secure {
				nc = tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
			}
			defer nc.Close()
			start := time.Now()
			mustExpect(t, nc, head(408, "")+head(408, ""))
			if d := time.Since(start); d != 10*time.Second {
				t.Errorf("two answers after %v", d)
			}
			mustWrite(t, nc, bodyless)
			mustExpect(t, nc, head(204, ""))
		})
	}
}

func TestSilentOptionsClose(t *testing.T) {
	s := New(Config{CloseAfter: 1, SilentOptionsClose: true})
	defer s.Close()
	for request, want := range map[string]bool{"OPTIONS icap://s/r ICAP/1.0\r\n\r\n": false, bodyless: true} {
		nc := dialPipe(s)
		mustWrite(t, nc, request)
		answer, err := io.ReadAll(nc)
		if err != nil || strings.Contains(string(answer), connClose) != want {
			t.Errorf("%q: %q, %v", request, answer, err)
		}
		nc.Close()
	}
}

func TestFaults(t *testing.T) {
	body := "2000\r\n" + strings.Repeat("x", 8192) + "\r\n0\r\n\r\n"
	allow := reqmod + "Allow: 204\r\nEncapsulated: req-body=0\r\n\r\n" + body
	noAllow := reqmod + "Encapsulated: req-body=0\r\n\r\n" + body
	echoHead := head(200, "Encapsulated: req-body=0\r\n")
	tests := []struct {
		name    string
		fault   Fault
		request string
		want    string // what comes back, all of it
		end     error  // nil: the connection goes on
	}{
		{"refuse", Fault{Kind: Refuse}, "", "", syscall.ECONNRESET},
		{"body", Fault{Kind: ResetBody}, allow[:200], "", syscall.ECONNRESET},
		{"no body", Fault{Kind: ResetBody}, bodyless, "", syscall.ECONNRESET},
		{"answer", Fault{Kind: ResetAnswer}, allow, head(204, "")[:len(head(204, ""))/2], syscall.ECONNRESET},
		{"echo", Fault{Kind: ResetAnswer}, noAllow, echoHead + "2000", syscall.ECONNRESET},
		{"echo of no body", Fault{Kind: ResetAnswer}, reqmod + "Encapsulated: null-body=0\r\n\r\n",
			head(200, "Encapsulated: null-body=0\r\n")[:len(head(200, "Encapsulated: null-body=0\r\n"))/2], syscall.ECONNRESET},
		{"encapsulated", Fault{Kind: WrongEncapsulated}, allow, head(200, "Encapsulated: req-body=2\r\n") + body, nil},
		{"status", Fault{Kind: WrongStatus, Status: 500}, noAllow, head(500, ""), nil},
		{"options are well", Fault{Kind: WrongStatus, Status: 500}, "OPTIONS icap://s/r ICAP/1.0\r\n\r\n", "ICAP/1.0 200 OK\r\n", nil},
		{"options", Fault{Kind: WrongStatus, Status: 500, Options: true}, "OPTIONS icap://s/r ICAP/1.0\r\n\r\n", head(500, ""), nil},
		{"trickle", Fault{Kind: Trickle, Pause: time.Microsecond}, allow, head(204, ""), nil},
		{"late", Fault{Kind: Late, Pause: time.Microsecond}, allow, head(204, ""), nil},
		{"late options", Fault{Kind: Late, Pause: time.Microsecond, Options: true}, "OPTIONS icap://s/r ICAP/1.0\r\n\r\n", "ICAP/1.0 200 OK\r\n", nil},
	}
	for _, tt := range tests {
		for _, how := range []string{"configured", "injected"} {
			t.Run(tt.name+" "+how, func(t *testing.T) {
				tt.fault.Share = 1
				var cfg Config
				if how == "configured" {
					cfg.Faults = []Fault{tt.fault}
				}
				s := New(cfg)
				if how == "injected" {
					s.Inject(tt.fault, 1, time.Time{})
				}
				nc, err := net.Dial("tcp", listen(t, s))
				if err != nil {
					if tt.fault.Kind != Refuse || !errors.Is(err, tt.end) { // the reset may come before connect is over
						t.Error(err)
					}
					return
				}
				defer nc.Close()
				nc.SetDeadline(time.Now().Add(time.Minute)) // a hang becomes an error
				if _, err := io.WriteString(nc, tt.request); err != nil {
					if tt.end == nil || !errors.Is(err, tt.end) { // the write may hear of the reset, and a read then does not any more
						t.Fatal(err)
					}
					return
				}
				got := make([]byte, len(tt.want))
				n, err := io.ReadFull(nc, got)
				if string(got[:n]) != tt.want && !(tt.end != nil && errors.Is(err, tt.end)) { // a reset may overtake the answer
					t.Fatalf("got %.300q, %v\nwant %.300q", got[:n], err, tt.want)
				}
				if tt.end != nil {
					if err == nil {
						_, err = nc.Read(make([]byte, 1))
					}
					if !errors.Is(err, tt.end) {
						t.Errorf("the connection ended with %v", err)
					}
				}
				if tt.name == "options are well" {
					return
				}
				if n := s.Stats().Faults[tt.fault.Kind]; n != 1 {
					t.Errorf("%d faults", n)
				}
				if _, count, _ := s.Injected(); count != 0 {
					t.Errorf("%d faults left", count)
				}
			})
		}
	}
}

func TestGarbage(t *testing.T) {
	s := New(Config{Faults: []Fault{{Kind: Garbage, Share: 1}}})
	defer s.Close()
	nc := dialPipe(s)
	defer nc.Close()
	mustWrite(t, nc, bodyless)
	got, err := io.ReadAll(nc)
	if err != nil || len(got) != 256 || bytes.HasPrefix(got, []byte("ICAP")) {
		t.Errorf("%q, %v", got, err)
	}
}

// Silent and stalled connections end with the client's leaving, or the server's.
func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		defer s.Close()
		s.Inject(Fault{Kind: Silent, Share: 1}, 1, time.Time{})
		nc := dialPipe(s)
		mustWrite(t, nc, bodyless)
		nc.SetDeadline(time.Now().Add(50 * time.Second))
		if n, err := nc.Read(make([]byte, 1)); n > 0 || err == io.EOF {
			t.Error("answered")
		}
		nc.Close()
		synctest.Wait()
		if st := s.Stats(); st.Open != 0 || st.Requests[icap.MethodReqmod] != 1 {
			t.Errorf("%+v", st)
		}
		s.Inject(Fault{Kind: Stall, Share: 1}, 0, time.Time{})
		nc = dialPipe(s)
		nc.SetDeadline(time.Now().Add(5 * time.Minute))
		if n, err := io.WriteString(nc, bodyless); n > 0 {
			t.Errorf("%d bytes were read, %v", n, err)
		}
		nc.Close()
		time.Sleep(StallTime)
		synctest.Wait()
		if st := s.Stats(); st.Open != 0 || st.Faults[Stall] != 1 {
			t.Errorf("%+v", st)
		}
	})
}

// Faults come as often as they are to, in an order that the seed gives; those that are injected end by count or by time.
func TestFaultsAreDrawn(t *testing.T) {
	draw := func(seed uint64) (list []bool) {
		s := New(Config{Seed: seed, Faults: []Fault{{Kind: WrongStatus, Status: 500, Share: 0.2}}})
		defer s.Close()
		nc := dialPipe(s)
		defer nc.Close()
		for range 1000 {
			mustWrite(t, nc, bodyless)
			buf := make([]byte, 200)
			n, _ := nc.Read(buf)
			list = append(list, strings.HasPrefix(string(buf[:n]), "ICAP/1.0 500"))
		}
		return list
	}
	a, b, c := draw(1), draw(1), draw(2)
	if !cmp.Equal(a, b) || cmp.Equal(a, c) {
		t.Error("not by the seed")
	}
	failed := 0
	for _, f := range a {
		if f {
			failed++
		}
	}
	if failed < 150 || failed > 250 { // 200, four deviations
		t.Errorf("%d of 1000 failed", failed)
	}

	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Latency: time.Second})
		defer s.Close()
		nc := dialPipe(s)
		defer nc.Close()
		fault := Fault{Kind: WrongStatus, Status: 500, Share: 1}
		expect := func(want ...int) {
			t.Helper()
			for _, status := range want {
				mustWrite(t, nc, bodyless)
				mustExpect(t, nc, head(status, ""))
			}
		}
		s.Inject(fault, 2, time.Time{})
		expect(500, 500, 204)
		s.Inject(fault, 0, time.Now().Add(3*time.Second))
		expect(500, 500, 500, 204)
		s.Inject(fault, 0, time.Time{})
		expect(500, 500)
		if f, count, until := s.Injected(); f != fault || count != 0 || !until.IsZero() {
			t.Error(f, count, until)
		}
		s.Inject(Fault{}, 0, time.Time{})
		expect(204)
	})
}

func TestParseFault(t *testing.T) {
	for _, name := range FaultNames() {
		if k := ParseFault(name); k == NoFault || k.String() != name {
			t.Errorf("%s: %v", name, k)
		}
	}
	if k := ParseFault("nonsense"); k != NoFault {
		t.Error(k)
	}
}
