package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"icapgate/bench"
	"icapgate/bench/process"
	"icapgate/icap"
)

var blackhole = &trial{
	name:  "blackhole",
	about: "a server that takes connections and answers nothing, or takes none and says nothing: what requests pay for it, beside stunnel",
	help: `Two servers stand behind the gateway (with least_inflight and with round_robin, all else as it is by default) and behind stunnel, as it comes, with two connect lines
(failover = prio and failover = rr), all at the same time. The first server becomes a black hole and comes back:

    drop    it is killed, and its address drops SYNs: a listener whose backlog is full
    stall   SIGSTOP: its kernel takes connections and acknowledges what is sent, and nobody answers
    start   as drop, but it is one before the gateway and stunnel are started

Clients send REQMODs of 1 KiB over icaps: some over connections that stay, a request every 100 ms each, some over a new connection for each request, 5 per second. Told is
what requests took that began before, in and after the outage. How long is their own business: stunnel waits 10 s for a connection, the gateway 2 s.

Claimed of the gateway, with drop and start: no request fails; none takes longer than timeouts.connect and half a second, and none that began later than that after the
begin takes a second: a black hole costs one connect timeout in all. With stall: none that began later than 5 s after the begin takes a second; those that were on
the server can only wait, since it may have written their incidents. With all: none that begins after the outage takes a second.

    go run ./bench/trial blackhole
    go run ./bench/trial blackhole --faults drop --outage 60s
`,
	limit: 10 * time.Minute,
	flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		o := &blackholeOptions{}
		f.StringVar(&o.faults, "faults", "drop,stall,start", "what happens, in this order")
		f.IntVar(&o.live, "live", 8, "clients with connections that stay")
		f.DurationVar(&o.outage, "outage", 25*time.Second, "time until the server comes back")
		f.DurationVar(&o.load, "load", 5*time.Second, "time of load before, and twice that after")
		f.StringVar(&o.stunnel, "stunnel", "stunnel", "`path` of stunnel, or off")
		return o.run
	},
}

type blackholeOptions struct {
	faults, stunnel string
	live            int
	outage, load    time.Duration
}

const (
	livePause    = 100 * time.Millisecond // between two requests of a client whose connection stays
	newPause     = 200 * time.Millisecond // between two new connections
	slowRequest  = time.Second            // what counts as paying for it
	connectBound = 2*time.Second + 500*time.Millisecond
	stallBound   = 5 * time.Second // a second without an end of a request, a check with its timeout of 2 s, and some time to spare
)

// contender is a program in front of the two servers.
type contender struct {
	name    string
	ours    bool
	address string // host:port of icaps
	stop    func()

	mu       sync.Mutex
	requests []holeRequest
}

// holeRequest is one request and what came of it.
type holeRequest struct {
	fresh bool // it had a new connection
	began time.Time
	took  time.Duration
	err   error
}

func (o *blackholeOptions) run(ctx context.Context, r *rig) error {
	if o.live < 1 || o.outage <= 0 || o.load <= 0 {
		return errors.New("--live, --outage and --load have to be above 0")
	}
	for fault := range strings.SplitSeq(o.faults, ",") {
		if !slices.Contains([]string{"drop", "stall", "start"}, fault) {
			return fmt.Errorf("--faults: unknown fault %q", fault)
		}
	}
	stunnel := ""
	if o.stunnel != "off" {
		var err error
		if stunnel, err = exec.LookPath(o.stunnel); err != nil {
			r.note("stunnel is left out: %v (Debian package stunnel4)", err)
		}
	}
	for fault := range strings.SplitSeq(o.faults, ",") {
		if err := o.try(ctx, r, fault, stunnel); err != nil {
			return fmt.Errorf("%s: %w", fault, err)
		}
	}
	return nil
}

// try makes one server a black hole under load, and a server again.
func (o *blackholeOptions) try(ctx context.Context, r *rig, fault, stunnel string) error {
	servers, err := r.startServers(ctx, 2, serverConfig{})
	if err != nil {
		return err
	}
	defer servers[0].stop()
	defer servers[1].stop()
	hole := &hole{server: servers[0], stall: fault == "stall"}
	defer hole.close()
	if fault == "start" {
		if err := hole.open(); err != nil {
			return err
		}
	}
	began := time.Now()
	contenders, err := o.start(ctx, r, servers, stunnel)
	defer func() {
		for _, c := range contenders {
			c.stop()
		}
	}()
	if err != nil {
		return err
	}
	r.section("%s: %v, %d clients with connections that stay, 5 new connections per second, each", fault, o.outage, o.live)
	loading, end := context.WithCancel(ctx)
	defer end()
	tellWaits := r.pulse(ctx)
	var clients sync.WaitGroup
	for _, c := range contenders {
		clients.Go(func() { o.clients(loading, r, c) })
	}
	if fault != "start" {
		if err := pause(ctx, o.load); err != nil {
			return err
		}
		began = time.Now()
		if err := hole.open(); err != nil {
			return err
		}
	}
	if err := pause(ctx, o.outage); err != nil {
		return err
	}
	over := time.Now()
	if err := hole.undo(ctx); err != nil {
		return err
	}
	if err := pause(ctx, 2*o.load); err != nil {
		return err
	}
	end()
	clients.Wait()
	tellWaits()
	o.report(r, fault, contenders, began, over)
	return nil
}

