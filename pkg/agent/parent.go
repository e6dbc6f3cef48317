// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"

	"go.etcd.io/bbolt"

	"github.com/tendril-net/tendril/internal/ifname"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// concernVLANs is the concern of the VLANs that were made.
const concernVLANs = "VLANs"

// checkMacvlan looks at what only the driver macvlan has.
func checkMacvlan(n api.Network) error {
	if n.InContainer {
		if err := checkInContainer(n); err != nil {
			return err
		}
	} else if reason := api.ParentNameFault(n.Parent); reason != "" {
		return invalid("master", n.Parent[:min(len(n.Parent), 64)], reason)
	}
	if _, id, ok := ifname.VLANOf(n.Parent); n.VLAN != 0 && (!ok || id != n.VLAN) {
		return invalid("vlan", strconv.Itoa(n.VLAN), fmt.Sprintf("is not what the name of device %s ends in", n.Parent))
	}
	switch n.Mode {
	case api.ModeBridge, api.ModePrivate, api.ModeVEPA:
	case api.ModePassthru:
		if n.HostAccess {
			return invalid("hostAccess", "true", "cannot be with mode passthru, where the container has the device and its MAC to itself")
		}
	default:
		return invalid("mode", n.Mode[:min(len(n.Mode), 64)], fmt.Sprintf("is not known; %q, %q, %q and %q are",
			api.ModeBridge, api.ModePrivate, api.ModeVEPA, api.ModePassthru))
	}
	if n.IPMasq {
		return invalid("ipMasq", "true", "cannot be with the driver macvlan: containers are in the network of their parent, with addresses of their own")
	}
	return nil
}

// checkInContainer looks at what children of a device in their container cannot have. Its name is not
// known before there is a container.
func checkInContainer(n api.Network) error {
	const inContainer = "cannot be with linkInContainer: the master is in the container"
	reason := api.ParentNameFault(n.Parent)
	switch {
	case n.Parent != "" && reason != "":
		return invalid("master", n.Parent[:min(len(n.Parent), 64)], reason)
	case n.VLAN != 0:
		return invalid("vlan", strconv.Itoa(n.VLAN), inContainer)
	case n.HostAccess:
		return invalid("hostAccess", "true", inContainer)
	}
	return nil
}

// checkChildRequest looks at what of a request a macvlan device cannot have.
func checkChildRequest(req api.PrepareRequest, in *intent) error {
	n := in.network
	switch {
	case !n.InContainer:
	case n.Parent == "":
		return invalid("master", "", "is missing")
	case n.MTU == 0:
		return invalid("mtu", "0", "is not known, as that of a device in the container")
	case n.Mode == api.ModePassthru && in.mac == nil:
		return invalid("mac", "", "is missing: with mode passthru it is that of the device in the container")
	case len(req.Ports) != 0:
		return invalid("ports", strconv.Itoa(int(req.Ports[0].HostPort)), "cannot lead to a child of a device in its container, which the node does not reach by itself")
	}
	if in.hostMAC != nil {
		return invalid("hostMAC", req.HostMAC, "is of another driver: with macvlan it is the parent's")
	}
	return nil
}

// parent is what findParent found: a device, or one to make a VLAN on.
type parent struct {
	HostLink
	// vlan is what is to be made; the zero VLAN where the device is there. MAC and MTU are
	// then those of the device that it is made on.
	vlan wiring.VLAN
}

