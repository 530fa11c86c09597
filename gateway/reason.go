package gateway

// closeReason says why a connection ended. It is the label of closes_total and stands in the logs; every close has one.
type closeReason uint8

const (
	// Clients.
	reasonClientClosed closeReason = iota // FIN or close_notify between requests
	reasonClientGone                      // FIN before the request was complete, or a failed write
	reasonReset                           // RST
	reasonDone                            // Connection: close, ours or the peer's
	reasonIdle                            // idle timeout
	reasonHeadTimeout
	reasonBodyTimeout
	reasonWriteTimeout // the peer does not read
	reasonBadRequest
	reasonTLSOnPlain
	reasonNotRead   // the rest of an answered request is too long to be read and dropped
	reasonTruncated // the server died in the middle of an answer that the client has begun to get
	// Servers.
	reasonServerClosed   // FIN while idle
	reasonUnexpected     // bytes while idle, or behind the end of an answer
	reasonConnectFailed  // refused, unreachable, TLS failed
	reasonConnectTimeout // no answer to the connect
	reasonNoDescriptor   // none was free to connect with, or for another connection
	reasonNoAnswer       // ended before the first byte of an answer
	reasonBadResponse
	reasonSendTimeout
	reasonResponseTimeout
	reasonVanished      // bytes stay unacknowledged, and nothing is heard
	reasonClientAborted // the client went away in the middle of its request
	reasonNotReusable   // the answer came before the request was through, or limits of age or use
	reasonRetired       // its server left the configuration
	reasonOverCap       // the server's cap has become smaller
	reasonSpillLost     // the file with its request could not be read back
	// Both.
	reasonLimit // its request was beyond a limit: see streams.go
	reasonShutdown
	reasonPanic
	reasonCount = iota
)

var reasonNames = [reasonCount]string{
	"client_closed", "client_gone", "reset", "done", "idle", "head_timeout", "body_timeout", "write_timeout", "bad_request", "tls_on_plain", "rest_too_long",
	"truncated", "server_closed", "unexpected_bytes", "connect_failed", "connect_timeout", "no_descriptor", "no_answer", "bad_response",
	"send_timeout", "response_timeout", "vanished", "client_aborted", "not_reusable", "retired", "over_cap", "spill_lost", "limit", "shutdown", "panic",
}

func (r closeReason) String() string { return reasonNames[r] }

// rejectReason says why the gateway answered a request itself with an error: the label of rejects_total.
type rejectReason uint8

const (
	rejectBadRequest       rejectReason = iota
	rejectMethod                        // unknown: 501
	rejectVersion                       // 505
	rejectTimeout                       // 408
	rejectNoService                     // 404
	rejectMethodNotAllowed              // 405
	rejectNoServer                      // 503: no server is usable
	rejectFull                          // 503: every connection is busy and so is the queue, or waiting took too long
	rejectServerFailed                  // 502: no answer, or a broken one
	rejectOverloaded                    // 503: no descriptor was free to connect to a server with, or a request that was to be sent again could not be read back
	rejectLate                          // 502: no verdict in time
	rejectBody                          // 413: beyond max_body
	rejectDuration                      // 413 or 502: beyond max_duration
	rejectLong                          // likewise: the oldest of too many long streams
	rejectLoop                          // 508: it has been here before
	rejectCount            = iota
)

var rejectNames = [rejectCount]string{
	"bad_request", "unknown_method", "version", "timeout", "no_service", "method_not_allowed", "no_server", "full", "server_failed", "overloaded", "late", "max_body", "max_duration", "long_streams",
	"loop",
}

func (r rejectReason) String() string { return rejectNames[r] }

// allowedNames are the ends of requests that passed unjudged, for the access log.
var allowedNames [rejectCount]string

func init() {
	for r, name := range rejectNames {
		allowedNames[r] = "allowed_" + name
	}
}
