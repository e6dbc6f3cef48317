// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/flock"
)

// FileOptions are the options of OpenFile.
type FileOptions struct {
	// LockTimeout is how long to wait for another process that has the file
	// open. 0 does not wait.
	LockTimeout time.Duration
}

// OpenFile opens the agent's state file, and creates it with mode 0600 if it is
// not there. The directory exists.
//
// bbolt by itself trusts the file: one that was cut short ends the process with
// a bus error. So the file is verified first, under the lock that bbolt will
// hold, and is not changed unless it is good. The one exception is what a kill
// left of a creation, which never held a record and is begun anew.
//
// Errors: ErrInUse, ErrCorrupt, or what the file system said, each with the
// path.
func OpenFile(path string, opts FileOptions) (db *bbolt.DB, err error) {
	var file *os.File
	defer func() {
		if err != nil {
			err = fmt.Errorf("open %s: %w", path, err)
		}
	}()
	// bbolt panics on what it finds odd. checkPages should have seen it, but
	// whatever is wrong with a file, the answer is an error.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			db, err = nil, errors.Join(fmt.Errorf("%w: %v", ErrCorrupt, p), file.Close())
		}
	}()
	return bbolt.Open(path, 0o600, &bbolt.Options{
		NoStatistics: true,
		Timeout:      time.Second, // the lock is ours already
		OpenFile: func(path string, flag int, mode os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(path, flag, mode)
			if err != nil {
				return nil, bare(err)
			}
			if err := secure(f, opts.LockTimeout); err != nil {
				return nil, errors.Join(err, f.Close())
			}
			file = f
			return f, nil
		},
	})
}

// bare is the error without the operation and the path, which OpenFile adds.
func bare(err error) error {
	var pathError *os.PathError
	if errors.As(err, &pathError) {
		return pathError.Err
	}
	return err
}

// secure locks the file and verifies its content. The lock belongs to the open
// file, so when bbolt locks it again nothing happens.
func secure(f *os.File, timeout time.Duration) error {
	if err := lock(f, timeout); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return bare(err)
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	if info.Size() == 0 {
		return nil // bbolt creates the content
	}
	err = checkPages(f, info.Size())
	if errors.Is(err, errUnborn) {
		return bare(f.Truncate(0))
	}
	return err
}

func lock(f *os.File, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	err := flock.Lock(ctx, f, unix.LOCK_EX)
	if errors.Is(err, context.DeadlineExceeded) {
		return ErrInUse
	}
	return err
}
