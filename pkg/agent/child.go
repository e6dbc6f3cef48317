// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"go.etcd.io/bbolt"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// child returns what of a macvlan endpoint the datapath needs to know.
func (r *record) child() *datapath.Child {
	netns := uint32(r.Device.NetNSInode) // the kernel's are of 32 bits
	if r.InContainer {
		return &datapath.Child{Parent: wiring.IndexInContainer(r.ID), InContainer: true, NetNS: netns}
	}
	return &datapath.Child{
		Parent: r.Device.Parent, NetNS: netns,
		Bridged: r.Mode == api.ModeBridge, Reflected: r.Mode == api.ModeVEPA, HostAccess: r.HostAccess,
		Passthru: r.Mode == api.ModePassthru,
	}
}

// ridesOn is a macvlan device whose Parent is what the endpoint's rides on, wherever that is; 0 where it
// cannot be the endpoint's.
func (r *record) ridesOn(child wiring.ChildLink) wiring.ChildLink {
	if r.InContainer {
		child.Parent = 0
		if child.Index == wiring.IndexInContainer(r.ID) {
			child.Parent = child.Inside
		}
	}
	return child
}

// childNamed looks for a macvlan device of that name where an endpoint's was made.
func (s *Service) childNamed(r *record, name string) (wiring.ChildLink, error) {
	child, err := s.opts.Children.Child(r.NetNS, name)
	return r.ridesOn(child), err
}

// childOf looks for the macvlan device of an endpoint where it was made. The error is an
// *api.Error of CodeMismatch unless the kernel did not answer.
func (s *Service) childOf(r *record) (wiring.ChildLink, error) {
	child, err := s.childNamed(r, r.IfName)
	known := r.Device.NetNSInode
	switch {
	case err != nil && !errors.Is(err, ErrNoLink):
		return child, childError(r, err)
	case known != 0 && child.NetNS != 0 && child.NetNS != known:
		return child, mismatch(r.IfName, "is gone: %s is another network namespace now", r.NetNS)
	case err != nil:
		return child, mismatch(r.IfName, "is gone from %s", r.NetNS)
	case child.Parent == 0 && r.InContainer:
		return child, mismatch(r.IfName, "in %s is not the child that ADD has made of %s", r.NetNS, r.Parent)
	case child.Parent == 0:
		return child, mismatch(r.IfName, "in %s is no child of a device of the node", r.NetNS)
	}
	return child, nil
}

// childError is for a kernel that did not say where a macvlan device is.
func childError(r *record, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("look into %s, for which the agent needs CAP_SYS_PTRACE: %w", r.NetNS, err)
	}
	return fmt.Errorf("read device %s in %s: %w", r.IfName, r.NetNS, err)
}

// locateChild looks for the macvlan device of an endpoint wherever it may be, and returns
// the zero value where it is not found. That does not say that it is gone: who is privileged
// in the container may have moved it out of sight, and is to be filtered all the more. It is
// gone with its namespace.
//
// The node's number of the namespace leads there when no path does any more, as long as
// somebody is in it. After that the kernel gives it to others: the MAC tells, and that no
// endpoint has been attached there since.
func (s *Service) locateChild(r *record) (child wiring.ChildLink, gone bool, err error) {
	child, err = s.opts.Children.ChildAt(r.Device.NetNSNumber, r.Device.Index)
	child = r.ridesOn(child)
	switch {
	case err != nil && !errors.Is(err, ErrNoLink):
		return child, false, fmt.Errorf("read device %d in network namespace %d: %w", r.Device.Index, r.Device.NetNSNumber, err)
	case child.Parent != r.Device.Parent || s.isAnothers(r):
		child.Parent = 0
	case r.Mode == api.ModePassthru, bytes.Equal(child.MAC, parsedMAC(r.MAC)): // the first has the parent's
		return child, false, nil
	}
	named, err := s.childNamed(r, r.IfName)
	switch {
	case err != nil && !errors.Is(err, ErrNoLink):
		return named, false, childError(r, err)
	case named.NetNS != r.Device.NetNSInode:
		return wiring.ChildLink{}, true, nil
	case child.Parent != 0 && child.Number == named.Number: // with another MAC
		return child, false, nil
	}
	return wiring.ChildLink{}, false, nil
}

