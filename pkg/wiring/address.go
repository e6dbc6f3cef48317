// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/prefix"
)

// whole is the prefix of one address alone.
func whole(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// address adds or removes an address with the length of its subnet. That nobody else has
// it is known from whoever leased it: an IPv6 address skips duplicate address detection.
func address(kind uint16, index int, name string, a netip.Prefix, scope uint8) message {
	return ownAddress{index: index, name: name, prefix: a, scope: scope}.message(kind)
}

// ownAddress is an address of a link.
type ownAddress struct {
	index  int
	name   string
	prefix netip.Prefix // with the length of the subnet
	scope  uint8        // RT_SCOPE_*
	// doubted has the kernel ask the link whether somebody else has it.
	doubted bool
}

// message adds or removes the address. A whole one goes without the prefix route, which
// would be a second route to the address itself.
func (o ownAddress) message(kind uint16) message {
	a := o.prefix
	body := header(unix.IfAddrmsg{Family: family(a.Addr()), Prefixlen: uint8(a.Bits()), Scope: o.scope, Index: uint32(o.index)})
	body = attributeAddr(body, unix.IFA_LOCAL, a.Addr())
	body = attributeAddr(body, unix.IFA_ADDRESS, a.Addr())
	if kind == unix.RTM_DELADDR {
		return message{kind: kind, body: body, what: fmt.Sprintf("remove address %s from %s", a, o.name)}
	}
	var flags uint32
	if a.IsSingleIP() {
		flags |= unix.IFA_F_NOPREFIXROUTE
	}
	if a.Addr().Is6() && !o.doubted {
		flags |= unix.IFA_F_NODAD
	} else if a.Addr().Is4() && a.Bits() < 31 { // RFC 3021: two hosts leave none
		// The kernel takes packets for it in any case; programs that ask for it (SIOCGIFBRDADDR) want it said.
		body = attributeAddr(body, unix.IFA_BROADCAST, prefix.Last(a))
	}
	body = attribute32(body, unix.IFA_FLAGS, flags)
	return message{
		kind: kind, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, body: body,
		what: fmt.Sprintf("add address %s to %s", a, o.name),
	}
}
