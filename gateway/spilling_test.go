package gateway

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"icapgate/configs"
)

// spilled is YAML of a pool that keeps up to 64 MiB of a request in a file, and of the top level.
const spilled = "    retry: {replay_buffer: 16KiB, spill: 64MiB, budget: 10}\n"

// startSpilling is startPair with files in a folder of its own, which it returns.
func startSpilling(t testing.TB, pool, rest string) (*pair, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	return startPair(t, pool, fmt.Sprintf("state_dir: %q\n%s", dir, rest)), dir
}

// nothingSpilled checks that all files are closed again, and how many of them came to which end.
func (p *pair) nothingSpilled(t *testing.T, want string) {
	t.Helper()
	eventually(t, "all files closed", func() bool { return p.metric("spill_bytes") == 0 && p.limits.taken.Load() == p.inUse() })
	got := ""
	for _, name := range spillNames {
		if n := p.metric(fmt.Sprintf("spills_total{result=%q}", name)); n > 0 {
			got += fmt.Sprintf("%s %v ", name, n)
		}
	}
	if got = strings.TrimSpace(got); got != want {
		t.Errorf("files: %s; want %s", got, want)
	}
}

// inUse is the number of descriptors of connections to servers and of pipes.
func (p *pair) inUse() int64 {
	var n atomic.Int64
	for _, s := range p.table.Load().pools[0].servers {
		n.Add(int64(s.Connections()))
	}
	p.onLoops(func(l *loop) { n.Add(2 * int64(l.pipeCount)) })
	return n.Load()
}

// A server that dies in the middle of a large upload, or when it has all of it, is replaced: the other one gets every byte.
func TestLargeUploadIsReplayed(t *testing.T) {
	body := chunked(5<<20+12345, 60<<10)
	for _, v := range []struct {
		name string
		got  int // bytes that the first server reads
		end  func(s *serverSide)
	}{
		{"rst at the start", 20 << 10, func(s *serverSide) { s.reset() }},
		{"rst in the middle", len(body) / 2, func(s *serverSide) { s.reset() }},
		{"fin in the middle", len(body) / 2, func(s *serverSide) { s.Close() }},
		{"rst at the end", len(body), func(s *serverSide) { s.reset() }},
		{"fin at the end", len(body), func(s *serverSide) { s.Close() }},
		{"503 at the end", len(body), func(s *serverSide) { s.send(text("ICAP/1.0 503 Full¶¶")); s.Close() }},
	} {
		t.Run(v.name, func(t *testing.T) {
			p, _ := startSpilling(t, spilled, "")
			overBoth(t, func(t *testing.T, listener int) {
				c := p.dialFor(t, listener)
				wrote := make(chan error, 1)
				go func() { _, err := c.Write([]byte(text(RL+reqBody) + body)); wrote <- err }()
				s, other := p.next(t)
				s.gets(RL + reqBody)
				s.expect(body[:v.got])
				v.end(s)
				second := other.next(t)
				second.gets(RL + reqBody)
				second.expect(body)
				if err := <-wrote; err != nil {
					t.Fatal(err)
				}
				second.send(text(page))
				c.expect(text(page))
				second.Close()
				p.settle()
				for _, s := range p.table.Load().pools[0].servers {
					s.MarkFull(0)
				}
			})
			p.nothingSpilled(t, "kept 2")
		})
	}
}

// Two servers die with it, one after the other, the second while it is still being given what the first had. The third attempt gets all.
func TestReplayOfAReplay(t *testing.T) {
	p, _ := startSpilling(t, "    retry: {replay_buffer: 16KiB, spill: 64MiB, budget: 10, attempts: 3}\n", "")
	body := chunked(6<<20, 100<<10)
	overBoth(t, func(t *testing.T, listener int) {
		c := p.dialFor(t, listener)
		wrote := make(chan error, 1)
		go func() { _, err := c.Write([]byte(text(RL+reqBody) + body)); wrote <- err }()
		s, other := p.next(t)
		s.gets(RL + reqBody)
		s.expect(body[:3<<20])
		s.reset()
		s = other.next(t)
		s.gets(RL + reqBody)
		s.expect(body[:1<<20])
		if listener == 0 { // a crash, after another: no third server
			s.reset()
			c.refusal(502, false)
		} else { // full: it says so itself
			s.send(text("ICAP/1.0 503 Full¶¶"))
			s, _ = p.next(t)
			s.gets(RL + reqBody)
			s.expect(body)
			s.send(text(page))
			c.expect(text(page))
			s.Close()
		}
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		p.settle()
	})
	p.nothingSpilled(t, "kept 2")
}

