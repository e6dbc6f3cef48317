// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"net/netip"
	"slices"
	"strings"
)

// network is what the store knows of one network.
type network struct {
	name string
	sets []RangeSet // canonical
	// pools has an element for each of sets.
	pools []*addressSet
	// spans are those of all pools, the lowest first.
	spans []span
	// owners holds each owner's leases in the order of the range sets they
	// were taken from. A network without any is idle.
	owners map[Owner][]lease
	// used is when the network was last used, on the store's own clock.
	used uint64
}

// lease is one address that an owner holds.
type lease struct {
	network string
	owner   Owner
	// set is the position of the range set the address was taken from.
	set     int
	address Address
}

func newNetwork(name string, sets []RangeSet) *network {
	n := &network{name: name, sets: sets, owners: make(map[Owner][]lease)}
	for i, spans := range usable(sets) {
		n.pools = append(n.pools, newAddressSet(sets[i], spans))
		n.spans = append(n.spans, spans...)
	}
	slices.SortFunc(n.spans, func(a, b span) int { return a.first.compare(b.first) })
	return n
}

func (n *network) idle() bool { return len(n.owners) == 0 }

// find is the range and the pool that hand out the address, or nil.
func (n *network) find(at number) (*Range, *addressSet) {
	i, found := slices.BinarySearchFunc(n.spans, at, func(s span, at number) int { return s.first.compare(at) })
	if !found {
		i--
	}
	if i < 0 || !n.spans[i].contains(at) {
		return nil, nil
	}
	return &n.sets[n.spans[i].set][n.spans[i].index], n.pools[n.spans[i].set]
}

// pool is the address set that hands out the address, or nil.
func (n *network) pool(at number) *addressSet {
	_, pool := n.find(at)
	return pool
}

// addLease adds a lease to its owner's.
func (n *network) addLease(l lease) {
	leases := append(n.owners[l.owner], l)
	slices.SortFunc(leases, func(a, b lease) int { return a.set - b.set })
	n.owners[l.owner] = leases
}

// overlap finds a range of n and one of other that cannot be used on one node:
// both could hand out the same address, or one the other's gateway. A common
// gateway does no harm.
func (n *network) overlap(other *network) (mine, others Range, found bool) {
	for i, j := 0, 0; i < len(n.spans) && j < len(other.spans); {
		switch a, b := n.spans[i], other.spans[j]; {
		case a.last.less(b.first):
			i++
		case b.last.less(a.first):
			j++
		default:
			return n.sets[a.set][a.index], other.sets[b.set][b.index], true
		}
	}
	if r, s, found := n.gatewayIn(other); found {
		return r, s, true
	}
	s, r, found := other.gatewayIn(n)
	return r, s, found
}

// gatewayIn finds a range of n whose gateway other would hand out.
func (n *network) gatewayIn(other *network) (mine, others Range, found bool) {
	for _, set := range n.sets {
		for _, r := range set {
			if s, _ := other.find(numberOf(r.Gateway)); s != nil {
				return r, *s, true
			}
		}
	}
	return Range{}, Range{}, false
}

// gateways are the gateways of all ranges; one may occur more than once.
func (n *network) gateways() []netip.Addr {
	var out []netip.Addr
	for _, set := range n.sets {
		for _, r := range set {
			out = append(out, r.Gateway)
		}
	}
	return out
}

func addresses(leases []lease) []Address {
	var out []Address
	for _, l := range leases {
		out = append(out, l.address)
	}
	return out
}

func equalSets(a, b []RangeSet) bool {
	return slices.EqualFunc(a, b, func(a, b RangeSet) bool { return slices.Equal(a, b) })
}

func byName(a, b *network) int { return strings.Compare(a.name, b.name) }
