// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/api"
)

// alonePatience is how long an ADD that failed waits for others to end before it leaves
// the bridge that it made.
const alonePatience = 2 * time.Second

// lockInterval is between two tries to get a lock that somebody else has.
const lockInterval = 5 * time.Millisecond

// bridgeLock is a file beside the agent's socket whose lock (flock) each ADD with the driver
// bridge shares while its device may become a port. Who has it alone may remove a bridge
// that nobody has joined. The kernel drops it with the process, however that ends.
type bridgeLock struct{ file *os.File }

// lockBridges shares the lock. Without the folder of the socket there is no agent.
func lockBridges(ctx context.Context, socket string) (*bridgeLock, error) {
	file, err := os.OpenFile(filepath.Join(filepath.Dir(socket), api.BridgeLockName), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lock bridges: %w: %w", api.ErrUnavailable, err)
	}
	if err != nil {
		return nil, fmt.Errorf("lock bridges: %w", err)
	}
	l := &bridgeLock{file: file}
	if err := l.flock(ctx, unix.LOCK_SH); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("lock bridges: %w", err)
	}
	return l, nil
}

// flock gives up waiting when the context ends. It asks again and again: who waits in the
// kernel cannot be called back.
func (l *bridgeLock) flock(ctx context.Context, how int) error {
	again := time.NewTicker(lockInterval)
	defer again.Stop()
	for {
		err := unix.Flock(int(l.file.Fd()), how|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
		}
	}
}

// alone gives up the share and waits until nobody has one. Whoever comes then waits for the
// release.
func (l *bridgeLock) alone(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, alonePatience)
	defer cancel()
	err := l.flock(ctx, unix.LOCK_EX)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return false, nil
	}
	return err == nil, err
}

// release is for nil, too.
func (l *bridgeLock) release() {
	if l != nil {
		_ = l.file.Close()
	}
}
