// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Uplink is a device through which the world is reached.
type Uplink struct {
	Name    string
	IfIndex int
	// MTU in bytes.
	MTU int
	MAC net.HardwareAddr
	// IPv4 and IPv6 are the source addresses of what is masqueraded; the zero
	// Addr where the device has no usable address of the family.
	IPv4, IPv6 netip.Addr
}

func (u Uplink) equal(o Uplink) bool {
	return u.Name == o.Name && u.IfIndex == o.IfIndex && u.MTU == o.MTU &&
		slices.Equal(u.MAC, o.MAC) && u.IPv4 == o.IPv4 && u.IPv6 == o.IPv6
}

// String names the uplink with its addresses, as a log shows it.
func (u Uplink) String() string {
	var addresses []string
	for _, a := range []netip.Addr{u.IPv4, u.IPv6} {
		if a.IsValid() {
			addresses = append(addresses, a.String())
		}
	}
	if addresses == nil {
		return u.Name + " without address"
	}
	return u.Name + " " + strings.Join(addresses, " ")
}

// Options say where and what to look for.
type Options struct {
	// NetNS is the path of the network namespace; empty is the caller's own.
	NetNS string
	// Names of the uplinks. Empty takes the devices of the default routes.
	Names []string
	// Own tells by its name whether a device is an endpoint's host side. Such
	// devices are never uplinks, their addresses and routes change nothing for
	// other flows, and their end is reported. Nil means that none is.
	Own func(name string) bool
	// OwnProtocol marks routes (rtm_protocol) that raise no event: whoever
	// makes them knows what they change. 0 marks none.
	OwnProtocol uint8
	// Logger gets what goes wrong while changes are followed. Nil discards it.
	Logger *slog.Logger
}

func (o *Options) setDefaults() {
	if o.Own == nil {
		o.Own = func(string) bool { return false }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// open returns the namespace to open sockets in; close it after use.
func (o *Options) open() (netns.NsHandle, error) {
	if o.NetNS == "" {
		return netns.None(), nil
	}
	ns, err := netns.GetFromPath(o.NetNS)
	if err != nil {
		return netns.None(), fmt.Errorf("open network namespace %s: %w", o.NetNS, err)
	}
	return ns, nil
}

func closeNS(ns netns.NsHandle) {
	if ns.IsOpen() {
		_ = ns.Close()
	}
}

// Found is what a look at the node finds.
type Found struct {
	// Uplinks are ordered by interface index.
	Uplinks []Uplink
	// Flaws are in the order of Options.Names, or of the default routes, best
	// metric first; those of uplinks without address come last.
	Flaws []Flaw
}

func (f Found) equal(o Found) bool {
	return slices.EqualFunc(f.Uplinks, o.Uplinks, Uplink.equal) && slices.Equal(f.Flaws, o.Flaws)
}

func (f Found) clone() Found {
	return Found{Uplinks: slices.Clone(f.Uplinks), Flaws: slices.Clone(f.Flaws)}
}

// Find returns the uplinks as they are now.
func Find(opts Options) (Found, error) {
	opts.setDefaults()
	ns, err := opts.open()
	if err != nil {
		return Found{}, err
	}
	defer closeNS(ns)
	handle, err := newHandle(ns)
	if err != nil {
		return Found{}, err
	}
	defer handle.Close()
	return find(handle, opts)
}

func newHandle(ns netns.NsHandle) (netlinksafe.Handle, error) {
	handle, err := netlinksafe.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return handle, fmt.Errorf("open netlink socket: %w", err)
	}
	return handle, nil
}

func find(handle netlinksafe.Handle, opts Options) (Found, error) {
	routes, err := defaultRoutes(handle)
	if err != nil {
		return Found{}, err
	}
	links, flaws, err := candidates(handle, opts, routes)
	if err != nil || len(links) == 0 {
		return Found{Flaws: flaws}, err
	}
	addresses, err := handle.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return Found{}, fmt.Errorf("list addresses: %w", err)
	}
	found := Found{Uplinks: make([]Uplink, 0, len(links)), Flaws: flaws}
	for _, link := range links {
		attrs := link.Attrs()
		u := Uplink{
			Name:    attrs.Name,
			IfIndex: attrs.Index,
			MTU:     attrs.MTU,
			MAC:     attrs.HardwareAddr,
			IPv4:    sourceAddress(netlink.FAMILY_V4, attrs.Index, routes, addresses),
			IPv6:    sourceAddress(netlink.FAMILY_V6, attrs.Index, routes, addresses),
		}
		found.Uplinks = append(found.Uplinks, u)
		if attrs.Flags&net.FlagUp == 0 {
			found.Flaws = append(found.Flaws, Flaw{u.Name, Down})
		} else if !u.IPv4.IsValid() && !u.IPv6.IsValid() {
			found.Flaws = append(found.Flaws, Flaw{u.Name, NoAddress})
		}
	}
	slices.SortFunc(found.Uplinks, func(a, b Uplink) int { return cmp.Compare(a.IfIndex, b.IfIndex) })
	return found, nil
}

