// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"

	"github.com/tendril-net/tendril/pkg/maps"
)

// ReconcileUplinks makes the uplinks exactly these. When something changed, every
// decision is taken anew.
func (d *Datapath) ReconcileUplinks(desired []Uplink) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed := false
	want := make(map[uint32]bool)
	for _, u := range desired {
		want[uint32(u.IfIndex)] = true
		value := maps.Interface{
			Ipv4: maps.NewAddress(u.IPv4),
			Ipv6: maps.NewAddress(u.IPv6),
			Mtu:  uint16(min(u.MTU, 65535)),
			Role: maps.RoleUplink,
		}
		var old maps.Interface
		if d.maps.Interfaces.Lookup(uint32(u.IfIndex), &old) != nil || old != value {
			if err := d.maps.Interfaces.Put(uint32(u.IfIndex), value); err != nil {
				return fmt.Errorf("write map interfaces: %w", err)
			}
			changed = true
		}
		for _, a := range []attachment{{u.IfIndex, fromUplink}, {u.IfIndex, toUplink}} {
			ok, err := d.hooks.of(a).has(a)
			if err != nil {
				return err
			}
			if ok {
				continue
			}
			if err := d.hooks.of(a).attach(a, d.programs.byName[a.program]); err != nil {
				if errors.Is(err, errNoDevice) {
					continue // gone again; whoever follows the links will say so
				}
				return fmt.Errorf("attach uplink %s: %w", u.Name, err)
			}
			changed = true
		}
	}
	pruned, err := d.pruneUplinks(want)
	if err != nil {
		return err
	}
	if !changed && !pruned {
		return nil
	}
	d.log.Info("uplinks changed", "uplinks", desired)
	return d.bumpEpoch(0)
}

func (d *Datapath) pruneUplinks(want map[uint32]bool) (bool, error) {
	var (
		stale   []uint32
		ifindex uint32
		device  maps.Interface
	)
	entries := d.maps.Interfaces.Iterate()
	for entries.Next(&ifindex, &device) {
		if device.Role == maps.RoleUplink && !want[ifindex] {
			stale = append(stale, ifindex)
		}
	}
	if err := entries.Err(); err != nil {
		return false, fmt.Errorf("read map interfaces: %w", err)
	}
	var errs []error
	for _, key := range stale {
		errs = append(errs, ignoreMissing(d.maps.Interfaces.Delete(key)))
	}
	attached, err := d.hooks.uplinks.list()
	errs = append(errs, err)
	for _, a := range attached {
		if !a.endpoint() && !want[uint32(a.ifindex)] {
			errs = append(errs, d.hooks.of(a).detach(a))
		}
	}
	return len(stale) > 0, errors.Join(errs...)
}

// Invalidate makes every decision be taken anew by its next packet: routes changed.
func (d *Datapath) Invalidate() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bumpEpoch(0)
}
