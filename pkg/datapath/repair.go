// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/maps"
)

// RepairPins pins again what has lost its pin below bpf-root: maps and links that
// this Datapath has open, which work on meanwhile; and it attaches socket hooks that
// were detached. A pacer that no limit has used for some time is removed. The folders are made if absent;
// bpf-root must be on a bpf file system. A pin of somebody else in the place of one
// of ours stays, and is an error. What was repaired is logged.
func (d *Datapath) RepairPins() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.repairRoot(); err != nil {
		return err
	}
	pinned, mapsErr := d.maps.Pin(filepath.Join(d.root, "maps"))
	if len(pinned) > 0 {
		d.log.Warn("maps had lost their pins and are pinned again", "maps", strings.Join(pinned, ", "))
	}
	var errs []error
	for _, h := range []hooks{d.hooks.uplinks, d.hooks.endpoints} {
		pinned, err := h.pin() // of one that serves as both, all are pinned the second time
		errs = append(errs, err)
		if len(pinned) > 0 {
			d.log.Warn("links had lost their pins and are pinned again", "links", strings.Join(pinned, ", "))
		}
	}
	found, err := d.sockets.repair(d.programs.host)
	if len(found) > 0 {
		d.log.Warn("socket hooks repaired", "found", strings.Join(found, "; "))
	}
	return errors.Join(mapsErr, errors.Join(errs...), err, d.removeIdlePacer())
}

// repairRoot makes bpf-root again, and locks it, when it is not the folder that was
// locked: somebody has removed it, or unmounted the file system that it was on.
func (d *Datapath) repairRoot() error {
	var locked, there unix.Stat_t
	if err := unix.Fstat(int(d.lock.Fd()), &locked); err != nil {
		return fmt.Errorf("look at bpf-root: %w", err)
	}
	err := unix.Stat(d.root, &there)
	if err == nil && there.Dev == locked.Dev && there.Ino == locked.Ino {
		return nil
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("look at bpf-root %s: %w", d.root, err)
	}
	if err := makePinFolder(d.root); err != nil {
		return fmt.Errorf("make bpf-root: %w", err)
	}
	again, err := lock(d.root)
	if err != nil {
		return err
	}
	d.log.Warn("bpf-root had been removed or unmounted and is used again", "path", d.root)
	former := d.lock
	d.lock = again
	return former.Close()
}

// makePinFolder makes a folder and those above it, but nothing where no bpf file
// system is (any more).
func makePinFolder(path string) error {
	for above := path; ; above = filepath.Dir(above) {
		var stat unix.Statfs_t
		err := unix.Statfs(above, &stat)
		switch {
		case errors.Is(err, unix.ENOENT) && above != filepath.Dir(above):
			continue
		case err != nil:
			return fmt.Errorf("look at %s: %w", above, err)
		case stat.Type != unix.BPF_FS_MAGIC:
			return fmt.Errorf("%s is on no bpf file system: mount it again", path)
		}
		return os.MkdirAll(path, 0o700)
	}
}

// RepairEndpoint puts back what others took from an endpoint that AttachEndpoint
// has served: entries of maps that are missing or wrong, and programs that are not
// attached; a limit that it is not to have is removed. It returns what was found, in words, and decisions are taken anew. Where all
// is well it costs what CheckEndpoint does. A device that is gone is no error:
// whoever follows the links will say so.
func (d *Datapath) RepairEndpoint(e Endpoint) (found []string, err error) {
	if err := e.validate(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if found, err = d.ensureEndpoint(e); len(found) == 0 {
		return nil, err
	}
	return found, errors.Join(err, d.bumpEpoch(0))
}

// ensureEndpoint makes the datapath serve an endpoint and returns what was missing
// or wrong.
func (d *Datapath) ensureEndpoint(e Endpoint) (found []string, err error) {
	// The maps come first: a program without them would drop everything.
	found, err = ensureEntry(found, d.maps.Interfaces, uint32(e.IfIndex), e.device(), interfaceEntry(e.IfIndex))
	if err != nil {
		return found, err
	}
	for _, a := range e.Addresses {
		if found, err = ensureEntry(found, d.maps.Endpoints, maps.NewAddress(a), e.value(), addressEntry(a)); err != nil {
			return found, err
		}
	}
	for key, want := range e.portEntries() {
		if found, err = ensureEntry(found, d.maps.Ports, key, want, portEntry(key)); err != nil {
			return found, err
		}
	}
	if found, err = d.ensureLimits(found, e); err != nil {
		return found, err
	}
	if found, err = d.ensureTrunk(found, e); err != nil {
		return found, err
	}
	for _, a := range e.attachments() {
		if found, err = d.ensureAttached(found, a, e.IfName); err != nil {
			return found, err
		}
	}
	if e.Child != nil {
		return d.ensureChild(found, e)
	}
	return found, nil
}

// ensureEntry writes an entry of a map unless it is there, and adds to found what
// was there instead.
func ensureEntry[V comparable](found []string, m *ebpf.Map, key any, want V, what string) ([]string, error) {
	var got V
	err := compare(m, key, &got, want, what)
	if mismatch := (*MismatchError)(nil); !errors.As(err, &mismatch) {
		return found, err
	}
	if err := m.Put(key, want); err != nil {
		return found, fmt.Errorf("write %s: %w", what, err)
	}
	return append(found, err.Error()), nil
}

// ensureAttached attaches a program unless it is, and adds to found that it was not.
func (d *Datapath) ensureAttached(found []string, a attachment, device string) ([]string, error) {
	ok, err := d.hooks.of(a).has(a)
	if ok || err != nil {
		return found, err
	}
	err = d.attach(a)
	if errors.Is(err, errNoDevice) {
		return found, nil // gone again; whoever follows the links will say so
	}
	if err != nil {
		return found, err
	}
	return append(found, a.missing(device).Error()), nil
}
