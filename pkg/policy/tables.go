// SPDX-License-Identifier: Apache-2.0

package policy

import "net/netip"

// Direction is that of a rule, seen from the endpoint it applies to.
type Direction uint8

// The numbers are those in keys of the kernel's map of hits.
const (
	Ingress Direction = 0
	Egress  Direction = 1
)

func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// Tables is what the maps of the kernel hold, and all that a verdict needs.
type Tables struct {
	// Active says that some endpoint is isolated in some way, or that any
	// policy exists. If not, everything is allowed without a look.
	Active bool
	// Subjects has each endpoint of this node.
	Subjects map[uint16]Subject
	// Prefixes gives the identity of an address that is no endpoint of this
	// node, or of one whose Subject says ByAddress: that of the longest prefix.
	// Prefixes of IPv4 are plain ones. 0 is allowed and means what no prefix
	// means.
	Prefixes map[netip.Prefix]uint32
	// Entries has what a set allows to or from an identity. Those of identity 0
	// are for everybody, and are asked as well.
	Entries map[Pair][]Range
}

// Subject is what policy says of one endpoint of this node.
type Subject struct {
	// Ingress and Egress are the sets of rules that apply; 0 if the endpoint is
	// not isolated in that direction.
	Ingress, Egress uint32
	// Identity is that of all its addresses; 0 if no rule has specific peers
	// that include them.
	Identity uint32
	// ByAddress says that not all of the endpoint's addresses lie in the same
	// ipBlocks. Prefixes has the identity of each then, and Identity is of the
	// rules that include all of them: it allows too little.
	ByAddress bool
	// Network is a number for the name of the endpoint's network, never 0.
	Network uint32
	// What the endpoint's network refuses from other endpoints of this node.
	FromOtherNetworks, FromOwnNetwork bool
}

// Pair is the key of what a set of rules allows to or from an identity.
type Pair struct{ Set, Identity uint32 }

// Range is a range of server ports that a rule allows.
type Range struct {
	First, Last uint16
	// Protocol is 0 for all protocols; First is 0 and Last 65535 then, and a
	// protocol without ports matches too.
	Protocol uint8
	// Rule is the hash of the rule.
	Rule uint64
}
