// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	bpfmaps "github.com/tendril-net/tendril/pkg/maps"
)

// Port is a port of the host that leads to a port of a container.
type Port struct {
	// HostIP is one address of the host, or the unspecified address of a family for
	// all of that family.
	HostIP   netip.Addr
	HostPort uint16
	// Protocol is IPPROTO_TCP or IPPROTO_UDP.
	Protocol uint8
	// ContainerIP is one of the endpoint's addresses, of the family of HostIP.
	ContainerIP   netip.Addr
	ContainerPort uint16
}

func (p Port) validate() error {
	switch {
	case p.Protocol != unix.IPPROTO_TCP && p.Protocol != unix.IPPROTO_UDP:
		return fmt.Errorf("port %d: protocol %d is neither TCP nor UDP", p.HostPort, p.Protocol)
	case p.HostPort == 0 || p.ContainerPort == 0:
		return fmt.Errorf("port %d to %d: 0 is no port", p.HostPort, p.ContainerPort)
	case !plain(p.HostIP) || !plain(p.ContainerIP) || p.HostIP.Is4() != p.ContainerIP.Is4():
		return fmt.Errorf("port %d: %q and %q are no plain addresses of one family", p.HostPort, p.HostIP, p.ContainerIP)
	}
	return nil
}

// plain tells whether a is an address that a packet can carry.
func plain(a netip.Addr) bool { return a.IsValid() && !a.Is4In6() && a.Zone() == "" }

// PortsMax is how many entries map ports takes.
const PortsMax = 131072

// PortEntries is how many entries of map ports the endpoint has: one for each of its
// ports, and one for each of its own that only loopback addresses lead to.
func (e *Endpoint) PortEntries() int { return len(e.portEntries()) }

// portEntries are the entries of map ports that an endpoint has: one for each of its
// ports of the host, and one for each port of its own that only loopback addresses of
// the host lead to.
func (e *Endpoint) portEntries() map[bpfmaps.PortKey]bpfmaps.MappedPort {
	if len(e.Ports) == 0 {
		return nil
	}
	entries := make(map[bpfmaps.PortKey]bpfmaps.MappedPort, len(e.Ports))
	shut := make(map[bpfmaps.PortKey]bool)
	for _, p := range e.Ports {
		key := bpfmaps.PortKey{Address: keyAddress(p.HostIP), Port: bpfmaps.Port(p.HostPort), Protocol: p.Protocol}
		entries[key] = bpfmaps.MappedPort{
			Address: bpfmaps.NewAddress(p.ContainerIP), Port: bpfmaps.Port(p.ContainerPort), Endpoint: e.ID,
		}
		own := bpfmaps.PortKey{
			Address: bpfmaps.NewAddress(p.ContainerIP), Port: bpfmaps.Port(p.ContainerPort), Protocol: p.Protocol,
			Flags: bpfmaps.PortLoopbackOnly,
		}
		before, known := shut[own]
		shut[own] = p.HostIP.IsLoopback() && (before || !known)
	}
	for own, only := range shut {
		if only {
			entries[own] = bpfmaps.MappedPort{Endpoint: e.ID}
		}
	}
	return entries
}

// keyAddress is an address of the host as the keys of map ports have it: the
// unspecified one of IPv4 is no zeros.
func keyAddress(a netip.Addr) bpfmaps.Address { return bpfmaps.Address{Bytes: a.As16()} }

func portEntry(k bpfmaps.PortKey) string {
	a := netip.AddrFrom16(k.Address.Bytes).Unmap()
	return fmt.Sprintf("entry of protocol %d, %s in map ports", k.Protocol, netip.AddrPortFrom(a, bpfmaps.Port(k.Port)))
}

// writePorts has the ports of the host lead to the endpoint, in one call of the kernel.
func (d *Datapath) writePorts(e Endpoint) error {
	entries := e.portEntries()
	if len(entries) == 0 {
		return nil
	}
	keys := slices.Collect(maps.Keys(entries))
	values := make([]bpfmaps.MappedPort, len(keys))
	for i, key := range keys {
		values[i] = entries[key]
	}
	_, err := d.maps.Ports.BatchUpdate(keys, values, nil)
	if errors.Is(err, unix.E2BIG) {
		return d.portsFull(entries)
	}
	if err != nil {
		return fmt.Errorf("write map ports: %w", err)
	}
	return nil
}

// portsFull says how full map ports was before some of the entries were written to it.
func (d *Datapath) portsFull(wanted map[bpfmaps.PortKey]bpfmaps.MappedPort) error {
	full := &FullError{Map: "ports", Max: int(d.maps.Ports.MaxEntries()), Wanted: len(wanted)}
	err := each(d.maps.Ports, func(key bpfmaps.PortKey, _ bpfmaps.MappedPort) bool {
		if _, written := wanted[key]; !written {
			full.Entries++
		}
		return true
	})
	return errors.Join(full, err)
}

// removePorts removes the endpoint's entries, but none that are another's by now.
func (d *Datapath) removePorts(e Endpoint) error {
	var errs []error
	for key := range e.portEntries() {
		var value bpfmaps.MappedPort
		err := d.maps.Ports.Lookup(key, &value)
		if err == nil && value.Endpoint == e.ID {
			err = d.maps.Ports.Delete(key)
		}
		errs = append(errs, ignoreMissing(err))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove from map ports: %w", err)
	}
	return nil
}

// prunePorts removes the entries that none of the endpoints has. It returns how many.
func (d *Datapath) prunePorts(desired []Endpoint) (int, error) {
	wanted := make(map[bpfmaps.PortKey]bool)
	for _, e := range desired {
		for key := range e.portEntries() {
			wanted[key] = true
		}
	}
	stale, err := keysWhere[bpfmaps.PortKey, bpfmaps.MappedPort](d.maps.Ports, func(key bpfmaps.PortKey) bool { return !wanted[key] })
	if err != nil {
		return 0, err
	}
	return len(stale), removeAll(d.maps.Ports, stale)
}

func removeAll[K any](m *ebpf.Map, keys []K) error {
	var errs []error
	for _, key := range keys {
		errs = append(errs, ignoreMissing(m.Delete(key)))
	}
	return errors.Join(errs...)
}
