package health

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"icapgate/icap"
)

func said200(fields string) string {
	return "ICAP/1.0 200 OK\r\n" + strings.ReplaceAll(fields, "¶", "\r\n") + "\r\n"
}

// everything is a path that both methods are routed to.
var everything = [icap.NumMethods]bool{icap.MethodReqmod: true, icap.MethodRespmod: true}

// The last good answer for each path is kept, whatever comes after it.
func TestOptionsOfPaths(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := map[string]string{"/a": said200("Preview: 10¶Max-Connections: 16¶"), "/b": said200("Max-Connections: 8¶"), "/c": gone404}
		f := &fakeServer{answer: byPath(answers)}
		cfg := f.config("/a", "/b", "/c")
		var caps []int
		cfg.OnMaxConnections = func(n int) { caps = append(caps, n) }
		begin := time.Now()
		c, _ := start(t, cfg)
		s := c.Status()
		if at(begin, 0); s.Options(0).Preview != 10 || s.Options(0).Path != "/a" || !s.Options(0).Seen.Equal(begin) || s.Options(1).Preview != -1 || s.Options(1).Path != "/b" {
			t.Errorf("said %+v, %+v", s.Options(0), s.Options(1))
		}
		for _, i := range []int{-1, 2, 3} {
			if o := s.Options(i); o != nil {
				t.Errorf("path %d: %+v, want nothing", i, o)
			}
		}
		before := s.Options(0)

		f.set(byPath(map[string]string{"/a": said200("Preview: 20¶")})) // /b is unknown now
		if at(begin, 5*time.Second); s.Options(0).Preview != 20 || s.Options(1).MaxConnections != 8 || !s.Options(1).Seen.Equal(begin) {
			t.Errorf("said %+v, %+v", s.Options(0), s.Options(1))
		}
		if before.Preview != 10 {
			t.Error("what was read before has changed")
		}
		f.set(always(drop))
		if at(begin, 20*time.Second); s.State() != Down || s.Options(0).Preview != 20 {
			t.Errorf("%v, said %+v", s.State(), s.Options(0))
		}
		if want := []int{8, 0}; !slices.Equal(caps, want) {
			t.Errorf("Max-Connections %v, want %v: the smallest of the paths that are known", caps, want)
		}
	})
}

func TestOptionsWithoutPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: always(ok200)}
		begin := time.Now()
		c, _ := start(t, f.config())
		at(begin, 0)
		if o := c.Status().Options(0); o == nil || o.Path != "/" || o.ISTag != `"t"` {
			t.Errorf("said %+v, want the answer for /", o)
		}
	})
}

// A server is asked for other paths, too, as they become known, and is not judged by what it answers there.
func TestOptionsOfOthers(t *testing.T) {
	for _, judged := range [][]string{nil, {"/a"}} {
		synctest.Test(t, func(t *testing.T) {
			answers := map[string]string{"/": gone404, "/a": said200("Preview: 1¶"), "/b": said200("Preview: 2¶Max-Connections: 7¶"), "/c": hang}
			f := &fakeServer{answer: byPath(answers)}
			cfg := f.config(judged...)
			var others atomic.Pointer[[]string]
			cfg.Others = func() []string { return *others.Load() }
			others.Store(new([]string))
			var limit atomic.Int64
			cfg.OnMaxConnections = func(n int) { limit.Store(int64(n)) }
			begin := time.Now()
			c, _ := start(t, cfg)
			s := c.Status()
			at(begin, 0)
			if o := s.Options(1); o != nil {
				t.Errorf("asked for %v: %+v", judged, o)
			}
			others.Store(&[]string{"/b"})
			if at(begin, 5*time.Second); s.Options(1) == nil || s.Options(1).Path != "/b" || s.Options(1).Preview != 2 || limit.Load() != 7 {
				t.Errorf("asked for %v and /b: %+v, limit %d", judged, s.Options(1), limit.Load())
			}
			others.Store(&[]string{"/b", "/c", "/b"})
			if at(begin, 50*time.Second); s.State() != Up || s.Options(2) != nil || s.Options(3) != nil {
				t.Errorf("asked for %v and /c: %v, %+v, %+v; want it to be up, and not to be asked any more after /c", judged, s.State(), s.Options(2), s.Options(3))
			}
			f.set(byPath(map[string]string{"/": gone404, "/a": said200("Preview: 3¶")}))
			if at(begin, 60*time.Second); s.State() != Up || s.Options(1).Preview != 2 {
				t.Errorf("asked for %v: %v, %+v after a 404", judged, s.State(), s.Options(1))
			}
		})
	}
}

