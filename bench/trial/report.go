package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
)

// report is what a trial has shown. It prints itself as it grows, so that a run which is cut short has told what it knew. It may be
// used by several goroutines.
type report struct {
	out io.Writer

	mu      sync.Mutex
	Trial   string   `json:"trial"`
	Machine string   `json:"machine"`
	Figures []figure `json:"figures"`
	Claims  []claim  `json:"claims"`
	Error   string   `json:"error,omitempty"` // why the trial could not be carried out
}

type figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

type claim struct {
	Text string `json:"text"`
	Held bool   `json:"held"`
}

func newReport(name string, out io.Writer) *report {
	r := &report{Trial: name, out: out}
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	r.Machine = fmt.Sprintf("%d CPUs, Linux %s, %s", runtime.NumCPU(), strings.TrimSpace(string(kernel)), runtime.Version())
	fmt.Fprintf(out, "%s: %s\n", name, r.Machine)
	return r
}

// section begins a part of the report.
func (r *report) section(format string, args ...any) { r.print("\n"+format+"\n", args...) }

// note says something in words, or in several lines.
func (r *report) note(format string, args ...any) {
	r.print("  %s\n", strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "\n  "))
}

// store notes a measured value that is printed in a table.
func (r *report) store(name string, value float64, unit string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Figures = append(r.Figures, figure{name, value, unit})
}

// figure notes a measured value and prints it.
func (r *report) figure(name string, value float64, unit string) {
	r.store(name, value, unit)
	r.print("  %-52s %10.6g %s\n", name, value, unit)
}

// claim notes whether something held that has to.
func (r *report) claim(held bool, format string, args ...any) {
	c := claim{fmt.Sprintf(format, args...), held}
	r.mu.Lock()
	r.Claims = append(r.Claims, c)
	r.mu.Unlock()
	word := "held  "
	if !held {
		word = "FAILED"
	}
	r.print("  %s  %s\n", word, c.Text)
}

func (r *report) print(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, format, args...)
}

func (r *report) failed() bool {
	for _, c := range r.Claims {
		if !c.Held {
			return true
		}
	}
	return false
}

// printVerdict prints the last lines. err is why the trial could not be carried out, nil: it was.
func (r *report) printVerdict(err error) {
	held := 0
	for _, c := range r.Claims {
		if c.Held {
			held++
		}
	}
	r.print("\n%d of %d claims held\n", held, len(r.Claims))
	if err != nil {
		r.Error = err.Error()
		r.note("and the trial was not carried out to its end")
	}
}

func (r *report) writeJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}
