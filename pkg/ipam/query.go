// SPDX-License-Identifier: Apache-2.0

package ipam

import "slices"

// Lookup returns the addresses that the owner holds in the network, in the
// order of the range sets they came from; none if it holds none.
func (s *Store) Lookup(name string, owner Owner) []Address {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if n := s.networks[name]; n != nil {
		return addresses(n.owners[owner])
	}
	return nil
}

// Leases returns all leases of the network.
func (s *Store) Leases(name string) map[Owner][]Address {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make(map[Owner][]Address)
	if n := s.networks[name]; n != nil {
		for owner, leases := range n.owners {
			out[owner] = addresses(leases)
		}
	}
	return out
}

// Pool is how full a range set of a network is.
type Pool struct {
	Network string
	// Set is the position of the range set, whose ranges are Ranges.
	Set    int
	Ranges RangeSet
	// Leased counts addresses of the ranges that are leased, Capacity those
	// that can be; both stop at 2^63-1. The set is exhausted when they are
	// equal. Leases from ranges that the network had before do not count.
	Leased, Capacity uint64
}

// Pools returns the range sets of all networks that are known, by name. A
// network is known from its first Allocate; one without leases may be forgotten.
func (s *Store) Pools() []Pool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []Pool
	for _, n := range s.byName() {
		for i, pool := range n.pools {
			out = append(out, Pool{n.name, i, slices.Clone(pool.ranges), pool.leased, pool.capacity})
		}
	}
	return out
}

// Available says whether an Allocate without wanted addresses would succeed. It
// returns nil or the error that Allocate would: *RangeError, *OverlapError,
// *TakenError for a gateway, *ExhaustedError.
func (s *Store) Available(name string, sets []RangeSet) error {
	if err := checkName("network", name); err != nil {
		return err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	change, err := s.prepare(name, sets)
	if err != nil {
		return err
	}
	for i, pool := range change.next.pools {
		if pool.leased == pool.capacity {
			return exhausted(change.next, i)
		}
	}
	return nil
}
