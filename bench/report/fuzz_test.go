package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"icapgate/bench/result"
)

// FuzzHTML makes pages of any result that can be read.
func FuzzHTML(f *testing.F) {
	for name, r := range samples(f) {
		if !slices.Contains([]string{"empty", "second", "failed", "hostile"}, name) { // the others are large
			continue
		}
		var text bytes.Buffer
		if err := r.Write(&text); err != nil {
			f.Fatal(err)
		}
		f.Add(text.Bytes())
	}
	f.Add([]byte(`{"format":2,"seconds":1e9,"requests":-0,"begun":9,"timeline":{"interval_seconds":7,"points":[{"requests":-5,"cpu_seconds":-1e300},{"in_flight":-3}]}}`))
	f.Add([]byte(`{"format":2,"seconds":1e-9,"requests":9,"servers":{"a":-1,"b":1},"setup":{"stages":[{"rate":1e9},{"seconds":1e9}],"open_loop":true},"timeline":{"interval_seconds":1,"points":[{"servers":{"a":-4}}]}}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		r, err := result.Parse(content)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := HTML(&out, r, Verdicts{}); err != nil {
			t.Fatal(err)
		}
		if err := Compare(&out, r, r); err != nil {
			t.Fatal(err)
		}
		dec := xml.NewDecoder(&out)
		svg := 0
		for {
			token, err := dec.Token()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			switch token := token.(type) {
			case xml.StartElement:
				if token.Name.Local == "svg" {
					svg++
				}
				checkAttributes(t, token, svg > 0)
			case xml.EndElement:
				if token.Name.Local == "svg" {
					svg--
				}
			case xml.CharData:
				if s := string(token); svg > 0 && (strings.Contains(s, "NaN") || strings.Contains(s, "Inf")) {
					t.Errorf("a chart says %q", s)
				}
			}
		}
	})
}
