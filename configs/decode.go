package configs

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// maxNodes bounds the values of one configuration, those that aliases repeat included.
const maxNodes = 200_000

// maxMerge is how deep mappings may take in others by <<.
const maxMerge = 8

// decoder fills structs from a tree of YAML nodes. It walks tree and types together instead of leaving that to yaml.v3, which
// stops at the first kind of fault, knows no key paths, and loses its strictness below a type that has a method of its own.
type decoder struct {
	findings
	nodes int
}

// tags are the YAML types that a value may be of; a file has no reason to name them.
var tags = []string{"!!map", "!!seq", "!!str", "!!int", "!!float", "!!bool", "!!timestamp"}

// defaulter is a struct whose keys have defaults that are not zero; a type of another package has the exported method.
type (
	defaulter         interface{ setDefaults() }
	exportedDefaulter interface{ SetDefaults() }
)

// Pairs is a mapping whose keys are the user's choice, in the order of the file.
type Pairs []Pair

// Pair is a key of Pairs and its value.
type Pair struct{ Name, Value string }

// decode fills out, which is settable, from the value of the key.
func (d *decoder) decode(n *yaml.Node, key string, out reflect.Value) {
	if d.nodes++; d.nodes > maxNodes {
		return // Parse says so
	}
	n = resolve(n)
	switch tag := n.ShortTag(); {
	case tag == "!!null":
		d.addAt(n, key, "is empty, allowed: %s; or remove it", wanted(out.Type()))
		return
	case !slices.Contains(tags, tag):
		d.addAt(n, key, "has the tag %s, allowed: none", quote(tag))
		return
	}
	if out.Kind() == reflect.Pointer {
		out.Set(reflect.New(out.Type().Elem()))
		out = out.Elem()
	}
	switch v := out.Addr().Interface().(type) {
	case defaulter:
		v.setDefaults()
	case exportedDefaulter:
		v.SetDefaults()
	}
	text, isText := out.Addr().Interface().(encoding.TextUnmarshaler)
	switch {
	case n.Kind == yaml.ScalarNode && isText:
		if err := text.UnmarshalText([]byte(n.Value)); err != nil {
			d.addAt(n, key, "%v", err)
		}
	case n.Kind == yaml.MappingNode && out.Kind() == reflect.Struct:
		d.mapping(n, key, out)
	case n.Kind == yaml.MappingNode && out.Type() == reflect.TypeFor[Pairs]():
		out.Set(reflect.ValueOf(d.freePairs(n, key)))
	case n.Kind == yaml.SequenceNode && out.Kind() == reflect.Slice && out.Type() != reflect.TypeFor[Pairs]():
		out.Set(reflect.MakeSlice(out.Type(), len(n.Content), len(n.Content)))
		for i, item := range n.Content {
			itemKey := fmt.Sprintf("%s[%d]", key, i)
			d.source.lines[itemKey] = item.Line
			d.decode(item, itemKey, out.Index(i))
		}
	case n.Kind == yaml.ScalarNode && d.scalar(n, out):
	default:
		d.addAt(n, key, "%s, allowed: %s", shown(n), wanted(out.Type()))
	}
}

// scalar fills a string, number or bool; false: the value is none.
func (d *decoder) scalar(n *yaml.Node, out reflect.Value) bool {
	switch out.Kind() {
	case reflect.String: // numbers too: min_version: 1.2 is as good as "1.2"
		out.SetString(n.Value)
		return true
	case reflect.Bool, reflect.Int, reflect.Float64:
		return n.Decode(out.Addr().Interface()) == nil
	}
	return false
}

// pair is a key of a mapping and its value.
type pair struct{ key, value *yaml.Node }

func (d *decoder) mapping(n *yaml.Node, key string, out reflect.Value) {
	fields, names := fieldsOf(out.Type()), keysOf(out.Type())
	for _, p := range d.pairs(n, key, 0) {
		i := slices.Index(names, p.key.Value)
		if i < 0 {
			d.unknown(p.key, key, names)
			continue
		}
		path := child(key, p.key)
		d.source.lines[path] = p.key.Line
		d.decode(p.value, path, out.Field(fields[i].index))
	}
}

// freePairs reads a mapping whose keys nobody knows.
func (d *decoder) freePairs(n *yaml.Node, key string) Pairs {
	free := make(Pairs, 0, len(n.Content)/2)
	for _, p := range d.pairs(n, key, 0) {
		path := child(key, p.key)
		d.source.lines[path] = p.key.Line
		var value string
		d.decode(p.value, path, reflect.ValueOf(&value).Elem())
		free = append(free, Pair{p.key.Value, value})
	}
	return free
}

