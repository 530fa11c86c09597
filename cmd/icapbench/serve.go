package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"icapgate/bench/serve"
)

type serveCmd struct {
	Listen         []string `placeholder:"ADDRESS" help:"Address to listen on, such as 127.0.0.1:1344. Repeatable: each is a server of its own."`
	Config         string   `placeholder:"FILE" help:"YAML file with servers, in place of --listen. The other flags override it."`
	Control        string   `placeholder:"ADDRESS" help:"Address for HTTP, such as 127.0.0.1:9345: counters, and faults on command. GET / there lists what it can do."`
	JSON           string   `name:"json" placeholder:"FILE|-" help:"At the end write the counters as JSON to this file, or to stdout in place of the text."`
	IncidentHeader string   `placeholder:"NAME" help:"Header with the id of an incident. Default: X-Incident-ID."`

	serve.Settings
}

func (*serveCmd) Help() string {
	return `Every answer names its server in X-Server. The first line on stdout says that all servers listen. SIGINT and SIGTERM print what
the servers have got and end the process. docs/BENCH.md describes the servers, the file and the control address.

Examples:

    icapbench serve --listen 127.0.0.1:1344
    icapbench serve --listen 127.0.0.1:1345 --listen 127.0.0.1:1346 --mode echo --preview 4096
    icapbench serve --listen 127.0.0.1:11344 --tls --tls-ca-out ca.pem --latency-lognormal 20ms:0.5 --close-after 100
    icapbench serve --listen 127.0.0.1:1344 --slots 4 --latency 20ms --queue all        (a limit of 200 requests per second)
    icapbench serve --listen 127.0.0.1:1344 --match SECRET --profile symantec
    icapbench serve --listen 127.0.0.1:1344 --fault reset-answer:1% --control 127.0.0.1:9345
    icapbench serve --config configs/icapbench-serve.yaml --json counters.json

Exit codes:

    0  ended by a signal
    1  an address cannot be listened on, the counters cannot be written
    2  wrong usage`
}

func (c *serveCmd) Run() error {
	cfg, err := c.config()
	if err != nil {
		return usageError(err)
	}
	if c.JSON != "-" {
		if err := writable(c.JSON); err != nil { // and not at the end, when the counters would be gone
			return usageError(err)
		}
	}
	cluster, err := serve.Start(cfg)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ready := cluster.Addresses()
	if address := cluster.ControlAddress(); address != "" {
		ready = append(ready, "control="+address)
	}
	fmt.Println("icapbench ready", strings.Join(ready, " "))
	select {
	case <-ctx.Done():
	case err = <-cluster.Failed():
	}
	cluster.Close()
	if failed := c.write(cluster.Stats()); err == nil {
		err = failed
	}
	return err
}

func (c *serveCmd) config() (cfg *serve.Config, err error) {
	switch {
	case c.Config != "" && len(c.Listen) > 0:
		return nil, fmt.Errorf("--listen and --config are given, allowed: one of them")
	case c.Config != "":
		cfg, err = serve.Load(c.Config, c.Settings)
	case len(c.Listen) > 0:
		cfg, err = serve.Listening(c.Listen, c.Settings)
	default:
		return nil, fmt.Errorf("nothing to listen on: use --listen ADDRESS or --config FILE")
	}
	if err != nil {
		return nil, err
	}
	if c.Control != "" {
		cfg.Control = c.Control
	}
	if c.IncidentHeader != "" {
		cfg.IncidentHeader = c.IncidentHeader
	}
	return cfg, nil
}

// write writes the counters to where they are wanted.
func (c *serveCmd) write(s *serve.Stats) error {
	if c.JSON != "-" {
		s.WriteText(os.Stdout)
	}
	switch c.JSON {
	case "":
		return nil
	case "-":
		return writeJSON(os.Stdout, s)
	}
	f, err := os.Create(c.JSON)
	if err != nil {
		return fmt.Errorf("cannot write the counters: %w", err)
	}
	defer f.Close()
	if err := writeJSON(f, s); err != nil {
		return err
	}
	return f.Close()
}

func writeJSON(w io.Writer, s *serve.Stats) error {
	b := bufio.NewWriter(w)
	if err := s.WriteJSON(b); err != nil {
		return fmt.Errorf("cannot write the counters: %w", err)
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("cannot write the counters: %w", err)
	}
	return nil
}
