package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"icapgate/configs"
	"icapgate/gateway/admin"
)

// defaultAdmin is where a gateway is found whose address nobody has given.
const defaultAdmin = "http://127.0.0.1:9344"

// adminFlags say which running gateway a command is for.
type adminFlags struct {
	Admin  string `placeholder:"ADDRESS" help:"Admin endpoint of the gateway, http://HOST:PORT or unix:PATH. Default: admin.address of --config, else http://127.0.0.1:9344."`
	Config string `short:"c" placeholder:"FILE" help:"Configuration that the gateway runs with."`
}

// client talks to that gateway.
func (f *adminFlags) client() (*admin.Client, error) {
	address := f.Admin
	switch {
	case address != "":
	case f.Config != "":
		cfg, err := configs.Load(f.Config)
		if err != nil {
			return nil, err
		}
		if address = cfg.Admin.Address; address == "off" {
			return nil, fmt.Errorf("%s has admin.address off: a gateway that runs with it cannot be asked", f.Config)
		}
	default:
		address = defaultAdmin
	}
	c, err := admin.NewClient(address)
	if err != nil {
		return nil, usageError{fmt.Errorf("--admin: %w", err)}
	}
	return c, nil
}

// interruptible is a context that ends with Ctrl-C.
func interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
}

const adminExitCodes = `Exit codes:

    0    done
    1    the gateway cannot be reached, or refuses
    2    the command line is wrong`

// statusCommand shows a running gateway.
type statusCommand struct {
	JSON bool `name:"json" help:"Print everything known as JSON, for scripts."`
	adminFlags
}

// Help is shown by icapgate status --help.
func (statusCommand) Help() string {
	return `Shows the listeners with the number of client connections, and for each pool how many requests wait and what its servers do.

Examples:

    icapgate status
    icapgate status --config /etc/icapgate/icapgate.yaml
    icapgate status --admin unix:/run/icapgate/admin.sock
    icapgate status --json | jq -r '.pools[].servers[] | select(.health != "up") | .address'

` + adminExitCodes
}

// Run is called by kong.
func (c *statusCommand) Run(s streams) error {
	ctx, stop := interruptible()
	defer stop()
	client, err := c.client()
	if err != nil {
		return err
	}
	status, err := client.Status(ctx)
	if err != nil {
		return err
	}
	if c.JSON {
		encoder := json.NewEncoder(s.out)
		encoder.SetIndent("", "  ")
		return encoder.Encode(status)
	}
	return printStatus(s.out, status, time.Now())
}

// reloadCommand puts a changed configuration in force.
type reloadCommand struct{ adminFlags }

// Help is shown by icapgate reload --help.
func (reloadCommand) Help() string {
	return `The gateway reads its configuration and its certificates again. Connections stay; live ones follow at their next request. A
configuration with faults, or with changes that need a restart (listeners' addresses, admin, log), changes nothing, and every reason is printed.

Examples:

    icapgate reload
    icapgate check -c icapgate.yaml && icapgate reload -c icapgate.yaml

` + adminExitCodes
}

// Run is called by kong.
func (c *reloadCommand) Run(s streams) error {
	ctx, stop := interruptible()
	defer stop()
	client, err := c.client()
	if err != nil {
		return err
	}
	if err := client.Reload(ctx); err != nil {
		return err
	}
	fmt.Fprintln(s.out, "reloaded")
	return nil
}

// printStatus renders a status for people.
func printStatus(out io.Writer, s admin.Status, now time.Time) error {
	draining := ""
	if s.Draining {
		draining = ", draining"
	}
	fmt.Fprintf(out, "icapgate %s, up %v%s\n", s.Version, seconds(s.UptimeSeconds), draining)
	if len(s.Limits.Overloaded) > 0 {
		fmt.Fprintf(out, "New clients are refused: %s. There are %d, %d are allowed.\n",
			strings.Join(s.Limits.Overloaded, ", "), s.Limits.Connections, s.Limits.MaxConnections)
	}
	fmt.Fprintln(out)

	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "LISTENER\tADDRESS\tSESSIONS")
	for _, l := range s.Listeners {
		fmt.Fprintf(t, "%s\t%s\t%d\n", l.Name, l.Address, l.Sessions)
	}
	t.Flush()
	fmt.Fprintln(t, "\nSERVICE\tPOOLS\tISTAG\tOPTIONS\tREMARK")
	for _, v := range s.Services {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", v.Service, strings.Join(v.Pools, " "), v.ISTag, answersOptions(v), serviceRemark(v))
	}
	for _, p := range s.Pools {
		t.Flush() // each table has columns of its own
		fmt.Fprintf(out, "\nPool %s, %d waiting%s%s%s\n", p.Name, p.Queue, waiting(p), selected(p), shared(p))
		fmt.Fprintln(t, "SERVER\tHEALTH\tADMIN\tWEIGHT\tIN FLIGHT\tCONNECTIONS\tIDLE\tCAP\tREQUESTS\tSHARE\tREMARK")
		for _, srv := range p.Servers {
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\t%d\t%s\t%s\n", srv.Address, healthSince(srv, now), srv.Admin, srv.Weight,
				srv.InFlight, srv.Connections, srv.Idle, limit(srv.Cap), srv.Requests, requestShare(srv), remark(srv, now))
		}
	}
	if len(s.Names) > 0 {
		t.Flush()
		fmt.Fprintln(t, "\nNAME\tADDRESSES\tTTL\tLOOKED UP\tREMARK")
		for _, n := range s.Names {
			fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\n", n.Name, len(n.Addresses), ttl(n), ago(n.Asked, now), nameRemark(n, now))
		}
	}
	return t.Flush()
}

