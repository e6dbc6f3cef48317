// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/tendril-net/tendril/internal/prefix"
)

// Range is a part of a subnet from which addresses are handed out. The words
// are those of the reference plugin host-local.
type Range struct {
	// Subnet gives leases their prefix length. No host bits are set in it.
	Subnet netip.Prefix `json:"subnet"`
	// Start is the first address, End the last; both lie in Subnet.
	Start netip.Addr `json:"rangeStart"`
	End   netip.Addr `json:"rangeEnd"`
	// Gateway is the next hop of whoever holds a lease; it lies in Subnet, in
	// or out of the range, and is never handed out.
	Gateway netip.Addr `json:"gateway"`
}

// RangeSet is a list of ranges of one family from which one address is taken.
type RangeSet []Range

// String is the subnet if the range is all that Canonical makes of it, else the
// first and the last address.
func (r Range) String() string {
	if whole, err := (Range{Subnet: r.Subnet, Gateway: r.Gateway}).canonical(); err == nil && whole == r {
		return r.Subnet.String()
	}
	return r.Start.String() + "-" + r.End.String()
}

// RangeError says which key of which range is wrong.
type RangeError struct {
	// Set and Index are the positions in ranges[Set][Index]; Index is -1 if
	// the set as a whole is at fault, Set too if all of them are.
	Set, Index int
	// Key is "subnet", "rangeStart", "rangeEnd" or "gateway"; empty if Index
	// is -1.
	Key string
	// Value is what was given for the key; empty if nothing was.
	Value string
	// Reason says what is wrong with it.
	Reason string
}

// Path is the key as it is found in a CNI configuration below "ipam", such as
// ranges[0][1].rangeStart.
func (e *RangeError) Path() string {
	path := "ranges"
	if e.Set >= 0 {
		path += fmt.Sprintf("[%d]", e.Set)
	}
	if e.Index >= 0 {
		path += fmt.Sprintf("[%d].%s", e.Index, e.Key)
	}
	return path
}

func (e *RangeError) Error() string {
	if e.Value == "" {
		return fmt.Sprintf("check %s: %s", e.Path(), e.Reason)
	}
	return fmt.Sprintf("check %s %q: %s", e.Path(), e.Value, e.Reason)
}

// Canonical returns the sets with every default filled in, or a *RangeError for
// the first thing that is wrong with them. It does not change its argument, and
// what it returned it returns again unchanged.
//
// The defaults are host-local's: the gateway is the first address of the subnet
// that a host may have, and the range is all those addresses, except that the
// gateway is left out where it would be the range's first or last one. In a /31
// (RFC 3021) or /127 (RFC 6164) both addresses are hosts', and the lower is the
// default gateway; anything smaller has no room for a container and a gateway.
//
// A subnet may neither be part of a block of loopback, link-local, multicast or
// reserved addresses nor hold one, and no two ranges of a network may overlap,
// be they of one set or of two.
func Canonical(sets []RangeSet) ([]RangeSet, error) {
	out, err := complete(sets)
	if err != nil {
		return nil, err
	}
	for i, set := range out {
		for j, r := range set {
			if reason := Special(r.Subnet); reason != "" {
				return nil, &RangeError{i, j, "subnet", r.Subnet.String(), reason}
			}
		}
	}
	return out, nil
}

// complete is Canonical for any subnet: records may hold ranges of a version that
// refused fewer.
func complete(sets []RangeSet) ([]RangeSet, error) {
	out := make([]RangeSet, len(sets))
	for i, set := range sets {
		if len(set) == 0 {
			return nil, &RangeError{Set: i, Index: -1, Reason: "the range set is empty"}
		}
		out[i] = make(RangeSet, len(set))
		for j, r := range set {
			canonical, err := r.canonical()
			if err != nil {
				err.Set, err.Index = i, j
				return nil, err
			}
			out[i][j] = canonical
			if first := out[i][0].Subnet; first.Addr().Is4() != canonical.Subnet.Addr().Is4() {
				return nil, &RangeError{
					i, j, "subnet", canonical.Subnet.String(),
					fmt.Sprintf("is not of the family of %s, the first subnet of its range set", first),
				}
			}
		}
	}
	if err := checkOverlap(out); err != nil {
		return nil, err
	}
	if err := checkUsable(out); err != nil {
		return nil, err
	}
	return out, nil
}