// findParent looks for the parent of a network's macvlan devices, and changes nothing. The
// error is an *api.Error unless the kernel did not answer.
func (s *Service) findParent(n api.Network) (found parent, err error) {
	if n.Driver != api.DriverMacvlan || n.InContainer {
		return parent{}, nil
	}
	found.HostLink, err = s.opts.Links.Link(n.Parent)
	lower, id, named := ifname.VLANOf(n.Parent)
	switch {
	case errors.Is(err, ErrNoLink) && named:
		if found.HostLink, err = s.opts.Links.Link(lower); errors.Is(err, ErrNoLink) {
			return parent{}, invalid("master", n.Parent, fmt.Sprintf("is no device of the node, nor is %s, of which it would be a VLAN", lower))
		}
		found.vlan = wiring.VLAN{Name: n.Parent, Lower: found.Index, ID: id}
	case errors.Is(err, ErrNoLink):
		return parent{}, invalid("master", n.Parent, "is no device of the node")
	case err == nil && n.VLAN != 0:
		err = s.checkVLAN(n, lower, found.HostLink)
	}
	if refused := (*api.Error)(nil); errors.As(err, &refused) {
		return parent{}, err
	}
	switch {
	case err != nil:
		return parent{}, fmt.Errorf("read device %s: %w", n.Parent, err)
	case !found.Ethernet || len(found.MAC) != 6 || bytes.Equal(found.MAC, make([]byte, 6)):
		return parent{}, invalid("master", n.Parent, "is no Ethernet device")
	case found.Macvlan: // of which the kernel makes the child a sibling
		return parent{}, invalid("master", n.Parent, "is a macvlan device itself: name the device that it rides on")
	case n.MTU > found.MTU:
		return parent{}, invalid("mtu", strconv.Itoa(n.MTU), fmt.Sprintf("is more than the %d of device %s", found.MTU, found.Name))
	}
	return found, nil
}

// vlanDepthMax is how many VLANs on top of each other are looked through.
const vlanDepthMax = 4

// checkPassthru refuses to give away an uplink of the node, or what one is a VLAN of: the node
// would lose it.
func (s *Service) checkPassthru(n api.Network) error {
	if n.Mode != api.ModePassthru || n.InContainer {
		return nil
	}
	s.mu.Lock()
	uplinks := slices.Clone(s.uplinks.Uplinks)
	s.mu.Unlock()
	for _, u := range uplinks {
		if u.Name == n.Parent {
			return invalid("mode", n.Mode, fmt.Sprintf("device %s is an uplink of the node, which would lose it", n.Parent))
		}
		below, err := s.below(u.IfIndex)
		if err != nil {
			return err
		}
		if slices.Contains(below, n.Parent) {
			return invalid("mode", n.Mode, fmt.Sprintf("on device %s is %s, an uplink of the node, which would lose it", n.Parent, u.Name))
		}
	}
	return nil
}

// below names the devices that a VLAN is on, the nearest first.
func (s *Service) below(index int) (names []string, err error) {
	for range vlanDepthMax {
		link, err := s.opts.Parents.LinkAt(index)
		if errors.Is(err, ErrNoLink) || err == nil && link.Lower == 0 {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read device %d: %w", index, err)
		}
		lower, err := s.opts.Parents.LinkAt(link.Lower)
		if errors.Is(err, ErrNoLink) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read device %d: %w", link.Lower, err)
		}
		names, index = append(names, lower.Name), lower.Index
	}
	return names, nil
}

// checkVLAN compares a device that is there with the VLAN that it is to be.
func (s *Service) checkVLAN(n api.Network, lower string, there HostLink) error {
	on, err := s.opts.Links.Link(lower)
	switch {
	case err != nil && !errors.Is(err, ErrNoLink):
		return err
	case there.VLAN == 0:
		return invalid("vlan", strconv.Itoa(n.VLAN), fmt.Sprintf("device %s is there, and is no VLAN", n.Parent))
	case there.VLAN != n.VLAN:
		return invalid("vlan", strconv.Itoa(n.VLAN), fmt.Sprintf("device %s is there, and is VLAN %d", n.Parent, there.VLAN))
	case on.Index != there.Lower:
		return invalid("vlan", strconv.Itoa(n.VLAN), fmt.Sprintf("device %s is there, and is a VLAN of another device than %s", n.Parent, lower))
	}
	return nil
}