// isAnothers tells whether an endpoint has been attached later where this one's device was.
func (s *Service) isAnothers(r *record) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	holder, held := s.index.byPlace[r.Device.at()]
	return held && holder != r.Attachment
}

// childGone tells whether there is no macvlan device that an endpoint could have.
func (s *Service) childGone(r *record) (bool, error) {
	if r.State == api.Pending {
		_, err := s.childOf(r)
		if gone := (*api.Error)(nil); errors.As(err, &gone) {
			return true, nil
		}
		return false, err
	}
	if !r.InContainer {
		// With its parent it goes wherever it is.
		_, err := s.opts.Parents.LinkAt(r.Device.Parent)
		if errors.Is(err, ErrNoLink) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("read device %s: %w", r.Parent, err)
		}
	}
	_, gone, err := s.locateChild(r)
	return gone, err
}

// checkChild compares the macvlan device with the record. The error is as childOf's.
func (s *Service) checkChild(r *record) error {
	child, err := s.childOf(r)
	if err != nil {
		return err
	}
	if !r.InContainer { // where CHECK looks at the parent
		parent, err := s.device(r.Parent)
		switch {
		case err != nil:
			return err
		case child.Parent != parent.Index:
			return mismatch(r.IfName, "in %s is no child of %s", r.NetNS, r.Parent)
		case !bytes.Equal(parent.MAC, parsedMAC(r.HostMAC)):
			return mismatch(r.Parent, "has MAC %s, not %s", parent.MAC, r.HostMAC)
		}
	}
	mode := api.KernelMode(r.Mode, r.InContainer)
	switch {
	case !bytes.Equal(child.MAC, parsedMAC(r.MAC)):
		return mismatch(r.IfName, "in %s has MAC %s, not %s", r.NetNS, child.MAC, r.MAC)
	case child.Mode != mode:
		return mismatch(r.IfName, "in %s has mode %s, not %s", r.NetNS, child.Mode, mode)
	}
	return nil
}

// removeChild removes the macvlan device of an endpoint, which an ADD that has not come to
// its end may have left with the name that it is born with.
func (s *Service) removeChild(r *record) error {
	found, err := s.childrenOf(r)
	for _, child := range found {
		if err == nil {
			err = s.opts.Children.RemoveChild(child)
		}
	}
	if err != nil {
		return fmt.Errorf("remove device %s in %s: %w", r.IfName, r.NetNS, err)
	}
	return nil
}

// childrenOf returns what removeChild removes. What is in its place by now is another's.
func (s *Service) childrenOf(r *record) (found []wiring.ChildLink, err error) {
	if r.State != api.Pending {
		child, _, err := s.locateChild(r)
		if child.Parent != 0 {
			found = append(found, child)
		}
		return found, err
	}
	born, err := s.childNamed(r, api.HostIfName(r.Attachment))
	switch {
	case err != nil && !errors.Is(err, ErrNoLink):
		return nil, childError(r, err)
	case born.Parent != 0:
		found = append(found, born)
	}
	child, err := s.childOf(r)
	if gone := (*api.Error)(nil); errors.As(err, &gone) {
		return found, nil
	}
	if err == nil && bytes.Equal(child.MAC, parsedMAC(r.MAC)) {
		found = append(found, child)
	}
	return found, err
}

// findChild looks for the device of a new endpoint, and learns which namespace it is in.
func (s *Service) findChild(r *record) error {
	if !r.isChild() {
		return nil
	}
	child, err := s.childOf(r)
	if err != nil {
		return err
	}
	r.Device = childPlace{NetNSInode: child.NetNS, NetNSNumber: child.Number, Index: child.Index, Parent: child.Parent}
	return nil
}

