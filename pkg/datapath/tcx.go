// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// tcx attaches by links (Linux 6.6), each pinned as IFINDEX-PROGRAM. A link whose
// device has gone is left over until it is unpinned.
type tcx struct {
	dir string
}

// haveTCX tries to query the loopback device's programs: the command came with tcx.
func haveTCX() bool {
	const loopback = 1
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXIngress})
	return err == nil
}

func (*tcx) kind() string { return "tcx" }

func (t *tcx) path(a attachment) string {
	return filepath.Join(t.dir, strconv.Itoa(a.ifindex)+"-"+a.program)
}

func (t *tcx) attach(a attachment, program *ebpf.Program) (err error) {
	path := t.path(a)
	pinned, err := link.LoadPinnedLink(path, nil)
	if err == nil {
		defer func() { err = errors.Join(err, pinned.Close()) }()
		err = pinned.Update(program)
		if errors.Is(err, unix.ENOLINK) {
			// Its device has gone; another may have the index by now.
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("unpin link: %w", err)
			}
			return t.attachNew(a, program)
		}
		if err != nil {
			return fmt.Errorf("update link %s: %w", path, err)
		}
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open pinned link %s: %w", path, err)
	}
	return t.attachNew(a, program)
}

func (t *tcx) attachNew(a attachment, program *ebpf.Program) (err error) {
	path := t.path(a)
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return fmt.Errorf("make folder of links: %w", err)
	}
	where := ebpf.AttachTCXEgress
	if a.ingress() {
		where = ebpf.AttachTCXIngress
	}
	attached, err := link.AttachTCX(link.TCXOptions{Interface: a.ifindex, Program: program, Attach: where, Anchor: link.Head()})
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("attach %s to interface %d: %w", a.program, a.ifindex, errNoDevice)
	}
	if err != nil {
		return fmt.Errorf("attach %s to interface %d: %w", a.program, a.ifindex, err)
	}
	defer func() { err = errors.Join(err, attached.Close()) }()
	if err := attached.Pin(path); err != nil {
		return fmt.Errorf("pin link %s: %w", path, err)
	}
	return nil
}

func (t *tcx) detach(a attachment) error {
	// The pin is the only reference: without it the kernel removes the link.
	if err := os.Remove(t.path(a)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin link: %w", err)
	}
	return nil
}

func (t *tcx) has(a attachment) (bool, error) {
	pinned, err := link.LoadPinnedLink(t.path(a), nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open pinned link %s: %w", t.path(a), err)
	}
	defer func() { _ = pinned.Close() }()
	info, err := pinned.Info()
	if err != nil {
		return false, fmt.Errorf("read link %s: %w", t.path(a), err)
	}
	// A link whose device has gone says 0.
	return info.TCX() != nil && int(info.TCX().Ifindex) == a.ifindex, nil
}

func (t *tcx) abandon(a attachment) error { return t.detach(a) }

func (t *tcx) list() ([]attachment, error) {
	entries, err := os.ReadDir(t.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read folder of links: %w", err)
	}
	var attached []attachment
	for _, entry := range entries {
		index, program, _ := strings.Cut(entry.Name(), "-")
		ifindex, err := strconv.Atoi(index)
		if err != nil || objects[program] == nil {
			return nil, fmt.Errorf("%s is no link of ours", filepath.Join(t.dir, entry.Name()))
		}
		attached = append(attached, attachment{ifindex: ifindex, program: program})
	}
	return attached, nil
}