// Another Checker may have other paths: what is known of a path goes with it.
func TestOptionsCarryOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{answer: byPath(map[string]string{"/a": said200("Preview: 1¶Methods: REQMOD¶"), "/b": said200("Preview: 2¶")})}
		cfg := f.config("/a", "/b")
		cfg.Methods = [][icap.NumMethods]bool{everything, everything}
		cfg.Status = new(Status)
		c := NewChecker(cfg)
		r := round{cfg: &c.cfg, paths: c.cfg.asked()}
		c.recall()
		r.run(t.Context())
		c.learn(r.paths, r.options, time.Now())
		if !cfg.Status.Lacks(0, icap.MethodRespmod) || cfg.Status.Lacks(0, icap.MethodReqmod) || cfg.Status.Lacks(1, icap.MethodRespmod) {
			t.Error("want RESPMOD of /a to be lacking")
		}
		cfg.Paths = []string{"/c", "/b", "/a"}
		cfg.Methods = append(cfg.Methods, everything)
		NewChecker(cfg).recall()
		s := cfg.Status
		if s.Options(0) != nil || s.Options(1).Preview != 2 || s.Options(2).Preview != 1 || !s.Lacks(2, icap.MethodRespmod) || s.Lacks(0, icap.MethodRespmod) {
			t.Errorf("after the change of paths: %+v, %+v, %+v", s.Options(0), s.Options(1), s.Options(2))
		}
		cfg.Methods = nil // nothing is known of what is routed
		if NewChecker(cfg).recall(); s.LacksAny() {
			t.Error("a server lacks what nobody needs")
		}
	})
}

// An ISTag that changes is logged once per change; one that always does is not logged for ever.
func TestISTag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tag := func(s string) string { return said200("ISTag: \"" + s + "\"¶") }
		var answers []string
		for i := range 8 {
			answers = append(answers, tag(fmt.Sprint("random", i)))
		}
		f := &fakeServer{answer: script(append([]string{tag("a"), tag("a"), tag("b"), tag("b")}, answers...)...)}
		begin := time.Now()
		c, log := start(t, f.config("/a"))
		at(begin, 10*time.Second)
		if n := c.Status().ISTagChanges(); n != 1 {
			t.Errorf("%d changes, want 1", n)
		}
		if at(begin, 15*time.Second); !c.Status().Options(0).Changed.Equal(begin.Add(10 * time.Second)) {
			t.Errorf("changed at %v, want 10 s after the start", c.Status().Options(0).Changed)
		}
		at(begin, 2*time.Minute)
		if n := c.Status().ISTagChanges(); n != 9 {
			t.Errorf("%d changes, want 9", n)
		}
		want := `level=INFO msg="server is up" server=192.0.2.1:1344 from=checking to=up reason="checks succeed" successes=1 since=2000-01-01T00:00:00.000Z
level=INFO msg="ISTag has changed" server=192.0.2.1:1344 path=/a from="\"a\"" to="\"b\""
level=INFO msg="ISTag has changed" server=192.0.2.1:1344 path=/a from="\"b\"" to="\"random0\""
level=INFO msg="ISTag has changed" server=192.0.2.1:1344 path=/a from="\"random0\"" to="\"random1\""
level=WARN msg="ISTag changes from check to check: further changes are counted and not logged" server=192.0.2.1:1344 path=/a from="\"random1\"" to="\"random2\"" changes=3
`
		if got := log.String(); got != want {
			t.Errorf("log is\n%swant\n%s", got, want)
		}
	})
}

// Those who wait are told when a server begins or ceases to lack a method, and only then.
func TestLacksIsTold(t *testing.T) {
	var s Status
	s.SetState(Up)
	told := 0
	s.OnChange(func(usable, cold bool) {
		if told++; !usable || cold {
			t.Errorf("told usable %v, cold %v", usable, cold)
		}
	})
	for i, step := range []struct {
		lacking []methodSet
		told    int
	}{{[]methodSet{0}, 0}, {[]methodSet{1 << icap.MethodReqmod}, 1}, {[]methodSet{1 << icap.MethodReqmod}, 1}, {[]methodSet{1 << icap.MethodRespmod}, 2}, {nil, 3}} {
		if s.setOptions(nil, step.lacking); told != step.told {
			t.Errorf("step %d: told %d times, want %d", i, told, step.told)
		}
	}
}

func TestLacksDoesNotAllocate(t *testing.T) {
	var s Status
	s.setOptions(nil, []methodSet{1 << icap.MethodReqmod})
	if n := testing.AllocsPerRun(100, func() { s.Lacks(0, icap.MethodReqmod) }); n != 0 {
		t.Errorf("%v allocations per Lacks, want 0", n)
	}
}
