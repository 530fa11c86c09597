package load

import (
	"crypto/tls"
	"math/rand/v2"
)

// sessions keeps the TLS sessions of one worker, and offers them to be resumed in a share of the handshakes. It belongs to the worker:
// crypto/tls asks for a session within the handshake, and gives one while the worker reads.
type sessions struct {
	share float64
	rng   *rand.Rand
	offer bool // in the next handshake
	kept  map[string]*tls.ClientSessionState
}

func newSessions(share float64, seed, worker uint64) sessions {
	return sessions{share: share, rng: rand.New(rand.NewPCG(seed, worker)), kept: map[string]*tls.ClientSessionState{}}
}

// draw decides about the next handshake.
func (s *sessions) draw() { s.offer = s.share > 0 && s.rng.Float64() < s.share }

// Get implements tls.ClientSessionCache.
func (s *sessions) Get(key string) (*tls.ClientSessionState, bool) {
	if !s.offer {
		return nil, false
	}
	state, ok := s.kept[key]
	return state, ok
}

// Put implements tls.ClientSessionCache. A nil state removes what was kept.
func (s *sessions) Put(key string, state *tls.ClientSessionState) {
	if s.share == 0 {
		return
	}
	if state == nil {
		delete(s.kept, key)
		return
	}
	s.kept[key] = state
}
