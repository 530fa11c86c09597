package dlpstub

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestLognormal compares 100,000 draws with the distribution that they are of.
func TestLognormal(t *testing.T) {
	const n, median, sigma = 100_000, 20 * time.Millisecond, 0.5
	r, draw := rand.New(rand.NewPCG(1, 1)), Lognormal(median, sigma)
	times := make([]float64, n)
	var sum, squares float64
	for i := range times {
		times[i] = math.Log(float64(draw(r)) / float64(median))
		sum += times[i]
		squares += times[i] * times[i]
	}
	mean := sum / n
	if s := math.Sqrt(squares/n - mean*mean); math.Abs(mean) > 0.01 || math.Abs(s-sigma) > 0.01 {
		t.Errorf("logarithms have mean %.4f and deviation %.4f, want 0 and %v", mean, s, sigma)
	}
	// Kolmogorov-Smirnov at a level of 1 %.
	slices.Sort(times)
	var far float64
	for i, x := range times {
		p := 0.5 * math.Erfc(-x/sigma/math.Sqrt2)
		far = max(far, math.Abs(p-float64(i)/n), math.Abs(p-float64(i+1)/n))
	}
	if limit := 1.63 / math.Sqrt(n); far > limit {
		t.Errorf("distance from the lognormal distribution %.5f, limit %.5f", far, limit)
	}
	if d := Lognormal(time.Minute, 1000)(rand.New(rand.NewPCG(3, 3))); d < 0 || d > time.Hour {
		t.Errorf("a wild draw: %v", d)
	}
}

func TestUniform(t *testing.T) {
	const least, most = 10 * time.Millisecond, 30 * time.Millisecond
	r, draw := rand.New(rand.NewPCG(1, 1)), Uniform(least, most)
	var counts [20]int
	for range 20_000 {
		d := draw(r)
		if d < least || d > most {
			t.Fatal(d)
		}
		counts[min(19, (d-least)/time.Millisecond)]++
	}
	var chi float64
	for _, c := range counts {
		chi += float64((c-1000)*(c-1000)) / 1000
	}
	if chi > 36.2 { // 19 degrees of freedom, 1 %
		t.Errorf("chi squared %.1f: %v", chi, counts)
	}
	if d := Uniform(least, least)(r); d != least {
		t.Error(d)
	}
}

// latencies returns how long 5 answers took, one after the other.
func latencies(t *testing.T, cfg Config, request, answer string) (list []time.Duration) {
	s := New(cfg)
	defer s.Close()
	nc := dialPipe(s)
	defer nc.Close()
	for range 5 {
		start := time.Now()
		mustWrite(t, nc, request)
		mustExpect(t, nc, answer)
		list = append(list, time.Since(start))
	}
	return list
}

func TestLatencyIsSeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		of := func(seed uint64) []time.Duration {
			cfg := Config{Latency: time.Second, Delay: Uniform(0, time.Second), Seed: seed}
			return latencies(t, cfg, bodyless, head(204, ""))
		}
		a, b, c := of(1), of(1), of(2)
		if !slices.Equal(a, b) || slices.Equal(a, c) || a[0] == a[1] {
			t.Errorf("seed 1: %v\nagain:  %v\nseed 2: %v", a, b, c)
		}
		if slices.Min(a) < time.Second || slices.Max(a) > 2*time.Second {
			t.Errorf("out of bounds: %v", a)
		}
	})
}

func TestLate(t *testing.T) {
	const options = "OPTIONS icap://s/r ICAP/1.0\r\n\r\n"
	for _, tt := range []struct {
		fault   Fault
		request string
		answer  string
		want    time.Duration
	}{
		{Fault{Kind: Late, Share: 1, Pause: 3 * time.Second}, bodyless, head(204, ""), 4 * time.Second},
		{Fault{Kind: Late, Share: 1}, bodyless, head(204, ""), time.Second + 100*time.Millisecond},
		{Fault{Kind: Late, Share: 1, Pause: 3 * time.Second}, options, "", 0},
		{Fault{Kind: Late, Share: 1, Pause: 3 * time.Second, Options: true}, options, "", 3 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := New(Config{Latency: time.Second, Faults: []Fault{tt.fault}})
			defer s.Close()
			nc := dialPipe(s)
			defer nc.Close()
			start := time.Now()
			mustWrite(t, nc, tt.request)
			if tt.answer == "" {
				tt.answer = "ICAP/1.0 200 OK\r\n"
			}
			mustExpect(t, nc, tt.answer)
			if d := time.Since(start); d != tt.want {
				t.Errorf("%+v, %.7s: answered after %v, want %v", tt.fault, tt.request, d, tt.want)
			}
		})
	}
}

func TestLatencyBySize(t *testing.T) {
	const allow = "Allow: 204\r\nEncapsulated: req-body=0\r\n\r\n"
	body := "80000\r\n" + strings.Repeat("x", 512<<10) + "\r\n0\r\n\r\n"
	echoHead := head(200, "Encapsulated: req-body=0\r\n")
	for _, tt := range []struct {
		name            string
		cfg             Config
		request, answer string
		want            time.Duration
	}{
		{"204", Config{}, reqmod + allow + body, head(204, ""), 1500 * time.Millisecond},
		{"204 in a slot", Config{Slots: 1}, reqmod + allow + body, head(204, ""), 1500 * time.Millisecond},
		{"no body", Config{}, bodyless, head(204, ""), time.Second},
		{"preview", Config{}, reqmod + "Preview: 65536\r\nEncapsulated: req-body=0\r\n\r\n10000\r\n" + strings.Repeat("x", 65536) + "\r\n0; ieof\r\n\r\n",
			head(204, ""), time.Second + time.Second/16},
		{"status", Config{Status: 500}, reqmod + allow + body, head(500, ""), 1500 * time.Millisecond},
		{"echo of a preview", Config{Mode: Echo}, reqmod + "Preview: 4\r\nEncapsulated: req-body=0\r\n\r\n4\r\nabcd\r\n0; ieof\r\n\r\n",
			echoHead + "4\r\nabcd\r\n0\r\n\r\n", time.Second + 4*time.Second>>20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tt.cfg.Latency, tt.cfg.LatencyPerMiB = time.Second, time.Second
				for _, d := range latencies(t, tt.cfg, tt.request, tt.answer) {
					if d.Round(time.Microsecond) != tt.want.Round(time.Microsecond) {
						t.Errorf("answered after %v, want %v", d, tt.want)
					}
				}
			})
		})
	}
	t.Run("echo", func(t *testing.T) {
		for _, slots := range []int{0, 1} {
			synctest.Test(t, func(t *testing.T) {
				s := New(Config{Mode: Echo, Latency: time.Second, LatencyPerMiB: time.Second, Slots: slots})
				defer s.Close()
				nc := dialPipe(s)
				defer nc.Close()
				start := time.Now()
				go nc.Write([]byte(reqmod + allow + body))
				mustExpect(t, nc, echoHead+body[:1000])
				if d := time.Since(start); d != time.Second {
					t.Errorf("the body came after %v", d)
				}
				mustExpect(t, nc, body[1000:])
				if d := time.Since(start); d != 1500*time.Millisecond {
					t.Errorf("its end came after %v", d)
				}
			})
		}
	})
}
