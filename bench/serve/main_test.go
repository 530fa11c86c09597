package serve

import (
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	get      = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"  // 27 bytes
	post     = "POST / HTTP/1.1\r\nHost: a\r\n\r\n" // 28 bytes
	bodyless = "REQMOD icap://s/r ICAP/1.0\r\nAllow: 204\r\nEncapsulated: req-hdr=0, null-body=27\r\n\r\n" + get
)

// mustStart starts a cluster of a YAML text and ends it with the test. It fails if the cluster does.
func mustStart(t *testing.T, text string) *Cluster {
	t.Helper()
	cfg, err := Parse("test.yaml", []byte(text), Settings{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		select {
		case err := <-c.Failed():
			t.Error(err)
		default:
		}
	})
	return c
}

// mustDial connects to a server.
func mustDial(t *testing.T, address string) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(time.Minute)) // a hang becomes an error
	t.Cleanup(func() { nc.Close() })
	return nc
}

// exchange sends a request and returns what comes until the text end, which has to come.
func exchange(t *testing.T, nc net.Conn, request, end string) string {
	t.Helper()
	if _, err := io.WriteString(nc, request); err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	buf := make([]byte, 1)
	for !strings.HasSuffix(got.String(), end) {
		if _, err := nc.Read(buf); err != nil {
			t.Fatalf("%q, then %v; want it to end in %q", got.String(), err, end)
		}
		got.Write(buf)
	}
	return got.String()
}

// command sends a command to the control address and returns status and body.
func command(t *testing.T, c *Cluster, path string, form url.Values) (int, string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.PostForm("http://"+c.ControlAddress()+path, form)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

func mustGet(t *testing.T, c *Cluster, path string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get("http://" + c.ControlAddress() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s, %s, %v", path, r.Status, body, err)
	}
	return string(body)
}
