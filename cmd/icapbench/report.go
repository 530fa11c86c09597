package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"icapgate/bench/report"
	"icapgate/bench/result"
	"icapgate/bench/serve"
)

type reportCmd struct {
	Files []string `arg:"" name:"file" help:"Results of icapbench load --json."`

	Compare      bool     `help:"Put two results side by side, with ratios, in place of merging them."`
	JSON         string   `name:"json" placeholder:"FILE" help:"Write the merged result to FILE as JSON."`
	HTML         string   `name:"html" placeholder:"FILE" help:"Write a page with charts to FILE, for the merged result or for both that are compared. It needs nothing else."`
	Servers      []string `sep:"none" placeholder:"FILE" help:"What icapbench serve has printed or served: compare the incident ids that it got with those that were sent. Repeatable."`
	AllowDoubled bool     `help:"With --servers: do not fail if ids came more than once, as a gateway may send a request again."`
	FailIf       []string `name:"fail-if" sep:"none" placeholder:"CONDITION" help:"Fail with exit code 7 if this holds of the merged result, such as 'p99>50ms' or 'errors>0.1%'. Repeatable."`
}

func (*reportCmd) Help() string {
	return `Several results are merged: those of load generators that took part in one test at the same time. The figures are those of one load
generator that had sent all requests.

Examples:

    icapbench report result.json
    icapbench report machine1.json machine2.json --json all.json --html all.html
    icapbench report machine*.json --fail-if 'p99>50ms' --fail-if 'errors>0.1%'
    icapbench report result.json --servers stats.json
    icapbench report --compare before.json after.json --html compared.html

Exit codes:

    0  there is a report
    1  it could not be written; or incidents were lost or doubled (--servers)
    2  wrong usage, a file that cannot be read, results that cannot be merged
    7  a condition of --fail-if holds`
}

func (c *reportCmd) Run() error {
	conditions, err := parseConditions(c.FailIf)
	if err != nil {
		return usageError(err)
	}
	if err := twoFiles(c.JSON, c.HTML); err != nil {
		return usageError(err)
	}
	list, err := c.read()
	if err != nil {
		return usageError(err)
	}
	if c.Compare {
		return c.compare(list)
	}
	merged, err := result.Merge(list)
	if err != nil {
		return usageError(err)
	}
	var names []string
	for _, e := range merged.Entries {
		names = append(names, e.Name)
	}
	if err := knowEntries(conditions, names); err != nil {
		return usageError(err)
	}
	proof, err := c.prove(merged)
	if err != nil {
		return usageError(err)
	}
	merged.Print(os.Stdout)
	if proof != nil {
		proof.Print(os.Stdout)
	}
	if err := writeFile(c.JSON, merged.Write); err != nil {
		return err
	}
	page := func(w io.Writer) error {
		return report.HTML(w, merged, report.Verdicts{FailIf: conditions, Proof: proof, AllowDoubled: c.AllowDoubled})
	}
	if err := writeFile(c.HTML, page); err != nil {
		return err
	}
	err = failIf(conditions, merged)
	if lost := c.judge(proof); lost != nil {
		return lost
	}
	return err
}

// read reads the results. One without a label gets the name of its file.
func (c *reportCmd) read() ([]*result.Result, error) {
	var list []*result.Result
	for _, path := range c.Files {
		r, err := result.Read(path)
		if err != nil {
			return nil, err
		}
		if r.Label == "" && len(r.Machines) == 0 {
			r.Label = strings.TrimSuffix(filepath.Base(path), ".json")
		}
		list = append(list, r)
	}
	return list, nil
}

// prove compares the incident ids of the result with those that servers have counted; nil if there are no servers.
func (c *reportCmd) prove(r *result.Result) (*result.Proof, error) {
	if len(c.Servers) == 0 {
		return nil, nil
	}
	if r.Incidents == nil {
		return nil, errors.New("--servers compares incident ids, which the requests of this result did not have; icapbench load gives them with --incident-header")
	}
	var received []result.Received
	for _, path := range c.Servers {
		stats, err := readStats(path)
		if err != nil {
			return nil, err
		}
		if stats.Beyond > 0 {
			r.Remarks = append(r.Remarks, fmt.Sprintf("the servers of %s could not count %d incident ids for lack of room: these count as lost", path, stats.Beyond))
		}
		for _, run := range stats.Runs {
			for _, ids := range run.IDs {
				received = append(received, result.Received{Range: result.Range{Run: run.Run, From: ids.From, To: ids.To}, Count: int64(ids.Count)})
			}
		}
	}
	return r.Incidents.Prove(received)
}

func readStats(path string) (*serve.Stats, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	stats, err := serve.ReadStats(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read %q: %w", path, err)
	}
	return stats, nil
}

// judge returns an error if incidents were lost, or doubled though that is not allowed.
func (c *reportCmd) judge(p *result.Proof) error {
	switch {
	case p == nil:
		return nil
	case p.LostIDs() > 0:
		return fmt.Errorf("%d incidents were answered but are at no server", p.LostIDs())
	case p.DoubledIDs() > 0 && !c.AllowDoubled:
		return fmt.Errorf("%d incidents came more than once (--allow-doubled tolerates that)", p.DoubledIDs())
	}
	return nil
}

func (c *reportCmd) compare(list []*result.Result) error {
	switch {
	case len(list) != 2:
		return usageError(fmt.Errorf("--compare takes two results, not %d; merge those of one test first, with --json", len(list)))
	case c.JSON != "" || len(c.FailIf) > 0 || len(c.Servers) > 0:
		return usageError(errors.New("--json, --fail-if and --servers are about a merged result and do not go with --compare"))
	}
	result.PrintComparison(os.Stdout, list[0], list[1])
	return writeFile(c.HTML, func(w io.Writer) error { return report.Compare(w, list[0], list[1]) })
}

// writeFile writes to a file that is named.
func writeFile(path string, write func(io.Writer) error) error {
	if path == "" {
		return nil
	}
	if err := result.WriteFile(path, write); err != nil {
		return fmt.Errorf("cannot write %q: %w", path, err)
	}
	return nil
}

func parseConditions(texts []string) ([]result.Condition, error) {
	var list []result.Condition
	for _, text := range texts {
		c, err := result.ParseCondition(text)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

// knowEntries says which condition is about an entry that the scenario does not have.
func knowEntries(conditions []result.Condition, names []string) error {
	for _, c := range conditions {
		if e := c.Entry(); e != "" && !slices.Contains(names, e) {
			return fmt.Errorf("condition %q: the scenario has no entry %q; it has %s", c, e, strings.Join(names, ", "))
		}
	}
	return nil
}

// failIf prints the verdicts on a result, and returns an error if a condition holds.
func failIf(conditions []result.Condition, r *result.Result) error {
	var held []string
	for _, c := range conditions {
		holds, value := c.Holds(r)
		verdict := "ok"
		if holds {
			verdict = "FAILED"
			held = append(held, c.String())
		}
		fmt.Printf("fail-if     %s: %s, it is %s\n", c, verdict, value)
	}
	if len(held) > 0 {
		return &exitError{fmt.Errorf("what --fail-if says holds: %s", strings.Join(held, ", ")), exitCondition}
	}
	return nil
}
