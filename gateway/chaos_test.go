package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/icap"
)

// TestChaos sends random requests through servers that reset their connections, close them without a word, answer early, ask for the
// rest, are slow and let few connections in. Whatever happens, an answer is either the exact echo of its own request, or a
// 502 or 503, or 413 where there are limits, or says that the request passes unjudged where that is wanted, or it is cut off.
func TestChaos(t *testing.T) {
	const limits = "    long_streams: {after: 1ms}\n"
	const policy = "{client_ip: true, request: {remove: [\"X-*\"], set: {X-Of: \"${client_ip}:${client_port} ${id}\"}}, response: {add: {X-Id: \"${id}\"}}}"
	for _, v := range []struct{ name, pool, rest string }{
		{"in memory", "", ""},
		{"nobody judges", "    queue: {timeout: 20ms}\n", strings.TrimSuffix(allowing, "}]") + ", decision_timeout: 20ms}]\n"},
		{"limits", limits, "services: [{max_body: 200KiB, max_duration: 500ms, headers: " + policy + "}]\n"},
		{"limits that let pass", limits, "services: [{max_body: 200KiB, max_duration: 60ms, on_limit: allow, headers: " + policy + "}]\n"},
		{"in files", "    retry: {replay_buffer: 4KiB, spill: 1MiB, budget: 10}\n", fmt.Sprintf("state_dir: %q\n", t.TempDir())},
	} {
		t.Run(v.name, func(t *testing.T) { chaos(t, v.pool, v.rest) })
	}
}

func chaos(t *testing.T, pool, rest string) {
	const clients, requests = 8, 60
	withLoops(t, 4)
	var stubs []*dlpstub.Server
	var addresses []string
	for _, cfg := range []dlpstub.Config{
		{CloseAfter: 7, SilentClose: true, Continue: true, MaxConnections: 4},
		{CloseAfter: 5, Latency: time.Millisecond},
		{EarlyAnswer: true, MaxConnections: 2},
	} {
		cfg.Mode = dlpstub.Echo
		s, address := startStub(t, cfg)
		stubs, addresses = append(stubs, s), append(addresses, address)
	}
	g := startGateway(t, addresses, "    health: {interval: 200ms, fall: 100}\n    timeouts: {response: 10s}\n"+pool, rest+"log: {level: error}").ready()

	stop := make(chan struct{})
	var resets, group sync.WaitGroup
	resets.Go(func() {
		r := rand.New(rand.NewPCG(1, 2))
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(5+r.IntN(20)) * time.Millisecond):
				stubs[r.IntN(len(stubs))].ResetConnections()
			}
		}
	})
	var mu sync.Mutex
	outcomes := make(map[string]int)
	for i := range clients {
		dial := func() *client { return g.dialFor(t, i%2) }
		group.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 3))
			c := dial()
			for n := range requests {
				outcome, err := c.converse(newRandomRequest(r, fmt.Sprintf("%d-%d", i, n)))
				if err != nil {
					t.Errorf("client %d, request %d: %v", i, n, err)
					outcome = "wrong"
				}
				mu.Lock()
				outcomes[outcome]++
				mu.Unlock()
				if outcome != "echo" && outcome != "refused" && outcome != "passed" {
					c.Close()
					c = dial()
				}
			}
			c.Close()
		})
	}
	group.Wait()
	close(stop)
	resets.Wait()
	t.Log(outcomes)
	if outcomes["echo"]+outcomes["passed"] < clients*requests/2 {
		t.Errorf("only %d of %d requests were answered: %v", outcomes["echo"], clients*requests, outcomes)
	}
	if n := g.metric(`rejects_total{reason="max_body"}`); (n > 0) != strings.Contains(rest, "max_body") {
		t.Errorf("%v requests were larger than max_body and rejected", n)
	}
	if n := g.metric("panics_total"); n != 0 {
		t.Errorf("%v panics", n)
	}
	if kept := g.metric(`spills_total{result="kept"}`); (kept > 0) != strings.Contains(pool, "spill") {
		t.Errorf("%v requests were kept in files", kept)
	}
	eventually(t, "nothing left", func() bool {
		left := g.metric(`queue_depth{pool="dlp"}`) + float64(g.Sessions()) + g.metric("spill_bytes")
		for _, a := range addresses {
			left += g.metric(`server_in_flight{pool="dlp",server="`+a+`"}`) + g.metric(`server_long_streams{pool="dlp",server="`+a+`"}`)
		}
		return left == 0
	})
	for i, s := range stubs {
		if st := s.Stats(); st.Refused > 0 {
			t.Errorf("server %d was sent what it does not understand: %v", i, st.LastError)
		}
	}
}

// randomRequest is a request in two parts: what is sent at once, and what is sent when it is asked for.
type randomRequest struct {
	first, rest string
	preview     bool
	blocks      string
	payload     string
	cut         int // size of the writes
}

