// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Protocol marks the routes that tendril put into the node's tables, 0x54 for
// "T": `ip route show proto 84`.
const Protocol = 84

// Address is one address of a container. Its prefix is always the whole
// address: there is nobody else on its link.
type Address struct {
	Addr netip.Addr
	// Gateway is the next hop, which the host's side stands for.
	Gateway netip.Addr
	// Foreign says that the gateway's address is not to be put on the host's
	// side: it is a stand-in that exists only in the container's routes.
	Foreign bool
}

// Route is one route in a container, by way of its link.
type Route struct {
	Dst netip.Prefix
	// Gateway of the same family; zero for a route of scope link.
	Gateway netip.Addr
	// MTU and AdvMSS in bytes, Priority (the metric) and Table: 0 takes the
	// kernel's default.
	MTU, AdvMSS, Priority, Table int
	// Scope as in rtnetlink(7): 0 global, 253 link, 254 host. IPv6 has none.
	Scope int
	// Optional says that the route is left out when the container has one
	// to the same destination and with the same metric already.
	Optional bool
	// Behind says that the route stands behind such a one, for packets that
	// are bound to the link. So does any route by way of a gateway that the
	// container has on another link too.
	Behind bool
}

// behind and the link's index are added to the metric of a route that stands behind
// another. With equal metrics IPv6 would make the two one route of two ways, and IPv4
// would prefer the later. 1024 is what IPv6 takes for 0.
const behind = 1024

// String is the route as ip-route(8) would show it.
func (r Route) String() string {
	text := r.Dst.String()
	if r.Gateway.IsValid() {
		text += " via " + r.Gateway.String()
	}
	for _, part := range []struct {
		name  string
		value int
	}{{"metric", r.Priority}, {"table", r.Table}, {"mtu", r.MTU}, {"advmss", r.AdvMSS}, {"scope", r.Scope}} {
		if part.value != 0 {
			text += fmt.Sprintf(" %s %d", part.name, part.value)
		}
	}
	return text
}

// Routed is all that a container of the driver "routed" is given.
type Routed struct {
	// MTU of both sides in bytes; 0 leaves them as they are.
	MTU       int
	Addresses []Address
	Routes    []Route
}

// Gateways are the next hops of the addresses, each once.
func (r Routed) Gateways() []netip.Addr {
	var all []netip.Addr
	for _, a := range r.Addresses {
		if !slices.Contains(all, a.Gateway) {
			all = append(all, a.Gateway)
		}
	}
	return all
}

func (r Routed) ipv6() bool {
	return slices.ContainsFunc(r.Addresses, func(a Address) bool { return a.Addr.Is6() })
}

// Up sets both sides up and puts helper, where it is valid, on the host's
// side. A DHCP server or relay on the node answers only on links that are up
// and have an address. Configure takes the helper away again.
func Up(host, container *Namespace, links Links, helper netip.Addr) error {
	if err := prepareIPv6(host, links.HostName, false); err != nil {
		return err
	}
	if err := prepareIPv6(container, links.Name, false); err != nil {
		return err
	}
	messages := []message{noLinkLocal(links.HostIndex, links.HostName), up(links.HostIndex, links.HostName, 0)}
	if helper.IsValid() {
		messages = append(messages, address(unix.RTM_NEWADDR, links.HostIndex, links.HostName, helper, unix.RT_SCOPE_LINK))
	}
	if _, err := host.exchange(messages); err != nil {
		return err
	}
	_, err := container.exchange([]message{up(links.Index, links.Name, 0)})
	return err
}

