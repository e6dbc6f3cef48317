// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/wiring"
)

// Host is the node: Links, Bridges, Parents, Children, Routes, Surroundings and Sockets of one
// network namespace.
type Host struct {
	ns     *wiring.Namespace
	handle netlinksafe.Handle
	// strict has the kernel choose what of a list it sends.
	strict netlinksafe.Handle
	diag   diag
}

var (
	_ Links        = (*Host)(nil)
	_ Parents      = (*Host)(nil)
	_ Children     = (*Host)(nil)
	_ Bridges      = (*Host)(nil)
	_ Routes       = (*Host)(nil)
	_ Surroundings = (*Host)(nil)
	_ Sockets      = (*Host)(nil)
)

// OpenHost opens the network namespace of the process, or the one at path when
// that is not empty. The caller closes the Host.
func OpenHost(path string) (_ *Host, err error) {
	h := &Host{}
	defer func() {
		if err != nil {
			_ = h.Close()
		}
	}()
	at := netns.None()
	if path == "" {
		h.ns, err = wiring.Current()
	} else {
		h.ns, err = wiring.Open(path)
		if err == nil {
			at, err = netns.GetFromPath(path)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open node: %w", err)
	}
	h.handle, err = netlinksafe.NewHandleAt(at, unix.NETLINK_ROUTE)
	if err == nil {
		h.strict, err = netlinksafe.NewHandleAt(at, unix.NETLINK_ROUTE)
	}
	if err == nil {
		err = h.strict.SetStrictCheck(true)
	}
	if err == nil {
		h.diag, err = openDiag(at)
	}
	if at.IsOpen() {
		_ = at.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("open node: open netlink socket: %w", err)
	}
	return h, nil
}

// Close closes the sockets. Nothing of the node changes.
func (h *Host) Close() error {
	h.handle.Close()
	h.strict.Close()
	h.diag.close()
	if h.ns == nil {
		return nil
	}
	return h.ns.Close()
}

// Link implements Links.
func (h *Host) Link(name string) (HostLink, error) { return hostLink(h.handle.LinkByName(name)) }

// LinkAt implements Parents.
func (h *Host) LinkAt(index int) (HostLink, error) { return hostLink(h.handle.LinkByIndex(index)) }

func hostLink(link netlink.Link, err error) (HostLink, error) {
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing), errors.Is(err, unix.ENODEV):
		return HostLink{}, ErrNoLink
	case err != nil:
		return HostLink{}, err
	}
	attrs := link.Attrs()
	found := HostLink{
		Name: attrs.Name, Index: attrs.Index, MAC: attrs.HardwareAddr, Master: attrs.MasterIndex, Bridge: link.Type() == "bridge", Macvlan: link.Type() == "macvlan",
		Ethernet: attrs.EncapType == "ether", MTU: attrs.MTU,
	}
	if vlan, ok := link.(*netlink.Vlan); ok {
		found.VLAN, found.Lower = vlan.VlanId, attrs.ParentIndex
	}
	return found, nil
}

// Users implements Parents.
func (h *Host) Users(index int) (users []string, err error) {
	link, err := h.handle.LinkByIndex(index)
	if err != nil {
		return nil, err
	}
	addresses, err := h.handle.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	links, err := h.handle.LinkList()
	if err != nil {
		return nil, err
	}
	for _, a := range addresses {
		if a.Scope != unix.RT_SCOPE_LINK {
			users = append(users, "address "+a.IPNet.String())
		}
	}
	for _, other := range links {
		attrs := other.Attrs()
		switch {
		case attrs.Index == link.Attrs().MasterIndex:
			users = append(users, "device "+attrs.Name+", of which it is a port")
		case attrs.ParentIndex == index && attrs.NetNsID < 0: // which else says where the parent is
			users = append(users, "device "+attrs.Name+" on it")
		}
	}
	return users, nil
}

// MakeVLAN implements Parents.
func (h *Host) MakeVLAN(v wiring.VLAN) (int, error) { return wiring.MakeVLAN(h.ns, v) }

// RemoveVLAN implements Parents.
func (h *Host) RemoveVLAN(index int) error { return wiring.RemoveVLAN(h.ns, index) }

