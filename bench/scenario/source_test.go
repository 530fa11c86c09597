package scenario

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"icapgate/bench"
	"icapgate/icap"
)

// chiSquare checks counts against the numbers that are expected, at odds of about 1 in 10,000 for a right distribution. Seeds are fixed,
// so it holds always or never.
func chiSquare(t *testing.T, what string, counts []int, expected []float64) {
	t.Helper()
	x := 0.0
	for i := range counts {
		x += (float64(counts[i]) - expected[i]) * (float64(counts[i]) - expected[i]) / expected[i]
	}
	df := float64(len(counts) - 1)
	// Wilson and Hilferty: the cube root of chi-square over df is nearly normal.
	z := (math.Cbrt(x/df) - (1 - 2/(9*df))) / math.Sqrt(2/(9*df))
	if z > 3.7 {
		t.Errorf("%s: chi-square %.1f of %v degrees of freedom, z %.1f", what, x, df, z)
	}
}

func uniformly(n int, total float64) []float64 {
	return slices.Repeat([]float64{total / float64(n)}, n)
}

func TestWeights(t *testing.T) {
	for _, count := range []int{3, 12} { // looked through, and searched
		var text strings.Builder
		total := 0.0
		for i := range count {
			weight := i % 4 // also 0
			total += float64(weight)
			fmt.Fprintf(&text, "  - {weight: %d, name: r%d}\n", weight, i)
		}
		m := mustCompile(t, mustParse(t, "requests:\n"+text.String()))
		const draws = 100_000
		counts := make([]int, count)
		s := m.NewSource(11)
		for n := range uint64(draws) {
			counts[s.Next(n).Entry]++
		}
		var got []int
		var want []float64
		for i, e := range m.Entries() {
			if share := float64(i%4) / total; math.Abs(e.Share-share) > 1e-9 || e.Name != fmt.Sprint("r", i) {
				t.Errorf("entry %d: %+v, want a share of %v", i, e, share)
			}
			if e.Share == 0 {
				if counts[i] > 0 {
					t.Errorf("%d of weight 0", counts[i])
				}
				continue
			}
			got, want = append(got, counts[i]), append(want, e.Share*draws)
		}
		chiSquare(t, "weights", got, want)
	}
}

// What one request is must say nothing about the next one, though their numbers differ by one only.
func TestNeighboursAreIndependent(t *testing.T) {
	m := mustCompile(t, mustParse(t, "requests: [{name: a}, {name: b}, {name: c}, {name: d}]"))
	for _, seed := range []uint64{0, 1, 2, 1 << 63} {
		s := m.NewSource(seed)
		const draws = 100_000
		counts := make([]int, 16)
		last := s.Next(0).Entry
		for n := range uint64(draws) {
			entry := s.Next(n + 1).Entry
			counts[4*last+entry]++
			last = entry
		}
		chiSquare(t, fmt.Sprint("pairs of seed ", seed), counts, uniformly(16, draws))
	}
}

// contentSizes draws the sizes of many bodies.
func contentSizes(t *testing.T, size string, draws int) []float64 {
	t.Helper()
	s := mustCompile(t, mustParse(t, "requests: [{body: {size: "+size+"}}]")).NewSource(5)
	sizes := make([]float64, draws)
	for n := range sizes {
		r := s.Next(uint64(n))
		if r.Size != r.Content.Size() || !strings.Contains(string(r.Blocks), fmt.Sprintf("Content-Length: %d\r\n", r.Size)) {
			t.Fatalf("size %d, content %d in\n%s", r.Size, r.Content.Size(), r.Blocks)
		}
		sizes[n] = float64(r.Size)
	}
	return sizes
}

func TestUniformSizes(t *testing.T) {
	counts := make([]int, 20)
	for _, size := range contentSizes(t, "{uniform: {min: 100, max: 119}}", 100_000) {
		if size < 100 || size > 119 {
			t.Fatalf("size %v", size)
		}
		counts[int(size)-100]++
	}
	chiSquare(t, "sizes", counts, uniformly(20, 100_000))
}