// Configure gives both sides their addresses, neighbours and routes and sets
// them up. It returns the routes that the container has now, which are those
// of r without the optional ones that were there already, and with the metric of
// those that stand behind others. helper is what Up was given.
//
// All neighbours are permanent: neither side ever asks who has an address, so
// neither needs proxy ARP, and there is nothing to spoof.
func Configure(host, container *Namespace, links Links, r Routed, helper netip.Addr) ([]Route, error) {
	if err := prepareIPv6(host, links.HostName, r.ipv6()); err != nil {
		return nil, err
	}
	if err := prepareIPv6(container, links.Name, r.ipv6()); err != nil {
		return nil, err
	}
	if _, err := host.exchange(hostSide(links, r, helper)); err != nil {
		return nil, fmt.Errorf("configure the host's side: %w", err)
	}
	messages, heard := containerSide(links, r)
	if _, err := container.exchange(messages); err != nil {
		return nil, fmt.Errorf("configure the container's side: %w", err)
	}
	routes, messages := heard.again(links, r)
	if messages == nil {
		return routes, nil
	}
	if _, err := container.exchange(messages); err != nil {
		return nil, fmt.Errorf("configure the container's side: %w", err)
	}
	return routes, nil
}

// heard is what was there before in the container, from other interfaces.
type heard struct {
	// gateways, in the order of Routed.Gateways: there is a route to it alone,
	// so the other interface is of the same network.
	gateways []bool
	// routes, in the order of Routed.Routes: there is one to the same
	// destination with the same metric.
	routes []bool
}

// again returns the routes as the container has them in the end, and the messages
// for those that were there before and are wanted all the same.
func (h heard) again(links Links, r Routed) ([]Route, []message) {
	var routes []Route
	var messages []message
	gateways := r.Gateways()
	for i, route := range r.Routes {
		at := slices.Index(gateways, route.Gateway)
		switch {
		case !h.routes[i]:
			routes = append(routes, route)
			continue
		case route.Optional:
			continue
		case route.Behind, at >= 0 && h.gateways[at]:
			// Packets of the other interface's address that went by this one
			// would be dropped as spoofed: the other's route stays the first.
			route.Priority = min(route.Priority+behind+links.Index, math.MaxUint32)
		}
		// A second network's route to the same place stands beside or before
		// the first, as with the reference plugins.
		messages = append(messages, newRoute(links.Index, links.Name, route, unix.RTPROT_BOOT, 0))
		routes = append(routes, route)
	}
	return routes, messages
}

func hostSide(links Links, r Routed, helper netip.Addr) []message {
	index, name := links.HostIndex, links.HostName
	messages := []message{noLinkLocal(index, name), up(index, name, r.MTU)}
	if helper.IsValid() {
		remove := address(unix.RTM_DELADDR, index, name, helper, unix.RT_SCOPE_LINK)
		remove.tolerate = []unix.Errno{unix.EADDRNOTAVAIL}
		messages = append(messages, remove)
	}
	for _, gateway := range r.Gateways() {
		foreign := slices.ContainsFunc(r.Addresses, func(a Address) bool { return a.Gateway == gateway && a.Foreign })
		if !foreign {
			messages = append(messages, address(unix.RTM_NEWADDR, index, name, gateway, unix.RT_SCOPE_UNIVERSE))
		}
	}
	for _, a := range r.Addresses {
		whole := Route{Dst: netip.PrefixFrom(a.Addr, a.Addr.BitLen()), Scope: unix.RT_SCOPE_LINK}
		messages = append(messages, neighbour(index, name, a.Addr, links.MAC),
			newRoute(index, name, whole, Protocol, unix.NLM_F_EXCL))
	}
	return messages
}

// containerSide returns the messages, and where it is heard what was there before.
func containerSide(links Links, r Routed) ([]message, heard) {
	index, name, gateways := links.Index, links.Name, r.Gateways()
	h := heard{gateways: make([]bool, len(gateways)), routes: make([]bool, len(r.Routes))}
	exclusive := func(route Route, there *bool) message {
		m := newRoute(index, name, route, unix.RTPROT_BOOT, unix.NLM_F_EXCL)
		m.tolerate, m.tolerated = []unix.Errno{unix.EEXIST}, there
		return m
	}
	messages := []message{up(index, name, r.MTU)}
	for _, a := range r.Addresses {
		messages = append(messages, address(unix.RTM_NEWADDR, index, name, a.Addr, unix.RT_SCOPE_UNIVERSE))
	}
	for i, gateway := range gateways {
		whole := Route{Dst: netip.PrefixFrom(gateway, gateway.BitLen()), Scope: unix.RT_SCOPE_LINK}
		// Another interface's route to the same gateway stays the first. Where
		// there is none, the second message finds what the first has made.
		appended := newRoute(index, name, whole, unix.RTPROT_BOOT, unix.NLM_F_APPEND)
		appended.tolerate = []unix.Errno{unix.EEXIST}
		messages = append(messages, neighbour(index, name, gateway, links.HostMAC), exclusive(whole, &h.gateways[i]), appended)
	}
	for i, route := range r.Routes {
		messages = append(messages, exclusive(route, &h.routes[i]))
	}
	return messages, h
}

