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

	"github.com/tendril-net/tendril/internal/nstest"
)

// result is how the tests of one package went on one kernel.
type result struct {
	kernel, pkg string
	passed      []string
	failed      []string
	skipped     map[string]string   // test -> its reason
	left        map[string][]string // test -> the kernels that it was dealt to instead
	problems    []string            // what failed besides tests
	died        bool                // the machine did not live to the end
	elapsed     time.Duration
}

// event is a line of test2json's, see `go doc test2json`.
type event struct {
	Action, Test, Output string
}

// read takes in a stream of events. To out goes all output with verbose, else
// that of what failed and the reason of each skip.
func (r *result) read(events io.Reader, out io.Writer, verbose bool) error {
	r.skipped, r.left = map[string]string{}, map[string][]string{}
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
			if !verbose {
				fmt.Fprintf(out, "--- SKIP: %s: %s\n", e.Test, reason)
			}
			r.skip(e.Test, reason)
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

// skip takes in a test that was skipped: because it was dealt to others, or because this kernel is too old for it.
func (r *result) skip(test, reason string) {
	_, kernels, dealt := strings.Cut(reason, nstest.LeftTo)
	if !dealt {
		r.skipped[test] = reason
		if !version.MatchString(reason) {
			r.problems = append(r.problems, fmt.Sprintf("%s was skipped without naming the kernel that it needs: %s", test, reason))
		}
		return
	}
	r.left[test] = strings.Split(kernels, ", ")
	for _, kernel := range r.left[test] {
		if kernel == r.kernel || !slices.Contains(matrix(), kernel) {
			r.problems = append(r.problems, fmt.Sprintf("%s was left to Linux %s, which is no other kernel of the matrix", test, kernel))
		}
	}
}

// version is how the reason of a skip names the version that has what the test needs: nstest.NeedKernel.
var version = regexp.MustCompile(` needs Linux [1-9][0-9]*\.[0-9]+\b`)

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
	case len(r.passed)+len(r.failed)+len(r.skipped)+len(r.left) == 0:
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
	line := fmt.Sprintf("%s\t%s on Linux %s\t%.1fs\t%d passed, %d failed, %d skipped, %d left to others",
		word, r.pkg, r.kernel, r.elapsed.Seconds(), len(r.passed), len(r.failed), len(r.skipped), len(r.left))
	for _, p := range r.problems {
		line += "\n\t" + p
	}
	return line
}

// summarize prints a table of all results. whole says that they are of the
// whole matrix, on which no test may skip everywhere. A test that was dealt to a
// kernel which is here must have been tried there in any case.
func summarize(out io.Writer, results []*result, whole bool) error {
	var kernels, packages []string
	cells := map[[2]string]string{}
	var passed, failed, skipped, left int
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
		var not []string
		if n := len(r.skipped); n > 0 {
			not = append(not, fmt.Sprintf("%d skipped", n))
		}
		if n := len(r.left); n > 0 {
			not = append(not, fmt.Sprintf("%d left", n))
		}
		if not != nil {
			cell += " (" + strings.Join(not, ", ") + ")"
		}
		cells[[2]string{r.pkg, r.kernel}] = cell
		passed += len(r.passed)
		failed += len(r.failed) + len(r.problems)
		skipped += len(r.skipped)
		left += len(r.left)
	}
	faults := leftAlone(results)
	if whole {
		for _, test := range skippedEverywhere(results) {
			faults = append(faults, test+": skipped on every kernel")
		}
	}
	failed += len(faults)

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
	for _, fault := range faults {
		fmt.Fprintln(out, fault)
	}
	fmt.Fprintf(out, "\nkernels: %d passed, %d failed, %d skipped, %d left to others\n", passed, failed, skipped, left)
	if failed > 0 {
		return fmt.Errorf("%d failed", failed)
	}
	return nil
}

// skippedEverywhere names the tests that no kernel has run, dealt to others or not.
func skippedEverywhere(results []*result) []string {
	run, skipped := map[string]bool{}, map[string]bool{}
	for _, r := range results {
		for _, test := range slices.Concat(r.passed, r.failed) {
			run[r.pkg+" "+test] = true
		}
		for _, test := range slices.Concat(slices.Collect(maps.Keys(r.skipped)), slices.Collect(maps.Keys(r.left))) {
			skipped[r.pkg+" "+test] = true
		}
	}
	maps.DeleteFunc(skipped, func(test string, _ bool) bool { return run[test] })
	return slices.Sorted(maps.Keys(skipped))
}

// leftAlone names the tests that were left to a kernel which is among the results, and which
// nevertheless says nothing of them.
func leftAlone(results []*result) []string {
	var alone []string
	for _, r := range results {
		for test, kernels := range r.left {
			for _, to := range results {
				if to.pkg == r.pkg && to.ok() && slices.Contains(kernels, to.kernel) && !to.accountsFor(test) {
					alone = append(alone, fmt.Sprintf("%s %s: left by Linux %s to %s, which did not run it", r.pkg, test, r.kernel, to.kernel))
				}
			}
		}
	}
	slices.Sort(alone)
	return alone
}

// accountsFor tells whether a test was run, or was skipped, or is part of one that was skipped or left to others.
func (r *result) accountsFor(test string) bool {
	if slices.Contains(r.passed, test) || slices.Contains(r.failed, test) {
		return true
	}
	_, skipped := r.skipped[test]
	for whole := test; !skipped && strings.Contains(whole, "/"); {
		whole = whole[:strings.LastIndex(whole, "/")]
		_, tooOld := r.skipped[whole]
		_, left := r.left[whole]
		skipped = tooOld || left
	}
	return skipped
}