func TestLogNormalSizes(t *testing.T) {
	const draws, median, sigma = 100_000, 40 << 10, 1.5
	sizes := contentSizes(t, "{lognormal: {median: 40KiB, sigma: 1.5}}", draws)
	var sum, squares float64
	counts := make([]int, 20) // by quantiles of the definition, each 5 %
	for _, size := range sizes {
		z := math.Log(size/median) / sigma
		sum, squares = sum+z, squares+z*z
		counts[min(19, int(20*(1+math.Erf(z/math.Sqrt2))/2))]++
	}
	chiSquare(t, "quantiles", counts, uniformly(20, draws))
	mean := sum / draws
	if deviation := math.Sqrt(squares/draws - mean*mean); math.Abs(mean) > 0.015 || math.Abs(deviation-1) > 0.015 {
		t.Errorf("mean of the logarithms %v, deviation %v, want 0 and 1", mean, deviation)
	}
	slices.Sort(sizes)
	if got := sizes[draws/2]; math.Abs(got/median-1) > 0.03 {
		t.Errorf("median %v, want %v", got, median)
	}
}

// Sizes beyond the limits become the limits; the others stay as they are.
func TestLogNormalLimits(t *testing.T) {
	const draws = 20_000
	counts := map[float64]int{}
	for _, size := range contentSizes(t, "{lognormal: {median: 1000, sigma: 1, min: 500, max: 2000}}", draws) {
		if size < 500 || size > 2000 {
			t.Fatalf("size %v", size)
		}
		counts[size]++
	}
	share := (1 + math.Erf(-math.Ln2/math.Sqrt2)) / 2 // of the normal distribution below -ln 2: 24.4 %
	for _, limit := range []float64{500, 2000} {
		if got := float64(counts[limit]) / draws; math.Abs(got-share) > 0.015 {
			t.Errorf("a share of %v of size %v, want %v", got, limit, share)
		}
	}
}

// field returns the value of a field of an ICAP head.
func field(t *testing.T, head []byte, name string) string {
	t.Helper()
	_, rest, ok := strings.Cut(string(head), "\r\n"+name+": ")
	if !ok {
		t.Fatalf("no %s in\n%s", name, head)
	}
	value, _, _ := strings.Cut(rest, "\r\n")
	return value
}

// The k-th user comes as often as 1/k to the power of s, and so does the k-th client.
func TestZipf(t *testing.T) {
	const draws, count = 200_000, 50
	for _, skew := range []float64{0, 1.1, 2} {
		s := mustCompile(t, mustParse(t, fmt.Sprintf("users: {count: %d, skew: %v, format: 'D/u${number}'}\nclients: {count: %[1]d, skew: %[2]v, network: 192.0.2.0/24}\n"+
			"requests: [{headers: {X-User: '${user}', X-IP: '${client_ip}'}}]", count, skew))).NewSource(3)
		users, clients := make([]int, count), make([]int, count)
		for n := range uint64(draws) {
			head := s.Next(n).Head
			user, err := strconv.Atoi(strings.TrimPrefix(field(t, head, "X-User"), "D/u"))
			if err != nil || user < 1 || user > count {
				t.Fatalf("user in\n%s", head)
			}
			users[user-1]++
			address, err := netip.ParseAddr(field(t, head, "X-IP"))
			if err != nil {
				t.Fatal(err)
			}
			clients[address.As4()[3]-1]++
		}
		expected, sum := make([]float64, count), 0.0
		for k := range expected {
			expected[k] = math.Pow(float64(k+1), -skew)
			sum += expected[k]
		}
		for k := range expected {
			expected[k] *= draws / sum
		}
		chiSquare(t, fmt.Sprint("users, skew ", skew), users, expected)
		chiSquare(t, fmt.Sprint("clients, skew ", skew), clients, expected)
	}
}