// start starts what is compared. What has been started is returned even with an error.
func (o *blackholeOptions) start(ctx context.Context, r *rig, servers []*server, stunnel string) (list []*contender, err error) {
	for _, policy := range []string{"least_inflight", "round_robin"} {
		g, err := r.another("gateway-" + policy)
		if err == nil {
			err = g.startGateway(ctx, gatewayConfig{Servers: servers, Pool: "    balance: " + policy + "\n"})
		}
		if err != nil {
			g.stopGateway()
			return list, err
		}
		list = append(list, &contender{name: "icapgate, " + policy, ours: true, address: g.Secure, stop: g.stopGateway})
	}
	if stunnel == "" {
		return list, nil
	}
	for _, failover := range []string{"prio", "rr"} {
		addresses, err := process.FreeAddresses(1)
		if err != nil {
			return list, err
		}
		config := filepath.Join(r.dir, "stunnel-"+failover+".conf")
		text := fmt.Sprintf("foreground = yes\npid =\nsyslog = no\ndebug = err\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\ncert = %s\nfailover = %s\n"+
			"TIMEOUTconnect = 10\n[icaps]\naccept = %s\nconnect = %s\nconnect = %s\n", r.pem, failover, addresses[0], servers[0].address, servers[1].address)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			return list, err
		}
		p, err := process.Start(r.dir, "stunnel-"+failover, stunnel, config)
		if err != nil {
			return list, err
		}
		c := &contender{name: "stunnel, " + failover, address: addresses[0], stop: p.Stop}
		list = append(list, c)
		if err := p.Await(ctx, addresses[0]); err != nil {
			return list, err
		}
	}
	return list, nil
}

// clients send requests until ctx ends, and wait for the answers to the last ones.
func (o *blackholeOptions) clients(ctx context.Context, r *rig, to *contender) {
	var running sync.WaitGroup
	defer running.Wait()
	for range o.live {
		running.Go(func() {
			c := &client{}
			c.target, c.tls = r.secureTarget(to.address, "/reqmod")
			defer c.close()
			for pause(ctx, livePause) == nil {
				to.note(c, false)
			}
		})
	}
	for pause(ctx, newPause) == nil {
		running.Go(func() {
			c := &client{}
			c.target, c.tls = r.secureTarget(to.address, "/reqmod")
			defer c.close()
			to.note(c, true)
		})
	}
}

// note sends a request and notes what came of it.
func (to *contender) note(c *client, fresh bool) {
	q := &call{Message: bench.Message{Method: icap.MethodReqmod, Preview: -1}, Size: 1 << 10}
	began := time.Now()
	err := errStale
	for err == errStale {
		if err = c.connect(context.Background()); err == nil {
			err = c.do(q)
		}
	}
	if err == nil && q.status != 204 {
		err = fmt.Errorf("status %d", q.status)
	}
	if err != nil {
		c.close()
	}
	to.mu.Lock()
	defer to.mu.Unlock()
	to.requests = append(to.requests, holeRequest{fresh, began, time.Since(began), err})
}

