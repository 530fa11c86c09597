package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"icapgate/gateway/admin"
	"icapgate/icap"
)

var unavailable = &trial{
	name:  "unavailable",
	about: "all servers are away: what passes unjudged (1 GB is given back while it comes in), what is rejected, and how soon",
	help: `Two servers, and a gateway with a service that lets requests pass which nobody has judged (/open: on_unavailable and on_error), one that does so when the verdict is late (/timed:
on_timeout, decision_timeout: 1s), and one that is as it is by default (/closed). All over icaps and icap, REQMOD and RESPMOD:

    nobody listens   both servers are killed. Small requests, one after the other on connections that stay: /closed gives 503, /open a 204 to those that take one, in a preview
                     too, and their own message to the others. Then long bodies: 1 GB is given back to a fast client, and a part of it to four slow ones, while the servers come back for a
                     moment and are killed again; 1 GB that may be answered 204, and a long body for /closed
    behind a preview 1 GB, of which a server has seen the preview and asked for the rest: then both are killed. What is held and what still comes in is given back
    in mid request   both servers are killed while they have parts of requests, within replay_buffer and beyond
    late             servers that do not answer, with requests within replay_buffer and beyond
    black holes      the servers' addresses take no connection and say nothing
    back             the servers are there again: their verdicts count

Claimed: every answer is what has to come; what was given back has the heads that were sent, and a body with the SHA-256 of what was sent (nobody collects it); the peak of the gateway's memory
is less than 16 MB above that of the idle gateway in all of it; 503, 204 and what is given back come at once (half of them within 5 ms), with black holes too when a check has seen them, and
before the end of a long body; the connections stay usable. And the access log and allowed_total agree with what the clients saw, request by request.

    go run ./bench/trial unavailable
    go run ./bench/trial unavailable --size 10000000000
`,
	limit: 10 * time.Minute,
	flags: func(f *flag.FlagSet) func(context.Context, *rig) error {
		o := &unavailableOptions{slowRate: 8e6}
		f.Int64Var(&o.size, "size", 1e9, "bytes of a long body")
		f.Int64Var(&o.slowSize, "slow-size", 64e6, "the same with clients that read --rate")
		f.Int64Var(&o.slowRate, "rate", 8e6, "bytes per second of a slow client")
		f.IntVar(&o.requests, "requests", 200, "small requests of each kind")
		return o.run
	},
}

type unavailableOptions struct {
	size, slowSize, slowRate int64
	requests                 int
}

const (
	echoMemory    = 16e6 // bytes above those of the idle gateway
	soon          = 5 * time.Millisecond
	rejectedSize  = 16e6 // bytes of a long body for /closed: the gateway drops 64 MiB before it closes the connection
	withinReplay  = 32 << 10
	beyondReplay  = 256 << 10
	beyondLate    = 128 << 10 // the same; sockets hold it, so that the request is in although its server does not read
	openPreview   = 1 << 10
	decision      = time.Second
	decisionSpare = 500 * time.Millisecond
	thinking      = 30_000 // ms that servers take for an answer that is not to come in time
)

// outage is a running trial.
type outage struct {
	*rig
	o       *unavailableOptions
	servers []*server
	log     string // access log
	idle    usage

	mu   sync.Mutex
	seen []*openCall
}

