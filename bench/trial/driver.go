package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"icapgate/bench/process"
	benchresult "icapgate/bench/result"
	"icapgate/bench/rounds"
)

// driver is a load generator with the load that it is to make.
type driver struct {
	name string
	run  func(ctx context.Context) (drive, error)
}

// drive is what one run of a driver has shown.
type drive struct {
	requests int64 // that were answered
	failed   int64
	seconds  float64
	cpu      float64 // seconds that the load generator has used
	gateway  float64 // and the gateway, 0: there is none
}

func (d drive) rate() float64        { return float64(d.requests) / d.seconds }
func (d drive) cost() float64        { return d.cpu / float64(d.requests) * 1e6 }     // µs of CPU per request
func (d drive) perCore() float64     { return float64(d.requests) / d.cpu }           // requests per second of CPU
func (d drive) gatewayCost() float64 { return d.gateway / float64(d.requests) * 1e6 } // µs of the gateway's CPU per request

// inTurn runs every driver once in each round, in an order that rotates, and once before to warm up. It returns the runs of each.
func (r *rig) inTurn(ctx context.Context, number int, drivers []driver) (map[string][]drive, error) {
	all := map[string][]drive{}
	for round := range number + 1 {
		for i := range drivers {
			d := drivers[(round+i)%len(drivers)]
			shown, err := d.run(ctx)
			if err == nil && shown.requests == 0 {
				err = errors.New("no request was answered")
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", d.name, err)
			}
			fmt.Fprintf(r.progress, "%d/%d %s: %.0f requests/s, %.1f µs\n", round, number, d.name, shown.rate(), shown.cost())
			if round > 0 {
				all[d.name] = append(all[d.name], shown)
			}
		}
	}
	return all, nil
}

// series returns one figure of all runs.
func series(list []drive, of func(drive) float64) []float64 {
	var values []float64
	for _, d := range list {
		values = append(values, of(d))
	}
	return values
}

// ratio divides the figures of the same rounds and returns the median with its interval.
func ratio(a, b []float64) (mid, low, high float64) {
	list := rounds.Ratios(a, b)
	low, high = rounds.Interval(list)
	return rounds.Median(list), low, high
}

// table prints what drivers have shown and keeps the figures, as those of work.
func (r *rig) table(work string, drivers []driver, all map[string][]drive) {
	var text strings.Builder
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\trequests/s\tµs of CPU per request\trequests per core-second\tfailed")
	for _, d := range drivers {
		failed := int64(0)
		for _, shown := range all[d.name] {
			failed += shown.failed
		}
		fmt.Fprintf(t, "%s", d.name)
		for _, c := range []struct {
			unit, format string
			of           func(drive) float64
		}{
			{"requests/s", "%.0f", drive.rate},
			{"µs of CPU per request", "%.1f", drive.cost},
			{"requests per core-second", "%.0f", drive.perCore},
		} {
			values := series(all[d.name], c.of)
			fmt.Fprintf(t, "\t"+c.format+" ("+c.format+".."+c.format+")", rounds.Median(values), slices.Min(values), slices.Max(values))
			r.store(work+", "+d.name, rounds.Median(values), c.unit)
		}
		fmt.Fprintf(t, "\t%d\n", failed)
	}
	t.Flush()
	r.note("%s", strings.TrimRight(text.String(), "\n"))
}

// buildBench builds icapbench beside the gateway.
func (r *rig) buildBench(ctx context.Context) error {
	fmt.Fprintln(r.progress, "building icapbench")
	return process.Build(ctx, r.dir, "./cmd/icapbench")
}

// bench runs icapbench load. The drive has what the whole process took, with its start and the handshakes; the result leaves them out.
func (r *rig) bench(ctx context.Context, args ...string) (*benchresult.Result, drive, error) {
	file := filepath.Join(r.dir, "load.json")
	_ = os.Remove(file) // so that a stale one is not taken for this load's
	cmd := exec.CommandContext(ctx, filepath.Join(r.bin, "icapbench"), append([]string{"load", "--insecure", "--json", file}, args...)...)
	out, used, err := timed(cmd)
	if err != nil && cmd.ProcessState == nil {
		return nil, drive{}, err
	}
	shown, err := benchresult.Read(file)
	if err != nil {
		return nil, drive{}, fmt.Errorf("icapbench %s: %w\n%s", strings.Join(cmd.Args[1:], " "), err, out)
	}
	used.requests, used.failed = shown.Requests, shown.Failed
	return shown, used, nil
}

// timed runs a program to its end and returns what it has printed and what it took.
func timed(cmd *exec.Cmd) (out []byte, used drive, err error) {
	start := time.Now()
	out, err = process.Run(cmd)
	used.seconds = time.Since(start).Seconds()
	if s := cmd.ProcessState; s != nil {
		used.cpu = (s.UserTime() + s.SystemTime()).Seconds()
	}
	return out, used, err
}
