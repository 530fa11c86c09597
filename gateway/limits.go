package gateway

import (
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"icapgate/configs"
)

// limits keeps the process within its descriptors and its memory, by refusing new clients: those that are connected go on.
//
// Descriptors. Every client may need a connection to a server as well, so clients get half of what the limit of open files leaves
// beside the reserve. The reserve is for what has to work when clients take everything: checks, admin, logs, reload, hand-over
// from Go's descriptor to a loop's. Sockets to servers, and pipes, keep out of it too.
//
// Memory. When the resident memory exceeds refuseAt of the limit, new clients are refused until it is below admitBelow. The
// collector has orders to work harder from softLimit on, which comes before.
type limits struct {
	gw *Gateway

	// Static after start.
	openFiles int // soft limit of descriptors
	inUse     int // descriptors open before the first client
	statm     *os.File
	resident  func() (int64, error) // bytes; tests have their own
	collect   func()
	soft      bool // the runtime's limit is ours to set: the environment has no GOMEMLIMIT

	clients    atomic.Int64 // connections of clients, from accept to close
	maxClients atomic.Int64
	derived    atomic.Bool  // maxClients follows from the open files
	taken      atomic.Int64 // descriptors of sockets to servers and of pipes
	most       atomic.Int64 // of clients and taken together; 0: not started
	freedAt    atomic.Int64 // loop time at which idle ones were last closed

	maxMemory  atomic.Int64 // bytes; 0: no limit
	memory     atomic.Int64 // bytes in use when last looked at
	memoryFull atomic.Bool  // refusing because of it

	collected time.Time // owned by watch
	watching  sync.WaitGroup
	dialLog   rateLimit
}

const (
	reservedFiles = 32 // descriptors, beside one for each server's check and those open from the start

	// Shares of max_memory, in per cent.
	refuseAt   = 85
	admitBelow = 75
	softLimit  = 80

	memoryInterval  = 250 * time.Millisecond // between two looks: a flood of new clients fills some 10 MB in that time
	collectInterval = 5 * time.Second        // between two collections of garbage for the sake of admitting clients again
)

// start finds out what there is to share, and begins to watch the memory. Everything that the gateway keeps open is open by now.
func (m *limits) start(g *Gateway) error {
	m.gw = g
	var files unix.Rlimit // package syscall has raised the soft limit to the hard one, less one
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	m.openFiles = int(min(files.Cur, math.MaxInt32))
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("cannot count open files: %w", err)
	}
	m.inUse = len(open)
	if m.statm, err = os.Open("/proc/self/statm"); err != nil {
		return fmt.Errorf("cannot read the memory in use: %w", err)
	}
	m.resident, m.collect = m.readResident, debug.FreeOSMemory
	m.soft = os.Getenv("GOMEMLIMIT") == ""
	if err := m.apply(g.config.Load(), g.table.Load()); err != nil {
		m.statm.Close()
		return err
	}
	m.watching.Go(m.watch)
	return nil
}

// apply puts a configuration's limits in force. After an error nothing has changed.
func (m *limits) apply(cfg *configs.Config, t *table) error {
	clients, err := m.divide(cfg, t)
	if err != nil {
		return err
	}
	memory, from := memoryLimit(int64(cfg.Limits.MaxMemory), "/proc/self", "/sys/fs/cgroup")
	if old := m.maxMemory.Swap(memory); m.soft && memory != old {
		soft := int64(math.MaxInt64)
		if memory > 0 {
			soft = memory / 100 * softLimit
		}
		debug.SetMemoryLimit(soft)
	}
	m.gw.log.Info("limits", "max_connections", clients, "open_files", m.openFiles, "max_memory", configs.Size(memory).String(), "max_memory_from", from)
	return nil
}