// The rest after a preview is kept as well: the other server gets the preview, is asked for its 100, and gets the rest.
func TestSpilledAfterPreview(t *testing.T) {
	p, _ := startSpilling(t, spilled, "")
	rest := chunked(2<<20, 30<<10)
	overBoth(t, func(t *testing.T, listener int) {
		c := p.dialFor(t, listener)
		part := preview(4) + "4¶abcd¶0¶¶"
		c.send(text(part))
		s, other := p.next(t)
		s.gets(part)
		s.send(text(goOn))
		c.expect(text(goOn))
		wrote := make(chan error, 1)
		go func() { _, err := c.Write([]byte(rest)); wrote <- err }()
		s.expect(rest[:1<<20])
		s.reset()
		s = other.next(t)
		s.gets(part)
		p.settle()
		if n := unread(t, s); n != 0 {
			t.Errorf("%d bytes behind the preview came before the 100", n)
		}
		s.send(text(goOn))
		s.expect(rest)
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		s.send(text(page))
		c.expect(text(page))
		s.Close()
		p.settle()
	})
	p.nothingSpilled(t, "kept 2")
}

// virtualPair is a pair on virtual time.
type virtualPair struct {
	*virtual
	pair *pair
}

func (v *virtualPair) next(t testing.TB) (s *serverSide, other *fakeServer) { return v.pair.next(t) }

func startVirtualPair(t testing.TB, pool, rest string) *virtualPair {
	t.Helper()
	a, b := startFake(t), startFake(t)
	v := startVirtualFor(t, []string{a.address, b.address}, "    slow_start: 0s\n"+pool, rest)
	return &virtualPair{v, &pair{v.testGateway, a, b}}
}

// The other server of a large upload with a preview has the time of any server for its verdict on the preview, and for the body of its answer.
func TestSpilledPreviewIsTimed(t *testing.T) {
	rest := chunked(2<<20, 30<<10)
	part := preview(4) + "4¶abcd¶0¶¶"
	for _, begins := range []bool{false, true} {
		t.Run(fmt.Sprint("answer begun: ", begins), func(t *testing.T) {
			v := startVirtualPair(t, spilled+"    timeouts: {response: 10s}\n", fmt.Sprintf("state_dir: %q", t.TempDir()))
			overBoth(t, func(t *testing.T, listener int) {
				c := v.connect(listener)
				c.send(text(part))
				s, other := v.next(t)
				s.gets(part)
				s.send(text(goOn))
				c.expect(text(goOn))
				wrote := make(chan error, 1)
				go func() { _, err := c.Write([]byte(rest)); wrote <- err }()
				s.expect(rest[:1<<20])
				s.reset()
				s = other.next(t)
				s.gets(part)
				if begins {
					s.send(text(okLine + echoList + P + "4¶abcd¶"))
					c.expect(text(okLine + echoList + P + "4¶abcd¶"))
				}
				v.pass(11 * time.Second)
				s.dropped(t)
				if begins {
					c.rest() // cut
					<-wrote
				} else {
					c.refusal(502, false)
					if err := <-wrote; err != nil {
						t.Fatal(err)
					}
				}
				c.Close()
				v.settle()
			})
		})
	}
}

// A server that answers to the preview of a large upload has all that it needs: its connection is as good as before.
func TestAnswerToSpilledPreview(t *testing.T) {
	p, _ := startSpilling(t, spilled, "")
	rest := chunked(2<<20, 30<<10)
	overBoth(t, func(t *testing.T, listener int) {
		c := p.dialFor(t, listener)
		part := preview(4) + "4¶abcd¶0¶¶"
		c.send(text(part))
		s, other := p.next(t)
		s.gets(part)
		s.send(text(goOn))
		c.expect(text(goOn))
		wrote := make(chan error, 1)
		go func() { _, err := c.Write([]byte(rest)); wrote <- err }()
		s.expect(rest[:1<<20])
		s.reset()
		s = other.next(t)
		s.gets(part)
		s.send(text(page))
		c.expect(text(page))
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		p.settle()
		s.release()
		c.Close()
	})
	if n := p.metric(`closes_total{side="server",reason="not_reusable"}`); n != 0 {
		t.Errorf("%v connections were closed", n)
	}
	p.nothingSpilled(t, "kept 2")
}

