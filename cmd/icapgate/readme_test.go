package main

import (
	"os"
	"strings"
	"testing"

	"icapgate/configs"
)

// The configurations in the README are good; those that show a part only get a listener.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(text), "```yaml\n")[1:]
	if len(blocks) == 0 {
		t.Fatal("no configuration in the README")
	}
	for _, block := range blocks {
		config, _, ended := strings.Cut(block, "```\n")
		if !ended {
			t.Fatalf("this block does not end:\n%s", block)
		}
		if !strings.HasPrefix(config, "listeners:") {
			config = "listeners: [{address: \"127.0.0.1:1344\"}]\n" + config
		}
		if _, err := configs.Parse("README.md", []byte(config)); err != nil {
			t.Errorf("%v in\n%s", err, config)
		}
	}
}
