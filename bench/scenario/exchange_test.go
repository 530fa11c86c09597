package scenario

import (
	"bytes"
	"fmt"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"

	"icapgate/bench"
	"icapgate/bench/dlpstub"
	"icapgate/icap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// comparison is a Receiver that compares what comes back with the request.
type comparison struct {
	req    *Request
	status int
}

func (c *comparison) Head(r *icap.Response, _ []byte) error {
	c.status = r.Status
	return nil
}

func (c *comparison) Blocks(_ *icap.Encapsulated, blocks []byte, corrected bool) error {
	if want := c.req.Blocks[c.req.EchoFrom:]; c.req.Method != icap.MethodOptions && (corrected || !bytes.Equal(blocks, want)) {
		return fmt.Errorf("heads came back as %q, want %q (corrected: %v)", blocks, want, corrected)
	}
	return nil
}

func (c *comparison) Data(p []byte) error {
	if offset, ok := c.req.Content.Check(p); !ok {
		return fmt.Errorf("byte %d of %d came back as another one", offset, c.req.Size)
	}
	return nil
}

// TestExchanges sends what the presets and examples make to a server that reads strictly and echoes: all has to come back.
func TestExchanges(t *testing.T) {
	const (
		requests = 150
		maxSize  = 8 << 20
	)
	for name, s := range everyScenario(t) {
		t.Run(name, func(t *testing.T) {
			received := make(chan dlpstub.Request, 1)
			server := dlpstub.New(dlpstub.Config{Mode: dlpstub.Echo, Hook: func(r *dlpstub.Request) {
				received <- dlpstub.Request{Method: r.Method, BodyLen: r.BodyLen, Preview: r.Preview, Err: r.Err}
			}})
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error)
			go func() { done <- server.Serve(ln) }()
			defer func() {
				server.Close()
				if err := <-done; err != nil {
					t.Error(err)
				}
			}()
			target, err := bench.ParseTarget("icap://" + ln.Addr().String() + "/reqmod")
			if err != nil {
				t.Fatal(err)
			}
			m, err := s.Compile(target)
			if err != nil {
				t.Fatal(err)
			}
			conn, err := bench.Dial(t.Context(), target.Address, nil, 20*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()

			source := m.NewSource(7)
			sent, entries := 0, make(map[int]bool)
			for n := uint64(0); sent < requests; n++ {
				r := source.Next(n)
				if r.Size > maxSize {
					continue
				}
				sent++
				entries[r.Entry] = true
				c := &comparison{req: r}
				if err := conn.Do(&r.Request, c); err != nil {
					t.Fatalf("request %d: %v\n%s%s", n, err, r.Head, r.Blocks)
				}
				got := <-received
				if c.status != 200 || !r.Content.CheckedAll() || r.Content.Size() != r.Size {
					t.Fatalf("request %d: status %d, %d of %d bytes", n, c.status, r.Content.Checked(), r.Size)
				}
				if got.Err != nil || got.Method != r.Method || int64(got.BodyLen) != r.Size || int64(got.Preview) != r.Preview {
					t.Fatalf("request %d: the server has got %+v\n%s", n, got, r.Head)
				}
			}
			if most := len(m.Entries()); len(entries) < (most+1)/2 {
				t.Errorf("only %d of %d kinds of requests were sent", len(entries), most)
			}
		})
	}
}
