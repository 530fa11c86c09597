package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"icapgate/bench/rounds"
)

var generators = &trial{
	name:  "generators",
	about: "what a request costs icapbench, beside other load generators and the gateway",
	help: `Makes the same load with 'icapbench load' and with c-icap-stretch and c-icap-client, if they are installed, in one run and in turns: RESPMOD of 1 KiB
and of 64 KiB with a preview of 512 bytes, echoed by a fake server, over icap and icaps, and by a c-icap server if that is installed. Then it sets
what icapbench can drive over icaps (REQMOD of 1 KiB, against a fake server) against what the gateway can take with its access log on (the same
load through it, to two fake servers). Claimed: a request costs icapbench no more CPU time than it costs c-icap-stretch, and icapbench drives twice
what the gateway takes on the same machine.

c-icap-stretch sleeps between requests, and so it is measured as it is and, if there is a C compiler (cc), also without these pauses and with
TCP_NODELAY, by a library that is preloaded. It compares no body and makes a new connection after 3.3 requests; icapbench does the first always, and
is measured with connections that stay and with new ones after 3 requests. Only that of c-icap 0.6 has TLS. CPU time is that of the whole process,
beside the gateway without the start and the handshakes.

    go run ./bench/trial generators
    go run ./bench/trial generators --rounds 15 --stretch /opt/c-icap/bin/c-icap-stretch
    go run ./bench/trial generators --stretch off --client off
`,
	limit: 20 * time.Minute,
	flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		o := &generatorsOptions{}
		f.StringVar(&o.stretch, "stretch", "c-icap-stretch", "`path` of c-icap-stretch, or off")
		f.StringVar(&o.client, "client", "c-icap-client", "`path` of c-icap-client, or off")
		f.IntVar(&o.rounds, "rounds", 9, "rounds of each load, after one to warm up")
		f.IntVar(&o.connections, "connections", 16, "connections beside other load generators")
		f.DurationVar(&o.length, "length", time.Second, "of one load of icapbench; those of c-icap-stretch are a second")
		f.Float64Var(&o.factor, "factor", 2, "times what the gateway takes that icapbench has to drive")
		return o.run
	},
}

type generatorsOptions struct {
	stretch, client string
	rounds          int
	connections     int
	length          time.Duration
	factor          float64
}

func (o *generatorsOptions) run(ctx context.Context, r *rig) error {
	if o.rounds < 1 || o.connections < 1 || o.length <= 0 {
		return errors.New("--rounds, --connections and --length have to be above 0")
	}
	if err := r.buildBench(ctx); err != nil {
		return err
	}
	r.note("%d rounds in rotating order after one to warm up; medians with smallest..largest; of ratios the %.0f %% interval of the median",
		o.rounds, 100*rounds.Confidence)
	if err := o.besideOthers(ctx, r); err != nil {
		return err
	}
	return o.besideGateway(ctx, r)
}

// besideOthers sets icapbench beside other load generators.
func (o *generatorsOptions) besideOthers(ctx context.Context, r *rig) error {
	s := o.findStretch(ctx, r)
	client := ""
	if o.client != "off" {
		var err error
		if client, err = exec.LookPath(o.client); err != nil {
			r.note("c-icap-client is left out: %v (Debian package c-icap)", err)
		}
	}
	const address = "127.0.0.1:0" // c-icap 0.6 looks up the name of its peer, of which /etc/hosts knows this one only
	plain, err := r.startServer(ctx, serverConfig{Address: address, Echo: true, Continue: true})
	if err != nil {
		return err
	}
	defer plain.stop()
	secure, err := r.startServer(ctx, serverConfig{Address: address, Echo: true, Continue: true, PEM: r.pem})
	if err != nil {
		return err
	}
	defer secure.stop()
	type target struct {
		name, address string
		secure        bool
	}
	targets := []target{{"a fake server, icap", plain.address, false}, {"a fake server, icaps", secure.address, true}}
	if s != nil || client != "" {
		address, p, err := r.startCICAP(ctx)
		if err != nil {
			r.note("c-icap as server is left out: %v (Debian package c-icap)", err)
		} else {
			defer p.Stop()
			targets = append(targets, target{"c-icap, icap", address, false})
		}
	}
	for _, t := range targets {
		for _, kib := range []int{1, 64} {
			file := filepath.Join(r.dir, fmt.Sprintf("body%d", kib))
			if err := os.WriteFile(file, bytes.Repeat([]byte("0123456789abcde\n"), kib<<6), 0o644); err != nil {
				return err
			}
			work := fmt.Sprintf("RESPMOD of %d KiB, preview %d, echoed by %s, %d connections", kib, stretchPreview, t.name, o.connections)
			if err := o.sideBySide(ctx, r, work, s, client, t.address, file, kib, t.secure); err != nil {
				return err
			}
		}
	}
	return nil
}