// storeWithParent is store for an endpoint that needs a parent, which is made if need be.
// No other endpoint gets or loses one meanwhile.
func (s *Service) storeWithParent(in *intent) (r *record, err error) {
	if in.network.Driver != api.DriverMacvlan || in.network.InContainer {
		return s.store(in)
	}
	s.parenting.Lock()
	defer s.parenting.Unlock()
	found, err := s.findParent(in.network)
	if err != nil {
		return nil, err
	}
	if err := s.checkSiblings(in, found); err != nil {
		return nil, err
	}
	in.parent = found.HostLink
	if found.vlan.ID != 0 {
		if in.parent, err = s.makeVLAN(found.vlan); err != nil {
			return nil, err
		}
	}
	if r, err = s.store(in); err != nil {
		return nil, errors.Join(err, s.dropVLANLocked(in.network.Parent))
	}
	return r, nil
}

// checkSiblings refuses a child that the parent's others leave no room for.
func (s *Service) checkSiblings(in *intent, found parent) error {
	passthru := in.network.Mode == api.ModePassthru
	switch own := bytes.Equal(in.mac, found.MAC); {
	case in.mac != nil && passthru && !own:
		return invalid("mac", in.mac.String(), fmt.Sprintf("is not that of device %s, which a container has with mode passthru", found.Name))
	case in.mac != nil && !passthru && own:
		return invalid("mac", in.mac.String(), fmt.Sprintf("is that of device %s", found.Name))
	}
	siblings := s.list(func(r *record) bool {
		return r.isChild() && !r.InContainer && (r.Origin.Parent == in.network.Parent || r.Parent == in.network.Parent)
	})
	for _, r := range siblings {
		whose := fmt.Sprintf("container %s, interface %s", r.ContainerID, r.IfName)
		switch {
		case r.Mode == api.ModePassthru:
			return &api.Error{
				Code: api.CodeConflict, Key: "master", Value: in.network.Parent,
				Message: fmt.Sprintf("master %s: %s has it to itself, with mode passthru", in.network.Parent, whose),
			}
		case passthru:
			return &api.Error{
				Code: api.CodeConflict, Key: "mode", Value: api.ModePassthru,
				Message: fmt.Sprintf("mode passthru: %s has a child of device %s already", whose, in.network.Parent),
			}
		case in.mac != nil && in.mac.String() == r.MAC:
			return &api.Error{
				Code: api.CodeConflict, Key: "mac", Value: r.MAC,
				Message: fmt.Sprintf("mac %s: %s has it, on device %s", r.MAC, whose, in.network.Parent),
			}
		}
	}
	return nil
}

// makeVLAN makes a VLAN, and writes down that it is ours: before it is made, and its index
// afterwards. s.parenting is held.
func (s *Service) makeVLAN(v wiring.VLAN) (HostLink, error) {
	if err := s.recordVLAN(v.Name, 0); err != nil {
		return HostLink{}, err
	}
	index, err := s.opts.Parents.MakeVLAN(v)
	if errors.Is(err, wiring.ErrNoVLAN) {
		err = invalid("vlan", strconv.Itoa(v.ID), fmt.Sprintf("the kernel makes no VLAN such as %s: it lacks CONFIG_VLAN_8021Q", v.Name))
	}
	if err != nil {
		return HostLink{}, errors.Join(err, s.forgetVLAN(v.Name))
	}
	err = s.recordVLAN(v.Name, index)
	var link HostLink
	if err == nil {
		link, err = s.opts.Parents.LinkAt(index)
	}
	if err != nil {
		return HostLink{}, errors.Join(fmt.Errorf("make VLAN %s: %w", v.Name, err), s.dropVLANLocked(v.Name))
	}
	s.log.Info("VLAN made", "device", v.Name)
	return link, nil
}

func (s *Service) recordVLAN(name string, index int) error {
	var value []byte
	if index != 0 {
		value = binary.BigEndian.AppendUint32(nil, uint32(index))
	}
	err := s.opts.DB.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketVLANs).Put([]byte(name), value) })
	if err != nil {
		return fmt.Errorf("record VLAN %s: %w", name, err)
	}
	return nil
}

func (s *Service) forgetVLAN(name string) error {
	err := s.opts.DB.Update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketVLANs).Delete([]byte(name)) })
	if err != nil {
		return fmt.Errorf("forget VLAN %s: %w", name, err)
	}
	return nil
}

