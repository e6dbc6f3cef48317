// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"math"
	"regexp"
	"strings"
	"testing"
)

func TestHolderIn(t *testing.T) {
	const inode = "00:1f:42"
	for name, test := range map[string]struct {
		locks string
		want  int
	}{
		"nobody": {"", 0},
		"one":    {"1: FLOCK  ADVISORY  WRITE 1234 00:1f:42 0 EOF\n", 1234},
		"others": {`1: POSIX  ADVISORY  WRITE 1 00:1f:42 0 EOF
2: FLOCK  ADVISORY  WRITE 2 00:1f:421 0 EOF
3: OFDLCK ADVISORY  WRITE -1 00:1f:42 0 EOF
4: FLOCK  ADVISORY  WRITE 4 01:1f:42 0 EOF
5: FLOCK  ADVISORY  WRITE 5 <none>:0 0 EOF
`, 0},
		"one and who waits": {"1: FLOCK  ADVISORY  WRITE 1234 00:1f:42 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 1235 00:1f:42 0 EOF\n", 1234},
		"no PID":            {"1: FLOCK  ADVISORY  WRITE -1 00:1f:42 0 EOF\n", 0},
		"no number":         {"1: FLOCK  ADVISORY  WRITE x 00:1f:42 0 EOF\n", 0},
		"too large":         {"1: FLOCK  ADVISORY  WRITE 99999999999999999999 00:1f:42 0 EOF\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := holderIn(strings.NewReader(test.locks), inode); got != test.want {
				t.Errorf("holder %d, want %d", got, test.want)
			}
		})
	}
}

// FuzzHolderIn reads any file as /proc/locks. A holder is a PID that stands before the inode in a line of flock(2),
// and one of which the kernel tells is found behind all that is of other inodes.
func FuzzHolderIn(f *testing.F) {
	f.Add("1: FLOCK  ADVISORY  WRITE 1234 00:1f:42 0 EOF\n", uint32(0), uint32(0x1f), uint64(42), int64(1234))
	f.Add("1: POSIX  ADVISORY  READ 1 00:1f:42 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 7 00:1f:42 0 EOF", uint32(0), uint32(0x1f), uint64(42), int64(math.MaxInt32))
	f.Add("1: FLOCK  ADVISORY  WRITE 99999999999999999999 100:1f:42 0 EOF\n", uint32(0x100), uint32(0x1f), uint64(42), int64(-1))
	f.Add("1: FLOCK  ADVISORY  WRITE 5 01:1f:42 0 EOF\n2: FLOCK  ADVISORY  READ 6 <none>:0 0 EOF\n", uint32(0), uint32(0x1f), uint64(42), int64(7))
	f.Add("1: FLOCK 5 00:00:0", uint32(0), uint32(0), uint64(0), int64(0))
	f.Fuzz(func(t *testing.T, locks string, major, minor uint32, number uint64, pid int64) {
		inode := fmt.Sprintf("%02x:%02x:%d", major, minor, number)
		words := strings.Join(strings.Fields(locks), " ")
		if got := holderIn(strings.NewReader(locks), inode); got != 0 {
			written := regexp.MustCompile(fmt.Sprintf(`FLOCK \S+ \S+ 0*%d %s( |$)`, got, inode))
			if got < 1 || got > math.MaxInt32 || !written.MatchString(words) {
				t.Errorf("%q: holder of %s is %d", locks, inode, got)
			}
		}
		if strings.Contains(words, inode) || len(locks) > 4096 {
			return // not of other inodes alone, or with longer lines than the kernel's
		}
		want := 0
		if pid > 0 && pid <= math.MaxInt32 {
			want = int(pid)
		}
		locks += fmt.Sprintf("\n9: FLOCK  ADVISORY  WRITE %d %s 0 EOF\n", pid, inode)
		if got := holderIn(strings.NewReader(locks), inode); got != want {
			t.Errorf("%q: holder of %s is %d, want %d", locks, inode, got, want)
		}
	})
}