// Child implements Children.
func (h *Host) Child(path, name string) (wiring.ChildLink, error) {
	return childOrNone(wiring.FindChild(h.ns, path, name))
}

// ChildAt implements Children.
func (h *Host) ChildAt(number, index int) (wiring.ChildLink, error) {
	return childOrNone(wiring.FindChildAt(h.ns, number, index))
}

func childOrNone(child wiring.ChildLink, err error) (wiring.ChildLink, error) {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, wiring.ErrNotNamespace) || errors.Is(err, unix.ENODEV) {
		return child, ErrNoLink
	}
	return child, err
}

// RemoveChild implements Children.
func (h *Host) RemoveChild(child wiring.ChildLink) error { return wiring.RemoveFound(h.ns, child) }

// Devices returns the names of the devices for which keep holds.
func (h *Host) Devices(keep func(name string) bool) ([]string, error) {
	return h.devices(func(link netlink.Link) bool { return keep(link.Attrs().Name) })
}

// HostLinks implements Links.
func (h *Host) HostLinks() ([]string, error) {
	return h.devices(func(link netlink.Link) bool {
		return link.Type() == "veth" && api.IsHostIfName(link.Attrs().Name)
	})
}

func (h *Host) devices(keep func(netlink.Link) bool) ([]string, error) {
	links, err := h.handle.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var names []string
	for _, link := range links {
		if keep(link) {
			names = append(names, link.Attrs().Name)
		}
	}
	return names, nil
}

// RemoveLink implements Links.
func (h *Host) RemoveLink(name string) error { return wiring.RemoveVeth(h.ns, name) }

// RepairBridge implements Bridges.
func (h *Host) RepairBridge(b wiring.Bridge, gateways []netip.Prefix) ([]string, error) {
	return wiring.RepairBridge(h.ns, b, gateways)
}

// RepairPort implements Bridges.
func (h *Host) RepairPort(links wiring.Links, b wiring.Bridged) ([]string, error) {
	return wiring.RepairPort(h.ns, links, b)
}

// AddUnreachable implements Routes.
func (h *Host) AddUnreachable(p netip.Prefix) error { return wiring.EnsureUnreachable(h.ns, p) }

// RemoveUnreachable implements Routes.
func (h *Host) RemoveUnreachable(p netip.Prefix) error { return wiring.RemoveUnreachable(h.ns, p) }

// ReconcileUnreachable implements Routes. Missing routes come before surplus
// ones go.
func (h *Host) ReconcileUnreachable(wanted []netip.Prefix) error {
	present, err := h.listUnreachable()
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range wanted {
		if !slices.Contains(present, p) {
			errs = append(errs, wiring.EnsureUnreachable(h.ns, p))
		}
	}
	for _, p := range present {
		if !slices.Contains(wanted, p) {
			errs = append(errs, wiring.RemoveUnreachable(h.ns, p))
		}
	}
	return errors.Join(errs...)
}

// listUnreachable returns the subnets of the unreachable routes that are ours.
// It uses the socket that is open: to enter a namespace, as pkg/wiring does for
// its lists, takes CAP_SYS_ADMIN even when it is one's own.
func (h *Host) listUnreachable() ([]netip.Prefix, error) {
	filter := &netlink.Route{Table: unix.RT_TABLE_MAIN, Protocol: wiring.Protocol, Type: unix.RTN_UNREACHABLE}
	const mask = netlink.RT_FILTER_TABLE | netlink.RT_FILTER_PROTOCOL | netlink.RT_FILTER_TYPE
	var subnets []netip.Prefix
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.handle.RouteListFiltered(family, filter, mask)
		if err != nil {
			return nil, fmt.Errorf("list unreachable routes: %w", err)
		}
		for _, route := range routes {
			if route.Dst == nil {
				continue
			}
			address, _ := netip.AddrFromSlice(route.Dst.IP)
			ones, _ := route.Dst.Mask.Size()
			subnets = append(subnets, netip.PrefixFrom(address.Unmap(), ones))
		}
	}
	return subnets, nil
}