// report prints the table and claims what has to hold of the gateway.
func (o *blackholeOptions) report(r *rig, fault string, contenders []*contender, began, over time.Time) {
	const crossing = 50 * time.Millisecond // a request that began so much before the outage may have met it
	var text strings.Builder
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tclients\tlongest before\trequests\tfailed\tp99\tlongest\ttook 1 s\tfirst after\tlongest after")
	for _, c := range contenders {
		for _, fresh := range []bool{false, true} {
			var before, in, after holeFigures
			var first holeRequest
			for _, q := range c.requests {
				switch {
				case q.fresh != fresh:
				case q.began.Before(began.Add(-crossing)):
					before.add(q)
				case q.began.Before(over):
					in.add(q)
				default:
					after.add(q)
					if first.began.IsZero() || q.began.Before(first.began) {
						first = q
					}
				}
			}
			kind := "stay"
			if fresh {
				kind = "new"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%s\t%s\t%d\t%s\t%s\n", c.name, kind, shown(before.quantile(1)), len(in.took), in.failed, shown(in.quantile(0.99)),
				shown(in.quantile(1)), in.slow, shown(first.took), shown(after.quantile(1)))
			name := fmt.Sprintf("%s, %s, %s: ", fault, c.name, kind)
			r.store(name+"requests in the outage", float64(len(in.took)), "")
			r.store(name+"failed", float64(in.failed), "")
			r.store(name+"p99", in.quantile(0.99).Seconds(), "s")
			r.store(name+"longest", in.quantile(1).Seconds(), "s")
			r.store(name+"added to the longest", (in.quantile(1) - before.quantile(1)).Seconds(), "s")
			r.store(name+"took a second", float64(in.slow), "")
			r.store(name+"first after", first.took.Seconds(), "s")
			r.store(name+"longest after", after.quantile(1).Seconds(), "s")
		}
	}
	t.Flush()
	r.note("%s", strings.TrimRight(text.String(), "\n"))
	for _, c := range contenders {
		if c.ours {
			o.claim(r, fault, c, began, over)
		}
	}
}

// claim claims what has to hold of a gateway.
func (o *blackholeOptions) claim(r *rig, fault string, c *contender, began, over time.Time) {
	bound := connectBound
	if fault == "stall" {
		bound = stallBound
	}
	failed, tooLong, late, after := 0, 0, 0, 0
	var example error
	for _, q := range c.requests {
		if q.err != nil {
			failed, example = failed+1, q.err
		}
		if q.took > connectBound {
			tooLong++
		}
		switch {
		case q.took < slowRequest:
		case !q.began.Before(over):
			after++
		case q.began.Sub(began) > bound:
			late++
		}
	}
	name := fault + ", " + c.name + ": "
	if example != nil {
		r.note("%s%d failed, one of them: %v", name, failed, example)
	}
	r.claim(failed == 0, "%s0 of %d requests failed: %d", name, len(c.requests), failed)
	if fault != "stall" {
		r.claim(tooLong == 0, "%snone took longer than %v: %d did", name, connectBound, tooLong)
	}
	r.claim(late == 0, "%snone that began later than %v after the begin took a second: %d did", name, bound, late)
	r.claim(after == 0, "%snone that began after the outage took a second: %d did", name, after)
}

// holeFigures are the requests of one time.
type holeFigures struct {
	took   []time.Duration
	failed int
	slow   int
}

func (f *holeFigures) add(q holeRequest) {
	f.took = append(f.took, q.took)
	if q.err != nil {
		f.failed++
	}
	if q.took >= slowRequest {
		f.slow++
	}
}

// quantile returns the time that this share of the requests has not exceeded, 0 if there were none.
func (f *holeFigures) quantile(share float64) time.Duration {
	if len(f.took) == 0 {
		return 0
	}
	slices.Sort(f.took)
	return f.took[max(0, int(share*float64(len(f.took))+0.5)-1)]
}

// shown prints a time with the digits that mean something.
func shown(d time.Duration) string {
	switch {
	case d == 0:
		return "-"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// hole is a server that becomes a black hole.
type hole struct {
	server *server
	stall  bool  // it takes connections
	fds    []int // of the listener that takes no connection, and of those that fill its backlog
}

// open makes the server a black hole.
func (h *hole) open() error {
	if h.stall {
		h.server.freeze()
		return nil
	}
	h.server.kill()
	at, err := netip.ParseAddrPort(h.server.address)
	if err != nil {
		return err
	}
	address := &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	ln, err := h.socket()
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(ln, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(ln, address); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(ln, 0); err != nil {
		return os.NewSyscallError("listen", err)
	}
	for range 4 { // the first one is taken
		c, err := h.socket()
		if err != nil {
			return err
		}
		if err := unix.Connect(c, address); err != nil && err != unix.EINPROGRESS {
			return os.NewSyscallError("connect", err)
		}
	}
	nc, err := net.DialTimeout("tcp", h.server.address, 100*time.Millisecond)
	if err == nil {
		nc.Close()
		return errors.New("a listener whose backlog should be full has taken a connection")
	}
	return nil
}

func (h *hole) socket() (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	h.fds = append(h.fds, fd)
	return fd, nil
}

// undo makes it a server again.
func (h *hole) undo(ctx context.Context) error {
	if h.stall {
		h.server.thaw()
		return nil
	}
	h.close()
	return h.server.start(ctx)
}

// close closes the listener that takes no connection.
func (h *hole) close() {
	for _, fd := range h.fds {
		unix.Close(fd)
	}
	h.fds = nil
}
