package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/textproto"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"
)

// abuseArg makes this program hostile clients in place of a trial: a process has not enough descriptors for all of them.
const abuseArg = "abuse-clients"

// abuserConfig says what clients do to whom.
type abuserConfig struct {
	Kind          string
	Secure, Plain string  // addresses of the gateway
	Count         int     // clients
	Rate          float64 // of them that begin per second
	Source        int     // their addresses are 127.0.Source.1 and on: the ports of one address would not do for all that connect again
}

// abuserReport is what has become of the connections.
type abuserReport struct {
	Outcomes map[string]int // of connections, by what happened
	Wrong    map[string]int // the same of what should not have happened
}

// abuse is one thing that hostile clients do. do uses one connection until it is over and says how that came, and whether it was right;
// what a client says whose time is over does not count.
type abuse struct {
	name  string
	about string
	plain bool          // to the listener without TLS
	pause time.Duration // between two connections of a client
	do    func(ctx context.Context, nc net.Conn) (outcome string, right bool)
}

var abuses = []abuse{
	{"silent", "connect to icaps and say nothing", false, 2 * time.Second, silent},
	{"half-open", "send a ClientHello and nothing more", false, time.Second, halfOpen},
	{"garbage", "send random bytes to icaps, as such or as a TLS record", false, time.Second, garbage},
	{"tls-on-plain", "send a ClientHello to icap", true, time.Second, tlsOnPlain},
	{"plain-on-tls", "send plain ICAP to icaps", false, time.Second, plainOnTLS},
	{"slow-head", "send a head byte by byte", false, time.Second, slowHead},
	{"huge-head", "send a head, a line or a list of fields that does not end", false, time.Second, hugeHead},
	{"malformed", "send requests that break the protocol", false, time.Second, malformed},
	{"deaf", "have a large body echoed and never read", false, time.Second, deaf},
	{"idle", "make one request, wait to the end, make another", false, 0, idle},
}

// What a client says of itself at the end of its time.
const left = "left at the end"

// abuseClients is hostile clients until a signal ends it. Its argument is an abuserConfig.
func abuseClients(args []string, out, complaints io.Writer) int {
	var c abuserConfig
	if len(args) != 1 || json.Unmarshal([]byte(args[0]), &c) != nil {
		fmt.Fprintf(complaints, "trial: %s is what a trial starts its clients with\n", abuseArg)
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	for _, a := range abuses {
		if a.name == c.Kind {
			text, _ := json.Marshal(a.run(ctx, c, func() { fmt.Fprintf(out, "%d ready\n", syscall.Getpid()) }))
			fmt.Fprintf(out, "%d report %s\n", syscall.Getpid(), text)
			return exitOK
		}
	}
	fmt.Fprintf(complaints, "trial: no abuse %q\n", c.Kind)
	return exitUsage
}

// run lets the clients begin, calls ready when all have, and returns when all have left.
func (a *abuse) run(ctx context.Context, c abuserConfig, ready func()) abuserReport {
	r := abuserReport{map[string]int{}, map[string]int{}}
	var mu sync.Mutex
	var begun, running sync.WaitGroup
	for i := range c.Count {
		begun.Add(1)
		running.Go(func() {
			if pause(ctx, time.Duration(float64(i)/c.Rate*float64(time.Second))) != nil {
				begun.Done()
				return
			}
			for first := true; ctx.Err() == nil; first = false {
				outcome, right := a.once(ctx, c, i, func() {
					if first {
						begun.Done()
					}
				})
				mu.Lock()
				if r.Outcomes[outcome]++; !right {
					r.Wrong[outcome]++
				}
				mu.Unlock()
				if pause(ctx, a.pause) != nil {
					return
				}
			}
		})
	}
	begun.Wait()
	ready()
	running.Wait()
	return r
}

// once makes one connection and does to it what is to be done. begun is called when it is made.
func (a *abuse) once(ctx context.Context, c abuserConfig, i int, begun func()) (outcome string, right bool) {
	address := c.Secure
	if a.plain {
		address = c.Plain
	}
	dialer := net.Dialer{Timeout: clientPatience, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, byte(c.Source), byte(1+i%200))}}
	nc, err := dialer.DialContext(ctx, "tcp", address)
	begun()
	if err != nil {
		if ctx.Err() != nil {
			return left, true
		}
		return "no connection: " + cause(err), false
	}
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { _ = nc.SetReadDeadline(time.Unix(1, 0)) })()
	_ = nc.SetReadDeadline(time.Now().Add(clientPatience))
	outcome, right = a.do(ctx, nc)
	if ctx.Err() != nil && !right && a.name != "idle" {
		return left, true
	}
	return outcome, right
}

// cause is the last part of an error: without addresses, so that equal ones count as equal.
func cause(err error) string {
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	return err.Error()
}

// toEnd reads to the end of the connection.
func toEnd(nc io.Reader) (got []byte, outcome string, ended bool) {
	got, err := io.ReadAll(io.LimitReader(nc, 1<<20))
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return got, "still open", false
	}
	return got, "closed", true
}

