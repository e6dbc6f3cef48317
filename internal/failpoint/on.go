// SPDX-License-Identifier: Apache-2.0

//go:build failpoint

package failpoint

import (
	"os"

	"golang.org/x/sys/unix"
)

// Hit kills the process when TENDRIL_FAILPOINT names p.
func Hit(p Point) {
	if os.Getenv("TENDRIL_FAILPOINT") == string(p) {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {} // the signal is on its way
	}
}
