package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
)

// ErrNotFound is wrapped by a Gateway's errors about a pool or server that does not exist.
var ErrNotFound = errors.New("not found")

// Gateway is what the admin endpoint shows and commands. All methods may be called by many goroutines at once.
type Gateway interface {
	Status() Status
	// Ready says why the gateway takes no requests (or cannot serve those for a pool, if one is named), nil if it does.
	Ready(pool string) error
	WriteMetrics(w io.Writer)
	Reload() error
	// SetAdmin sets the admin state of a server: ready, drain or maintenance.
	SetAdmin(pool, server, state string) error
	SetWeight(pool, server string, weight int) error
}

// Options say what a handler serves to whom.
type Options struct {
	ReadOnly  bool // /metrics, /healthz and /readyz only
	CheckHost bool // refuse requests for a host name other than localhost: for addresses on loopback
}

const maxBody = 16 << 10 // bytes of a command

// handler answers requests that the guard has let through.
type handler struct {
	gateway Gateway
}

// NewHandler returns the handler of the admin address or, if o.ReadOnly, of the metrics address.
func NewHandler(g Gateway, o Options) http.Handler {
	h := &handler{gateway: g}
	mux := http.NewServeMux() // answers 405 with Allow by itself
	mux.HandleFunc("GET /metrics", h.metrics)
	mux.HandleFunc("GET /healthz", h.healthz)
	mux.HandleFunc("GET /readyz", h.readyz)
	if !o.ReadOnly {
		mux.HandleFunc("GET /status", h.status)
		mux.HandleFunc("GET /{$}", h.page)
		mux.HandleFunc("POST /api/reload", h.reload)
		mux.HandleFunc("POST /api/drain", h.setAdmin("drain"))
		mux.HandleFunc("POST /api/ready", h.setAdmin("ready"))
		mux.HandleFunc("POST /api/maintenance", h.setAdmin("maintenance"))
		mux.HandleFunc("POST /api/weight", h.setWeight)
	}
	return guard(mux, o.CheckHost)
}

func (h *handler) metrics(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	h.gateway.WriteMetrics(w)
}

func (h *handler) healthz(w http.ResponseWriter, r *http.Request) {
	io.WriteString(w, "ok\n")
}

func (h *handler) readyz(w http.ResponseWriter, r *http.Request) {
	err := h.gateway.Ready(r.URL.Query().Get("pool"))
	switch {
	case err == nil:
		io.WriteString(w, "ready\n")
	case errors.Is(err, ErrNotFound):
		http.Error(w, err.Error(), http.StatusNotFound)
	default:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
}

func (h *handler) status(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, h.gateway.Status().listed())
}

func (h *handler) reload(w http.ResponseWriter, r *http.Request) {
	writeResult(w, h.gateway.Reload())
}

// command is the parameters of a POST.
type command struct {
	Pool   string `json:"pool"`   // may be left out if one pool only has the server
	Server string `json:"server"` // address as in /status
	Weight *int   `json:"weight"`
}

func (h *handler) setAdmin(state string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		c, err := h.readCommand(w, r)
		if err == nil {
			err = h.gateway.SetAdmin(c.Pool, c.Server, state)
		}
		writeResult(w, err)
	}
}

func (h *handler) setWeight(w http.ResponseWriter, r *http.Request) {
	c, err := h.readCommand(w, r)
	switch {
	case err != nil:
	case c.Weight == nil:
		err = badCommand("weight is missing: give a number, 0 for no new requests")
	case *c.Weight < 0:
		err = badCommand(fmt.Sprintf("weight %d is below 0", *c.Weight))
	default:
		err = h.gateway.SetWeight(c.Pool, c.Server, *c.Weight)
	}
	writeResult(w, err)
}

// readCommand reads the parameters of a command about one server and finds the server's pool if none is named.
func (h *handler) readCommand(w http.ResponseWriter, r *http.Request) (command, error) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	c, err := parseCommand(r)
	if err != nil {
		return command{}, err
	}
	if c.Server == "" {
		return command{}, badCommand("server is missing: give its address as /status shows it")
	}
	if c.Pool == "" {
		c.Pool, err = poolOf(h.gateway.Status(), c.Server)
	}
	return c, err
}

func parseCommand(r *http.Request) (c command, err error) {
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch kind {
	case "application/json":
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		if err := d.Decode(&c); err != nil {
			return c, badBody(err)
		}
		if _, err := d.Token(); err != io.EOF {
			return c, badCommand("more than one JSON value")
		}
		return c, nil
	case "application/x-www-form-urlencoded", "":
		if err := r.ParseForm(); err != nil {
			return c, badBody(err)
		}
		c.Pool, c.Server = r.Form.Get("pool"), r.Form.Get("server")
		if text := r.Form.Get("weight"); text != "" {
			weight, err := strconv.Atoi(text)
			if err != nil {
				return c, badCommand(fmt.Sprintf("weight %q is not a number", text))
			}
			c.Weight = &weight
		}
		return c, nil
	}
	return c, &commandError{http.StatusUnsupportedMediaType, fmt.Sprintf("content type %q: send application/json or a form", kind)}
}

func poolOf(s Status, server string) (string, error) {
	var pools []string
	for _, p := range s.Pools {
		for _, srv := range p.Servers {
			if srv.Address == server {
				pools = append(pools, p.Name)
			}
		}
	}
	switch len(pools) {
	case 1:
		return pools[0], nil
	case 0:
		return "", fmt.Errorf("no pool has a server %q: %w", server, ErrNotFound)
	}
	return "", badCommand(fmt.Sprintf("server %q is in pools %s: name one with pool", server, strings.Join(pools, ", ")))
}

// commandError is a fault of the request, with the HTTP status for it.
type commandError struct {
	status int
	msg    string
}

func (e *commandError) Error() string { return e.msg }

func badCommand(msg string) error { return &commandError{http.StatusBadRequest, msg} }

func badBody(err error) error {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return &commandError{http.StatusRequestEntityTooLarge, fmt.Sprintf("command is larger than %d bytes", tooLarge.Limit)}
	}
	return badCommand("cannot read the command: " + err.Error())
}

// result is the answer to a command.
type result struct {
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
}

// writeResult answers a command. What the gateway itself refuses (a faulty configuration, say) is 422.
func writeResult(w http.ResponseWriter, err error) {
	if err == nil {
		writeJSON(w, http.StatusOK, result{OK: true})
		return
	}
	status := http.StatusUnprocessableEntity
	var fault *commandError
	switch {
	case errors.As(err, &fault):
		status = fault.status
	case errors.Is(err, ErrNotFound):
		status = http.StatusNotFound
	}
	writeJSON(w, status, result{Error: err.Error()})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.Encode(v) // an error here is the client's: it has gone
}