// candidates returns the links that are uplinks, each once, and why others are
// none.
func candidates(handle netlinksafe.Handle, opts Options, routes []defaultRoute) ([]netlink.Link, []Flaw, error) {
	var (
		links []netlink.Link
		flaws []Flaw
	)
	flaw := func(device string, kind Kind) {
		if f := (Flaw{device, kind}); !slices.Contains(flaws, f) {
			flaws = append(flaws, f)
		}
	}
	// add takes a link that exists; named says that the configuration wants it.
	add := func(link netlink.Link, named bool) {
		attrs := link.Attrs()
		switch {
		case slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Attrs().Index == attrs.Index }):
		case opts.Own(attrs.Name):
			if named {
				flaw(attrs.Name, Own)
			}
		case attrs.EncapType != "ether":
			flaw(attrs.Name, NotEthernet)
		default:
			links = append(links, link)
		}
	}
	for _, name := range opts.Names {
		link, err := handle.LinkByName(name)
		switch {
		case isGone(err):
			flaw(name, Absent)
		case err != nil:
			return nil, nil, fmt.Errorf("read uplink: %w", err)
		default:
			add(link, true)
		}
	}
	if len(opts.Names) > 0 {
		return links, flaws, nil
	}
	for _, route := range routes {
		link, err := handle.LinkByIndex(route.ifindex)
		switch {
		case isGone(err): // between two requests: the event of its end is on its way
		case err != nil:
			return nil, nil, fmt.Errorf("read uplink: %w", err)
		default:
			add(link, false)
		}
	}
	return links, flaws, nil
}

// isGone tells whether the kernel has answered that there is no such device.
func isGone(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV)
}

// defaultRoute is one next hop of a default route of the main table.
type defaultRoute struct {
	family   int
	ifindex  int
	priority int
	gateway  netip.Addr // zero for a route without one
	source   netip.Addr // prefsrc, zero where the route has none
}

// defaultRoutes returns the next hops of all default routes, best metric first.
func defaultRoutes(handle netlinksafe.Handle) ([]defaultRoute, error) {
	var found []defaultRoute
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		filter := &netlink.Route{Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}
		routes, err := handle.RouteListFiltered(family, filter,
			netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, route := range routes {
			if !isDefault(route) {
				continue
			}
			found = append(found, nextHops(family, route)...)
		}
	}
	slices.SortStableFunc(found, func(a, b defaultRoute) int { return cmp.Compare(a.priority, b.priority) })
	return found, nil
}

// isDefault looks again, because a filter of the netlink package decides by the
// first criterion it is given.
func isDefault(route netlink.Route) bool {
	if route.Table != unix.RT_TABLE_MAIN || route.Type != unix.RTN_UNICAST {
		return false
	}
	if route.Dst == nil {
		return true
	}
	ones, _ := route.Dst.Mask.Size()
	return ones == 0
}

func nextHops(family int, route netlink.Route) []defaultRoute {
	one := defaultRoute{family: family, priority: route.Priority, source: address(route.Src)}
	if len(route.MultiPath) == 0 {
		one.ifindex, one.gateway = route.LinkIndex, address(route.Gw)
		return []defaultRoute{one}
	}
	var hops []defaultRoute
	for _, hop := range route.MultiPath {
		one.ifindex, one.gateway = hop.LinkIndex, address(hop.Gw)
		hops = append(hops, one)
	}
	return hops
}

func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
