package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"strconv"
	"time"

	benchresult "icapgate/bench/result"
)

var rates = &trial{
	name:  "rates",
	about: "how exactly icapbench keeps the rate that it is asked for",
	help: `Makes open loads with 'icapbench load --rate' against a fast fake server on loopback: 100, 1,000 and 10,000 requests per second, evenly and at random
(Poisson). It says what rate came of it, and how late the requests were sent. Claimed: the rate is within 1 % of the one asked for, and within what chance
allows (4 standard deviations) if that is more, of random arrivals.

    go run ./bench/trial rates
    go run ./bench/trial rates --length 60s
`,
	limit: 10 * time.Minute,
	flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		o := &ratesOptions{}
		f.DurationVar(&o.length, "length", 10*time.Second, "of each load")
		f.Float64Var(&o.within, "within", 0.01, "share of the rate by which it may be missed")
		return o.run
	},
}

type ratesOptions struct {
	length time.Duration
	within float64
}

func (o *ratesOptions) run(ctx context.Context, r *rig) error {
	if o.length <= 0 {
		return errors.New("--length has to be above 0")
	}
	if err := r.buildBench(ctx); err != nil {
		return err
	}
	server, err := r.startServer(ctx, serverConfig{})
	if err != nil {
		return err
	}
	for _, rate := range []int{100, 1000, 10000} {
		for _, arrivals := range []string{"constant", "poisson"} {
			shown, _, err := r.bench(ctx, "icap://"+server.address+"/reqmod", "-s", "1KiB", "-c", "64", "-d", o.length.String(),
				"--rate", strconv.Itoa(rate), "--arrivals", arrivals)
			if err != nil {
				return err
			}
			o.judge(r, rate, arrivals, shown)
		}
	}
	return nil
}

// judge says how exactly a rate was kept.
func (o *ratesOptions) judge(r *rig, rate int, arrivals string, shown *benchresult.Result) {
	name := fmt.Sprintf("%d/s, %s", rate, arrivals)
	r.section("%s", name)
	miss := shown.Rate()/float64(rate) - 1
	allowed := o.within
	if arrivals == "poisson" {
		allowed = max(allowed, 4/math.Sqrt(float64(rate)*o.length.Seconds()))
	}
	r.figure("rate", shown.Rate(), "requests/s")
	r.figure("sent after the planned time, p50", micros(shown.Late.Delay.Quantile(50)), "µs")
	r.figure("sent after the planned time, p99", micros(shown.Late.Delay.Quantile(99)), "µs")
	r.figure("sent over 1 ms late, connection free", 100*float64(shown.Late.Generator)/float64(max(shown.Begun, 1)), "%")
	r.figure("sent over 1 ms late, all connections busy", 100*float64(shown.Late.Waited)/float64(max(shown.Begun, 1)), "%")
	for _, reason := range shown.Generator.Limited {
		r.note("the generator was the limit: %s", reason)
	}
	r.claim(shown.Failed == 0, "%s: no request failed, %d did", name, shown.Failed)
	r.claim(math.Abs(miss) <= allowed, "%s: missed by %+.3f %%, at most %.3g %%", name, 100*miss, 100*allowed)
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
