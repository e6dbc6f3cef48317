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
//
// The kernel removes a link, and the program with it, when neither a pin nor a
// handle is left. So each is held by its handle too: while an agent runs, nothing
// stops when somebody removes the pins.
type tcx struct {
	dir  string
	held map[attachment]link.Link
}

func newTCX(dir string) *tcx { return &tcx{dir: dir, held: make(map[attachment]link.Link)} }

// haveTCX tries to query the loopback device's programs: the command came with tcx.
func haveTCX() bool {
	const loopback = 1
	_, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXIngress})
	return err == nil
}

func (*tcx) kind() string { return "tcx" }

func (t *tcx) path(a attachment) string {
	return filepath.Join(t.dir, a.pin())
}

// pin is the name of the pin.
func (a attachment) pin() string { return strconv.Itoa(a.ifindex) + "-" + a.program }

// attachmentOf reads the name of a pin. False where it is none that pin returns: by that a link is
// opened and removed.
func attachmentOf(name string) (attachment, bool) {
	index, program, _ := strings.Cut(name, "-")
	ifindex, err := strconv.ParseInt(index, 10, 32)
	a := attachment{ifindex: int(ifindex), program: program}
	return a, err == nil && ifindex > 0 && objects[program] != nil && a.pin() == name
}

// open returns the link that is held, or the one that is pinned and holds it from
// then on; nil when there is none.
func (t *tcx) open(a attachment) (link.Link, error) {
	if held := t.held[a]; held != nil {
		return held, nil
	}
	pinned, err := link.LoadPinnedLink(t.path(a), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned link %s: %w", t.path(a), err)
	}
	t.held[a] = pinned
	return pinned, nil
}

func (t *tcx) attach(a attachment, program *ebpf.Program) error {
	own, err := t.open(a)
	if err != nil {
		return err
	}
	if own == nil {
		return t.attachNew(a, program)
	}
	err = own.Update(program)
	if errors.Is(err, unix.ENOLINK) {
		// Its device has gone, and another may have the index by now; or somebody
		// has detached it, which ends a link for good.
		if err := t.detach(a); err != nil {
			return err
		}
		return t.attachNew(a, program)
	}
	if err != nil {
		return fmt.Errorf("update link %s: %w", t.path(a), err)
	}
	return nil
}

func (t *tcx) attachNew(a attachment, program *ebpf.Program) error {
	path := t.path(a)
	if err := makePinFolder(t.dir); err != nil {
		return fmt.Errorf("make folder of links: %w", err)
	}
	where := ebpf.AttachTCXEgress
	if a.ingress() {
		where = ebpf.AttachTCXIngress
	}
	anchor, err := t.anchor(a)
	if err != nil {
		return err
	}
	attached, err := link.AttachTCX(link.TCXOptions{Interface: a.ifindex, Program: program, Attach: where, Anchor: anchor})
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("attach %s to interface %d: %w", a.program, a.ifindex, errNoDevice)
	}
	if err != nil {
		return fmt.Errorf("attach %s to interface %d: %w", a.program, a.ifindex, err)
	}
	if err := attached.Pin(path); err != nil {
		return errors.Join(fmt.Errorf("pin link %s: %w", path, err), attached.Close())
	}
	t.held[a] = attached
	return nil
}

// anchor is where among the programs of the device this one goes: before those of others, and
// among ours as the priorities of clsact have it.
func (t *tcx) anchor(a attachment) (link.Anchor, error) {
	after := map[string]string{
		fromParent: fromUplink, toUplink: toParent, fromContainer: limitEgress, limitIngress: toContainer,
	}[a.program]
	if after == "" {
		return link.Head(), nil
	}
	is := attachment{a.ifindex, after}
	if there, err := t.has(is); err != nil || !there {
		return link.Head(), err
	}
	return link.AfterLink(t.held[is]), nil
}

func (t *tcx) detach(a attachment) error {
	// Pin and handle are the only references: without them the kernel removes
	// the link.
	if err := os.Remove(t.path(a)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin link: %w", err)
	}
	return t.drop(a)
}

// drop lets go of a link's handle.
func (t *tcx) drop(a attachment) error {
	held := t.held[a]
	if held == nil {
		return nil
	}
	delete(t.held, a)
	if err := held.Close(); err != nil {
		return fmt.Errorf("close link %s: %w", t.path(a), err)
	}
	return nil
}

func (t *tcx) has(a attachment) (bool, error) {
	own, err := t.open(a)
	if own == nil {
		return false, err
	}
	info, err := own.Info()
	if err != nil {
		return false, fmt.Errorf("read link %s: %w", t.path(a), err)
	}
	// A link whose device has gone, or that was detached, says 0.
	return info.TCX() != nil && int(info.TCX().Ifindex) == a.ifindex, nil
}

func (t *tcx) abandon(a attachment) error { return t.detach(a) }

func (t *tcx) pin() ([]string, error) {
	var (
		pinned []string
		errs   []error
	)
	for a, held := range t.held {
		missing, err := pinAgain(held, t.path(a))
		errs = append(errs, err)
		if missing && err == nil {
			pinned = append(pinned, filepath.Base(t.path(a)))
		}
	}
	return pinned, errors.Join(errs...)
}

// pinAgain pins a link unless it is pinned at the path.
func pinAgain(own link.Link, path string) (missing bool, err error) {
	there, err := link.LoadPinnedLink(path, nil)
	if err == nil {
		defer func() { err = errors.Join(err, there.Close()) }()
		return false, sameLink(own, there, path)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("open pinned link %s: %w", path, err)
	}
	if err := makePinFolder(filepath.Dir(path)); err != nil {
		return true, fmt.Errorf("make folder of links: %w", err)
	}
	// A handle remembers where it was pinned, and would think that it still is.
	if err := errors.Join(own.Unpin(), own.Pin(path)); err != nil {
		return true, fmt.Errorf("pin link %s: %w", path, err)
	}
	return true, nil
}

// sameLink returns an error unless the kernel knows both links by one id.
func sameLink(own, there link.Link, path string) error {
	var ids [2]link.ID
	for i, l := range []link.Link{own, there} {
		info, err := l.Info()
		if err != nil {
			return fmt.Errorf("read link %s: %w", path, err)
		}
		ids[i] = info.ID
	}
	if ids[0] != ids[1] {
		return fmt.Errorf("pin %s is of link %d, the agent works with link %d: remove the pin", path, ids[1], ids[0])
	}
	return nil
}

func (t *tcx) list() ([]attachment, error) {
	var attached []attachment
	for a := range t.held {
		attached = append(attached, a)
	}
	entries, err := os.ReadDir(t.dir)
	if errors.Is(err, os.ErrNotExist) {
		return attached, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read folder of links: %w", err)
	}
	for _, entry := range entries {
		a, ours := attachmentOf(entry.Name())
		if !ours {
			return nil, fmt.Errorf("%s is no link of ours", filepath.Join(t.dir, entry.Name()))
		}
		if t.held[a] == nil {
			attached = append(attached, a)
		}
	}
	return attached, nil
}

func (t *tcx) close() error {
	var errs []error
	for a := range t.held {
		errs = append(errs, t.drop(a))
	}
	return errors.Join(errs...)
}
