package gateway

import (
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"icapgate/configs"
)

// watch looks at the memory in use until no more clients are accepted.
func (m *limits) watch() {
	ticker := time.NewTicker(memoryInterval)
	defer ticker.Stop()
	for {
		select {
		case <-m.gw.stopping:
			return
		case now := <-ticker.C:
			m.look(now)
		}
	}
}

// look compares the memory in use with the limit. Garbage is not in use: before clients are refused for it, it is collected, and
// from time to time as long as they are.
func (m *limits) look(now time.Time) {
	most := m.maxMemory.Load()
	full := m.memoryFull.Load()
	if most == 0 {
		m.memoryFull.Store(false)
		return
	}
	used, err := m.resident()
	if err == nil && (!full && used >= most/100*refuseAt || full && used >= most/100*admitBelow && now.Sub(m.collected) >= collectInterval) {
		m.collected = now
		m.collect()
		used, err = m.resident()
	}
	if err != nil {
		m.gw.log.Error("cannot read the memory in use", "error", err)
		return
	}
	m.memory.Store(used)
	switch {
	case !full && used >= most/100*refuseAt:
		m.memoryFull.Store(true)
		m.gw.log.Warn("new clients are refused: too much memory is in use; "+m.advice(refusedMemory),
			"memory", configs.Size(used).String(), "max_memory", configs.Size(most).String())
	case full && used < most/100*admitBelow:
		m.memoryFull.Store(false)
		m.gw.log.Info("new clients are accepted again", "memory", configs.Size(used).String(), "max_memory", configs.Size(most).String())
	}
}

// readResident is the resident memory of the process. The file stays open, so that no descriptor is needed to look.
func (m *limits) readResident() (int64, error) {
	resident, _, err := parseStatm(m.statm)
	return resident, err
}

// parseStatm reads the resident and the virtual size from /proc/self/statm, in bytes.
func parseStatm(f *os.File) (resident, virtual int64, err error) {
	var buf [128]byte
	n, err := f.ReadAt(buf[:], 0)
	fields := strings.Fields(string(buf[:n]))
	if len(fields) < 2 {
		return 0, 0, fmt.Errorf("%s has %q: %w", f.Name(), buf[:n], err)
	}
	page := int64(os.Getpagesize())
	if virtual, err = strconv.ParseInt(fields[0], 10, 64); err != nil {
		return 0, 0, err
	}
	if resident, err = strconv.ParseInt(fields[1], 10, 64); err != nil {
		return 0, 0, err
	}
	return resident * page, virtual * page, nil
}

// memoryLimit is how much resident memory the gateway may have, and what says so; 0: nothing does. The configured limit, 0 being
// none, and those of the system all hold; GOMEMLIMIT, which is no hard limit, counts when there is no other.
func memoryLimit(configured int64, proc, cgroups string) (limit int64, from string) {
	limit = math.MaxInt64
	lower := func(n int64, what string) {
		if n > 0 && n < limit {
			limit, from = n, what
		}
	}
	lower(configured, "limits.max_memory")
	lower(cgroupLimit(proc, cgroups), "cgroup")
	lower(addressSpaceLimit(proc), "RLIMIT_AS")
	if from == "" && os.Getenv("GOMEMLIMIT") != "" {
		lower(debug.SetMemoryLimit(-1), "GOMEMLIMIT") // of MaxInt64, off, nothing remains
	}
	if from == "" {
		return 0, "none"
	}
	return limit, from
}

// addressSpaceLimit is what RLIMIT_AS leaves for resident memory, 0: no limit. The runtime reserves much address space that it never uses.
func addressSpaceLimit(proc string) int64 {
	var space unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_AS, &space); err != nil || space.Cur > math.MaxInt64 {
		return 0
	}
	f, err := os.Open(proc + "/statm")
	if err != nil {
		return 0
	}
	defer f.Close()
	resident, virtual, err := parseStatm(f)
	if err != nil {
		return 0
	}
	return max(int64(space.Cur)-(virtual-resident), 1)
}

// cgroupLimit is the lowest limit of memory of the process's cgroup and those above it, of either version; 0: none.
func cgroupLimit(proc, mount string) (limit int64) {
	text, err := os.ReadFile(proc + "/cgroup")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		id, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, path, _ := strings.Cut(rest, ":")
		var dirs []string
		file := "memory.max"
		switch {
		case id == "0" && controllers == "":
			dirs = []string{mount, mount + "/unified"} // the second where both versions are mounted
		case slices.Contains(strings.Split(controllers, ","), "memory"):
			dirs, file = []string{mount + "/memory"}, "memory.limit_in_bytes"
		}
		for _, dir := range dirs {
			// In a container the path may be the host's, and its own cgroup is what is mounted.
			for p := strings.TrimSuffix(path, "/"); ; p = p[:strings.LastIndexByte(p, '/')] {
				if n := readLimit(dir + p + "/" + file); n > 0 && (limit == 0 || n < limit) {
					limit = n
				}
				if p == "" || !strings.HasPrefix(p, "/") {
					break
				}
			}
		}
	}
	return limit
}

// readLimit reads one number of bytes; 0: none, which the two versions of cgroups call max and nearly 2^63.
func readLimit(file string) int64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n < 0 || n > 1<<60 {
		return 0
	}
	return n
}
