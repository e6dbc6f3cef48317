// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"

	"go.etcd.io/bbolt"
)

// maxIdle is how many networks without leases are remembered: for each, where
// its walk stood. Some runtimes invent a network name per job, and nothing ever
// tells the agent that such a network is gone.
const maxIdle = 256

// change is what an Allocate changes besides adding leases, when the network is
// new or its ranges are.
type change struct {
	// next is the network as it will be. If nothing changes it is the one
	// that the state holds, else one of its own that may be modified.
	next *network
	// changed says that next is to replace what the state holds.
	changed bool
	// gone are idle networks that give way.
	gone []*network
	// forgotten are resting addresses that next does not hand out.
	forgotten []rested
}

// prepare finds out what it takes to allocate from the ranges. It only reads.
func (s *state) prepare(name string, ranges []RangeSet) (*change, error) {
	sets, err := Canonical(ranges)
	if err != nil {
		return nil, err
	}
	if len(sets) == 0 {
		return nil, &RangeError{Set: -1, Index: -1, Reason: "there is no range set"}
	}
	old := s.networks[name]
	if old != nil && equalSets(old.sets, sets) {
		return &change{next: old}, nil
	}

	c := &change{next: newNetwork(name, sets), changed: true}
	for _, other := range s.byName() {
		if other == old {
			continue
		}
		mine, others, found := c.next.overlap(other)
		if found && !other.idle() {
			return nil, &OverlapError{name, other.name, mine, others}
		}
		if found {
			c.gone = append(c.gone, other)
		}
	}
	for _, gateway := range c.next.gateways() {
		if l, leased := s.leases[gateway]; leased {
			return nil, &TakenError{gateway, l.owner, l.network, true}
		}
	}
	if old != nil {
		c.next.owners = maps.Clone(old.owners)
	} else if len(c.gone) == 0 {
		c.gone = s.surplus()
	}
	s.fill(c, old)
	return c, nil
}

// surplus is the idle network that was not used for the longest time, if there
// are too many.
func (s *state) surplus() []*network {
	idle := slices.DeleteFunc(s.byName(), func(n *network) bool { return !n.idle() })
	if len(idle) < maxIdle {
		return nil
	}
	return []*network{slices.MinFunc(idle, func(a, b *network) int { return cmp.Compare(a.used, b.used) })}
}

// fill tells the pools of c.next which addresses are leased, which rest, and
// where to go on.
func (s *state) fill(c *change, old *network) {
	for address := range s.leases {
		if pool := c.next.pool(numberOf(address)); pool != nil {
			pool.take(choice{number: numberOf(address)})
		}
	}
	before := slices.Clone(c.gone)
	if old != nil {
		before = append(before, old)
	}
	var all []rested
	for _, n := range before {
		for _, pool := range n.pools {
			all = append(all, pool.resting.oldest(pool.resting.len())...)
			if now := c.next.pool(pool.last); now != nil {
				now.last = pool.last
			}
		}
	}
	slices.SortFunc(all, func(a, b rested) int { return cmp.Compare(a.order, b.order) })
	for _, r := range all {
		if pool := c.next.pool(r.number); pool != nil {
			pool.rest(r)
		} else {
			c.forgotten = append(c.forgotten, r)
		}
	}
}

// write stores the change.
func (c *change) write(r records) error {
	if !c.changed {
		return nil
	}
	for _, n := range c.gone {
		if err := r.networks.DeleteBucket([]byte(n.name)); err != nil {
			return err
		}
	}
	for _, f := range c.forgotten {
		key, _ := encodeRested(f)
		if err := r.released.Delete(key); err != nil {
			return err
		}
	}
	return c.next.write(r.networks)
}

// write stores the network's ranges and cursors, instead of what is there.
func (n *network) write(networks *bbolt.Bucket) error {
	key := []byte(n.name)
	if networks.Bucket(key) != nil {
		if err := networks.DeleteBucket(key); err != nil {
			return err
		}
	}
	b, err := networks.CreateBucket(key)
	if err != nil {
		return err
	}
	ranges, err := json.Marshal(n.sets)
	if err != nil {
		return err
	}
	if err := b.Put(rangesKey, ranges); err != nil {
		return err
	}
	for i, pool := range n.pools {
		if n.pool(pool.last) != pool {
			continue // nothing was handed out yet
		}
		if err := b.Put(encodeCursor(i, pool.last)); err != nil {
			return err
		}
	}
	return nil
}

// apply makes the change in memory.
func (c *change) apply(s *state) {
	for _, n := range c.gone {
		delete(s.networks, n.name)
	}
	s.networks[c.next.name] = c.next
}

// byName are the networks that are known, sorted.
func (s *state) byName() []*network { return slices.SortedFunc(maps.Values(s.networks), byName) }
