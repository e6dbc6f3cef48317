// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// number is an address to calculate with. An IPv4 address is the number of its
// IPv4-mapped form (RFC 4291, section 2.5.5.2), so one arithmetic serves both
// families and no IPv4 address equals an IPv6 one: mapped addresses are refused
// wherever addresses come in.
type number struct{ hi, lo uint64 }

func numberOf(a netip.Addr) number {
	b := a.As16()
	return number{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// addr is the address whose number n is.
func (n number) addr() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n.hi)
	binary.BigEndian.PutUint64(b[8:], n.lo)
	return netip.AddrFrom16(b).Unmap()
}

func (n number) compare(m number) int {
	if c := cmp.Compare(n.hi, m.hi); c != 0 {
		return c
	}
	return cmp.Compare(n.lo, m.lo)
}

func (n number) less(m number) bool { return n.compare(m) < 0 }

// plus wraps around at 2^128; callers stay below.
func (n number) plus(d uint64) number {
	lo, carry := bits.Add64(n.lo, d, 0)
	return number{n.hi + carry, lo}
}

// minus1 is the number before n, which is not zero.
func (n number) minus1() number {
	lo, borrow := bits.Sub64(n.lo, 1, 0)
	return number{n.hi - borrow, lo}
}

// maxCapacity is where counts of addresses saturate: 2^63-1, the largest number
// that JSON readers and Prometheus' users can be expected to hold.
const maxCapacity = 1<<63 - 1

// span is a run of addresses, both ends included, that may all be handed out.
type span struct {
	first, last number
	// set and index name the range that the span is a part of.
	set, index int
}

func (s span) contains(n number) bool { return !n.less(s.first) && !s.last.less(n) }

// size is the number of addresses, saturated at maxCapacity.
func (s span) size() uint64 {
	lo, borrow := bits.Sub64(s.last.lo, s.first.lo, 0)
	if s.last.hi-s.first.hi-borrow != 0 || lo >= maxCapacity {
		return maxCapacity
	}
	return lo + 1
}