func silent(_ context.Context, nc net.Conn) (string, bool) {
	got, outcome, ended := toEnd(nc)
	if len(got) > 0 {
		return "an answer to nothing", false
	}
	return outcome, ended
}

// clientHello is a ClientHello of crypto/tls.
var clientHello = sync.OnceValue(func() []byte {
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		_ = tls.Client(client, &tls.Config{ServerName: "localhost"}).Handshake()
		client.Close()
	}()
	buf := make([]byte, 16<<10)
	n, _ := server.Read(buf)
	return buf[:n]
})

func halfOpen(_ context.Context, nc net.Conn) (string, bool) {
	_, _ = nc.Write(clientHello())
	got, outcome, ended := toEnd(nc)
	switch {
	case len(got) == 0:
		return outcome + " without a ServerHello", ended // evicted before its turn
	case got[0] != 0x16:
		return "an answer that is no ServerHello", false
	}
	return outcome + " after the ServerHello", ended
}

func garbage(_ context.Context, nc net.Conn) (string, bool) {
	bytes := make([]byte, 400)
	_, _ = rand.Read(bytes)
	switch bytes[0] % 3 {
	case 0: // a handshake record with nonsense in it
		copy(bytes, []byte{0x16, 3, 1, 1, 0, 1, 0, 0, 0xfc})
	case 1: // one that never ends
		copy(bytes, []byte{0x16, 3, 1, 0x3f, 0xff, 1, 0, 0x3f, 0xfb})
	}
	return unanswered(nc, bytes)
}

func plainOnTLS(_ context.Context, nc net.Conn) (string, bool) {
	return unanswered(nc, []byte(smallRequest))
}

// unanswered sends bytes that are no TLS: the connection has to end, with an alert at most.
func unanswered(nc net.Conn, p []byte) (string, bool) {
	_, _ = nc.Write(p)
	got, outcome, ended := toEnd(nc)
	switch {
	case len(got) == 0:
		return outcome, ended
	case got[0] == 0x15 && len(got) <= 16:
		return outcome + " with an alert", ended
	}
	return "an answer to bytes that are no TLS", false
}

func tlsOnPlain(_ context.Context, nc net.Conn) (string, bool) {
	_, _ = nc.Write(clientHello())
	got, outcome, ended := toEnd(nc)
	if len(got) > 0 {
		return "an answer to a ClientHello in plain", false
	}
	return outcome, ended
}

const smallRequest = "REQMOD icap://gw/reqmod ICAP/1.0\r\nHost: gw\r\nAllow: 204\r\nEncapsulated: req-hdr=0, null-body=27\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"

// secured makes the TLS handshake. Whose certificate it is does not matter to those who only want to do harm.
func secured(ctx context.Context, nc net.Conn) (*tls.Conn, error) {
	tc := tls.Client(nc, &tls.Config{InsecureSkipVerify: true, DynamicRecordSizingDisabled: true})
	return tc, tc.HandshakeContext(ctx)
}

// refused wants an answer with the status that says close, and the end of the connection.
func refused(r io.Reader, status string) (string, bool) {
	got, outcome, ended := toEnd(r)
	line, rest, _ := bytes.Cut(got, []byte("\r\n"))
	switch {
	case !bytes.HasPrefix(line, []byte("ICAP/1.0 ")):
		return outcome + " without an answer", false
	case !bytes.HasPrefix(line[len("ICAP/1.0 "):], []byte(status)):
		return fmt.Sprintf("%s instead of %s", line, status), false
	case !bytes.Contains(rest, []byte("\r\nConnection: close\r\n")) || !bytes.HasSuffix(rest, []byte("\r\n\r\n")):
		return status + " without Connection: close", false
	}
	return status + ", " + outcome, ended
}

func slowHead(ctx context.Context, nc net.Conn) (string, bool) {
	tc, err := secured(ctx, nc)
	if err != nil {
		return "no handshake: " + cause(err), false
	}
	go func() {
		for i := range len(smallRequest) - 1 { // without its last byte
			if pause(ctx, 200*time.Millisecond) != nil {
				return
			}
			if _, err := tc.Write([]byte{smallRequest[i]}); err != nil {
				return
			}
		}
	}()
	return refused(tc, "408")
}

// refusing sends one of several requests, which the gateway has to refuse with 400. It may stop to read in the middle of it.
func refusing(ctx context.Context, nc net.Conn, requests []string) (string, bool) {
	tc, err := secured(ctx, nc)
	if err != nil {
		return "no handshake: " + cause(err), false
	}
	var one [1]byte
	_, _ = rand.Read(one[:])
	request := requests[int(one[0])%len(requests)]
	go func() { _, _ = io.WriteString(tc, request) }()
	return refused(tc, "400")
}

