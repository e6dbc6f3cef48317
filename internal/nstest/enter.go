// SPDX-License-Identifier: Apache-2.0

package nstest

import (
	"errors"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// entered is the namespace that all threads are in, nil while they are where they began.
var entered atomic.Pointer[NS]

// Enter puts every thread of the process into the namespace until the test ends, which saves
// Do the way there: tests that show thousands of packets spend a sixth of their time on it
// where all is emulated. No other test may run meanwhile. A process with cgo in it, as one
// with the race detector, stays where it is, and Enter returns false.
func (n *NS) Enter(tb testing.TB) bool {
	tb.Helper()
	old, err := netns.Get()
	must(tb, err)
	before := entered.Load()
	switch err := setns(n.handle); {
	case errors.Is(err, syscall.ENOTSUP):
		must(tb, old.Close())
		return false
	case err != nil:
		tb.Fatalf("enter namespace %s: %v", n.Name, err)
	}
	entered.Store(n)
	tb.Cleanup(func() {
		if err := errors.Join(setns(old), old.Close()); err != nil {
			tb.Errorf("leave namespace %s: %v", n.Name, err)
		}
		entered.Store(before)
	})
	return true
}

// setns moves all threads, and with them those to come.
func setns(ns netns.NsHandle) error {
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_SETNS, uintptr(ns), unix.CLONE_NEWNET, 0); errno != 0 {
		return errno
	}
	return nil
}
