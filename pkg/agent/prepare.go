// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"

	"go.etcd.io/bbolt"

	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/internal/mac"
	"github.com/tendril-net/tendril/internal/vlan"
	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/ipam"
)

// defaultMTU is the MTU of endpoints of a node without uplinks, in bytes.
const defaultMTU = 1500

// Prepare takes leases and a number for a new endpoint and writes the intent
// down, before any side effect. The endpoint is pending until Attach.
func (s *Service) Prepare(_ context.Context, req api.PrepareRequest) (api.Endpoint, error) {
	in, err := parsePrepare(req)
	if err != nil {
		return api.Endpoint{}, err
	}
	if err := s.firewall.ready(); err != nil {
		return api.Endpoint{}, err
	}
	defer s.locks.lock(in.attachment)()
	s.hit(failpoint.AgentPrepareStart)

	if old := s.lookup(in.attachment); old != nil {
		if old.State == api.Ready {
			return api.Endpoint{}, &api.Error{
				Code: api.CodeConflict, Key: "ifName", Value: in.attachment.IfName,
				Message: fmt.Sprintf("container %s already has interface %s, in network %q: DEL must come first",
					in.attachment.ContainerID, in.attachment.IfName, old.Network),
			}
		}
		// A crashed ADD left it. With addresses of another IPAM plugin the
		// links of this ADD exist already, under the same name: leave them.
		if err := s.undo(old, len(in.addresses) > 0); err != nil {
			return api.Endpoint{}, fmt.Errorf("undo unfinished endpoint: %w", err)
		}
	}
	if err := errors.Join(s.checkPassthru(in.network), s.checkGateways(in.network, in.addresses)); err != nil {
		return api.Endpoint{}, err
	}
	if err := s.checkRanges(in.network, req.Network.Ranges); err != nil {
		return api.Endpoint{}, err
	}
	if err := s.checkDelegated(in.addresses); err != nil {
		return api.Endpoint{}, err
	}
	s.mu.Lock()
	s.index.yieldPorts(in)
	s.mu.Unlock()
	if err := s.checkPorts(in.claims); err != nil {
		return api.Endpoint{}, err
	}
	r, err := s.storeWithParent(in)
	if err != nil {
		return api.Endpoint{}, err
	}
	s.hit(failpoint.AgentPrepareStored)
	s.noteBandwidth(r, in.notes)
	if err := s.ground.add(r); err != nil {
		return api.Endpoint{}, errors.Join(err, s.forget(r), s.dropVLAN(r.Origin.Parent))
	}
	if err := s.reserved.add(r); err != nil {
		return api.Endpoint{}, errors.Join(err, s.release(r))
	}
	return r.Endpoint, nil
}

// store commits leases and record of a new endpoint in one transaction.
func (s *Service) store(in *intent) (_ *record, err error) {
	r, err := s.newRecord(in)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.index.ids.free(r.ID)
		}
	}()
	// Transactions follow each other, and the index learns of this endpoint
	// within its own: no two endpoints get one address.
	also := func(tx *bbolt.Tx, leases []ipam.Address) error {
		for _, lease := range leases {
			if err := s.checkLease(in.network, lease.Prefix.Addr()); err != nil {
				return err
			}
			r.Addresses = append(r.Addresses, api.Address{Address: lease.Prefix, Gateway: lease.Gateway})
		}
		if err := s.claim(r, in.claims); err != nil {
			return err
		}
		return putRecord(tx, r)
	}
	if r.leased() {
		_, err = s.opts.Leases.Allocate(ipam.Request{Network: r.Network, Ranges: in.ranges, Owner: owner(r.Attachment), Wanted: in.wanted}, also)
		err = leaseError(err)
	} else {
		err = s.opts.DB.Update(func(tx *bbolt.Tx) error { return also(tx, nil) })
	}
	if err != nil {
		s.unclaim(r)
		return nil, err
	}
	return r, nil
}

func (s *Service) newRecord(in *intent) (*record, error) {
	id, err := s.takeID()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &record{
		Origin: in.network, AddressesLater: in.later,
		Endpoint: api.Endpoint{
			Attachment: in.attachment,
			ID:         id,
			Network:    in.network.Name,
			Driver:     in.network.Driver,
			Bridge:     in.network.Bridge,
			NetNS:      in.netns,
			State:      api.Pending,
			HostIfName: api.HostIfName(in.attachment),
			MAC:        macOr(in.mac).String(),
			HostMAC:    macOr(in.hostMAC).String(),
			MTU:        in.network.MTU,
			Masquerade: in.network.IPMasq,
			Addresses:  in.addresses,
			Labels:     in.labels,
			NamedPorts: in.namedPorts,
			Ports:      in.ports,
			Bandwidth:  in.bandwidth,
			Created:    s.opts.Now().UTC(),
		},
	}
	if r.Bridge != "" {
		r.VLAN, r.VLANTrunk = in.network.VLAN, vlan.Of(in.network.VLANTrunk...)
	}
	if r.isChild() {
		r.HostIfName, r.HostMAC = "", in.parent.MAC.String()
		r.Parent, r.Mode, r.HostAccess = in.parent.Name, in.network.Mode, in.network.HostAccess
		if r.InContainer = in.network.InContainer; r.InContainer {
			r.Parent, r.HostMAC = in.network.Parent, r.MAC // the programs know no other
		}
		if r.Mode == api.ModePassthru {
			r.MAC = r.HostMAC
		}
		r.MTU = cmp.Or(r.MTU, in.parent.MTU)
	}
	if r.MTU == 0 {
		r.MTU = s.uplinkMTU()
	}
	return r, nil
}

