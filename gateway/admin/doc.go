// Package admin is the window for operators: metrics, readiness, state, and a few commands, over HTTP.
//
//	GET  /metrics            Prometheus text
//	GET  /healthz            the process lives
//	GET  /readyz[?pool=P]    it takes requests (and pool P can serve them)
//	GET  /status             everything known, as JSON
//	GET  /                   the same as a page
//	POST /api/reload
//	POST /api/drain          server, pool (where the server is in more than one)
//	POST /api/ready          the same
//	POST /api/maintenance    the same
//	POST /api/weight         the same, and weight
//
// Commands take their parameters as JSON or as a form. GET never changes anything. There is no login: who can reach the address can
// use it, so it belongs on loopback or a UNIX socket. A browser on the same host can reach it too, on behalf of any page that is open
// in it; guard.go refuses what such a page can do. The metrics address serves the first three routes only, for whole networks.
//
// The package knows nothing of the gateway but the interface Gateway. Server listens, Client is the other end, for the command line.
package admin
