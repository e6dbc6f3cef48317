// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"fmt"
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
	if err := prepareIPv6(host, links.HostName, false, "accept_ra"); err != nil {
		return err
	}
	if err := prepareIPv6(container, links.Name, false, "accept_ra"); err != nil {
		return err
	}
	messages := []message{noLinkLocal(links.HostIndex, links.HostName), up(links.HostIndex, links.HostName, 0)}
	if helper.IsValid() {
		messages = append(messages, address(unix.RTM_NEWADDR, links.HostIndex, links.HostName, whole(helper), unix.RT_SCOPE_LINK))
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
	if err := prepareIPv6(host, links.HostName, r.ipv6(), "accept_ra"); err != nil {
		return nil, err
	}
	if err := prepareIPv6(container, links.Name, r.ipv6(), "accept_ra"); err != nil {
		return nil, err
	}
	if _, err := host.exchange(hostSide(links, r, helper)); err != nil {
		return nil, fmt.Errorf("configure the host's side: %w", err)
	}
	messages, added := containerSide(links, r)
	_, err := container.exchange(messages)
	var routes []Route
	if err == nil {
		routes, err = added.finish(container)
	}
	if err != nil {
		return nil, fmt.Errorf("configure the container's side: %w", err)
	}
	return routes, nil
}

func hostSide(links Links, r Routed, helper netip.Addr) []message {
	index, name := links.HostIndex, links.HostName
	messages := []message{noLinkLocal(index, name), up(index, name, r.MTU)}
	if helper.IsValid() {
		remove := address(unix.RTM_DELADDR, index, name, whole(helper), unix.RT_SCOPE_LINK)
		remove.tolerate = []unix.Errno{unix.EADDRNOTAVAIL}
		messages = append(messages, remove)
	}
	for _, gateway := range r.Gateways() {
		foreign := slices.ContainsFunc(r.Addresses, func(a Address) bool { return a.Gateway == gateway && a.Foreign })
		if !foreign {
			messages = append(messages, address(unix.RTM_NEWADDR, index, name, whole(gateway), unix.RT_SCOPE_UNIVERSE))
		}
	}
	for _, a := range r.Addresses {
		route := Route{Dst: whole(a.Addr), Scope: unix.RT_SCOPE_LINK}
		messages = append(messages, neighbour(index, name, a.Addr, links.MAC),
			newRoute(index, name, route, Protocol, unix.NLM_F_EXCL))
	}
	return messages
}

// containerSide returns the messages, and what hears which routes were there before.
func containerSide(links Links, r Routed) ([]message, *addition) {
	index, name := links.Index, links.Name
	added := newAddition(index, name, r.Routes)
	messages := []message{up(index, name, r.MTU)}
	for _, a := range r.Addresses {
		messages = append(messages, address(unix.RTM_NEWADDR, index, name, whole(a.Addr), unix.RT_SCOPE_UNIVERSE))
	}
	for _, gateway := range r.Gateways() {
		hop := Route{Dst: whole(gateway), Scope: unix.RT_SCOPE_LINK}
		// Another interface's route to the same gateway stays the first. Where
		// there is none, the second message finds what the first has made.
		appended := newRoute(index, name, hop, unix.RTPROT_BOOT, unix.NLM_F_APPEND)
		appended.tolerate = []unix.Errno{unix.EEXIST}
		// One that has a route to the gateway alone is of the same network.
		messages = append(messages, neighbour(index, name, gateway, links.HostMAC),
			added.exclusive(hop, added.share(gateway)), appended)
	}
	return append(messages, added.messages()...), added
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
