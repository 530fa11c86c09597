package result

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"icapgate/bench"
)

// judged returns a result with figures that are easy to judge.
func judged() *Result {
	r := New()
	r.Seconds, r.Begun, r.Requests = 10, 1000, 990
	r.AddError(bench.Timeout, Errors{Count: 7})
	r.AddError(bench.Status, Errors{Count: 3})
	for i := range 990 {
		r.Latency.Record(time.Duration(i+1) * time.Millisecond)
		r.Service.Record(5 * time.Millisecond)
	}
	r.Phases.Connect.Record(2 * time.Millisecond)
	r.Late.Waited, r.Late.Generator = 20, 5
	big := Entry{Name: "big.files", Count: Count{Requests: 90, Failed: 10}, Latency: NewHistogram()}
	big.Latency.Record(time.Second)
	r.Entries = []Entry{big, {Name: "none"}}
	return r
}

func TestConditionHolds(t *testing.T) {
	r := judged()
	f := func(text string, holds bool, value string) {
		t.Helper()
		c, err := ParseCondition(text)
		if err != nil {
			t.Error(err)
			return
		}
		if h, v := c.Holds(r); h != holds || v != value {
			t.Errorf("%s: %v, %s; want %v, %s", text, h, v, holds, value)
		}
	}
	f("p50<500ms", true, "495ms")
	f("p50 <= 0.4s", false, "495ms")
	f("p99>50ms", true, "982ms")
	f("p99.9>=1s", false, "990ms")
	f("p100<1s", true, "990ms")
	f("max>991ms", false, "990ms")
	f("p0<=2ms", true, "1ms")
	f("mean<496ms", true, "496ms") // 495.7 ms
	f("mean<495ms", false, "496ms")
	f("service.p99<6ms", true, "5ms")
	f("connect.p99>1ms", true, "2ms")
	f("continue.p99>0s", false, "0s") // no request had one
	f("handshake.mean<=0s", true, "0s")
	f("errors<1%", false, "1% (10 of 1000)")
	f("errors<=1%", true, "1% (10 of 1000)")
	f("errors>10", false, "10")
	f("errors > 9", true, "10")
	f("errors.timeout>0", true, "7")
	f("errors.echo>0", false, "0")
	f("errors.status<0.4%", true, "0.3% (3 of 1000)")
	f("rate<100", true, "99/s")
	f("rate>=99/s", true, "99/s")
	f("late>2.4%", true, "2.5% (25 of 1000)")
	f("late.generator>5", false, "5")
	f("late.no_connection>=2%", true, "2% (20 of 1000)")
	f("entry.big.files.p99.9>=1s", true, "1s")
	f("entry.big.files.errors<1%", false, "10% (10 of 100)")
	f("entry.none.p99<1s", false, "no answers")
	f("entry.missing.errors<1%", false, "no requests")

	r = New() // nothing was answered
	f("p99<50ms", false, "no answers")
	f("p99>50ms", true, "no answers")
	f("continue.p99<50ms", false, "no answers")
	f("errors<1%", false, "no requests")
	f("errors<=0", true, "0")
	f("rate<1", true, "0/s")

	if holds, _ := (Condition{}).Holds(r); holds {
		t.Error("a condition that says nothing holds")
	}
}

func TestParseConditionRefuses(t *testing.T) {
	f := func(text, want string) {
		t.Helper()
		if c, err := ParseCondition(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v; want %q", text, c, err, want)
		}
	}
	f("", "such as p99<50ms")
	f("p99", "such as p99<50ms")
	f("p99=50ms", "<, <=, > or >=")
	f("p99==50ms", "<, <=, > or >=")
	f("p99<<50ms", "such as 50ms")
	f("p99<50", "such as 50ms")
	f("p99<-50ms", "such as 50ms")
	f("p101<50ms", `no figure "p101"`)
	f("p<50ms", `no figure "p"`)
	f("p-1<50ms", `no figure "p-1"`)
	f("pNaN<50ms", `no figure "pNaN"`)
	f("p1.2.3<50ms", `no figure "p1.2.3"`)
	f("<50ms", `no figure ""`)
	f(".p99<50ms", `no figure ".p99"`)
	f("service<50ms", "first_byte.")
	f("body.p99<50ms", "first_byte.")
	f("errors.full>1", "errors.timeout")
	f("late.server>1", "late.no_connection, late.generator")
	f("errors<0.01", "%")
	f("errors<50ms", "such as 0.1%")
	f("errors<101%", "such as 0.1%")
	f("errors<%", "such as 0.1%")
	f("errors<1e9", "such as 0.1%")
	f("rate<fast", "such as 1000")
	f("rate<1%", "such as 1000")
	f("entry.p99<1s", "entry.uploads.p99")
	f("entry.a.rate<1", "entry.uploads.p99")
	f("entry.a.connect.p99x<1s", "entry.uploads.p99")
	if _, err := ParseConditions("p99<50ms,,errors<1%"); err == nil {
		t.Error("nothing is a condition")
	}
}

func TestParseConditions(t *testing.T) {
	list, err := ParseConditions("p99<50ms, entry.a b.max < 1s,errors<0.01%")
	if err != nil || fmt.Sprint(list) != "[p99<50ms entry.a b.max < 1s errors<0.01%]" || list[1].Entry() != "a b" || !list[0].Upper() {
		t.Errorf("%v, %v", list, err)
	}
	text, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	var again []Condition
	if err := json.Unmarshal(text, &again); err != nil || !slices.Equal(again, list) {
		t.Errorf("%v, %v, want %v", again, err, list)
	}
}

func TestConditionLost(t *testing.T) {
	r := judged() // 990 answers of 1 to 990 ms, 10 errors, 25 late
	f := func(text string, total, overdue int64, want bool) {
		t.Helper()
		c, err := ParseCondition(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Lost(r, total, func(time.Duration) int64 { return overdue }); got != want {
			t.Errorf("%s, of %d requests: lost %v, want %v", text, total, got, want)
		}
	}
	f("p99<980ms", 1000, 0, false) // 10 are above it
	f("p99<970ms", 1000, 0, true)  // 20
	f("p99<970ms", 2000, 0, false) // which are not more than 1 % of all that come
	f("p99<970ms", 2000, 10, true)
	f("max<990ms", 1000, 0, false)
	f("max<900ms", 1e6, 0, true)
	f("p99>970ms", 1000, 0, false) // no upper limit
	f("service.p99<1ms", 1000, 0, false)
	f("errors<0.5%", 1000, 0, true)
	f("errors<0.5%", 3000, 0, false)
	f("errors<=9", 1e6, 0, true)
	f("errors<=10", 1e6, 0, false)
	f("late<1%", 1000, 0, true)
	f("entry.big.files.errors<1%", 100, 0, false)
}

func FuzzParseCondition(f *testing.F) {
	for _, text := range []string{
		"p99<50ms", "p99.99 >= 1.5s", "errors<0.01%", "errors.timeout>0", "rate<1000/s", "late.generator>1%", "entry.a.b.p99.9<2s", "connect.max>1s", "entry.<",
	} {
		f.Add(text)
	}
	r := judged()
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseCondition(text)
		if err != nil {
			return
		}
		if holds, value := c.Holds(r); value == "" {
			t.Errorf("%q holds: %v, without a value", text, holds)
		}
		c.Lost(r, 1000, func(time.Duration) int64 { return 1 })
		again, err := ParseCondition(c.String())
		if err != nil || again != c {
			t.Errorf("%q becomes %+v and is read as %+v, %v", text, c, again, err)
		}
	})
}