// canonical is complete for one range by itself. The error's position is not
// filled in.
func (r Range) canonical() (Range, *RangeError) {
	subnet := r.Subnet
	wrong := func(reason string, args ...any) (Range, *RangeError) {
		value := ""
		if subnet.IsValid() {
			value = subnet.String()
		}
		return Range{}, &RangeError{Key: "subnet", Value: value, Reason: fmt.Sprintf(reason, args...)}
	}
	switch {
	case !subnet.IsValid():
		return wrong("is missing or no prefix")
	case subnet.Addr().Is4In6():
		return wrong("is an IPv4-mapped IPv6 prefix; write it as IPv4")
	case subnet.Bits() == subnet.Addr().BitLen():
		return wrong("is too small to allocate from: a container and its gateway need two addresses")
	case subnet != subnet.Masked():
		return wrong("has host bits set; the network address of its /%d is %s", subnet.Bits(), subnet.Masked().Addr())
	}
	first, last := hosts(subnet)
	start, end := first, last

	gateway := first
	if r.Gateway.IsValid() {
		var err *RangeError
		if gateway, err = within(subnet, "gateway", r.Gateway); err != nil {
			return Range{}, err
		}
		// Subnet-router anycast is a router's address by definition
		// (RFC 4291, section 2.6.1); IPv4's two are nobody's.
		if gateway.Is4() && (gateway.Less(first) || last.Less(gateway)) {
			return Range{}, &RangeError{
				Key: "gateway", Value: r.Gateway.String(),
				Reason: fmt.Sprintf("is the network or broadcast address of %s", subnet),
			}
		}
	}
	if start == gateway {
		start = start.Next()
	}
	if end == gateway {
		end = end.Prev()
	}
	if r.Start.IsValid() {
		var err *RangeError
		if start, err = within(subnet, "rangeStart", r.Start); err != nil {
			return Range{}, err
		}
	}
	if r.End.IsValid() {
		var err *RangeError
		if end, err = within(subnet, "rangeEnd", r.End); err != nil {
			return Range{}, err
		}
		if end.Less(start) {
			return Range{}, &RangeError{
				Key: "rangeEnd", Value: r.End.String(),
				Reason: fmt.Sprintf("comes before %s, the start of the range", start),
			}
		}
	}
	if end.Less(start) {
		return Range{}, &RangeError{
			Key: "rangeStart", Value: r.Start.String(),
			Reason: fmt.Sprintf("comes after %s, the end of the range", end),
		}
	}
	return Range{Subnet: subnet, Start: start, End: end, Gateway: gateway}, nil
}

// Special says why no container can live in the subnet: it is a part of a block of
// loopback, link-local, multicast or reserved addresses (RFC 6890), or holds one.
// Empty if it is neither. A single address is a subnet of its whole length.
func Special(subnet netip.Prefix) string {
	for _, block := range []struct {
		prefix, what string
	}{
		{"0.0.0.0/8", "addresses of this host on this network (RFC 791)"},
		{"127.0.0.0/8", "loopback addresses"},
		{"169.254.0.0/16", "link-local addresses"},
		{"224.0.0.0/4", "multicast addresses"},
		{"240.0.0.0/4", "reserved addresses, the limited broadcast address among them"},
		{"::/127", "the unspecified and the loopback address"},
		{"::ffff:0.0.0.0/96", "IPv4-mapped addresses"},
		{"fe80::/10", "link-local addresses"},
		{"ff00::/8", "multicast addresses"},
	} {
		p := netip.MustParsePrefix(block.prefix)
		switch {
		case !p.Overlaps(subnet):
		case p.Bits() <= subnet.Bits():
			return fmt.Sprintf("is in %s: %s", p, block.what)
		default:
			return fmt.Sprintf("holds %s: %s", p, block.what)
		}
	}
	return ""
}

