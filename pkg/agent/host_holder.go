// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Holder implements Sockets. It looks at the open files of all processes, and so is
// for messages only. Without CAP_SYS_PTRACE, which the agent's unit does not have,
// it does not see those of most; then it names the control group that the socket
// was made in.
func (h *Host) Holder(b BoundSocket) string {
	if process := processOf(b.Inode); process != "" {
		return process
	}
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var stat unix.Statfs_t
		if unix.Statfs(root, &stat) != nil || stat.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		if group := cgroupOf(root, b.Cgroup); group != "" {
			return "a process of control group " + group
		}
	}
	return ""
}

// processOf names a process that has a socket open; empty when none is seen.
func processOf(inode uint32) string {
	files, err := filepath.Glob("/proc/[0-9]*/fd/[0-9]*")
	if err != nil || inode == 0 {
		return ""
	}
	wanted := fmt.Sprintf("socket:[%d]", inode)
	for _, file := range files {
		if target, err := os.Readlink(file); err != nil || target != wanted {
			continue // or closed meanwhile
		}
		pid := strings.Split(file, "/")[2]
		name, err := os.ReadFile("/proc/" + pid + "/comm")
		if err != nil {
			continue
		}
		return fmt.Sprintf("process %s (pid %s)", strings.TrimSpace(string(name)), pid)
	}
	return ""
}

// cgroupOf returns the control group below the root whose folder has that inode: it
// is the number of the group. The root itself says nothing.
func cgroupOf(root string, id uint64) (group string) {
	_ = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() || path == root {
			return nil // a group that has gone is no fault
		}
		info, err := entry.Info()
		if err != nil {
			return nil
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Ino == id {
			group = strings.TrimPrefix(path, root)
			return fs.SkipAll
		}
		return nil
	})
	return group
}