// placeChild finds out as what the parent of a macvlan device goes now. One that is gone is
// the repair's affair.
func (s *Service) placeChild(r *record) error {
	if r.InContainer {
		return nil
	}
	parent, err := s.opts.Parents.LinkAt(r.Device.Parent)
	if errors.Is(err, ErrNoLink) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read device %s: %w", r.Parent, err)
	}
	r.Parent = parent.Name
	// A bridge has none while it has no port.
	if len(parent.MAC) != 6 {
		return nil
	}
	r.HostMAC = parent.MAC.String()
	if r.Mode == api.ModePassthru {
		r.MAC = r.HostMAC // they change as one
	}
	return nil
}

// keepPlace writes down what placeChild has changed of a record.
func (s *Service) keepPlace(before, r *record) error {
	if before.Parent == r.Parent && before.HostMAC == r.HostMAC {
		return nil
	}
	s.log.Info("parent of a macvlan device has changed", "container", r.ContainerID, "interface", r.IfName, "parent", r.Parent, "mac", r.HostMAC)
	return s.opts.DB.Update(func(tx *bbolt.Tx) error { return putRecord(tx, r) })
}

// deviceGone tells whether the veth pair or the macvlan device of an endpoint, pending or
// not, does not exist.
func (s *Service) deviceGone(r *record) (bool, error) {
	if r.isChild() {
		return s.childGone(r)
	}
	link, err := s.opts.Links.Link(r.HostIfName)
	switch {
	case errors.Is(err, ErrNoLink):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("read device %s: %w", r.HostIfName, err)
	}
	return r.State == api.Ready && link.Index != r.HostIfIndex, nil
}

// loseChild detaches an endpoint whose device is gone: of a macvlan device no event tells.
// The endpoint's lock is held.
func (s *Service) loseChild(r *record) error {
	s.log.Warn("macvlan device is gone", "container", r.ContainerID, "interface", r.IfName, "parent", r.Parent)
	return s.detach(r)
}

// LinksChanged looks at what limits are held back by, and at the macvlan endpoints: their parent may
// have another name or MAC, or be gone, and they with it.
func (s *Service) LinksChanged() {
	s.problem("pacer", s.opts.Datapath.Repairs.RepairPacer())
	var errs []error
	for _, r := range s.list(func(r *record) bool { return r.State == api.Ready && r.isChild() }) {
		errs = append(errs, s.repairOne(r))
	}
	if err := errors.Join(errs...); err != nil {
		s.problem("endpoints", err) // until the next repair of all
	}
	s.problem("macvlan devices", s.orphans())
}

// ChildrenIn returns the macvlan devices of a state file's endpoints that exist; with a StateError
// those of the endpoints whose records can be read.
func ChildrenIn(db *bbolt.DB, of *Host) ([]wiring.ChildLink, error) {
	records, _, damaged := readState(db)
	s := &Service{opts: Options{Children: of}, index: newIndex()}
	var found []wiring.ChildLink
	for _, r := range records {
		if !r.isChild() {
			continue
		}
		these, err := s.childrenOf(r)
		if err != nil {
			return nil, err
		}
		found = append(found, these...)
	}
	return found, damaged
}

// orphans names the parents that are gone while containers wait for a DEL whose devices
// went with them.
func (s *Service) orphans() error {
	lost := make(map[string]int)
	for _, r := range s.list(func(r *record) bool { return r.State == api.Ready && r.isChild() }) {
		if r.InContainer || !s.isDetached(r.Attachment) {
			continue
		}
		_, err := s.opts.Links.Link(r.Parent)
		if errors.Is(err, ErrNoLink) {
			lost[r.Parent]++
		} else if err != nil {
			return fmt.Errorf("read device %s: %w", r.Parent, err)
		}
	}
	var reasons []string
	for _, parent := range slices.Sorted(maps.Keys(lost)) {
		reasons = append(reasons, fmt.Sprintf("device %s is gone, and with it the interfaces of %d containers: attach them again", parent, lost[parent]))
	}
	if reasons == nil {
		return nil
	}
	return errors.New(strings.Join(reasons, "; "))
}