func (o *unavailableOptions) run(ctx context.Context, r *rig) error {
	if o.size < rejectedSize || o.slowSize < 1 || o.slowRate < 1 || o.requests < 1 {
		return fmt.Errorf("--size has to be %.0f at least, --slow-size, --rate and --requests above 0", rejectedSize)
	}
	s := &outage{rig: r, o: o, log: filepath.Join(r.dir, "access.log")}
	if err := s.setUp(ctx); err != nil {
		return err
	}
	defer r.stopGateway()
	for _, part := range []func(context.Context) error{s.nobody, s.behindPreview, s.midRequest, s.late, s.blackHoles, s.account} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

// setUp starts servers and gateway, and looks at it at rest.
func (s *outage) setUp(ctx context.Context) (err error) {
	if s.servers, err = s.startServers(ctx, 2, serverConfig{Obey: true}); err != nil {
		return err
	}
	const checks = "    health: {interval: 500ms, rise: 1, fall: 1}\n    slow_start: 0s\n"
	list := []string{s.servers[0].address, s.servers[1].address}
	err = s.startGateway(ctx, gatewayConfig{
		Servers: s.servers, AccessLog: s.log,
		Pool: checks + fmt.Sprintf("  - name: strict\n    servers: [%s]\n", strings.Join(list, ", ")) + checks,
		Further: fmt.Sprintf(`services:
  - {path: /open, pool: %[1]s, on_unavailable: allow, on_error: allow}
  - {path: /timed, pool: %[1]s, on_timeout: allow, decision_timeout: %[2]v}
  - {path: /closed, pool: strict}
`, poolName, decision),
	})
	if err != nil {
		return err
	}
	s.section("before")
	if err := s.judged(ctx); err != nil {
		return err
	}
	s.idle, err = s.usage(ctx)
	s.note("gateway: %v", s.idle)
	return err
}

// claimMemory claims that the gateway's memory is within its bound, with the most that it has been since the last time.
func (s *outage) claimMemory(ctx context.Context, name string) error {
	after, err := s.usage(ctx)
	if err != nil {
		return err
	}
	rise := after.Peak - s.idle.RSS
	s.store(name+": peak of memory above the idle gateway's", megabytes(rise), "MB")
	s.claim(rise < echoMemory, "%s: the peak of the gateway's memory is less than %.0f MB above that of the idle gateway: %.1f", name, megabytes(echoMemory), megabytes(rise))
	return s.gateway.ResetPeakRSS()
}

// health waits until the gateway thinks so of all servers.
func (s *outage) health(ctx context.Context, word string) error {
	return s.awaitStatus(ctx, returnPatience, "that has all servers "+word, func(st *admin.Status) bool {
		return !slices.ContainsFunc(st.Pools, func(p admin.PoolStatus) bool {
			return slices.ContainsFunc(p.Servers, func(one admin.ServerStatus) bool { return one.Health != word })
		})
	})
}

func (s *outage) killAll() {
	for _, server := range s.servers {
		server.kill()
	}
}

// startAll brings the servers back and waits until the gateway uses them.
func (s *outage) startAll(ctx context.Context) error {
	for _, server := range s.servers {
		if server.process == nil {
			if err := server.start(ctx); err != nil {
				return err
			}
		}
	}
	return s.health(ctx, "up")
}

// judged claims that servers judge requests.
func (s *outage) judged(ctx context.Context) error {
	var list []*openCall
	everyWay(func(method icap.Method, secure bool) {
		for _, path := range []string{"/open", "/timed", "/closed"} {
			list = append(list, newCall(method, secure, path, 1<<10, true))
		}
	})
	s.all(ctx, list)()
	s.claimAll("with servers: 204 of a server", list, 204)
	s.claim(!slices.ContainsFunc(list, func(q *openCall) bool { return q.server == "" }), "with servers: each answer has the name of one")
	return context.Cause(ctx)
}

// small sends requests one after the other over one connection at each door, prints how soon the answers came, and claims what they have to be; quick: at
// once, too.
func (s *outage) small(ctx context.Context, title string, number int, quick bool, kinds []smallKind) error {
	var text strings.Builder
	t := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\tanswer\trequests\tconnections\tmedian\tlongest")
	var all verdicts
	again, worst := 0, time.Duration(0)
	for _, kind := range kinds {
		for _, secure := range openDoors {
			c, dials := &client{}, 0
			var took []time.Duration
			for i := range number {
				if c.conn == nil {
					dials++
				}
				q := newCall(openMethods[i%2], secure, kind.path, 1<<10, kind.takes204)
				q.Message.Preview = kind.preview
				s.ask(ctx, c, q)
				all.add(q, kind.status, kind.reasons...)
				took = append(took, q.answered)
			}
			c.close()
			slices.Sort(took)
			half, longest := took[len(took)/2], took[len(took)-1]
			again, worst = again+dials-1, max(worst, half)
			fmt.Fprintf(t, "%s, %s\t%d\t%d\t%d\t%s\t%s\n", kind.name, doorName(secure), kind.status, number, dials, shownFine(half), shownFine(longest))
			name := fmt.Sprintf("%s, %s, %s: ", title, kind.name, doorName(secure))
			s.store(name+"median", half.Seconds()*1000, "ms")
			s.store(name+"longest", longest.Seconds()*1000, "ms")
		}
	}
	t.Flush()
	s.note("%s", strings.TrimRight(text.String(), "\n"))
	s.claimVerdicts(title+": the answers are what has to come, and each 503 has Retry-After", all)
	s.claim(again == 0, "%s: the connections stay usable: %d had to be made again", title, again)
	if quick {
		s.claim(worst < soon, "%s: half of the answers came within %v: %s", title, soon, shownFine(worst))
	}
	return context.Cause(ctx)
}

type smallKind struct {
	name, path string
	takes204   bool
	preview    int64
	status     int
	reasons    []string // for which it passes, none: it does not
}

var (
	noServer    = []string{"no_server"}
	closedKinds = []smallKind{
		{"/closed", "/closed", false, -1, 503, nil},
		{"/closed, Allow: 204", "/closed", true, -1, 503, nil},
		{"/closed, preview", "/closed", false, 512, 503, nil},
	}
	openKinds = []smallKind{
		{"/open", "/open", false, -1, 200, noServer},
		{"/open, Allow: 204", "/open", true, -1, 204, noServer},
		{"/open, preview", "/open", false, 512, 204, noServer},
	}
)

// shownFine prints a time that may be far below a millisecond.
func shownFine(d time.Duration) string {
	if d < time.Millisecond {
		return fmt.Sprintf("%.0f µs", micros(d))
	}
	return shown(d)
}

// nobody is what happens when nobody listens at the servers' addresses.
func (s *outage) nobody(ctx context.Context) error {
	s.section("nobody listens")
	s.killAll()
	if err := s.health(ctx, "down"); err != nil {
		return err
	}
	if err := s.small(ctx, "nobody listens", s.o.requests, true, slices.Concat(closedKinds, openKinds)); err != nil {
		return err
	}
	if err := s.claimMemory(ctx, "small requests"); err != nil {
		return err
	}
	if err := s.longAnswered(ctx); err != nil {
		return err
	}
	s.section("nobody listens: %.0f MB without Allow: 204", float64(s.o.size)/1e6)
	var err error
	everyWay(func(method icap.Method, secure bool) {
		if err == nil {
			err = s.echo(ctx, newCall(method, secure, "/open", s.o.size, false), "no_server")
		}
	})
	if err != nil {
		return err
	}
	return s.slowly(ctx)
}

// longAnswered sends long bodies that are answered before they are in.
func (s *outage) longAnswered(ctx context.Context) error {
	s.section("nobody listens: long bodies with an answer before their end")
	var open, closed []*openCall
	usable := true
	everyWay(func(method icap.Method, secure bool) {
		c := &client{}
		defer c.close()
		q := newCall(method, secure, "/closed", rejectedSize, false)
		s.ask(ctx, c, q)
		closed = append(closed, q)
		usable = usable && q.err == nil && c.conn != nil
		next := newCall(method, secure, "/closed", 1<<10, false)
		s.ask(ctx, c, next)
		usable = usable && next.wrongly(503, nil) == ""

		q = newCall(method, secure, "/open", s.o.size, true)
		s.all(ctx, []*openCall{q})()
		open = append(open, q)
	})
	s.claimAll(fmt.Sprintf("/closed with %.0f MB: 503", rejectedSize/1e6), closed, 503)
	s.claim(usable, "/closed with %.0f MB: the connection takes the next request", rejectedSize/1e6)
	s.claimAll(fmt.Sprintf("/open with %.0f MB and Allow: 204: 204", float64(s.o.size)/1e6), open, 204, "no_server")
	early, longest := int64(0), time.Duration(0)
	for _, q := range append(closed, open...) {
		early, longest = max(early, q.early), max(longest, q.answered)
	}
	s.figure("longest time to these answers", longest.Seconds()*1000, "ms")
	s.claim(early < rejectedSize, "the answers came before the bodies were sent: after %.1f MB at most", megabytes(early))
	return s.claimMemory(ctx, "long bodies with an early answer")
}

// echo sends a request and claims that it comes back.
func (s *outage) echo(ctx context.Context, q *openCall, reasons ...string) error {
	s.all(ctx, []*openCall{q})()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	name := fmt.Sprintf("%v over %s", q.Message.Method, doorName(q.secure))
	if q.Message.Preview >= 0 {
		name += ", after its preview"
	}
	s.claimAll(fmt.Sprintf("%s: %.0f MB came back as they were sent", name, float64(q.Size)/1e6), []*openCall{q}, 200, reasons...)
	s.figure(name+": rate", float64(q.got)/1e6/time.Since(q.began).Seconds(), "MB/s")
	return s.claimMemory(ctx, name)
}

// slowly has four clients at the same time that do not read fast, and servers that come and go meanwhile.
func (s *outage) slowly(ctx context.Context) error {
	s.section("nobody listens: %.0f MB without Allow: 204 to four clients that read %.1f MB/s; servers come back and are killed", float64(s.o.slowSize)/1e6, float64(s.o.slowRate)/1e6)
	var list []*openCall
	everyWay(func(method icap.Method, secure bool) {
		q := newCall(method, secure, "/open", s.o.slowSize, false)
		q.rate = s.o.slowRate
		list = append(list, q)
	})
	began := time.Now()
	wait := s.all(ctx, list)
	err := s.awaitStatus(ctx, readyPatience, "with four requests of clients", func(st *admin.Status) bool {
		n := 0
		for _, ls := range st.Listeners {
			n += ls.Sessions
		}
		return n == len(list)
	})
	if err == nil {
		err = s.startAll(ctx)
	}
	if err == nil {
		err = s.judged(ctx)
	}
	s.killAll()
	if err == nil {
		err = s.health(ctx, "down")
	}
	beside := time.Since(began)
	wait()
	if err != nil {
		return err
	}
	took := time.Since(began)
	s.claim(beside < took, "all of that happened while bodies came back: %s of %s", shown(beside), shown(took))
	s.claimAll("all four came back as they were sent", list, 200, "no_server")
	most := int64(0)
	for _, q := range list {
		most = max(most, q.most)
	}
	s.figure("most that a client was allowed to be ahead of what it read", megabytes(most), "MB")
	return s.claimMemory(ctx, "slow clients")
}

// behindPreview kills servers that have asked for the rest of a request.
func (s *outage) behindPreview(ctx context.Context) error {
	s.section("servers are killed when they have asked for the rest of %.0f MB", float64(s.o.size)/1e6)
	for _, secure := range openDoors {
		for _, method := range openMethods {
			if err := s.startAll(ctx); err != nil {
				return err
			}
			goOn := make(chan struct{})
			q := newCall(method, secure, "/open", s.o.size, false).wishing(wish{what: asked, number: thinking}).stopping(openPreview, goOn)
			q.Message.Preview = openPreview
			go func() {
				select {
				case <-q.continued:
				case <-ctx.Done():
				}
				s.killAll()
				close(goOn)
			}()
			if err := s.echo(ctx, q, whenKilled...); err != nil {
				return err
			}
		}
	}
	return nil
}

// whenKilled are the reasons for which a request passes whose server is killed: it may have been tried on the other one, too, which is not there any more.
var whenKilled = []string{"server_failed", "no_server"}

// partial are requests that servers have parts of when they fail, by what has to come of them.
type partial struct {
	echoed, told, rejected []*openCall // by giving them back, by a 204, and not at all
	all                    []*openCall
}

// partials makes requests within the replay buffer and beyond it, and some with a preview. Their servers think for longer than anybody waits.
func partials(path string, beyond int64, stop func(*openCall, int64)) (p partial) {
	slow := wish{what: late, number: thinking}
	everyWay(func(method icap.Method, secure bool) {
		for _, takes204 := range []bool{true, false} {
			small := newCall(method, secure, path, withinReplay, takes204).wishing(slow)
			stop(small, withinReplay/2)
			large := newCall(method, secure, path, beyond, takes204).wishing(slow)
			stop(large, beyond*3/4)
			if p.all = append(p.all, small, large); takes204 {
				p.told = append(p.told, small, large)
			} else {
				p.echoed, p.rejected = append(p.echoed, small), append(p.rejected, large)
			}
		}
		preview := newCall(method, secure, path, withinReplay, false).wishing(slow)
		preview.Message.Preview = openPreview
		p.all, p.told = append(p.all, preview), append(p.told, preview)
	})
	return p
}

// midRequest kills servers that have parts of requests.
func (s *outage) midRequest(ctx context.Context) error {
	s.section("servers are killed in mid request")
	if err := s.startAll(ctx); err != nil {
		return err
	}
	before, err := s.metrics(ctx)
	if err != nil {
		return err
	}
	bodies := before.sum("body_bytes_total", `direction="request"`)
	goOn := make(chan struct{})
	p := partials("/open", beyondReplay, func(q *openCall, at int64) { q.stopping(at, goOn) })
	for _, q := range p.all {
		if q.goOn != nil {
			bodies += float64(q.stopAt)
		} else {
			bodies += float64(q.Message.Preview)
		}
	}
	wait := s.all(ctx, p.all)
	err = s.awaitInFlight(ctx, len(p.all))
	for err == nil { // until servers have all that was sent, or the gateway what they do not take
		m, merr := s.metrics(ctx)
		if err = errors.Join(merr, pause(ctx, 10*time.Millisecond)); m.sum("body_bytes_total", `direction="request"`) >= bodies {
			break
		}
	}
	s.killAll()
	close(goOn)
	wait()
	if err != nil {
		return err
	}
	s.claimPartials("in mid request", p, whenKilled...)
	return s.claimMemory(ctx, "in mid request")
}

// claimPartials claims what has to come of requests that servers have parts of.
func (s *outage) claimPartials(name string, p partial, reasons ...string) {
	s.claimAll(fmt.Sprintf("%s, Allow: 204 or a preview: 204", name), p.told, 204, reasons...)
	s.claimAll(fmt.Sprintf("%s, within replay_buffer: the message came back", name), p.echoed, 200, reasons...)
	s.claimAll(fmt.Sprintf("%s, beyond replay_buffer: 502", name), p.rejected, 502)
}

// late has servers that do not answer in time.
func (s *outage) late(ctx context.Context) error {
	s.section("servers do not answer within a decision_timeout of %v", decision)
	if err := s.startAll(ctx); err != nil {
		return err
	}
	p := partials("/timed", beyondLate, func(*openCall, int64) {})
	s.all(ctx, p.all)()
	s.claimPartials("late", p, "late")
	soonest, longest := time.Hour, time.Duration(0)
	for _, q := range p.all {
		soonest, longest = min(soonest, q.answered), max(longest, q.answered)
	}
	s.claim(soonest >= decision && longest < decision+decisionSpare, "the answers came after %v to %v: %s to %s", decision, decision+decisionSpare, shown(soonest), shown(longest))
	return s.claimMemory(ctx, "late")
}

// blackHoles makes black holes of the servers, and servers again.
func (s *outage) blackHoles(ctx context.Context) (err error) {
	s.section("black holes")
	var holes []*hole
	defer func() {
		for _, h := range holes {
			h.close()
		}
	}()
	for _, server := range s.servers {
		h := &hole{server: server}
		holes = append(holes, h)
		if err := h.open(); err != nil {
			return err
		}
	}
	if err := s.small(ctx, "black holes, before a check has seen it", 1, false, []smallKind{closedKinds[0], openKinds[0]}); err != nil {
		return err
	}
	if err := s.health(ctx, "down"); err != nil {
		return err
	}
	if err := s.small(ctx, "black holes", s.o.requests, true, slices.Concat(closedKinds, openKinds)); err != nil {
		return err
	}
	if err := s.claimMemory(ctx, "black holes"); err != nil {
		return err
	}
	s.section("the servers are back")
	began := time.Now()
	for _, h := range holes {
		if err := h.undo(ctx); err != nil {
			return err
		}
	}
	if err := s.health(ctx, "up"); err != nil {
		return err
	}
	s.figure("time until all are up", time.Since(began).Seconds(), "s")
	return s.judged(ctx)
}

// account compares what clients saw with what the gateway says.
func (s *outage) account(ctx context.Context) error {
	s.section("accounting")
	m, err := s.metrics(ctx)
	if err != nil {
		return err
	}
	s.stopGateway() // writes the rest of its access log
	lines, err := readAccessLog(s.log, func(*accessLine) bool { return true })
	if err != nil {
		return err
	}
	want := map[string]float64{} // allowed_total, by reason and by
	bad, example := 0, ""
	for _, q := range s.seen {
		list := lines[q.id]
		line := accessLine{}
		if len(list) > 0 {
			line = list[0]
		}
		end := "done"
		switch {
		case q.allowed != "":
			end = "allowed_" + q.allowed
			want[q.allowed+" "+allowedBy(q.status)]++
		case q.status > 204:
			end = line.End // the client can't see why
			if q.path != "/closed" {
				want[line.End+" cannot_allow"]++
			}
		}
		echoed := q.allowed != "" && q.status == 200
		if len(list) != 1 || line.Status != q.status || line.End != end || echoed && (line.In != q.Size || line.Out != q.Size) {
			bad++
			example = fmt.Sprintf(": %v of %d bytes for %s, the client saw %d %s, the log has %+v", q.Message.Method, q.Size, q.path, q.status, q.allowed, list)
		}
	}
	s.claim(bad == 0, "the access log has each of %d requests once, with the status, the reason and the bytes that its client saw: %d are different%s", len(s.seen), bad, example)
	counted := map[string]float64{}
	for name, n := range m {
		if strings.HasPrefix(name, "icapgate_allowed_total{") && n > 0 {
			counted[label(name, "reason")+" "+label(name, "by")] = n
		}
	}
	s.claim(maps.Equal(want, counted), "allowed_total is what the clients saw: %s", cmp.Or(nonzero(counted), "nothing"))
	if !maps.Equal(want, counted) {
		s.note("the clients saw: %s", nonzero(want))
	}
	s.claim(m.sum("panics_total") == 0, "no panic")
	return nil
}

// allowedBy is how allowed_total names what the client sees by a status.
func allowedBy(status int) string {
	if status == 204 {
		return "204"
	}
	return "echo"
}