// madeVLANs reads the VLANs that are ours: their indexes by name, 0 for one that may not
// have been made. A record that no agent can have written makes no device ours.
func madeVLANs(db *bbolt.DB) (map[string]int, error) {
	made := make(map[string]int)
	err := db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketVLANs).ForEach(func(name, value []byte) error {
			if index, ok := decodeVLAN(name, value); ok {
				made[string(name)] = index
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read VLANs: %w", err)
	}
	return made, nil
}

// decodeVLAN reads what recordVLAN wrote; false where it cannot have: by what is read a device of
// the node is removed.
func decodeVLAN(name, value []byte) (index int, ok bool) {
	if _, _, named := ifname.VLANOf(string(name)); !named || api.ParentNameFault(string(name)) != "" {
		return 0, false
	}
	switch len(value) {
	case 0:
		return 0, true
	case 4:
		index := binary.BigEndian.Uint32(value)
		return int(index), index > 0 && index <= math.MaxInt32
	}
	return 0, false
}

// dropVLAN removes a VLAN that was made here and has no endpoint any more. Any other
// device, and "", are left as they are.
func (s *Service) dropVLAN(name string) error {
	if name == "" {
		return nil
	}
	s.parenting.Lock()
	defer s.parenting.Unlock()
	return s.dropVLANLocked(name)
}

// dropVLANs looks at all that were made.
func (s *Service) dropVLANs() error {
	made, err := madeVLANs(s.opts.DB)
	errs := []error{err}
	for name := range made {
		errs = append(errs, s.dropVLAN(name))
	}
	return errors.Join(errs...)
}

// dropVLANLocked is dropVLAN with s.parenting held.
func (s *Service) dropVLANLocked(name string) error {
	made, err := madeVLANs(s.opts.DB)
	if err != nil {
		return err
	}
	index, ours := made[name]
	if !ours || len(s.list(func(r *record) bool {
		return r.isChild() && !r.InContainer && r.Origin.Parent == name || r.Origin.BridgeInterface() == name
	})) != 0 {
		return nil
	}
	users, err := removeVLAN(s.opts.Links, s.opts.Parents, name, index)
	if err != nil {
		return err
	}
	if len(users) == 0 {
		s.log.Info("VLAN removed", "device", name)
	} else {
		s.log.Warn("VLAN is left to others, who use it", "device", name, "users", users)
	}
	return s.forgetVLAN(name)
}

// RemoveVLANs removes those that a state file says were made, and forgets them.
func RemoveVLANs(db *bbolt.DB, of *Host) error {
	made, err := madeVLANs(db)
	if err != nil {
		return err
	}
	for name, index := range made {
		if _, err := removeVLAN(of, of, name, index); err != nil {
			return err
		}
	}
	return db.Update(func(tx *bbolt.Tx) error {
		for name := range made {
			if err := tx.Bucket(bucketVLANs).Delete([]byte(name)); err != nil {
				return fmt.Errorf("forget VLAN %s: %w", name, err)
			}
		}
		return nil
	})
}

// removeVLAN removes a VLAN that was made here, and returns who of the node uses it by now: then it
// stays, and is theirs. One without an index was to be made when the agent was killed: it is what
// has the name.
func removeVLAN(links Links, parents Parents, name string, index int) (users []string, err error) {
	var link HostLink
	if index == 0 {
		link, err = links.Link(name)
	} else {
		link, err = parents.LinkAt(index)
	}
	_, id, _ := ifname.VLANOf(name)
	if errors.Is(err, ErrNoLink) || err == nil && link.VLAN != id {
		return nil, nil
	}
	if err == nil {
		users, err = parents.Users(link.Index)
	}
	if err != nil {
		return nil, fmt.Errorf("read device %s: %w", name, err)
	}
	if len(users) != 0 {
		return users, nil
	}
	if err := parents.RemoveVLAN(link.Index); err != nil {
		return nil, fmt.Errorf("remove VLAN %s: %w", name, err)
	}
	return nil, nil
}
