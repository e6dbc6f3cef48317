// SPDX-License-Identifier: Apache-2.0

package socktest

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// Wait waits for events (unix.POLL*) of a descriptor, and returns whether one came in
// time. The runtime's signals interrupt poll(2), which the kernel never restarts, and
// a socket with a time limit of its own: so whoever waits on a bare descriptor does it here.
// The patience, above 0, is in whole milliseconds, and begins again with each signal.
func Wait(fd int, events int16, patience time.Duration) (bool, error) {
	for {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, int(patience.Milliseconds()))
		if !errors.Is(err, unix.EINTR) {
			return ready > 0, err
		}
	}
}
