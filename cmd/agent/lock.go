// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// heldError says that another process has what an agent must have alone.
type heldError struct {
	what, path string
	holder     string // "pid 123", or empty
}

func (e *heldError) Error() string {
	holder := "another process"
	if e.holder != "" {
		holder = "the agent with " + e.holder
	}
	return fmt.Sprintf("%s %s is in use by %s", e.what, e.path, holder)
}

// lock is a file whose lock (flock) says that an agent uses what it stands for.
// The kernel drops it with the process, however that ends.
type lock struct {
	path string
	file *os.File
}

// takeLock locks the file at path, for what is named in the error when somebody
// else has it. It makes the directory.
func takeLock(path, what, of string) (*lock, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	for {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open lock: %w", err)
		}
		if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			defer func() { _ = file.Close() }()
			if !errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("lock %s: %w", path, err)
			}
			text, _ := io.ReadAll(io.LimitReader(file, 64))
			return nil, &heldError{what: what, path: of, holder: strings.TrimSpace(string(text))}
		}
		// The former holder may have removed the file between open and lock.
		locked, err1 := file.Stat()
		named, err2 := os.Stat(path)
		if err1 != nil || err2 != nil || !os.SameFile(locked, named) {
			_ = file.Close()
			continue
		}
		text := fmt.Sprintf("pid %d\n", os.Getpid())
		if err := errors.Join(file.Truncate(0), writeAt(file, text)); err != nil {
			_ = file.Close()
			return nil, fmt.Errorf("write lock: %w", err)
		}
		return &lock{path: path, file: file}, nil
	}
}

func writeAt(file *os.File, text string) error {
	_, err := file.WriteAt([]byte(text), 0)
	return err
}

// release removes the file while it is still locked.
func (l *lock) release() error { return errors.Join(os.Remove(l.path), l.file.Close()) }