// findStretch returns c-icap-stretch, nil if it is left out.
func (o *generatorsOptions) findStretch(ctx context.Context, r *rig) *stretch {
	if o.stretch == "off" {
		r.note("c-icap-stretch is left out: --stretch off")
		return nil
	}
	s, err := r.newStretch(ctx, o.stretch)
	if err != nil {
		r.note("c-icap-stretch is left out: %v (Debian package c-icap)", err)
		return nil
	}
	if s.hasten == "" {
		r.note("c-icap-stretch is measured only as it is, with its pauses: there is no C compiler (cc) for what takes them away")
	}
	if !s.tls {
		r.note("c-icap-stretch is left out over icaps: this one has no -tls (c-icap 0.6 has)")
	}
	return s
}

// Names of drivers.
const (
	benchKeeps      = "icapbench"
	benchReconnects = "icapbench, new connection every 3"
	stretchAsItIs   = "c-icap-stretch"
	stretchHastened = "c-icap-stretch, no pauses, no delay"
	clientProcesses = "c-icap-client, a process each"
)

// sideBySide makes one load with all load generators.
func (o *generatorsOptions) sideBySide(ctx context.Context, r *rig, work string, s *stretch, client, address, file string, kib int, secure bool) error {
	scheme := "icap"
	if secure {
		scheme = "icaps"
	}
	load := func(further ...string) func(context.Context) (drive, error) {
		args := []string{scheme + "://" + address + "/echo", "-m", "respmod", "-s", fmt.Sprintf("%dKiB", kib), "--preview", strconv.Itoa(stretchPreview),
			"-c", strconv.Itoa(o.connections), "-d", o.length.String()}
		return func(ctx context.Context) (drive, error) {
			_, used, err := r.bench(ctx, append(args, further...)...)
			return used, err
		}
	}
	drivers := []driver{{benchKeeps, load()}, {benchReconnects, load("--new-connection-every", strconv.Itoa(stretchReconnect))}}
	other := ""
	if s != nil && (s.tls || !secure) {
		for _, hasten := range []bool{false, true} {
			name := stretchAsItIs
			if hasten {
				name = stretchHastened
			}
			if hasten && s.hasten == "" {
				continue
			}
			other = name
			drivers = append(drivers, driver{name, func(ctx context.Context) (drive, error) {
				return s.run(ctx, address, file, secure, hasten, o.connections)
			}})
		}
	}
	if client != "" {
		drivers = append(drivers, driver{clientProcesses, func(ctx context.Context) (drive, error) {
			return runClients(ctx, client, address, file, secure, o.connections, o.length)
		}})
	}
	r.section("%s", work)
	all, err := r.inTurn(ctx, o.rounds, drivers)
	if err != nil {
		return err
	}
	r.table(work, drivers, all)
	if other == "" {
		return nil
	}
	cost := func(name string) []float64 { return series(all[name], drive.cost) }
	mid, low, high := ratio(cost(other), cost(benchKeeps))
	r.note("%s / %s: %.2f (%.2f..%.2f) times the CPU per request", other, benchKeeps, mid, low, high)
	mid, low, high = ratio(cost(other), cost(benchReconnects))
	r.claim(mid >= 1, "%s / %s: %.2f (%.2f..%.2f) times the CPU per request, at least 1", other, benchReconnects, mid, low, high)
	return nil
}