// divide shares out the descriptors, of which the checks of each server need one, and returns the limit of clients.
func (m *limits) divide(cfg *configs.Config, t *table) (int, error) {
	reserve := m.inUse + reservedFiles
	for _, p := range t.pools {
		reserve += len(p.servers)
	}
	sockets := m.openFiles - reserve
	if sockets < 2 {
		return 0, fmt.Errorf("the limit of %d open files leaves none for clients, %d is the least: raise it (LimitNOFILE= in a systemd unit, else ulimit -n)",
			m.openFiles, reserve+2)
	}
	clients, wanted := sockets/2, cfg.Limits.MaxConnections
	m.derived.Store(wanted == 0 || wanted > clients)
	if wanted > clients {
		m.gw.log.Warn("limits.max_connections is more than the limit of open files allows: raise that (LimitNOFILE= in a systemd unit, else ulimit -n)",
			"max_connections", wanted, "open_files", m.openFiles, "open_files_needed", reserve+2*wanted, "used", clients)
	}
	if wanted > 0 {
		clients = min(clients, wanted)
	}
	m.most.Store(int64(sockets))
	m.maxClients.Store(int64(clients))
	return clients, nil
}

// stop ends watch, which Gateway.stopping has told to. It does nothing when start has not succeeded.
func (m *limits) stop() {
	m.watching.Wait()
	if m.statm != nil {
		m.statm.Close()
	}
}

// overloaded says for each of the limits whether new clients are refused because of it now.
func (m *limits) overloaded() (connections, memory bool) {
	return m.clients.Load() >= m.maxClients.Load(), m.memoryFull.Load()
}

// take counts n descriptors; false: there are none for that beside the reserve.
func (m *limits) take(n int64) bool {
	all := m.taken.Add(n) + m.clients.Load()
	if most := m.most.Load(); most > 0 && all > most {
		m.taken.Add(-n)
		return false
	}
	return true
}

func (m *limits) give(n int64) { m.taken.Add(-n) }

// refusal says why a connection was refused: a label of refused_total.
type refusal uint8

const (
	refusedAllow       refusal = iota // its address is not in allow
	refusedConnections                // limits.max_connections, or what the open files allow
	refusedListener                   // max_connections of the listener
	refusedMemory
	refusedDescriptor // none was free to hand the connection to a loop: the reserve is too small
	refusals          = iota
)

func (r refusal) String() string {
	return [...]string{"allow", "connections", "listener_connections", "memory", "descriptor"}[r]
}

// admit counts a new client, whose place leave gives back. Where its handshake takes part in the limit, one that keeps the gateway waiting
// makes room: clients that connect and say nothing can't keep out those that speak.
//
// Each listener asks from one goroutine; a limit of all can be exceeded by as many as there are listeners.
func (ls *listener) admit(st *listenerSettings) (why refusal, ok bool) {
	m := &ls.gw.limits
	if m.memoryFull.Load() {
		return refusedMemory, false
	}
	if most := st.cfg.MaxConnections; most > 0 && int(ls.clients.Load()) >= most && !ls.evict(most) {
		return refusedListener, false
	}
	if most := m.maxClients.Load(); m.clients.Load() >= most && !ls.gw.evict(ls, int(most)) {
		return refusedConnections, false
	}
	ls.clients.Add(1)
	m.clients.Add(1)
	return 0, true
}

// leave gives back the place of a client whose socket is closed.
func (ls *listener) leave() {
	ls.clients.Add(-1)
	ls.gw.limits.clients.Add(-1)
}

// evict makes room among the handshakes of all listeners, those of first first.
func (g *Gateway) evict(first *listener, most int) bool {
	if first.evict(most) {
		return true
	}
	for _, ls := range g.listeners {
		if ls != first && ls.evict(most) {
			return true
		}
	}
	return false
}

// advice is what to do about refusals.
func (m *limits) advice(why refusal) string {
	switch {
	case why == refusedConnections && m.derived.Load():
		return "raise the limit of open files (LimitNOFILE= in a systemd unit, else ulimit -n)"
	case why == refusedConnections:
		return "raise limits.max_connections"
	case why == refusedListener:
		return "raise max_connections of the listener"
	case why == refusedMemory:
		return "give the gateway more memory (limits.max_memory, MemoryMax= in a systemd unit, the limit of the container)"
	case why == refusedDescriptor:
		return "lower limits.max_connections, or raise the limit of open files (LimitNOFILE= in a systemd unit, else ulimit -n)"
	}
	return ""
}
