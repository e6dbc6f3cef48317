// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// lock takes root for this process. A bpf file system holds no regular files,
// so the folder itself is locked.
func lock(root string) (*os.File, error) {
	dir, err := os.Open(root)
	if err != nil {
		return nil, fmt.Errorf("open bpf-root: %w", err)
	}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errors.Join(&LockedError{Root: root, PID: holder(dir)}, dir.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock bpf-root %s: %w", root, err), dir.Close())
	}
	return dir, nil
}

// alone takes the network namespace for this process: a second agent in it would
// put its programs in the place of the first's. A name in the abstract namespace
// of unix sockets belongs to one network namespace, and goes with the process.
func alone() (net.Listener, error) {
	l, err := net.Listen("unix", "@tendril-agent")
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, errors.New("another agent serves this network namespace")
	}
	if err != nil {
		return nil, fmt.Errorf("take network namespace: %w", err)
	}
	return l, nil
}

// Idle returns an error when an agent serves the network namespace of the process,
// whatever its bpf-root is.
func Idle() error {
	l, err := alone()
	if err != nil {
		return err
	}
	return l.Close()
}

// Available returns an error when an agent uses root, or serves the network
// namespace of the process: Open would be refused. Nothing is made.
func Available(root string) error {
	held, err := lock(root)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		if err := held.Close(); err != nil {
			return fmt.Errorf("unlock bpf-root %s: %w", root, err)
		}
	}
	return Idle()
}

// holder finds who has locked a file, by its inode in /proc/locks (proc(5)).
func holder(f *os.File) int {
	var stat unix.Stat_t
	if unix.Fstat(int(f.Fd()), &stat) != nil {
		return 0
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return 0
	}
	defer func() { _ = locks.Close() }()
	return holderIn(locks, fmt.Sprintf("%02x:%02x:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev), stat.Ino))
}

// holderIn finds the inode, MAJOR:MINOR:NUMBER, in a file as /proc/locks is; 0 where no process
// is said to have locked it.
func holderIn(locks io.Reader, inode string) int {
	for scanner := bufio.NewScanner(locks); scanner.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 1234 00:1f:42 0 EOF
		fields := strings.Fields(scanner.Text())
		if len(fields) >= 6 && fields[1] == "FLOCK" && fields[5] == inode {
			if pid, err := strconv.ParseUint(fields[4], 10, 31); err == nil { // else, as with -1, who it is cannot be told
				return int(pid)
			}
		}
	}
	return 0
}
