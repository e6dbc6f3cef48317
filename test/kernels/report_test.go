// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/tendril-net/tendril/internal/nstest"
)

// What a test binary prints with -test.v=test2json; the marks before its own
// lines are the byte 0x16.
const (
	passing = "\x16=== RUN   TestA\n    a_test.go:1: said\n\x16--- PASS: TestA (0.01s)\n\x16=== NAME  \n\x16PASS\n"
	failing = "\x16=== RUN   TestA\n    a_test.go:1: bad\n\x16--- FAIL: TestA (0.01s)\n\x16=== NAME  \n" +
		"\x16=== RUN   TestB\n\x16--- PASS: TestB (0.00s)\n\x16=== NAME  \n\x16FAIL\n"
	skips = "\x16=== RUN   TestA\n    a_test.go:1: tcx needs Linux 6.6\n\x16--- SKIP: TestA (0.01s)\n\x16=== NAME  \n" +
		"\x16=== RUN   TestB\n    a_test.go:2: needs\n        podman\n\x16--- SKIP: TestB (0.01s)\n\x16=== NAME  \n\x16PASS\n"
	dealt = "\x16=== RUN   TestA\n    a_test.go:1: left to other kernels of the matrix: 5.10, 6.12\n\x16--- SKIP: TestA (0.01s)\n\x16=== NAME  \n" +
		"\x16=== RUN   TestB\n    a_test.go:2: left to other kernels of the matrix: 6.1, 8.5\n\x16--- SKIP: TestB (0.01s)\n\x16=== NAME  \n" +
		"\x16=== RUN   TestC\n    a_test.go:3: left to Linux 5.10 and 6.12\n\x16--- SKIP: TestC (0.01s)\n\x16=== NAME  \n\x16PASS\n"
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
			name: "dealt to others, to itself, and without saying so", output: dealt,
			want: result{
				skipped: map[string]string{"TestC": "a_test.go:3: left to Linux 5.10 and 6.12"},
				left:    map[string][]string{"TestA": {"5.10", "6.12"}, "TestB": {"6.1", "8.5"}},
				problems: []string{
					"TestB was left to Linux 6.1, which is no other kernel of the matrix",
					"TestB was left to Linux 8.5, which is no other kernel of the matrix",
					"TestC was skipped without naming the kernel that it needs: a_test.go:3: left to Linux 5.10 and 6.12",
				},
			},
			wantShow: "--- SKIP: TestA: a_test.go:1: left to other kernels of the matrix: 5.10, 6.12\n" +
				"--- SKIP: TestB: a_test.go:2: left to other kernels of the matrix: 6.1, 8.5\n" +
				"--- SKIP: TestC: a_test.go:3: left to Linux 5.10 and 6.12\n",
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
			got := result{kernel: "6.1"}
			var show strings.Builder
			if err := got.read(bytes.NewReader(events), &show, tt.verbose); err != nil {
				t.Fatal(err)
			}
			got.end(tt.err, time.Second)
			tt.want.kernel, tt.want.elapsed = "6.1", time.Second
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(result{}), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.wantShow, show.String()); diff != "" {
				t.Errorf("shown (-want +got):\n%s", diff)
			}
		})
	}
}

