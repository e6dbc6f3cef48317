// SPDX-License-Identifier: Apache-2.0

// Command soak lets a node live through a long time of mixed load and constant
// change, and then looks at what is left. `make soak` is its caller; it needs root.
//
//	bin/soak [-for DURATION] [-seed NUMBER] [-endpoints N] [-streams N] [-rate N] [-bin FOLDER]
//
// The node is a network namespace with a real agent, small maps and few source
// ports; two worlds lie behind two uplinks. Containers are of all drivers: those of macvlan have a street of their own,
// with a neighbour, and reach nobody else. Residents stay for the whole run, guests come and
// go by the real plugin, and one container floods.
//
//   - Load: streams of TCP whose bytes follow from a key, short TCP connections,
//     UDP exchanges and ICMP echoes, in both families, between containers, host
//     and worlds in all directions that are routed (exchange.go, stream.go).
//   - Policy: one container lets in one other, and a stranger knocks all the time (rules.go).
//   - Disturbances come at random moments; the table in disturb.go lists them, and
//     another one is a line there.
//   - Judgement: each question names who asks and whom, and each answer who
//     answers and where the question seemed to come from. What reaches or
//     answers anybody else, or is seen from an address or port that it should not
//     have, is a mistranslation. So is a byte of a stream that its key does not
//     give. What fails without either is a failure, unless something that was done
//     meanwhile permits it (ledger.go).
//   - The end: everything is deleted, and whole listings are compared with those
//     of the start, before and after `tendril-agent cleanup` (remains.go).
//
// Both ends of all traffic are in this process, so that they can be compared.
// Random decisions follow from the seed; what they meet depends on timing.
//
// The command runs in mount, PID and network namespaces of its own, with tmpfs
// on /run. All that it makes, processes included, goes with them, also when it
// is killed. SIGINT ends the load, not the judgement; a second one ends that.
package main
