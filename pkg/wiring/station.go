// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// station is a container on a link that it shares with others: the subnets of its
// addresses are there, and its neighbours are left to ARP and neighbour discovery.
type station struct {
	// name and index are of the container's interface.
	name  string
	index int
	// mtu in bytes; 0 leaves it as it is.
	mtu       int
	addresses []netip.Prefix
	routes    []Route
	// heedsRouters leaves it to the container whether it follows router advertisements.
	heedsRouters bool
	// doubted has the kernel ask the link whether somebody else has an IPv6 address.
	doubted bool
}

// ipv6 is the last IPv6 address, the zero Addr where there is none.
func (s station) ipv6() (last netip.Addr) {
	for _, a := range s.addresses {
		if a.Addr().Is6() {
			last = a.Addr()
		}
	}
	return last
}

// inhabit gives the container's interface what it is to have, and sets it up. It returns
// the routes that the container has in the end.
func (s station) inhabit(container *Namespace) ([]Route, error) {
	var off []string
	if !s.heedsRouters {
		off = []string{"accept_ra"}
	}
	if err := prepareIPv6(container, s.name, s.ipv6().IsValid(), off...); err != nil {
		return nil, err
	}
	if s.doubted && s.ipv6().IsValid() {
		if err := askForDuplicates(container, s.name); err != nil {
			return nil, err
		}
	}
	added := newAddition(s.index, s.name, s.routes)
	var gateways []netip.Addr
	var messages []message
	for _, route := range s.routes {
		if route.Gateway.IsValid() && !slices.Contains(gateways, route.Gateway) {
			gateways = append(gateways, route.Gateway)
			messages = append(messages, lookUpRoute(route.Gateway, fibMatch))
		}
	}
	messages = append(messages, up(s.index, s.name, s.mtu))
	for _, a := range s.addresses {
		own := ownAddress{index: s.index, name: s.name, prefix: a, scope: unix.RT_SCOPE_UNIVERSE, doubted: s.doubted}
		messages = append(messages, own.message(unix.RTM_NEWADDR))
	}
	answers, err := container.exchange(append(messages, added.messages()...))
	if err != nil {
		return nil, err
	}
	for i, gateway := range gateways {
		*added.share(gateway) = onLink(answers[i])
	}
	return added.finish(container)
}

// fibMatch is RTM_F_FIB_MATCH of linux/rtnetlink.h: the answer is the route as it stands
// in its table, not what it comes to for the address.
const fibMatch = 0x2000

// onLink reads the answer to RTM_GETROUTE with fibMatch: whether a subnet of a link has
// the address. A default route without a gateway is none.
func onLink(answer []byte) bool {
	if len(answer) < unix.SizeofRtMsg || answer[routeType] != unix.RTN_UNICAST || answer[routeBits] == 0 {
		return false
	}
	_, gateway := attributes(answer[unix.SizeofRtMsg:])[unix.RTA_GATEWAY]
	return !gateway
}

// compare judges what inhabit has made.
func (s station) compare(seen observed) (differences []string) {
	const where = " in the container"
	for _, a := range s.addresses {
		switch missing := seen.compareAddress("address", where, s.name, a); {
		case missing != nil:
			differences = append(differences, missing...)
		case seen.link != nil && !a.IsSingleIP() && !seen.connects(a.Masked()):
			differences = append(differences, fmt.Sprintf("route %s is missing on %s%s", a.Masked(), s.name, where))
		}
	}
	return append(differences, seen.compareRoutes(where, s.name, s.routes)...)
}
