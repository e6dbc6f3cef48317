// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/tendril-net/tendril/pkg/maps"
)

// Policy is what the programs ask. Sets and identities are numbers for contents, and as long
// as a Datapath is open no number is used again for another one.
type Policy struct {
	// Active says that somebody is restricted. If not, nothing is asked.
	Active bool
	// Subjects has each endpoint that is served, by id.
	Subjects map[uint16]Subject
	// Identities of addresses that are no endpoint's of the node, by longest prefix.
	Identities map[netip.Prefix]uint32
	// Entries are what a set lets through for an identity; 0 is everybody.
	Entries map[PolicyPair][]PolicyRange
}

// Subject is what policy says of an endpoint.
type Subject struct {
	// Ingress and Egress are sets, 0 where nothing restricts.
	Ingress, Egress uint32
	Identity        uint32
	// ByAddress says that Identities has that of each address.
	ByAddress bool
	// Network is the number of its network, whose endpoints NoOwn refuses; NoOthers
	// refuses those of other networks.
	Network         uint32
	NoOthers, NoOwn bool
}

func (s Subject) value(places *identityPlaces) maps.Subject {
	value := maps.Subject{Ingress: s.Ingress, Egress: s.Egress, Identity: places.of[s.Identity], Network: s.Network}
	for flag, set := range map[uint32]bool{
		maps.SubjectNoOthers: s.NoOthers, maps.SubjectNoOwn: s.NoOwn, maps.SubjectByAddress: s.ByAddress,
	} {
		if set {
			value.Flags |= flag
		}
	}
	return value
}

// PolicyPair is a set and an identity.
type PolicyPair struct{ Set, Identity uint32 }

// PolicyRange are destination ports that a rule lets through.
type PolicyRange struct {
	First, Last uint16
	// Protocol is 0 for all, whatever the ports.
	Protocol uint8
	// Rule is the key of the rule's hits, not 0.
	Rule uint64
}

// Bounds of a policy. The maps of subjects and entries have room for two, because the next one
// is written before this one goes.
const (
	// PolicyPrefixes bounds Policy.Identities.
	PolicyPrefixes = 65536
	// PolicyEntries bounds the values of map policies: one for the first ranges of some
	// pairs of a set, and one for each PolicyEntryRanges more that a pair has.
	PolicyEntries = 2 * PolicyPairs
	// PolicyPairs bounds pairs such that their entries fit, however they come to lie: a pair
	// counts once for each PolicyEntryRanges that it has or begins.
	PolicyPairs = 65536
	// PolicyPairRanges bounds the ranges of a pair: 1 + PolicyEntryRanges * (POLICY_CHUNKS of
	// bpf/lib/types.h - 1).
	PolicyPairRanges = 1 + PolicyEntryRanges*32
	// PolicyRules bounds the rules, each of which is counted.
	PolicyRules = 131072
	// PolicySubjects bounds Policy.Subjects.
	PolicySubjects = 16384
)

// PolicyEntryRanges is how many ranges one entry of PolicyEntries holds: POLICY_RANGES of
// bpf/lib/types.h.
const PolicyEntryRanges = len(maps.Policy{}.Ranges)

// TooBigError is a policy that the maps have no room for. The one before stays.
type TooBigError struct {
	// What there is too much of, and of whom.
	What        string
	Need, Limit int
}

func (e *TooBigError) Error() string {
	return fmt.Sprintf("policy needs %d %s, and %d fit", e.Need, e.What, e.Limit)
}

// writtenPolicy is what the maps hold.
type writtenPolicy struct {
	// known says that this agent has written it. If not, generation and last are a predecessor's.
	known bool
	// generation is the one that counts, 0 for none, and last the last that was written, whether or
	// not it counts.
	generation, last uint32
	now              Policy
	// places and entries are those of the generation that counts, and nodes are in its tree.
	places *identityPlaces
	// growth bounds the entries: what nobody needs any more is among them, and goes with the generation.
	growth  int
	entries map[maps.PolicyKey]maps.Policy
	// gone are endpoints that are in now no more, and have their subjects in the generation that counts: a program
	// that has found one may still ask for its subject, which stays until the id is purged.
	gone  map[uint16]bool
	nodes identityTree
	tree  *ebpf.Map
	// unfinished says that there may be other generations, whose decisions may count.
	unfinished bool
}

func (p *Policy) check() error {
	for pair, ranges := range p.Entries {
		if len(ranges) > PolicyPairRanges {
			return &TooBigError{What: fmt.Sprintf("ranges of ports for identity %d in set %d", pair.Identity, pair.Set), Need: len(ranges), Limit: PolicyPairRanges}
		}
	}
	rules := len(p.rules())
	switch {
	case len(p.Subjects) > PolicySubjects:
		return &TooBigError{What: "subjects", Need: len(p.Subjects), Limit: PolicySubjects}
	case rules > PolicyRules:
		return &TooBigError{What: "rules", Need: rules, Limit: PolicyRules}
	case len(p.Identities) > PolicyPrefixes:
		return &TooBigError{What: "prefixes", Need: len(p.Identities), Limit: PolicyPrefixes}
	}
	return nil
}
