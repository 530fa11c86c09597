package gateway

import (
	"bytes"
	"fmt"
	"net/url"
	"reflect"
	"regexp"
	"strings"
	"time"

	"icapgate/configs"
	"icapgate/health"
)

// newProbe builds the probe of a pool; nil: it has none. One that is as that of an earlier table is the same object: what it has found out holds.
func newProbe(p, was *poolTable) (*health.Probe, error) {
	cfg := p.cfg.Health.Probe
	if cfg == nil {
		return nil, nil
	}
	content, err := cfg.Content()
	if err != nil {
		return nil, fmt.Errorf("pool %s: probe: %w", p.name, err)
	}
	head, body := encapsulate(cfg, p.name, content)
	if was != nil && was.probe != nil && reflect.DeepEqual(was.cfg.Health.Probe, cfg) && bytes.Equal(was.probe.Body, body) {
		return was.probe, nil
	}
	fields := fmt.Sprintf("%s: %s\r\n", health.ProbeHeader, p.name)
	for _, f := range cfg.Fields {
		fields += fmt.Sprintf("%s: %s\r\n", f.Name, f.Value)
	}
	probe := &health.Probe{
		Path: cfg.Path, Fields: fields, HTTP: head, Body: body,
		Interval: time.Duration(cfg.Interval), Timeout: time.Duration(cfg.Timeout), Rise: cfg.Rise, Fall: cfg.Fall,
		Status: cfg.Expect.Status,
	}
	if cfg.Expect.Header != "" {
		probe.Header = regexp.MustCompile("(?i)" + cfg.Expect.Header) // the configuration has been validated
	}
	if cfg.Expect.Body != "" {
		probe.Content = regexp.MustCompile(cfg.Expect.Body)
	}
	return probe, nil
}

// encapsulate makes a POST of the content of a probe: an upload of a file by a form, or the content itself.
func encapsulate(cfg *configs.Probe, pool string, content []byte) (head, body []byte) {
	kind, body := cfg.ContentType, content
	if cfg.Filename != "" {
		boundary := "icapgate-probe"
		for bytes.Contains(content, []byte("--"+boundary)) {
			boundary += "-"
		}
		kind = "multipart/form-data; boundary=" + boundary
		body = fmt.Appendf(nil, "--%s\r\nContent-Disposition: form-data; name=\"file\"; filename=\"%s\"\r\nContent-Type: %s\r\n\r\n%s\r\n--%s--\r\n",
			boundary, cfg.Filename, cfg.ContentType, content, boundary)
	}
	host := ""
	if u, err := url.Parse(cfg.URL); err == nil {
		host = u.Host
	}
	var h strings.Builder
	fmt.Fprintf(&h, "POST %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: icapgate-probe\r\n%s: %s\r\n", cfg.URL, host, health.ProbeHeader, pool)
	fmt.Fprintf(&h, "Content-Type: %s\r\nContent-Length: %d\r\n\r\n", kind, len(body))
	return []byte(h.String()), body
}
