// SPDX-License-Identifier: Apache-2.0

// Package flock waits for locks of files (flock(2)) for as long as a context lasts.
package flock

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// interval is the time between two attempts: no event says that a lock is free, and who waits
// in the kernel cannot be called back.
const interval = 5 * time.Millisecond

// Lock gets the lock, unix.LOCK_EX or unix.LOCK_SH. It tries at least once. The error is the
// context's when that ends before somebody else lets go; a share that was to become more is
// given up then.
func Lock(ctx context.Context, file *os.File, how int) error {
	again := time.NewTicker(interval)
	defer again.Stop()
	for {
		err := unix.Flock(int(file.Fd()), how|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EWOULDBLOCK):
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
		}
	}
}
