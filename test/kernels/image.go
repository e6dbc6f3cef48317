// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

//go:embed init.sh
var initScript []byte

// moduleDir is where a machine has the module root.
const moduleDir = "/tendril"

// writeImage writes an initramfs: the modules of k, busybox, tools of this
// host, files of the module, the programs and a script that runs them.
func writeImage(ctx context.Context, file string, k *kernel, programs []program, s *settings, script []byte) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	modules, err := os.Open(k.modules)
	if err != nil {
		return err
	}
	defer func() { _ = modules.Close() }()
	// An initramfs may be several archives, one after another.
	if _, err := io.Copy(f, modules); err != nil {
		return err
	}

	a := newArchive(f)
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "root", "etc", "usr/bin"} {
		a.dir(dir)
	}
	a.file("init", 0o755, initScript)
	a.file("jobs", 0o644, script)
	a.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	a.file("etc/group", 0o644, []byte("root:x:0:\n"))
	a.file("etc/hosts", 0o644, []byte("127.0.0.1 localhost\n::1 localhost\n"))
	a.symlink("sbin", "bin") // the kernel runs /sbin/modprobe
	// Busybox's shell prefers its own ip and tc to those of the PATH.
	a.symlink("bin/sh", "../usr/bin/dash")
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	a.copy("bin/busybox", busybox)
	for _, tool := range s.tools {
		files, err := closure(ctx, tool)
		if err != nil {
			return err
		}
		place := tool
		if !path.IsAbs(tool) {
			place = path.Join("usr/bin", tool)
		}
		a.copy(place, files[0])
		for _, library := range files[1:] {
			a.copy(library, library)
		}
	}
	for _, name := range s.with {
		a.tree(path.Join(moduleDir, name), filepath.Join(programs[0].root, name))
	}
	for _, p := range programs {
		a.copy(path.Join(moduleDir, p.path, filepath.Base(p.binary)), p.binary)
		if p.testdata != "" {
			a.tree(path.Join(moduleDir, p.testdata), filepath.Join(p.root, p.testdata))
		}
	}
	return a.close()
}

var libraryPath = regexp.MustCompile(`/\S+`)

// closure returns the file of a program of this host and those of the shared
// libraries it loads.
func closure(ctx context.Context, tool string) ([]string, error) {
	file, err := exec.LookPath(tool)
	if err != nil {
		return nil, fmt.Errorf("find tool: %w (.ci/deps kernels installs them)", err)
	}
	text, err := exec.CommandContext(ctx, "ldd", file).CombinedOutput()
	if err != nil && !bytes.Contains(text, []byte("not a dynamic executable")) {
		return nil, fmt.Errorf("find libraries of %s: %w: %s", tool, err, text)
	}
	files := []string{file}
	if err == nil {
		files = append(files, libraryPath.FindAllString(string(text), -1)...)
	}
	return files, nil
}

// archive writes a cpio archive in the "newc" format of the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst. Everything in it
// belongs to root. The first error stops it and is returned by close.
type archive struct {
	w    *bufio.Writer
	dirs map[string]bool
	node int
	err  error
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriter(w), dirs: map[string]bool{".": true, "/": true}}
}

// File types of mode, as in stat(2).
const (
	typeDir     = 0o040000
	typeFile    = 0o100000
	typeSymlink = 0o120000
)

func (a *archive) entry(name string, mode uint32, data []byte) {
	if a.err != nil {
		return
	}
	name = strings.TrimPrefix(path.Clean(name), "/")
	a.dir(path.Dir(name))
	a.node++
	// Magic, inode, mode, uid, gid, links, mtime, size, device and device of the
	// node (major, minor), length of the name with its 0, checksum.
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.node, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	for _, part := range [][]byte{[]byte(head), data} {
		if _, err := a.w.Write(part); err != nil {
			a.err = err
			return
		}
		if _, err := a.w.Write(make([]byte, -len(part)&3)); err != nil { // both are padded to four bytes
			a.err = err
			return
		}
	}
}

func (a *archive) file(name string, mode uint32, data []byte) { a.entry(name, typeFile|mode, data) }

func (a *archive) symlink(name, target string) { a.entry(name, typeSymlink|0o777, []byte(target)) }

func (a *archive) dir(name string) {
	if name = strings.TrimPrefix(path.Clean(name), "/"); name == "" || a.dirs[name] {
		return
	}
	a.dirs[name] = true
	a.entry(name, typeDir|0o755, nil)
}

// copy adds a file of this host, or what it links to.
func (a *archive) copy(name, source string) {
	if a.err != nil {
		return
	}
	info, err := os.Stat(source)
	if err != nil {
		a.err = err
		return
	}
	data, err := os.ReadFile(source)
	if err != nil {
		a.err = err
		return
	}
	a.file(name, uint32(info.Mode().Perm()), data)
}

// tree adds a file or folder of this host with all that is in it.
func (a *archive) tree(name, source string) {
	if a.err != nil {
		return
	}
	a.err = filepath.WalkDir(source, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(source, file)
		if err != nil {
			return err
		}
		if d.IsDir() {
			a.dir(path.Join(name, rel))
		} else {
			a.copy(path.Join(name, rel), file)
		}
		return a.err
	})
}

func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, nil)
	if a.err != nil {
		return a.err
	}
	return a.w.Flush()
}
