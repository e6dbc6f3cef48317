// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What a test binary prints with -test.v=test2json; the marks before its own
// lines are the byte 0x16.
const (
	passing = "\x16=== RUN   TestA\n    a_test.go:1: said\n\x16--- PASS: TestA (0.01s)\n\x16=== NAME  \n\x16PASS\n"
	failing = "\x16=== RUN   TestA\n    a_test.go:1: bad\n\x16--- FAIL: TestA (0.01s)\n\x16=== NAME  \n" +
		"\x16=== RUN   TestB\n\x16--- PASS: TestB (0.00s)\n\x16=== NAME  \n\x16FAIL\n"
	skips = "\x16=== RUN   TestA\n    a_test.go:1: tcx needs Linux 6.6\n\x16--- SKIP: TestA (0.01s)\n\x16=== NAME  \n" +
		"\x16=== RUN   TestB\n    a_test.go:2: needs\n        podman\n\x16--- SKIP: TestB (0.01s)\n\x16=== NAME  \n\x16PASS\n"
	cutOff = "\x16=== RUN   TestA\n    a_test.go:1: said\n"
)

func TestResult(t *testing.T) {
	for _, tt := range []struct {
		name     string
		output   string
		verbose  bool
		err      error // how the machine ended
		want     result
		wantShow string
	}{
		{
			name: "pass", output: passing,
			want: result{passed: []string{"TestA"}},
		},
		{
			name: "pass, verbose", output: passing, verbose: true,
			want:     result{passed: []string{"TestA"}},
			wantShow: "=== RUN   TestA\n    a_test.go:1: said\n--- PASS: TestA (0.01s)\nPASS\n",
		},
		{
			name: "fail", output: failing, err: exitError(1),
			want:     result{passed: []string{"TestB"}, failed: []string{"TestA"}},
			wantShow: "=== RUN   TestA\n    a_test.go:1: bad\n--- FAIL: TestA (0.01s)\nFAIL\n",
		},
		{
			name: "skip with and without a version", output: skips,
			want: result{
				skipped:  map[string]string{"TestA": "a_test.go:1: tcx needs Linux 6.6", "TestB": "a_test.go:2: needs podman"},
				problems: []string{"TestB was skipped without naming the kernel that it needs: a_test.go:2: needs podman"},
			},
			wantShow: "--- SKIP: TestA: a_test.go:1: tcx needs Linux 6.6\n--- SKIP: TestB: a_test.go:2: needs podman\n",
		},
		{
			name: "all pass, the process fails", output: passing, err: exitError(3),
			want: result{passed: []string{"TestA"}, problems: []string{"exit status 3"}},
		},
		{
			name: "cut off", output: cutOff, err: errDied,
			want:     result{failed: []string{"TestA"}, problems: []string{"the machine died"}, died: true},
			wantShow: "=== RUN   TestA\n    a_test.go:1: said\n",
		},
		{
			name: "nothing", output: "PASS\n",
			want: result{problems: []string{"no test was run"}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			convert := exec.Command("go", "tool", "test2json")
			convert.Stdin = strings.NewReader(tt.output)
			events, err := convert.Output()
			if err != nil {
				t.Fatal(err)
			}
			var got result
			var show strings.Builder
			if err := got.read(bytes.NewReader(events), &show, tt.verbose); err != nil {
				t.Fatal(err)
			}
			got.end(tt.err, time.Second)
			tt.want.elapsed = time.Second
			if tt.want.skipped == nil {
				tt.want.skipped = map[string]string{}
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(result{})); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.wantShow, show.String()); diff != "" {
				t.Errorf("shown (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSummarize(t *testing.T) {
	results := []*result{
		{kernel: "5.10", pkg: "a", passed: []string{"TestA"}, skipped: map[string]string{"TestB": "", "TestC": ""}},
		{kernel: "7", pkg: "a", passed: []string{"TestA", "TestB"}, skipped: map[string]string{"TestC": ""}},
		{kernel: "5.10", pkg: "b/c", failed: []string{"TestA"}},
		{kernel: "7", pkg: "b/c", passed: []string{"TestA"}},
	}
	const table = `
package   5.10               7
a         ok 1 (2 skipped)   ok 2 (1 skipped)
b/c       FAIL               ok 1
`
	for _, tt := range []struct {
		name  string
		whole bool
		want  string
		err   error
	}{
		{"part of the matrix", false, table + "\nkernels: 4 passed, 1 failed, 3 skipped\n", errors.New("1 failed")},
		{
			"whole matrix", true, table + "a TestC: skipped on every kernel\n\nkernels: 4 passed, 2 failed, 3 skipped\n",
			errors.New("2 failed"),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got strings.Builder
			err := summarize(&got, results, tt.whole)
			if err == nil || err.Error() != tt.err.Error() {
				t.Errorf("got error %v, want %v", err, tt.err)
			}
			if diff := cmp.Diff(tt.want, got.String()); diff != "" {
				t.Errorf("summary (-want +got):\n%s", diff)
			}
		})
	}
	if err := summarize(&strings.Builder{}, results[:2], false); err != nil {
		t.Errorf("nothing failed: got %v", err)
	}
}

func TestJobScript(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's here")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	j := job{dir: dir, env: []string{"A=x  y"}, args: []string{"sh", "-c", `printf '%s|' "$PWD" "$A" "$@"`, "sh", "(a|b)$", "", "don't"}}
	got, err := exec.Command("sh", "-c", j.script()).Output()
	if err != nil {
		t.Fatal(err)
	}
	if want := dir + "|x  y|(a|b)$||don't|"; string(got) != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