// What nstest says when it skips is told apart here.
func TestSkips(t *testing.T) {
	t.Setenv("PATH", t.TempDir()) // no compiler, as in the machines
	here := nstest.KernelVersion(t)
	newer := fmt.Sprintf("%d.%d", here[0], here[1]+1)
	for _, tt := range []struct {
		name string
		skip func(tb testing.TB)
		want result
	}{
		{
			"too old", func(tb testing.TB) { nstest.NeedKernel(tb, "tcx", here[0], here[1]+1) },
			result{skipped: map[string]string{"TestA": fmt.Sprintf("tcx needs Linux %s, this is %d.%d", newer, here[0], here[1])}},
		},
		{"new enough", func(tb testing.TB) { nstest.NeedKernel(tb, "tcx", here[0], here[1]) }, result{}},
		{
			"built without", func(tb testing.TB) { nstest.NotBuilt(tb, "a VLAN device", "CONFIG_VLAN_8021Q") },
			result{
				skipped:  map[string]string{"TestA": "a VLAN device needs a kernel with CONFIG_VLAN_8021Q"},
				problems: []string{"TestA was skipped without naming the kernel that it needs: a VLAN device needs a kernel with CONFIG_VLAN_8021Q"},
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := result{skipped: map[string]string{}, left: map[string][]string{}}
			if reason, ok := skipOf(t, "TestA", tt.skip); ok {
				got.skip("TestA", reason)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(result{}), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
	// Whatever kernel this is, it leaves each test or its counterpart to two others.
	for name, deal := range map[string]func(testing.TB, int){"halve": nstest.Halve, "deal": nstest.Deal} {
		t.Run(name, func(t *testing.T) {
			got := result{kernel: "this", skipped: map[string]string{}, left: map[string][]string{}}
			for i, test := range []string{"TestA", "TestB"} {
				if reason, ok := skipOf(t, test+name, func(tb testing.TB) { deal(tb, i) }); ok {
					got.skip(test, reason)
				}
			}
			if len(got.left) != 1 || len(got.skipped)+len(got.problems) != 0 {
				t.Errorf("one of two was not left to others: %+v", got)
			}
			for test, kernels := range got.left {
				if len(kernels) != 2 {
					t.Errorf("%s is left to %v", test, kernels)
				}
			}
		})
	}
}

// TestParts: a test that is dealt may deal its parts. Nobody else tries those of a test that is tried here alone.
func TestParts(t *testing.T) {
	t.Setenv("PATH", t.TempDir()) // no compiler, as in the machines
	for name, test := range map[string]struct {
		whole func(tb testing.TB, i int)
		of    int
		want  []string // of two parts, the reasons of those that are not tried
	}{
		"one":  {func(tb testing.TB, i int) { nstest.LeaveTo(tb, matrix()[i]) }, len(matrix()), nil},
		"half": {nstest.Halve, 2, []string{"left to other kernels of the matrix: "}},
	} {
		t.Run(name, func(t *testing.T) {
			tried := 0
			for i := range test.of {
				whole := fmt.Sprint("TestWhole", name, i)
				if _, skipped := skipOf(t, whole, func(tb testing.TB) { test.whole(tb, i) }); skipped {
					continue
				}
				tried++
				var got []string
				for part := range 2 {
					reason, skipped := skipOf(t, fmt.Sprint(whole, "/", part, "/IPv4"), func(tb testing.TB) { nstest.Deal(tb, part) })
					if skipped {
						words, kernel, _ := strings.Cut(reason, ": ")
						if strings.Contains(kernel, ",") {
							t.Errorf("a part is left to %s, which do not all try the whole", kernel)
						}
						got = append(got, words+": ")
					}
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("parts that are left to others (-want +got):\n%s", diff)
				}
			}
			if tried != 1 {
				t.Errorf("%d of %d are tried here", tried, test.of)
			}
		})
	}
}

// TestOne: each of the parts is left to one of those that try the whole, in turn.
func TestOne(t *testing.T) {
	t.Setenv("PATH", t.TempDir()) // no compiler, as in the machines
	for name, test := range map[string]struct {
		whole func(tb testing.TB, i int)
		of    int
		tried int // of four parts
	}{
		"all":  {func(testing.TB, int) {}, 1, 1},
		"half": {nstest.Halve, 2, 2},
		"one":  {func(tb testing.TB, i int) { nstest.LeaveTo(tb, matrix()[i]) }, len(matrix()), 4},
	} {
		t.Run(name, func(t *testing.T) {
			for i := range test.of {
				whole := fmt.Sprint("TestWholeOfOne", name, i)
				if _, skipped := skipOf(t, whole, func(tb testing.TB) { test.whole(tb, i) }); skipped {
					continue
				}
				var tried, left []string
				for part := range 4 {
					number := fmt.Sprint(part)
					reason, skipped := skipOf(t, whole+"/"+number, func(tb testing.TB) { nstest.One(tb, part) })
					if !skipped {
						tried = append(tried, number)
						continue
					}
					left = append(left, reason)
				}
				if len(tried) != test.tried || len(left) != 4-test.tried {
					t.Errorf("tried %v, left %q", tried, left)
				}
				for _, reason := range left {
					if kernel, ok := strings.CutPrefix(reason, nstest.LeftTo); !ok || !slices.Contains(matrix(), kernel) {
						t.Errorf("left to %q", reason)
					}
				}
			}
		})
	}
}

// skipper is a test that takes a skip down, and is not skipped itself.
type skipper struct {
	testing.TB
	name    string
	reason  string
	skipped bool
}

func (s *skipper) Name() string { return s.name }

func (s *skipper) Skip(args ...any) { s.reason, s.skipped = fmt.Sprint(args...), true }

func (s *skipper) Skipf(format string, args ...any) { s.Skip(fmt.Sprintf(format, args...)) }

func skipOf(t *testing.T, name string, skip func(testing.TB)) (reason string, skipped bool) {
	t.Helper()
	s := &skipper{TB: t, name: name}
	skip(s)
	return s.reason, s.skipped
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
	// Each test of dealt is left to the other kernel.
	to7, to510 := []string{"6.1", "7"}, []string{"5.10", "6.12"}
	dealt := []*result{
		{
			kernel: "5.10", pkg: "a", passed: []string{"TestA"}, skipped: map[string]string{"TestNew": ""},
			left: map[string][]string{"TestB": to7, "TestNobody": to7, "TestHere": {"6.1", "6.12"}, "TestA/part": to7},
		},
		{
			kernel: "7", pkg: "a", passed: []string{"TestB", "TestNew"}, skipped: map[string]string{},
			left: map[string][]string{"TestA": to510, "TestNew/part": to510},
		},
	}
	const dealtTable = `
package   5.10                       7
a         ok 1 (1 skipped, 4 left)   ok 2 (2 left)
`
	for _, tt := range []struct {
		name    string
		results []*result
		whole   bool
		want    string
		err     string
	}{
		{"part of the matrix", results, false, table + "\nkernels: 4 passed, 1 failed, 3 skipped, 0 left to others\n", "1 failed"},
		{
			"whole matrix", results, true, table + "a TestC: skipped on every kernel\n\nkernels: 4 passed, 2 failed, 3 skipped, 0 left to others\n",
			"2 failed",
		},
		{"nothing failed", results[:2], false, table[:strings.Index(table, "b/c")] + "\nkernels: 3 passed, 0 failed, 3 skipped, 0 left to others\n", ""},
		{
			"left to one that is here", dealt, false,
			dealtTable + "a TestNobody: left by Linux 5.10 to 7, which did not run it\n\nkernels: 3 passed, 1 failed, 1 skipped, 6 left to others\n",
			"1 failed",
		},
		{
			"left to all others", dealt, true, dealtTable + "a TestNobody: left by Linux 5.10 to 7, which did not run it\n" +
				"a TestA/part: skipped on every kernel\na TestHere: skipped on every kernel\na TestNew/part: skipped on every kernel\na TestNobody: skipped on every kernel\n" +
				"\nkernels: 3 passed, 5 failed, 1 skipped, 6 left to others\n",
			"5 failed",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got strings.Builder
			message := ""
			if err := summarize(&got, tt.results, tt.whole); err != nil {
				message = err.Error()
			}
			if message != tt.err {
				t.Errorf("got error %q, want %q", message, tt.err)
			}
			if diff := cmp.Diff(tt.want, got.String()); diff != "" {
				t.Errorf("summary (-want +got):\n%s", diff)
			}
		})
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
