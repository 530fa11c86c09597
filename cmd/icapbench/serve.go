package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"icapgate/bench"
	"icapgate/bench/dlpstub"
	"icapgate/icap"
)

type serveCmd struct {
	Listen []string `required:"" placeholder:"ADDRESS" help:"Address to listen on, such as 127.0.0.1:1344. Repeatable: each is a server of its own."`

	Mode           string        `default:"204" enum:"204,echo" help:"204 (echo where the client does not allow 204) or echo."`
	Status         int           `placeholder:"CODE" help:"Answer every REQMOD and RESPMOD with this ICAP status."`
	Latency        time.Duration `help:"Time that passes before an answer starts."`
	Preview        preview       `placeholder:"N|none" default:"none" help:"Preview that OPTIONS asks for."`
	Continue       bool          `help:"Ask for the rest after a preview even if a 204 would do."`
	Early          bool          `help:"Answer before the body has been read."`
	ReadRate       size          `placeholder:"SIZE" help:"Bytes per second that are read from a connection. Default: all that come."`
	CloseAfter     int           `placeholder:"N" help:"Close a connection after N requests."`
	SilentClose    bool          `help:"Do so without Connection: close."`
	IdleTimeout    time.Duration `help:"Close a connection that is idle that long."`
	MaxConnections int           `placeholder:"N" help:"Max-Connections that OPTIONS tells (not enforced)."`
	Methods        []string      `placeholder:"METHOD" default:"reqmod,respmod" help:"Methods that are served."`
	ISTag          string        `name:"istag" default:"dlpstub-1" help:"ISTag, without quotes."`
	OptionsTTL     time.Duration `name:"options-ttl" default:"1h" help:"Options-TTL."`
	TLSCert        string        `name:"tls-cert" placeholder:"FILE" help:"Certificate and key, one combined PEM: serve icaps."`
}

func (*serveCmd) Help() string {
	return `Every answer names its server in X-Server. The first line on stdout says that all servers listen. SIGINT and SIGTERM print what
each server has seen and end the process.

Examples:

    icapbench serve --listen 127.0.0.1:1344
    icapbench serve --listen 127.0.0.1:1345 --listen 127.0.0.1:1346 --mode echo --preview 4096
    icapbench serve --listen 127.0.0.1:11344 --tls-cert server.pem --latency 20ms --close-after 100

Exit codes:

    0  ended by a signal
    1  an address cannot be listened on
    2  wrong usage`
}

func (c *serveCmd) Run() error {
	cfg, err := c.config()
	if err != nil {
		return usageError(err)
	}
	var servers []*dlpstub.Server
	var listeners []net.Listener
	var names []string
	for _, address := range c.Listen {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			return fmt.Errorf("cannot listen: %w", err)
		}
		cfg.Name = ln.Addr().String()
		listeners = append(listeners, ln)
		names = append(names, cfg.Name)
		servers = append(servers, dlpstub.New(cfg))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	failed := make(chan error, len(servers))
	for i, s := range servers {
		go func() { failed <- s.Serve(listeners[i]) }()
	}
	fmt.Println("icapbench ready", strings.Join(names, " "))
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	for i, s := range servers {
		s.Close()
		printStats(names[i], s.Stats())
	}
	return err
}

// config turns the flags into the configuration of every server.
func (c *serveCmd) config() (dlpstub.Config, error) {
	cfg := dlpstub.Config{
		Status:         c.Status,
		Latency:        c.Latency,
		Continue:       c.Continue,
		EarlyAnswer:    c.Early,
		ReadRate:       int64(c.ReadRate),
		CloseAfter:     c.CloseAfter,
		SilentClose:    c.SilentClose,
		IdleTimeout:    c.IdleTimeout,
		MaxConnections: c.MaxConnections,
		ISTag:          c.ISTag,
		OptionsTTL:     c.OptionsTTL,
	}
	if c.Mode == "echo" {
		cfg.Mode = dlpstub.Echo
	}
	if c.Status != 0 && (c.Status < 200 || c.Status > 599 || c.Status == 206) {
		return cfg, fmt.Errorf("bad status %d: want 200 to 599, and not 206", c.Status)
	}
	switch n := c.Preview.or(-1); {
	case n == 0:
		cfg.Preview = dlpstub.PreviewZero
	case n > icap.MaxPreview:
		return cfg, fmt.Errorf("bad preview %d: at most %d", n, icap.MaxPreview)
	case n > 0:
		cfg.Preview = int(n)
	}
	for _, name := range c.Methods {
		m, err := bench.MethodOf(name)
		if err != nil || m == icap.MethodOptions {
			return cfg, fmt.Errorf("bad method %q: want reqmod or respmod", name)
		}
		cfg.Methods = append(cfg.Methods, m)
	}
	if c.TLSCert != "" {
		cert, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSCert)
		if err != nil {
			return cfg, fmt.Errorf("cannot load the certificate and key from %q: %w", c.TLSCert, err)
		}
		cfg.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, DynamicRecordSizingDisabled: true}
	}
	return cfg, nil
}

func printStats(name string, st dlpstub.Stats) {
	fmt.Printf("%s: %d OPTIONS, %d REQMOD, %d RESPMOD, %d other; %d bytes of bodies; %d connections, at most %d at a time\n", name,
		st.Requests[icap.MethodOptions], st.Requests[icap.MethodReqmod], st.Requests[icap.MethodRespmod], st.Requests[icap.MethodOther],
		st.PayloadBytes, st.Accepted, st.PeakOpen)
	if st.LastError != nil {
		fmt.Printf("%s: %d requests refused, %d cut short; last: %v\n", name, st.Refused, st.Truncated, st.LastError)
	}
}
