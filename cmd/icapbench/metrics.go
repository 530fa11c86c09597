package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"icapgate/bench/result"
)

// live serves the figures of a run while it goes on, as they were at the last full second.
type live struct {
	server *http.Server // nil: nobody wants them
	last   atomic.Pointer[result.Result]
}

// serveMetrics serves /metrics at an address; "" serves nothing.
func serveMetrics(address string) (*live, error) {
	l := &live{}
	if address == "" {
		return l, nil
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot serve metrics: %w", err)
	}
	fmt.Fprintf(os.Stderr, "metrics at http://%v/metrics\n", ln.Addr())
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		l.write(w)
	})
	l.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := l.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintf(os.Stderr, "icapbench: metrics: %v\n", err)
		}
	}()
	return l, nil
}

func (l *live) set(r *result.Result) { l.last.Store(r) }

func (l *live) close() {
	if l.server != nil {
		l.server.Close()
	}
}

// bounds are the upper ends of the buckets, in seconds.
var bounds = []float64{
	0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60,
}

// escaped is a value of a label as Prometheus reads it, which knows no other escapes.
var escaped = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// write writes the figures in the text format of Prometheus, with base units and counters as the gateway has them.
func (l *live) write(w io.Writer) {
	r := l.last.Load()
	if r == nil {
		r = result.New()
	}
	type series struct {
		labels string
		value  float64
	}
	family := func(name, kind, help string, list ...series) {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
		for _, s := range list {
			fmt.Fprintf(w, "%s%s %v\n", name, s.labels, s.value)
		}
	}
	var statuses, failures, servers []series
	for _, code := range slices.Sorted(maps.Keys(r.Statuses)) {
		statuses = append(statuses, series{fmt.Sprintf("{code=%q}", strconv.Itoa(code)), float64(r.Statuses[code])})
	}
	for _, kind := range slices.Sorted(maps.Keys(r.Errors)) {
		failures = append(failures, series{fmt.Sprintf("{kind=%q}", string(kind)), float64(r.Errors[kind].Count)})
	}
	for _, name := range slices.Sorted(maps.Keys(r.Servers)) {
		servers = append(servers, series{`{server="` + escaped.Replace(name) + `"}`, float64(r.Servers[name])})
	}
	family("icapbench_requests_total", "counter", "Requests that were answered as they should be, by ICAP status.", statuses...)
	family("icapbench_errors_total", "counter", "Requests that were not, by kind of error.", failures...)
	family("icapbench_server_requests_total", "counter", "Answered requests by the server that named itself.", servers...)
	family("icapbench_connections_total", "counter", "Connections made.", series{"", float64(r.Dials)})
	family("icapbench_body_bytes_total", "counter", "Bytes of bodies, of answered requests.",
		series{`{direction="request"}`, float64(r.BytesSent)}, series{`{direction="response"}`, float64(r.BytesReceived)})
	family("icapbench_late_requests_total", "counter", "Requests that began late, because no connection was free or because of the load generator.",
		series{`{reason="no_connection"}`, float64(r.Late.Waited)}, series{`{reason="generator"}`, float64(r.Late.Generator)})
	histogram(w, "icapbench_request_duration_seconds", "From the planned begin of a request, in a closed loop from its begin, to the end of its answer.", r.Latency)
	histogram(w, "icapbench_service_duration_seconds", "From the first byte of a request to the end of its answer.", r.Service)
	histogram(w, "icapbench_first_byte_duration_seconds", "From the first byte of a request to the head of its answer.", r.Phases.FirstByte)
	histogram(w, "icapbench_connect_duration_seconds", "To connect.", r.Phases.Connect)
	histogram(w, "icapbench_handshake_duration_seconds", "TLS handshakes.", r.Phases.Handshake)
	metrics.WriteProcessMetrics(w)
}

func histogram(w io.Writer, name, help string, h result.Histogram) {
	fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s histogram\n", name, help, name)
	bars, count := h.Bars(), int64(0)
	for _, bound := range bounds {
		for len(bars) > 0 && bars[0].To.Seconds() <= bound {
			count += bars[0].Count
			bars = bars[1:]
		}
		fmt.Fprintf(w, "%s_bucket{le=%q} %d\n", name, strconv.FormatFloat(bound, 'g', -1, 64), count)
	}
	fmt.Fprintf(w, "%s_bucket{le=\"+Inf\"} %d\n%s_sum %v\n%s_count %d\n", name, h.Count(), name, h.Mean().Seconds()*float64(h.Count()), name, h.Count())
}