// within is the address in its standard form if it lies in the subnet.
func within(subnet netip.Prefix, key string, a netip.Addr) (netip.Addr, *RangeError) {
	if a.Zone() != "" {
		return netip.Addr{}, &RangeError{Key: key, Value: a.String(), Reason: "has a zone"}
	}
	if plain := a.Unmap(); subnet.Contains(plain) {
		return plain, nil
	}
	return netip.Addr{}, &RangeError{Key: key, Value: a.String(), Reason: fmt.Sprintf("is not in subnet %s", subnet)}
}

// hosts are the first and the last address of the subnet that a host may have:
// not IPv4's network and broadcast address (RFC 1122, section 3.2.1.3), not
// IPv6's subnet-router anycast address (RFC 4291, section 2.6.1).
func hosts(subnet netip.Prefix) (first, last netip.Addr) {
	first, last = subnet.Masked().Addr(), prefix.Last(subnet)
	if subnet.Bits() >= first.BitLen()-1 {
		return first, last
	}
	if first.Is4() {
		last = last.Prev()
	}
	return first.Next(), last
}

// checkOverlap finds two ranges with an address in common.
func checkOverlap(sets []RangeSet) error {
	var all []span
	for i, set := range sets {
		for j, r := range set {
			all = append(all, span{numberOf(r.Start), numberOf(r.End), i, j})
		}
	}
	slices.SortStableFunc(all, func(a, b span) int { return a.first.compare(b.first) })
	for k := 1; k < len(all); k++ {
		// If any two overlap, some two neighbours in this order do.
		a, b := all[k-1], all[k]
		if a.last.less(b.first) {
			continue
		}
		if b.set < a.set || b.set == a.set && b.index < a.index {
			a, b = b, a
		}
		first, second := sets[a.set][a.index], sets[b.set][b.index]
		return &RangeError{b.set, b.index, "subnet", second.Subnet.String(), fmt.Sprintf(
			"its range %s-%s overlaps %s-%s of ranges[%d][%d]", second.Start, second.End, first.Start, first.End, a.set, a.index)}
	}
	return nil
}

// checkUsable finds a range of which nothing is left when the addresses that
// are never handed out are taken away.
func checkUsable(sets []RangeSet) error {
	used := make([][]bool, len(sets))
	for i, set := range sets {
		used[i] = make([]bool, len(set))
	}
	for _, set := range usable(sets) {
		for _, s := range set {
			used[s.set][s.index] = true
		}
	}
	for i := range used {
		if j := slices.Index(used[i], false); j >= 0 {
			r := sets[i][j]
			return &RangeError{i, j, "rangeStart", r.Start.String(), fmt.Sprintf(
				"no address from there to %s can be handed out: all are network, broadcast or gateway addresses", r.End)}
		}
	}
	return nil
}

// usable are the spans of each set, in the order of its ranges, without what is
// never handed out: network, broadcast, subnet-router anycast addresses, and
// the gateways of all ranges of all sets.
func usable(sets []RangeSet) [][]span {
	var gateways []number
	for _, set := range sets {
		for _, r := range set {
			gateways = append(gateways, numberOf(r.Gateway))
		}
	}
	slices.SortFunc(gateways, number.compare)
	gateways = slices.Compact(gateways)

	out := make([][]span, len(sets))
	for i, set := range sets {
		for j, r := range set {
			lowest, highest := hosts(r.Subnet)
			first, last := numberOf(maxAddr(r.Start, lowest)), numberOf(minAddr(r.End, highest))
			from, _ := slices.BinarySearchFunc(gateways, first, number.compare)
			for _, g := range gateways[from:] {
				if last.less(g) {
					break
				}
				if first.less(g) {
					out[i] = append(out[i], span{first, g.minus1(), i, j})
				}
				first = g.plus(1)
			}
			if !last.less(first) {
				out[i] = append(out[i], span{first, last, i, j})
			}
		}
	}
	return out
}

func maxAddr(a, b netip.Addr) netip.Addr {
	if a.Less(b) {
		return b
	}
	return a
}

func minAddr(a, b netip.Addr) netip.Addr {
	if b.Less(a) {
		return b
	}
	return a
}