// answersOptions says who answers the OPTIONS of a service.
func answersOptions(v admin.ServiceStatus) string {
	if len(v.Announced) == 0 {
		return "servers"
	}
	return "gateway"
}

// serviceRemark says what is wrong with a service, "-" if nothing is.
func serviceRemark(v admin.ServiceStatus) string {
	var remarks []string
	if !v.Up {
		remarks = append(remarks, "unavailable")
	}
	if v.ISTags > 1 {
		remarks = append(remarks, fmt.Sprintf("servers have %d ISTags", v.ISTags))
	}
	if len(remarks) == 0 {
		return "-"
	}
	return strings.Join(remarks, ", ")
}

// ttl is how long DNS says that a name's addresses hold.
func ttl(n admin.NameStatus) string {
	if n.TTLSeconds == nil {
		return "-"
	}
	return seconds(*n.TTLSeconds).String()
}

func ago(at, now time.Time) string {
	if at.IsZero() {
		return "never"
	}
	return fmt.Sprintf("%v ago", max(0, now.Sub(at).Truncate(time.Second)))
}

// nameRemark says what is wrong with a name, "-" if nothing is.
func nameRemark(n admin.NameStatus, now time.Time) string {
	if n.LastError == "" {
		return "-"
	}
	return fmt.Sprintf("fails since %v: %s", max(0, now.Sub(n.FailingSince).Truncate(time.Second)), strings.Join(strings.Fields(n.LastError), " "))
}

// waiting says why requests wait, and for how long, "" if none does.
func waiting(p admin.PoolStatus) string {
	var causes []string
	for _, c := range slices.Sorted(maps.Keys(p.Waits.Now)) {
		if n := p.Waits.Now[c]; n > 0 {
			causes = append(causes, fmt.Sprintf("%s %d", c, n))
		}
	}
	if len(causes) == 0 {
		return ""
	}
	return fmt.Sprintf(" (%s; the first for %.1fs)", strings.Join(causes, ", "), p.Waits.OldestSeconds)
}

// selected says what is special about who gets the requests of a pool, "" if nothing is.
func selected(p admin.PoolStatus) string {
	switch {
	case p.Panic:
		return ", panic: too few servers are usable, requests go to all"
	case p.Tier > 0:
		return fmt.Sprintf(", tiers up to %d in use", p.Tier)
	}
	return ""
}

// shared says how many gateways share the limits of the servers, "" if this is the only one.
func shared(p admin.PoolStatus) string {
	switch p.ConnectionShare {
	case 0:
		return ", number of gateways not known yet: one connection to each server with a limit"
	case 1:
		return ""
	}
	return fmt.Sprintf(", limits shared by %d gateways", p.ConnectionShare)
}

func seconds(n float64) time.Duration { return time.Duration(n) * time.Second }

// healthSince is a state and how long it has lasted: "up 3m12s".
func healthSince(s admin.ServerStatus, now time.Time) string {
	if s.Since.IsZero() {
		return s.Health
	}
	return fmt.Sprintf("%s %v", s.Health, max(0, now.Sub(s.Since).Truncate(time.Second)))
}

// requestShare is the server's share of the requests, "-" as long as it has had none.
func requestShare(s admin.ServerStatus) string {
	if s.Requests == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*s.RequestShare)
}

func limit(n int) string {
	if n == 0 {
		return "none"
	}
	return fmt.Sprint(n)
}