// More is held in memory than is to wait for a server at a time: with TLS all of it is encrypted at once. What is in the file follows all the same.
func TestReplayToTLS(t *testing.T) {
	cfg, file := serverCertificate(t)
	listen := func() net.Listener {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return ln
	}
	for _, buffer := range []string{"16KiB", "300KiB", "1MiB"} {
		t.Run(buffer, func(t *testing.T) {
			a, b := serveFake(t, listen(), cfg), serveFake(t, listen(), cfg)
			g := startGateway(t, []string{a.address, b.address}, quiet+fmt.Sprintf("    tls: {ca_file: %q}\n    retry: {replay_buffer: %s, spill: 64MiB, budget: 10}\n", file, buffer),
				fmt.Sprintf("state_dir: %q", t.TempDir())).ready()
			p := &pair{g, a, b}
			body := chunked(4<<20, 60<<10)
			overBoth(t, func(t *testing.T, listener int) {
				for range 2 {
					c := p.dialFor(t, listener)
					wrote := make(chan error, 1)
					go func() { _, err := c.Write([]byte(text(RL+reqBody) + body)); wrote <- err }()
					s, other := p.next(t)
					s.gets(RL + reqBody)
					s.expect(body[:3<<20])
					s.reset()
					s = other.next(t)
					s.gets(RL + reqBody)
					s.expect(body)
					if err := <-wrote; err != nil {
						t.Fatal(err)
					}
					s.send(text(page))
					c.expect(text(page))
					s.Close()
					c.Close()
					p.settle()
				}
			})
			p.nothingSpilled(t, "kept 4")
		})
	}
}

// A server that answers before it has got all that the other one had: the client has its answer at once. The server gets the rest, if it takes it.
func TestEarlyAnswerToAReplay(t *testing.T) {
	p, _ := startSpilling(t, spilled, "")
	body := chunked(12<<20, 100<<10)
	overBoth(t, func(t *testing.T, listener int) {
		c := p.dialFor(t, listener)
		wrote := make(chan error, 1)
		go func() { _, err := c.Write([]byte(text(RL+reqBody) + body)); wrote <- err }()
		s, other := p.next(t)
		s.gets(RL + reqBody)
		s.expect(body[:8<<20])
		s.reset()
		s = other.next(t)
		s.gets(RL + reqBody)
		s.send(text(page))
		c.expect(text(page))
		if listener == 0 {
			s.expect(body)
		} else {
			s.Close()
		}
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		if listener == 0 {
			s.release() // the connection is as good as before
		}
		c.send(text(v04))
		s, _ = p.next(t)
		s.gets(v04)
		s.send(text(page))
		c.expect(text(page))
		s.Close()
		p.settle()
	})
	p.nothingSpilled(t, "kept 2")
}

// A server that answers while the disk is behind, so that nothing is read from the client for a moment: then the rest is read again. The disk is
// behind by chance, hence several times.
func TestEarlyAnswerWhileSpilling(t *testing.T) {
	p, _ := startSpilling(t, spilled, "")
	body := chunked(6<<20, 64<<10)
	for i := range 40 {
		c := p.dialFor(t, 1)
		wrote := make(chan error, 1)
		go func() { _, err := c.Write([]byte(text(RL+reqBody) + body)); wrote <- err }()
		s, _ := p.next(t)
		s.gets(RL + reqBody)
		s.expect(body[:200<<10+i<<16])
		s.send(text(page))
		c.expect(text(page))
		s.expect(body[200<<10+i<<16:])
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		c.Close()
		s.Close()
		p.settle()
	}
	p.nothingSpilled(t, "kept 40")
}

// Beyond its limits a request is what it is without files: it goes on, and is lost with its server.
func TestSpillLimits(t *testing.T) {
	body := chunked(3<<20, 100<<10)
	for _, v := range []struct {
		name, pool, rest, want string
	}{
		{"of one", "    retry: {replay_buffer: 16KiB, spill: 1MiB}\n", "", "too_large 2"},
		{"of all", spilled, "limits: {max_spill: 1MiB}", "full 2"},
		{"none for all", spilled, "limits: {max_spill: 0}", "full 2"},
	} {
		t.Run(v.name, func(t *testing.T) {
			p, _ := startSpilling(t, v.pool, v.rest)
			p.uploadIsLost(t, body)
			p.nothingSpilled(t, v.want)
		})
	}
}

