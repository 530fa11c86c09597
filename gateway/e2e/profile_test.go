package e2e

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"icapgate/bench/serve"
)

// TestProfileOfCICAP puts the same questions to c-icap and to the fake server that imitates it.
func TestProfileOfCICAP(t *testing.T) {
	real := startCICAP(t, "")
	profile := "c-icap"
	cfg, err := serve.Listening([]string{"127.0.0.1:0"}, serve.Settings{Profile: &profile})
	if err != nil {
		t.Fatal(err)
	}
	fake, err := serve.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	want, got := mannersOf(t, real.address), mannersOf(t, fake.Addresses()[0])
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-c-icap +profile:\n%s", diff)
	}
}

// mannersOf says how a server answers, one line for each question.
func mannersOf(t *testing.T, address string) (lines []string) {
	t.Helper()
	dial := func() *icapClient {
		nc, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		return newClient(t, nc, "icap://"+address+"/echo")
	}
	c := dial()
	ask := func(name, message string) {
		t.Helper()
		if _, err := c.Write([]byte(message)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		a, err := c.read()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		line := fmt.Sprintf("%s: %d close=%v body=%q via=%v", name, a.status, a.fields.Get("Connection") == "close", a.body, strings.Contains(a.blocks, "\r\nVia: "))
		for _, field := range []string{"ISTag", "Methods", "Preview", "Transfer-Preview", "Options-TTL", "Max-Connections"} {
			line += fmt.Sprintf(" %s=%s", field, a.fields.Get(field))
		}
		lines = append(lines, line)
	}
	options := string(request{method: "OPTIONS"}.appendTo(nil, c.uri))
	post := string(request{method: "REQMOD", fields: "Allow: 204\r\n", body: []byte("hello")}.appendTo(nil, c.uri))
	preview := strings.Replace(strings.Replace(post, "Allow: 204", "Allow: 204\r\nPreview: 1024", 1), "\r\n0\r\n\r\n", "\r\n0; ieof\r\n\r\n", 1)
	response := string(request{method: "RESPMOD", fields: "Allow: 204\r\n", body: []byte("hello")}.appendTo(nil, c.uri))
	ask("options", options)
	for i := range 4 {
		ask(fmt.Sprintf("preview %d", i), preview)
	}
	ask("post", post)
	ask("response", response)

	for _, last := range []string{"post", "options"} {
		c = dial()
		for range 100 {
			if _, err := c.Write([]byte(post)); err != nil {
				t.Fatal(err)
			}
			a, err := c.read()
			if err != nil || a.fields.Get("Connection") == "close" {
				t.Fatalf("one of the first 100 answers: %+v, %v", a, err)
			}
		}
		ask("101st, "+last, map[string]string{"post": post, "options": options}[last])
		if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("the connection goes on after 101 requests")
		}
		lines = append(lines, "ended")
	}
	return lines
}
