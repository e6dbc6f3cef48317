// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// maxInterrupted is how often a list is read again because addresses came or went
// meanwhile, as they do with every ADD. Then it is taken as it is: netlinksafe, which
// has no such function for a handle, does the same.
const maxInterrupted = 5

// hop is one next hop of a route.
type hop struct {
	addr        netip.Addr
	link        int // index of the device that leads there
	destination netip.Prefix
}

// Within implements Surroundings. It reads all addresses and routes of the node.
func (h *Host) Within(subnets []netip.Prefix) ([]Occupied, error) {
	inside := func(a netip.Addr) bool {
		return slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	own, err := h.addresses()
	if err != nil {
		return nil, err
	}
	own = slices.DeleteFunc(own, func(one hop) bool { return !inside(one.addr) })
	hops, err := h.hops(h.handle.RouteListFiltered, 0)
	if err != nil {
		return nil, err
	}
	hops = slices.DeleteFunc(hops, func(one hop) bool { return !inside(one.addr) })
	if len(own)+len(hops) == 0 {
		return nil, nil
	}
	links, err := h.handle.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, link := range links {
		names[link.Attrs().Index] = link.Attrs().Name
	}
	var found []Occupied
	for _, one := range slices.Concat(own, hops) {
		// A device without name has gone meanwhile, and all of it.
		name, ok := names[one.link]
		if ok && !api.IsHostIfName(name) {
			found = append(found, Occupied{one.addr, name, one.destination})
		}
	}
	return found, nil
}

// At implements Surroundings. It asks for the route to the address; whether the
// address is a next hop shows in the routes of the device that leads there, which
// for an endpoint's is one.
func (h *Host) At(a netip.Addr) (Occupied, bool, error) {
	routes, err := h.handle.RouteGet(a.AsSlice())
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		return Occupied{}, false, nil // no route, or one that says no
	case err != nil:
		return Occupied{}, false, fmt.Errorf("look up route to %s: %w", a, err)
	case len(routes) == 0:
		return Occupied{}, false, nil
	}
	var hops []hop
	if route := routes[0]; route.Type == unix.RTN_LOCAL {
		hops, err = h.addresses()
	} else {
		hops, err = h.hops(h.strict.RouteListFiltered, route.LinkIndex)
	}
	at := slices.IndexFunc(hops, func(one hop) bool { return one.addr == a })
	if err != nil {
		return Occupied{}, false, err
	}
	if at < 0 {
		return Occupied{}, false, nil
	}
	link, err := h.handle.LinkByIndex(hops[at].link)
	if err != nil {
		return Occupied{}, false, fmt.Errorf("look up device %d: %w", hops[at].link, err)
	}
	return Occupied{a, link.Attrs().Name, hops[at].destination}, true, nil
}

// Addresses implements Surroundings.
func (h *Host) Addresses() ([]netip.Addr, error) {
	own, err := h.addresses()
	if err != nil {
		return nil, err
	}
	addresses := make([]netip.Addr, len(own))
	for i, one := range own {
		addresses[i] = one.addr
	}
	return addresses, nil
}

// addresses are the node's own: hops without a destination.
func (h *Host) addresses() ([]hop, error) {
	var list []netlink.Addr
	for attempt := 0; ; attempt++ {
		var err error
		list, err = h.handle.AddrList(nil, netlink.FAMILY_ALL)
		if err == nil || errors.Is(err, netlink.ErrDumpInterrupted) && attempt == maxInterrupted {
			break
		}
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
	}
	var own []hop
	for _, one := range list {
		if a, ok := netip.AddrFromSlice(one.IP); ok {
			own = append(own, hop{addr: a.Unmap(), link: one.LinkIndex})
		}
	}
	return own, nil
}

// hops are the next hops of the main table's routes by a device, by all of them if
// link is 0. The routes to endpoints, which are ours, are left out.
func (h *Host) hops(list func(int, *netlink.Route, uint64) ([]netlink.Route, error), link int) ([]hop, error) {
	var hops []hop
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		// The device is for the kernel to choose by, and not for the library,
		// which would leave out routes of several ways.
		routes, err := list(family, &netlink.Route{Table: unix.RT_TABLE_MAIN, LinkIndex: link}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, route := range routes {
			if route.Protocol != wiring.Protocol {
				hops = append(hops, hopsOf(route, family)...)
			}
		}
	}
	return hops, nil
}

func hopsOf(route netlink.Route, family int) []hop {
	destination := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if family == netlink.FAMILY_V6 {
		destination = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	if route.Dst != nil {
		if a, ok := netip.AddrFromSlice(route.Dst.IP); ok {
			ones, _ := route.Dst.Mask.Size()
			destination = netip.PrefixFrom(a, ones)
		}
	}
	var hops []hop
	add := func(link int, gateway net.IP, via netlink.Destination) {
		if other, ok := via.(*netlink.Via); ok && other != nil {
			gateway = other.Addr // of the other family
		}
		if a, ok := netip.AddrFromSlice(gateway); ok && !a.IsUnspecified() {
			hops = append(hops, hop{a.Unmap(), link, destination})
		}
	}
	add(route.LinkIndex, route.Gw, route.Via)
	for _, way := range route.MultiPath {
		add(way.LinkIndex, way.Gw, way.Via)
	}
	return hops
}
