package dlpstub

import (
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const bodyless = reqmod + "Allow: 204\r\nEncapsulated: req-hdr=0, null-body=27\r\n\r\n" + get

// finished sends one request on each of n connections, 1 ms after the other, and returns when each was answered, and with what.
func finished(t *testing.T, s *Server, n int, request string) (times []time.Duration, answers []string) {
	t.Helper()
	start := time.Now()
	times, answers = make([]time.Duration, n), make([]string, n)
	var all sync.WaitGroup
	for i := range n {
		nc := dialPipe(s)
		mustWrite(t, nc, request)
		all.Go(func() {
			defer nc.Close()
			buf := make([]byte, 1000)
			size, _ := nc.Read(buf)
			times[i], answers[i] = time.Since(start), string(buf[:size])
		})
		time.Sleep(time.Millisecond)
	}
	all.Wait()
	return times, answers
}

func TestSlots(t *testing.T) {
	const ms = time.Millisecond
	full := head(503, "Retry-After: 7\r\n")
	tests := []struct {
		name  string
		cfg   Config
		times []time.Duration // of the answers in the order of the requests, which come 1 ms after the other
		full  int             // of them, answered 503 from the end of the list
	}{
		{"room for all", Config{Slots: 3}, []time.Duration{100 * ms, 101 * ms, 102 * ms}, 0},
		{"no line", Config{Slots: 2, RetryAfter: 7 * time.Second}, []time.Duration{100 * ms, 101 * ms, 2 * ms, 3 * ms}, 2},
		{"all in line", Config{Slots: 2, Queue: QueueAll}, []time.Duration{100 * ms, 101 * ms, 200 * ms, 201 * ms, 300 * ms, 301 * ms}, 0},
		{"some in line", Config{Slots: 1, Queue: 2, RetryAfter: 7 * time.Second}, []time.Duration{100 * ms, 200 * ms, 300 * ms, 3 * ms, 4 * ms}, 2},
		{"line of errors", Config{Slots: 1, Queue: QueueAll, Status: 500}, []time.Duration{100 * ms, 200 * ms}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tt.cfg.Latency = 100 * ms
				s := New(tt.cfg)
				defer s.Close()
				times, answers := finished(t, s, len(tt.times), bodyless)
				if !slices.Equal(times, tt.times) {
					t.Errorf("answered after %v, want %v", times, tt.times)
				}
				for i, got := range answers {
					if refused := i >= len(answers)-tt.full; refused != (got == full) {
						t.Errorf("answer %d: %q", i, got)
					}
				}
				st := s.Stats()
				if st.Turned != uint64(tt.full) || st.PeakActive != len(tt.times) && tt.full == 0 {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

// The time of a slot is the server's latency, and more only if the client makes it longer by more than a moment.
func TestSlotIsHandedOver(t *testing.T) {
	for _, tt := range []struct{ slow, second time.Duration }{
		{0, 200 * time.Millisecond},
		{50 * time.Millisecond, 200 * time.Millisecond},
		{slotLateness, 100*time.Millisecond + slotLateness}, // it is served at once
		{slotLateness + 30*time.Millisecond, slotLateness + 230*time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := New(Config{Slots: 1, Queue: QueueAll, Latency: 100 * time.Millisecond})
			defer s.Close()
			start := time.Now()
			first, second := dialPipe(s), dialPipe(s)
			defer first.Close()
			defer second.Close()
			mustWrite(t, first, bodyless)
			synctest.Wait() // it has the slot
			mustWrite(t, second, bodyless)
			time.Sleep(100*time.Millisecond + tt.slow)
			mustExpect(t, first, head(204, ""))
			mustExpect(t, second, head(204, ""))
			if d := time.Since(start); d != tt.second {
				t.Errorf("client slow by %v: second answer after %v, want %v", tt.slow, d, tt.second)
			}
		})
	}
}

// The known limit: slots / latency, whatever the number of clients that ask for more.
func TestSlotsLimitThroughput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slots, clients, latency, length = 4, 32, 10 * time.Millisecond, 10 * time.Second
		s := New(Config{Slots: slots, Queue: QueueAll, Latency: latency})
		var all sync.WaitGroup
		for range clients {
			nc := dialPipe(s)
			all.Go(func() {
				defer nc.Close()
				buf := make([]byte, len(head(204, "")))
				for start := time.Now(); time.Since(start) < length; {
					if _, err := io.WriteString(nc, bodyless); err != nil {
						t.Error(err)
						return
					}
					if _, err := io.ReadFull(nc, buf); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
		want := uint64(slots * length / latency)
		if got := s.Stats().Answers[204]; got < want || got > want+clients {
			t.Errorf("%d answers in %v, want %d", got, length, want)
		}
		s.Close()
	})
}

// Whoever leaves, in line or in a slot, leaves no gap.
func TestSlotsAreGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Slots: 2, Queue: QueueAll, Latency: time.Second})
		defer s.Close()
		var conns []net.Conn
		for range 5 {
			nc := dialPipe(s)
			mustWrite(t, nc, bodyless)
			conns = append(conns, nc)
		}
		synctest.Wait()
		s.ResetConnections()
		for _, nc := range conns {
			if _, err := nc.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("read after the reset: %v", err)
			}
			nc.Close()
		}
		synctest.Wait()
		if s.slots.busy != 0 || len(s.slots.line) != 0 || s.Stats().Active != 0 {
			t.Fatalf("after the reset: %d busy, %d in line, %d active", s.slots.busy, len(s.slots.line), s.Stats().Active)
		}
		times, _ := finished(t, s, 3, bodyless)
		if want := time.Second; times[0] != want || times[2] != 2*want {
			t.Errorf("answered after %v", times)
		}
	})
}

// A client that has gone is in line until its turn, as with servers that don't look.
func TestSlotOfAGoneClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{Slots: 1, Queue: QueueAll, Latency: time.Second})
		defer s.Close()
		for range 3 {
			nc := dialPipe(s)
			mustWrite(t, nc, bodyless)
			synctest.Wait()
			nc.Close()
		}
		times, answers := finished(t, s, 1, bodyless)
		if fmt.Sprint(times, answers) != fmt.Sprint([]time.Duration{4 * time.Second}, []string{head(204, "")}) {
			t.Error(times, answers)
		}
	})
}