// A disk that is gone: requests go on, and only what a server takes with it is lost.
func TestSpillDiskGone(t *testing.T) {
	p, dir := startSpilling(t, spilled, "")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	p.uploadIsLost(t, chunked(3<<20, 100<<10))
	p.nothingSpilled(t, "failed 2")
}

// uploadIsLost makes a large upload that works, and one whose server dies.
func (p *pair) uploadIsLost(t *testing.T, body string) {
	t.Helper()
	c := p.dialFor(t, 1)
	for _, dies := range []bool{false, true} {
		wrote := make(chan error, 1)
		go func() { _, err := c.Write([]byte(text(RL+reqBody) + body)); wrote <- err }()
		s, other := p.next(t)
		s.gets(RL + reqBody)
		s.expect(body)
		if err := <-wrote; err != nil {
			t.Fatal(err)
		}
		if dies {
			s.reset()
			c.refusal(502, false)
			other.idle(t)
		} else {
			s.send(text(page))
			c.expect(text(page))
			s.Close()
		}
		p.settle()
	}
}

// A client that goes away in its upload, while it comes in or while it is being sent again, leaves nothing behind.
func TestSpilledClientGone(t *testing.T) {
	p, _ := startSpilling(t, spilled, "")
	body := chunked(6<<20, 100<<10)
	overBoth(t, func(t *testing.T, listener int) {
		for _, replaying := range []bool{false, true} {
			c := p.dialFor(t, listener)
			go func() { _, _ = c.Write([]byte(text(RL+reqBody) + body[:5<<20])) }()
			s, other := p.next(t)
			s.gets(RL + reqBody)
			s.expect(body[:4<<20])
			if replaying {
				s.reset()
				s = other.next(t)
				s.gets(RL + reqBody)
				s.expect(body[:1<<20])
			}
			c.reset()
			if got := s.rest(); strings.HasSuffix(got, "0\r\n\r\n") {
				t.Error("half an upload looks complete to the server")
			}
			s.Close()
		}
	})
	p.nothingSpilled(t, "kept 4")
}

// The end of the gateway in the middle of all this: TestMain looks for goroutines and descriptors that are left.
func TestCloseWhileSpilling(t *testing.T) {
	p, _ := startSpilling(t, spilled, "")
	body := chunked(6<<20, 100<<10)
	for _, replaying := range []bool{false, true} {
		c := p.dialFor(t, 1)
		go func() { _, _ = c.Write([]byte(text(RL+reqBody) + body)) }()
		s, other := p.next(t)
		s.gets(RL + reqBody)
		s.expect(body[:4<<20])
		if replaying {
			s.reset()
			other.next(t).gets(RL + reqBody)
		}
	}
	p.Close()
	if n := p.metric("spill_bytes"); n != 0 {
		t.Errorf("%v bytes are left in files", n)
	}
}

// A folder that can't be used is told at the start, and at a reload that wants it.
func TestSpillNeedsFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	g := newGateway(t, []string{"127.0.0.1:1"}, "", fmt.Sprintf("state_dir: %q", file)) // wants none
	cfg := *g.config.Load()
	cfg.Pools = append(cfg.Pools[:0:0], cfg.Pools...)
	cfg.Pools[0].Retry.Spill = 1 << 20
	err := g.openSpills(&cfg)
	if err == nil || !strings.Contains(err.Error(), "retry.spill") || !strings.Contains(err.Error(), "state_dir") {
		t.Errorf("a file as state_dir: %v", err)
	}
	cfg.StateDir = filepath.Join(t.TempDir(), "new")
	if err := g.openSpills(&cfg); err != nil {
		t.Error(err)
	}
}

// A reload that is refused because state_dir can't be used has changed nothing, its limits included.
func TestReloadWithoutSpillFolder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	g := startGateway(t, []string{startFake(t).address}, "", fmt.Sprintf("state_dir: %q\nlimits: {max_connections: 100}", file)).ready()
	cfg := *g.config.Load()
	cfg.Pools = append(cfg.Pools[:0:0], cfg.Pools...)
	cfg.Pools[0].Retry.Spill = 1 << 20
	cfg.Limits.MaxConnections = 50
	g.load = func() (*configs.Config, error) { return &cfg, nil }
	if err := g.Reload(); err == nil || !strings.Contains(err.Error(), "state_dir") {
		t.Errorf("reload: %v", err)
	}
	if n := g.limits.maxClients.Load(); n != 100 {
		t.Errorf("%d clients are allowed after a refused reload, want 100 as before", n)
	}
}
