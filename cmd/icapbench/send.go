package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"icapgate/bench"
)

type sendCmd struct {
	Args []string `arg:"" name:"[FILE] URI" help:"File to send and ICAP URI to send it to. Without FILE the message has no body."`

	As       string        `default:"plain" enum:"zscaler,squid,proxysg,plain" help:"Client to imitate: zscaler (POST with multipart/form-data, X- fields), squid (preview, trailers), proxysg (X- fields) or plain."`
	Method   string        `short:"m" default:"reqmod" enum:"reqmod,respmod,options" help:"reqmod, respmod or options."`
	Preview  preview       `placeholder:"N|none" help:"Bytes of preview, or none. Default: 1024 as squid, else none."`
	No204    bool          `name:"no-204" help:"Do not offer Allow: 204."`
	Allow206 bool          `name:"allow-206" help:"Offer Allow: 206; a server may then answer with what it has changed and point to the rest of the original."`
	Chunk    size          `default:"64KiB" help:"Bytes in one chunk at most."`
	Header   []string      `short:"H" sep:"none" placeholder:"'X: y'" help:"Field of the ICAP head to add or replace; 'X:' removes it. Repeatable."`
	User     string        `placeholder:"DOMAIN/USER" default:"EXAMPLE/alice" help:"User in X-Authenticated-User (as zscaler or proxysg)."`
	Output   string        `short:"o" placeholder:"FILE" help:"Write the body that comes back to FILE."`
	Timeout  time.Duration `default:"30s" help:"For the connection, and for every wait for bytes."`
	tlsFlags
}

func (*sendCmd) Help() string {
	return `Examples:

    icapbench send report.pdf icaps://127.0.0.1:11344/reqmod --insecure
    icapbench send report.pdf icaps://gate.example:11344/reqmod --as zscaler --ca ca.pem
    icapbench send page.html icap://127.0.0.1:1344/respmod -m respmod --as squid -o adapted.html
    icapbench send icap://127.0.0.1:1344/reqmod -m options

Exit codes:

    0  a valid answer with an ICAP status below 400
    1  the output could not be written
    2  wrong usage, or a file that cannot be read
    3  no connection, or no TLS
    4  the connection ended or stood still before the answer was complete
    5  the answer is malformed, or was not allowed by the request
    6  an ICAP status of 400 and more`
}

func (c *sendCmd) Run() error {
	if len(c.Args) > 2 {
		return usageError(errors.New("send takes one FILE and one URI"))
	}
	target, err := bench.ParseTarget(c.Args[len(c.Args)-1])
	if err != nil {
		return usageError(err)
	}
	cfg := bench.SendConfig{Target: target, Output: c.Output, Timeout: c.Timeout}
	if len(c.Args) == 2 {
		cfg.File = c.Args[0]
	}
	if cfg.TLS, err = c.options().Config(target); err != nil {
		return usageError(err)
	}
	profile := bench.Profile(c.As)
	cfg.Message = bench.Message{
		Profile:  profile,
		Preview:  c.Preview.or(profile.DefaultPreview()),
		Chunk:    int64(c.Chunk),
		No204:    c.No204,
		Allow206: c.Allow206,
		User:     c.User,
		Fields:   c.Header,
	}
	if cfg.Message.Method, err = bench.MethodOf(c.Method); err != nil {
		return usageError(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	status, err := bench.Send(ctx, os.Stdout, cfg)
	if err == nil && status >= 400 {
		err = &bench.Error{Kind: bench.Status, Err: fmt.Errorf("the answer is %d", status)}
	}
	return err
}
