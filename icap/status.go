package icap

// StatusText returns the reason phrase of RFC 3507 for a status code (of HTTP where the RFC names none), "" for an unknown code.
func StatusText(code int) string {
	switch code {
	case 100:
		return "Continue"
	case 102:
		return "Processing"
	case 200:
		return "OK"
	case 201:
		return "Created"
	case 204:
		return "No modifications needed"
	case 206:
		return "Partial Content"
	case 400:
		return "Bad request"
	case 403:
		return "Forbidden"
	case 404:
		return "ICAP Service not found"
	case 405:
		return "Method not allowed for service"
	case 408:
		return "Request timeout"
	case 413:
		return "Request too large"
	case 418:
		return "Bad composition"
	case 500:
		return "Server error"
	case 501:
		return "Method not implemented"
	case 502:
		return "Bad Gateway"
	case 503:
		return "Service overloaded"
	case 504:
		return "Gateway Timeout"
	case 505:
		return "ICAP version not supported by server"
	case 508:
		return "Loop Detected"
	}
	return ""
}
