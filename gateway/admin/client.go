package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

const (
	clientTimeout = time.Minute // of a command; a reload may have to look up names
	maxAnswer     = 16 << 20    // bytes
)

// Client talks to the admin endpoint of a running gateway.
type Client struct {
	address string // as the user knows it, for errors
	base    string // URL without path
	http    *http.Client
}

// NewClient makes a client for http://HOST:PORT, unix:PATH, or HOST:PORT as the configuration has it. It does not connect yet.
func NewClient(address string) (*Client, error) {
	transport := &http.Transport{DisableKeepAlives: true} // no proxy: the endpoint is near
	c := &Client{address: address, http: &http.Client{Transport: transport, Timeout: clientTimeout}}
	path, unix := strings.CutPrefix(address, unixPrefix)
	switch {
	case unix && path != "":
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
		address = "http://localhost"
	case !unix && !strings.Contains(address, "://"):
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, fmt.Errorf("admin address %q is not of the form http://HOST:PORT, HOST:PORT or unix:PATH", c.address)
	}
	c.base = u.Scheme + "://" + reachable(u.Host)
	return c, nil
}

// reachable turns an address to listen on into one to connect to: every address of the host means loopback here.
func reachable(hostPort string) string {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return hostPort
	}
	addr, err := netip.ParseAddr(host)
	switch {
	case host == "", err == nil && addr == netip.IPv4Unspecified():
		host = "127.0.0.1"
	case err == nil && addr == netip.IPv6Unspecified():
		host = "::1"
	}
	return net.JoinHostPort(host, port)
}

// Status returns everything known of the gateway.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.do(ctx, http.MethodGet, "/status", nil, &s)
	return s, err
}

// Reload makes the gateway read its configuration again.
func (c *Client) Reload(ctx context.Context) error { return c.command(ctx, "reload", command{}) }

// Drain gives a server no new requests. For this and the other commands, pool may be empty if one pool only has the server.
func (c *Client) Drain(ctx context.Context, pool, server string) error {
	return c.command(ctx, "drain", command{Pool: pool, Server: server})
}

// Ready undoes Drain and Maintenance.
func (c *Client) Ready(ctx context.Context, pool, server string) error {
	return c.command(ctx, "ready", command{Pool: pool, Server: server})
}

// Maintenance is Drain without health checks.
func (c *Client) Maintenance(ctx context.Context, pool, server string) error {
	return c.command(ctx, "maintenance", command{Pool: pool, Server: server})
}

// Weight sets a server's weight; 0: no new requests.
func (c *Client) Weight(ctx context.Context, pool, server string, weight int) error {
	return c.command(ctx, "weight", command{Pool: pool, Server: server, Weight: &weight})
}

func (c *Client) command(ctx context.Context, name string, params command) error {
	body, err := json.Marshal(params)
	if err != nil {
		return err
	}
	var r result
	return c.do(ctx, http.MethodPost, "/api/"+name, body, &r)
}

// do makes one request and decodes the answer, which is JSON whether it is a success or not.
func (c *Client) do(ctx context.Context, method, path string, body []byte, answer any) error {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.explain(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return c.explain(err)
	}
	if resp.StatusCode != http.StatusOK {
		var r result
		if json.Unmarshal(text, &r) == nil && r.Error != "" {
			return errors.New(r.Error)
		}
		return c.notAdmin(fmt.Sprintf("%s %s: %s", method, path, resp.Status))
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return c.notAdmin(fmt.Sprintf("%s %s: the answer is not JSON", method, path))
	}
	return nil
}

func (c *Client) notAdmin(what string) error {
	return fmt.Errorf("%s answers, but not as the admin endpoint of icapgate (%s): give the address in admin.address of its configuration with --admin", c.address, what)
}

// explain says what to do when the endpoint cannot be reached.
func (c *Client) explain(err error) error {
	var urlError *url.Error
	if errors.As(err, &urlError) {
		err = urlError.Err // without the URL, which is not what the user gave
	}
	advice := ""
	var timeout net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, fs.ErrPermission):
		advice = "run the command as the user of icapgate or a member of its group"
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		advice = "is icapgate running, and is this the address in admin.address of its configuration? If not, give --admin URL or --admin unix:PATH"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		advice = "something listens there and does not answer: look at the log of icapgate"
	default:
		advice = "give the address in admin.address of the configuration with --admin URL or --admin unix:PATH"
	}
	return fmt.Errorf("cannot reach icapgate at %s: %w: %s", c.address, err, advice)
}