var hugeHeads = sync.OnceValue(func() []string {
	const start = "REQMOD icap://gw/reqmod ICAP/1.0\r\nHost: gw\r\n"
	return []string{
		start + strings.Repeat("X-Field: "+strings.Repeat("x", 1000)+"\r\n", 1000),
		start + "X-Line: " + strings.Repeat("x", 1<<20),
		start + strings.Repeat("X: 1\r\n", 100_000),
		"REQMOD icap://gw/" + strings.Repeat("a", 1<<20),
		start + "Encapsulated: req-hdr=0, req-body=9999999\r\n\r\n" + strings.Repeat("x", 1<<20),
		start + "Encapsulated: req-hdr=0, req-body=28\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\n\r\n5;" + strings.Repeat("a", 1<<20),
		start + "Encapsulated: req-hdr=0, req-body=28\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\n\r\n0\r\n" + strings.Repeat("X: "+strings.Repeat("x", 1000)+"\r\n", 1000),
	}
})

func hugeHead(ctx context.Context, nc net.Conn) (string, bool) { return refusing(ctx, nc, hugeHeads()) }

func malformed(ctx context.Context, nc net.Conn) (string, bool) {
	const start, post = "REQMOD icap://gw/reqmod ICAP/1.0\r\nHost: gw\r\n", "Encapsulated: req-hdr=0, req-body=28\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\n\r\n"
	return refusing(ctx, nc, []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"REQMOD /reqmod ICAP/1.0\r\nHost: gw\r\n\r\n",
		start + "\r\n",
		start + "X: a\x00b\r\n\r\n",
		start + "Encapsulated: req-hdr=0, null-body=4294967323\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
		start + "Encapsulated: null-body=0\r\nEncapsulated: null-body=0\r\n\r\n",
		start + "Preview: 1073741824\r\n" + post,
		start + "Preview: -1\r\n" + post,
		start + post + "0x5\r\nhello\r\n0\r\n\r\n",
		start + post + "-5\r\nhello\r\n0\r\n\r\n",
		start + post + "5\r\nhelloX0\r\n\r\n",
		start + post + "FFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n",
		strings.ReplaceAll(start+post+"5\r\nhello\r\n0\r\n\r\n", "\r\n", "\n"),
	})
}

// deaf sends a request with a large body that is echoed, and reads nothing. Small buffers keep the kernel from holding all of it.
func deaf(ctx context.Context, nc net.Conn) (string, bool) {
	_ = nc.(*net.TCPConn).SetReadBuffer(64 << 10)
	_ = nc.(*net.TCPConn).SetWriteBuffer(64 << 10)
	tc, err := secured(ctx, nc)
	if err != nil {
		return "no handshake: " + cause(err), false
	}
	defer context.AfterFunc(ctx, func() { _ = nc.SetWriteDeadline(time.Unix(1, 0)) })()
	_ = nc.SetWriteDeadline(time.Now().Add(clientPatience))
	chunk := []byte("10000\r\n" + strings.Repeat("x", 64<<10) + "\r\n")
	_, err = io.WriteString(tc, "REQMOD icap://gw/echo ICAP/1.0\r\nHost: gw\r\nEncapsulated: req-hdr=0, req-body=28\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\n\r\n")
	for sent := 0; err == nil && sent < 256<<20; sent += 64 << 10 {
		_, err = tc.Write(chunk)
	}
	var timeout net.Error
	switch {
	case err == nil:
		return "256 MB were taken from a client that does not read", false
	case errors.As(err, &timeout) && timeout.Timeout():
		return "still open", false
	}
	return "closed", true
}

// idle makes a request and another one at the end of its time.
func idle(ctx context.Context, nc net.Conn) (string, bool) {
	tc, err := secured(ctx, nc)
	if err != nil {
		return "no handshake: " + cause(err), ctx.Err() != nil
	}
	_ = nc.SetReadDeadline(time.Now().Add(clientPatience))
	r := bufio.NewReader(tc)
	if outcome, right := small(tc, r); !right {
		return "first request: " + outcome, ctx.Err() != nil
	}
	_ = nc.SetReadDeadline(time.Time{})
	ended := make(chan struct{})
	go func() { // who is closed while idle hears of it
		_, _ = r.Peek(1)
		close(ended)
	}()
	select {
	case <-ended:
		if ctx.Err() == nil {
			return "closed while idle", false
		}
	case <-ctx.Done():
	}
	<-ended                                 // by the deadline that the end of ctx sets
	time.Sleep(mathrand.N(2 * time.Second)) // thousands in the same moment would be another trial
	_ = nc.SetReadDeadline(time.Now().Add(clientPatience))
	outcome, right := small(tc, bufio.NewReader(tc))
	return "second request: " + outcome, right
}

// small makes a request and wants its 204.
func small(w io.Writer, r *bufio.Reader) (string, bool) {
	if _, err := io.WriteString(w, smallRequest); err != nil {
		return cause(err), false
	}
	tr := textproto.NewReader(r)
	line, err := tr.ReadLine()
	if err == nil {
		_, err = tr.ReadMIMEHeader()
	}
	if err != nil {
		return cause(err), false
	}
	return line, strings.HasPrefix(line, "ICAP/1.0 204 ")
}
