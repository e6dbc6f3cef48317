// SPDX-License-Identifier: Apache-2.0

// Package policy reads network policies and compiles them, with what is known
// of endpoints, to the tables that the programs ask. The agent calls it. It is
// pure: it opens nothing, and imports no sibling.
//
//   - document.go, shape.go, parse.go, validate.go: bytes to objects, or what is
//     wrong with them and where.
//   - selector.go, port.go, prefix.go, rule.go, program.go: objects to what
//     holds for all endpoints.
//   - member.go, intern.go, entry.go, engine.go: that and endpoints to tables.
//   - tables.go, verdict.go: the tables, and how the programs ask them.
//   - summary.go: rules in words.
//
// # What a policy means
//
// NetworkPolicy of networking.k8s.io/v1 is read literally. Two things that its
// documentation leaves to the implementation: an ipBlock matches every address
// in it, those of endpoints too, and it matches the address of the packet, so an
// endpoint with addresses of both families may be let in by one only. A protocol
// without ports matches rules that name no ports. No policy selects the host,
// and an endpoint always reaches itself.
//
// # Sets and identities
//
// A set is the rules that apply to an endpoint in one direction; an identity is
// a number for all addresses that the rules treat alike, which is to say that
// the same rules have them as peers. What a set allows an identity is an entry,
// a list of ranges of ports. Replicas share their sets and their identity, so
// the number of entries depends on what is said and not on how many it is said
// of.
//
// Both are named by a digest of what they consist of, and never change: if a
// rule or a member changes, they are other ones with other numbers. What is
// equal before and after keeps its number. So whoever holds old numbers and new
// ones at once cannot confuse them, and tables can be written before they are
// switched to.
//
// Addresses that are no endpoint's of this node have the identity of their
// longest prefix. All ipBlocks and their excepts cut the address space into
// cells; newCells finds in one pass who is within each.
//
// # Tiers
//
// All rules allow, and the order of ranges in an entry only decides which rule
// is named. Cluster-wide policies, with priorities and rules that deny or pass,
// would make a set a list of tiers: an entry would then be the first tier's
// ranges with what they do, in order, and allowed.entries is the one place that
// decides what may be left out. Identities, prefixes and numbers stay as they
// are.
package policy
