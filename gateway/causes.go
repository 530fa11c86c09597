package gateway

import "strconv"

// causes is retry.on: after what a request is sent again.
type causes struct {
	connect, reset, timeout bool
	statuses                [100]bool // 500 to 599
}

// newCauses reads the words of the configuration, which are valid.
func newCauses(words []string) (c causes) {
	for _, word := range words {
		switch word {
		case "connect":
			c.connect = true
		case "reset":
			c.reset = true
		case "timeout":
			c.timeout = true
		case "5xx":
			for i := range c.statuses {
				c.statuses[i] = true
			}
		default:
			if status, err := strconv.Atoi(word); err == nil && status >= 500 && status < 600 {
				c.statuses[status-500] = true
			}
		}
	}
	c.statuses[506-500] = c.statuses[506-500] || c.statuses[503-500] // both say full
	return c
}

// status says whether a request is sent again after an answer with this status.
func (c *causes) status(status int) bool {
	return status >= 500 && status < 600 && c.statuses[status-500]
}
