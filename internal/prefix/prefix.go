// SPDX-License-Identifier: Apache-2.0

// Package prefix has what net/netip lacks of prefixes.
package prefix

import "net/netip"

// Last is the last address of a prefix, whether or not that is masked; of an invalid one it is the
// zero address.
func Last(p netip.Prefix) netip.Addr {
	bytes := p.Addr().AsSlice()
	for i := max(0, p.Bits()); i < 8*len(bytes); i++ {
		bytes[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(bytes)
	return last
}
