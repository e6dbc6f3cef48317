// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sourceAddress chooses what packets masqueraded through a device carry: the
// preferred source of its best default route; else, as the kernel does for
// IPv4 (inet_select_addr), the first usable address on the gateway's subnet;
// else the first usable address, a globally routed one before a private one.
func sourceAddress(family, ifindex int, routes []defaultRoute, addresses []netlink.Addr) netip.Addr {
	var gateways []netip.Addr
	for _, route := range routes {
		if route.family != family || route.ifindex != ifindex {
			continue
		}
		if route.source.IsValid() {
			return route.source
		}
		if route.gateway.IsValid() {
			gateways = append(gateways, route.gateway)
		}
	}
	var first, private netip.Addr
	for _, a := range addresses {
		if a.LinkIndex != ifindex || a.IPNet == nil || !usable(a) {
			continue
		}
		candidate := address(a.IP)
		if candidate.Is4() != (family == netlink.FAMILY_V4) {
			continue
		}
		for _, gateway := range gateways {
			if !gateway.IsLinkLocalUnicast() && a.Contains(gateway.AsSlice()) {
				return candidate
			}
		}
		// Only IPv6 hosts have both kinds as a rule. RFC 4193, section 2:
		// the world does not route unique local addresses.
		if candidate.Is6() && candidate.IsPrivate() {
			if !private.IsValid() {
				private = candidate
			}
		} else if !first.IsValid() {
			first = candidate
		}
	}
	if first.IsValid() {
		return first
	}
	return private
}

// usable tells whether an address may be the source of new connections for as
// long as the host has it: not of link or host scope, and, for IPv6, not
// tentative (RFC 4862), nor failed, deprecated or temporary (RFC 8981).
func usable(a netlink.Addr) bool {
	if a.Scope != unix.RT_SCOPE_UNIVERSE || a.IP.IsLoopback() || a.IP.IsLinkLocalUnicast() {
		return false
	}
	if a.IP.To4() != nil {
		return true // of the IPv6 flags, bit 0 means "secondary" here
	}
	if a.Flags&(unix.IFA_F_DADFAILED|unix.IFA_F_DEPRECATED|unix.IFA_F_TEMPORARY) != 0 {
		return false
	}
	return a.Flags&unix.IFA_F_TENTATIVE == 0 || a.Flags&unix.IFA_F_OPTIMISTIC != 0
}
