package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"icapgate/bench/dlpstub"
	"icapgate/bench/process"
)

// serveArg makes this program a fake DLP server in place of a trial.
const serveArg = "serve"

// serverConfig is how a fake DLP server behaves: see dlpstub.Config.
type serverConfig struct {
	Address        string // host:port; "": a free port of a loopback address of its own, which it keeps
	Echo           bool
	Status         int
	Latency        time.Duration
	Slots          int // requests in service at a time; the others wait. 0: all that come
	Continue       bool
	EarlyAnswer    bool
	CloseAfter     int
	SilentClose    bool
	IdleTimeout    time.Duration
	MaxConnections int
	ReadRate       int64
	PEM            string // file with its key and certificate; "": plain ICAP
	Record         bool   // its requests, for records
	Obey           bool   // what requests wish in X-Wish: see wish

	Within []string `json:"-"` // words before its command line: "ip", "netns", "exec", NAME
}

func (c *serverConfig) stub(name string) dlpstub.Config {
	cfg := dlpstub.Config{
		Name: name, Status: c.Status, Latency: c.Latency, Continue: c.Continue, EarlyAnswer: c.EarlyAnswer, CloseAfter: c.CloseAfter,
		SilentClose: c.SilentClose, IdleTimeout: c.IdleTimeout, MaxConnections: c.MaxConnections, ReadRate: c.ReadRate, Slots: c.Slots, Queue: line(c.Slots),
	}
	if c.Echo {
		cfg.Mode = dlpstub.Echo
	}
	return cfg
}

// server is a fake DLP server, a process of its own that can be ended and started again at its address.
type server struct {
	name    string
	address string // host:port
	rig     *rig
	config  serverConfig
	process *process.Process // nil: not running
}

// startServer starts a fake DLP server and waits until it listens.
func (r *rig) startServer(ctx context.Context, c serverConfig) (*server, error) {
	s := &server{name: fmt.Sprintf("server%d", len(r.servers)), address: c.Address, rig: r, config: c}
	if s.address == "" {
		// An address of its own, because a connection of the gateway's may take its port while it is down.
		s.address = fmt.Sprintf("127.0.0.%d:0", 11+len(r.servers))
	}
	r.servers = append(r.servers, s)
	return s, s.start(ctx)
}

// startServers starts n fake DLP servers that behave alike.
func (r *rig) startServers(ctx context.Context, n int, c serverConfig) (list []*server, err error) {
	for range n {
		s, err := r.startServer(ctx, c)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

// start starts a server that does not run, at the address where it was before.
func (s *server) start(ctx context.Context) (err error) {
	c := s.config
	c.Address = s.address
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	command := append(append([]string{}, c.Within...), s.rig.self, serveArg, s.name, string(text))
	if s.process, err = process.Start(s.rig.dir, s.name, "/usr/bin/env", command...); err != nil {
		return err
	}
	s.address, err = s.process.AwaitLine(ctx, fmt.Sprintf("%d ready ", s.process.PID()))
	return err
}

// kill ends the server as a crash does: SIGKILL.
func (s *server) kill() {
	if s.process != nil {
		s.process.Kill()
		s.process = nil
	}
}

// stop ends the server.
func (s *server) stop() {
	if s.process != nil {
		s.process.Stop()
		s.process = nil
	}
}

// freeze stops the server's process with SIGSTOP, thaw lets it go on.
func (s *server) freeze() { s.process.Signal(syscall.SIGSTOP) }
func (s *server) thaw()   { s.process.Signal(syscall.SIGCONT) }

// serveStub is a fake DLP server until a signal ends it. Its arguments are its name and its serverConfig.
func serveStub(args []string, out, complaints io.Writer) int {
	if len(args) != 2 {
		fmt.Fprintln(complaints, "trial: serve is what trials start their servers with")
		return exitUsage
	}
	var c serverConfig
	if err := json.Unmarshal([]byte(args[1]), &c); err != nil {
		fmt.Fprintf(complaints, "trial: serve: %v\n", err)
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ln, err := net.Listen("tcp", c.Address)
	if err != nil {
		fmt.Fprintf(complaints, "trial: serve: %v\n", err)
		return exitFailure
	}
	stub := c.stub(args[0])
	if c.PEM != "" {
		cert, err := tls.LoadX509KeyPair(c.PEM, c.PEM)
		if err != nil {
			fmt.Fprintf(complaints, "trial: serve: %v\n", err)
			return exitFailure
		}
		stub.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, DynamicRecordSizingDisabled: true}
	}
	if c.Obey {
		stub.Treat = obey(args[0])
	}
	if c.Record {
		file, err := os.OpenFile(recordFile(args[0]), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			fmt.Fprintf(complaints, "trial: serve: %v\n", err)
			return exitFailure
		}
		defer file.Close()
		stub.Hook = recorder(file)
	}
	s := dlpstub.New(stub)
	go s.Serve(ln)
	fmt.Fprintf(out, "%d ready %s\n", syscall.Getpid(), ln.Addr())
	<-ctx.Done()
	s.Close()
	return exitOK
}
