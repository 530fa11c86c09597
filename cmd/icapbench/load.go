package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"icapgate/bench"
)

type loadCmd struct {
	URI string `arg:"" help:"ICAP URI of the target."`

	Connections        int           `short:"c" default:"16" help:"Connections, each with one request at a time."`
	Duration           time.Duration `short:"d" help:"Time after which no request begins. Default: 10s, unless --requests is given."`
	Requests           int64         `short:"n" help:"Requests in all."`
	Rate               float64       `short:"r" placeholder:"N" help:"Requests per second, planned at equal distances; latency counts from the planned time. Default: as fast as answers come."`
	NewConnectionEvery int           `name:"new-connection-every" placeholder:"N" help:"Close a connection after N requests; 1: a connection for each request."`

	Method  string        `short:"m" default:"reqmod" enum:"reqmod,respmod,options" help:"reqmod, respmod or options."`
	Size    size          `short:"s" default:"1KiB" help:"Bytes of a body."`
	Chunk   size          `default:"64KiB" help:"Bytes in one chunk at most."`
	Preview preview       `placeholder:"N|none" default:"none" help:"Bytes of preview, or none."`
	Allow   bool          `name:"allow-204" default:"true" negatable:"no-204" help:"Offer Allow: 204; without it a server has to echo. Default: offered."`
	Header  []string      `short:"H" sep:"none" placeholder:"'X: y'" help:"Field of the ICAP head to add or replace. Repeatable."`
	Timeout time.Duration `default:"30s" help:"For a connection, and for every wait for bytes."`

	ServerHeader string `default:"X-Server" placeholder:"NAME" help:"Header of the answers by which servers are told apart."`
	JSON         string `name:"json" placeholder:"FILE" help:"Write the result to FILE as JSON."`
	tlsFlags
}

func (*loadCmd) Help() string {
	return `Without --rate the loop is closed: a connection sends its next request when it has the whole answer to the last one. With it the loop
is open: a slow target does not slow the requests down, and what they wait for a free connection counts. Bodies differ from request to request; one that comes back is compared byte by byte, and the framing is checked to the last byte.

Examples:

    icapbench load icaps://127.0.0.1:11344/reqmod --insecure
    icapbench load icap://127.0.0.1:1344/respmod -m respmod -s 10MB -c 4 -n 100
    icapbench load icaps://gate.example:11344/reqmod --ca ca.pem -c 256 -d 1m --json result.json
    icapbench load icaps://127.0.0.1:11344/reqmod --insecure --new-connection-every 1
    icapbench load icaps://127.0.0.1:11344/reqmod --insecure --rate 2000 -c 64 -d 30s

Exit codes:

    0  every request was answered as it should be
    1  at least one was not
    2  wrong usage
    3  no connection was made`
}

func (c *loadCmd) Run() error {
	target, err := bench.ParseTarget(c.URI)
	if err != nil {
		return usageError(err)
	}
	cfg := bench.LoadConfig{
		Target:       target,
		Size:         int64(c.Size),
		Connections:  c.Connections,
		Requests:     c.Requests,
		Rate:         c.Rate,
		Duration:     c.Duration,
		PerConn:      c.NewConnectionEvery,
		Timeout:      c.Timeout,
		ServerHeader: c.ServerHeader,
		Message:      bench.Message{Preview: c.Preview.or(-1), Chunk: int64(c.Chunk), No204: !c.Allow, Fields: c.Header},
	}
	if cfg.Requests == 0 && cfg.Duration == 0 {
		cfg.Duration = 10 * time.Second
	}
	if cfg.TLS, err = c.options().Config(target); err != nil {
		return usageError(err)
	}
	if cfg.Message.Method, err = bench.MethodOf(c.Method); err != nil {
		return usageError(err)
	}
	var file io.WriteCloser
	if c.JSON != "" { // before the load, so that it is not made in vain
		if file, err = os.Create(c.JSON); err != nil {
			return usageError(err)
		}
		defer file.Close()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process
	defer stop()

	show, finish := progress()
	cfg.Progress = show
	result, err := bench.Load(ctx, cfg)
	finish()
	if err != nil {
		return usageError(err)
	}
	result.Print(os.Stdout)
	if file != nil {
		if err := result.WriteJSON(file); err != nil {
			return fmt.Errorf("cannot write %q: %w", c.JSON, err)
		}
	}
	switch {
	case result.Dials == 0:
		return &exitError{fmt.Errorf("no connection was made to %s", target.Address), exitConnect}
	case result.Failed > 0:
		return fmt.Errorf("%d of %d requests failed", result.Failed, result.Failed+result.Requests)
	}
	return nil
}

// progress returns what shows the figures so far on stderr: a line that renews itself on a terminal, otherwise one every 5 seconds.
func progress() (show func(*bench.Result), finish func()) {
	if info, err := os.Stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		const clearLine = "\r\x1b[K"
		return func(r *bench.Result) { fmt.Fprint(os.Stderr, clearLine, r.Line()) }, func() { fmt.Fprint(os.Stderr, clearLine) }
	}
	calls := 0
	return func(r *bench.Result) {
		if calls++; calls%5 == 0 {
			fmt.Fprintln(os.Stderr, r.Line())
		}
	}, func() {}
}
