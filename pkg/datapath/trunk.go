// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/tendril-net/tendril/internal/vlan"
	"github.com/tendril-net/tendril/pkg/maps"
)

func (e *Endpoint) validateTrunk() error {
	for _, r := range e.Trunk {
		if reason := r.Fault(); reason != "" {
			return fmt.Errorf("endpoint %d: %s of its trunk %s", e.ID, r, reason)
		}
	}
	if len(e.Trunk) != 0 && e.Bridge == 0 {
		return fmt.Errorf("endpoint %d has a trunk without a bridge", e.ID)
	}
	return nil
}

// trunk is the entry of the endpoint in map trunks; the zero value for none.
func (e *Endpoint) trunk() maps.Trunk {
	var value maps.Trunk
	for _, r := range e.Trunk {
		for id := r.First; id <= r.Last; id++ {
			value.Vlans[id/64] |= 1 << (id % 64)
		}
	}
	return value
}

func trunkEntry(ifindex int) string {
	return fmt.Sprintf("entry of interface %d in map trunks", ifindex)
}

// writeTrunk makes the entry, and removes what another port of that index may have left.
func (d *Datapath) writeTrunk(e Endpoint) error {
	if e.Bridge == 0 {
		return nil
	}
	return d.setTrunk(e)
}

// setTrunk makes the entry, or removes it where there is no trunk.
func (d *Datapath) setTrunk(e Endpoint) error {
	if len(e.Trunk) == 0 {
		return ignoreMissing(d.maps.Trunks.Delete(uint32(e.IfIndex)))
	}
	if err := d.maps.Trunks.Put(uint32(e.IfIndex), e.trunk()); err != nil {
		return fmt.Errorf("write map trunks: %w", err)
	}
	return nil
}

func (d *Datapath) removeTrunk(e Endpoint) error {
	if len(e.Trunk) == 0 {
		return nil
	}
	return ignoreMissing(d.maps.Trunks.Delete(uint32(e.IfIndex)))
}

// vlansOf are the VLANs of an entry.
func vlansOf(value maps.Trunk) vlan.Set {
	var all []vlan.Range
	for id := range len(value.Vlans) * 64 {
		if value.Vlans[id/64]>>(id%64)&1 != 0 {
			all = append(all, vlan.Range{First: id, Last: id})
		}
	}
	return vlan.Of(all...)
}

// compareTrunk compares the endpoint's entry. One without a trunk must have none.
func (d *Datapath) compareTrunk(e Endpoint) error {
	var got maps.Trunk
	err := d.maps.Trunks.Lookup(uint32(e.IfIndex), &got)
	mismatch := &MismatchError{What: trunkEntry(e.IfIndex)}
	switch missing := errors.Is(err, ebpf.ErrKeyNotExist); {
	case missing && len(e.Trunk) == 0:
		return nil
	case missing:
		return mismatch
	case err != nil:
		return fmt.Errorf("read %s: %w", trunkEntry(e.IfIndex), err)
	case len(e.Trunk) == 0:
		mismatch.Difference = "is there without a trunk"
	case got != e.trunk():
		mismatch.Difference = fmt.Sprintf("has %s, not %s", vlansOf(got), e.Trunk)
	default:
		return nil
	}
	return mismatch
}

// ensureTrunk puts an endpoint's trunk in order, and adds to found what was there instead.
func (d *Datapath) ensureTrunk(found []string, e Endpoint) ([]string, error) {
	err := d.compareTrunk(e)
	if mismatch := (*MismatchError)(nil); !errors.As(err, &mismatch) {
		return found, err
	}
	return append(found, err.Error()), d.setTrunk(e)
}

// pruneTrunks removes the entries of those that are to have no trunk.
func (d *Datapath) pruneTrunks(desired []Endpoint) error {
	wanted := make(map[uint32]bool)
	for _, e := range desired {
		wanted[uint32(e.IfIndex)] = len(e.Trunk) != 0
	}
	var stale []uint32
	err := each(d.maps.Trunks, func(ifindex uint32, _ maps.Trunk) bool {
		if !wanted[ifindex] {
			stale = append(stale, ifindex)
		}
		return true
	})
	errs := []error{err}
	for _, ifindex := range stale {
		errs = append(errs, ignoreMissing(d.maps.Trunks.Delete(ifindex)))
	}
	return errors.Join(errs...)
}
