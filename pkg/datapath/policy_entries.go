// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"slices"

	"github.com/tendril-net/tendril/pkg/maps"
)

// identityPlaces are by which the programs know the identities of a generation: small
// numbers one after another, so that an entry of map policies, which has a range for each
// of PolicyEntryRanges of them, is full.
type identityPlaces struct {
	of map[uint32]uint32
	// next is the first that no identity had.
	next uint32
}

func newIdentityPlaces(p Policy) *identityPlaces {
	places := &identityPlaces{of: map[uint32]uint32{0: 0}, next: 1} // 0 is everybody
	places.put(p.numbers())
	return places
}

// give gives places to the identities that have none. They share no entry with others that
// had theirs before: what was written stays as it is.
func (i *identityPlaces) give(numbers map[uint32]bool) {
	const n = uint32(PolicyEntryRanges)
	i.next = (i.next + n - 1) / n * n
	i.put(numbers)
}

func (i *identityPlaces) put(numbers map[uint32]bool) {
	var without []uint32
	for number := range numbers {
		if _, has := i.of[number]; !has {
			without = append(without, number)
		}
	}
	slices.Sort(without) // those of one policy follow each other
	for _, number := range without {
		i.of[number] = i.next
		i.next++
	}
}

// isLoose says whether most places are of identities that are not among the numbers: they are given
// anew then.
func (i *identityPlaces) isLoose(numbers map[uint32]bool) bool {
	const few = 1024
	return len(i.of) > few+2*len(numbers)
}

// identities are those of a policy's prefixes, as the programs know them.
func (i *identityPlaces) identities(p Policy) map[netip.Prefix]uint32 {
	out := make(map[netip.Prefix]uint32, len(p.Identities))
	for prefix, identity := range p.Identities {
		out[prefix] = i.of[identity]
	}
	return out
}

// maxPlace is below what a node of the tree of identities can say.
const maxPlace = 1 << 29

// numbers are the identities of a policy.
func (p Policy) numbers() map[uint32]bool {
	numbers := map[uint32]bool{0: true}
	for pair := range p.Entries {
		numbers[pair.Identity] = true
	}
	for _, subject := range p.Subjects {
		numbers[subject.Identity] = true
	}
	for _, identity := range p.Identities {
		numbers[identity] = true
	}
	return numbers
}

// sets are those of a policy's subjects.
func (p Policy) sets() map[uint32]bool {
	sets := make(map[uint32]bool)
	for _, subject := range p.Subjects {
		sets[subject.Ingress], sets[subject.Egress] = true, true
	}
	return sets
}

// policyEntries are what map policies has for pairs in a generation.
func policyEntries(generation uint32, pairs map[PolicyPair][]PolicyRange, places *identityPlaces) map[maps.PolicyKey]maps.Policy {
	entries := make(map[maps.PolicyKey]maps.Policy, len(pairs)/PolicyEntryRanges)
	for pair, ranges := range pairs {
		place := places.of[pair.Identity]
		for i, r := range ranges {
			key, at := policyPlace(generation, pair.Set, place, i)
			value := entries[key]
			value.Ranges[at] = maps.PolicyRange{Rule: r.Rule, First: r.First, Last: r.Last, Protocol: r.Protocol}
			if i+1 < len(ranges) && (i == 0 || at == PolicyEntryRanges-1) {
				value.Ranges[at].More = 1
			}
			entries[key] = value
		}
	}
	return entries
}

// policyPlace is where the i-th range of a set and the identity at a place is.
func policyPlace(generation, set, place uint32, i int) (key maps.PolicyKey, at int) {
	const n = PolicyEntryRanges
	if i == 0 {
		return maps.PolicyKey{Generation: generation, Set: set, Identity: place / uint32(n)}, int(place % uint32(n))
	}
	return maps.PolicyKey{Generation: generation, Set: set, Identity: place, Chunk: uint32(1 + (i-1)/n)}, (i - 1) % n
}

// rules are those of a policy.
func (p Policy) rules() map[uint64]bool {
	rules := make(map[uint64]bool)
	for _, ranges := range p.Entries {
		for _, r := range ranges {
			rules[r.Rule] = true
		}
	}
	return rules
}
