// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// socketHooks attaches the programs of from_host.c to the control group of all
// processes, by links (Linux 5.7), each pinned under its program's name. Programs of
// others run beside them. As with tcx, each link is held by its handle too.
type socketHooks struct {
	dir string
	at  cgroup
	// cookie is of the network namespace whose sockets are served.
	cookie uint64
	held   map[string]link.Link
	// flaw is why processes of the host do not reach mapped ports; "" if they do.
	flaw string
}

// socketLinks is the folder of pins below bpf-root.
const socketLinks = "host-links"

// unreached follows the cause in what is said of hooks that are not attached.
const unreached = ": processes of the host do not reach mapped ports"

// newSocketHooks finds where to attach. That there is no such place is a flaw and no
// error: all else works without.
func newSocketHooks(dir string) *socketHooks {
	s := &socketHooks{dir: dir, held: make(map[string]link.Link)}
	err := lack(socketFeatures())
	if err == nil {
		s.at, err = findCgroup()
	}
	if err == nil {
		s.cookie, err = netnsCookie(s.at)
	}
	if err != nil {
		s.flaw = err.Error() + unreached
	}
	return s
}

// SocketFlaw says why some or all processes of the host do not reach mapped ports at
// loopback addresses and the host's own; "" when all do.
func (d *Datapath) SocketFlaw() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sockets.flaw
}

func (s *socketHooks) path(name string) string { return filepath.Join(s.dir, name) }

// attach makes the programs serve, and returns the names of those that were attached
// anew. Links that serve already stay, with their program or, to upgrade, the new one.
// Where others do not let us attach, nothing is left but a flaw.
func (s *socketHooks) attach(programs map[string]*ebpf.Program, upgrade bool) (attached []string, err error) {
	if s.cookie == 0 {
		return nil, nil
	}
	want, err := s.at.id()
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(programs)) {
		fresh, err := s.attachOne(name, programs[name], want, upgrade)
		if refused := (*refusedError)(nil); errors.As(err, &refused) {
			s.flaw = err.Error() + unreached
			return nil, s.detach()
		}
		if err != nil {
			return attached, err
		}
		if fresh {
			attached = append(attached, name)
		}
	}
	s.flaw = ""
	if s.at.part {
		s.flaw = fmt.Sprintf("cgroup2 mount %s is not the root of all control groups: processes of other groups do not reach mapped ports", s.at.path)
	}
	return attached, nil
}

// refusedError is the kernel's refusal to attach: another program wants to be alone, or
// there are too many.
type refusedError struct{ error }

func (s *socketHooks) attachOne(name string, program *ebpf.Program, want uint64, upgrade bool) (fresh bool, err error) {
	own, serves, err := s.open(name, want)
	if err != nil {
		return false, err
	}
	if serves {
		if !upgrade {
			return false, nil
		}
		if err := own.Update(program); err != nil {
			return false, fmt.Errorf("update link %s: %w", s.path(name), err)
		}
		return false, nil
	}
	// What is pinned there has lost its group, or is of another.
	if err := s.detachOne(name); err != nil {
		return false, err
	}
	if err := makePinFolder(s.dir); err != nil {
		return false, fmt.Errorf("make folder of links: %w", err)
	}
	attached, err := link.AttachCgroup(link.CgroupOptions{Path: s.at.path, Attach: hostPrograms[name], Program: program})
	if err != nil {
		return false, &refusedError{fmt.Errorf("attach %s to cgroup %s: %w", name, s.at.path, err)}
	}
	if err := attached.Pin(s.path(name)); err != nil {
		return false, errors.Join(fmt.Errorf("pin link %s: %w", s.path(name), err), attached.Close())
	}
	s.held[name] = attached
	return true, nil
}

// open returns the link that is held, or the one that is pinned and holds it from then
// on, and whether it is attached to the group; nil when there is none.
func (s *socketHooks) open(name string, want uint64) (own link.Link, serves bool, err error) {
	if own = s.held[name]; own == nil {
		own, err = link.LoadPinnedLink(s.path(name), nil)
		if errors.Is(err, os.ErrNotExist) {
			return nil, false, nil
		}
		if err != nil {
			return nil, false, fmt.Errorf("open pinned link %s: %w", s.path(name), err)
		}
		s.held[name] = own
	}
	info, err := own.Info()
	if err != nil {
		return nil, false, fmt.Errorf("read link %s: %w", s.path(name), err)
	}
	// A link whose group has gone, or that was detached, says 0.
	return own, info.Cgroup() != nil && info.Cgroup().CgroupId == want, nil
}

// detach ends all links at once; those that are not there are no error.
func (s *socketHooks) detach() error {
	var errs []error
	for name := range hostPrograms {
		if _, _, err := s.open(name, 0); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, s.detachOne(name))
	}
	return errors.Join(errs...)
}

// detachOne ends a link that is held. Without its pin and handles the kernel would end
// it, too, but some time later.
func (s *socketHooks) detachOne(name string) error {
	own := s.held[name]
	if own == nil {
		return nil
	}
	if err := own.Detach(); err != nil {
		return fmt.Errorf("detach %s: %w", s.path(name), err)
	}
	if err := os.Remove(s.path(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin link: %w", err)
	}
	delete(s.held, name)
	if err := own.Close(); err != nil {
		return fmt.Errorf("close link %s: %w", s.path(name), err)
	}
	return nil
}

// repair pins again what has lost its pin, attaches again what was detached, and says
// what it found.
func (s *socketHooks) repair(programs map[string]*ebpf.Program) (found []string, err error) {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(s.held)) {
		missing, err := pinAgain(s.held[name], s.path(name))
		errs = append(errs, err)
		if missing && err == nil {
			found = append(found, name+" was not pinned")
		}
	}
	if errors.Join(errs...) != nil || s.cookie == 0 {
		return found, errors.Join(errs...)
	}
	attached, err := s.attach(programs, false)
	for _, name := range attached {
		found = append(found, name+" was not attached")
	}
	return found, err
}

func (s *socketHooks) close() error {
	var errs []error
	for name, own := range s.held {
		delete(s.held, name)
		errs = append(errs, own.Close())
	}
	return errors.Join(errs...)
}