// remark says in one line why a server is not used for everything, "-" if there is nothing to say.
func remark(s admin.ServerStatus, now time.Time) string {
	var remarks []string
	if ejection := s.Ejection(now); ejection != "" {
		remarks = append(remarks, ejection)
	}
	if s.Doubted {
		remarks = append(remarks, "nothing is heard of it: others are preferred")
	}
	if s.LongStreams > 0 {
		remarks = append(remarks, fmt.Sprintf("long streams: %d", s.LongStreams))
	}
	if s.From != "" && s.From != s.Address {
		remarks = append(remarks, "of "+s.From)
	}
	if s.Tier > 0 {
		remarks = append(remarks, fmt.Sprintf("tier %d", s.Tier))
	}
	if s.LastError != "" {
		remarks = append(remarks, strings.Join(strings.Fields(s.LastError), " "))
	}
	if s.Probe != nil && s.Probe.Error != "" {
		remarks = append(remarks, "probe: "+s.Probe.Error)
	}
	if s.SlowStart() {
		remarks = append(remarks, fmt.Sprintf("slow start: its weight is %.2f", s.Share))
	}
	if len(s.MissingPaths) > 0 {
		remarks = append(remarks, "does not know "+strings.Join(s.MissingPaths, ", "))
	}
	if len(s.MissingMethods) > 0 {
		remarks = append(remarks, "does not do "+strings.Join(s.MissingMethods, ", "))
	}
	if remarks == nil {
		return "-"
	}
	return strings.Join(remarks, "; ")
}

// serverFlags name one server of a running gateway.
type serverFlags struct {
	Server string `arg:"" name:"SERVER" help:"The server's address, as icapgate status shows it."`
	Pool   string `placeholder:"NAME" help:"Its pool; needed if several pools have the server."`
	adminFlags
}

// do sends a command about the server and tells what has become of it.
func (f *serverFlags) do(s streams, send func(client *admin.Client, ctx context.Context, pool, server string) error) error {
	ctx, stop := interruptible()
	defer stop()
	client, err := f.client()
	if err != nil {
		return err
	}
	if err := send(client, ctx, f.Pool, f.Server); err != nil {
		return err
	}
	status, err := client.Status(ctx)
	if err != nil {
		return fmt.Errorf("the command was obeyed, but: %w", err)
	}
	for _, p := range status.Pools {
		for _, srv := range p.Servers {
			if srv.Address == f.Server && (f.Pool == "" || f.Pool == p.Name) {
				fmt.Fprintf(s.out, "%s of pool %s: %s, %s, weight %d, %d in flight\n",
					srv.Address, p.Name, srv.Admin, srv.Health, srv.Weight, srv.InFlight)
				return nil
			}
		}
	}
	return errors.New("the command was obeyed, but the server has left the configuration since")
}

// drainCommand gives a server no new requests.
type drainCommand struct{ serverFlags }

// Help is shown by icapgate drain --help.
func (drainCommand) Help() string {
	return `The server gets no new requests; those in flight end as usual, and checks go on. It is free when icapgate status shows 0 in flight.
A restart of the gateway forgets it.

Examples:

    icapgate drain 10.2.1.101:1344
    icapgate drain --pool dlp 10.2.1.101:1344

` + adminExitCodes
}

// Run is called by kong.
func (c *drainCommand) Run(s streams) error {
	return c.do(s, (*admin.Client).Drain)
}

// readyCommand undoes drain and maintenance.
type readyCommand struct{ serverFlags }

// Help is shown by icapgate ready --help.
func (readyCommand) Help() string {
	return `The server gets requests again as soon as its checks say that it is up. If it has been ejected because of requests that it failed, that ends, too.

Examples:

    icapgate ready 10.2.1.101:1344

` + adminExitCodes
}

// Run is called by kong.
func (c *readyCommand) Run(s streams) error {
	return c.do(s, (*admin.Client).Ready)
}

// maintenanceCommand is drain without checks.
type maintenanceCommand struct{ serverFlags }

// Help is shown by icapgate maintenance --help.
func (maintenanceCommand) Help() string {
	return `Like drain, and the server is not checked either: for one that is switched off for a while. A restart of the gateway forgets it.

Examples:

    icapgate maintenance 10.2.1.101:1344

` + adminExitCodes
}

// Run is called by kong.
func (c *maintenanceCommand) Run(s streams) error {
	return c.do(s, (*admin.Client).Maintenance)
}

// weightCommand sets a server's share.
type weightCommand struct {
	serverFlags
	Weight int `arg:"" name:"WEIGHT" help:"0 to 256; 0: no new requests."`
}

// Help is shown by icapgate weight --help.
func (weightCommand) Help() string {
	return `A server of weight 2 gets twice the requests of one of weight 1. A restart of the gateway goes back to the configuration.

Examples:

    icapgate weight 10.2.1.101:1344 2

` + adminExitCodes
}

// Run is called by kong.
func (c *weightCommand) Run(s streams) error {
	return c.do(s, func(client *admin.Client, ctx context.Context, pool, server string) error {
		return client.Weight(ctx, pool, server, c.Weight)
	})
}
