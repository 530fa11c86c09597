package configs

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Fault is one thing that is wrong in a configuration, or unwise if it comes from Lint.
type Fault struct {
	File string
	Line int    // 0: unknown, or the file as a whole
	Key  string // path of the key, such as pools[0].balance; "": the file as a whole
	Text string // what is wrong and what is allowed
}

// Error is the fault as one line: file:line: key: text.
func (f Fault) Error() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Line > 0 {
		fmt.Fprintf(&b, ":%d", f.Line)
	}
	b.WriteString(": ")
	if f.Key != "" {
		b.WriteString(f.Key)
		b.WriteString(": ")
	}
	b.WriteString(f.Text)
	return b.String()
}

// Faults is all that was found, in the order of the file. Load and Parse return it as their error.
type Faults []Fault

// Error is one line per fault.
func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.Error()
	}
	return strings.Join(lines, "\n")
}

func (fs Faults) sort() {
	slices.SortStableFunc(fs, func(a, b Fault) int { return cmp.Compare(a.Line, b.Line) })
}

// source knows the line of each key of a file.
type source struct {
	file  string
	lines map[string]int // by key path
}

// line returns the line of a key, or of what it would be in if the key is not in the file.
func (s source) line(key string) int {
	for {
		if n, ok := s.lines[key]; ok {
			return n
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			return 0
		}
		key = key[:i]
	}
}

// findings collects what one step has to say about a configuration.
type findings struct {
	source source
	faults Faults
}

func (f *findings) add(key, format string, args ...any) {
	f.faults = append(f.faults, Fault{f.source.file, f.source.line(key), key, fmt.Sprintf(format, args...)})
}

// quote shows a value of the user in a message, cut if it is long.
func quote(s string) string {
	const most = 64
	if len(s) > most {
		return fmt.Sprintf("%q…", s[:most])
	}
	return fmt.Sprintf("%q", s)
}

// nearest returns the word that was probably meant, or "".
func nearest(word string, words []string) string {
	if len(word) > 64 {
		return ""
	}
	best, least := "", max(1, len(word)/3)+1
	for _, w := range words {
		if d := editDistance(word, w); d < least {
			best, least = w, d
		}
	}
	return best
}

// editDistance is the number of letters to insert, delete, replace or swap with their neighbour.
func editDistance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, last, row = last, row, before
		row[0] = i + 1
		for j := range len(b) {
			if a[i] == b[j] {
				row[j+1] = last[j]
				continue
			}
			row[j+1] = 1 + min(last[j], last[j+1], row[j])
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], 1+before[j-1])
			}
		}
	}
	return row[len(b)]
}
