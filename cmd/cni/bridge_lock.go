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

	"github.com/tendril-net/tendril/internal/flock"
	"github.com/tendril-net/tendril/pkg/api"
)

// alonePatience is how long an ADD that failed waits for others to end before it leaves
// the bridge that it made.
const alonePatience = 2 * time.Second

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
	if err := flock.Lock(ctx, file, unix.LOCK_SH); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("lock bridges: %w", err)
	}
	return &bridgeLock{file: file}, nil
}

// alone gives up the share and waits until nobody has one. Whoever comes then waits for the
// release.
func (l *bridgeLock) alone(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, alonePatience)
	defer cancel()
	err := flock.Lock(ctx, l.file, unix.LOCK_EX)
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
