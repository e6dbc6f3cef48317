// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// MismatchError says what Check found to be not as it was wired.
type MismatchError struct {
	// Differences are sentences such as "address 10.10.0.5/32 is missing on
	// eth0 in the container".
	Differences []string
}

func (e *MismatchError) Error() string { return strings.Join(e.Differences, "; ") }

// Check compares both sides with what Configure made of v and r: links, MTU (of
// the host's side with v's, of the container's with r's), addresses, neighbours
// and routes. Whatever else is there is not its concern. An empty MAC or an MTU
// of 0 is not compared. The error is a *MismatchError when something differs.
func Check(host, container *Namespace, v Veth, r Routed) error {
	var differences []string
	inContainer, err := observe(container, v.Name, r.Routes)
	if err != nil {
		return err
	}
	onHost, err := observe(host, v.HostName, nil)
	if err != nil {
		return err
	}
	differences = append(differences, inContainer.compare(" in the container", "veth", v.Name, v.MAC, r.MTU)...)
	differences = append(differences, onHost.compare(" on the host", "veth", v.HostName, v.HostMAC, v.MTU)...)
	for _, a := range r.Addresses {
		differences = append(differences, inContainer.compareAddress("address", " in the container", v.Name, whole(a.Addr))...)
		if onHost.link != nil {
			differences = append(differences, onHost.compareHop(" on the host", v.HostName, a.Addr, v.MAC)...)
		}
	}
	for _, gateway := range r.Gateways() {
		if inContainer.link != nil {
			differences = append(differences, inContainer.compareHop(" in the container", v.Name, gateway, v.HostMAC)...)
		}
		foreign := slices.ContainsFunc(r.Addresses, func(a Address) bool { return a.Gateway == gateway && a.Foreign })
		if !foreign {
			differences = append(differences, onHost.compareAddress("gateway address", " on the host", v.HostName, whole(gateway))...)
		}
	}
	differences = append(differences, inContainer.compareRoutes(" in the container", v.Name, r.Routes)...)
	return mismatch(differences)
}

func mismatch(differences []string) error {
	if differences != nil {
		return &MismatchError{Differences: differences}
	}
	return nil
}

// observed is what a namespace has by way of one link; nil link: no such link.
type observed struct {
	link netlink.Link
	// idle says that somebody else sets it up, and gives it the MAC that suits him.
	idle       bool
	addresses  []netip.Prefix
	neighbours map[netip.Addr]net.HardwareAddr
	routes     []Route
}

// observe lists the link's main table and the tables of routes.
func observe(n *Namespace, name string, routes []Route) (observed, error) {
	seen := observed{neighbours: make(map[netip.Addr]net.HardwareAddr)}
	tables := []int{unix.RT_TABLE_MAIN}
	for _, route := range routes {
		if table := route.table(); !slices.Contains(tables, table) {
			tables = append(tables, table)
		}
	}
	err := n.Do(func() error {
		link, err := netlinksafe.LinkByName(name)
		if absent := (netlink.LinkNotFoundError{}); errors.As(err, &absent) {
			return nil
		}
		if err != nil {
			return err
		}
		seen.link = link
		addresses, err := netlinksafe.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, a := range addresses {
			if prefix, ok := prefixOf(a.IPNet, netlink.FAMILY_ALL); ok {
				seen.addresses = append(seen.addresses, prefix)
			}
		}
		neighbours, err := neighbourList(link.Attrs().Index)
		if err != nil {
			return err
		}
		for _, neighbour := range neighbours {
			if a, ok := netip.AddrFromSlice(neighbour.IP); ok && neighbour.State == unix.NUD_PERMANENT {
				seen.neighbours[a.Unmap()] = neighbour.HardwareAddr
			}
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			for _, table := range tables {
				found, err := routeList(family, link.Attrs().Index, table)
				if err != nil {
					return err
				}
				seen.routes = append(seen.routes, found...)
			}
		}
		return nil
	})
	if err != nil {
		return observed{}, fmt.Errorf("look at %s: %w", name, err)
	}
	return seen, nil
}

// neighbourList repeats an interrupted dump, which netlinksafe does for the
// other lists.
func neighbourList(index int) ([]netlink.Neigh, error) {
	for attempt := 0; ; attempt++ {
		list, err := netlink.NeighList(index, netlink.FAMILY_ALL) //nolint:forbidigo // repeated right here
		if !errors.Is(err, netlink.ErrDumpInterrupted) || attempt == 5 {
			return list, err
		}
	}
}

