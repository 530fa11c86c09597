package process

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// newNamespace makes a network for a test, which is skipped where that can't be done.
func newNamespace(t *testing.T) *Namespace {
	t.Helper()
	n, err := NewNamespace(t.Context())
	if err != nil {
		text := "no network namespace can be made: " + err.Error()
		if os.Getenv("ICAPGATE_REQUIRE_PEERS") == "1" {
			t.Fatal(text)
		}
		t.Skip(text)
	}
	t.Cleanup(n.Close)
	return n
}

func TestNamespace(t *testing.T) {
	n := newNamespace(t)
	ln, err := n.Listen()
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			nc.Close()
		}
	}()
	connects := func() error {
		nc, err := net.DialTimeout("tcp", ln.Addr().String(), 200*time.Millisecond)
		if err == nil {
			nc.Close()
		}
		return err
	}
	if err := connects(); err != nil {
		t.Fatal(err)
	}
	if err := n.Unplug(t.Context()); err != nil {
		t.Fatal(err)
	}
	if connects() == nil {
		t.Error("it can be reached with the cable out")
	}
	if err := n.Plug(t.Context()); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); connects() != nil; {
		if time.Now().After(deadline) {
			t.Fatal("it can't be reached with the cable in again")
		}
	}
	within := n.Within()
	out, err := exec.Command(within[0], append(within[1:], "ip", "addr")...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), n.Host) {
		t.Errorf("a program within sees %v\n%s, want %s", err, out, n.Host)
	}
	n.Close()
	if out, _ := exec.Command("ip", "netns").Output(); strings.Contains(string(out), n.name) {
		t.Errorf("it is left behind:\n%s", out)
	}
}