// uplinkMTU is the least MTU of the uplinks, in bytes. s.mu is held.
func (s *Service) uplinkMTU() int {
	least := 0
	for _, u := range s.uplinks.Uplinks {
		if least == 0 || u.MTU < least {
			least = u.MTU
		}
	}
	if least == 0 {
		return defaultMTU
	}
	return least
}

// macOr returns a MAC that was asked for, or a random one that is locally
// administered and of a single station (IEEE 802, 8.4).
func macOr(given net.HardwareAddr) net.HardwareAddr {
	if given != nil {
		return given
	}
	return mac.Random()
}

// claim puts a record into the index unless one of its addresses or ports is
// another endpoint's.
func (s *Service) claim(r *record, ports []portClaim) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range r.Addresses {
		if other, ok := s.index.byAddress[a.Address.Addr()]; ok {
			return &api.Error{
				Code: api.CodeConflict, Key: "addresses", Value: a.Address.Addr().String(),
				Message: fmt.Sprintf("address %s is in use by container %s, interface %s",
					a.Address.Addr(), other.ContainerID, other.IfName),
			}
		}
	}
	if err := s.index.portTaken(ports); err != nil {
		return err
	}
	if err := s.index.roomForPorts(r); err != nil {
		return err
	}
	s.index.put(r)
	return nil
}

func (s *Service) unclaim(r *record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.index.records[r.Attachment] == r {
		s.index.drop(r)
	}
}

// owner is how pkg/ipam names an attachment.
func owner(a api.Attachment) ipam.Owner {
	return ipam.Owner{ContainerID: a.ContainerID, IfName: a.IfName}
}

// takeID returns a free endpoint number, after a purge if need be.
func (s *Service) takeID() (uint16, error) {
	for {
		s.mu.Lock()
		id, waiting := s.index.ids.take(), len(s.index.ids.draining)
		s.mu.Unlock()
		switch {
		case id != 0:
			return id, nil
		case waiting == 0:
			return 0, &api.Error{Code: api.CodeExhausted, Message: "no endpoint number is left: the node has 65535 endpoints"}
		}
		if err := s.purge(); err != nil {
			return 0, err
		}
	}
}

// undo frees a pending endpoint and, unless they are to be kept, its links.
func (s *Service) undo(r *record, keepLinks bool) error {
	if !keepLinks || r.isChild() { // whose device comes after its addresses
		if err := s.removeDevice(r); err != nil {
			return err
		}
	}
	return s.remove(r)
}

// removeDevice removes the veth pair or the macvlan device of an endpoint.
func (s *Service) removeDevice(r *record) error {
	if r.isChild() {
		return s.removeChild(r)
	}
	if err := s.opts.Links.RemoveLink(r.HostIfName); err != nil {
		return fmt.Errorf("remove device %s: %w", r.HostIfName, err)
	}
	return nil
}

// release frees what an endpoint holds that the datapath does not serve any
// more. Its lock is held.
func (s *Service) release(r *record) error {
	if err := s.forget(r); err != nil {
		return err
	}
	if err := s.ground.remove(r); err != nil {
		s.problem("subnets", err) // the endpoint is gone; the next reconcile repairs it
	}
	if err := s.reserved.remove(r); err != nil {
		s.problem("reserved ports", err)
	}
	s.gatewaysLeft(r)
	s.problem(concernVLANs, s.dropVLAN(r.Origin.Parent))
	return nil
}

// forget removes record and leases in one transaction, then the index entry.
func (s *Service) forget(r *record) error {
	drop := func(tx *bbolt.Tx) error { return dropRecord(tx, r) }
	var err error
	if r.leased() {
		err = s.opts.Leases.Release(r.Network, owner(r.Attachment), drop)
	} else {
		err = s.opts.DB.Update(drop)
	}
	if err != nil {
		return fmt.Errorf("release endpoint %s: %w", recordKey(r.Attachment), err)
	}
	s.mu.Lock()
	s.index.drop(r)
	s.index.ids.drain(r.ID)
	s.mu.Unlock()
	s.wakePurge()
	return nil
}