// address adds or removes one whole address. Nobody else can have it, so an
// IPv6 address skips duplicate address detection, and the prefix route, which
// would be a second route to the address itself.
func address(kind uint16, index int, name string, a netip.Addr, scope uint8) message {
	body := header(unix.IfAddrmsg{Family: family(a), Prefixlen: uint8(a.BitLen()), Scope: scope, Index: uint32(index)})
	body = attributeAddr(body, unix.IFA_LOCAL, a)
	body = attributeAddr(body, unix.IFA_ADDRESS, a)
	flags := uint32(unix.IFA_F_NOPREFIXROUTE)
	if a.Is6() {
		flags |= unix.IFA_F_NODAD
	}
	body = attribute32(body, unix.IFA_FLAGS, flags)
	if kind == unix.RTM_DELADDR {
		return message{kind: kind, body: body, what: fmt.Sprintf("remove address %s from %s", a, name)}
	}
	return message{
		kind: kind, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, body: body,
		what: fmt.Sprintf("add address %s to %s", a, name),
	}
}

func neighbour(index int, name string, a netip.Addr, mac net.HardwareAddr) message {
	body := header(unix.NdMsg{Family: family(a), Ifindex: int32(index), State: unix.NUD_PERMANENT})
	body = attributeAddr(body, unix.NDA_DST, a)
	body = attribute(body, unix.NDA_LLADDR, mac)
	return message{
		kind: unix.RTM_NEWNEIGH, flags: unix.NLM_F_CREATE | unix.NLM_F_REPLACE, body: body,
		what: fmt.Sprintf("add neighbour %s to %s", a, name),
	}
}

func newRoute(index int, name string, r Route, protocol uint8, flags uint16) message {
	message := routeMessage(unix.RTM_NEWROUTE, r, protocol, unix.RTN_UNICAST)
	message.flags = unix.NLM_F_CREATE | flags
	message.body = attribute32(message.body, unix.RTA_OIF, uint32(index))
	message.what = fmt.Sprintf("add route %s to %s", r, name)
	return message
}

// routeMessage is a route without device and flags.
func routeMessage(kind uint16, r Route, protocol, typ uint8) message {
	fixed := unix.RtMsg{
		Family: family(r.Dst.Addr()), Dst_len: uint8(r.Dst.Bits()), Table: unix.RT_TABLE_MAIN,
		Protocol: protocol, Scope: uint8(r.Scope), Type: typ,
	}
	if r.Table != 0 {
		fixed.Table = unix.RT_TABLE_UNSPEC // RTA_TABLE holds it; it may exceed a byte
	}
	body := header(fixed)
	if r.Dst.Bits() > 0 {
		body = attributeAddr(body, unix.RTA_DST, r.Dst.Masked().Addr())
	}
	if r.Gateway.IsValid() {
		body = attributeAddr(body, unix.RTA_GATEWAY, r.Gateway)
	}
	if r.Priority != 0 {
		body = attribute32(body, unix.RTA_PRIORITY, uint32(r.Priority))
	}
	if r.Table != 0 {
		body = attribute32(body, unix.RTA_TABLE, uint32(r.Table))
	}
	var metrics []byte
	if r.MTU != 0 {
		metrics = attribute32(metrics, unix.RTAX_MTU, uint32(r.MTU))
	}
	if r.AdvMSS != 0 {
		metrics = attribute32(metrics, unix.RTAX_ADVMSS, uint32(r.AdvMSS))
	}
	if metrics != nil {
		body = attribute(body, unix.RTA_METRICS, metrics)
	}
	return message{kind: kind, body: body}
}