// unknown reports a key that its mapping does not have.
func (d *decoder) unknown(n *yaml.Node, parent string, names []string) {
	if meant := nearest(n.Value, names); meant != "" {
		d.addAt(n, child(parent, n), "unknown key, did you mean %s?", meant)
		return
	}
	d.addAt(n, child(parent, n), "unknown key, allowed: %s", strings.Join(names, ", "))
}

// pairs lists the keys of a mapping, each once, and those that it merges in from others (<<: *name) unless it has them itself.
func (d *decoder) pairs(n *yaml.Node, key string, depth int) []pair {
	d.nodes += len(n.Content)
	var list []pair
	var merged []*yaml.Node
	seen := make(map[string]int) // line by key
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.ShortTag() == "!!merge" {
			merged = append(merged, v)
			continue
		}
		if first, ok := seen[k.Value]; ok {
			d.addAt(k, child(key, k), "is here twice, first in line %d", first)
			continue
		}
		seen[k.Value] = k.Line
		list = append(list, pair{k, v})
	}
	for len(merged) > 0 && d.nodes <= maxNodes {
		from := resolve(merged[0])
		merged = merged[1:]
		switch {
		case from.Kind == yaml.SequenceNode:
			d.nodes += len(from.Content)
			merged = append(slices.Clone(from.Content), merged...)
		case from.Kind == yaml.MappingNode && depth < maxMerge:
			for _, p := range d.pairs(from, key, depth+1) {
				if _, ok := seen[p.key.Value]; !ok {
					seen[p.key.Value] = p.key.Line
					list = append(list, p)
				}
			}
		default:
			d.addAt(from, key, "<< takes in what it cannot, allowed: another mapping, as *name, at most %d deep", maxMerge)
		}
	}
	return list
}

// resolve follows an alias to what it stands for.
func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// child is the path of a key in its mapping, or the mapping's own if the key is not fit to be shown.
func child(parent string, n *yaml.Node) string {
	for _, c := range []byte(n.Value) {
		if !isAlnum(c) && !strings.ContainsRune("_-./ ", rune(c)) || len(n.Value) > 64 {
			return parent
		}
	}
	return strings.Trim(parent+"."+n.Value, ".")
}

type field struct {
	name  string
	index int
}

// fieldsOf lists the keys of a struct in the order of its declaration.
func fieldsOf(t reflect.Type) []field {
	var fields []field
	for i := range t.NumField() {
		if f := t.Field(i); f.IsExported() {
			fields = append(fields, field{f.Tag.Get("yaml"), i})
		}
	}
	return fields
}

// keysOf lists their names.
func keysOf(t reflect.Type) []string {
	var names []string
	for _, f := range fieldsOf(t) {
		names = append(names, f.name)
	}
	return names
}

func (d *decoder) addAt(n *yaml.Node, key, format string, args ...any) {
	d.add(key, format, args...)
	d.faults[len(d.faults)-1].Line = n.Line
}

// shown describes what stands in the file.
func shown(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "is a mapping"
	case yaml.SequenceNode:
		return "is a list"
	}
	if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle) != 0 {
		return "is the text " + quote(n.Value)
	}
	return "is " + quote(n.Value)
}

// wanted describes what could stand there.
func wanted(t reflect.Type) string {
	type wanter interface{ Wanted() string } // a type of another package
	if t.Kind() == reflect.Pointer {
		if v, ok := reflect.New(t.Elem()).Interface().(wanter); ok {
			return v.Wanted()
		}
	}
	switch v := reflect.New(t).Interface().(type) {
	case wanter:
		return v.Wanted()
	case *Pairs:
		return "a mapping (name: value)"
	case *Duration:
		return "a time such as 5s"
	case *Size:
		return "a size such as 64KiB"
	case *Prefix:
		return "an address range such as 192.0.2.0/24"
	case *Server:
		return "host:port, srv:name, or a mapping with address"
	case *Share:
		return "a number, or dns: and a host name"
	}
	switch t.Kind() {
	case reflect.Struct:
		return "a mapping (key: value)"
	case reflect.Pointer:
		return "a mapping (key: value), {} for its defaults"
	case reflect.Slice:
		return "a list ([a, b] or lines that start with -)"
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	}
	return `text, "" for none`
}
