// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// bpfMount is where Linux distributions mount the bpf file system.
const bpfMount = "/sys/fs/bpf"

// ensureBPFFS makes root a directory on a bpf file system. It returns the path
// at which it had to mount one, empty when there was one.
func ensureBPFFS(root string) (mounted string, err error) {
	root = filepath.Clean(root)
	on, err := onBPFFS(root)
	if err != nil {
		return "", err
	}
	if !on {
		at := root
		if root == bpfMount || strings.HasPrefix(root, bpfMount+"/") {
			at = bpfMount
		} else if err := os.MkdirAll(root, 0o700); err != nil {
			return "", fmt.Errorf("make bpf-root: %w", err)
		}
		if err := unix.Mount("bpf", at, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
			return "", fmt.Errorf("mount a bpf file system at %s: %w", at, err)
		}
		mounted = at
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return mounted, fmt.Errorf("make bpf-root: %w", err)
	}
	return mounted, nil
}

// onBPFFS tells whether path, or the nearest directory above it that exists, is
// on a bpf file system.
func onBPFFS(path string) (bool, error) {
	for {
		var stat unix.Statfs_t
		err := unix.Statfs(path, &stat)
		switch {
		case err == nil:
			return stat.Type == unix.BPF_FS_MAGIC, nil
		case errors.Is(err, fs.ErrNotExist) && path != "/":
			path = filepath.Dir(path)
		default:
			return false, fmt.Errorf("look at bpf-root %s: %w", path, err)
		}
	}
}
