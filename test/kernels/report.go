// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// result is how the tests of one package went on one kernel.
type result struct {
	kernel, pkg string
	passed      []string
	failed      []string
	skipped     map[string]string // test -> its reason
	problems    []string          // what failed besides tests
	died        bool              // the machine did not live to the end
	elapsed     time.Duration
}

// event is a line of test2json's, see `go doc test2json`.
type event struct {
	Action, Test, Output string
}

// read takes in a stream of events. To out goes all output with verbose, else
// that of what failed and the reason of each skip.
func (r *result) read(events io.Reader, out io.Writer, verbose bool) error {
	r.skipped = map[string]string{}
	pending := map[string]string{} // test, or "" for the package -> its output
	d := json.NewDecoder(events)
	for {
		var e event
		if err := d.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("read test events: %w", err)
		}
		if e.Action == "output" && verbose {
			fmt.Fprint(out, e.Output)
		}
		switch {
		case e.Action == "output" || e.Action == "run":
			pending[e.Test] += e.Output
			continue
		case e.Test == "":
			continue
		case e.Action == "pass":
			r.passed = append(r.passed, e.Test)
		case e.Action == "fail":
			r.failed = append(r.failed, e.Test)
			if !verbose {
				fmt.Fprint(out, pending[e.Test])
			}
		case e.Action == "skip":
			reason := reason(pending[e.Test])
			r.skipped[e.Test] = reason
			if !verbose {
				fmt.Fprintf(out, "--- SKIP: %s: %s\n", e.Test, reason)
			}
			if !version.MatchString(reason) {
				r.problems = append(r.problems, fmt.Sprintf("%s was skipped without naming the kernel that it needs: %s", e.Test, reason))
			}
		default:
			continue
		}
		delete(pending, e.Test)
	}
	// What has no verdict was cut off.
	trailer := pending[""]
	delete(pending, "")
	for _, test := range slices.Sorted(maps.Keys(pending)) {
		r.failed = append(r.failed, test)
		if !verbose {
			fmt.Fprint(out, pending[test])
		}
	}
	if trailer != "PASS\n" && !verbose {
		fmt.Fprint(out, trailer)
	}
	return nil
}

// version is how a reason names a kernel's version.
var version = regexp.MustCompile(`\b[1-9][0-9]*\.[0-9]+\b`)

// reason is the message of a skipped test, in one line.
func reason(output string) string {
	var words []string
	for line := range strings.Lines(output) {
		if !strings.HasPrefix(line, "=== ") && !strings.Contains(line, "--- SKIP: ") {
			words = append(words, strings.Fields(line)...)
		}
	}
	return strings.Join(words, " ")
}

// end takes in how the machine ended.
func (r *result) end(err error, elapsed time.Duration) {
	r.elapsed = elapsed
	var code exitError
	r.died = err != nil && !errors.As(err, &code)
	switch {
	case r.died || err != nil && len(r.failed) == 0:
		r.problems = append(r.problems, err.Error())
	case len(r.passed)+len(r.failed)+len(r.skipped) == 0:
		r.problems = append(r.problems, "no test was run")
	}
}

func (r *result) ok() bool { return len(r.failed)+len(r.problems) == 0 }

// line sums up the result, with a line for each problem.
func (r *result) line() string {
	word := "ok"
	if !r.ok() {
		word = "FAIL"
	}
	line := fmt.Sprintf("%s\t%s on Linux %s\t%.1fs\t%d passed, %d failed, %d skipped",
		word, r.pkg, r.kernel, r.elapsed.Seconds(), len(r.passed), len(r.failed), len(r.skipped))
	for _, p := range r.problems {
		line += "\n\t" + p
	}
	return line
}

// summarize prints a table of all results. whole says that they are of the
// whole matrix, on which no test may skip everywhere.
func summarize(out io.Writer, results []*result, whole bool) error {
	var kernels, packages []string
	cells := map[[2]string]string{}
	var passed, failed, skipped int
	for _, r := range results {
		if !slices.Contains(kernels, r.kernel) {
			kernels = append(kernels, r.kernel)
		}
		if !slices.Contains(packages, r.pkg) {
			packages = append(packages, r.pkg)
		}
		cell := fmt.Sprintf("ok %d", len(r.passed))
		if !r.ok() {
			cell = "FAIL"
		}
		if n := len(r.skipped); n > 0 {
			cell += fmt.Sprintf(" (%d skipped)", n)
		}
		cells[[2]string{r.pkg, r.kernel}] = cell
		passed += len(r.passed)
		failed += len(r.failed) + len(r.problems)
		skipped += len(r.skipped)
	}
	var nowhere []string
	if whole {
		nowhere = skippedEverywhere(results)
	}
	failed += len(nowhere)

	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintf(w, "package\t%s\n", strings.Join(kernels, "\t"))
	for _, p := range packages {
		row := p
		for _, k := range kernels {
			row += "\t" + cells[[2]string{p, k}]
		}
		fmt.Fprintln(w, row)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, test := range nowhere {
		fmt.Fprintf(out, "%s: skipped on every kernel\n", test)
	}
	fmt.Fprintf(out, "\nkernels: %d passed, %d failed, %d skipped\n", passed, failed, skipped)
	if failed > 0 {
		return fmt.Errorf("%d failed", failed)
	}
	return nil
}

// skippedEverywhere names the tests that no kernel has run.
func skippedEverywhere(results []*result) []string {
	run, skipped := map[string]bool{}, map[string]bool{}
	for _, r := range results {
		for _, test := range slices.Concat(r.passed, r.failed) {
			run[r.pkg+" "+test] = true
		}
		for test := range r.skipped {
			skipped[r.pkg+" "+test] = true
		}
	}
	maps.DeleteFunc(skipped, func(test string, _ bool) bool { return run[test] })
	return slices.Sorted(maps.Keys(skipped))
}
