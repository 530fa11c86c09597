package icap

import "testing"

func TestParseOptions(t *testing.T) {
	silent := Options{Preview: -1}
	for _, test := range []struct {
		name, fields string
		want         Options
	}{
		{"nothing", "", silent},
		{"symantec", "ISTag: \"Vontu12.0\"¶Methods: REQMOD¶Options-TTL: 3600¶Preview: 4096¶Transfer-Preview: *¶Allow: 204¶Max-Connections: 16¶",
			Options{Methods: [NumMethods]bool{MethodReqmod: true}, MaxConnections: 16, Preview: 4096, TTL: 3600, ISTag: `"Vontu12.0"`, Allow: Allow204, TransferPreview: "*"}},
		{"c-icap", "Methods: RESPMOD, REQMOD¶Allow: 204, 206, trailers¶Preview: 0¶ISTag:x¶",
			Options{Methods: [NumMethods]bool{MethodReqmod: true, MethodRespmod: true}, ISTag: "x", Allow: Allow204 | Allow206 | AllowTrailers}},
		{"methods-spellings", "methods: reqmod OPTIONS,,¶Methods:\trespmod FOO¶", Options{Preview: -1, Methods: [NumMethods]bool{MethodOptions: true, MethodReqmod: true, MethodRespmod: true}}},
		{"R36 zeros", "Preview: 0¶Max-Connections: 0¶Options-TTL: 0¶", Options{}},
		{"R36 negative", "Preview: -1¶Max-Connections: -5¶Options-TTL: -3600¶", silent},
		{"R36 text", "Preview: none¶Max-Connections: unlimited¶Options-TTL: 1h¶Methods: all¶Allow: yes¶", silent},
		{"R36 fractions", "Preview: 1.5¶Max-Connections: 1e3¶Options-TTL: 60, 70¶", silent},
		{"R36 overflow", "Preview: 2147483648¶Max-Connections: 99999999999999999999¶Options-TTL: 18446744073709551617¶", silent},
		{"R36 empty", "Preview:¶Max-Connections: ¶Options-TTL:¶Methods:¶Allow:¶ISTag:¶", silent},
		{"texts", "service: Scan  v1¶Service-ID: scan¶Transfer-Preview: *¶Transfer-Ignore: jpg, gif¶Transfer-Ignore: png¶Transfer-Complete: asp¶\tbat¶X-INCLUDE: X-Client-IP¶Opt-body-type: Attribute-List¶",
			Options{Preview: -1, Service: "Scan v1", ServiceID: "scan", TransferPreview: "*", TransferIgnore: "jpg, gif, png", TransferComplete: "asp bat",
				Include: "X-Client-IP", OptBodyType: "Attribute-List"}},
		{"last-that-makes-sense", "Max-Connections: 5¶Max-Connections: x¶", Options{Preview: -1, MaxConnections: 5}},
	} {
		var r Response
		if err := r.Parse([]byte(toWire.Replace("ICAP/1.0 200 OK¶" + test.fields + "¶"))); err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if got := ParseOptions(&r); got != test.want {
			t.Errorf("%s:\n got %+v\nwant %+v", test.name, got, test.want)
		}
	}
}

func TestOptionsLacks(t *testing.T) {
	for _, test := range []struct {
		methods string
		want    [NumMethods]bool
	}{
		{"", [NumMethods]bool{}},
		{"Methods: all¶", [NumMethods]bool{}},
		{"Methods: OPTIONS¶", [NumMethods]bool{}},
		{"Methods: REQMOD¶", [NumMethods]bool{MethodRespmod: true}},
		{"Methods: OPTIONS, respmod¶", [NumMethods]bool{MethodReqmod: true}},
		{"Methods: RESPMOD, REQMOD¶", [NumMethods]bool{}},
	} {
		var r Response
		if err := r.Parse([]byte(toWire.Replace("ICAP/1.0 200 OK¶" + test.methods + "¶"))); err != nil {
			t.Fatal(err)
		}
		o := ParseOptions(&r)
		for m := range Method(NumMethods) {
			if got := o.Lacks(m); got != test.want[m] {
				t.Errorf("%q lacks %v: %v, want %v", test.methods, m, got, test.want[m])
			}
		}
	}
}

func TestStatusText(t *testing.T) {
	for _, code := range []int{100, 200, 201, 204, 206, 400, 403, 404, 405, 408, 413, 418, 500, 501, 502, 503, 504, 505} {
		if StatusText(code) == "" {
			t.Errorf("no text for %d", code)
		}
	}
	for code, want := range map[int]string{100: "Continue", 204: "No modifications needed", 404: "ICAP Service not found", 299: "", 0: ""} {
		if got := StatusText(code); got != want {
			t.Errorf("StatusText(%d) = %q, want %q", code, got, want)
		}
	}
}
