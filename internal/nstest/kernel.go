// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// KernelVersion is major and minor of the running kernel.
func KernelVersion(tb testing.TB) [2]int {
	version, err := running()
	must(tb, err)
	return version
}

// running is asked for before many of the packets that tests show.
var running = sync.OnceValues(func() (version [2]int, err error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return version, err
	}
	return parseVersion(unix.ByteSliceToString(name.Release[:]))
})

// Version is major and minor of a release such as 6.12.3.
func Version(tb testing.TB, release string) [2]int {
	version, err := parseVersion(release)
	must(tb, err)
	return version
}

func parseVersion(release string) (version [2]int, err error) {
	if _, err := fmt.Sscanf(release, "%d.%d", &version[0], &version[1]); err != nil {
		return version, fmt.Errorf("version %q: %w", release, err)
	}
	return version, nil
}

// KernelSince tells whether the running kernel is of a release or a later one.
func KernelSince(tb testing.TB, release string) bool {
	tb.Helper()
	have, since := KernelVersion(tb), Version(tb, release)
	return slices.Compare(have[:], since[:]) >= 0
}

// NeedKernel skips a test of what older kernels lack.
func NeedKernel(tb testing.TB, feature string, major, minor int) {
	have := KernelVersion(tb)
	if slices.Compare(have[:], []int{major, minor}) < 0 {
		tb.Helper()
		tb.Skipf("%s needs Linux %d.%d, this is %d.%d", feature, major, minor, have[0], have[1])
	}
}

// NotBuilt skips a test of what this kernel could have, and was built without. All of the matrix
// were built with it: there it is a failure.
func NotBuilt(tb testing.TB, feature, option string) {
	tb.Helper()
	tb.Skipf("%s needs a kernel with %s", feature, option)
}

// LeftTo is in the reason of a skip by which a test is dealt to others: their versions follow it.
const LeftTo = "left to other kernels of the matrix: "

// Emulated tells whether this is one of the machines that other kernels are tried in, where
// all takes many times as long. They have no compiler.
func Emulated() bool {
	_, err := exec.LookPath("go")
	return err != nil
}

// Whole is the variable that has every kernel of the matrix run what is dealt to several otherwise.
const Whole = "TENDRIL_TEST_WHOLE"

// inMatrix are the kernels of the matrix (test/kernels), the oldest first.
var inMatrix = [...]string{"5.10", "6.1", "6.12", "7"}

// Share is the part of many like cases that this kernel sees: all (0 of 1), or where all is
// emulated every fourth, another on each kernel of the matrix, unless Whole is set. Of a test that is left to
// some kernels the shares of the others are tried on none.
func Share(tb testing.TB) (share, shares int) {
	tb.Helper()
	if !Emulated() || os.Getenv(Whole) != "" {
		return 0, 1
	}
	version := KernelVersion(tb)
	for _, next := range [][2]int{{6, 0}, {6, 6}, {7, 0}} {
		if slices.Compare(version[:], next[:]) >= 0 {
			share++
		}
	}
	return share, len(inMatrix)
}

// LeaveTo leaves a test to some of the kernels of the matrix: it takes long where all is emulated, and
// is of more than the kernel does, or of pieces that are tried on every kernel. The machine that has a
// compiler tries it, too. Parts of a test that was left to kernels none of which are named are tried on each of those.
func LeaveTo(tb testing.TB, kernels ...string) {
	tb.Helper()
	share, shares := Share(tb)
	if shares == 1 {
		return
	}
	left.Lock()
	defer left.Unlock()
	if of := leftTo(tb.Name()); of != nil {
		others := func(kernel string) bool { return !slices.Contains(of, kernel) }
		if kernels = slices.DeleteFunc(slices.Clone(kernels), others); len(kernels) == 0 {
			kernels = of
		}
	}
	left.to[tb.Name()] = kernels
	if !slices.Contains(kernels, inMatrix[share]) {
		tb.Skip(LeftTo + strings.Join(kernels, ", "))
	}
}

// left has the kernels that tests of this process were left to, by name.
var left = struct {
	sync.Mutex
	to map[string][]string
}{to: make(map[string][]string)}

// leftTo is what a test was left to, or the nearest that it is a part of; nil for all.
func leftTo(test string) []string {
	for {
		if of := left.to[test]; of != nil {
			return of
		}
		end := strings.LastIndex(test, "/")
		if end < 0 {
			return nil
		}
		test = test[:end]
	}
}

// Halve leaves a test to half of the kernels of the matrix: 0 to Linux 5.10 and 6.12, 1 to 6.1 and
// 7, so that either has one with tcx and one without.
func Halve(tb testing.TB, half int) {
	tb.Helper()
	LeaveTo(tb, inMatrix[half], inMatrix[half+2])
}

// Deal leaves one of two like tests (0 and 1), of which either is to see a kernel with tcx and one
// without, to Linux 5.10 and 7, and the other to 6.1 and 6.12. Of a test that is left to half of the
// kernels either half has both.
func Deal(tb testing.TB, test int) {
	tb.Helper()
	LeaveTo(tb, inMatrix[test], inMatrix[len(inMatrix)-1-test])
}

// One leaves one of many like cases, numbered from 0, to a single kernel of those that try the test that it is a part of.
func One(tb testing.TB, number int) {
	tb.Helper()
	left.Lock()
	of := leftTo(tb.Name())
	left.Unlock()
	if of == nil {
		of = inMatrix[:]
	}
	LeaveTo(tb, of[number%len(of)])
}
