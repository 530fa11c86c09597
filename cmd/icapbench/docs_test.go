package main

import (
	"os"
	"regexp"
	"testing"

	"icapgate/bench/scenario"
	"icapgate/bench/serve"
	"icapgate/configs"
)

var yamlBlock = regexp.MustCompile("(?s)`([a-z]+\\.yaml)`:[^`]*```yaml\n(.*?)```")

// TestCapacityDocs reads the files of the worked example, so that it can be followed.
func TestCapacityDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/CAPACITY.md")
	if err != nil {
		t.Fatal(err)
	}
	readers := map[string]func(file string, content []byte) error{
		"servers.yaml": func(file string, content []byte) error {
			_, err := serve.Parse(file, content, serve.Settings{})
			return err
		},
		"gateway.yaml":   func(file string, content []byte) error { _, err := configs.Parse(file, content); return err },
		"incidents.yaml": func(file string, content []byte) error { _, err := scenario.Parse(file, content); return err },
	}
	for _, block := range yamlBlock.FindAllSubmatch(text, -1) {
		name := string(block[1])
		read := readers[name]
		if read == nil {
			t.Errorf("nobody reads %s", name)
			continue
		}
		if err := read(name, block[2]); err != nil {
			t.Error(err)
		}
		delete(readers, name)
	}
	for name := range readers {
		t.Errorf("%s is not in the text", name)
	}
}