func TestAddresses(t *testing.T) {
	f := func(network string, number uint64, want string) {
		t.Helper()
		s := mustParse(t, "requests: [{}]\nclients: {count: 1, network: '"+network+"'}")
		if got := address(firstAddress(s.Clients.Network), number).String(); got != want {
			t.Errorf("%s, %d: %s, want %s", network, number, got, want)
		}
	}
	f("10.0.0.0/8", 0, "10.0.0.1")
	f("10.0.0.0/8", 254, "10.0.0.255")
	f("10.0.0.0/8", 255, "10.0.1.0")
	f("10.0.0.0/8", 1<<24-2, "10.255.255.255")
	f("192.0.2.7", 0, "192.0.2.7")
	f("2001:db8::/32", 0, "2001:db8::1")
	f("2001:db8::/32", 1<<40-1, "2001:db8::100:0:0")
}

func TestVariables(t *testing.T) {
	s := mustParse(t, `
users: {count: 1, format: "CORP/bob"}
clients: {count: 1, network: 192.0.2.7}
incident_header: X-Incident-ID
requests:
  - headers: {X-A: "${user}, ${user_base64}; ${client_ip}/${n} ${id} ${size} ${file} $${n} $5", X-UUID: "${uuid}", User-Agent: ""}
    path: "/r?n=${n}"
    url: "http://h/${n}"
    http_headers: {Cookie: "n=${n}"}
    body: 7
  - {method: OPTIONS, name: options, weight: 0}
  - {name: hidden, weight: 0, headers: {X-Incident-ID: ""}}
`)
	m := mustCompile(t, s)
	if err := m.SetRun("r1"); err != nil {
		t.Fatal(err)
	}
	source := m.NewSource(1)
	r := source.Next(42)
	user := base64.StdEncoding.EncodeToString([]byte("WinNT://CORP/bob"))
	if got, want := field(t, r.Head, "X-A"), "CORP/bob, "+user+"; 192.0.2.7/42 r1-42 7 upload.bin ${n} $5"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := field(t, r.Head, "X-Incident-ID"); got != "r1-42" {
		t.Errorf("incident %s", got)
	}
	first := field(t, r.Head, "X-UUID")
	if uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`); !uuid.MatchString(first) {
		t.Errorf("UUID %s", first)
	}
	if !strings.HasPrefix(string(r.Head), "REQMOD icap://gate.example:1344/r?n=42 ICAP/1.0\r\n") || strings.Contains(string(r.Head), "User-Agent") ||
		!strings.HasPrefix(string(r.Blocks), "POST http://h/42 HTTP/1.1\r\nHost: h\r\n") || field(t, r.Blocks, "Cookie") != "n=42" {
		t.Errorf("%s%s", r.Head, r.Blocks)
	}
	if got := field(t, source.Next(43).Head, "X-UUID"); got == first {
		t.Errorf("UUID %s twice", got)
	}
	for entry, name := range []string{1: "an OPTIONS", 2: "a request that takes it away"} {
		if entry > 0 {
			if source.build(entry, 1); strings.Contains(string(source.request.Head), "X-Incident-ID") {
				t.Errorf("%s has a name of an incident: %s", name, source.request.Head)
			}
		}
	}
	if m.SetRun("a b") == nil || m.SetRun("") == nil {
		t.Error("a bad name of a run is taken")
	}
}

// A form is the same bytes as a browser's, with the file in its middle.
func TestForm(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"b/two\".txt": "second", "a.txt": "first", ".hidden": "no", "b/.git/x": "no"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(dir, "a.txt"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	s := mustParse(t, "requests: [{body: {files: "+dir+", form: {field: doc, fields: {id: '${n}'}}}}]")
	source := mustCompile(t, s).NewSource(1)
	seen := map[string]int{}
	const draws = 1000
	for n := range uint64(draws) {
		r := source.Next(n)
		body, err := io.ReadAll(r.Body)
		if err != nil || int64(len(body)) != r.Size {
			t.Fatalf("%d bytes of %d, %v", len(body), r.Size, err)
		}
		_, boundary, _ := strings.Cut(field(t, r.Blocks, "Content-Type"), "boundary=")
		head := fmt.Sprintf("--%s\r\nContent-Disposition: form-data; name=\"id\"\r\n\r\n%d\r\n--%[1]s\r\nContent-Disposition: form-data; name=\"doc\"; filename=\"", boundary, n)
		rest, ok := strings.CutPrefix(string(body), head)
		if !ok {
			t.Fatalf("got  %q\nwant %q", body, head)
		}
		file, end, _ := strings.Cut(rest, "\r\n--"+boundary)
		if end != "--\r\n" {
			t.Fatalf("end %q", end)
		}
		seen[strings.Replace(file, "\"\r\nContent-Type: application/octet-stream\r\n\r\n", " ", 1)]++
	}
	if len(seen) != 2 {
		t.Fatalf("files %v", seen)
	}
	chiSquare(t, "files", []int{seen["a.txt first"], seen["two%22.txt second"]}, uniformly(2, draws))
}

// snapshot is all of a request that is sent.
func snapshot(t *testing.T, r *Request) string {
	t.Helper()
	hash := new(bytes.Buffer)
	fmt.Fprintf(hash, "%d %d %+v %v %d %v %d %v\n%s%s", r.N, r.Entry, r.Fault, r.ExpectBody, r.Size, r.Chunks, r.Preview, r.Body != nil, r.Head, r.Blocks)
	if _, err := io.CopyN(hash, &r.Content, min(r.Size, 5000)); err != nil {
		t.Fatal(err)
	}
	return hash.String()
}

// The n-th request is the same whichever source makes it, and whatever that has made before.
func TestNextIsDetermined(t *testing.T) {
	for name, s := range everyScenario(t) {
		m := mustCompile(t, s)
		inOrder, backwards, other := m.NewSource(9), m.NewSource(9), m.NewSource(10)
		var want []string
		differ := 0
		for n := range uint64(200) {
			want = append(want, snapshot(t, inOrder.Next(n)))
			if snapshot(t, other.Next(n)) != want[n] {
				differ++
			}
		}
		for n := 199; n >= 0; n-- {
			if got := snapshot(t, backwards.Next(uint64(n))); got != want[n] {
				t.Fatalf("%s: request %d differs\n%s\n%s", name, n, got, want[n])
			}
		}
		if differ < 100 {
			t.Errorf("%s: only %d of 200 requests of another seed are others", name, differ)
		}
	}
}

func TestFaultyClients(t *testing.T) {
	m := mustCompile(t, mustParse(t, `
requests: [{name: get, weight: 3}, {name: post, body: 1000}]
faults:
  - {kind: slow_body, share: 0.1, rate: 2KiB}
  - {kind: abort_body, share: 0.1, after: 0.25}
  - {kind: connect_and_leave, share: 0.2, hold: 3s}
`))
	source := m.NewSource(4)
	const draws = 50_000
	counts := map[FaultKind]int{}
	for n := range uint64(draws) {
		r := source.Next(n)
		f := r.Fault
		counts[f.Kind]++
		switch f.Kind {
		case "":
			if f != (Fault{}) {
				t.Fatalf("fault %+v", f)
			}
		case SlowBody:
			if r.Size != 1000 || f.Rate != 2048 {
				t.Fatalf("size %d, fault %+v", r.Size, f)
			}
		case AbortBody:
			if r.Size != 1000 || f.After != 250 {
				t.Fatalf("size %d, fault %+v", r.Size, f)
			}
		case ConnectAndLeave:
			if f.Hold.Seconds() != 3 {
				t.Fatalf("fault %+v", f)
			}
		}
	}
	chiSquare(t, "faults", []int{counts[""], counts[SlowBody], counts[AbortBody], counts[ConnectAndLeave]},
		[]float64{0.6 * draws, 0.1 * draws, 0.1 * draws, 0.2 * draws})
}

func TestExpected(t *testing.T) {
	f := func(request string, want ...int) {
		t.Helper()
		r := mustCompile(t, mustParse(t, "requests: ["+request+"]")).NewSource(1).Next(0)
		var got []int
		for status := 100; status < 600; status++ {
			if r.Expected(status) {
				got = append(got, status)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", request, got, want)
		}
	}
	f("{}", 200, 204)
	f("{allow: []}", 200, 204)
	f("{allow: [206]}", 200, 204, 206)
	f("{method: OPTIONS}", 200)
	f("{expect: {status: [503, 403]}}", 403, 503)
}

// A message from the command line goes the same way as a scenario.
func TestSingle(t *testing.T) {
	message := bench.Message{Method: icap.MethodRespmod, Preview: 0, Chunk: 7, Allow206: true, Fields: []string{"X-A: ${n}", "User-Agent:"}}
	s := Single(message, 100)
	s.IncidentHeader = "X-ID"
	m := mustCompile(t, s)
	r := m.NewSource(1).Next(5)
	if r.Size != 100 || r.Chunk != 7 || r.Preview != 0 || !r.Allow204 || !r.Allow206 || field(t, r.Head, "X-A") != "5" || field(t, r.Head, "X-ID") != "run-5" ||
		strings.Contains(string(r.Head), "User-Agent") {
		t.Errorf("%+v\n%s", r.Request, r.Head)
	}
	if err := verify(r); err != nil {
		t.Error(err)
	}
	if e := m.Entries(); len(e) != 1 || e[0] != (Entry{"request", icap.MethodRespmod, 1}) {
		t.Errorf("entries %+v", e)
	}
	if len(message.Fields) != 2 {
		t.Errorf("fields %q of the caller's message", message.Fields)
	}
	empty := mustCompile(t, Single(bench.Message{Method: icap.MethodReqmod, Preview: -1}, 0)).NewSource(1).Next(0)
	if empty.Body != nil || !strings.Contains(string(empty.Head), "null-body=") {
		t.Errorf("%s", empty.Head)
	}
}

// Requests are made while the load is running.
func TestNextAllocatesNothing(t *testing.T) {
	for name, s := range everyScenario(t) {
		source := mustCompile(t, s).NewSource(1)
		n := uint64(0)
		for ; n < 1000; n++ { // buffers grow
			source.Next(n)
		}
		if got := testing.AllocsPerRun(1000, func() { source.Next(n); n++ }); got != 0 {
			t.Errorf("%s: %v allocations", name, got)
		}
	}
}

func BenchmarkNext(b *testing.B) {
	for _, name := range Presets {
		b.Run(name, func(b *testing.B) {
			preset, err := Preset(name)
			if err != nil {
				b.Fatal(err)
			}
			source := mustCompile(b, preset).NewSource(1)
			b.ReportAllocs()
			for n := uint64(0); b.Loop(); n++ {
				source.Next(n)
			}
		})
	}
}

func TestPick(t *testing.T) {
	var s shares
	for _, weight := range []float64{0, 1, 0, 2, 0} {
		s.add(weight)
	}
	long := append(shares(nil), s...)
	for range 8 { // searched, not looked through
		long.add(0)
	}
	for x, want := range map[float64]int{0: 1, 0.99: 1, 1: 3, 2.99: 3} {
		if got := s.pick(x); got != want {
			t.Errorf("%v: %d, want %d", x, got, want)
		}
		if got := long.pick(x); got != want {
			t.Errorf("%v of many: %d, want %d", x, got, want)
		}
	}
	for _, beyond := range []float64{3, 4} {
		if got := s.pick(beyond); got != len(s) {
			t.Errorf("%v: %d", beyond, got)
		}
		if got := long.pick(beyond); got != len(long) {
			t.Errorf("%v of many: %d", beyond, got)
		}
	}
}
