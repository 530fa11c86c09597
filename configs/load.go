package configs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// maxFileSize bounds a configuration file, in bytes.
const maxFileSize = 4 << 20

// Load reads a configuration file. The error is of type Faults and has all that is wrong with the file.
func Load(path string) (*Config, error) {
	data, err := ReadFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, data)
}

// ReadFile reads a file for Parse or Decode; one that is too large only as far as they need it to say so. The error is of type Faults.
func ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, Faults{{File: path, Text: fmt.Sprintf("cannot open: %s", reason(err))}}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, Faults{{File: path, Text: fmt.Sprintf("cannot read: %s", reason(err))}}
	}
	return data, nil
}

// Parse is Load for a text that is already at hand. The name stands in front of every fault, and relative file names in the
// text count from its folder.
func Parse(name string, data []byte) (*Config, error) {
	var c Config
	doc := Decode(name, data, &c)
	if doc.broken {
		return nil, doc.Err()
	}
	c.source = doc.source
	c.complete()
	doc.faults = append(doc.faults, c.validate()...)
	if err := doc.Err(); err != nil {
		return nil, err
	}
	return &c, nil
}

// Document is a YAML file that Decode has read, and what is wrong with it.
type Document struct {
	findings
	unread int  // the first so many faults are those of Decode
	broken bool // nothing was read
}

// Decode reads a text of YAML into out, a pointer to a struct, as strictly as a configuration: an unknown key is a fault, and so is a key that
// is there twice, or a value of another type. Every field of the struct, and of those below it, is a key: its name is the yaml tag.
//
// Types from outside this package take a scalar with UnmarshalText, say what may stand in their place with Wanted() string and set what
// their keys default to with SetDefaults(). What the caller finds wrong with the values goes to Fault, and then Err has it all.
func Decode(name string, data []byte, out any) *Document {
	doc := &Document{findings: findings{source: source{file: name, lines: make(map[string]int)}}}
	v := reflect.ValueOf(out).Elem()
	root, fault := parseYAML(data, v.Type())
	if fault != nil {
		fault.File = name
		doc.faults, doc.unread, doc.broken = Faults{*fault}, 1, true
		return doc
	}
	d := decoder{findings: doc.findings}
	d.decode(root, "", v)
	if d.nodes > maxNodes {
		d.faults, doc.broken = Faults{{File: name, Text: fmt.Sprintf("has more than %d values", maxNodes)}}, true
	}
	doc.findings = d.findings
	doc.unread = len(doc.faults)
	return doc
}

// Fault adds what is wrong with the value of a key, such as requests[0].weight; "": with the file as a whole.
func (d *Document) Fault(key, format string, args ...any) { d.add(key, format, args...) }

// At is a fault of the key by itself, for what only comes out when the values are used.
func (d *Document) At(key, format string, args ...any) Fault {
	return Fault{d.source.file, d.source.line(key), key, fmt.Sprintf(format, args...)}
}

// Err returns all faults in the order of the file as Faults, nil if there are none. A fault of a value that could not be read is left out,
// as it was faulted already.
func (d *Document) Err() error {
	unread := d.faults[:d.unread]
	faults := slices.Clone(unread)
	for _, f := range d.faults[d.unread:] {
		if !d.broken && !follows(f.Key, unread) {
			faults = append(faults, f)
		}
	}
	if len(faults) == 0 {
		return nil
	}
	faults.sort()
	return faults
}

// Quote shows a value of the user in a message, cut if it is long.
func Quote(s string) string { return quote(s) }

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

// parseYAML returns the one document of a file as a tree. A message names the first keys of the type that it is to fill.
func parseYAML(data []byte, t reflect.Type) (*yaml.Node, *Fault) {
	if len(data) > maxFileSize {
		return nil, &Fault{Text: fmt.Sprintf("is larger than %v", Size(maxFileSize))}
	}
	var doc, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	err := dec.Decode(&doc)
	switch {
	case err == io.EOF:
		return nil, &Fault{Text: "is empty, needed: " + neededKeys(t)}
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
		return nil, &Fault{Line: root.Line, Text: "has no keys, needed: " + neededKeys(t)}
	}
	return root, nil
}

// neededKeys says what a file has to have, for messages about one that has nothing.
func neededKeys(t reflect.Type) string {
	if v, ok := reflect.New(t).Interface().(interface{ Needed() string }); ok {
		return v.Needed()
	}
	return "at least one of the keys " + strings.Join(keysOf(t), ", ")
}

// Needed says what a configuration cannot be without.
func (*Config) Needed() string { return "listeners and pools" }
