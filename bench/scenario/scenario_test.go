package scenario

import (
	"testing"

	"icapgate/bench"
)

func mustTarget(t testing.TB) bench.Target {
	t.Helper()
	target, err := bench.ParseTarget("icap://gate.example:1344/reqmod")
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func mustParse(t testing.TB, text string) *Scenario {
	t.Helper()
	s, err := Parse("dir/file.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustCompile(t testing.TB, s *Scenario) *Mix {
	t.Helper()
	m, err := s.Compile(mustTarget(t))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func mustPreset(t testing.TB, name string) *Scenario {
	t.Helper()
	s, err := Preset(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPresets(t *testing.T) {
	for _, name := range Presets {
		m := mustCompile(t, mustPreset(t, name))
		if len(m.Entries()) < 2 {
			t.Errorf("%s: entries %v", name, m.Entries())
		}
	}
}

func BenchmarkNext(b *testing.B) {
	m := mustCompile(b, mustPreset(b, "zscaler"))
	s := m.NewSource(1)
	b.ReportAllocs()
	var n uint64
	for b.Loop() {
		s.Next(n)
		n++
	}
}
