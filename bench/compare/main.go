package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"icapgate/bench/process"
	"icapgate/gateway/selfsign"
)

// options are the flags.
type options struct {
	rows      []row
	programs  []*program
	rounds    int
	scale     float64
	json      string
	accessLog string
	timeout   time.Duration
}

func main() {
	o, err := parseFlags(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "compare: %v\n", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("not done after %v: see --timeout", o.timeout))
	err = run(ctx, o, os.Stdout, os.Stderr)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "compare: %v\n", err)
		os.Exit(1)
	}
}

func parseFlags(args []string, help io.Writer) (*options, error) {
	o := &options{}
	flags := flag.NewFlagSet("compare", flag.ContinueOnError)
	flags.SetOutput(help)
	rowList := flags.String("rows", "", "`list` of rows to measure, of "+names(rows, rowName)+" (default all)")
	gatewayList := flags.String("gateways", "", "`list` of gateways to measure, of "+names(programs, programName)+" (default all that are installed)")
	flags.IntVar(&o.rounds, "rounds", 15, "rounds of each row, after one to warm up")
	flags.Float64Var(&o.scale, "scale", 1, "factor of the number of requests in a round")
	flags.StringVar(&o.json, "json", "", "`file` for all raw figures")
	flags.StringVar(&o.accessLog, "access-log", "", "`file` for icapgate's access log, or off (default one that goes with the run)")
	flags.DurationVar(&o.timeout, "timeout", time.Hour, "end of the run, whatever is done")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if o.rounds < 1 || !(o.scale > 0) {
		return nil, errors.New("--rounds and --scale have to be above 0")
	}
	if o.accessLog != "" && o.accessLog != "off" {
		path, err := filepath.Abs(o.accessLog)
		if err != nil {
			return nil, err
		}
		o.accessLog = path
	}
	var err error
	if o.rows, err = choose(rows, rowName, *rowList); err != nil {
		return nil, fmt.Errorf("--rows: %w", err)
	}
	if o.programs, err = choose(programs, programName, *gatewayList); err != nil {
		return nil, fmt.Errorf("--gateways: %w", err)
	}
	return o, nil
}

