// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/agent"
)

// traces are what a start has made so far. An agent that is refused takes it away
// again, and nothing that was there before.
type traces struct {
	directories []string
	stateFile   string // "" when there was one
	mount       string // "" when there was none to make
}

// directory is called before a directory and those above it are made.
func (t *traces) directory(path string) {
	for path = filepath.Clean(path); absent(path); path = filepath.Dir(path) {
		t.directories = append(t.directories, path)
	}
}

// state is called before the state file is opened. Its lock is held, so whoever
// makes it is this process.
func (t *traces) state(path string) {
	if absent(path) {
		t.stateFile = path
	}
}

func absent(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// unmount takes the bpf file system away, which the kernel refuses when others use
// it by now, and what the state file says of it.
func (n *node) unmount() error {
	at := n.traces.mount
	if at == "" {
		return nil
	}
	if err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount bpf file system at %s: %w", at, err)
	}
	if n.db == nil {
		return nil
	}
	return agent.ForgetMount(n.db, at)
}

// removeState removes a state file that knows nothing. It is closed, and the lock
// of its directory still held.
func (t *traces) removeState() error {
	if t.stateFile == "" {
		return nil
	}
	if err := os.Remove(t.stateFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove new state file: %w", err)
	}
	return nil
}

// removeDirectories removes those that are empty: others may use them by now.
func (t *traces) removeDirectories() {
	slices.SortFunc(t.directories, func(a, b string) int { return cmp.Compare(len(b), len(a)) })
	for _, path := range t.directories {
		_ = os.Remove(path)
	}
}