// besideGateway sets what icapbench can drive against what the gateway can take.
func (o *generatorsOptions) besideGateway(ctx context.Context, r *rig) error {
	bare, err := r.startServer(ctx, serverConfig{PEM: r.pem})
	if err != nil {
		return err
	}
	defer bare.stop()
	servers, err := r.startServers(ctx, 2, serverConfig{})
	if err != nil {
		return err
	}
	if err := r.startGateway(ctx, gatewayConfig{Servers: servers, AccessLog: filepath.Join(r.dir, "access.log")}); err != nil {
		return err
	}
	defer r.stopGateway()
	for _, connections := range []int{16, 256} {
		c := strconv.Itoa(connections)
		load := func(ctx context.Context, address string, further ...string) (drive, error) {
			shown, used, err := r.bench(ctx, append([]string{"icaps://" + address + "/reqmod", "-s", "1KiB", "-c", c}, further...)...)
			if err != nil {
				return used, err
			}
			used.seconds, used.cpu = shown.Seconds, shown.Generator.CPUSeconds // without the handshakes
			return used, nil
		}
		const toServer, toGateway = "to a fake server", "through the gateway"
		drivers := []driver{
			{toServer, func(ctx context.Context) (drive, error) { return load(ctx, bare.address, "-d", o.length.String()) }},
			{toGateway, func(ctx context.Context) (drive, error) {
				opening, err := r.gatewayCPU(func() error {
					_, err := load(ctx, r.Secure, "-n", c)
					return err
				})
				if err != nil {
					return drive{}, err
				}
				var used drive
				full, err := r.gatewayCPU(func() (err error) {
					used, err = load(ctx, r.Secure, "-d", o.length.String())
					return err
				})
				used.gateway = full - opening
				return used, err
			}},
		}
		work := "REQMOD of 1 KiB over icaps, " + c + " connections"
		r.section("%s, icapbench", work)
		all, err := r.inTurn(ctx, o.rounds, drivers)
		if err != nil {
			return err
		}
		r.table(work, drivers, all)
		of := func(name string, f func(drive) float64) []float64 { return series(all[name], f) }
		own := of(toGateway, drive.gatewayCost)
		r.figure("the gateway's CPU per request, "+c+" connections", rounds.Median(own), "µs")
		mid, low, high := ratio(own, of(toGateway, drive.cost))
		r.note("that is %.2f (%.2f..%.2f) times icapbench's in the same load", mid, low, high)
		mid, low, high = ratio(own, of(toServer, drive.cost))
		r.note("and %.2f (%.2f..%.2f) times icapbench's where it goes as fast as it can: as many gateways can a machine of the same size load", mid, low, high)
		for _, name := range []string{toServer, toGateway} {
			busy := of(name, func(d drive) float64 { return 100 * d.cpu / d.seconds / float64(runtime.NumCPU()) })
			r.figure("icapbench's share of the CPUs, "+name+", "+c+" connections", rounds.Median(busy), "%")
		}
		mid, low, high = ratio(of(toServer, drive.rate), of(toGateway, drive.rate))
		r.claim(mid >= o.factor, "icapbench drives %.2f (%.2f..%.2f) times what goes through the gateway on this machine, at least %g", mid, low, high, o.factor)
	}
	return nil
}

// gatewayCPU returns the seconds of CPU that the gateway uses while f runs, and until it has closed the connections.
func (r *rig) gatewayCPU(f func() error) (float64, error) {
	const settle = 50 * time.Millisecond
	before, err := r.gateway.CPU()
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	time.Sleep(settle)
	after, err := r.gateway.CPU()
	return (after - before).Seconds(), err
}