// run measures the rows and prints what they show.
func run(ctx context.Context, o *options, out, progress io.Writer) error {
	var file *os.File
	if o.json != "" { // before the run, so that it is not made in vain
		var err error
		if file, err = os.Create(o.json); err != nil {
			return err
		}
		defer file.Close()
	}
	dir, err := os.MkdirTemp("", "icapgate-compare-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	fmt.Fprintln(progress, "building icapgate and icapbench")
	if err := process.Build(ctx, dir, "./cmd/icapgate", "./cmd/icapbench"); err != nil {
		return err
	}
	m := &meter{dir: dir, icapbench: filepath.Join(dir, "bin", "icapbench"), scale: o.scale}
	common := setup{Dir: dir, PEM: filepath.Join(dir, "combined.pem"), AccessLog: cmp.Or(o.accessLog, filepath.Join(dir, "access.log"))}
	if m.trust, m.roots, err = makeCertificate(dir, common.PEM); err != nil {
		return err
	}
	for mode, servers := range map[string]*[]string{"204": &common.Servers, "echo": &common.EchoServers} {
		stub, err := startServers(ctx, m, mode, servers)
		if stub != nil {
			defer stub.Stop()
		}
		if err != nil {
			return err
		}
	}
	gateways, err := findGateways(o.programs, common, progress)
	if err != nil {
		return err
	}
	for _, g := range gateways {
		defer g.stop()
		if err := g.start(ctx); err != nil {
			return err
		}
		if err := g.checkTLS(ctx, m.roots); err != nil {
			return err
		}
		tree, err := g.process.Tree()
		if err != nil {
			return err
		}
		fmt.Fprintf(progress, "%s: processes %v, icaps %s, echo %s, icap %s\n", g.name, tree, g.setup.Secure, g.setup.Echo, g.setup.Plain)
	}

	p := newReport(o, gateways)
	p.AccessLog = common.AccessLog != "off"
	p.printHead(out)
	for _, r := range o.rows {
		result := newRowReport(&r)
		p.Rows = append(p.Rows, result)
		m.measureRow(ctx, &r, gateways, o.rounds, result, progress)
		result.print(out, p.order)
		if ctx.Err() != nil {
			break
		}
	}
	p.printTable(out)
	if file != nil {
		if err := errors.Join(p.writeJSON(file), file.Close()); err != nil {
			return fmt.Errorf("cannot write %q: %w", o.json, err)
		}
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("ended early: %w", context.Cause(ctx))
	case p.failed():
		return errors.New("some rounds failed: see above")
	}
	return nil
}

// measureRow measures every gateway once in each round and once before, to warm up, in an order that rotates.
func (m *meter) measureRow(ctx context.Context, r *row, gateways []*gateway, rounds int, result *rowReport, progress io.Writer) {
	gateways = slices.DeleteFunc(slices.Clone(gateways), func(g *gateway) bool { return !slices.Contains(g.doors, r.door) })
	for round := range rounds + 1 {
		for i := range gateways {
			g := gateways[(round+i)%len(gateways)]
			s := m.measure(ctx, r, g)
			if ctx.Err() != nil {
				return
			}
			result.Samples[g.name] = append(result.Samples[g.name], s)
			fmt.Fprintf(progress, "%s %d/%d %s %s\n", r.name, round, rounds, g.name, figure(s.Value))
		}
	}
}

func newReport(o *options, gateways []*gateway) *report {
	p := &report{Go: runtime.Version(), Rounds: o.rounds, Scale: o.scale, Versions: map[string]string{}}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	p.Machine = fmt.Sprintf("%d CPUs, Linux %s, %s", runtime.NumCPU(), bytes.TrimSpace(kernel), runtime.Version())
	for _, g := range gateways {
		p.order = append(p.order, g.name)
		p.Versions[g.name] = g.version
	}
	return p
}

// makeCertificate writes the key and certificate of all gateways to combined, and what clients have to trust beside it.
func makeCertificate(dir, combined string) (trust string, roots *x509.CertPool, err error) {
	text, err := selfsign.Generate([]string{"127.0.0.1"})
	if err != nil {
		return "", nil, err
	}
	trust = filepath.Join(dir, "trust.pem")
	cert := text[bytes.Index(text, []byte("-----BEGIN CERTIFICATE")):]
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(cert)
	return trust, roots, errors.Join(os.WriteFile(combined, text, 0o600), os.WriteFile(trust, cert, 0o600))
}

// startServers starts two fake DLP servers and tells their addresses.
func startServers(ctx context.Context, m *meter, mode string, addresses *[]string) (*process.Process, error) {
	free, err := process.FreeAddresses(2)
	if err != nil {
		return nil, err
	}
	*addresses = free
	p, err := process.Start(m.dir, "servers-"+mode, m.icapbench, "serve", "--mode", mode, "--listen", free[0], "--listen", free[1])
	if err != nil {
		return nil, err
	}
	return p, p.Await(ctx, free...)
}

// findGateways sets up the programs that are there. A peer that is not is left out with a line; icapgate is there, as it was built.
func findGateways(programs []*program, s setup, progress io.Writer) ([]*gateway, error) {
	var gateways []*gateway
	for _, p := range programs {
		path, ok := find(p.name)
		if p.name == ours {
			path, ok = filepath.Join(s.Dir, "bin", ours), true
		}
		if !ok {
			fmt.Fprintf(progress, "%s is left out: it is not installed\n", p.name)
			continue
		}
		g, err := newGateway(p, path, s)
		if err != nil && p.name != ours {
			fmt.Fprintf(progress, "%s is left out: %v\n", p.name, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		gateways = append(gateways, g)
	}
	return gateways, nil
}
