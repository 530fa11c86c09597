package serve

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"icapgate/bench/dlpstub"
)

const usage = `icapbench serve: GET shows, POST changes. Parameters are those of a URL or a form; without server=NAME a command is for all servers.

GET  /stats                      counters, and the incidents by load run
GET  /servers                    servers, and what was ordered of them
POST /fault?fault=KIND:SHARE     fail from now on, such as reset-body:10% or status:100%:503; none ends it
           &count=N              for the next N requests (refuse, stall: connections)
           &for=TIME             for a time such as 10s
POST /down                       close the port and reset all connections
POST /up                         listen again, on the same port
POST /reset                      reset all connections
POST /istag?tag=TAG              change the ISTag; without tag to the next number
`

// State is a server as GET /servers shows it.
type State struct {
	Name    string     `json:"name"`
	Address string     `json:"address"`
	TLS     bool       `json:"tls"`
	Down    bool       `json:"down"`
	ISTag   string     `json:"istag"`
	Fault   string     `json:"fault"`           // that was ordered, "none" without one
	Count   int        `json:"count,omitempty"` // requests or connections that still get it; 0: any number
	Until   *time.Time `json:"until,omitempty"` // when it ends; absent: not by time
}

// Handler serves the control endpoint. A browser that shows a page of another site cannot command it.
func (c *Cluster) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, usage) })
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		c.Stats().WriteJSON(w)
	})
	mux.HandleFunc("GET /servers", func(w http.ResponseWriter, r *http.Request) { writeStates(w, c.members) })
	mux.HandleFunc("POST /fault", c.command(orderFault))
	mux.HandleFunc("POST /down", c.command(func(r *http.Request) (order, error) {
		return func(m *member) error { m.down(); return nil }, nil
	}))
	mux.HandleFunc("POST /up", c.command(func(r *http.Request) (order, error) { return c.up, nil }))
	mux.HandleFunc("POST /reset", c.command(func(r *http.Request) (order, error) {
		return func(m *member) error { m.stub.ResetConnections(); return nil }, nil
	}))
	mux.HandleFunc("POST /istag", c.command(orderISTag))
	return http.NewCrossOriginProtection().Handler(mux)
}

// order is a command for one server.
type order func(*member) error

// command carries out what parse makes of a request on the servers that it names, and shows them.
func (c *Cluster) command(parse func(*http.Request) (order, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		do, err := parse(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		members := c.members
		if name := r.FormValue("server"); name != "" {
			if members = c.named(name); len(members) == 0 {
				http.Error(w, fmt.Sprintf("no server has the name or address %q; GET /servers lists them", name), http.StatusNotFound)
				return
			}
		}
		for _, m := range members {
			if err := do(m); err != nil {
				http.Error(w, m.name+": "+err.Error(), http.StatusInternalServerError)
				return
			}
		}
		writeStates(w, members)
	}
}

func (c *Cluster) named(name string) []*member {
	for _, m := range c.members {
		if m.name == name || m.address == name {
			return []*member{m}
		}
	}
	return nil
}

func orderFault(r *http.Request) (order, error) {
	var f FaultSpec
	if err := f.UnmarshalText([]byte(r.FormValue("fault"))); err != nil {
		return nil, fmt.Errorf("fault: %w", err)
	}
	var count int
	var until time.Time
	if text := r.FormValue("count"); text != "" {
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("count: %q is no number of requests, allowed: 1 and more", text)
		}
		count = int(n)
	}
	if text := r.FormValue("for"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			return nil, fmt.Errorf("for: %q is no time, allowed: such as 10s", text)
		}
		until = time.Now().Add(d)
	}
	return func(m *member) error { m.stub.Inject(dlpstub.Fault(f), count, until); return nil }, nil
}

func orderISTag(r *http.Request) (order, error) {
	tag := r.FormValue("tag")
	if !isTag(tag) {
		return nil, fmt.Errorf("tag: %q is none, %s", tag, wantedTag)
	}
	return func(m *member) error { m.stub.ChangeISTag(tag); return nil }, nil
}

func writeStates(w http.ResponseWriter, members []*member) {
	list := []State{}
	for _, m := range members {
		f, count, until := m.stub.Injected()
		s := State{Name: m.name, Address: m.address, TLS: m.secure, Down: m.isDown(), ISTag: m.stub.ISTag(), Fault: FaultSpec(f).String(), Count: count}
		if !until.IsZero() {
			s.Until = &until
		}
		list = append(list, s)
	}
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	e.Encode(list)
}
