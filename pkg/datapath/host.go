// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"net/netip"

	"github.com/tendril-net/tendril/pkg/maps"
)

// ReconcileHostAddresses makes these the addresses of the host that mapped ports
// are reached at. Loopback addresses need not be among them.
func (d *Datapath) ReconcileHostAddresses(addresses []netip.Addr) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	wanted := make(map[maps.Address]bool, len(addresses))
	for _, a := range addresses {
		wanted[maps.NewAddress(a)] = true
	}
	var stale []maps.Address
	err := each(d.maps.HostAddresses, func(key maps.Address, _ uint8) bool {
		if !wanted[key] {
			stale = append(stale, key)
		}
		delete(wanted, key)
		return true
	})
	if err != nil {
		return err
	}
	for key := range wanted {
		if err := d.maps.HostAddresses.Put(key, uint8(1)); err != nil {
			return fmt.Errorf("write map host_addresses: %w", err)
		}
	}
	if err := removeAll(d.maps.HostAddresses, stale); err != nil {
		return fmt.Errorf("remove from map host_addresses: %w", err)
	}
	if len(wanted)+len(stale) == 0 {
		return nil
	}
	// What containers sent there was left to the host, or led to a port of it.
	return d.bumpEpoch(0)
}
