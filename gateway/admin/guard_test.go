package admin

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// Requests as programs and browsers send them, to a GET and to a POST route.
func TestSameOrigin(t *testing.T) {
	const host = "127.0.0.1:9344"
	tests := []struct {
		name                     string
		origin, site, mode, dest string // Origin, Sec-Fetch-Site, -Mode, -Dest
		get, post                bool   // let through
	}{
		{"curl, Prometheus", "", "", "", "", true, true},
		{"address typed in", "", "none", "navigate", "document", true, true},
		{"our own page", "http://127.0.0.1:9344", "same-origin", "cors", "empty", true, true},
		{"our own page, old browser", "http://127.0.0.1:9344", "", "", "", true, true},
		{"our own page behind a TLS proxy", "https://127.0.0.1:9344", "", "", "", true, true},
		{"link on another site", "", "cross-site", "navigate", "document", true, false},
		{"script of another site", "http://evil.example", "cross-site", "cors", "empty", false, false},
		{"script of another site, old browser", "http://evil.example", "", "", "", false, false},
		{"image of another site", "", "cross-site", "no-cors", "image", false, false},
		{"frame of another site", "", "cross-site", "navigate", "iframe", false, false},
		{"form of another site", "http://evil.example", "cross-site", "navigate", "document", false, false},
		{"form of another site without Origin", "", "cross-site", "navigate", "document", true, false},
		{"another port of this host", "http://127.0.0.1:3000", "same-site", "cors", "empty", false, false},
		{"another port, no Origin", "", "same-site", "no-cors", "script", false, false},
		{"sandboxed frame", "null", "cross-site", "navigate", "document", false, false},
		{"file", "null", "", "", "", false, false},
		{"odd Origin", "http://", "", "", "", false, false},
		{"broken Origin", "http://[", "", "", "", false, false},
		{"odd Sec-Fetch-Site", "", "sideways", "cors", "empty", false, false},
	}
	for _, tt := range tests {
		for method, want := range map[string]bool{"GET": tt.get, "HEAD": tt.get, "POST": tt.post} {
			path := "/status"
			if method == "POST" {
				path = "/api/reload"
			}
			r := httptest.NewRequest(method, path, nil)
			r.Host = host
			for name, value := range map[string]string{
				"Origin": tt.origin, "Sec-Fetch-Site": tt.site, "Sec-Fetch-Mode": tt.mode, "Sec-Fetch-Dest": tt.dest,
			} {
				if value != "" {
					r.Header.Set(name, value)
				}
			}
			g := newFakeGateway()
			w := httptest.NewRecorder()
			NewHandler(g, Options{CheckHost: true}).ServeHTTP(w, r)
			code := http.StatusForbidden
			if want {
				code = http.StatusOK
			}
			if w.Code != code {
				t.Errorf("%s: %s gets %d, want %d", tt.name, method, w.Code, code)
			}
			if done := len(g.commands) > 0; done != (want && method == "POST") {
				t.Errorf("%s: %s: commands %q", tt.name, method, g.commands)
			}
		}
	}
}

// A page of evil.example whose name has come to mean 127.0.0.1 is of the same origin as we are, but it can't choose its Host.
func TestHost(t *testing.T) {
	for host, local := range map[string]bool{
		"127.0.0.1": true, "127.0.0.1:9344": true, "[::1]:9344": true, "[::1]": true, "localhost": true, "LocalHost:9344": true,
		"10.0.0.1:9344": true, "": true,
		"evil.example": false, "evil.example:9344": false, "localhost.evil.example": false, "127.0.0.1.evil.example:9344": false,
		"unix": false, "127.1": false,
	} {
		for _, check := range []bool{true, false} {
			r := httptest.NewRequest("GET", "/status", nil)
			r.Host = host
			if host != "" {
				r.Header.Set("Origin", "http://"+host)
			}
			r.Header.Set("Sec-Fetch-Site", "same-origin")
			w := httptest.NewRecorder()
			NewHandler(newFakeGateway(), Options{CheckHost: check}).ServeHTTP(w, r)
			want := http.StatusOK
			if check && !local {
				want = http.StatusForbidden
			}
			if w.Code != want {
				t.Errorf("Host %q, checked %v: %d, want %d", host, check, w.Code, want)
			}
		}
	}
}

func TestSafetyFields(t *testing.T) {
	for _, path := range []string{"/", "/status", "/metrics", "/nothing"} {
		h := get(t, newFakeGateway(), path).Header()
		if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %v", path, h)
		}
		if h.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: other sites may read it", path)
		}
	}
}
