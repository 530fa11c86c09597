package admin

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// guard refuses what a page of another site can make a browser send: its scripts and forms (by Origin and Sec-Fetch-Site), and the
// same under a host name of the attacker's that resolves to loopback (DNS rebinding; by Host). Programs other than browsers
// send none of these fields and pass.
func guard(next http.Handler, checkHost bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		if checkHost && !isLocal(r.Host) {
			http.Error(w, fmt.Sprintf("host name %q refused: use an IP address or localhost", r.Host), http.StatusForbidden)
			return
		}
		if !sameOrigin(r) {
			http.Error(w, "request from a page of another site refused", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// isLocal says whether a Host is one that no other site can have: an IP address or localhost. None at all is no browser.
func isLocal(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return host == "" || strings.EqualFold(host, "localhost")
}

// sameOrigin says whether a request comes from no page at all or from one of our own. "same-site" is not enough: any port of
// localhost is the same site.
func sameOrigin(r *http.Request) bool {
	if origin := r.Header.Get("Origin"); origin != "" {
		u, err := url.Parse(origin)
		if err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host) {
			return false
		}
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
		return true
	}
	return isLink(r)
}

// isLink says whether a person has followed a link to us, in a window of its own: harmless, since GET changes nothing.
func isLink(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.Header.Get("Origin") == "" &&
		r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
}
