package main

import (
	"fmt"
	"time"

	"icapgate/bench/load"
	"icapgate/bench/scenario"
)

// userLoad prepares a load of REQMODs with bodies of a size such as 1KiB, as 1000 users of Zscaler send them. Their addresses are what hash
// goes by. How many there are, and when, is left to the caller.
func (r *rig) userLoad(secure bool, size string, connections int) (cfg load.Config, err error) {
	s, err := scenario.Parse("users.yaml", fmt.Appendf(nil, `clients: {count: 1000, skew: 0, network: 10.0.0.0/8}
requests: [{profile: zscaler, body: {size: {fixed: %s}}}]
`, size))
	if err != nil {
		return cfg, err
	}
	cfg = load.Config{Connections: connections, Timeout: time.Minute, Seed: 1}
	cfg.Target, cfg.TLS = r.target(secure, "/reqmod")
	cfg.Mix, err = s.Compile(cfg.Target)
	return cfg, err
}
