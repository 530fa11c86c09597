package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"icapgate/gateway/admin"
)

// metrics are the values of the gateway's series, by name with labels as it prints them.
type metrics map[string]float64

// sum adds up the series of a name that have all the labels, which are given as label="value". The prefix icapgate_ is left out.
func (m metrics) sum(name string, labels ...string) (sum float64) {
series:
	for series, value := range m {
		base, list, _ := strings.Cut(series, "{")
		if base != name && base != "icapgate_"+name {
			continue
		}
		for _, l := range labels {
			if !strings.Contains("{"+list, "{"+l) && !strings.Contains(list, ","+l) {
				continue series
			}
		}
		sum += value
	}
	return sum
}

// by adds up the series of a name by the value of one label.
func (m metrics) by(name, label string) map[string]float64 {
	sums := map[string]float64{}
	for series, value := range m {
		base, list, _ := strings.Cut(series, "{")
		if base != "icapgate_"+name {
			continue
		}
		if _, rest, ok := strings.Cut(","+list, ","+label+`="`); ok {
			word, _, _ := strings.Cut(rest, `"`)
			sums[word] += value
		}
	}
	return sums
}

// usage is what the gateway uses at one moment.
type usage struct {
	RSS, Peak  int64 // bytes
	FDs        int
	Goroutines int
	Sessions   int
	InFlight   int
}

func (u usage) String() string {
	return fmt.Sprintf("%.1f MB (peak %.1f), %d descriptors, %d goroutines, %d sessions, %d in flight",
		megabytes(u.RSS), megabytes(u.Peak), u.FDs, u.Goroutines, u.Sessions, u.InFlight)
}

func megabytes(n int64) float64 { return float64(n) / 1e6 }

// usage looks at the gateway's process and metrics.
func (r *rig) usage(ctx context.Context) (u usage, err error) {
	m, err := r.metrics(ctx)
	if err != nil {
		return u, err
	}
	u.Goroutines = int(m.sum("go_goroutines"))
	u.Sessions, u.InFlight = int(m.sum("sessions")), int(m.sum("server_in_flight"))
	if u.RSS, err = r.gateway.RSS(); err != nil {
		return u, err
	}
	if u.Peak, err = r.gateway.PeakRSS(); err != nil {
		return u, err
	}
	u.FDs, err = r.gateway.FDs()
	return u, err
}

// settled waits until nothing runs and no connection is left, and tells what the gateway uses then.
func (r *rig) settled(ctx context.Context) (usage, error) {
	err := r.awaitStatus(ctx, time.Minute, "that has come to rest", func(st *admin.Status) bool {
		left := 0
		for _, ls := range st.Listeners {
			left += ls.Sessions
		}
		for _, p := range st.Pools {
			for _, server := range p.Servers {
				left += server.InFlight + server.Connections
			}
		}
		return left == 0
	})
	if err != nil {
		return usage{}, err
	}
	return r.usage(ctx)
}

// spare is how many more descriptors or goroutines may be there at rest: what loops keep for reuse, a check that runs.
const spare = 8

// claimRest claims that the gateway, at rest, has no more than before.
func (r *rig) claimRest(before, after usage) {
	r.claim(after.FDs <= before.FDs+spare, "descriptors at rest: %d, before %d", after.FDs, before.FDs)
	r.claim(after.Goroutines <= before.Goroutines+spare, "goroutines at rest: %d, before %d", after.Goroutines, before.Goroutines)
}

// metrics asks the gateway for its metrics.
func (r *rig) metrics(ctx context.Context) (metrics, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/metrics", nil)
	if err != nil {
		return nil, err
	}
	resp, err := r.web.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	m := metrics{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		line := lines.Text()
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || line[0] == '#' {
			continue
		}
		value, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("strange metric %q", line)
		}
		m[line[:at]] = value
	}
	return m, lines.Err()
}

// socketClient makes an HTTP client whose every request goes to a socket.
func socketClient(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // descriptors of the gateway are counted
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}
}
