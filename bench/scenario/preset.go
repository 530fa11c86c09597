package scenario

import (
	"embed"
	"fmt"
	"strings"
)

//go:embed presets/*.yaml
var presets embed.FS

// Presets are the names that Preset knows.
var Presets = []string{"zscaler", "squid", "proxysg"}

// Preset returns the scenario of a kind of client. What it assumes stands in docs/BENCH.md and in the file itself.
func Preset(name string) (*Scenario, error) {
	content, err := PresetFile(name)
	if err != nil {
		return nil, err
	}
	return Parse(name+".yaml", content)
}

// PresetFile returns the text of a preset, as a file to begin with.
func PresetFile(name string) ([]byte, error) {
	content, err := presets.ReadFile("presets/" + name + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("unknown profile %q: want %s", name, strings.Join(Presets, ", "))
	}
	return content, nil
}
