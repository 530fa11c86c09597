package configs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// maxFileSize bounds a configuration file, in bytes.
const maxFileSize = 4 << 20

// Load reads a configuration file. The error is of type Faults and has all that is wrong with the file.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, Faults{{File: path, Text: fmt.Sprintf("cannot open: %s", reason(err))}}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, Faults{{File: path, Text: fmt.Sprintf("cannot read: %s", reason(err))}}
	}
	return Parse(path, data)
}

// Parse is Load for a text that is already at hand. The name stands in front of every fault, and relative file names in the
// text count from its folder.
func Parse(name string, data []byte) (*Config, error) {
	root, fault := parseYAML(data)
	if fault != nil {
		fault.File = name
		return nil, Faults{*fault}
	}
	var c Config
	d := decoder{findings: findings{source: source{file: name, lines: make(map[string]int)}}}
	d.decode(root, "", reflect.ValueOf(&c).Elem())
	if d.nodes > maxNodes {
		return nil, Faults{{File: name, Text: fmt.Sprintf("has more than %d values", maxNodes)}}
	}
	c.source = d.source
	c.complete()
	faults := d.faults
	for _, f := range c.validate() {
		if !follows(f.Key, d.faults) {
			faults = append(faults, f)
		}
	}
	if len(faults) > 0 {
		faults.sort()
		return nil, faults
	}
	return &c, nil
}

// follows says whether a key could not be read and so was faulted already, itself or as a part of what holds it.
func follows(key string, faults Faults) bool {
	for _, f := range faults {
		if rest, ok := strings.CutPrefix(key, f.Key); ok && f.Key != "" && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return true
		}
	}
	return false
}

var yamlLine = regexp.MustCompile(`^line (\d+): `)

// parseYAML returns the one document of a file as a tree.
func parseYAML(data []byte) (*yaml.Node, *Fault) {
	if len(data) > maxFileSize {
		return nil, &Fault{Text: fmt.Sprintf("is larger than %v", Size(maxFileSize))}
	}
	var doc, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	err := dec.Decode(&doc)
	switch {
	case err == io.EOF:
		return nil, &Fault{Text: "is empty, needed: listeners and pools"}
	case err == nil:
		if err = dec.Decode(&second); err == nil {
			return nil, &Fault{Line: second.Line, Text: "a second document starts here, allowed: one"}
		}
	}
	if err != io.EOF {
		text, line := strings.TrimPrefix(err.Error(), "yaml: "), 0
		if m := yamlLine.FindStringSubmatch(text); m != nil {
			line, _ = strconv.Atoi(m[1])
			text = text[len(m[0]):]
		}
		return nil, &Fault{Line: line, Text: "not YAML: " + text}
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, &Fault{Line: root.Line, Text: "has no keys, needed: listeners and pools"}
	}
	return root, nil
}