func routeList(family, index, table int) ([]Route, error) {
	list, err := netlinksafe.RouteListFiltered(family, &netlink.Route{LinkIndex: index, Table: table},
		netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, err
	}
	var routes []Route
	for _, r := range list {
		dst, ok := prefixOf(r.Dst, family)
		if !ok {
			continue
		}
		gateway, _ := netip.AddrFromSlice(r.Gw)
		routes = append(routes, Route{
			Dst: dst, Gateway: gateway.Unmap(), MTU: r.MTU, AdvMSS: r.AdvMSS,
			Priority: r.Priority, Table: r.Table, Scope: int(r.Scope),
		})
	}
	return routes, nil
}

// compare judges the link itself.
func (o observed) compare(where, kind, name string, mac net.HardwareAddr, mtu int) []string {
	if o.link == nil {
		return []string{"link " + name + " is missing" + where}
	}
	var differences []string
	attrs := o.link.Attrs()
	if o.link.Type() != kind {
		differences = append(differences, fmt.Sprintf("link %s%s is a %s, not a %s", name, where, o.link.Type(), kind))
	}
	if attrs.Flags&net.FlagUp == 0 && !o.idle {
		differences = append(differences, fmt.Sprintf("link %s is down%s", name, where))
	}
	if len(mac) != 0 && !bytes.Equal(attrs.HardwareAddr, mac) && !o.idle {
		differences = append(differences, fmt.Sprintf("MAC of %s%s is %s, not %s", name, where, attrs.HardwareAddr, mac))
	}
	if mtu != 0 && attrs.MTU != mtu {
		differences = append(differences, fmt.Sprintf("mtu of %s%s is %d, not %d", name, where, attrs.MTU, mtu))
	}
	return differences
}

// compareHop judges how the other side's address is reached: a route to it
// alone, and its permanent neighbour.
func (o observed) compareHop(where, name string, a netip.Addr, mac net.HardwareAddr) []string {
	var differences []string
	if !o.connects(whole(a)) {
		differences = append(differences, fmt.Sprintf("route %s is missing on %s%s", whole(a), name, where))
	}
	switch known, ok := o.neighbours[a]; {
	case !ok:
		differences = append(differences, fmt.Sprintf("permanent neighbour %s is missing on %s%s", a, name, where))
	case len(mac) != 0 && !bytes.Equal(known, mac):
		differences = append(differences, fmt.Sprintf("MAC of neighbour %s on %s%s is %s, not %s", a, name, where, known, mac))
	}
	return differences
}

// connects says whether there is a route that has all of a prefix on the link.
func (o observed) connects(dst netip.Prefix) bool {
	return slices.ContainsFunc(o.routes, func(r Route) bool { return r.Dst == dst && !r.Gateway.IsValid() })
}

// compareAddress has nothing to say where the link is missing, nor has compareRoutes.
func (o observed) compareAddress(what, where, name string, a netip.Prefix) []string {
	if o.link == nil || slices.Contains(o.addresses, a) {
		return nil
	}
	return []string{fmt.Sprintf("%s %s is missing on %s%s", what, a, name, where)}
}

func (o observed) compareRoutes(where, name string, routes []Route) []string {
	var differences []string
	for _, route := range routes {
		if o.link != nil && !slices.ContainsFunc(o.routes, route.covers) {
			differences = append(differences, fmt.Sprintf("route %s is missing on %s%s", route, name, where))
		}
	}
	return differences
}

// covers says whether seen is what was asked for: what was left to the kernel
// may be anything.
func (r Route) covers(seen Route) bool {
	left := func(asked, found int) bool { return asked == 0 || asked == found }
	return r.Dst == seen.Dst && r.Gateway == seen.Gateway && r.table() == seen.table() &&
		left(r.MTU, seen.MTU) && left(r.AdvMSS, seen.AdvMSS) && left(r.Priority, seen.Priority)
}

func (r Route) table() int {
	if r.Table == 0 {
		return unix.RT_TABLE_MAIN
	}
	return r.Table
}

// prefixOf converts what the netlink library returns; nil is the default route
// of the family.
func prefixOf(n *net.IPNet, family int) (netip.Prefix, bool) {
	if n == nil {
		if family == netlink.FAMILY_V4 {
			return netip.PrefixFrom(netip.IPv4Unspecified(), 0), true
		}
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0), true
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, bits := n.Mask.Size()
	if bits == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones), true
}
