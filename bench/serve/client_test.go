package serve

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"icapgate/bench"
	"icapgate/icap"
)

// TestClient sends files as the client of this project does, to every kind of answer and fault, plain and over TLS: what it makes of them is
// what they are to be.
func TestClient(t *testing.T) {
	file := filepath.Join(t.TempDir(), "body.bin")
	content := make([]byte, 300_000)
	rand.NewChaCha8([32]byte{1}).Read(content)
	copy(content[200_000:], "TOP-SECRET")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name     string
		settings string
		message  bench.Message
		want     string     // in what it prints
		kind     bench.Kind // of the error, if want is ""
	}{
		{"204", "", bench.Message{Preview: -1}, "no modification (204)", ""},
		{"204 not allowed", "", bench.Message{Preview: -1, No204: true}, "identical echo (200)", ""},
		{"echo after a preview", "mode: echo", bench.Message{Preview: 1024}, "identical echo (200)", ""},
		{"modify", "mode: modify, change_header: 'X-Seen: yes'", bench.Message{Preview: 0}, "same body, other heads (200)", ""},
		{"modify a response", "mode: modify, change_body: 'notice', change_skip: 100", bench.Message{Method: icap.MethodRespmod, Preview: -1}, "modified", ""},
		{"206", "mode: partial, change_header: 'X-Seen: yes'", bench.Message{Preview: 1024, Allow206: true}, "206, the original from byte 0 on", ""},
		{"206 of a response", "mode: partial, change_body: 'notice', change_skip: 10", bench.Message{Method: icap.MethodRespmod, Preview: -1, Allow206: true}, "206, the original from byte 10 on", ""},
		{"block", "mode: block, early: true", bench.Message{Preview: -1}, "HTTP 403", ""},
		{"match", "match: TOP-SECRET", bench.Message{Preview: 1024}, "HTTP 403", ""},
		{"match in pieces", "match_regexp: 'TOP-[A-Z]+', match_limit: 10KiB", bench.Message{Preview: -1}, "HTTP 403", ""},
		{"match of a response", "match: TOP-SECRET, mode: echo, block_status: 200", bench.Message{Method: icap.MethodRespmod, Preview: -1}, "HTTP 200", ""},
		{"match out of reach", "match: TOP-SECRET, mode: echo, match_limit: 100KiB", bench.Message{Preview: -1}, "identical echo (200)", ""},
		{"slow reader", "read_rate: 10MiB, mode: echo", bench.Message{Preview: -1}, "identical echo (200)", ""},
		{"status", "status: 500", bench.Message{Preview: -1}, "500", ""},
		{"garbage", "fault: [garbage]", bench.Message{Preview: -1}, "", bench.Framing},
		{"wrong Encapsulated", "mode: echo, fault: [encapsulated]", bench.Message{Preview: -1}, "the Encapsulated field is wrong", ""},
		{"reset answer", "mode: echo, fault: [reset-answer]", bench.Message{Preview: 1024}, "", bench.Truncated},
		{"silent", "fault: [silent]", bench.Message{Preview: 1024}, "", bench.Timeout},
		{"stall", "fault: [stall]", bench.Message{Preview: 1024}, "", bench.Timeout},
	}
	for _, secure := range []bool{false, true} {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s secure %v", tt.name, secure), func(t *testing.T) {
				t.Parallel()
				c := mustStart(t, fmt.Sprintf("servers: [{listen: '127.0.0.1:0', tls: %v, %s}]", secure, tt.settings))
				scheme, timeout := "icap://", time.Minute
				var config *tls.Config
				if secure {
					scheme, config = "icaps://", &tls.Config{InsecureSkipVerify: true}
				}
				if tt.kind == bench.Timeout {
					timeout = 100 * time.Millisecond
				}
				target, err := bench.ParseTarget(scheme + c.Addresses()[0] + "/r")
				if err != nil {
					t.Fatal(err)
				}
				if tt.message.Method == icap.MethodOther {
					tt.message.Method = icap.MethodReqmod
				}
				var out bytes.Buffer
				_, err = bench.Send(context.Background(), &out, bench.SendConfig{
					Target: target, TLS: config, Message: tt.message, File: file, Timeout: timeout,
				})
				if tt.want != "" {
					if err != nil || !strings.Contains(out.String(), tt.want) {
						t.Errorf("%v, want %s in\n%s", err, tt.want, out.String())
					}
					return
				}
				var failed *bench.Error
				if !errors.As(err, &failed) || failed.Kind != tt.kind && !(secure && tt.name == "stall" && failed.Kind == bench.Handshake) {
					t.Errorf("got %v, want %v", err, tt.kind)
				}
			})
		}
	}
}