func newRandomRequest(r *rand.Rand, name string) *randomRequest {
	q := &randomRequest{cut: 1 + r.IntN(3000)}
	size := r.IntN(2000)
	if r.IntN(4) == 0 {
		size, q.cut = r.IntN(300<<10), 1+r.IntN(100<<10)
	}
	var payload bytes.Buffer
	for payload.Len() < size {
		fmt.Fprintf(&payload, "%s:%d ", name, payload.Len())
	}
	q.payload = payload.String()
	q.blocks = fmt.Sprintf("HTTP/1.1 200 %s\r\n\r\n", name)
	head := "RESPMOD icap://gw/r ICAP/1.0\r\nHost: gw\r\nX-Name: " + name + "\r\n"
	list := fmt.Sprintf("Encapsulated: res-hdr=0, res-body=%d\r\n\r\n", len(q.blocks))
	switch n := r.IntN(2000); r.IntN(3) {
	case 0: // no preview
		q.first = head + list + q.blocks + randomChunks(r, q.payload) + "0\r\n\r\n"
	case 1: // a preview of all there is, or may be
		head += fmt.Sprintf("Preview: %d\r\n", min(64<<10, len(q.payload)+n))
		if len(q.payload) <= 64<<10 {
			q.first = head + list + q.blocks + randomChunks(r, q.payload) + "0; ieof\r\n\r\n"
			return q
		}
		fallthrough
	case 2:
		n = min(n, len(q.payload), 64<<10)
		if !bytes.Contains([]byte(head), []byte("Preview")) {
			head += fmt.Sprintf("Preview: %d\r\n", n)
		}
		q.preview = true
		q.first = head + list + q.blocks + randomChunks(r, q.payload[:n]) + "0\r\n\r\n"
		q.rest = randomChunks(r, q.payload[n:]) + "0\r\n\r\n"
	}
	return q
}

func randomChunks(r *rand.Rand, payload string) string {
	var b bytes.Buffer
	for most := 1 + r.IntN(20000); len(payload) > 0; {
		k := min(1+r.IntN(most), len(payload))
		fmt.Fprintf(&b, "%x\r\n%s\r\n", k, payload[:k])
		payload = payload[k:]
	}
	return b.String()
}

// converse sends a request and reads its answer. An error is an answer that must not be; a cut connection is an outcome.
func (c *client) converse(q *randomRequest) (outcome string, err error) {
	asked := make(chan bool, 1)
	var sending sync.WaitGroup
	sending.Go(func() {
		if c.sendInPieces(q.first, q.cut) == nil && q.preview && <-asked {
			_ = c.sendInPieces(q.rest, q.cut)
		}
	})
	outcome, err = c.receive(q, asked)
	if outcome == "cut" || err != nil {
		c.Close() // so that the sender ends
	}
	close(asked)
	sending.Wait()
	return outcome, err
}

func (c *client) sendInPieces(s string, size int) error {
	for len(s) > 0 {
		k := min(size, len(s))
		if _, err := io.WriteString(c, s[:k]); err != nil {
			return err
		}
		s = s[k:]
	}
	return nil
}

func (c *client) receive(q *randomRequest, asked chan<- bool) (outcome string, err error) {
	_ = c.SetDeadline(time.Now().Add(patience))
	var response icap.Response
	for {
		head, err := c.readHead()
		if err != nil {
			return "cut", late(err)
		}
		if err := response.Parse(head); err != nil {
			return "", fmt.Errorf("%q: %w", head, err)
		}
		if response.Status != 100 {
			break
		}
		if !q.preview {
			return "", errors.New("a 100 that was not asked for")
		}
		asked <- true
	}
	switch {
	case response.Status == 413 && strings.Contains(c.t.Name(), "limits") || response.Status == 502 || response.Status == 503:
		return "refused", nil
	case response.Status == 204 && response.Get("X-Icapgate-Allowed") != nil: // by an echo, it looks like that of a server
		return "passed", nil
	case response.Status != 200:
		return "", fmt.Errorf("status %d", response.Status)
	}
	blocks := make([]byte, response.Encapsulated.HeadLen())
	if _, err := io.ReadFull(c.r, blocks); err != nil {
		return "cut", late(err)
	}
	if string(blocks) != q.blocks {
		return "", fmt.Errorf("got %q, want %q", shorten(string(blocks)), q.blocks)
	}
	_, sum, err := new(bodyReader).read(c)
	if fault := (*icap.ProtocolError)(nil); errors.As(err, &fault) {
		return "", err
	}
	if err != nil {
		return "cut", late(err)
	}
	if string(sum[:]) != string(sum256(q.payload)) {
		return "", fmt.Errorf("a body that is not that of %q", q.blocks)
	}
	return "echo", nil
}

// late lets every end of a connection pass but the one by our own deadline.
func late(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}
